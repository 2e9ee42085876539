//! Elements of sets and maps ⇄ attributes. Pure.

use std::fmt;
use std::net::IpAddr;

use crds::{MacAddr, Protocol, Range};

use super::expression::{Verdict, decode_value, encode_value};
use super::key_bytes::KeyBytes;
use super::numbers::*;
use crate::flows::affinity::AffinityEntry;
use crate::link_name::LinkName;
use crate::nft::chain_name::ChainName;
use crate::nft::dispatch_id::DispatchId;
use crate::nft::elements::{ElementKey, ElementValue, KeyParts};
use crate::nft::layout::{Data, ETHERNET, Set, SetId, Table, Type};
use crate::rules::Frontend;
use netlink::attribute::{Attribute, Attributes, Writer};

/// Appends an element to the list of a message that adds elements.
pub(super) fn encode_added(key: &ElementKey, value: &ElementValue, list: &mut Writer) {
    list.nest(LIST_ITEM, |item| {
        encode_item_key(key, item);
        let part = |part| encode_parts(&[part]);
        let data = match value {
            ElementValue::Present => return,
            ElementValue::Goto(chain) => return encode_verdict(&Verdict::Goto(chain.to_string()), item),
            ElementValue::Return => return encode_verdict(&Verdict::Return, item),
            ElementValue::DispatchId(id) => part(Part::Id(*id)),
            ElementValue::Endpoint(endpoint) => {
                encode_parts(&[Part::Address(endpoint.ip()), Part::Port(endpoint.port())])
            }
            ElementValue::Address(address) => part(Part::Address(*address)),
            ElementValue::Port(port) => part(Part::Port(*port)),
            ElementValue::Mac(mac) => part(Part::Mac(*mac)),
        };
        item.nest(ELEM_DATA, |w| encode_value(&data, w));
    });
}

fn encode_verdict(verdict: &Verdict, item: &mut Writer) {
    item.nest(ELEM_DATA, |w| verdict.encode(w));
}

/// Appends an element to the list of a message that deletes elements.
pub(super) fn encode_deleted(key: &ElementKey, list: &mut Writer) {
    list.nest(LIST_ITEM, |item| encode_item_key(key, item));
}

fn encode_item_key(key: &ElementKey, item: &mut Writer) {
    let ElementKey::In(_, _, parts) = key else { return };
    item.nest(ELEM_KEY, |w| encode_value(&with_parts(parts, encode_parts), w));
    if let KeyParts::FrontendRange(frontend, range) = parts {
        let [address, protocol, port] = frontend_parts(frontend);
        let last = encode_parts(&[address, protocol, port, Part::Address(range.last())]);
        item.nest(ELEM_KEY_END, |w| encode_value(&last, w));
    }
}

/// A part of a key or value. It is displayed as `nft` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nft) enum Part {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    /// A random number or hash, in host byte order.
    Number(u32),
    /// The priority of a packet, in host byte order.
    Id(DispatchId),
    Mac(MacAddr),
    Link(LinkName),
    /// The type of a link, in host byte order.
    LinkType(u16),
}

impl Part {
    fn append_to(self, bytes: KeyBytes) -> KeyBytes {
        match self {
            Self::Address(IpAddr::V4(v4)) => bytes.append(&v4.octets()),
            Self::Address(IpAddr::V6(v6)) => bytes.append(&v6.octets()),
            Self::Protocol(protocol) => bytes.append(&[protocol.number()]),
            Self::Port(port) => bytes.append(&port.to_be_bytes()),
            Self::Number(number) => bytes.append(&number.to_ne_bytes()),
            Self::Id(id) => bytes.append(&id.0.to_ne_bytes()),
            Self::Mac(mac) => bytes.append(&mac.octets()),
            Self::Link(link) => bytes.append(&link.bytes()),
            Self::LinkType(number) => bytes.append(&number.to_ne_bytes()),
        }
    }

    /// Reads a part of this type; `None` if the bytes are not such a part.
    fn decode(kind: Type, bytes: &[u8]) -> Option<Self> {
        Some(match kind {
            Type::V4 => Self::Address(<[u8; 4]>::try_from(bytes).ok()?.into()),
            Type::V6 => Self::Address(<[u8; 16]>::try_from(bytes).ok()?.into()),
            Type::Protocol => Self::Protocol(Protocol::ALL.into_iter().find(|known| [known.number()] == *bytes)?),
            Type::Port => Self::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            Type::Integer => Self::Number(u32::from_ne_bytes(bytes.try_into().ok()?)),
            Type::Priority => Self::Id(DispatchId(u32::from_ne_bytes(bytes.try_into().ok()?))),
            Type::Mac => Self::Mac(<[u8; 6]>::try_from(bytes).ok()?.into()),
            Type::LinkName => {
                Self::Link(LinkName::new(std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()?)?)
            }
            Type::LinkType => Self::LinkType(u16::from_ne_bytes(bytes.try_into().ok()?)),
            Type::Address => unreachable!("invariant: types are resolved before use"),
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Protocol(protocol) => write!(f, "{}", protocol.to_string().to_lowercase()),
            Self::Port(port) => write!(f, "{port}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Id(id) => write!(f, "{id}"),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Link(link) => write!(f, "\"{link}\""),
            Self::LinkType(ETHERNET) => write!(f, "ether"),
            Self::LinkType(number) => write!(f, "{number}"),
        }
    }
}

/// Concatenates parts: each begins a word, as in registers. A single part is not padded.
fn encode_parts(parts: &[Part]) -> KeyBytes {
    match parts {
        [only] => only.append_to(KeyBytes::empty()),
        parts => parts.iter().fold(KeyBytes::empty(), |bytes, part| part.append_to(bytes).pad()),
    }
}

/// Reads parts of these types; `None` if the data consists of others.
fn decode_parts(types: impl ExactSizeIterator<Item = Type>, data: Attribute<'_>) -> Option<Vec<Part>> {
    let mut rest = decode_value(data.inner())?;
    let word = if types.len() == 1 { 1 } else { 4 };
    let parts: Option<Vec<Part>> = types
        .map(|kind| {
            let length = usize::try_from(kind.length()).ok()?;
            let (padded, after) = rest.split_at_checked(length.next_multiple_of(word))?;
            rest = after;
            Part::decode(kind, &padded[..length])
        })
        .collect();
    parts.filter(|_| rest.is_empty())
}

/// Passes the parts of a key, as the kernel has them, to `each`. For a range, these are the parts of its first key.
pub(in crate::nft) fn with_parts<T>(key: &KeyParts, each: impl FnOnce(&[Part]) -> T) -> T {
    use Part::{Address, Id, Link, LinkType, Mac, Number};
    let with_frontend = |frontend: &Frontend, part| {
        let [address, protocol, port] = frontend_parts(frontend);
        [address, protocol, port, part]
    };
    match key {
        KeyParts::Address(address) => each(&[Address(*address)]),
        KeyParts::Frontend(frontend) => each(&frontend_parts(frontend)),
        KeyParts::FrontendRange(frontend, range) => each(&with_frontend(frontend, Address(range.first()))),
        KeyParts::FrontendIndex(frontend, index) => each(&with_frontend(frontend, Number(*index))),
        KeyParts::Pair(address, endpoint) => each(&[*address, *endpoint].map(Address)),
        KeyParts::Hairpin(address, endpoint) => each(&[*address, *endpoint, *endpoint].map(Address)),
        KeyParts::AddressProtocol(address, protocol) => each(&[Address(*address), Part::Protocol(*protocol)]),
        KeyParts::DispatchId(id) => each(&[Id(*id)]),
        KeyParts::Slot(table, slot) => each(&[Mac(*table), Number(*slot)]),
        KeyParts::Mac(mac) => each(&[Mac(*mac)]),
        KeyParts::Link(link) => each(&[Link(*link)]),
        KeyParts::LinkType(number) => each(&[LinkType(*number)]),
        KeyParts::LinkMac(link, mac) => each(&[Link(*link), Mac(*mac)]),
    }
}

fn frontend_parts(frontend: &Frontend) -> [Part; 3] {
    let Frontend { address, protocol, port } = *frontend;
    [Part::Address(address), Part::Protocol(protocol), Part::Port(port)]
}

/// The key of an entry of `affinity`.
pub(super) fn encode_affinity_key(client: IpAddr, frontend: &Frontend) -> KeyBytes {
    let [address, protocol, port] = frontend_parts(frontend);
    encode_parts(&[Part::Address(client), address, protocol, port])
}

/// Reads the client and the frontend in the key of an entry of `affinity`.
pub(super) fn decode_affinity_key(set: &Set, item: Attributes<'_>) -> Option<(IpAddr, Frontend)> {
    match decode_parts(set.key(), item.find(ELEM_KEY)?)?[..] {
        [Part::Address(client), Part::Address(address), Part::Protocol(protocol), Part::Port(port)] => {
            Some((client, Frontend { address, protocol, port }))
        }
        _ => None,
    }
}

/// Reads an entry of `affinity`.
pub(super) fn decode_affinity_entry(set: &Set, item: Attributes<'_>) -> Option<AffinityEntry> {
    let (client, frontend) = decode_affinity_key(set, item)?;
    let ElementValue::Endpoint(endpoint) = decode_data(set, item)? else { return None };
    Some(AffinityEntry { client, frontend, endpoint })
}

/// The items of the list in an answer about elements.
pub(super) fn items(answer: Attributes<'_>) -> impl Iterator<Item = Attributes<'_>> {
    answer.find(ELEM_LIST_ELEMENTS).into_iter().flat_map(|list| list.inner()).map(|item| item.inner())
}

/// Reads an element of `set`; `None` if this version would not write it.
pub(super) fn decode_element(table: Table, set: &Set, item: Attributes<'_>) -> Option<(ElementKey, ElementValue)> {
    let key = decode_key(set, item)?;
    let value = decode_data(set, item)?;
    let is_ours = match (set.id, &key, &value) {
        (SetId::Ways, KeyParts::DispatchId(id), ElementValue::Goto(ChainName::Dispatch(dispatch))) => {
            DispatchId::new(*dispatch) == *id
        }
        (SetId::Tries, _, ElementValue::Goto(ChainName::Tries(_))) => true,
        (SetId::Remember, _, ElementValue::Goto(ChainName::Remember(_))) => true,
        (SetId::Refused, _, ElementValue::Goto(ChainName::Refuse { .. }) | ElementValue::Return) => true,
        _ => set.data != Data::Verdict,
    };
    is_ours.then_some((ElementKey::In(table, set.id, key), value))
}

/// Reads the key of an element.
pub(super) fn decode_key(set: &Set, item: Attributes<'_>) -> Option<KeyParts> {
    use Part::{Address, Id, Link, LinkType, Mac, Number, Port, Protocol};
    let key = decode_parts(set.key(), item.find(ELEM_KEY)?)?;
    Some(match key[..] {
        [Address(address)] => KeyParts::Address(address),
        [Address(address), Protocol(protocol), Port(port), ref rest @ ..] => {
            let frontend = Frontend { address, protocol, port };
            match *rest {
                [] => KeyParts::Frontend(frontend),
                [Number(index)] => KeyParts::FrontendIndex(frontend, index),
                [Address(first)] => {
                    let end = decode_parts(set.key(), item.find(ELEM_KEY_END)?)?;
                    let Some((Address(last), same)) = end.split_last() else { return None };
                    (*same == key[..3]).then_some(KeyParts::FrontendRange(frontend, Range::new(first, *last)?))?
                }
                _ => return None,
            }
        }
        [Address(address), Address(endpoint)] => KeyParts::Pair(address, endpoint),
        [Address(address), Address(source), Address(destination)] => {
            (source == destination).then_some(KeyParts::Hairpin(address, source))?
        }
        [Address(address), Protocol(protocol)] => KeyParts::AddressProtocol(address, protocol),
        [Id(id)] => KeyParts::DispatchId(id),
        [Mac(table), Number(slot)] => KeyParts::Slot(table, slot),
        [Mac(mac)] => KeyParts::Mac(mac),
        [Link(link)] => KeyParts::Link(link),
        [LinkType(number)] => KeyParts::LinkType(number),
        [Link(link), Mac(mac)] => KeyParts::LinkMac(link, mac),
        _ => return None,
    })
}

fn decode_data(set: &Set, item: Attributes<'_>) -> Option<ElementValue> {
    let data = || item.find(ELEM_DATA);
    match set.data {
        Data::None => Some(ElementValue::Present),
        Data::Verdict => match Verdict::decode(data()?.inner())? {
            Verdict::Goto(chain) => ChainName::parse(&chain).map(ElementValue::Goto),
            Verdict::Return => Some(ElementValue::Return),
            Verdict::Accept | Verdict::Drop => None,
        },
        Data::Values(_) => match decode_parts(set.values(), data()?)?[..] {
            [Part::Address(address), Part::Port(port)] => Some(ElementValue::Endpoint((address, port).into())),
            [Part::Id(id)] => Some(ElementValue::DispatchId(id)),
            [Part::Port(port)] => Some(ElementValue::Port(port)),
            [Part::Mac(mac)] => Some(ElementValue::Mac(mac)),
            [Part::Address(address)] => Some(ElementValue::Address(address)),
            _ => None,
        },
    }
}
