//! Elements as text for people, much as `nft list` prints them, each on a line of its own. Pure.
//!
//! What the rules are is not printed, only which chains there are: they are the same on every node.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crds::{Protocol, Range};
use ipnet::IpNet;

use super::element::{Elements, Key, Value, at, chain, elements, is_needed, refusing, remembering, returning};
use super::request::{key_bytes, set_of};
use super::skeleton::{self, Table, Type};
use crate::ruleset::Ruleset;
use crds::Mac;

/// What the tables would be, for this ruleset. A table without anything to do would not be there.
pub fn text(ruleset: &Ruleset) -> String {
    let all = elements(ruleset);
    let mut text = String::new();
    for table in Table::ALL.into_iter().filter(|table| is_needed(ruleset, *table)) {
        of_table(table, &all, &mut text).expect("invariant: text can be written to a String");
    }
    text
}

fn of_table(table: Table, elements: &Elements, to: &mut String) -> std::fmt::Result {
    writeln!(to, "table {table} {{")?;
    for set in skeleton::sets(table) {
        let mine = |key: &Key| key.table() == table && set_of(key) == Some(set.name);
        let mut lines = elements.iter().filter(|(key, _)| mine(key)).flat_map(|(key, value)| lines(&set, key, value));
        let kind = if set.data().is_some() { "map" } else { "set" };
        let Some(first) = lines.next() else { continue };
        writeln!(to, "\t{kind} {} {{ # {}", set.name, set.comment)?;
        for line in std::iter::once(first).chain(lines) {
            writeln!(to, "\t\t{line}")?;
        }
        writeln!(to, "\t}}")?;
    }
    for chain in skeleton::chains(table) {
        let hook =
            chain.hook.map(|hook| format!(" type {} priority {};", hook.kind, hook.priority)).unwrap_or_default();
        writeln!(to, "\tchain {} {{{hook} }}", chain.name)?;
    }
    for key in elements.keys().filter(|key| key.table() == table) {
        match key {
            Key::Way(_, way) => writeln!(to, "\tchain {} {{ }}", chain(*way))?,
            Key::Remember(_, seconds) => writeln!(to, "\tchain {} {{ }}", remembering(*seconds))?,
            Key::Return(_, one) => writeln!(to, "\tchain {} {{ }}", returning(*one))?,
            Key::Link(link) => writeln!(to, "\tchain {} {{ }}", at(link))?,
            _ => {}
        }
    }
    writeln!(to, "}}")
}

/// One element, as one line; a set of ranges has several.
fn lines(set: &skeleton::Set, key: &Key, value: &Value) -> Vec<String> {
    if let Value::Ranges(ranges) = value {
        return ranges.iter().map(range).collect();
    }
    let bytes = key_bytes(key);
    let mut left = bytes.as_slice();
    let mut parts: Vec<String> = set.key.iter().map_while(|kind| part(*kind, &mut left)).collect();
    if let (Key::Source(_, clients), Some(last)) = (key, parts.last_mut()) {
        *last = range(clients);
    }
    let key = parts.join(" . ");
    vec![match value {
        Value::Present | Value::Ranges(_) => key,
        Value::Way(way) => format!("{key} : goto {}", chain(*way)),
        Value::Remember(seconds) => format!("{key} : goto {}", remembering(*seconds)),
        Value::Refuse { restricted } => format!("{key} : goto {}", refusing(*restricted)),
        Value::Leave => format!("{key} : return"),
        Value::NewAddress(address) => format!("{key} : {address}"),
        Value::NewPort(port) => format!("{key} : {port}"),
        Value::Endpoint(endpoint) => format!("{key} : {} . {}", endpoint.ip(), endpoint.port()),
        Value::Token(token) => format!("{key} : {token}"),
        Value::Mac(mac) => format!("{key} : {mac}"),
    }]
}

/// A part of a key, taken from its bytes: each begins four bytes of its own.
fn part(kind: Type, bytes: &mut &[u8]) -> Option<String> {
    let mut take = |count: usize| {
        let (head, rest) = bytes.split_at_checked(count)?;
        *bytes = rest;
        Some(head)
    };
    Some(match kind {
        Type::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(take(4)?).ok()?).to_string(),
        Type::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(take(16)?).ok()?).to_string(),
        Type::Integer => u32::from_ne_bytes(take(4)?.try_into().ok()?).to_string(),
        Type::Protocol => {
            let number = *take(4)?.first()?;
            let known =
                [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == number);
            known.map_or_else(|| number.to_string(), |known| known.to_string().to_lowercase())
        }
        Type::Mac => {
            // By itself it has nothing behind it.
            let mac = take(6)?.try_into().ok()?;
            take(2);
            Mac(mac).to_string()
        }
        Type::LinkName => {
            let name = std::str::from_utf8(take(16)?).ok()?;
            format!("{:?}", name.trim_end_matches('\0'))
        }
        Type::Port => {
            let [high, low, ..] = take(4)? else { return None };
            u16::from_be_bytes([*high, *low]).to_string()
        }
    })
}

/// A range as `nft` prints it: an address, a CIDR where it is one, or both ends.
fn range(range: &Range) -> String {
    let (first, last): (IpAddr, IpAddr) = (range.first(), range.last());
    if first == last {
        return first.to_string();
    }
    let widest = if first.is_ipv4() { 32 } else { 128 };
    let mut nets = (0..widest).filter_map(|prefix| IpNet::new(first, prefix).ok());
    match nets.find(|net| net.network() == first && net.broadcast() == last) {
        Some(net) => net.to_string(),
        None => format!("{first}-{last}"),
    }
}
