//! ARP and neighbour discovery frames on the LAN: requests of the observer, and frames of other hosts. Pure.
//!
//! This file does not use the speaker's code, because the observer checks the speaker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crds::MacAddr;

use crate::checks::kernel::solicited_node;

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, and the lengths of their addresses (RFC 826).
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The flag of an advertisement that answers a solicitation (RFC 4861 §4.4).
const SOLICITED: u8 = 0x40;
/// Length of Ethernet and IPv6 headers, and of a solicitation with one option.
const NDP_START: usize = 14 + 40;
const SOLICITATION_LENGTH: u8 = 32;

/// A host states that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    pub address: IpAddr,
    pub mac: MacAddr,
    /// Whether it answers a request. Otherwise it is an unsolicited announcement: gratuitous ARP, or an unsolicited
    /// neighbour advertisement (RFC 4861 §7.2.6).
    pub is_answer: bool,
}

/// The statement in a frame; `None` if the frame is anything else.
pub fn parse(frame: &[u8]) -> Option<Statement> {
    let payload = frame.get(14..)?;
    match [frame[12], frame[13]] {
        ARP => parse_arp(payload),
        IPV6 => parse_advertisement(payload),
        _ => None,
    }
}

/// An ARP reply, or a request whose sender and target are the same (RFC 5944 §4.6).
fn parse_arp(arp: &[u8]) -> Option<Statement> {
    let arp = arp.get(..28).filter(|arp| arp[..6] == ARP_START)?;
    let address = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
    let (is_reply, sender, target) = (arp[7] == 2, address(14), address(24));
    let is_statement = !sender.is_unspecified() && (is_reply || sender == target);
    is_statement.then(|| Statement {
        address: sender.into(),
        mac: mac_at(arp, 8),
        is_answer: is_reply && sender != target,
    })
}

fn parse_advertisement(packet: &[u8]) -> Option<Statement> {
    let message = packet.get(40..).filter(|message| packet[6] == ICMPV6 && message.len() >= 24)?;
    if message[0] != ADVERTISEMENT {
        return None;
    }
    let target: [u8; 16] = message[8..24].try_into().ok()?;
    // The option with the target's link-layer address (RFC 4861 §4.6.1).
    let mac = message.get(24..32).filter(|option| option[..2] == [2, 1])?;
    let is_answer = message[4] & SOLICITED != 0;
    Some(Statement { address: Ipv6Addr::from(target).into(), mac: mac_at(mac, 2), is_answer })
}

fn mac_at(bytes: &[u8], at: usize) -> MacAddr {
    MacAddr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4], bytes[at + 5])
}

/// The addresses of the host that sends requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    pub mac: MacAddr,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

impl Requester {
    /// A broadcast ARP request, or a multicast neighbour solicitation.
    pub fn request(&self, address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => self.arp_request(address),
            IpAddr::V6(address) => self.solicitation(address),
        }
    }

    fn arp_request(&self, address: Ipv4Addr) -> Vec<u8> {
        let mac = self.mac.octets();
        let header = [&[0xff; 6][..], &mac, &ARP, &ARP_START, &[0, 1]].concat();
        [&header[..], &mac, &self.ipv4.octets(), &[0; 6], &address.octets()].concat()
    }

    /// A neighbour solicitation with the source link-layer address (RFC 4861 §4.3).
    fn solicitation(&self, address: Ipv6Addr) -> Vec<u8> {
        let (mac, source, group) = (self.mac.octets(), self.ipv6.octets(), solicited_node(address).octets());
        let start = [SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        let mut message = [&start[..], &address.octets(), &[1, 1], &mac].concat();
        let pseudo_header = [&source[..], &group, &[0, 0, 0, SOLICITATION_LENGTH], &[0, 0, 0, ICMPV6]].concat();
        let checksum = internet_checksum(&[pseudo_header, message.clone()].concat());
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let ethernet = [&[0x33, 0x33][..], &group[12..], &mac, &IPV6].concat();
        let ip = [&[0x60, 0, 0, 0, 0, SOLICITATION_LENGTH, ICMPV6, 255][..], &source, &group].concat();
        [ethernet, ip, message].concat()
    }
}

/// RFC 1071, for an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// The kernel filter (classic BPF: opcode, jump if true, jump if false, operand) that passes ARP and advertisements.
pub const FILTER: [(u16, u8, u8, u32); 9] = {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, 5, 0, u16::from_be_bytes(ARP) as u32),
        (EQUAL, 0, 5, u16::from_be_bytes(IPV6) as u32),
        (LOAD_BYTE, 0, 0, 14 + 6),
        (EQUAL, 0, 3, ICMPV6 as u32),
        (LOAD_BYTE, 0, 0, NDP_START as u32),
        (EQUAL, 0, 1, ADVERTISEMENT as u32),
        (RETURN, 0, 0, u32::MAX),
        (RETURN, 0, 0, 0),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr(2, 0, 0, 0, 2, 0x54);
    const NODE: MacAddr = MacAddr(2, 0, 0, 0, 0, 0x11);

    fn requester() -> Requester {
        let ipv6 = "2001:db8::254".parse().expect("an address");
        Requester { mac: OWN, ipv4: Ipv4Addr::new(192, 0, 2, 254), ipv6 }
    }

    fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let header = [&[0xff; 6][..], &NODE.octets(), &ARP, &ARP_START, &[0, operation]].concat();
        [&header[..], &NODE.octets(), &sender, &[0; 6], &target].concat()
    }

    fn advertisement(flags: u8, kind: u8, option: u8) -> Vec<u8> {
        let target = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200).octets();
        let ethernet = [&[0x33; 6][..], &NODE.octets(), &IPV6].concat();
        let ip = [&[0x60, 0, 0, 0, 0, 32, ICMPV6, 255][..], &[0; 32]].concat();
        let message = [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &target, &[option, 1], &NODE.octets()].concat();
        [ethernet, ip, message].concat()
    }

    #[test]
    fn statements_of_hosts_are_recognised() {
        let (own, other) = ([192, 0, 2, 200], [192, 0, 2, 254]);
        let v4 = |is_answer| Some(Statement { address: IpAddr::from(own), mac: NODE, is_answer });
        let v6 = |is_answer| v4(is_answer).map(|it| Statement { address: "2001:db8::200".parse().expect("v6"), ..it });
        for (case, frame, expected) in [
            ("an ARP reply", arp(2, own, other), v4(true)),
            ("a gratuitous request", arp(1, own, own), v4(false)),
            ("a gratuitous reply", arp(2, own, own), v4(false)),
            ("a request", arp(1, other, own), None),
            ("a probe", arp(1, [0; 4], own), None),
            ("with padding", [arp(1, own, own), vec![0; 18]].concat(), v4(false)),
            ("cut short", arp(1, own, own)[..41].to_vec(), None),
            ("a solicited advertisement", advertisement(0x60, ADVERTISEMENT, 2), v6(true)),
            ("an unsolicited advertisement", advertisement(0x20, ADVERTISEMENT, 2), v6(false)),
            ("a solicitation", advertisement(0, SOLICITATION, 1), None),
            ("no link-layer address", advertisement(0x20, ADVERTISEMENT, 5), None),
            ("nothing", vec![], None),
        ] {
            assert_eq!(parse(&frame), expected, "{case}");
        }
    }

    #[test]
    fn a_request_has_the_form_of_its_protocol() {
        let request = requester().request("192.0.2.200".parse().expect("an address"));
        assert_eq!(request.len(), 42);
        assert_eq!((&request[..6], &request[38..]), (&[0xff; 6][..], &[192, 0, 2, 200][..]));
        let solicitation = requester().request("2001:db8::200".parse().expect("an address"));
        assert_eq!(solicitation.len(), NDP_START + usize::from(SOLICITATION_LENGTH));
        assert_eq!(solicitation[..6], [0x33, 0x33, 0xff, 0, 2, 0]);
        // The checksum of a valid message with its pseudo-header is 0.
        let pseudo_header = [&solicitation[22..54], &[0, 0, 0, 32, 0, 0, 0, ICMPV6]].concat();
        assert_eq!(internet_checksum(&[&pseudo_header[..], &solicitation[54..]].concat()), 0);
    }
}
