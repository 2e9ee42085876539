//! The kernel filters of the packet sockets (classic BPF).

use std::collections::BTreeSet;

use socket2::SockFilter;

use crate::wire::codec::{FLAGS_AT, ROUTINE};
use crate::wire::datagram::{GROUP, GROUP_V6, PORT};
use crate::wire::frame::{Channel, FrameClass};
use crate::wire::headers::HOP_LIMIT;
use crate::wire::ndp::{ADVERTISEMENT, ICMPV6, SOLICITATION};

/// The maximum number of links in a filter. One jump must be able to skip all of them, and a jump skips at most 255
/// instructions. Frames on further links are dropped.
const MAX_LINKS: usize = 200;

// Classic BPF, as in linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_BYTE_AT_X: u16 = 0x50;
const LOAD_LENGTH: u16 = 0x80;
const LOAD_X_HEADER_LENGTH: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// The offset from which the index of the link is loaded (linux/filter.h).
const LINK_INDEX: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();

/// The last 32 bits of the IPv6 group address.
const LAST_WORD_V6: u32 = GROUP_V6.to_bits() as u32;

/// A step of a filter.
#[derive(Clone, Copy)]
enum Step {
    /// Load with this opcode from this offset.
    Load(u16, u32),
    /// Drop unless the loaded value equals this one.
    Equal(u32),
    /// Drop if one of these bits is set in the loaded value.
    Clear(u32),
    /// Drop unless one of these bits is set in the loaded value.
    Set(u32),
    /// Skip the next step if the loaded value equals this one.
    Or(u32),
    /// If the loaded value is less than the first number, skip as many steps as the second one.
    Less(u32, u8),
}

/// Builds the filter that accepts the frames of one channel and class on these links. A filter for Hellos checks the
/// destination address first. On a busy node nearly all packets are of other protocols, and each of them is dropped
/// after one load.
pub fn filter(channel: Channel, class: FrameClass, links: &BTreeSet<u32>) -> Vec<SockFilter> {
    use Step::{Clear, Equal, Less, Load, Or, Set};
    let for_channel: &[Step] = match channel {
        Channel::Hello => &[
            Load(LOAD_WORD, 14 + 16),
            Equal(GROUP.to_bits()),
            Load(LOAD_BYTE, 14 + 9),
            Equal(libc::IPPROTO_UDP as u32),
            Load(LOAD_HALF, 14 + 6),
            Clear(0x3fff), // more fragments, or an offset
            Load(LOAD_BYTE, 14 + 8),
            Equal(HOP_LIMIT as u32),
            Load(LOAD_X_HEADER_LENGTH, 14),
            Load(LOAD_HALF_AT_X, 14 + 2),
            Equal(PORT as u32),
        ],
        Channel::HelloV6 => &[
            Load(LOAD_WORD, 14 + 36),
            Equal(LAST_WORD_V6),
            Load(LOAD_BYTE, 14 + 6),
            Equal(libc::IPPROTO_UDP as u32),
            Load(LOAD_BYTE, 14 + 7),
            Equal(HOP_LIMIT as u32),
            Load(LOAD_HALF, 14 + 40 + 2),
            Equal(PORT as u32),
        ],
        Channel::Arp => &[],
        Channel::Ndp => &[
            Load(LOAD_BYTE, 14 + 6),
            Equal(ICMPV6 as u32),
            Load(LOAD_BYTE, 14 + 7),
            Equal(HOP_LIMIT as u32),
            Load(LOAD_BYTE, 14 + 40),
            Or(SOLICITATION as u32),
            Equal(ADVERTISEMENT as u32),
        ],
    };
    let flags = match channel {
        Channel::HelloV6 => Load(LOAD_BYTE, 14 + 40 + 8 + FLAGS_AT),
        _ => Load(LOAD_BYTE_AT_X, 14 + 8 + FLAGS_AT),
    };
    let for_class: &[Step] = match class {
        FrameClass::All => &[],
        FrameClass::Routine => &[flags, Set(ROUTINE as u32)],
        // A packet too short for flags passes, so that it is counted as malformed.
        FrameClass::Prompt => {
            &[Load(LOAD_LENGTH, 0), Less(14 + 60 + 8 + FLAGS_AT + 1, 2), flags, Clear(ROUTINE as u32)]
        }
    };
    let steps = [for_channel, for_class].concat();
    let links: Vec<u32> = links.iter().copied().take(MAX_LINKS).collect();
    // The program: steps, load of the link index, a jump for each link, drop, accept.
    let drop = steps.len() + 1 + links.len();
    let mut program = Vec::with_capacity(drop + 2);
    for (at, step) in steps.iter().enumerate() {
        let to_drop = u8::try_from(drop - at - 1).unwrap_or(u8::MAX);
        program.push(match *step {
            Load(opcode, offset) => SockFilter::new(opcode, 0, 0, offset),
            Equal(value) => SockFilter::new(JUMP_IF_EQUAL, 0, to_drop, value),
            Clear(bits) => SockFilter::new(JUMP_IF_SET, to_drop, 0, bits),
            Set(bits) => SockFilter::new(JUMP_IF_SET, 0, to_drop, bits),
            Or(value) => SockFilter::new(JUMP_IF_EQUAL, 1, 0, value),
            Less(value, steps) => SockFilter::new(JUMP_IF_AT_LEAST, 0, steps, value),
        });
    }
    program.push(SockFilter::new(LOAD_WORD, 0, 0, LINK_INDEX));
    for (at, link) in links.iter().enumerate() {
        let to_accept = u8::try_from(links.len() - at).unwrap_or(u8::MAX);
        program.push(SockFilter::new(JUMP_IF_EQUAL, to_accept, 0, *link));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}
