//! Tries and their record, and the figures computed from it. Pure.
//!
//! All times are on the clock of the run ([`crate::Clock`]), so that records and the control can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered, without a retransmission by the client's kernel.
    Ok,
    /// Answered, but only after the client's kernel had sent a packet again: lost at the first try.
    Repeated,
    /// The connect was answered by a reset, or an ICMP error arrived.
    Refused,
    /// The connection broke before the answer.
    Reset,
    /// No answer within the time.
    TimedOut,
    /// The client's kernel found no path to the address: for example, it got no answer to ARP.
    Unreachable,
    /// An answer to another request, or of another protocol.
    WrongAnswer,
    /// The try was not sent: no port or no descriptor is left. It shows nothing about the target.
    NotSent,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::Repeated,
        Self::Refused,
        Self::Reset,
        Self::TimedOut,
        Self::Unreachable,
        Self::WrongAnswer,
        Self::NotSent,
    ];

    /// Whether the right answer came, at the first try or after a retransmission.
    pub fn is_answered(self) -> bool {
        matches!(self, Self::Ok | Self::Repeated)
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// When it started.
    pub started: Duration,
    /// Time until its answer, or until the error.
    pub latency: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The server that answered.
    pub server: Option<String>,
}

impl Try {
    /// When it ended.
    pub fn end(&self) -> Duration {
        self.started + self.latency
    }
}

/// A time without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The answer before it, or the start of the record.
    pub from: Duration,
    /// The answer after it, or the end of the record.
    pub to: Duration,
}

impl Gap {
    /// The length of the gap.
    pub fn length(self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

/// All tries to one target that ended in a span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Start of the span.
    pub from: Duration,
    /// End of the span.
    pub to: Duration,
    /// Planned time between two tries.
    pub interval: Duration,
    /// The tries, in any order.
    pub tries: Vec<Try>,
}

impl Record {
    /// The number of tries of each outcome that occurred.
    pub fn outcomes(&self) -> BTreeMap<Outcome, usize> {
        let mut counts = BTreeMap::new();
        for one in &self.tries {
            *counts.entry(one.outcome).or_default() += 1;
        }
        counts
    }

    /// The number of tries with this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.tries.iter().filter(|one| one.outcome == outcome).count()
    }

    /// The number of tries that were sent and not answered at the first try.
    pub fn lost_at_first(&self) -> usize {
        self.tries.iter().filter(|one| !matches!(one.outcome, Outcome::Ok | Outcome::NotSent)).count()
    }

    /// The number of tries that were sent and not answered at all, not even after a retransmission.
    pub fn unanswered_count(&self) -> usize {
        self.tries.iter().filter(|one| !one.outcome.is_answered() && one.outcome != Outcome::NotSent).count()
    }

    /// Share of tries that were lost at the first try, from 0 to 1. A record without a sent try has lost everything.
    pub fn first_try_loss(&self) -> f64 {
        let sent = self.tries.len() - self.count(Outcome::NotSent);
        if sent == 0 { 1.0 } else { self.lost_at_first() as f64 / sent as f64 }
    }

    /// The latency that a share of all answered tries does not exceed: 0.5 is the median, 1.0 the maximum. `None`
    /// without an answer.
    pub fn latency_percentile(&self, share: f64) -> Option<Duration> {
        let answered = self.tries.iter().filter(|one| one.outcome.is_answered());
        let mut latencies: Vec<Duration> = answered.map(|one| one.latency).collect();
        percentile(&mut latencies, share)
    }

    /// All times without an answer, in order, with those at both ends of the record.
    ///
    /// An answer counts at the time of its arrival, not at the start of its try. So a hole of 60 ms is a gap of 60 ms,
    /// even if the tries in the hole are answered later, after a retransmission.
    pub fn gaps(&self) -> Vec<Gap> {
        let answered = self.tries.iter().filter(|one| one.outcome.is_answered());
        let mut times: Vec<Duration> = answered.map(|one| one.end().clamp(self.from, self.to)).collect();
        times.extend([self.from, self.to]);
        times.sort_unstable();
        times.windows(2).map(|pair| Gap { from: pair[0], to: pair[1] }).collect()
    }

    /// The longest time without an answer; the first of equal ones. It is never shorter than the interval of tries.
    pub fn longest_gap(&self) -> Gap {
        // `max_by_key` returns the last of equal ones.
        self.gaps().into_iter().rev().max_by_key(|gap| gap.length()).unwrap_or_default()
    }

    /// The longest time without an answer that ends with an answer after `time`. `None` if no answer came after `time`.
    pub fn longest_gap_after(&self, time: Duration) -> Option<Gap> {
        let last = self.tries.iter().filter(|one| one.outcome.is_answered()).map(Try::end).max()?;
        let gaps = self.gaps().into_iter().filter(|gap| gap.to > time && gap.to <= last);
        gaps.rev().max_by_key(|gap| gap.length())
    }

    /// The tries that were answered later than `bound`.
    pub fn slow(&self, bound: Duration) -> impl Iterator<Item = &Try> {
        self.tries.iter().filter(move |one| one.outcome.is_answered() && one.latency > bound)
    }

    /// The servers that answered.
    pub fn servers(&self) -> BTreeSet<&str> {
        self.tries.iter().filter_map(|one| one.server.as_deref()).collect()
    }

    /// The earliest try that was lost at the first try.
    pub fn first_lost(&self) -> Option<&Try> {
        let lost = self.tries.iter().filter(|one| !matches!(one.outcome, Outcome::Ok | Outcome::NotSent));
        lost.min_by_key(|one| one.started)
    }
}

/// Sorts the times, and returns the least one that this share of them does not exceed (nearest rank). `None` without
/// times.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Option<Duration> {
    times.sort_unstable();
    let rank = (share * times.len() as f64).ceil() as usize;
    times.get(rank.clamp(1, times.len().max(1)) - 1).copied()
}

/// One line for progress and failures: tries, losses per kind, percentiles, longest gap.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tries, {:.3} % lost at first", self.tries.len(), 100.0 * self.first_try_loss())?;
        for (outcome, count) in self.outcomes() {
            write!(f, ", {count} {outcome:?}")?;
        }
        if let (Some(p50), Some(p99), Some(max)) =
            (self.latency_percentile(0.5), self.latency_percentile(0.99), self.latency_percentile(1.0))
        {
            write!(f, "; p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}")?;
        }
        let gap = self.longest_gap();
        write!(f, "; longest gap {:.1?} at {:.3?}", gap.length(), gap.from)?;
        if let Some(lost) = self.first_lost() {
            write!(f, "; first lost at {:.3?}: {:?} after {:.1?}", lost.started, lost.outcome, lost.latency)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn record(tries: &[(u64, u64, Outcome)]) -> Record {
        let make = |(started, latency, outcome): &(u64, u64, Outcome)| Try {
            started: ms(*started),
            latency: ms(*latency),
            outcome: *outcome,
            server: outcome.is_answered().then(|| "a".to_owned()),
        };
        Record { from: ms(0), to: ms(100), interval: ms(10), tries: tries.iter().map(make).collect() }
    }

    #[test]
    fn every_kind_of_loss_counts_once() {
        for (outcome, lost, unanswered, share) in [
            (Outcome::Ok, 0, 0, 0.0),
            (Outcome::Repeated, 1, 0, 0.5),
            (Outcome::Refused, 1, 1, 0.5),
            (Outcome::Reset, 1, 1, 0.5),
            (Outcome::TimedOut, 1, 1, 0.5),
            (Outcome::Unreachable, 1, 1, 0.5),
            (Outcome::WrongAnswer, 1, 1, 0.5),
            (Outcome::NotSent, 0, 0, 0.0),
        ] {
            let record = record(&[(0, 1, Outcome::Ok), (10, 1, outcome)]);
            let seen = (record.lost_at_first(), record.unanswered_count(), record.first_try_loss());
            assert_eq!(seen, (lost, unanswered, share), "{outcome:?}");
            assert_eq!(record.outcomes().values().sum::<usize>(), 2, "{outcome:?}");
        }
        assert_eq!(Record::default().first_try_loss(), 1.0);
        assert_eq!(record(&[(0, 1, Outcome::NotSent)]).first_try_loss(), 1.0);
    }

    #[test]
    fn percentiles_are_latencies_of_answered_tries() {
        let mut tries: Vec<_> = (1..=100).map(|n| (0, n, Outcome::Ok)).collect();
        tries.push((0, 5000, Outcome::TimedOut));
        let record = record(&tries);
        for (share, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)] {
            assert_eq!(record.latency_percentile(share), Some(ms(expected)), "{share}");
        }
        assert_eq!(Record::default().latency_percentile(0.5), None);
    }

    #[test]
    fn a_gap_is_a_time_without_an_answer() {
        use Outcome::{Ok, Repeated, TimedOut};
        for (why, tries, from, to) in [
            ("no try", vec![], 0, 100),
            ("no answer", vec![(0, 50, TimedOut)], 0, 100),
            ("silence in the middle", vec![(10, 0, Ok), (20, 30, TimedOut), (80, 0, Ok)], 10, 80),
            ("silence at the start", vec![(60, 0, Ok)], 0, 60),
            ("silence at the end", vec![(20, 0, Ok)], 20, 100),
            ("a retransmission is answered later", vec![(10, 0, Ok), (20, 60, Repeated), (85, 0, Ok)], 10, 80),
            ("out of order", vec![(80, 0, Ok), (10, 0, Ok)], 10, 80),
            ("an answer before the span", vec![(0, 0, Ok), (50, 0, Ok)], 0, 50),
        ] {
            assert_eq!(record(&tries).longest_gap(), Gap { from: ms(from), to: ms(to) }, "{why}");
        }
    }

    #[test]
    fn the_outage_after_a_cut_ends_with_an_answer() {
        use Outcome::{Ok, TimedOut};
        for (why, tries, expected) in [
            ("no answer", vec![(0, 50, TimedOut)], None),
            ("none after the cut", vec![(10, 0, Ok), (40, 50, TimedOut)], None),
            ("silence across the cut", vec![(10, 0, Ok), (45, 0, Ok), (80, 0, Ok), (90, 0, Ok)], Some((45, 80))),
            ("longer silence before", vec![(41, 0, Ok), (55, 0, Ok), (80, 0, Ok)], Some((55, 80))),
            ("longer silence at the end", vec![(45, 0, Ok), (60, 0, Ok)], Some((45, 60))),
        ] {
            let gap = record(&tries).longest_gap_after(ms(50)).map(|gap| (gap.from, gap.to));
            assert_eq!(gap, expected.map(|(from, to)| (ms(from), ms(to))), "{why}");
        }
    }

    #[test]
    fn a_try_at_the_bound_is_not_slow() {
        let record =
            record(&[(0, 20, Outcome::Ok), (1, 21, Outcome::Ok), (2, 30, Outcome::Repeated), (3, 99, Outcome::Reset)]);
        let slow: Vec<Duration> = record.slow(ms(20)).map(|one| one.started).collect();
        assert_eq!(slow, [ms(1), ms(2)]);
    }
}
