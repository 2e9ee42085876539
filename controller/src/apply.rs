//! Application of the effects, and leader election.
//!
//! | file | contents |
//! |---|---|
//! | `applier` | the application of a series |
//! | `failure` | why a series failed |
//! | `events` | events, and the suppression of repeated ones |
//! | `lease`, `election` | the rules of the leader election, and the participation in it |
//! | `election_thread` | the thread of the election |

pub(crate) mod applier;
pub(crate) mod election;
pub(crate) mod election_thread;
pub(crate) mod events;
pub(crate) mod failure;
mod lease;
