//! Which link of the node an lb_ip is announced on.
//!
//! Links and the node's own addresses in, one link or none out. A link is used only if clients can be behind it: what
//! is no Ethernet, is down, or is a port of a bridge never gets here (see [`crate::links`]).

use std::fmt;
use std::net::IpAddr;

use ipnet::Ipv4Net;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it may be the address of one station: neither a group nor zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A link of this node that addresses may be announced on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name: `eth0`.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// The node's own IPv4 addresses on it with their prefixes, the primary one first. Never empty, and never only /32:
    /// such a link (a pod's veth, a dummy) has no neighbours that would ask.
    pub addresses: Vec<Ipv4Net>,
    /// Whether it is itself a bridge. Its ports may be pods, so nothing is sent there without need.
    pub is_bridge: bool,
}

impl Link {
    /// The longest prefix by which `lb_ip` is on this link.
    fn reaches(&self, lb_ip: IpAddr) -> Option<u8> {
        let IpAddr::V4(v4) = lb_ip else { return None };
        self.addresses.iter().filter(|own| own.contains(&v4)).map(Ipv4Net::prefix_len).max()
    }

    /// Whether one of the node's addresses on it is among `addresses`.
    pub fn holds(&self, addresses: &[IpAddr]) -> bool {
        self.addresses.iter().any(|own| addresses.contains(&IpAddr::V4(own.addr())))
    }
}

/// The link on which `lb_ip` is announced: the one whose subnet contains it (the longest prefix, then the lowest
/// index); failing that, the one that has an address of `node` (the node's InternalIPs), where a router that has a route
/// for the address asks.
///
/// IPv6 addresses have no place yet: they need NDP.
pub fn placement<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node: &[IpAddr],
) -> Option<&'a Link> {
    if lb_ip.is_ipv6() {
        return None;
    }
    let on_link = links.clone().filter_map(|link| Some((link.reaches(lb_ip)?, std::cmp::Reverse(link.index), link)));
    let best = on_link.max_by_key(|(prefix, index, _)| (*prefix, *index)).map(|(_, _, link)| link);
    best.or_else(|| links.filter(|link| link.holds(node)).min_by_key(|link| link.index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, addresses: &[&str]) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
            is_bridge: false,
        }
    }

    #[test]
    fn an_address_goes_to_the_link_of_its_subnet_and_else_to_the_link_of_the_node() {
        let links = [
            link(2, &["10.0.0.5/8"]),
            link(3, &["192.0.2.5/24", "198.51.100.5/24"]),
            link(4, &["10.1.0.5/16"]),
            link(5, &["192.0.2.6/24"]),
        ];
        let node: IpAddr = "10.0.0.5".parse().expect("address");
        for (lb_ip, nodes, expected) in [
            ("192.0.2.200", vec![node], Some(3)),
            ("198.51.100.9", vec![node], Some(3)),
            ("10.1.2.3", vec![node], Some(4)),
            ("10.2.2.3", vec![node], Some(2)),
            ("203.0.113.1", vec![node], Some(2)),
            ("203.0.113.1", vec![], None),
            ("2001:db8::1", vec![node], None),
        ] {
            let found = placement(lb_ip.parse().expect("address"), links.iter(), &nodes).map(|link| link.index);
            assert_eq!(found, expected, "{lb_ip} with {nodes:?}");
        }
    }
}
