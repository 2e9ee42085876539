use super::*;
use crate::message::replies;
use proptest::prelude::*;

const UP: LinkFlags = LinkFlags::Up.union(LinkFlags::LowerUp);

fn link(index: u32, flags: LinkFlags, more: &[LinkAttribute]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.attributes =
        vec![LinkAttribute::IfName(format!("eth{index}")), LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8])];
    message.attributes.extend_from_slice(more);
    message
}

fn own(index: u32, address: &str) -> AddressMessage {
    let net: IpNet = address.parse().expect("address");
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = net.prefix_len();
    message.attributes = vec![AddressAttribute::Local(net.addr())];
    message
}

/// The names of the links that have neighbours according to their usable addresses.
fn names(table: &LinkTable) -> Vec<String> {
    let mut links = table.links();
    links.retain(|_, link| has_neighbours(&link.addresses));
    links.into_values().map(|link| link.name).collect()
}

#[test]
fn only_independent_links_with_neighbours_are_listed() {
    let port = |kind| vec![LinkAttribute::Controller(9), LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)])];
    let mut table = LinkTable::default();
    for (message, address) in [
        (link(1, UP | LinkFlags::Loopback, &[]), "127.0.0.1/8"),
        (link(2, UP, &[]), "192.0.2.1/24"),
        (link(3, LinkFlags::Up, &[]), "198.51.100.1/24"),
        (link(4, UP | LinkFlags::Noarp, &[]), "198.51.100.2/24"),
        (link(5, UP, &[]), "10.0.0.1/32"),
        (link(6, UP, &port(InfoPortKind::Bridge)), "198.51.100.3/24"),
        (link(7, UP, &port(InfoPortKind::Vrf)), "198.51.100.4/24"),
        (link(8, UP, &port(InfoPortKind::Other("openvswitch".into()))), "198.51.100.5/24"),
        (link(9, UP, &[LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])]), "203.0.113.1/24"),
    ] {
        table.apply(RouteNetlinkMessage::NewAddress(own(message.header.index, address)));
        table.apply(RouteNetlinkMessage::NewLink(message));
    }
    assert_eq!(names(&table), ["eth2", "eth7", "eth9"]);
    let expected = Link {
        index: 9,
        name: "eth9".into(),
        mac: MacAddr(2, 0, 0, 0, 0, 9),
        addresses: vec!["203.0.113.1/24".parse().expect("address")],
        unusable: vec![],
        is_bridge: true,
    };
    assert_eq!(table.links()[&9], expected);
}

#[test]
fn link_is_listed_while_it_has_carrier_and_address() {
    let mut table = LinkTable::default();
    table.apply(RouteNetlinkMessage::NewLink(link(2, UP, &[])));
    assert_eq!(names(&table), [""; 0]);
    table.apply(RouteNetlinkMessage::NewAddress(own(2, "192.0.2.1/24")));
    assert_eq!(names(&table), ["eth2"]);
    table.apply(RouteNetlinkMessage::NewLink(link(2, LinkFlags::Up, &[])));
    assert_eq!(names(&table), [""; 0]);
    table.apply(RouteNetlinkMessage::NewLink(link(2, UP, &[])));
    let mut port = link(2, UP, &[]);
    port.header.interface_family = AddressFamily::Bridge;
    table.apply(RouteNetlinkMessage::DelLink(port));
    assert_eq!(names(&table), ["eth2"]);
    table.apply(RouteNetlinkMessage::DelAddress(own(2, "192.0.2.1/24")));
    assert_eq!(names(&table), [""; 0]);
    table.apply(RouteNetlinkMessage::NewAddress(own(2, "192.0.2.1/24")));
    table.apply(RouteNetlinkMessage::DelLink(link(2, UP, &[])));
    assert_eq!(table, LinkTable::default());
}

#[test]
fn ipv6_address_counts_after_duplicate_detection() {
    let with = |flags| {
        let mut message = own(2, "2001:db8::1/64");
        message.attributes.push(AddressAttribute::Flags(flags));
        RouteNetlinkMessage::NewAddress(message)
    };
    let mut table = LinkTable::default();
    table.apply(RouteNetlinkMessage::NewLink(link(2, UP, &[])));
    table.apply(RouteNetlinkMessage::NewAddress(own(2, "fe80::1/64")));
    for (flags, expected) in [
        (AddressFlags::Tentative, &[][..]),
        (AddressFlags::Permanent, &["eth2"]),
        (AddressFlags::Dadfailed, &[]),
        (AddressFlags::Tentative | AddressFlags::Optimistic, &["eth2"]),
    ] {
        table.apply(with(flags));
        assert_eq!(names(&table), expected, "{flags:?}");
    }
}

#[test]
fn links_with_a_global_subnet_have_neighbours() {
    for (addresses, expected) in [
        (&["192.0.2.1/24"][..], true),
        (&["2001:db8::1/64"], true),
        (&["10.0.0.1/32", "fe80::1/64"], false),
        (&["2001:db8::1/128", "fe80::1/64"], false),
        (&[], false),
    ] {
        let nets: Vec<IpNet> = addresses.iter().map(|address| address.parse().expect("address")).collect();
        assert_eq!(has_neighbours(&nets), expected, "{addresses:?}");
    }
}

proptest! {
    /// Messages of links (16, 17), addresses (20, 21), routes (24) and rules (32), of any content.
    #[test]
    fn applying_any_message_never_panics(
        kind in proptest::sample::select(vec![16u16, 17, 20, 21, 24, 32]),
        mut content in proptest::collection::vec(any::<u8>(), 0..200),
        attributes in proptest::collection::vec((0u16..70, 0u16..40), 0..8),
    ) {
        // Attributes with correct lengths reach more code of the decoder than random bytes.
        for (kind, length) in attributes {
            content.extend((length + 4).to_ne_bytes());
            content.extend(kind.to_ne_bytes());
            content.extend((0..length.next_multiple_of(4)).map(|byte| byte as u8));
        }
        let length = u32::try_from(content.len() + 16).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(content);
        let mut table = LinkTable::default();
        for message in replies(&bytes).filter_map(|reply| reply.body.routing()) {
            table.apply(message);
        }
        let _ = table.links();
    }
}
