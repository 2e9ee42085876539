//! The links and gateways of this node → the spec of the NodeNetwork. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crds::node_network::{MAX_ADDRESSES, NodeLink, NodeNetworkSpec};
use ipnet::IpNet;
use netlink::links::{Link, Links, is_link_local};

/// The maximal number of links, and also of gateways, in the definition of NodeNetwork.
const MAX_ITEMS: usize = 256;

/// The spec of this node. The links have all their addresses except IPv6 link-local ones, which no pool contains. MAC
/// addresses are included only if other nodes may re-send frames to this node.
pub(super) fn for_network(links: &Links, gateways: &BTreeSet<IpAddr>, accepts_frames: bool) -> NodeNetworkSpec {
    let node_link = |link: &Link| NodeLink {
        name: link.name.clone(),
        addresses: addresses(link).iter().map(ToString::to_string).collect(),
        mac: accepts_frames.then(|| link.mac.to_string()),
    };
    let mut links: Vec<NodeLink> = links.values().map(node_link).collect();
    links.sort();
    links.truncate(MAX_ITEMS);
    NodeNetworkSpec { links, gateways: gateways.iter().take(MAX_ITEMS).map(ToString::to_string).collect() }
}

/// The addresses of a link except IPv6 link-local ones, at most [`MAX_ADDRESSES`]. The selection begins with one
/// address of each network, because other nodes find their neighbours by the networks. A network of one address has no
/// neighbours, so its address is selected last.
fn addresses(link: &Link) -> BTreeSet<IpNet> {
    let nets: BTreeSet<IpNet> = link.addresses.iter().chain(&link.unusable).copied().collect();
    let mut networks = BTreeSet::new();
    let mut names_network = |net: &IpNet| net.prefix_len() < net.max_prefix_len() && networks.insert(net.trunc());
    let usable = nets.into_iter().filter(|net| !is_link_local(&net.addr()));
    let (first, others): (Vec<_>, Vec<_>) = usable.partition(|net| names_network(net));
    first.into_iter().chain(others).take(MAX_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::links::LinkTable;
    use netlink::packet_route::address::{AddressAttribute, AddressMessage};
    use netlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
    use netlink::packet_route::route::{RouteAttribute, RouteMessage, RouteNextHop, RouteType, RouteVia};
    use netlink::packet_route::{AddressFamily, RouteNetlinkMessage};
    use netlink::route;

    /// The spec for these messages of the kernel.
    fn from_dump(messages: &[RouteNetlinkMessage]) -> NodeNetworkSpec {
        let mut table = LinkTable::default();
        messages.iter().for_each(|message| table.apply(message.clone()));
        let gateways = messages.iter().flat_map(route::gateways).collect();
        for_network(&table.links(), &gateways, true)
    }

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

    fn route(mut attributes: Vec<RouteAttribute>) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        attributes.push(RouteAttribute::Oif(2));
        message.attributes = attributes;
        RouteNetlinkMessage::NewRoute(message)
    }

    fn via(text: &str) -> RouteAttribute {
        RouteAttribute::Gateway(text.parse::<IpAddr>().expect("an address").into())
    }

    #[test]
    fn messages_in_any_order_give_the_same_spec() {
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

    #[test]
    fn many_addresses_of_a_link_hide_no_network() {
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        let single = |n: usize| address(2, &format!("10.0.0.{n}/32"));
        let mut messages = vec![link(2, "eth0", up), address(2, "192.0.2.11/24"), address(2, "192.0.2.12/24")];
        messages.extend((1..=100).map(single));
        messages.extend([address(2, "2001:db8::11/64"), address(2, "2001:db8::12/64")]);
        let singles = (1..=MAX_ADDRESSES - 2).map(|n| format!("10.0.0.{n}/32"));
        let all: Vec<_> = singles.chain(["192.0.2.11/24".into(), "2001:db8::11/64".into()]).collect();
        assert_eq!(from_dump(&messages).links[0].addresses, all);
    }
}
