//! Frames and packets: bytes to types and back. Pure, and fuzzed.

pub mod arp;
mod checksum;
pub mod codec;
pub mod datagram;
pub mod frame;
pub(crate) mod headers;
pub mod hello;
pub mod ndp;
pub(crate) mod packing;
pub mod seal;
