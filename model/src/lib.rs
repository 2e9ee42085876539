//! The cluster, and the rules about it that more than one crate needs. Pure: no client, no runtime, no clock.
//!
//! | module | contents |
//! |---|---|
//! | [`cluster`] | the views of all observed objects in one value, with indexes |
//! | [`eligibility`] | which nodes may announce which address |
//! | [`pacing`] | backoff between attempts, budgets of deferrable work |
//! | [`shared_map`] | maps whose copies share their common entries |
//! | [`stable_hash`] | hashes that are equal in every version |

pub mod cluster;
pub mod eligibility;
pub mod pacing;
pub mod shared_map;
pub mod stable_hash;
#[cfg(test)]
mod test_objects;

pub use cluster::{Cluster, Holdings};
pub use shared_map::SharedMap;
