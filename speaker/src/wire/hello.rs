//! The content of packets between speakers. [`crate::wire::codec`] describes their format.

use std::time::Duration;

use crate::ownership::claims::Page;
use crds::MacAddr;
use model::stable_hash;

/// The short form of an incarnation, for lists in which 8 bytes per entry would be too many.
pub fn id(incarnation: u64) -> u32 {
    (stable_hash::mix64(incarnation) >> 32) as u32
}

/// A packet between speakers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The hash of the cluster's identity. Speakers of two clusters on one LAN ignore each other.
    pub cluster: u64,
    /// The name of the sender's node.
    pub node: String,
    /// The sender's MAC address on the link. The frame must come from it, because the frame itself is not sealed.
    pub mac: MacAddr,
    /// The name of the link at the sender. Policies name the links on which a node may announce an address.
    pub link: String,
    /// Random at each start of the sender, different on each of its links, and new each time the sender begins to use
    /// the link. A link that was down keeps it.
    pub incarnation: u64,
    /// Grows with each Hello of the sender on this link.
    pub sequence: u64,
    /// Distinguishes the parts of a Hello. Their order is irrelevant, because their content does not overlap.
    pub part: u16,
    /// The maximum time until the sender's next Hello, in whole milliseconds up to 65 seconds.
    pub interval: Duration,
    /// The sender is about to stop: peers should take over its addresses.
    pub leaving: bool,
    /// The sender does not know the addresses yet, and claims none.
    pub blind: bool,
    /// A bare keep-alive. An idle receiver may leave it in the socket until it wakes for another reason.
    pub routine: bool,
    /// The peers that the sender hears: all of them, or those in a range of ids.
    pub heard: HeardRange,
    /// Echoes of received packets. The speakers that sent them may need a proof that the sender of this packet is
    /// alive.
    pub echoes: Vec<Echo>,
    /// The ids of the peers that should answer at once.
    pub probed: Vec<u32>,
    /// The buckets of claims that the sender requests from its peers.
    pub bucket_requests: Vec<BucketRequest>,
    /// The silent peers whose packets the sender requests from other speakers.
    pub relay_requests: Vec<RelayRequest>,
    /// The number of hash bits that select the bucket of a claim.
    pub bits: u8,
    /// The digests of the sender's claims, `1 << bits` of them; `None` in a part of a Hello.
    pub digests: Option<Vec<u32>>,
    pub pages: Vec<Page>,
}

/// The heard peers in a range of ids. A peer in the range without an entry is not heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeardRange {
    /// The number of all heard peers, inside and outside the range. It is at least 1 if the sender hears a host instead
    /// of its only peer.
    pub all: u16,
    /// The lowest id in the range.
    pub from: u32,
    /// The highest id in the range. If it is less than `from`, the range is empty.
    pub to: u32,
    /// Sorted by id.
    pub peers: Vec<Heard>,
}

impl HeardRange {
    pub fn covers(&self, id: u32) -> bool {
        (self.from..=self.to).contains(&id)
    }
}

/// A peer that the sender of a packet hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub id: u32,
    /// The time since it was last heard, in whole milliseconds up to 65 seconds.
    pub age: Duration,
}

/// An echo of a received packet. It proves that the sender of the echo is alive ([`crate::peers::handshake`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The speaker whose packet is echoed.
    pub id: u32,
    /// The low bits of the sequence of that packet.
    pub sequence: u32,
}

/// A request to forward the packets of a peer that the sender does not hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayRequest {
    /// The speaker that should forward them: it has reported that it hears the peer.
    pub relay: u32,
    /// The peer.
    pub id: u32,
    /// Whether the sender has received such a packet within a window of the peer. Then the sender knows the claims of
    /// the peer, as if it heard the peer itself.
    pub is_served: bool,
}

/// A packet that another speaker forwards, the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayedPacket {
    /// The incarnation of the relay.
    pub incarnation: u64,
    /// The sequence of the last Hello of the relay. It shows that the relay has forwarded the packet just now.
    pub sequence: u64,
    /// The relay's MAC address on the link. The frame must come from it.
    pub mac: MacAddr,
    pub packet: Packet,
}

/// The content of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatagramContent {
    Packet(Packet),
    Relayed(RelayedPacket),
}

/// A request for claims of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRequest {
    /// The peer whose claims are requested.
    pub id: u32,
    /// The requested buckets, one bit each.
    pub buckets: u128,
}
