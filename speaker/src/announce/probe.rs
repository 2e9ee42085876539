//! Whether somebody who is no peer has an lb_ip: asked before it is announced for the first time, and watched for later
//! (RFC 5227; over IPv6, RFC 4862 §5.4).
//!
//! Addresses, times and what was seen in; times to ask and to wait for out. Frames are made elsewhere.
//!
//! - *Before the first use* three probes ask for the address, and whoever answers has it. Then it is not announced, and asked
//!   for again later: it may be free by then. RFC 5227 §1.1 waits up to seven seconds for this; users wait for their first
//!   connection, so here it takes [`WAIT`], which is long for a LAN. An address that had an owner before is not probed: a
//!   takeover must not wait, and whoever took it meanwhile is found later.
//! - *Later* whoever speaks for the address is a stranger, unless it is a peer. It is answered with one announcement, at most
//!   every [`DEFEND`], however long it goes on (RFC 5227 §2.4 (c)): an owner that gave way would hand its clients to whoever
//!   shouts. Somebody else has to decide: the conflict is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crds::MacAddr;

/// So many probes are sent (RFC 5227 §1.1, PROBE_NUM): two may be lost.
const PROBES: u32 = 3;

/// A probe, and the end, come so long after the probe before. A host answers within a millisecond or so, and within some
/// tens of them if it is busy or on a wireless link.
const GAP: Duration = Duration::from_millis(40);

/// By so much the first announcement of an address is delayed.
pub const WAIT: Duration = Duration::from_millis(120);

/// So many addresses are begun to be asked for at once. More of them wait: thousands may come in one moment, and a broadcast
/// is for everybody on the LAN.
const BURST: u32 = 128;

/// Of those that wait, one has its turn each time: 1,000 addresses a second or, with their three probes, 3,000 frames, a third
/// of what a port that guards against storms lets through at a gigabit (1 % of it). Controllers create addresses more slowly.
const EACH: Duration = Duration::from_millis(1);

/// After this an address that somebody else has is probed again.
const AGAIN: Duration = Duration::from_secs(10);

/// An address is not defended again within this time (RFC 5227 §1.1, DEFEND_INTERVAL).
const DEFEND: Duration = Duration::from_secs(10);

/// A stranger that was not seen for so long is gone: it is no more than a few of the times after which a host in use is
/// asked for by others or announces itself.
const GONE: Duration = Duration::from_secs(120);

/// Somebody who is no peer, and uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Where it is.
    pub mac: MacAddr,
    /// Whether the address isn't announced because of it.
    pub held_back: bool,
    /// When it was seen last.
    seen: Duration,
    /// When the address was defended last.
    defended: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probing {
    sent: u32,
    /// When the next probe, or the end, is due.
    next: Duration,
}

/// What is known of strangers on a link.
#[derive(Clone, Debug, Default)]
pub struct Strangers {
    probing: BTreeMap<IpAddr, Probing>,
    due: BTreeSet<(Duration, IpAddr)>,
    known: BTreeMap<IpAddr, Stranger>,
    /// When the next address would have its turn, if there were no bursts.
    turn: Duration,
}

/// What to do about somebody who uses an address that is announced here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// It wasn't known before: tell.
    pub is_news: bool,
    /// Announce the address once.
    pub defend: bool,
}

impl Strangers {
    /// Nobody has announced `lb_ip` before, and we would. Returns until when to wait, or nothing if it is free.
    pub fn wait(&mut self, now: Duration, lb_ip: IpAddr) -> Option<Duration> {
        let held_back = self.known.get(&lb_ip).filter(|stranger| stranger.held_back);
        if let Some(again) = held_back.map(|stranger| stranger.seen + AGAIN).filter(|again| now < *again) {
            return Some(again);
        }
        match self.probing.get(&lb_ip).copied() {
            Some(Probing { sent: PROBES, next }) if next <= now => {
                self.stop(lb_ip);
                None
            }
            Some(Probing { sent, next }) => Some(next + GAP * (PROBES - sent)),
            None => {
                let next = self.take_turn(now);
                self.probing.insert(lb_ip, Probing { sent: 0, next });
                self.due.insert((next, lb_ip));
                Some(next + WAIT)
            }
        }
    }

    /// We would not announce `lb_ip`, or have it now: it isn't asked for any more, and nothing holds it back. Returns whether
    /// anything did.
    pub fn stop(&mut self, lb_ip: IpAddr) -> bool {
        self.stop_probing(lb_ip);
        let held_back = self.known.get(&lb_ip).is_some_and(|stranger| stranger.held_back);
        if held_back {
            self.known.remove(&lb_ip);
        }
        held_back
    }

    fn stop_probing(&mut self, lb_ip: IpAddr) {
        if let Some(probing) = self.probing.remove(&lb_ip) {
            self.due.remove(&(probing.next, lb_ip));
        }
    }

    /// We were away: what was asked may have been answered meanwhile, so it is asked once more at least. (Not from the
    /// beginning: on a machine without time to spare there would be no end.)
    pub fn ask_again(&mut self, now: Duration) {
        self.turn = now;
        self.due.clear();
        let mut probing = std::mem::take(&mut self.probing);
        for (lb_ip, Probing { sent, next }) in &mut probing {
            (*sent, *next) = ((*sent).min(PROBES - 1), self.take_turn(now));
            self.due.insert((*next, *lb_ip));
        }
        self.probing = probing;
    }

    /// When the next address has its turn to be asked for.
    fn take_turn(&mut self, now: Duration) -> Duration {
        let turn = self.turn.max(now);
        self.turn = turn + EACH;
        turn.saturating_sub(EACH * (BURST - 1)).max(now)
    }

    /// How long an address would wait now until it is asked for.
    pub fn queue(&self, now: Duration) -> Duration {
        self.turn.saturating_sub(now + EACH * (BURST - 1))
    }

    /// The addresses to ask for now.
    pub fn take_due(&mut self, now: Duration) -> Vec<IpAddr> {
        let mut turns = Vec::new();
        while let Some((due, lb_ip)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, lb_ip));
            let probing = self.probing.get_mut(&lb_ip).expect("invariant: what is due is probed");
            *probing = Probing { sent: probing.sent + 1, next: now + GAP };
            if probing.sent < PROBES {
                self.due.insert((probing.next, lb_ip));
            }
            turns.push(lb_ip);
        }
        turns
    }

    /// When the next address is to be asked for.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Whether any address is asked for.
    pub fn is_probing(&self) -> bool {
        !self.probing.is_empty()
    }

    /// Somebody who is no peer uses `used`. Returns whether it is one that we ask for, and that wasn't known.
    pub fn answered(&mut self, now: Duration, used: IpAddr, mac: MacAddr) -> bool {
        if !self.probing.contains_key(&used) {
            return false;
        }
        self.stop_probing(used);
        let stranger = Stranger { mac, held_back: true, seen: now, defended: None };
        self.known.insert(used, stranger).is_none_or(|before| before.mac != mac)
    }

    /// Somebody who is no peer uses `lb_ip`, which we announce.
    pub fn intruded(&mut self, now: Duration, lb_ip: IpAddr, mac: MacAddr) -> Reaction {
        let before = self.known.get(&lb_ip).copied();
        let last = before.and_then(|stranger| stranger.defended);
        let defend = last.is_none_or(|last| now >= last + DEFEND);
        let defended = if defend { Some(now) } else { last };
        self.known.insert(lb_ip, Stranger { mac, held_back: false, seen: now, defended });
        Reaction { is_news: before.is_none_or(|before| before.mac != mac), defend }
    }

    /// Those who use addresses of ours.
    pub fn known(&self) -> impl Iterator<Item = (IpAddr, Stranger)> + '_ {
        self.known.iter().map(|(lb_ip, stranger)| (*lb_ip, *stranger))
    }

    /// Forgets those who have not been seen for long, or whose address isn't announced here. Returns whether there were any.
    pub fn tidy(&mut self, now: Duration, announced: impl Fn(IpAddr) -> bool) -> bool {
        let before = self.known.len();
        self.known.retain(|lb_ip, stranger| stranger.held_back || announced(*lb_ip) && now < stranger.seen + GONE);
        self.known.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: MacAddr = MacAddr(2, 0, 0, 0, 0, 0x99);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn an_address_is_asked_for_three_times_and_free_when_nobody_has_answered() {
        let mut strangers = Strangers::default();
        assert_eq!(strangers.wait(ms(1000), ip(1)), Some(ms(1120)));
        let mut asked = Vec::new();
        while let Some(due) = strangers.next_deadline() {
            asked.push((due.as_millis(), strangers.take_due(due)));
            assert!(strangers.wait(due, ip(1)).is_some());
        }
        assert_eq!(asked, [(1000, vec![ip(1)]), (1040, vec![ip(1)]), (1080, vec![ip(1)])]);
        assert_eq!(strangers.wait(ms(1119), ip(1)), Some(ms(1120)));
        assert_eq!(strangers.wait(ms(1120), ip(1)), None);
        assert!(!strangers.is_probing());
    }

    #[test]
    fn a_late_loop_waits_as_long_after_its_last_probe() {
        let mut strangers = Strangers::default();
        strangers.wait(ms(0), ip(1));
        for at in [0, 500, 510, 540] {
            strangers.take_due(ms(at));
        }
        assert_eq!(strangers.wait(ms(541), ip(1)), Some(ms(580)));
        strangers.ask_again(ms(575));
        assert_eq!(strangers.wait(ms(580), ip(1)), Some(ms(615)));
        assert_eq!(strangers.take_due(ms(580)), [ip(1)]);
        assert_eq!((strangers.wait(ms(619), ip(1)), strangers.wait(ms(620), ip(1))), (Some(ms(620)), None));
    }

    #[test]
    fn of_thousands_of_addresses_a_burst_is_asked_for_at_once_and_the_others_one_by_one() {
        let lb_ip = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let (mut strangers, begin) = (Strangers::default(), ms(5000));
        for n in 0..3000_u32 {
            let turn = begin + EACH * (n + 1).saturating_sub(BURST);
            assert_eq!(strangers.queue(begin), turn - begin);
            assert_eq!(strangers.wait(begin, lb_ip(n)), Some(turn + WAIT));
        }
        let mut sent = BTreeMap::<u128, usize>::new();
        while let Some(due) = strangers.next_deadline() {
            *sent.entry(due.as_millis() / 100).or_default() += strangers.take_due(due).len();
        }
        assert_eq!(sent.values().sum::<usize>(), 9000);
        assert!(sent.values().all(|frames| *frames <= 3 * (BURST as usize + 100)), "{sent:?}");
        assert!(sent.values().skip(1).all(|frames| *frames <= 400), "{sent:?}");
        // The last ones are free at last, and by then one alone doesn't wait any more.
        let end = begin + EACH * 3000 + WAIT;
        assert_eq!((strangers.wait(end, lb_ip(2999)), strangers.wait(end, lb_ip(9999))), (None, Some(end + WAIT)));
        // After a sleep all are asked for again, and again not at once.
        (0..1000).for_each(|n| assert!(strangers.wait(end, lb_ip(n + 20_000)).is_some()));
        strangers.ask_again(end);
        assert!(strangers.take_due(end).len() <= BURST as usize);
    }

    #[test]
    fn an_address_that_somebody_has_is_held_back_and_asked_for_again_until_it_is_free() {
        let mut strangers = Strangers::default();
        strangers.wait(ms(0), ip(1));
        strangers.take_due(ms(0));
        assert!(!strangers.answered(ms(1), ip(2), STRANGER), "nobody asked for that");
        assert!(strangers.answered(ms(1), ip(1), STRANGER));
        assert!(!strangers.answered(ms(2), ip(1), STRANGER));
        assert_eq!((strangers.next_deadline(), strangers.wait(ms(120), ip(1))), (None, Some(ms(10_001))));
        let known = Stranger { mac: STRANGER, held_back: true, seen: ms(1), defended: None };
        assert_eq!(strangers.known().collect::<Vec<_>>(), [(ip(1), known)]);
        assert!(!strangers.tidy(ms(9000), |_| false));
        // Still there: that is no news.
        assert_eq!(strangers.wait(ms(10_001), ip(1)), Some(ms(10_121)));
        strangers.take_due(ms(10_001));
        assert!(!strangers.answered(ms(10_002), ip(1), STRANGER));
        // Gone.
        assert_eq!(strangers.wait(ms(20_002), ip(1)), Some(ms(20_122)));
        for at in [20_002, 20_042, 20_082] {
            strangers.take_due(ms(at));
        }
        assert_eq!(strangers.wait(ms(20_122), ip(1)), None);
        assert_eq!(strangers.known().count(), 0);
    }

    #[test]
    fn an_address_that_is_announced_is_defended_at_a_bounded_rate_and_a_stranger_told_once() {
        let mut strangers = Strangers::default();
        for (at, is_news, defend) in [(0, true, true), (1, false, false), (9_999, false, false), (10_000, false, true)]
        {
            assert_eq!(strangers.intruded(ms(at), ip(1), STRANGER), Reaction { is_news, defend }, "at {at} ms");
        }
        assert!(strangers.intruded(ms(10_001), ip(1), MacAddr(2, 0, 0, 0, 0, 0x98)).is_news);
        assert!(!strangers.tidy(ms(130_000), |_| true));
        assert!(strangers.tidy(ms(130_001), |_| true));
        strangers.intruded(ms(0), ip(1), STRANGER);
        assert!(strangers.tidy(ms(1), |_| false), "it isn't announced any more");
    }
}
