//! rtnetlink messages about links, routes and rules of policy routing: queries, answers, additions and deletions. All
//! numbers are in host byte order, unlike those of netfilter. Pure.

use std::net::IpAddr;

use crds::service::Family;
use ipnet::IpNet;

use super::attribute::{Attribute, Attributes, Writer, attributes};
use super::message::{CREATE, Message};

/// The main routing table (RT_TABLE_MAIN).
pub const MAIN: u32 = 254;
/// A route to hosts, not one that refuses or drops (RTN_UNICAST).
pub const UNICAST: u8 = 1;
/// RT_SCOPE_UNIVERSE: beyond a router.
pub const SCOPE_UNIVERSE: u8 = 0;
/// RT_SCOPE_LINK: on the link itself.
pub const SCOPE_LINK: u8 = 253;

// From linux/rtnetlink.h.
const GETLINK: u16 = 18;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const GETRULE: u16 = 34;
/// Replaces an existing object (NLM_F_REPLACE).
const REPLACE: u16 = 0x100;
/// Fails if the object exists (NLM_F_EXCL).
const EXCLUSIVE: u16 = 0x200;
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const IFLA_IFNAME: u16 = 3;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
/// The gateway is on the link, whatever the addresses of the link (RTNH_F_ONLINK).
const ON_LINK: u8 = 4;
/// The number of the table is in an attribute (RT_TABLE_COMPAT).
const TABLE_IN_ATTRIBUTE: u8 = 252;
const FRA_PRIORITY: u16 = 6;
const FRA_MARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_MASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
/// Routes with a shorter prefix are ignored; usually -1.
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
/// The attributes of our rules.
const FRA_PLAIN: [u16; 6] = [FRA_PRIORITY, FRA_MARK, FRA_TABLE, FRA_MASK, FRA_PROTOCOL, FRA_SUPPRESS_PREFIXLEN];
/// Look up in a table (FR_ACT_TO_TBL).
const TO_TABLE: u8 = 1;

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
    /// RTA_METRICS, such as the MTU, as in messages.
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
    /// `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is on the link, whatever the addresses of the link.
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
    /// Whether it has no other condition, and only looks up in the table.
    pub plain: bool,
}

/// Queries the link of this name.
pub fn get_link(name: &str) -> Message {
    Message::with_header(GETLINK, 0, vec![0; LINK_HEADER], |w| {
        w.text(IFLA_IFNAME, name);
    })
}

/// The index of the link in an answer.
pub fn decode_link(answer: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*answer.get(4..)?.first_chunk()?))
}

/// Queries all routes of a table in a family; a dump. With a link, only those with a hop there. A table that does not
/// exist is an error: ENOENT.
pub fn get_routes(family: Family, table: u32, link: Option<u32>) -> Message {
    let mut header = vec![0; ROUTE_HEADER];
    header[0] = family_number(family);
    Message::with_header(GETROUTE, 0, header, |w| {
        put_number(w, RTA_TABLE, table);
        if let Some(link) = link {
            put_number(w, RTA_OIF, link);
        }
    })
}

/// The route in an answer; `None` if it is not for IPv4 or IPv6.
pub fn decode_route(answer: &[u8]) -> Option<Route> {
    let header: &[u8; ROUTE_HEADER] = answer.first_chunk()?;
    let [family, length, _, tos, _, protocol, scope, kind, flags, ..] = *header;
    let family = family_of(family)?;
    let all = attributes(answer.get(ROUTE_HEADER..)?);
    let destination = match all.find(RTA_DST) {
        Some(found) => address(found.value)?,
        None => anywhere(family),
    };
    let hops = match all.find(RTA_MULTIPATH) {
        Some(found) => decode_hops(found.value),
        None => decode_hop(all, all.find(RTA_OIF).and_then(|link| native(&link)), flags).into_iter().collect(),
    };
    Some(Route {
        table: all.find(RTA_TABLE).and_then(|table| native(&table))?,
        protocol,
        kind,
        scope,
        tos,
        destination: IpNet::new(destination, length).ok()?,
        metric: all.find(RTA_PRIORITY).and_then(|metric| native(&metric)).unwrap_or(0),
        metrics: all.find(RTA_METRICS).map(|found| found.value.to_vec()).unwrap_or_default(),
        hops,
        encap: all.find(RTA_ENCAP).is_some(),
    })
}

/// Adds a route with one hop, or replaces the one with the same destination and metric in the table.
pub fn put_route(route: &Route) -> Message {
    change_route(NEWROUTE, CREATE | REPLACE, route)
}

pub fn delete_route(route: &Route) -> Message {
    change_route(DELROUTE, 0, route)
}

fn change_route(kind: u16, flags: u16, route: &Route) -> Message {
    let Route { table, protocol, scope, destination, metric, metrics, hops, .. } = route;
    let hop = hops.first();
    let on_link = if hop.is_some_and(|hop| hop.on_link) { ON_LINK } else { 0 };
    let family = family_number(Family::from(destination.addr()));
    let header = vec![
        family,
        destination.prefix_len(),
        0,
        route.tos,
        TABLE_IN_ATTRIBUTE,
        *protocol,
        *scope,
        route.kind,
        on_link,
        0,
        0,
        0,
    ];
    Message::with_header(kind, flags, header, |w| {
        if destination.prefix_len() > 0 {
            w.bytes(RTA_DST, &octets(destination.network()));
        }
        put_number(w, RTA_TABLE, *table);
        put_number(w, RTA_PRIORITY, *metric);
        if let Some(hop) = hop {
            put_number(w, RTA_OIF, hop.link);
            match hop.gateway {
                Some(gateway) if gateway.is_ipv4() == destination.addr().is_ipv4() => {
                    w.bytes(RTA_GATEWAY, &octets(gateway));
                }
                Some(gateway) => {
                    let family = u16::from(family_number(Family::from(gateway))).to_ne_bytes();
                    w.bytes(RTA_VIA, &[&family[..], &octets(gateway)].concat());
                }
                None => {}
            }
        }
        if !metrics.is_empty() {
            w.bytes(RTA_METRICS, metrics);
        }
    })
}

/// Queries all rules of a family; a dump.
pub fn get_rules(family: Family) -> Message {
    let mut header = vec![0; ROUTE_HEADER];
    header[0] = family_number(family);
    Message::with_header(GETRULE, 0, header, |_| ())
}

/// The rule in an answer; `None` if it is not for IPv4 or IPv6.
pub fn decode_rule(answer: &[u8]) -> Option<Rule> {
    let header: &[u8; ROUTE_HEADER] = answer.first_chunk()?;
    let [family, to, from, tos, table, _, _, action, flags, ..] = *header;
    let all = attributes(answer.get(ROUTE_HEADER..)?);
    let value = |kind| all.find(kind).and_then(|found| native(&found));
    let mark = value(FRA_MARK).unwrap_or(0);
    let is_unconditional = [to, from, tos, flags] == [0; 4];
    // A rule for any mark has neither mark nor mask.
    let has_known_attributes = all.into_iter().all(|one| FRA_PLAIN.contains(&one.kind));
    let suppresses = value(FRA_SUPPRESS_PREFIXLEN).is_some_and(|length| length != u32::MAX);
    Some(Rule {
        family: family_of(family)?,
        priority: value(FRA_PRIORITY).unwrap_or(0),
        table: value(FRA_TABLE).unwrap_or(u32::from(table)),
        protocol: all.find(FRA_PROTOCOL).and_then(|found| found.u8()).unwrap_or(0),
        mark,
        mask: value(FRA_MASK).unwrap_or(0),
        plain: is_unconditional && has_known_attributes && !suppresses && action == TO_TABLE,
    })
}

pub fn add_rule(rule: &Rule) -> Message {
    change_rule(NEWRULE, CREATE | EXCLUSIVE, rule)
}

pub fn delete_rule(rule: &Rule) -> Message {
    change_rule(DELRULE, 0, rule)
}

fn change_rule(kind: u16, flags: u16, rule: &Rule) -> Message {
    let mut header = vec![0; ROUTE_HEADER];
    (header[0], header[4], header[7]) = (family_number(rule.family), TABLE_IN_ATTRIBUTE, TO_TABLE);
    Message::with_header(kind, flags, header, |w| {
        put_number(w, FRA_PRIORITY, rule.priority);
        put_number(w, FRA_TABLE, rule.table);
        put_number(w, FRA_MARK, rule.mark);
        put_number(w, FRA_MASK, rule.mask);
        w.u8(FRA_PROTOCOL, rule.protocol);
    })
}

/// The hop in these attributes.
fn decode_hop(all: Attributes<'_>, link: Option<u32>, flags: u8) -> Option<Hop> {
    let via = |found: Attribute<'_>| address(found.value.get(2..)?);
    let gateway = all.find(RTA_GATEWAY).and_then(|found| address(found.value)).or(all.find(RTA_VIA).and_then(via));
    Some(Hop { link: link?, gateway, on_link: flags & ON_LINK != 0 })
}

/// The hops of a route with several (struct rtnexthop, each with attributes).
fn decode_hops(mut bytes: &[u8]) -> Vec<Hop> {
    let mut all = Vec::new();
    while let Some([low, high, flags, _, link @ ..]) = bytes.first_chunk::<8>() {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let Some(inside) = bytes.get(8..length) else { break };
        all.extend(decode_hop(attributes(inside), Some(u32::from_ne_bytes(*link)), *flags));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn put_number(into: &mut Writer, kind: u16, value: u32) {
    into.bytes(kind, &value.to_ne_bytes());
}

fn native(attribute: &Attribute<'_>) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute.value.try_into().ok()?))
}

/// AF_INET and AF_INET6.
fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn family_of(number: u8) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| family_number(*family) == number)
}

fn anywhere(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        _ => None,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn bytes(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(5, &mut bytes);
        bytes
    }

    /// `ip route replace default via 198.51.100.9 dev (7) table 76001 proto 76 metric 200 mtu 1400 onlink`, and
    /// `ip rule add fwmark 0x10/0x70 lookup 76001 priority 760 protocol 76`.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_route_and_a_rule_have_these_bytes() {
        let route = bytes(&put_route(&sample("0.0.0.0/0", Some("198.51.100.9"))));
        let expected = [
            &[72, 0, 0, 0, 24, 0, 1, 5, 5, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 252, 76, 0, 1, 4, 0, 0, 0],
            &[8, 0, 15, 0, 0xe1, 0x28, 1, 0],
            &[8, 0, 6, 0, 200, 0, 0, 0],
            &[8, 0, 4, 0, 7, 0, 0, 0],
            &[8, 0, 5, 0, 198, 51, 100, 9],
            &[12, 0, 8, 0, 8, 0, 2, 0, 120, 5, 0, 0],
        ];
        assert_eq!(route, expected.concat());
        let rule = Rule {
            family: Family::V4,
            priority: 760,
            table: 76_001,
            protocol: 76,
            mark: 0x10,
            mask: 0x70,
            plain: true,
        };
        let expected = [
            &[68, 0, 0, 0, 32, 0, 1, 6, 5, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 252, 0, 0, 1, 0, 0, 0, 0],
            &[8, 0, 6, 0, 0xf8, 2, 0, 0],
            &[8, 0, 15, 0, 0xe1, 0x28, 1, 0],
            &[8, 0, 10, 0, 0x10, 0, 0, 0],
            &[8, 0, 16, 0, 0x70, 0, 0, 0],
            &[5, 0, 21, 0, 76, 0, 0, 0],
        ];
        assert_eq!(bytes(&add_rule(&rule)), expected.concat());
        assert_eq!(decode_rule(&bytes(&delete_rule(&rule))[16..]), Some(rule));
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
            assert_eq!(decode_route(&bytes(&put_route(&route))[16..]), Some(route.clone()));
            assert_eq!(decode_route(&bytes(&delete_route(&route))[16..]), Some(route));
        }
    }

    #[test]
    fn all_hops_of_a_route_are_decoded() {
        let hop =
            |link: u32, gateway: [u8; 4]| [&[16, 0, 0, 0][..], &link.to_ne_bytes(), &[8, 0, 5, 0], &gateway].concat();
        let mut bytes = bytes(&put_route(&Route { hops: vec![], ..sample("0.0.0.0/0", None) }));
        let mut more = Writer::default();
        more.bytes(RTA_MULTIPATH, &[hop(3, [192, 0, 2, 1]), hop(7, [198, 51, 100, 9])].concat());
        bytes.extend(more.finish());
        let hop = |link, gateway| Hop { link, gateway: Some(ip(gateway)), on_link: false };
        let expected = vec![hop(3, "192.0.2.1"), hop(7, "198.51.100.9")];
        assert_eq!(decode_route(&bytes[16..]).map(|route| route.hops), Some(expected));
    }

    proptest! {
        #[test]
        fn decoding_any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (decode_link(&bytes), decode_route(&bytes), decode_rule(&bytes));
        }
    }
}
