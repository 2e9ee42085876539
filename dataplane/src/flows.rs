//! What the kernel must forget: tracked flows and clients with an affinity whose endpoint is gone.

pub mod affinity;
pub mod conntrack;
pub mod stale;
