//! A ruleset as text for people: [`print_ruleset`]. The text is that of `nft list` for the programmed tables, but with
//! sorted elements, each on its own line. Pure.

use std::fmt::Write;

use crds::Range;
use ipnet::IpNet;

use super::codec::with_parts;
use super::elements::{ElementKey, ElementValue, Elements, KeyParts};
use super::layout::{self, Chain, Data, Hook, Set, Table, Type, variable_chain};
use super::projection::{is_needed, ruleset_elements};
use crate::rules::Ruleset;

/// The tables for this ruleset. A table without anything to do is left out.
pub fn print_ruleset(ruleset: &Ruleset) -> String {
    let all = ruleset_elements(ruleset);
    let mut text = String::new();
    for table in Table::ALL.into_iter().filter(|table| is_needed(ruleset, *table)) {
        print_table(table, &all, &mut text).expect("invariant: writing to a String succeeds");
    }
    text
}

fn print_table(table: Table, elements: &Elements, to: &mut String) -> std::fmt::Result {
    writeln!(to, "table {table} {{\n\tcomment \"{}\"", layout::COMMENT)?;
    for (number, set) in (0..).zip(layout::sets(table)) {
        if number > 0 {
            writeln!(to)?;
        }
        let is_in_set = |key: &ElementKey| key.table() == table && key.set() == Some(set.id);
        let elements = elements.iter().filter(|(key, _)| is_in_set(key));
        let lines: Vec<String> = elements.flat_map(|(key, value)| element_lines(&set, key, value)).collect();
        print_set(&set, &lines, to)?;
    }
    let variable = elements.keys().filter_map(|key| match key {
        ElementKey::Chain(of, name) if *of == table => variable_chain(table, *name),
        _ => None,
    });
    for chain in layout::chains(table).into_iter().chain(variable) {
        print_chain(table, &chain, to)?;
    }
    writeln!(to, "}}")
}

fn print_set(set: &Set, elements: &[String], to: &mut String) -> std::fmt::Result {
    let is_map = set.data != Data::None;
    writeln!(to, "\t{} {} {{", if is_map { "map" } else { "set" }, set.name)?;
    // `nft` has no name for the type of a number or an endpoint, so it prints examples of the key and the value
    // instead.
    let by_example = set.is_typed_by_example();
    let keyword = if by_example { "typeof" } else { "type" };
    let name = |kind| {
        let [name, example] = type_words(kind);
        if by_example { example } else { name }
    };
    let names = |kinds: Vec<Type>| kinds.into_iter().map(name).collect::<Vec<_>>().join(" . ");
    let values = match set.data {
        Data::None => String::new(),
        Data::Verdict => " : verdict".to_owned(),
        Data::Values(_) => format!(" : {}", names(set.values().collect())),
    };
    writeln!(to, "\t\t{keyword} {}{values}", names(set.key().collect()))?;
    if let Some(size) = set.size(elements.len()) {
        writeln!(to, "\t\tsize {size}\n\t\tflags {}timeout", if set.dynamic.is_some() { "dynamic," } else { "" })?;
    }
    if set.interval {
        writeln!(to, "\t\tflags interval")?;
    }
    if set.counter {
        writeln!(to, "\t\tcounter")?;
    }
    if let Some(interval) = set.gc_interval() {
        let seconds = u32::try_from(interval.as_secs()).expect("invariant: less than a century");
        writeln!(to, "\t\tgc-interval {}", layout::print_duration(seconds))?;
    }
    writeln!(to, "\t\tcomment \"{}\"", set.comment)?;
    if !elements.is_empty() {
        writeln!(to, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "))?;
    }
    writeln!(to, "\t}}")
}

fn print_chain(table: Table, chain: &Chain, to: &mut String) -> std::fmt::Result {
    writeln!(to, "\n\tchain {} {{", chain.name)?;
    if let Some(hook) = chain.hook {
        let link = hook.link.map(|link| format!(" device \"{link}\"")).unwrap_or_default();
        let (kind, name, priority) = (hook.kind, hook_name(table, hook), priority_name(table, hook));
        writeln!(to, "\t\ttype {kind} hook {name}{link} priority {priority}; policy accept;")?;
    }
    for rule in &chain.rules {
        writeln!(to, "\t\t{}", rule.text)?;
    }
    writeln!(to, "\t}}")
}

fn hook_name(table: Table, hook: Hook) -> &'static str {
    match (table, hook.number) {
        (Table::Link, _) => "ingress",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 3) => "output",
        _ => "postrouting",
    }
}

/// A priority as `nft` prints it: by name, or relative to a named priority of this hook that is at most ten away.
fn priority_name(table: Table, hook: Hook) -> String {
    let names = [
        ("mangle", -150, table != Table::Link),
        ("dstnat", -100, table != Table::Link && hook.number == 0),
        ("filter", 0, true),
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

/// The name of a type, and an expression of this type as in the userdata of a set.
fn type_words(kind: Type) -> [&'static str; 2] {
    match kind {
        Type::Integer => ["integer", "numgen random mod 2"],
        Type::V4 => ["ipv4_addr", "ip daddr"],
        Type::V6 => ["ipv6_addr", "ip6 daddr"],
        Type::Mac => ["ether_addr", "ether daddr"],
        Type::Protocol => ["inet_proto", "meta l4proto"],
        Type::Port => ["inet_service", "th dport"],
        Type::LinkName => ["ifname", "iifname"],
        Type::LinkType => ["iface_type", "meta iiftype"],
        Type::Priority => ["classid", "meta priority"],
        Type::Address => unreachable!("invariant: types are resolved before use"),
    }
}

/// The line for one element; none for a chain.
fn element_lines(set: &Set, key: &ElementKey, value: &ElementValue) -> Vec<String> {
    let ElementKey::In(_, _, key) = key else { return Vec::new() };
    let mut parts = with_parts(key, |parts| parts.iter().map(ToString::to_string).collect::<Vec<_>>());
    if let (KeyParts::FrontendRange(_, clients), Some(last)) = (key, parts.last_mut()) {
        *last = print_range(clients);
    }
    let key = parts.join(" . ");
    vec![match value {
        ElementValue::Present if set.counter => format!("{key} counter packets 0 bytes 0"),
        ElementValue::Present => key,
        ElementValue::Goto(chain) => format!("{key} : goto {chain}"),
        ElementValue::Return => format!("{key} : return"),
        ElementValue::DispatchId(id) => format!("{key} : {id}"),
        ElementValue::Address(address) => format!("{key} : {address}"),
        ElementValue::Port(port) => format!("{key} : {port}"),
        ElementValue::Endpoint(endpoint) => format!("{key} : {} . {}", endpoint.ip(), endpoint.port()),
        ElementValue::Mac(mac) => format!("{key} : {mac}"),
    }]
}

/// A range as `nft` prints it: an address, a CIDR if possible, or both ends.
fn print_range(range: &Range) -> String {
    let (first, last) = (range.first(), range.last());
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
