//! Frames and packets: from bytes to types and back. All functions are pure, and the decoders are fuzzed.

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
