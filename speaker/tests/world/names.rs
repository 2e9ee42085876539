//! The names, addresses and keys of the nodes, and the frames of others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crds::MacAddr;
use speaker::Keys;
use speaker::announce::placement::Link;
use speaker::wire::frame::{Channel, Frame};
use speaker::wire::{datagram, hello};

use super::LINK;

/// A set of one key.
pub fn key(n: u8) -> Keys {
    Keys::new([&[n; 32][..]]).expect("a key")
}

/// The frame with which a host that is no node announces an address, and the channel it comes in on.
pub fn intrusion(lb_ip: IpAddr) -> (Channel, Arc<[u8]>) {
    let stranger = MacAddr(2, 0, 0, 0, 1, 0);
    match lb_ip {
        IpAddr::V4(v4) => (Channel::Arp, speaker::wire::arp::gratuitous_request(stranger, v4).into()),
        IpAddr::V6(v6) => (Channel::Ndp, speaker::wire::ndp::unsolicited_advertisement(stranger, v6).into()),
    }
}

/// Whether a frame is a Hello that can wait.
pub(super) fn is_routine(channel: Channel, frame: &[u8]) -> bool {
    let is_hello = matches!(channel, Channel::Hello | Channel::HelloV6);
    is_hello && datagram::unwrap(frame).is_ok_and(|(_, payload)| hello::is_routine(payload))
}

/// The address that a frame asks for without having one.
pub(super) fn asked(frame: &Frame) -> Option<IpAddr> {
    let bytes = &frame.bytes;
    match frame.channel {
        Channel::Ndp if bytes[54] == speaker::wire::ndp::SOLICITATION => {
            Some(<[u8; 16]>::try_from(&bytes[62..78]).expect("16 bytes").into())
        }
        Channel::Arp if bytes[28..32] == [0; 4] => Some(<[u8; 4]>::try_from(&bytes[38..42]).expect("4 bytes").into()),
        _ => None,
    }
}

/// The name of a node.
pub fn name(node: usize) -> String {
    format!("n{node}")
}

/// An address. Every third one is an IPv6 address.
pub fn lb_ip(n: usize) -> IpAddr {
    match n % 3 {
        2 => Ipv6Addr::from_bits(0x2001_0db8_0000_0000_0000_0000_0000_0000 + n as u128).into(),
        _ => Ipv4Addr::from_bits(0x0a01_0000 + n as u32).into(),
    }
}

/// The MAC address of a node.
pub fn mac(node: usize) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, node as u8 + 1)
}

/// The link of a node.
pub(super) fn links(node: usize, name: &str) -> BTreeMap<u32, Link> {
    let addresses = ["10.0.0.1/8", "2001:db8::1/32"].map(|own| own.parse().expect("address")).into();
    BTreeMap::from([(LINK, Link { index: LINK, name: name.into(), mac: mac(node), addresses, is_bridge: false })])
}
