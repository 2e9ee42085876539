//! One link, and the LAN behind it: who else is there, and what this node claims and announces on it.
//!
//! All decisions are made elsewhere ([`ownership`](crate::ownership::rules), [`liveness`], [`arp`], [`announce`](crate::announce::schedule)); here is what
//! they are about. Addresses are decided anew only when something that bears on them has changed: the
//! `dirty` set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::announce::placement::Link;
use crate::announce::probe::Strangers;
use crate::announce::schedule::{Schedule, Turn};
use crate::config::Config;
use crate::metrics::events::Event;
use crate::metrics::takeovers::Move;
use crate::ownership::claims::{Claim, Claims};
use crate::ownership::context::Context;
use crate::ownership::hello_sender;
use crate::ownership::rules::Reason;
use crate::peers::deaths::FORGET;
use crate::peers::handshake::Meetings;
use crate::peers::interval::LONGEST;
use crate::peers::liveness::{self, Standing};
use crate::peers::peer::Peer;
use crate::wire::arp::{self, Ignored, Verdict};
use crate::wire::frame::{Channel, Frame};
use crate::wire::hello::MAX_PAYLOAD;
use crate::wire::{datagram, ndp};
use model::stable_hash;

/// More nodes than this are not listened to on one link: whoever forges names must not fill the memory.
const MAX_PEERS: usize = 1024;

/// A peer that announces an address of ours is not answered again within this time.
const DEFEND: Duration = Duration::from_secs(1);

/// For so long a contest is answered unasked, even if few others are heard: as long as a burst takes.
const INSIST: Duration = Duration::from_secs(5);

mod decide;
mod observe_deaths;
mod probe;
mod receive;

/// Whom we hear of those who should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hears {
    /// Less than half of the peers. We may be the one that is cut off.
    Few,
    /// Not the only peer there is, but somebody else on the LAN since it fell silent. So it isn't us who are cut off.
    Outsiders,
    /// Most peers.
    Most,
}

/// An address of ours that others should rather have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ceding {
    /// They are preferred.
    Preferred,
    /// We may not announce it any more, since then.
    Since(Duration),
}

/// A link with all that goes on there.
#[derive(Debug)]
pub struct Segment {
    pub(crate) link: Link,
    pub(crate) peers: BTreeMap<String, Peer>,
    /// Speakers that were heard and aren't believed yet.
    meetings: Meetings,
    /// Another speaker with our name that was told of.
    twin: Option<u64>,
    /// What we claim here, in the eyes of the others.
    own: Claims,
    /// Our claims that are over and still told, and until when.
    lost: BTreeMap<IpAddr, Duration>,
    /// Which addresses belong here.
    placed: BTreeSet<IpAddr>,
    /// Addresses to decide about.
    dirty: BTreeSet<IpAddr>,
    /// The greatest epoch seen of each address.
    epochs: BTreeMap<IpAddr, u64>,
    /// Addresses that nobody claims, and since when we would.
    orphans: BTreeMap<IpAddr, Option<Duration>>,
    /// When it will be our turn to claim an orphan.
    turns: BTreeSet<(Duration, IpAddr)>,
    /// Addresses of ours that others should rather have, alive or not.
    ceding: BTreeMap<IpAddr, Ceding>,
    /// Addresses of ours that another node had before.
    moves: BTreeMap<IpAddr, Move>,
    /// Whether any of them was announced since somebody asked.
    moved: bool,
    /// Addresses of ours that somebody else claims too.
    contested: BTreeSet<IpAddr>,
    /// Addresses that somebody else has just begun or stopped to claim: until then we insist that they are ours.
    insisted: BTreeMap<IpAddr, Duration>,
    /// When a peer was seen to use an address of ours, and we did something about it.
    conflicts: BTreeMap<IpAddr, Duration>,
    /// Those who are no peers, and use addresses of ours.
    pub(crate) strangers: Strangers,
    /// Whether they have changed since somebody asked.
    estranged: bool,
    schedule: Schedule,
    /// For a while from then on we claim nothing: we have just come, or woken up, or met the others again.
    listen_from: Duration,
    /// For a while from then on we announce nothing unasked: we were away, and somebody else may have taken over.
    hush_from: Option<Duration>,
    company: Hears,
    /// When somebody who is no peer was first heard since the only peer has been silent: a sign that it isn't us who can't
    /// hear.
    outsider: Option<Duration>,
    /// How many peers were alive at the last look, and the longest interval of theirs.
    live: usize,
    slowest: Duration,
    greeting: hello_sender::State,
}

impl Segment {
    /// A link that we have just come to.
    pub fn new(now: Duration, link: Link, config: &Config) -> Self {
        // Another one on each link: what is recorded on one of them proves nothing on another.
        let incarnation = stable_hash::mix64(config.incarnation ^ stable_hash::mix64(link.index.into()));
        Self {
            link,
            peers: BTreeMap::new(),
            meetings: Meetings::default(),
            twin: None,
            own: Claims::default(),
            lost: BTreeMap::new(),
            placed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            epochs: BTreeMap::new(),
            orphans: BTreeMap::new(),
            turns: BTreeSet::new(),
            ceding: BTreeMap::new(),
            moves: BTreeMap::new(),
            moved: false,
            contested: BTreeSet::new(),
            insisted: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            strangers: Strangers::default(),
            estranged: false,
            schedule: Schedule::default(),
            listen_from: now,
            hush_from: None,
            company: Hears::Few,
            outsider: None,
            live: 0,
            slowest: Duration::ZERO,
            greeting: hello_sender::State::new(now, incarnation, config),
        }
    }

    /// The link has changed: with a new MAC address, all must be announced anew.
    pub fn update(&mut self, now: Duration, link: &Link) {
        if self.link.mac != link.mac {
            self.announce_all(now);
        }
        if self.link != *link {
            self.link.clone_from(link);
        }
    }

    /// What is announced here.
    pub fn announced(&self) -> impl Iterator<Item = (IpAddr, Claim)> + '_ {
        self.own.iter().filter(|(_, claim)| claim.held)
    }

    /// Our claim to `lb_ip`, if we announce it.
    pub fn mine(&self, lb_ip: IpAddr) -> Option<Claim> {
        self.own.get(lb_ip).filter(|claim| claim.held)
    }

    /// Nothing that was not heard up to now means anything. (The first keys are here: only now anybody can be heard.)
    pub fn listen(&mut self, now: Duration) {
        self.listen_from = self.listen_from.max(now);
    }

    /// How long Hellos are apart here, of the slowest of those who are alive.
    pub fn pace(&self) -> Duration {
        self.slowest.min(LONGEST).max(self.greeting.interval())
    }

    /// Whether we have not listened for long enough.
    fn is_listening(&self, now: Duration, config: &Config) -> bool {
        now < self.listen_from + config.listening(self.pace())
    }

    /// Until when we announce nothing unasked.
    fn hush_until(&self, config: &Config) -> Duration {
        self.hush_from.map_or(Duration::ZERO, |from| from + config.listening(self.pace()))
    }

    /// These addresses belong here, and no others.
    pub fn place(&mut self, placed: BTreeSet<IpAddr>) {
        self.dirty.extend(self.placed.symmetric_difference(&placed));
        self.placed = placed;
    }

    /// This address belongs here, too.
    pub fn add(&mut self, lb_ip: IpAddr) {
        if self.placed.insert(lb_ip) {
            self.dirty.insert(lb_ip);
        }
    }

    /// This address doesn't belong here.
    pub fn displace(&mut self, lb_ip: IpAddr) {
        if self.placed.remove(&lb_ip) {
            self.dirty.insert(lb_ip);
        }
    }

    /// The addresses that belong here.
    pub fn places(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.placed.iter().copied()
    }

    /// Something that bears on these addresses has changed.
    pub fn touch<'a>(&mut self, lb_ips: impl IntoIterator<Item = &'a IpAddr>) {
        let concerned = lb_ips.into_iter().filter(|lb_ip| self.placed.contains(lb_ip));
        self.dirty.extend(concerned);
    }

    /// Everything has to be decided anew.
    pub fn touch_all(&mut self) {
        self.dirty.extend(&self.placed);
        self.dirty.extend(self.owned());
    }

    /// We slept until now: nobody's silence means anything.
    pub fn excuse(&mut self, now: Duration) {
        for peer in self.peers.values_mut().filter(|peer| peer.standing != Standing::Dead) {
            peer.liveness.excuse(now);
        }
    }

    /// Whether others may have missed us.
    pub fn is_missed(&self, now: Duration, config: &Config) -> bool {
        self.greeting.is_missed(now, config.multiplier)
    }

    /// We slept so long that others may have missed us, and may own what we own.
    pub fn return_to(&mut self, now: Duration) {
        self.listen(now);
        self.strangers.ask_again(now);
        self.was_away(now);
    }

    /// We were asleep or cut off. Others may have taken over what we own, and announced it, and may even have given it up
    /// since. So we are silent for as long as it takes to hear of it; what is ours then, we announce anew.
    fn was_away(&mut self, now: Duration) {
        self.hush_from = Some(now);
        self.announce_all(now);
    }

    /// What is ours has to be announced anew.
    fn announce_all(&mut self, now: Duration) {
        for lb_ip in self.owned() {
            self.schedule.start(lb_ip, now);
        }
    }

    /// Looks who is alive now.
    pub fn look(&mut self, context: &mut Context<'_>) {
        (self.live, self.slowest) = (0, Duration::ZERO);
        for (node, peer) in &mut self.peers {
            let standing = peer.liveness.standing(context.now);
            if standing == Standing::Alive {
                self.live += 1;
                self.slowest = self.slowest.max(peer.liveness.interval());
            }
            if standing == peer.standing {
                continue;
            }
            if standing < peer.standing {
                context.counters.peers_lost += 1;
            }
            peer.standing = standing;
            peer.since = context.now;
            self.dirty.extend(peer.claims.iter().map(|(lb_ip, _)| lb_ip));
            self.dirty.extend(self.orphans.keys().chain(self.ceding.keys()));
            context.events.push(Event::Peer { node: node.clone(), link: self.link.name.clone(), standing });
        }
        let (live, known) = (self.live, self.peers.len());
        let company = if liveness::in_company(live, known) {
            Hears::Most
        } else if self.hears_outsiders_alone(context.now) {
            Hears::Outsiders
        } else {
            Hears::Few
        };
        let before = std::mem::replace(&mut self.company, company);
        if company == Hears::Most && before != Hears::Most {
            // What the others have claimed meanwhile has to be heard before anything is claimed in their company.
            self.listen(context.now);
            if before == Hears::Few {
                self.was_away(context.now);
            } else {
                self.announce_all(context.now);
            }
            let until = context.now + context.config.regret(self.pace());
            self.lost.values_mut().for_each(|told| *told = until);
        }
        let backed = company != Hears::Few;
        if backed != (before != Hears::Few) {
            context.events.push(Event::Company { link: self.link.name.clone(), backed, live, known });
        }
    }

    /// Whether somebody here would take over what we give up.
    pub fn has_heirs(&self) -> bool {
        self.peers.values().any(Peer::takes)
    }

    /// An ARP frame came in.
    pub fn arp(&mut self, context: &mut Context<'_>, frame: &[u8]) {
        self.note_outsider(context.now, frame);
        if self.strangers.is_probing() {
            self.answered(context, arp::address_user(frame).map(|(mac, used)| (mac, used.into())));
        }
        let verdict = arp::decide(frame, self.link.mac, |lb_ip| self.mine(IpAddr::V4(lb_ip)).is_some());
        self.follow(context, Channel::Arp, verdict);
    }

    /// A frame of IPv6 neighbour discovery came in.
    pub fn ndp(&mut self, context: &mut Context<'_>, frame: &[u8]) {
        self.note_outsider(context.now, frame);
        if self.strangers.is_probing() {
            self.answered(context, ndp::address_user(frame).map(|(mac, used)| (mac, used.into())));
        }
        let verdict = ndp::decide(frame, self.link.mac, |lb_ip| self.mine(IpAddr::V6(lb_ip)).is_some());
        self.follow(context, Channel::Ndp, verdict);
    }

    fn follow(&mut self, context: &mut Context<'_>, channel: Channel, verdict: Verdict) {
        let counters = if channel == Channel::Arp { &mut context.counters.arp } else { &mut context.counters.ndp };
        match verdict {
            Verdict::Answer(bytes) => {
                counters.answered += 1;
                context.frames.push(Frame { link: self.link.index, channel, bytes });
            }
            Verdict::Conflict { lb_ip, mac } if self.peers.values().any(|peer| peer.mac == mac) => {
                self.contest(context, lb_ip);
            }
            Verdict::Conflict { lb_ip, mac } => self.intruded(context, lb_ip, mac),
            Verdict::Ignore(Ignored::Malformed) => counters.malformed += 1,
            Verdict::Ignore(_) => {}
        }
    }

    /// The IPv6 groups to listen to.
    pub fn groups(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        let has_v6 = self.link.addresses.iter().any(|own| own.addr().is_ipv6());
        let asked = self.announced().filter_map(|(lb_ip, _)| match lb_ip {
            IpAddr::V6(v6) => Some(ndp::solicited_node(v6)),
            IpAddr::V4(_) => None,
        });
        has_v6.then_some(datagram::GROUP_V6).into_iter().chain(asked)
    }

    /// A peer uses an address that we announce.
    fn contest(&mut self, context: &mut Context<'_>, lb_ip: IpAddr) {
        let now = context.now;
        // Several owners who meet must not set each other off.
        if self.conflicts.get(&lb_ip).is_some_and(|at| now < *at + DEFEND) {
            return;
        }
        self.conflicts.insert(lb_ip, now);
        // A peer that takes over says so in its Hello, and then we withdraw. One whose claim is weaker can't hear us: the
        // last word must be ours. Unless we are the one that doesn't hear.
        if self.company != Hears::Few {
            self.schedule.start(lb_ip, now);
            self.greeting.hasten();
        }
    }

    /// The link is gone, or needed no more.
    pub fn close(&mut self, context: &mut Context<'_>) {
        for lb_ip in self.owned() {
            let wanted = context.snapshot.and_then(|snapshot| snapshot.addresses.get(&lb_ip));
            let reason = self.may(context, lb_ip, wanted).err().unwrap_or(Reason::LinkLost);
            self.withdraw(context, lb_ip, reason);
        }
    }

    /// Gives up everything and says so at once.
    pub fn part(&mut self, context: &mut Context<'_>) {
        for lb_ip in self.owned() {
            self.withdraw(context, lb_ip, Reason::Leaving);
        }
        self.say_goodbye(context);
    }

    /// Says for the last time what we claim, which is nothing. Others needn't wait until they miss us, nor miss us at all.
    pub fn say_goodbye(&mut self, context: &mut Context<'_>) {
        self.forget_lost(None);
        self.greeting.now();
        self.greet(context);
    }

    fn owned(&self) -> Vec<IpAddr> {
        self.announced().map(|(lb_ip, _)| lb_ip).collect()
    }

    /// Says Hello if it is time to.
    pub fn greet(&mut self, context: &mut Context<'_>) {
        self.probe(context.now);
        if !self.greeting.is_due(context.now) {
            return;
        }
        let Some(address) = self.link.source().filter(|_| context.keys.can_speak()) else {
            // What stays due would keep the loop from sleeping.
            self.greeting.skip(context.now);
            return;
        };
        let channel = if address.is_ipv4() { Channel::Hello } else { Channel::HelloV6 };
        let speakers = self.live + 1;
        let hears_outsiders = self.company == Hears::Outsiders;
        let others = hello_sender::Others { peers: &self.peers, meetings: &self.meetings, speakers, hears_outsiders };
        for packet in self.greeting.packets(context, &self.link, &mut self.own, &others) {
            let payload = context.keys.seal(context.now, packet.encode());
            debug_assert!(payload.len() <= MAX_PAYLOAD, "{} bytes", payload.len());
            let bytes = datagram::wrap(self.link.mac, address, &payload);
            context.counters.packets_sent += 1;
            context.frames.push(Frame { link: self.link.index, channel, bytes });
        }
        self.tidy(context);
    }

    /// Others should hear from us soon.
    pub fn hasten(&mut self) {
        self.greeting.hasten();
    }

    /// What depends on the passage of time alone, and not on the moment: looked at once an interval.
    fn tidy(&mut self, context: &Context<'_>) {
        let now = context.now;
        self.peers
            .retain(|_, peer| peer.standing != Standing::Dead || !(peer.leaving || peer.liveness.age(now) > FORGET));
        let own = &self.own;
        self.estranged |= self.strangers.tidy(now, |lb_ip| own.get(lb_ip).is_some_and(|claim| claim.held));
        self.dirty.extend(self.orphans.iter().filter(|(_, since)| since.is_none()).map(|(lb_ip, _)| lb_ip));
        if self.company != Hears::Few && !self.is_listening(now, context.config) {
            let lonely = self.own.iter().filter(|(_, claim)| claim.held && !claim.backed);
            self.dirty.extend(lonely.map(|(lb_ip, _)| lb_ip));
        }
        let mut alive = self.peers.values().filter(|peer| peer.standing == Standing::Alive);
        let is_told = self.company == Hears::Most && alive.all(|peer| peer.liveness.hears_us(now));
        self.forget_lost(Some(if is_told { now } else { now.saturating_sub(FORGET) }));
    }

    /// Tells no more of what was lost long enough ago.
    fn forget_lost(&mut self, now: Option<Duration>) {
        let over = self.lost.iter().filter(|(_, until)| now.is_none_or(|now| **until <= now));
        for lb_ip in over.map(|(lb_ip, _)| *lb_ip).collect::<Vec<_>>() {
            self.lost.remove(&lb_ip);
            self.own.remove(lb_ip);
            self.greeting.changed(lb_ip);
        }
    }

    /// Announces unasked what is due, at most `limit` addresses. Returns how many.
    pub fn announce(&mut self, context: &mut Context<'_>, limit: usize) -> usize {
        if context.now < self.hush_until(context.config) {
            return 0;
        }
        let mut schedule = std::mem::take(&mut self.schedule);
        // In loneliness only that is announced which was claimed in it, because somebody has to take over from the dead; and
        // what somebody claims who has been heard, and loses. Anything else might steal an address back from somebody who
        // isn't heard.
        let may = |lb_ip: IpAddr| {
            let wanted = context.snapshot.and_then(|snapshot| snapshot.addresses.get(&lb_ip));
            self.mine(lb_ip).is_some_and(|claim| !claim.backed)
                || self.insisted.get(&lb_ip).is_some_and(|until| context.now < *until)
                || self.is_backed(context, wanted)
        };
        let turns = schedule.take_due(context.now, limit, may);
        self.schedule = schedule;
        for Turn { lb_ip, form } in &turns {
            self.announce_one(context, *lb_ip, *form);
            self.moved |= self.moves.get_mut(lb_ip).is_some_and(|moved| moved.announce(context.now));
        }
        turns.len()
    }

    /// What there is to tell of what is announced here, and how it came here.
    pub fn told(&self, now: Duration) -> impl Iterator<Item = (IpAddr, Claim, Option<Move>)> + '_ {
        let all = self.announced().map(|(lb_ip, claim)| (lb_ip, claim, self.moves.get(&lb_ip)));
        let waits = move |lb_ip, moved: Option<&Move>| {
            moved.is_some_and(|moved| !moved.is_announced()) && self.schedule.is_waiting(lb_ip, now)
        };
        all.filter(move |(lb_ip, _, moved)| !waits(*lb_ip, *moved))
            .map(|(lb_ip, claim, moved)| (lb_ip, claim, moved.cloned()))
    }

    /// Whether there is more to tell since this was last asked.
    pub fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// When something is to be done, apart from announcements.
    pub fn next_deadline(&self, now: Duration) -> Duration {
        let silence = self.peers.values().filter_map(|peer| peer.liveness.next_deadline(now));
        let turn = self.turns.first().map(|(turn, _)| *turn);
        silence
            .chain(turn)
            .chain(self.probe_due(now))
            .chain(self.strangers.next_deadline())
            .fold(self.greeting.due(), Duration::min)
    }

    /// Whether nothing is awaited of anybody: everybody is there, hears us and has nothing to say.
    pub fn is_calm(&self, now: Duration, config: &Config) -> bool {
        let is_settled =
            |peer: &Peer| peer.standing == Standing::Alive && !peer.leaving && peer.lists_us && peer.unread.0 == 0;
        self.peers.values().all(is_settled)
            && self.meetings.told(now).next().is_none()
            && self.dirty.is_empty()
            && self.orphans.is_empty()
            && self.turns.is_empty()
            && self.lost.is_empty()
            && !self.is_listening(now, config)
    }

    /// When the next announcement is due.
    pub fn announcement_due(&self, config: &Config) -> Option<Duration> {
        Some(self.schedule.next_deadline()?.max(self.hush_until(config)))
    }
}
