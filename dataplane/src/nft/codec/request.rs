//! Messages that change tables: the layout of a table, and [`ElementChange`]s. Pure.
//!
//! Every message keeps its subject, so that a refusal can be described.

use super::contents::{ElementLists, TableContents, describe_elements};
use super::element::encode_affinity_key;
use super::expression::{encode_counter, encode_value};
use super::numbers::*;
use super::userdata;
use crate::flows::affinity::AffinityEntry;
use crate::nft::chain_name::ChainName;
use crate::nft::diff::ElementChange;
use crate::nft::elements::ElementKey;
use crate::nft::layout::{self, COMMENT, Chain, NAME, Set, SetId, Table, variable_chain};
use netlink::attribute::Writer;
use netlink::message::Message;

/// Messages with their subjects.
#[derive(Debug, Default)]
pub struct Requests {
    /// In the order of the transaction.
    pub messages: Vec<Message>,
    subjects: Vec<Subject>,
}

/// The subject of a message.
#[derive(Debug)]
enum Subject {
    /// A part of the layout, described.
    Layout(String),
    /// Elements of this set.
    Elements(Table, SetId),
}

impl Requests {
    /// Describes the subject of a message. In a list of elements, this is the element that contains the byte at
    /// `offset`.
    pub fn describe(&self, message: usize, offset: Option<u32>) -> String {
        match self.subjects.get(message) {
            None => "the transaction".to_owned(),
            Some(Subject::Layout(what)) => what.clone(),
            Some(Subject::Elements(table, set)) => describe_elements(*table, *set, &self.messages[message], offset),
        }
    }

    /// The table that a message changes.
    pub fn table(&self, message: usize) -> Option<Table> {
        let family = self.messages.get(message)?.family();
        Table::ALL.into_iter().find(|table| table.number() == family)
    }

    fn push(&mut self, table: Table, what: String, kind: u8, fill: impl FnOnce(&mut Writer)) {
        self.messages.push(message(kind, table, fill));
        self.subjects.push(Subject::Layout(what));
    }

    fn push_elements(&mut self, lists: ElementLists) {
        let (table, set) = (lists.table, lists.set);
        self.messages.extend(lists.into_messages());
        self.subjects.resize_with(self.messages.len(), || Subject::Elements(table, set));
    }

    /// Deletes a whole table.
    pub fn delete_table(&mut self, table: Table) {
        self.push(table, format!("delete table {table}"), DELTABLE, |w| {
            w.text(TABLE_NAME, NAME);
        });
    }

    /// Creates a table with its contents.
    pub fn create_table(&mut self, table: Table, contents: TableContents) {
        self.push(table, format!("add table {table}"), NEWTABLE, |w| {
            w.text(TABLE_NAME, NAME).u32(TABLE_FLAGS, 0).bytes(TABLE_USERDATA, &userdata::encode_comment(COMMENT));
        });
        self.create_sets(table, &contents, |_| true);
        let variable = contents.chains.iter().filter_map(|name| variable_chain(table, *name));
        for chain in layout::chains(table).into_iter().chain(variable) {
            self.create_chain(table, &chain);
        }
        for lists in contents.sets.into_values() {
            self.push_elements(lists);
        }
    }

    /// Enlarges the sets of a table for these contents.
    pub fn enlarge(&mut self, table: Table, contents: &TableContents) {
        self.create_sets(table, contents, |set| set.per_service);
    }

    fn create_sets(&mut self, table: Table, contents: &TableContents, which: impl Fn(&Set) -> bool) {
        for (number, set) in (1..).zip(layout::sets(table)).filter(|(_, set)| which(set)) {
            let count = contents.sets.get(&set.id).map_or(0, |set| set.count);
            self.create_set(table, number, &set, set.size(count));
        }
    }

    fn create_set(&mut self, table: Table, number: u32, set: &Set, size: Option<u32>) {
        self.push(table, format!("add set {} of {table}", set.name), NEWSET, |w| {
            w.text(SET_TABLE, NAME).text(SET_NAME, set.name).u32(SET_FLAGS, set.flags());
            let (kind, length) = set.key_type_and_length();
            w.u32(SET_KEY_TYPE, kind).u32(SET_KEY_LEN, length);
            if let Some((kind, length)) = set.data_type_and_length() {
                w.u32(SET_DATA_TYPE, kind).u32(SET_DATA_LEN, length);
            }
            w.u32(SET_ID, number);
            if let Some(size) = size {
                w.nest(SET_DESC, |w| {
                    w.u32(SET_DESC_SIZE, size);
                });
            }
            if let Some(interval) = set.gc_interval() {
                let interval = u32::try_from(interval.as_millis()).expect("invariant: less than 49 days");
                w.u32(SET_GC_INTERVAL, interval);
            }
            if let Some(lengths) = set.field_lengths() {
                w.nest(SET_DESC, |w| encode_field_lengths(lengths, w));
            }
            if set.counter {
                w.nest(SET_EXPR, encode_counter);
            }
            w.bytes(SET_USERDATA, &userdata::encode_set(set));
        });
    }

    fn create_chain(&mut self, table: Table, chain: &Chain) {
        self.push(table, format!("add chain {} of {table}", chain.name), NEWCHAIN, |w| {
            w.text(CHAIN_TABLE, NAME).text(CHAIN_NAME, &chain.name);
            if let Some(hook) = chain.hook {
                w.text(CHAIN_TYPE, hook.kind).u32(CHAIN_POLICY, ACCEPT);
                w.nest(CHAIN_HOOK, |w| {
                    w.u32(HOOK_NUMBER, hook.number).u32(HOOK_PRIORITY, hook.priority.cast_unsigned());
                    if let Some(link) = hook.link {
                        w.text(HOOK_DEV, link.as_str());
                    }
                });
            }
        });
        for (number, rule) in (1..).zip(&chain.rules) {
            let what = format!("add rule {number} of chain {} of {table}", chain.name);
            self.push(table, what, NEWRULE, |w| {
                w.text(RULE_TABLE, NAME).text(RULE_CHAIN, &chain.name);
                w.nest(RULE_EXPRESSIONS, |w| rule.expressions.iter().for_each(|expression| expression.encode(w)));
            });
        }
    }

    fn delete_chain(&mut self, table: Table, name: ChainName) {
        let name = name.to_string();
        self.push(table, format!("delete chain {name} of {table}"), DELCHAIN, |w| {
            w.text(CHAIN_TABLE, NAME).text(CHAIN_NAME, &name);
        });
    }

    /// Makes these changes, which must be in the order of [`diff_elements`](crate::nft::diff::diff_elements).
    pub fn change(&mut self, changes: &[ElementChange]) {
        let is_add = |change: &ElementChange| matches!(change, ElementChange::Add(..));
        let group = |change: &ElementChange| (is_add(change), change.key().table(), change.key().set());
        for changes in changes.chunk_by(|one, next| group(one) == group(next)) {
            if let Some(set) = changes[0].key().set() {
                self.push_elements(ElementLists::of_changes(set, changes));
                continue;
            }
            for change in changes {
                let ElementKey::Chain(table, name) = *change.key() else { continue };
                if !is_add(change) {
                    self.delete_chain(table, name);
                } else if let Some(chain) = variable_chain(table, name) {
                    self.create_chain(table, &chain);
                }
            }
        }
    }

    /// Deletes these entries of `affinity`. All of them must still exist.
    pub fn forget_clients(&mut self, table: Table, entries: &[AffinityEntry]) {
        // This number of IPv6 keys with their headers stays below 64 KiB, the limit of a list.
        const AT_ONCE: usize = 500;
        for some in entries.chunks(AT_ONCE) {
            self.push(table, format!("forget clients in affinity of {table}"), DELSETELEM, |w| {
                w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, SetId::Affinity.name());
                w.nest(ELEM_LIST_ELEMENTS, |list| {
                    for AffinityEntry { client, frontend, .. } in some {
                        let key = encode_affinity_key(*client, frontend);
                        list.nest(LIST_ITEM, |item| {
                            item.nest(ELEM_KEY, |w| encode_value(&key, w));
                        });
                    }
                });
            });
        }
    }
}

fn encode_field_lengths(lengths: Vec<u32>, into: &mut Writer) {
    into.nest(SET_DESC_CONCAT, |list| {
        for length in lengths {
            list.nest(LIST_ITEM, |field| {
                field.u32(SET_FIELD_LEN, length);
            });
        }
    });
}
