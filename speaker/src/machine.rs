//! The whole of the speaker without its sockets, its clock and its sleep.
//!
//! It is fed with what happens (frames, links, snapshots, what the dataplane forwards) and asked what to send and when
//! to ask again. The real loop ([`crate::run`]) and the simulated network of the tests drive the same machine:
//!
//! ```text
//!   loop {
//!       sleep until next_deadline() (or announcement_due(), if there is room to send), or something comes in
//!       if woke(now) { drop what is in the sockets }
//!       else         { receive(when it came, ..) for each frame }
//!       set_links(..), set_snapshot(..), set_forwarded(..), leave(now) as it happens
//!       poll(now, room) -> join groups(), send take_frames(), log take_events(), publish announced() and dead() if they have changed
//!   }
//! ```
//!
//! Times are durations since any fixed moment, the same for all calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use model::eligibility::AnnouncementPolicy;

use crate::announce::placement::Link;
use crate::announce::probe::Stranger;
use crate::config::Config;
use crate::metrics::events::{Counters, Event};
use crate::metrics::takeovers::Move;
use crate::ownership::claims::Claim;
use crate::ownership::context::Context;
use crate::ownership::segment::Segment;
use crate::peers::deaths::Deaths;
use crate::peers::neighbours::Neighbours;
use crate::snapshot::Snapshot;
use crate::wire::datagram;
use crate::wire::frame::{Channel, Frame};
use crate::wire::hello::{self, Malformed, Packet};
use crate::wire::seal::{KeyRing, Keys, Refused};

mod arrange;

/// The whole of the speaker.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    keys: KeyRing,
    links: BTreeMap<u32, Link>,
    snapshot: Option<Arc<Snapshot>>,
    forwarded: Arc<BTreeSet<IpAddr>>,
    segments: BTreeMap<u32, Segment>,
    /// Addresses that are where they are only because they are announced there.
    kept: BTreeSet<IpAddr>,
    stopping: Stopping,
    deaths: Deaths,
    buried: bool,
    neighbours: Neighbours,
    /// Whether they have changed since somebody asked.
    met: bool,
    /// When the loop should run next.
    expected: Option<Duration>,
    changed: bool,
    regrouped: bool,
    frames: Vec<Frame>,
    events: Vec<Event>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// Others are asked to take over, until then.
    Until(Duration),
    Done,
}

impl Machine {
    /// A speaker that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            keys: KeyRing::new(config.authentication),
            config,
            links: BTreeMap::new(),
            snapshot: None,
            forwarded: Arc::default(),
            segments: BTreeMap::new(),
            kept: BTreeSet::new(),
            stopping: Stopping::No,
            deaths: Deaths::default(),
            buried: false,
            neighbours: Neighbours::default(),
            met: false,
            expected: None,
            changed: false,
            regrouped: false,
            frames: Vec::new(),
            events: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The loop runs: to be told first. Returns whether it slept so long that whatever waits in the sockets must be
    /// dropped unread: others may have taken over meanwhile, and what it asks is not for us to answer.
    ///
    /// If it was late by more than an interval, nobody's silence counts. That alone is no reason to be silent and to announce
    /// all anew: on a busy machine, thousands of announcements would make it late again.
    pub fn woke(&mut self, now: Duration) -> bool {
        let late = self.expected.map_or(Duration::ZERO, |expected| now.saturating_sub(expected));
        self.counters.late_max = self.counters.late_max.max(late);
        if late <= self.pace() {
            return false;
        }
        self.counters.slept += 1;
        self.events.push(Event::Slept { late });
        let missed = self.segments.values().any(|segment| segment.is_missed(now, &self.config));
        for segment in self.segments.values_mut() {
            segment.excuse(now);
            if missed {
                segment.return_to(now);
            }
        }
        missed
    }

    /// So many frames were dropped after a sleep.
    pub fn dropped_backlog(&mut self, frames: u64) {
        self.counters.dropped.backlog += frames;
    }

    /// So many frames could not be sent.
    pub fn send_failed(&mut self, frames: u64) {
        self.counters.send_failed += frames;
    }

    /// Packets are sealed with these keys from now on.
    pub fn set_keys(&mut self, now: Duration, keys: &Keys) {
        if self.keys.set(now, keys) {
            for segment in self.segments.values_mut() {
                segment.listen(now);
                segment.hasten();
            }
        }
    }

    /// These links are there now.
    pub fn set_links(&mut self, now: Duration, links: BTreeMap<u32, Link>) {
        if self.links != links {
            self.links = links;
            self.arrange(now);
        }
    }

    /// This was observed; `None` if nothing is known yet.
    pub fn set_snapshot(&mut self, now: Duration, snapshot: Option<Arc<Snapshot>>) {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        let (Some(before), Some(after)) = (before, self.snapshot.clone()) else {
            self.arrange(now);
            self.segments.values_mut().for_each(Segment::touch_all);
            return;
        };
        let differing = before.addresses.differing(&after.addresses).filter(|(_, before, after)| before != after);
        let changed: Vec<_> = differing.collect();
        for segment in self.segments.values_mut() {
            segment.touch(changed.iter().filter(|(_, _, after)| after.is_some()).map(|(lb_ip, ..)| *lb_ip));
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

    /// The dataplane forwards these addresses now, and no others.
    pub fn set_forwarded(&mut self, forwarded: Arc<BTreeSet<IpAddr>>) {
        let changed: Vec<IpAddr> = self.forwarded.symmetric_difference(&forwarded).copied().collect();
        self.forwarded = forwarded;
        for segment in self.segments.values_mut() {
            segment.touch(&changed);
        }
    }

    fn context(&mut self, now: Duration) -> Context<'_> {
        self.parts(now).1
    }

    /// The segments, and what else there is for them to work with.
    fn parts(&mut self, now: Duration) -> (&mut BTreeMap<u32, Segment>, Context<'_>) {
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
        };
        (&mut self.segments, context)
    }

    /// Does something with each segment.
    fn each(&mut self, now: Duration, mut act: impl FnMut(&mut Segment, &mut Context<'_>)) {
        let (segments, mut context) = self.parts(now);
        segments.values_mut().for_each(|segment| act(segment, &mut context));
    }

    /// Does something with one segment, if there is one.
    fn one(&mut self, now: Duration, link: u32, act: impl FnOnce(&mut Segment, &mut Context<'_>)) {
        let (segments, mut context) = self.parts(now);
        if let Some(segment) = segments.get_mut(&link) {
            act(segment, &mut context);
        }
    }

    /// A frame came in on a link, at that time: now, or since the last round.
    pub fn receive(&mut self, now: Duration, link: u32, channel: Channel, frame: &[u8]) {
        match channel {
            Channel::Hello | Channel::HelloV6 => self.hear(now, link, frame),
            Channel::Arp => self.one(now, link, |segment, context| segment.arp(context, frame)),
            Channel::Ndp => self.one(now, link, |segment, context| segment.ndp(context, frame)),
        }
    }

    /// A frame with a datagram for our group came in on a link.
    fn hear(&mut self, now: Duration, link: u32, frame: &[u8]) {
        let dropped = &mut self.counters.dropped;
        let Ok((mac, payload)) = datagram::unwrap(frame) else {
            dropped.malformed += 1;
            return;
        };
        // First what costs little: nobody should make us calculate for nothing.
        match hello::cluster(payload) {
            Ok(cluster) if cluster == self.config.cluster => {}
            Ok(_) => {
                dropped.cluster += 1;
                return;
            }
            Err(Malformed::Version(_)) => {
                dropped.version += 1;
                return;
            }
            Err(_) => {
                dropped.malformed += 1;
                return;
            }
        }
        let body = match self.keys.open(now, payload) {
            Ok(body) => body,
            Err(refused) => {
                match refused {
                    Refused::Malformed => dropped.malformed += 1,
                    Refused::Unsealed => dropped.unsealed += 1,
                    Refused::Forged => dropped.forged += 1,
                }
                return;
            }
        };
        match Packet::decode(body) {
            Ok(packet) => {
                self.one(now, link, |segment, context| segment.hear(context, mac, &packet));
                self.meet(link, &packet.node);
            }
            Err(_) => dropped.malformed += 1,
        }
    }

    /// A node said something on a link: if it hears us too, it is on it.
    fn meet(&mut self, link: u32, node: &str) {
        let Some(segment) = self.segments.get(&link) else { return };
        if let Some(peer) = segment.peers.get(node).filter(|peer| peer.lists_us) {
            self.met |= self.neighbours.meet(&segment.link.name, node, peer.mac);
        }
    }

    /// The speaker is to stop. It asks the others to take over, goes on until they have or for a few intervals, and then
    /// is [done](Self::is_done).
    pub fn leave(&mut self, now: Duration) {
        if self.stopping == Stopping::No {
            self.stopping = Stopping::Until(now + self.config.farewell(self.pace()));
            self.each(now, |segment, _| segment.hasten());
        }
    }

    /// How long Hellos are apart where they are the furthest apart.
    fn pace(&self) -> Duration {
        self.segments.values().map(Segment::pace).max().unwrap_or(self.config.interval)
    }

    /// Whether the speaker has stopped, with nothing left to do but to send the last frames.
    pub fn is_done(&self) -> bool {
        self.stopping == Stopping::Done
    }

    /// Does what is due. At most `room` addresses are announced unasked.
    pub fn poll(&mut self, now: Duration, room: usize) {
        if self.is_done() {
            return;
        }
        let (mut changed, mut room) = (false, room);
        self.each(now, Segment::look);
        // Before anybody who has left is forgotten.
        self.mourn(now);
        self.each(now, |segment, context| {
            changed |= segment.decide(context);
            segment.greet(context);
            segment.ask(context);
            changed |= segment.take_estranged();
            room -= segment.announce(context, room);
            changed |= segment.take_told();
        });
        self.changed |= changed;
        self.regrouped |= changed;
        if let Stopping::Until(deadline) = self.stopping {
            let waiting =
                self.segments.values().any(|segment| segment.announced().next().is_some() && segment.has_heirs());
            if now >= deadline || !waiting {
                self.each(now, |segment, context| segment.part(context));
                (self.changed, self.regrouped) = (true, true);
                self.stopping = Stopping::Done;
            }
        }
        self.expected = self.next_deadline(now);
    }

    /// Sees who is dead. Most of the time everybody is there, and nothing is to be done.
    fn mourn(&mut self, now: Duration) {
        if self.deaths.is_empty() && self.segments.values().all(Segment::is_complete) {
            return;
        }
        let sights = self.segments.values().flat_map(|segment| segment.sights(now, &self.config));
        let (died, back) = self.deaths.see(sights);
        self.buried |= !died.is_empty() || !back.is_empty();
        let event = |dead| move |node| Event::Node { node, dead };
        self.events.extend(died.into_iter().map(event(true)).chain(back.into_iter().map(event(false))));
    }

    /// The nodes that are dead: see [`crate::peers::deaths`].
    pub fn dead(&self) -> BTreeSet<String> {
        self.deaths.dead().map(str::to_owned).collect()
    }

    /// Whether [`dead`](Self::dead) has changed since this was last asked.
    pub fn take_buried(&mut self) -> bool {
        std::mem::take(&mut self.buried)
    }

    /// Which nodes were met on which link.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Whether [`neighbours`](Self::neighbours) has changed since this was last asked.
    pub fn take_met(&mut self) -> bool {
        std::mem::take(&mut self.met)
    }

    /// Whether nothing is awaited of anybody: a Hello that can wait ([`hello::is_routine`]) needs not be read before the next
    /// round, if it is known then when it came.
    pub fn is_calm(&self, now: Duration) -> bool {
        self.stopping == Stopping::No && self.segments.values().all(|segment| segment.is_calm(now, &self.config))
    }

    /// When to call [`poll`](Self::poll) next, apart from announcements.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        self.segments.values().map(|segment| segment.next_deadline(now)).min()
    }

    /// When the next announcement is due: a reason to call [`poll`](Self::poll) if there is room to send.
    pub fn announcement_due(&self) -> Option<Duration> {
        self.segments.values().filter_map(|segment| segment.announcement_due(&self.config)).min()
    }

    /// The frames to send.
    pub fn take_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.frames)
    }

    /// What to tell.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The links that we speak on.
    pub fn speaking(&self) -> impl Iterator<Item = &Link> {
        self.segments.values().map(|segment| &segment.link)
    }

    /// Who is no peer and uses an address that is announced or would be: the address, the name of the link, who.
    pub fn strangers(&self) -> impl Iterator<Item = (IpAddr, &str, Stranger)> {
        let segments = self.segments.values();
        segments
            .flat_map(|segment| segment.strangers.known().map(|(lb_ip, who)| (lb_ip, segment.link.name.as_str(), who)))
    }

    /// The IPv6 groups to listen to, each on its link: that of the speakers, and those in which somebody may ask for an
    /// address that is announced.
    pub fn groups(&self) -> BTreeSet<(u32, Ipv6Addr)> {
        self.segments.iter().flat_map(|(index, segment)| segment.groups().map(|group| (*index, group))).collect()
    }

    /// Whether [`groups`](Self::groups) may have changed since this was last asked.
    pub fn take_regrouped(&mut self) -> bool {
        std::mem::take(&mut self.regrouped)
    }

    /// Whether [`told`](Self::told) or [`strangers`](Self::strangers) has changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What there is to tell of what is announced: the address, the name of the link, the claim, and how it came here. What
    /// was taken over and has its turn to be announced yet is not in here.
    pub fn told(&self, now: Duration) -> impl Iterator<Item = (IpAddr, &str, Claim, Option<Move>)> {
        let segments = self.segments.values();
        segments.flat_map(move |segment| {
            let told = segment.told(now);
            told.map(|(lb_ip, claim, moved)| (lb_ip, segment.link.name.as_str(), claim, moved))
        })
    }

    /// What is announced: the address, the name of the link, the claim. By link, then in no order that means anything.
    pub fn announced(&self) -> impl Iterator<Item = (IpAddr, &str, Claim)> {
        let segments = self.segments.values();
        segments
            .flat_map(|segment| segment.announced().map(|(lb_ip, claim)| (lb_ip, segment.link.name.as_str(), claim)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::seal::Authentication;

    #[test]
    fn a_speaker_that_has_no_key_or_no_address_sleeps_between_looks_and_speaks_when_it_has_one() {
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
                assert!(!machine.woke(now), "it sleeps for longer than it should");
                machine.poll(now, 0);
                frames.append(&mut machine.take_frames());
                let next = machine.next_deadline(now).expect("there is a link");
                assert!(next > now, "it does not sleep");
                now = next;
            }
            (frames, now)
        };
        machine.set_links(Duration::from_secs(1), BTreeMap::from([(1, link(&["192.0.2.11/24"]))]));
        let (said, at) = rounds(&mut machine, 20);
        assert_eq!(said, [], "without a key");
        machine.set_keys(at, &Keys::new([&b"the key of the cluster"[..]]).expect("a key"));
        let (said, at) = rounds(&mut machine, 2);
        assert!(!said.is_empty(), "with a key");
        machine.set_links(at, BTreeMap::from([(1, link(&[]))]));
        assert_eq!(rounds(&mut machine, 20).0, [], "without an address");
        assert_eq!(machine.counters().slept, 0);
    }
}
