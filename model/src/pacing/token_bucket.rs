//! A budget that refills with time.

use std::time::{Duration, Instant};

/// A bucket of at most `capacity` tokens. One token is credited per interval. Each call specifies the interval, which
/// may vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    capacity: u32,
    tokens: u32,
    /// Time up to which tokens have been credited.
    credited: Instant,
}

impl TokenBucket {
    pub fn full(capacity: u32, now: Instant) -> Self {
        Self { capacity, tokens: capacity, credited: now }
    }

    /// Credits one token for each whole `interval` since the last credit.
    pub fn refill(&mut self, now: Instant, interval: Duration) {
        let passed = now.saturating_duration_since(self.credited).as_nanos() / interval.as_nanos().max(1);
        let more = u32::try_from(passed).unwrap_or(u32::MAX).min(self.capacity);
        self.tokens = self.tokens.saturating_add(more);
        if self.tokens >= self.capacity {
            (self.tokens, self.credited) = (self.capacity, now);
        } else {
            self.credited += interval * more;
        }
    }

    pub fn has_token(&self) -> bool {
        self.tokens > 0
    }

    /// Takes one token; returns false if the bucket is empty.
    pub fn take(&mut self) -> bool {
        let has_token = self.has_token();
        self.tokens -= u32::from(has_token);
        has_token
    }

    /// Time of the next credit, if one token is credited per `interval`.
    pub fn next_credit(&self, interval: Duration) -> Instant {
        self.credited + interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn take_all(bucket: &mut TokenBucket) -> u32 {
        std::iter::from_fn(|| bucket.take().then_some(())).count() as u32
    }

    #[test]
    fn tokens_are_credited_per_whole_interval_up_to_capacity() {
        let interval = Duration::from_millis(5);
        for (what, waits, expected) in [
            ("at once", vec![0], vec![3]),
            ("before the interval is over", vec![0, 4], vec![3, 0]),
            ("the remainder of an interval counts", vec![0, 4, 1], vec![3, 0, 1]),
            ("two intervals and a half", vec![0, 12, 3], vec![3, 2, 1]),
            ("long", vec![0, 60_000], vec![3, 3]),
        ] {
            let mut now = Instant::now();
            let mut bucket = TokenBucket::full(3, now);
            let taken: Vec<u32> = waits
                .into_iter()
                .map(|wait| {
                    now += Duration::from_millis(wait);
                    bucket.refill(now, interval);
                    take_all(&mut bucket)
                })
                .collect();
            assert_eq!(taken, expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_more_is_taken_than_capacity_and_credits(waits in vec(0u64..40, 1..60), capacity in 1u32..10) {
            let interval = Duration::from_millis(5);
            let start = Instant::now();
            let (mut bucket, mut now, mut taken) = (TokenBucket::full(capacity, start), start, 0);
            for wait in waits {
                now += Duration::from_millis(wait);
                bucket.refill(now, interval);
                taken += take_all(&mut bucket);
                let credits = (now - start).as_millis() / interval.as_millis();
                prop_assert!(u128::from(taken) <= u128::from(capacity) + credits);
                prop_assert!(bucket.next_credit(interval) > now);
            }
        }
    }
}
