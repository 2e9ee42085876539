//! What a packet between speakers travels in: Ethernet, IP and UDP, to a link-local multicast group.
//!
//! IPv4 where the link has it, else IPv6; whoever listens, listens for both. Any tool reads it, any switch floods it:
//! groups in 224.0.0.0/24 are not subject to IGMP snooping (RFC 4541 §2.1.2), and for the one of IPv6, whose listeners
//! switches may want to know, the kernel reports that we listen ([`crate::os::groups`]). A datagram from another network can't
//! pass for one of a neighbour, because its TTL would be less than 255 (GTSM, RFC 5082 §3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, UdpHeader, UdpHeaderSlice,
};

use crate::wire::ndp::group_mac;
use crds::Mac;

/// The group. It is in the block for local network control, where IANA has assigned it to nobody.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 140);

/// The group's MAC address (RFC 1112 §6.4).
pub const GROUP_MAC: Mac = Mac([0x01, 0x00, 0x5e, 0, 0, 140]);

/// The group for IPv6: of this link, and assigned by nobody (RFC 4291 §2.7, flag T).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x4c46, 140);

/// The UDP port, source and destination: "LF".
pub const PORT: u16 = 0x4c46;

/// The TTL that nothing from beyond the link can have.
pub const TTL: u8 = 255;

/// Why a frame carries no datagram for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is cut off, or a length in it is wrong.
    #[error("cut off")]
    Short,
    /// It is whole, but something else.
    #[error("not for our group and port")]
    Foreign,
    /// It came through a router.
    #[error("not from this link")]
    Distant,
    /// It was damaged on its way.
    #[error("wrong checksum")]
    Checksum,
}

/// The frame that carries `payload` from the interface with that MAC and address to all speakers on the link.
pub fn wrap(mac: Mac, address: IpAddr, payload: &[u8]) -> Vec<u8> {
    let builder = match address {
        IpAddr::V4(v4) => PacketBuilder::ethernet2(mac.0, GROUP_MAC.0).ipv4(v4.octets(), GROUP.octets(), TTL),
        IpAddr::V6(v6) => {
            PacketBuilder::ethernet2(mac.0, group_mac(GROUP_V6).0).ipv6(v6.octets(), GROUP_V6.octets(), TTL)
        }
    };
    let builder = builder.udp(PORT, PORT);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("invariant: a payload fits a datagram, and a Vec takes it");
    frame
}

/// The sender's MAC address and the payload of a frame.
///
/// # Errors
/// If it carries no datagram of ours.
pub fn unwrap(frame: &[u8]) -> Result<(Mac, &[u8]), Malformed> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Malformed::Short)?;
    let packet = &frame[ethernet.slice().len()..];
    let payload = if ethernet.ether_type() == EtherType::IPV6 { unwrap_v6(packet)? } else { unwrap_v4(packet)? };
    Ok((Mac(ethernet.source()), payload))
}

fn unwrap_v4(packet: &[u8]) -> Result<&[u8], Malformed> {
    let ip = Ipv4HeaderSlice::from_slice(packet).map_err(|_| Malformed::Foreign)?;
    if ip.destination_addr() != GROUP || ip.protocol().0 != 17 || ip.is_fragmenting_payload() {
        return Err(Malformed::Foreign);
    }
    if ip.ttl() != TTL {
        return Err(Malformed::Distant);
    }
    // Ethernet pads short frames: only the lengths in the headers count.
    let datagram = packet.get(ip.slice().len()..ip.total_len().into()).ok_or(Malformed::Short)?;
    payload(datagram, |udp, payload| udp.calc_checksum_ipv4_raw(ip.source(), ip.destination(), payload).ok())
}

fn unwrap_v6(packet: &[u8]) -> Result<&[u8], Malformed> {
    let ip = Ipv6HeaderSlice::from_slice(packet).map_err(|_| Malformed::Foreign)?;
    if ip.destination_addr() != GROUP_V6 || ip.next_header().0 != 17 {
        return Err(Malformed::Foreign);
    }
    if ip.hop_limit() != TTL {
        return Err(Malformed::Distant);
    }
    let start = ip.slice().len();
    let datagram = packet.get(start..start + usize::from(ip.payload_length())).ok_or(Malformed::Short)?;
    payload(datagram, |udp, payload| udp.calc_checksum_ipv6_raw(ip.source(), ip.destination(), payload).ok())
}

fn payload(datagram: &[u8], checksum: impl Fn(&UdpHeader, &[u8]) -> Option<u16>) -> Result<&[u8], Malformed> {
    let udp = UdpHeaderSlice::from_slice(datagram).map_err(|_| Malformed::Short)?;
    if udp.destination_port() != PORT {
        return Err(Malformed::Foreign);
    }
    let payload = datagram.get(udp.slice().len()..udp.length().into()).ok_or(Malformed::Short)?;
    let expected = checksum(&udp.to_header(), payload).ok_or(Malformed::Short)?;
    if expected == udp.checksum() { Ok(payload) } else { Err(Malformed::Checksum) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

    #[test]
    fn a_frame_is_opened_only_if_it_is_whole_ours_and_from_this_link() {
        let frame = wrap(MAC, ADDRESS, b"hello");
        assert_eq!(unwrap(&frame), Ok((MAC, &b"hello"[..])));
        let padded: Vec<u8> = frame.iter().copied().chain([0; 13]).collect();
        assert_eq!(unwrap(&padded), Ok((MAC, &b"hello"[..])));
        for (at, byte, error) in [
            (14, 0x65, Err(Malformed::Foreign)),
            (20, 0x20, Err(Malformed::Foreign)), // the first of several fragments
            (22, 254, Err(Malformed::Distant)),
            (23, 6, Err(Malformed::Foreign)),
            (33, 1, Err(Malformed::Foreign)), // 224.0.0.1
            (36, 0, Err(Malformed::Foreign)), // another port
            (42, b'j', Err(Malformed::Checksum)),
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
    fn over_ipv6_a_frame_is_opened_by_the_same_rules() {
        let frame = wrap(MAC, LINK_LOCAL, b"hello");
        assert_eq!(frame[..6], [0x33, 0x33, 0x4c, 0x46, 0, 140]);
        assert_eq!(unwrap(&frame), Ok((MAC, &b"hello"[..])));
        let padded: Vec<u8> = frame.iter().copied().chain([0; 13]).collect();
        assert_eq!(unwrap(&padded), Ok((MAC, &b"hello"[..])));
        for (at, byte, error) in [
            (14, 0x40, Malformed::Foreign),
            (20, 58, Malformed::Foreign),
            (21, 254, Malformed::Distant),
            (53, 1, Malformed::Foreign),
            (56, 0, Malformed::Foreign),
            (62, b'j', Malformed::Checksum),
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
