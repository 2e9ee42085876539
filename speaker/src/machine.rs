//! The speaker without its sockets, its clock and its sleep.
//!
//! Inputs are frames, links, snapshots and the addresses that the dataplane forwards. [`Machine::poll`] returns the work of a
//! round as one [`Output`]. The real loop ([`crate::run`](fn@crate::run)) and the simulated network of the tests drive the same
//! machine:
//!
//! ```text
//!   loop {
//!       sleep until next_deadline() (or announcement_due(), if there is room to send), or until a frame or input arrives
//!       if record_wake(now) { drop the frames in the sockets }
//!       else                { receive(time of arrival, ..) for each frame }
//!       set_links(..), set_snapshot(..), set_forwarded(..), leave(now) as required
//!       poll(now, room) -> Output: join groups, send frames, log events, publish changes
//!   }
//! ```
//!
//! Times are durations since any fixed moment, the same for all calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::announce::conflicts::ConflictingHost;
use crate::announce::placement::Link;
use crate::config::Config;
use crate::metrics::Move;
use crate::metrics::{Counters, Event};
use crate::ownership::claims::Claim;
use crate::ownership::context::Context;
use crate::ownership::segment::Segment;
use crate::peers::deaths::Deaths;
use crate::peers::neighbours::Neighbours;
use crate::snapshot::Snapshot;
use crate::wire::codec::{self, DecodeError};
use crate::wire::datagram;
use crate::wire::frame::{Channel, Frame};
use crate::wire::hello::Packet;
use crate::wire::seal::{KeyRing, Keys, SealError};
use model::eligibility::AnnouncementPolicy;

mod arrange;

/// The speaker on all links.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    keys: KeyRing,
    links: BTreeMap<u32, Link>,
    snapshot: Option<Arc<Snapshot>>,
    forwarded: Arc<BTreeSet<IpAddr>>,
    segments: BTreeMap<u32, Segment>,
    /// Addresses that this node may no longer announce, kept on their link until a successor takes over.
    outgoing: BTreeSet<IpAddr>,
    stopping: Stopping,
    deaths: Deaths,
    neighbours: Neighbours,
    /// When the loop should run next.
    expected: Option<Duration>,
    frames: Vec<Frame>,
    events: Vec<Event>,
    counters: Counters,
    reports_changed: bool,
    groups_changed: bool,
    dead_changed: bool,
    neighbours_changed: bool,
}

/// The work of a round, in the order in which it must be done.
#[must_use]
#[derive(Debug)]
pub struct Output {
    /// If they changed: the IPv6 groups to join, each on its link. Join before announcing, because hosts may resolve an
    /// address as soon as it is announced.
    pub groups: Option<BTreeSet<(u32, Ipv6Addr)>>,
    pub frames: Vec<Frame>,
    pub events: Vec<Event>,
    /// If they changed: the dead nodes (see [`crate::peers::deaths`]).
    pub dead: Option<BTreeSet<String>>,
    /// If they changed: the nodes on each link.
    pub neighbours: Option<Neighbours>,
    /// Whether [`Machine::reportable`] or [`Machine::conflicts`] has changed.
    pub reports_changed: bool,
}

/// An announced address to report.
#[derive(Debug)]
pub struct Reportable<'a> {
    pub lb_ip: IpAddr,
    /// The name of the link.
    pub link: &'a str,
    pub claim: Claim,
    /// The takeover that brought the address here.
    pub moved: Option<Move>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// Peers should take over until this time.
    Until(Duration),
    Done,
}

impl Machine {
    /// A speaker without inputs.
    pub fn new(config: Config) -> Self {
        Self {
            keys: KeyRing::new(config.authentication),
            config,
            links: BTreeMap::new(),
            snapshot: None,
            forwarded: Arc::default(),
            segments: BTreeMap::new(),
            outgoing: BTreeSet::new(),
            stopping: Stopping::No,
            deaths: Deaths::default(),
            neighbours: Neighbours::default(),
            expected: None,
            frames: Vec::new(),
            events: Vec::new(),
            counters: Counters::default(),
            reports_changed: false,
            groups_changed: false,
            dead_changed: false,
            neighbours_changed: false,
        }
    }

    /// Records that the loop runs; called first in each round. Returns whether the loop must drop the frames in the
    /// sockets, because it was suspended until peers may have taken over. Then they have to answer those frames.
    ///
    /// After a delay of more than an interval no peer counts as silent. A mere delay does not start a quiet period or new
    /// announcements: on a busy machine, thousands of announcements would delay the loop again.
    pub fn record_wake(&mut self, now: Duration) -> bool {
        let late = self.expected.map_or(Duration::ZERO, |expected| now.saturating_sub(expected));
        self.counters.late_max = self.counters.late_max.max(late);
        if late <= self.slowest_interval() {
            return false;
        }
        self.counters.stalls += 1;
        self.events.push(Event::Stalled { late });
        let missed = self.segments.values().any(|segment| segment.is_missed(now, &self.config));
        for segment in self.segments.values_mut() {
            segment.excuse_peers(now);
            if missed {
                segment.resume(now);
            }
        }
        missed
    }

    /// Counts frames that were dropped after a suspension.
    pub fn count_dropped_backlog(&mut self, frames: u64) {
        self.counters.dropped.backlog += frames;
    }

    /// Counts frames that could not be sent.
    pub fn count_failed_sends(&mut self, frames: u64) {
        self.counters.send_failed += frames;
    }

    /// Sets the keys that seal packets.
    pub fn set_keys(&mut self, now: Duration, keys: &Keys) {
        if self.keys.set(now, keys) {
            for segment in self.segments.values_mut() {
                segment.restart_listening(now);
                segment.send_soon();
            }
        }
    }

    /// Sets the links of this node.
    pub fn set_links(&mut self, now: Duration, links: BTreeMap<u32, Link>) {
        if self.links != links {
            self.links = links;
            self.arrange(now);
        }
    }

    /// Sets the snapshot of the cluster; `None` until it has arrived.
    pub fn set_snapshot(&mut self, now: Duration, snapshot: Option<Arc<Snapshot>>) {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        let (Some(before), Some(after)) = (before, self.snapshot.clone()) else {
            self.arrange(now);
            self.segments.values_mut().for_each(Segment::mark_all_dirty);
            return;
        };
        let differing = before.addresses.differing(&after.addresses).filter(|(_, before, after)| before != after);
        let changed: Vec<_> = differing.collect();
        for segment in self.segments.values_mut() {
            segment.mark_dirty(changed.iter().filter(|(_, _, after)| after.is_some()).map(|(lb_ip, ..)| *lb_ip));
        }
        if before.node_addresses != after.node_addresses {
            self.arrange(now);
            return;
        }
        let links = |wanted: &AnnouncementPolicy| wanted.candidates.get(&self.config.node).map(|own| own.links.clone());
        let moves = |before: Option<&AnnouncementPolicy>, after: Option<&AnnouncementPolicy>| match (before, after) {
            (Some(before), Some(after)) => links(before) != links(after),
            _ => true,
        };
        let moved = changed.into_iter().filter(|(_, before, after)| moves(*before, *after));
        let moved: BTreeSet<IpAddr> = moved.map(|(lb_ip, ..)| *lb_ip).collect();
        if !moved.is_empty() {
            self.rearrange(now, moved);
        }
    }

    /// Sets the addresses that the dataplane forwards.
    pub fn set_forwarded(&mut self, forwarded: Arc<BTreeSet<IpAddr>>) {
        let changed: Vec<IpAddr> = self.forwarded.symmetric_difference(&forwarded).copied().collect();
        self.forwarded = forwarded;
        for segment in self.segments.values_mut() {
            segment.mark_dirty(&changed);
        }
    }

    fn context(&mut self, now: Duration) -> Context<'_> {
        self.segments_and_context(now).1
    }

    fn segments_and_context(&mut self, now: Duration) -> (&mut BTreeMap<u32, Segment>, Context<'_>) {
        let context = Context {
            now,
            config: &self.config,
            keys: &self.keys,
            snapshot: self.snapshot.as_deref(),
            forwarded: &self.forwarded,
            leaving: self.stopping != Stopping::No,
            frames: &mut self.frames,
            events: &mut self.events,
            counters: &mut self.counters,
            reports_changed: &mut self.reports_changed,
        };
        (&mut self.segments, context)
    }

    fn for_each_segment(&mut self, now: Duration, mut act: impl FnMut(&mut Segment, &mut Context<'_>)) {
        let (segments, mut context) = self.segments_and_context(now);
        segments.values_mut().for_each(|segment| act(segment, &mut context));
    }

    fn with_segment(&mut self, now: Duration, link: u32, act: impl FnOnce(&mut Segment, &mut Context<'_>)) {
        let (segments, mut context) = self.segments_and_context(now);
        if let Some(segment) = segments.get_mut(&link) {
            act(segment, &mut context);
        }
    }

    /// Receives a frame on a link. `at` is its time of arrival, which may lie before other inputs of this round.
    pub fn receive(&mut self, at: Duration, link: u32, channel: Channel, frame: &[u8]) {
        match channel {
            Channel::Hello | Channel::HelloV6 => self.receive_hello(at, link, frame),
            Channel::Arp => self.with_segment(at, link, |segment, context| segment.receive_arp(context, frame)),
            Channel::Ndp => self.with_segment(at, link, |segment, context| segment.receive_ndp(context, frame)),
        }
    }

    fn receive_hello(&mut self, at: Duration, link: u32, frame: &[u8]) {
        let dropped = &mut self.counters.dropped;
        let Ok((mac, payload)) = datagram::unwrap(frame) else {
            dropped.malformed += 1;
            return;
        };
        // Cheap checks first, so that foreign packets do not cost a calculation.
        match codec::read_cluster(payload) {
            Ok(cluster) if cluster == self.config.cluster => {}
            Ok(_) => {
                dropped.cluster += 1;
                return;
            }
            Err(DecodeError::Version(_)) => {
                dropped.version += 1;
                return;
            }
            Err(_) => {
                dropped.malformed += 1;
                return;
            }
        }
        let body = match self.keys.open(at, payload) {
            Ok(body) => body,
            Err(error) => {
                match error {
                    SealError::Malformed => dropped.malformed += 1,
                    SealError::Unsealed => dropped.unsealed += 1,
                    SealError::Forged => dropped.forged += 1,
                }
                return;
            }
        };
        match Packet::decode(body) {
            Ok(packet) => {
                self.with_segment(at, link, |segment, context| segment.receive_hello(context, mac, &packet));
                self.record_neighbour(link, &packet.node);
            }
            Err(_) => dropped.malformed += 1,
        }
    }

    /// Records a node as a neighbour on a link if both hear each other there.
    fn record_neighbour(&mut self, link: u32, node: &str) {
        let Some(segment) = self.segments.get(&link) else { return };
        if let Some(peer) = segment.peers.get(node).filter(|peer| peer.lists_us) {
            self.neighbours_changed |= self.neighbours.record(&segment.link.name, node, peer.mac);
        }
    }

    /// Starts to stop the speaker: it asks its peers to take over and continues until they have, or for a few intervals.
    /// Then it [is done](Self::is_done).
    pub fn leave(&mut self, now: Duration) {
        if self.stopping == Stopping::No {
            self.stopping = Stopping::Until(now + self.config.handover_timeout(self.slowest_interval()));
            self.for_each_segment(now, |segment, _| segment.send_soon());
        }
    }

    /// The longest interval of Hellos on any link.
    fn slowest_interval(&self) -> Duration {
        self.segments.values().map(Segment::slowest_interval).max().unwrap_or(self.config.interval)
    }

    /// Whether the speaker has stopped. Only the last [`Output`] remains to be processed.
    pub fn is_done(&self) -> bool {
        self.stopping == Stopping::Done
    }

    /// Runs a round: does everything that is due. At most `room` addresses are announced unasked.
    pub fn poll(&mut self, now: Duration, room: usize) -> Output {
        if !self.is_done() {
            self.run_round(now, room);
        }
        let reports_changed = std::mem::take(&mut self.reports_changed);
        let groups_changed = std::mem::take(&mut self.groups_changed) || reports_changed;
        Output {
            groups: groups_changed.then(|| self.groups()),
            frames: std::mem::take(&mut self.frames),
            events: std::mem::take(&mut self.events),
            dead: std::mem::take(&mut self.dead_changed).then(|| self.dead()),
            neighbours: std::mem::take(&mut self.neighbours_changed).then(|| self.neighbours.clone()),
            reports_changed,
        }
    }

    fn run_round(&mut self, now: Duration, mut room: usize) {
        self.for_each_segment(now, Segment::update_peer_states);
        // Before peers that have left are forgotten.
        self.update_dead(now);
        self.for_each_segment(now, |segment, context| {
            segment.decide(context);
            segment.send_hello_if_due(context);
            segment.send_probes(context);
            room -= segment.announce_due(context, room);
        });
        if let Stopping::Until(deadline) = self.stopping {
            let is_waiting =
                |segment: &Segment| segment.announced_claims().next().is_some() && segment.has_successors();
            if now >= deadline || !self.segments.values().any(is_waiting) {
                self.for_each_segment(now, Segment::leave);
                self.reports_changed = true;
                self.stopping = Stopping::Done;
            }
        }
        self.expected = self.next_deadline(now);
    }

    fn update_dead(&mut self, now: Duration) {
        // The usual case: no node is dead, and no known peer is silent.
        if self.deaths.is_empty() && self.segments.values().all(Segment::is_complete) {
            return;
        }
        let observations = self.segments.values().flat_map(|segment| segment.observations(now, &self.config));
        let (died, returned) = self.deaths.update(observations);
        self.dead_changed |= !died.is_empty() || !returned.is_empty();
        let event = |dead| move |node| Event::Node { node, dead };
        self.events.extend(died.into_iter().map(event(true)).chain(returned.into_iter().map(event(false))));
    }

    /// The dead nodes: see [`crate::peers::deaths`].
    pub fn dead(&self) -> BTreeSet<String> {
        self.deaths.dead().map(str::to_owned).collect()
    }

    /// The nodes on each link.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Whether no message is awaited. Then a routine Hello ([`codec::is_routine`]) may stay in its socket until the next
    /// round, if its time of arrival is known.
    pub fn is_idle(&self, now: Duration) -> bool {
        self.stopping == Stopping::No && self.segments.values().all(|segment| segment.is_idle(now, &self.config))
    }

    /// When to call [`poll`](Self::poll) next, except for announcements.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        self.segments.values().map(|segment| segment.next_deadline(now)).min()
    }

    /// When the next announcement is due: a reason to call [`poll`](Self::poll) if there is room to send.
    pub fn announcement_due(&self) -> Option<Duration> {
        self.segments.values().filter_map(|segment| segment.announcement_due(&self.config)).min()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The links on which Hellos are sent and received.
    pub fn active_links(&self) -> impl Iterator<Item = &Link> {
        self.segments.values().map(|segment| &segment.link)
    }

    /// The hosts outside the cluster that use an address which this node announces or would announce, each with the
    /// address and the name of the link.
    pub fn conflicts(&self) -> impl Iterator<Item = (IpAddr, &str, ConflictingHost)> {
        self.segments
            .values()
            .flat_map(|segment| segment.conflicts.iter().map(|(lb_ip, host)| (lb_ip, segment.link.name.as_str(), host)))
    }

    /// The IPv6 groups to join, each on its link.
    fn groups(&self) -> BTreeSet<(u32, Ipv6Addr)> {
        self.segments
            .iter()
            .flat_map(|(index, segment)| segment.multicast_groups().map(|group| (*index, group)))
            .collect()
    }

    /// The announced addresses to report. An address taken over counts from its first announcement on.
    pub fn reportable(&self, now: Duration) -> impl Iterator<Item = Reportable<'_>> {
        self.segments.values().flat_map(move |segment| {
            let link = segment.link.name.as_str();
            segment.reportable(now).map(move |(lb_ip, claim, moved)| Reportable { lb_ip, link, claim, moved })
        })
    }

    /// The announced addresses with the name of the link and the claim, in order of the links.
    pub fn announced_claims(&self) -> impl Iterator<Item = (IpAddr, &str, Claim)> {
        self.segments.values().flat_map(|segment| {
            segment.announced_claims().map(|(lb_ip, claim)| (lb_ip, segment.link.name.as_str(), claim))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::seal::Authentication;

    #[test]
    fn speaker_without_key_or_address_sleeps_and_is_silent() {
        let link = |addresses: &[&str]| Link {
            index: 1,
            name: "eth0".into(),
            mac: crds::MacAddr(2, 0, 0, 0, 0, 1),
            addresses: addresses.iter().map(|own| own.parse().expect("an address")).collect(),
            is_bridge: false,
        };
        let mut machine = Machine::new(Config::new("cluster", "n1", 1, Authentication::Required));
        let mut now = Duration::from_secs(1);
        let mut rounds = |machine: &mut Machine, count: u32| {
            let mut frames = Vec::new();
            for _ in 0..count {
                assert!(!machine.record_wake(now), "the loop is late");
                frames.extend(machine.poll(now, 0).frames);
                let next = machine.next_deadline(now).expect("there is a link");
                assert!(next > now, "it does not sleep");
                now = next;
            }
            (frames, now)
        };
        machine.set_links(Duration::from_secs(1), BTreeMap::from([(1, link(&["192.0.2.11/24"]))]));
        let (frames, at) = rounds(&mut machine, 20);
        assert_eq!(frames, [], "without a key");
        machine.set_keys(at, &Keys::new([&b"the key of the cluster"[..]]).expect("a key"));
        let (frames, at) = rounds(&mut machine, 2);
        assert!(!frames.is_empty(), "with a key");
        machine.set_links(at, BTreeMap::from([(1, link(&[]))]));
        assert_eq!(rounds(&mut machine, 20).0, [], "without an address");
        assert_eq!(machine.counters().stalls, 0);
    }
}
