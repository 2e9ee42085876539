//! Queries about tables, and answers read into types. Pure.

mod table;

pub use super::element::Boundary;
pub use table::{DumpedSet, DumpedTable, decode_hook, decode_rule};

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crds::Range;

use super::element::{decode_affinity_entry, decode_boundary, decode_element, decode_key, items};
use super::expression::decode_counter;
use super::numbers::*;
use crate::flows::affinity::AffinityEntry;
use crate::metrics::PacketCount;
use crate::nft::chain_name::ChainName;
use crate::nft::elements::{ElementKey, ElementValue, Elements, KeyParts};
use crate::nft::layout::{NAME, Set, SetId, Table};
use netlink::attribute::{Attributes, Writer};
use netlink::message::{Message, NFTABLES};

/// Queries the generation of nf_tables: a number that every change of any table increments.
pub fn get_generation() -> Message {
    Message::new(NFTABLES, GETGEN, 0, 0, |_| ())
}

/// Queries objects of a table. In all queries the first attribute is the name of the table.
fn get(kind: u8, table: Table, fill: impl FnOnce(&mut Writer)) -> Message {
    message(kind, table, |w| fill(w.text(TABLE_NAME, NAME)))
}

pub fn get_table(table: Table) -> Message {
    get(GETTABLE, table, |_| ())
}

/// Queries one chain. (The kernel cannot list the chains of one table. A list of all chains of the family may contain
/// tens of thousands of chains of other tables.)
pub fn get_chain(table: Table, name: &str) -> Message {
    get(GETCHAIN, table, |w| {
        w.text(CHAIN_NAME, name);
    })
}

/// Queries all rules of a table; a dump.
pub fn get_rules(table: Table) -> Message {
    get(GETRULE, table, |_| ())
}

/// Queries all sets of a table; a dump.
pub fn get_sets(table: Table) -> Message {
    get(GETSET, table, |_| ())
}

/// Queries all elements of a set; a dump.
pub fn get_elements(table: Table, set: SetId) -> Message {
    get(GETSETELEM, table, |w| {
        w.text(ELEM_LIST_SET, set.name());
    })
}

pub fn decode_generation(answer: Attributes<'_>) -> Option<u32> {
    answer.find(GEN_ID)?.u32()
}

/// The elements in an answer about `set`; `None` for one that this version would not write.
pub fn decode_elements(table: Table, set: &Set, answer: Attributes<'_>) -> Vec<Option<(ElementKey, ElementValue)>> {
    items(answer).map(|item| decode_element(table, set, item)).collect()
}

/// The boundaries in an answer about an interval set; [`ranges`] joins those of all answers.
pub fn decode_boundaries(set: &Set, answer: Attributes<'_>) -> Vec<Option<Boundary>> {
    items(answer).map(|item| decode_boundary(set, item)).collect()
}

/// The ranges between boundaries; `None` if these do not match each other.
pub fn ranges(mut boundaries: Vec<Boundary>) -> Option<Vec<Range>> {
    boundaries.sort();
    let mut ranges = Vec::new();
    let mut open = None;
    for Boundary { address, is_end } in boundaries {
        match (open, is_end) {
            (None, false) => open = Some(address),
            (Some(first), true) => {
                ranges.push(Range::new(first, crds::address::previous(address)?)?);
                open = None;
            }
            // One end may precede the first range.
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

/// The counted keys in an answer about a counting set.
pub fn decode_counts(set: &Set, answer: Attributes<'_>) -> Vec<(KeyParts, PacketCount)> {
    let decode = |item: Attributes<'_>| {
        let (packets, bytes) = decode_counter(item.find(ELEM_EXPR)?.inner())?;
        Some((decode_key(set, item)?, PacketCount { packets, bytes }))
    };
    items(answer).filter_map(decode).collect()
}

/// The entries in an answer about `affinity`.
pub fn decode_affinity(set: &Set, answer: Attributes<'_>) -> Vec<AffinityEntry> {
    items(answer).filter_map(|item| decode_affinity_entry(set, item)).collect()
}

/// All elements of a table, from those of its sets, its chains and its pod ranges.
pub fn assemble(
    table: Table,
    elements: Vec<(ElementKey, ElementValue)>,
    chains: &BTreeSet<ChainName>,
    pods: Vec<Range>,
) -> Elements {
    let pods = (!pods.is_empty()).then_some((ElementKey::Pods(table), ElementValue::Ranges(pods)));
    let chains = chains.iter().map(|name| (ElementKey::Chain(table, *name), ElementValue::Present));
    elements.into_iter().chain(pods).chain(chains).collect()
}
