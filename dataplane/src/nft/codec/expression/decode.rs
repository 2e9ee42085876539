//! Expressions read from what the kernel dumps.

use super::numbers::*;
use super::{Expression, Header, Marked, Meta, Register, Relation, Verdict, decode_value, is_counter};
use crate::netlink::attribute::Attribute;

fn header(number: u32) -> Option<Header> {
    [Header::Link, Header::Network, Header::Transport].into_iter().find(|header| *header as u32 == number)
}

impl Expression {
    /// Reads such an item; `None` if it is anything but what [`Expression::encode`] writes.
    pub fn decode(item: Attribute<'_>) -> Option<Self> {
        let data = item.inner().find(DATA)?.inner();
        let number = |kind: u16| data.find(kind).and_then(|attribute| attribute.u32());
        let register = |kind: u16| data.find(kind).and_then(Register::decode);
        let value = |kind: u16| data.find(kind).and_then(|found| decode_value(found.inner()));
        let is = |kind: u16, expected: u32| (number(kind) == Some(expected)).then_some(());
        let absent_or = |kind: u16, expected: u32| number(kind).is_none_or(|n| n == expected).then_some(());
        let from = |kind: u16, expected: Register| (register(kind) == Some(expected)).then_some(());
        match item.inner().find(NAME)?.text()? {
            "payload" if data.find(PAYLOAD_SREG).is_some() => {
                from(PAYLOAD_SREG, Register::FIRST)?;
                let (offset, length) = (number(PAYLOAD_OFFSET)?, number(PAYLOAD_LEN)?);
                let checksum = [PAYLOAD_CSUM_TYPE, PAYLOAD_CSUM_OFFSET, PAYLOAD_CSUM_FLAGS].map(number);
                let [kind, at, flags] = checksum.map(Option::unwrap_or_default);
                let header = header(number(PAYLOAD_BASE)?)?;
                let found = Written { header, offset, length, checksum: (kind, at, flags) };
                let known = FAMILIES.map(Self::SetDestination).into_iter().zip(FAMILIES.map(destination));
                let ports = WITH_PORTS.map(|protocol| (Self::SetPort { protocol }, port(protocol)));
                let frame = (Self::Write { offset, length }, link(offset, length));
                let alone = (Self::SetPortAlone, port_alone());
                let mut known = known.chain(ports).chain([frame, alone]);
                known.find(|(_, written)| *written == found).map(|(expression, _)| expression)
            }
            "exthdr" => {
                is(EXTHDR_FLAGS, EXTHDR_PRESENT)?;
                absent_or(EXTHDR_OP, EXTHDR_IPV6)?;
                is(EXTHDR_OFFSET, 0)?;
                is(EXTHDR_LEN, 1)?;
                (data.find(EXTHDR_TYPE)?.u8() == Some(FRAGMENT)).then_some(())?;
                Some(Self::IsFragment { into: register(EXTHDR_DREG)? })
            }
            "hash" => {
                absent_or(HASH_TYPE, HASH_JENKINS)?;
                is(HASH_SEED, Self::SEED)?;
                Some(Self::Hash {
                    from: register(HASH_SREG)?,
                    length: number(HASH_LEN)?,
                    modulus: number(HASH_MODULUS)?,
                    offset: number(HASH_OFFSET).unwrap_or(0),
                    into: register(HASH_DREG)?,
                })
            }
            "fwd" => {
                from(FWD_SREG_DEV, Register::FIRST)?;
                Some(Self::Forward)
            }
            "payload" => Some(Self::Payload {
                header: header(number(PAYLOAD_BASE)?)?,
                offset: number(PAYLOAD_OFFSET)?,
                length: number(PAYLOAD_LEN)?,
                into: register(PAYLOAD_DREG)?,
            }),
            "meta" if data.find(META_SREG).is_some() => {
                from(META_SREG, Register::FIRST)?;
                match number(META_KEY)? {
                    META_MARK => Some(Self::SetMark(Marked::Packet)),
                    key => (key == Meta::Priority as u32).then_some(Self::SetPriority),
                }
            }
            "meta" if number(META_KEY) == Some(META_MARK) => {
                from(META_DREG, Register::FIRST)?;
                Some(Self::Mark(Marked::Packet))
            }
            "ct" if data.find(CT_SREG).is_some() => {
                from(CT_SREG, Register::FIRST)?;
                is(CT_KEY, CT_MARK)?;
                Some(Self::SetMark(Marked::Connection))
            }
            "ct" if number(CT_KEY) == Some(CT_MARK) => {
                from(CT_DREG, Register::FIRST)?;
                Some(Self::Mark(Marked::Connection))
            }
            "meta" => {
                let into = register(META_DREG)?;
                let known =
                    [Meta::NetworkProtocol, Meta::Priority, Meta::Interface, Meta::InterfaceName, Meta::InterfaceType]
                        .into_iter();
                match number(META_KEY)? {
                    META_L4PROTO => Some(Self::Protocol { into }),
                    key => known.into_iter().find(|what| *what as u32 == key).map(|what| Self::Meta { what, into }),
                }
            }
            "ct" => {
                let into = register(CT_DREG)?;
                match (number(CT_KEY)?, data.find(CT_DIRECTION).and_then(|direction| direction.u8())) {
                    (CT_WAY, None) => Some(Self::Direction { into }),
                    (CT_STATE, None) => Some(Self::State { into }),
                    (CT_STATUS, None) => Some(Self::Status { into }),
                    (CT_PROTO_DST, Some(CT_ORIGINAL)) => Some(Self::OriginalPort { into }),
                    (CT_PROTO_SRC, Some(CT_REPLY)) => Some(Self::AnsweringPort { into }),
                    (key, Some(CT_ORIGINAL)) => FAMILIES
                        .into_iter()
                        .find(|family| numbers(*family).original_destination == key)
                        .map(|family| Self::OriginalDestination { family, into }),
                    _ => None,
                }
            }
            "fib" => {
                is(FIB_FLAGS, FIB_SADDR)?;
                is(FIB_RESULT, FIB_ADDRTYPE)?;
                Some(Self::SourceType { into: register(FIB_DREG)? })
            }
            "numgen" => {
                is(NUMGEN_TYPE, NUMGEN_RANDOM)?;
                let (modulus, offset) = (number(NUMGEN_MODULUS)?, number(NUMGEN_OFFSET).unwrap_or(0));
                Some(Self::Random { modulus, offset, into: register(NUMGEN_DREG)? })
            }
            "bitwise" => {
                from(BITWISE_SREG, Register::FIRST)?;
                from(BITWISE_DREG, Register::FIRST)?;
                absent_or(BITWISE_OP, 0)?;
                let (mask, xor) = (value(BITWISE_MASK)?, value(BITWISE_XOR)?);
                (number(BITWISE_LEN) == u32::try_from(mask.len()).ok()).then_some(())?;
                if xor.iter().all(|byte| *byte == 0) {
                    return (xor.len() == mask.len()).then(|| Self::Mask(mask.to_vec()));
                }
                let native = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
                Some(Self::Blend { keep: native(mask)?, set: native(xor)? })
            }
            "cmp" => {
                from(CMP_SREG, Register::FIRST)?;
                let relation = [Relation::Equal, Relation::NotEqual, Relation::AtMost, Relation::AtLeast]
                    .into_iter()
                    .find(|relation| number(CMP_OP) == Some(*relation as u32))?;
                Some(Self::Compare { relation, value: value(CMP_DATA)?.to_vec() })
            }
            "lookup" => {
                from(LOOKUP_SREG, Register::FIRST)?;
                let set = data.find(LOOKUP_SET)?.text()?.to_owned();
                match (number(LOOKUP_FLAGS).unwrap_or(0), data.find(LOOKUP_DREG)) {
                    (LOOKUP_INVERTED, None) => Some(Self::Absent { set }),
                    (0, None) => Some(Self::Lookup { set, into: None }),
                    (0, Some(register)) => Some(Self::Lookup { set, into: Some(Register::decode(register)?) }),
                    _ => None,
                }
            }
            "dynset" => {
                absent_or(DYNSET_FLAGS, 0)?;
                from(DYNSET_SREG_KEY, Register::FIRST)?;
                if number(DYNSET_OP)? == DYNSET_DELETE {
                    let map = data.find(DYNSET_SET_NAME)?.text()?.to_owned();
                    return Some(Self::Forget { map, value: register(DYNSET_SREG_DATA)? });
                }
                is(DYNSET_OP, DYNSET_UPDATE)?;
                let timeout = data.find(DYNSET_TIMEOUT)?.u64()?;
                (timeout % MILLISECONDS == 0).then_some(())?;
                let seconds = u32::try_from(timeout / MILLISECONDS).ok()?;
                let set = data.find(DYNSET_SET_NAME)?.text()?.to_owned();
                match (data.find(DYNSET_SREG_DATA), data.find(DYNSET_EXPR)) {
                    (Some(value), None) => Some(Self::Update { map: set, value: Register::decode(value)?, seconds }),
                    (None, Some(counter)) => is_counter(counter.inner()).then_some(Self::Count { set, seconds }),
                    _ => None,
                }
            }
            "byteorder" => {
                is(BYTEORDER_OP, BYTEORDER_HTON)?;
                let unit = number(BYTEORDER_LEN).zip(number(BYTEORDER_SIZE));
                let (from, into) = (register(BYTEORDER_SREG)?, register(BYTEORDER_DREG)?);
                (from == into && unit == Some(BYTEORDER_OF_PROTOCOL)).then_some(Self::ToNetworkOrder { register: into })
            }
            "immediate" if register(IMMEDIATE_DREG) == Some(Register::FIRST) => {
                (value(IMMEDIATE_DATA)? == [0; 4]).then_some(Self::Nothing)
            }
            "immediate" => {
                from(IMMEDIATE_DREG, Register::Verdict)?;
                Verdict::decode(data.find(IMMEDIATE_DATA)?.inner()).map(Self::Verdict)
            }
            "nat" => {
                is(NAT_TYPE, NAT_DNAT)?;
                let protocol = number(NAT_FAMILY)?;
                let family = FAMILIES.into_iter().find(|family| numbers(*family).protocol == protocol)?;
                let port = numbers(family).port;
                from(NAT_REG_ADDR_MIN, Register::FIRST)?;
                from(NAT_REG_PROTO_MIN, port)?;
                absent_or(NAT_REG_ADDR_MAX, Register::FIRST.number())?;
                absent_or(NAT_REG_PROTO_MAX, port.number())?;
                absent_or(NAT_FLAGS, NAT_IMPLIED)?;
                Some(Self::Dnat(family))
            }
            "masq" => {
                is(MASQ_FLAGS, FULLY_RANDOM)?;
                Some(Self::Masquerade)
            }
            "redir" => data
                .find(REDIR_REG_PROTO_MIN)
                .is_none()
                .then_some(())
                .and_then(|()| absent_or(REDIR_FLAGS, 0))
                .map(|()| Self::Redirect),
            "reject" => match (number(REJECT_TYPE)?, data.find(REJECT_CODE).and_then(|code| code.u8())) {
                (REJECT_RESET, None | Some(0)) => Some(Self::Reset),
                (REJECT_ICMP, Some(code)) => {
                    FAMILIES.into_iter().find(|family| numbers(*family).port_unreachable == code).map(Self::Unreachable)
                }
                _ => None,
            },
            _ => None,
        }
    }
}
