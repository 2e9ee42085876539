//! Allocation of addresses to Services, and reasons of refusals.
//!
//! | file | content |
//! |---|---|
//! | `order` | order of allocation, and an address during the life of its Service |
//! | `pools` | selection of pools, and edits of pools, which never take an address away |
//! | `requests` | requests for addresses and pools, forged status, output of kubectl |
//! | `sharing` | several Services on one address |
//! | `dual_stack` | both families |
//! | `reservations` | reserved addresses |
//! | `restarts` | restarts of the controller |
//! | `high_availability` | leader election |
//! | `crash_safety` | a crash of the controller at each of its writes |
//!
//! Most are scenes on one cluster: see [`e2e::scene`].

mod crash_safety;
mod dual_stack;
mod high_availability;
mod order;
mod pools;
mod requests;
mod reservations;
mod restarts;
mod sharing;

use lab::Topology;

/// A topology of one node, which is enough for allocation.
fn small() -> Topology {
    Topology { nodes: 1, ..Topology::default() }
}
