//! Frames that a client sends to port 80 of the lb_ip, byte by byte, as they come to the first node.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::net::IpAddr;

use dataplane::snapshot::LinkName;

use crate::sample::{self, ip};
use crate::tracer::frame::Frame;
use crate::world::Net;

/// Whether a packet is in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not in fragments.
    Whole,
    /// The first fragment.
    First,
    /// A later fragment, which has no ports.
    Later,
}

/// A packet of this protocol from this port.
pub fn frame(net: Net, protocol: u8, port: u16, kind: Kind) -> Frame {
    let ports = [port.to_be_bytes(), 80u16.to_be_bytes()].concat();
    // The bytes after the ports do not set the TCP flag SYN.
    let transport = [&ports[..], &[0; 28]].concat();
    let transport = if kind == Kind::Later { vec![0xff; 32] } else { transport };
    packet(net, protocol, kind, &transport)
}

/// An error of ICMP about a packet from port 80 of the lb_ip to this port of the client.
pub fn error(net: Net, protocol: u8, port: u16, kind: u8) -> Frame {
    let ports = [80u16.to_be_bytes(), port.to_be_bytes()].concat();
    let quoted = header(net.lb_ip, net.client, protocol, Kind::Whole);
    let icmp = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted, &ports, &[0; 4]].concat();
    packet(net, if ip(net.lb_ip).is_ipv4() { 1 } else { 58 }, Kind::Whole, &icmp)
}

/// Any packet from the client to the lb_ip.
pub fn packet(net: Net, protocol: u8, kind: Kind, transport: &[u8]) -> Frame {
    let kind_of_frame: [u8; 2] = if ip(net.lb_ip).is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let (to, from) = (sample::mac("n1").octets(), [2, 0, 0, 0, 0, 100]);
    let header = header(net.client, net.lb_ip, protocol, kind);
    let bytes = [&to[..], &from, &kind_of_frame, &header, transport].concat();
    Frame { link: LinkName::new("eth0").expect("a name"), bytes }
}

/// The header of a packet; lengths and sums stay zero.
fn header(from: &str, to: &str, protocol: u8, kind: Kind) -> Vec<u8> {
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let fragment: [u8; 2] = match kind {
                Kind::Whole => [0x40, 0],
                Kind::First => [0x20, 0],
                Kind::Later => [0, 185],
            };
            [&[0x45, 0, 0, 0, 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0][..], &from.octets(), &to.octets()]
                .concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (next, fragment): (u8, Vec<u8>) = match kind {
                Kind::Whole => (protocol, vec![]),
                Kind::First => (44, vec![protocol, 0, 0, 1, 0, 0, 0, 7]),
                Kind::Later => (44, vec![protocol, 0, 5, 0xa8, 0, 0, 0, 7]),
            };
            [&[0x60, 0, 0, 0, 0, 0, next, 64][..], &from.octets(), &to.octets(), &fragment].concat()
        }
        _ => panic!("of two families"),
    }
}
