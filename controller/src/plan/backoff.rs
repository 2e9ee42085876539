//! The delays between attempts, by subject.
//!
//! The results of earlier attempts, and the time → when the next attempt may start. The delays after failures grow. So
//! do the delays between writes that succeed again and again, because another client undoes each of them. Writes
//! without delays would only load the API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::pacing::{self, add_jitter};

use crate::plan::effect::Subject;

/// The shortest delay.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// The delays after failures in a row.
const DELAYS: pacing::Backoff = pacing::Backoff::new(FIRST_DELAY, Duration::from_secs(30));

/// The delay between two writes of the status of a pool: its counts may lag behind.
const POOL_DELAY: Duration = Duration::from_millis(500);

/// Only writes of one subject at shorter intervals than this count as repeated.
const QUIET_AFTER: Duration = Duration::from_secs(10);

/// The number of repeated writes without a delay: users may edit a Service several times in a row.
const FREE_WRITES: u32 = 8;

/// The delays between attempts, by subject.
#[derive(Debug, Default)]
pub(crate) struct Backoff(BTreeMap<Subject, Attempts>);

#[derive(Debug)]
struct Attempts {
    /// When the last attempt ended.
    ended: Instant,
    /// The delay from then on.
    delay: Duration,
    /// Failures in a row.
    failures: u32,
    /// Successes at short intervals.
    writes: u32,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptEnd {
    Success,
    Failure,
    /// It only reported an earlier failure ([`Series::is_report`](crate::plan::effect::Series::is_report)).
    Report,
}

/// The transition that the end of an attempt causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    None,
    /// The first failure.
    Failing,
    /// A success after several failures.
    Recovered,
    /// Another client keeps writing to the subject.
    Contested,
}

impl Backoff {
    /// Records the end of an attempt. `jitter` (0 to 1) keeps subjects that failed together from being tried again
    /// together.
    pub(crate) fn record_end(&mut self, subject: &Subject, end: AttemptEnd, now: Instant, jitter: f64) -> Transition {
        let before = self.0.remove(subject);
        let (failed, written) = before.as_ref().map_or((0, 0), |before| {
            (before.failures, if now.duration_since(before.ended) < QUIET_AFTER { before.writes } else { 0 })
        });
        let (failures, writes) = match end {
            AttemptEnd::Success => (0, written + 1),
            AttemptEnd::Failure => (failed + 1, written),
            AttemptEnd::Report => (failed, written + 1),
        };
        let delay_after = |count: u32| add_jitter(DELAYS.delay_after(count), jitter);
        let after_failures = if failures > 0 { delay_after(failures) } else { Duration::ZERO };
        let after_writes = match subject {
            _ if end == AttemptEnd::Failure => Duration::ZERO,
            Subject::Pool(_) => POOL_DELAY,
            // Many Services may join one record, each with a write.
            Subject::Record(_) if writes > FREE_WRITES => FIRST_DELAY,
            _ if writes > FREE_WRITES => delay_after(writes - FREE_WRITES),
            _ => Duration::ZERO,
        };
        let delay = after_failures.max(after_writes);
        self.0.insert(subject.clone(), Attempts { ended: now, delay, failures, writes });
        match (failed, failures) {
            (0, 1) => Transition::Failing,
            (2.., 0) => Transition::Recovered,
            _ if end != AttemptEnd::Failure && writes == 2 * FREE_WRITES && matches!(subject, Subject::Service(_)) => {
                Transition::Contested
            }
            _ => Transition::None,
        }
    }

    /// When the next attempt may start, if that is in the future.
    pub(crate) fn not_before(&self, subject: &Subject, now: Instant) -> Option<Instant> {
        let attempts = self.0.get(subject)?;
        Some(attempts.ended + attempts.delay).filter(|until| *until > now)
    }

    /// Removes entries without effect: quiet subjects, and failures of subjects that are not pending.
    pub(crate) fn prune(&mut self, now: Instant, is_pending: impl Fn(&Subject) -> bool) {
        self.0.retain(|subject, attempts| {
            now.duration_since(attempts.ended) < QUIET_AFTER.max(attempts.delay)
                || (attempts.failures > 0 && is_pending(subject))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Key;

    fn web() -> Subject {
        Subject::Service(Key::new("default", "web"))
    }

    #[test]
    fn delays_double_up_to_the_longest_until_success() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let mut transitions = Vec::new();
        let mut delays = Vec::new();
        for _ in 0..12 {
            transitions.push(backoff.record_end(&web(), AttemptEnd::Failure, now, 1.0));
            delays.push(backoff.not_before(&web(), now).map(|until| (until - now).as_millis()));
        }
        assert_eq!(transitions[..2], [Transition::Failing, Transition::None]);
        assert_eq!(delays[..3], [Some(50), Some(100), Some(200)]);
        assert_eq!(delays[11], Some(30_000));
        assert_eq!(backoff.record_end(&web(), AttemptEnd::Success, now, 1.0), Transition::Recovered);
        assert_eq!(backoff.not_before(&web(), now), None);
    }

    #[test]
    fn report_neither_ends_nor_shortens_a_delay() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        for _ in 0..3 {
            backoff.record_end(&web(), AttemptEnd::Failure, now, 1.0);
        }
        // Another client undoes each report.
        let mut delays = Vec::new();
        for _ in 0..=FREE_WRITES + 4 {
            assert_eq!(backoff.record_end(&web(), AttemptEnd::Report, now, 1.0), Transition::None);
            let until = backoff.not_before(&web(), now).expect("a delay");
            delays.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(delays[..FREE_WRITES as usize], [200; FREE_WRITES as usize]);
        assert_eq!(delays[FREE_WRITES as usize..], [200, 200, 200, 400, 800]);
        assert_eq!(backoff.record_end(&web(), AttemptEnd::Success, now, 1.0), Transition::Recovered);
    }

    #[test]
    fn repeated_writes_are_delayed_until_a_quiet_period() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        for write in 1..=2 * FREE_WRITES {
            let transition = backoff.record_end(&web(), AttemptEnd::Success, now, 1.0);
            assert_eq!(backoff.not_before(&web(), now).is_some(), write > FREE_WRITES, "write {write}");
            assert_eq!(transition, if write == 2 * FREE_WRITES { Transition::Contested } else { Transition::None });
            now += Duration::from_millis(10);
        }
        now += QUIET_AFTER;
        backoff.record_end(&web(), AttemptEnd::Success, now, 1.0);
        assert_eq!(backoff.not_before(&web(), now), None);
    }

    #[test]
    fn services_that_join_a_record_are_no_contest() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let address = Subject::Record("192.0.2.1".parse().expect("an address"));
        for write in 1..=40 {
            assert_eq!(backoff.record_end(&address, AttemptEnd::Success, now, 1.0), Transition::None, "write {write}");
            let until = backoff.not_before(&address, now);
            assert_eq!(until, (write > FREE_WRITES).then(|| now + FIRST_DELAY));
            now += Duration::from_millis(60);
        }
    }

    #[test]
    fn pool_is_written_at_intervals() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let pool = Subject::Pool("lan".into());
        backoff.record_end(&pool, AttemptEnd::Success, now, 1.0);
        assert_eq!(backoff.not_before(&pool, now), Some(now + POOL_DELAY));
        assert_eq!(backoff.not_before(&pool, now + POOL_DELAY), None);
    }

    #[test]
    fn prune_keeps_recent_and_pending_subjects() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        backoff.record_end(&web(), AttemptEnd::Failure, now, 1.0);
        backoff.record_end(&Subject::Pool("lan".into()), AttemptEnd::Success, now, 1.0);
        backoff.prune(now, |_| false);
        assert_eq!(backoff.0.len(), 2);
        backoff.prune(now + QUIET_AFTER, |_| true);
        assert_eq!(backoff.0.keys().collect::<Vec<_>>(), [&web()]);
        backoff.prune(now + QUIET_AFTER, |_| false);
        assert!(backoff.0.is_empty());
    }
}
