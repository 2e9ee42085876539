//! The wire format of what speakers say to each other.
//!
//! Two kinds of packets have the same header. A *Hello* goes out once an interval: whom its sender hears, and the digests
//! of its claims ([`crate::claims`]). *Pages* carry claims, when they changed or were asked for; a few claims ride in the
//! Hello itself. All numbers are big-endian.
//!
//! ```text
//!   0  magic "LF"  version  kind (1 Hello, 2 Pages)   | 30  flags (1 leaving, 2 blind)
//!   4  cluster (hash of its identity, 8 bytes)        | 31  length of the name, name of the node
//!  12  incarnation (random at each start, 8 bytes)    |
//!  20  sequence (8 bytes)                             |
//!  28  interval in ms (2 bytes)                       |
//!  then, in a Hello
//!      count (2), heard:  incarnation (8), age in ms (2)            whom I hear, and when I last did
//!      count (2), wanted: incarnation (8), buckets (16)             whose claims I know wrong, and which
//!      bits (1), digests (4 each, 1 << bits of them)                my claims
//!  then, in both
//!      bits (1), count (2), pages: from (4), to (4), IPv4 (2), IPv6 (2), then claims: address (4 or 16), epoch (8)
//!      length (1), trailer: room for authentication
//! ```
//!
//! The highest bit of an epoch says that the claim is backed, the next one that it is over. A packet of another version is dropped and counted: a change
//! that old speakers cannot read needs a new version, and during an upgrade both are spoken. Bits of flags and a trailer
//! that a speaker does not know are ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::claims::{Claim, MAX_BITS, MAX_EPOCH, Page};

/// More than this is never sent in one packet: it fits an MTU of 1500 with room for tunnels and a trailer.
pub const MAX_PAYLOAD: usize = 1400;

/// The version that is spoken here.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 2] = *b"LF";
const HELLO: u8 = 1;
const PAGES: u8 = 2;
const LEAVING: u8 = 1;
const BLIND: u8 = 2;
const BACKED: u64 = 1 << 63;
const OVER: u64 = 1 << 62;

/// A packet between speakers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The hash of the cluster's identity: speakers of two clusters on one LAN ignore each other.
    pub cluster: u64,
    /// The sender's node.
    pub node: String,
    /// Chosen at random when the sender started: a restarted speaker is another one.
    pub incarnation: u64,
    /// Grows with each Hello that the sender sends on this link. The pages that go with a Hello have the same number: they
    /// speak of different claims, so their order doesn't matter.
    pub sequence: u64,
    /// How often the sender says Hello. A whole number of milliseconds, up to 65 seconds.
    pub interval: Duration,
    /// The sender is about to go: whatever it claims is for others to take.
    pub leaving: bool,
    /// The sender doesn't know which addresses there are, and claims none.
    pub blind: bool,
    /// What makes it a Hello.
    pub hello: Option<Hello>,
    /// How many bits of the hash tell the sender's buckets apart.
    pub bits: u8,
    /// Claims of the sender.
    pub pages: Vec<Page>,
}

/// What is in a Hello beyond the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Whom the sender hears on this link.
    pub heard: Vec<Heard>,
    /// Which claims the sender wants to be told again.
    pub wanted: Vec<Wanted>,
    /// The digests of the sender's claims, `1 << bits` of them.
    pub digests: Vec<u32>,
}

/// Somebody whom the sender of a Hello hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its incarnation.
    pub incarnation: u64,
    /// How long ago the sender heard it last. A whole number of milliseconds, up to 65 seconds.
    pub age: Duration,
}

/// Claims that the sender of a Hello wants to be told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The incarnation whose claims they are.
    pub incarnation: u64,
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

/// The size of a packet with that node name and no content: what is left of [`MAX_PAYLOAD`] is room.
pub fn overhead(node: &str) -> usize {
    32 + node.len() + 2 + 2 + 1 + 1 + 2 + 1
}

impl Packet {
    /// The bytes of the packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_PAYLOAD);
        out.extend(MAGIC);
        out.extend([VERSION, if self.hello.is_some() { HELLO } else { PAGES }]);
        out.extend(self.cluster.to_be_bytes());
        out.extend(self.incarnation.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(millis(self.interval).to_be_bytes());
        out.push(if self.leaving { LEAVING } else { 0 } | if self.blind { BLIND } else { 0 });
        // A node's name is a DNS subdomain: 253 bytes at most.
        let name = &self.node.as_bytes()[..self.node.len().min(255)];
        out.push(name.len() as u8);
        out.extend(name);
        if let Some(hello) = &self.hello {
            out.extend(count(hello.heard.len()));
            for heard in &hello.heard {
                out.extend(heard.incarnation.to_be_bytes());
                out.extend(millis(heard.age).to_be_bytes());
            }
            out.extend(count(hello.wanted.len()));
            for wanted in &hello.wanted {
                out.extend(wanted.incarnation.to_be_bytes());
                out.extend(wanted.buckets.to_be_bytes());
            }
            out.push(self.bits);
            for digest in &hello.digests {
                out.extend(digest.to_be_bytes());
            }
        }
        out.push(self.bits);
        out.extend(count(self.pages.len()));
        for page in &self.pages {
            encode_page(page, &mut out);
        }
        out.push(0);
        out
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// If the bytes are none. Whatever they are, reading never panics and allocates no more than they are long.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(bytes);
        if input.take()? != MAGIC {
            return Err(Malformed::Foreign);
        }
        let [version, kind] = input.take()?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let (cluster, incarnation, sequence) = (input.u64()?, input.u64()?, input.u64()?);
        let interval = Duration::from_millis(input.u16()?.into());
        let [flags, length] = input.take()?;
        let node = std::str::from_utf8(input.slice(length.into())?).map_err(|_| Malformed::Invalid("the name"))?;
        if node.is_empty() {
            return Err(Malformed::Invalid("an empty name"));
        }
        let hello = match kind {
            HELLO => Some(decode_hello(&mut input)?),
            PAGES => None,
            _ => return Err(Malformed::Invalid("the kind")),
        };
        let [bits] = input.take()?;
        if bits > MAX_BITS || hello.as_ref().is_some_and(|hello| hello.digests.len() != 1 << bits) {
            return Err(Malformed::Invalid("the number of buckets"));
        }
        let pages = (0..input.u16()?).map(|_| decode_page(&mut input)).collect::<Result<_, _>>()?;
        let [trailer] = input.take()?;
        input.slice(trailer.into())?;
        if !input.0.is_empty() {
            return Err(Malformed::Invalid("what follows the end"));
        }
        let (leaving, blind) = (flags & LEAVING != 0, flags & BLIND != 0);
        let node = node.to_owned();
        Ok(Self { cluster, node, incarnation, sequence, interval, leaving, blind, hello, bits, pages })
    }
}

fn decode_hello(input: &mut Input<'_>) -> Result<Hello, Malformed> {
    let heard = (0..input.u16()?)
        .map(|_| Ok(Heard { incarnation: input.u64()?, age: Duration::from_millis(input.u16()?.into()) }))
        .collect::<Result<_, _>>()?;
    let wanted = (0..input.u16()?)
        .map(|_| Ok(Wanted { incarnation: input.u64()?, buckets: u128::from_be_bytes(input.take()?) }))
        .collect::<Result<_, _>>()?;
    let [bits] = input.take()?;
    if bits > MAX_BITS {
        return Err(Malformed::Invalid("the number of digests"));
    }
    let digests = (0..1 << bits).map(|_| Ok(u32::from_be_bytes(input.take()?))).collect::<Result<_, _>>()?;
    Ok(Hello { heard, wanted, digests })
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
    out.extend((claim.epoch.min(MAX_EPOCH) | backed | over).to_be_bytes());
}

fn decode_page(input: &mut Input<'_>) -> Result<Page, Malformed> {
    let (from, to) = (u32::from_be_bytes(input.take()?), u32::from_be_bytes(input.take()?));
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
    Ok(Claim { epoch: word & MAX_EPOCH, backed: word & BACKED != 0, held: word & OVER == 0 })
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

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        (0..=MAX_EPOCH, any::<bool>(), any::<bool>()).prop_map(|(epoch, backed, held)| Claim { epoch, backed, held })
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

    fn hello(bits: u8) -> impl Strategy<Value = Hello> {
        (
            vec((any::<u64>(), ms()).prop_map(|(incarnation, age)| Heard { incarnation, age }), 0..8),
            vec((any::<u64>(), any::<u128>()).prop_map(|(incarnation, buckets)| Wanted { incarnation, buckets }), 0..4),
            vec(any::<u32>(), 1usize << bits),
        )
            .prop_map(|(heard, wanted, digests)| Hello { heard, wanted, digests })
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let header =
            (any::<u64>(), "[a-z0-9.-]{1,253}", any::<u64>(), any::<u64>(), ms(), any::<bool>(), any::<bool>());
        let body =
            (0..=MAX_BITS).prop_flat_map(|bits| (Just(bits), proptest::option::of(hello(bits)), vec(page(), 0..4)));
        (header, body).prop_map(|(header, (bits, hello, pages))| {
            let (cluster, node, incarnation, sequence, interval, leaving, blind) = header;
            Packet { cluster, node, incarnation, sequence, interval, leaving, blind, hello, bits, pages }
        })
    }

    fn example() -> Packet {
        let claim = Claim { epoch: 3, backed: true, held: true };
        Packet {
            cluster: 0x0102_0304_0506_0708,
            node: "n1".into(),
            incarnation: 9,
            sequence: 10,
            interval: Duration::from_millis(50),
            leaving: true,
            blind: false,
            hello: Some(Hello {
                heard: vec![Heard { incarnation: 11, age: Duration::from_millis(12) }],
                wanted: vec![Wanted { incarnation: 11, buckets: 1 }],
                digests: vec![0xaabb_ccdd],
            }),
            bits: 0,
            pages: vec![Page { from: 0, to: u32::MAX, claims: vec![("192.0.2.1".parse().expect("address"), claim)] }],
        }
    }

    #[test]
    fn a_hello_has_these_bytes() {
        #[rustfmt::skip]
        let expected = [
            b'L', b'F', 1, 1,
            1, 2, 3, 4, 5, 6, 7, 8,
            0, 0, 0, 0, 0, 0, 0, 9,
            0, 0, 0, 0, 0, 0, 0, 10,
            0, 50, 1, 2, b'n', b'1',
            0, 1, 0, 0, 0, 0, 0, 0, 0, 11, 0, 12,
            0, 1, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            0, 0xaa, 0xbb, 0xcc, 0xdd,
            0, 0, 1,
            0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0,
            192, 0, 2, 1, 0x80, 0, 0, 0, 0, 0, 0, 3,
            0,
        ];
        assert_eq!(example().encode(), expected);
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
        assert_eq!(with(2, 2), Err(Malformed::Version(2)));
        assert_eq!(with(3, 9), Err(Malformed::Invalid("the kind")));
        assert_eq!(with(31, 0), Err(Malformed::Invalid("an empty name")));
        assert_eq!(with(32, 0xff), Err(Malformed::Invalid("the name")));
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
