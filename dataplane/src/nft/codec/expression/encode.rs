//! Expressions written into messages.

use super::numbers::*;
use super::{Expression, Marked, Meta, Register, encode_counter, encode_value};
use crate::netlink::attribute::Writer;

impl Written {
    fn encode(&self, data: &mut Writer) {
        let (kind, at, flags) = self.checksum;
        data.u32(PAYLOAD_SREG, Register::FIRST.number()).u32(PAYLOAD_BASE, self.header as u32);
        data.u32(PAYLOAD_OFFSET, self.offset).u32(PAYLOAD_LEN, self.length);
        data.u32(PAYLOAD_CSUM_TYPE, kind).u32(PAYLOAD_CSUM_OFFSET, at).u32(PAYLOAD_CSUM_FLAGS, flags);
    }
}

impl Expression {
    /// Writes it as one item of a rule's list.
    pub fn encode(&self, into: &mut Writer) {
        let mut data = Writer::default();
        let name = match self {
            Self::Payload { header, offset, length, into } => {
                data.u32(PAYLOAD_DREG, into.number()).u32(PAYLOAD_BASE, *header as u32);
                data.u32(PAYLOAD_OFFSET, *offset).u32(PAYLOAD_LEN, *length);
                "payload"
            }
            Self::Protocol { into } => {
                data.u32(META_KEY, META_L4PROTO).u32(META_DREG, into.number());
                "meta"
            }
            Self::Meta { what, into } => {
                data.u32(META_KEY, *what as u32).u32(META_DREG, into.number());
                "meta"
            }
            Self::IsFragment { into } => {
                data.u32(EXTHDR_DREG, into.number()).u8(EXTHDR_TYPE, FRAGMENT);
                data.u32(EXTHDR_OFFSET, 0).u32(EXTHDR_LEN, 1);
                data.u32(EXTHDR_OP, EXTHDR_IPV6).u32(EXTHDR_FLAGS, EXTHDR_PRESENT);
                "exthdr"
            }
            Self::Hash { from, length, modulus, offset, into } => {
                data.u32(HASH_SREG, from.number()).u32(HASH_DREG, into.number()).u32(HASH_LEN, *length);
                data.u32(HASH_MODULUS, *modulus).u32(HASH_SEED, Self::SEED).u32(HASH_OFFSET, *offset);
                data.u32(HASH_TYPE, HASH_JENKINS);
                "hash"
            }
            Self::Write { offset, length } => {
                link(*offset, *length).encode(&mut data);
                "payload"
            }
            Self::SetDestination(family) => {
                destination(*family).encode(&mut data);
                "payload"
            }
            Self::SetPort { protocol } => {
                port(*protocol).encode(&mut data);
                "payload"
            }
            Self::SetPortAlone => {
                port_alone().encode(&mut data);
                "payload"
            }
            Self::Forward => {
                data.u32(FWD_SREG_DEV, Register::FIRST.number());
                "fwd"
            }
            Self::Direction { into } => {
                data.u32(CT_KEY, CT_WAY).u32(CT_DREG, into.number());
                "ct"
            }
            Self::Mark(Marked::Packet) => {
                data.u32(META_KEY, META_MARK).u32(META_DREG, Register::FIRST.number());
                "meta"
            }
            Self::SetMark(Marked::Packet) => {
                data.u32(META_KEY, META_MARK).u32(META_SREG, Register::FIRST.number());
                "meta"
            }
            Self::SetPriority => {
                data.u32(META_KEY, Meta::Priority as u32).u32(META_SREG, Register::FIRST.number());
                "meta"
            }
            Self::Nothing => {
                data.u32(IMMEDIATE_DREG, Register::FIRST.number());
                data.nested(IMMEDIATE_DATA, |data| encode_value(&[0; 4], data));
                "immediate"
            }
            Self::Mark(Marked::Connection) => {
                data.u32(CT_KEY, CT_MARK).u32(CT_DREG, Register::FIRST.number());
                "ct"
            }
            Self::SetMark(Marked::Connection) => {
                data.u32(CT_KEY, CT_MARK).u32(CT_SREG, Register::FIRST.number());
                "ct"
            }
            Self::State { into } => {
                data.u32(CT_KEY, CT_STATE).u32(CT_DREG, into.number());
                "ct"
            }
            Self::Status { into } => {
                data.u32(CT_KEY, CT_STATUS).u32(CT_DREG, into.number());
                "ct"
            }
            Self::OriginalDestination { family, into } => {
                data.u32(CT_KEY, numbers(*family).original_destination)
                    .u32(CT_DREG, into.number())
                    .u8(CT_DIRECTION, CT_ORIGINAL);
                "ct"
            }
            Self::OriginalPort { into } => {
                data.u32(CT_KEY, CT_PROTO_DST).u32(CT_DREG, into.number()).u8(CT_DIRECTION, CT_ORIGINAL);
                "ct"
            }
            Self::AnsweringPort { into } => {
                data.u32(CT_KEY, CT_PROTO_SRC).u32(CT_DREG, into.number()).u8(CT_DIRECTION, CT_REPLY);
                "ct"
            }
            Self::SourceType { into } => {
                data.u32(FIB_FLAGS, FIB_SADDR).u32(FIB_RESULT, FIB_ADDRTYPE).u32(FIB_DREG, into.number());
                "fib"
            }
            Self::Random { modulus, offset, into } => {
                data.u32(NUMGEN_DREG, into.number()).u32(NUMGEN_MODULUS, *modulus);
                data.u32(NUMGEN_TYPE, NUMGEN_RANDOM).u32(NUMGEN_OFFSET, *offset);
                "numgen"
            }
            Self::Mask(mask) => bitwise(&mut data, mask, &vec![0; mask.len()]),
            // A mark is a number of the machine's own order.
            Self::Blend { keep, set } => bitwise(&mut data, &keep.to_ne_bytes(), &set.to_ne_bytes()),
            Self::Compare { relation, value } => {
                data.u32(CMP_SREG, Register::FIRST.number()).u32(CMP_OP, *relation as u32);
                data.nested(CMP_DATA, |data| encode_value(value, data));
                "cmp"
            }
            Self::Lookup { set, into } => {
                data.u32(LOOKUP_SREG, Register::FIRST.number());
                if let Some(into) = into {
                    data.u32(LOOKUP_DREG, into.number());
                }
                data.text(LOOKUP_SET, set);
                "lookup"
            }
            Self::Absent { set } => {
                data.u32(LOOKUP_SREG, Register::FIRST.number()).text(LOOKUP_SET, set);
                data.u32(LOOKUP_FLAGS, LOOKUP_INVERTED);
                "lookup"
            }
            Self::Update { map, value, seconds } => {
                data.u32(DYNSET_OP, DYNSET_UPDATE).u64(DYNSET_TIMEOUT, u64::from(*seconds) * MILLISECONDS);
                data.u32(DYNSET_SREG_KEY, Register::FIRST.number()).u32(DYNSET_SREG_DATA, value.number());
                data.text(DYNSET_SET_NAME, map);
                "dynset"
            }
            Self::Forget { map, value } => {
                data.u32(DYNSET_OP, DYNSET_DELETE);
                data.u32(DYNSET_SREG_KEY, Register::FIRST.number()).u32(DYNSET_SREG_DATA, value.number());
                data.text(DYNSET_SET_NAME, map);
                "dynset"
            }
            Self::Count { set, seconds } => {
                data.u32(DYNSET_OP, DYNSET_UPDATE).u64(DYNSET_TIMEOUT, u64::from(*seconds) * MILLISECONDS);
                data.u32(DYNSET_SREG_KEY, Register::FIRST.number()).text(DYNSET_SET_NAME, set);
                data.nested(DYNSET_EXPR, encode_counter);
                "dynset"
            }
            Self::ToNetworkOrder { register } => {
                let (length, size) = BYTEORDER_OF_PROTOCOL;
                data.u32(BYTEORDER_SREG, register.number()).u32(BYTEORDER_DREG, register.number());
                data.u32(BYTEORDER_OP, BYTEORDER_HTON).u32(BYTEORDER_LEN, length).u32(BYTEORDER_SIZE, size);
                "byteorder"
            }
            Self::Verdict(verdict) => {
                data.u32(IMMEDIATE_DREG, Register::Verdict.number());
                data.nested(IMMEDIATE_DATA, |data| verdict.encode(data));
                "immediate"
            }
            Self::Dnat(family) => {
                let Numbers { protocol, port, .. } = numbers(*family);
                data.u32(NAT_TYPE, NAT_DNAT).u32(NAT_FAMILY, protocol);
                data.u32(NAT_REG_ADDR_MIN, Register::FIRST.number()).u32(NAT_REG_PROTO_MIN, port.number());
                "nat"
            }
            Self::Masquerade => {
                data.u32(MASQ_FLAGS, FULLY_RANDOM);
                "masq"
            }
            Self::Redirect => "redir",
            Self::Reset => {
                data.u32(REJECT_TYPE, REJECT_RESET).u8(REJECT_CODE, 0);
                "reject"
            }
            Self::Unreachable(family) => {
                data.u32(REJECT_TYPE, REJECT_ICMP).u8(REJECT_CODE, numbers(*family).port_unreachable);
                "reject"
            }
        };
        into.nested(ITEM, |expression| {
            expression.text(NAME, name).nested(DATA, |inner| inner.append(&data));
        });
    }
}

/// Keeps these bits of the first register, and turns those over.
fn bitwise(data: &mut Writer, keep: &[u8], turn: &[u8]) -> &'static str {
    let length = u32::try_from(keep.len()).unwrap_or(u32::MAX);
    data.u32(BITWISE_SREG, Register::FIRST.number()).u32(BITWISE_DREG, Register::FIRST.number());
    data.u32(BITWISE_LEN, length);
    data.nested(BITWISE_MASK, |value| encode_value(keep, value));
    data.nested(BITWISE_XOR, |value| encode_value(turn, value));
    "bitwise"
}
