//! Delays between attempts to reach an API server that fails, or that ends a watch right after its start.
//!
//! The first delays are short. An API server ends all watches of a kind once when its CustomResourceDefinition is created
//! or changed, and a user who has just installed Landfall waits for the first pool to take effect.

use std::time::Duration;

/// The first delay.
const FIRST: Duration = Duration::from_millis(100);

/// The longest delay. Every node of a cluster retries, and the API server may be down because of its load.
const LONGEST: Duration = Duration::from_secs(30);

/// Delays that double with each failure.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    /// Delays of at most `longest`.
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    /// Returns the next delay. `jitter`, from 0 to 1, randomizes its upper half, so that clients that lost the same API
    /// server do not reconnect at the same time.
    pub(crate) fn next_delay(&mut self, jitter: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.longest).mul_f64(0.5 + jitter / 2.0)
    }

    /// Starts again with the first delay, after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_until_reset() {
        let mut backoff = Backoff::default();
        let millis: Vec<u128> = (0..12).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.0), Duration::from_millis(50));
    }
}
