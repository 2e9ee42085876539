//! The links of this node with their addresses, computed from messages of the kernel. Pure.
//!
//! Each message describes one link or one address completely, so no state is queried again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crds::{MacAddr, is_station};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// The links that can have clients, by index: Ethernet, up, not part of another link, and with neighbours.
pub type Links = BTreeMap<u32, Link>;

/// A link of this node that can have clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The interface name, such as `eth0`.
    pub name: String,
    pub mac: MacAddr,
    /// The node's own addresses on the link with their prefixes, the primary one of each family first.
    pub addresses: Vec<IpNet>,
    /// Further own addresses that the node must not use: those that have not passed duplicate address detection yet,
    /// and duplicates (RFC 4862 §5.4).
    pub unusable: Vec<IpNet>,
    /// Whether the link is a bridge. Its ports may be pods of this node.
    pub is_bridge: bool,
}

impl Link {
    /// The length of the longest own prefix that contains `ip`.
    pub fn prefix_containing(&self, ip: IpAddr) -> Option<u8> {
        self.addresses.iter().filter(|own| own.contains(&ip)).map(IpNet::prefix_len).max()
    }

    /// Whether one of `addresses` is an own address of the link.
    pub fn has_any_of(&self, addresses: &[IpAddr]) -> bool {
        self.addresses.iter().any(|own| addresses.contains(&own.addr()))
    }

    /// Whether the link has an own address of the same family.
    pub fn has_family_of(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.addr().is_ipv4() == ip.is_ipv4())
    }

    /// The address to send from. It is an IPv4 address if the link has one. Otherwise a link-local address comes first,
    /// because it stays the same when the prefix of the network changes.
    pub fn source_address(&self) -> Option<IpAddr> {
        let all = || self.addresses.iter().map(IpNet::addr);
        all().find(IpAddr::is_ipv4).or_else(|| all().find(is_link_local)).or_else(|| all().next())
    }
}

/// Whether the address is an IPv6 one that is valid on its link only.
pub fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether a link with these own addresses can have neighbours. A link with only host prefixes has no neighbours: it
/// is, for example, a pod's veth or a dummy. A link-local address does not count, because the kernel assigns one to
/// every link.
pub fn has_neighbours(addresses: &[IpNet]) -> bool {
    addresses.iter().any(|own| own.prefix_len() < own.max_prefix_len() && !is_link_local(&own.addr()))
}

/// The links of the node that may have clients, and the addresses of all its links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkTable {
    /// The links that [`decode_link`] returns, without their addresses. Some of them may have no neighbours.
    links: Links,
    /// The usable addresses of each link and its unusable ones, by index, both in the order of the kernel.
    addresses: BTreeMap<u32, (Vec<IpNet>, Vec<IpNet>)>,
}

impl LinkTable {
    /// Applies a message of a dump, or a message about a change. Applying it twice is harmless.
    pub fn apply(&mut self, message: RouteNetlinkMessage) {
        use RouteNetlinkMessage::{DelAddress, DelLink, NewAddress, NewLink};
        match &message {
            // Bridges report their ports in messages of their own family, which do not describe the link itself.
            NewLink(link) | DelLink(link) if link.header.interface_family != AddressFamily::Unspec => {}
            NewLink(link) => match decode_link(link) {
                Some(known) => drop(self.links.insert(known.index, known)),
                None => drop(self.links.remove(&link.header.index)),
            },
            DelLink(link) => {
                self.links.remove(&link.header.index);
                self.addresses.remove(&link.header.index);
            }
            NewAddress(address) | DelAddress(address) => {
                let Some((net, is_usable)) = decode_address(address) else { return };
                let (usable, unusable) = self.addresses.entry(address.header.index).or_default();
                let (all, other) = if is_usable { (usable, unusable) } else { (unusable, usable) };
                other.retain(|known| *known != net);
                match (matches!(message, NewAddress(_)), all.contains(&net)) {
                    (true, false) => all.push(net),
                    (false, true) => all.retain(|known| *known != net),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    pub fn links(&self) -> Links {
        let links = self.links.iter().filter_map(|(index, link)| {
            let (addresses, unusable) = self.addresses.get(index)?.clone();
            let has_neighbours = has_neighbours(&addresses) || has_neighbours(&unusable);
            has_neighbours.then(|| (*index, Link { addresses, unusable, ..link.clone() }))
        });
        links.collect()
    }
}

/// The link, if it is up, uses ARP, and is not part of another link. Frames on a port of a bridge or bond belong to the
/// bridge or bond. A port of a VRF is an ordinary link.
fn decode_link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let can_have_clients = flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
        && !flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp)
        && message.header.link_layer_type == LinkLayerType::Ether;
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
    let is_whole = in_vrf || !is_part;
    (can_have_clients && is_whole).then_some(())?;
    let (name, mac) = (name?, mac.filter(|mac| is_station(*mac))?);
    Some(Link { index: message.header.index, name, mac, addresses: Vec::new(), unusable: Vec::new(), is_bridge })
}

/// The node's own address (not the peer's, on a point-to-point link), and whether the node may use it.
fn decode_address(message: &AddressMessage) -> Option<(IpNet, bool)> {
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // An optimistic address may be used while it is tentative (RFC 4429 §3).
    let is_usable = !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
        || flags.contains(AddressFlags::Optimistic);
    Some((IpNet::new(local.or(address)?, message.header.prefix_len).ok()?, is_usable))
}

#[cfg(test)]
mod tests;
