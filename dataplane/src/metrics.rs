//! Numbers: of changes of the kernel's tables, and of traffic per Service.

pub mod counters;
pub mod traffic;
