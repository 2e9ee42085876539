//! Rules in the kernel's bytecode: a row of expressions that load registers, compare them and decide.
//!
//! Only what the rules of this table need, and every expression as `nft --debug=netlink` shows it, so that
//! `nft list table` can print the rules back. Written by [`Expression::encode`]; [`Expression::decode`] reads what the
//! kernel dumps, which is the same but for attributes with default values.

use std::fmt;

use crds::service::Family;

use crate::netlink::attribute::{Attribute, Attributes, Writer};

/// A register.
///
/// There are four of 16 bytes, and each is also four quarters of 4 bytes. A concatenation fills quarters one after the
/// other; what is longer than a quarter takes several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Where the verdict goes.
    Verdict,
    /// What begins with this quarter, counted from 0 to 15.
    Quarter(u8),
}

impl Register {
    /// Where all concatenations and values begin.
    pub const FIRST: Self = Self::Quarter(0);

    /// Its number (enum nft_registers). A quarter that begins a whole register goes by the number of that one, which
    /// is older.
    fn number(self) -> u32 {
        match self {
            Self::Verdict => 0,
            Self::Quarter(quarter) if quarter % 4 == 0 => 1 + u32::from(quarter) / 4,
            Self::Quarter(quarter) => 8 + u32::from(quarter),
        }
    }

    fn decode(attribute: Attribute<'_>) -> Option<Self> {
        match u8::try_from(attribute.u32()?).ok()? {
            0 => Some(Self::Verdict),
            whole @ 1..=4 => Some(Self::Quarter((whole - 1) * 4)),
            quarter @ 8..=23 => Some(Self::Quarter(quarter - 8)),
            _ => None,
        }
    }
}

/// What is done with a packet, and which rule is next.
#[derive(Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The packet is dropped.
    Drop,
    /// On to that chain, and back after it.
    Jump(String),
    /// Back to where this chain was called; at the end of a hook's chain, its policy.
    Return,
    /// On to that chain and not back.
    Goto(String),
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// In a packet's data (NFTA_DATA_*).
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// enum nft_verdicts, as the 32 bits they are on the wire.
const DROP: u32 = 0;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;
const RETURN: u32 = -5i32 as u32;

impl Verdict {
    /// Writes it as the data of an element or of an expression.
    pub fn encode(&self, into: &mut Writer) {
        into.nested(DATA_VERDICT, |verdict| {
            match self {
                Self::Drop => verdict.u32(VERDICT_CODE, DROP),
                Self::Return => verdict.u32(VERDICT_CODE, RETURN),
                Self::Jump(chain) => verdict.u32(VERDICT_CODE, JUMP).text(VERDICT_CHAIN, chain),
                Self::Goto(chain) => verdict.u32(VERDICT_CODE, GOTO).text(VERDICT_CHAIN, chain),
            };
        });
    }

    /// Reads it from such data.
    pub fn decode(data: Attributes<'_>) -> Option<Self> {
        let verdict = data.find(DATA_VERDICT)?.inner();
        match verdict.find(VERDICT_CODE)?.u32()? {
            DROP => Some(Self::Drop),
            RETURN => Some(Self::Return),
            JUMP => Some(Self::Jump(verdict.find(VERDICT_CHAIN)?.text()?.to_owned())),
            GOTO => Some(Self::Goto(verdict.find(VERDICT_CHAIN)?.text()?.to_owned())),
            _ => None,
        }
    }
}

/// Writes a value as the data of an element or of an expression.
pub fn encode_value(value: &[u8], into: &mut Writer) {
    into.bytes(DATA_VALUE, value);
}

/// Reads a value from such data.
pub fn decode_value(data: Attributes<'_>) -> Option<&[u8]> {
    data.find(DATA_VALUE).map(|value| value.value)
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A part of a packet (enum nft_payload_bases).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// The IP header.
    Network = 1,
    /// The header after it.
    Transport = 2,
}

/// How a register is compared to a value (enum nft_cmp_ops).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Relation {
    /// It is the same.
    Equal = 0,
    /// It is another.
    NotEqual = 1,
    /// It is not greater.
    AtMost = 3,
    /// It is not less.
    AtLeast = 5,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads bytes of the packet.
    Payload {
        /// Of which header.
        header: Header,
        /// The first one.
        offset: u32,
        /// How many.
        length: u32,
        /// Where to.
        into: Register,
    },
    /// Loads the number of the transport protocol.
    Protocol {
        /// Where to.
        into: Register,
    },
    /// Loads the status bits of the connection.
    Status {
        /// Where to.
        into: Register,
    },
    /// Loads the address that the connection was first addressed to, before any translation.
    OriginalDestination {
        /// Of which family.
        family: Family,
        /// Where to.
        into: Register,
    },
    /// Loads the port that the connection was first addressed to.
    OriginalPort {
        /// Where to.
        into: Register,
    },
    /// Loads the port that the connection is answered from.
    AnsweringPort {
        /// Where to.
        into: Register,
    },
    /// Loads the type (RTN_*) of the packet's source address.
    SourceType {
        /// Where to.
        into: Register,
    },
    /// Loads a random number.
    Random {
        /// How many numbers there are to choose from.
        modulus: u32,
        /// The least of them.
        offset: u32,
        /// Where to.
        into: Register,
    },
    /// Keeps only these bits of the first register.
    Mask(Vec<u8>),
    /// Goes on if what the first register begins with is in this relation to a value.
    Compare {
        /// The relation.
        relation: Relation,
        /// The value, in the order of the network.
        value: Vec<u8>,
    },
    /// Goes on if what begins in the first register is a key of this set or map.
    Lookup {
        /// The name of the set or map.
        set: String,
        /// Where the value of a map goes; none for a set.
        into: Option<Register>,
    },
    /// Goes on if what begins in the first register is no key of this set.
    Absent {
        /// The name of the set.
        set: String,
    },
    /// Puts the key that begins in the first register into this map, or makes it stay on.
    Update {
        /// The name of the map.
        map: String,
        /// Where its value begins.
        value: Register,
        /// For how many seconds.
        seconds: u32,
    },
    /// Turns the protocol in this register to the order of the network. It is one byte, so nothing changes; but `nft`
    /// has it before a look into a set of ranges, where all must be in that order.
    ToNetworkOrder {
        /// The register.
        register: Register,
    },
    /// Decides.
    Verdict(Verdict),
    /// Translates the destination: to the address in the first register and the port behind it.
    Dnat(Family),
    /// Translates the source to this node's address on the way out, with a port chosen at random.
    Masquerade,
    /// Translates the destination to this node's address on the way in.
    Redirect,
    /// Refuses with a reset of TCP.
    Reset,
    /// Refuses with ICMP of this family: port unreachable.
    Unreachable(Family),
}

/// An item of a list (NFTA_LIST_ELEM), and what is in it (NFTA_EXPR_*).
const ITEM: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;

// Attributes of each expression, in the order of linux/netfilter/nf_tables.h.
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const META_L4PROTO: u32 = 16;
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_DIRECTION: u16 = 3;
const CT_STATUS: u32 = 2;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
const CT_PROTO_SRC: u32 = 11;
const CT_PROTO_DST: u32 = 12;
const CT_ORIGINAL: u8 = 0;
const CT_REPLY: u8 = 1;
const FIB_DREG: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const NUMGEN_DREG: u16 = 1;
const NUMGEN_MODULUS: u16 = 2;
const NUMGEN_TYPE: u16 = 3;
const NUMGEN_OFFSET: u16 = 4;
const NUMGEN_RANDOM: u32 = 1;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OP: u16 = 6;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_DREG: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
/// NFT_LOOKUP_F_INV.
const LOOKUP_INVERTED: u32 = 1;
const BYTEORDER_SREG: u16 = 1;
const BYTEORDER_DREG: u16 = 2;
const BYTEORDER_OP: u16 = 3;
const BYTEORDER_LEN: u16 = 4;
const BYTEORDER_SIZE: u16 = 5;
const BYTEORDER_HTON: u32 = 1;
/// How many bytes there are, and the size of the units that change their order.
const BYTEORDER_OF_PROTOCOL: (u32, u32) = (1, 2);
const DYNSET_SET_NAME: u16 = 1;
const DYNSET_OP: u16 = 3;
const DYNSET_SREG_KEY: u16 = 4;
const DYNSET_SREG_DATA: u16 = 5;
const DYNSET_TIMEOUT: u16 = 6;
const DYNSET_FLAGS: u16 = 9;
const DYNSET_UPDATE: u32 = 1;
const MILLISECONDS: u64 = 1000;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_REG_ADDR_MIN: u16 = 3;
const NAT_REG_ADDR_MAX: u16 = 4;
const NAT_REG_PROTO_MIN: u16 = 5;
const NAT_REG_PROTO_MAX: u16 = 6;
const NAT_FLAGS: u16 = 7;
const NAT_DNAT: u32 = 1;
/// NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED: the kernel adds them by itself, and dumps them.
const NAT_IMPLIED: u32 = 1 | 2;
const MASQ_FLAGS: u16 = 1;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY: with ports in order, two clients that connect at once can be given the same one,
/// and one of them loses its first packet.
const FULLY_RANDOM: u32 = 1 << 4;
const REDIR_REG_PROTO_MIN: u16 = 1;
const REDIR_FLAGS: u16 = 3;
const REJECT_TYPE: u16 = 1;
const REJECT_CODE: u16 = 2;
const REJECT_ICMP: u32 = 0;
const REJECT_RESET: u32 = 1;

/// The numbers by which a family goes in expressions.
struct Numbers {
    /// NFPROTO_*.
    protocol: u32,
    /// Where a port stands behind an address.
    port: Register,
    /// The code of ICMP for a port that is unreachable (RFC 792; RFC 4443 §3.1).
    port_unreachable: u8,
    /// What of a connection is the original destination.
    original_destination: u32,
}

fn numbers(family: Family) -> Numbers {
    match family {
        Family::V4 => {
            let port = Register::Quarter(1);
            Numbers { protocol: 2, port, port_unreachable: 3, original_destination: CT_DST_IP }
        }
        Family::V6 => {
            let port = Register::Quarter(4);
            Numbers { protocol: 10, port, port_unreachable: 4, original_destination: CT_DST_IP6 }
        }
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
            Self::Mask(mask) => {
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                data.u32(BITWISE_SREG, Register::FIRST.number()).u32(BITWISE_DREG, Register::FIRST.number());
                data.u32(BITWISE_LEN, length);
                data.nested(BITWISE_MASK, |value| encode_value(mask, value));
                data.nested(BITWISE_XOR, |value| encode_value(&vec![0; mask.len()], value));
                "bitwise"
            }
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
            expression.text(NAME, name).nested(DATA, |inner| inner.append(data));
        });
    }

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
            "payload" => Some(Self::Payload {
                header: [Header::Network, Header::Transport]
                    .into_iter()
                    .find(|header| number(PAYLOAD_BASE) == Some(*header as u32))?,
                offset: number(PAYLOAD_OFFSET)?,
                length: number(PAYLOAD_LEN)?,
                into: register(PAYLOAD_DREG)?,
            }),
            "meta" => {
                is(META_KEY, META_L4PROTO)?;
                Some(Self::Protocol { into: register(META_DREG)? })
            }
            "ct" => {
                let into = register(CT_DREG)?;
                match (number(CT_KEY)?, data.find(CT_DIRECTION).and_then(|direction| direction.u8())) {
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
                (xor.len() == mask.len() && xor.iter().all(|byte| *byte == 0)).then(|| Self::Mask(mask.to_vec()))
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
                is(DYNSET_OP, DYNSET_UPDATE)?;
                absent_or(DYNSET_FLAGS, 0)?;
                from(DYNSET_SREG_KEY, Register::FIRST)?;
                let timeout = data.find(DYNSET_TIMEOUT)?.u64()?;
                (timeout % MILLISECONDS == 0).then_some(())?;
                Some(Self::Update {
                    map: data.find(DYNSET_SET_NAME)?.text()?.to_owned(),
                    value: register(DYNSET_SREG_DATA)?,
                    seconds: u32::try_from(timeout / MILLISECONDS).ok()?,
                })
            }
            "byteorder" => {
                is(BYTEORDER_OP, BYTEORDER_HTON)?;
                let unit = number(BYTEORDER_LEN).zip(number(BYTEORDER_SIZE));
                let (from, into) = (register(BYTEORDER_SREG)?, register(BYTEORDER_DREG)?);
                (from == into && unit == Some(BYTEORDER_OF_PROTOCOL)).then_some(Self::ToNetworkOrder { register: into })
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
