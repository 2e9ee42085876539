//! What the kernel tells of a table: questions to ask, answers read into types, and whether it is the table that we
//! would make.

mod found;

pub use found::{Found, FoundSet, chain_hook, rule};

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crds::service::Family;
use crds::{Protocol, Range};

use super::expression::{Verdict, decode_counter, decode_value};
use super::request::*;
use crate::flows::affinity::Remembered;
use crate::metrics::traffic::Count;
use crate::netlink::attribute::{Attribute, Attributes};
use crate::netlink::message::{Message, NFTABLES};
use crate::nft::dispatch_id::Lead;
use crate::nft::elements::{self, Elements, Frontend, Key, Value, refusing};
use crate::nft::layout::{NAME, Table};
use crate::rules::spread::Token;
use crate::snapshot::LinkName;
use crds::MacAddr;

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

/// The elements in an answer about `set`; `None` in place of one that we would not make.
///
/// A set of ranges is told by its boundaries: put them together with [`ranges`] when all are there.
pub fn elements(table: Table, set: &str, answer: Attributes<'_>) -> Vec<Option<(Key, Value)>> {
    let list = answer.find(ELEM_LIST_ELEMENTS);
    list.into_iter().flat_map(|list| list.inner()).map(|item| element(table, set, item)).collect()
}

fn element(table: Table, set: &str, item: Attribute<'_>) -> Option<(Key, Value)> {
    let fields = item.inner();
    let family = family_of(table, set);
    let mut key = Parts { family, rest: fields.find(ELEM_KEY).and_then(|key| decode_value(key.inner()))? };
    let data = fields.find(ELEM_DATA).map(|data| data.inner());
    let six = || decode_value(data?)?.try_into().ok();
    let (token, mac) = (|| Some(Value::Token(Token(six()?))), || Some(Value::Mac(MacAddr::from(six()?))));
    let lead = || Some(Value::Lead(Lead(u32::from_ne_bytes(value(data?)?))));
    let found = match set {
        "spread4" | "spread6" => (Key::Spread(key.address()?), Value::Present),
        "classes4" | "classes6" => (Key::Class(key.frontend()?), token()?),
        "wholes4" | "wholes6" => (Key::Whole(key.address()?, key.protocol()?), token()?),
        "slots" => (Key::Slot(Token(key.mac()?), u32::from_ne_bytes(key.part()?)), token()?),
        "hops" => (Key::Hop(key.link()?, Token(key.mac()?)), mac()?),
        "peers" => (Key::Peer(MacAddr::from(key.part()?)), Value::Present),
        "own" => (Key::Own(key.link()?, MacAddr::from(key.mac()?)), Value::Present),
        "alive" => (Key::Alive(key.link()?, MacAddr::from(key.mac()?)), Value::Present),
        "macs" => (Key::Mac(key.link()?), mac()?),
        "addresses" => (Key::Address(key.address()?), Value::Present),
        "services" => (Key::Service(key.frontend()?), lead()?),
        "inside" => (Key::Inside(key.frontend()?), lead()?),
        "ways" => {
            let (lead, way) = (Lead(u32::from_ne_bytes(key.part()?)), elements::way(&target(data?)?)?);
            (Lead::to(way) == lead).then_some((Key::Lead(family, lead), Value::Way(way)))?
        }
        "remember" => (Key::Remembered(key.frontend()?), Value::Remember(elements::remembers(&target(data?)?)?)),
        "node-ports" => (Key::NodePort(key.frontend()?), Value::NewPort(u16::from_be_bytes(value(data?)?))),
        "cluster-ips" => (Key::ClusterIp(key.frontend()?), new_address(data?, family)?),
        "nodes" => (Key::Node(key.address()?), new_address(data?, family)?),
        "refused" if Verdict::decode(data?) == Some(Verdict::Return) => (Key::Refused(key.frontend()?), Value::Leave),
        "refused" => {
            let target = target(data?)?;
            let restricted = [false, true].into_iter().find(|restricted| refusing(*restricted) == target)?;
            (Key::Refused(key.frontend()?), Value::Refuse { restricted })
        }
        "sources" => {
            let (front, first) = (key.frontend()?, key.address()?);
            let end = fields.find(ELEM_KEY_END).and_then(|end| decode_value(end.inner()))?;
            let mut end = Parts { family, rest: end };
            let (same, last) = (end.frontend()?, end.address()?);
            end.end()?;
            (front == same).then_some((Key::Source(front, Range::new(first, last)?), Value::Present))?
        }
        "endpoints" => {
            let key = Key::Endpoint(key.frontend()?, u32::from_ne_bytes(key.part()?));
            let mut value = Parts { family, rest: decode_value(data?)? };
            let endpoint = SocketAddr::new(value.address()?, value.port()?);
            value.end()?;
            (key, Value::Endpoint(endpoint))
        }
        "traffic" => (Key::Traffic(key.frontend()?), Value::Present),
        "begun" => (Key::Begun(key.frontend()?), Value::Present),
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

/// A value of so many bytes.
fn value<const N: usize>(data: Attributes<'_>) -> Option<[u8; N]> {
    decode_value(data)?.try_into().ok()
}

fn new_address(data: Attributes<'_>, family: Family) -> Option<Value> {
    let mut value = Parts { family, rest: decode_value(data)? };
    let address = value.address()?;
    value.end()?;
    Some(Value::NewAddress(address))
}

/// The elements in an answer about a set that counts, with how many packets and bytes: ports of lb_ips.
pub fn counted_ports(table: Table, answer: Attributes<'_>) -> Vec<(Frontend, Count)> {
    counted(table, answer, |key| key.frontend())
}

/// The same of a set of lb_ips.
pub fn counted_addresses(table: Table, answer: Attributes<'_>) -> Vec<(IpAddr, Count)> {
    counted(table, answer, |key| key.address())
}

fn counted<T>(table: Table, answer: Attributes<'_>, key: impl Fn(&mut Parts<'_>) -> Option<T>) -> Vec<(T, Count)> {
    let one = |item: Attribute<'_>| {
        let fields = item.inner();
        let rest = fields.find(ELEM_KEY).and_then(|key| decode_value(key.inner()))?;
        let (packets, bytes) = decode_counter(fields.find(ELEM_EXPR)?.inner())?;
        Some((key(&mut Parts { family: family_of(table, ""), rest })?, Count { packets, bytes }))
    };
    answer.find(ELEM_LIST_ELEMENTS).into_iter().flat_map(|list| list.inner()).filter_map(one).collect()
}

/// Asks which clients are remembered; a dump.
pub fn get_remembered(table: Table) -> Message {
    get_elements(table, AFFINITY)
}

/// The clients in an answer about those.
pub fn remembered(table: Table, answer: Attributes<'_>) -> Vec<Remembered> {
    let family = family_of(table, AFFINITY);
    let one = |item: Attribute<'_>| {
        let fields = item.inner();
        let mut key = Parts { family, rest: fields.find(ELEM_KEY).and_then(|key| decode_value(key.inner()))? };
        let mut value = Parts { family, rest: fields.find(ELEM_DATA).and_then(|data| decode_value(data.inner()))? };
        let (client, front) = (key.address()?, key.frontend()?);
        let endpoint = SocketAddr::new(value.address()?, value.port()?);
        Some(Remembered { client, port: (front.address, front.protocol, front.port), endpoint })
    };
    answer.find(ELEM_LIST_ELEMENTS).into_iter().flat_map(|list| list.inner()).filter_map(one).collect()
}

/// The boundaries in an answer about a set of ranges: an address, and whether a range has ended there.
pub fn boundaries(table: Table, answer: Attributes<'_>) -> Vec<Option<(IpAddr, bool)>> {
    let list = answer.find(ELEM_LIST_ELEMENTS);
    let family = family_of(table, "pods");
    let boundary = |item: Attribute<'_>| {
        let mut key = Parts { family, rest: item.inner().find(ELEM_KEY).and_then(|key| decode_value(key.inner()))? };
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
    let pods = table.family().filter(|_| !pods.is_empty()).map(|family| (Key::Pods(family), Value::Ranges(pods)));
    let chains = chains.iter().map(|chain| (*chain, Value::Present));
    elements.into_iter().chain(pods).chain(chains).collect()
}

/// The family of the addresses in a set: that of its table or, where that has both, what its name ends with.
fn family_of(table: Table, set: &str) -> Family {
    table.family().unwrap_or(if set.ends_with('6') { Family::V6 } else { Family::V4 })
}

/// The parts of a key or of a value, one after the other.
struct Parts<'a> {
    family: Family,
    rest: &'a [u8],
}

impl Parts<'_> {
    fn part<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*part)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.family {
            Family::V4 => self.part::<4>().map(IpAddr::from),
            Family::V6 => self.part::<16>().map(IpAddr::from),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.part::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn frontend(&mut self) -> Option<Frontend> {
        Some(Frontend { address: self.address()?, protocol: self.protocol()?, port: self.port()? })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.part::<4>()?;
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        protocols.into_iter().find(|protocol| protocol.number() == number)
    }

    fn mac(&mut self) -> Option<[u8; 6]> {
        let [a, b, c, d, e, f, ..] = self.part::<8>()?;
        Some([a, b, c, d, e, f])
    }

    fn link(&mut self) -> Option<LinkName> {
        let name = self.part::<16>()?;
        let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
        LinkName::new(name)
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
        Verdict::Accept | Verdict::Drop | Verdict::Jump(_) | Verdict::Return => None,
    }
}

fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.find(kind)?.u32()
}

fn text(attributes: Attributes<'_>, kind: u16) -> Option<String> {
    attributes.find(kind)?.text().map(str::to_owned)
}

#[cfg(test)]
mod tests;
