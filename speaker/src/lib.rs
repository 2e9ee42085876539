//! The speaker: announces load-balancer addresses on the LAN, and decides which node announces which address.
//!
//! Each node runs one speaker. On each link with an lb_ip or a node address, speakers send each other Hellos with their
//! claims. All speakers apply the same rules to the claims, so they agree on the owner of each address. The owner
//! answers ARP and NDP for the address. None of this needs the API server, except that the list of addresses comes from
//! it ([`Snapshot`]). The agent reports afterwards which node announces each address ([`Announcements`]).
//!
//! ```text
//!  objects -> model -------> Snapshot --+            +--> Announcements, Conflicts, dead nodes, Neighbours, Counters
//!  the dataplane's acknowledgements ----+-> Machine -+
//!  links, frames, time -----------------+            +--> frames
//! ```
//!
//! | room | content |
//! |---|---|
//! | [`run`](fn@run) | the entry point: the wire thread with real sockets and time |
//! | [`machine`] | the speaker without sockets and clock; the links of each address |
//! | [`snapshot`] | the part of the cluster state that the speaker needs |
//! | [`wire`] | frames and packets: ARP, NDP, Hello, seal |
//! | `peers` | which peers of a link are alive, and which nodes are dead |
//! | [`ownership`] | which node owns an address; the claims of this node and of its peers |
//! | `announce` | the times of announcements; conflicts with other hosts |
//! | [`os`] | packet sockets, poll, scheduling |
//! | [`metrics`] | events for the log, counters, takeovers |
//!
//! Only [`run`](fn@run) and [`os`] have side effects, and one function in [`metrics`], which writes an event to the
//! log. Only [`run`](fn@run) calls that function. Everything else is pure. Time is an argument, and the tests drive the
//! same [`machine`] through a simulated network.
//!
//! # The path of a Hello
//!
//! 1. `os::filter` passes it to a socket, and `run::wire_loop` receives it. While the machine is idle, a routine
//!    Hello waits until the loop wakes for another reason. Any other Hello wakes the loop.
//! 2. [`Machine::receive`](machine::Machine::receive) unwraps the datagram ([`wire::datagram`]), checks the cluster
//!    ([`wire::codec`]), opens the seal ([`wire::seal`]) and decodes a [`Packet`](wire::hello::Packet).
//! 3. `ownership::segment::receive_hello` decides whether this node believes the sender. A sender that has not proved
//!    that it is alive gets an echo (`peers::handshake`). `ownership::segment::relay` forwards the packet if another
//!    node does not hear its sender (`peers::relay`).
//! 4. `peers::peer` updates the liveness and the claims of the peer. Addresses whose claim changed are marked dirty.
//! 5. The loop calls [`Machine::poll`](machine::Machine::poll), which decides about the dirty addresses, as for a claim
//!    below.
//!
//! # The path of an ARP request
//!
//! 1. `os::filter` passes it to a socket, and [`Machine::receive`](machine::Machine::receive) passes it to the segment
//!    of its link (`ownership::segment::resolve`). NDP solicitations take the same path.
//! 2. [`wire::arp::decide`] returns a [`Verdict`](wire::arp::Verdict): an answer if this node announces the target, a
//!    conflict if the sender uses an announced address, or the reason for no answer.
//! 3. An answer becomes a [`Frame`](wire::frame::Frame) of the next [`Output`](machine::Output), which `run::wire_loop`
//!    sends. A conflict with a host is recorded in `announce::conflicts`; one with a peer is not. In both cases the
//!    address is announced again, at limited intervals, unless a peer may own it.
//!
//! # The path of a claim
//!
//! 1. An input changes: a peer dies, a claim of a peer ends, the [`Snapshot`] or the forwarded addresses change. The
//!    segment marks the address dirty.
//! 2. `ownership::segment::decide` collects the facts (`ownership::segment::view`) and calls
//!    [`ownership::rules::decide`], which returns a [`Decision`](ownership::rules::Decision).
//! 3. An address that no node ever owned is probed first (`announce::conflicts`).
//! 4. The claim is added to `ownership::claims`, and `announce::schedule` starts a burst of announcements.
//! 5. `ownership::hello_sender` sends the claim with the next Hello, and `ownership::segment::announce` sends
//!    gratuitous ARP or unsolicited NAs.
//! 6. `run::publish` publishes the claim as an [`Announcement`].

mod announce;
mod config;
pub mod machine;
pub mod metrics;
pub mod os;
pub mod ownership;
mod peers;
mod run;
pub mod snapshot;
pub mod wire;

pub use config::Config;
pub use metrics::Counters;
pub use peers::neighbours::Neighbours;
pub use run::{Announcement, Announcements, Conflict, Conflicts, Error, Inputs, Outputs, run};
pub use snapshot::Snapshot;
pub use wire::seal::Keys;
