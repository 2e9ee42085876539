//! The peers of a link: other speakers of this cluster.

pub mod deaths;
pub mod handshake;
pub mod interval;
pub mod liveness;
pub mod neighbours;
pub mod peer;
pub mod reachability;
pub mod relay;
