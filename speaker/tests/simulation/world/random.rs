//! A source of pseudo-random numbers.

use std::time::Duration;

use model::stable_hash;

/// Pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(stable_hash::mix64(seed ^ 0x5eed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        stable_hash::mix64(self.0)
    }

    /// A number below `end`.
    pub fn next_below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Whether an event of this probability happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < probability
    }

    /// A time in the range.
    pub fn time(&mut self, from: Duration, to: Duration) -> Duration {
        from + Duration::from_nanos(self.next() % (to - from).as_nanos().max(1) as u64)
    }
}
