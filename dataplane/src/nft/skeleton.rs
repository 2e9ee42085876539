//! What never changes in a table: its sets and maps, its chains and their rules.
//!
//! This is data; [`super::request`] tells the kernel, and [`super::dump`] compares it with what the kernel has. A table
//! whose skeleton is not exactly this one was made by another version or changed by somebody, and is replaced whole.

use std::fmt;
use std::net::IpAddr;

use crds::service::Family;

use super::element::{chain, refusing, remembering};
use super::expression::{Expression, Header, Register, Relation, Verdict};
use crate::ruleset::{Pick, Way};

/// The name of the tables. Nobody else's is ever touched.
pub const NAME: &str = "landfall";
/// What a person who finds a table should know. It is part of the skeleton: another wording is another version.
pub const COMMENT: &str = "Landfall forwards LoadBalancer addresses here; made by landfall node; version 2";

/// A table of ours. There is one for each family, since IPv4 should not pay for rules of IPv6; one transaction changes
/// all of them. Each is there only if it has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `ip landfall`.
    V4,
    /// `ip6 landfall`.
    V6,
}

impl Table {
    /// All of them, in the order in which they are changed.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The one that an lb_ip is in.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The one for this family.
    pub fn of_family(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// The family of the addresses in it.
    pub fn family(self) -> Family {
        match self {
            Self::V4 => Family::V4,
            Self::V6 => Family::V6,
        }
    }

    /// How messages name its family (NFPROTO_*).
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        };
        write!(f, "{family} {NAME}")
    }
}

/// Before kube-proxy's nat, which is at -100 (dstnat).
const BEFORE_DSTNAT: i32 = -110;
/// Before kube-proxy's masquerade, which is at 100 (srcnat).
const BEFORE_SRCNAT: i32 = 90;
/// After everybody's destination nat, which the kernel does at -100 whatever priority a nat chain has.
const AFTER_DSTNAT: i32 = -90;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// What the values of a map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// There are none: a set.
    None,
    /// Verdicts.
    Verdict,
    /// Addresses of this family with ports.
    Endpoint(Family),
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// The types of the parts of its key.
    pub key: Vec<Type>,
    /// What its values are.
    pub data: Data,
    /// Whether its keys are ranges.
    pub ranges: bool,
    /// Whether rules put something in that goes by itself after a while, and then how many there may be at once. Not
    /// our business what.
    pub learned: Option<u32>,
    /// What a person should know about it.
    pub comment: &'static str,
}

impl Set {
    /// The type of its key as one number, as `nft` writes it.
    pub fn key_type(&self) -> u32 {
        concatenated(&self.key)
    }

    /// How many bytes its key has.
    pub fn key_length(&self) -> u32 {
        length(&self.key)
    }

    /// The type and the length of its values.
    pub fn data(&self) -> Option<(u32, u32)> {
        match self.data {
            Data::None => None,
            Data::Verdict => Some((VERDICT, 0)),
            Data::Endpoint(family) => {
                let parts = endpoint(family);
                Some((concatenated(&parts), length(&parts)))
            }
        }
    }

    /// Its flags (enum nft_set_flags).
    pub fn flags(&self) -> u32 {
        let ranges = match (self.ranges, self.parts().is_some()) {
            (true, true) => SET_INTERVAL | SET_CONCATENATION,
            (true, false) => SET_INTERVAL,
            (false, _) => 0,
        };
        let learned = if self.learned.is_some() { SET_TIMEOUT | SET_DYNAMIC } else { 0 };
        if self.data == Data::None { ranges | learned } else { ranges | learned | SET_MAP }
    }

    /// How many bytes each part of its key has, if the kernel must know: for ranges in several parts.
    pub fn parts(&self) -> Option<Vec<u32>> {
        (self.ranges && self.key.len() > 1).then(|| self.key.iter().map(|kind| kind.bytes()).collect())
    }
}

/// The type of a verdict (NFT_DATA_VERDICT).
pub const VERDICT: u32 = 0xffff_ff00;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;
const SET_CONCATENATION: u32 = 0x80;
/// How many clients with their ports can be remembered in each family, of all Services: beyond that, new ones go
/// anywhere until others have been away for long enough. Each takes some 120 bytes of the kernel, which nobody should
/// be able to fill with made-up addresses.
const MOST_REMEMBERED: u32 = 1 << 18;

/// Types one after the other, six bits each.
fn concatenated(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, kind| all << 6 | *kind as u32)
}

/// How many bytes these take one after the other: each begins a quarter of a register.
fn length(types: &[Type]) -> u32 {
    types.iter().map(|kind| 4 * u32::from(kind.quarters())).sum()
}

/// The parts of an endpoint.
pub fn endpoint(family: Family) -> [Type; 2] {
    [Type::address(family), Type::Port]
}

/// The type of a part of a key: its number in `nft`, by which `nft` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Type {
    /// A number: what `numgen` yields. It has no name in `nft`.
    Integer = 4,
    /// An IPv4 address.
    V4 = 7,
    /// An IPv6 address.
    V6 = 8,
    /// A transport protocol.
    Protocol = 12,
    /// A port.
    Port = 13,
}

impl Type {
    /// An address of this family.
    pub fn address(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// How many bytes it has.
    fn bytes(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Integer | Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// How many quarters of registers it takes.
    fn quarters(self) -> u8 {
        if self == Self::V6 { 4 } else { 1 }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where the kernel calls it, if it does.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Vec<Expression>>,
}

/// Where the kernel calls a chain. The policy is always to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The type of the chain: `nat` or `filter`.
    pub kind: &'static str,
    /// The hook (NF_INET_*).
    pub number: u32,
    /// The priority.
    pub priority: i32,
}

/// All sets and maps of a table, in the order in which they are made.
pub fn sets(table: Table) -> Vec<Set> {
    use Type::{Integer, Port, Protocol};
    let address = Type::address(table.family());
    let set = |name, key: &[Type], data, comment| Set {
        name,
        key: key.to_vec(),
        data,
        ranges: false,
        learned: None,
        comment,
    };
    let ranges = |set| Set { ranges: true, ..set };
    let endpoint = Data::Endpoint(table.family());
    vec![
        set("addresses", &[address], Data::None, "every lb_ip"),
        ranges(set("pods", &[address], Data::None, "where this node's pods have their addresses from")),
        set("services", &[address, Protocol, Port], Data::Verdict, "what is served, and by how many endpoints"),
        set("inside", &[address, Protocol, Port], Data::Verdict, "what else is served to this node and its pods"),
        set("refused", &[address, Protocol, Port], Data::Verdict, "what has no endpoint anywhere"),
        ranges(set("sources", &[address, Protocol, Port, address], Data::None, "who may use what not everybody may")),
        set("endpoints", &[address, Protocol, Port, Integer], endpoint, "where packets are sent to"),
        set(
            "remember",
            &[address, Protocol, Port],
            Data::Verdict,
            "whose clients stay with their endpoints, and for how long",
        ),
        Set {
            learned: Some(MOST_REMEMBERED),
            ..set(
                "affinity",
                &[address, address, Protocol, Port],
                endpoint,
                "which endpoint a client has; learned by the rules",
            )
        },
        set("local", &[address, address], Data::None, "endpoints on this node, which see the client's address"),
        set("hairpin", &[address, address, address], Data::None, "endpoints that call themselves"),
    ]
}

/// All chains that are always there, those first that others go to.
pub fn chains(table: Table) -> Vec<Chain> {
    let base = |name: &str, kind, number, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook { kind, number, priority }),
        rules,
    };
    let family = table.family();
    let pods = || rule(load(family, &[Field::Source]), [lookup("pods")]);
    let translate = |map| rule(load(family, FRONTEND), [verdict_map(map)]);
    vec![
        Chain { name: refusing(false), hook: None, rules: refuse(family) },
        Chain { name: refusing(true), hook: None, rules: rule_first(keep_out(family), refuse(family)) },
        Chain { name: "unserved".into(), hook: None, rules: unserved(family) },
        Chain { name: "learn".into(), hook: None, rules: learn(family) },
        Chain { name: "source".into(), hook: None, rules: source_rules(family) },
        base(
            "nat-prerouting",
            "nat",
            PREROUTING,
            BEFORE_DSTNAT,
            vec![rule(pods(), translate("inside")), translate("services"), ping(family)],
        ),
        base(
            "nat-output",
            "nat",
            OUTPUT,
            BEFORE_DSTNAT,
            vec![translate("inside"), translate("services"), ping(family)],
        ),
        base("nat-input", "nat", INPUT, BEFORE_SRCNAT, vec![translated(family, "learn")]),
        base("nat-postrouting", "nat", POSTROUTING, BEFORE_SRCNAT, vec![translated(family, "source")]),
        base("filter-prerouting", "filter", PREROUTING, AFTER_DSTNAT, vec![to_lb_ip(family)]),
        base("filter-output", "filter", OUTPUT, AFTER_DSTNAT, vec![to_lb_ip(family)]),
    ]
}

/// The chain that is a way to endpoints. It picks one of them at random:
/// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod N map @endpoints`
///
/// Who may go it is asked in the chain itself. So one element decides which endpoints there are and whether everybody
/// may use them, and no packet can see one of it without the other while they change.
pub fn way(table: Table, way: Way) -> Chain {
    let family = table.family();
    let random = Field::Random(way.pick);
    let key = load(family, &[Field::Destination, Field::Protocol, Field::Port, random]);
    let find = Expression::Lookup { set: "endpoints".into(), into: Some(Register::FIRST) };
    let mut rules = vec![rule(key, [find, Expression::Dnat(family)])];
    if way.affinity.is_some() {
        let again = Expression::Lookup { set: "affinity".into(), into: Some(Register::FIRST) };
        let client = load(family, &[Field::Source, Field::Destination, Field::Protocol, Field::Port]);
        rules = rule_first(rule(client, [again, Expression::Dnat(family)]), rules);
    }
    if way.restricted {
        rules = rule_first(keep_out(family), rules);
    }
    Chain { name: chain(way), hook: None, rules }
}

/// `ip daddr . meta l4proto . th dport . ip saddr != @sources drop`
fn keep_out(family: Family) -> Vec<Expression> {
    let key = load(family, &[Field::Destination, Field::ProtocolInRange, Field::Port, Field::Source]);
    rule(key, [Expression::Absent { set: "sources".into() }, Expression::Verdict(Verdict::Drop)])
}

/// For a port that a Service has and nobody serves, a client should know at once, not after its own timeout: TCP by a
/// reset, the others by ICMP, which may be lost (the kernel limits how many it sends).
fn refuse(family: Family) -> Vec<Vec<Expression>> {
    vec![rule(protocol_is(TCP), [Expression::Reset]), vec![Expression::Unreachable(family)]]
}

/// Looks whether it should be remembered where a connection goes that was translated:
/// `meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst vmap @remember`
///
/// Only here, after its translation, is known where it goes; and not yet from which source. `nft` wants to know the
/// protocol before it takes the port of a connection for one.
fn learn(family: Family) -> Vec<Vec<Expression>> {
    let asked = || load(family, &[Field::LbIp, Field::Protocol, Field::LbPort]);
    [TCP, UDP, SCTP].map(|protocol| rule(protocol_is(protocol), rule(asked(), [verdict_map("remember")]))).into()
}

/// The chain that remembers for so many seconds:
/// `meta l4proto tcp update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 3h
/// : ip daddr . ct reply proto-src }`
pub fn remember(table: Table, seconds: u32) -> Chain {
    let family = table.family();
    let rules = [TCP, UDP, SCTP].map(|protocol| {
        // The value stands behind the key.
        let key = [Field::Source, Field::LbIp, Field::Protocol, Field::LbPort];
        let value = Register::Quarter(2 * Type::address(family).quarters() + 2);
        let all = load(family, &[&key[..], &[Field::Destination, Field::AnsweringPort]].concat());
        let update = Expression::Update { map: "affinity".into(), value, seconds };
        rule(protocol_is(protocol), rule(all, [update]))
    });
    Chain { name: remembering(seconds), hook: None, rules: rules.into() }
}

/// What happens to a packet that is for an lb_ip and that nobody has translated: it is refused if a Service has the
/// port, and else dropped. But not what neighbours say to each other about who has the lb_ip (RFC 4861): that is no
/// traffic of the Service, and in IPv4 it does not pass here at all.
fn unserved(family: Family) -> Vec<Vec<Expression>> {
    let neighbours = match family {
        Family::V4 => None,
        Family::V6 => Some(rule(
            icmp_type(ICMPV6),
            [
                Expression::Compare { relation: Relation::AtLeast, value: vec![ROUTER_SOLICITATION] },
                Expression::Compare { relation: Relation::AtMost, value: vec![REDIRECT] },
                Expression::Verdict(Verdict::Return),
            ],
        )),
    };
    let refused = rule(load(family, FRONTEND), [verdict_map("refused")]);
    neighbours.into_iter().chain([refused, vec![Expression::Verdict(Verdict::Drop)]]).collect()
}

/// Which source a connection that was translated gets, before it leaves for its endpoint.
fn source_rules(family: Family) -> Vec<Vec<Expression>> {
    use Field::{Destination, LbIp, Source};
    let load = |fields: &[Field]| load(family, fields);
    let keep = || Expression::Verdict(Verdict::Return);
    vec![
        vec![Expression::Verdict(Verdict::Jump("learn".into()))],
        // A pod that calls itself through the lb_ip would take the answer for a stranger's.
        rule(load(&[LbIp, Source, Destination]), [lookup("hairpin"), Expression::Masquerade]),
        // This node itself: the route to the lb_ip chose its source address, which may be one that does not lead
        // back here from the endpoint. fib saddr type local.
        vec![
            Expression::SourceType { into: Register::FIRST },
            equals(RTN_LOCAL.to_ne_bytes().to_vec()),
            Expression::Masquerade,
        ],
        // An endpoint on this node answers through this node, whoever asks.
        rule(load(&[LbIp, Destination]), [lookup("local"), keep()]),
        // A pod of this node is answered through this node.
        rule(load(&[Source]), [lookup("pods"), keep()]),
        vec![Expression::Masquerade],
    ]
}

/// `ct status dnat ct original ip daddr @addresses goto …`
fn translated(family: Family, chain: &str) -> Vec<Expression> {
    let status = vec![
        Expression::Status { into: Register::FIRST },
        Expression::Mask(IPS_DST_NAT.to_ne_bytes().to_vec()),
        Expression::Compare { relation: Relation::NotEqual, value: vec![0; 4] },
    ];
    let lb_ip = rule(load(family, &[Field::LbIp]), [lookup("addresses")]);
    rule(status, rule(lb_ip, [Expression::Verdict(Verdict::Goto(chain.into()))]))
}

/// `ip daddr @addresses icmp type echo-request redirect`: this node answers a ping in the name of the lb_ip.
fn ping(family: Family) -> Vec<Expression> {
    let (protocol, request) = match family {
        Family::V4 => (ICMP, ECHO_REQUEST),
        Family::V6 => (ICMPV6, ECHO_REQUEST_V6),
    };
    let is_request = rule(icmp_type(protocol), [equals(vec![request])]);
    rule(rule(load(family, &[Field::Destination]), [lookup("addresses")]), rule(is_request, [Expression::Redirect]))
}

/// `ip daddr @addresses goto unserved`
fn to_lb_ip(family: Family) -> Vec<Expression> {
    let go = Expression::Verdict(Verdict::Goto("unserved".into()));
    rule(load(family, &[Field::Destination]), [lookup("addresses"), go])
}

/// An RTN_LOCAL route: the address is this host's own.
const RTN_LOCAL: u32 = 2;
/// The connection's destination is translated (IPS_DST_NAT).
const IPS_DST_NAT: u32 = 1 << 5;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMPV6: u8 = 58;
/// Types of ICMP.
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// The first and the last of the types that RFC 4861 §4 has for neighbours and routers.
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;

/// Something of a packet that a rule looks at.
#[derive(Clone, Copy, Debug)]
enum Field {
    Source,
    Destination,
    /// Where the connection was first addressed to.
    LbIp,
    /// The port of that.
    LbPort,
    /// The port that the connection is answered from.
    AnsweringPort,
    Protocol,
    /// The same, as a part of the key of a set of ranges.
    ProtocolInRange,
    /// The destination port.
    Port,
    /// A random number for one of these.
    Random(Pick),
}

/// `ip daddr . meta l4proto . th dport`
const FRONTEND: &[Field] = &[Field::Destination, Field::Protocol, Field::Port];

/// Loads fields one after the other, as the key of a set.
fn load(family: Family, fields: &[Field]) -> Vec<Expression> {
    let mut quarter = 0;
    let mut loads = Vec::new();
    // Where source and destination stand in the header, and how long they are (RFC 791 §3.1, RFC 8200 §3).
    let (source, destination, length) = match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    };
    for field in fields {
        let into = Register::Quarter(quarter);
        let address = |offset| Expression::Payload { header: Header::Network, offset, length, into };
        let (load, kind) = match field {
            Field::Source => (address(source), Type::address(family)),
            Field::Destination => (address(destination), Type::address(family)),
            Field::LbIp => (Expression::OriginalDestination { family, into }, Type::address(family)),
            Field::LbPort => (Expression::OriginalPort { into }, Type::Port),
            Field::AnsweringPort => (Expression::AnsweringPort { into }, Type::Port),
            Field::Protocol | Field::ProtocolInRange => (Expression::Protocol { into }, Type::Protocol),
            Field::Port => (Expression::Payload { header: Header::Transport, offset: 2, length: 2, into }, Type::Port),
            Field::Random(Pick { from, count }) => {
                (Expression::Random { modulus: *count, offset: *from, into }, Type::Integer)
            }
        };
        loads.push(load);
        if matches!(field, Field::ProtocolInRange) {
            loads.push(Expression::ToNetworkOrder { register: into });
        }
        quarter += kind.quarters();
    }
    loads
}

fn protocol_is(number: u8) -> Vec<Expression> {
    vec![Expression::Protocol { into: Register::FIRST }, equals(vec![number])]
}

fn equals(value: Vec<u8>) -> Expression {
    Expression::Compare { relation: Relation::Equal, value }
}

/// Loads the type of a packet of this ICMP.
fn icmp_type(protocol: u8) -> Vec<Expression> {
    let kind = Expression::Payload { header: Header::Transport, offset: 0, length: 1, into: Register::FIRST };
    rule(protocol_is(protocol), [kind])
}

fn lookup(set: &str) -> Expression {
    Expression::Lookup { set: set.to_owned(), into: None }
}

fn verdict_map(map: &str) -> Expression {
    Expression::Lookup { set: map.to_owned(), into: Some(Register::Verdict) }
}

/// This rule before those.
fn rule_first(first: Vec<Expression>, then: Vec<Vec<Expression>>) -> Vec<Vec<Expression>> {
    [vec![first], then].concat()
}

fn rule(first: Vec<Expression>, then: impl IntoIterator<Item = Expression>) -> Vec<Expression> {
    first.into_iter().chain(then).collect()
}
