//! When this node sends a Hello on a link, and its content.
//!
//! A Hello is sent once per interval ([`crate::peers::interval`]), and sooner after a change. It carries the claims
//! that changed or were requested. A Hello that exceeds one packet is sent in parts ([`crate::wire::packing`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::announce::placement::Link;
use crate::config::Config;
use crate::ownership::claims::{Claims, Page};
use crate::ownership::context::Context;
use crate::peers::handshake::{self, Handshakes};
use crate::peers::interval::HelloInterval;
use crate::peers::liveness::PeerState;
use crate::peers::peer::Peer;
use crate::wire::codec::{self, MAX_PAYLOAD, PAGE_OVERHEAD, size};
use crate::wire::hello::{self, Heard, HeardRange, Packet};
use crate::wire::packing::{PeerLists, pack};

/// A change sends the next Hello at least this long after the last one, so that several changes share a Hello.
const SOON_GAP: Duration = Duration::from_millis(10);

/// A probe is answered at least this long after the last Hello, because several peers may probe at once.
const PROBE_REPLY_GAP: Duration = Duration::from_millis(2);

/// The number of Hellos after one with news that are not routine either: the Hello with the news may have been lost.
const NEWS_REPEATS: u32 = 3;

/// The state of this node's Hellos on a link.
#[derive(Debug)]
pub struct HelloSender {
    last: Option<Duration>,
    /// When the first Hello is due.
    first: Duration,
    /// Whether a change waits to be sent.
    soon: bool,
    /// Whether a peer probes this node.
    probed_by_peer: bool,
    /// The number of Hellos since the last one with news.
    hellos_without_news: u32,
    /// The ids of the peers to probe with the next Hello.
    probes: Vec<u32>,
    interval: HelloInterval,
    /// The incarnation of this node on this link.
    incarnation: u64,
    sequence: u64,
    /// Addresses whose claim changed since the last Hello.
    changed: BTreeSet<IpAddr>,
    /// The buckets that peers requested, one bit each.
    requested: u128,
}

impl HelloSender {
    /// No Hello was sent yet; the first one is due now.
    pub fn new(now: Duration, incarnation: u64, config: &Config) -> Self {
        Self {
            last: None,
            first: now,
            soon: false,
            probed_by_peer: false,
            hellos_without_news: 0,
            probes: Vec::new(),
            interval: HelloInterval::new(config),
            incarnation,
            sequence: 0,
            changed: BTreeSet::new(),
            requested: 0,
        }
    }

    /// The incarnation of this node on this link.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether `echoes` contain the sequence of a recent Hello of this node.
    pub fn is_echoed(&self, echoes: &[hello::Echo]) -> bool {
        handshake::is_echoed(echoes, self.incarnation, self.sequence)
    }

    /// Makes the next Hello due soon.
    pub fn send_soon(&mut self) {
        self.soon = true;
    }

    /// Records the ids that a peer probes.
    pub fn receive_probes(&mut self, probed: &[u32]) {
        self.probed_by_peer |= probed.contains(&hello::id(self.incarnation));
    }

    /// Probes this peer with the next Hello.
    pub fn add_probe(&mut self, incarnation: u64) {
        self.probes.push(hello::id(incarnation));
    }

    /// Makes a Hello due at once. It is the last one on this link.
    pub fn send_now(&mut self) {
        self.last = None;
        self.first = Duration::ZERO;
    }

    /// Nothing can be sent now: makes the next Hello due after one interval.
    pub fn skip(&mut self, now: Duration) {
        (self.last, self.soon, self.probed_by_peer) = (Some(now), false, false);
        self.probes.clear();
    }

    /// The claim of this node to `lb_ip` changed.
    pub fn claim_changed(&mut self, lb_ip: IpAddr) {
        self.changed.insert(lb_ip);
    }

    /// Records the buckets that a peer requests.
    pub fn receive_bucket_requests(&mut self, requests: &[hello::BucketRequest]) {
        let me = hello::id(self.incarnation);
        for request in requests.iter().filter(|request| request.id == me) {
            self.requested |= request.buckets;
        }
    }

    /// Whether peers may consider this node dead: no Hello was sent for a whole window. (The last Hello may have been
    /// lost, but then the peer has sent its claims since.)
    pub fn is_missed(&self, now: Duration, multiplier: u32) -> bool {
        self.last.is_none_or(|last| now >= last + self.interval.published_interval() * multiplier)
    }

    pub fn due(&self) -> Duration {
        let pause = match self {
            Self { probes, .. } if !probes.is_empty() => Duration::ZERO,
            Self { probed_by_peer: true, .. } => PROBE_REPLY_GAP,
            Self { soon: true, .. } => SOON_GAP,
            _ => self.interval.actual_interval(),
        };
        self.last.map_or(self.first, |last| last + pause)
    }

    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.due()
    }

    /// The interval as published to the peers.
    pub fn interval(&self) -> Duration {
        self.interval.published_interval()
    }

    /// The packets to send: first the parts, then the Hello itself. A peer that receives all of them has nothing to
    /// request.
    pub fn packets(
        &mut self,
        context: &Context<'_>,
        link: &Link,
        own: &mut Claims,
        peers: &HelloPeers<'_>,
    ) -> Vec<Packet> {
        let config = context.config;
        let mut is_news = self.soon || self.probed_by_peer || self.last.is_none() || self.requested != 0;
        is_news |= !self.changed.is_empty() || !self.probes.is_empty();
        (self.last, self.soon, self.probed_by_peer) = (Some(context.now), false, false);
        let published = self.interval.published_interval();
        self.interval.update(config, peers.speakers);
        // All parts have one sequence, because they may overtake each other.
        self.sequence += 1;
        let bits = own.suitable_bits();
        if bits != own.bits() {
            own.set_bits(bits);
            // The requests refer to the former buckets. Peers request missing claims again.
            self.requested = 0;
        }
        let mut buckets = std::mem::take(&mut self.requested);
        buckets |= self.changed.iter().fold(0, |buckets, lb_ip| buckets | 1 << own.bucket(*lb_ip));
        self.changed.clear();
        if bits == 0 {
            // There are so few claims that each Hello carries them.
            buckets = 1;
        }
        let room = MAX_PAYLOAD - context.keys.overhead(context.now) - codec::overhead(&config.node, &link.name);
        let buckets = (0..1 << bits).filter(|bucket| buckets & 1 << bucket != 0);
        let pages: Vec<Page> = buckets.flat_map(|bucket| own.pages(bucket, room - PAGE_OVERHEAD)).collect();
        let lists = peers.lists(context.now);
        is_news |= published != self.interval.published_interval() || context.leaving || context.snapshot.is_none();
        is_news |= !lists.echoes.is_empty() || !lists.bucket_requests.is_empty();
        self.hellos_without_news = if is_news { 0 } else { self.hellos_without_news.saturating_add(1) };
        let empty = Packet {
            cluster: config.cluster,
            node: config.node.clone(),
            mac: link.mac,
            link: link.name.clone(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            part: 0,
            interval: self.interval.published_interval(),
            leaving: context.leaving,
            blind: context.snapshot.is_none(),
            routine: self.hellos_without_news >= NEWS_REPEATS,
            heard: HeardRange { all: 0, from: 1, to: 0, peers: vec![] },
            echoes: vec![],
            probed: vec![],
            bucket_requests: vec![],
            bits,
            digests: None,
            pages: vec![],
        };
        let probed = std::mem::take(&mut self.probes);
        let room = room - probed.len() * size::PROBED;
        let mut packets = pack(empty, own.digests().to_vec(), lists, pages, room);
        let hello = packets.last_mut().expect("invariant: there is a Hello");
        hello.probed = probed;
        // A node that hears no peer counts as deaf. This one hears other hosts.
        hello.heard.all = hello.heard.all.max(u16::from(peers.hears_outsiders));
        packets
    }
}

/// The peers that a Hello reports on.
pub struct HelloPeers<'a> {
    pub peers: &'a BTreeMap<String, Peer>,
    /// The peers with an unfinished handshake.
    pub handshakes: &'a Handshakes,
    /// The number of live speakers, this one included.
    pub speakers: usize,
    /// Whether only hosts that are no peers are heard.
    pub hears_outsiders: bool,
}

impl HelloPeers<'_> {
    fn lists(&self, now: Duration) -> PeerLists {
        let present = || self.peers.values().filter(|peer| peer.state != PeerState::Dead);
        let id = |peer: &Peer| hello::id(peer.incarnation);
        let heard = present().filter(|peer| peer.liveness.is_heard(now));
        let mut heard: Vec<Heard> = heard.map(|peer| Heard { id: id(peer), age: peer.liveness.age(now) }).collect();
        heard.sort_unstable_by_key(|heard| heard.id);
        // A peer that does not list this node may have lost sight of it and need an echo to believe its Hellos.
        let unsure = present().filter(|peer| !peer.lists_us);
        let unsure = unsure.map(|peer| hello::Echo { id: id(peer), sequence: peer.sequence as u32 });
        let echoes = self.handshakes.echoes(now).chain(unsure).collect();
        let unread = present().filter(|peer| peer.unread_buckets != 0);
        let request = |peer: &Peer| hello::BucketRequest { id: id(peer), buckets: peer.unread_buckets };
        PeerLists { heard, echoes, bucket_requests: unread.map(request).collect() }
    }
}
