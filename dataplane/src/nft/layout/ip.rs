//! The chains of `ip landfall` and `ip6 landfall`, which translate and refuse packets.

use crds::Backend;
use crds::service::Family;

use super::fields::{
    FRONTEND, Field, equals, goto, is_protocol, load, load_icmp_type, lookup, lookup_value, lookup_verdict, rule,
    rule_first,
};
use super::{Chain, Hook, Type};
use crate::nft::chain_name::ChainName;
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation, Verdict};
use crate::nft::optional_chains::OptionalChain;
use crate::rules::Dispatch;

/// Before kube-proxy's nat at -100 (dstnat).
const BEFORE_DSTNAT: i32 = -110;
/// Before our own translation of the source: after a nat chain that translates, the later ones at its hook are skipped.
const BEFORE_SOURCE: i32 = 80;
/// Before kube-proxy's masquerade at 100 (srcnat).
const BEFORE_SRCNAT: i32 = 90;
/// After all destination nat, which the kernel runs at -100 whatever the priority of a nat chain; and among nat chains,
/// after those of kube-proxy.
const AFTER_DSTNAT: i32 = -90;
/// Before all destination nat.
const BEFORE_ALL_DSTNAT: i32 = -105;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// The timeout of entries that rules count in, in seconds: a day. So nothing of a deleted Service stays for longer.
const COUNTED_TIMEOUT: u32 = 86_400;
/// The chain that drops packets of forbidden clients, and the set that counts them.
const DENIED: &str = "denied";
/// The chain that counts and drops packets that nothing serves here.
const STRAY: &str = "stray";
/// The chain for untranslated packets to an lb_ip.
const UNSERVED: &str = "unserved";
/// The chain for packets that belong to no connection.
const INVALID: &str = "invalid";
/// The chain for packets of connections without a reply so far.
const UNESTABLISHED: &str = "unestablished";
/// The chains that choose the source of a connection.
const SOURCE: &str = "source";
const SOURCE_HERE: &str = "source-here";

/// RTN_LOCAL: an address of this node.
const RTN_LOCAL: u32 = 2;
/// IPS_DST_NAT: the connection's destination is translated.
const IPS_DST_NAT: u32 = 1 << 5;
/// The packet belongs to a connection with a reply, in either direction: bit 1 + IP_CT_ESTABLISHED.
const STATE_ESTABLISHED: u32 = 1 << 1;
/// The packet belongs to no connection (NF_CT_STATE_INVALID_BIT).
const STATE_INVALID: u32 = 1;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMPV6: u8 = 58;
/// ICMP types.
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// The first and last type of neighbour discovery (RFC 4861 §4).
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;

/// The fixed chains. A chain comes after those that it goes to.
pub(super) fn chains(family: Family) -> Vec<Chain> {
    let chain = |name: &str, rules| Chain { name: name.to_owned(), hook: None, rules };
    let base = |name: &str, kind, number, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook { kind, number, priority, link: None }),
        rules,
    };
    let refuse = |restricted| ChainName::Refuse { restricted }.to_string();
    let from_pods = rule(load(family, &[Field::Source]), [lookup("pods")]);
    let dispatch = |map| dispatch_via(family, map);
    let prerouting = vec![rule(from_pods, dispatch("inside")), dispatch("services"), answer_ping(family)];
    let output = vec![dispatch("inside"), dispatch("services"), answer_ping(family)];
    vec![
        chain(DENIED, count_then(family, FRONTEND, DENIED, Verdict::Drop)),
        chain(&refuse(false), refuse_rules(family)),
        chain(&refuse(true), rule_first(deny_other_sources(family), refuse_rules(family))),
        chain(STRAY, count_then(family, &[Field::Destination], "strays", Verdict::Drop)),
        chain(UNSERVED, unserved_rules(family)),
        chain("learn", learn_rules(family)),
        chain(INVALID, invalid_rules(family)),
        chain(UNESTABLISHED, vec![goto_invalid(), goto_unserved(family)]),
        chain(SOURCE_HERE, source_here_rules(family)),
        chain(SOURCE, source_rules(family)),
        base("nat-prerouting", "nat", PREROUTING, BEFORE_DSTNAT, prerouting),
        base("nat-output", "nat", OUTPUT, BEFORE_DSTNAT, output),
        base("late-prerouting", "nat", PREROUTING, AFTER_DSTNAT, vec![drop_unproxied(family)]),
        base("late-output", "nat", OUTPUT, AFTER_DSTNAT, vec![drop_unproxied(family)]),
        base("nat-postrouting", "nat", POSTROUTING, BEFORE_SRCNAT, postrouting_rules(family)),
        base("filter-prerouting", "filter", PREROUTING, AFTER_DSTNAT, vec![if_unestablished([goto(UNESTABLISHED)])]),
        base("filter-output", "filter", OUTPUT, AFTER_DSTNAT, vec![if_unestablished(goto_unserved(family))]),
    ]
}

/// `meta priority set ip daddr . meta l4proto . th dport map @… meta priority vmap @ways`
///
/// With verdicts in a map of each Service, a change would cost what exists: at every change of a verdict that leads to
/// a chain, the kernel walks all verdicts of the table. So only `ways` has verdicts. `nft` can only print a map lookup
/// that is assigned to something (1.0.6 crashes on nested lookups), and `meta priority` is free at this point. The
/// chain resets it. Only the first packet of a connection passes this rule.
fn dispatch_via(family: Family, map: &str) -> Vec<Expression> {
    let priority = Expression::Meta { key: Meta::Priority, into: Register::FIRST };
    rule(load(family, FRONTEND), [lookup_value(map), Expression::SetPriority, priority, lookup_verdict("ways")])
}

/// The chain that sends a new connection to a random endpoint:
/// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod N map @endpoints`,
/// or to the Service proxy: see [`readdress`].
///
/// The chain itself checks the source ranges. So one element selects the endpoints and the check, and during a change
/// no packet sees one without the other.
pub(super) fn dispatch_chain(family: Family, dispatch: Dispatch) -> Chain {
    let mut rules = match dispatch.backend {
        Backend::Endpoints => pick_rules(family, dispatch),
        Backend::NodePort => node_port_rules(family),
        Backend::ClusterIp => {
            vec![readdress(family, FRONTEND, "cluster-ips", Expression::SetDestination(family))]
        }
    };
    rules = rule_first(rule(load(family, FRONTEND), [lookup("begun")]), rules);
    rules = rule_first(vec![Expression::LoadZero, Expression::SetPriority], rules);
    if dispatch.restricted {
        rules = rule_first(deny_other_sources(family), rules);
    }
    Chain { name: ChainName::Dispatch(dispatch).to_string(), hook: None, rules }
}

/// Readdresses a packet to a node port of this node.
fn node_port_rules(family: Family) -> Vec<Vec<Expression>> {
    let port = |packet, write| rule(packet, readdress(family, FRONTEND, "node-ports", write));
    let checked = |protocol| port(is_protocol(protocol), Expression::SetPort { protocol });
    // The kernel would add a checksum to a datagram without one, and a wrong one.
    let with_checksum = port(udp_checksum(Relation::NotEqual), Expression::SetPort { protocol: UDP });
    let without = port(udp_checksum(Relation::Equal), Expression::SetPortUnchecked);
    let node = readdress(family, &[Field::Destination], "nodes", Expression::SetDestination(family));
    vec![checked(TCP), with_checksum, without, checked(SCTP), node]
}

/// `ip daddr set ip daddr . meta l4proto . th dport map @…`
///
/// The packet continues as if it had this destination, and meets the rules of the Service proxy at the same hook, which
/// translate it. Connection tracking has recorded the original destination before. All later translation of the
/// connection follows that record: replies come from the lb_ip, and later packets pass no rule.
fn readdress(family: Family, key: &[Field], map: &str, write: Expression) -> Vec<Expression> {
    rule(load(family, key), [lookup_value(map), write])
}

/// A UDP datagram with or without a checksum: 0 stands for none (RFC 768).
fn udp_checksum(relation: Relation) -> Vec<Expression> {
    let load = Expression::Payload { header: Header::Transport, offset: 6, length: 2, into: Register::FIRST };
    rule(is_protocol(UDP), [load, Expression::Compare { relation, value: vec![0; 2] }])
}

/// `ip daddr != @addresses ct original ip daddr @addresses drop`
///
/// Drops a readdressed packet that the Service proxy, which runs before, has not translated: the proxy does not know
/// the Service yet, or no longer. Otherwise this packet and all that follow would reach this node itself or leave the
/// cluster.
fn drop_unproxied(family: Family) -> Vec<Expression> {
    let not_to_lb_ip = Expression::LookupInverted { set: "addresses".into() };
    let elsewhere = rule(load(family, &[Field::Destination]), [not_to_lb_ip]);
    let readdressed = rule(load(family, &[Field::OriginalDestination]), [lookup("addresses")]);
    rule(elsewhere, rule(readdressed, [Expression::Verdict(Verdict::Drop)]))
}

/// Sends a connection to a random endpoint, or with session affinity to the client's.
fn pick_rules(family: Family, dispatch: Dispatch) -> Vec<Vec<Expression>> {
    let index = Field::Random(dispatch.pick);
    let endpoint = load(family, &[Field::Destination, Field::Protocol, Field::DestinationPort, index]);
    let mut rules = vec![rule(endpoint, [lookup_value("endpoints"), Expression::Dnat(family)])];
    if dispatch.affinity.is_some() {
        let client = load(family, &[Field::Source, Field::Destination, Field::Protocol, Field::DestinationPort]);
        rules = rule_first(rule(client, [lookup_value("affinity"), Expression::Dnat(family)]), rules);
    }
    rules
}

/// `ip daddr . meta l4proto . th dport . ip saddr != @sources goto denied`
fn deny_other_sources(family: Family) -> Vec<Expression> {
    let fields = [Field::Destination, Field::ProtocolInInterval, Field::DestinationPort, Field::Source];
    rule(load(family, &fields), [Expression::LookupInverted { set: "sources".into() }, goto(DENIED)])
}

/// Counts a packet in this set, then decides. These are two rules: a packet that cannot be counted, since the set is
/// full, leaves the first one, and must still meet the second.
fn count_then(family: Family, key: &[Field], set: &str, then: Verdict) -> Vec<Vec<Expression>> {
    vec![rule(load(family, key), [count_in(set)]), vec![Expression::Verdict(then)]]
}

fn count_in(set: &str) -> Expression {
    Expression::DynsetCount { set: set.into(), seconds: COUNTED_TIMEOUT }
}

/// Refuses a packet to a port without endpoints. So the client notices at once instead of after a timeout: with TCP by
/// a reset, with others by ICMP, which may be lost (the kernel limits its rate).
fn refuse_rules(family: Family) -> Vec<Vec<Expression>> {
    vec![
        rule(load(family, FRONTEND), [count_in("refusals")]),
        rule(is_protocol(TCP), [Expression::RejectReset]),
        vec![Expression::RejectUnreachable(family)],
    ]
}

/// Decides whether the endpoint of a translated connection is remembered:
/// `meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst vmap @remember`
///
/// The endpoint is only known here, after translation, and the source is not translated yet. `nft` requires the
/// protocol before it accepts the port of a connection as one.
fn learn_rules(family: Family) -> Vec<Vec<Expression>> {
    let frontend = || load(family, &[Field::OriginalDestination, Field::Protocol, Field::OriginalPort]);
    let learn = |protocol| rule(is_protocol(protocol), rule(frontend(), [lookup_verdict("remember")]));
    [TCP, UDP, SCTP].map(learn).into()
}

/// A chain that exists only while it is needed.
pub(super) fn optional_chain(family: Family, chain: OptionalChain) -> Chain {
    let learn = || vec![if_translated(vec![goto("learn")])];
    let (kind, number, priority, rules) = match chain {
        // `ip daddr . meta l4proto . th dport @traffic`, before translation. Every packet passes it, also those of
        // other programs. To count replies, it would have to look up their connection, at twice the cost.
        OptionalChain::CountTraffic => {
            ("filter", PREROUTING, BEFORE_ALL_DSTNAT, vec![rule(load(family, FRONTEND), [lookup("traffic")])])
        }
        OptionalChain::LearnInput => ("nat", INPUT, BEFORE_SOURCE, learn()),
        OptionalChain::LearnPostrouting => ("nat", POSTROUTING, BEFORE_SOURCE, learn()),
    };
    Chain { name: chain.name().to_owned(), hook: Some(Hook { kind, number, priority, link: None }), rules }
}

/// The chain that remembers the endpoint of a client for this many seconds: `meta l4proto tcp update @affinity { ip
/// saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 3h : ip daddr . ct reply proto-src }`
pub(super) fn remember_chain(family: Family, seconds: u32) -> Chain {
    let rules = [TCP, UDP, SCTP].map(|protocol| {
        // The value follows the key.
        let key = [Field::Source, Field::OriginalDestination, Field::Protocol, Field::OriginalPort];
        let value = Register::Word(2 * Type::address(family).words() + 2);
        let all = load(family, &[&key[..], &[Field::Destination, Field::ReplySourcePort]].concat());
        let update = Expression::DynsetUpdate { map: "affinity".into(), value, seconds };
        rule(is_protocol(protocol), rule(all, [update]))
    });
    Chain { name: ChainName::Remember(seconds).to_string(), hook: None, rules: rules.into() }
}

/// Refuses an untranslated packet to a port of a Service, and drops any other to an lb_ip. Neighbour discovery for the
/// lb_ip (RFC 4861) passes, since it is not traffic of the Service; in IPv4 it does not come here at all.
fn unserved_rules(family: Family) -> Vec<Vec<Expression>> {
    let neighbour_discovery = match family {
        Family::V4 => None,
        Family::V6 => Some(rule(
            load_icmp_type(ICMPV6),
            [
                Expression::Compare { relation: Relation::AtLeast, value: vec![ROUTER_SOLICITATION] },
                Expression::Compare { relation: Relation::AtMost, value: vec![REDIRECT] },
                Expression::Verdict(Verdict::Return),
            ],
        )),
    };
    let refused = rule(load(family, FRONTEND), [lookup_verdict("refused")]);
    neighbour_discovery.into_iter().chain([refused, vec![goto(STRAY)]]).collect()
}

/// `ct state != established …`
///
/// Every packet of the node passes this comparison. For packets of open connections it is the only one. The first
/// packets of a connection, until the first reply, and packets without a connection continue. A packet has exactly one
/// state, so the comparison uses all bits.
///
/// An untranslated connection to an lb_ip that has a reply belongs to another program, from before the lb_ip was here.
/// It passes.
fn if_unestablished(then: impl IntoIterator<Item = Expression>) -> Vec<Expression> {
    let other = Expression::Compare { relation: Relation::NotEqual, value: STATE_ESTABLISHED.to_ne_bytes().to_vec() };
    rule(vec![Expression::CtState { into: Register::FIRST }, other], then)
}

/// `ct state invalid meta l4proto tcp goto invalid`
fn goto_invalid() -> Vec<Expression> {
    let state = vec![
        Expression::CtState { into: Register::FIRST },
        Expression::Mask(STATE_INVALID.to_ne_bytes().to_vec()),
        Expression::Compare { relation: Relation::NotEqual, value: vec![0; 4] },
    ];
    rule(rule(state, is_protocol(TCP)), [goto(INVALID)])
}

/// Drops a segment that belongs to no connection, or that is outside its window.
///
/// The kernel does not translate such a segment. A segment of an endpoint would reach the client from an unknown
/// address, or, if the source was replaced, this node itself. Either would answer with a reset, which breaks the
/// connection at the endpoint. A segment to an lb_ip must not be refused either: its connection may be valid. The
/// connection is unknown here, so the sender must be a pod of this node, or an endpoint that connections were sent to.
fn invalid_rules(family: Family) -> Vec<Vec<Expression>> {
    let drop = || Expression::Verdict(Verdict::Drop);
    let to_lb_ip = rule(load(family, &[Field::Destination]), [lookup("addresses"), goto(STRAY)]);
    let endpoint = load(family, &[Field::Source, Field::Protocol, Field::SourcePort]);
    vec![
        to_lb_ip,
        rule(load(family, &[Field::Source]), [lookup("pods"), drop()]),
        rule(is_protocol(TCP), rule(endpoint, [lookup("elsewhere"), drop()])),
    ]
}

/// Chooses the source of a translated connection before it leaves for its endpoint:
/// `ct status dnat ct original ip daddr . ip daddr @local goto source-here`, and for other endpoints
/// `ct status dnat ct original ip daddr @addresses goto source`
///
/// With spreading, nearly all endpoints are on this node. So that case comes first, also for connections of other
/// programs.
fn postrouting_rules(family: Family) -> Vec<Vec<Expression>> {
    let here = load(family, &[Field::OriginalDestination, Field::Destination]);
    let here = rule(here, [lookup("local"), goto(SOURCE_HERE)]);
    let elsewhere = rule(load(family, &[Field::OriginalDestination]), [lookup("addresses"), goto(SOURCE)]);
    vec![if_translated(here), if_translated(elsewhere)]
}

/// The source of a connection to an endpoint elsewhere.
fn source_rules(family: Family) -> Vec<Vec<Expression>> {
    vec![
        // The address alone does not identify replies of the endpoint: see [`invalid_rules`].
        rule(is_protocol(TCP), rule(load(family, FRONTEND), [count_in("elsewhere")])),
        masquerade_local_source(),
        // Replies to a pod of this node pass this node.
        rule(load(family, &[Field::Source]), [lookup("pods"), Expression::Verdict(Verdict::Return)]),
        vec![Expression::Masquerade],
    ]
}

/// The source of a connection to an endpoint on this node. All its replies pass this node, so the source stays, except
/// for clients that would not accept the reply.
fn source_here_rules(family: Family) -> Vec<Vec<Expression>> {
    use Field::{Destination, OriginalDestination, Source};
    // A packet that came in by a link is not from this node. That check is cheaper than the type of the source.
    let no_link = vec![Expression::Meta { key: Meta::Iif, into: Register::FIRST }, equals(vec![0; 4])];
    let own_endpoint = load(family, &[OriginalDestination, Source, Destination]);
    vec![
        // A pod that calls itself through the lb_ip would not recognise the reply.
        rule(own_endpoint, [lookup("hairpin"), Expression::Masquerade]),
        rule(no_link, masquerade_local_source()),
    ]
}

/// `fib saddr type local masquerade`
///
/// For this node itself: the route to the lb_ip has chosen its source, and the endpoint may have no route back to that.
fn masquerade_local_source() -> Vec<Expression> {
    vec![
        Expression::FibSourceType { into: Register::FIRST },
        equals(RTN_LOCAL.to_ne_bytes().to_vec()),
        Expression::Masquerade,
    ]
}

/// `ct status dnat …`
fn if_translated(then: Vec<Expression>) -> Vec<Expression> {
    let status = vec![
        Expression::CtStatus { into: Register::FIRST },
        Expression::Mask(IPS_DST_NAT.to_ne_bytes().to_vec()),
        Expression::Compare { relation: Relation::NotEqual, value: vec![0; 4] },
    ];
    rule(status, then)
}

/// `ip daddr @addresses icmp type echo-request redirect`: this node answers a ping to the lb_ip.
fn answer_ping(family: Family) -> Vec<Expression> {
    let (protocol, request) = match family {
        Family::V4 => (ICMP, ECHO_REQUEST),
        Family::V6 => (ICMPV6, ECHO_REQUEST_V6),
    };
    let is_request = rule(load_icmp_type(protocol), [equals(vec![request])]);
    rule(rule(load(family, &[Field::Destination]), [lookup("addresses")]), rule(is_request, [Expression::Redirect]))
}

/// `ip daddr @addresses goto unserved`
fn goto_unserved(family: Family) -> Vec<Expression> {
    rule(load(family, &[Field::Destination]), [lookup("addresses"), goto(UNSERVED)])
}
