//! The wire format of what speakers say to each other.
//!
//! Two kinds of packets have the same header and the same lists. A *Hello* goes out once an interval, with the digests of
//! its sender's claims ([`crate::ownership::claims`]). What doesn't fit into it goes before it in *parts* of the same number: claims
//! that changed or were asked for, and the rest of long lists. All numbers are big-endian.
//!
//! ```text
//!   0  magic "LF"  version  kind (1 Hello, 2 part)    | 30  interval in ms (2 bytes)
//!   4  cluster (hash of its identity, 8 bytes)        | 32  MAC address of the sender (6 bytes)
//!  12  incarnation (random at each start, 8 bytes)    | 38  flags (1 leaving, 2 blind, 4 routine)
//!  20  sequence (8 bytes)                             | 39  length of the name, name of the node
//!  28  part (2 bytes)                                 |
//!  then
//!      length (1), name of the link                   what the sender calls it
//!      hears (2)                                      how many I hear
//!      from (4), to (4), count (2), heard: id (4), age in ms (2)    whom of these ids I hear, and when I last did
//!      count (2), met: id (4), sequence (4)           who may not know that I hear it, and what I heard (see [`crate::peers::handshake`])
//!      count (2), probed: id (4)                      who is to answer at once
//!      count (2), wanted: id (4), buckets (16)        whose claims I know wrong, and which
//!      bits (1)                                       my claims have 1 << bits buckets
//!      digests (4 each, 1 << bits of them)            only in a Hello
//!      count (2), pages: from (4), to (4), IPv4 (2), IPv6 (2), then claims: address (4 or 16), epoch (8)
//!      length (1), trailer: what a later version may add
//! ```
//!
//! An *id* stands for an incarnation ([`id`]): with 1,000 speakers on a link, two have the same once in 8,000 starts of all of
//! them, and then each may be taken to hear what only the other one hears, until one restarts.
//!
//! The highest bit of an epoch says that the claim is backed, the next one that it is over, the third one that its owner
//! would rather leave it to somebody else. A packet of another version is dropped and counted: a change that old speakers
//! cannot read needs a new version, and during an upgrade both are spoken. Bits of flags and a trailer that a speaker does
//! not know are ignored. Around all this is the seal ([`crate::wire::seal`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::ownership::claims::{Claim, MAX_BITS, MAX_EPOCH, Page};
use crds::MacAddr;
use model::stable_hash;

/// More than this is never sent in one packet: it fits an MTU of 1500 with room for tunnels and a trailer.
pub const MAX_PAYLOAD: usize = 1400;

/// The version that is spoken here.
pub const VERSION: u8 = 2;

const MAGIC: [u8; 2] = *b"LF";
const HELLO: u8 = 1;
const PART: u8 = 2;
const LEAVING: u8 = 1;
const BLIND: u8 = 2;

/// Where the flags are. The filters of the sockets look at them.
pub const FLAGS_AT: u32 = 38;

/// The flag of a Hello that can wait.
pub const ROUTINE: u8 = 4;

const BACKED: u64 = 1 << 63;
const OVER: u64 = 1 << 62;
const CEDED: u64 = 1 << 61;

/// What an incarnation is called where 8 bytes are too many.
pub fn id(incarnation: u64) -> u32 {
    (stable_hash::mix64(incarnation) >> 32) as u32
}

/// A packet between speakers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The hash of the cluster's identity: speakers of two clusters on one LAN ignore each other.
    pub cluster: u64,
    /// The sender's node.
    pub node: String,
    /// The sender's address on the link, which the frame has to come from: the frame itself isn't sealed.
    pub mac: MacAddr,
    /// What the sender calls the link: whether it may announce an address there depends on that.
    pub link: String,
    /// Chosen at random when the sender started, another one for each of its links: a restarted speaker is another one.
    pub incarnation: u64,
    /// Grows with each Hello that the sender sends on this link.
    pub sequence: u64,
    /// Tells the parts of a Hello apart. They speak of different things, so their order doesn't matter.
    pub part: u16,
    /// How long the sender waits until its next Hello, at most. A whole number of milliseconds, up to 65 seconds.
    pub interval: Duration,
    /// The sender is about to go: whatever it claims is for others to take.
    pub leaving: bool,
    /// The sender doesn't know which addresses there are, and claims none.
    pub blind: bool,
    /// It says nothing but that its sender is still there: who has nothing else to wait for needn't wake for it, and may read it
    /// with the next ones.
    pub routine: bool,
    /// Whom the sender hears, or a part of them.
    pub heard: Hearing,
    /// Those who may not know that they are heard.
    pub met: Vec<Met>,
    /// The ids of those who are to answer at once.
    pub probed: Vec<u32>,
    /// Which claims the sender wants to be told again.
    pub wanted: Vec<Wanted>,
    /// How many bits of the hash tell the sender's buckets apart.
    pub bits: u8,
    /// What makes it a Hello: the digests of the sender's claims, `1 << bits` of them.
    pub digests: Option<Vec<u32>>,
    /// Claims of the sender.
    pub pages: Vec<Page>,
}

/// Whom of a range of ids the sender of a packet hears: who isn't in here isn't heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hearing {
    /// How many it hears in all, in this range or not.
    pub all: u16,
    /// The lowest id.
    pub from: u32,
    /// The highest id. Less than the lowest one: the packet says nothing of whom it hears.
    pub to: u32,
    /// Those that it hears.
    pub peers: Vec<Heard>,
}

impl Hearing {
    /// Whether it says anything about this id.
    pub fn covers(&self, id: u32) -> bool {
        (self.from..=self.to).contains(&id)
    }
}

/// Somebody whom the sender of a packet hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who.
    pub id: u32,
    /// How long ago the sender heard it last. A whole number of milliseconds, up to 65 seconds.
    pub age: Duration,
}

/// Somebody who may not know that the sender of a packet hears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    /// Who.
    pub id: u32,
    /// The last bits of the sequence of a packet of it.
    pub sequence: u32,
}

/// Claims that the sender of a packet wants to be told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose claims they are.
    pub id: u32,
    /// Which of its buckets, one bit each.
    pub buckets: u128,
}

/// Why bytes are no packet that this speaker understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Something else on our port.
    #[error("not a packet of Landfall")]
    Foreign,
    /// A version that is not spoken here.
    #[error("version {0} is not spoken here")]
    Version(u8),
    /// It ends too early.
    #[error("cut off")]
    Short,
    /// Something in it cannot be.
    #[error("{0} cannot be")]
    Invalid(&'static str),
}

/// The size of a packet with these names of a node and a link, and no content: what is left of [`MAX_PAYLOAD`], apart from seals, is room.
pub fn overhead(node: &str, link: &str) -> usize {
    40 + node.len() + 1 + link.len() + 2 + 4 + 4 + 2 + 2 + 2 + 2 + 1 + 2 + 1
}

/// How many bytes one entry of each list takes.
pub mod size {
    /// Of those who are heard.
    pub const HEARD: usize = 4 + 2;
    /// Of those who are met.
    pub const MET: usize = 4 + 4;
    /// Of those who are probed.
    pub const PROBED: usize = 4;
    /// Of those whose claims are wanted.
    pub const WANTED: usize = 4 + 16;
    /// Of the digests.
    pub const DIGEST: usize = 4;
}

/// The cluster that bytes come from: what can be known of them before they are believed.
///
/// # Errors
/// If they are no packet of a version that is spoken here.
pub fn cluster(bytes: &[u8]) -> Result<u64, Malformed> {
    let mut input = Input(bytes);
    if input.take()? != MAGIC {
        return Err(Malformed::Foreign);
    }
    let [version, _] = input.take()?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    input.u64()
}

/// Whether bytes are a packet that can wait: what the filters of the sockets ask.
pub fn is_routine(bytes: &[u8]) -> bool {
    bytes.get(FLAGS_AT as usize).is_some_and(|flags| flags & ROUTINE != 0)
}

impl Packet {
    /// The bytes of the packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_PAYLOAD);
        out.extend(MAGIC);
        out.extend([VERSION, if self.digests.is_some() { HELLO } else { PART }]);
        out.extend(self.cluster.to_be_bytes());
        out.extend(self.incarnation.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.part.to_be_bytes());
        out.extend(millis(self.interval).to_be_bytes());
        out.extend(self.mac.octets());
        let flags = [(self.leaving, LEAVING), (self.blind, BLIND), (self.routine, ROUTINE)];
        out.push(flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag));
        // A node's name is a DNS subdomain: 253 bytes at most.
        let name = &self.node.as_bytes()[..self.node.len().min(255)];
        out.push(name.len() as u8);
        out.extend(name);
        // A link's name has 15 bytes at most (`IFNAMSIZ`).
        let link = &self.link.as_bytes()[..self.link.len().min(255)];
        out.push(link.len() as u8);
        out.extend(link);
        self.encode_lists(&mut out);
        out.push(self.bits);
        for digest in self.digests.iter().flatten() {
            out.extend(digest.to_be_bytes());
        }
        out.extend(count(self.pages.len()));
        for page in &self.pages {
            encode_page(page, &mut out);
        }
        out.push(0);
        out
    }

    fn encode_lists(&self, out: &mut Vec<u8>) {
        out.extend(self.heard.all.to_be_bytes());
        out.extend(self.heard.from.to_be_bytes());
        out.extend(self.heard.to.to_be_bytes());
        out.extend(count(self.heard.peers.len()));
        for heard in &self.heard.peers {
            out.extend(heard.id.to_be_bytes());
            out.extend(millis(heard.age).to_be_bytes());
        }
        out.extend(count(self.met.len()));
        for met in &self.met {
            out.extend(met.id.to_be_bytes());
            out.extend(met.sequence.to_be_bytes());
        }
        out.extend(count(self.probed.len()));
        for probed in &self.probed {
            out.extend(probed.to_be_bytes());
        }
        out.extend(count(self.wanted.len()));
        for wanted in &self.wanted {
            out.extend(wanted.id.to_be_bytes());
            out.extend(wanted.buckets.to_be_bytes());
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// If the bytes are none. Whatever they are, reading never panics and allocates no more than they are long.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let cluster = cluster(bytes)?;
        let mut input = Input(bytes);
        let [_, _, _, kind] = input.take()?;
        let (_, incarnation, sequence) = (input.u64()?, input.u64()?, input.u64()?);
        let part = input.u16()?;
        let interval = Duration::from_millis(input.u16()?.into());
        let mac = MacAddr::from(input.take()?);
        let [flags, length] = input.take()?;
        let node = std::str::from_utf8(input.slice(length.into())?).map_err(|_| Malformed::Invalid("the name"))?;
        if node.is_empty() {
            return Err(Malformed::Invalid("an empty name"));
        }
        let [length] = input.take()?;
        let link = std::str::from_utf8(input.slice(length.into())?).map_err(|_| Malformed::Invalid("the link"))?;
        let (all, from, to) = (input.u16()?, input.u32()?, input.u32()?);
        let peers =
            input.list(|input| Ok(Heard { id: input.u32()?, age: Duration::from_millis(input.u16()?.into()) }))?;
        let heard = Hearing { all, from, to, peers };
        let met = input.list(|input| Ok(Met { id: input.u32()?, sequence: input.u32()? }))?;
        let probed = input.list(Input::u32)?;
        let wanted =
            input.list(|input| Ok(Wanted { id: input.u32()?, buckets: u128::from_be_bytes(input.take()?) }))?;
        let [bits] = input.take()?;
        if bits > MAX_BITS {
            return Err(Malformed::Invalid("the number of buckets"));
        }
        let digests = match kind {
            HELLO => Some((0..1 << bits).map(|_| input.u32()).collect::<Result<_, _>>()?),
            PART => None,
            _ => return Err(Malformed::Invalid("the kind")),
        };
        let pages = input.list(decode_page)?;
        let [trailer] = input.take()?;
        input.slice(trailer.into())?;
        if !input.0.is_empty() {
            return Err(Malformed::Invalid("what follows the end"));
        }
        let (leaving, blind, routine) = (flags & LEAVING != 0, flags & BLIND != 0, flags & ROUTINE != 0);
        let (node, link) = (node.to_owned(), link.to_owned());
        #[rustfmt::skip]
        let packet = Self {
            cluster, node, mac, link, incarnation, sequence, part, interval, leaving, blind, routine, heard, met, probed, wanted, bits,
            digests, pages,
        };
        Ok(packet)
    }
}

/// The size of a page without claims.
pub const PAGE_OVERHEAD: usize = 4 + 4 + 2 + 2;

fn encode_page(page: &Page, out: &mut Vec<u8>) {
    out.extend(page.from.to_be_bytes());
    out.extend(page.to.to_be_bytes());
    let v4 = page.claims.iter().filter(|(lb_ip, _)| lb_ip.is_ipv4()).count();
    out.extend(count(v4));
    out.extend(count(page.claims.len() - v4));
    for (lb_ip, claim) in page.claims.iter().filter(|(lb_ip, _)| lb_ip.is_ipv4()) {
        encode_claim(*lb_ip, *claim, out);
    }
    for (lb_ip, claim) in page.claims.iter().filter(|(lb_ip, _)| lb_ip.is_ipv6()) {
        encode_claim(*lb_ip, *claim, out);
    }
}

fn encode_claim(lb_ip: IpAddr, claim: Claim, out: &mut Vec<u8>) {
    match lb_ip {
        IpAddr::V4(v4) => out.extend(v4.octets()),
        IpAddr::V6(v6) => out.extend(v6.octets()),
    }
    let backed = if claim.backed { BACKED } else { 0 };
    let over = if claim.held { 0 } else { OVER };
    let ceded = if claim.kept { 0 } else { CEDED };
    out.extend((claim.epoch.min(MAX_EPOCH) | backed | over | ceded).to_be_bytes());
}

fn decode_page(input: &mut Input<'_>) -> Result<Page, Malformed> {
    let (from, to) = (input.u32()?, input.u32()?);
    let (v4, v6) = (input.u16()?, input.u16()?);
    let mut claims = Vec::new();
    for _ in 0..v4 {
        claims.push((IpAddr::V4(Ipv4Addr::from(input.take::<4>()?)), decode_claim(input)?));
    }
    for _ in 0..v6 {
        claims.push((IpAddr::V6(Ipv6Addr::from(input.take::<16>()?)), decode_claim(input)?));
    }
    Ok(Page { from, to, claims })
}

fn decode_claim(input: &mut Input<'_>) -> Result<Claim, Malformed> {
    let word = input.u64()?;
    let (backed, held, kept) = (word & BACKED != 0, word & OVER == 0, word & CEDED == 0);
    Ok(Claim { epoch: word & MAX_EPOCH, backed, held, kept })
}

/// Milliseconds in two bytes, rounded up: an age that is told too great only makes what is heard look older.
fn millis(duration: Duration) -> u16 {
    u16::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u16::MAX)
}

fn count(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("invariant: what is counted fits a packet").to_be_bytes()
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// A number, and so many of what `read` reads. Nothing is allocated for what isn't there.
    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        (0..self.u16()?).map(|_| read(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        let claim = |(epoch, (backed, held, kept))| Claim { epoch, backed, held, kept };
        (0..=MAX_EPOCH, any::<(bool, bool, bool)>()).prop_map(claim)
    }

    fn page() -> impl Strategy<Value = Page> {
        let v4 = any::<Ipv4Addr>().prop_map(IpAddr::V4);
        let v6 = any::<Ipv6Addr>().prop_map(IpAddr::V6);
        (any::<u32>(), any::<u32>(), vec((v4, claim()), 0..20), vec((v6, claim()), 0..5))
            .prop_map(|(from, to, v4, v6)| Page { from, to, claims: v4.into_iter().chain(v6).collect() })
    }

    fn ms() -> impl Strategy<Value = Duration> {
        any::<u16>().prop_map(|ms| Duration::from_millis(ms.into()))
    }

    prop_compose! {
        fn hearing()(
            all in any::<u16>(), from in any::<u32>(), to in any::<u32>(),
            peers in vec((any::<u32>(), ms()).prop_map(|(id, age)| Heard { id, age }), 0..8),
        ) -> Hearing {
            Hearing { all, from, to, peers }
        }
    }

    prop_compose! {
        fn packet()(bits in 0..=MAX_BITS)(
            (cluster, incarnation, sequence, part) in any::<(u64, u64, u64, u16)>(),
            node in "[a-z0-9.-]{1,253}",
            mac in any::<[u8; 6]>().prop_map(MacAddr::from),
            link in "[a-z0-9.@-]{0,15}",
            interval in ms(),
            (leaving, blind, routine) in any::<(bool, bool, bool)>(),
            heard in hearing(),
            met in vec(any::<(u32, u32)>().prop_map(|(id, sequence)| Met { id, sequence }), 0..4),
            probed in vec(any::<u32>(), 0..3),
            wanted in vec(any::<(u32, u128)>().prop_map(|(id, buckets)| Wanted { id, buckets }), 0..4),
            digests in proptest::option::of(vec(any::<u32>(), 1usize << bits)),
            bits in Just(bits),
            pages in vec(page(), 0..4),
        ) -> Packet {
            #[rustfmt::skip]
            let packet = Packet {
                cluster, node, mac, link, incarnation, sequence, part, interval, leaving, blind, routine, heard, met, probed, wanted,
                bits, digests, pages,
            };
            packet
        }
    }

    fn example() -> Packet {
        let claim = Claim { epoch: 3, backed: true, held: true, kept: true };
        Packet {
            cluster: 0x0102_0304_0506_0708,
            node: "n1".into(),
            mac: MacAddr(2, 0, 0, 0, 0, 1),
            link: "e0".into(),
            incarnation: 9,
            sequence: 10,
            part: 4,
            interval: Duration::from_millis(50),
            leaving: true,
            blind: false,
            routine: true,
            heard: Hearing {
                all: 5,
                from: 6,
                to: 0x0700,
                peers: vec![Heard { id: 11, age: Duration::from_millis(12) }],
            },
            met: vec![Met { id: 13, sequence: 14 }],
            probed: vec![15],
            wanted: vec![Wanted { id: 11, buckets: 1 }],
            bits: 0,
            digests: Some(vec![0xaabb_ccdd]),
            pages: vec![Page { from: 0, to: u32::MAX, claims: vec![("192.0.2.1".parse().expect("address"), claim)] }],
        }
    }

    #[test]
    fn a_hello_has_these_bytes() {
        #[rustfmt::skip]
        let expected = [
            b'L', b'F', 2, 1,
            1, 2, 3, 4, 5, 6, 7, 8,
            0, 0, 0, 0, 0, 0, 0, 9,
            0, 0, 0, 0, 0, 0, 0, 10,
            0, 4, 0, 50, 2, 0, 0, 0, 0, 1, 5, 2, b'n', b'1', 2, b'e', b'0',
            0, 5, 0, 0, 0, 6, 0, 0, 7, 0, 0, 1, 0, 0, 0, 11, 0, 12,
            0, 1, 0, 0, 0, 13, 0, 0, 0, 14,
            0, 1, 0, 0, 0, 15,
            0, 1, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            0, 0xaa, 0xbb, 0xcc, 0xdd,
            0, 1,
            0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0,
            192, 0, 2, 1, 0x80, 0, 0, 0, 0, 0, 0, 3,
            0,
        ];
        assert_eq!(example().encode(), expected);
        let content = size::HEARD + size::MET + size::PROBED + size::WANTED + size::DIGEST + PAGE_OVERHEAD + 12;
        assert_eq!(overhead("n1", "e0"), expected.len() - content);
    }

    #[test]
    fn what_is_no_packet_is_refused_with_the_reason() {
        let bytes = example().encode();
        let with = |at: usize, byte: u8| {
            let mut changed = bytes.clone();
            changed[at] = byte;
            Packet::decode(&changed)
        };
        assert_eq!(with(0, b'X'), Err(Malformed::Foreign));
        assert_eq!(with(2, 1), Err(Malformed::Version(1)));
        assert_eq!(with(3, 9), Err(Malformed::Invalid("the kind")));
        assert_eq!(with(39, 0), Err(Malformed::Invalid("an empty name")));
        assert_eq!(with(40, 0xff), Err(Malformed::Invalid("the name")));
        assert_eq!(with(43, 0xff), Err(Malformed::Invalid("the link")));
        let long: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(Packet::decode(&long), Err(Malformed::Invalid("what follows the end")));
        for end in 0..bytes.len() {
            assert_eq!(Packet::decode(&bytes[..end]), Err(Malformed::Short), "{end} bytes");
        }
    }

    #[test]
    fn a_trailer_of_a_later_version_is_no_reason_to_refuse() {
        let mut bytes = example().encode();
        bytes.pop();
        bytes.extend([3, 7, 7, 7]);
        assert_eq!(Packet::decode(&bytes), Ok(example()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(packet in packet()) {
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Packet::decode(&bytes);
        }

        #[test]
        fn decoding_a_damaged_packet_never_panics(
            packet in packet(), at in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = packet.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Packet::decode(&bytes);
            let _ = Packet::decode(&bytes[..end.index(bytes.len())]);
        }
    }
}
