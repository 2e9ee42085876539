//! Routes and rules of policy routing: requests, and objects from answers. Pure.
//!
//! This file decodes only the parts that a copy of a route needs, or that distinguish Landfall's rules from others.

use std::net::IpAddr;

use crds::service::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::message::family_number;

/// The main routing table (RT_TABLE_MAIN).
pub const MAIN: u32 = 254;
/// A unicast route, not one that refuses or drops (RTN_UNICAST).
pub const UNICAST: u8 = 1;
/// RT_SCOPE_UNIVERSE: beyond a router.
pub const SCOPE_UNIVERSE: u8 = 0;
/// RT_SCOPE_LINK: on the link itself.
pub const SCOPE_LINK: u8 = 253;

const RTA_METRICS: u16 = 8;
/// In a header, this value means that the number of the table is in an attribute (RT_TABLE_COMPAT).
const TABLE_IN_ATTRIBUTE: u8 = 252;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub table: u32,
    /// The program that added it (RTPROT_*).
    pub protocol: u8,
    /// RTN_*.
    pub kind: u8,
    /// RT_SCOPE_*; always 0 in IPv6.
    pub scope: u8,
    /// The type of service; 0: any.
    pub tos: u8,
    pub destination: IpNet,
    /// Of two routes to the same destination, the one with the lower metric is used.
    pub metric: u32,
    /// RTA_METRICS, such as the MTU, as the bytes in a message.
    pub metrics: Vec<u8>,
    /// In the order of the kernel.
    pub hops: Vec<Hop>,
    /// Whether packets are encapsulated (RTA_ENCAP). The encapsulation itself is not decoded.
    pub encap: bool,
}

/// A next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The index of the link.
    pub link: u32,
    /// `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway counts as reachable on the link, even if no prefix of the link contains it.
    pub on_link: bool,
}

/// A rule of policy routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub family: Family,
    /// Rules with lower numbers come first.
    pub priority: u32,
    /// The table to look up in.
    pub table: u32,
    /// The program that added it (RTPROT_*).
    pub protocol: u8,
    /// The mark of matching packets.
    pub mark: u32,
    /// The bits of the mark that are compared.
    pub mask: u32,
    /// Whether the rule has no other condition, and only looks up in the table.
    pub plain: bool,
}

impl Route {
    /// Decodes a route. `None` for any other message, and for a family other than IPv4 and IPv6.
    pub fn decode(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let RouteHeader { address_family, destination_prefix_length, tos, table, protocol, scope, kind, flags, .. } =
            message.header;
        let mut route = Self {
            table: table.into(),
            protocol: protocol.into(),
            kind: kind.into(),
            scope: scope.into(),
            tos,
            destination: anywhere(family_of(address_family)?),
            metric: 0,
            metrics: Vec::new(),
            hops: Vec::new(),
            encap: false,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Encap(_) => route.encap = true,
                RouteAttribute::Destination(to) => {
                    route.destination = IpNet::new(address(to)?, destination_prefix_length).ok()?;
                }
                RouteAttribute::Metrics(all) => {
                    route.metrics = vec![0; all.as_slice().buffer_len()];
                    all.as_slice().emit(&mut route.metrics);
                }
                RouteAttribute::Oif(link) => {
                    route.hops.push(Hop::decode(*link, flags.contains(RouteFlags::Onlink), &message.attributes));
                }
                RouteAttribute::MultiPath(all) => route.hops.extend(all.iter().map(|hop| {
                    Hop::decode(hop.interface_index, hop.flags.contains(RouteNextHopFlags::Onlink), &hop.attributes)
                })),
                _ => {}
            }
        }
        Some(route)
    }

    /// The route with its first hop; other hops are left out.
    pub fn encode(&self) -> RouteMessage {
        let hop = self.hops.first();
        let gateway = hop.and_then(|hop| hop.gateway).map(|gateway| {
            match gateway.is_ipv4() == self.destination.addr().is_ipv4() {
                true => RouteAttribute::Gateway(gateway.into()),
                false => RouteAttribute::Via(gateway.into()),
            }
        });
        let attributes = [
            (self.destination.prefix_len() > 0).then(|| RouteAttribute::Destination(self.destination.network().into())),
            Some(RouteAttribute::Table(self.table)),
            Some(RouteAttribute::Priority(self.metric)),
            hop.map(|hop| RouteAttribute::Oif(hop.link)),
            gateway,
            // The same bytes as in the message from which the metrics were read.
            (!self.metrics.is_empty())
                .then(|| RouteAttribute::Other(DefaultNla::new(RTA_METRICS, self.metrics.clone()))),
        ];
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family_number(Family::from(self.destination.addr())).into(),
            destination_prefix_length: self.destination.prefix_len(),
            tos: self.tos,
            table: TABLE_IN_ATTRIBUTE,
            protocol: self.protocol.into(),
            scope: self.scope.into(),
            kind: self.kind.into(),
            flags: if hop.is_some_and(|hop| hop.on_link) { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        message.attributes = attributes.into_iter().flatten().collect();
        message
    }
}

impl Hop {
    fn decode(link: u32, on_link: bool, attributes: &[RouteAttribute]) -> Self {
        let gateway = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => address(gateway),
            RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
            _ => None,
        });
        Self { link, gateway, on_link }
    }
}

impl Rule {
    /// Decodes a rule. `None` for any other message, and for a family other than IPv4 and IPv6.
    pub fn decode(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRule(RuleMessage { header, attributes, .. }) = message else { return None };
        let mut rule = Self {
            family: family_of(header.family)?,
            priority: 0,
            table: header.table.into(),
            protocol: 0,
            mark: 0,
            mask: 0,
            plain: *header == RuleHeader { table: header.table, ..lookup_header(header.family) },
        };
        for attribute in attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mask = *mask,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                // This value (-1) suppresses no prefix length, so it is no condition.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                _ => rule.plain = false,
            }
        }
        Some(rule)
    }

    pub fn encode(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header = RuleHeader { table: TABLE_IN_ATTRIBUTE, ..lookup_header(family_number(self.family).into()) };
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Protocol(self.protocol.into()),
        ];
        message
    }
}

/// The header of a rule without conditions that looks up in a table.
fn lookup_header(family: AddressFamily) -> RuleHeader {
    RuleHeader { family, action: RuleAction::ToTable, ..RuleHeader::default() }
}

/// Queries all routes of a family; a dump. With a table, the kernel lists only its routes, and returns the error ENOENT
/// if the table does not exist. With a link, it lists only routes with a hop on that link.
pub fn get_routes(family: Family, table: Option<u32>, link: Option<u32>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_number(family).into();
    message.attributes.extend(table.map(RouteAttribute::Table));
    message.attributes.extend(link.map(RouteAttribute::Oif));
    RouteNetlinkMessage::GetRoute(message)
}

/// Queries all rules of a family; a dump.
pub fn get_rules(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = family_number(family).into();
    RouteNetlinkMessage::GetRule(message)
}

/// The gateways of a unicast route, one for each path; none for other routes.
pub fn gateways(message: &RouteNetlinkMessage) -> Vec<IpAddr> {
    let route = Route::decode(message).filter(|route| route.kind == UNICAST);
    route.into_iter().flat_map(|route| route.hops).filter_map(|hop| hop.gateway).collect()
}

fn family_of(number: AddressFamily) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| AddressFamily::from(family_number(*family)) == number)
}

/// All destinations.
pub fn anywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Writer;
    use crate::message::{Body, CREATE, EXCLUSIVE, Message, REPLACE};
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn sample(destination: &str, gateway: Option<&str>) -> Route {
        Route {
            table: 76_001,
            protocol: 76,
            kind: UNICAST,
            scope: SCOPE_UNIVERSE,
            tos: 0,
            destination: destination.parse().expect("a network"),
            metric: 200,
            metrics: vec![8, 0, 2, 0, 120, 5, 0, 0],
            hops: vec![Hop { link: 7, gateway: gateway.map(ip), on_link: true }],
            encap: false,
        }
    }

    fn bytes(message: &RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        Message::routing(message, flags).encode(5, &mut bytes);
        bytes
    }

    fn put(route: &Route) -> Vec<u8> {
        bytes(&RouteNetlinkMessage::NewRoute(route.encode()), CREATE | REPLACE)
    }

    /// The route in an answer with this content.
    fn decode_route(content: &[u8]) -> Option<Route> {
        Route::decode(&Body::Object { kind: 24, more: false, payload: content }.routing()?)
    }

    /// The rule in an answer with this content.
    fn decode_rule(content: &[u8]) -> Option<Rule> {
        Rule::decode(&Body::Object { kind: 32, more: false, payload: content }.routing()?)
    }

    /// `ip route replace default via 198.51.100.9 dev (7) table 76001 proto 76 metric 200 mtu 1400 onlink`, and
    /// `ip rule add fwmark 0x10/0x70 lookup 76001 priority 760 protocol 76`.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_route_and_a_rule_have_these_bytes() {
        let rule = Rule {
            family: Family::V4,
            priority: 760,
            table: 76_001,
            protocol: 76,
            mark: 0x10,
            mask: 0x70,
            plain: true,
        };
        let route = [
            &[72, 0, 0, 0, 24, 0, 1, 5, 5, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 252, 76, 0, 1, 4, 0, 0, 0],
            &[8, 0, 15, 0, 0xe1, 0x28, 1, 0],
            &[8, 0, 6, 0, 200, 0, 0, 0],
            &[8, 0, 4, 0, 7, 0, 0, 0],
            &[8, 0, 5, 0, 198, 51, 100, 9],
            &[12, 0, 8, 0, 8, 0, 2, 0, 120, 5, 0, 0],
        ];
        let lookup = [
            &[68, 0, 0, 0, 32, 0, 1, 6, 5, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 252, 0, 0, 1, 0, 0, 0, 0],
            &[8, 0, 6, 0, 0xf8, 2, 0, 0],
            &[8, 0, 15, 0, 0xe1, 0x28, 1, 0],
            &[8, 0, 10, 0, 0x10, 0, 0, 0],
            &[8, 0, 16, 0, 0x70, 0, 0, 0],
            &[5, 0, 21, 0, 76, 0, 0, 0],
        ];
        for (encoded, expected) in [
            (put(&sample("0.0.0.0/0", Some("198.51.100.9"))), &route[..]),
            (bytes(&RouteNetlinkMessage::NewRule(rule.encode()), CREATE | EXCLUSIVE), &lookup),
        ] {
            assert_eq!(encoded, expected.concat());
        }
        assert_eq!(decode_rule(&bytes(&RouteNetlinkMessage::DelRule(rule.encode()), 0)[16..]), Some(rule));
    }

    #[test]
    fn a_route_is_decoded_as_it_was_encoded() {
        for route in [
            sample("0.0.0.0/0", Some("198.51.100.9")),
            sample("10.0.0.0/8", None),
            sample("10.0.0.0/8", Some("fe80::1")),
            sample("::/0", Some("fe80::1")),
            sample("2001:db8::/32", None),
        ] {
            let deletion = bytes(&RouteNetlinkMessage::DelRoute(route.encode()), 0);
            assert_eq!(decode_route(&put(&route)[16..]), Some(route.clone()));
            assert_eq!(decode_route(&deletion[16..]), Some(route));
        }
    }

    #[test]
    fn all_hops_of_a_route_are_decoded() {
        let hop =
            |link: u32, gateway: [u8; 4]| [&[16, 0, 0, 0][..], &link.to_ne_bytes(), &[8, 0, 5, 0], &gateway].concat();
        let mut bytes = put(&Route { hops: vec![], ..sample("0.0.0.0/0", None) });
        let mut more = Writer::default();
        // RTA_MULTIPATH.
        more.bytes(9, &[hop(3, [192, 0, 2, 1]), hop(7, [198, 51, 100, 9])].concat());
        bytes.extend(more.finish());
        let hop = |link, gateway| Hop { link, gateway: Some(ip(gateway)), on_link: false };
        let expected = vec![hop(3, "192.0.2.1"), hop(7, "198.51.100.9")];
        assert_eq!(decode_route(&bytes[16..]).map(|route| route.hops), Some(expected));
    }

    proptest! {
        #[test]
        fn decoding_any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (decode_route(&bytes), decode_rule(&bytes));
        }
    }
}
