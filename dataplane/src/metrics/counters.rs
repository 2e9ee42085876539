//! What was done to the kernel's tables, in numbers, since the start. Pure.

use std::time::Duration;

/// What was done to the kernel's tables since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often a snapshot was looked at and the kernel does what it says, whether there was something to do or not. Not 0
    /// from when the kernel first did what it should.
    pub settled: u64,
    /// How long changes of the tables took, from looking at the snapshot to the kernel's acknowledgement.
    pub programs: Durations,
    /// How many elements of tables came, went or changed in them.
    pub changes: u64,
    /// How often the kernel could not be made to do what it should.
    pub failures: u64,
    /// How often somebody else had changed a table of ours, which was then repaired.
    pub repairs: u64,
}

/// How long something took, each time: a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How often it took no longer than each of [`Durations::BOUNDS`] and longer than the one before; last how often it
    /// took longer than all.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Durations {
    /// In microseconds. One change takes half a millisecond, 30,000 Services at once two seconds.
    pub const BOUNDS: [u64; 9] = [250, 500, 1_000, 2_500, 5_000, 25_000, 100_000, 500_000, 2_500_000];

    /// It took this long once more.
    pub fn observe(&mut self, took: Duration) {
        let at = Self::BOUNDS.iter().position(|bound| took <= Duration::from_micros(*bound));
        self.counts[at.unwrap_or(Self::BOUNDS.len())] += 1;
        self.sum += took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_as_long_as_a_bound_counts_below_it() {
        let mut durations = Durations::default();
        let all = [0, 250, 251, 2_500_000, 2_500_001].map(Duration::from_micros);
        all.into_iter().for_each(|took| durations.observe(took));
        let mut counts = [0; 10];
        (counts[0], counts[1], counts[8], counts[9]) = (2, 1, 1, 1);
        assert_eq!(durations, Durations { counts, sum: all.into_iter().sum() });
    }
}
