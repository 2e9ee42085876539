//! Which Service gets which address, and what is said when it can't have what it asks for.
//!
//! | room | what is in it |
//! |---|---|
//! | `order` | who is served when, and what becomes of an address in the life of its Service |
//! | `pools` | which pool an address comes from, and what edits of pools do: nothing to those that have one |
//! | `requests` | asking for addresses and pools, forged status, what kubectl shows |
//! | `sharing` | several Services on one address |
//! | `dual_stack` | both families |
//! | `reservations` | addresses that are kept |
//! | `restarts` | controllers that come and go |
//! | `high_availability` | who leads |
//!
//! Most are scenes on a common cluster: see [`e2e::scene`].

mod dual_stack;
mod high_availability;
mod order;
mod pools;
mod requests;
mod reservations;
mod restarts;
mod sharing;

use lab::Topology;

/// Allocation needs one node at most.
fn small() -> Topology {
    Topology { nodes: 1, ..Topology::default() }
}
