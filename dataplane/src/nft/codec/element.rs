//! Elements of sets and maps ⇄ attributes. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crds::service::Family;
use crds::{MacAddr, Protocol, Range};

use super::expression::{Verdict, decode_value, encode_value};
use super::key_bytes::KeyBytes;
use super::numbers::*;
use crate::link_name::LinkName;
use crate::netlink::attribute::{Attribute, Attributes, Writer};
use crate::nft::chain_name::ChainName;
use crate::nft::dispatch_id::DispatchId;
use crate::nft::elements::{ElementKey, ElementValue, KeyParts};
use crate::nft::layout::{Data, Set, SetId, Table, Type};
use crate::rules::Frontend;

/// Writes an element to be added into a list.
pub(super) fn encode_added(key: &ElementKey, value: &ElementValue, list: &mut Writer) {
    if let ElementValue::Ranges(ranges) = value {
        return encode_ranges(ranges, list);
    }
    list.nest(LIST_ITEM, |item| {
        encode_item_key(key, item);
        let data = match value {
            ElementValue::Present | ElementValue::Ranges(_) => return,
            ElementValue::Goto(chain) => {
                item.nest(ELEM_DATA, |w| Verdict::Goto(chain.to_string()).encode(w));
                return;
            }
            ElementValue::Return => {
                item.nest(ELEM_DATA, |w| Verdict::Return.encode(w));
                return;
            }
            ElementValue::DispatchId(id) => KeyBytes::empty().and(&id.0.to_ne_bytes()),
            ElementValue::Endpoint(endpoint) => encode_endpoint(endpoint),
            ElementValue::Address(address) => concatenate([Part::Address(*address)]),
            // A value of one part is not padded.
            ElementValue::Port(port) => KeyBytes::empty().and(&port.to_be_bytes()),
            ElementValue::Mac(mac) => KeyBytes::empty().and(&mac.octets()),
        };
        item.nest(ELEM_DATA, |w| encode_value(&data, w));
    });
}

/// Writes an element to be deleted into a list.
pub(super) fn encode_deleted(key: &ElementKey, value: &ElementValue, list: &mut Writer) {
    match value {
        ElementValue::Ranges(ranges) => encode_ranges(ranges, list),
        _ => {
            list.nest(LIST_ITEM, |item| encode_item_key(key, item));
        }
    }
}

fn encode_item_key(key: &ElementKey, item: &mut Writer) {
    item.nest(ELEM_KEY, |w| encode_value(&encode_key(key), w));
    if let ElementKey::In(_, _, KeyParts::FrontendRange(frontend, range)) = key {
        let last = frontend_parts(frontend).into_iter().chain([Part::Address(range.last())]);
        item.nest(ELEM_KEY_END, |w| encode_value(&concatenate(last), w));
    }
}

/// Writes an interval set: an element where each range begins, and one after its end. As in `nft`, an
/// end without a begin precedes the first range.
fn encode_ranges(ranges: &[Range], list: &mut Writer) {
    let lowest = |range: &Range| -> IpAddr {
        if range.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    };
    if let Some(first) = ranges.first().filter(|range| range.first() != lowest(range)) {
        encode_boundary(lowest(first), true, list);
    }
    for range in ranges {
        encode_boundary(range.first(), false, list);
        if let Some(after) = crds::address::next(range.last()) {
            encode_boundary(after, true, list);
        }
    }
}

fn encode_boundary(address: IpAddr, is_end: bool, list: &mut Writer) {
    list.nest(LIST_ITEM, |item| {
        if is_end {
            item.u32(ELEM_FLAGS, INTERVAL_END);
        }
        item.nest(ELEM_KEY, |w| encode_value(&concatenate([Part::Address(address)]), w));
    });
}

/// A part of a key or value.
enum Part {
    Address(IpAddr),
    Protocol(u8),
    Port(u16),
    Number(u32),
    Mac([u8; 6]),
    Link(LinkName),
}

/// Concatenates parts: each begins a word, as in registers.
fn concatenate(parts: impl IntoIterator<Item = Part>) -> KeyBytes {
    parts.into_iter().fold(KeyBytes::empty(), |bytes, part| match part {
        Part::Address(IpAddr::V4(v4)) => bytes.and(&v4.octets()),
        Part::Address(IpAddr::V6(v6)) => bytes.and(&v6.octets()),
        Part::Protocol(number) => bytes.and(&[number, 0, 0, 0]),
        Part::Port(port) => bytes.and(&port.to_be_bytes()).and(&[0; 2]),
        // `numgen` returns a number in host byte order.
        Part::Number(number) => bytes.and(&number.to_ne_bytes()),
        Part::Mac(mac) => bytes.and(&mac).and(&[0; 2]),
        Part::Link(link) => bytes.and(&link.bytes()),
    })
}

/// The key of an element as the kernel has it; empty for a chain or an interval set.
pub(in crate::nft) fn encode_key(key: &ElementKey) -> KeyBytes {
    use Part::{Address, Number};
    let ElementKey::In(_, _, parts) = key else { return KeyBytes::empty() };
    match parts {
        KeyParts::Address(address) => concatenate([Address(*address)]),
        KeyParts::Frontend(frontend) => concatenate(frontend_parts(frontend)),
        KeyParts::FrontendRange(frontend, range) => {
            concatenate(frontend_parts(frontend).into_iter().chain([Address(range.first())]))
        }
        KeyParts::FrontendIndex(frontend, index) => {
            concatenate(frontend_parts(frontend).into_iter().chain([Number(*index)]))
        }
        KeyParts::Pair(address, endpoint) => concatenate([*address, *endpoint].map(Address)),
        KeyParts::Hairpin(address, endpoint) => concatenate([*address, *endpoint, *endpoint].map(Address)),
        KeyParts::AddressProtocol(address, protocol) => {
            concatenate([Address(*address), Part::Protocol(protocol.number())])
        }
        // A priority is in host byte order.
        KeyParts::DispatchId(id) => KeyBytes::empty().and(&id.0.to_ne_bytes()),
        KeyParts::Slot(table, slot) => concatenate([Part::Mac(table.octets()), Number(*slot)]),
        // A key of one part is not padded.
        KeyParts::Mac(mac) => KeyBytes::empty().and(&mac.octets()),
        KeyParts::Link(link) => concatenate([Part::Link(*link)]),
        KeyParts::LinkMac(link, mac) => concatenate([Part::Link(*link), Part::Mac(mac.octets())]),
    }
}

fn frontend_parts(frontend: &Frontend) -> [Part; 3] {
    let Frontend { address, protocol, port } = *frontend;
    [Part::Address(address), Part::Protocol(protocol.number()), Part::Port(port)]
}

fn encode_endpoint(endpoint: &SocketAddr) -> KeyBytes {
    concatenate([Part::Address(endpoint.ip()), Part::Port(endpoint.port())])
}

/// The key of an entry of `affinity`.
pub(super) fn encode_affinity_key(client: IpAddr, frontend: &Frontend) -> KeyBytes {
    concatenate([Part::Address(client)].into_iter().chain(frontend_parts(frontend)))
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
        (SetId::Remember, _, ElementValue::Goto(ChainName::Remember(_))) => true,
        (SetId::Refused, _, ElementValue::Goto(ChainName::Refuse { .. }) | ElementValue::Return) => true,
        _ => set.data != Data::Verdict,
    };
    is_ours.then_some((ElementKey::In(table, set.id, key), value))
}

fn decode_key(set: &Set, item: Attributes<'_>) -> Option<KeyParts> {
    use Type::{Integer, LinkName, Mac, Port, Priority, Protocol, V4, V6};
    let mut key = PartReader::new(&set.key, item.find(ELEM_KEY)?)?;
    let parts = match set.key[..] {
        [V4 | V6] => KeyParts::Address(key.address()?),
        [V4 | V6, Protocol, Port] => KeyParts::Frontend(key.frontend()?),
        [V4 | V6, Protocol, Port, V4 | V6] => {
            let (frontend, first) = (key.frontend()?, key.address()?);
            let mut end = PartReader::new(&set.key, item.find(ELEM_KEY_END)?)?;
            let (same, last) = (end.frontend()?, end.address()?);
            end.end()?;
            (frontend == same).then_some(KeyParts::FrontendRange(frontend, Range::new(first, last)?))?
        }
        [V4 | V6, Protocol, Port, Integer] => KeyParts::FrontendIndex(key.frontend()?, key.number()?),
        [V4 | V6, V4 | V6] => KeyParts::Pair(key.address()?, key.address()?),
        [V4 | V6, V4 | V6, V4 | V6] => {
            let (address, source, destination) = (key.address()?, key.address()?, key.address()?);
            (source == destination).then_some(KeyParts::Hairpin(address, source))?
        }
        [V4 | V6, Protocol] => KeyParts::AddressProtocol(key.address()?, key.protocol()?),
        [Priority] => KeyParts::DispatchId(DispatchId(key.number()?)),
        [Mac, Integer] => KeyParts::Slot(key.mac()?, key.number()?),
        [Mac] => KeyParts::Mac(MacAddr::from(key.bytes::<6>()?)),
        [LinkName] => KeyParts::Link(key.link()?),
        [LinkName, Mac] => KeyParts::LinkMac(key.link()?, key.mac()?),
        _ => return None,
    };
    key.end()?;
    Some(parts)
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
        Data::Endpoint => PartReader::new(&set.endpoint_types(), data()?)?.endpoint().map(ElementValue::Endpoint),
        Data::Plain(Type::Priority) => {
            Some(ElementValue::DispatchId(DispatchId(u32::from_ne_bytes(decode_bytes(data()?)?))))
        }
        Data::Plain(Type::Port) => Some(ElementValue::Port(u16::from_be_bytes(decode_bytes(data()?)?))),
        Data::Plain(Type::Mac) => Some(ElementValue::Mac(MacAddr::from(decode_bytes::<6>(data()?)?))),
        Data::Plain(kind) => {
            let mut value = PartReader::new(&[kind], data()?)?;
            let address = value.address()?;
            value.end()?;
            Some(ElementValue::Address(address))
        }
    }
}

/// A value of exactly N bytes.
fn decode_bytes<const N: usize>(data: Attribute<'_>) -> Option<[u8; N]> {
    decode_value(data.inner())?.try_into().ok()
}

/// An end of a range in an interval set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boundary {
    /// The first address of a range, or the first after it.
    pub address: IpAddr,
    pub is_end: bool,
}

/// Reads an element of an interval set.
pub(super) fn decode_boundary(set: &Set, item: Attributes<'_>) -> Option<Boundary> {
    let mut key = PartReader::new(&set.key, item.find(ELEM_KEY)?)?;
    let flags = item.find(ELEM_FLAGS).and_then(|flags| flags.u32()).unwrap_or(0);
    let address = key.address()?;
    key.end()?;
    Some(Boundary { address, is_end: flags & INTERVAL_END != 0 })
}

/// Reads a key or value part by part.
pub(super) struct PartReader<'a> {
    family: Family,
    rest: &'a [u8],
}

impl<'a> PartReader<'a> {
    /// Reads data with parts of these types.
    pub(super) fn new(types: &[Type], data: Attribute<'a>) -> Option<Self> {
        let family = if types.contains(&Type::V6) { Family::V6 } else { Family::V4 };
        Some(Self { family, rest: decode_value(data.inner())? })
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*part)
    }

    pub(super) fn address(&mut self) -> Option<IpAddr> {
        match self.family {
            Family::V4 => self.bytes::<4>().map(IpAddr::from),
            Family::V6 => self.bytes::<16>().map(IpAddr::from),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.bytes::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    /// A number in host byte order.
    fn number(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_ne_bytes)
    }

    pub(super) fn frontend(&mut self) -> Option<Frontend> {
        Some(Frontend { address: self.address()?, protocol: self.protocol()?, port: self.port()? })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.bytes::<4>()?;
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        protocols.into_iter().find(|protocol| protocol.number() == number)
    }

    fn mac(&mut self) -> Option<MacAddr> {
        let [a, b, c, d, e, f, ..] = self.bytes::<8>()?;
        Some(MacAddr(a, b, c, d, e, f))
    }

    fn link(&mut self) -> Option<LinkName> {
        let name = self.bytes::<16>()?;
        let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
        LinkName::new(name)
    }

    /// An address and a port, and nothing after them.
    pub(super) fn endpoint(mut self) -> Option<SocketAddr> {
        let endpoint = SocketAddr::new(self.address()?, self.port()?);
        self.end()?;
        Some(endpoint)
    }

    /// `None` if something is left.
    fn end(self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }
}
