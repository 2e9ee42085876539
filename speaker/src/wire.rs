//! Frames and packets: bytes to types and back. Pure, and fuzzed.

pub mod arp;
mod checksum;
pub mod datagram;
pub mod frame;
pub mod hello;
pub mod ndp;
pub mod seal;
