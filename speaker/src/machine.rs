//! The whole speaker, except for its sockets, its clock and its sleep.
//!
//! Inputs are frames, links, snapshots and the addresses that the dataplane forwards. [`Machine::poll`] decides, and
//! returns everything that the loop must do as one [`Output`]. The real loop ([`crate::run`](fn@crate::run)) and the
//! simulated network of the tests drive the same machine:
//!
//! ```text
//!   loop {
//!       sleep until next_deadline() (or announcement_due(), if there is room to send), a frame or another input
//!       if record_wake(now) { drop the frames in the sockets }
//!       else                { receive(time of arrival, ..) for each frame }
//!       set_links(..), set_snapshot(..), set_forwarded(..), leave(now) as required
//!       poll(now, room) -> Output: join groups, send frames, log events, publish changes
//!   }
//! ```
//!
//! Times are durations since one fixed moment, which is the same for all calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::announce::conflicts::ConflictingHost;
use crate::config::Config;
use crate::metrics::{Counters, Event, Move};
use crate::ownership::claims::Claim;
use crate::ownership::context::Context;
use crate::ownership::segment::Segment;
use crate::peers::deaths::{DeathChanges, Deaths};
use crate::peers::neighbours::Neighbours;
use crate::snapshot::Snapshot;
use crate::wire::codec::{self, DecodeError};
use crate::wire::datagram;
use crate::wire::frame::{Channel, Frame};
use crate::wire::hello::DatagramContent;
use crate::wire::seal::{Keys, SealError};
use model::eligibility::AnnouncementPolicy;
use netlink::links::Link;

mod placement;

/// The speaker on all links.
#[derive(Debug)]
pub struct Machine {
    context: Context,
    links: BTreeMap<u32, Link>,
    segments: BTreeMap<u32, Segment>,
    /// The segments of links that are down, each with the time since when. They continue when the link returns.
    suspended: BTreeMap<u32, (Duration, Segment)>,
    /// The number of segments that this speaker has opened.
    opened: u64,
    /// Addresses that this node still announces although it is no longer a candidate. Each stays on its link until a
    /// successor takes over.
    outgoing: BTreeSet<IpAddr>,
    /// When the leaving speaker stops, even if peers have not taken over; `None` if it is not leaving.
    stops_by: Option<Duration>,
    is_done: bool,
    deaths: Deaths,
    neighbours: Neighbours,
    /// When the next round is due. If it begins later, the loop is late.
    expected: Option<Duration>,
    groups_changed: bool,
    dead_changed: bool,
    neighbours_changed: bool,
}

/// The work of a round, in the order in which it must be done.
#[must_use]
#[derive(Debug)]
pub struct Output {
    /// The IPv6 groups to join, each on its link; `None` if they have not changed. The loop joins them before it sends
    /// frames, because hosts may resolve an address as soon as it is announced.
    pub groups: Option<BTreeSet<(u32, Ipv6Addr)>>,
    pub frames: Vec<Frame>,
    pub events: Vec<Event>,
    /// The dead nodes (see [`crate::peers::deaths`]); `None` if they have not changed.
    pub dead: Option<BTreeSet<String>>,
    /// The neighbours on each link; `None` if they have not changed.
    pub neighbours: Option<Neighbours>,
    /// Whether [`Machine::reportable`] or [`Machine::conflicts`] has changed.
    pub reports_changed: bool,
}

impl Machine {
    /// A speaker without inputs.
    pub fn new(config: Config) -> Self {
        Self {
            context: Context::new(config),
            links: BTreeMap::new(),
            segments: BTreeMap::new(),
            suspended: BTreeMap::new(),
            opened: 0,
            outgoing: BTreeSet::new(),
            stops_by: None,
            is_done: false,
            deaths: Deaths::default(),
            neighbours: Neighbours::default(),
            expected: None,
            groups_changed: false,
            dead_changed: false,
            neighbours_changed: false,
        }
    }

    /// Records that a round begins. Returns whether this node was suspended, so that peers may have taken over. If so,
    /// the loop must drop the frames in the sockets, because the new owners answer them.
    ///
    /// After a delay of more than an interval, each peer gets a new window before it counts as dead. A delay of a whole
    /// window also starts a quiet period, after which this node announces its addresses again. A shorter delay does not
    /// start one: on a busy machine such delays are frequent, and thousands of announcements would delay the loop
    /// again.
    pub fn record_wake(&mut self, now: Duration) -> bool {
        let late = self.expected.map_or(Duration::ZERO, |expected| now.saturating_sub(expected));
        let is_stalled = late > self.slowest_interval();
        let Context { config, counters, events, .. } = &mut self.context;
        counters.late_max = counters.late_max.max(late);
        if !is_stalled {
            return false;
        }
        counters.stalls += 1;
        events.push(Event::Stalled { late });
        let missed = self.segments.values().any(|segment| segment.hello_sender.is_missed(now, config.multiplier));
        for segment in self.segments.values_mut() {
            segment.excuse_peers(now);
            if missed {
                segment.resume(now);
            }
        }
        missed
    }

    /// Sets the keys that seal packets.
    pub fn set_keys(&mut self, now: Duration, keys: &Keys) {
        if self.context.keys.set(now, keys) {
            for segment in self.segments.values_mut() {
                segment.restart_listening(now);
                segment.hello_sender.send_soon();
            }
        }
    }

    /// Sets the links of this node.
    pub fn set_links(&mut self, now: Duration, links: BTreeMap<u32, Link>) {
        self.context.now = now;
        if self.links != links {
            self.links = links;
            self.place_all();
        }
    }

    /// Sets the snapshot of the cluster; `None` until it has arrived.
    pub fn set_snapshot(&mut self, now: Duration, snapshot: Option<Arc<Snapshot>>) {
        self.context.now = now;
        let before = std::mem::replace(&mut self.context.snapshot, snapshot.clone());
        let (Some(before), Some(after)) = (before, snapshot) else {
            self.place_all();
            self.segments.values_mut().for_each(Segment::mark_all_dirty);
            return;
        };
        let differing = before.addresses.differing(&after.addresses).filter(|(_, before, after)| before != after);
        let changed: Vec<_> = differing.collect();
        for segment in self.segments.values_mut() {
            segment.mark_dirty(changed.iter().map(|(lb_ip, ..)| *lb_ip));
        }
        if before.node_addresses != after.node_addresses {
            self.place_all();
            return;
        }
        let node = &self.context.config.node;
        let links = |policy: &AnnouncementPolicy| policy.candidates.get(node).map(|own| own.links.clone());
        let moved = changed.into_iter().filter(|(_, before, after)| before.map(links) != after.map(links));
        let moved: BTreeSet<IpAddr> = moved.map(|(lb_ip, ..)| *lb_ip).collect();
        if !moved.is_empty() {
            self.place(moved);
        }
    }

    /// Sets the addresses that the dataplane forwards.
    pub fn set_forwarded(&mut self, forwarded: Arc<BTreeSet<IpAddr>>) {
        let changed: Vec<IpAddr> = self.context.forwarded.symmetric_difference(&forwarded).copied().collect();
        self.context.forwarded = forwarded;
        for segment in self.segments.values_mut() {
            segment.mark_dirty(&changed);
        }
    }

    /// Receives a frame on a link. `at` is its time of arrival, which may be before other inputs of this round.
    pub fn receive(&mut self, at: Duration, link: u32, channel: Channel, frame: &[u8]) {
        self.context.now = at;
        match channel {
            Channel::Hello | Channel::HelloV6 => self.receive_hello(link, frame),
            Channel::Arp | Channel::Ndp => {
                if let Some(segment) = self.segments.get_mut(&link) {
                    segment.receive_resolution(&mut self.context, channel, frame);
                }
            }
        }
    }

    fn receive_hello(&mut self, link: u32, frame: &[u8]) {
        let Context { now, config, keys, counters, .. } = &mut self.context;
        let dropped = &mut counters.dropped;
        let Ok((mac, payload)) = datagram::unwrap(frame) else { return dropped.malformed += 1 };
        // The cheap checks come first, so that no seal is computed for foreign packets.
        match codec::read_cluster(payload) {
            Ok(cluster) if cluster == config.cluster => {}
            Ok(_) => return dropped.cluster += 1,
            Err(DecodeError::Version(_)) => return dropped.version += 1,
            Err(_) => return dropped.malformed += 1,
        }
        let body = match keys.open(*now, payload) {
            Ok(body) => body,
            Err(SealError::Malformed) => return dropped.malformed += 1,
            Err(SealError::Unsealed) => return dropped.unsealed += 1,
            Err(SealError::Forged) => return dropped.forged += 1,
        };
        let Ok(content) = DatagramContent::decode(body) else { return dropped.malformed += 1 };
        let Some(segment) = self.segments.get_mut(&link) else { return };
        let packet = match content {
            DatagramContent::Packet(packet) => packet,
            DatagramContent::Relayed(relayed) => return segment.receive_relayed(&mut self.context, mac, &relayed),
        };
        segment.receive_hello(&mut self.context, mac, datagram::source_address(frame), &packet);
        // A node is a neighbour on a link if the two nodes hear each other there.
        if let Some(peer) = segment.peers.get(&packet.node).filter(|peer| peer.lists_us) {
            self.neighbours_changed |= self.neighbours.record(&segment.link.name, &packet.node, peer.mac);
        }
    }

    /// Begins to stop the speaker. Its Hellos request that peers take over. The speaker continues until they have taken
    /// over, but at most for a few intervals. Then it [is done](Self::is_done).
    pub fn leave(&mut self, now: Duration) {
        if !self.context.leaving {
            self.context.leaving = true;
            self.stops_by = Some(now + self.context.config.handover_timeout(self.slowest_interval()));
            self.segments.values_mut().for_each(|segment| segment.hello_sender.send_soon());
        }
    }

    /// The longest interval of Hellos on any link.
    fn slowest_interval(&self) -> Duration {
        self.segments.values().map(Segment::slowest_interval).max().unwrap_or(self.context.config.interval)
    }

    /// Whether the speaker has stopped. Only the last [`Output`] remains to be processed.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Runs a round: decides, and collects everything that is due. Sends gratuitous ARP or unsolicited NAs for at most
    /// `room` addresses.
    pub fn poll(&mut self, now: Duration, room: usize) -> Output {
        if !self.is_done {
            self.run_round(now, room);
        }
        let context = &mut self.context;
        let (frames, events) = (std::mem::take(&mut context.frames), std::mem::take(&mut context.events));
        let reports_changed = std::mem::take(&mut context.reports_changed);
        let groups_changed = std::mem::take(&mut self.groups_changed) || reports_changed;
        Output {
            groups: groups_changed.then(|| self.groups()),
            frames,
            events,
            dead: std::mem::take(&mut self.dead_changed).then(|| self.deaths.dead().clone()),
            neighbours: std::mem::take(&mut self.neighbours_changed).then(|| self.neighbours.clone()),
            reports_changed,
        }
    }

    fn run_round(&mut self, now: Duration, mut room: usize) {
        self.context.now = now;
        for segment in self.segments.values_mut() {
            segment.update_peer_states(&mut self.context);
            segment.solicit_silent_nodes(&mut self.context);
        }
        // This must precede `send_hello_if_due`, in which a segment forgets the peers that have left.
        self.update_dead();
        for segment in self.segments.values_mut() {
            segment.decide(&mut self.context);
            segment.send_hello_if_due(&mut self.context);
            segment.send_probes(&mut self.context);
            room -= segment.announce_due(&mut self.context, room);
        }
        let is_waiting = |segment: &Segment| segment.announced_claims().next().is_some() && segment.has_successors();
        if self.stops_by.is_some_and(|end| now >= end || !self.segments.values().any(is_waiting)) {
            for segment in self.segments.values_mut() {
                segment.leave(&mut self.context);
            }
            self.context.reports_changed = true;
            self.is_done = true;
        }
        self.expected = self.next_deadline(now);
    }

    fn update_dead(&mut self) {
        // The usual case: no node is dead, and no known peer has stopped sending Hellos.
        if self.deaths.is_empty() && self.segments.values().all(Segment::is_complete) {
            return;
        }
        let Context { now, config, events, counters, .. } = &mut self.context;
        let observations = self.segments.values().flat_map(|segment| segment.observations(*now, config));
        let DeathChanges { died, returned, silenced } = self.deaths.update(observations);
        self.dead_changed |= !died.is_empty() || !returned.is_empty();
        counters.silent_agents = self.deaths.silent_agents().len() as u64;
        let event = |dead| move |node| Event::Node { node, dead };
        events.extend(died.into_iter().map(event(true)).chain(returned.into_iter().map(event(false))));
        events.extend(silenced.into_iter().map(|node| Event::SilentAgent { node }));
    }

    /// Whether no pending work depends on a routine Hello ([`codec::is_routine`]). Then the loop need not wake for one.
    /// The Hello stays in its socket until the next round, and keeps its time of arrival.
    pub fn is_idle(&self, now: Duration) -> bool {
        !self.context.leaving && self.segments.values().all(|segment| segment.is_idle(now, &self.context.config))
    }

    /// When to call [`poll`](Self::poll) next, except for announcements: see [`Self::announcement_due`].
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        self.segments.values().map(|segment| segment.next_deadline(now)).min()
    }

    /// When the next announcement is due. The loop calls [`poll`](Self::poll) for it only if there is room to send.
    pub fn announcement_due(&self) -> Option<Duration> {
        self.segments.values().filter_map(|segment| segment.announcement_due(&self.context.config)).min()
    }

    pub fn counters(&self) -> Counters {
        self.context.counters
    }

    /// The counters, to which the loop adds dropped frames and failed sends.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.context.counters
    }

    /// The links on which Hellos are sent and received.
    pub fn active_links(&self) -> impl Iterator<Item = &Link> {
        self.segments.values().map(|segment| &segment.link)
    }

    /// The hosts outside the cluster that use an lb_ip, each with the address and the name of the link. This node
    /// announces the address, or holds it back because of the host.
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

    /// The announced addresses to report: each with the name of the link, the claim, and the takeover by which this
    /// node got it. An address that was taken over is reported only after its first announcement.
    pub fn reportable(&self, now: Duration) -> impl Iterator<Item = (IpAddr, &str, Claim, Option<&Move>)> {
        self.segments.values().flat_map(move |segment| {
            let link = segment.link.name.as_str();
            segment.reportable(now).map(move |(lb_ip, claim, moved)| (lb_ip, link, claim, moved))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaker_without_key_or_address_sleeps_and_is_silent() {
        let link = |addresses: &[&str]| Link {
            index: 1,
            name: "eth0".into(),
            mac: crds::MacAddr(2, 0, 0, 0, 0, 1),
            addresses: addresses.iter().map(|own| own.parse().expect("an address")).collect(),
            unusable: vec![],
            is_bridge: false,
        };
        let mut machine = Machine::new(Config::new("cluster", "n1", 1));
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
