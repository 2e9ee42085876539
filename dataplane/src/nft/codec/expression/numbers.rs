//! The numbers of expressions, their attributes and their values in messages.

use crds::service::Family;

use super::{Ct, Register};

/// An item of a list (NFTA_LIST_ELEM), and its attributes (NFTA_EXPR_*).
pub(super) const ITEM: u16 = 1;
pub(super) const NAME: u16 = 1;
pub(super) const DATA: u16 = 2;

// Attributes and values of each expression, from linux/netfilter/nf_tables.h.
pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
pub(super) const PAYLOAD_SREG: u16 = 5;
pub(super) const PAYLOAD_CSUM_TYPE: u16 = 6;
pub(super) const PAYLOAD_CSUM_OFFSET: u16 = 7;
pub(super) const PAYLOAD_CSUM_FLAGS: u16 = 8;
pub(super) const EXTHDR_DREG: u16 = 1;
pub(super) const EXTHDR_TYPE: u16 = 2;
pub(super) const EXTHDR_OFFSET: u16 = 3;
pub(super) const EXTHDR_LEN: u16 = 4;
pub(super) const EXTHDR_FLAGS: u16 = 5;
pub(super) const EXTHDR_OP: u16 = 6;
/// NFT_EXTHDR_F_PRESENT.
pub(super) const EXTHDR_PRESENT: u32 = 1;
pub(super) const EXTHDR_IPV6: u32 = 0;
/// The number of the fragment header (RFC 8200 §4.5).
pub(super) const FRAGMENT: u8 = 44;
pub(super) const HASH_SREG: u16 = 1;
pub(super) const HASH_DREG: u16 = 2;
pub(super) const HASH_LEN: u16 = 3;
pub(super) const HASH_MODULUS: u16 = 4;
pub(super) const HASH_SEED: u16 = 5;
pub(super) const HASH_OFFSET: u16 = 6;
pub(super) const HASH_TYPE: u16 = 7;
pub(super) const HASH_JENKINS: u32 = 0;
pub(super) const FWD_SREG_DEV: u16 = 1;
pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;
pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_DIRECTION: u16 = 3;
pub(super) const CT_SREG: u16 = 4;
const CT_ORIGINAL: u8 = 0;
const CT_REPLY: u8 = 1;
pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
pub(super) const FIB_ADDRTYPE: u32 = 3;
pub(super) const FIB_SADDR: u32 = 1;
pub(super) const NUMGEN_DREG: u16 = 1;
pub(super) const NUMGEN_MODULUS: u16 = 2;
pub(super) const NUMGEN_TYPE: u16 = 3;
pub(super) const NUMGEN_OFFSET: u16 = 4;
pub(super) const NUMGEN_RANDOM: u32 = 1;
pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;
pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
/// NFT_LOOKUP_F_INV.
pub(super) const LOOKUP_INVERTED: u32 = 1;
pub(super) const BYTEORDER_SREG: u16 = 1;
pub(super) const BYTEORDER_DREG: u16 = 2;
pub(super) const BYTEORDER_LEN: u16 = 4;
pub(super) const BYTEORDER_SIZE: u16 = 5;
pub(super) const DYNSET_SET_NAME: u16 = 1;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_SREG_KEY: u16 = 4;
pub(super) const DYNSET_SREG_DATA: u16 = 5;
pub(super) const DYNSET_TIMEOUT: u16 = 6;
pub(super) const DYNSET_EXPR: u16 = 7;
pub(super) const DYNSET_FLAGS: u16 = 9;
pub(super) const DYNSET_UPDATE: u32 = 1;
pub(super) const DYNSET_DELETE: u32 = 2;
pub(super) const COUNTER: &str = "counter";
pub(super) const COUNTER_BYTES: u16 = 1;
pub(super) const COUNTER_PACKETS: u16 = 2;
pub(super) const MILLISECONDS: u64 = 1000;
pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;
pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NAT_REG_ADDR_MAX: u16 = 4;
pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
pub(super) const NAT_REG_PROTO_MAX: u16 = 6;
pub(super) const NAT_FLAGS: u16 = 7;
pub(super) const NAT_DNAT: u32 = 1;
/// NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED: the kernel adds them itself, and dumps them.
pub(super) const NAT_IMPLIED: u32 = 1 | 2;
pub(super) const DUP_SREG_ADDR: u16 = 1;
pub(super) const MASQ_FLAGS: u16 = 1;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY: the kernel chooses the port at random. With sequential ports, two clients that
/// connect at once can get the same port, and one of them loses its first packet.
pub(super) const FULLY_RANDOM: u32 = 1 << 4;
pub(super) const REDIR_REG_PROTO_MIN: u16 = 1;
pub(super) const REDIR_FLAGS: u16 = 3;
pub(super) const REJECT_TYPE: u16 = 1;
pub(super) const REJECT_CODE: u16 = 2;
pub(super) const REJECT_ICMP: u32 = 0;
pub(super) const REJECT_RESET: u32 = 1;

/// The checksum that covers overwritten bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checksum {
    /// NFT_PAYLOAD_CSUM_*.
    pub(super) kind: u32,
    /// Its offset in the header.
    pub(super) offset: u32,
    /// NFT_PAYLOAD_L4CSUM_PSEUDOHDR if the bytes are also in the pseudo-header of the transport checksum.
    pub(super) flags: u32,
}

/// NFT_PAYLOAD_CSUM_NONE, NFT_PAYLOAD_CSUM_INET and NFT_PAYLOAD_CSUM_SCTP.
const CSUM_NONE: u32 = 0;
const CSUM_INET: u32 = 1;
const CSUM_SCTP: u32 = 2;
const PSEUDO_HEADER: u32 = 1;

pub(super) const NO_CHECKSUM: Checksum = Checksum { kind: CSUM_NONE, offset: 0, flags: 0 };

/// The offset and length of the destination address (RFC 791 §3.1, RFC 8200 §3), and the checksum to correct.
pub(super) fn destination(family: Family) -> ((u32, u32), Checksum) {
    let flags = PSEUDO_HEADER;
    match family {
        Family::V4 => ((16, 4), Checksum { kind: CSUM_INET, offset: 10, flags }),
        Family::V6 => ((24, 16), Checksum { flags, ..NO_CHECKSUM }),
    }
}

/// The offset and length of the time to live with the byte after it, or of the hop limit, and the checksum to correct.
pub(super) fn hop_limit(family: Family) -> ((u32, u32), Checksum) {
    match family {
        Family::V4 => ((8, 2), Checksum { kind: CSUM_INET, offset: 10, flags: 0 }),
        Family::V6 => ((7, 1), NO_CHECKSUM),
    }
}

/// The offset and length of the destination port of TCP, UDP and SCTP (RFC 9293 §3.1, RFC 768, RFC 9260 §3).
pub(super) const DESTINATION_PORT: (u32, u32) = (2, 2);

/// The checksum of a segment or datagram of this protocol.
pub(super) fn port_checksum(protocol: u8) -> Checksum {
    let (kind, offset) = match protocol {
        6 => (CSUM_INET, 16),
        17 => (CSUM_INET, 6),
        _ => (CSUM_SCTP, 8),
    };
    Checksum { kind, offset, flags: 0 }
}

/// The key of a part of connection tracking (enum nft_ct_keys), and the direction if it belongs to one.
pub(super) fn ct_numbers(key: Ct) -> (u32, Option<u8>) {
    match key {
        Ct::State => (0, None),
        Ct::Direction => (1, None),
        Ct::Status => (2, None),
        Ct::Mark => (3, None),
        Ct::ReplySourcePort => (11, Some(CT_REPLY)),
        Ct::OriginalPort => (12, Some(CT_ORIGINAL)),
        Ct::OriginalDestination(Family::V4) => (20, Some(CT_ORIGINAL)),
        Ct::OriginalDestination(Family::V6) => (22, Some(CT_ORIGINAL)),
    }
}

/// The numbers of a family in expressions.
pub(super) struct FamilyNumbers {
    /// NFPROTO_*.
    pub(super) protocol: u32,
    /// The register of a port after an address.
    pub(super) port: Register,
    /// The ICMP code for port unreachable (RFC 792; RFC 4443 §3.1).
    pub(super) port_unreachable: u8,
}

pub(super) fn family_numbers(family: Family) -> FamilyNumbers {
    match family {
        Family::V4 => FamilyNumbers { protocol: 2, port: Register::Word(1), port_unreachable: 3 },
        Family::V6 => FamilyNumbers { protocol: 10, port: Register::Word(4), port_unreachable: 4 },
    }
}
