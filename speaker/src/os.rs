//! The operating system: sockets, poll, scheduling.

mod filter;
pub(crate) mod groups;
pub(crate) mod log_throttle;
pub(crate) mod poll;
pub(crate) mod scheduling;
pub mod socket;
