//! The links of this node on which an lb_ip is announced.
//!
//! Input are the links and the node's own addresses. Only links that can have clients get here: links that are down,
//! not Ethernet, or ports of a bridge are filtered out before (see [`netlink::links`]).

use std::net::IpAddr;

use model::eligibility::Links;
use netlink::links::Link;

/// The link that `lb_ip` belongs to: the one whose subnet contains it (longest prefix, then lowest index). If there is
/// none, it is the link with one of `node_addresses` (the node's InternalIPs) and the family of `lb_ip`, because a
/// router with a route for the address resolves it there.
pub fn home_link<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node_addresses: &[IpAddr],
) -> Option<&'a Link> {
    let on_link =
        links.clone().filter_map(|link| Some((link.prefix_containing(lb_ip)?, std::cmp::Reverse(link.index), link)));
    let best = on_link.max_by_key(|(prefix, index, _)| (*prefix, *index)).map(|(_, _, link)| link);
    best.or_else(|| {
        links.filter(|link| link.has_any_of(node_addresses) && link.has_family_of(lb_ip)).min_by_key(|link| link.index)
    })
}

/// The links on which a node announces `lb_ip` if `allowed` permits: the one it belongs to ([`home_link`]), and each
/// named one that has an address of the family.
pub fn links_for<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node_addresses: &[IpAddr],
    allowed: &Links,
) -> Vec<&'a Link> {
    let home = if allowed.home { home_link(lb_ip, links.clone(), node_addresses).map(|link| link.index) } else { None };
    let named = |link: &Link| allowed.named.contains(&link.name) && link.has_family_of(lb_ip);
    links.filter(|link| home == Some(link.index) || named(link)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::MacAddr;

    fn link(index: u32, addresses: &[&str]) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: MacAddr(2, 0, 0, 0, 0, 1),
            addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
            unusable: vec![],
            is_bridge: false,
        }
    }

    #[test]
    fn home_link_is_its_subnets_or_else_the_nodes() {
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
            let found = home_link(lb_ip.parse().expect("address"), links.iter(), &nodes).map(|link| link.index);
            assert_eq!(found, expected, "{lb_ip} with {nodes:?}");
        }
    }

    #[test]
    fn hellos_prefer_ipv4_then_the_link_local_address() {
        for (addresses, expected) in [
            (&["2001:db8::1/64", "fe80::1/64", "192.0.2.1/24"][..], Some("192.0.2.1")),
            (&["2001:db8::1/64", "fe80::1/64"], Some("fe80::1")),
            (&["2001:db8::1/64"], Some("2001:db8::1")),
            (&[], None),
        ] {
            let source = link(2, addresses).source_address();
            assert_eq!(source, expected.map(|text| text.parse().expect("address")), "{addresses:?}");
        }
    }

    #[test]
    fn address_goes_to_named_links_and_home_if_allowed() {
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
            let found = links_for(lb_ip.parse().expect("address"), links.iter(), &node, &allowed);
            let found: Vec<u32> = found.iter().map(|link| link.index).collect();
            assert_eq!(found, expected, "{lb_ip} on {allowed:?}");
        }
    }
}
