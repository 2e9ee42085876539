//! IPv6 neighbour discovery frames (RFC 4861, RFC 4862 §5.4): the reply to a received frame, and the frames that a
//! speaker sends.
//!
//! The input is one frame and the addresses announced on its link; the output is a [`Verdict`]. The functions keep no
//! state.

use std::net::{IpAddr, Ipv6Addr};

use crds::{MacAddr, is_station};
use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::icmpv6::ndp::{
    MutableNeighborAdvertPacket, NdpOptionType, NdpOptionTypes, NeighborAdvertFlags, NeighborAdvertPacket,
    NeighborSolicitPacket,
};
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Type, Icmpv6Types, MutableIcmpv6Packet};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::Ipv6Packet;

use super::arp::{Ignored, Verdict};
use super::checksum::checksum;
use super::headers::{
    ETHERNET_LEN, HOP_LIMIT, IPV6_LEN, Ipv6Addresses, address_at, ipv6_frame, source_and_destination,
};

/// All nodes on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The protocol number of ICMPv6.
pub const ICMPV6: u8 = IpNextHeaderProtocols::Icmpv6.0;

/// The type of a Neighbor Solicitation.
pub const SOLICITATION: u8 = Icmpv6Types::NeighborSolicit.0;

/// The type of a Neighbor Advertisement.
pub const ADVERTISEMENT: u8 = Icmpv6Types::NeighborAdvert.0;

/// Offset of ICMPv6 in a frame without extension headers. No sender uses them with these messages, and fragments are
/// forbidden (RFC 6980 §5).
const MESSAGE_AT: usize = ETHERNET_LEN + IPV6_LEN;

/// Offset of the target in a Neighbor Solicitation or Advertisement.
const TARGET_AT: usize = 8;

/// The size of a Neighbor Solicitation or Advertisement without options.
const FIXED_LEN: usize = NeighborSolicitPacket::minimum_packet_size();

/// The size of an option with an Ethernet address.
const LINK_LAYER_OPTION_LEN: usize = 8;

/// The group to which solicitations for an address are sent (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from(y) << 8 | u16::from(z))
}

/// The MAC address of a group (RFC 2464 §7).
pub fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., w, x, y, z] = group.octets();
    MacAddr(0x33, 0x33, w, x, y, z)
}

/// A valid Neighbor Solicitation or Advertisement (RFC 4861 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    from: MacAddr,
    to: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: Icmpv6Type,
    target: Ipv6Addr,
    /// The MAC address in its link-layer option: that of the sender of a solicitation, or of the target of an
    /// advertisement.
    link_layer: Option<MacAddr>,
}

/// Decides about `frame`, received on the link where this node has the MAC address `mac`. `announced` returns true for
/// the addresses that this node announces on the link.
///
/// A solicitation is answered if its target is an announced address, and it was sent to the group of the target or to
/// this station. A solicitation without a source address comes from a host that tests the address for itself (RFC 4862
/// §5.4.3); the reply then goes to all nodes. Without a link-layer option the reply goes to the source of the frame.
pub fn decide(frame: &[u8], mac: MacAddr, announced: impl Fn(Ipv6Addr) -> bool) -> Verdict {
    let Some(message) = parse(frame) else { return Verdict::Ignore(Ignored::Malformed) };
    let Message { from, to, source, destination, target, link_layer, .. } = message;
    if from == mac {
        return Verdict::Ignore(Ignored::Own);
    }
    let sender = link_layer.unwrap_or(from);
    // RFC 4862 §5.4.4: a host that advertises our address, or sends from it, has the address too.
    for used in [source, target] {
        if (used == source || message.kind == Icmpv6Types::NeighborAdvert) && announced(used) {
            return Verdict::Conflict { lb_ip: IpAddr::V6(used), mac: sender };
        }
    }
    if message.kind == Icmpv6Types::NeighborAdvert {
        return Verdict::Ignore(Ignored::NoQuestion);
    }
    let group = solicited_node(target);
    let addressed = destination == target && to == mac || destination == group && to == group_mac(group);
    if !addressed {
        return Verdict::Ignore(Ignored::OtherStation);
    }
    if !announced(target) {
        return Verdict::Ignore(Ignored::OtherAddress);
    }
    // RFC 4861 §7.2.4.
    Verdict::Answer(if source.is_unspecified() {
        advertisement(group_mac(ALL_NODES), mac, ALL_NODES, target, NeighborAdvertFlags::Override)
    } else {
        let flags = NeighborAdvertFlags::Solicited | NeighborAdvertFlags::Override;
        advertisement(sender, mac, source, target, flags)
    })
}

/// The sender of `frame`, and the address that it uses: it advertises the address, sends from it, or tests it for
/// itself (RFC 4862 §5.4.3).
pub fn address_user(frame: &[u8]) -> Option<(MacAddr, IpAddr)> {
    let Message { from, source, kind, target, link_layer, .. } = parse(frame)?;
    let used = if kind == Icmpv6Types::NeighborAdvert || source.is_unspecified() { target } else { source };
    Some((link_layer.unwrap_or(from), used.into()))
}

/// An unsolicited advertisement (RFC 4861 §7.2.6). It overrides existing neighbour entries at once.
pub fn unsolicited_advertisement(mac: MacAddr, lb_ip: Ipv6Addr) -> Vec<u8> {
    advertisement(group_mac(ALL_NODES), mac, ALL_NODES, lb_ip, NeighborAdvertFlags::Override)
}

/// A solicitation that tests `lb_ip` (RFC 4862 §5.4.2). A host that already uses the address answers it.
pub fn probe(mac: MacAddr, lb_ip: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(lb_ip);
    let source = Ipv6Addr::UNSPECIFIED;
    let addresses = Ipv6Addresses { to: group_mac(group), from: mac, source, destination: group };
    build_frame(addresses, FIXED_LEN, |message| {
        message[TARGET_AT..FIXED_LEN].copy_from_slice(&lb_ip.octets());
        let mut solicitation = MutableIcmpv6Packet::new(message).expect("invariant: it has its size");
        solicitation.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
    })
}

/// A solicitation to one host, by unicast. The host answers if its kernel works (RFC 4861 §7.3).
pub fn unicast_solicitation(own: (MacAddr, Ipv6Addr), host: (MacAddr, Ipv6Addr)) -> Vec<u8> {
    let addresses = Ipv6Addresses { to: host.0, from: own.0, source: own.1, destination: host.1 };
    build_frame(addresses, FIXED_LEN + LINK_LAYER_OPTION_LEN, |message| {
        message[TARGET_AT..FIXED_LEN].copy_from_slice(&host.1.octets());
        message[FIXED_LEN] = NdpOptionTypes::SourceLLAddr.0;
        message[FIXED_LEN + 1] = 1;
        message[FIXED_LEN + 2..].copy_from_slice(&own.0.octets());
        let mut solicitation = MutableIcmpv6Packet::new(message).expect("invariant: it has its size");
        solicitation.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
    })
}

/// The host that sent `frame` as an answer, and its address. `None` if the frame is no advertisement to one host, or if
/// its sender answers for another host.
pub fn answering_host(frame: &[u8]) -> Option<(MacAddr, IpAddr)> {
    let Message { from, destination, kind, target, link_layer, .. } = parse(frame)?;
    let is_answer = kind == Icmpv6Types::NeighborAdvert && !destination.is_multicast();
    (is_answer && link_layer.is_none_or(|mac| mac == from)).then_some((from, target.into()))
}

fn advertisement(to: MacAddr, mac: MacAddr, destination: Ipv6Addr, lb_ip: Ipv6Addr, flags: u8) -> Vec<u8> {
    let addresses = Ipv6Addresses { to, from: mac, source: lb_ip, destination };
    build_frame(addresses, FIXED_LEN + LINK_LAYER_OPTION_LEN, |message| {
        message[TARGET_AT..FIXED_LEN].copy_from_slice(&lb_ip.octets());
        message[FIXED_LEN] = NdpOptionTypes::TargetLLAddr.0;
        message[FIXED_LEN + 1] = 1;
        message[FIXED_LEN + 2..].copy_from_slice(&mac.octets());
        let mut advert = MutableNeighborAdvertPacket::new(message).expect("invariant: it has its size");
        advert.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
        advert.set_flags(flags);
    })
}

/// A frame with an ICMPv6 message of `length` bytes, which `write` fills in but for its checksum.
fn build_frame(addresses: Ipv6Addresses, length: usize, write: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = ipv6_frame(addresses, IpNextHeaderProtocols::Icmpv6, length);
    let message = &mut frame[MESSAGE_AT..];
    write(message);
    let Ipv6Addresses { source, destination, .. } = addresses;
    let checksum = checksum(source.into(), destination.into(), IpNextHeaderProtocols::Icmpv6, message);
    MutableIcmpv6Packet::new(message).expect("invariant: it has its size").set_checksum(checksum);
    frame
}

fn parse(frame: &[u8]) -> Option<Message> {
    let ethernet = EthernetPacket::new(frame)?;
    let (from, to) = (ethernet.get_source(), ethernet.get_destination());
    let ip = Ipv6Packet::new(&frame[ETHERNET_LEN..])?;
    if ethernet.get_ethertype() != EtherTypes::Ipv6 || ip.get_version() != 6 || !is_station(from) {
        return None;
    }
    if ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 || ip.get_hop_limit() != HOP_LIMIT {
        return None;
    }
    let (source, destination) = source_and_destination(ip.packet())?;
    // Ethernet pads short frames: only the length in the header counts.
    let message = frame.get(MESSAGE_AT..MESSAGE_AT + usize::from(ip.get_payload_length()))?;
    let icmp = Icmpv6Packet::new(message)?;
    if message.len() < FIXED_LEN || icmp.get_icmpv6_code().0 != 0 || !has_valid_checksum(message, source, destination) {
        return None;
    }
    let kind = icmp.get_icmpv6_type();
    let wanted = match kind {
        Icmpv6Types::NeighborSolicit => NdpOptionTypes::SourceLLAddr,
        Icmpv6Types::NeighborAdvert => {
            // An advertisement to a group cannot be the answer to a solicitation.
            let flags = NeighborAdvertPacket::new(message)?.get_flags();
            if destination.is_multicast() && flags & NeighborAdvertFlags::Solicited != 0 {
                return None;
            }
            NdpOptionTypes::TargetLLAddr
        }
        _ => return None,
    };
    let target = address_at(message, TARGET_AT)?;
    if target.is_multicast() || source.is_multicast() {
        return None;
    }
    let link_layer = link_layer_option(&message[FIXED_LEN..], wanted)?;
    let tests_address = kind == Icmpv6Types::NeighborSolicit && source.is_unspecified();
    if tests_address && (link_layer.is_some() || destination != solicited_node(target)) {
        return None;
    }
    Some(Message { from, to, source, destination, kind, target, link_layer })
}

fn has_valid_checksum(message: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> bool {
    checksum(source.into(), destination.into(), IpNextHeaderProtocols::Icmpv6, message) == 0
}

/// The address in the last option of this type: `Some(None)` if there is no such option, `None` if an option is
/// malformed.
///
/// The function reads the options itself. `NdpOptionPacket` computes the bytes of an option in a `u8`, and overflows if
/// the option has 32 units of 8 bytes.
fn link_layer_option(mut options: &[u8], wanted: NdpOptionType) -> Option<Option<MacAddr>> {
    let mut link_layer = None;
    while !options.is_empty() {
        let [option, length, ..] = *options else { return None };
        let (body, next) = options.split_at_checked(usize::from(length) * 8)?;
        if body.is_empty() {
            return None;
        }
        if NdpOptionType(option) == wanted {
            let mac = MacAddr::from(<[u8; 6]>::try_from(&body[2..8]).ok()?);
            // A longer option carries no Ethernet address.
            link_layer = Some(mac).filter(|mac| is_station(*mac) && length == 1);
            link_layer?;
        }
        options = next;
    }
    Some(link_layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINE: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
    const CLIENT: MacAddr = MacAddr(2, 0, 0, 0, 0, 9);
    const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 0, 7);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("address")
    }

    fn lb_ip() -> Ipv6Addr {
        ip("2001:db8::12:3456")
    }

    fn verdict(frame: &[u8]) -> Verdict {
        decide(frame, MINE, |address| address == lb_ip())
    }

    fn frame_of(to: MacAddr, from: MacAddr, (source, destination): (Ipv6Addr, Ipv6Addr), message: &[u8]) -> Vec<u8> {
        let addresses = Ipv6Addresses { to, from, source, destination };
        build_frame(addresses, message.len(), |bytes| bytes.copy_from_slice(message))
    }

    /// A solicitation for an address, with the client's link-layer address if `option` is set.
    fn solicitation(to: (MacAddr, Ipv6Addr), source: Ipv6Addr, target: Ipv6Addr, option: bool) -> Vec<u8> {
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        if option {
            message.extend([NdpOptionTypes::SourceLLAddr.0, 1]);
            message.extend(CLIENT.octets());
        }
        frame_of(to.0, CLIENT, (source, to.1), &message)
    }

    #[test]
    fn only_solicitations_for_announced_addresses_are_answered() {
        use Ignored::*;
        let client = ip("fe80::9");
        let group = solicited_node(lb_ip());
        let all = (group_mac(group), group);
        let mine = (MINE, lb_ip());
        let elsewhere = ip("2001:db8::13:3456");
        let answer = |solicited| match solicited {
            true => Verdict::Answer(advertisement(
                CLIENT,
                MINE,
                client,
                lb_ip(),
                NeighborAdvertFlags::Solicited | NeighborAdvertFlags::Override,
            )),
            false => Verdict::Answer(unsolicited_advertisement(MINE, lb_ip())),
        };
        let conflict = Verdict::Conflict { lb_ip: lb_ip().into(), mac: OTHER };
        for (case, frame, expected) in [
            ("by multicast", solicitation(all, client, lb_ip(), true), answer(true)),
            ("by multicast, without the option", solicitation(all, client, lb_ip(), false), answer(true)),
            ("by unicast", solicitation(mine, client, lb_ip(), true), answer(true)),
            ("by unicast, without the option", solicitation(mine, client, lb_ip(), false), answer(true)),
            ("a host that tests the address", solicitation(all, Ipv6Addr::UNSPECIFIED, lb_ip(), false), answer(false)),
            (
                "the same, with an option",
                solicitation(all, Ipv6Addr::UNSPECIFIED, lb_ip(), true),
                Verdict::Ignore(Malformed),
            ),
            (
                "the same, by unicast",
                solicitation(mine, Ipv6Addr::UNSPECIFIED, lb_ip(), false),
                Verdict::Ignore(Malformed),
            ),
            (
                "to another station",
                solicitation((OTHER, lb_ip()), client, lb_ip(), true),
                Verdict::Ignore(OtherStation),
            ),
            (
                "to all nodes",
                solicitation((group_mac(ALL_NODES), ALL_NODES), client, lb_ip(), true),
                Verdict::Ignore(OtherStation),
            ),
            (
                "another address of the same group",
                solicitation(all, client, ip("2001:db8::ff12:3456"), true),
                Verdict::Ignore(OtherAddress),
            ),
            (
                "another address",
                solicitation(
                    (group_mac(solicited_node(elsewhere)), solicited_node(elsewhere)),
                    client,
                    elsewhere,
                    true,
                ),
                Verdict::Ignore(OtherAddress),
            ),
            ("for a group", solicitation(all, client, ALL_NODES, true), Verdict::Ignore(Malformed)),
            ("another host's own address", unsolicited_advertisement(OTHER, client), Verdict::Ignore(NoQuestion)),
            ("our own frame, looped", unsolicited_advertisement(MINE, lb_ip()), Verdict::Ignore(Own)),
            ("our address, by another host", unsolicited_advertisement(OTHER, lb_ip()), conflict.clone()),
            (
                "our address, in an answer of another host",
                advertisement(CLIENT, OTHER, client, lb_ip(), NeighborAdvertFlags::Solicited),
                conflict,
            ),
            (
                "an answer to a group",
                advertisement(group_mac(ALL_NODES), OTHER, ALL_NODES, client, NeighborAdvertFlags::Solicited),
                Verdict::Ignore(Malformed),
            ),
            (
                "sent from our address",
                solicitation(all, lb_ip(), elsewhere, true),
                Verdict::Conflict { lb_ip: lb_ip().into(), mac: CLIENT },
            ),
        ] {
            assert_eq!(verdict(&frame), expected, "{case}");
        }
    }

    #[test]
    fn invalid_or_forwarded_messages_are_malformed() {
        let group = solicited_node(lb_ip());
        let whole = solicitation((group_mac(group), group), ip("fe80::9"), lb_ip(), true);
        for (at, byte) in [
            (13, 0x00), // another EtherType
            (14, 0x40), // another version
            (19, 33),   // a payload longer than the frame
            (20, 0),    // an extension header
            (21, 254),  // through a router
            (55, 1),    // an ICMPv6 code
            (56, 0),    // the checksum itself
            (77, 0),    // the target, which the checksum covers
            (78, 2),    // the type of the option, which the checksum covers
        ] {
            let mut changed = whole.clone();
            changed[at] = byte;
            assert_eq!(verdict(&changed), Verdict::Ignore(Ignored::Malformed), "byte {at}");
        }
        for end in 0..whole.len() {
            assert_eq!(verdict(&whole[..end]), Verdict::Ignore(Ignored::Malformed), "{end} bytes");
        }
        let padded: Vec<u8> = whole.iter().copied().chain([0; 9]).collect();
        assert_eq!(verdict(&padded), verdict(&whole));
        for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 2, 0, 0, 0, 0, 9], &[1], &[1, 1, 1, 0, 0, 0, 0, 9]] {
            let mut message = [&whole[MESSAGE_AT..MESSAGE_AT + FIXED_LEN], options].concat();
            message[2..4].fill(0);
            let frame = frame_of(group_mac(group), CLIENT, (ip("fe80::9"), group), &message);
            assert_eq!(verdict(&frame), Verdict::Ignore(Ignored::Malformed), "{options:?}");
        }
    }

    #[test]
    fn unknown_options_of_a_solicitation_are_skipped() {
        let group = solicited_node(lb_ip());
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(lb_ip().octets());
        message.extend([14, 1, 1, 2, 3, 4, 5, 6]); // a nonce (RFC 3971 §5.3.2), as Linux sends it for DAD
        let frame = frame_of(group_mac(group), CLIENT, (Ipv6Addr::UNSPECIFIED, group), &message);
        assert_eq!(verdict(&frame), Verdict::Answer(unsolicited_advertisement(MINE, lb_ip())));
    }

    #[test]
    fn only_the_host_itself_answers_a_unicast_solicitation() {
        let client = ip("2001:db8::9");
        let solicitation = unicast_solicitation((CLIENT, client), (MINE, lb_ip()));
        assert_eq!((&solicitation[..6], &solicitation[6..12]), (&MINE.octets()[..], &CLIENT.octets()[..]));
        let Verdict::Answer(answer) = verdict(&solicitation) else { panic!("no answer") };
        assert_eq!(answer[..6], CLIENT.octets());
        let mut by_proxy = answer.clone();
        by_proxy[6..12].copy_from_slice(&OTHER.octets());
        for (case, frame, expected) in [
            ("an answer", &answer, Some((MINE, lb_ip().into()))),
            ("an answer of another host", &by_proxy, None),
            ("an unsolicited advertisement", &unsolicited_advertisement(MINE, lb_ip()), None),
            ("a solicitation", &solicitation, None),
            ("a truncated answer", &answer[..60].to_vec(), None),
        ] {
            assert_eq!(answering_host(frame), expected, "{case}");
        }
    }

    #[test]
    fn sent_frames_have_the_expected_bytes() {
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd,
            0x60, 0, 0, 0, 0, 32, 58, 255,
            0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
            0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            136, 0, 0x92, 0xb8, 0x20, 0, 0, 0,
            0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
            2, 1, 2, 0, 0, 0, 0, 1,
        ];
        let frame = unsolicited_advertisement(MINE, lb_ip());
        assert_eq!(frame[..56], expected[..56]);
        assert_eq!(frame[58..], expected[58..]);
        // Another implementation computes the same checksum.
        let icmp = Icmpv6Packet::new(&frame[MESSAGE_AT..]).expect("a message");
        assert_eq!(icmp.get_checksum(), pnet_packet::icmpv6::checksum(&icmp, &lb_ip(), &ALL_NODES));
        let probe = probe(MINE, lb_ip());
        let icmp = Icmpv6Packet::new(&probe[MESSAGE_AT..]).expect("a message");
        let (source, group) = (Ipv6Addr::UNSPECIFIED, solicited_node(lb_ip()));
        assert_eq!(icmp.get_checksum(), pnet_packet::icmpv6::checksum(&icmp, &source, &group));
        assert_eq!((probe.len(), &probe[..6]), (MESSAGE_AT + FIXED_LEN, &[0x33, 0x33, 0xff, 0x12, 0x34, 0x56][..]));
        assert_eq!(solicited_node(lb_ip()), ip("ff02::1:ff12:3456"));
        assert_eq!(address_user(&probe), Some((MINE, lb_ip().into())));
        assert_eq!(address_user(&frame), Some((MINE, lb_ip().into())));
        let verdict_of_probe = decide(&probe, OTHER, |address| address == lb_ip());
        assert_eq!(verdict_of_probe, Verdict::Answer(unsolicited_advertisement(OTHER, lb_ip())));
    }

    proptest! {
        #[test]
        fn deciding_about_any_message_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = verdict(&frame_of(MINE, CLIENT, (ip("fe80::9"), lb_ip()), &[&[135, 0, 0, 0][..], &bytes].concat()));
        }
    }
}
