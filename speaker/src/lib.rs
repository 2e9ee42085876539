//! Announcing: who is alive on the wire, who owns which address, ARP.

pub mod announce;
pub mod arp;
pub mod claims;
pub mod datagram;
pub mod eligibility;
pub mod hash;
pub mod hello;
pub mod liveness;
pub mod ownership;
pub mod placement;
pub mod snapshot;
