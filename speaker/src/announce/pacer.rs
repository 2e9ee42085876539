//! A rate limit that assigns start times: a burst at once, then one start per interval.

use std::time::Duration;

/// Assigns start times.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    interval: Duration,
    burst: u32,
    /// The next start time if there were no burst. The burst permits starts up to `burst - 1` intervals earlier.
    next: Duration,
}

impl Pacer {
    /// Allows `burst` starts at once, and then one per `interval`.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, next: Duration::ZERO }
    }

    /// Assigns the next start time, which is `now` or later.
    pub fn take(&mut self, now: Duration) -> Duration {
        let next = self.next.max(now);
        self.next = next + self.interval;
        next.saturating_sub(self.interval * (self.burst - 1)).max(now)
    }

    /// The time from `now` until the next start time.
    pub fn delay(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now + self.interval * (self.burst - 1))
    }

    /// Forgets the assigned start times.
    pub fn reset(&mut self, now: Duration) {
        self.next = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_starts_at_once_and_the_rest_in_turn() {
        let ms = Duration::from_millis;
        let mut pacer = Pacer::new(ms(10), 2);
        let starts = [ms(100); 4].map(|now| (pacer.delay(now), pacer.take(now)));
        assert_eq!(starts, [(ms(0), ms(100)), (ms(0), ms(100)), (ms(10), ms(110)), (ms(20), ms(120))]);
        assert_eq!(pacer.take(ms(1000)), ms(1000), "after a pause");
        pacer.reset(ms(1000));
        assert_eq!([pacer.take(ms(1000)), pacer.take(ms(1000))], [ms(1000), ms(1000)]);
    }
}
