//! Writes expressions into messages.

use crds::service::Family;

use super::numbers::*;
use super::{Ct, Expression, Header, Register, encode_counter, encode_value};
use netlink::attribute::Writer;

impl Expression {
    /// Writes it as one item of a rule.
    pub fn encode(&self, into: &mut Writer) {
        let mut data = Writer::default();
        let name = self.encode_load(&mut data).unwrap_or_else(|| self.encode_action(&mut data));
        into.nest(ITEM, |expression| {
            expression.text(NAME, name).nest(DATA, |inner| inner.append(&data));
        });
    }

    /// Writes the attributes of an expression that only loads a register, and returns its name; `None` for any other.
    fn encode_load(&self, data: &mut Writer) -> Option<&'static str> {
        let name = match self {
            Self::Payload { header, offset, length, into } => {
                data.u32(PAYLOAD_DREG, into.number()).u32(PAYLOAD_BASE, *header as u32);
                data.u32(PAYLOAD_OFFSET, *offset).u32(PAYLOAD_LEN, *length);
                "payload"
            }
            Self::Meta { key, into } => {
                data.u32(META_KEY, *key as u32).u32(META_DREG, into.number());
                "meta"
            }
            Self::Ct { key, into } => {
                let (key, direction) = ct_numbers(*key);
                data.u32(CT_KEY, key).u32(CT_DREG, into.number());
                if let Some(direction) = direction {
                    data.u8(CT_DIRECTION, direction);
                }
                "ct"
            }
            Self::ExthdrFragment { into } => {
                data.u32(EXTHDR_DREG, into.number()).u8(EXTHDR_TYPE, FRAGMENT);
                data.u32(EXTHDR_OFFSET, 0).u32(EXTHDR_LEN, 1);
                data.u32(EXTHDR_OP, EXTHDR_IPV6).u32(EXTHDR_FLAGS, EXTHDR_PRESENT);
                "exthdr"
            }
            Self::Jhash { from, length, modulus, offset, into } => {
                data.u32(HASH_SREG, from.number()).u32(HASH_DREG, into.number()).u32(HASH_LEN, *length);
                data.u32(HASH_MODULUS, *modulus).u32(HASH_SEED, Self::SEED).u32(HASH_OFFSET, *offset);
                data.u32(HASH_TYPE, HASH_JENKINS);
                "hash"
            }
            Self::LoadZero => {
                data.u32(IMMEDIATE_DREG, Register::FIRST.number());
                data.nest(IMMEDIATE_DATA, |data| encode_value(&[0; 4], data));
                "immediate"
            }
            Self::LoadByte(byte) => {
                data.u32(IMMEDIATE_DREG, Register::FIRST.number());
                data.nest(IMMEDIATE_DATA, |data| encode_value(&[*byte], data));
                "immediate"
            }
            Self::FibSourceType { into } => {
                data.u32(FIB_FLAGS, FIB_SADDR).u32(FIB_RESULT, FIB_ADDRTYPE).u32(FIB_DREG, into.number());
                "fib"
            }
            Self::Numgen { modulus, offset, into } => {
                data.u32(NUMGEN_DREG, into.number()).u32(NUMGEN_MODULUS, *modulus);
                data.u32(NUMGEN_TYPE, NUMGEN_RANDOM).u32(NUMGEN_OFFSET, *offset);
                "numgen"
            }
            Self::Lookup { set, into: Some(into) } => {
                data.u32(LOOKUP_SREG, Register::FIRST.number()).u32(LOOKUP_DREG, into.number());
                data.text(LOOKUP_SET, set);
                "lookup"
            }
            _ => return None,
        };
        Some(name)
    }

    /// Writes the attributes of an expression that changes the packet, compares or decides, and returns its name.
    fn encode_action(&self, data: &mut Writer) -> &'static str {
        match self {
            Self::SetLinkHeader { offset, length } => {
                payload_write(data, Header::Link, (*offset, *length), NO_CHECKSUM)
            }
            Self::SetDestination(family) => {
                let (bytes, checksum) = destination(*family);
                payload_write(data, Header::Network, bytes, checksum)
            }
            Self::SetPort { protocol } => {
                payload_write(data, Header::Transport, DESTINATION_PORT, port_checksum(*protocol))
            }
            Self::SetPortUnchecked => payload_write(data, Header::Transport, DESTINATION_PORT, NO_CHECKSUM),
            Self::SetHopLimit(family) => write_hop_limit(data, *family),
            Self::Dup => {
                data.u32(DUP_SREG_ADDR, Register::FIRST.number());
                "dup"
            }
            Self::SetMeta(key) => {
                data.u32(META_KEY, *key as u32).u32(META_SREG, Register::FIRST.number());
                "meta"
            }
            Self::SetCtMark => {
                data.u32(CT_KEY, ct_numbers(Ct::Mark).0).u32(CT_SREG, Register::FIRST.number());
                "ct"
            }
            Self::Fwd => {
                data.u32(FWD_SREG_DEV, Register::FIRST.number());
                "fwd"
            }
            Self::Mask(mask) => bitwise(data, mask, &vec![0; mask.len()]),
            // A mark is in host byte order.
            Self::MaskOr { mask, or } => bitwise(data, &mask.to_ne_bytes(), &or.to_ne_bytes()),
            Self::MaskXor { mask, xor } => bitwise(data, mask, xor),
            Self::Compare { relation, value } => {
                data.u32(CMP_SREG, Register::FIRST.number()).u32(CMP_OP, *relation as u32);
                data.nest(CMP_DATA, |data| encode_value(value, data));
                "cmp"
            }
            Self::LookupInverted { set } => {
                data.u32(LOOKUP_SREG, Register::FIRST.number()).text(LOOKUP_SET, set);
                data.u32(LOOKUP_FLAGS, LOOKUP_INVERTED);
                "lookup"
            }
            Self::DynsetUpdate { map, value, seconds } => {
                data.u32(DYNSET_OP, DYNSET_UPDATE).u64(DYNSET_TIMEOUT, u64::from(*seconds) * MILLISECONDS);
                dynset_value(data, map, *value)
            }
            Self::DynsetDelete { map, value } => {
                data.u32(DYNSET_OP, DYNSET_DELETE);
                dynset_value(data, map, *value)
            }
            Self::DynsetCount { set, seconds } => {
                data.u32(DYNSET_OP, DYNSET_UPDATE).u64(DYNSET_TIMEOUT, u64::from(*seconds) * MILLISECONDS);
                data.u32(DYNSET_SREG_KEY, Register::FIRST.number()).text(DYNSET_SET_NAME, set);
                data.nest(DYNSET_EXPR, encode_counter);
                "dynset"
            }
            Self::Verdict(verdict) => {
                data.u32(IMMEDIATE_DREG, Register::Verdict.number());
                data.nest(IMMEDIATE_DATA, |data| verdict.encode(data));
                "immediate"
            }
            Self::Dnat(family) => dnat(data, *family),
            Self::Masquerade => {
                data.u32(MASQ_FLAGS, FULLY_RANDOM);
                "masq"
            }
            Self::Redirect => "redir",
            Self::RejectReset => reject(data, REJECT_RESET, 0),
            Self::RejectUnreachable(family) => reject(data, REJECT_ICMP, family_numbers(*family).port_unreachable),
            // This is a lookup in a set: `encode_load` writes a lookup in a map, and every other load.
            Self::Lookup { set, .. } => {
                data.u32(LOOKUP_SREG, Register::FIRST.number()).text(LOOKUP_SET, set);
                "lookup"
            }
            load => unreachable!("invariant: encode_load writes {load:?}"),
        }
    }
}

/// Overwrites bytes of a header, by their offset and length.
fn payload_write(data: &mut Writer, header: Header, bytes: (u32, u32), checksum: Checksum) -> &'static str {
    let Checksum { kind, offset, flags } = checksum;
    data.u32(PAYLOAD_SREG, Register::FIRST.number()).u32(PAYLOAD_BASE, header as u32);
    data.u32(PAYLOAD_OFFSET, bytes.0).u32(PAYLOAD_LEN, bytes.1);
    data.u32(PAYLOAD_CSUM_TYPE, kind).u32(PAYLOAD_CSUM_OFFSET, offset).u32(PAYLOAD_CSUM_FLAGS, flags);
    "payload"
}

fn write_hop_limit(data: &mut Writer, family: Family) -> &'static str {
    let (bytes, checksum) = hop_limit(family);
    payload_write(data, Header::Network, bytes, checksum)
}

fn dynset_value(data: &mut Writer, map: &str, value: Register) -> &'static str {
    data.u32(DYNSET_SREG_KEY, Register::FIRST.number()).u32(DYNSET_SREG_DATA, value.number());
    data.text(DYNSET_SET_NAME, map);
    "dynset"
}

fn dnat(data: &mut Writer, family: Family) -> &'static str {
    let FamilyNumbers { protocol, port, .. } = family_numbers(family);
    data.u32(NAT_TYPE, NAT_DNAT).u32(NAT_FAMILY, protocol);
    data.u32(NAT_REG_ADDR_MIN, Register::FIRST.number()).u32(NAT_REG_PROTO_MIN, port.number());
    "nat"
}

fn reject(data: &mut Writer, kind: u32, code: u8) -> &'static str {
    data.u32(REJECT_TYPE, kind).u8(REJECT_CODE, code);
    "reject"
}

/// Keeps the bits of `mask` in the first register, and inverts those of `xor`.
fn bitwise(data: &mut Writer, mask: &[u8], xor: &[u8]) -> &'static str {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    data.u32(BITWISE_SREG, Register::FIRST.number()).u32(BITWISE_DREG, Register::FIRST.number());
    data.u32(BITWISE_LEN, length);
    data.nest(BITWISE_MASK, |value| encode_value(mask, value));
    data.nest(BITWISE_XOR, |value| encode_value(xor, value));
    "bitwise"
}
