//! On which link and when an address is announced, and which other hosts use it.

pub mod placement;
pub(crate) mod probe;
pub(crate) mod schedule;
