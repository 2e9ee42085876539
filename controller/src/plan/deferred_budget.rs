//! When deferrable series may start.
//!
//! The starts of urgent series, and the time → whether a deferrable series may start now. When a node dies, thousands
//! of addresses may move, and each move is a status-only write. These writes must never delay an allocation, so they
//! start one after the other: slowly while urgent series start, faster otherwise.

use std::time::{Duration, Instant};

use model::pacing::TokenBucket;

/// How many may start at once after an idle time, so that a single write starts immediately.
const BURST: u32 = 32;

/// The queue counts as idle once no urgent series has started for this long.
const IDLE_AFTER: Duration = Duration::from_millis(250);

/// The interval while idle: 200 per second, so 5,000 moved addresses take 25 s.
const IDLE_INTERVAL: Duration = Duration::from_millis(5);

/// The interval while busy: 20 per second, when an API server takes some hundred writes per second.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// A token for each deferrable series that may start.
#[derive(Debug)]
pub(crate) struct DeferredBudget {
    bucket: TokenBucket,
    /// When the last urgent series started.
    last_urgent: Option<Instant>,
}

impl DeferredBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { bucket: TokenBucket::full(BURST, now), last_urgent: None }
    }

    /// Records the start of an urgent series.
    pub(crate) fn record_urgent(&mut self, now: Instant) {
        self.credit(now);
        self.last_urgent = Some(now);
    }

    /// Whether a deferrable series may start now.
    pub(crate) fn is_available(&mut self, now: Instant) -> bool {
        self.credit(now);
        self.bucket.has_token()
    }

    /// Records the start of a deferrable series.
    pub(crate) fn spend(&mut self) {
        self.bucket.take();
    }

    /// When the next token is credited.
    pub(crate) fn next_token(&self, now: Instant) -> Instant {
        self.bucket.next_credit(self.interval(now))
    }

    fn interval(&self, now: Instant) -> Duration {
        let is_busy = self.last_urgent.is_some_and(|last| now < last + IDLE_AFTER);
        if is_busy { BUSY_INTERVAL } else { IDLE_INTERVAL }
    }

    fn credit(&mut self, now: Instant) {
        self.bucket.refill(now, self.interval(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many deferrable series start within a second, while urgent series start at these intervals.
    fn in_a_second(budget: &mut DeferredBudget, from: Instant, urgent: Option<Duration>) -> u32 {
        let mut started = 0;
        let mut next_urgent = from;
        for ms in 0..1000 {
            let now = from + Duration::from_millis(ms);
            if let Some(interval) = urgent.filter(|_| next_urgent <= now) {
                budget.record_urgent(now);
                next_urgent += interval;
            }
            while budget.is_available(now) {
                budget.spend();
                started += 1;
            }
        }
        started
    }

    #[test]
    fn burst_is_followed_by_the_idle_or_busy_rate() {
        let from = Instant::now();
        for (urgent, expected) in
            [(None, 231), (Some(Duration::from_millis(1)), 51), (Some(Duration::from_millis(200)), 51)]
        {
            let mut budget = DeferredBudget::new(from);
            assert_eq!(in_a_second(&mut budget, from, urgent), expected, "{urgent:?}");
        }
    }

    #[test]
    fn saved_tokens_are_at_most_one_burst() {
        let from = Instant::now();
        let mut budget = DeferredBudget::new(from);
        in_a_second(&mut budget, from, None);
        let late = from + Duration::from_secs(60);
        assert!(budget.is_available(late));
        let saved = std::iter::from_fn(|| budget.is_available(late).then(|| budget.spend())).count();
        assert_eq!((saved, budget.next_token(late)), (BURST as usize, late + IDLE_INTERVAL));
    }
}
