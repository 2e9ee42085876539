//! Elements as messages: the changes of one set → [`ElementLists`], and the elements of new tables → [`TableContents`].
//! Pure.
//!
//! A new table may have a million elements, and there is nothing to compare them with. So they are serialised directly,
//! set by set, without a list of elements. If the kernel refuses an element, its message is decoded again to name the
//! element.

use std::collections::{BTreeMap, BTreeSet};

use super::element::{decode_key, encode_added, encode_deleted};
use super::numbers::*;
use crate::nft::chain_name::ChainName;
use crate::nft::diff::ElementChange;
use crate::nft::elements::{ElementKey, ElementValue};
use crate::nft::layout::{self, NAME, SetId, Table};
use netlink::attribute::{Attribute, Writer};
use netlink::message::Message;

/// The contents of a new table.
#[derive(Debug, Default)]
pub struct TableContents {
    /// The chains that exist only while they are needed.
    pub(super) chains: BTreeSet<ChainName>,
    /// The elements of each set that has some.
    pub(super) sets: BTreeMap<SetId, ElementLists>,
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
        let lists = self.sets.entry(id).or_insert_with(|| ElementLists::new(NEWSETELEM, key.table(), id));
        lists.push(|list| encode_added(&key, value, list));
    }
}

/// Serialises these elements by table. Each element must occur only once.
pub fn table_contents(
    elements: impl IntoIterator<Item = (ElementKey, ElementValue)>,
) -> BTreeMap<Table, TableContents> {
    let mut tables: BTreeMap<Table, TableContents> = BTreeMap::new();
    for (key, value) in elements {
        tables.entry(key.table()).or_default().add(key, &value);
    }
    tables
}

/// Elements that are added to a set, or deleted from it.
#[derive(Debug)]
pub(super) struct ElementLists {
    kind: u8,
    pub(super) table: Table,
    pub(super) set: SetId,
    pub(super) count: usize,
    /// The finished messages.
    messages: Vec<Message>,
    /// The list for the next message.
    last: Writer,
}

impl ElementLists {
    fn new(kind: u8, table: Table, set: SetId) -> Self {
        Self { kind, table, set, count: 0, messages: Vec::new(), last: Writer::default() }
    }

    /// The changes of one set, either all additions or all deletions.
    pub(super) fn of_changes(set: SetId, changes: &[ElementChange]) -> Self {
        let is_add = matches!(changes[0], ElementChange::Add(..));
        let kind = if is_add { NEWSETELEM } else { DELSETELEM };
        let mut lists = Self::new(kind, changes[0].key().table(), set);
        for change in changes {
            lists.push(|list| match change {
                ElementChange::Add(key, value) => encode_added(key, value, list),
                ElementChange::Delete(key, _) => encode_deleted(key, list),
            });
        }
        lists
    }

    fn push(&mut self, write: impl FnOnce(&mut Writer)) {
        write(&mut self.last);
        self.count += 1;
        if self.last.len() > LIST_LIMIT {
            self.finish_message();
        }
    }

    fn finish_message(&mut self) {
        let list = &self.last;
        self.messages.push(message(self.kind, self.table, |w| {
            // Reserves room for the list and for the names before it.
            w.reserve(list.len() + 64);
            w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, self.set.name());
            w.nest(ELEM_LIST_ELEMENTS, |w| w.append(list));
        }));
        self.last.clear();
    }

    /// All messages for these elements.
    pub(super) fn into_messages(mut self) -> Vec<Message> {
        if !self.last.is_empty() {
            self.finish_message();
        }
        self.messages
    }
}

/// Describes one element of a message that adds or deletes elements: the one that contains the byte at `offset`.
/// Without an offset, describes the first element and the number of the others.
pub(super) fn describe_elements(table: Table, id: SetId, message: &Message, offset: Option<u32>) -> String {
    let verb = if message.is_of_kind(DELSETELEM) { "delete" } else { "add" };
    let offset = offset.and_then(|offset| usize::try_from(offset).ok());
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
    match set.zip(item).and_then(|(set, item)| decode_key(&set, item.inner())) {
        Some(key) if items.len() == 1 || offset.is_some() => format!("{verb} {}", ElementKey::In(table, id, key)),
        Some(key) => format!("{verb} {} or one of {} with it", ElementKey::In(table, id, key), items.len() - 1),
        None => format!("{verb} elements of {} of {table}", id.name()),
    }
}
