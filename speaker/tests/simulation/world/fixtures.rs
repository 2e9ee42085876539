//! Names, addresses, keys and frames for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crds::MacAddr;
use ipnet::IpNet;
use netlink::links::Link;
use speaker::Keys;
use speaker::wire::arp::Verdict;
use speaker::wire::frame::{Channel, Frame};
use speaker::wire::{arp, codec, datagram, ndp};

use super::LINK;

pub fn key(n: u8) -> Keys {
    Keys::new([&[n; 32][..]]).expect("a key")
}

/// The frame by which a host outside the cluster announces an address, and its channel.
pub fn frame_of_other_host(lb_ip: IpAddr) -> (Channel, Arc<[u8]>) {
    let host = MacAddr(2, 0, 0, 0, 1, 0);
    match lb_ip {
        IpAddr::V4(v4) => (Channel::Arp, speaker::wire::arp::gratuitous_request(host, v4).into()),
        IpAddr::V6(v6) => (Channel::Ndp, speaker::wire::ndp::unsolicited_advertisement(host, v6).into()),
    }
}

pub(super) fn is_routine(channel: Channel, frame: &[u8]) -> bool {
    let is_hello = matches!(channel, Channel::Hello | Channel::HelloV6);
    is_hello && datagram::unwrap(frame).is_ok_and(|(_, payload)| codec::is_routine(payload))
}

/// The address that a frame probes for.
pub(super) fn probed_address(frame: &Frame) -> Option<IpAddr> {
    let bytes = &frame.bytes;
    match frame.channel {
        Channel::Ndp if bytes[54] == speaker::wire::ndp::SOLICITATION => {
            Some(<[u8; 16]>::try_from(&bytes[62..78]).expect("16 bytes").into())
        }
        Channel::Arp if bytes[28..32] == [0; 4] => Some(<[u8; 4]>::try_from(&bytes[38..42]).expect("4 bytes").into()),
        _ => None,
    }
}

pub fn name(node: usize) -> String {
    format!("n{node}")
}

/// An address. Every third one is IPv6.
pub fn lb_ip(n: usize) -> IpAddr {
    match n % 3 {
        2 => Ipv6Addr::from_bits(0x2001_0db8_0000_0000_0000_0000_0000_0000 + n as u128).into(),
        _ => Ipv4Addr::from_bits(0x0a01_0000 + n as u32).into(),
    }
}

/// An address on the second LAN.
pub fn lb_ip_on_second(n: usize) -> IpAddr {
    match n % 3 {
        2 => Ipv6Addr::from_bits(0x2001_0db9_0000_0000_0000_0000_0000_0000 + n as u128).into(),
        _ => Ipv4Addr::from_bits(0xac11_0000 + n as u32).into(),
    }
}

/// The LAN that an address belongs to.
pub fn lan_of(lb_ip: IpAddr) -> usize {
    let is_second = match lb_ip {
        IpAddr::V4(v4) => v4.octets()[0] == 172,
        IpAddr::V6(v6) => v6.segments()[1] == 0xdb9,
    };
    usize::from(is_second)
}

/// The MAC address of a node on the first LAN.
pub fn mac(node: usize) -> MacAddr {
    mac_on(0, node)
}

pub(super) fn mac_on(lan: usize, node: usize) -> MacAddr {
    MacAddr(2, 0, 0, lan as u8, 0, node as u8 + 1)
}

/// The own addresses of a node on a LAN.
fn own_addresses(lan: usize, node: usize) -> [IpNet; 2] {
    let host = node + 1;
    let texts = match lan {
        0 => [format!("10.0.0.{host}/8"), format!("2001:db8::f:{host:x}/32")],
        _ => [format!("172.16.0.{host}/12"), format!("2001:db9::f:{host:x}/32")],
    };
    texts.map(|own| own.parse().expect("address"))
}

/// The addresses of a node in the API: those on the first LAN.
pub(super) fn node_addresses(node: usize) -> Vec<IpAddr> {
    own_addresses(0, node).iter().map(IpNet::addr).collect()
}

/// The frame with which the kernel of a node answers a request or a solicitation for an own address.
pub(super) fn kernel_answer(lan: usize, node: usize, channel: Channel, frame: &[u8]) -> Option<Arc<[u8]>> {
    let (mac, own) = (mac_on(lan, node), own_addresses(lan, node).map(|own| own.addr()));
    let verdict = match channel {
        Channel::Arp => arp::decide(frame, mac, |target| own.contains(&target.into())),
        Channel::Ndp => ndp::decide(frame, mac, |target| own.contains(&target.into())),
        Channel::Hello | Channel::HelloV6 => return None,
    };
    match verdict {
        Verdict::Answer(bytes) => Some(bytes.into()),
        _ => None,
    }
}

pub(super) fn link_on(lan: usize, node: usize, name: &str) -> Link {
    let (index, mac) = (LINK + lan as u32, mac_on(lan, node));
    Link {
        index,
        name: name.into(),
        mac,
        addresses: own_addresses(lan, node).into(),
        unusable: vec![],
        is_bridge: false,
    }
}
