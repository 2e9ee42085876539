//! Links, routes and rules of policy routing in the language of rtnetlink: questions, answers, and how to make or take
//! away one. Unlike netfilter's, all numbers are in the machine's own order.

use std::net::IpAddr;

use crds::service::Family;
use ipnet::IpNet;

use super::attribute::{Attribute, Attributes, Writer, attributes};
use super::message::{CREATE, Message};
use crate::snapshot::LinkName;

/// The routing table that everybody uses (RT_TABLE_MAIN).
pub const MAIN: u32 = 254;
/// A route to hosts, as opposed to one that refuses or drops (RTN_UNICAST).
pub const UNICAST: u8 = 1;
/// The destination is anywhere (RT_SCOPE_UNIVERSE).
pub const ANYWHERE: u8 = 0;
/// The destination is a neighbour (RT_SCOPE_LINK).
pub const NEIGHBOUR: u8 = 253;

// From linux/rtnetlink.h.
const GETLINK: u16 = 18;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const GETRULE: u16 = 34;
/// Instead of one that is there (NLM_F_REPLACE).
const REPLACE: u16 = 0x100;
/// Fails if it is there (NLM_F_EXCL).
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
/// The gateway is a neighbour whatever the addresses say (RTNH_F_ONLINK).
const ON_LINK: u8 = 4;
/// Of all tables (RT_TABLE_COMPAT): the number stands in an attribute.
const TABLE_IN_ATTRIBUTE: u8 = 252;
const FRA_PRIORITY: u16 = 6;
const FRA_MARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_MASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
/// For routes that are passed over, by the length of their prefix; none (-1) as a rule.
const FRA_PASS_OVER: u16 = 14;
/// All that a rule of ours has.
const FRA_PLAIN: [u16; 6] = [FRA_PRIORITY, FRA_MARK, FRA_TABLE, FRA_MASK, FRA_PROTOCOL, FRA_PASS_OVER];
/// Look into a table (FR_ACT_TO_TBL).
const TO_TABLE: u8 = 1;

/// The way to some hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table that it is in.
    pub table: u32,
    /// Who made it (RTPROT_*).
    pub protocol: u8,
    /// What it is (RTN_*).
    pub kind: u8,
    /// How far away the destination is (RT_SCOPE_*). Always 0 in IPv6.
    pub scope: u8,
    /// For which service it is (IPv4's old TOS); 0: for all.
    pub service: u8,
    /// Where it leads.
    pub destination: IpNet,
    /// Of two ways to the same hosts, the one with the lower metric is taken.
    pub metric: u32,
    /// What is known of the way (RTA_METRICS: its MTU), as it stands in messages.
    pub properties: Vec<u8>,
    /// The next hosts on the way, in the order of the kernel.
    pub hops: Vec<Hop>,
    /// Whether packets are put into others on the way, which nothing here can say.
    pub wraps: bool,
}

/// The next host on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The number of the link that it is on.
    pub link: u32,
    /// The router; `None`: the destination itself.
    pub gateway: Option<IpAddr>,
    /// Whether the router is on the link whatever addresses that has.
    pub on_link: bool,
}

/// A rule of policy routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The family of the packets that it is for.
    pub family: Family,
    /// Where it stands; the lowest is asked first.
    pub priority: u32,
    /// The table that it leads to.
    pub table: u32,
    /// Who made it (RTPROT_*).
    pub protocol: u8,
    /// The mark that a packet must have, and the bits that count.
    pub mark: u32,
    /// Those bits.
    pub mask: u32,
    /// Whether it asks nothing else of packets, and does nothing but to look into the table.
    pub plain: bool,
}

/// Asks for the link of this name.
pub fn get_link(name: &LinkName) -> Message {
    Message::with_header(GETLINK, 0, vec![0; LINK_HEADER], |w| {
        w.text(IFLA_IFNAME, name.as_str());
    })
}

/// The number of the link in an answer.
pub fn link(answer: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*answer.get(4..)?.first_chunk()?))
}

/// Asks for all routes of a table in a family; a dump. With a link, only for those that have a hop there. A table that
/// nobody has is an error: ENOENT.
pub fn get_routes(of: Family, table: u32, link: Option<u32>) -> Message {
    let mut header = vec![0; ROUTE_HEADER];
    header[0] = number(of);
    Message::with_header(GETROUTE, 0, header, |w| {
        put(w, RTA_TABLE, table);
        if let Some(link) = link {
            put(w, RTA_OIF, link);
        }
    })
}

/// The route in an answer; `None` if it is none that packets of IPv4 or IPv6 take.
pub fn route(answer: &[u8]) -> Option<Route> {
    let header: &[u8; ROUTE_HEADER] = answer.first_chunk()?;
    let [family, length, _, service, _, protocol, scope, kind, flags, ..] = *header;
    let family = family_of(family)?;
    let all = attributes(answer.get(ROUTE_HEADER..)?);
    let destination = match all.find(RTA_DST) {
        Some(found) => address(found.value)?,
        None => anywhere(family),
    };
    let hops = match all.find(RTA_MULTIPATH) {
        Some(found) => hops(found.value),
        None => hop(all, all.find(RTA_OIF).and_then(|link| native(&link)), flags).into_iter().collect(),
    };
    Some(Route {
        table: all.find(RTA_TABLE).and_then(|table| native(&table))?,
        protocol,
        kind,
        scope,
        service,
        destination: IpNet::new(destination, length).ok()?,
        metric: all.find(RTA_PRIORITY).and_then(|metric| native(&metric)).unwrap_or(0),
        properties: all.find(RTA_METRICS).map(|found| found.value.to_vec()).unwrap_or_default(),
        hops,
        wraps: all.find(RTA_ENCAP).is_some(),
    })
}

/// Makes a route with one hop, or changes the one to the same hosts with the same metric in the same table.
pub fn put_route(route: &Route) -> Message {
    change_route(NEWROUTE, CREATE | REPLACE, route)
}

/// Takes a route away.
pub fn delete_route(route: &Route) -> Message {
    change_route(DELROUTE, 0, route)
}

fn change_route(kind: u16, flags: u16, route: &Route) -> Message {
    let Route { table, protocol, scope, destination, metric, properties, hops, .. } = route;
    let hop = hops.first();
    let on_link = if hop.is_some_and(|hop| hop.on_link) { ON_LINK } else { 0 };
    let family = number(Family::from(destination.addr()));
    let header = vec![
        family,
        destination.prefix_len(),
        0,
        route.service,
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
        put(w, RTA_TABLE, *table);
        put(w, RTA_PRIORITY, *metric);
        if let Some(hop) = hop {
            put(w, RTA_OIF, hop.link);
            match hop.gateway {
                Some(gateway) if gateway.is_ipv4() == destination.addr().is_ipv4() => {
                    w.bytes(RTA_GATEWAY, &octets(gateway));
                }
                Some(gateway) => {
                    let family = u16::from(number(Family::from(gateway))).to_ne_bytes();
                    w.bytes(RTA_VIA, &[&family[..], &octets(gateway)].concat());
                }
                None => {}
            }
        }
        if !properties.is_empty() {
            w.bytes(RTA_METRICS, properties);
        }
    })
}

/// Asks for all rules of a family; a dump.
pub fn get_rules(of: Family) -> Message {
    let mut header = vec![0; ROUTE_HEADER];
    header[0] = number(of);
    Message::with_header(GETRULE, 0, header, |_| ())
}

/// The rule in an answer; `None` if it is not one for packets of IPv4 or IPv6.
pub fn rule(answer: &[u8]) -> Option<Rule> {
    let header: &[u8; ROUTE_HEADER] = answer.first_chunk()?;
    let [family, to, from, service, table, _, _, action, flags, ..] = *header;
    let all = attributes(answer.get(ROUTE_HEADER..)?);
    let value = |kind| all.find(kind).and_then(|found| native(&found));
    let mark = value(FRA_MARK).unwrap_or(0);
    let asks_nothing = [to, from, service, flags] == [0; 4];
    // What is not marked at all is told without a mark; a mask without one stands for "any mark".
    let others = all.into_iter().all(|one| FRA_PLAIN.contains(&one.kind));
    let passes_over = value(FRA_PASS_OVER).is_some_and(|length| length != u32::MAX);
    Some(Rule {
        family: family_of(family)?,
        priority: value(FRA_PRIORITY).unwrap_or(0),
        table: value(FRA_TABLE).unwrap_or(u32::from(table)),
        protocol: all.find(FRA_PROTOCOL).and_then(|found| found.u8()).unwrap_or(0),
        mark,
        mask: value(FRA_MASK).unwrap_or(0),
        plain: asks_nothing && others && !passes_over && action == TO_TABLE,
    })
}

/// Makes a rule.
pub fn add_rule(rule: &Rule) -> Message {
    change_rule(NEWRULE, CREATE | EXCLUSIVE, rule)
}

/// Takes a rule away.
pub fn delete_rule(rule: &Rule) -> Message {
    change_rule(DELRULE, 0, rule)
}

fn change_rule(kind: u16, flags: u16, rule: &Rule) -> Message {
    let mut header = vec![0; ROUTE_HEADER];
    (header[0], header[4], header[7]) = (number(rule.family), TABLE_IN_ATTRIBUTE, TO_TABLE);
    Message::with_header(kind, flags, header, |w| {
        put(w, FRA_PRIORITY, rule.priority);
        put(w, FRA_TABLE, rule.table);
        put(w, FRA_MARK, rule.mark);
        put(w, FRA_MASK, rule.mask);
        w.u8(FRA_PROTOCOL, rule.protocol);
    })
}

/// The hop that these attributes tell of.
fn hop(all: Attributes<'_>, link: Option<u32>, flags: u8) -> Option<Hop> {
    let via = |found: Attribute<'_>| address(found.value.get(2..)?);
    let gateway = all.find(RTA_GATEWAY).and_then(|found| address(found.value)).or(all.find(RTA_VIA).and_then(via));
    Some(Hop { link: link?, gateway, on_link: flags & ON_LINK != 0 })
}

/// All hops of a route that has several (struct rtnexthop, each with attributes).
fn hops(mut bytes: &[u8]) -> Vec<Hop> {
    let mut all = Vec::new();
    while let Some([low, high, flags, _, link @ ..]) = bytes.first_chunk::<8>() {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let Some(inside) = bytes.get(8..length) else { break };
        all.extend(hop(attributes(inside), Some(u32::from_ne_bytes(*link)), *flags));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn put(into: &mut Writer, kind: u16, value: u32) {
    into.bytes(kind, &value.to_ne_bytes());
}

fn native(attribute: &Attribute<'_>) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute.value.try_into().ok()?))
}

/// AF_INET and AF_INET6.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn family_of(number: u8) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| self::number(*family) == number)
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
            scope: ANYWHERE,
            service: 0,
            destination: destination.parse().expect("a network"),
            metric: 200,
            properties: vec![8, 0, 2, 0, 120, 5, 0, 0],
            hops: vec![Hop { link: 7, gateway: gateway.map(ip), on_link: true }],
            wraps: false,
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
    fn a_route_and_a_rule_are_told_in_these_bytes() {
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
        assert_eq!(super::rule(&bytes(&delete_rule(&rule))[16..]), Some(rule));
    }

    #[test]
    fn a_route_is_read_as_it_was_written() {
        for route in [
            sample("0.0.0.0/0", Some("198.51.100.9")),
            sample("10.0.0.0/8", None),
            sample("10.0.0.0/8", Some("fe80::1")),
            sample("::/0", Some("fe80::1")),
            sample("2001:db8::/32", None),
        ] {
            assert_eq!(super::route(&bytes(&put_route(&route))[16..]), Some(route.clone()));
            assert_eq!(super::route(&bytes(&delete_route(&route))[16..]), Some(route));
        }
    }

    #[test]
    fn all_hops_of_a_route_are_read() {
        let hop =
            |link: u32, gateway: [u8; 4]| [&[16, 0, 0, 0][..], &link.to_ne_bytes(), &[8, 0, 5, 0], &gateway].concat();
        let mut bytes = bytes(&put_route(&Route { hops: vec![], ..sample("0.0.0.0/0", None) }));
        let mut more = Writer::default();
        more.bytes(RTA_MULTIPATH, &[hop(3, [192, 0, 2, 1]), hop(7, [198, 51, 100, 9])].concat());
        bytes.extend(more.finish());
        let hop = |link, gateway| Hop { link, gateway: Some(ip(gateway)), on_link: false };
        let expected = vec![hop(3, "192.0.2.1"), hop(7, "198.51.100.9")];
        assert_eq!(route(&bytes[16..]).map(|route| route.hops), Some(expected));
    }

    proptest! {
        #[test]
        fn reading_any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (link(&bytes), route(&bytes), rule(&bytes));
        }
    }
}
