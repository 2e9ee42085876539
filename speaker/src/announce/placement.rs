//! Which link of the node an lb_ip is announced on.
//!
//! Links and the node's own addresses in, one link or none out. A link is used only if clients can be behind it: what
//! is no Ethernet, is down, or is a port of a bridge never gets here (see [`crate::os::links`]).

use std::net::IpAddr;

use crds::MacAddr;
use ipnet::IpNet;

use model::eligibility::Links;

/// A link of this node that addresses may be announced on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name: `eth0`.
    pub name: String,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The node's own addresses on it with their prefixes, the primary one of each family first. Never empty, and never
    /// without neighbours (see [`has_neighbours`]).
    pub addresses: Vec<IpNet>,
    /// Whether it is itself a bridge. Its ports may be pods, so nothing is sent there without need.
    pub is_bridge: bool,
}

impl Link {
    /// The longest prefix by which `lb_ip` is on this link.
    fn reaches(&self, lb_ip: IpAddr) -> Option<u8> {
        self.addresses.iter().filter(|own| own.contains(&lb_ip)).map(IpNet::prefix_len).max()
    }

    /// Whether one of the node's addresses on it is among `addresses`.
    pub fn holds(&self, addresses: &[IpAddr]) -> bool {
        self.addresses.iter().any(|own| addresses.contains(&own.addr()))
    }

    /// Whether the node speaks the family of `lb_ip` on it.
    fn speaks(&self, lb_ip: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.addr().is_ipv4() == lb_ip.is_ipv4())
    }

    /// The address from which we speak to peers on it: an IPv4 one if there is any. On a link without IPv4 it is a
    /// link-local one, which stays what it is when prefixes change.
    pub fn source(&self) -> Option<IpAddr> {
        let all = || self.addresses.iter().map(IpNet::addr);
        all().find(IpAddr::is_ipv4).or_else(|| all().find(is_link_local)).or_else(|| all().next())
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether a link with these addresses has neighbours that would ask. One with nothing but host prefixes has none, such as a
/// pod's veth or a dummy; nor has one with a link-local address only, which the kernel gives to each.
pub fn has_neighbours(addresses: &[IpNet]) -> bool {
    addresses.iter().any(|own| own.prefix_len() < own.max_prefix_len() && !is_link_local(&own.addr()))
}

/// The link on which `lb_ip` is announced: the one whose subnet contains it (the longest prefix, then the lowest
/// index); failing that, the one that has an address of `node` (the node's InternalIPs), where a router that has a route
/// for the address asks. There the node has to speak the address's family.
pub fn placement<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node: &[IpAddr],
) -> Option<&'a Link> {
    let on_link = links.clone().filter_map(|link| Some((link.reaches(lb_ip)?, std::cmp::Reverse(link.index), link)));
    let best = on_link.max_by_key(|(prefix, index, _)| (*prefix, *index)).map(|(_, _, link)| link);
    best.or_else(|| links.filter(|link| link.holds(node) && link.speaks(lb_ip)).min_by_key(|link| link.index))
}

/// The links on which a node announces `lb_ip` that may do so on `allowed`: the one where the address belongs
/// ([`placement`]), and each that is named and on which the node speaks the address's family.
pub fn placements<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node: &[IpAddr],
    allowed: &Links,
) -> Vec<&'a Link> {
    let home = if allowed.home { placement(lb_ip, links.clone(), node).map(|link| link.index) } else { None };
    let named = |link: &Link| allowed.named.contains(&link.name) && link.speaks(lb_ip);
    links.filter(|link| home == Some(link.index) || named(link)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, addresses: &[&str]) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: MacAddr(2, 0, 0, 0, 0, 1),
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
            link(6, &["198.18.0.1/15", "2001:db8::6/64", "fe80::6/64"]),
        ];
        let node: IpAddr = "10.0.0.5".parse().expect("address");
        for (lb_ip, nodes, expected) in [
            ("192.0.2.200", vec![node], Some(3)),
            ("198.51.100.9", vec![node], Some(3)),
            ("10.1.2.3", vec![node], Some(4)),
            ("10.2.2.3", vec![node], Some(2)),
            ("203.0.113.1", vec![node], Some(2)),
            ("203.0.113.1", vec![], None),
            ("2001:db8::1", vec![node], Some(6)),
            ("2001:db8:1::1", vec![node], None),
            ("2001:db8:1::1", vec![node, "2001:db8::6".parse().expect("address")], Some(6)),
        ] {
            let found = placement(lb_ip.parse().expect("address"), links.iter(), &nodes).map(|link| link.index);
            assert_eq!(found, expected, "{lb_ip} with {nodes:?}");
        }
    }

    #[test]
    fn peers_are_spoken_to_over_ipv4_where_there_is_any_and_from_the_link_local_address_elsewhere() {
        for (addresses, expected) in [
            (&["2001:db8::1/64", "fe80::1/64", "192.0.2.1/24"][..], Some("192.0.2.1")),
            (&["2001:db8::1/64", "fe80::1/64"], Some("fe80::1")),
            (&["2001:db8::1/64"], Some("2001:db8::1")),
            (&[], None),
        ] {
            let source = link(2, addresses).source();
            assert_eq!(source, expected.map(|text| text.parse().expect("address")), "{addresses:?}");
        }
    }

    #[test]
    fn only_links_with_more_than_host_prefixes_and_link_local_addresses_have_neighbours() {
        for (addresses, expected) in [
            (&["192.0.2.1/24"][..], true),
            (&["2001:db8::1/64"], true),
            (&["10.0.0.1/32", "fe80::1/64"], false),
            (&["2001:db8::1/128", "fe80::1/64"], false),
            (&[], false),
        ] {
            assert_eq!(has_neighbours(&link(2, addresses).addresses), expected, "{addresses:?}");
        }
    }

    #[test]
    fn an_address_goes_to_each_link_that_is_named_and_home_only_if_that_is_wanted() {
        let links = [link(2, &["10.0.0.5/8"]), link(3, &["192.0.2.5/24"]), link(4, &["2001:db8::5/64"])];
        let node = ["10.0.0.5".parse().expect("address")];
        let named =
            |home: bool, names: &[&str]| Links { home, named: names.iter().map(|name| (*name).into()).collect() };
        for (lb_ip, allowed, expected) in [
            ("192.0.2.200", Links::default(), vec![3]),
            ("192.0.2.200", named(false, &["eth2"]), vec![2]),
            ("192.0.2.200", named(false, &["eth2", "eth3"]), vec![2, 3]),
            ("192.0.2.200", named(true, &["eth2"]), vec![2, 3]),
            ("192.0.2.200", named(true, &["eth3"]), vec![3]),
            ("192.0.2.200", named(false, &["eth9"]), vec![]),
            ("192.0.2.200", named(false, &["eth4"]), vec![]),
            ("2001:db8::200", named(false, &["eth3", "eth4"]), vec![4]),
        ] {
            let found = placements(lb_ip.parse().expect("address"), links.iter(), &node, &allowed);
            let found: Vec<u32> = found.iter().map(|link| link.index).collect();
            assert_eq!(found, expected, "{lb_ip} on {allowed:?}");
        }
    }
}
