//! A ruleset as text for people, as `nft list` prints the tables when they have been programmed: only that elements stand
//! in order, each on a line of its own. Pure.

mod rule;

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crds::{Protocol, Range};
use ipnet::IpNet;

use super::codec::request::{key_bytes, set_of};
use super::dispatch_id::Lead;
use super::elements::{Elements, Key, Value, chain, elements, is_needed, refusing, remembering};
use super::layout::{self, Chain, Data, Hook, Set, Table, Type};
use crate::rules::ruleset::Ruleset;
use crds::MacAddr;

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
    writeln!(to, "table {table} {{\n\tcomment \"{}\"", layout::COMMENT)?;
    for (number, set) in (0..).zip(layout::sets(table)) {
        if number > 0 {
            writeln!(to)?;
        }
        let mine = |key: &Key| key.table() == table && set_of(key) == Some(set.name);
        let lines = elements.iter().filter(|(key, _)| mine(key)).flat_map(|(key, value)| lines(&set, key, value));
        of_set(&set, &lines.collect::<Vec<_>>(), to)?;
    }
    let changing = elements.keys().filter(|key| key.table() == table).filter_map(|key| match key {
        Key::Way(family, way) => Some(layout::way(*family, *way)),
        Key::Remember(family, seconds) => Some(layout::remember(*family, *seconds)),
        Key::Return(family, one) => Some(layout::returning(*family, *one)),
        Key::Hooked(family, one) => Some(layout::hooked(*family, *one)),
        Key::Link(link) => Some(layout::ingress(*link)),
        _ => None,
    });
    for chain in layout::chains(table).into_iter().chain(changing) {
        of_chain(table, &chain, to)?;
    }
    writeln!(to, "}}")
}

fn of_set(set: &Set, elements: &[String], to: &mut String) -> std::fmt::Result {
    let is_map = set.data != Data::None;
    writeln!(to, "\t{} {} {{", if is_map { "map" } else { "set" }, set.name)?;
    // A number that numgen yields has no type by name, so `nft` tells by example what the key is.
    let by_example = matches!(set.data, Data::Endpoint(_)) || set.key.contains(&Type::Integer);
    let name = |kind: &Type| if by_example { example(*kind) } else { type_name(*kind) };
    let names = |kinds: &[Type]| kinds.iter().map(name).collect::<Vec<_>>().join(" . ");
    let values = match set.data {
        Data::None => String::new(),
        Data::Verdict => " : verdict".to_owned(),
        Data::Endpoint(family) => format!(" : {}", names(&layout::endpoint(family))),
        Data::Plain(kind) => format!(" : {}", names(&[kind])),
    };
    writeln!(to, "\t\t{} {}{values}", if by_example { "typeof" } else { "type" }, names(&set.key))?;
    if let Some(size) = set.size(elements.len()) {
        writeln!(to, "\t\tsize {size}\n\t\tflags {}timeout", if set.learned.is_some() { "dynamic," } else { "" })?;
    }
    if set.ranges {
        writeln!(to, "\t\tflags interval")?;
    }
    if set.counts {
        writeln!(to, "\t\tcounter")?;
    }
    if set.many {
        writeln!(to, "\t\tgc-interval {}d", layout::LOOK_THROUGH.as_secs() / 86_400)?;
    }
    writeln!(to, "\t\tcomment \"{}\"", set.comment)?;
    if !elements.is_empty() {
        writeln!(to, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "))?;
    }
    writeln!(to, "\t}}")
}

fn of_chain(table: Table, chain: &Chain, to: &mut String) -> std::fmt::Result {
    writeln!(to, "\n\tchain {} {{", chain.name)?;
    if let Some(hook) = chain.hook {
        let link = hook.link.map(|link| format!(" device \"{link}\"")).unwrap_or_default();
        let (kind, name, priority) = (hook.kind, hook_name(table, hook), priority(table, hook));
        writeln!(to, "\t\ttype {kind} hook {name}{link} priority {priority}; policy accept;")?;
    }
    for rule in &chain.rules {
        writeln!(to, "\t\t{}", rule::line(rule))?;
    }
    writeln!(to, "\t}}")
}

fn hook_name(table: Table, hook: Hook) -> &'static str {
    match (table, hook.number) {
        (Table::Link, _) => "ingress",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        _ => "postrouting",
    }
}

/// A priority by its name, or by its distance from one that has a name at this hook and is no more than ten away.
fn priority(table: Table, hook: Hook) -> String {
    let names = [
        ("raw", -300, table != Table::Link),
        ("mangle", -150, table != Table::Link),
        ("dstnat", -100, table != Table::Link && hook.number == 0),
        ("filter", 0, true),
        ("security", 50, table != Table::Link),
        ("srcnat", 100, table != Table::Link && hook.number == 4),
    ];
    let near = names.into_iter().find(|(_, named, is_here)| *is_here && hook.priority.abs_diff(*named) <= 10);
    match near.map(|(name, named, _)| (name, hook.priority - named)) {
        None => hook.priority.to_string(),
        Some((name, 0)) => name.to_owned(),
        Some((name, above)) if above > 0 => format!("{name} + {above}"),
        Some((name, below)) => format!("{name} - {}", -below),
    }
}

fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::Integer => "integer",
        Type::V4 => "ipv4_addr",
        Type::V6 => "ipv6_addr",
        Type::Mac => "ether_addr",
        Type::Protocol => "inet_proto",
        Type::Port => "inet_service",
        Type::LinkName => "ifname",
        Type::Class => "classid",
    }
}

/// What has this type in a packet, as the notes on the set say it.
fn example(kind: Type) -> &'static str {
    match kind {
        Type::Integer => "numgen random mod 2",
        Type::V4 => "ip daddr",
        Type::V6 => "ip6 daddr",
        Type::Mac => "ether daddr",
        Type::Protocol => "meta l4proto",
        Type::Port => "th dport",
        Type::LinkName => "iifname",
        Type::Class => "meta priority",
    }
}

/// One element, as one line; a set of ranges has several.
fn lines(set: &Set, key: &Key, value: &Value) -> Vec<String> {
    if let Value::Ranges(ranges) = value {
        return ranges.iter().map(range).collect();
    }
    let bytes = key_bytes(key);
    let mut left = &*bytes;
    let mut parts: Vec<String> = set.key.iter().map_while(|kind| part(*kind, &mut left)).collect();
    if let (Key::Source(_, clients), Some(last)) = (key, parts.last_mut()) {
        *last = range(clients);
    }
    let key = parts.join(" . ");
    vec![match value {
        Value::Present if set.counts => format!("{key} counter packets 0 bytes 0"),
        Value::Present | Value::Ranges(_) => key,
        Value::Way(way) => format!("{key} : goto {}", chain(*way)),
        Value::Lead(lead) => format!("{key} : {lead}"),
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
        Type::Class => Lead(u32::from_ne_bytes(take(4)?.try_into().ok()?)).to_string(),
        Type::Protocol => {
            let number = *take(4)?.first()?;
            let known =
                [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == number);
            known.map_or_else(|| number.to_string(), |known| known.to_string().to_lowercase())
        }
        Type::Mac => {
            // By itself it has nothing behind it.
            let mac: [u8; 6] = take(6)?.try_into().ok()?;
            take(2);
            MacAddr::from(mac).to_string()
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
