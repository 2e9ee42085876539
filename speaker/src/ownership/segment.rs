//! One link and the LAN behind it: its peers, and the claims and announcements of this node there.
//!
//! A segment holds the state. Pure functions in other modules decide: [`crate::ownership::rules`],
//! [`crate::peers::liveness`], [`crate::wire::arp`], [`crate::announce::schedule`]. Only addresses for which an input
//! of the decision has changed are decided again: those in the set `dirty`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::announce::conflicts::AddressConflicts;
use crate::announce::schedule::Schedule;
use crate::config::Config;
use crate::metrics::{Event, Move};
use crate::ownership::claims::{Claim, Claims};
use crate::ownership::context::Context;
use crate::ownership::hello_sender::HelloSender;
use crate::ownership::rules::{Ceding, Reason};
use crate::peers::handshake::{self, Handshakes};
use crate::peers::interval::MAX_INTERVAL;
use crate::peers::liveness::{self, PeerState};
use crate::peers::peer::Peer;
use crate::peers::relay::UnknownSpeakers;
use netlink::links::Link;

/// When a peer has begun or ceased to claim an owned address, this node announces the address for this time, even
/// without a quorum. The time is longer than a burst, which takes 4 s.
const INSIST_TIME: Duration = Duration::from_secs(5);

mod announce;
mod decide;
mod observe_deaths;
mod receive_hello;
mod relay;
mod resolve;
mod send_hello;
mod solicit;
mod view;

/// Whether this node hears enough of its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quorum {
    /// This node hears less than a quorum, so it may be cut off.
    Minority,
    /// The only peer is silent, but a host that is no peer was heard since. So this node is not cut off.
    Outsiders,
    /// This node hears a quorum.
    Majority,
}

/// The state of one link.
#[derive(Debug)]
pub struct Segment {
    pub(crate) link: Link,
    pub(crate) peers: BTreeMap<String, Peer>,
    /// Speakers that peers hear, and of which this node has received no packet.
    unknown_speakers: UnknownSpeakers,
    /// The unfinished handshakes with speakers that have not yet proved that they are alive.
    handshakes: Handshakes,
    /// The last reported incarnation of another speaker that uses this node's name.
    duplicate: Option<u64>,
    /// The claims of this node as sent to peers: active ones and tombstones.
    own_claims: Claims,
    /// The end of each tombstone.
    tombstones: BTreeMap<IpAddr, Duration>,
    /// The addresses that belong to the link.
    placed: BTreeSet<IpAddr>,
    /// The addresses for which a decision is due, because an input has changed.
    dirty: BTreeSet<IpAddr>,
    /// The greatest epoch seen for each address.
    epochs: BTreeMap<IpAddr, u64>,
    /// Addresses without an owner, each with the time since which this node waits for its turn to claim it. `None` if
    /// this node may not claim the address now.
    orphans: BTreeMap<IpAddr, Option<Duration>>,
    /// The times at which to decide again about an address.
    turns: BTreeSet<(Duration, IpAddr)>,
    /// Why this node cedes an owned address.
    ceding: BTreeMap<IpAddr, Ceding>,
    /// The takeovers by which this node got addresses that it owns.
    moves: BTreeMap<IpAddr, Move>,
    /// Owned addresses that a peer claims too.
    contested: BTreeSet<IpAddr>,
    /// Owned addresses that a peer has just begun or ceased to claim, each with a time. Until then this node announces
    /// the address even without a quorum.
    insist_until: BTreeMap<IpAddr, Duration>,
    /// When this node last reacted to a peer that used an owned address.
    last_defended: BTreeMap<IpAddr, Duration>,
    pub(crate) conflicts: AddressConflicts,
    schedule: Schedule,
    /// The start of the listening period, in which this node claims no address. It begins when this node starts, gets
    /// its first keys, resumes, or hears a quorum again.
    listen_from: Duration,
    /// The start of the quiet period, in which this node sends no gratuitous ARP and no unsolicited NA. This node was
    /// suspended or cut off, and a peer may have taken over.
    quiet_from: Option<Duration>,
    quorum: Quorum,
    /// When the first frame of a host that is no peer, or the first answer of the peer's kernel, arrived after the only
    /// peer fell silent: a sign that this node can hear.
    outsider_heard_at: Option<Duration>,
    /// The number of live peers at the last check.
    live_peers: usize,
    /// The longest interval of a live peer.
    slowest_peer: Duration,
    pub(crate) hello_sender: HelloSender,
}

impl Segment {
    pub fn new(now: Duration, link: Link, incarnation: u64, config: &Config) -> Self {
        Self {
            link,
            peers: BTreeMap::new(),
            unknown_speakers: UnknownSpeakers::default(),
            handshakes: Handshakes::default(),
            duplicate: None,
            own_claims: Claims::default(),
            tombstones: BTreeMap::new(),
            placed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            epochs: BTreeMap::new(),
            orphans: BTreeMap::new(),
            turns: BTreeSet::new(),
            ceding: BTreeMap::new(),
            moves: BTreeMap::new(),
            contested: BTreeSet::new(),
            insist_until: BTreeMap::new(),
            last_defended: BTreeMap::new(),
            conflicts: AddressConflicts::default(),
            schedule: Schedule::default(),
            listen_from: now,
            quiet_from: None,
            quorum: Quorum::Minority,
            outsider_heard_at: None,
            live_peers: 0,
            slowest_peer: Duration::ZERO,
            hello_sender: HelloSender::new(incarnation, config),
        }
    }

    /// Continues a closed segment whose link was down until now. This node still knows its peers, because a quorum
    /// counts all of them, and the epochs. Its sequence goes on, so that peers do not take its Hellos for replayed
    /// ones. The sequence skips some numbers, so that an echo recorded earlier proves nothing. The rest is new.
    pub fn resume_link(self, now: Duration, link: Link, config: &Config) -> Self {
        let Self { peers, epochs, quorum, hello_sender, .. } = self;
        let mut resumed = Self { peers, epochs, quorum, ..Self::new(now, link, hello_sender.incarnation, config) };
        resumed.hello_sender.sequence = hello_sender.sequence + u64::from(handshake::ECHO_WINDOW);
        resumed.excuse_peers(now);
        resumed
    }

    /// Applies a change of the link. After a change of its MAC address all addresses are announced again.
    pub fn update_link(&mut self, now: Duration, link: &Link) {
        if self.link.mac != link.mac {
            self.announce_all_again(now);
        }
        if self.link != *link {
            self.link.clone_from(link);
        }
    }

    /// The addresses that this node announces on the link, with their claims.
    pub fn announced_claims(&self) -> impl Iterator<Item = (IpAddr, Claim)> + '_ {
        self.own_claims.iter().filter(|(_, claim)| claim.active)
    }

    /// The claim of this node to `lb_ip`, if it announces the address.
    pub fn own_claim(&self, lb_ip: IpAddr) -> Option<Claim> {
        self.own_claims.get(lb_ip).filter(|claim| claim.active)
    }

    /// Restarts the listening period at `now`. Silence of a peer before `now` does not prove that it is dead.
    pub fn restart_listening(&mut self, now: Duration) {
        self.listen_from = self.listen_from.max(now);
    }

    /// The longest interval of Hellos on the link.
    pub fn slowest_interval(&self) -> Duration {
        self.slowest_peer.min(MAX_INTERVAL).max(self.hello_sender.interval.published)
    }

    fn is_listening(&self, now: Duration, config: &Config) -> bool {
        now < self.listen_from + config.listening_time(self.slowest_interval())
    }

    /// The end of the quiet period.
    fn quiet_until(&self, config: &Config) -> Duration {
        self.quiet_from.map_or(Duration::ZERO, |from| from + config.listening_time(self.slowest_interval()))
    }

    pub fn add_placed(&mut self, lb_ip: IpAddr) {
        if self.placed.insert(lb_ip) {
            self.dirty.insert(lb_ip);
        }
    }

    pub fn remove_placed(&mut self, lb_ip: IpAddr) {
        if self.placed.remove(&lb_ip) {
            self.dirty.insert(lb_ip);
        }
    }

    pub fn placed_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.placed.iter().copied()
    }

    /// Marks placed addresses for a decision.
    pub fn mark_dirty<'a>(&mut self, lb_ips: impl IntoIterator<Item = &'a IpAddr>) {
        let concerned = lb_ips.into_iter().filter(|lb_ip| self.placed.contains(lb_ip));
        self.dirty.extend(concerned);
    }

    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(&self.placed);
        self.dirty.extend(self.announced_addresses());
    }

    /// Gives each peer a new window, because this node was suspended until now, or its link was down.
    pub fn excuse_peers(&mut self, now: Duration) {
        for peer in self.peers.values_mut().filter(|peer| peer.state != PeerState::Dead) {
            peer.liveness.excuse(now);
        }
        for peer in self.peers.values_mut() {
            peer.reachability.excuse(now, &peer.liveness);
        }
    }

    /// Resumes after a suspension during which peers may have taken over this node's addresses.
    pub fn resume(&mut self, now: Duration) {
        self.restart_listening(now);
        self.conflicts.restart_probes(now);
        self.announce_again_after_quiet(now);
    }

    /// Announces all addresses again, after a quiet period. This node was suspended or cut off. Peers may have taken
    /// over its addresses, announced them, and even withdrawn them since. The quiet period is long enough to receive
    /// their claims.
    fn announce_again_after_quiet(&mut self, now: Duration) {
        self.quiet_from = Some(now);
        self.announce_all_again(now);
    }

    fn announce_all_again(&mut self, now: Duration) {
        for lb_ip in self.announced_addresses() {
            self.schedule.start(lb_ip, now);
        }
    }

    /// Updates the state of each peer, and the quorum.
    pub fn update_peer_states(&mut self, context: &mut Context) {
        (self.live_peers, self.slowest_peer) = (0, Duration::ZERO);
        for (node, peer) in &mut self.peers {
            let state = peer.liveness.state(context.now);
            if state == PeerState::Alive {
                self.live_peers += 1;
                self.slowest_peer = self.slowest_peer.max(peer.liveness.interval);
            }
            if state == peer.state {
                continue;
            }
            if state < peer.state {
                context.counters.peers_lost += 1;
            }
            peer.state = state;
            peer.state_since = context.now;
            self.dirty.extend(peer.claims.iter().map(|(lb_ip, _)| lb_ip));
            self.dirty.extend(self.orphans.keys().chain(self.ceding.keys()));
            context.events.push(Event::Peer { node: node.clone(), link: self.link.name.clone(), state });
        }
        let (live, known) = (self.live_peers, self.peers.len());
        let quorum = if liveness::is_majority(live, known) {
            Quorum::Majority
        } else if self.hears_outsiders_alone(context.now) {
            Quorum::Outsiders
        } else {
            Quorum::Minority
        };
        let before = std::mem::replace(&mut self.quorum, quorum);
        if quorum == Quorum::Majority && before != Quorum::Majority {
            // While this node heard no quorum, peers may have claimed addresses. It must receive those claims before it
            // claims addresses.
            self.restart_listening(context.now);
            if before == Quorum::Minority {
                self.announce_again_after_quiet(context.now);
            } else {
                self.announce_all_again(context.now);
            }
            let until = context.now + context.config.tombstone_ttl(self.slowest_interval());
            self.tombstones.values_mut().for_each(|end| *end = until);
        }
        let backed = quorum != Quorum::Minority;
        if backed != (before != Quorum::Minority) {
            context.events.push(Event::Quorum { link: self.link.name.clone(), backed, live, known });
        }
    }

    /// Whether a peer can take over the addresses of this node.
    pub fn has_successors(&self) -> bool {
        self.peers.values().any(Peer::can_take_over)
    }

    /// Withdraws all addresses, because the link is gone or no longer needed.
    pub fn close(&mut self, context: &mut Context) {
        for lb_ip in self.announced_addresses() {
            let reason = self.eligibility(context, lb_ip).err().unwrap_or(Reason::LinkLost);
            self.withdraw(context, lb_ip, reason);
        }
    }

    /// Withdraws all addresses and sends a goodbye at once.
    pub fn leave(&mut self, context: &mut Context) {
        for lb_ip in self.announced_addresses() {
            self.withdraw(context, lb_ip, Reason::Leaving);
        }
        self.send_goodbye(context);
    }

    fn announced_addresses(&self) -> Vec<IpAddr> {
        self.announced_claims().map(|(lb_ip, _)| lb_ip).collect()
    }

    /// When the segment must be polled next, except for announcements.
    pub fn next_deadline(&self, now: Duration) -> Duration {
        let silence = self.peers.values().filter_map(|peer| peer.liveness.next_deadline(now));
        let turn = self.turns.first().map(|(turn, _)| *turn);
        silence
            .chain(turn)
            .chain(self.next_probe(now))
            .chain(self.next_solicitation(now))
            .chain(self.conflicts.next_deadline())
            .fold(self.hello_sender.due(), Duration::min)
    }

    /// Whether no pending work depends on a routine Hello: each peer is alive, hears this node and has no unread
    /// claims; there is no open handshake, decision, turn or tombstone; and the listening period is over.
    pub fn is_idle(&self, now: Duration, config: &Config) -> bool {
        let is_settled =
            |peer: &Peer| peer.state == PeerState::Alive && !peer.leaving && peer.lists_us && peer.unread_buckets == 0;
        self.peers.values().all(is_settled)
            && self.handshakes.echoes(now).next().is_none()
            && self.dirty.is_empty()
            && self.orphans.is_empty()
            && self.turns.is_empty()
            && self.tombstones.is_empty()
            && !self.is_listening(now, config)
    }
}
