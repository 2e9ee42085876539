//! The links that can announce an lb_ip, computed from the kernel's links and addresses.
//!
//! Input are netlink messages, output are [`Link`]s. Each message describes one link or one address completely, so no
//! state is queried again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::announce::placement::{Link, has_neighbours};
use crds::{MacAddr, is_station};

/// All links and addresses of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkTable {
    links: BTreeMap<u32, Option<LinkDevice>>,
    /// In the kernel's order, so the primary address is first.
    addresses: BTreeMap<u32, Vec<IpNet>>,
}

/// A link that can announce if it has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LinkDevice {
    name: String,
    mac: MacAddr,
    is_bridge: bool,
}

impl LinkTable {
    /// Applies a message, from a dump or a change.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) {
        match message {
            // Bridges report their ports in messages of their own family, which do not describe the link itself.
            RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.links.insert(link.header.index, device(link));
            }
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.links.remove(&link.header.index);
                self.addresses.remove(&link.header.index);
            }
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some(address) = address(message) {
                    let all = self.addresses.entry(message.header.index).or_default();
                    match is_usable(message) {
                        true if all.contains(&address) => {}
                        true => all.push(address),
                        false => all.retain(|other| *other != address),
                    }
                }
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let all = self.addresses.get_mut(&message.header.index);
                if let (Some(all), Some(address)) = (all, address(message)) {
                    all.retain(|other| *other != address);
                }
            }
            _ => {}
        }
    }

    /// The links that can announce an lb_ip, by index.
    pub fn links(&self) -> BTreeMap<u32, Link> {
        let links = self.links.iter().filter_map(|(index, device)| {
            let LinkDevice { name, mac, is_bridge } = device.clone()?;
            let addresses = self.addresses.get(index)?.clone();
            has_neighbours(&addresses).then_some((*index, Link { index: *index, name, mac, addresses, is_bridge }))
        });
        links.collect()
    }
}

/// The name of a link that can announce an lb_ip once it has an address.
pub fn announceable_name(message: &LinkMessage) -> Option<String> {
    device(message).map(|device| device.name)
}

/// The device, if it is up, uses ARP, and is not part of another device: frames on a port of a bridge or bond belong to
/// the bridge or bond. A port of a VRF is an ordinary link.
fn device(message: &LinkMessage) -> Option<LinkDevice> {
    let flags = message.header.flags;
    let usable = flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
        && !flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp)
        && message.header.link_layer_type == LinkLayerType::Ether;
    if !usable {
        return None;
    }
    let (mut name, mut mac, mut is_bridge, mut is_part, mut in_vrf) = (None, None, false, false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr::from),
            LinkAttribute::Controller(index) => is_part = *index != 0,
            LinkAttribute::LinkInfo(all) => {
                is_bridge = all.contains(&LinkInfo::Kind(InfoKind::Bridge));
                in_vrf = all.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    if is_part && !in_vrf {
        return None;
    }
    Some(LinkDevice { name: name?, mac: mac.filter(|mac| is_station(*mac))?, is_bridge })
}

/// The node's own address (not the peer's, on a point-to-point link) with its prefix.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let mut own: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => own = Some(*local),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            _ => {}
        }
    }
    IpNet::new(own?, message.header.prefix_len).ok()
}

/// Whether the node may use the address: only after duplicate address detection, and if it is no duplicate (RFC 4862
/// §5.4).
fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed;
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    // An optimistic address may be used while it is tentative (RFC 4429 §3).
    flags.is_none_or(|flags| !flags.intersects(unusable) || flags.contains(AddressFlags::Optimistic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::LinkMessage;

    const UP: LinkFlags = LinkFlags::Up.union(LinkFlags::LowerUp);

    fn link(index: u32, flags: LinkFlags, more: &[LinkAttribute]) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName(format!("eth{index}")),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8]),
        ];
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

    fn names(table: &LinkTable) -> Vec<String> {
        table.links().into_values().map(|link| link.name).collect()
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
            table.apply(&RouteNetlinkMessage::NewAddress(own(message.header.index, address)));
            table.apply(&RouteNetlinkMessage::NewLink(message));
        }
        assert_eq!(names(&table), ["eth2", "eth7", "eth9"]);
        let expected = Link {
            index: 9,
            name: "eth9".into(),
            mac: MacAddr(2, 0, 0, 0, 0, 9),
            addresses: vec!["203.0.113.1/24".parse().expect("address")],
            is_bridge: true,
        };
        assert_eq!(table.links()[&9], expected);
    }

    #[test]
    fn link_is_listed_while_it_has_carrier_and_address() {
        let mut table = LinkTable::default();
        table.apply(&RouteNetlinkMessage::NewLink(link(2, UP, &[])));
        assert_eq!(names(&table), [""; 0]);
        table.apply(&RouteNetlinkMessage::NewAddress(own(2, "192.0.2.1/24")));
        assert_eq!(names(&table), ["eth2"]);
        table.apply(&RouteNetlinkMessage::NewLink(link(2, LinkFlags::Up, &[])));
        assert_eq!(names(&table), [""; 0]);
        table.apply(&RouteNetlinkMessage::NewLink(link(2, UP, &[])));
        let mut port = link(2, UP, &[]);
        port.header.interface_family = AddressFamily::Bridge;
        table.apply(&RouteNetlinkMessage::DelLink(port));
        assert_eq!(names(&table), ["eth2"]);
        table.apply(&RouteNetlinkMessage::DelAddress(own(2, "192.0.2.1/24")));
        assert_eq!(names(&table), [""; 0]);
        table.apply(&RouteNetlinkMessage::NewAddress(own(2, "192.0.2.1/24")));
        table.apply(&RouteNetlinkMessage::DelLink(link(2, UP, &[])));
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
        table.apply(&RouteNetlinkMessage::NewLink(link(2, UP, &[])));
        table.apply(&RouteNetlinkMessage::NewAddress(own(2, "fe80::1/64")));
        for (flags, expected) in [
            (AddressFlags::Tentative, &[][..]),
            (AddressFlags::Permanent, &["eth2"]),
            (AddressFlags::Dadfailed, &[]),
            (AddressFlags::Tentative | AddressFlags::Optimistic, &["eth2"]),
        ] {
            table.apply(&with(flags));
            assert_eq!(names(&table), expected, "{flags:?}");
        }
    }
}
