//! The frames that carry packets between speakers: Ethernet, IP and UDP to a link-local multicast group.
//!
//! Speakers use IPv4 if the link has an IPv4 address, otherwise IPv6. A receiver accepts both. Any tool can read these
//! frames. Any switch forwards them to all speakers: groups in 224.0.0.0/24 are not subject to IGMP snooping (RFC 4541
//! §2.1.2), and for the IPv6 group the kernel reports the membership of this node ([`crate::os::groups`]). A datagram
//! from another network is refused, because its TTL is below 255 (GTSM, RFC 5082 §3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crds::MacAddr;
use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::Ipv6Packet;
use pnet_packet::udp::{MutableUdpPacket, UdpPacket};

use super::checksum::checksum;
use super::headers::{
    ETHERNET_LEN, HOP_LIMIT, IPV6_LEN, Ipv6Addresses, ethernet_frame, ipv6_frame, source_and_destination, source_mac,
};
use super::ndp::group_mac;

/// The IPv4 group, in the local network control block and not assigned by IANA.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 140);

/// The MAC address of [`GROUP`] (RFC 1112 §6.4).
pub const GROUP_MAC: MacAddr = MacAddr(0x01, 0x00, 0x5e, 0, 0, 140);

/// The IPv6 group: link-local scope, transient (RFC 4291 §2.7, flag T).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x4c46, 140);

/// The UDP port of source and destination: the letters "LF".
pub const PORT: u16 = 0x4c46;

const IPV4_LEN: usize = Ipv4Packet::minimum_packet_size();
const UDP_LEN: usize = UdpPacket::minimum_packet_size();

/// Why a frame carries no datagram for this speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramError {
    /// The frame is truncated, or a length in it is wrong.
    Short,
    /// The frame is of another kind, or has no complete IP header.
    Foreign,
    /// A router forwarded the datagram.
    Distant,
    /// The checksum does not match the payload.
    Checksum,
}

/// The frame that carries `payload` from this MAC and IP address to all speakers on the link.
pub fn wrap(mac: MacAddr, address: IpAddr, payload: &[u8]) -> Vec<u8> {
    let length = UDP_LEN + payload.len();
    match address {
        IpAddr::V4(source) => {
            let mut frame = ethernet_frame(GROUP_MAC, mac, EtherTypes::Ipv4, IPV4_LEN + length);
            write_ipv4(&mut frame[ETHERNET_LEN..], source, length);
            write_udp(&mut frame[ETHERNET_LEN + IPV4_LEN..], address, GROUP.into(), payload);
            frame
        }
        IpAddr::V6(source) => {
            let addresses = Ipv6Addresses { to: group_mac(GROUP_V6), from: mac, source, destination: GROUP_V6 };
            let mut frame = ipv6_frame(addresses, IpNextHeaderProtocols::Udp, length);
            write_udp(&mut frame[ETHERNET_LEN + IPV6_LEN..], address, GROUP_V6.into(), payload);
            frame
        }
    }
}

fn write_ipv4(header: &mut [u8], source: Ipv4Addr, length: usize) {
    let mut ip = MutableIpv4Packet::new(header).expect("invariant: the header has its size");
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length(u16::try_from(IPV4_LEN + length).expect("invariant: a payload fits a datagram"));
    ip.set_flags(ipv4::Ipv4Flags::DontFragment);
    ip.set_ttl(HOP_LIMIT);
    ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
    ip.set_source(source);
    ip.set_destination(GROUP);
    let checksum = ipv4::checksum(&ip.to_immutable());
    ip.set_checksum(checksum);
}

fn write_udp(datagram: &mut [u8], source: IpAddr, destination: IpAddr, payload: &[u8]) {
    datagram[UDP_LEN..].copy_from_slice(payload);
    let length = u16::try_from(datagram.len()).expect("invariant: a payload fits a datagram");
    let mut udp = MutableUdpPacket::new(datagram).expect("invariant: the datagram has a header");
    udp.set_source(PORT);
    udp.set_destination(PORT);
    udp.set_length(length);
    // 0 means "no checksum", so a computed 0 is sent as all ones (RFC 768).
    let checksum = match checksum(source, destination, IpNextHeaderProtocols::Udp, udp.packet()) {
        0 => 0xffff,
        checksum => checksum,
    };
    udp.set_checksum(checksum);
}

/// The sender's MAC address and the payload of a frame.
///
/// # Errors
/// If the frame carries no datagram for this speaker.
pub fn unwrap(frame: &[u8]) -> Result<(MacAddr, &[u8]), DatagramError> {
    let ethernet = EthernetPacket::new(frame).ok_or(DatagramError::Short)?;
    let packet = &frame[ETHERNET_LEN..];
    let is_ipv6 = ethernet.get_ethertype() == EtherTypes::Ipv6;
    let payload = if is_ipv6 { unwrap_ipv6(packet)? } else { unwrap_ipv4(packet)? };
    Ok((source_mac(frame).ok_or(DatagramError::Short)?, payload))
}

/// The address that the sender of a frame uses. `None` if its IP header is truncated.
pub fn source_address(frame: &[u8]) -> Option<IpAddr> {
    let ethernet = EthernetPacket::new(frame)?;
    let packet = &frame[ETHERNET_LEN..];
    if ethernet.get_ethertype() == EtherTypes::Ipv6 {
        source_and_destination(packet).map(|(source, _)| source.into())
    } else {
        Ipv4Packet::new(packet).map(|ip| ip.get_source().into())
    }
}

fn unwrap_ipv4(packet: &[u8]) -> Result<&[u8], DatagramError> {
    let ip = Ipv4Packet::new(packet).ok_or(DatagramError::Foreign)?;
    let header_len = usize::from(ip.get_header_length()) * 4;
    if ip.get_version() != 4 || header_len < IPV4_LEN || packet.len() < header_len {
        return Err(DatagramError::Foreign);
    }
    let is_fragment = ip.get_flags() & ipv4::Ipv4Flags::MoreFragments != 0 || ip.get_fragment_offset() != 0;
    if ip.get_destination() != GROUP || ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp || is_fragment {
        return Err(DatagramError::Foreign);
    }
    if ip.get_ttl() != HOP_LIMIT {
        return Err(DatagramError::Distant);
    }
    // Ethernet pads short frames: only the lengths in the headers count.
    let datagram = packet.get(header_len..ip.get_total_length().into()).ok_or(DatagramError::Short)?;
    payload(datagram, ip.get_source().into(), GROUP.into())
}

fn unwrap_ipv6(packet: &[u8]) -> Result<&[u8], DatagramError> {
    let ip = Ipv6Packet::new(packet).ok_or(DatagramError::Foreign)?;
    let (source, destination) = source_and_destination(packet).ok_or(DatagramError::Foreign)?;
    if ip.get_version() != 6 || destination != GROUP_V6 || ip.get_next_header() != IpNextHeaderProtocols::Udp {
        return Err(DatagramError::Foreign);
    }
    if ip.get_hop_limit() != HOP_LIMIT {
        return Err(DatagramError::Distant);
    }
    let end = IPV6_LEN + usize::from(ip.get_payload_length());
    let datagram = packet.get(IPV6_LEN..end).ok_or(DatagramError::Short)?;
    payload(datagram, source.into(), GROUP_V6.into())
}

/// The payload of a datagram for [`PORT`] with a correct checksum.
#[inline]
fn payload(datagram: &[u8], source: IpAddr, destination: IpAddr) -> Result<&[u8], DatagramError> {
    let udp = UdpPacket::new(datagram).ok_or(DatagramError::Short)?;
    if udp.get_destination() != PORT {
        return Err(DatagramError::Foreign);
    }
    let datagram = datagram.get(..udp.get_length().into()).ok_or(DatagramError::Short)?;
    let payload = datagram.get(UDP_LEN..).ok_or(DatagramError::Short)?;
    // Every speaker sends a checksum, so 0 ("no checksum") is wrong as well.
    if udp.get_checksum() == 0 || checksum(source, destination, IpNextHeaderProtocols::Udp, datagram) != 0 {
        return Err(DatagramError::Checksum);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

    #[test]
    fn only_whole_hello_frames_of_this_link_are_opened() {
        let frame = wrap(MAC, ADDRESS, b"hello");
        assert_eq!((source_address(&frame), source_address(&frame[..30])), (Some(ADDRESS), None));
        assert_eq!(unwrap(&frame), Ok((MAC, &b"hello"[..])));
        let padded: Vec<u8> = frame.iter().copied().chain([0; 13]).collect();
        assert_eq!(unwrap(&padded), Ok((MAC, &b"hello"[..])));
        for (at, byte, error) in [
            (14, 0x65, Err(DatagramError::Foreign)),
            (20, 0x20, Err(DatagramError::Foreign)), // the first of several fragments
            (22, 254, Err(DatagramError::Distant)),
            (23, 6, Err(DatagramError::Foreign)),
            (33, 1, Err(DatagramError::Foreign)), // 224.0.0.1
            (36, 0, Err(DatagramError::Foreign)), // another port
            (42, b'j', Err(DatagramError::Checksum)),
        ] {
            let mut changed = frame.clone();
            changed[at] = byte;
            assert_eq!(unwrap(&changed), error, "byte {at}");
        }
        for end in 0..frame.len() {
            assert!(unwrap(&frame[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn ipv6_frames_are_opened_by_the_same_rules() {
        let frame = wrap(MAC, LINK_LOCAL, b"hello");
        assert_eq!(frame[..6], [0x33, 0x33, 0x4c, 0x46, 0, 140]);
        assert_eq!(source_address(&frame), Some(LINK_LOCAL));
        assert_eq!(unwrap(&frame), Ok((MAC, &b"hello"[..])));
        let padded: Vec<u8> = frame.iter().copied().chain([0; 13]).collect();
        assert_eq!(unwrap(&padded), Ok((MAC, &b"hello"[..])));
        for (at, byte, error) in [
            (14, 0x40, DatagramError::Foreign),
            (20, 58, DatagramError::Foreign),
            (21, 254, DatagramError::Distant),
            (53, 1, DatagramError::Foreign),
            (56, 0, DatagramError::Foreign),
            (62, b'j', DatagramError::Checksum),
        ] {
            let mut changed = frame.clone();
            changed[at] = byte;
            assert_eq!(unwrap(&changed), Err(error), "byte {at}");
        }
        for end in 0..frame.len() {
            assert!(unwrap(&frame[..end]).is_err(), "{end} bytes");
        }
    }

    proptest! {
        #[test]
        fn opening_a_damaged_frame_never_panics(
            payload in proptest::collection::vec(any::<u8>(), 0..1400),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            v6 in any::<bool>(),
        ) {
            let mut frame = wrap(MAC, if v6 { LINK_LOCAL } else { ADDRESS }, &payload);
            prop_assert_eq!(unwrap(&frame), Ok((MAC, &payload[..])));
            let at = at.index(frame.len());
            frame[at] = byte;
            let _ = unwrap(&frame);
        }
    }
}
