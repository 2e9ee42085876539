//! Rules in the kernel's bytecode: a row of expressions that load registers, compare them and decide.
//!
//! Only what the rules of this table need, and every expression as `nft --debug=netlink` shows it, so that
//! `nft list table` can print the rules back. Written by [`Expression::encode`]; [`Expression::decode`] reads what the
//! kernel dumps, which is the same but for attributes with default values.

mod decode;
mod encode;
mod numbers;

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
    /// The packet goes on, past all other rules of this hook's chain.
    Accept,
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
            Self::Accept => f.write_str("accept"),
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
const ACCEPT: u32 = 1;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;
const RETURN: u32 = -5i32 as u32;

impl Verdict {
    /// Writes it as the data of an element or of an expression.
    pub fn encode(&self, into: &mut Writer) {
        into.nested(DATA_VERDICT, |verdict| {
            match self {
                Self::Accept => verdict.u32(VERDICT_CODE, ACCEPT),
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
            ACCEPT => Some(Self::Accept),
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

/// A part of a packet (enum nft_payload_bases).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// The header of the link: MAC addresses.
    Link = 0,
    /// The IP header.
    Network = 1,
    /// The header after it.
    Transport = 2,
}

/// What is known of a packet (enum nft_meta_keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// The protocol of its network header (ETH_P_*).
    NetworkProtocol = 1,
    /// Its class in queues.
    Priority = 2,
    /// The number of the interface that it came in by.
    Interface = 4,
    /// The name of that.
    InterfaceName = 6,
    /// The kind of that (ARPHRD_*).
    InterfaceType = 8,
}

/// What has a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The packet.
    Packet,
    /// The connection that it belongs to.
    Connection,
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

impl Expression {
    /// What every hash begins with: any number will do, but all nodes must have the same.
    pub const SEED: u32 = 0x4c66;
}

/// Writes a counter that begins with nothing: its name and no more.
pub fn encode_counter(into: &mut Writer) {
    into.text(numbers::NAME, numbers::COUNTER).nested(numbers::DATA, |_| ());
}

/// Whether this is a counter.
pub fn is_counter(expression: Attributes<'_>) -> bool {
    expression.find(numbers::NAME).and_then(|name| name.text()) == Some(numbers::COUNTER)
}

/// How many packets and bytes a counter has counted; `None` if it is none.
pub fn decode_counter(expression: Attributes<'_>) -> Option<(u64, u64)> {
    is_counter(expression).then_some(())?;
    let data = expression.find(numbers::DATA)?.inner();
    Some((data.find(numbers::COUNTER_PACKETS)?.u64()?, data.find(numbers::COUNTER_BYTES)?.u64()?))
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
    /// Loads something that is known of the packet besides its bytes.
    Meta {
        /// What.
        what: Meta,
        /// Where to.
        into: Register,
    },
    /// Loads whether an IPv6 packet is a fragment.
    IsFragment {
        /// Where to.
        into: Register,
    },
    /// Loads a number that follows from what stands in registers (Jenkins' hash).
    Hash {
        /// Where that begins.
        from: Register,
        /// How many bytes it has.
        length: u32,
        /// How many numbers there are.
        modulus: u32,
        /// The least of them.
        offset: u32,
        /// Where to.
        into: Register,
    },
    /// Writes what the first register begins with into the header of the link.
    Write {
        /// The first byte that is written over.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// Writes what the first register begins with over the packet's destination address, and puts its checksums right.
    SetDestination(Family),
    /// Writes the same over the destination port of a packet of this transport protocol, and puts its checksum right.
    SetPort {
        /// Its number: TCP, UDP or SCTP.
        protocol: u8,
    },
    /// Writes the same over the destination port of a datagram of UDP that has no checksum.
    SetPortAlone,
    /// Sends the packet out by the interface whose number is in the first register.
    Forward,
    /// Loads whether the packet is an answer: 1 if it goes the other way than the connection's first one.
    Direction {
        /// Where to.
        into: Register,
    },
    /// Loads a mark into the first register.
    Mark(Marked),
    /// Makes the first register a mark.
    SetMark(Marked),
    /// Makes the first register the packet's class in queues.
    SetPriority,
    /// Loads 0 into the first register.
    Nothing,
    /// Keeps these bits of the first register, and sets those.
    Blend {
        /// The bits that stay as they are.
        keep: u32,
        /// The bits that are set besides, none of which is kept.
        set: u32,
    },
    /// Loads the state bits of the packet: what it is to connection tracking.
    State {
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
    /// Takes the key that begins in the first register out of this map, if it is in.
    Forget {
        /// The name of the map.
        map: String,
        /// Where a value begins: the kernel wants one, and does not look at it.
        value: Register,
    },
    /// Counts the packet with the key that begins in the first register, in this set, where it stays for so long after it
    /// was counted last.
    Count {
        /// The name of the set.
        set: String,
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
