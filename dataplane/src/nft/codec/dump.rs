//! Queries about tables, and answers read into types. Pure.

mod table;

pub use table::{DumpedSet, DumpedTable, decode_hook, decode_rule};

use std::collections::BTreeSet;

use super::element::{decode_affinity_entry, decode_element, decode_key, items};
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

/// All elements of a table, from those of its sets and its chains.
pub fn assemble(table: Table, elements: Vec<(ElementKey, ElementValue)>, chains: &BTreeSet<ChainName>) -> Elements {
    let chains = chains.iter().map(|name| (ElementKey::Chain(table, *name), ElementValue::Present));
    elements.into_iter().chain(chains).collect()
}
