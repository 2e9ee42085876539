//! The interval of Hellos on a link: it grows with the number of speakers, so that the packet rate stays bounded.
//!
//! The input is the number of speakers; the output is an interval. Speakers need not agree: each Hello publishes the
//! time until the next one, and receivers rely on that. Before the real interval grows, a few Hellos already publish
//! the longer interval. If a receiver misses the first of them, it still learns the interval in time, and the sender
//! does not look dead.

use std::time::Duration;

use crate::config::Config;

/// A speaker should receive at most this number of packets per second on a link, except while claims change. Up to 26
/// speakers each send a Hello every 50 ms, 50 speakers every 98 ms, and 100 speakers every 198 ms.
const PACKETS_PER_SECOND: u32 = 500;

/// The longest interval. With more than 501 speakers the packet rate grows again, so that a death is still detected
/// within a few seconds.
pub const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// The interval for this number of speakers, in whole milliseconds and at least `min`.
fn interval_for(min: Duration, speakers: usize) -> Duration {
    let others = u64::try_from(speakers.saturating_sub(1)).unwrap_or(u64::MAX);
    let millis = others.saturating_mul(1000).div_ceil(PACKETS_PER_SECOND.into());
    Duration::from_millis(millis).min(MAX_INTERVAL).max(min)
}

/// The interval of this node's Hellos on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloInterval {
    /// The time until the next Hello, as published in the last one.
    pub published: Duration,
    /// The real time until the next Hello.
    pub actual: Duration,
    /// The number of Hellos that still publish the longer interval before it is used.
    hellos_left: u32,
}

impl HelloInterval {
    /// The interval of a speaker without peers.
    pub fn new(config: &Config) -> Self {
        Self { published: config.interval, actual: config.interval, hellos_left: 0 }
    }

    /// Adapts the interval to the number of speakers; called before each Hello. Returns whether the published interval
    /// changed.
    pub fn update(&mut self, config: &Config, speakers: usize) -> bool {
        let suitable = interval_for(config.interval, speakers);
        if suitable > self.published {
            self.hellos_left = config.multiplier;
        }
        if self.hellos_left == 0 {
            self.actual = suitable;
        } else {
            self.hellos_left -= 1;
            self.actual = self.actual.min(suitable);
        }
        std::mem::replace(&mut self.published, suitable) != suitable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn interval_grows_with_speakers_so_that_load_is_bounded() {
        for (speakers, expected) in
            [(0, 50), (1, 50), (3, 50), (26, 50), (27, 52), (50, 98), (100, 198), (501, 1000), (100_000, 1000)]
        {
            assert_eq!(interval_for(ms(50), speakers), ms(expected), "{speakers} speakers");
        }
        assert_eq!(interval_for(ms(200), 3), ms(200), "the configured interval");
    }

    #[test]
    fn longer_interval_is_published_before_use() {
        let config = Config::new("test", "n1", 1);
        let mut interval = HelloInterval::new(&config);
        for (speakers, published, actual) in [
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
            interval.update(&config, speakers);
            assert_eq!((interval.published, interval.actual), (ms(published), ms(actual)), "{speakers} speakers");
        }
    }
}
