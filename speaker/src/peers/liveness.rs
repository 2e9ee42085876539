//! Whether a peer is alive on a link.
//!
//! Times in, [`Standing`] out. A peer is *alive* if it was heard within a few of its intervals and says that it hears
//! somebody. One that says it hears nobody is *deaf*: it can't hear clients ask either, so what it claims is void. (Not
//! "hears us": where only the way from us to it is cut, it still serves its clients, and a takeover that it cannot hear
//! of would give the address two owners for as long as the cut lasts.)
//!
//! Three things keep silence from being taken for death:
//!
//! - *Vouching.* Each Hello says when its sender last heard whom. A peer that somebody else has heard since is alive: so a
//!   few Hellos that are lost between two nodes mean nothing, and a death is not noticed any later, because the last
//!   Hello of the dead is old for everybody. After a second or so own ears count again.
//! - *Probing.* Where there are too few others to vouch, a peer whose Hello is late is asked to answer at once, again and
//!   again ([`Liveness::probe_due`]) until its window is over: of two nodes each is the only witness, and with one packet in
//!   fifty lost, two Hellos in a row are lost every two minutes.
//! - *Distrust of oneself.* Who slept has heard nothing and must not conclude anything: [`Liveness::excuse`] gives
//!   everybody a new window.

use std::time::Duration;

/// For so many intervals others may vouch for a peer that isn't heard directly: long enough for any streak of losses,
/// short enough that claims that can't be read any more don't bind for long.
const VOUCHED: u32 = 20;

/// A peer is probed if others who could vouch for it are no more than this: with three, the word of all of them must be
/// lost too, and hundreds who all ask one that is dead would be a burst for nothing.
pub const FEW: usize = 2;

/// Whether a peer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Not heard any more.
    Dead,
    /// Heard, but hears nobody.
    Deaf,
    /// Heard, and hears others.
    Alive,
}

/// What was heard of a peer on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// How long it may be silent.
    window: Duration,
    /// How often it speaks.
    interval: Duration,
    /// When it was heard last.
    heard: Duration,
    /// When somebody else heard it last.
    vouched: Duration,
    /// Since when it says that it hears nobody.
    hears_nobody: Option<Duration>,
    /// Since when it doesn't say that it hears us.
    hears_us_not: Option<Duration>,
    /// When we woke up and gave it a new window.
    excused: Duration,
    /// When it was last asked to answer at once.
    probed: Duration,
}

impl Liveness {
    /// A peer heard for the first time.
    pub fn new(now: Duration, interval: Duration, multiplier: u32) -> Self {
        let window = interval * multiplier;
        let (hears_nobody, hears_us_not, excused, probed) = (None, None, Duration::ZERO, Duration::ZERO);
        Self { window, interval, heard: now, vouched: now, hears_nobody, hears_us_not, excused, probed }
    }

    /// It was heard, and speaks so often.
    pub fn heard(&mut self, now: Duration, interval: Duration, multiplier: u32) {
        if !self.is_heard(now) {
            // It was away: what it said before it fell silent is no news.
            (self.hears_nobody, self.hears_us_not) = (None, None);
        }
        self.heard = now;
        self.interval = interval;
        self.window = interval * multiplier;
    }

    /// It said whether it hears somebody, and whether us, if it spoke of us.
    pub fn listed(&mut self, now: Duration, somebody: bool, us: Option<bool>) {
        let since = |before: Option<Duration>| Some(before.unwrap_or(now));
        self.hears_nobody = if somebody { None } else { since(self.hears_nobody) };
        match us {
            Some(true) => self.hears_us_not = None,
            Some(false) => self.hears_us_not = since(self.hears_us_not),
            None => {}
        }
    }

    /// Somebody else heard it at `at`.
    pub fn vouched(&mut self, at: Duration) {
        self.vouched = self.vouched.max(at);
    }

    /// Whether somebody else heard it within its window.
    pub fn is_vouched(&self, now: Duration) -> bool {
        now.saturating_sub(self.vouched) < self.window
    }

    /// How often it speaks.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How long it may be silent.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// When it was heard last, by us.
    pub fn last(&self) -> Duration {
        self.heard
    }

    /// We were asleep until now. Whoever was alive before gets a new window.
    pub fn excuse(&mut self, now: Duration) {
        self.excused = now;
    }

    /// How long ago it was heard last, by us.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    /// Whether it was heard just now, with no more than one of its Hellos missing.
    pub fn is_fresh(&self, now: Duration) -> bool {
        self.age(now) < self.interval * 3 / 2
    }

    /// Whether it was heard within its window, by us.
    pub fn is_heard(&self, now: Duration) -> bool {
        self.age(now) < self.window
    }

    /// Whether it counts.
    pub fn standing(&self, now: Duration) -> Standing {
        if now >= self.silent_from() {
            Standing::Dead
        } else if self.passed(self.hears_nobody).is_some_and(|from| now >= from) {
            Standing::Deaf
        } else {
            Standing::Alive
        }
    }

    /// When it should be asked to answer at once: when its Hello is late by a fifth of an interval, and then three times in
    /// each interval. Who looks only when its own Hello is due asks six times in all before it is dead, three intervals after it
    /// was heard, or four times at least: all of them or the answers, and the Hellos before, are lost once in 10^9 times with one
    /// packet in fifty lost.
    pub fn probe_due(&self) -> Duration {
        (self.heard + self.interval * 6 / 5).max(self.probed + self.interval * 3 / 10)
    }

    /// It was asked.
    pub fn probed(&mut self, now: Duration) {
        self.probed = now;
    }

    /// Whether it hears us, as far as one can tell.
    pub fn hears_us(&self, now: Duration) -> bool {
        self.passed(self.hears_us_not).is_none_or(|from| now < from)
    }

    /// When the standing changes by the mere passage of time.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let times = [Some(self.silent_from()), self.passed(self.hears_nobody)];
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// When what it says since then has to be taken for true: a new peer, or one that has just come back, says so too.
    fn passed(&self, since: Option<Duration>) -> Option<Duration> {
        Some(since?.max(self.excused) + self.window)
    }

    fn silent_from(&self) -> Duration {
        let vouched = self.vouched.min(self.heard + self.interval * VOUCHED);
        self.heard.max(vouched).max(self.excused) + self.window
    }
}

/// Whether a speaker that hears `live` of the `known` others is in company: it, with those, is the majority. One that
/// isn't may be the one that is cut off.
pub fn in_company(live: usize, known: usize) -> bool {
    live > 0 && 2 * (live + 1) > known + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A peer heard last at 1000 ms, when it said that it hears us.
    fn peer() -> Liveness {
        let mut peer = Liveness::new(ms(0), INTERVAL, 3);
        peer.heard(ms(1000), INTERVAL, 3);
        peer.listed(ms(1000), true, Some(true));
        peer
    }

    #[test]
    fn a_peer_is_dead_after_three_intervals_of_silence_and_deaf_after_three_of_hearing_nobody() {
        for (what, change, times) in [
            ("silent", (|_| ()) as fn(&mut Liveness), [(1149, Alive), (1150, Dead)]),
            (
                "hears nobody",
                |p| {
                    p.heard(ms(1100), INTERVAL, 3);
                    p.listed(ms(1050), false, Some(false));
                    p.listed(ms(1100), false, Some(false));
                    p.heard(ms(1190), INTERVAL, 3);
                },
                [(1199, Alive), (1200, Deaf)],
            ),
            (
                "heard nobody, and now somebody",
                |p| {
                    p.listed(ms(1050), false, Some(false));
                    p.listed(ms(1100), true, Some(false));
                    p.heard(ms(1100), INTERVAL, 3);
                },
                [(1249, Alive), (1250, Dead)],
            ),
            ("heard by others", |p| p.vouched(ms(1100)), [(1249, Alive), (1250, Dead)]),
            ("heard only by others, for long", |p| p.vouched(ms(9000)), [(2149, Alive), (2150, Dead)]),
            ("we slept", |p| p.excuse(ms(5000)), [(5149, Alive), (5150, Dead)]),
            ("it speaks rarely", |p| p.heard(ms(1000), ms(500), 3), [(2499, Alive), (2500, Dead)]),
        ] {
            let mut peer = peer();
            change(&mut peer);
            for (at, standing) in times {
                assert_eq!(peer.standing(ms(at)), standing, "{what}, at {at} ms");
            }
        }
    }

    #[test]
    fn the_deadline_is_when_the_standing_changes() {
        let mut peer = peer();
        peer.listed(ms(1010), false, Some(false));
        peer.heard(ms(1040), INTERVAL, 3);
        assert_eq!(peer.next_deadline(ms(1040)), Some(ms(1160)));
        assert_eq!((peer.standing(ms(1159)), peer.standing(ms(1160))), (Alive, Deaf));
        assert_eq!(peer.next_deadline(ms(1160)), Some(ms(1190)));
        assert_eq!((peer.standing(ms(1189)), peer.standing(ms(1190))), (Deaf, Dead));
        assert_eq!(peer.next_deadline(ms(1190)), None);
    }

    #[test]
    fn a_peer_that_lists_others_but_not_us_for_a_while_does_not_hear_us() {
        let mut peer = peer();
        peer.heard(ms(1150), INTERVAL, 3);
        peer.listed(ms(1000), true, Some(false));
        peer.listed(ms(1150), true, Some(false));
        assert_eq!((peer.standing(ms(1150)), peer.hears_us(ms(1149)), peer.hears_us(ms(1150))), (Alive, true, false));
        peer.listed(ms(1160), true, Some(true));
        assert!(peer.hears_us(ms(1160)));
    }

    #[test]
    fn one_that_is_late_is_probed_several_times_before_it_is_dead() {
        let mut peer = peer();
        let mut probes = Vec::new();
        while peer.probe_due() < ms(1150) {
            probes.push(peer.probe_due().as_millis());
            peer.probed(peer.probe_due());
        }
        assert_eq!(probes, [1060, 1075, 1090, 1105, 1120, 1135]);
        peer.heard(ms(1140), INTERVAL, 3);
        assert_eq!(peer.probe_due(), ms(1200));
    }

    #[test]
    fn the_majority_is_in_company_and_half_of_them_is_not() {
        for (live, known, expected) in
            [(0, 0, false), (1, 1, true), (0, 1, false), (1, 2, true), (1, 3, false), (2, 3, true), (2, 4, true)]
        {
            assert_eq!(in_company(live, known), expected, "{live} of {known} others");
        }
    }
}
