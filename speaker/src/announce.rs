//! When an address is announced, and which other hosts use it.

pub(crate) mod conflicts;
mod pacer;
pub(crate) mod schedule;
