//! Messages that change the table: the skeleton, and [`Change`]s of its elements.
//!
//! Every message remembers what it is about, so that a refusal can be told in words.

use std::net::Ipv4Addr;

use super::element::{Frontend, Key, Value, chain};
use super::expression::{Verdict, encode_value};
use super::skeleton::{self, COMMENT, Chain, Set, TABLE};
use super::userdata;
use crate::diff::Change;
use crate::netlink::attribute::Writer;
use crate::netlink::message::{APPEND, CREATE, Message, NFTABLES};

/// AF_INET, which is also NFPROTO_IPV4.
pub(super) const IPV4: u8 = 2;

// enum nf_tables_msg_types.
const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const DELCHAIN: u8 = 5;
const NEWRULE: u8 = 6;
const NEWSET: u8 = 9;
const NEWSETELEM: u8 = 12;
const DELSETELEM: u8 = 14;

// Attributes, from linux/netfilter/nf_tables.h.
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_USE: u16 = 3;
pub(super) const TABLE_USERDATA: u16 = 6;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
pub(super) const ELEM_LIST_TABLE: u16 = 1;
pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_DATA: u16 = 2;
pub(super) const ELEM_FLAGS: u16 = 3;
/// An item of a list (NFTA_LIST_ELEM).
pub(super) const ITEM: u16 = 1;
/// An element where a range has ended (NFT_SET_ELEM_INTERVAL_END).
pub(super) const INTERVAL_END: u32 = 1;
pub(super) const ACCEPT: u32 = 1;

/// How long a list of elements may get before another message is begun, in bytes. The length of an attribute is a
/// number of 16 bits; the largest element needs less than the difference.
const LIST: usize = 60_000;

/// Messages with what each is about.
#[derive(Debug, Default)]
pub struct Requests<'a> {
    /// The messages, in order.
    pub messages: Vec<Message>,
    subjects: Vec<Subject<'a>>,
}

/// What a message is about.
#[derive(Debug)]
enum Subject<'a> {
    /// A part of the skeleton, in words.
    Skeleton(String),
    /// These changes; where each begins in the message, in bytes.
    Changes(Vec<(usize, &'a Change)>),
}

impl<'a> Requests<'a> {
    /// What a message is about, in words: the change that begins last before `offset`, if one is given.
    pub fn subject(&self, message: usize, offset: Option<u32>) -> String {
        match self.subjects.get(message) {
            None => "the transaction".to_owned(),
            Some(Subject::Skeleton(what)) => what.clone(),
            Some(Subject::Changes(changes)) => {
                let offset = offset.and_then(|offset| usize::try_from(offset).ok());
                let at = offset.map_or(0, |offset| changes.partition_point(|(start, _)| *start <= offset).max(1) - 1);
                match changes.get(at) {
                    Some((_, change)) if changes.len() == 1 || offset.is_some() => change.to_string(),
                    Some((_, change)) => format!("{change} or one of {} with it", changes.len() - 1),
                    None => "nothing".to_owned(),
                }
            }
        }
    }

    fn push(&mut self, what: String, kind: u8, flags: u16, fill: impl FnOnce(&mut Writer)) {
        self.messages.push(Message::new(NFTABLES, kind, flags, IPV4, fill));
        self.subjects.push(Subject::Skeleton(what));
    }

    /// Takes the whole table away.
    pub fn delete_table(&mut self) {
        self.push(format!("delete table {TABLE}"), DELTABLE, 0, |w| {
            w.text(TABLE_NAME, TABLE);
        });
    }

    /// Makes the table with its skeleton.
    pub fn create_table(&mut self) {
        self.push(format!("add table {TABLE}"), NEWTABLE, CREATE, |w| {
            w.text(TABLE_NAME, TABLE).u32(TABLE_FLAGS, 0).bytes(TABLE_USERDATA, &userdata::comment(COMMENT));
        });
        for (id, set) in (1..).zip(skeleton::sets()) {
            self.create_set(id, &set);
        }
        for chain in skeleton::chains() {
            self.create_chain(&chain);
        }
    }

    fn create_set(&mut self, id: u32, set: &Set) {
        self.push(format!("add set {}", set.name), NEWSET, CREATE, |w| {
            w.text(SET_TABLE, TABLE).text(SET_NAME, set.name).u32(SET_FLAGS, set.flags());
            w.u32(SET_KEY_TYPE, set.key_type()).u32(SET_KEY_LEN, set.key_length());
            if let Some((kind, length)) = set.data() {
                w.u32(SET_DATA_TYPE, kind).u32(SET_DATA_LEN, length);
            }
            w.u32(SET_ID, id).bytes(SET_USERDATA, &userdata::set(set));
        });
    }

    fn create_chain(&mut self, chain: &Chain) {
        self.push(format!("add chain {}", chain.name), NEWCHAIN, CREATE, |w| {
            w.text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, &chain.name);
            if let Some(hook) = chain.hook {
                w.text(CHAIN_TYPE, hook.kind).u32(CHAIN_POLICY, ACCEPT);
                w.nested(CHAIN_HOOK, |w| {
                    w.u32(HOOK_NUMBER, hook.number).u32(HOOK_PRIORITY, hook.priority.cast_unsigned());
                });
            }
        });
        for (number, rule) in (1..).zip(&chain.rules) {
            let what = format!("add rule {number} of chain {}", chain.name);
            self.push(what, NEWRULE, CREATE | APPEND, |w| {
                w.text(RULE_TABLE, TABLE).text(RULE_CHAIN, &chain.name);
                w.nested(RULE_EXPRESSIONS, |w| rule.iter().for_each(|expression| expression.encode(w)));
            });
        }
    }

    /// Makes these changes, which must be in the order that [`crate::diff::diff`] gives.
    pub fn change(&mut self, changes: &'a [Change]) {
        let mut rest = changes;
        while let Some(first) = rest.first() {
            match first {
                Change::Add(Key::Pick(pick), _) => {
                    self.create_chain(&skeleton::pick(*pick));
                    rest = &rest[1..];
                }
                Change::Delete(Key::Pick(pick), _) => {
                    let name = chain(*pick);
                    self.push(format!("delete chain {name}"), DELCHAIN, 0, |w| {
                        w.text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, &name);
                    });
                    rest = &rest[1..];
                }
                Change::Add(..) | Change::Delete(..) => {
                    let done = self.change_elements(rest);
                    rest = &rest[done..];
                }
            }
        }
    }

    /// One message for as many of the first changes as are of one kind, in one set, and fit. Returns how many.
    fn change_elements(&mut self, changes: &'a [Change]) -> usize {
        let kind_of = |change: &Change| (matches!(change, Change::Add(..)), set_of(change.key()));
        let Some((adds, Some(set))) = changes.first().map(kind_of) else { return changes.len() };
        let mut subjects = Vec::new();
        let (kind, flags) = if adds { (NEWSETELEM, CREATE) } else { (DELSETELEM, 0) };
        let message = Message::new(NFTABLES, kind, flags, IPV4, |w| {
            w.text(ELEM_LIST_TABLE, TABLE).text(ELEM_LIST_SET, set);
            w.nested(ELEM_LIST_ELEMENTS, |list| {
                let start = list.len();
                for change in changes.iter().take_while(|change| kind_of(change) == (adds, Some(set))) {
                    if list.len() - start > LIST {
                        break;
                    }
                    subjects.push((Message::HEADERS + list.len(), change));
                    element(change, list);
                }
            });
        });
        self.messages.push(message);
        let done = subjects.len();
        self.subjects.push(Subject::Changes(subjects));
        done
    }
}

/// The set or map that an element belongs to; none for a chain.
fn set_of(key: &Key) -> Option<&'static str> {
    match key {
        Key::Pick(_) => None,
        Key::Pods => Some("pods"),
        Key::Address(_) => Some("addresses"),
        Key::Service(_) => Some("services"),
        Key::Inside(_) => Some("inside"),
        Key::Refused(_) => Some("refused"),
        Key::Endpoint(..) => Some("endpoints"),
        Key::Local(..) => Some("local"),
        Key::Hairpin(..) => Some("hairpin"),
    }
}

/// Writes an element into a list: to add it, with its value; to delete it, the key is enough.
pub(super) fn element(change: &Change, list: &mut Writer) {
    let (key, value, adds) = match change {
        Change::Add(key, value) => (key, value, true),
        Change::Delete(key, value) => (key, value, false),
    };
    if let Value::Ranges(ranges) = value {
        return boundaries(ranges).for_each(|(address, end)| boundary(address, end, list));
    }
    list.nested(ITEM, |item| {
        item.nested(ELEM_KEY, |w| encode_value(&key_bytes(key), w));
        match value {
            Value::Pick(pick) if adds => {
                item.nested(ELEM_DATA, |w| Verdict::Goto(chain(*pick)).encode(w));
            }
            Value::Endpoint(endpoint) if adds => {
                let bytes = [&endpoint.ip().octets()[..], &port_bytes(endpoint.port())].concat();
                item.nested(ELEM_DATA, |w| encode_value(&bytes, w));
            }
            _ => {}
        }
    });
}

/// How a set of ranges is told to the kernel: where one begins and where it has ended. As `nft` does, what is before
/// the first one has ended too.
fn boundaries(ranges: &[(Ipv4Addr, Ipv4Addr)]) -> impl Iterator<Item = (Ipv4Addr, bool)> {
    let lowest = Ipv4Addr::UNSPECIFIED;
    let before = ranges.first().is_some_and(|(first, _)| *first != lowest).then_some((lowest, true));
    let each = ranges.iter().flat_map(|(first, last)| {
        let after = last.to_bits().checked_add(1).map(|bits| (Ipv4Addr::from_bits(bits), true));
        [Some((*first, false)), after].into_iter().flatten()
    });
    before.into_iter().chain(each)
}

fn boundary(address: Ipv4Addr, end: bool, list: &mut Writer) {
    list.nested(ITEM, |item| {
        if end {
            item.u32(ELEM_FLAGS, INTERVAL_END);
        }
        item.nested(ELEM_KEY, |w| encode_value(&address.octets(), w));
    });
}

/// The bytes of a key: each part in four bytes of its own.
fn key_bytes(key: &Key) -> Vec<u8> {
    match key {
        Key::Pods | Key::Pick(_) => Vec::new(),
        Key::Address(address) => address.octets().to_vec(),
        Key::Service(frontend) | Key::Inside(frontend) | Key::Refused(frontend) => frontend_bytes(frontend),
        // What numgen yields is a number of the machine's own order.
        Key::Endpoint(frontend, index) => [&frontend_bytes(frontend)[..], &index.to_ne_bytes()].concat(),
        Key::Local(address, endpoint) => [address.octets(), endpoint.octets()].concat(),
        Key::Hairpin(address, endpoint) => [address.octets(), endpoint.octets(), endpoint.octets()].concat(),
    }
}

fn frontend_bytes(frontend: &Frontend) -> Vec<u8> {
    let protocol = [frontend.protocol.number(), 0, 0, 0];
    [frontend.address.octets(), protocol, port_bytes(frontend.port)].concat()
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
