//! The wire format of packets between speakers.
//!
//! Two kinds of packets have the same header and lists. A *Hello* is sent once per interval, with the digests of the
//! sender's claims ([`crate::ownership::claims`]). Content that does not fit into the Hello is sent before it, in
//! *parts* with the same sequence: changed or requested claims, and the rest of long lists. All numbers are big-endian.
//!
//! ```text
//!   0  magic "LF"  version  kind (1 Hello, 2 part)    | 30  interval in ms (2 bytes)
//!   4  cluster (hash of its identity, 8 bytes)        | 32  MAC address of the sender (6 bytes)
//!  12  incarnation (random at each start, 8 bytes)    | 38  flags (1 leaving, 2 blind, 4 routine)
//!  20  sequence (8 bytes)                             | 39  length of the name, name of the node
//!  28  part (2 bytes)                                 |
//!  then
//!      length (1), name of the link                   at the sender
//!      hears (2)                                      the number of heard peers
//!      from (4), to (4), count (2), heard: id (4), age in ms (2)    heard peers with ids in the range
//!      count (2), echoes: id (4), sequence (4)        last packets of speakers that are not believed yet
//!      count (2), probed: id (4)                      peers that should answer at once
//!      count (2), requests: id (4), buckets (16)      peers whose claims are unread, and which buckets
//!      bits (1)                                       the sender's claims have 1 << bits buckets
//!      digests (4 each, 1 << bits of them)            in a Hello only
//!      count (2), pages: from (4), to (4), IPv4 (2), IPv6 (2), then claims: address (4 or 16), epoch (8)
//!      length (1), trailer: additions, each with its kind (1), length (1) and content
//! ```
//!
//! Addition 1 has the requests for relays ([`crate::peers::relay`]): relay (4), id (4), whether it is served (1).
//!
//! A third kind of packet forwards a packet of another speaker: the first 39 bytes are those of the relay, with the
//! routine flag of the forwarded packet, which follows whole. Speakers that do not know this kind drop it.
//!
//! An *id* is the short form of an incarnation ([`id`](crate::wire::hello::id)). If 1,000 speakers on a link start, two
//! of them have the same id with a probability of 1 in 8,600. Then a peer that hears one of these two seems to hear
//! both, until one of them restarts.
//!
//! The three highest bits of an epoch are flags of the claim, from the highest one on: it is backed, it has ended, its
//! owner cedes the address. A packet of another version is dropped and counted. A change that old speakers cannot read
//! needs a new version. During an upgrade, speakers must send both versions. Unknown flags and additions are ignored.
//! The whole packet is sealed ([`crate::wire::seal`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::ownership::claims::{Claim, MAX_BITS, MAX_EPOCH, Page};
use crate::wire::hello::{BucketRequest, Echo, Heard, HeardRange, Packet};
use crds::MacAddr;
use input::Input;

mod input;
pub mod relayed;
pub mod trailer;

pub use input::DecodeError;

/// The maximum size of a packet. It fits an MTU of 1500 with room for tunnels and a trailer.
pub const MAX_PAYLOAD: usize = 1400;

/// The supported version.
pub const VERSION: u8 = 2;

const MAGIC: [u8; 2] = *b"LF";
const HELLO: u8 = 1;
const PART: u8 = 2;
const LEAVING: u8 = 1;
const BLIND: u8 = 2;

/// The offset of the flags. The kernel filters of the sockets read them there.
pub const FLAGS_AT: u32 = 38;

/// The flag of a routine Hello.
pub const ROUTINE: u8 = 4;

const BACKED: u64 = 1 << 63;
const ENDED: u64 = 1 << 62;
const CEDED: u64 = 1 << 61;

/// The size of a packet without content, with these names. The rest of [`MAX_PAYLOAD`], except for the seals, is room
/// for content.
pub fn overhead(node: &str, link: &str) -> usize {
    40 + node.len() + 1 + link.len() + 2 + 4 + 4 + 2 + 2 + 2 + 2 + 1 + 2 + 1
}

/// The size of one entry of each list, in bytes.
pub mod size {
    pub const HEARD: usize = 4 + 2;
    pub const ECHO: usize = 4 + 4;
    pub const PROBED: usize = 4;
    pub const BUCKET_REQUEST: usize = 4 + 16;
    pub const DIGEST: usize = 4;
}

/// The cluster of a packet, which can be read before its seal is verified.
///
/// # Errors
/// If the bytes are not a packet of the supported version.
pub fn read_cluster(bytes: &[u8]) -> Result<u64, DecodeError> {
    let mut input = Input::new(bytes);
    if input.take()? != MAGIC {
        return Err(DecodeError::Foreign);
    }
    let [version, _] = input.take()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    input.u64()
}

/// Whether a packet is a routine Hello. The filters of the sockets apply the same test.
pub fn is_routine(bytes: &[u8]) -> bool {
    bytes.get(FLAGS_AT as usize).is_some_and(|flags| flags & ROUTINE != 0)
}

impl Packet {
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
        encode_name(&self.node, &mut out);
        encode_name(&self.link, &mut out);
        self.encode_lists(&mut out);
        out.push(self.bits);
        for digest in self.digests.iter().flatten() {
            out.extend(digest.to_be_bytes());
        }
        out.extend(count(self.pages.len()));
        for page in &self.pages {
            encode_page(page, &mut out);
        }
        trailer::encode(&self.relay_requests, &mut out);
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
        out.extend(count(self.echoes.len()));
        for echo in &self.echoes {
            out.extend(echo.id.to_be_bytes());
            out.extend(echo.sequence.to_be_bytes());
        }
        out.extend(count(self.probed.len()));
        for probed in &self.probed {
            out.extend(probed.to_be_bytes());
        }
        out.extend(count(self.bucket_requests.len()));
        for request in &self.bucket_requests {
            out.extend(request.id.to_be_bytes());
            out.extend(request.buckets.to_be_bytes());
        }
    }

    /// Decodes a packet.
    ///
    /// # Errors
    /// If the bytes are not a packet. Decoding never panics, and the memory that it allocates is proportional to the
    /// length of the input.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let cluster = read_cluster(bytes)?;
        let mut input = Input::new(bytes);
        let [_, _, _, kind] = input.take()?;
        let is_hello = match kind {
            HELLO => true,
            PART => false,
            _ => return Err(DecodeError::Invalid("kind")),
        };
        let (_, incarnation, sequence) = (input.u64()?, input.u64()?, input.u64()?);
        let part = input.u16()?;
        let interval = Duration::from_millis(input.u16()?.into());
        let mac = MacAddr::from(input.take()?);
        let [flags] = input.take()?;
        let node = input.name("name of the node")?;
        if node.is_empty() {
            return Err(DecodeError::Invalid("empty name"));
        }
        let link = input.name("name of the link")?;
        let (all, from, to) = (input.u16()?, input.u32()?, input.u32()?);
        let peers =
            input.list(|input| Ok(Heard { id: input.u32()?, age: Duration::from_millis(input.u16()?.into()) }))?;
        let heard = HeardRange { all, from, to, peers };
        let echoes = input.list(|input| Ok(Echo { id: input.u32()?, sequence: input.u32()? }))?;
        let probed = input.list(Input::u32)?;
        let bucket_requests =
            input.list(|input| Ok(BucketRequest { id: input.u32()?, buckets: u128::from_be_bytes(input.take()?) }))?;
        let [bits] = input.take()?;
        if bits > MAX_BITS {
            return Err(DecodeError::Invalid("number of buckets"));
        }
        let read_digests = |input: &mut Input<'_>| (0..1 << bits).map(|_| input.u32()).collect::<Result<_, _>>();
        let digests = if is_hello { Some(read_digests(&mut input)?) } else { None };
        let pages = input.list(decode_page)?;
        let [trailer] = input.take()?;
        let relay_requests = trailer::decode(input.slice(trailer.into())?);
        if !input.is_empty() {
            return Err(DecodeError::Invalid("trailing data"));
        }
        let (leaving, blind, routine) = (flags & LEAVING != 0, flags & BLIND != 0, flags & ROUTINE != 0);
        #[rustfmt::skip]
        let packet = Self {
            cluster, node, mac, link, incarnation, sequence, part, interval, leaving, blind, routine, heard, echoes,
            probed, bucket_requests, relay_requests, bits, digests, pages,
        };
        Ok(packet)
    }
}

/// The size of a page without claims, in bytes.
pub const PAGE_OVERHEAD: usize = 4 + 4 + 2 + 2;

/// The name of a node is a DNS subdomain of at most 253 bytes, and that of a link has at most 15 (`IFNAMSIZ`).
fn encode_name(name: &str, out: &mut Vec<u8>) {
    let name = &name.as_bytes()[..name.len().min(255)];
    out.push(name.len() as u8);
    out.extend(name);
}

fn encode_page(page: &Page, out: &mut Vec<u8>) {
    out.extend(page.from.to_be_bytes());
    out.extend(page.to.to_be_bytes());
    let of_family = |is_ipv4: bool| page.claims.iter().filter(move |(lb_ip, _)| lb_ip.is_ipv4() == is_ipv4);
    out.extend(count(of_family(true).count()));
    out.extend(count(of_family(false).count()));
    for (lb_ip, claim) in of_family(true).chain(of_family(false)) {
        encode_claim(*lb_ip, *claim, out);
    }
}

fn encode_claim(lb_ip: IpAddr, claim: Claim, out: &mut Vec<u8>) {
    match lb_ip {
        IpAddr::V4(v4) => out.extend(v4.octets()),
        IpAddr::V6(v6) => out.extend(v6.octets()),
    }
    let backed = if claim.backed { BACKED } else { 0 };
    let ended = if claim.active { 0 } else { ENDED };
    let ceded = if claim.retained { 0 } else { CEDED };
    out.extend((claim.epoch.min(MAX_EPOCH) | backed | ended | ceded).to_be_bytes());
}

fn decode_page(input: &mut Input<'_>) -> Result<Page, DecodeError> {
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

fn decode_claim(input: &mut Input<'_>) -> Result<Claim, DecodeError> {
    let word = input.u64()?;
    let (backed, active, retained) = (word & BACKED != 0, word & ENDED == 0, word & CEDED == 0);
    Ok(Claim { epoch: word & MAX_EPOCH, backed, active, retained })
}

/// Whole milliseconds in two bytes, rounded up. A greater age only makes a peer look older, and a greater interval only
/// makes a receiver wait longer.
fn millis(duration: Duration) -> u16 {
    u16::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u16::MAX)
}

fn count(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("invariant: the lists of a packet are short").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::{DatagramContent, RelayRequest};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        let claim = |(epoch, (backed, active, retained))| Claim { epoch, backed, active, retained };
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
        fn heard_range()(
            all in any::<u16>(), from in any::<u32>(), to in any::<u32>(),
            peers in vec((any::<u32>(), ms()).prop_map(|(id, age)| Heard { id, age }), 0..8),
        ) -> HeardRange {
            HeardRange { all, from, to, peers }
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
            heard in heard_range(),
            echoes in vec(any::<(u32, u32)>().prop_map(|(id, sequence)| Echo { id, sequence }), 0..4),
            probed in vec(any::<u32>(), 0..3),
            bucket_requests in vec(any::<(u32, u128)>().prop_map(|(id, buckets)| BucketRequest { id, buckets }), 0..4),
            digests in proptest::option::of(vec(any::<u32>(), 1usize << bits)),
            relay_requests in vec(relay_request(), 0..=trailer::MAX_RELAY_REQUESTS),
            bits in Just(bits),
            pages in vec(page(), 0..4),
        ) -> Packet {
            #[rustfmt::skip]
            let packet = Packet {
                cluster, node, mac, link, incarnation, sequence, part, interval, leaving, blind, routine, heard, echoes,
                probed, bucket_requests, relay_requests, bits, digests, pages,
            };
            packet
        }
    }

    fn relay_request() -> impl Strategy<Value = RelayRequest> {
        any::<(u32, u32, bool)>().prop_map(|(relay, id, is_served)| RelayRequest { relay, id, is_served })
    }

    pub(super) fn example() -> Packet {
        let claim = Claim { epoch: 3, backed: true, active: true, retained: true };
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
            heard: HeardRange {
                all: 5,
                from: 6,
                to: 0x0700,
                peers: vec![Heard { id: 11, age: Duration::from_millis(12) }],
            },
            echoes: vec![Echo { id: 13, sequence: 14 }],
            probed: vec![15],
            bucket_requests: vec![BucketRequest { id: 11, buckets: 1 }],
            relay_requests: vec![],
            bits: 0,
            digests: Some(vec![0xaabb_ccdd]),
            pages: vec![Page { from: 0, to: u32::MAX, claims: vec![("192.0.2.1".parse().expect("address"), claim)] }],
        }
    }

    #[test]
    fn encoded_hello_has_the_golden_bytes() {
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
        let content =
            size::HEARD + size::ECHO + size::PROBED + size::BUCKET_REQUEST + size::DIGEST + PAGE_OVERHEAD + 12;
        assert_eq!(overhead("n1", "e0"), expected.len() - content);
    }

    #[test]
    fn invalid_packet_is_refused_with_the_reason() {
        let bytes = example().encode();
        let with = |at: usize, byte: u8| {
            let mut changed = bytes.clone();
            changed[at] = byte;
            Packet::decode(&changed)
        };
        assert_eq!(with(0, b'X'), Err(DecodeError::Foreign));
        assert_eq!(with(2, 1), Err(DecodeError::Version(1)));
        assert_eq!(with(3, 9), Err(DecodeError::Invalid("kind")));
        assert_eq!(with(39, 0), Err(DecodeError::Invalid("empty name")));
        assert_eq!(with(40, 0xff), Err(DecodeError::Invalid("name of the node")));
        assert_eq!(with(43, 0xff), Err(DecodeError::Invalid("name of the link")));
        let long: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(Packet::decode(&long), Err(DecodeError::Invalid("trailing data")));
        for end in 0..bytes.len() {
            assert_eq!(Packet::decode(&bytes[..end]), Err(DecodeError::Short), "{end} bytes");
        }
    }

    #[test]
    fn trailer_of_a_later_version_is_ignored() {
        let mut bytes = example().encode();
        bytes.pop();
        bytes.extend([3, 7, 7, 7]);
        assert_eq!(Packet::decode(&bytes), Ok(example()));
    }

    proptest! {
        #[test]
        fn encoded_packet_decodes_to_itself(packet in packet()) {
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }

        #[test]
        fn decoding_a_damaged_packet_never_panics(
            packet in packet(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = packet.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = DatagramContent::decode(&bytes);
            let _ = DatagramContent::decode(&bytes[..end.index(bytes.len())]);
        }
    }
}
