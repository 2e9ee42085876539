//! The chains of `ip landfall` and `ip6 landfall`, which translate and refuse packets.

use crds::Backend;
use crds::service::Family;

use super::fields::{FRONTEND, Field};
use super::rule::{ChainRule, SCTP, STATE_INVALID, STATE_UNTRACKED, TCP, UDP, equals, is_not_zero};
use super::second_chance;
use super::{Chain, Hook, OUTPUT, PREROUTING};
use crate::nft::chain_name::ChainName;
use crate::nft::codec::expression::{Ct, Expression, Header, Meta, Register, Relation, Verdict};
use crate::nft::optional_chains::OptionalChain;
use crate::rules::Dispatch;

/// Before kube-proxy's nat at -100 (dstnat).
const BEFORE_DSTNAT: i32 = -110;
/// Before our own translation of the source: when a nat chain translates, the kernel skips the later nat chains at its
/// hook.
const BEFORE_SOURCE: i32 = 80;
/// Before kube-proxy's masquerade at 100 (srcnat).
const BEFORE_SRCNAT: i32 = 90;
/// After all destination nat: the kernel runs destination nat at -100, whatever the priority of a nat chain. A nat
/// chain with this priority comes after those of kube-proxy.
const AFTER_DSTNAT: i32 = -90;
/// Before all destination nat.
const BEFORE_ALL_DSTNAT: i32 = -105;

const INPUT: u32 = 1;
const POSTROUTING: u32 = 4;
/// The chain that drops packets of forbidden clients, and the set that counts them.
const DENIED: &str = "denied";
/// The chain that counts and drops packets that no Service on this node serves.
pub(super) const STRAY: &str = "stray";
/// The chain for untranslated packets to an lb_ip.
const UNSERVED: &str = "unserved";
/// The chain for untranslated packets from this node to an lb_ip.
const UNSERVED_HERE: &str = "unserved-here";
/// The chain for packets that belong to no connection.
const INVALID: &str = "invalid";
/// The chain for packets of connections without a reply so far, and for packets of no connection.
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
/// The types of an echo request in ICMP and ICMPv6.
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// The first and last type of neighbour discovery (RFC 4861 §4).
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;

/// Identifies a translated connection. A rule must compare the protocol before it uses this key, or `nft` does not
/// accept the port of a connection.
const ORIGINAL_FRONTEND: [Field; 3] = [Field::OriginalDestination, Field::Protocol, Field::OriginalPort];

/// The fixed chains. A chain comes after the chains to which its rules go.
pub(super) fn chains(family: Family) -> Vec<Chain> {
    let base = |name, kind, number, priority, rules| Chain::base(name, Hook::new(kind, number, priority), rules);
    let refuse = |restricted| ChainName::Refuse { restricted };
    let rule = || ChainRule::new(family);
    let prerouting = vec![dispatch(from_inside(rule()), "inside"), dispatch(rule(), "services"), answer_ping(family)];
    let output = vec![dispatch(rule(), "inside"), dispatch(rule(), "services"), answer_ping(family)];
    let to_unestablished = if_unestablished(family).goto(UNESTABLISHED);
    vec![
        Chain::regular(DENIED, count_then_drop(family, FRONTEND, DENIED)),
        Chain::regular(refuse(false), refuse_rules(family)),
        Chain::regular(refuse(true), [vec![deny_other_sources(family)], refuse_rules(family)].concat()),
        Chain::regular(STRAY, count_then_drop(family, &[Field::Destination], "strays")),
        Chain::regular(UNSERVED, unserved_rules(family)),
        Chain::regular(UNSERVED_HERE, vec![pass_untracked(family), ChainRule::new(family).goto(UNSERVED)]),
        Chain::regular("learn", learn_rules(family)),
        Chain::regular(INVALID, invalid_rules(family)),
        Chain::regular(UNESTABLISHED, vec![goto_invalid(family), goto_unserved(rule())]),
        Chain::regular(SOURCE_HERE, source_here_rules(family)),
        Chain::regular(SOURCE, source_rules(family)),
        base("nat-prerouting", "nat", PREROUTING, BEFORE_DSTNAT, prerouting),
        base("nat-output", "nat", OUTPUT, BEFORE_DSTNAT, output),
        base("late-prerouting", "nat", PREROUTING, AFTER_DSTNAT, vec![drop_unproxied(family)]),
        base("late-output", "nat", OUTPUT, AFTER_DSTNAT, vec![drop_unproxied(family)]),
        base("nat-postrouting", "nat", POSTROUTING, BEFORE_SRCNAT, postrouting_rules(family)),
        base("filter-prerouting", "filter", PREROUTING, AFTER_DSTNAT, vec![to_unestablished]),
        base("filter-output", "filter", OUTPUT, AFTER_DSTNAT, vec![goto_unserved_here(if_unestablished(family))]),
    ]
}

/// `iifname != @links meta iiftype @pod-link-types …`
///
/// The packet came in by no link that clients may be on: it comes from a pod of this node. Pods are on links of the
/// type Ethernet; tunnels of other types lead to other hosts. Packets that a peer has re-sent come by a link of
/// clients. While no such link is known, nothing counts as from inside. A packet of this node itself has no link.
fn from_inside(rule: ChainRule) -> ChainRule {
    rule.lookup_inverted(&[Field::LinkName], "links").lookup(&[Field::LinkType], "pod-link-types")
}

/// `meta priority set ip daddr . meta l4proto . th dport map @… meta priority vmap @ways`
///
/// The first map has the number of a chain for each port, and `ways` has the verdict for each number. With verdicts in
/// the first map, the cost of each change would grow with the number of Services. When a verdict that leads to a chain
/// changes, the kernel walks all verdicts of the table. The rule assigns the number to `meta priority`, because `nft`
/// can only print a map lookup that is assigned to something (1.0.6 crashes on nested lookups). `meta priority` is
/// unused at this point, and the dispatch chain resets it. Only the first packet of a connection reaches this rule.
fn dispatch(rule: ChainRule, map: &str) -> ChainRule {
    let key = rule.key(FRONTEND);
    rule.map("meta priority set", key, map, Expression::SetMeta(Meta::Priority)).vmap(&[Field::Priority], "ways")
}

/// The chain that sends a new connection to an endpoint, or to the Service proxy.
///
/// The chain itself checks the source ranges. So one element selects the endpoints and the check, and during a change
/// no packet sees one without the other.
pub(super) fn dispatch_chain(family: Family, dispatch: Dispatch) -> Chain {
    let deny = dispatch.restricted.then(|| deny_other_sources(family));
    let reset = [Expression::LoadZero, Expression::SetMeta(Meta::Priority)];
    let reset = ChainRule::new(family).push(reset, "meta priority set none");
    let count = ChainRule::new(family).lookup(FRONTEND, "begun");
    let send = match dispatch.backend {
        Backend::Endpoints => pick_rules(family, dispatch),
        Backend::NodePort => node_port_rules(family),
        Backend::ClusterIp => vec![ChainRule::new(family).set_destination(FRONTEND, "cluster-ips")],
    };
    let rules = deny.into_iter().chain([reset, count]).chain(send).collect();
    Chain::regular(ChainName::Dispatch(dispatch), rules)
}

/// Readdresses a packet to a node port of this node.
///
/// The packet continues as if it had this destination, and meets the rules of the Service proxy at the same hook, which
/// translate it. Connection tracking has recorded the original destination before. All later translation of the
/// connection follows that record: replies come from the lb_ip, and later packets traverse no nat chain.
fn node_port_rules(family: Family) -> Vec<ChainRule> {
    let set_port = |rule: ChainRule, name: &str, write| {
        let key = rule.key(FRONTEND);
        rule.map(&format!("{name} dport set"), key, "node-ports", write)
    };
    let checked = |protocol| Expression::SetPort { protocol };
    let is = |protocol| ChainRule::new(family).has_transport(protocol);
    vec![
        set_port(is(TCP), "tcp", checked(TCP)),
        set_port(udp_checksum(is(UDP), Relation::NotEqual, "!= 0"), "udp", checked(UDP)),
        // Without this rule, the kernel would add a wrong checksum to a datagram that has none.
        set_port(udp_checksum(is(UDP), Relation::Equal, "0"), "udp", Expression::SetPortUnchecked),
        set_port(is(SCTP), "sctp", checked(SCTP)),
        ChainRule::new(family).set_destination(&[Field::Destination], "nodes"),
    ]
}

/// A UDP datagram with or without a checksum: 0 means that there is none (RFC 768).
fn udp_checksum(rule: ChainRule, relation: Relation, text: &str) -> ChainRule {
    let load = Expression::Payload { header: Header::Transport, offset: 6, length: 2, into: Register::FIRST };
    let compare = Expression::Compare { relation, value: vec![0; 2] };
    rule.push([load, compare], &format!("udp checksum {text}"))
}

/// Drops a readdressed packet that the Service proxy has not translated at its earlier priority. The proxy does not
/// know the Service yet, or no longer. Without this rule, this packet and all later ones would reach this node itself
/// or leave the cluster.
fn drop_unproxied(family: Family) -> ChainRule {
    let elsewhere = ChainRule::new(family).lookup_inverted(&[Field::Destination], "addresses");
    elsewhere.lookup(&[Field::OriginalDestination], "addresses").verdict(Verdict::Drop)
}

/// Sends a connection to a random endpoint or, with session affinity, to the endpoint of the client.
fn pick_rules(family: Family, dispatch: Dispatch) -> Vec<ChainRule> {
    let client = [&[Field::Source][..], FRONTEND].concat();
    let to_known = dispatch.affinity.map(|_| ChainRule::new(family).dnat(&client, "affinity"));
    let endpoint = [FRONTEND, &[Field::Random(dispatch.pick)][..]].concat();
    to_known.into_iter().chain([ChainRule::new(family).dnat(&endpoint, "endpoints")]).collect()
}

fn deny_other_sources(family: Family) -> ChainRule {
    let key = [Field::Destination, Field::Protocol, Field::DestinationPort, Field::Source];
    ChainRule::new(family).lookup_inverted(&key, "sources").goto(DENIED)
}

/// Counts a packet in this set, then drops it. These are two rules: if the set is full, the first rule ends without a
/// count, and the second one must still drop the packet.
fn count_then_drop(family: Family, key: &[Field], set: &str) -> Vec<ChainRule> {
    vec![ChainRule::new(family).count(key, set), ChainRule::new(family).verdict(Verdict::Drop)]
}

/// Refuses a packet to a port without endpoints, so that the client gets an error at once and not after a timeout. The
/// error is a reset for TCP. For other protocols it is an ICMP error, which may be lost (the kernel limits the rate).
fn refuse_rules(family: Family) -> Vec<ChainRule> {
    vec![
        ChainRule::new(family).count(FRONTEND, "refusals"),
        ChainRule::new(family).has_transport(TCP).push([Expression::RejectReset], "reject with tcp reset"),
        ChainRule::new(family).push([Expression::RejectUnreachable(family)], "reject"),
    ]
}

/// Decides whether the endpoint of a translated connection is remembered. At this point the destination is translated,
/// so the endpoint is known. The source is not translated yet, so the client is known.
fn learn_rules(family: Family) -> Vec<ChainRule> {
    let learn = |protocol| ChainRule::new(family).l4proto(protocol).vmap(&ORIGINAL_FRONTEND, "remember");
    [TCP, UDP, SCTP].map(learn).into()
}

/// A chain that exists only while it is needed.
pub(super) fn optional_chain(family: Family, chain: OptionalChain) -> Chain {
    let learn = if_translated(family).goto("learn");
    let (kind, number, priority, rule) = match chain {
        OptionalChain::SecondChance => return second_chance::base_chain(family),
        // Before translation. All packets of the node traverse this chain, including those of other programs. Replies
        // are not counted: the chain would have to look up their connection, at twice the cost.
        OptionalChain::CountTraffic => {
            ("filter", PREROUTING, BEFORE_ALL_DSTNAT, ChainRule::new(family).lookup(FRONTEND, "traffic"))
        }
        OptionalChain::LearnInput => ("nat", INPUT, BEFORE_SOURCE, learn),
        OptionalChain::LearnPostrouting => ("nat", POSTROUTING, BEFORE_SOURCE, learn),
    };
    Chain::base(chain.name(), Hook::new(kind, number, priority), vec![rule])
}

/// The chain that remembers the endpoint of a client for this many seconds.
pub(super) fn remember_chain(family: Family, seconds: u32) -> Chain {
    let client = [&[Field::Source][..], &ORIGINAL_FRONTEND].concat();
    let endpoint = [Field::Destination, Field::ReplySourcePort];
    let remember = |protocol| ChainRule::new(family).l4proto(protocol).update("affinity", &client, seconds, &endpoint);
    Chain::regular(ChainName::Remember(seconds), [TCP, UDP, SCTP].map(remember).into())
}

/// Refuses an untranslated packet to a port of a Service, and drops any other packet to an lb_ip. Neighbour discovery
/// for the lb_ip (RFC 4861) passes, since it is not traffic of the Service. (IPv4 uses ARP, which does not come here.)
fn unserved_rules(family: Family) -> Vec<ChainRule> {
    let discovery = [(Relation::AtLeast, ROUTER_SOLICITATION), (Relation::AtMost, REDIRECT)];
    let pass_discovery =
        (family == Family::V6).then(|| ChainRule::new(family).icmp_type(discovery, "133-137").verdict(Verdict::Return));
    let refuse = ChainRule::new(family).vmap(FRONTEND, "refused");
    pass_discovery.into_iter().chain([refuse, ChainRule::new(family).goto(STRAY)]).collect()
}

/// `ct state != established …`
///
/// Every packet of the node is compared. For packets of open connections this is the only comparison. The rule applies
/// to all other packets, mostly those of a connection until its first reply, and those of no connection. A packet has
/// exactly one state, so the comparison uses all bits.
///
/// A connection to an lb_ip can have a reply although it is not translated. Such a connection belongs to another
/// program, and began before the lb_ip was here. The rule does not apply to it.
fn if_unestablished(family: Family) -> ChainRule {
    let other = Expression::Compare { relation: Relation::NotEqual, value: STATE_ESTABLISHED.to_ne_bytes().into() };
    ChainRule::new(family).push([load_ct(Ct::State), other], "ct state != established")
}

fn goto_invalid(family: Family) -> ChainRule {
    ChainRule::new(family).has_state(STATE_INVALID).l4proto(TCP).goto(INVALID)
}

/// A copy of a segment that this node hands on to another one is not tracked.
fn pass_untracked(family: Family) -> ChainRule {
    ChainRule::new(family).has_state(STATE_UNTRACKED).verdict(Verdict::Return)
}

/// Drops a segment that belongs to no connection, or that is outside its window.
///
/// The kernel does not translate such a segment. A segment from an endpoint would reach the client from an unknown
/// address. If the connection is masqueraded, the segment would reach this node itself. The receiver would answer with
/// a reset, which breaks the connection at the endpoint. A segment to an lb_ip must not be refused either: its
/// connection may be valid. The connection of a segment is unknown here. So the rules drop segments from pods of this
/// node, and from the endpoints in `elsewhere`.
///
/// A segment without SYN to an lb_ip may belong to a connection of another node, so it is handed on first.
fn invalid_rules(family: Family) -> Vec<ChainRule> {
    let rule = || ChainRule::new(family);
    let endpoint = [Field::Source, Field::Protocol, Field::SourcePort];
    vec![
        second_chance::hand_on(family),
        rule().lookup(&[Field::Destination], "addresses").goto(STRAY),
        from_inside(rule()).verdict(Verdict::Drop),
        rule().has_transport(TCP).lookup(&endpoint, "elsewhere").verdict(Verdict::Drop),
    ]
}

/// Chooses the source of a translated connection before it leaves for its endpoint.
///
/// With spreading, nearly all endpoints are on this node, so the first rule checks that case. It also looks up
/// translated connections of other programs, which are not in `local`.
fn postrouting_rules(family: Family) -> Vec<ChainRule> {
    let here = [Field::OriginalDestination, Field::Destination];
    vec![
        if_translated(family).lookup(&here, "local").goto(SOURCE_HERE),
        if_translated(family).lookup(&[Field::OriginalDestination], "addresses").goto(SOURCE),
    ]
}

/// The source of a connection to an endpoint on another node.
fn source_rules(family: Family) -> Vec<ChainRule> {
    vec![
        // Remembers the address and port of the endpoint for [`invalid_rules`]. The address alone does not identify
        // replies of the endpoint.
        ChainRule::new(family).has_transport(TCP).count(FRONTEND, "elsewhere"),
        masquerade_own_source(ChainRule::new(family)),
        // Replies to a pod of this node come through this node, so the source stays.
        from_inside(ChainRule::new(family)).verdict(Verdict::Return),
        masquerade(ChainRule::new(family)),
    ]
}

/// The source of a connection to an endpoint on this node. All replies come through this node, so the source stays,
/// except for clients that would not accept the reply.
fn source_here_rules(family: Family) -> Vec<ChainRule> {
    use Field::{Destination, OriginalDestination, Source};
    // A packet that arrived by a link is not from this node. This check is cheaper than that of the source's type.
    let no_link = [Expression::Meta { key: Meta::Iif, into: Register::FIRST }, equals([0; 4])];
    vec![
        // A pod that calls itself through the lb_ip would not recognise the reply.
        masquerade(ChainRule::new(family).lookup(&[OriginalDestination, Source, Destination], "hairpin")),
        masquerade_own_source(ChainRule::new(family).push(no_link, "iif 0")),
    ]
}

/// `fib saddr type local masquerade`
///
/// For connections from this node itself. The route to the lb_ip has determined the source address, and the endpoint
/// may have no route back to it.
fn masquerade_own_source(rule: ChainRule) -> ChainRule {
    let is_own = [Expression::FibSourceType { into: Register::FIRST }, equals(RTN_LOCAL.to_ne_bytes())];
    masquerade(rule.push(is_own, "fib saddr type local"))
}

fn masquerade(rule: ChainRule) -> ChainRule {
    rule.push([Expression::Masquerade], "masquerade fully-random")
}

/// `ct status dnat …`
fn if_translated(family: Family) -> ChainRule {
    let is_translated = [load_ct(Ct::Status), Expression::Mask(IPS_DST_NAT.to_ne_bytes().into()), is_not_zero(4)];
    ChainRule::new(family).push(is_translated, "ct status dnat")
}

/// Redirects a ping to an lb_ip to this node, which answers it.
fn answer_ping(family: Family) -> ChainRule {
    let request = match family {
        Family::V4 => ECHO_REQUEST,
        Family::V6 => ECHO_REQUEST_V6,
    };
    let to_lb_ip = ChainRule::new(family).lookup(&[Field::Destination], "addresses");
    to_lb_ip.icmp_type([(Relation::Equal, request)], "echo-request").push([Expression::Redirect], "redirect")
}

/// `… ip daddr @addresses goto unserved`
fn goto_unserved(rule: ChainRule) -> ChainRule {
    rule.lookup(&[Field::Destination], "addresses").goto(UNSERVED)
}

/// `… ip daddr @addresses goto unserved-here`
fn goto_unserved_here(rule: ChainRule) -> ChainRule {
    rule.lookup(&[Field::Destination], "addresses").goto(UNSERVED_HERE)
}

fn load_ct(key: Ct) -> Expression {
    Expression::Ct { key, into: Register::FIRST }
}
