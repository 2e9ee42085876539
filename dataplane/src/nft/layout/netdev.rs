//! The chains of `netdev landfall`, which spreads frames.
//!
//! ```text
//!   on-eth0: to an lb_ip in spread? ──▶ spread
//!
//!   spread: from a peer ──▶ final: stays here; not to this node's MAC address ──▶ stays here
//!           fragment ──▶ wholes [ lb_ip . proto ] ──▶ fragments ─────────────┐
//!           ICMP error ──▶ connections, by the quoted packet ──▶ send        │
//!                      └─▶ classes, by the quoted packet ──▶ quoted ─────────┤
//!           open TCP connection ──▶ connections [ 4-tuple ] ──▶ known        ├──▶ hop ──▶ send
//!           any other ──▶ classes [ lb_ip . proto . port ] ──▶ flow, clients ┘
//!                                                             │
//!   slots [ table . hash ] ──▶ pair;  hops [ link . pair ] ──▶ MAC address;  TCP: added to connections
//!   send: own MAC address ──▶ stays here; any other ──▶ out by the same link, from this node's MAC address
//! ```
//!
//! The lookups overwrite the frame's destination address in steps that `nft` can express. They write the marker of a
//! share table, then the marker of a pair of nodes, then a MAC address. A frame that stays gets this node's address
//! back.

use crds::service::Family;

use super::fields::{FRONTEND, Field, MAC_LENGTH, SOURCE_MAC, print_offset};
use super::rule::{ChainRule, TCP, equals, is_not_zero};
use super::second_chance::MAX_HOPS;
use super::{Chain, Hook};
use crate::link_name::LinkName;
use crate::nft::chain_name::ChainName;
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation, Verdict};
use crate::rules::{FIRST_PIECE, PIECES, SLOTS};

/// The number of the first slot of a table hashed by client. It follows all slots of a table hashed by flow, so that
/// one map holds both kinds of slots.
pub const FIRST_CLIENT_SLOT: u32 = 2048;
/// NF_NETDEV_INGRESS.
const INGRESS: u32 = 0;
/// The priority of the chain. Programs that filter frames run before it.
const PRIORITY: i32 = 0;
/// A TCP connection is remembered for this many seconds after the client sent data: a day. Connection tracking forgets
/// an idle connection after five days, but here clients that vanish must not fill the map for days. A segment of a
/// forgotten connection takes the detour of `second_chance`.
const OPEN_TIMEOUT: u32 = 86_400;
/// A connection is remembered for this many seconds after its first segment, until the client sends data, and after its
/// end. So segments that belong to no connection fill the map only if an address sends several.
const UNUSED_TIMEOUT: u32 = 30;
/// The flags of TCP segments, with their names in `nft` (RFC 9293 §3.1).
const PSH: (u8, &str) = (8, "psh");
const FIN_OR_RST: (u8, &str) = (5, "fin,rst");
/// The ICMP types that quote a packet (RFC 792), with their names in `nft`.
const ICMP_ERRORS: [(u8, &str); 3] = [(3, "destination-unreachable"), (11, "time-exceeded"), (12, "parameter-problem")];
/// The last ICMPv6 type that quotes a packet; the first is 1, and 0 is unused (RFC 4443 §2.1).
const LAST_ICMPV6_ERROR: u8 = 4;

/// `iifname . ether daddr`
const LINK_MAC: &[Field] = &[Field::LinkName, Field::DestinationMac];
/// Identifies a connection.
const CONNECTION: &[Field] = &[Field::Source, Field::SourcePort, Field::Destination, Field::DestinationPort];

/// The fixed chains. Each chain comes after the chains to which its rules go.
pub(super) fn chains() -> Vec<Chain> {
    let mut chains = vec![Chain::regular("send", send_rules()), Chain::regular("hop", hop_rules("send"))];
    chains.extend(Family::ALL.into_iter().flat_map(family_chains));
    chains
}

/// The fixed chains of one family.
fn family_chains(family: Family) -> [Chain; 12] {
    let chain = |name, rules| Chain::regular(with_family(family, name), rules);
    let by_flow = &[Field::Source, Field::SourcePort, Field::DestinationPort][..];
    let by_quoted = &[Field::QuotedDestination, Field::QuotedDestinationPort, Field::QuotedSourcePort][..];
    let (client, quoted_client) = (&by_flow[..1], &by_quoted[..1]);
    let hop_and_learn = with_family(family, "hop");
    let to_clients = vec![ChainRule::new(family).goto(&with_family(family, "clients"))];
    let flow_or_clients = [hash_rules(family, by_flow, 0, &hop_and_learn), to_clients];
    let quoted = [hash_rules(family, by_quoted, 0, "hop"), client_hash_rules(family, quoted_client, "hop")];
    [
        chain("learn", learn_rules(family)),
        chain("renew", renew_rules(family)),
        chain("hop", hop_rules(&with_family(family, "learn"))),
        chain("fragments", client_hash_rules(family, client, "hop")),
        chain("clients", client_hash_rules(family, client, &hop_and_learn)),
        chain("flow", flow_or_clients.concat()),
        chain("quoted", quoted.concat()),
        chain("errors", error_rules(family)),
        chain("known", known_rules(family)),
        chain("returned", returned_rules(family)),
        chain("final", vec![goto_returned(family)]),
        chain("spread", spread_rules(family)),
    ]
}

/// The chain at the ingress of a link.
pub(super) fn ingress_chain(link: LinkName) -> Chain {
    let to_spread = |family| {
        let spread = with_family(family, "spread");
        ChainRule::new(family).has_family().lookup(&[Field::Destination], &spread).goto(&spread)
    };
    let hook = Hook { link: Some(link), ..Hook::new("filter", INGRESS, PRIORITY) };
    Chain::base(ChainName::Ingress(link), hook, Family::ALL.map(to_spread).into())
}

/// Decides whether a frame may be re-sent, and how its next hop is looked up.
fn spread_rules(family: Family) -> Vec<ChainRule> {
    let from_peer = ChainRule::new(family).has_ethernet().lookup(&[Field::SourceMac], "peers");
    let to_other = ChainRule::new(family).has_ethernet().lookup_inverted(LINK_MAC, "own");
    // Only the first fragment has ports, and all fragments of a datagram must go to the same node.
    let class = [Field::Destination, Field::Protocol];
    let fragment = set_mac(is_fragment(family), &class, &with_family(family, "wholes"));
    let mut rules = vec![
        from_peer.goto(&with_family(family, "final")),
        to_other.verdict(Verdict::Accept),
        fragment.goto(&with_family(family, "fragments")),
        is_fragment(family).verdict(Verdict::Accept),
    ];
    rules.extend(icmp_error_rules(family));
    rules.extend(tcp_rules(family));
    rules.push(classify(family).goto(&with_family(family, "flow")));
    rules
}

/// Leads ICMP errors to [`error_rules`].
fn icmp_error_rules(family: Family) -> Vec<ChainRule> {
    let to_errors = |comparison, text| {
        let is_error = ChainRule::new(family).has_family().icmp_type([comparison], text);
        is_error.goto(&with_family(family, "errors"))
    };
    match family {
        Family::V4 => ICMP_ERRORS.map(|(kind, name)| to_errors((Relation::Equal, kind), name)).into(),
        Family::V6 => vec![to_errors((Relation::AtMost, LAST_ICMPV6_ERROR), "<= parameter-problem")],
    }
}

/// An ICMP error goes to the node that sent the quoted packet. The quoted packet is a reply. With its source and
/// destination exchanged, it belongs to the flow whose packets come here: a remembered connection, or any other flow.
fn error_rules(family: Family) -> Vec<ChainRule> {
    let port = [Field::Destination, Field::QuotedProtocol, Field::QuotedSourcePort];
    let connection =
        [Field::QuotedDestination, Field::QuotedDestinationPort, Field::Destination, Field::QuotedSourcePort];
    let with = |key: &[Field], map: &str| {
        set_mac(ChainRule::new(family).has_ethernet_and_family(), key, &with_family(family, map))
    };
    vec![with(&connection, "connections").goto("send"), with(&port, "classes").goto(&with_family(family, "quoted"))]
}

/// Deletes the entry with the addresses and ports of a SYN, since the SYN begins a new connection. Then sends packets
/// of the remembered connections on.
fn tcp_rules(family: Family) -> Vec<ChainRule> {
    let begins = ChainRule::new(family).has_syn(Relation::NotEqual, "syn");
    let is_tcp = ChainRule::new(family).has_transport(TCP).has_ethernet_and_family();
    vec![
        forget(family, begins),
        set_mac(is_tcp, CONNECTION, &with_family(family, "connections")).goto(&with_family(family, "known")),
    ]
}

/// A known connection stays on its node, unless that node is dead.
fn known_rules(family: Family) -> Vec<ChainRule> {
    let stays = ChainRule::new(family).has_ethernet().lookup(LINK_MAC, "alive");
    let moves = classify(family);
    vec![
        stays.goto(&with_family(family, "renew")),
        // An update alone would keep the dead node in the entry.
        forget(family, ChainRule::new(family).has_transport(TCP)),
        moves.goto(&with_family(family, "flow")),
        restore_own_mac(),
    ]
}

/// Remembers the node of a TCP connection, but not of a SYN: a client could send any number of SYNs.
fn learn_rules(family: Family) -> Vec<ChainRule> {
    let is_open = ChainRule::new(family).has_syn(Relation::Equal, "! syn");
    vec![remember(family, is_open, UNUSED_TIMEOUT), ChainRule::new(family).goto("send")]
}

/// Remembers a known connection for longer if the client sends data, and for a short time if it ends. An
/// acknowledgement changes nothing: it may be the last one after the end.
fn renew_rules(family: Family) -> Vec<ChainRule> {
    let has_flag = |(bits, name)| ChainRule::new(family).has_tcp_flags(bits, Relation::NotEqual, name);
    vec![
        remember(family, has_flag(PSH), OPEN_TIMEOUT),
        remember(family, has_flag(FIN_OR_RST), UNUSED_TIMEOUT),
        ChainRule::new(family).goto("send"),
    ]
}

/// Stores the destination MAC address for the connection of a segment, or restarts the timeout of its entry.
fn remember(family: Family, segment: ChainRule, seconds: u32) -> ChainRule {
    let connections = with_family(family, "connections");
    segment.has_ethernet_and_family().update(&connections, CONNECTION, seconds, &[Field::DestinationMac])
}

/// Deletes the entry of the connection of a segment.
fn forget(family: Family, segment: ChainRule) -> ChainRule {
    let connections = with_family(family, "connections");
    segment.has_ethernet_and_family().delete(&connections, CONNECTION, &[Field::DestinationMac])
}

/// A frame from a peer stays here, whatever this rule decides.
fn goto_returned(family: Family) -> ChainRule {
    let packet = ChainRule::new(family).has_family();
    packet.hop_limit_at_most(MAX_HOPS).goto(&with_family(family, "returned"))
}

/// If another node has handed a segment on, this node may track its connection, and may be the announcer. Then the next
/// segments of the connection stay here, without the detour over the other nodes.
fn returned_rules(family: Family) -> Vec<ChainRule> {
    let segment = || ChainRule::new(family).has_transport(TCP);
    // An update alone would keep the node in the entry.
    vec![forget(family, segment()), remember(family, segment(), UNUSED_TIMEOUT)]
}

/// Resolves the marker of a pair to a MAC address, and goes to the chain `then`.
fn hop_rules(then: &str) -> Vec<ChainRule> {
    vec![set_mac(ChainRule::new(Family::V4), LINK_MAC, "hops").goto(then), restore_own_mac()]
}

/// Re-sends the frame to its destination, or keeps it if that is this node.
fn send_rules() -> Vec<ChainRule> {
    let stays = ChainRule::new(Family::V4).has_ethernet().lookup(LINK_MAC, "own").verdict(Verdict::Accept);
    // If the frame kept the client's MAC address as its source, the switch would learn the client at this node's port.
    let own_source = Expression::SetLinkHeader { offset: SOURCE_MAC, length: MAC_LENGTH };
    let sends = ChainRule::new(Family::V4).has_ethernet();
    let link = sends.key(&[Field::LinkName]);
    let out = [Expression::Meta { key: Meta::Iif, into: Register::FIRST }, Expression::Fwd];
    vec![stays, sends.map("ether saddr set", link, "macs", own_source).push(out, "fwd to iif")]
}

/// Restores this node's MAC address: the frame stays.
fn restore_own_mac() -> ChainRule {
    set_mac(ChainRule::new(Family::V4), &[Field::LinkName], "macs")
}

/// Resolves the marker of a table to the marker of a pair, by a hash of these fields: first in whole slots, then in
/// pieces.
fn hash_rules(family: Family, fields: &[Field], first_slot: u32, then: &str) -> Vec<ChainRule> {
    let step = |modulus, offset| {
        // `nft` reads quoted fields by their offsets alone, so it checks no Ethernet type before them.
        let is_packet = matches!(fields[0], Field::Source);
        let rule = ChainRule::new(family).has_ethernet();
        let rule = if is_packet { rule.has_ether_type() } else { rule };
        let mut key = rule.key(&[Field::DestinationMac]);
        // The input of the hash begins a 16-byte register.
        let from = 4;
        let input = rule.key_at(from, fields);
        let length = 4 * u32::from(input.end - from);
        let (from, into) = (Register::Word(from), Register::Word(key.end));
        key.loads.extend(input.loads);
        key.loads.push(Expression::Jhash { from, length, modulus, offset, into });
        let seed = Expression::SEED;
        key.words += &format!(" . jhash {} mod {modulus} seed {seed:#x}{}", input.words, print_offset(offset));
        rule.set_destination_mac(key, "slots").goto(then)
    };
    vec![step(SLOTS, first_slot), step(SLOTS * PIECES, first_slot + FIRST_PIECE)]
}

/// The same, but by a hash of the client alone. The last rule, by which the frame stays, is never reached if the table
/// is complete.
fn client_hash_rules(family: Family, client: &[Field], then: &str) -> Vec<ChainRule> {
    [hash_rules(family, client, FIRST_CLIENT_SLOT, then), vec![restore_own_mac()]].concat()
}

/// Writes the marker of the share table of a packet's port.
fn classify(family: Family) -> ChainRule {
    let rule = ChainRule::new(family).has_ethernet_and_family();
    let key = rule.key(FRONTEND);
    rule.set_destination_mac(key, &with_family(family, "classes"))
}

/// `ether daddr set KEY map @MAP`
fn set_mac(rule: ChainRule, key: &[Field], map: &str) -> ChainRule {
    let key = rule.key(key);
    rule.has_ethernet().set_destination_mac(key, map)
}

/// A fragment: it has an offset or the flag More Fragments (RFC 791 §3.1), or a fragment header (RFC 8200 §4.5).
fn is_fragment(family: Family) -> ChainRule {
    let packet = ChainRule::new(family).has_family();
    let into = Register::FIRST;
    match family {
        Family::V4 => {
            let load = Expression::Payload { header: Header::Network, offset: 6, length: 2, into };
            packet.push([load, Expression::Mask(vec![0x3f, 0xff]), is_not_zero(2)], "ip frag-off & 16383 != 0")
        }
        Family::V6 => packet.push([Expression::ExthdrFragment { into }, equals([1])], "exthdr frag exists"),
    }
}

/// The name of a chain, set or map that exists once for each family.
fn with_family(family: Family, name: &str) -> String {
    match family {
        Family::V4 => format!("{name}4"),
        Family::V6 => format!("{name}6"),
    }
}
