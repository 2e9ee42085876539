//! What a table holds that is made anew: elements → [`Contents`], by [`contents`]. Pure.
//!
//! There may be a million, and there is nothing to compare them with. So they are written into messages as they come, set by
//! set, and none is kept: not even to say which one the kernel refuses, which is read from the message again.

use std::collections::{BTreeMap, BTreeSet};

use super::dump;
use super::request::{ELEM_LIST_ELEMENTS, LIST, adding, element, set_of};
use crate::netlink::attribute::{Attribute, Writer};
use crate::netlink::message::Message;
use crate::nft::elements::{Key, Value};
use crate::nft::layout::Table;

/// What a table holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The chains that come and go with elements.
    pub(super) chains: BTreeSet<Key>,
    /// The elements of each set that has some.
    pub(super) sets: BTreeMap<&'static str, Filled>,
}

/// The elements of a set.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// How many there are.
    pub(super) count: usize,
    /// The messages that put most of them in.
    messages: Vec<Message>,
    /// The others.
    last: Writer,
}

impl Contents {
    /// How many elements there are, with the chains that count as such.
    pub fn count(&self) -> usize {
        self.chains.len() + self.sets.values().map(|set| set.count).sum::<usize>()
    }

    fn add(&mut self, table: Table, key: Key, value: &Value) {
        let Some(name) = set_of(&key) else {
            self.chains.insert(key);
            return;
        };
        let set = self.sets.entry(name).or_default();
        element(&key, value, true, &mut set.last);
        set.count += 1;
        if set.last.len() > LIST {
            set.messages.push(adding(table, name, &set.last));
            set.last.clear();
        }
    }
}

impl Filled {
    /// All messages that it takes.
    pub(super) fn messages(mut self, table: Table, name: &str) -> Vec<Message> {
        if !self.last.is_empty() {
            self.messages.push(adding(table, name, &self.last));
        }
        self.messages
    }
}

/// These elements, of which each comes once, for each table.
pub fn contents(elements: impl IntoIterator<Item = (Key, Value)>) -> BTreeMap<Table, Contents> {
    let mut tables: BTreeMap<Table, Contents> = BTreeMap::new();
    for (key, value) in elements {
        let table = key.table();
        tables.entry(table).or_default().add(table, key, &value);
    }
    tables
}

/// Which element of such a message begins last before `offset`, in words; without an offset, one of all.
pub(super) fn told(table: Table, set: &str, message: &Message, offset: Option<usize>) -> String {
    let length = |attribute: &Attribute<'_>| (Attribute::HEADER + attribute.value.len()).next_multiple_of(4);
    let before = message.attributes().take_while(|attribute| attribute.kind != ELEM_LIST_ELEMENTS);
    let mut begins = Message::HEADERS + before.map(|attribute| length(&attribute)).sum::<usize>() + Attribute::HEADER;
    let items = message.attributes().find(ELEM_LIST_ELEMENTS).into_iter().flat_map(|list| list.inner());
    let passed = items
        .take_while(|item| {
            begins += length(item);
            offset.is_some_and(|offset| begins <= offset)
        })
        .count();
    let elements = dump::elements(table, set, message.attributes());
    match elements.get(passed.min(elements.len().saturating_sub(1))) {
        Some(Some((key, _))) if elements.len() == 1 || offset.is_some() => format!("add {key}"),
        Some(Some((key, _))) => format!("add {key} or one of {} with it", elements.len() - 1),
        _ => format!("add elements to {set} of {table}"),
    }
}
