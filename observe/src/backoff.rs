//! How long to wait before an API server is asked again that failed, or that ended a watch as soon as it had begun.
//!
//! The first pauses are short: an API server ends the watches of a kind once when its definition has just been made or
//! changed, and a user who has just installed us waits for the first pool to count.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);

/// The longest: every node of a cluster asks, of an API server that may be down for reasons of load.
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses that double.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    failures: u32,
}

impl Pauses {
    /// The next pause. `jitter`, from 0 to 1, spreads its upper half, so that those who lost the same API server don't
    /// come back together.
    pub(crate) fn next(&mut self, jitter: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LONGEST).mul_f64(0.5 + jitter / 2.0)
    }

    /// It works: the next pause is a first one.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_when_it_works() {
        let mut pauses = Pauses::default();
        let millis: Vec<u128> = (0..12).map(|_| pauses.next(1.0).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000]);
        pauses.reset();
        assert_eq!(pauses.next(0.0), Duration::from_millis(50));
    }
}
