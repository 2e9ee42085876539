//! What to do with an ARP frame, and the frames that are sent: RFC 826, RFC 5227.
//!
//! In goes a frame from a link and what is announced there, out comes a [`Verdict`]. Nothing is remembered.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Header, Ethernet2HeaderSlice};

use crds::Mac;

/// What to do with a frame, of ARP or of IPv6 neighbour discovery ([`crate::wire::ndp`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send this frame: the answer.
    Answer(Vec<u8>),
    /// Somebody else uses an lb_ip that is announced here.
    Conflict {
        /// The address.
        lb_ip: IpAddr,
        /// Who uses it.
        mac: Mac,
    },
    /// Nothing.
    Ignore(Ignored),
}

/// Why a frame is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It is cut off, not what it should be, or from a station that can't be one.
    Malformed,
    /// It was sent by this very interface.
    Own,
    /// It is for another station.
    OtherStation,
    /// It asks for an address that is not announced here.
    OtherAddress,
    /// It asks nothing: a reply, or an announcement of somebody's own address.
    NoQuestion,
}

/// Judges `frame`, which came in on the interface with the address `mac`, where `announced` are announced.
///
/// A request is answered if it came by broadcast or to this station itself, and asks for an announced address: unicast
/// requests are how clients check what they know (RFC 1122 §2.3.2.1). The sender may be 0.0.0.0: that is a probe, and the
/// answer tells that the address is in use (RFC 5227 §2.1.1).
pub fn judge(frame: &[u8], mac: Mac, announced: impl Fn(Ipv4Addr) -> bool) -> Verdict {
    let Some((destination, packet)) = parse(frame) else { return Verdict::Ignore(Ignored::Malformed) };
    let (sender, target) = (packet.sender_ipv4_addr(), packet.target_ipv4_addr());
    let from = Mac(packet.sender_mac);
    if !from.is_station() {
        return Verdict::Ignore(Ignored::Malformed);
    }
    if from == mac {
        return Verdict::Ignore(Ignored::Own);
    }
    // RFC 5227 §2.4: a frame of any kind, to anybody, whose sender address is ours is a conflict.
    if announced(sender) {
        return Verdict::Conflict { lb_ip: sender.into(), mac: from };
    }
    if destination != mac && destination != Mac::BROADCAST {
        return Verdict::Ignore(Ignored::OtherStation);
    }
    if packet.operation != ArpOperation::REQUEST || sender == target {
        return Verdict::Ignore(Ignored::NoQuestion);
    }
    if !announced(target) {
        return Verdict::Ignore(Ignored::OtherAddress);
    }
    // To the hardware address in the packet, as RFC 826 has it, not to the one that carried the frame here.
    let answer = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: mac.0,
        sender_ipv4: target.octets(),
        target_mac: from.0,
        target_ipv4: sender.octets(),
    };
    Verdict::Answer(frame_of(from, &answer))
}

/// Who uses or would like to use which address, as `frame` tells: its sender the one it has, or the one it probes for (RFC
/// 5227 §2.1.1).
pub fn user(frame: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let (_, packet) = parse(frame)?;
    let (sender, target) = (packet.sender_ipv4_addr(), packet.target_ipv4_addr());
    let probes = sender.is_unspecified() && packet.operation == ArpOperation::REQUEST;
    Some((Mac(packet.sender_mac), if probes { target } else { sender }))
}

/// Asks whether anybody has `lb_ip`, before it is used (RFC 5227 §1.1, "ARP Probe").
pub fn probe(mac: Mac, lb_ip: Ipv4Addr) -> Vec<u8> {
    let (sender_mac, target_mac) = (mac.0, [0; 6]);
    let (sender_ipv4, target_ipv4) = ([0; 4], lb_ip.octets());
    let operation = ArpOperation::REQUEST;
    frame_of(Mac::BROADCAST, &ArpEthIpv4Packet { operation, sender_mac, sender_ipv4, target_mac, target_ipv4 })
}

/// The request form of a gratuitous ARP: sender and target address are the same (RFC 5227 §1.1, "ARP Announcement").
/// Old Linux kernels know only this form.
pub fn gratuitous_request(mac: Mac, lb_ip: Ipv4Addr) -> Vec<u8> {
    gratuitous(ArpOperation::REQUEST, mac, Mac([0; 6]), lb_ip)
}

/// The reply form of a gratuitous ARP. Linux takes a reply for gratuitous, and then heeds it at once instead of ignoring
/// it for a second after the last change, only if the target's hardware address is the sender's (`arp_is_garp`).
pub fn gratuitous_reply(mac: Mac, lb_ip: Ipv4Addr) -> Vec<u8> {
    gratuitous(ArpOperation::REPLY, mac, mac, lb_ip)
}

fn gratuitous(operation: ArpOperation, mac: Mac, target: Mac, lb_ip: Ipv4Addr) -> Vec<u8> {
    let address = lb_ip.octets();
    let (sender_mac, target_mac) = (mac.0, target.0);
    let packet = ArpEthIpv4Packet { operation, sender_mac, sender_ipv4: address, target_mac, target_ipv4: address };
    frame_of(Mac::BROADCAST, &packet)
}

fn frame_of(destination: Mac, packet: &ArpEthIpv4Packet) -> Vec<u8> {
    let ether_type = EtherType::ARP;
    let header = Ethernet2Header { source: packet.sender_mac, destination: destination.0, ether_type };
    [&header.to_bytes()[..], &packet.to_bytes()[..]].concat()
}

/// The destination of a frame and the packet in it, if it is ARP for IPv4 on Ethernet.
fn parse(frame: &[u8]) -> Option<(Mac, ArpEthIpv4Packet)> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).ok()?;
    if ethernet.ether_type() != EtherType::ARP {
        return None;
    }
    let packet = ArpPacketSlice::from_slice(&frame[ethernet.slice().len()..]).ok()?.to_packet();
    Some((Mac(ethernet.destination()), packet.try_eth_ipv4().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINE: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 7]);
    const LB_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
    const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    fn frame(to: Mac, operation: ArpOperation, from: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
        let packet = ArpEthIpv4Packet {
            operation,
            sender_mac: from.0.0,
            sender_ipv4: from.1.octets(),
            target_mac: [0; 6],
            target_ipv4: target.octets(),
        };
        frame_of(to, &packet)
    }

    fn judged(frame: &[u8]) -> Verdict {
        judge(frame, MINE, |address| address == LB_IP)
    }

    #[test]
    fn a_question_for_an_announced_address_is_answered_and_nothing_else_is() {
        use Ignored::*;
        let (request, reply) = (ArpOperation::REQUEST, ArpOperation::REPLY);
        let client = (CLIENT, CLIENT_IP);
        let elsewhere = Ipv4Addr::new(192, 0, 2, 201);
        let answer = |to: Ipv4Addr| {
            let packet = ArpEthIpv4Packet {
                operation: reply,
                sender_mac: MINE.0,
                sender_ipv4: LB_IP.octets(),
                target_mac: CLIENT.0,
                target_ipv4: to.octets(),
            };
            Verdict::Answer(frame_of(CLIENT, &packet))
        };
        let conflict = Verdict::Conflict { lb_ip: LB_IP.into(), mac: OTHER };
        for (what, frame, expected) in [
            ("by broadcast", frame(Mac::BROADCAST, request, client, LB_IP), answer(CLIENT_IP)),
            ("by unicast", frame(MINE, request, client, LB_IP), answer(CLIENT_IP)),
            ("a probe", frame(Mac::BROADCAST, request, (CLIENT, Ipv4Addr::UNSPECIFIED), LB_IP), answer([0; 4].into())),
            ("to another station", frame(OTHER, request, client, LB_IP), Verdict::Ignore(OtherStation)),
            ("another address", frame(Mac::BROADCAST, request, client, elsewhere), Verdict::Ignore(OtherAddress)),
            ("a reply", frame(MINE, reply, client, LB_IP), Verdict::Ignore(NoQuestion)),
            ("gratuitous", frame(Mac::BROADCAST, request, client, CLIENT_IP), Verdict::Ignore(NoQuestion)),
            ("an unknown operation", frame(MINE, ArpOperation(9), client, LB_IP), Verdict::Ignore(NoQuestion)),
            ("our own, looped", frame(Mac::BROADCAST, request, (MINE, LB_IP), LB_IP), Verdict::Ignore(Own)),
            ("from a group", frame(MINE, request, (Mac::BROADCAST, CLIENT_IP), LB_IP), Verdict::Ignore(Malformed)),
            ("from zero", frame(MINE, request, (Mac([0; 6]), CLIENT_IP), LB_IP), Verdict::Ignore(Malformed)),
            ("gratuitous from another", gratuitous_request(OTHER, LB_IP), conflict.clone()),
            ("a reply from another", frame(CLIENT, reply, (OTHER, LB_IP), CLIENT_IP), conflict),
        ] {
            assert_eq!(judged(&frame), expected, "{what}");
        }
    }

    #[test]
    fn what_is_not_arp_for_ipv4_on_ethernet_is_malformed() {
        let whole = frame(Mac::BROADCAST, ArpOperation::REQUEST, (CLIENT, CLIENT_IP), LB_IP);
        for (at, byte) in [(13, 0x00), (15, 6), (17, 1), (18, 8), (19, 16)] {
            let mut changed = whole.clone();
            changed[at] = byte;
            assert_eq!(judged(&changed), Verdict::Ignore(Ignored::Malformed), "byte {at}");
        }
        for end in 0..whole.len() {
            assert_eq!(judged(&whole[..end]), Verdict::Ignore(Ignored::Malformed), "{end} bytes");
        }
    }

    #[test]
    fn a_frame_tells_who_uses_an_address_or_would_like_to() {
        for (what, frame, expected) in [
            ("a probe", probe(OTHER, LB_IP), Some((OTHER, LB_IP))),
            (
                "a question",
                frame(Mac::BROADCAST, ArpOperation::REQUEST, (CLIENT, CLIENT_IP), LB_IP),
                Some((CLIENT, CLIENT_IP)),
            ),
            ("an answer", frame(MINE, ArpOperation::REPLY, (OTHER, LB_IP), CLIENT_IP), Some((OTHER, LB_IP))),
            ("an announcement", gratuitous_request(OTHER, LB_IP), Some((OTHER, LB_IP))),
            ("nothing", vec![], None),
        ] {
            assert_eq!(user(&frame), expected, "{what}");
        }
        // Whoever has it answers, to nobody in particular.
        let Verdict::Answer(answer) = judged(&probe(OTHER, LB_IP)) else { panic!("no answer") };
        assert_eq!(user(&answer), Some((MINE, LB_IP)));
    }

    #[test]
    fn both_gratuitous_forms_are_such_that_linux_heeds_them_at_once() {
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
        reply[32..38].copy_from_slice(&MINE.0);
        assert_eq!(gratuitous_reply(MINE, LB_IP), reply);
    }

    proptest! {
        #[test]
        fn judging_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = judge(&bytes, MINE, |_| true);
        }
    }
}
