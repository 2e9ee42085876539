//! On which link and when an address is announced, and which other hosts use it.

pub(crate) mod conflicts;
mod pacer;
pub mod placement;
pub(crate) mod schedule;
