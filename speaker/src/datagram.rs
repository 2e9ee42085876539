//! What a packet between speakers travels in: Ethernet, IPv4 and UDP, to a link-local multicast group.
//!
//! Any tool reads it, any switch floods it: groups in 224.0.0.0/24 are not subject to IGMP snooping (RFC 4541 §2.1.2).
//! A datagram from another network can't pass for one of a neighbour, because its TTL would be less than 255 (GTSM,
//! RFC 5082 §3).

use std::net::Ipv4Addr;

use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, PacketBuilder, UdpHeaderSlice};

use crate::placement::Mac;

/// The group. It is in the block for local network control, where IANA has assigned it to nobody.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 140);

/// The group's MAC address (RFC 1112 §6.4).
pub const GROUP_MAC: Mac = Mac([0x01, 0x00, 0x5e, 0, 0, 140]);

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
pub fn wrap(mac: Mac, address: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(mac.0, GROUP_MAC.0).ipv4(address.octets(), GROUP.octets(), TTL).udp(PORT, PORT);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("invariant: a payload fits a datagram, and a Vec takes it");
    frame
}

/// The sender's MAC address and the payload of a frame.
///
/// # Errors
/// If it carries no datagram of ours.
pub fn unwrap(frame: &[u8]) -> Result<(Mac, &[u8]), Malformed> {
    let short = |_| Malformed::Short;
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).map_err(short)?;
    let ip = Ipv4HeaderSlice::from_slice(&frame[ethernet.slice().len()..]).map_err(|_| Malformed::Foreign)?;
    if ip.destination_addr() != GROUP || ip.protocol().0 != 17 || ip.is_fragmenting_payload() {
        return Err(Malformed::Foreign);
    }
    if ip.ttl() != TTL {
        return Err(Malformed::Distant);
    }
    // Ethernet pads short frames: only the lengths in the headers count.
    let end = ethernet.slice().len() + usize::from(ip.total_len());
    let datagram = frame.get(ethernet.slice().len() + ip.slice().len()..end).ok_or(Malformed::Short)?;
    let udp = UdpHeaderSlice::from_slice(datagram).map_err(short)?;
    if udp.destination_port() != PORT {
        return Err(Malformed::Foreign);
    }
    let payload = datagram.get(udp.slice().len()..udp.length().into()).ok_or(Malformed::Short)?;
    let expected = udp.to_header().calc_checksum_ipv4_raw(ip.source(), ip.destination(), payload);
    if expected.map_err(|_| Malformed::Short)? != udp.checksum() {
        return Err(Malformed::Checksum);
    }
    Ok((Mac(ethernet.source()), payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    #[test]
    fn a_frame_is_opened_only_if_it_is_whole_ours_and_from_this_link() {
        let frame = wrap(MAC, ADDRESS, b"hello");
        assert_eq!(unwrap(&frame), Ok((MAC, &b"hello"[..])));
        let padded: Vec<u8> = frame.iter().copied().chain([0; 13]).collect();
        assert_eq!(unwrap(&padded), Ok((MAC, &b"hello"[..])));
        for (at, byte, error) in [
            (12, 0x86, Ok((MAC, &b"hello"[..]))), // the kernel has looked at the EtherType
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

    proptest! {
        #[test]
        fn opening_a_damaged_frame_never_panics(
            payload in proptest::collection::vec(any::<u8>(), 0..1400),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut frame = wrap(MAC, ADDRESS, &payload);
            prop_assert_eq!(unwrap(&frame), Ok((MAC, &payload[..])));
            let at = at.index(frame.len());
            frame[at] = byte;
            let _ = unwrap(&frame);
        }
    }
}
