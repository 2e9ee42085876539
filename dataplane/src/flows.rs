//! State that the kernel must forget when endpoints or allowed clients change: UDP flows of connection tracking, and
//! clients with session affinity.
//!
//! | file | content |
//! |---|---|
//! | [`stale`] | the tracked flows without an endpoint or an allowed client (pure) |
//! | [`affinity`] | the clients that may no longer use their endpoint (pure) |
//! | [`conntrack`] | makes the kernel forget flows (shell) |

pub mod affinity;
pub(crate) mod conntrack;
pub(crate) mod stale;
