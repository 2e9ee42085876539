//! Events for the log, and counters.

pub mod events;
pub mod takeovers;
