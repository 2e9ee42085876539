//! What to do with a frame of IPv6 neighbour discovery, and the frames that are sent: RFC 4861, RFC 4862 §5.4.
//!
//! In goes a frame from a link and what is announced there, out comes a [`Verdict`]. Nothing is remembered.

use std::net::{IpAddr, Ipv6Addr};

use crate::wire::arp::{Ignored, Verdict};
use crds::Mac;

/// All nodes on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What nothing from beyond the link can have (RFC 4861 §7.1).
pub const HOP_LIMIT: u8 = 255;

/// The protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The type of a Neighbor Solicitation.
pub const SOLICITATION: u8 = 135;

/// The type of a Neighbor Advertisement.
pub const ADVERTISEMENT: u8 = 136;

const ETHER_TYPE: [u8; 2] = [0x86, 0xdd];

/// Where ICMPv6 begins in a frame, without extension headers. There are none: nobody sends any with these messages, and
/// fragments of them are forbidden (RFC 6980 §5).
const START: usize = 14 + 40;

/// The size of both messages without options.
const FIXED: usize = 24;

/// Of an advertisement: it answers a solicitation.
const SOLICITED: u8 = 0x40;

/// Of an advertisement: it overrides what is known.
const OVERRIDE: u8 = 0x20;

/// The option with the sender's link-layer address, in a solicitation.
const SOURCE_LINK_LAYER: u8 = 1;

/// The option with the target's link-layer address, in an advertisement.
const TARGET_LINK_LAYER: u8 = 2;

/// The group in which solicitations for an address are sent (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from(y) << 8 | u16::from(z))
}

/// The MAC address of a group (RFC 2464 §7).
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., w, x, y, z] = group.octets();
    Mac([0x33, 0x33, w, x, y, z])
}

/// A message that is valid (RFC 4861 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    from: Mac,
    to: Mac,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    target: Ipv6Addr,
    /// What its option says, of the sender of a solicitation or of the target of an advertisement.
    link_layer: Option<Mac>,
}

/// Judges `frame`, which came in on the interface with the address `mac`, where `announced` are announced.
///
/// A solicitation is answered if it asks for an announced address: by multicast, or by unicast, which is how clients check
/// what they know (RFC 4861 §7.3). One without a source is somebody who would like to have the address himself (RFC 4862
/// §5.4.3); all are told then that it is in use. Who doesn't say where it is gets the answer where the frame came from.
pub fn judge(frame: &[u8], mac: Mac, announced: impl Fn(Ipv6Addr) -> bool) -> Verdict {
    let Some(message) = parse(frame) else { return Verdict::Ignore(Ignored::Malformed) };
    let Message { from, to, source, destination, target, link_layer, .. } = message;
    if from == mac {
        return Verdict::Ignore(Ignored::Own);
    }
    let who = link_layer.unwrap_or(from);
    // RFC 4862 §5.4.4: whoever advertises our address has it too; and so has whoever asks in its name.
    for used in [source, target] {
        if (used == source || message.kind == ADVERTISEMENT) && announced(used) {
            return Verdict::Conflict { lb_ip: IpAddr::V6(used), mac: who };
        }
    }
    if message.kind == ADVERTISEMENT {
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
        advertisement(group_mac(ALL_NODES), mac, ALL_NODES, target, OVERRIDE)
    } else {
        advertisement(who, mac, source, target, SOLICITED | OVERRIDE)
    })
}

/// Who uses or would like to use which address, as `frame` tells: who advertises it, asks from it, or asks for it without
/// having one (RFC 4862 §5.4.3).
pub fn user(frame: &[u8]) -> Option<(Mac, Ipv6Addr)> {
    let Message { from, source, kind, target, link_layer, .. } = parse(frame)?;
    let used = if kind == ADVERTISEMENT || source.is_unspecified() { target } else { source };
    Some((link_layer.unwrap_or(from), used))
}

/// An advertisement that nobody asked for (RFC 4861 §7.2.6). It overrides what is known at once.
pub fn unsolicited(mac: Mac, lb_ip: Ipv6Addr) -> Vec<u8> {
    advertisement(group_mac(ALL_NODES), mac, ALL_NODES, lb_ip, OVERRIDE)
}

/// Asks whether anybody has `lb_ip`, before it is used (RFC 4862 §5.4.2).
pub fn probe(mac: Mac, lb_ip: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(lb_ip);
    let mut message = [0; FIXED];
    message[0] = SOLICITATION;
    message[8..24].copy_from_slice(&lb_ip.octets());
    frame_of(group_mac(group), mac, (Ipv6Addr::UNSPECIFIED, group), &message)
}

fn advertisement(to: Mac, mac: Mac, destination: Ipv6Addr, lb_ip: Ipv6Addr, flags: u8) -> Vec<u8> {
    let mut message = [0; FIXED + 8];
    message[0] = ADVERTISEMENT;
    message[4] = flags;
    message[8..24].copy_from_slice(&lb_ip.octets());
    message[24..26].copy_from_slice(&[TARGET_LINK_LAYER, 1]);
    message[26..32].copy_from_slice(&mac.0);
    frame_of(to, mac, (lb_ip, destination), &message)
}

fn frame_of(to: Mac, mac: Mac, (source, destination): (Ipv6Addr, Ipv6Addr), message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("invariant: a message is short");
    let mut frame = Vec::with_capacity(START + message.len());
    frame.extend(to.0);
    frame.extend(mac.0);
    frame.extend(ETHER_TYPE);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    let checksum = !sum(source, destination, message);
    frame[START + 2..START + 4].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The sum of a message with its pseudo-header (RFC 8200 §8.1), in ones' complement.
fn sum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let (source, destination) = (source.octets(), destination.octets());
    let words = |bytes: &[u8]| -> u64 {
        let pair = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        bytes.chunks(2).map(pair).sum()
    };
    let mut sum = words(&source) + words(&destination) + words(message) + message.len() as u64 + u64::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn parse(frame: &[u8]) -> Option<Message> {
    let (header, rest) = frame.split_at_checked(START)?;
    let (to, from) = (Mac(header[..6].try_into().ok()?), Mac(header[6..12].try_into().ok()?));
    if header[12..14] != ETHER_TYPE || header[14] >> 4 != 6 || !from.is_station() {
        return None;
    }
    if header[20] != ICMPV6 || header[21] != HOP_LIMIT {
        return None;
    }
    let address = |bytes: &[u8]| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?));
    let (source, destination) = (address(&header[22..38])?, address(&header[38..54])?);
    // Ethernet pads short frames: only the length in the header counts.
    let message = rest.get(..usize::from(u16::from_be_bytes([header[18], header[19]])))?;
    if message.len() < FIXED || message[1] != 0 || sum(source, destination, message) != 0xffff {
        return None;
    }
    let (kind, target) = (message[0], address(&message[8..24])?);
    if target.is_multicast() || source.is_multicast() {
        return None;
    }
    let wanted = match kind {
        SOLICITATION => SOURCE_LINK_LAYER,
        // What goes to a group can't be an answer to one.
        ADVERTISEMENT if destination.is_multicast() && message[4] & SOLICITED != 0 => return None,
        ADVERTISEMENT => TARGET_LINK_LAYER,
        _ => return None,
    };
    let (mut options, mut link_layer) = (&message[FIXED..], None);
    while !options.is_empty() {
        let [option, length, ..] = *options else { return None };
        let (body, next) = options.split_at_checked(usize::from(length) * 8)?;
        if body.is_empty() {
            return None;
        }
        if option == wanted {
            let mac = Mac(body[2..8].try_into().ok()?);
            // Longer ones are not for Ethernet.
            link_layer = Some(mac).filter(|mac| mac.is_station() && length == 1);
            link_layer?;
        }
        options = next;
    }
    let nobody = kind == SOLICITATION && source.is_unspecified();
    if nobody && (link_layer.is_some() || destination != solicited_node(target)) {
        return None;
    }
    Some(Message { from, to, source, destination, kind, target, link_layer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINE: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("address")
    }

    fn lb_ip() -> Ipv6Addr {
        ip("2001:db8::12:3456")
    }

    fn judged(frame: &[u8]) -> Verdict {
        judge(frame, MINE, |address| address == lb_ip())
    }

    /// A solicitation for an address, with the client's link-layer address if it is told.
    fn solicitation(to: (Mac, Ipv6Addr), source: Ipv6Addr, target: Ipv6Addr, option: bool) -> Vec<u8> {
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        if option {
            message.extend([SOURCE_LINK_LAYER, 1]);
            message.extend(CLIENT.0);
        }
        frame_of(to.0, CLIENT, (source, to.1), &message)
    }

    #[test]
    fn a_question_for_an_announced_address_is_answered_and_nothing_else_is() {
        use Ignored::*;
        let client = ip("fe80::9");
        let group = solicited_node(lb_ip());
        let all = (group_mac(group), group);
        let mine = (MINE, lb_ip());
        let elsewhere = ip("2001:db8::13:3456");
        let answer = |solicited| match solicited {
            true => Verdict::Answer(advertisement(CLIENT, MINE, client, lb_ip(), SOLICITED | OVERRIDE)),
            false => Verdict::Answer(unsolicited(MINE, lb_ip())),
        };
        let conflict = Verdict::Conflict { lb_ip: lb_ip().into(), mac: OTHER };
        for (what, frame, expected) in [
            ("by multicast", solicitation(all, client, lb_ip(), true), answer(true)),
            ("by multicast, without the option", solicitation(all, client, lb_ip(), false), answer(true)),
            ("by unicast", solicitation(mine, client, lb_ip(), true), answer(true)),
            ("by unicast, without the option", solicitation(mine, client, lb_ip(), false), answer(true)),
            (
                "somebody who would like to have it",
                solicitation(all, Ipv6Addr::UNSPECIFIED, lb_ip(), false),
                answer(false),
            ),
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
            ("somebody's own address", unsolicited(OTHER, client), Verdict::Ignore(NoQuestion)),
            ("our own, looped", unsolicited(MINE, lb_ip()), Verdict::Ignore(Own)),
            ("ours, by another", unsolicited(OTHER, lb_ip()), conflict.clone()),
            ("ours, as an answer of another", advertisement(CLIENT, OTHER, client, lb_ip(), SOLICITED), conflict),
            (
                "an answer to a group",
                advertisement(group_mac(ALL_NODES), OTHER, ALL_NODES, client, SOLICITED),
                Verdict::Ignore(Malformed),
            ),
            (
                "asked in our name",
                solicitation(all, lb_ip(), elsewhere, true),
                Verdict::Conflict { lb_ip: lb_ip().into(), mac: CLIENT },
            ),
        ] {
            assert_eq!(judged(&frame), expected, "{what}");
        }
    }

    #[test]
    fn what_is_no_valid_message_from_this_link_is_malformed() {
        let group = solicited_node(lb_ip());
        let whole = solicitation((group_mac(group), group), ip("fe80::9"), lb_ip(), true);
        for (at, byte) in [
            (13, 0x00), // another EtherType
            (14, 0x40), // another version
            (19, 33),   // longer than it is
            (20, 0),    // an extension header
            (21, 254),  // through a router
            (55, 1),    // a code
            (56, 0),    // the checksum
            (77, 0),    // what the checksum covers
            (78, 2),    // another option: the checksum again
        ] {
            let mut changed = whole.clone();
            changed[at] = byte;
            assert_eq!(judged(&changed), Verdict::Ignore(Ignored::Malformed), "byte {at}");
        }
        for end in 0..whole.len() {
            assert_eq!(judged(&whole[..end]), Verdict::Ignore(Ignored::Malformed), "{end} bytes");
        }
        let padded: Vec<u8> = whole.iter().copied().chain([0; 9]).collect();
        assert_eq!(judged(&padded), judged(&whole));
        for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 2, 0, 0, 0, 0, 9], &[1], &[1, 1, 1, 0, 0, 0, 0, 9]] {
            let message = [&whole[START..START + FIXED], options].concat();
            let mut message = message;
            message[2..4].fill(0);
            let frame = frame_of(group_mac(group), CLIENT, (ip("fe80::9"), group), &message);
            assert_eq!(judged(&frame), Verdict::Ignore(Ignored::Malformed), "{options:?}");
        }
    }

    #[test]
    fn unknown_options_are_passed_over() {
        let group = solicited_node(lb_ip());
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(lb_ip().octets());
        message.extend([14, 1, 1, 2, 3, 4, 5, 6]); // a nonce (RFC 3971 §5.3.2), as Linux sends it for DAD
        let frame = frame_of(group_mac(group), CLIENT, (Ipv6Addr::UNSPECIFIED, group), &message);
        assert_eq!(judged(&frame), Verdict::Answer(unsolicited(MINE, lb_ip())));
    }

    #[test]
    fn what_is_sent_has_these_bytes() {
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
        let frame = unsolicited(MINE, lb_ip());
        assert_eq!(frame[..56], expected[..56]);
        assert_eq!(frame[58..], expected[58..]);
        // By another implementation.
        let header = etherparse::Icmpv6Slice::from_slice(&frame[START..]).expect("a message");
        assert!(header.is_checksum_valid(lb_ip().octets(), ALL_NODES.octets()));
        let probe = probe(MINE, lb_ip());
        let header = etherparse::Icmpv6Slice::from_slice(&probe[START..]).expect("a message");
        assert!(header.is_checksum_valid([0; 16], solicited_node(lb_ip()).octets()));
        assert_eq!((probe.len(), &probe[..6]), (START + FIXED, &[0x33, 0x33, 0xff, 0x12, 0x34, 0x56][..]));
        assert_eq!(solicited_node(lb_ip()), ip("ff02::1:ff12:3456"));
        assert_eq!(user(&probe), Some((MINE, lb_ip())));
        assert_eq!(user(&frame), Some((MINE, lb_ip())));
        let asked = judge(&probe, OTHER, |address| address == lb_ip());
        assert_eq!(asked, Verdict::Answer(unsolicited(OTHER, lb_ip())));
    }

    proptest! {
        #[test]
        fn judging_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = judged(&bytes);
        }

        #[test]
        fn judging_any_message_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = judged(&frame_of(MINE, CLIENT, (ip("fe80::9"), lb_ip()), &[&[135, 0, 0, 0][..], &bytes].concat()));
        }
    }
}
