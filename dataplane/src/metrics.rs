//! Numbers for metrics.
//!
//! | file | content |
//! |---|---|
//! | `counters` | the loop's steps and its changes of the kernel's tables (pure) |
//! | `traffic` | the kernel's packet counters → numbers per Service (pure) |
//!
//! The kernel's packet counters are read by [`read_kernel_counters`](crate::read_kernel_counters), in
//! `nft/counters.rs`. A new counter needs a counting set in `nft/layout/sets.rs`, a field of [`KernelCounters`], and a
//! line in `nft/counters.rs`.

mod counters;
mod traffic;

pub use counters::{Counters, Durations};
pub use traffic::{KernelCounters, PacketCount, ServiceTraffic, TrafficReport, report_traffic};
