//! One peer on one link: whether it is alive, and its claims.
//!
//! The input is packets that are believed (see `ownership::segment::receive_hello`); the output is the addresses whose
//! claim changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::ownership::claims::Claims;
use crate::peers::liveness::{Liveness, PeerState};
use crate::peers::reachability::Reachability;
use crate::wire::hello::Packet;
use crate::wire::packing::MAX_PARTS;
use crds::MacAddr;

/// At most this many claims of a peer are stored, so that a faulty peer cannot exhaust memory.
const MAX_CLAIMS: usize = 65_536;

/// Unread claims of a peer prevent this node from claiming addresses for at most this many intervals of the peer. After
/// that the peer is probably faulty, and an address without an owner is worse than one with two.
const UNREAD_INTERVALS: u32 = 20;

/// A shorter interval of a peer counts as this one. Otherwise a peer could make this node check the peer's state too
/// often.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How a packet of a peer reached this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Direct,
    /// Another peer has forwarded it.
    Relayed,
}

/// A peer on a link.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Distinguishes this run of the peer's speaker from all others.
    pub incarnation: u64,
    /// The sequence of the last packet.
    pub sequence: u64,
    /// The received parts of the last Hello, one bit each.
    parts: [u64; MAX_PARTS / 64],
    /// The peer's MAC address on the link.
    pub mac: MacAddr,
    /// The name of the link at the peer.
    pub link: String,
    /// The address that the peer sends from: its node's own one on the link.
    pub address: Option<IpAddr>,
    pub liveness: Liveness,
    /// The last peer that reported that it hears this one, and when it heard it: it can forward packets.
    pub voucher: Option<(u32, Duration)>,
    /// Until when this node forwards the packets of the peer, because other peers do not hear it.
    pub relay_until: Duration,
    /// Whether this node knows the peer only by forwarded packets, for some time already.
    pub is_relayed: bool,
    /// Whether the kernel of its node answers while the peer is silent.
    pub reachability: Reachability,
    /// The state at the last check.
    pub state: PeerState,
    /// The time of the last change of `state`.
    pub state_since: Duration,
    /// The peer is about to stop.
    pub leaving: bool,
    /// The peer has no snapshot yet, so it knows no addresses.
    pub blind: bool,
    /// Whether the peer hears this node, according to its last list that covers the id of this node.
    pub lists_us: bool,
    pub claims: Claims,
    /// The buckets in which the peer's claims differ from the copy in `claims`, one bit each.
    pub unread_buckets: u128,
    /// The time since which any bucket is unread.
    pub unread_since: Duration,
}

impl Peer {
    /// A peer whose first packet has arrived. The caller must still pass the packet to [`Self::receive`].
    pub fn new(now: Duration, path: Path, packet: &Packet, multiplier: u32) -> Self {
        let liveness = match path {
            Path::Direct => Liveness::new,
            Path::Relayed => Liveness::new_relayed,
        };
        Self {
            incarnation: packet.incarnation,
            sequence: packet.sequence,
            parts: [0; MAX_PARTS / 64],
            mac: packet.mac,
            link: packet.link.clone(),
            address: None,
            liveness: liveness(now, packet.interval.max(MIN_INTERVAL), multiplier),
            voucher: None,
            relay_until: Duration::ZERO,
            is_relayed: false,
            reachability: Reachability::default(),
            state: PeerState::Dead, // until the first check
            state_since: now,
            leaving: packet.leaving,
            blind: packet.blind,
            lists_us: false,
            claims: Claims::default(),
            unread_buckets: 0,
            unread_since: now,
        }
    }

    /// Replaces the peer by a new incarnation. `packet` is its first packet. The new incarnation has no claims yet.
    /// Returns the addresses that the former incarnation claimed.
    pub fn restart(&mut self, now: Duration, path: Path, packet: &Packet, multiplier: u32) -> BTreeSet<IpAddr> {
        let new = Self { state: self.state, ..Self::new(now, path, packet, multiplier) };
        std::mem::replace(self, new).claims.iter().map(|(lb_ip, _)| lb_ip).collect()
    }

    /// Whether a packet of this incarnation is new: it was not received before, and neither was a packet of a later
    /// Hello.
    pub fn is_new(&self, packet: &Packet) -> bool {
        let is_repeated = |(word, bit)| packet.sequence == self.sequence && self.parts[word] & bit != 0;
        packet.sequence >= self.sequence && part_bit(packet).is_some_and(|part| !is_repeated(part))
    }

    /// Applies a packet of the peer, if it is new. `us` is the id of this node. Returns the addresses whose claim
    /// changed.
    pub fn receive(&mut self, now: Duration, path: Path, packet: &Packet, us: u32) -> Option<BTreeSet<IpAddr>> {
        let (word, bit) = part_bit(packet).filter(|_| self.is_new(packet))?;
        if packet.sequence > self.sequence {
            self.parts = [0; MAX_PARTS / 64];
        }
        self.parts[word] |= bit;
        self.sequence = packet.sequence;
        self.mac = packet.mac;
        if self.link != packet.link {
            self.link.clone_from(&packet.link);
        }
        self.leaving = packet.leaving;
        self.blind = packet.blind;
        let interval = packet.interval.max(MIN_INTERVAL);
        match path {
            Path::Direct => self.liveness.record_hello(now, interval),
            Path::Relayed => self.liveness.record_relayed(now, interval),
        }
        let mut changed = BTreeSet::new();
        for page in &packet.pages {
            if self.claims.len() + page.claims.len() <= MAX_CLAIMS {
                changed.append(&mut self.claims.replace(page));
            }
        }
        let is_covered = packet.heard.covers(us);
        if is_covered {
            self.lists_us = packet.heard.peers.binary_search_by_key(&us, |heard| heard.id).is_ok();
        }
        // A peer to which another one forwards the packets of this node knows the claims of this node.
        let is_read = packet.relay_requests.iter().any(|request| request.id == us && request.is_served);
        let hears_us = is_covered.then_some(self.lists_us || is_read);
        self.liveness.record_lists(now, packet.heard.all > 0, hears_us);
        if let Some(digests) = &packet.digests {
            self.claims.set_bits(packet.bits);
            if self.unread_buckets == 0 {
                self.unread_since = now;
            }
            self.unread_buckets = self.claims.differing(digests);
        }
        Some(changed)
    }

    /// Records the address that a received packet came from. The peer is no longer silent.
    pub fn record_address(&mut self, address: Option<IpAddr>) {
        (self.address, self.reachability) = (address, Reachability::default());
    }

    /// Records that another peer, with the id `voucher`, heard this one at `at`.
    pub fn record_voucher(&mut self, now: Duration, voucher: u32, at: Duration) {
        self.liveness.record_voucher(at);
        // One relay is enough, so the node keeps it while it hears the peer.
        let keeps = self.voucher.is_some_and(|(id, at)| id != voucher && now < at + self.liveness.window());
        if !keeps {
            self.voucher = Some((voucher, at));
        }
    }

    /// Whether this node probes the peer when its Hello is late: until its window ends.
    pub fn is_probed(&self, now: Duration) -> bool {
        self.state != PeerState::Dead && self.liveness.is_heard(now)
    }

    /// Whether the peer is alive and not leaving. Its claims count only then.
    pub fn is_serving(&self) -> bool {
        self.state == PeerState::Alive && !self.leaving
    }

    /// Whether the peer can take over an address without an owner.
    pub fn can_take_over(&self) -> bool {
        self.is_serving() && !self.blind
    }

    /// Whether the peer may have a claim to `lb_ip` that this node has not read, as its digest shows.
    pub fn may_claim(&self, lb_ip: IpAddr, now: Duration) -> bool {
        self.is_serving()
            && self.is_unread(lb_ip)
            && now < self.unread_since + self.liveness.interval * UNREAD_INTERVALS
    }

    /// Whether the peer died less than an interval ago without a goodbye, and this node has read its last claim to
    /// `lb_ip`.
    pub fn has_just_died(&self, lb_ip: IpAddr, now: Duration) -> bool {
        let is_dead = self.state == PeerState::Dead && !self.leaving;
        is_dead && !self.is_unread(lb_ip) && now < self.state_since + self.liveness.interval
    }

    fn is_unread(&self, lb_ip: IpAddr) -> bool {
        self.unread_buckets & 1 << self.claims.bucket(lb_ip) != 0
    }
}

/// The word and the bit of a packet's part in [`Peer::parts`]; `None` if the number of the part is too great.
fn part_bit(packet: &Packet) -> Option<(usize, u64)> {
    let part = usize::from(packet.part);
    (part < MAX_PARTS).then_some((part / 64, 1 << (part % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::{self, Heard, HeardRange};

    const MAC: MacAddr = MacAddr(2, 0, 0, 0, 0, 2);

    fn us() -> u32 {
        hello::id(1)
    }

    fn packet(incarnation: u64, sequence: u64, part: u16) -> Packet {
        Packet {
            cluster: 0,
            node: "n2".into(),
            mac: MAC,
            link: "eth0".into(),
            incarnation,
            sequence,
            part,
            interval: Duration::from_millis(50),
            leaving: false,
            blind: false,
            routine: false,
            heard: HeardRange::default(),
            echoes: vec![],
            probed: vec![],
            bucket_requests: vec![],
            relay_requests: vec![],
            bits: 0,
            digests: None,
            pages: vec![],
        }
    }

    #[test]
    fn packet_counts_once_and_never_after_a_later_hello() {
        let mut peer = Peer::new(Duration::ZERO, Path::Direct, &packet(7, 5, 0), 3);
        for (sequence, part, expected) in [
            (5, 0, true),
            (5, 0, false),
            (5, 2, true), // parts of one Hello may overtake each other
            (5, 1, true),
            (5, 2, false),
            (4, 3, false),
            (9, 1023, true),
            (9, 1024, false),
            (5, 3, false),
            (9, 0, true),
        ] {
            let received = peer.receive(Duration::ZERO, Path::Direct, &packet(7, sequence, part), us());
            assert_eq!(received.is_some(), expected, "{sequence}, part {part}");
        }
        peer.restart(Duration::ZERO, Path::Direct, &packet(8, 1, 0), 3);
        assert_eq!(peer.receive(Duration::ZERO, Path::Direct, &packet(8, 1, 0), us()), Some(BTreeSet::new()));
    }

    #[test]
    fn only_a_part_covering_our_id_changes_lists_us() {
        let mut peer = Peer::new(Duration::ZERO, Path::Direct, &packet(7, 1, 0), 3);
        let us_id = us();
        let listed = Heard { id: us_id, age: Duration::ZERO };
        for (sequence, from, to, peers, expected) in [
            (1, 0, u32::MAX, vec![listed], true),
            (2, us_id + 1, u32::MAX, vec![], true),
            (3, 1, 0, vec![], true),
            (4, 0, us_id, vec![], false),
        ] {
            let heard = HeardRange { all: 9, from, to, peers };
            peer.receive(Duration::ZERO, Path::Direct, &Packet { heard, ..packet(7, sequence, 0) }, us())
                .expect("a new packet");
            assert_eq!(peer.lists_us, expected, "{sequence}");
        }
    }
}
