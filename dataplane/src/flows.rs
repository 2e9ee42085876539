//! State that the kernel must forget when endpoints are gone: UDP flows of connection tracking, and clients with
//! session affinity.
//!
//! | file | content |
//! |---|---|
//! | [`stale`] | the tracked flows that lead to no endpoint (pure) |
//! | [`affinity`] | the clients that may no longer use their endpoint (pure) |
//! | [`conntrack`] | makes the kernel forget flows (shell) |

pub mod affinity;
pub(crate) mod conntrack;
pub(crate) mod stale;
