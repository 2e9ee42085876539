//! When this node announces an address, and which hosts outside the cluster use it.

pub(crate) mod conflicts;
mod pacer;
pub(crate) mod schedule;
