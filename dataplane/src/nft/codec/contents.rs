//! The elements of new tables, as messages: elements → [`TableContents`], by [`table_contents`]. Pure.
//!
//! A new table may have a million elements, and there is nothing to compare them with. So they are serialised directly,
//! set by set, without a list of elements. To name one that the kernel refuses, its message is decoded again.

use std::collections::{BTreeMap, BTreeSet};

use super::element::{decode_element, encode_added};
use super::numbers::*;
use crate::netlink::attribute::{Attribute, Writer};
use crate::netlink::message::{CREATE, Message, NFTABLES};
use crate::nft::chain_name::ChainName;
use crate::nft::elements::{ElementKey, ElementValue};
use crate::nft::layout::{self, NAME, SetId, Table};

/// The contents of a new table.
#[derive(Debug, Default)]
pub struct TableContents {
    /// The chains that are not always there.
    pub(super) chains: BTreeSet<ChainName>,
    /// The elements of each set that has some.
    pub(super) sets: BTreeMap<SetId, SetContents>,
}

/// The elements of a set.
#[derive(Debug, Default)]
pub(super) struct SetContents {
    pub(super) count: usize,
    /// The messages with most of them.
    messages: Vec<Message>,
    /// The list with the others.
    last: Writer,
}

impl TableContents {
    /// The number of elements, including chains.
    pub fn count(&self) -> usize {
        self.chains.len() + self.sets.values().map(|set| set.count).sum::<usize>()
    }

    fn add(&mut self, key: ElementKey, value: &ElementValue) {
        if let ElementKey::Chain(_, name) = key {
            self.chains.insert(name);
        }
        let Some(id) = key.set() else { return };
        let set = self.sets.entry(id).or_default();
        encode_added(&key, value, &mut set.last);
        set.count += 1;
        if set.last.len() > LIST_LIMIT {
            set.messages.push(add_elements(key.table(), id, &set.last));
            set.last.clear();
        }
    }
}

impl SetContents {
    /// All messages for these elements.
    pub(super) fn into_messages(mut self, table: Table, id: SetId) -> Vec<Message> {
        if !self.last.is_empty() {
            self.messages.push(add_elements(table, id, &self.last));
        }
        self.messages
    }
}

/// Serialises these elements, of which each comes once, by table.
pub fn table_contents(
    elements: impl IntoIterator<Item = (ElementKey, ElementValue)>,
) -> BTreeMap<Table, TableContents> {
    let mut tables: BTreeMap<Table, TableContents> = BTreeMap::new();
    for (key, value) in elements {
        tables.entry(key.table()).or_default().add(key, &value);
    }
    tables
}

/// A message that adds a list of elements to a set.
fn add_elements(table: Table, id: SetId, elements: &Writer) -> Message {
    Message::new(NFTABLES, NEWSETELEM, CREATE, table.number(), |w| {
        // With room for the names.
        w.reserve(elements.len() + 64);
        w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, id.name());
        w.nest(ELEM_LIST_ELEMENTS, |list| list.append(elements));
    })
}

/// Describes the element of such a message that begins last before `offset`; without an offset, all of them.
pub(super) fn describe_element(table: Table, id: SetId, message: &Message, offset: Option<usize>) -> String {
    let length = |attribute: &Attribute<'_>| (Attribute::HEADER + attribute.value.len()).next_multiple_of(4);
    let before = message.attributes().take_while(|attribute| attribute.kind != ELEM_LIST_ELEMENTS);
    let mut begin = Message::HEADERS + before.map(|attribute| length(&attribute)).sum::<usize>() + Attribute::HEADER;
    let list = message.attributes().find(ELEM_LIST_ELEMENTS);
    let items: Vec<Attribute<'_>> = list.into_iter().flat_map(|list| list.inner()).collect();
    let passed = items
        .iter()
        .take_while(|item| {
            begin += length(item);
            offset.is_some_and(|offset| begin <= offset)
        })
        .count();
    let set = layout::sets(table).into_iter().find(|set| set.id == id);
    let item = items.get(passed.min(items.len().saturating_sub(1)));
    match set.zip(item).and_then(|(set, item)| decode_element(table, &set, item.inner())) {
        Some((key, _)) if items.len() == 1 || offset.is_some() => format!("add {key}"),
        Some((key, _)) => format!("add {key} or one of {} with it", items.len() - 1),
        None => format!("add elements to {} of {table}", id.name()),
    }
}
