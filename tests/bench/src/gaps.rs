//! Outages, from the times in the log of a probe. Pure.
//!
//! Times are since the probe began. An *outage* is the longest pause between two answers that ends after the cut, less
//! the interval of the probe. It is 0 if every answer came in time.

use std::time::Duration;

/// A pause between two neighbours in a list of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// The last time before it.
    pub from: Duration,
    /// The first time after it.
    pub to: Duration,
}

impl Pause {
    /// Its length less `interval`, the shortest possible pause.
    pub fn excess(self, interval: Duration) -> Duration {
        (self.to - self.from).saturating_sub(interval)
    }
}

/// The longest pause between `times` that ends after `after`; the first of equal ones. `times` may be in any order.
/// `None` if no time is later than `after`, or if there is only one.
pub fn longest_pause(times: &[Duration], after: Duration) -> Option<Pause> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let pauses = times.windows(2).map(|pair| Pause { from: pair[0], to: pair[1] });
    // `max_by_key` takes the last of equal ones.
    pauses.rev().filter(|pause| pause.to > after).max_by_key(|pause| pause.to - pause.from)
}

/// The log of a probe with datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Datagrams {
    /// When requests were sent.
    pub sent: Vec<Duration>,
    /// When answers arrived.
    pub answered: Vec<Duration>,
}

/// A time without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Its length.
    pub length: Duration,
    /// The part that the probe itself may have caused: the largest delay of a request in this time. On a busy machine
    /// the probe waits for a processor, too.
    pub late: Duration,
}

impl Datagrams {
    /// The outage after `cut`, at one request per `interval`. `None` if no answer came after it.
    pub fn outage(&self, cut: Duration, interval: Duration) -> Option<Outage> {
        let pause = longest_pause(&self.answered, cut)?;
        let meanwhile: Vec<Duration> =
            self.sent.iter().copied().filter(|at| (pause.from..=pause.to).contains(at)).collect();
        let late = longest_pause(&meanwhile, Duration::ZERO).map_or(Duration::ZERO, |pause| pause.excess(interval));
        Some(Outage { length: pause.excess(interval), late })
    }
}

/// One attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub began: Duration,
    /// Whether it was accepted, and in time.
    pub accepted: bool,
}

/// The results of attempts to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connects {
    /// How many were not accepted.
    pub lost: usize,
    /// The longest time in which no started attempt was accepted.
    pub outage: Duration,
}

/// The results of these attempts after `cut`, at one per `interval`. `None` if no attempt was accepted after it.
pub fn connects(attempts: &[Attempt], cut: Duration, interval: Duration) -> Option<Connects> {
    let accepted: Vec<Duration> = attempts.iter().filter(|one| one.accepted).map(|one| one.began).collect();
    let outage = longest_pause(&accepted, cut)?.excess(interval);
    Some(Connects { lost: attempts.iter().filter(|one| !one.accepted).count(), outage })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: &[u64]) -> Vec<Duration> {
        times.iter().copied().map(Duration::from_millis).collect()
    }

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_longest_pause_after_the_cut_counts() {
        for (what, times, after, expected) in [
            ("nothing was heard", &[][..], 0, None),
            ("once is no pause", &[5], 0, None),
            ("never again", &[1, 2, 3], 3, None),
            ("one pause", &[1, 2, 152, 153], 2, Some((2, 152))),
            ("a longer one was over before", &[0, 500, 501, 650], 501, Some((501, 650))),
            ("it spans the cut", &[10, 20, 170], 100, Some((20, 170))),
            ("a second one is longer", &[0, 100, 101, 301], 0, Some((101, 301))),
            ("of equal ones the first", &[0, 10, 20], 0, Some((0, 10))),
            ("out of order", &[152, 1, 2], 2, Some((2, 152))),
        ] {
            let pause = longest_pause(&ms(times), millis(after)).map(|pause| (pause.from, pause.to));
            assert_eq!(pause, expected.map(|(from, to)| (millis(from), millis(to))), "{what}");
        }
    }

    #[test]
    fn an_outage_excludes_the_interval_of_the_probe() {
        let every = |from: u64, to: u64| (from..to).collect::<Vec<_>>();
        for (what, sent, answered, expected) in [
            ("all in time", every(0, 400), every(0, 400), Some((0, 0))),
            ("150 ms of silence", every(0, 400), [every(0, 101), every(251, 400)].concat(), Some((150, 0))),
            (
                "the probe slept through a part of it",
                [every(0, 150), every(180, 400)].concat(),
                [every(0, 101), every(251, 400)].concat(),
                Some((150, 30)),
            ),
            (
                "the probe slept at another time",
                [every(0, 40), every(60, 400)].concat(),
                [every(0, 40), every(60, 101), every(251, 400)].concat(),
                Some((150, 0)),
            ),
            ("silence for good", every(0, 400), every(0, 101), None),
        ] {
            let log = Datagrams { sent: ms(&sent), answered: ms(&answered) };
            let outage = log.outage(millis(100), millis(1)).map(|outage| (outage.length, outage.late));
            assert_eq!(outage, expected.map(|(length, late)| (millis(length), millis(late))), "{what}");
        }
    }

    #[test]
    fn lost_attempts_are_counted_and_span_the_outage() {
        let attempts = |lost: std::ops::Range<u64>| -> Vec<Attempt> {
            (0..50).map(|n| Attempt { began: millis(10 * n), accepted: !lost.contains(&n) }).collect()
        };
        for (what, lost, expected) in [
            ("none", 0..0, Some((0, 0))),
            ("fifteen", 10..25, Some((15, 150))),
            ("all that began after the cut", 10..50, None),
        ] {
            let found = connects(&attempts(lost), millis(95), millis(10)).map(|found| (found.lost, found.outage));
            assert_eq!(found, expected.map(|(lost, outage)| (lost, millis(outage))), "{what}");
        }
    }
}
