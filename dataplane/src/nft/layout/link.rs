//! The table that spreads frames, `netdev landfall`: its sets, chains and rules.
//!
//! ```text
//!   on-eth0: to an lb_ip in spread? ──▶ spread
//!
//!   spread: from a peer, or not for this node's MAC address ──▶ goes on here
//!           a fragment ──▶ wholes [ lb_ip . proto ] ──▶ fragments ──┐
//!           an error of ICMP ──▶ classes, by what it quotes ──▶ quoted ──┤
//!           TCP under way ──▶ connections [ the four ] ──▶ known         ├──▶ hop ──▶ send
//!           else ──▶ classes [ lb_ip . proto . port ] ──▶ flow, clients ─┘
//!                                                             │
//!   slots [ table . hash ] ──▶ nodes;  hops [ link . nodes ] ──▶ MAC address;  TCP: put into connections
//!   send: own MAC address ──▶ goes on here; else out by the link it came in, from this node's MAC address
//! ```
//!
//! Where a frame goes is written over its destination as soon as that is known, from one lookup to the next: first what
//! stands for a table, then what stands for nodes, then a MAC address. That is what `nft` can express. A frame that
//! stays gets this node's own address back.

use crds::service::Family;

use super::field::{FROM, FRONTEND, Field, MAC, TO, equals, icmp_type, load, load_at, lookup, protocol_is, rule};
use super::{Chain, Data, Hook, Set, Type};
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation, Verdict};
use crate::nft::elements::at;
use crate::rules::spread::{FIRST_OF_CLIENTS, FIRST_PIECE, PIECES, SLOTS};
use crate::snapshot::LinkName;

/// NF_NETDEV_INGRESS.
const INGRESS: u32 = 0;
/// The middle: who filters frames does so before.
const PRIORITY: i32 = 0;
/// For how many seconds after its last packet a connection of TCP stays with its node whatever becomes of the table. Long
/// enough for what keeps itself alive; what is silent for longer goes by the table, which seldom changes.
const CONNECTION: u32 = 120;
/// How many connections of TCP are known at once in each family. Beyond that, new ones go by the table alone. Each takes
/// some 150 bytes of the kernel, which nobody should be able to fill with made-up addresses.
const MOST_CONNECTIONS: u32 = 1 << 18;
/// ARPHRD_ETHER.
const ETHERNET: u16 = 1;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Types of ICMP that quote a packet: unreachable, time exceeded, parameter problem (RFC 792).
const ERRORS: [u8; 3] = [3, 11, 12];
/// The last such type of ICMPv6; the first is 1, and 0 is none (RFC 4443 §2.1).
const LAST_ERROR_V6: u8 = 4;
/// Where TCP has its flags, and the one that begins a connection (RFC 9293 §3.1).
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;

/// All sets and maps, in the order in which they are made.
pub fn sets() -> Vec<Set> {
    use Type::{Integer, LinkName, Mac, Port, Protocol, V4, V6};
    let set = Set::new;
    let many = |set| Set { many: true, ..set };
    let learned = |set| Set { learned: Some(MOST_CONNECTIONS), ..set };
    let (spread, classes, wholes) =
        ("lb_ips whose frames are spread", "which table says who gets what", "the same for what is in fragments");
    let connections = "connections of TCP and where they are; learned by the rules";
    vec![
        many(set("spread4", &[V4], Data::None, spread)),
        many(set("spread6", &[V6], Data::None, spread)),
        set("peers", &[Mac], Data::None, "other nodes: what comes from them is not handed on"),
        set("own", &[LinkName, Mac], Data::None, "this node"),
        set("alive", &[LinkName, Mac], Data::None, "this node, and others that live"),
        set("macs", &[LinkName], Data::Plain(Mac), "this node's address on each link"),
        many(set("classes4", &[V4, Protocol, Port], Data::Plain(Mac), classes)),
        many(set("classes6", &[V6, Protocol, Port], Data::Plain(Mac), classes)),
        many(set("wholes4", &[V4, Protocol], Data::Plain(Mac), wholes)),
        many(set("wholes6", &[V6, Protocol], Data::Plain(Mac), wholes)),
        many(set("slots", &[Mac, Integer], Data::Plain(Mac), "which nodes get which part of each table")),
        many(set("hops", &[LinkName, Mac], Data::Plain(Mac), "where to find those")),
        learned(set("connections4", &[V4, Port, V4, Port], Data::Plain(Mac), connections)),
        learned(set("connections6", &[V6, Port, V6, Port], Data::Plain(Mac), connections)),
    ]
}

/// All chains that are always there, those first that others go to.
pub fn chains() -> Vec<Chain> {
    let chain = |name: &str, rules| Chain { name: name.to_owned(), hook: None, rules };
    let mut chains = vec![chain("send", send()), chain("hop", hop("send"))];
    chains.extend([Family::V4, Family::V6].into_iter().flat_map(|family| {
        let chain = |name: &str, rules| Chain { name: of(family, name), hook: None, rules };
        let by_flow = &[Field::Source, Field::SourcePort, Field::Port][..];
        let by_quoted = &[Field::QuotedDestination, Field::QuotedPort, Field::QuotedSourcePort][..];
        let (client, quoted_client) = (&by_flow[..1], &by_quoted[..1]);
        let hop_and_learn = of(family, "hop");
        [
            chain("learn", learn(family)),
            chain("hop", hop(&of(family, "learn"))),
            chain("fragments", by_client(family, client, "hop")),
            chain("clients", by_client(family, client, &hop_and_learn)),
            chain("flow", [by(family, by_flow, 0, &hop_and_learn), vec![vec![goto(&of(family, "clients"))]]].concat()),
            chain("quoted", [by(family, by_quoted, 0, "hop"), by_client(family, quoted_client, "hop")].concat()),
            chain("known", known(family)),
            chain("spread", spread(family)),
        ]
    }));
    chains
}

/// The chain at the ingress of a link.
pub fn ingress(link: LinkName) -> Chain {
    let to_spread = |family| {
        let address = load(family, &[Field::Destination]);
        let go = [lookup(&of(family, "spread")), goto(&of(family, "spread"))];
        rule(network(family), rule(address, go))
    };
    Chain {
        name: at(&link),
        hook: Some(Hook { kind: "filter", number: INGRESS, priority: PRIORITY, link: Some(link) }),
        rules: [Family::V4, Family::V6].map(to_spread).into(),
    }
}

/// Which frames are handed on, and by what it is decided where to.
fn spread(family: Family) -> Vec<Vec<Expression>> {
    let accept = || Expression::Verdict(Verdict::Accept);
    let from_peer = rule(ethernet(), rule(load(family, &[Field::From]), [lookup("peers"), accept()]));
    let absent = Expression::Absent { set: "own".into() };
    let not_ours = rule(ethernet(), rule(load(family, &[Field::LinkName, Field::To]), [absent, accept()]));
    // A fragment has no port to look at, unless it is the first, and all of a datagram must go the same way.
    let wholes = written(family, &[Field::Destination, Field::Protocol], &of(family, "wholes"));
    let in_fragments = rule(fragment(family), rule(wholes, [goto(&of(family, "fragments"))]));
    let other_fragments = rule(fragment(family), [accept()]);
    // An error goes where the packet came from that it quotes: with source and destination turned around, that is of the
    // very flow whose packets come here.
    let quoted = |is_error: Vec<Expression>| {
        let key = [Field::Destination, Field::QuotedProtocol, Field::QuotedSourcePort];
        let class = written(family, &key, &of(family, "classes"));
        rule(network(family), rule(is_error, rule(class, [goto(&of(family, "quoted"))])))
    };
    let errors: Vec<_> = match family {
        Family::V4 => ERRORS.map(|kind| quoted(rule(icmp_type(ICMP), [equals(vec![kind])]))).into(),
        Family::V6 => {
            let at_most = Expression::Compare { relation: Relation::AtMost, value: vec![LAST_ERROR_V6] };
            vec![quoted(rule(icmp_type(ICMPV6), [at_most]))]
        }
    };
    // A new connection may have the ports of an old one.
    let (key, value) = connection(family);
    let forget = Expression::Forget { map: of(family, "connections"), value };
    let begins = rule(syn(Relation::NotEqual), rule(network_of_frame(family), rule(key, [forget])));
    let known = written(family, CONNECTION_KEY, &of(family, "connections"));
    let under_way = rule(protocol_is(TCP), rule(network_of_frame(family), rule(known, [goto(&of(family, "known"))])));
    let others = rule(class(family), [goto(&of(family, "flow"))]);
    [vec![from_peer, not_ours, in_fragments, other_fragments], errors, vec![begins, under_way, others]].concat()
}

/// What becomes of a connection that is known: it stays with its node, unless that is dead.
fn known(family: Family) -> Vec<Vec<Expression>> {
    let alive = [lookup("alive"), goto(&of(family, "learn"))];
    let stays = rule(ethernet(), rule(load(family, &[Field::LinkName, Field::To]), alive));
    let moves = rule(class(family), [goto(&of(family, "flow"))]);
    vec![stays, moves, restored()]
}

/// Remembers where a connection of TCP is, once it has begun: who only asks for one could ask for many.
fn learn(family: Family) -> Vec<Vec<Expression>> {
    let (key, value) = connection(family);
    let update = Expression::Update { map: of(family, "connections"), value, seconds: CONNECTION };
    vec![rule(syn(Relation::Equal), rule(network_of_frame(family), rule(key, [update]))), vec![goto("send")]]
}

/// From what stands for nodes to a MAC address, and on to that chain.
fn hop(then: &str) -> Vec<Vec<Expression>> {
    vec![rule(written(Family::V4, &[Field::LinkName, Field::To], "hops"), [goto(then)]), restored()]
}

/// Hands the frame on, or keeps it.
fn send() -> Vec<Vec<Expression>> {
    let own = [lookup("own"), Expression::Verdict(Verdict::Accept)];
    let stays = rule(ethernet(), rule(load(Family::V4, &[Field::LinkName, Field::To]), own));
    // Were it still from its client, the switch would think the client to be where this node is.
    let out = [Expression::Meta { what: Meta::Interface, into: Register::FIRST }, Expression::Forward];
    let from = rule(
        load(Family::V4, &[Field::LinkName]),
        [
            Expression::Lookup { set: "macs".into(), into: Some(Register::FIRST) },
            Expression::Write { offset: FROM, length: MAC },
        ],
    );
    vec![stays, rule(ethernet(), rule(from, out))]
}

/// Back to this node's own MAC address: the frame stays.
fn restored() -> Vec<Expression> {
    written(Family::V4, &[Field::LinkName], "macs")
}

/// From what stands for a table to what stands for nodes, by a hash of these fields: by whole slots, then by pieces.
fn by(family: Family, fields: &[Field], first: u32, then: &str) -> Vec<Vec<Expression>> {
    let step = |modulus, offset| {
        let (key, hash) = load_at(0, family, &[Field::To]);
        // What is hashed begins a register of its own.
        let from = 4;
        let (hashed, end) = load_at(from, family, fields);
        let hash = Expression::Hash {
            from: Register::Quarter(from),
            length: 4 * u32::from(end - from),
            modulus,
            offset,
            into: Register::Quarter(hash),
        };
        // What an error quotes is no field that belongs to a protocol of its own.
        let kind = if matches!(fields[0], Field::Source) { frame_type(family) } else { Vec::new() };
        let find = [
            Expression::Lookup { set: "slots".into(), into: Some(Register::FIRST) },
            Expression::Write { offset: TO, length: MAC },
            goto(then),
        ];
        [ethernet(), kind, key, hashed, vec![hash], find.into()].concat()
    };
    vec![step(SLOTS, first), step(SLOTS * PIECES, first + FIRST_PIECE)]
}

/// The same by the client alone; and if the table has no such slot, which can't be, the frame stays.
fn by_client(family: Family, client: &[Field], then: &str) -> Vec<Vec<Expression>> {
    [by(family, client, FIRST_OF_CLIENTS, then), vec![restored()]].concat()
}

/// `ether daddr set ip daddr . meta l4proto . th dport map @classes4`
fn class(family: Family) -> Vec<Expression> {
    rule(ethernet(), rule(frame_type(family), looked_up(family, FRONTEND, &of(family, "classes"))))
}

/// `ether daddr set … map @…`
fn written(family: Family, key: &[Field], map: &str) -> Vec<Expression> {
    rule(ethernet(), looked_up(family, key, map))
}

fn looked_up(family: Family, key: &[Field], map: &str) -> Vec<Expression> {
    let find = Expression::Lookup { set: map.to_owned(), into: Some(Register::FIRST) };
    rule(load(family, key), [find, Expression::Write { offset: TO, length: MAC }])
}

/// What a connection is known by.
const CONNECTION_KEY: &[Field] = &[Field::Source, Field::SourcePort, Field::Destination, Field::Port];

/// Loads that, and behind it where the frame goes.
fn connection(family: Family) -> (Vec<Expression>, Register) {
    let (key, end) = load_at(0, family, CONNECTION_KEY);
    let (value, _) = load_at(end, family, &[Field::To]);
    (rule(key, value), Register::Quarter(end))
}

/// `meta l4proto tcp tcp flags syn`, or not.
fn syn(relation: Relation) -> Vec<Expression> {
    let flags = Expression::Payload { header: Header::Transport, offset: TCP_FLAGS, length: 1, into: Register::FIRST };
    let is_set = Expression::Compare { relation, value: vec![0] };
    rule(protocol_is(TCP), [flags, Expression::Mask(vec![SYN]), is_set])
}

/// A frame of Ethernet, as `nft` makes sure of before it looks at MAC addresses.
fn ethernet() -> Vec<Expression> {
    let kind = Expression::Meta { what: Meta::InterfaceType, into: Register::FIRST };
    vec![kind, equals(ETHERNET.to_ne_bytes().into())]
}

/// A packet of this family, as `nft` makes sure of before it looks into one.
fn network(family: Family) -> Vec<Expression> {
    vec![
        Expression::Meta { what: Meta::NetworkProtocol, into: Register::FIRST },
        equals(ether_type(family).to_be_bytes().into()),
    ]
}

/// The same, where it is known already that there is a frame of Ethernet.
fn frame_type(family: Family) -> Vec<Expression> {
    let kind = Expression::Payload { header: Header::Link, offset: 12, length: 2, into: Register::FIRST };
    vec![kind, equals(ether_type(family).to_be_bytes().into())]
}

/// Both.
fn network_of_frame(family: Family) -> Vec<Expression> {
    rule(ethernet(), frame_type(family))
}

fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

/// Whether a packet is a part of one: an offset or more to come (RFC 791 §3.1), or a header for it (RFC 8200 §4.5).
fn fragment(family: Family) -> Vec<Expression> {
    let is = match family {
        Family::V4 => vec![
            Expression::Payload { header: Header::Network, offset: 6, length: 2, into: Register::FIRST },
            Expression::Mask(vec![0x3f, 0xff]),
            Expression::Compare { relation: Relation::NotEqual, value: vec![0; 2] },
        ],
        Family::V6 => vec![Expression::IsFragment { into: Register::FIRST }, equals(vec![1])],
    };
    rule(network(family), is)
}

fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

/// The name of what is there once for each family.
fn of(family: Family, name: &str) -> String {
    match family {
        Family::V4 => format!("{name}4"),
        Family::V6 => format!("{name}6"),
    }
}
