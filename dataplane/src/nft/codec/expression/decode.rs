//! Reads expressions from the kernel's dump.

use super::numbers::*;
use super::{Expression, Header, MarkOf, Meta, Register, Relation, Verdict, decode_value, is_counter};
use crate::netlink::attribute::{Attribute, Attributes};

impl Expression {
    /// Reads one item of a rule; `None` if [`Expression::encode`] would not write it.
    pub fn decode(item: Attribute<'_>) -> Option<Self> {
        let fields = Fields(item.inner().find(DATA)?.inner());
        match item.inner().find(NAME)?.text()? {
            "payload" => fields.payload(),
            "exthdr" => fields.exthdr(),
            "hash" => fields.hash(),
            "fwd" => fields.has_register(FWD_SREG_DEV, Register::FIRST).map(|()| Self::Fwd),
            "meta" => fields.meta(),
            "ct" => fields.ct(),
            "fib" => fields.fib(),
            "numgen" => fields.numgen(),
            "bitwise" => fields.bitwise(),
            "cmp" => fields.cmp(),
            "lookup" => fields.lookup(),
            "dynset" => fields.dynset(),
            "byteorder" => fields.byteorder(),
            "immediate" => fields.immediate(),
            "nat" => fields.nat(),
            "masq" => fields.has(MASQ_FLAGS, FULLY_RANDOM).map(|()| Self::Masquerade),
            "redir" if fields.0.find(REDIR_REG_PROTO_MIN).is_some() => None,
            "redir" => fields.has_or_lacks(REDIR_FLAGS, 0).map(|()| Self::Redirect),
            "reject" => fields.reject(),
            _ => None,
        }
    }
}

/// The attributes of one expression. `None` everywhere: not what [`Expression::encode`] writes.
#[derive(Clone, Copy)]
struct Fields<'a>(Attributes<'a>);

impl<'a> Fields<'a> {
    fn number(self, kind: u16) -> Option<u32> {
        self.0.find(kind)?.u32()
    }

    fn register(self, kind: u16) -> Option<Register> {
        self.0.find(kind).and_then(Register::decode)
    }

    fn value(self, kind: u16) -> Option<&'a [u8]> {
        decode_value(self.0.find(kind)?.inner())
    }

    fn text(self, kind: u16) -> Option<String> {
        self.0.find(kind)?.text().map(str::to_owned)
    }

    fn has(self, kind: u16, expected: u32) -> Option<()> {
        (self.number(kind) == Some(expected)).then_some(())
    }

    fn has_or_lacks(self, kind: u16, expected: u32) -> Option<()> {
        self.number(kind).is_none_or(|number| number == expected).then_some(())
    }

    fn has_register(self, kind: u16, expected: Register) -> Option<()> {
        (self.register(kind) == Some(expected)).then_some(())
    }

    fn header(self) -> Option<Header> {
        let number = self.number(PAYLOAD_BASE)?;
        [Header::Link, Header::Network, Header::Transport].into_iter().find(|header| *header as u32 == number)
    }

    fn payload(self) -> Option<Expression> {
        let (header, offset, length) = (self.header()?, self.number(PAYLOAD_OFFSET)?, self.number(PAYLOAD_LEN)?);
        if self.0.find(PAYLOAD_SREG).is_none() {
            return Some(Expression::Payload { header, offset, length, into: self.register(PAYLOAD_DREG)? });
        }
        self.has_register(PAYLOAD_SREG, Register::FIRST)?;
        let checksum = [PAYLOAD_CSUM_TYPE, PAYLOAD_CSUM_OFFSET, PAYLOAD_CSUM_FLAGS].map(|kind| self.number(kind));
        let [kind, at, flags] = checksum.map(Option::unwrap_or_default);
        let found = PayloadWrite { header, offset, length, checksum: Checksum { kind, offset: at, flags } };
        let destinations = FAMILIES.map(|family| (Expression::SetDestination(family), destination(family)));
        let ports = WITH_PORTS.map(|protocol| (Expression::SetPort { protocol }, port(protocol)));
        let frame = (Expression::SetLinkHeader { offset, length }, link_header(offset, length));
        let unchecked = (Expression::SetPortUnchecked, port_unchecked());
        let mut known = destinations.into_iter().chain(ports).chain([frame, unchecked]);
        known.find(|(_, write)| *write == found).map(|(expression, _)| expression)
    }

    fn exthdr(self) -> Option<Expression> {
        self.has(EXTHDR_FLAGS, EXTHDR_PRESENT)?;
        self.has_or_lacks(EXTHDR_OP, EXTHDR_IPV6)?;
        self.has(EXTHDR_OFFSET, 0)?;
        self.has(EXTHDR_LEN, 1)?;
        (self.0.find(EXTHDR_TYPE)?.u8() == Some(FRAGMENT)).then_some(())?;
        Some(Expression::ExthdrFragment { into: self.register(EXTHDR_DREG)? })
    }

    fn hash(self) -> Option<Expression> {
        self.has_or_lacks(HASH_TYPE, HASH_JENKINS)?;
        self.has(HASH_SEED, Expression::SEED)?;
        Some(Expression::Jhash {
            from: self.register(HASH_SREG)?,
            length: self.number(HASH_LEN)?,
            modulus: self.number(HASH_MODULUS)?,
            offset: self.number(HASH_OFFSET).unwrap_or(0),
            into: self.register(HASH_DREG)?,
        })
    }

    fn meta(self) -> Option<Expression> {
        let key = self.number(META_KEY)?;
        if self.0.find(META_SREG).is_some() {
            self.has_register(META_SREG, Register::FIRST)?;
            let priority = (key == Meta::Priority as u32).then_some(Expression::SetPriority);
            return if key == META_MARK { Some(Expression::SetMark(MarkOf::Packet)) } else { priority };
        }
        if key == META_MARK {
            self.has_register(META_DREG, Register::FIRST)?;
            return Some(Expression::LoadMark(MarkOf::Packet));
        }
        let into = self.register(META_DREG)?;
        if key == META_L4PROTO {
            return Some(Expression::MetaL4Proto { into });
        }
        let known = [Meta::Protocol, Meta::Priority, Meta::Iif, Meta::IifName, Meta::IifType];
        known.into_iter().find(|known| *known as u32 == key).map(|key| Expression::Meta { key, into })
    }

    fn ct(self) -> Option<Expression> {
        let key = self.number(CT_KEY)?;
        if self.0.find(CT_SREG).is_some() {
            self.has_register(CT_SREG, Register::FIRST)?;
            self.has(CT_KEY, CT_MARK)?;
            return Some(Expression::SetMark(MarkOf::Connection));
        }
        if key == CT_MARK {
            self.has_register(CT_DREG, Register::FIRST)?;
            return Some(Expression::LoadMark(MarkOf::Connection));
        }
        let into = self.register(CT_DREG)?;
        match (key, self.0.find(CT_DIRECTION).and_then(|direction| direction.u8())) {
            (CT_DIRECTION_KEY, None) => Some(Expression::CtDirection { into }),
            (CT_STATE, None) => Some(Expression::CtState { into }),
            (CT_STATUS, None) => Some(Expression::CtStatus { into }),
            (CT_PROTO_DST, Some(CT_ORIGINAL)) => Some(Expression::CtOriginalPort { into }),
            (CT_PROTO_SRC, Some(CT_REPLY)) => Some(Expression::CtReplySourcePort { into }),
            (key, Some(CT_ORIGINAL)) => FAMILIES
                .into_iter()
                .find(|family| family_numbers(*family).original_destination == key)
                .map(|family| Expression::CtOriginalDestination { family, into }),
            _ => None,
        }
    }

    fn fib(self) -> Option<Expression> {
        self.has(FIB_FLAGS, FIB_SADDR)?;
        self.has(FIB_RESULT, FIB_ADDRTYPE)?;
        Some(Expression::FibSourceType { into: self.register(FIB_DREG)? })
    }

    fn numgen(self) -> Option<Expression> {
        self.has(NUMGEN_TYPE, NUMGEN_RANDOM)?;
        let (modulus, offset) = (self.number(NUMGEN_MODULUS)?, self.number(NUMGEN_OFFSET).unwrap_or(0));
        Some(Expression::Numgen { modulus, offset, into: self.register(NUMGEN_DREG)? })
    }

    fn bitwise(self) -> Option<Expression> {
        self.has_register(BITWISE_SREG, Register::FIRST)?;
        self.has_register(BITWISE_DREG, Register::FIRST)?;
        self.has_or_lacks(BITWISE_OP, 0)?;
        let (mask, xor) = (self.value(BITWISE_MASK)?, self.value(BITWISE_XOR)?);
        (self.number(BITWISE_LEN) == u32::try_from(mask.len()).ok()).then_some(())?;
        if xor.iter().all(|byte| *byte == 0) {
            return (xor.len() == mask.len()).then(|| Expression::Mask(mask.to_vec()));
        }
        let native = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
        Some(Expression::MaskOr { mask: native(mask)?, or: native(xor)? })
    }

    fn cmp(self) -> Option<Expression> {
        self.has_register(CMP_SREG, Register::FIRST)?;
        let relation = [Relation::Equal, Relation::NotEqual, Relation::AtMost, Relation::AtLeast]
            .into_iter()
            .find(|relation| self.number(CMP_OP) == Some(*relation as u32))?;
        Some(Expression::Compare { relation, value: self.value(CMP_DATA)?.to_vec() })
    }

    fn lookup(self) -> Option<Expression> {
        self.has_register(LOOKUP_SREG, Register::FIRST)?;
        let set = self.text(LOOKUP_SET)?;
        match (self.number(LOOKUP_FLAGS).unwrap_or(0), self.0.find(LOOKUP_DREG)) {
            (LOOKUP_INVERTED, None) => Some(Expression::LookupInverted { set }),
            (0, None) => Some(Expression::Lookup { set, into: None }),
            (0, Some(register)) => Some(Expression::Lookup { set, into: Some(Register::decode(register)?) }),
            _ => None,
        }
    }

    fn dynset(self) -> Option<Expression> {
        self.has_or_lacks(DYNSET_FLAGS, 0)?;
        self.has_register(DYNSET_SREG_KEY, Register::FIRST)?;
        if self.number(DYNSET_OP)? == DYNSET_DELETE {
            let map = self.text(DYNSET_SET_NAME)?;
            return Some(Expression::DynsetDelete { map, value: self.register(DYNSET_SREG_DATA)? });
        }
        self.has(DYNSET_OP, DYNSET_UPDATE)?;
        let timeout = self.0.find(DYNSET_TIMEOUT)?.u64()?;
        (timeout % MILLISECONDS == 0).then_some(())?;
        let seconds = u32::try_from(timeout / MILLISECONDS).ok()?;
        let set = self.text(DYNSET_SET_NAME)?;
        match (self.0.find(DYNSET_SREG_DATA), self.0.find(DYNSET_EXPR)) {
            (Some(value), None) => {
                Some(Expression::DynsetUpdate { map: set, value: Register::decode(value)?, seconds })
            }
            (None, Some(counter)) => is_counter(counter.inner()).then_some(Expression::DynsetCount { set, seconds }),
            _ => None,
        }
    }

    fn byteorder(self) -> Option<Expression> {
        self.has(BYTEORDER_OP, BYTEORDER_HTON)?;
        let unit = self.number(BYTEORDER_LEN).zip(self.number(BYTEORDER_SIZE));
        let (from, register) = (self.register(BYTEORDER_SREG)?, self.register(BYTEORDER_DREG)?);
        (from == register && unit == Some(BYTEORDER_UNIT)).then_some(Expression::Byteorder { register })
    }

    fn immediate(self) -> Option<Expression> {
        if self.register(IMMEDIATE_DREG) == Some(Register::FIRST) {
            return (self.value(IMMEDIATE_DATA)? == [0; 4]).then_some(Expression::LoadZero);
        }
        self.has_register(IMMEDIATE_DREG, Register::Verdict)?;
        Verdict::decode(self.0.find(IMMEDIATE_DATA)?.inner()).map(Expression::Verdict)
    }

    fn nat(self) -> Option<Expression> {
        self.has(NAT_TYPE, NAT_DNAT)?;
        let protocol = self.number(NAT_FAMILY)?;
        let family = FAMILIES.into_iter().find(|family| family_numbers(*family).protocol == protocol)?;
        let port = family_numbers(family).port;
        self.has_register(NAT_REG_ADDR_MIN, Register::FIRST)?;
        self.has_register(NAT_REG_PROTO_MIN, port)?;
        self.has_or_lacks(NAT_REG_ADDR_MAX, Register::FIRST.number())?;
        self.has_or_lacks(NAT_REG_PROTO_MAX, port.number())?;
        self.has_or_lacks(NAT_FLAGS, NAT_IMPLIED)?;
        Some(Expression::Dnat(family))
    }

    fn reject(self) -> Option<Expression> {
        match (self.number(REJECT_TYPE)?, self.0.find(REJECT_CODE).and_then(|code| code.u8())) {
            (REJECT_RESET, None | Some(0)) => Some(Expression::RejectReset),
            (REJECT_ICMP, Some(code)) => FAMILIES
                .into_iter()
                .find(|family| family_numbers(*family).port_unreachable == code)
                .map(Expression::RejectUnreachable),
            _ => None,
        }
    }
}
