//! Execution of the effects, and leader election.
//!
//! | file | contents |
//! |---|---|
//! | `applier` | one series of effects after another, written to the API server |
//! | `events`, `repeats` | events, and which of them are repetitions |
//! | `lease`, `election` | the rules of leader election, and taking part in it |

pub(crate) mod applier;
pub(crate) mod election;
pub(crate) mod events;
mod lease;
mod repeats;
