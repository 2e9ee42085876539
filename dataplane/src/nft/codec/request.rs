//! Messages that change tables: the skeleton, and [`Change`]s of its elements.
//!
//! Every message remembers what it is about, so that a refusal can be told in words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crds::Range;

use super::bytes::Bytes;
use super::contents::{Contents, told};
use super::expression::{Verdict, encode_counter, encode_value};
use super::userdata;
use crate::flows::affinity::Remembered;
use crate::netlink::attribute::Writer;
use crate::netlink::message::{APPEND, CREATE, Message, NFTABLES};
use crate::nft::diff::Change;
use crate::nft::elements::{Frontend, Key, Value, at, chain, refusing, remembering, returning};
use crate::nft::layout::{self, COMMENT, Chain, NAME, Set, Table};
use crate::snapshot::LinkName;

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
pub(super) const HOOK_DEV: u16 = 3;
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
const SET_DESCRIPTION: u16 = 9;
const SET_DESCRIPTION_SIZE: u16 = 1;
const SET_DESCRIPTION_PARTS: u16 = 2;
const SET_PART_LEN: u16 = 1;
const SET_ID: u16 = 10;
const SET_LOOK_THROUGH: u16 = 12;
const SET_USERDATA: u16 = 13;
pub(super) const SET_EXPR: u16 = 17;
pub(super) const ELEM_LIST_TABLE: u16 = 1;
pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_DATA: u16 = 2;
pub(super) const ELEM_FLAGS: u16 = 3;
pub(super) const ELEM_EXPR: u16 = 7;
pub(super) const ELEM_KEY_END: u16 = 10;
/// An item of a list (NFTA_LIST_ELEM).
pub(super) const ITEM: u16 = 1;
/// An element where a range has ended (NFT_SET_ELEM_INTERVAL_END).
pub(super) const INTERVAL_END: u32 = 1;
pub(super) const ACCEPT: u32 = 1;

/// The map that the rules fill.
pub(super) const AFFINITY: &str = "affinity";

/// How long a list of elements may get before another message is begun, in bytes. The length of an attribute is a
/// number of 16 bits; the largest element needs less than the difference.
pub(super) const LIST: usize = 60_000;

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
    /// Elements that come into this set.
    Elements(Table, &'static str),
}

impl<'a> Requests<'a> {
    /// What a message is about, in words: the change that begins last before `offset`, if one is given.
    pub fn subject(&self, message: usize, offset: Option<u32>) -> String {
        let offset = offset.and_then(|offset| usize::try_from(offset).ok());
        match self.subjects.get(message) {
            None => "the transaction".to_owned(),
            Some(Subject::Skeleton(what)) => what.clone(),
            Some(Subject::Elements(table, set)) => told(*table, set, &self.messages[message], offset),
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

    /// The table that a message is about.
    pub fn table(&self, message: usize) -> Option<Table> {
        let family = self.messages.get(message)?.family();
        Table::ALL.into_iter().find(|table| table.number() == family)
    }

    fn push(&mut self, table: Table, what: String, (kind, flags): (u8, u16), fill: impl FnOnce(&mut Writer)) {
        self.messages.push(Message::new(NFTABLES, kind, flags, table.number(), fill));
        self.subjects.push(Subject::Skeleton(what));
    }

    /// Takes a whole table away.
    pub fn delete_table(&mut self, table: Table) {
        self.push(table, format!("delete table {table}"), (DELTABLE, 0), |w| {
            w.text(TABLE_NAME, NAME);
        });
    }

    /// Makes a table with all that it holds.
    pub fn create_table(&mut self, table: Table, contents: Contents) {
        self.push(table, format!("add table {table}"), (NEWTABLE, CREATE), |w| {
            w.text(TABLE_NAME, NAME).u32(TABLE_FLAGS, 0).bytes(TABLE_USERDATA, &userdata::comment(COMMENT));
        });
        self.create_sets(table, &contents, |_| true);
        for chain in layout::chains(table) {
            self.create_chain(table, &chain);
        }
        for key in &contents.chains {
            self.create_changing_chain(key);
        }
        for (name, set) in contents.sets {
            for message in set.messages(table, name) {
                self.messages.push(message);
                self.subjects.push(Subject::Elements(table, name));
            }
        }
    }

    /// Lets the sets of a table hold all that.
    pub fn enlarge(&mut self, table: Table, contents: &Contents) {
        self.create_sets(table, contents, |set| set.many);
    }

    fn create_sets(&mut self, table: Table, contents: &Contents, which: impl Fn(&Set) -> bool) {
        for (id, set) in (1..).zip(layout::sets(table)).filter(|(_, set)| which(set)) {
            let count = contents.sets.get(set.name).map_or(0, |set| set.count);
            self.create_set(table, id, &set, set.size(count));
        }
    }

    fn create_set(&mut self, table: Table, id: u32, set: &Set, size: Option<u32>) {
        self.push(table, format!("add set {} of {table}", set.name), (NEWSET, CREATE), |w| {
            w.text(SET_TABLE, NAME).text(SET_NAME, set.name).u32(SET_FLAGS, set.flags());
            w.u32(SET_KEY_TYPE, set.key_type()).u32(SET_KEY_LEN, set.key_length());
            if let Some((kind, length)) = set.data() {
                w.u32(SET_DATA_TYPE, kind).u32(SET_DATA_LEN, length);
            }
            w.u32(SET_ID, id);
            if let Some(size) = size {
                w.nested(SET_DESCRIPTION, |w| {
                    w.u32(SET_DESCRIPTION_SIZE, size);
                });
            }
            if set.many {
                let pause = u32::try_from(layout::LOOK_THROUGH.as_millis()).expect("invariant: some days");
                w.u32(SET_LOOK_THROUGH, pause);
            }
            if let Some(parts) = set.parts() {
                w.nested(SET_DESCRIPTION, |w| {
                    w.nested(SET_DESCRIPTION_PARTS, |list| {
                        for length in parts {
                            list.nested(ITEM, |part| {
                                part.u32(SET_PART_LEN, length);
                            });
                        }
                    });
                });
            }
            if set.counts {
                w.nested(SET_EXPR, encode_counter);
            }
            w.bytes(SET_USERDATA, &userdata::set(set));
        });
    }

    fn create_chain(&mut self, table: Table, chain: &Chain) {
        self.push(table, format!("add chain {} of {table}", chain.name), (NEWCHAIN, CREATE), |w| {
            w.text(CHAIN_TABLE, NAME).text(CHAIN_NAME, &chain.name);
            if let Some(hook) = chain.hook {
                w.text(CHAIN_TYPE, hook.kind).u32(CHAIN_POLICY, ACCEPT);
                w.nested(CHAIN_HOOK, |w| {
                    w.u32(HOOK_NUMBER, hook.number).u32(HOOK_PRIORITY, hook.priority.cast_unsigned());
                    if let Some(link) = hook.link {
                        w.text(HOOK_DEV, link.as_str());
                    }
                });
            }
        });
        for (number, rule) in (1..).zip(&chain.rules) {
            let what = format!("add rule {number} of chain {} of {table}", chain.name);
            self.push(table, what, (NEWRULE, CREATE | APPEND), |w| {
                w.text(RULE_TABLE, NAME).text(RULE_CHAIN, &chain.name);
                w.nested(RULE_EXPRESSIONS, |w| rule.iter().for_each(|expression| expression.encode(w)));
            });
        }
    }

    /// Makes a chain that comes and goes with elements; of what is none, nothing.
    fn create_changing_chain(&mut self, key: &Key) {
        let chain = match key {
            Key::Way(family, way) => layout::way(*family, *way),
            Key::Remember(family, seconds) => layout::remember(*family, *seconds),
            Key::Return(family, one) => layout::returning(*family, *one),
            Key::Hooked(family, one) => layout::hooked(*family, *one),
            Key::Link(link) => layout::ingress(*link),
            _ => return,
        };
        self.create_chain(key.table(), &chain);
    }

    /// Makes these changes, which must be in the order that [`crate::nft::diff::diff`] gives.
    pub fn change(&mut self, changes: &'a [Change]) {
        let mut rest = changes;
        while let Some(first) = rest.first() {
            match first {
                Change::Add(key, _) if set_of(key).is_none() => {
                    self.create_changing_chain(key);
                    rest = &rest[1..];
                }
                Change::Delete(
                    Key::Way(..) | Key::Remember(..) | Key::Return(..) | Key::Hooked(..) | Key::Link(_),
                    _,
                ) => {
                    let (table, name) = match first.key() {
                        Key::Remember(_, seconds) => (first.key().table(), remembering(*seconds)),
                        Key::Way(_, way) => (first.key().table(), chain(*way)),
                        Key::Return(_, one) => (first.key().table(), returning(*one)),
                        Key::Hooked(_, one) => (first.key().table(), one.name().to_owned()),
                        Key::Link(link) => (first.key().table(), at(link)),
                        other => (other.table(), other.to_string()),
                    };
                    self.push(table, format!("delete chain {name} of {table}"), (DELCHAIN, 0), |w| {
                        w.text(CHAIN_TABLE, NAME).text(CHAIN_NAME, &name);
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

    /// Forgets these clients. All of them must still be there.
    pub fn forget(&mut self, table: Table, remembered: &[Remembered]) {
        // Keys of IPv6 with their headers, and some room: below the 64 KiB of a list.
        const AT_ONCE: usize = 500;
        for some in remembered.chunks(AT_ONCE) {
            self.push(table, format!("forget clients in affinity of {table}"), (DELSETELEM, 0), |w| {
                w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, AFFINITY);
                w.nested(ELEM_LIST_ELEMENTS, |list| {
                    for Remembered { client, port: (address, protocol, port), .. } in some {
                        let front = Frontend { address: *address, protocol: *protocol, port: *port };
                        let key = concatenated([Part::Address(*client)].into_iter().chain(frontend(&front)));
                        list.nested(ITEM, |item| {
                            item.nested(ELEM_KEY, |w| encode_value(&key, w));
                        });
                    }
                });
            });
        }
    }

    /// One message for as many of the first changes as are of one kind, in one set, and fit. Returns how many.
    fn change_elements(&mut self, changes: &'a [Change]) -> usize {
        let kind_of = |change: &Change| (matches!(change, Change::Add(..)), change.key().table(), set_of(change.key()));
        let Some((adds, table, Some(set))) = changes.first().map(kind_of) else { return changes.len() };
        let mut subjects = Vec::new();
        let (kind, flags) = if adds { (NEWSETELEM, CREATE) } else { (DELSETELEM, 0) };
        let message = Message::new(NFTABLES, kind, flags, table.number(), |w| {
            w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, set);
            w.nested(ELEM_LIST_ELEMENTS, |list| {
                let start = list.len();
                for change in changes.iter().take_while(|change| kind_of(change) == (adds, table, Some(set))) {
                    if list.len() - start > LIST {
                        break;
                    }
                    subjects.push((Message::HEADERS + list.len(), change));
                    match change {
                        Change::Add(key, value) => element(key, value, true, list),
                        Change::Delete(key, value) => element(key, value, false, list),
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

/// A message that puts these elements into a set.
pub(super) fn adding(table: Table, set: &str, elements: &Writer) -> Message {
    Message::new(NFTABLES, NEWSETELEM, CREATE, table.number(), |w| {
        // And for names.
        w.reserve(elements.len() + 64);
        w.text(ELEM_LIST_TABLE, NAME).text(ELEM_LIST_SET, set);
        w.nested(ELEM_LIST_ELEMENTS, |list| list.append(elements));
    })
}

/// The set or map that an element belongs to; none for a chain.
pub(crate) fn set_of(key: &Key) -> Option<&'static str> {
    match key {
        Key::Way(..) | Key::Remember(..) | Key::Return(..) | Key::Hooked(..) | Key::Link(_) => None,
        Key::Spread(address) => Some(of(*address, ["spread4", "spread6"])),
        Key::Class(frontend) => Some(of(frontend.address, ["classes4", "classes6"])),
        Key::Whole(address, _) => Some(of(*address, ["wholes4", "wholes6"])),
        Key::Slot(..) => Some("slots"),
        Key::Hop(..) => Some("hops"),
        Key::Peer(_) => Some("peers"),
        Key::Own(..) => Some("own"),
        Key::Alive(..) => Some("alive"),
        Key::Mac(_) => Some("macs"),
        Key::Pods(_) => Some("pods"),
        Key::Address(_) => Some("addresses"),
        Key::Lead(..) => Some("ways"),
        Key::Service(_) => Some("services"),
        Key::Inside(_) => Some("inside"),
        Key::Refused(_) => Some("refused"),
        Key::NodePort(_) => Some("node-ports"),
        Key::ClusterIp(_) => Some("cluster-ips"),
        Key::Node(_) => Some("nodes"),
        Key::Remembered(_) => Some("remember"),
        Key::Source(..) => Some("sources"),
        Key::Endpoint(..) => Some("endpoints"),
        Key::Local(..) => Some("local"),
        Key::Hairpin(..) => Some("hairpin"),
        Key::Traffic(_) => Some("traffic"),
        Key::Begun(_) => Some("begun"),
    }
}

fn of(address: IpAddr, [v4, v6]: [&'static str; 2]) -> &'static str {
    if address.is_ipv4() { v4 } else { v6 }
}

/// Writes an element into a list: to add it, with its value; to delete it, the key is enough.
pub(super) fn element(key: &Key, value: &Value, adds: bool, list: &mut Writer) {
    if let Value::Ranges(ranges) = value {
        return boundaries(ranges).for_each(|(address, end)| boundary(address, end, list));
    }
    list.nested(ITEM, |item| {
        item.nested(ELEM_KEY, |w| encode_value(&key_bytes(key), w));
        if let Key::Source(front, range) = key {
            let last = frontend(front).into_iter().chain([Part::Address(range.last())]);
            item.nested(ELEM_KEY_END, |w| encode_value(&concatenated(last), w));
        }
        match value {
            Value::Way(way) if adds => {
                item.nested(ELEM_DATA, |w| Verdict::Goto(chain(*way)).encode(w));
            }
            Value::Lead(lead) if adds => {
                item.nested(ELEM_DATA, |w| encode_value(&lead.0.to_ne_bytes(), w));
            }
            Value::Remember(seconds) if adds => {
                item.nested(ELEM_DATA, |w| Verdict::Goto(remembering(*seconds)).encode(w));
            }
            Value::Refuse { restricted } if adds => {
                item.nested(ELEM_DATA, |w| Verdict::Goto(refusing(*restricted)).encode(w));
            }
            Value::Leave if adds => {
                item.nested(ELEM_DATA, |w| Verdict::Return.encode(w));
            }
            Value::NewAddress(address) if adds => {
                item.nested(ELEM_DATA, |w| encode_value(&concatenated([Part::Address(*address)]), w));
            }
            // A value of one part has no bytes behind it.
            Value::NewPort(port) if adds => {
                item.nested(ELEM_DATA, |w| encode_value(&port.to_be_bytes(), w));
            }
            Value::Endpoint(endpoint) if adds => {
                item.nested(ELEM_DATA, |w| encode_value(&endpoint_bytes(endpoint), w));
            }
            Value::Token(token) if adds => {
                item.nested(ELEM_DATA, |w| encode_value(&token.0, w));
            }
            Value::Mac(mac) if adds => {
                item.nested(ELEM_DATA, |w| encode_value(&mac.octets(), w));
            }
            _ => {}
        }
    });
}

/// How a set of ranges is told to the kernel: where one begins and where it has ended. As `nft` does, what is before
/// the first one has ended too.
fn boundaries(ranges: &[Range]) -> impl Iterator<Item = (IpAddr, bool)> {
    let lowest = |of: &Range| -> IpAddr {
        if of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    };
    let before = ranges.first().filter(|range| range.first() != lowest(range)).map(|range| (lowest(range), true));
    let each = ranges.iter().flat_map(|range| {
        let after = crds::address::next(range.last()).map(|after| (after, true));
        [Some((range.first(), false)), after].into_iter().flatten()
    });
    before.into_iter().chain(each)
}

fn boundary(address: IpAddr, end: bool, list: &mut Writer) {
    list.nested(ITEM, |item| {
        if end {
            item.u32(ELEM_FLAGS, INTERVAL_END);
        }
        item.nested(ELEM_KEY, |w| encode_value(&concatenated([Part::Address(address)]), w));
    });
}

/// A part of a key or of a value.
enum Part {
    Address(IpAddr),
    Protocol(u8),
    Port(u16),
    Number(u32),
    Mac([u8; 6]),
    Link(LinkName),
}

/// The bytes of such parts: each begins four bytes of its own, as in registers.
fn concatenated(parts: impl IntoIterator<Item = Part>) -> Bytes {
    parts.into_iter().fold(Bytes::none(), |bytes, part| match part {
        Part::Address(IpAddr::V4(v4)) => bytes.and(&v4.octets()),
        Part::Address(IpAddr::V6(v6)) => bytes.and(&v6.octets()),
        Part::Protocol(number) => bytes.and(&[number, 0, 0, 0]),
        Part::Port(port) => bytes.and(&port.to_be_bytes()).and(&[0; 2]),
        // What numgen yields is a number of the machine's own order.
        Part::Number(number) => bytes.and(&number.to_ne_bytes()),
        Part::Mac(mac) => bytes.and(&mac).and(&[0; 2]),
        Part::Link(link) => bytes.and(&link.bytes()),
    })
}

/// The key of an element, as the kernel has it; nothing for what is more than one element, or none.
pub(in crate::nft) fn key_bytes(key: &Key) -> Bytes {
    use Part::{Address, Number};
    match key {
        Key::Pods(_) | Key::Way(..) | Key::Remember(..) | Key::Return(..) | Key::Hooked(..) | Key::Link(_) => {
            Bytes::none()
        }
        // A class is a number of the machine's own order.
        Key::Lead(_, lead) => Bytes::none().and(&lead.0.to_ne_bytes()),
        Key::Address(address) | Key::Spread(address) | Key::Node(address) => concatenated([Address(*address)]),
        Key::Service(front)
        | Key::Inside(front)
        | Key::Refused(front)
        | Key::NodePort(front)
        | Key::ClusterIp(front)
        | Key::Remembered(front)
        | Key::Class(front)
        | Key::Traffic(front)
        | Key::Begun(front) => concatenated(frontend(front)),
        Key::Whole(address, protocol) => concatenated([Address(*address), Part::Protocol(protocol.number())]),
        Key::Slot(table, slot) => concatenated([Part::Mac(table.0), Number(*slot)]),
        Key::Hop(link, nodes) => concatenated([Part::Link(*link), Part::Mac(nodes.0)]),
        // A key of one part has no bytes behind it.
        Key::Peer(mac) => Bytes::none().and(&mac.octets()),
        Key::Own(link, mac) | Key::Alive(link, mac) => concatenated([Part::Link(*link), Part::Mac(mac.octets())]),
        Key::Mac(link) => concatenated([Part::Link(*link)]),
        Key::Source(front, range) => concatenated(frontend(front).into_iter().chain([Address(range.first())])),
        Key::Endpoint(front, index) => concatenated(frontend(front).into_iter().chain([Number(*index)])),
        Key::Local(address, endpoint) => concatenated([*address, *endpoint].map(Address)),
        Key::Hairpin(address, endpoint) => concatenated([*address, *endpoint, *endpoint].map(Address)),
    }
}

fn frontend(frontend: &Frontend) -> [Part; 3] {
    let Frontend { address, protocol, port } = *frontend;
    [Part::Address(address), Part::Protocol(protocol.number()), Part::Port(port)]
}

fn endpoint_bytes(endpoint: &SocketAddr) -> Bytes {
    concatenated([Part::Address(endpoint.ip()), Part::Port(endpoint.port())])
}
