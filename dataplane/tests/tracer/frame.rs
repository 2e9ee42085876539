//! Executes the rules of the link table, which spreads frames. The input is the bytes of a frame; the output is its
//! fate.

use crds::MacAddr;
use dataplane::nft::codec::expression::{Expression, Header, Meta, Register, Verdict};
use dataplane::nft::layout::Table;
use dataplane::snapshot::LinkName;

use super::{Machine, holds, mask_registers};

/// An Ethernet frame that arrives on a link.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The link.
    pub link: LinkName,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// The fate of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameFate {
    /// It continues here. Its addresses are unchanged.
    Kept,
    /// It is re-sent.
    Resent {
        /// The destination.
        to: MacAddr,
        /// The source.
        from: MacAddr,
    },
}

/// The length of the header of a frame.
const ETHERNET: usize = 14;

struct State {
    bytes: Vec<u8>,
    registers: [u8; 64],
    link: LinkName,
}

enum Step {
    Goes,
    Breaks,
    Verdict(Verdict),
    Out,
}

impl Machine {
    /// The fate of a frame, without tracked connections.
    pub fn verdict(&self, frame: &Frame) -> FrameFate {
        let mut state = State { bytes: frame.bytes.clone(), registers: [0; 64], link: frame.link };
        let Some(_) = self.chains.get(&(Table::Link, format!("on-{}", frame.link))) else { return FrameFate::Kept };
        if !self.passes_out(&format!("on-{}", frame.link), &mut state) {
            assert_eq!(state.bytes, frame.bytes, "a frame that stays is as it was");
            return FrameFate::Kept;
        }
        let mac = |at: usize| MacAddr::from(*state.bytes[at..].first_chunk::<6>().expect("an address"));
        assert_eq!(state.bytes[12..], frame.bytes[12..], "nothing but addresses changes");
        FrameFate::Resent { to: mac(0), from: mac(6) }
    }

    /// Whether this chain, or a chain to which it goes, re-sends the frame.
    fn passes_out(&self, chain: &str, state: &mut State) -> bool {
        let rules = self.chains.get(&(Table::Link, chain.to_owned())).unwrap_or_else(|| panic!("no chain {chain}"));
        for rule in rules {
            for expression in rule {
                match self.step(expression, state) {
                    Step::Goes => {}
                    Step::Breaks => break,
                    Step::Out => return true,
                    Step::Verdict(Verdict::Accept) => return false,
                    Step::Verdict(Verdict::Goto(chain)) => return self.passes_out(&chain, state),
                    Step::Verdict(other) => panic!("{other:?} for a frame"),
                }
            }
        }
        false
    }

    fn step(&self, expression: &Expression, state: &mut State) -> Step {
        let goes = |condition| if condition { Step::Goes } else { Step::Breaks };
        match expression {
            Expression::Payload { header, offset, length, into } => {
                let start = match header {
                    Header::Link => 0,
                    Header::Network => ETHERNET,
                    Header::Transport => match state.transport() {
                        Some(start) => start,
                        None => return Step::Breaks,
                    },
                };
                let start = start + usize::try_from(*offset).expect("small");
                let end = start + usize::try_from(*length).expect("small");
                let Some(value) = state.bytes.get(start..end).map(<[u8]>::to_vec) else { return Step::Breaks };
                state.load(*into, &value);
            }
            Expression::Meta { key, into } => {
                let value = match key {
                    Meta::Protocol => state.bytes[12..ETHERNET].to_vec(),
                    Meta::IifType => 1u16.to_ne_bytes().to_vec(),
                    Meta::IifName => state.link.bytes().to_vec(),
                    Meta::Iif => vec![0; 4],
                    Meta::L4Proto => vec![state.protocol().0],
                    Meta::Priority | Meta::Mark => panic!("no frame has a {key:?}"),
                };
                state.load(*into, &value);
            }
            Expression::ExthdrFragment { into } => state.load(*into, &[u8::from(state.is_fragment())]),
            Expression::Jhash { from, length, modulus, offset, into } => {
                let Register::Word(from) = from else { panic!("a hash of a verdict") };
                let start = usize::from(*from) * 4;
                let hash = jhash(&state.registers[start..start + usize::try_from(*length).expect("small")], 0x4c66);
                let scaled = (u64::from(hash) * u64::from(*modulus)) >> 32;
                state.load(*into, &(u32::try_from(scaled).expect("small") + offset).to_ne_bytes());
            }
            Expression::SetLinkHeader { offset, length } => {
                let (start, length) =
                    (usize::try_from(*offset).expect("small"), usize::try_from(*length).expect("small"));
                let value = state.registers[..length].to_vec();
                state.bytes[start..start + length].copy_from_slice(&value);
            }
            Expression::Mask(mask) => mask_registers(&mut state.registers, mask),
            Expression::Compare { relation, value } => return goes(holds(*relation, &state.registers, value)),
            Expression::Lookup { set, into } => {
                let Some(element) = self.find(Table::Link, set, &state.registers) else { return Step::Breaks };
                if let Some(into) = into {
                    let data = element.data.clone();
                    state.load(*into, &data);
                }
            }
            Expression::LookupInverted { set } => return goes(self.find(Table::Link, set, &state.registers).is_none()),
            Expression::Verdict(verdict) => return Step::Verdict(verdict.clone()),
            Expression::Fwd => return Step::Out,
            // Only later frames can find such an element.
            Expression::DynsetUpdate { .. } | Expression::DynsetDelete { .. } => {}
            other => panic!("{other:?} for a frame"),
        }
        Step::Goes
    }
}

impl State {
    fn load(&mut self, into: Register, value: &[u8]) {
        let Register::Word(word) = into else { panic!("a value where the verdict goes") };
        let start = usize::from(word) * 4;
        self.registers[start..start + value.len().next_multiple_of(4)].fill(0);
        self.registers[start..start + value.len()].copy_from_slice(value);
    }

    fn is_ipv4(&self) -> bool {
        self.bytes[12..ETHERNET] == [0x08, 0x00]
    }

    fn is_fragment(&self) -> bool {
        if self.is_ipv4() {
            u16::from_be_bytes([self.bytes[ETHERNET + 6], self.bytes[ETHERNET + 7]]) & 0x3fff != 0
        } else {
            self.bytes[ETHERNET + 6] == 44
        }
    }

    /// The transport protocol and the offset of its header.
    fn protocol(&self) -> (u8, usize) {
        match (self.is_ipv4(), self.is_fragment()) {
            (true, _) => (self.bytes[ETHERNET + 9], ETHERNET + 20),
            (false, false) => (self.bytes[ETHERNET + 6], ETHERNET + 40),
            (false, true) => (self.bytes[ETHERNET + 40], ETHERNET + 48),
        }
    }

    /// The offset of the transport header. `None` for a later fragment, which has no such header.
    fn transport(&self) -> Option<usize> {
        let offset = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let is_later = match (self.is_ipv4(), self.is_fragment()) {
            (_, false) => false,
            (true, true) => offset(ETHERNET + 6) & 0x1fff != 0,
            (false, true) => offset(ETHERNET + 42) & 0xfff8 != 0,
        };
        (!is_later).then(|| self.protocol().1)
    }
}

/// Jenkins' hash, as the kernel has it (include/linux/jhash.h).
fn jhash(key: &[u8], seed: u32) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(u32::try_from(key.len()).expect("short")).wrapping_add(seed);
    let [mut a, mut b, mut c] = [start; 3];
    let mut rest = key;
    let words = |bytes: &[u8]| {
        let mut all = [0; 12];
        all[..bytes.len()].copy_from_slice(bytes);
        [0, 4, 8].map(|at| u32::from_le_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]]))
    };
    while rest.len() > 12 {
        let [x, y, z] = words(&rest[..12]);
        (a, b, c) = (a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z));
        for turn in [4, 6, 8, 16, 19, 4] {
            a = a.wrapping_sub(c) ^ c.rotate_left(turn);
            c = c.wrapping_add(b);
            (a, b, c) = (b, c, a);
        }
        rest = &rest[12..];
    }
    if rest.is_empty() {
        return c;
    }
    let [x, y, z] = words(rest);
    (a, b, c) = (a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z));
    for turn in [14, 11, 25, 16, 4, 14, 24] {
        c = (c ^ b).wrapping_sub(b.rotate_left(turn));
        (a, b, c) = (b, c, a);
    }
    // The last turn computed `c`, and its rotation moved the value to `b`.
    b
}
