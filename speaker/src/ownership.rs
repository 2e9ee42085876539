//! Which node owns an address on a link.

pub(crate) mod claims;
pub(crate) mod context;
pub(crate) mod hello_sender;
pub mod rules;
pub(crate) mod segment;
