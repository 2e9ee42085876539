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
//! The lookups overwrite the frame's destination address in steps that `nft` can express. They write the marker of a
//! share table, then the marker of a pair of nodes, then a MAC address. A frame that stays gets this node's address
//! back.

use crds::service::Family;

use super::fields::{FRONTEND, Field, MAC_LENGTH, SOURCE_MAC, print_offset};
use super::rule::{ChainRule, TCP, equals, is_not_zero};
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
/// A TCP connection stays on its node for this many seconds after its last packet, even if the share table changes.
/// After a longer silence, the connection follows the share table again. So it moves if its slot has another node by
/// then. An application can prevent this with TCP keepalives at a shorter interval; the default of Linux is two hours.
const CONNECTION_TIMEOUT: u32 = 120;
/// The ICMP types that quote a packet (RFC 792), with their names in `nft`.
const ICMP_ERRORS: [(u8, &str); 3] = [(3, "destination-unreachable"), (11, "time-exceeded"), (12, "parameter-problem")];
/// The last ICMPv6 type that quotes a packet; the first is 1, and 0 is unused (RFC 4443 §2.1).
const LAST_ICMPV6_ERROR: u8 = 4;
/// The offset of the TCP flags, and the flag that begins a connection (RFC 9293 §3.1).
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;

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
fn family_chains(family: Family) -> [Chain; 8] {
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
        from_peer.verdict(Verdict::Accept),
        to_other.verdict(Verdict::Accept),
        fragment.goto(&with_family(family, "fragments")),
        is_fragment(family).verdict(Verdict::Accept),
    ];
    rules.extend(icmp_error_rules(family));
    rules.extend(tcp_rules(family));
    rules.push(classify(family).goto(&with_family(family, "flow")));
    rules
}

/// An ICMP error goes to the node that sent the quoted packet. The quoted packet is a reply. With its source and
/// destination exchanged, it belongs to the flow whose packets come here.
fn icmp_error_rules(family: Family) -> Vec<ChainRule> {
    let to_quoted = |comparison, text| {
        let key = [Field::Destination, Field::QuotedProtocol, Field::QuotedSourcePort];
        let is_error = ChainRule::new(family).has_family().icmp_type([comparison], text);
        set_mac(is_error, &key, &with_family(family, "classes")).goto(&with_family(family, "quoted"))
    };
    match family {
        Family::V4 => ICMP_ERRORS.map(|(kind, name)| to_quoted((Relation::Equal, kind), name)).into(),
        Family::V6 => vec![to_quoted((Relation::AtMost, LAST_ICMPV6_ERROR), "<= parameter-problem")],
    }
}

/// Deletes the entry with the addresses and ports of a SYN, since the SYN begins a new connection. Then sends packets
/// of the remembered connections on.
fn tcp_rules(family: Family) -> Vec<ChainRule> {
    let connections = with_family(family, "connections");
    let begins = has_syn(family, Relation::NotEqual, "syn").has_ethernet_and_family();
    let is_tcp = ChainRule::new(family).has_transport(TCP).has_ethernet_and_family();
    vec![
        begins.delete(&connections, CONNECTION, &[Field::DestinationMac]),
        set_mac(is_tcp, CONNECTION, &connections).goto(&with_family(family, "known")),
    ]
}

/// A known connection stays on its node, unless that node is dead.
fn known_rules(family: Family) -> Vec<ChainRule> {
    let stays = ChainRule::new(family).has_ethernet().lookup(LINK_MAC, "alive");
    let moves = classify(family);
    vec![stays.goto(&with_family(family, "learn")), moves.goto(&with_family(family, "flow")), restore_own_mac()]
}

/// Remembers the node of a TCP connection, but not of a SYN: a client could send any number of SYNs.
fn learn_rules(family: Family) -> Vec<ChainRule> {
    let is_open = has_syn(family, Relation::Equal, "! syn").has_ethernet_and_family();
    let connections = with_family(family, "connections");
    vec![
        is_open.update(&connections, CONNECTION, CONNECTION_TIMEOUT, &[Field::DestinationMac]),
        ChainRule::new(family).goto("send"),
    ]
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

/// A TCP segment with the flag SYN for [`Relation::NotEqual`], without it for [`Relation::Equal`].
fn has_syn(family: Family, relation: Relation, text: &str) -> ChainRule {
    let flags = Expression::Payload { header: Header::Transport, offset: TCP_FLAGS, length: 1, into: Register::FIRST };
    let is_set = Expression::Compare { relation, value: vec![0] };
    let segment = ChainRule::new(family).has_transport(TCP);
    segment.push([flags, Expression::Mask(vec![SYN]), is_set], &format!("tcp flags {text}"))
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
