//! The Ethernet and IPv6 headers of frames.
//!
//! This file reads and writes addresses whole. `pnet_packet` reads and writes them in pieces of 8 or 16 bits. That took
//! a sixth of the time to open a Hello or to answer a solicitation.

use std::net::Ipv6Addr;

use crds::MacAddr;
use pnet_packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};

pub const ETHERNET_LEN: usize = EthernetPacket::minimum_packet_size();
pub const IPV6_LEN: usize = Ipv6Packet::minimum_packet_size();

/// The TTL or hop limit that no packet from beyond the link can have (RFC 4861 §7.1; GTSM, RFC 5082 §3).
pub const HOP_LIMIT: u8 = 255;

/// Offset of the source address in an Ethernet header (IEEE 802.3 §3.2).
const SOURCE_MAC_AT: usize = 6;

/// Offset of the source address in an IPv6 header (RFC 8200 §3).
const SOURCE_AT: usize = 8;

/// Offset of the destination address in an IPv6 header.
const DESTINATION_AT: usize = 24;

/// The addresses in the Ethernet and IPv6 headers of a frame.
#[derive(Clone, Copy)]
pub struct Ipv6Addresses {
    pub to: MacAddr,
    pub from: MacAddr,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

/// A frame with an Ethernet header, and zeros for `length` bytes of content.
#[inline]
pub fn ethernet_frame(to: MacAddr, from: MacAddr, ethertype: EtherType, length: usize) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_LEN + length];
    let mut ethernet = MutableEthernetPacket::new(&mut frame).expect("invariant: the frame has a header");
    ethernet.set_destination(to);
    ethernet.set_source(from);
    ethernet.set_ethertype(ethertype);
    frame
}

/// A frame with Ethernet and IPv6 headers, and zeros for `length` bytes of content.
#[inline]
pub fn ipv6_frame(addresses: Ipv6Addresses, content: IpNextHeaderProtocol, length: usize) -> Vec<u8> {
    let Ipv6Addresses { to, from, source, destination } = addresses;
    let mut frame = ethernet_frame(to, from, EtherTypes::Ipv6, IPV6_LEN + length);
    let mut ip = MutableIpv6Packet::new(&mut frame[ETHERNET_LEN..]).expect("invariant: the frame has a header");
    ip.set_version(6);
    ip.set_payload_length(u16::try_from(length).expect("invariant: a payload fits a datagram"));
    ip.set_next_header(content);
    ip.set_hop_limit(HOP_LIMIT);
    let header = &mut frame[ETHERNET_LEN..];
    header[SOURCE_AT..DESTINATION_AT].copy_from_slice(&source.octets());
    header[DESTINATION_AT..IPV6_LEN].copy_from_slice(&destination.octets());
    frame
}

/// The source address of an Ethernet frame. `None` if its header is truncated.
#[inline]
pub fn source_mac(frame: &[u8]) -> Option<MacAddr> {
    frame.get(SOURCE_MAC_AT..)?.first_chunk::<6>().map(|octets| MacAddr::from(*octets))
}

/// The source and the destination of an IPv6 packet. `None` if its header is truncated.
pub fn source_and_destination(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    Some((address_at(packet, SOURCE_AT)?, address_at(packet, DESTINATION_AT)?))
}

/// The IPv6 address at this offset. `None` if `bytes` end before it does.
pub fn address_at(bytes: &[u8], offset: usize) -> Option<Ipv6Addr> {
    bytes.get(offset..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}
