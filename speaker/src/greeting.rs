//! What is said to the peers on a link, and when: one Hello an interval, sooner if something changed, with those claims
//! that changed or were asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::claims::{self, Claims, Page};
use crate::hello::{self, Heard, Hello, MAX_PAYLOAD, PAGE_OVERHEAD, Packet};
use crate::liveness::Standing;
use crate::machine::Config;
use crate::peer::Peer;
use crate::segment::Context;

/// Changes make a Hello come sooner, but not sooner than this part of an interval after the last one.
const HASTE: u32 = 5;

/// What was said, and what is to be said.
#[derive(Debug)]
pub struct State {
    /// When the last Hello went out.
    last: Option<Duration>,
    /// When the first one is due.
    first: Duration,
    /// Whether there is news.
    hasty: bool,
    sequence: u64,
    /// Addresses whose claim changed since the last Hello.
    changed: BTreeSet<IpAddr>,
    /// Buckets that somebody asked for, one bit each.
    asked: u128,
}

impl State {
    /// Nothing was said yet; the first Hello is due now.
    pub fn new(now: Duration) -> Self {
        Self { last: None, first: now, hasty: false, sequence: 0, changed: BTreeSet::new(), asked: 0 }
    }

    /// Others should hear from us soon.
    pub fn hasten(&mut self) {
        self.hasty = true;
    }

    /// Others must hear from us now, and not again.
    pub fn now(&mut self) {
        self.last = None;
        self.first = Duration::ZERO;
    }

    /// Our claim to `lb_ip` changed.
    pub fn changed(&mut self, lb_ip: IpAddr) {
        self.changed.insert(lb_ip);
    }

    /// A peer said whose claims it wants to be told again.
    pub fn asked(&mut self, wanted: &[hello::Wanted], me: u64) {
        for wanted in wanted.iter().filter(|wanted| wanted.incarnation == me) {
            self.asked |= wanted.buckets;
        }
    }

    /// When the next Hello is due.
    pub fn due(&self, config: &Config) -> Duration {
        let pause = if self.hasty { config.interval / HASTE } else { config.interval };
        self.last.map_or(self.first, |last| last + pause)
    }

    /// Whether it is due.
    pub fn is_due(&self, now: Duration, config: &Config) -> bool {
        now >= self.due(config)
    }

    /// The Hello and, before it, the pages that go with it: whoever gets all of it finds nothing to ask for.
    pub fn packets(&mut self, context: &Context<'_>, own: &mut Claims, peers: &BTreeMap<String, Peer>) -> Vec<Packet> {
        let config = context.config;
        (self.last, self.hasty) = (Some(context.now), false);
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
        let room = MAX_PAYLOAD - hello::overhead(&config.node);
        let asked = (0..1 << bits).filter(|bucket| buckets & 1 << bucket != 0);
        let pages: Vec<Page> = asked.flat_map(|bucket| own.pages(bucket, room - PAGE_OVERHEAD)).collect();

        let digests = own.digests().to_vec();
        let room_for_lists = room - digests.len() * 4;
        // TODO(correctness): with more than about 80 peers on a link the list has to be told in parts; and the interval
        // has to grow with their number.
        let mut heard: Vec<Heard> = peers
            .values()
            .filter(|peer| peer.standing != Standing::Dead && peer.liveness.is_heard(context.now))
            .map(|peer| Heard { incarnation: peer.incarnation, age: peer.liveness.age(context.now) })
            .collect();
        heard.truncate(room_for_lists / 10);
        let unread = peers.values().filter(|peer| peer.standing != Standing::Dead && peer.unread.0 != 0);
        let mut wanted: Vec<hello::Wanted> =
            unread.map(|peer| hello::Wanted { incarnation: peer.incarnation, buckets: peer.unread.0 }).collect();
        wanted.truncate((room_for_lists - heard.len() * 10) / 24);
        let left = room_for_lists - heard.len() * 10 - wanted.len() * 24;

        let riding = pages.iter().map(size).sum::<usize>() <= left;
        let mut packets = if riding { vec![] } else { self.packed(context, &pages, room, bits) };
        let mut last = self.packet(context, bits);
        last.pages = if riding { pages } else { vec![] };
        last.hello = Some(Hello { heard, wanted, digests });
        packets.push(last);
        packets
    }

    /// `pages` in as few packets as they fit in, in their order.
    fn packed(&self, context: &Context<'_>, pages: &[Page], room: usize, bits: u8) -> Vec<Packet> {
        let mut packets: Vec<Packet> = Vec::new();
        let mut left = 0;
        for page in pages {
            if size(page) > left {
                packets.push(self.packet(context, bits));
                left = room;
            }
            left = left.saturating_sub(size(page));
            packets.last_mut().expect("invariant: the first page opens a packet").pages.push(page.clone());
        }
        packets
    }

    fn packet(&self, context: &Context<'_>, bits: u8) -> Packet {
        let config = context.config;
        Packet {
            cluster: config.cluster,
            node: config.node.clone(),
            incarnation: config.incarnation,
            sequence: self.sequence,
            interval: config.interval,
            leaving: context.leaving,
            blind: context.snapshot.is_none(),
            hello: None,
            bits,
            pages: vec![],
        }
    }
}

fn size(page: &Page) -> usize {
    PAGE_OVERHEAD + page.claims.iter().map(|(lb_ip, _)| claims::size(*lb_ip)).sum::<usize>()
}
