//! The fate of a packet by the rules: an interpreter of the messages for the kernel.
//!
//! It has registers, sets, the expressions in use, the hooks that a new connection passes, and the kernel's steps
//! between them. It has no established connections: no rule decides about those.
#![allow(dead_code, reason = "each test binary uses some of it")]

pub mod frame;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use dataplane::nft::codec::expression::{Ct, Expression, Header, Meta, Register, Relation, Verdict};
use dataplane::nft::codec::request::Requests;
use dataplane::nft::diff::diff_elements;
use dataplane::nft::elements::{ElementKey, Elements};
use dataplane::nft::layout::{self, Chain, Set, Table, variable_chain};
use dataplane::nft::projection::ruleset_elements;
use dataplane::rules::Ruleset;
use dataplane::snapshot::LinkName;
use netlink::attribute::{Attributes, attributes};
use netlink::message::Message;

/// The origin of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Another host: by the link eth0.
    Link,
    /// A pod of this node: by the link cni0.
    Pod,
    /// This node itself.
    Here,
}

/// The first packet of a connection, or one that belongs to none.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Its origin.
    pub from: From,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// The destination port; of ICMP, type and code.
    pub port: u16,
}

/// The fate of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It continues unchanged.
    Passed,
    /// It is dropped.
    Dropped,
    /// It is refused with a reset.
    Reset,
    /// It is refused with ICMP.
    Unreachable,
    /// This node answers it.
    Answered,
    /// It is sent to an endpoint, with its source or masqueraded as this node.
    Sent {
        /// The endpoint.
        to: SocketAddr,
        /// Whether the source is replaced.
        masqueraded: bool,
    },
}

/// Rules, and the elements of their sets.
pub struct Machine {
    chains: BTreeMap<(Table, String), Vec<Vec<Expression>>>,
    sets: BTreeMap<(Table, String), Vec<Element>>,
    /// The addresses of this node.
    own: BTreeSet<IpAddr>,
    here: BTreeSet<Table>,
    /// The addresses that the Service proxy of the node translates, each with its target.
    pub proxied: BTreeMap<SocketAddr, SocketAddr>,
}

struct Element {
    first: Vec<u8>,
    /// The last key of a concatenated range.
    last: Option<Vec<u8>>,
    /// A range has ended here.
    end: bool,
    data: Vec<u8>,
    verdict: Option<Verdict>,
}

/// The result of a chain.
enum Step {
    Next,
    Done(Fate),
    Translated(SocketAddr),
    Masqueraded,
}

struct State {
    packet: Packet,
    registers: [u8; 64],
    /// The original and the current destination.
    original: SocketAddr,
    now: SocketAddr,
    random: u32,
    /// Its priority in queues.
    priority: [u8; 4],
}

impl Machine {
    /// The machine of a node with these addresses, after `ruleset` was applied.
    pub fn new(ruleset: &Ruleset, own: &[&str]) -> Self {
        let mut machine = Self {
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            own: own.iter().map(|text| text.parse().expect("an address")).collect(),
            here: BTreeSet::new(),
            proxied: BTreeMap::new(),
        };
        let elements = ruleset_elements(ruleset);
        let mut add = |table, chain: Chain| {
            let rules = chain.rules.into_iter().map(|rule| rule.expressions).collect();
            machine.chains.insert((table, chain.name), rules)
        };
        for table in elements.keys().map(ElementKey::table).collect::<BTreeSet<_>>() {
            machine.here.insert(table);
            layout::chains(table).into_iter().for_each(|chain| drop(add(table, chain)));
        }
        for key in elements.keys() {
            if let ElementKey::Chain(table, name) = key {
                add(*table, variable_chain(*table, *name).expect("a chain of this table"));
            }
        }
        machine.fill(&elements);
        machine
    }

    /// Fills the sets from the messages that add all elements.
    fn fill(&mut self, elements: &Elements) {
        const LIST_SET: u16 = 2;
        const LIST_ELEMENTS: u16 = 3;
        let changes = diff_elements(&Elements::new(), elements);
        let mut requests = Requests::default();
        requests.change(&changes);
        for message in requests.messages {
            let mut bytes = Vec::new();
            message.encode(0, &mut bytes);
            // The family is the first byte of netfilter's own header.
            let table = Table::ALL.into_iter().find(|table| table.number() == bytes[16]).expect("a table");
            let request = attributes(&bytes[Message::HEADERS..]);
            let Some(list) = request.find(LIST_ELEMENTS).filter(|_| layout_has(table, request)) else { continue };
            let set = request.find(LIST_SET).and_then(|set| set.text()).expect("a set").to_owned();
            self.sets.entry((table, set)).or_default().extend(list.inner().map(|item| element(item.inner())));
        }
    }

    /// The possible fates of the packet, over all random numbers.
    pub fn fates(&self, packet: Packet) -> BTreeSet<Fate> {
        // Divisible by each number of endpoints in the tests.
        (0..840).map(|random| self.fate(packet, random)).collect()
    }

    fn fate(&self, packet: Packet, random: u32) -> Fate {
        let table = Table::for_address(packet.destination);
        let original = SocketAddr::new(packet.destination, packet.port);
        let mut state = State { packet, registers: [0; 64], original, now: original, random, priority: [0; 4] };
        if !self.here.contains(&table) {
            return Fate::Passed;
        }
        let (nat, late, filter) = match packet.from {
            From::Link | From::Pod => ("nat-prerouting", "late-prerouting", "filter-prerouting"),
            From::Here => ("nat-output", "late-output", "filter-output"),
        };
        for chain in [nat, late] {
            match self.chain(table, chain, &mut state) {
                Step::Done(fate) => return fate,
                Step::Translated(to) => {
                    state.now = to;
                    break;
                }
                Step::Next | Step::Masqueraded => {}
            }
            // In between, the Service proxy translates its own addresses.
            if let Some(to) = self.proxied.get(&state.now) {
                state.now = *to;
                break;
            }
        }
        if let Step::Done(fate) = self.chain(table, filter, &mut state) {
            return fate;
        }
        if state.now == state.original {
            return Fate::Passed;
        }
        let last = if self.own.contains(&state.now.ip()) { "nat-input" } else { "nat-postrouting" };
        let masqueraded = matches!(self.chain(table, last, &mut state), Step::Masqueraded);
        Fate::Sent { to: state.now, masqueraded }
    }

    fn chain(&self, table: Table, name: &str, state: &mut State) -> Step {
        let rules = self.chains.get(&(table, name.to_owned())).unwrap_or_else(|| panic!("no chain {name}"));
        for rule in rules {
            let mut verdict = None;
            for expression in rule {
                match self.execute(table, expression, state) {
                    Done::Goes => {}
                    Done::Breaks => break,
                    Done::Verdict(decided) => {
                        verdict = Some(decided);
                        break;
                    }
                    Done::Step(step) => return step,
                }
            }
            match verdict {
                None => {}
                Some(Verdict::Drop) => return Step::Done(Fate::Dropped),
                Some(Verdict::Accept | Verdict::Return) => return Step::Next,
                Some(Verdict::Goto(chain)) => return self.chain(table, &chain, state),
            }
        }
        Step::Next
    }

    fn execute(&self, table: Table, expression: &Expression, state: &mut State) -> Done {
        let goes = |condition| if condition { Done::Goes } else { Done::Breaks };
        match expression {
            // These choose the link of replies, not the fate of a packet.
            Expression::Ct { key: Ct::Direction | Ct::Mark, .. }
            | Expression::Meta { key: Meta::Mark, .. }
            | Expression::SetMeta(Meta::Mark)
            | Expression::SetCtMark
            | Expression::MaskOr { .. } => {
                panic!("{expression:?} as the verdict of a packet")
            }
            Expression::Payload { .. }
            | Expression::Meta { key: Meta::L4Proto, .. }
            | Expression::Ct { .. }
            | Expression::FibSourceType { .. }
            | Expression::Numgen { .. } => self.load_field(expression, state),
            Expression::Mask(mask) => mask_registers(&mut state.registers, mask),
            Expression::Compare { relation, value } => return goes(holds(*relation, &state.registers, value)),
            Expression::Lookup { set, into } => {
                let Some(element) = self.find(table, set, &state.registers) else { return Done::Breaks };
                match (into, &element.verdict) {
                    (Some(Register::Verdict), Some(verdict)) => return Done::Verdict(verdict.clone()),
                    (Some(into), _) => state.load(*into, &element.data),
                    (None, _) => {}
                }
            }
            Expression::LookupInverted { set } => return goes(self.find(table, set, &state.registers).is_none()),
            Expression::Verdict(verdict) => return Done::Verdict(verdict.clone()),
            Expression::Dnat(_) => return Done::Step(Step::Translated(state.endpoint(table))),
            Expression::Masquerade => return Done::Step(Step::Masqueraded),
            Expression::Redirect => return Done::Step(Step::Done(Fate::Answered)),
            // A reset is for TCP alone.
            Expression::RejectReset if state.packet.protocol != 6 => return Done::Breaks,
            Expression::RejectReset => return Done::Step(Step::Done(Fate::Reset)),
            Expression::RejectUnreachable(_) => return Done::Step(Step::Done(Fate::Unreachable)),
            // Added elements affect later packets only.
            Expression::DynsetUpdate { .. } | Expression::DynsetCount { .. } => {}
            Expression::SetDestination(_) => state.now.set_ip(state.endpoint(table).ip()),
            Expression::SetPort { .. } | Expression::SetPortUnchecked => {
                let port = [state.registers[0], state.registers[1]];
                state.now.set_port(u16::from_be_bytes(port));
            }
            Expression::Meta { key: Meta::Priority, into } => state.load(*into, &state.priority.clone()),
            Expression::SetMeta(Meta::Priority) => state.priority.copy_from_slice(&state.registers[..4]),
            Expression::LoadZero => state.load(Register::FIRST, &[0; 4]),
            Expression::Meta { key: Meta::Iif, into } => {
                let by: u32 = if state.packet.from == From::Here { 0 } else { 2 };
                state.load(*into, &by.to_ne_bytes());
            }
            Expression::Meta { key: Meta::IifName, into } => {
                let name = match state.packet.from {
                    From::Link => LinkName::new("eth0").map(|name| name.bytes()),
                    From::Pod => LinkName::new("cni0").map(|name| name.bytes()),
                    From::Here => Some([0; 16]),
                };
                state.load(*into, &name.expect("a name"));
            }
            Expression::Meta { key: Meta::IifType, into } if state.packet.from != From::Here => {
                state.load(*into, &layout::ETHERNET.to_ne_bytes());
            }
            // A packet of this node has no such type.
            Expression::Meta { key: Meta::IifType, .. } => return Done::Breaks,
            // Only frames pass these.
            Expression::Meta { .. }
            | Expression::SetMeta(_)
            | Expression::ExthdrFragment { .. }
            | Expression::Jhash { .. }
            | Expression::SetLinkHeader { .. }
            | Expression::DynsetDelete { .. }
            | Expression::Fwd => panic!("{expression:?} for a packet"),
            // Only segments of unknown connections pass these.
            Expression::LoadByte(_) | Expression::MaskXor { .. } | Expression::SetHopLimit(_) | Expression::Dup => {
                panic!("{expression:?} for a packet")
            }
        }
        Done::Goes
    }

    /// Loads a field of the packet or of its connection.
    fn load_field(&self, expression: &Expression, state: &mut State) {
        match expression {
            Expression::Payload { header: Header::Link, .. } => panic!("a frame"),
            Expression::Payload { header: Header::Network, offset, length, into } => {
                // The rules read only the source and the destination; the destination has the greater offset.
                let destination = (*offset, *length) == (16, 4) || (*offset, *length) == (24, 16);
                state.load(*into, &octets(if destination { state.now.ip() } else { state.packet.source }));
            }
            Expression::Payload { header: Header::Transport, offset: 2, length: 2, into } => {
                let port = if is_icmp(state.packet.protocol) { 0 } else { state.now.port() };
                state.load(*into, &port.to_be_bytes());
            }
            Expression::Payload { header: Header::Transport, into, .. } => {
                state.load(*into, &state.packet.port.to_be_bytes()[..1]);
            }
            Expression::Meta { key: Meta::L4Proto, into } => state.load(*into, &[state.packet.protocol]),
            // A traced packet begins a connection.
            Expression::Ct { key: Ct::State, into } => state.load(*into, &8u32.to_ne_bytes()),
            Expression::Ct { key: Ct::Status, into } => {
                let translated = if state.now == state.original { 0u32 } else { 1 << 5 };
                state.load(*into, &translated.to_ne_bytes());
            }
            Expression::Ct { key: Ct::OriginalDestination(_), into } => state.load(*into, &octets(state.original.ip())),
            Expression::Ct { key: Ct::OriginalPort, into } => {
                state.load(*into, &state.original.port().to_be_bytes());
            }
            Expression::Ct { key: Ct::ReplySourcePort, into } => state.load(*into, &state.now.port().to_be_bytes()),
            Expression::FibSourceType { into } => {
                let kind: u32 = if self.own.contains(&state.packet.source) { 2 } else { 1 };
                state.load(*into, &kind.to_ne_bytes());
            }
            Expression::Numgen { modulus, offset, into } => {
                state.load(*into, &(state.random % modulus + offset).to_ne_bytes());
            }
            _ => panic!("{expression:?} loads no field"),
        }
    }

    fn find(&self, table: Table, name: &str, registers: &[u8]) -> Option<&Element> {
        let set = layout::sets(table).into_iter().find(|set| set.name == name).expect("a set");
        let length = usize::try_from(set.key_type_and_length().1).expect("short");
        let key = &registers[..length];
        let elements = self.sets.get(&(table, name.to_owned()))?;
        if !set.interval {
            return elements.iter().find(|element| element.first == key);
        }
        if set.field_lengths().is_some() {
            return elements.iter().find(|element| within(&set, element, key));
        }
        // The key is in a range if the last boundary at or before it is not an end.
        let before = elements.iter().filter(|element| &element.first[..] <= key);
        before.max_by(|a, b| a.first.cmp(&b.first)).filter(|element| !element.end)
    }
}

enum Done {
    Goes,
    Breaks,
    Verdict(Verdict),
    Step(Step),
}

impl State {
    fn load(&mut self, into: Register, value: &[u8]) {
        let Register::Word(word) = into else { panic!("a value where the verdict goes") };
        let start = usize::from(word) * 4;
        let end = start + value.len().next_multiple_of(4);
        self.registers[start..end].fill(0);
        self.registers[start..start + value.len()].copy_from_slice(value);
    }

    /// The destination of a translation, from the registers.
    fn endpoint(&self, table: Table) -> SocketAddr {
        let port = |at: usize| u16::from_be_bytes([self.registers[at], self.registers[at + 1]]);
        match table {
            Table::Link => panic!("frames have no endpoints"),
            Table::V4 => (*self.registers.first_chunk::<4>().expect("bytes"), port(4)).into(),
            Table::V6 => (*self.registers.first_chunk::<16>().expect("bytes"), port(16)).into(),
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn is_icmp(protocol: u8) -> bool {
    [1, 58].contains(&protocol)
}

fn layout_has(table: Table, request: Attributes<'_>) -> bool {
    let name = request.find(2).and_then(|set| set.text()).unwrap_or_default();
    layout::sets(table).iter().any(|set| set.name == name)
}

/// Whether each part of the key is in the range that the element has there.
fn within(set: &Set, element: &Element, key: &[u8]) -> bool {
    let last = element.last.as_ref().expect("the end of a range");
    let mut at = 0;
    set.field_lengths().expect("lengths").into_iter().all(|length| {
        let end = at + usize::try_from(length).expect("short");
        let inside = element.first[at..end] <= key[at..end] && key[at..end] <= last[at..end];
        at = end.next_multiple_of(4);
        inside
    })
}

fn element(fields: Attributes<'_>) -> Element {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_END: u16 = 10;
    let value = |kind: u16| fields.find(kind).and_then(|field| field.inner().find(1)).map(|value| value.value.to_vec());
    Element {
        first: value(KEY).expect("a key"),
        last: value(KEY_END),
        end: fields.find(FLAGS).and_then(|flags| flags.u32()) == Some(1),
        data: value(DATA).unwrap_or_default(),
        verdict: fields.find(DATA).and_then(|data| Verdict::decode(data.inner())),
    }
}

/// Masks registers.
fn mask_registers(registers: &mut [u8], mask: &[u8]) {
    for (byte, mask) in registers.iter_mut().zip(mask) {
        *byte &= mask;
    }
}

/// Whether registers are in this relation to a value.
fn holds(relation: Relation, registers: &[u8], value: &[u8]) -> bool {
    let found = &registers[..value.len()];
    match relation {
        Relation::Equal => found == value,
        Relation::NotEqual => found != value,
        Relation::AtMost => found <= value,
        Relation::AtLeast => found >= value,
        Relation::Above => found > value,
    }
}
