//! The tables that translate and refuse, one for each family: their sets, chains and rules.

use crds::Backend;
use crds::service::Family;

use super::field::{FRONTEND, Field, equals, icmp_type, load, lookup, protocol_is, rule, rule_first, verdict_map};
use super::{Chain, Data, Hook, Set, Type};
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation, Verdict};
use crate::nft::elements::{chain, refusing, remembering};
use crate::nft::optional_chains::Hooked;
use crate::rules::ruleset::Way;

/// Before kube-proxy's nat, which is at -100 (dstnat).
const BEFORE_DSTNAT: i32 = -110;
/// Before our own translation of the source: of nat chains at a hook, none is asked after the one that translates.
const BEFORE_SOURCE: i32 = 80;
/// Before kube-proxy's masquerade, which is at 100 (srcnat).
const BEFORE_SRCNAT: i32 = 90;
/// After everybody's destination nat, which the kernel does at -100 whatever priority a nat chain has; and, of such chains,
/// after kube-proxy's.
const AFTER_DSTNAT: i32 = -90;
/// Before everybody's destination nat.
const BEFORE_ALL_DSTNAT: i32 = -105;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// How many clients with their ports can be remembered in each family, of all Services: beyond that, new ones go
/// anywhere until others have been away for long enough. Each takes some 120 bytes of the kernel, which nobody should
/// be able to fill with made-up addresses.
const MOST_REMEMBERED: u32 = 1 << 18;
/// How many ports of lb_ips, and how many lb_ips, what is dropped or refused is counted of in each family. No packet can
/// make up one, so there are no more than Services have; beyond it is dropped uncounted.
const MOST_COUNTED: u32 = 1 << 16;
/// For how many seconds that is kept after the last one: a day. What is deleted leaves nothing for longer.
const COUNTED: u32 = 86_400;
/// The chain that drops who may not use a Service, and the set that counts them.
const DENIED: &str = "denied";
/// The chain that drops and counts what nobody serves here.
const STRAY: &str = "stray";
/// The chain for what is for an lb_ip and translated by nobody.
const UNSERVED: &str = "unserved";
/// The chain for what belongs to no connection.
const INVALID: &str = "invalid";
/// The chain for what belongs to no connection that has been answered.
const UNESTABLISHED: &str = "unestablished";
/// The chains that give a connection its source.
const SOURCE: &str = "source";
const SOURCE_HERE: &str = "source-here";

/// All sets and maps of a table, in the order in which they are made.
pub fn sets(family: Family) -> Vec<Set> {
    use Type::{Integer, Port, Protocol};
    let address = Type::address(family);
    let set = Set::new;
    let ranges = |set| Set { ranges: true, ..set };
    let endpoint = Data::Endpoint(family);
    let counts = |set| Set { counts: true, ..set };
    let many = |set| Set { many: true, ..set };
    let counted_once = |set| Set { learned: Some(MOST_COUNTED), ..set };
    let front = &[address, Protocol, Port];
    let way = Data::Plain(Type::Class);
    vec![
        many(set("addresses", &[address], Data::None, "every lb_ip")),
        ranges(set("pods", &[address], Data::None, "where this node's pods have their addresses from")),
        many(set("services", front, way, "what is served, and by how many endpoints")),
        many(set("inside", front, way, "what else is served to this node and its pods")),
        set("ways", &[Type::Class], Data::Verdict, "what those stand for"),
        many(set("refused", &[address, Protocol, Port], Data::Verdict, "what has no endpoint anywhere")),
        many(set("node-ports", &[address, Protocol, Port], Data::Plain(Port), "which node port leads to the same")),
        many(set("nodes", &[address], Data::Plain(address), "this node, as its Service proxy knows it")),
        many(set("cluster-ips", &[address, Protocol, Port], Data::Plain(address), "which ClusterIP leads to the same")),
        ranges(set("sources", &[address, Protocol, Port, address], Data::None, "who may use what not everybody may")),
        many(set("endpoints", &[address, Protocol, Port, Integer], endpoint, "where packets are sent to")),
        many(set("remember", front, Data::Verdict, "whose clients stay with their endpoints, and for how long")),
        Set {
            learned: Some(MOST_REMEMBERED),
            ..set(
                "affinity",
                &[address, address, Protocol, Port],
                endpoint,
                "which endpoint a client has; learned by the rules",
            )
        },
        many(set("local", &[address, address], Data::None, "endpoints on this node, which see the client's address")),
        many(set("hairpin", &[address, address, address], Data::None, "endpoints that call themselves")),
        many(counts(set("traffic", front, Data::None, "packets that came"))),
        many(counts(set("begun", front, Data::None, "connections that were sent on"))),
        counted_once(set("denied", front, Data::None, "packets dropped because of where they come from")),
        counted_once(set("refusals", front, Data::None, "packets refused because there is no endpoint")),
        counted_once(set("strays", &[address], Data::None, "packets dropped because nobody serves them here")),
        counted_once(set("elsewhere", front, Data::None, "endpoints on other nodes that connections were sent to")),
    ]
}

/// All chains that are always there, those first that others go to.
pub fn chains(family: Family) -> Vec<Chain> {
    let base = |name: &str, kind, number, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook { kind, number, priority, link: None }),
        rules,
    };
    let pods = || rule(load(family, &[Field::Source]), [lookup("pods")]);
    let translate = |map| led(family, map);
    vec![
        Chain { name: DENIED.into(), hook: None, rules: counted(family, FRONTEND, DENIED, Verdict::Drop) },
        Chain { name: refusing(false), hook: None, rules: refuse(family) },
        Chain { name: refusing(true), hook: None, rules: rule_first(keep_out(family), refuse(family)) },
        Chain {
            name: STRAY.into(),
            hook: None,
            rules: counted(family, &[Field::Destination], "strays", Verdict::Drop),
        },
        Chain { name: UNSERVED.into(), hook: None, rules: unserved(family) },
        Chain { name: "learn".into(), hook: None, rules: learn(family) },
        Chain { name: INVALID.into(), hook: None, rules: invalid(family) },
        Chain { name: UNESTABLISHED.into(), hook: None, rules: vec![to_invalid(), to_lb_ip(family)] },
        Chain { name: SOURCE_HERE.into(), hook: None, rules: source_here(family) },
        Chain { name: SOURCE.into(), hook: None, rules: source(family) },
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
        base("late-prerouting", "nat", PREROUTING, AFTER_DSTNAT, vec![unproxied(family)]),
        base("late-output", "nat", OUTPUT, AFTER_DSTNAT, vec![unproxied(family)]),
        base("nat-postrouting", "nat", POSTROUTING, BEFORE_SRCNAT, postrouting(family)),
        base("filter-prerouting", "filter", PREROUTING, AFTER_DSTNAT, vec![unestablished([goto(UNESTABLISHED)])]),
        base("filter-output", "filter", OUTPUT, AFTER_DSTNAT, vec![unestablished(to_lb_ip(family))]),
    ]
}

/// `meta priority set ip daddr . meta l4proto . th dport map @… meta priority vmap @ways`
///
/// A map that leads to chains by itself would make each change cost what there is: at every change of a verdict that leads to
/// a chain, the kernel looks through all verdicts of the table. So only `ways` has some. `nft` takes what a map says for nothing
/// but a value that is written somewhere (it even dies of a rule that looks up in a second map what the first says), and the packet's
/// class in queues is where it disturbs nobody: it is taken back in the chain that is the way, and only the first packet of a
/// connection comes here.
fn led(family: Family, map: &str) -> Vec<Expression> {
    let said = Expression::Lookup { set: map.into(), into: Some(Register::FIRST) };
    let carried = Expression::Meta { what: Meta::Priority, into: Register::FIRST };
    rule(load(family, FRONTEND), [said, Expression::SetPriority, carried, verdict_map("ways")])
}

/// The chain that is a way to endpoints. It picks one of them at random:
/// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod N map @endpoints`
///
/// Who may go it is asked in the chain itself. So one element decides which endpoints there are and whether everybody
/// may use them, and no packet can see one of it without the other while they change.
///
/// Or it is a way to what the Service proxy serves: see [`readdress`].
pub fn way(family: Family, way: Way) -> Chain {
    let mut rules = match way.backend {
        Backend::Endpoints => picked(family, way),
        Backend::NodePort => {
            let port = |packet, write| rule(packet, readdress(family, FRONTEND, "node-ports", write));
            let checked = |protocol| port(protocol_is(protocol), Expression::SetPort { protocol });
            // The kernel would make a checksum where there is none, and a wrong one.
            let with_checksum = port(checksum(Relation::NotEqual), Expression::SetPort { protocol: UDP });
            let without = port(checksum(Relation::Equal), Expression::SetPortAlone);
            let node = readdress(family, &[Field::Destination], "nodes", Expression::SetDestination(family));
            vec![checked(TCP), with_checksum, without, checked(SCTP), node]
        }
        Backend::ClusterIp => {
            vec![readdress(family, FRONTEND, "cluster-ips", Expression::SetDestination(family))]
        }
    };
    rules = rule_first(rule(load(family, FRONTEND), [lookup("begun")]), rules);
    rules = rule_first(vec![Expression::Nothing, Expression::SetPriority], rules);
    if way.restricted {
        rules = rule_first(keep_out(family), rules);
    }
    Chain { name: chain(way), hook: None, rules }
}

/// `ip daddr set ip daddr . meta l4proto . th dport map @…`
///
/// The packet goes on as if it had been for that, and meets the rules of the Service proxy in the same hook: those look at the
/// packet, and translate it. Connection tracking has noted before where it was for, and what it does to the packet from then
/// on follows from that note: the answer comes from the lb_ip, and the next packets pass no rule any more.
fn readdress(family: Family, key: &[Field], map: &str, write: Expression) -> Vec<Expression> {
    rule(load(family, key), [Expression::Lookup { set: map.into(), into: Some(Register::FIRST) }, write])
}

/// A datagram of UDP, and whether it has a checksum: 0 stands for none (RFC 768).
fn checksum(relation: Relation) -> Vec<Expression> {
    let load = Expression::Payload { header: Header::Transport, offset: 6, length: 2, into: Register::FIRST };
    rule(protocol_is(UDP), [load, Expression::Compare { relation, value: vec![0; 2] }])
}

/// `ip daddr != @addresses ct original ip daddr @addresses drop`
///
/// For a packet that was readdressed, and that the Service proxy, which comes before, has not translated: it does not know the
/// Service yet, or any more. Let through, it would reach this node itself or leave the cluster, and all that follow it the same.
fn unproxied(family: Family) -> Vec<Expression> {
    let elsewhere = rule(load(family, &[Field::Destination]), [Expression::Absent { set: "addresses".into() }]);
    let readdressed = rule(load(family, &[Field::LbIp]), [lookup("addresses")]);
    rule(elsewhere, rule(readdressed, [Expression::Verdict(Verdict::Drop)]))
}

/// The rules that pick an endpoint.
fn picked(family: Family, way: Way) -> Vec<Vec<Expression>> {
    let random = Field::Random(way.pick);
    let key = load(family, &[Field::Destination, Field::Protocol, Field::Port, random]);
    let find = Expression::Lookup { set: "endpoints".into(), into: Some(Register::FIRST) };
    let mut rules = vec![rule(key, [find, Expression::Dnat(family)])];
    if way.affinity.is_some() {
        let again = Expression::Lookup { set: "affinity".into(), into: Some(Register::FIRST) };
        let client = load(family, &[Field::Source, Field::Destination, Field::Protocol, Field::Port]);
        rules = rule_first(rule(client, [again, Expression::Dnat(family)]), rules);
    }
    rules
}

/// `ip daddr . meta l4proto . th dport . ip saddr != @sources goto denied`
fn keep_out(family: Family) -> Vec<Expression> {
    let key = load(family, &[Field::Destination, Field::ProtocolInRange, Field::Port, Field::Source]);
    rule(key, [Expression::Absent { set: "sources".into() }, goto(DENIED)])
}

/// Counts a packet in this set, and then does that with it. These are two rules: what can't be counted, because the set is
/// full, leaves the rule, and must not get by.
fn counted(family: Family, key: &[Field], set: &str, then: Verdict) -> Vec<Vec<Expression>> {
    let count = Expression::Count { set: set.into(), seconds: COUNTED };
    vec![rule(load(family, key), [count]), vec![Expression::Verdict(then)]]
}

fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.into()))
}

/// For a port that a Service has and nobody serves, a client should know at once, not after its own timeout: TCP by a
/// reset, the others by ICMP, which may be lost (the kernel limits how many it sends).
fn refuse(family: Family) -> Vec<Vec<Expression>> {
    let count = Expression::Count { set: "refusals".into(), seconds: COUNTED };
    vec![
        rule(load(family, FRONTEND), [count]),
        rule(protocol_is(TCP), [Expression::Reset]),
        vec![Expression::Unreachable(family)],
    ]
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

/// A chain that is there only while it is wanted.
pub fn hooked(family: Family, hooked: Hooked) -> Chain {
    let learns = || vec![translated(vec![goto("learn")])];
    let (kind, number, priority, rules) = match hooked {
        // `ip daddr . meta l4proto . th dport @traffic`: before it is translated. Each packet passes it, those of others as well.
        // What goes back would have to ask for its connection, at twice the price.
        Hooked::Counts => {
            ("filter", PREROUTING, BEFORE_ALL_DSTNAT, vec![rule(load(family, FRONTEND), [lookup("traffic")])])
        }
        Hooked::LearnsHere => ("nat", INPUT, BEFORE_SOURCE, learns()),
        Hooked::Learns => ("nat", POSTROUTING, BEFORE_SOURCE, learns()),
    };
    Chain { name: hooked.name().to_owned(), hook: Some(Hook { kind, number, priority, link: None }), rules }
}

/// The chain that remembers for so many seconds:
/// `meta l4proto tcp update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 3h
/// : ip daddr . ct reply proto-src }`
pub fn remember(family: Family, seconds: u32) -> Chain {
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
    neighbours.into_iter().chain([refused, vec![goto(STRAY)]]).collect()
}

/// `ct state != established …`
///
/// Every packet of the node passes this, so it is all that packets of open connections meet, and it does not look into them.
/// The first packets of a connection go on to be looked at, until one has come back, and so does what belongs to none. A packet
/// has one state, so it is compared as a whole.
///
/// A connection to an lb_ip that nobody translated and that was answered all the same is somebody else's, from before the lb_ip
/// was here, and goes on.
fn unestablished(then: impl IntoIterator<Item = Expression>) -> Vec<Expression> {
    let other = Expression::Compare { relation: Relation::NotEqual, value: STATE_ESTABLISHED.to_ne_bytes().to_vec() };
    rule(vec![Expression::State { into: Register::FIRST }, other], then)
}

/// `ct state invalid meta l4proto tcp goto invalid`
fn to_invalid() -> Vec<Expression> {
    let state = vec![
        Expression::State { into: Register::FIRST },
        Expression::Mask(STATE_INVALID.to_ne_bytes().to_vec()),
        Expression::Compare { relation: Relation::NotEqual, value: vec![0; 4] },
    ];
    rule(rule(state, protocol_is(TCP)), [goto(INVALID)])
}

/// What happens to a segment that belongs to no connection, or not to this moment of one, such as one far out of the window.
///
/// The kernel does not translate it. So an answer of an endpoint would reach the client from an address that this one has never
/// asked, or, where the source of the connection was replaced, this node itself: and either would refuse it with a reset, which
/// breaks the connection at the endpoint. What comes for an lb_ip must not be refused either: the connection may be a good one.
/// Nothing is known of the connection here; so who sent it must be a pod of this node, or an endpoint that connections were
/// sent to.
fn invalid(family: Family) -> Vec<Vec<Expression>> {
    let drop = || Expression::Verdict(Verdict::Drop);
    let stray = rule(load(family, &[Field::Destination]), [lookup("addresses"), goto(STRAY)]);
    let answer = load(family, &[Field::Source, Field::Protocol, Field::SourcePort]);
    vec![
        stray,
        rule(load(family, &[Field::Source]), [lookup("pods"), drop()]),
        rule(protocol_is(TCP), rule(answer, [lookup("elsewhere"), drop()])),
    ]
}

/// Which source a connection that was translated gets, before it leaves for its endpoint:
/// `ct status dnat ct original ip daddr . ip daddr @local goto source-here`, and for all other endpoints
/// `ct status dnat ct original ip daddr @addresses goto source`
///
/// Where frames are spread, nearly all endpoints are on this node, so that is asked first, of connections of others as well.
fn postrouting(family: Family) -> Vec<Vec<Expression>> {
    let here = rule(load(family, &[Field::LbIp, Field::Destination]), [lookup("local"), goto(SOURCE_HERE)]);
    let elsewhere = rule(load(family, &[Field::LbIp]), [lookup("addresses"), goto(SOURCE)]);
    vec![translated(here), translated(elsewhere)]
}

/// For an endpoint elsewhere.
fn source(family: Family) -> Vec<Vec<Expression>> {
    let endpoint = load(family, &[Field::Destination, Field::Protocol, Field::Port]);
    let note = Expression::Count { set: "elsewhere".into(), seconds: COUNTED };
    vec![
        // Its answers can't be told by their address alone: see [`invalid`].
        rule(protocol_is(TCP), rule(endpoint, [note])),
        from_here_masqueraded(),
        // A pod of this node is answered through this node.
        rule(load(family, &[Field::Source]), [lookup("pods"), Expression::Verdict(Verdict::Return)]),
        vec![Expression::Masquerade],
    ]
}

/// For an endpoint on this node: that answers through this node, whoever asks. The source stays as it is, but for those who
/// would not get the answer.
fn source_here(family: Family) -> Vec<Vec<Expression>> {
    use Field::{Destination, LbIp, Source};
    // What came in by a link is not from this node, and that is known sooner than whose address its source is.
    let no_link = vec![Expression::Meta { what: Meta::Interface, into: Register::FIRST }, equals(vec![0; 4])];
    vec![
        // A pod that calls itself through the lb_ip would take the answer for a stranger's.
        rule(load(family, &[LbIp, Source, Destination]), [lookup("hairpin"), Expression::Masquerade]),
        rule(no_link, from_here_masqueraded()),
    ]
}

/// `fib saddr type local masquerade`
///
/// For this node itself: the route to the lb_ip chose its source address, which may be one that does not lead back here from
/// the endpoint.
fn from_here_masqueraded() -> Vec<Expression> {
    vec![
        Expression::SourceType { into: Register::FIRST },
        equals(RTN_LOCAL.to_ne_bytes().to_vec()),
        Expression::Masquerade,
    ]
}

/// `ct status dnat …`
fn translated(then: Vec<Expression>) -> Vec<Expression> {
    let status = vec![
        Expression::Status { into: Register::FIRST },
        Expression::Mask(IPS_DST_NAT.to_ne_bytes().to_vec()),
        Expression::Compare { relation: Relation::NotEqual, value: vec![0; 4] },
    ];
    rule(status, then)
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
    rule(load(family, &[Field::Destination]), [lookup("addresses"), goto(UNSERVED)])
}

/// An RTN_LOCAL route: the address is this host's own.
const RTN_LOCAL: u32 = 2;
/// The connection's destination is translated (IPS_DST_NAT).
const IPS_DST_NAT: u32 = 1 << 5;
/// The packet belongs to a connection that has been answered, in either direction: bit 1 + IP_CT_ESTABLISHED.
const STATE_ESTABLISHED: u32 = 1 << 1;
/// The packet belongs to no connection (NF_CT_STATE_INVALID_BIT).
const STATE_INVALID: u32 = 1;
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
