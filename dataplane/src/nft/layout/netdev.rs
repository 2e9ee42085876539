//! The chains of `netdev landfall`, which spreads frames.
//!
//! ```text
//!   on-eth0: to an lb_ip in spread? ──▶ spread
//!
//!   spread: from a peer, or not to this node's MAC address ──▶ stays here
//!           fragment ──▶ wholes [ lb_ip . proto ] ──▶ fragments ─────────────┐
//!           ICMP error ──▶ classes, by the quoted packet ──▶ quoted ─────────┤
//!           open TCP connection ──▶ connections [ 4-tuple ] ──▶ known        ├──▶ hop ──▶ send
//!           any other ──▶ classes [ lb_ip . proto . port ] ──▶ flow, clients ┘
//!                                                             │
//!   slots [ table . hash ] ──▶ pair;  hops [ link . pair ] ──▶ MAC address;  TCP: added to connections
//!   send: own MAC address ──▶ stays here; any other ──▶ out by the same link, from this node's MAC address
//! ```
//!
//! The lookups overwrite the frame's destination address step by step: first with the marker of a share table, then
//! with the marker of a pair of nodes, then with a MAC address. `nft` can express that. A frame that stays gets this
//! node's address back.

use crds::service::Family;

use super::fields::{
    DESTINATION_MAC, FRONTEND, Field, MAC_LENGTH, SOURCE_MAC, equals, goto, is_protocol, load, load_at, load_icmp_type,
    lookup, lookup_value, rule,
};
use super::{Chain, Hook};
use crate::link_name::LinkName;
use crate::nft::chain_name::ChainName;
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation, Verdict};
use crate::rules::{FIRST_PIECE, PIECES, SLOTS};

/// The number of the first slot of a table hashed by client. It follows all slots of a table hashed by flow, so that
/// one map holds both.
pub const FIRST_CLIENT_SLOT: u32 = 2048;
/// NF_NETDEV_INGRESS.
const INGRESS: u32 = 0;
/// Programs that filter frames do so before.
const PRIORITY: i32 = 0;
/// A TCP connection stays on its node for this many seconds after its last packet, whatever happens to the table.
/// Keepalives are more frequent. A connection that is silent for longer goes by the table, which seldom changes.
const CONNECTION_TIMEOUT: u32 = 120;
/// ARPHRD_ETHER.
const ETHERNET: u16 = 1;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// ICMP types that quote a packet: unreachable, time exceeded, parameter problem (RFC 792).
const ICMP_ERRORS: [u8; 3] = [3, 11, 12];
/// The last ICMPv6 type that quotes a packet; the first is 1, and 0 is unused (RFC 4443 §2.1).
const LAST_ICMPV6_ERROR: u8 = 4;
/// The offset of the TCP flags, and the flag that begins a connection (RFC 9293 §3.1).
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;

/// The fixed chains. A chain comes after those that it goes to.
pub(super) fn chains() -> Vec<Chain> {
    let chain = |name: &str, rules| Chain { name: name.to_owned(), hook: None, rules };
    let mut chains = vec![chain("send", send_rules()), chain("hop", hop_rules("send"))];
    chains.extend([Family::V4, Family::V6].into_iter().flat_map(family_chains));
    chains
}

/// The fixed chains of one family.
fn family_chains(family: Family) -> [Chain; 8] {
    let chain = |name: &str, rules| Chain { name: with_family(family, name), hook: None, rules };
    let by_flow = &[Field::Source, Field::SourcePort, Field::DestinationPort][..];
    let by_quoted = &[Field::QuotedDestination, Field::QuotedDestinationPort, Field::QuotedSourcePort][..];
    let (client, quoted_client) = (&by_flow[..1], &by_quoted[..1]);
    let hop_and_learn = with_family(family, "hop");
    let flow_or_clients =
        [hash_rules(family, by_flow, 0, &hop_and_learn), vec![vec![goto(&with_family(family, "clients"))]]];
    let quoted = [hash_rules(family, by_quoted, 0, "hop"), client_hash_rules(family, quoted_client, "hop")];
    [
        chain("learn", learn_rules(family)),
        chain("hop", hop_rules(&with_family(family, "learn"))),
        chain("fragments", client_hash_rules(family, client, "hop")),
        chain("clients", client_hash_rules(family, client, &hop_and_learn)),
        chain("flow", flow_or_clients.concat()),
        chain("quoted", quoted.concat()),
        chain("known", known_rules(family)),
        chain("spread", spread_rules(family)),
    ]
}

/// The chain at the ingress of a link.
pub(super) fn ingress_chain(link: LinkName) -> Chain {
    let to_spread = |family| {
        let address = load(family, &[Field::Destination]);
        let spread = with_family(family, "spread");
        rule(is_family(family), rule(address, [lookup(&spread), goto(&spread)]))
    };
    Chain {
        name: ChainName::Ingress(link).to_string(),
        hook: Some(Hook { kind: "filter", number: INGRESS, priority: PRIORITY, link: Some(link) }),
        rules: [Family::V4, Family::V6].map(to_spread).into(),
    }
}

/// Decides whether a frame may be re-sent, and how its next hop is looked up.
fn spread_rules(family: Family) -> Vec<Vec<Expression>> {
    let accept = || Expression::Verdict(Verdict::Accept);
    let from_peer = rule(is_ethernet(), rule(load(family, &[Field::SourceMac]), [lookup("peers"), accept()]));
    let not_own = Expression::LookupInverted { set: "own".into() };
    let to_other = load(family, &[Field::LinkName, Field::DestinationMac]);
    let to_other = rule(is_ethernet(), rule(to_other, [not_own, accept()]));
    // Only the first fragment has ports, and all fragments of a datagram must go to the same node.
    let fragment_class = write_mac_from(family, &[Field::Destination, Field::Protocol], &with_family(family, "wholes"));
    let fragment = rule(fragment_class, [goto(&with_family(family, "fragments"))]);
    let fragments = vec![rule(is_fragment(family), fragment), rule(is_fragment(family), [accept()])];
    let classified = rule(write_class(family), [goto(&with_family(family, "flow"))]);
    [vec![from_peer, to_other], fragments, icmp_error_rules(family), tcp_rules(family), vec![classified]].concat()
}

/// An ICMP error goes to the node that sent the quoted packet. With source and destination exchanged, that packet
/// belongs to the flow whose packets come here.
fn icmp_error_rules(family: Family) -> Vec<Vec<Expression>> {
    let to_quoted = |is_error: Vec<Expression>| {
        let key = [Field::Destination, Field::QuotedProtocol, Field::QuotedSourcePort];
        let class = write_mac_from(family, &key, &with_family(family, "classes"));
        rule(is_family(family), rule(is_error, rule(class, [goto(&with_family(family, "quoted"))])))
    };
    match family {
        Family::V4 => ICMP_ERRORS.map(|kind| to_quoted(rule(load_icmp_type(ICMP), [equals(vec![kind])]))).into(),
        Family::V6 => {
            let at_most = Expression::Compare { relation: Relation::AtMost, value: vec![LAST_ICMPV6_ERROR] };
            vec![to_quoted(rule(load_icmp_type(ICMPV6), [at_most]))]
        }
    }
}

/// Forgets the connection of a SYN, since a new connection may have the ports of an old one, and sends known
/// connections on.
fn tcp_rules(family: Family) -> Vec<Vec<Expression>> {
    let (key, value) = load_connection(family);
    let forget = Expression::DynsetDelete { map: with_family(family, "connections"), value };
    let begins = rule(syn_flag(Relation::NotEqual), rule(is_ethernet_of(family), rule(key, [forget])));
    let known = write_mac_from(family, CONNECTION_KEY, &with_family(family, "connections"));
    let known = rule(known, [goto(&with_family(family, "known"))]);
    vec![begins, rule(is_protocol(TCP), rule(is_ethernet_of(family), known))]
}

/// A known connection stays on its node, unless that is dead.
fn known_rules(family: Family) -> Vec<Vec<Expression>> {
    let alive = [lookup("alive"), goto(&with_family(family, "learn"))];
    let stays = rule(is_ethernet(), rule(load(family, &[Field::LinkName, Field::DestinationMac]), alive));
    let moves = rule(write_class(family), [goto(&with_family(family, "flow"))]);
    vec![stays, moves, write_own_mac()]
}

/// Remembers the node of a TCP connection, but not of a SYN: a client could send any number of these.
fn learn_rules(family: Family) -> Vec<Vec<Expression>> {
    let (key, value) = load_connection(family);
    let map = with_family(family, "connections");
    let update = Expression::DynsetUpdate { map, value, seconds: CONNECTION_TIMEOUT };
    let is_open = rule(syn_flag(Relation::Equal), is_ethernet_of(family));
    vec![rule(is_open, rule(key, [update])), vec![goto("send")]]
}

/// Resolves the marker of a pair to a MAC address, and goes to that chain.
fn hop_rules(then: &str) -> Vec<Vec<Expression>> {
    let next_hop = write_mac_from(Family::V4, &[Field::LinkName, Field::DestinationMac], "hops");
    vec![rule(next_hop, [goto(then)]), write_own_mac()]
}

/// Re-sends the frame to its destination, or keeps it if that is this node.
fn send_rules() -> Vec<Vec<Expression>> {
    let own = [lookup("own"), Expression::Verdict(Verdict::Accept)];
    let stays = rule(is_ethernet(), rule(load(Family::V4, &[Field::LinkName, Field::DestinationMac]), own));
    // With the client's source address, the switch would learn the client at this node's port.
    let set_source = Expression::SetLinkHeader { offset: SOURCE_MAC, length: MAC_LENGTH };
    let from_here = rule(load(Family::V4, &[Field::LinkName]), [lookup_value("macs"), set_source]);
    let out = [Expression::Meta { key: Meta::Iif, into: Register::FIRST }, Expression::Fwd];
    vec![stays, rule(is_ethernet(), rule(from_here, out))]
}

/// Restores this node's MAC address: the frame stays.
fn write_own_mac() -> Vec<Expression> {
    write_mac_from(Family::V4, &[Field::LinkName], "macs")
}

/// Resolves the marker of a table to the marker of a pair, by a hash of these fields: first in whole slots, then in
/// pieces.
fn hash_rules(family: Family, fields: &[Field], first_slot: u32, then: &str) -> Vec<Vec<Expression>> {
    let step = |modulus, offset| {
        let (key, hash) = load_at(0, family, &[Field::DestinationMac]);
        // The input of the hash begins a 16-byte register.
        let from = 4;
        let (input, end) = load_at(from, family, fields);
        let length = 4 * u32::from(end - from);
        let (from, into) = (Register::Word(from), Register::Word(hash));
        let hash = Expression::Jhash { from, length, modulus, offset, into };
        // The quoted fields belong to no protocol of their own.
        let is_packet = if matches!(fields[0], Field::Source) { has_ether_type(family) } else { Vec::new() };
        [is_ethernet(), is_packet, key, input, vec![hash, lookup_value("slots"), write_mac(), goto(then)]].concat()
    };
    vec![step(SLOTS, first_slot), step(SLOTS * PIECES, first_slot + FIRST_PIECE)]
}

/// The same by a hash of the client alone. If the table has no such slot, which cannot happen, the frame stays.
fn client_hash_rules(family: Family, client: &[Field], then: &str) -> Vec<Vec<Expression>> {
    [hash_rules(family, client, FIRST_CLIENT_SLOT, then), vec![write_own_mac()]].concat()
}

/// `ether daddr set ip daddr . meta l4proto . th dport map @classes4`
fn write_class(family: Family) -> Vec<Expression> {
    let class = load(family, FRONTEND);
    let write = [lookup_value(&with_family(family, "classes")), write_mac()];
    rule(is_ethernet_of(family), rule(class, write))
}

/// `ether daddr set KEY map @MAP`
fn write_mac_from(family: Family, key: &[Field], map: &str) -> Vec<Expression> {
    rule(is_ethernet(), rule(load(family, key), [lookup_value(map), write_mac()]))
}

fn write_mac() -> Expression {
    Expression::SetLinkHeader { offset: DESTINATION_MAC, length: MAC_LENGTH }
}

/// Identifies a connection.
const CONNECTION_KEY: &[Field] = &[Field::Source, Field::SourcePort, Field::Destination, Field::DestinationPort];

/// Loads the key of a connection, and after it the frame's destination.
fn load_connection(family: Family) -> (Vec<Expression>, Register) {
    let (key, end) = load_at(0, family, CONNECTION_KEY);
    let (value, _) = load_at(end, family, &[Field::DestinationMac]);
    (rule(key, value), Register::Word(end))
}

/// `meta l4proto tcp tcp flags syn` for [`Relation::NotEqual`], `… ! syn` for [`Relation::Equal`].
fn syn_flag(relation: Relation) -> Vec<Expression> {
    let flags = Expression::Payload { header: Header::Transport, offset: TCP_FLAGS, length: 1, into: Register::FIRST };
    let is_set = Expression::Compare { relation, value: vec![0] };
    rule(is_protocol(TCP), [flags, Expression::Mask(vec![SYN]), is_set])
}

/// An Ethernet frame: `nft` checks that before it reads MAC addresses.
fn is_ethernet() -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::IifType, into: Register::FIRST }, equals(ETHERNET.to_ne_bytes().into())]
}

/// A packet of this family: `nft` checks that before it reads its header.
fn is_family(family: Family) -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::Protocol, into: Register::FIRST },
        equals(ether_type(family).to_be_bytes().into()),
    ]
}

/// A packet of this family in a frame that is known to be Ethernet.
fn has_ether_type(family: Family) -> Vec<Expression> {
    let kind = Expression::Payload { header: Header::Link, offset: 12, length: 2, into: Register::FIRST };
    vec![kind, equals(ether_type(family).to_be_bytes().into())]
}

fn is_ethernet_of(family: Family) -> Vec<Expression> {
    rule(is_ethernet(), has_ether_type(family))
}

fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

/// A fragment: it has an offset or the flag for more (RFC 791 §3.1), or a fragment header (RFC 8200 §4.5).
fn is_fragment(family: Family) -> Vec<Expression> {
    let is = match family {
        Family::V4 => vec![
            Expression::Payload { header: Header::Network, offset: 6, length: 2, into: Register::FIRST },
            Expression::Mask(vec![0x3f, 0xff]),
            Expression::Compare { relation: Relation::NotEqual, value: vec![0; 2] },
        ],
        Family::V6 => vec![Expression::ExthdrFragment { into: Register::FIRST }, equals(vec![1])],
    };
    rule(is_family(family), is)
}

/// The name of a chain, set or map that exists once for each family.
fn with_family(family: Family, name: &str) -> String {
    match family {
        Family::V4 => format!("{name}4"),
        Family::V6 => format!("{name}6"),
    }
}
