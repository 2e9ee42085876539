//! What never changes in the table: its sets and maps, its chains and their rules.
//!
//! This is data; [`super::request`] tells the kernel, and [`super::dump`] compares it with what the kernel has. A table
//! whose skeleton is not exactly this one was made by another version or changed by somebody, and is replaced whole.

use super::element::chain;
use super::expression::{Expression, Header, Register, Verdict};
use crate::ruleset::Pick;

/// The name of the table. Nobody else's is ever touched.
pub const TABLE: &str = "landfall";
/// What a person who finds the table should know. It is part of the skeleton: another wording is another version.
pub const COMMENT: &str = "Landfall forwards LoadBalancer addresses here; made by landfall node; version 1";

/// Before kube-proxy's nat, which is at -100 (dstnat).
const BEFORE_DSTNAT: i32 = -110;
/// Before kube-proxy's masquerade, which is at 100 (srcnat).
const BEFORE_SRCNAT: i32 = 90;
/// After everybody's destination nat, which the kernel does at -100 whatever priority a nat chain has.
const AFTER_DSTNAT: i32 = -90;

const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// What the values of a map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// There are none: a set.
    None,
    /// Verdicts.
    Verdict,
    /// Addresses with ports.
    Endpoint,
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
    /// What a person should know about it.
    pub comment: &'static str,
}

impl Set {
    /// The type of its key as one number, as `nft` writes it.
    pub fn key_type(&self) -> u32 {
        concatenated(&self.key)
    }

    /// How many bytes its key has: four for each part.
    pub fn key_length(&self) -> u32 {
        self.key.iter().map(|_| 4).sum()
    }

    /// The type and the length of its values.
    pub fn data(&self) -> Option<(u32, u32)> {
        match self.data {
            Data::None => None,
            Data::Verdict => Some((VERDICT, 0)),
            Data::Endpoint => Some((concatenated(&[Type::Address, Type::Port]), 8)),
        }
    }

    /// Its flags (enum nft_set_flags).
    pub fn flags(&self) -> u32 {
        let ranges = if self.ranges { SET_INTERVAL } else { 0 };
        if self.data == Data::None { ranges } else { ranges | SET_MAP }
    }
}

/// The type of a verdict (NFT_DATA_VERDICT).
pub const VERDICT: u32 = 0xffff_ff00;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;

/// Types one after the other, six bits each.
fn concatenated(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, kind| all << 6 | *kind as u32)
}

/// The type of a part of a key: its number in `nft`, by which `nft` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Type {
    /// A number: what `numgen` yields. It has no name in `nft`.
    Integer = 4,
    /// An IPv4 address.
    Address = 7,
    /// A transport protocol.
    Protocol = 12,
    /// A port.
    Port = 13,
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

/// All sets and maps, in the order in which they are made.
pub fn sets() -> Vec<Set> {
    use Type::{Address, Integer, Port, Protocol};
    let set = |name, key: &[Type], data, comment| Set { name, key: key.to_vec(), data, ranges: false, comment };
    let ranges = |set| Set { ranges: true, ..set };
    vec![
        set("addresses", &[Address], Data::None, "every lb_ip"),
        ranges(set("pods", &[Address], Data::None, "where this node's pods have their addresses from")),
        set("services", &[Address, Protocol, Port], Data::Verdict, "what is served, and by how many endpoints"),
        set("inside", &[Address, Protocol, Port], Data::Verdict, "what else is served to this node and its pods"),
        set("refused", &[Address, Protocol, Port], Data::None, "what has no endpoint anywhere"),
        set("endpoints", &[Address, Protocol, Port, Integer], Data::Endpoint, "where packets are sent to"),
        set("local", &[Address, Address], Data::None, "endpoints on this node, which see the client's address"),
        set("hairpin", &[Address, Address, Address], Data::None, "endpoints that call themselves"),
    ]
}

/// All chains that are always there, those first that others go to.
pub fn chains() -> Vec<Chain> {
    let base = |name: &str, kind, number, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook { kind, number, priority }),
        rules,
    };
    let pods = || vec![source(Register::R1), lookup("pods")];
    let translate = |map| rule(frontend(), [verdict_map(map)]);
    vec![
        Chain { name: "unserved".into(), hook: None, rules: unserved() },
        Chain { name: "source".into(), hook: None, rules: source_rules() },
        base(
            "nat-prerouting",
            "nat",
            PREROUTING,
            BEFORE_DSTNAT,
            vec![rule(pods(), translate("inside")), translate("services"), ping()],
        ),
        base("nat-output", "nat", OUTPUT, BEFORE_DSTNAT, vec![translate("inside"), translate("services"), ping()]),
        base("nat-postrouting", "nat", POSTROUTING, BEFORE_SRCNAT, vec![translated()]),
        base("filter-prerouting", "filter", PREROUTING, AFTER_DSTNAT, vec![to_lb_ip()]),
        base("filter-output", "filter", OUTPUT, AFTER_DSTNAT, vec![to_lb_ip()]),
    ]
}

/// The chain that picks one of these endpoints at random:
/// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod N map @endpoints`
pub fn pick(pick: Pick) -> Chain {
    let random = Expression::Random { modulus: pick.count, offset: pick.from, into: Register::R1_3 };
    let find = Expression::Lookup { set: "endpoints".into(), into: Some(Register::R1) };
    Chain { name: chain(pick), hook: None, rules: vec![rule(frontend(), [random, find, Expression::Dnat])] }
}

/// What happens to a packet that is for an lb_ip and that nobody has translated.
///
/// For a port that a Service has and nobody serves, a client should know at once, not after its own timeout: TCP by a
/// reset, the others by ICMP, which may be lost (the kernel limits how many it sends). Anything else is dropped.
fn unserved() -> Vec<Vec<Expression>> {
    let refused = || rule(frontend(), [lookup("refused")]);
    vec![
        rule(protocol_is(TCP), rule(refused(), [Expression::Reset])),
        rule(refused(), [Expression::Unreachable]),
        vec![Expression::Verdict(Verdict::Drop)],
    ]
}

/// Which source a connection that was translated gets, before it leaves for its endpoint.
fn source_rules() -> Vec<Vec<Expression>> {
    let lb_ip = || Expression::OriginalDestination { into: Register::R1 };
    let keep = || Expression::Verdict(Verdict::Return);
    vec![
        // A pod that calls itself through the lb_ip would take the answer for a stranger's.
        vec![lb_ip(), source(Register::R1_1), destination(Register::R1_2), lookup("hairpin"), Expression::Masquerade],
        // This node itself: the route to the lb_ip chose its source address, which may be one that does not lead
        // back here from the endpoint. fib saddr type local.
        vec![
            Expression::SourceType { into: Register::R1 },
            Expression::Compare { equal: true, value: RTN_LOCAL.to_ne_bytes().to_vec() },
            Expression::Masquerade,
        ],
        // An endpoint on this node answers through this node, whoever asks.
        vec![lb_ip(), destination(Register::R1_1), lookup("local"), keep()],
        // A pod of this node is answered through this node.
        vec![source(Register::R1), lookup("pods"), keep()],
        vec![Expression::Masquerade],
    ]
}

/// `ct status dnat ct original ip daddr @addresses goto source`
fn translated() -> Vec<Expression> {
    vec![
        Expression::Status { into: Register::R1 },
        Expression::Mask(IPS_DST_NAT.to_ne_bytes().to_vec()),
        Expression::Compare { equal: false, value: vec![0; 4] },
        Expression::OriginalDestination { into: Register::R1 },
        lookup("addresses"),
        Expression::Verdict(Verdict::Goto("source".into())),
    ]
}

/// `ip daddr @addresses icmp type echo-request redirect`: this node answers a ping in the name of the lb_ip.
fn ping() -> Vec<Expression> {
    let mut expressions = vec![destination(Register::R1), lookup("addresses")];
    expressions.extend(protocol_is(ICMP));
    expressions.push(Expression::Payload { header: Header::Transport, offset: 0, length: 1, into: Register::R1 });
    expressions.push(Expression::Compare { equal: true, value: vec![ECHO_REQUEST] });
    expressions.push(Expression::Redirect);
    expressions
}

/// `ip daddr @addresses goto unserved`
fn to_lb_ip() -> Vec<Expression> {
    vec![destination(Register::R1), lookup("addresses"), Expression::Verdict(Verdict::Goto("unserved".into()))]
}

/// An RTN_LOCAL route: the address is this host's own.
const RTN_LOCAL: u32 = 2;
/// The connection's destination is translated (IPS_DST_NAT).
const IPS_DST_NAT: u32 = 1 << 5;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ECHO_REQUEST: u8 = 8;

/// `ip daddr . meta l4proto . th dport`
fn frontend() -> Vec<Expression> {
    let port = Expression::Payload { header: Header::Transport, offset: 2, length: 2, into: Register::R1_2 };
    vec![destination(Register::R1), Expression::Protocol { into: Register::R1_1 }, port]
}

fn source(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 12, length: 4, into }
}

fn destination(into: Register) -> Expression {
    Expression::Payload { header: Header::Network, offset: 16, length: 4, into }
}

fn protocol_is(number: u8) -> Vec<Expression> {
    vec![Expression::Protocol { into: Register::R1 }, Expression::Compare { equal: true, value: vec![number] }]
}

fn lookup(set: &str) -> Expression {
    Expression::Lookup { set: set.to_owned(), into: None }
}

fn verdict_map(map: &str) -> Expression {
    Expression::Lookup { set: map.to_owned(), into: Some(Register::Verdict) }
}

fn rule(first: Vec<Expression>, then: impl IntoIterator<Item = Expression>) -> Vec<Expression> {
    first.into_iter().chain(then).collect()
}
