//! Rules as the kernel's bytecode: a sequence of expressions that load registers, compare them and decide. Pure.
//!
//! It has only the expressions that these rules need, each as `nft --debug=netlink` shows it, so that `nft list table`
//! can print the rules. [`Expression::encode`] writes one. [`is_rule`] compares the kernel's dump with a rule.

mod compare;
mod encode;
mod numbers;

use std::fmt;

use crds::service::Family;

pub use compare::is_rule;
use netlink::attribute::{Attributes, Writer};

/// A register.
///
/// There are four registers of 16 bytes, and each is also four words of 4 bytes. A concatenation fills one word after
/// the other; a part longer than a word takes several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Holds the verdict.
    Verdict,
    /// A register that begins with this word, from 0 to 15.
    Word(u8),
}

impl Register {
    /// The register at which all concatenations and values begin.
    pub const FIRST: Self = Self::Word(0);

    /// The number in messages (enum nft_registers). A word that begins a 16-byte register has the number of that
    /// register, which is the older numbering.
    fn number(self) -> u32 {
        match self {
            Self::Verdict => 0,
            Self::Word(word) if word % 4 == 0 => 1 + u32::from(word) / 4,
            Self::Word(word) => 8 + u32::from(word),
        }
    }
}

/// The result of a rule. It is displayed as `nft` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet skips the rest of this base chain.
    Accept,
    Drop,
    /// Ends the chain. Our rules go to chains and never jump, so the policy of the base chain applies.
    Return,
    /// Continues in another chain and does not come back.
    Goto(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// The kinds of data (NFTA_DATA_*).
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// enum nft_verdicts, as the 32 bits in messages.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const GOTO: u32 = -4i32 as u32;
const RETURN: u32 = -5i32 as u32;

impl Verdict {
    /// Writes it as the data of an element or expression.
    pub fn encode(&self, into: &mut Writer) {
        into.nest(DATA_VERDICT, |verdict| {
            match self {
                Self::Accept => verdict.u32(VERDICT_CODE, ACCEPT),
                Self::Drop => verdict.u32(VERDICT_CODE, DROP),
                Self::Return => verdict.u32(VERDICT_CODE, RETURN),
                Self::Goto(chain) => verdict.u32(VERDICT_CODE, GOTO).text(VERDICT_CHAIN, chain),
            };
        });
    }

    /// Reads it from the data of an element or expression.
    pub fn decode(data: Attributes<'_>) -> Option<Self> {
        let verdict = data.find(DATA_VERDICT)?.inner();
        match verdict.find(VERDICT_CODE)?.u32()? {
            ACCEPT => Some(Self::Accept),
            DROP => Some(Self::Drop),
            RETURN => Some(Self::Return),
            GOTO => Some(Self::Goto(verdict.find(VERDICT_CHAIN)?.text()?.to_owned())),
            _ => None,
        }
    }
}

/// Writes a value as the data of an element or expression.
pub fn encode_value(value: &[u8], into: &mut Writer) {
    into.bytes(DATA_VALUE, value);
}

/// Reads a value from the data of an element or expression.
pub fn decode_value(data: Attributes<'_>) -> Option<&[u8]> {
    data.find(DATA_VALUE).map(|value| value.value)
}

/// A header of a packet (enum nft_payload_bases).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// Ethernet.
    Link = 0,
    /// IPv4 or IPv6.
    Network = 1,
    Transport = 2,
}

/// Metadata of a packet (enum nft_meta_keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// The protocol of the network header (ETH_P_*).
    Protocol = 1,
    /// The priority in queues (skb->priority).
    Priority = 2,
    Mark = 3,
    /// The index of the input interface.
    Iif = 4,
    /// The name of the input interface.
    IifName = 6,
    /// The type of the input interface (ARPHRD_*).
    IifType = 8,
    /// The number of the transport protocol.
    L4Proto = 16,
}

/// A part of the state of connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    /// Bits of the state of the packet.
    State,
    /// The direction of the packet: 0 for original, 1 for reply.
    Direction,
    /// The status bits of the connection.
    Status,
    /// The mark of the connection.
    Mark,
    /// The connection's destination before translation.
    OriginalDestination(Family),
    /// The connection's destination port before translation.
    OriginalPort,
    /// The source port of the connection's replies.
    ReplySourcePort,
}

/// A comparison (enum nft_cmp_ops).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Relation {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    Above = 4,
    AtLeast = 5,
}

impl Expression {
    /// The seed of every hash. Any value works, but all nodes must use the same one.
    pub const SEED: u32 = 0x4c66;
}

/// Writes a counter of 0: its name and no value.
pub fn encode_counter(into: &mut Writer) {
    into.text(numbers::NAME, numbers::COUNTER).nest(numbers::DATA, |_| ());
}

/// Whether this expression is a counter.
pub fn is_counter(expression: Attributes<'_>) -> bool {
    expression.find(numbers::NAME).and_then(|name| name.text()) == Some(numbers::COUNTER)
}

/// The packets and bytes of a counter; `None` if it is another expression.
pub fn decode_counter(expression: Attributes<'_>) -> Option<(u64, u64)> {
    is_counter(expression).then_some(())?;
    let data = expression.find(numbers::DATA)?.inner();
    Some((data.find(numbers::COUNTER_PACKETS)?.u64()?, data.find(numbers::COUNTER_BYTES)?.u64()?))
}

/// One step of a rule. An expression without a field for a register uses the first register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads bytes of the packet.
    Payload {
        header: Header,
        offset: u32,
        length: u32,
        into: Register,
    },
    /// Loads metadata of the packet.
    Meta {
        key: Meta,
        into: Register,
    },
    /// Loads a part of the state of connection tracking.
    Ct {
        key: Ct,
        into: Register,
    },
    /// Loads whether an IPv6 packet is a fragment (`exthdr frag`).
    ExthdrFragment {
        into: Register,
    },
    /// Loads a hash (`jhash`) of `length` bytes of the registers from `from` on: a number that is at least `offset` and
    /// less than `offset + modulus`.
    Jhash {
        from: Register,
        length: u32,
        modulus: u32,
        offset: u32,
        into: Register,
    },
    /// Loads the type (RTN_*) of the packet's source address (`fib saddr type`).
    FibSourceType {
        into: Register,
    },
    /// Loads a random number that is at least `offset` and less than `offset + modulus` (`numgen random`).
    Numgen {
        modulus: u32,
        offset: u32,
        into: Register,
    },
    /// Loads 0.
    LoadZero,
    /// Loads this byte.
    LoadByte(u8),
    /// Overwrites bytes of the Ethernet header.
    SetLinkHeader {
        offset: u32,
        length: u32,
    },
    /// Overwrites the packet's destination address, and corrects the checksums.
    SetDestination(Family),
    /// Overwrites the destination port of TCP, UDP or SCTP, and corrects the checksum. `protocol` is its number in the
    /// IP header.
    SetPort {
        protocol: u8,
    },
    /// Overwrites the destination port of a UDP datagram without a checksum.
    SetPortUnchecked,
    /// Sends the packet out by the interface with this index (`fwd`).
    Fwd,
    /// Overwrites the time to live and the byte after it, and corrects the checksum; or overwrites the hop limit.
    SetHopLimit(Family),
    /// Sends a copy of the packet to the node with the address in the first register (`dup`). The packet keeps its
    /// destination. The copy is not tracked, and has one hop less.
    Dup,
    SetMeta(Meta),
    SetCtMark,
    /// Keeps these bits (`bitwise`).
    Mask(Vec<u8>),
    /// Keeps the bits of `mask` and sets the bits of `or`. No bit is in both.
    MaskOr {
        mask: u32,
        or: u32,
    },
    /// Keeps the bits of `mask`, and inverts those of `xor`.
    MaskXor {
        mask: [u8; 2],
        xor: [u8; 2],
    },
    /// Continues if the register is in this relation to a value in network byte order (`cmp`).
    Compare {
        relation: Relation,
        value: Vec<u8>,
    },
    /// Continues if the register is a key of this set or map. `into` gets the value of a map.
    Lookup {
        set: String,
        into: Option<Register>,
    },
    /// Continues if the register is not a key of this set.
    LookupInverted {
        set: String,
    },
    /// Adds the key in the first register to this map, with the value in the registers from `value` on, or restarts its
    /// timeout.
    DynsetUpdate {
        map: String,
        value: Register,
        seconds: u32,
    },
    /// Deletes the key in the first register from this map. The kernel requires a value and ignores it.
    DynsetDelete {
        map: String,
        value: Register,
    },
    /// Adds the key in the first register to this set or restarts its timeout, and counts the packet there.
    DynsetCount {
        set: String,
        seconds: u32,
    },
    Verdict(Verdict),
    /// Translates the destination to the address in the first register and the port after it.
    Dnat(Family),
    /// Translates the source to this node's address, with a random port.
    Masquerade,
    /// Translates the destination to this node's address.
    Redirect,
    /// Refuses with a TCP reset.
    RejectReset,
    /// Refuses with ICMP port unreachable.
    RejectUnreachable(Family),
}
