//! Announcing: who is alive on the wire, who owns which address, ARP.

pub mod announce;
pub mod arp;
pub mod claims;
pub mod datagram;
pub mod eligibility;
pub mod events;
mod greeting;
pub mod hash;
pub mod hello;
pub mod link_table;
pub mod links;
pub mod liveness;
pub mod machine;
pub mod ownership;
pub mod peer;
pub mod placement;
mod run;
pub mod segment;
pub mod snapshot;
pub mod socket;

pub use eligibility::{Observed, snapshot};
pub use events::Counters;
pub use machine::Config;
pub use run::{Announcement, Announcements, Error, Inputs, Outputs, run};
pub use snapshot::{Snapshot, Wanted};
