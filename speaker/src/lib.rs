//! Announcing: who is alive on the wire, who owns which address, ARP and NDP.
//!
//! Every node runs one speaker. On each link where an lb_ip belongs, speakers say Hello to each other, and in it what they
//! claim; from that each of them decides by the same rules who owns which address, and the owner answers ARP and NDP for it.
//! Nothing of this asks the API server: it only says which addresses there are ([`Snapshot`]), and is told afterwards who
//! announces them ([`Announcements`]).
//!
//! ```text
//!  objects -> model -------> Snapshot --+            +--> Announcements, the dead, Neighbours, Counters
//!  the dataplane's acknowledgements ----+-> Machine -+
//!  links, frames, time -----------------+            +--> frames
//! ```
//!
//! | room | content |
//! |---|---|
//! | [`run`](fn@run) | the wire loop on a thread of its own: the entry point |
//! | [`machine`] | the same without sockets and clock, for all links |
//! | [`snapshot`] | the part of the cluster state that the loop needs |
//! | [`wire`] | frames and packets: ARP, NDP, Hello, seal |
//! | `peers` | which peers of a link are alive, and which nodes are dead |
//! | [`ownership`] | which node owns an address; the claims of this node and of its peers |
//! | [`announce`] | on which link and when an address is announced; conflicts with other hosts |
//! | [`os`] | packet sockets, netlink, poll, scheduling |
//! | [`metrics`] | events for the log, and counters |
//!
//! Only [`run`](fn@run) and [`os`] have side effects. Everything else is pure: time is an argument, and the tests drive the
//! same [`machine`] through a simulated network.

pub mod announce;
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
pub use metrics::events::Counters;
pub use peers::neighbours::Neighbours;
pub use run::{Announcement, Announcements, Conflict, Conflicts, Error, Inputs, Outputs, run};
pub use snapshot::Snapshot;
pub use wire::seal::{Authentication, Keys};
