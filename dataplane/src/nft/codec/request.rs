//! Messages that change tables: their layout, and [`ElementChange`]s. Pure.
//!
//! Every message keeps its subject, so that a refusal can be described.

use super::contents::{TableContents, describe_element};
use super::element::{encode_added, encode_affinity_key, encode_deleted};
use super::expression::{encode_counter, encode_value};
use super::numbers::*;
use super::userdata;
use crate::flows::affinity::AffinityEntry;
use crate::netlink::attribute::Writer;
use crate::netlink::message::{APPEND, CREATE, Message, NFTABLES};
use crate::nft::chain_name::ChainName;
use crate::nft::diff::ElementChange;
use crate::nft::elements::ElementKey;
use crate::nft::layout::{self, COMMENT, Chain, NAME, Set, SetId, Table, variable_chain};

/// Messages with their subjects.
#[derive(Debug, Default)]
pub struct Requests<'a> {
    /// In order.
    pub messages: Vec<Message>,
    subjects: Vec<Subject<'a>>,
}

/// The subject of a message.
#[derive(Debug)]
enum Subject<'a> {
    /// A part of the layout, described.
    Layout(String),
    /// These changes, with the offset of each in the message, in bytes.
    Changes(Vec<(usize, &'a ElementChange)>),
    /// Elements added to this set of a new table.
    Elements(Table, SetId),
}

impl<'a> Requests<'a> {
    /// Describes the subject of a message: the change that begins last before `offset`, if there is one.
    pub fn describe(&self, message: usize, offset: Option<u32>) -> String {
        let offset = offset.and_then(|offset| usize::try_from(offset).ok());
        match self.subjects.get(message) {
            None => "the transaction".to_owned(),
            Some(Subject::Layout(what)) => what.clone(),
            Some(Subject::Elements(table, set)) => describe_element(*table, *set, &self.messages[message], offset),
            Some(Subject::Changes(changes)) => {
                let at = offset.map_or(0, |offset| changes.partition_point(|(start, _)| *start <= offset).max(1) - 1);
                match changes.get(at) {
                    Some((_, change)) if changes.len() == 1 || offset.is_some() => change.to_string(),
                    Some((_, change)) => format!("{change} or one of {} with it", changes.len() - 1),
                    None => "nothing".to_owned(),
                }
            }
        }
    }

    /// The table that a message changes.
    pub fn table(&self, message: usize) -> Option<Table> {
        let family = self.messages.get(message)?.family();
        Table::ALL.into_iter().find(|table| table.number() == family)
    }

    fn push(&mut self, table: Table, what: String, request: Request, fill: impl FnOnce(&mut Writer)) {
        self.messages.push(Message::new(NFTABLES, request.kind, request.flags, table.number(), fill));
        self.subjects.push(Subject::Layout(what));
    }

    /// Deletes a whole table.
    pub fn delete_table(&mut self, table: Table) {
        self.push(table, format!("delete table {table}"), Request::new(DELTABLE), |w| {
            w.text(TABLE_NAME, NAME);
        });
    }

    /// Creates a table with its contents.
    pub fn create_table(&mut self, table: Table, contents: TableContents) {
        self.push(table, format!("add table {table}"), Request::create(NEWTABLE), |w| {
            w.text(TABLE_NAME, NAME).u32(TABLE_FLAGS, 0).bytes(TABLE_USERDATA, &userdata::encode_comment(COMMENT));
        });
        self.create_sets(table, &contents, |_| true);
        for chain in layout::chains(table) {
            self.create_chain(table, &chain);
        }
        for name in &contents.chains {
            self.create_variable_chain(table, *name);
        }
        for (id, set) in contents.sets {
            for message in set.into_messages(table, id) {
                self.messages.push(message);
                self.subjects.push(Subject::Elements(table, id));
            }
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
        self.push(table, format!("add set {} of {table}", set.name), Request::create(NEWSET), |w| {
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
            if set.per_service {
                let interval = u32::try_from(layout::GC_INTERVAL.as_millis()).expect("invariant: some days");
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
        self.push(table, format!("add chain {} of {table}", chain.name), Request::create(NEWCHAIN), |w| {
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
            self.push(table, what, Request { kind: NEWRULE, flags: CREATE | APPEND }, |w| {
                w.text(RULE_TABLE, NAME).text(RULE_CHAIN, &chain.name);
                w.nest(RULE_EXPRESSIONS, |w| rule.expressions.iter().for_each(|expression| expression.encode(w)));
            });
        }
    }

    fn create_variable_chain(&mut self, table: Table, name: ChainName) {
        if let Some(chain) = variable_chain(table, name) {
            self.create_chain(table, &chain);
        }
    }

    fn delete_chain(&mut self, table: Table, name: ChainName) {
        let name = name.to_string();
        self.push(table, format!("delete chain {name} of {table}"), Request::new(DELCHAIN), |w| {
            w.text(CHAIN_TABLE, NAME).text(CHAIN_NAME, &name);
        });
    }

    /// Makes these changes, which must be in the order of [`diff_elements`](crate::nft::diff::diff_elements).
    pub fn change(&mut self, changes: &'a [ElementChange]) {
        let mut rest = changes;
        while let Some(first) = rest.first() {
            let done = match first {
                ElementChange::Add(ElementKey::Chain(table, name), _) => {
                    self.create_variable_chain(*table, *name);
                    1
                }
                ElementChange::Delete(ElementKey::Chain(table, name), _) => {
                    self.delete_chain(*table, *name);
                    1
                }
                ElementChange::Add(..) | ElementChange::Delete(..) => self.change_elements(rest),
            };
            rest = &rest[done..];
        }
    }

    /// Deletes these entries of `affinity`. All of them must still exist.
    pub fn forget_clients(&mut self, table: Table, entries: &[AffinityEntry]) {
        // IPv6 keys with their headers, and some room: below the 64 KiB of a list.
        const AT_ONCE: usize = 500;
        for some in entries.chunks(AT_ONCE) {
            self.push(table, format!("forget clients in affinity of {table}"), Request::new(DELSETELEM), |w| {
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

    /// Writes one message with the first changes, as long as they are of one kind, in one set, and fit. Returns their
    /// number.
    fn change_elements(&mut self, changes: &'a [ElementChange]) -> usize {
        let group = |change: &ElementChange| {
            let key = change.key();
            Some((matches!(change, ElementChange::Add(..)), key.table(), key.set()?))
        };
        let Some((adds, table, set)) = changes.first().and_then(group) else { return changes.len() };
        let mut subjects = Vec::new();
        let request = if adds { Request::create(NEWSETELEM) } else { Request::new(DELSETELEM) };
        let message = Message::new(NFTABLES, request.kind, request.flags, table.number(), |w| {
            w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, set.name());
            w.nest(ELEM_LIST_ELEMENTS, |list| {
                let start = list.len();
                for change in changes.iter().take_while(|change| group(change) == Some((adds, table, set))) {
                    if list.len() - start > LIST_LIMIT {
                        break;
                    }
                    subjects.push((Message::HEADERS + list.len(), change));
                    match change {
                        ElementChange::Add(key, value) => encode_added(key, value, list),
                        ElementChange::Delete(key, value) => encode_deleted(key, value, list),
                    }
                }
            });
        });
        self.messages.push(message);
        let done = subjects.len();
        self.subjects.push(Subject::Changes(subjects));
        done
    }
}

/// The type and flags of a message.
struct Request {
    kind: u8,
    flags: u16,
}

impl Request {
    fn new(kind: u8) -> Self {
        Self { kind, flags: 0 }
    }

    fn create(kind: u8) -> Self {
        Self { kind, flags: CREATE }
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
