//! ARP frames (RFC 826, RFC 5227): the reply to a received frame, and the frames that a speaker sends.
//!
//! The input is one frame and the addresses announced on its link; the output is a [`Verdict`]. The functions keep no
//! state.

use std::net::{IpAddr, Ipv4Addr};

use crds::{MacAddr, is_station};
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};

use super::headers::{ETHERNET_LEN, ethernet_frame, source_mac};

/// The decision about one received frame, ARP or IPv6 neighbour discovery ([`super::ndp`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send this frame as the reply.
    Answer(Vec<u8>),
    /// A host or a peer uses a load-balancer address that this node announces on the link.
    Conflict {
        /// The address.
        lb_ip: IpAddr,
        /// The MAC address of that host or peer.
        mac: MacAddr,
    },
    /// Do nothing.
    Ignore(Ignored),
}

/// Why a frame gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The frame is truncated or of another protocol, or its sender has the MAC address of a group or zero.
    Malformed,
    /// This node sent the frame on this link.
    Own,
    /// The frame is for another station.
    OtherStation,
    /// This node does not announce the requested address on the link.
    OtherAddress,
    /// The frame is not a request, or it announces the sender's own address.
    NoQuestion,
}

/// Decides about `frame`, received on the link where this node has the MAC address `mac`. `announced` returns true for
/// the addresses that this node announces on the link.
///
/// A request is answered if it was broadcast or sent to this station, and its target is an announced address. Clients
/// revalidate their neighbour entries with unicast requests (RFC 1122 §2.3.2.1). A sender address of 0.0.0.0 marks a
/// probe; the reply reports that the address is in use (RFC 5227 §2.1.1).
pub fn decide(frame: &[u8], mac: MacAddr, announced: impl Fn(Ipv4Addr) -> bool) -> Verdict {
    let Some((destination, packet)) = parse(frame) else { return Verdict::Ignore(Ignored::Malformed) };
    let (sender, target) = (packet.get_sender_proto_addr(), packet.get_target_proto_addr());
    let from = packet.get_sender_hw_addr();
    if !is_station(from) {
        return Verdict::Ignore(Ignored::Malformed);
    }
    if from == mac {
        return Verdict::Ignore(Ignored::Own);
    }
    // RFC 5227 §2.4: a frame of another host with our address as its sender is a conflict, for any destination.
    if announced(sender) {
        return Verdict::Conflict { lb_ip: sender.into(), mac: from };
    }
    if destination != mac && !destination.is_broadcast() {
        return Verdict::Ignore(Ignored::OtherStation);
    }
    if packet.get_operation() != ArpOperations::Request || sender == target {
        return Verdict::Ignore(Ignored::NoQuestion);
    }
    if !announced(target) {
        return Verdict::Ignore(Ignored::OtherAddress);
    }
    // The reply goes to the sender hardware address of the packet (RFC 826), not to the source of the frame.
    Verdict::Answer(build_frame(from, ArpOperations::Reply, Station(mac, target), Station(from, sender)))
}

/// The sender of `frame`, and the address that it uses: its own address or, in a probe (RFC 5227 §2.1.1), the address
/// that it is about to use.
pub fn address_user(frame: &[u8]) -> Option<(MacAddr, IpAddr)> {
    let (_, packet) = parse(frame)?;
    let (sender, target) = (packet.get_sender_proto_addr(), packet.get_target_proto_addr());
    let is_probe = sender.is_unspecified() && packet.get_operation() == ArpOperations::Request;
    Some((packet.get_sender_hw_addr(), if is_probe { target } else { sender }.into()))
}

/// An ARP Probe (RFC 5227 §1.1). A host that already uses `lb_ip` answers it.
pub fn probe(mac: MacAddr, lb_ip: Ipv4Addr) -> Vec<u8> {
    let sender = Station(mac, Ipv4Addr::UNSPECIFIED);
    build_frame(MacAddr::broadcast(), ArpOperations::Request, sender, Station(MacAddr::zero(), lb_ip))
}

/// A request to one host, by unicast. The host answers if its kernel works (RFC 1122 §2.3.2.1, unicast poll).
pub fn unicast_request(own: (MacAddr, Ipv4Addr), host: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let target = Station(MacAddr::zero(), host.1);
    build_frame(host.0, ArpOperations::Request, Station(own.0, own.1), target)
}

/// The host that sent `frame` as an answer, and its address. `None` if the frame is no reply, or if its sender answers
/// for another host.
pub fn answering_host(frame: &[u8]) -> Option<(MacAddr, IpAddr)> {
    let (_, packet) = parse(frame)?;
    let mac = packet.get_sender_hw_addr();
    let is_answer = packet.get_operation() == ArpOperations::Reply && source_mac(frame) == Some(mac);
    is_answer.then(|| (mac, packet.get_sender_proto_addr().into()))
}

/// The request form of a gratuitous ARP: sender and target address are equal (RFC 5227 §1.1, "ARP Announcement"). Old
/// Linux kernels accept only this form.
pub fn gratuitous_request(mac: MacAddr, lb_ip: Ipv4Addr) -> Vec<u8> {
    let target = Station(MacAddr::zero(), lb_ip);
    build_frame(MacAddr::broadcast(), ArpOperations::Request, Station(mac, lb_ip), target)
}

/// The reply form of a gratuitous ARP. Linux treats a reply as gratuitous only if its target hardware address equals
/// its sender hardware address (`arp_is_garp`). Linux applies a gratuitous reply at once, and ignores other replies for
/// 1 s after the last change.
pub fn gratuitous_reply(mac: MacAddr, lb_ip: Ipv4Addr) -> Vec<u8> {
    build_frame(MacAddr::broadcast(), ArpOperations::Reply, Station(mac, lb_ip), Station(mac, lb_ip))
}

/// One end of an ARP packet: hardware and protocol address.
#[derive(Clone, Copy)]
struct Station(MacAddr, Ipv4Addr);

fn build_frame(destination: MacAddr, operation: ArpOperation, sender: Station, target: Station) -> Vec<u8> {
    let mut frame = ethernet_frame(destination, sender.0, EtherTypes::Arp, ArpPacket::minimum_packet_size());
    let mut arp = MutableArpPacket::new(&mut frame[ETHERNET_LEN..]).expect("invariant: the body has its size");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(operation);
    arp.set_sender_hw_addr(sender.0);
    arp.set_sender_proto_addr(sender.1);
    arp.set_target_hw_addr(target.0);
    arp.set_target_proto_addr(target.1);
    frame
}

/// The destination of a frame and its packet, if it is ARP for IPv4 over Ethernet.
fn parse(frame: &[u8]) -> Option<(MacAddr, ArpPacket<'_>)> {
    let ethernet = EthernetPacket::new(frame)?;
    if ethernet.get_ethertype() != EtherTypes::Arp {
        return None;
    }
    let packet = ArpPacket::new(&frame[ETHERNET_LEN..])?;
    let is_ipv4 = packet.get_hardware_type() == ArpHardwareTypes::Ethernet
        && packet.get_protocol_type() == EtherTypes::Ipv4
        && packet.get_hw_addr_len() == 6
        && packet.get_proto_addr_len() == 4;
    is_ipv4.then_some((ethernet.get_destination(), packet))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
    const CLIENT: MacAddr = MacAddr(2, 0, 0, 0, 0, 9);
    const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 0, 7);
    const LB_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
    const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    fn frame(to: MacAddr, operation: ArpOperation, from: Station, target: Ipv4Addr) -> Vec<u8> {
        build_frame(to, operation, from, Station(MacAddr::zero(), target))
    }

    fn verdict(frame: &[u8]) -> Verdict {
        decide(frame, MINE, |address| address == LB_IP)
    }

    #[test]
    fn only_requests_for_announced_addresses_are_answered() {
        use Ignored::*;
        let (request, reply) = (ArpOperations::Request, ArpOperations::Reply);
        let client = Station(CLIENT, CLIENT_IP);
        let elsewhere = Ipv4Addr::new(192, 0, 2, 201);
        let answer = |to| Verdict::Answer(build_frame(CLIENT, reply, Station(MINE, LB_IP), Station(CLIENT, to)));
        let conflict = Verdict::Conflict { lb_ip: LB_IP.into(), mac: OTHER };
        for (case, frame, expected) in [
            ("by broadcast", frame(MacAddr::broadcast(), request, client, LB_IP), answer(CLIENT_IP)),
            ("by unicast", frame(MINE, request, client, LB_IP), answer(CLIENT_IP)),
            (
                "a probe",
                frame(MacAddr::broadcast(), request, Station(CLIENT, Ipv4Addr::UNSPECIFIED), LB_IP),
                answer(Ipv4Addr::UNSPECIFIED),
            ),
            ("to another station", frame(OTHER, request, client, LB_IP), Verdict::Ignore(OtherStation)),
            ("another address", frame(MacAddr::broadcast(), request, client, elsewhere), Verdict::Ignore(OtherAddress)),
            ("a reply", frame(MINE, reply, client, LB_IP), Verdict::Ignore(NoQuestion)),
            ("gratuitous", frame(MacAddr::broadcast(), request, client, CLIENT_IP), Verdict::Ignore(NoQuestion)),
            ("an unknown operation", frame(MINE, ArpOperation::new(9), client, LB_IP), Verdict::Ignore(NoQuestion)),
            (
                "our own frame, looped",
                frame(MacAddr::broadcast(), request, Station(MINE, LB_IP), LB_IP),
                Verdict::Ignore(Own),
            ),
            (
                "from a group",
                frame(MINE, request, Station(MacAddr::broadcast(), CLIENT_IP), LB_IP),
                Verdict::Ignore(Malformed),
            ),
            ("from zero", frame(MINE, request, Station(MacAddr::zero(), CLIENT_IP), LB_IP), Verdict::Ignore(Malformed)),
            ("our address, gratuitous, by another host", gratuitous_request(OTHER, LB_IP), conflict.clone()),
            (
                "our address, in a reply of another host",
                frame(CLIENT, reply, Station(OTHER, LB_IP), CLIENT_IP),
                conflict,
            ),
        ] {
            assert_eq!(verdict(&frame), expected, "{case}");
        }
    }

    #[test]
    fn other_protocols_and_truncated_frames_are_malformed() {
        let whole = frame(MacAddr::broadcast(), ArpOperations::Request, Station(CLIENT, CLIENT_IP), LB_IP);
        for (at, byte) in [(13, 0x00), (15, 6), (17, 1), (18, 8), (19, 16)] {
            let mut changed = whole.clone();
            changed[at] = byte;
            assert_eq!(verdict(&changed), Verdict::Ignore(Ignored::Malformed), "byte {at}");
        }
        for end in 0..whole.len() {
            assert_eq!(verdict(&whole[..end]), Verdict::Ignore(Ignored::Malformed), "{end} bytes");
        }
    }

    #[test]
    fn frames_name_the_user_of_an_address() {
        for (case, frame, expected) in [
            ("a probe", probe(OTHER, LB_IP), Some((OTHER, LB_IP))),
            (
                "a request",
                frame(MacAddr::broadcast(), ArpOperations::Request, Station(CLIENT, CLIENT_IP), LB_IP),
                Some((CLIENT, CLIENT_IP)),
            ),
            ("an answer", frame(MINE, ArpOperations::Reply, Station(OTHER, LB_IP), CLIENT_IP), Some((OTHER, LB_IP))),
            ("an announcement", gratuitous_request(OTHER, LB_IP), Some((OTHER, LB_IP))),
            ("an empty frame", vec![], None),
        ] {
            assert_eq!(address_user(&frame), expected.map(|(mac, used)| (mac, IpAddr::V4(used))), "{case}");
        }
        // The host that has the address answers a probe.
        let Verdict::Answer(answer) = verdict(&probe(OTHER, LB_IP)) else { panic!("no answer") };
        assert_eq!(address_user(&answer), Some((MINE, LB_IP.into())));
    }

    #[test]
    fn only_the_host_itself_answers_a_unicast_request() {
        let request = unicast_request((CLIENT, CLIENT_IP), (MINE, LB_IP));
        assert_eq!((&request[..6], &request[6..12]), (&MINE.octets()[..], &CLIENT.octets()[..]));
        let Verdict::Answer(answer) = verdict(&request) else { panic!("no answer") };
        let mut by_proxy = answer.clone();
        by_proxy[6..12].copy_from_slice(&OTHER.octets());
        for (case, frame, expected) in [
            ("an answer", &answer, Some((MINE, LB_IP.into()))),
            ("an answer of another host", &by_proxy, None),
            ("a request", &request, None),
            ("a truncated answer", &answer[..30].to_vec(), None),
        ] {
            assert_eq!(answering_host(frame), expected, "{case}");
        }
    }

    #[test]
    fn gratuitous_forms_have_the_bytes_linux_accepts() {
        #[rustfmt::skip]
        let request = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6,
            0, 1, 8, 0, 6, 4, 0, 1,
            2, 0, 0, 0, 0, 1, 192, 0, 2, 200,
            0, 0, 0, 0, 0, 0, 192, 0, 2, 200,
        ];
        assert_eq!(gratuitous_request(MINE, LB_IP), request);
        let mut reply = request;
        reply[21] = 2;
        reply[32..38].copy_from_slice(&MINE.octets());
        assert_eq!(gratuitous_reply(MINE, LB_IP), reply);
    }
}
