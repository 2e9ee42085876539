//! What is said to the peers on a link, and when: one Hello an interval ([`crate::peers::interval`]), sooner if something changed, with those claims
//! that changed or were asked for. What is too much for one packet goes in several.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::announce::placement::Link;
use crate::config::Config;
use crate::ownership::claims::{self, Claims, Page};
use crate::ownership::context::Context;
use crate::peers::handshake::{self, Meetings};
use crate::peers::interval::Pace;
use crate::peers::liveness::Standing;
use crate::peers::peer::{MAX_PARTS, Peer};
use crate::wire::hello::{self, Heard, Hearing, MAX_PAYLOAD, PAGE_OVERHEAD, Packet, size};

/// Changes make a Hello come sooner, but not sooner than this after the last one: several in a row go together.
const HASTE: Duration = Duration::from_millis(10);

/// Who is probed answers at once, but not sooner than this after its last Hello: several may ask at the same time.
const ANSWER: Duration = Duration::from_millis(2);

/// So many Hellos after one with news wake whoever hears them too: the one with the news may have been lost.
const REPEATED: u32 = 3;

/// What was said, and what is to be said.
#[derive(Debug)]
pub struct State {
    /// When the last Hello went out.
    last: Option<Duration>,
    /// When the first one is due.
    first: Duration,
    /// Whether there is news.
    hasty: bool,
    /// Whether somebody wants to hear from us at once.
    asked_for: bool,
    /// How many Hellos have gone out since there was anything to say but that we are there.
    quiet: u32,
    /// Those from whom we want to hear at once.
    probed: Vec<u32>,
    pace: Pace,
    /// What we are called on this link.
    incarnation: u64,
    sequence: u64,
    /// Addresses whose claim changed since the last Hello.
    changed: BTreeSet<IpAddr>,
    /// Buckets that somebody asked for, one bit each.
    asked: u128,
}

impl State {
    /// Nothing was said yet; the first Hello is due now.
    pub fn new(now: Duration, incarnation: u64, config: &Config) -> Self {
        let (last, first, hasty, pace) = (None, now, false, Pace::new(config));
        let (asked_for, probed) = (false, Vec::new());
        Self {
            last,
            first,
            hasty,
            asked_for,
            quiet: 0,
            probed,
            pace,
            incarnation,
            sequence: 0,
            changed: BTreeSet::new(),
            asked: 0,
        }
    }

    /// What we are called on this link.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether `met` repeats what we have said just now.
    pub fn is_repeated(&self, met: &[hello::Met]) -> bool {
        handshake::proves(met, self.incarnation, self.sequence)
    }

    /// Others should hear from us soon.
    pub fn hasten(&mut self) {
        self.hasty = true;
    }

    /// A packet asks these to answer at once.
    pub fn answer(&mut self, probed: &[u32]) {
        self.asked_for |= probed.contains(&hello::id(self.incarnation));
    }

    /// This one is to answer at once.
    pub fn probe(&mut self, incarnation: u64) {
        self.probed.push(hello::id(incarnation));
    }

    /// Others must hear from us now, and not again.
    pub fn now(&mut self) {
        self.last = None;
        self.first = Duration::ZERO;
    }

    /// Nothing can be said now: the next Hello is due an interval later.
    pub fn skip(&mut self, now: Duration) {
        (self.last, self.hasty, self.asked_for) = (Some(now), false, false);
        self.probed.clear();
    }

    /// Our claim to `lb_ip` changed.
    pub fn changed(&mut self, lb_ip: IpAddr) {
        self.changed.insert(lb_ip);
    }

    /// A peer said whose claims it wants to be told again.
    pub fn asked(&mut self, wanted: &[hello::Wanted]) {
        let me = hello::id(self.incarnation);
        for wanted in wanted.iter().filter(|wanted| wanted.id == me) {
            self.asked |= wanted.buckets;
        }
    }

    /// Whether others may have missed us: since the last Hello, which they have heard after it was made, we have been silent
    /// for as long as makes us dead to them. (Whoever didn't hear that one has told what it claims since.)
    pub fn is_missed(&self, now: Duration, multiplier: u32) -> bool {
        self.last.is_none_or(|last| now >= last + self.pace.told() * multiplier)
    }

    /// When the next Hello is due.
    pub fn due(&self) -> Duration {
        let pause = match self {
            Self { probed, .. } if !probed.is_empty() => Duration::ZERO,
            Self { asked_for: true, .. } => ANSWER,
            Self { hasty: true, .. } => HASTE,
            _ => self.pace.kept(),
        };
        self.last.map_or(self.first, |last| last + pause)
    }

    /// Whether it is due.
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.due()
    }

    /// How often we say Hello, as others know it.
    pub fn interval(&self) -> Duration {
        self.pace.told()
    }

    /// The Hello and, before it, the parts that go with it: whoever gets all of it finds nothing to ask for.
    pub fn packets(
        &mut self,
        context: &Context<'_>,
        link: &Link,
        own: &mut Claims,
        others: &Others<'_>,
    ) -> Vec<Packet> {
        let config = context.config;
        let mut is_news = self.hasty || self.asked_for || self.last.is_none() || self.asked != 0;
        is_news |= !self.changed.is_empty() || !self.probed.is_empty();
        (self.last, self.hasty, self.asked_for) = (Some(context.now), false, false);
        let told = self.pace.told();
        self.pace.step(config, others.speakers);
        // One number for all of them: they may overtake each other.
        self.sequence += 1;
        let bits = own.fitting_bits();
        if bits != own.bits() {
            own.set_bits(bits);
            // What was asked for are other buckets now. Whoever still misses something asks again.
            self.asked = 0;
        }
        let mut buckets = std::mem::take(&mut self.asked);
        buckets |= self.changed.iter().fold(0, |buckets, lb_ip| buckets | 1 << own.bucket(*lb_ip));
        self.changed.clear();
        if bits == 0 {
            // So few that they are told each time.
            buckets = 1;
        }
        let room = MAX_PAYLOAD - context.keys.size(context.now) - hello::overhead(&config.node, &link.name);
        let asked = (0..1 << bits).filter(|bucket| buckets & 1 << bucket != 0);
        let pages: Vec<Page> = asked.flat_map(|bucket| own.pages(bucket, room - PAGE_OVERHEAD)).collect();
        let lists = others.lists(context.now);
        is_news |= told != self.pace.told() || context.leaving || context.snapshot.is_none();
        is_news |= !lists.met.is_empty() || !lists.wanted.is_empty();
        self.quiet = if is_news { 0 } else { self.quiet.saturating_add(1) };
        let empty = Packet {
            cluster: config.cluster,
            node: config.node.clone(),
            mac: link.mac,
            link: link.name.clone(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            part: 0,
            interval: self.pace.told(),
            leaving: context.leaving,
            blind: context.snapshot.is_none(),
            routine: self.quiet >= REPEATED,
            heard: Hearing { all: 0, from: 1, to: 0, peers: vec![] },
            met: vec![],
            probed: vec![],
            wanted: vec![],
            bits,
            digests: None,
            pages: vec![],
        };
        let probed = std::mem::take(&mut self.probed);
        let room = room - probed.len() * size::PROBED;
        let mut packets = packed(empty, own.digests().to_vec(), lists, pages, room);
        let hello = packets.last_mut().expect("invariant: there is a Hello");
        hello.probed = probed;
        // Who hears nobody at all is deaf. This one isn't.
        hello.heard.all = hello.heard.all.max(u16::from(others.hears_outsiders));
        packets
    }
}

/// Those of whom a Hello tells.
pub struct Others<'a> {
    /// The peers.
    pub peers: &'a BTreeMap<String, Peer>,
    /// Those who aren't believed yet.
    pub meetings: &'a Meetings,
    /// How many speakers there are, with us.
    pub speakers: usize,
    /// Whether none of the peers is heard, but somebody else on the LAN.
    pub hears_outsiders: bool,
}

/// What there is to say of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lists {
    /// By id.
    heard: Vec<Heard>,
    met: Vec<hello::Met>,
    wanted: Vec<hello::Wanted>,
}

impl Others<'_> {
    fn lists(&self, now: Duration) -> Lists {
        let counting = || self.peers.values().filter(|peer| peer.standing != Standing::Dead);
        let id = |peer: &Peer| hello::id(peer.incarnation);
        let heard = counting().filter(|peer| peer.liveness.is_heard(now));
        let mut heard: Vec<Heard> = heard.map(|peer| Heard { id: id(peer), age: peer.liveness.age(now) }).collect();
        heard.sort_unstable_by_key(|heard| heard.id);
        // Who doesn't list us may have lost sight of us, and want a proof that we are there.
        let unsure = counting().filter(|peer| !peer.lists_us);
        let unsure = unsure.map(|peer| hello::Met { id: id(peer), sequence: peer.sequence as u32 });
        let met = self.meetings.told(now).chain(unsure).collect();
        let unread = counting().filter(|peer| peer.unread.0 != 0);
        let wanted = unread.map(|peer| hello::Wanted { id: id(peer), buckets: peer.unread.0 }).collect();
        Lists { heard, met, wanted }
    }
}

impl Lists {
    fn size(&self) -> usize {
        self.heard.len() * size::HEARD + self.met.len() * size::MET + self.wanted.len() * size::WANTED
    }
}

/// All there is to say in as few packets as it fits in, of `room` bytes each, the Hello last. `empty` is how they begin.
fn packed(empty: Packet, digests: Vec<u32>, lists: Lists, pages: Vec<Page>, room: usize) -> Vec<Packet> {
    let mut left = room - digests.len() * size::DIGEST;
    let all = u16::try_from(lists.heard.len()).unwrap_or(u16::MAX);
    let mut hello = Packet { digests: Some(digests), ..empty.clone() };
    hello.heard.all = all;
    let mut parts: Vec<Packet> = Vec::new();
    if lists.size() <= left {
        left -= lists.size();
        hello.heard = Hearing { all, from: 0, to: u32::MAX, peers: lists.heard };
        (hello.met, hello.wanted) = (lists.met, lists.wanted);
    } else {
        let pieces = hearings(&lists.heard, room / size::HEARD).into_iter();
        parts.extend(pieces.map(|heard| Packet { heard, ..empty.clone() }));
        // Half a packet for each. Those who find no room have their turn another time.
        let (mut met, mut wanted) = (lists.met, lists.wanted);
        turn(&mut met, room / 2 / size::MET, empty.sequence);
        turn(&mut wanted, room / 2 / size::WANTED, empty.sequence);
        if !met.is_empty() || !wanted.is_empty() {
            parts.push(Packet { heard: hello.heard.clone(), met, wanted, ..empty.clone() });
        }
    }
    if pages.iter().map(page_size).sum::<usize>() <= left {
        hello.pages = pages;
    } else {
        let mut left = 0;
        for page in pages {
            if page_size(&page) > left {
                let beside = room - hello.heard.peers.len() * size::HEARD;
                if page_size(&page) <= beside {
                    parts.push(Packet { heard: hello.heard.clone(), ..empty.clone() });
                    left = beside;
                } else {
                    // It takes all the room: this part speaks of nobody, and the Hello does.
                    let heard = Hearing { all, from: 1, to: 0, peers: vec![] };
                    parts.push(Packet { heard, ..empty.clone() });
                    left = room;
                }
            }
            left = left.saturating_sub(page_size(&page));
            parts.last_mut().expect("invariant: the first page opens a packet").pages.push(page);
        }
    }
    // Claims that are left out are asked for.
    parts.truncate(MAX_PARTS - 1);
    for (part, packet) in (1..).zip(&mut parts) {
        packet.part = part;
    }
    parts.push(hello);
    parts
}

/// `heard`, which is sorted, in pieces that together say something of every id.
fn hearings(heard: &[Heard], most: usize) -> Vec<Hearing> {
    let all = u16::try_from(heard.len()).unwrap_or(u16::MAX);
    let mut pieces: Vec<Hearing> = Vec::new();
    for peers in heard.chunks(most) {
        let from = pieces.last().map_or(0, |before| before.to.saturating_add(1));
        let to = peers.last().map_or(u32::MAX, |last| last.id);
        pieces.push(Hearing { all, from, to, peers: peers.to_vec() });
    }
    match pieces.last_mut() {
        Some(last) => last.to = u32::MAX,
        None => pieces.push(Hearing { all, from: 0, to: u32::MAX, peers: vec![] }),
    }
    pieces
}

/// Leaves `most` of `list`, others each time.
fn turn<T>(list: &mut Vec<T>, most: usize, sequence: u64) {
    if list.len() > most {
        let by = (sequence as usize).wrapping_mul(most) % list.len();
        list.rotate_left(by);
        list.truncate(most);
    }
}

fn page_size(page: &Page) -> usize {
    PAGE_OVERHEAD + page.claims.iter().map(|(lb_ip, _)| claims::size(*lb_ip)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::MacAddr;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    const ROOM: usize = 1000;

    fn empty() -> Packet {
        Packet {
            cluster: 1,
            node: "n1".into(),
            mac: MacAddr(2, 0, 0, 0, 0, 1),
            link: "eth0".into(),
            incarnation: 2,
            sequence: 3,
            part: 0,
            interval: Config::INTERVAL,
            leaving: false,
            blind: false,
            routine: false,
            heard: Hearing { all: 0, from: 1, to: 0, peers: vec![] },
            met: vec![],
            probed: vec![],
            wanted: vec![],
            bits: 7,
            digests: None,
            pages: vec![],
        }
    }

    proptest! {
        /// However much there is, all of those who are heard are told, each id is spoken of exactly once or in every
        /// packet alike, and nothing is too large.
        #[test]
        fn everything_fits_however_much_it_is(
            ids in btree_set(any::<u32>(), 0..800),
            met in 0u32..400,
            wanted in 0u32..200,
            pages in vec(0u32..70, 0..40),
            asked in any::<u32>(),
        ) {
            let heard: Vec<Heard> = ids.iter().map(|id| Heard { id: *id, age: Duration::ZERO }).collect();
            let lists = Lists {
                heard: heard.clone(),
                met: (0..met).map(|id| hello::Met { id, sequence: 0 }).collect(),
                wanted: (0..wanted).map(|id| hello::Wanted { id, buckets: 1 }).collect(),
            };
            let claim = claims::Claim { epoch: 1, backed: true, held: true, kept: true };
            let page = |n: u32| Page { from: 0, to: n, claims: (0..n).map(|n| (IpAddr::from(n.to_be_bytes()), claim)).collect() };
            let pages: Vec<Page> = pages.into_iter().map(page).collect();
            let packets = packed(empty(), vec![0; 128], lists, pages.clone(), ROOM);
            let most = ROOM + hello::overhead("n1", "eth0");
            prop_assert!(packets.iter().all(|packet| packet.encode().len() <= most));
            let (hello, parts) = packets.split_last().expect("a Hello");
            prop_assert!(hello.digests.is_some() && hello.part == 0);
            prop_assert!(parts.iter().all(|part| part.digests.is_none() && part.part > 0));
            prop_assert!(packets.iter().all(|packet| packet.heard.all as usize == ids.len()));
            let about: Vec<&Packet> = packets.iter().filter(|packet| packet.heard.covers(asked)).collect();
            prop_assert!(!about.is_empty());
            for packet in about {
                prop_assert_eq!(packet.heard.peers.iter().any(|heard| heard.id == asked), ids.contains(&asked));
            }
            let told: BTreeSet<u32> = packets.iter().flat_map(|packet| &packet.heard.peers).map(|heard| heard.id).collect();
            prop_assert_eq!(told, ids);
            let told: Vec<Page> = packets.into_iter().flat_map(|packet| packet.pages).collect();
            prop_assert_eq!(told, pages);
        }
    }

    #[test]
    fn who_finds_no_room_has_a_turn_later() {
        let turns = |sequence| {
            let mut list: Vec<u32> = (0..10).collect();
            turn(&mut list, 4, sequence);
            list
        };
        let told: BTreeSet<u32> = (5..8).flat_map(turns).collect();
        assert_eq!(told.len(), 10);
        assert_eq!((turns(0), turns(1)), (vec![0, 1, 2, 3], vec![4, 5, 6, 7]));
    }
}
