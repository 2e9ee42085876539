//! How often to say Hello: the more speakers there are on a link, the less often, so that each of them has only so many
//! packets to read.
//!
//! The number of speakers in, an interval out. Nobody has to agree with anybody: each Hello says within which time the next
//! one comes, and listeners go by that. So before the pause really grows, the longer one is told a few times: whoever misses
//! the first Hello that tells of it must not wait in vain.

use std::time::Duration;

use crate::config::Config;

/// So many packets of others a second, on a link, are the most that a speaker has to read, apart from the moments when
/// claims change. Up to 26 speakers can say Hello every 50 ms then; 50 do so every 98 ms and 100 every 198 ms.
const PACKETS_PER_SECOND: u32 = 500;

/// No interval is longer, however many there are: a death that is noticed after more than a few seconds would be noticed
/// sooner by the API server.
pub const LONGEST: Duration = Duration::from_secs(1);

/// The interval that suits so many speakers, in whole milliseconds. Never less than `least`.
fn fitting(least: Duration, speakers: usize) -> Duration {
    let others = u64::try_from(speakers.saturating_sub(1)).unwrap_or(u64::MAX);
    let millis = others.saturating_mul(1000).div_ceil(PACKETS_PER_SECOND.into());
    Duration::from_millis(millis).min(LONGEST).max(least)
}

/// The pace of a speaker on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Within which time the next Hello comes, as the last one says.
    told: Duration,
    /// Within which time it really comes.
    kept: Duration,
    /// How many more Hellos have to tell of the longer interval.
    more: u32,
}

impl Pace {
    /// The pace of one who knows nobody yet.
    pub fn new(config: &Config) -> Self {
        Self { told: config.interval, kept: config.interval, more: 0 }
    }

    /// What the next Hello has to tell.
    pub fn told(&self) -> Duration {
        self.told
    }

    /// After which time the next Hello is due.
    pub fn kept(&self) -> Duration {
        self.kept
    }

    /// A Hello is about to be sent, and there are so many speakers on the link.
    pub fn step(&mut self, config: &Config, speakers: usize) {
        let fitting = fitting(config.interval, speakers);
        if fitting > self.told {
            self.more = config.multiplier;
        }
        self.told = fitting;
        if self.more == 0 {
            self.kept = self.told;
        } else {
            self.more -= 1;
            self.kept = self.kept.min(self.told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::seal::Authentication;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_interval_grows_with_the_number_of_speakers_so_that_the_load_does_not() {
        for (speakers, expected) in
            [(0, 50), (1, 50), (3, 50), (26, 50), (27, 52), (50, 98), (100, 198), (501, 1000), (100_000, 1000)]
        {
            assert_eq!(fitting(ms(50), speakers), ms(expected), "{speakers} speakers");
        }
        assert_eq!(fitting(ms(200), 3), ms(200), "as it was asked for");
    }

    #[test]
    fn a_longer_pause_is_told_before_it_is_made_and_a_shorter_one_is_made_at_once() {
        let config = Config::new("test", "n1", 1, Authentication::Off);
        let mut pace = Pace::new(&config);
        for (speakers, told, kept) in [
            (3, 50, 50),
            (50, 98, 50),
            (50, 98, 50),
            (50, 98, 50),
            (50, 98, 98),
            (100, 198, 98),
            (60, 118, 98),
            (60, 118, 98),
            (60, 118, 118),
            (3, 50, 50),
            (100, 198, 50),
            (3, 50, 50),
        ] {
            pace.step(&config, speakers);
            assert_eq!((pace.told(), pace.kept()), (ms(told), ms(kept)), "{speakers} speakers");
        }
    }
}
