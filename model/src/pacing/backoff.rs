//! Delays between attempts.

use std::time::Duration;

/// Delays that double with each failure in a row, from the first delay to the longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Counts a failure and returns the delay before the next attempt.
    pub fn fail(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.delay_after(self.failures)
    }

    /// Counts a success: the delay after the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay after this number of failures in a row. With 0 failures it is the first delay too.
    pub fn delay_after(&self, failures: u32) -> Duration {
        // 16 doublings of the shortest delay in use, 50 ms, make almost an hour.
        let doublings = failures.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// Spreads a delay over its upper half. A `jitter` of 0 gives half the delay, 1 the whole.
///
/// So clients that lost a server at the same time do not all return at the same time.
pub fn add_jitter(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(backoff: &mut Backoff, failures: usize) -> Vec<u128> {
        (0..failures).map(|_| backoff.fail().as_millis()).collect()
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        for (first, longest, expected) in [
            (50, 30_000, vec![50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]),
            (100, 250, vec![100, 200, 250, 250]),
            (100, 100, vec![100, 100]),
        ] {
            let mut backoff = Backoff::new(Duration::from_millis(first), Duration::from_millis(longest));
            assert_eq!(millis(&mut backoff, expected.len()), expected);
            backoff.reset();
            assert_eq!(millis(&mut backoff, 2), expected[..2], "after a success");
        }
    }

    proptest! {
        #[test]
        fn jittered_delay_stays_within_its_upper_half(failures in any::<u32>(), jitter in 0.0..=1.0f64) {
            let (first, longest) = (Duration::from_millis(50), Duration::from_secs(30));
            let delay = Backoff::new(first, longest).delay_after(failures);
            prop_assert!((first..=longest).contains(&delay));
            prop_assert!((delay / 2..=delay).contains(&add_jitter(delay, jitter)));
        }
    }
}
