//! Netlink messages of a dump → the spec of the NodeNetwork. Pure. The order of the messages does not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crds::node_network::{NodeLink, NodeNetworkSpec};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

/// The maximal number of links, and of gateways, in the definition of NodeNetwork.
const MAX_ITEMS: usize = 256;

/// The spec for a dump of links, addresses and routes.
///
/// The links are those that addresses can be announced on, with the node's own addresses on them. IPv6 link-local
/// addresses are left out, because no pool contains them. A link that has only /32 and /128 addresses has no
/// neighbours, and is left out. The gateways are those of all routing tables.
pub(super) fn from_dump(messages: &[RouteNetlinkMessage]) -> NodeNetworkSpec {
    let mut links = BTreeMap::<u32, (String, Option<String>)>::new();
    let mut addresses = BTreeMap::<u32, BTreeSet<(IpAddr, u8)>>::new();
    let mut all_gateways = BTreeSet::new();
    for message in messages {
        match message {
            // A message of the bridge family describes a port of a bridge, not another link.
            RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                links.extend(
                    speaker::os::link_table::announceable_name(link).map(|name| (link.header.index, (name, mac(link)))),
                );
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let own = own_address(message).filter(|own| !is_link_local(*own));
                addresses
                    .entry(message.header.index)
                    .or_default()
                    .extend(own.map(|own| (own, message.header.prefix_len)));
            }
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Unicast => {
                all_gateways.extend(gateways(route));
            }
            _ => {}
        }
    }
    let mut links: Vec<NodeLink> = links
        .into_iter()
        .filter_map(|(index, (name, mac))| {
            let addresses = addresses.remove(&index)?;
            let has_neighbours = addresses.iter().any(|(own, length)| *length < if own.is_ipv4() { 32 } else { 128 });
            let addresses = addresses.into_iter().map(|(own, length)| format!("{own}/{length}")).collect();
            has_neighbours.then_some(NodeLink { name, addresses, mac })
        })
        .collect();
    links.sort();
    links.truncate(MAX_ITEMS);
    NodeNetworkSpec { links, gateways: all_gateways.into_iter().take(MAX_ITEMS).map(|it| it.to_string()).collect() }
}

fn mac(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => {
            <[u8; 6]>::try_from(bytes.as_slice()).ok().map(|bytes| crds::MacAddr::from(bytes).to_string())
        }
        _ => None,
    })
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The node's own address, not that of the peer on a point-to-point link.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(address) => own = Some(*address),
            _ => {}
        }
    }
    own
}

/// The gateways of a route: one for each path.
fn gateways(route: &RouteMessage) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::MultiPath(hops) => {
                found.extend(hops.iter().flat_map(|hop| &hop.attributes).filter_map(gateway));
            }
            attribute => found.extend(gateway(attribute)),
        }
    }
    found
}

/// The gateway in an attribute. `Via` is that of a route whose destination has the other family (RFC 5549).
fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
            Some((*v6).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::{LinkFlags, LinkLayerType};
    use rtnetlink::packet_route::route::RouteNextHop;

    fn link(index: u32, name: &str, flags: LinkFlags) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1])];
        RouteNetlinkMessage::NewLink(message)
    }

    fn address(index: u32, text: &str) -> RouteNetlinkMessage {
        let (address, length) = text.split_once('/').expect("a prefix");
        let address: IpAddr = address.parse().expect("an address");
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = length.parse().expect("a length");
        // For IPv6 the kernel sends no `Local` attribute, except for an address with a peer address.
        message.attributes = match address {
            IpAddr::V4(_) => vec![AddressAttribute::Address(address), AddressAttribute::Local(address)],
            IpAddr::V6(_) => vec![AddressAttribute::Address(address)],
        };
        RouteNetlinkMessage::NewAddress(message)
    }

    fn route(attributes: Vec<RouteAttribute>) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        RouteNetlinkMessage::NewRoute(message)
    }

    fn via(text: &str) -> RouteAttribute {
        RouteAttribute::Gateway(text.parse::<IpAddr>().expect("an address").into())
    }

    #[test]
    fn the_spec_does_not_depend_on_the_order_of_messages() {
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        let hop = |text: &str| {
            let mut hop = RouteNextHop::default();
            hop.attributes = vec![via(text)];
            hop
        };
        let mut messages = vec![
            link(1, "lo", up | LinkFlags::Loopback),
            address(1, "127.0.0.1/8"),
            link(3, "eth1", up),
            address(3, "198.51.100.7/25"),
            link(2, "eth0", up),
            address(2, "192.0.2.11/24"),
            address(2, "192.0.2.100/32"),
            address(2, "2001:db8::11/64"),
            address(2, "fe80::1/64"),
            link(4, "only-link-local", up),
            address(4, "fe80::2/64"),
            link(5, "only-itself", up),
            address(5, "192.0.2.50/32"),
            link(6, "down", LinkFlags::empty()),
            address(6, "203.0.113.1/24"),
            address(9, "203.0.113.9/24"),
            route(vec![via("192.0.2.1")]),
            route(vec![via("fe80::ff")]),
            route(vec![RouteAttribute::MultiPath(vec![hop("192.0.2.2"), hop("192.0.2.1")])]),
            route(vec![RouteAttribute::Via(RouteVia::Inet6("2001:db8::1".parse().expect("an address")))]),
            route(vec![]),
        ];
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let expected = NodeNetworkSpec {
            links: vec![
                NodeLink {
                    name: "eth0".into(),
                    addresses: strings(&["192.0.2.11/24", "192.0.2.100/32", "2001:db8::11/64"]),
                    mac: Some("02:00:00:00:00:01".into()),
                },
                NodeLink {
                    name: "eth1".into(),
                    addresses: strings(&["198.51.100.7/25"]),
                    mac: Some("02:00:00:00:00:01".into()),
                },
            ],
            gateways: strings(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::ff"]),
        };
        assert_eq!(from_dump(&messages), expected);
        messages.reverse();
        assert_eq!(from_dump(&messages), expected);
    }

    #[test]
    fn gateways_are_cut_to_the_limit_of_the_definition() {
        let routes: Vec<_> =
            (0..300).map(|n| route(vec![via(&format!("192.0.{}.{}", n / 200, n % 200 + 1))])).collect();
        let gateways = from_dump(&routes).gateways;
        assert_eq!((gateways.len(), gateways.first().map(String::as_str)), (MAX_ITEMS, Some("192.0.0.1")));
    }
}
