//! Notes that the kernel stores for `nft` and does not read: comments, and how the key and the value of a set were
//! declared. Pure.
//!
//! Without the declaration, `nft` prints the key of `endpoints` as a type that it does not accept. With it, the output
//! of `nft list table` can be loaded again. The numbers are those of `nft`. They stay the same in all its versions,
//! since a note in the kernel can outlive the version that wrote it.

use crate::nft::layout::{Data, Set, Type};

/// A comment on a table or chain.
const COMMENT: u8 = 0;
const SET_KEY_BYTEORDER: u8 = 0;
const SET_DATA_BYTEORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_DATA_INTERVAL: u8 = 6;
const SET_COMMENT: u8 = 7;
/// A key of one part is big-endian, except for a link name or a priority. A concatenation has no byte order.
const HOST_ENDIAN: u32 = 1;
const BIG_ENDIAN: u32 = 2;
const NO_ORDER: u32 = 0;

/// Kinds of expressions in `nft`.
const CONCATENATION: u32 = 13;
const PAYLOAD: u32 = 7;
const META: u32 = 9;
const NUMGEN: u32 = 23;
/// The protocol and field of payload expressions: `ip daddr`, `ip6 daddr`, `th dport`, `ether daddr`.
const IP_DADDR: (u32, u32) = (12, 12);
const IP6_DADDR: (u32, u32) = (13, 9);
const TH_DPORT: (u32, u32) = (11, 2);
const ETHER_DADDR: (u32, u32) = (17, 1);
const META_L4PROTO: u32 = 16;
const META_PRIORITY: u32 = 2;
const META_IIFNAME: u32 = 6;
const META_IIFTYPE: u32 = 8;
const NUMGEN_RANDOM: u32 = 1;

/// A comment on a table or chain.
pub(super) fn encode_comment(text: &str) -> Vec<u8> {
    item(COMMENT, &zero_terminated(text))
}

/// The comment in such notes.
pub(super) fn decode_comment(notes: &[u8]) -> Option<&str> {
    let (&[kind, length], rest) = notes.split_first_chunk::<2>()?;
    let text = rest.get(..usize::from(length))?.strip_suffix(&[0])?;
    if kind == COMMENT { std::str::from_utf8(text).ok() } else { None }
}

/// The notes on a set.
pub(super) fn encode_set(set: &Set) -> Vec<u8> {
    let mut notes = number(SET_KEY_BYTEORDER, byte_order(set.key()));
    if set.data != Data::None {
        notes.extend(number(SET_DATA_BYTEORDER, byte_order(set.values())));
    }
    if set.is_typed_by_example() {
        notes.extend(item(SET_KEY_TYPEOF, &examples(set.key())));
        notes.extend(item(SET_DATA_TYPEOF, &examples(set.values())));
    }
    if set.data != Data::None {
        notes.extend(number(SET_DATA_INTERVAL, 0));
    }
    notes.extend(item(SET_COMMENT, &zero_terminated(set.comment)));
    notes
}

fn byte_order(mut parts: impl ExactSizeIterator<Item = Type>) -> u32 {
    match (parts.len(), parts.next()) {
        (1, Some(Type::LinkName | Type::LinkType | Type::Priority)) => HOST_ENDIAN,
        (1, _) => BIG_ENDIAN,
        _ => NO_ORDER,
    }
}

/// An expression of these types, for `typeof`.
fn examples(parts: impl ExactSizeIterator<Item = Type>) -> Vec<u8> {
    let is_alone = parts.len() == 1;
    let parts: Vec<Vec<u8>> = parts.map(example).collect();
    if is_alone {
        return parts.concat();
    }
    let items: Vec<u8> = (0..).zip(parts).flat_map(|(index, part)| item(index, &part)).collect();
    expression(CONCATENATION, &items)
}

/// An expression of this type.
fn example(kind: Type) -> Vec<u8> {
    match kind {
        Type::V4 => payload(IP_DADDR),
        Type::V6 => payload(IP6_DADDR),
        Type::Port => payload(TH_DPORT),
        Type::Mac => payload(ETHER_DADDR),
        Type::LinkName => expression(META, &number(0, META_IIFNAME)),
        Type::Priority => expression(META, &number(0, META_PRIORITY)),
        Type::Protocol => expression(META, &number(0, META_L4PROTO)),
        // A modulus is required, but its value has no effect.
        Type::Integer => expression(NUMGEN, &[number(0, NUMGEN_RANDOM), number(1, 2), number(2, 0)].concat()),
        Type::LinkType => expression(META, &number(0, META_IIFTYPE)),
        Type::Address => unreachable!("invariant: types are resolved before use"),
    }
}

fn payload((protocol, field): (u32, u32)) -> Vec<u8> {
    expression(PAYLOAD, &[number(0, protocol), number(1, field)].concat())
}

fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
    [number(0, kind), item(1, data)].concat()
}

/// In host byte order, unlike numbers in the attributes of netfilter.
fn number(kind: u8, value: u32) -> Vec<u8> {
    item(kind, &value.to_ne_bytes())
}

fn item(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("invariant: notes are shorter than 256 bytes");
    [&[kind, length], value].concat()
}

fn zero_terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_decoded_as_it_was_encoded() {
        assert_eq!(decode_comment(&encode_comment("made by this program")), Some("made by this program"));
        assert_eq!(decode_comment(&[]), None);
        assert_eq!(decode_comment(&[0, 200, 1]), None);
    }
}
