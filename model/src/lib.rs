//! The cluster, and the rules about it that more than one part needs. Pure: no client, no runtime, no clock.
//!
//! | room | what is in it |
//! |---|---|
//! | [`eligibility`] | which nodes may announce which address |
//! | [`holdings`] | which addresses each Service holds |
//! | [`shared_map`] | maps whose copies share their common entries |
//! | [`stable_hash`] | hashes that every version computes alike |

pub mod eligibility;
pub mod holdings;
pub mod shared_map;
pub mod stable_hash;

pub use holdings::Holdings;
pub use shared_map::SharedMap;
