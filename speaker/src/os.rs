//! The operating system: sockets, netlink, poll, scheduling.

mod filter;
pub(crate) mod groups;
pub mod link_table;
pub(crate) mod links;
pub(crate) mod log_throttle;
pub(crate) mod poll;
pub(crate) mod scheduling;
pub mod socket;
pub(crate) mod sockets;
