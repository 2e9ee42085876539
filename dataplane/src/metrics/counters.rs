//! Counters of the loop since its start. Pure.

use std::time::Duration;

/// The loop's steps, and its changes of the kernel's tables, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps that ended with the kernel in the desired state, even if nothing changed. Non-zero once the kernel is
    /// programmed.
    pub successful_steps: u64,
    /// The durations of changes, from the snapshot to the kernel's acknowledgement.
    pub durations: Durations,
    /// Elements that were added to tables or deleted from them. An element that gets another value counts twice.
    pub changed_elements: u64,
    /// Steps that failed.
    pub failed_steps: u64,
    /// Checks that found one of our tables changed by another program. The same step then repairs the table.
    pub repairs: u64,
}

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// The number of durations in each bucket. A duration is at most the bound of its bucket in [`Durations::BOUNDS`],
    /// and above the bound before. The last bucket has the durations above all bounds.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    pub sum: Duration,
}

impl Durations {
    /// The upper bounds of the buckets, in microseconds. One change takes half a millisecond, and 30,000 Services at
    /// once take two seconds.
    pub const BOUNDS: [u64; 9] = [250, 500, 1_000, 2_500, 5_000, 25_000, 100_000, 500_000, 2_500_000];

    pub fn observe(&mut self, duration: Duration) {
        let bucket = Self::BOUNDS.iter().position(|bound| duration <= Duration::from_micros(*bound));
        self.counts[bucket.unwrap_or(Self::BOUNDS.len())] += 1;
        self.sum += duration;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_equal_to_a_bound_counts_below_it() {
        let mut durations = Durations::default();
        let all = [0, 250, 251, 2_500_000, 2_500_001].map(Duration::from_micros);
        all.into_iter().for_each(|duration| durations.observe(duration));
        let mut counts = [0; 10];
        (counts[0], counts[1], counts[8], counts[9]) = (2, 1, 1, 1);
        assert_eq!(durations, Durations { counts, sum: all.into_iter().sum() });
    }
}
