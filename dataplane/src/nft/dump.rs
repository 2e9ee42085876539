//! What the kernel tells of a table: questions to ask, answers read into types, and whether it is the table that we
//! would make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crds::{Protocol, Range};

use super::element::{self, Elements, Frontend, Key, Value, refusing};
use super::expression::{Expression, Verdict, decode_value};
use super::request::*;
use super::skeleton::{self, COMMENT, Hook, NAME, Table};
use super::userdata;
use crate::affinity::Remembered;
use crate::netlink::attribute::{Attribute, Attributes};
use crate::netlink::message::{Message, NFTABLES};

const GETTABLE: u8 = 1;
const GETCHAIN: u8 = 4;
const GETRULE: u8 = 7;
const GETSET: u8 = 10;
const GETSETELEM: u8 = 13;
const GETGEN: u8 = 16;
const GEN_ID: u16 = 1;

/// Asks for the generation of nf_tables: a number that every change of any table counts up.
pub fn get_generation() -> Message {
    Message::new(NFTABLES, GETGEN, 0, 0, |_| ())
}

/// Asks for a table.
pub fn get_table(table: Table) -> Message {
    Message::new(NFTABLES, GETTABLE, 0, table.number(), |w| {
        w.text(TABLE_NAME, NAME);
    })
}

/// Asks for one chain. (All chains of the family, which the kernel would list, may be tens of thousands of another
/// table's.)
pub fn get_chain(table: Table, name: &str) -> Message {
    Message::new(NFTABLES, GETCHAIN, 0, table.number(), |w| {
        w.text(CHAIN_TABLE, NAME).text(CHAIN_NAME, name);
    })
}

/// Asks for all rules of a table; a dump.
pub fn get_rules(table: Table) -> Message {
    Message::new(NFTABLES, GETRULE, 0, table.number(), |w| {
        w.text(RULE_TABLE, NAME);
    })
}

/// Asks for all sets of a table; a dump.
pub fn get_sets(table: Table) -> Message {
    Message::new(NFTABLES, GETSET, 0, table.number(), |w| {
        w.text(SET_TABLE, NAME);
    })
}

/// Asks for all elements of a set; a dump.
pub fn get_elements(table: Table, set: &str) -> Message {
    Message::new(NFTABLES, GETSETELEM, 0, table.number(), |w| {
        w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, set);
    })
}

/// The generation in an answer.
pub fn generation(answer: Attributes<'_>) -> Option<u32> {
    answer.find(GEN_ID)?.u32()
}

/// A table as it is in the kernel, but for its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its flags: none, if it works.
    pub flags: u32,
    /// How many chains, sets and other objects are in it.
    pub used: u32,
    /// The comment on it.
    pub comment: Option<String>,
    /// Its sets and maps.
    pub sets: Vec<FoundSet>,
    /// The hooks of those chains that a skeleton has, where they exist; `None` for a chain without a hook, or with one
    /// we wouldn't make.
    pub chains: BTreeMap<String, Option<Hook>>,
    /// The rules of each chain that has some; `None` for a rule that we wouldn't make.
    pub rules: BTreeMap<String, Vec<Option<Vec<Expression>>>>,
}

/// A set or map as it is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundSet {
    name: String,
    flags: u32,
    key: Option<(u32, u32)>,
    data: Option<(u32, u32)>,
}

impl Found {
    /// The table in an answer, still without what is in it.
    pub fn table(answer: Attributes<'_>) -> Self {
        let comment = answer.find(TABLE_USERDATA).and_then(|notes| userdata::read_comment(notes.value));
        Self {
            flags: number(answer, TABLE_FLAGS).unwrap_or(0),
            used: number(answer, TABLE_USE).unwrap_or(0),
            comment: comment.map(str::to_owned),
            ..Self::default()
        }
    }

    /// What is wrong with it, in words; `Ok` with the chains that come and go with elements if nothing is.
    ///
    /// # Errors
    /// The first thing that is not as [`skeleton`] would have it.
    pub fn check(&self, table: Table) -> Result<BTreeSet<Key>, String> {
        if self.comment.as_deref() != Some(COMMENT) {
            return Err(format!("its comment is {:?}, so another version made it", self.comment.as_deref()));
        }
        if self.flags != 0 {
            return Err(format!("it has flags {:#x}", self.flags));
        }
        let mut expected: Vec<FoundSet> = skeleton::sets(table).iter().map(FoundSet::expected).collect();
        let mut sets = self.sets.clone();
        expected.sort();
        sets.sort();
        if let Some(set) = expected.iter().find(|set| !sets.contains(set)) {
            return Err(format!("set {} is not there as it should be", set.name));
        }
        let mut rules = self.rules.clone();
        let fixed = skeleton::chains(table);
        for chain in &fixed {
            if self.chains.get(&chain.name) != Some(&chain.hook) {
                return Err(format!("chain {} is not there as it should be", chain.name));
            }
            same_rules(&chain.name, rules.remove(&chain.name), &chain.rules)?;
        }
        let mut chains = BTreeSet::new();
        for (name, found) in rules {
            let way = element::way(&name).map(|way| (Key::Way(table, way), skeleton::way(table, way)));
            let remember =
                || element::remembers(&name).map(|s| (Key::Remember(table, s), skeleton::remember(table, s)));
            let (key, expected) = way.or_else(remember).ok_or_else(|| format!("chain {name} should not be there"))?;
            same_rules(&name, Some(found), &expected.rules)?;
            chains.insert(key);
        }
        // What has neither rules nor a name that we know can only be counted.
        let objects = expected.len() + fixed.len() + chains.len();
        if usize::try_from(self.used) != Ok(objects) {
            return Err(format!("it has {} chains, sets and other objects instead of {objects}", self.used));
        }
        Ok(chains)
    }
}

fn same_rules(
    name: &str,
    found: Option<Vec<Option<Vec<Expression>>>>,
    expected: &[Vec<Expression>],
) -> Result<(), String> {
    let found = found.unwrap_or_default();
    let same = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.as_ref() == Some(e));
    if same { Ok(()) } else { Err(format!("the rules of chain {name} are not as they should be")) }
}

impl FoundSet {
    /// The set in an answer.
    pub fn read(answer: Attributes<'_>) -> Self {
        let data = number(answer, SET_DATA_TYPE).map(|kind| (kind, number(answer, SET_DATA_LEN).unwrap_or(0)));
        Self {
            name: text(answer, SET_NAME).unwrap_or_default(),
            flags: number(answer, SET_FLAGS).unwrap_or(0),
            key: number(answer, SET_KEY_TYPE).zip(number(answer, SET_KEY_LEN)),
            // How long a verdict is, is the kernel's own business.
            data: data.map(|(kind, length)| (kind, if kind == skeleton::VERDICT { 0 } else { length })),
        }
    }

    fn expected(set: &skeleton::Set) -> Self {
        let key = Some((set.key_type(), set.key_length()));
        Self { name: set.name.to_owned(), flags: set.flags(), key, data: set.data() }
    }
}

/// The hook of the chain in an answer.
pub fn chain_hook(answer: Attributes<'_>) -> Option<Hook> {
    let hook = answer.find(CHAIN_HOOK)?.inner();
    let kind = answer.find(CHAIN_TYPE)?.text()?;
    (number(answer, CHAIN_POLICY) == Some(ACCEPT)).then_some(())?;
    Some(Hook {
        kind: ["nat", "filter"].into_iter().find(|known| *known == kind)?,
        number: number(hook, HOOK_NUMBER)?,
        priority: number(hook, HOOK_PRIORITY)?.cast_signed(),
    })
}

/// The rule in an answer: the name of its chain, and its expressions if we could have made them.
pub fn rule(answer: Attributes<'_>) -> Option<(String, Option<Vec<Expression>>)> {
    let expressions = answer.find(RULE_EXPRESSIONS).map(|list| list.inner().map(Expression::decode).collect());
    Some((text(answer, RULE_CHAIN)?, expressions.unwrap_or_default()))
}

/// The elements in an answer about `set`; `None` in place of one that we would not make.
///
/// A set of ranges is told by its boundaries: put them together with [`ranges`] when all are there.
pub fn elements(table: Table, set: &str, answer: Attributes<'_>) -> Vec<Option<(Key, Value)>> {
    let list = answer.find(ELEM_LIST_ELEMENTS);
    list.into_iter().flat_map(|list| list.inner()).map(|item| element(table, set, item)).collect()
}

fn element(table: Table, set: &str, item: Attribute<'_>) -> Option<(Key, Value)> {
    let fields = item.inner();
    let mut key = Parts { table, rest: fields.find(ELEM_KEY).and_then(|key| decode_value(key.inner()))? };
    let data = fields.find(ELEM_DATA).map(|data| data.inner());
    let found = match set {
        "addresses" => (Key::Address(key.address()?), Value::Present),
        "services" => (Key::Service(key.frontend()?), Value::Way(element::way(&target(data?)?)?)),
        "inside" => (Key::Inside(key.frontend()?), Value::Way(element::way(&target(data?)?)?)),
        "remember" => (Key::Remembered(key.frontend()?), Value::Remember(element::remembers(&target(data?)?)?)),
        "refused" => {
            let target = target(data?)?;
            let restricted = [false, true].into_iter().find(|restricted| refusing(*restricted) == target)?;
            (Key::Refused(key.frontend()?), Value::Refuse { restricted })
        }
        "sources" => {
            let (front, first) = (key.frontend()?, key.address()?);
            let end = fields.find(ELEM_KEY_END).and_then(|end| decode_value(end.inner()))?;
            let mut end = Parts { table, rest: end };
            let (same, last) = (end.frontend()?, end.address()?);
            end.end()?;
            (front == same).then_some((Key::Source(front, Range::new(first, last)?), Value::Present))?
        }
        "endpoints" => {
            let key = Key::Endpoint(key.frontend()?, u32::from_ne_bytes(key.part()?));
            let mut value = Parts { table, rest: decode_value(data?)? };
            let endpoint = SocketAddr::new(value.address()?, value.port()?);
            value.end()?;
            (key, Value::Endpoint(endpoint))
        }
        "local" => (Key::Local(key.address()?, key.address()?), Value::Present),
        "hairpin" => {
            let (address, source, destination) = (key.address()?, key.address()?, key.address()?);
            (source == destination).then_some((Key::Hairpin(address, source), Value::Present))?
        }
        _ => return None,
    };
    key.end()?;
    Some(found)
}

/// Asks which clients are remembered; a dump.
pub fn get_remembered(table: Table) -> Message {
    get_elements(table, AFFINITY)
}

/// The clients in an answer about those.
pub fn remembered(table: Table, answer: Attributes<'_>) -> Vec<Remembered> {
    let one = |item: Attribute<'_>| {
        let fields = item.inner();
        let mut key = Parts { table, rest: fields.find(ELEM_KEY).and_then(|key| decode_value(key.inner()))? };
        let mut value = Parts { table, rest: fields.find(ELEM_DATA).and_then(|data| decode_value(data.inner()))? };
        let (client, front) = (key.address()?, key.frontend()?);
        let endpoint = SocketAddr::new(value.address()?, value.port()?);
        Some(Remembered { client, port: (front.address, front.protocol, front.port), endpoint })
    };
    answer.find(ELEM_LIST_ELEMENTS).into_iter().flat_map(|list| list.inner()).filter_map(one).collect()
}

/// The boundaries in an answer about a set of ranges: an address, and whether a range has ended there.
pub fn boundaries(table: Table, answer: Attributes<'_>) -> Vec<Option<(IpAddr, bool)>> {
    let list = answer.find(ELEM_LIST_ELEMENTS);
    let boundary = |item: Attribute<'_>| {
        let mut key = Parts { table, rest: item.inner().find(ELEM_KEY).and_then(|key| decode_value(key.inner()))? };
        let flags = number(item.inner(), ELEM_FLAGS).unwrap_or(0);
        let address = key.address()?;
        key.end()?;
        Some((address, flags & INTERVAL_END != 0))
    };
    list.into_iter().flat_map(|list| list.inner()).map(boundary).collect()
}

/// The ranges between boundaries; `None` if they don't fit each other.
pub fn ranges(mut boundaries: Vec<(IpAddr, bool)>) -> Option<Vec<Range>> {
    boundaries.sort();
    let mut ranges = Vec::new();
    let mut open = None;
    for (address, end) in boundaries {
        match (open, end) {
            (None, false) => open = Some(address),
            (Some(first), true) => {
                ranges.push(Range::new(first, crds::address::previous(address)?)?);
                open = None;
            }
            // Before the first range, one has ended that never began.
            (None, true) if ranges.is_empty() => {}
            _ => return None,
        }
    }
    if let Some(first) = open {
        let highest = match first {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::BROADCAST),
            IpAddr::V6(_) => Ipv6Addr::from_bits(u128::MAX).into(),
        };
        ranges.push(Range::new(first, highest)?);
    }
    Some(ranges)
}

/// All elements of a table, from those that its sets hold and the chains it has.
pub fn assembled(table: Table, elements: Vec<(Key, Value)>, chains: &BTreeSet<Key>, pods: Vec<Range>) -> Elements {
    let pods = (!pods.is_empty()).then_some((Key::Pods(table), Value::Ranges(pods)));
    let chains = chains.iter().map(|chain| (*chain, Value::Present));
    elements.into_iter().chain(pods).chain(chains).collect()
}

/// The parts of a key or of a value, one after the other.
struct Parts<'a> {
    table: Table,
    rest: &'a [u8],
}

impl Parts<'_> {
    fn part<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*part)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.table {
            Table::V4 => self.part::<4>().map(IpAddr::from),
            Table::V6 => self.part::<16>().map(IpAddr::from),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.part::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn frontend(&mut self) -> Option<Frontend> {
        let address = self.address()?;
        let [number, ..] = self.part::<4>()?;
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = protocols.into_iter().find(|protocol| protocol.number() == number)?;
        Some(Frontend { address, protocol, port: self.port()? })
    }

    /// Whether nothing is left.
    fn end(self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }
}

/// The chain that a verdict leads to.
fn target(data: Attributes<'_>) -> Option<String> {
    match Verdict::decode(data)? {
        Verdict::Goto(chain) => Some(chain),
        Verdict::Drop | Verdict::Jump(_) | Verdict::Return => None,
    }
}

fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.find(kind)?.u32()
}

fn text(attributes: Attributes<'_>, kind: u16) -> Option<String> {
    attributes.find(kind)?.text().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::{Change, diff};
    use crate::netlink::attribute::{Writer, attributes};
    use crate::ruleset::{Pick, Way};
    use proptest::prelude::*;

    fn a_table() -> impl Strategy<Value = Table> {
        proptest::sample::select(Table::ALL.to_vec())
    }

    /// Any elements of any table.
    fn some_elements() -> impl Strategy<Value = Elements> {
        a_table().prop_flat_map(elements_of)
    }

    fn elements_of(table: Table) -> impl Strategy<Value = Elements> {
        let address = move || match table {
            Table::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
            Table::V6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
        };
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        let frontend = (address(), protocol, any::<u16>()).prop_map(|(address, protocol, port)| Frontend {
            address,
            protocol,
            port,
        });
        let way = (any::<u32>(), 1u32.., any::<bool>(), proptest::option::of(any::<u32>()))
            .prop_map(|(from, count, restricted, affinity)| Way { pick: Pick { from, count }, restricted, affinity });
        let range = (address(), address()).prop_map(|(a, b)| Range::new(a.min(b), a.max(b)).expect("a range"));
        let endpoint = (address(), any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port));
        let element = prop_oneof![
            address().prop_map(|a| (Key::Address(a), Value::Present)),
            (frontend.clone(), way.clone()).prop_map(|(f, w)| (Key::Service(f), Value::Way(w))),
            (frontend.clone(), way.clone()).prop_map(|(f, w)| (Key::Inside(f), Value::Way(w))),
            (frontend.clone(), any::<bool>())
                .prop_map(|(f, restricted)| (Key::Refused(f), Value::Refuse { restricted })),
            (frontend.clone(), any::<u32>()).prop_map(|(f, seconds)| (Key::Remembered(f), Value::Remember(seconds))),
            (frontend.clone(), range).prop_map(|(f, range)| (Key::Source(f, range), Value::Present)),
            (frontend, any::<u32>(), endpoint).prop_map(|(f, i, e)| (Key::Endpoint(f, i), Value::Endpoint(e))),
            (address(), address()).prop_map(|(a, e)| (Key::Local(a, e), Value::Present)),
            (address(), address()).prop_map(|(a, e)| (Key::Hairpin(a, e), Value::Present)),
        ];
        proptest::collection::btree_map(any::<u64>(), element, 0..40)
            .prop_map(|elements| elements.into_values().collect())
    }

    /// What the messages that add all of `elements` say, read as if the kernel had said it.
    fn told(elements: &Elements) -> Vec<Option<(Key, Value)>> {
        let changes = diff(&Elements::new(), elements);
        let mut requests = Requests::default();
        requests.change(&changes);
        let mut told = Vec::new();
        let Some(table) = elements.keys().next().map(Key::table) else { return told };
        for message in requests.messages {
            let mut bytes = Vec::new();
            message.encode(0, &mut bytes);
            assert!(bytes.len() < 1 << 16, "a message has an attribute of less than 64 KiB");
            let answer = attributes(&bytes[Message::HEADERS..]);
            let set = answer.find(ELEM_LIST_SET).and_then(|set| set.text()).expect("a set");
            told.extend(self::elements(table, set, answer));
        }
        told
    }

    proptest! {
        #[test]
        fn elements_are_read_as_they_are_written(elements in some_elements()) {
            let read: Option<Elements> = told(&elements).into_iter().collect();
            prop_assert_eq!(read, Some(elements));
        }

        #[test]
        fn ranges_are_read_as_they_are_written(
            table in a_table(),
            ends in proptest::collection::btree_set(any::<u128>(), 0..12),
        ) {
            let address = |bits: u128| match table {
                Table::V4 => IpAddr::from(Ipv4Addr::from_bits((bits >> 96) as u32)),
                Table::V6 => Ipv6Addr::from_bits(bits).into(),
            };
            let ends: Vec<_> = ends.into_iter().map(address).collect();
            // Ranges that touch are one.
            let apart = |pair: &[IpAddr]| crds::address::next(pair[0]).is_some_and(|after| after < pair[1]);
            prop_assume!(ends.windows(2).all(apart));
            let expected: Vec<_> = ends.chunks_exact(2).filter_map(|pair| Range::new(pair[0], pair[1])).collect();
            let mut list = Writer::default();
            list.nested(ELEM_LIST_ELEMENTS, |list| {
                let change = Change::Add(Key::Pods(table), Value::Ranges(expected.clone()));
                super::super::request::element(&change, list);
            });
            let boundaries = boundaries(table, attributes(&list.finish())).into_iter().collect::<Option<Vec<_>>>();
            prop_assert_eq!(boundaries.and_then(ranges), Some(expected));
        }

        #[test]
        fn who_is_forgotten_is_who_was_remembered(
            table in a_table(),
            // Few, and as many as one message just takes and does not take any more.
            clients in prop_oneof![0usize..4, 499usize..502].prop_flat_map(|count| {
                proptest::collection::vec((any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>()), count)
            }),
        ) {
            let address = |bytes: [u8; 16]| match table {
                Table::V4 => IpAddr::from(*bytes.first_chunk::<4>().expect("four bytes")),
                Table::V6 => IpAddr::from(bytes),
            };
            let expected: Vec<Remembered> = clients
                .into_iter()
                .map(|(client, lb_ip, port)| Remembered {
                    client: address(client),
                    port: (address(lb_ip), Protocol::Udp, port),
                    endpoint: SocketAddr::new(address([7; 16]), 9),
                })
                .collect();
            let mut requests = Requests::default();
            requests.forget(table, &expected);
            let mut told = Vec::new();
            for message in requests.messages {
                let mut bytes = Vec::new();
                message.encode(0, &mut bytes);
                prop_assert!(bytes.len() < 1 << 16);
                let answer = attributes(&bytes[Message::HEADERS..]);
                prop_assert_eq!(answer.find(ELEM_LIST_SET).and_then(|set| set.text()), Some("affinity"));
                for item in answer.find(ELEM_LIST_ELEMENTS).expect("elements").inner() {
                    let key = item.inner().find(ELEM_KEY).and_then(|key| decode_value(key.inner())).expect("a key");
                    let mut key = Parts { table, rest: key };
                    told.push((key.address(), key.frontend().map(|front| (front.address, front.protocol, front.port))));
                }
            }
            let expected: Vec<_> = expected.into_iter().map(|one| (Some(one.client), Some(one.port))).collect();
            prop_assert_eq!(told, expected);
        }

        #[test]
        fn reading_any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let answer = attributes(&bytes);
            let _ = (Found::table(answer), FoundSet::read(answer), chain_hook(answer), rule(answer), generation(answer));
            for table in Table::ALL {
                for set in skeleton::sets(table) {
                    let _ = elements(table, set.name, answer);
                }
                let _ = remembered(table, answer);
                let _ = boundaries(table, answer).into_iter().collect::<Option<Vec<_>>>().and_then(ranges);
            }
        }

        #[test]
        fn reading_an_answer_with_a_flaw_never_panics(
            (table, elements) in a_table().prop_flat_map(|table| (Just(table), elements_of(table))),
            at: usize,
            flaw: u8,
        ) {
            let changes = diff(&Elements::new(), &elements);
            let mut requests = Requests::default();
            requests.create_table(table);
            requests.change(&changes);
            for message in requests.messages {
                let mut bytes = Vec::new();
                message.encode(0, &mut bytes);
                let mut bytes = bytes.split_off(Message::HEADERS);
                if !bytes.is_empty() {
                    let at = at % bytes.len();
                    bytes[at] = flaw;
                }
                let answer = attributes(&bytes);
                let _ = (Found::table(answer), FoundSet::read(answer), chain_hook(answer), rule(answer));
                for set in skeleton::sets(table) {
                    let _ = self::elements(table, set.name, answer);
                }
            }
        }
    }

    #[test]
    fn every_rule_is_read_as_it_is_written() {
        let open = Way { pick: Pick { from: 0, count: 1 }, ..Way::default() };
        let ways = [open, Way { pick: Pick { from: 3, count: 7 }, restricted: true, affinity: Some(1) }];
        let chains = |table| {
            let ways = ways.map(|way| skeleton::way(table, way));
            skeleton::chains(table).into_iter().chain(ways).chain([skeleton::remember(table, 10_800)])
        };
        for chain in Table::ALL.into_iter().flat_map(chains) {
            for expected in chain.rules {
                let mut message = Writer::default();
                message.text(RULE_CHAIN, &chain.name).nested(RULE_EXPRESSIONS, |list| {
                    expected.iter().for_each(|expression| expression.encode(list));
                });
                let read = rule(attributes(&message.finish()));
                assert_eq!(read, Some((chain.name.clone(), Some(expected))));
            }
        }
    }

    #[test]
    fn many_elements_are_spread_over_messages() {
        let elements = (0..5_000).map(|n| (Key::Address(Ipv4Addr::from_bits(n).into()), Value::Present)).collect();
        assert_eq!(told(&elements).len(), 5_000);
    }

    #[test]
    fn boundaries_that_do_not_fit_are_no_ranges() {
        let at = |last: u8| IpAddr::from([10, 0, 0, last]);
        let range = |first, last| vec![Range::new(first, last).expect("a range")];
        assert_eq!(ranges(vec![]), Some(vec![]));
        assert_eq!(ranges(vec![(at(2), true), (at(1), false)]), Some(range(at(1), at(1))));
        assert_eq!(ranges(vec![(at(1), false)]), Some(range(at(1), Ipv4Addr::BROADCAST.into())));
        assert_eq!(ranges(vec![(at(1), false), (at(2), false)]), None);
        assert_eq!(ranges(vec![(at(1), false), (at(2), true), (at(3), true)]), None);
    }
}
