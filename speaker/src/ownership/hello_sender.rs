//! When this node sends a Hello on a link, and the content of the Hello.
//!
//! A Hello is sent once per interval ([`crate::peers::interval`]), and sooner after a change. It carries the claims
//! that changed or were requested. A Hello that exceeds one packet is sent in parts ([`crate::wire::packing`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;
use crate::ownership::claims::{Claims, Page};
use crate::ownership::context::Context;
use crate::peers::interval::HelloInterval;
use crate::wire::codec::relayed::RELAY_OVERHEAD;
use crate::wire::codec::{self, MAX_PAYLOAD, PAGE_OVERHEAD, size};
use crate::wire::hello::{self, HeardRange, Packet};
use crate::wire::packing::{PeerLists, pack};
use netlink::links::Link;

/// After a change, the next Hello is due this time after the last one, so that several changes share a Hello.
const SOON_GAP: Duration = Duration::from_millis(10);

/// After a probe, the next Hello is due this time after the last one, so that one Hello answers several probes.
const PROBE_REPLY_GAP: Duration = Duration::from_millis(2);

/// An urgent Hello carries a change, a request or an answer. This many Hellos, the urgent one and the next ones, are
/// not routine ([`codec::is_routine`]), because the first may be lost.
const URGENT_REPEATS: u32 = 3;

/// The state of this node's Hellos on a link.
#[derive(Debug)]
pub struct HelloSender {
    /// When the last Hello was sent. `None` makes a Hello due at once: the first one, or the goodbye.
    last: Option<Duration>,
    /// Whether a change since the last Hello waits to be sent.
    soon: bool,
    /// Whether a peer has probed this node since the last Hello.
    probed_by_peer: bool,
    /// Whether the next Hello is the last one on this link.
    is_goodbye: bool,
    /// The number of Hellos since the last urgent one.
    hellos_since_urgent: u32,
    /// The ids of the peers to probe with the next Hello.
    pub probes: Vec<u32>,
    pub interval: HelloInterval,
    /// The incarnation of this node on this link.
    pub incarnation: u64,
    /// The sequence of the last Hello.
    pub sequence: u64,
    /// Addresses whose claim changed since the last Hello.
    changed: BTreeSet<IpAddr>,
    /// The buckets that peers requested, one bit each.
    requested: u128,
}

impl HelloSender {
    pub fn new(incarnation: u64, config: &Config) -> Self {
        Self {
            last: None,
            soon: false,
            probed_by_peer: false,
            is_goodbye: false,
            hellos_since_urgent: 0,
            probes: Vec::new(),
            interval: HelloInterval::new(config),
            incarnation,
            sequence: 0,
            changed: BTreeSet::new(),
            requested: 0,
        }
    }

    /// Makes the next Hello due soon.
    pub fn send_soon(&mut self) {
        self.soon = true;
    }

    /// Makes a Hello due at once. It is the last one on this link.
    pub fn send_goodbye(&mut self) {
        (self.last, self.is_goodbye) = (None, true);
    }

    /// Makes the next Hello due after one interval, because no Hello can be sent now.
    pub fn skip(&mut self, now: Duration) {
        (self.last, self.soon, self.probed_by_peer) = (Some(now), false, false);
        self.probes.clear();
    }

    /// Records that the claim of this node to `lb_ip` changed.
    pub fn record_claim_change(&mut self, lb_ip: IpAddr) {
        self.changed.insert(lb_ip);
    }

    /// Records the requests in a packet of a peer: for an answer at once, and for buckets of claims.
    pub fn receive_requests(&mut self, packet: &Packet) {
        let own_id = hello::id(self.incarnation);
        self.probed_by_peer |= packet.probed.contains(&own_id);
        for request in packet.bucket_requests.iter().filter(|request| request.id == own_id) {
            self.requested |= request.buckets;
        }
    }

    /// Whether peers may have declared this node dead, because it sent no Hello for a whole window. (A peer that did
    /// not receive the last Hello may have taken over sooner. Then this node receives the claims of that peer.)
    pub fn is_missed(&self, now: Duration, multiplier: u32) -> bool {
        self.last.is_none_or(|last| now >= last + self.interval.published * multiplier)
    }

    pub fn due(&self) -> Duration {
        let pause = match self {
            Self { probes, .. } if !probes.is_empty() => Duration::ZERO,
            Self { probed_by_peer: true, .. } => PROBE_REPLY_GAP,
            Self { soon: true, .. } => SOON_GAP,
            _ => self.interval.actual,
        };
        self.last.map_or(Duration::ZERO, |last| last + pause)
    }

    /// The packets to send now: first the parts, then the Hello itself. A peer that receives all of them has nothing to
    /// request.
    pub fn packets(&mut self, context: &Context, link: &Link, own: &mut Claims, lists: PeerLists) -> Vec<Packet> {
        let config = &context.config;
        let mut is_urgent = self.soon || self.probed_by_peer || self.last.is_none() || self.requested != 0;
        is_urgent |= !self.changed.is_empty() || !self.probes.is_empty();
        is_urgent |= context.leaving || context.snapshot.is_none();
        is_urgent |= !lists.echoes.is_empty() || !lists.bucket_requests.is_empty();
        self.hellos_since_urgent = if is_urgent { 0 } else { self.hellos_since_urgent.saturating_add(1) };
        (self.last, self.soon, self.probed_by_peer) = (Some(context.now), false, false);
        // All parts have one sequence, because they may overtake each other.
        self.sequence += 1;
        let bits = own.suitable_bits();
        if own.set_bits(bits) {
            // The requests refer to the former buckets. Peers request missing claims again.
            self.requested = 0;
        }
        let mut buckets = std::mem::take(&mut self.requested);
        let changed = std::mem::take(&mut self.changed);
        buckets |= changed.into_iter().fold(0, |buckets, lb_ip| buckets | 1 << own.bucket(lb_ip));
        if bits == 0 {
            // All claims are in one bucket, which each Hello carries.
            buckets = 1;
        }
        // Another speaker can forward each packet whole.
        let overhead = RELAY_OVERHEAD + context.keys.overhead(context.now) + codec::overhead(&config.node, &link.name);
        let room = MAX_PAYLOAD - overhead;
        let buckets = (0..1 << bits).filter(|bucket| buckets & 1 << bucket != 0);
        let pages: Vec<Page> = buckets.flat_map(|bucket| own.pages(bucket, room - PAGE_OVERHEAD)).collect();
        let empty = Packet {
            cluster: config.cluster,
            node: config.node.clone(),
            mac: link.mac,
            link: link.name.clone(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            part: 0,
            interval: self.interval.published,
            leaving: context.leaving || self.is_goodbye,
            blind: context.snapshot.is_none(),
            routine: self.hellos_since_urgent >= URGENT_REPEATS,
            heard: HeardRange { all: 0, from: 1, to: 0, peers: vec![] },
            echoes: vec![],
            probed: vec![],
            bucket_requests: vec![],
            relay_requests: vec![],
            bits,
            digests: None,
            pages: vec![],
        };
        let probed = std::mem::take(&mut self.probes);
        let room = room - probed.len() * size::PROBED;
        let mut packets = pack(empty, own.digests().to_vec(), lists, pages, room);
        packets.last_mut().expect("invariant: there is a Hello").probed = probed;
        packets
    }
}
