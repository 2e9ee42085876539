//! When something may be tried again, by subject.
//!
//! How earlier tries ended, and the time → not before when. Failures are tried again with growing pauses. So is what
//! succeeds again and again: somebody else writes the other thing each time, and a fight at full speed helps nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::plan::effect::Subject;

/// The first and the longest pause; each is twice the one before.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// The pause between two writes of a pool's status: its counts may lag behind.
const POOL: Duration = Duration::from_millis(500);

/// Writes about one subject are one too many only if they come at shorter intervals than this.
const QUIET: Duration = Duration::from_secs(10);

/// Writes at short intervals that pass without a pause: users change their minds.
const FREE: u32 = 8;

/// When each subject may be tried again.
#[derive(Debug, Default)]
pub(crate) struct Paces(BTreeMap<Subject, Pace>);

#[derive(Debug)]
struct Pace {
    /// When the last try ended.
    ended: Instant,
    /// For how long to wait from then on.
    pause: Duration,
    /// How often it failed in a row.
    failures: u32,
    /// How often it succeeded at short intervals.
    writes: u32,
}

/// What is worth saying about the end of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notable {
    /// Nothing.
    Nothing,
    /// It failed, and did not before.
    Failing,
    /// It succeeded, and did not several times before.
    Recovered,
    /// It is written again and again.
    Fight,
}

impl Paces {
    /// A try ended, well or not. `jitter`, from 0 to 1, keeps those that failed together from coming back together.
    pub(crate) fn ended(&mut self, subject: &Subject, success: bool, now: Instant, jitter: f64) -> Notable {
        let before = self.0.remove(subject);
        let (failed, written) = before.as_ref().map_or((0, 0), |pace| {
            (pace.failures, if now.duration_since(pace.ended) < QUIET { pace.writes } else { 0 })
        });
        let (failures, writes) = if success { (0, written + 1) } else { (failed + 1, written) };
        let pause = match subject {
            _ if !success => pause(failures, jitter),
            Subject::Pool(_) => POOL,
            // Many Services may come to one address, each with a write.
            Subject::Address(_) if writes > FREE => PAUSES.0,
            _ if writes > FREE => pause(writes - FREE, jitter),
            _ => Duration::ZERO,
        };
        self.0.insert(subject.clone(), Pace { ended: now, pause, failures, writes });
        match (failed, failures) {
            (0, 1) => Notable::Failing,
            (2.., 0) => Notable::Recovered,
            _ if success && writes == 2 * FREE && matches!(subject, Subject::Service(_)) => Notable::Fight,
            _ => Notable::Nothing,
        }
    }

    /// When to try this again, if that is not yet.
    pub(crate) fn held_until(&self, subject: &Subject, now: Instant) -> Option<Instant> {
        let pace = self.0.get(subject)?;
        Some(pace.ended + pace.pause).filter(|until| *until > now)
    }

    /// Forgets what doesn't matter any more: what was quiet for long, and of failures those that `is_pending` says are
    /// not to be tried any more.
    pub(crate) fn forget(&mut self, now: Instant, is_pending: impl Fn(&Subject) -> bool) {
        self.0.retain(|subject, pace| {
            now.duration_since(pace.ended) < QUIET.max(pace.pause) || (pace.failures > 0 && is_pending(subject))
        });
    }
}

/// The n-th pause, its upper half spread by `jitter`.
fn pause(n: u32, jitter: f64) -> Duration {
    let (first, longest) = PAUSES;
    first.saturating_mul(1 << n.saturating_sub(1).min(16)).min(longest).mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Key;

    fn web() -> Subject {
        Subject::Service(Key::new("default", "web"))
    }

    #[test]
    fn pauses_after_failures_double_up_to_the_longest_and_end_with_success() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let mut notable = Vec::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            notable.push(paces.ended(&web(), false, now, 1.0));
            pauses.push(paces.held_until(&web(), now).map(|until| (until - now).as_millis()));
        }
        assert_eq!(notable[..2], [Notable::Failing, Notable::Nothing]);
        assert_eq!(pauses[..3], [Some(50), Some(100), Some(200)]);
        assert_eq!(pauses[11], Some(30_000));
        assert_eq!(paces.ended(&web(), true, now, 1.0), Notable::Recovered);
        assert_eq!(paces.held_until(&web(), now), None);
    }

    #[test]
    fn jitter_spreads_a_pause_over_its_upper_half() {
        assert_eq!((pause(1, 0.0).as_millis(), pause(1, 1.0).as_millis()), (25, 50));
    }

    #[test]
    fn who_is_written_again_and_again_has_to_wait_and_is_free_after_some_quiet() {
        let (mut paces, mut now) = (Paces::default(), Instant::now());
        for write in 1..=2 * FREE {
            let notable = paces.ended(&web(), true, now, 1.0);
            assert_eq!(paces.held_until(&web(), now).is_some(), write > FREE, "write {write}");
            assert_eq!(notable, if write == 2 * FREE { Notable::Fight } else { Notable::Nothing });
            now += Duration::from_millis(10);
        }
        now += QUIET;
        paces.ended(&web(), true, now, 1.0);
        assert_eq!(paces.held_until(&web(), now), None);
    }

    #[test]
    fn an_address_to_which_many_services_come_is_no_fight() {
        let (mut paces, mut now) = (Paces::default(), Instant::now());
        let address = Subject::Address("192.0.2.1".parse().expect("an address"));
        for write in 1..=40 {
            assert_eq!(paces.ended(&address, true, now, 1.0), Notable::Nothing, "write {write}");
            let until = paces.held_until(&address, now);
            assert_eq!(until, (write > FREE).then(|| now + PAUSES.0));
            now += Duration::from_millis(60);
        }
    }

    #[test]
    fn a_pool_is_written_at_intervals() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let pool = Subject::Pool("lan".into());
        paces.ended(&pool, true, now, 1.0);
        assert_eq!(paces.held_until(&pool, now), Some(now + POOL));
        assert_eq!(paces.held_until(&pool, now + POOL), None);
    }

    #[test]
    fn only_what_still_matters_is_remembered() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        paces.ended(&web(), false, now, 1.0);
        paces.ended(&Subject::Pool("lan".into()), true, now, 1.0);
        paces.forget(now, |_| false);
        assert_eq!(paces.0.len(), 2);
        paces.forget(now + QUIET, |_| true);
        assert_eq!(paces.0.keys().collect::<Vec<_>>(), [&web()]);
        paces.forget(now + QUIET, |_| false);
        assert!(paces.0.is_empty());
    }
}
