//! Outages after a fault that is caused again and again, and the bounds for all of them. Pure.
//!
//! An outage begins with the fault, or later if the fault takes effect later: with the last try that is answered before
//! the first lost one. It ends with the first answer after the last lost try. A try that is answered only after a
//! retransmission counts as lost. So neither an answer in between nor a retransmission ends the outage.

use std::fmt;
use std::time::Duration;

use crate::control::Control;
use crate::record::{Gap, Outcome, Record, Try, percentile};

/// The outage after one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// From the beginning to the end. Zero if no try was lost.
    pub length: Duration,
    /// How late the machine was meanwhile.
    pub lateness: Duration,
}

/// The result of one fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultResult {
    /// The target answers again.
    Recovered(Outage),
    /// The last tries of the observation were lost as well.
    StillLost,
    /// The machine was so late that the result shows nothing: the fault must be repeated.
    MachineLate(String),
}

/// Bounds of the outages of all repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageBounds {
    /// The bound of the median. No lateness is added.
    pub p50: Duration,
    /// The bound of each outage. The lateness of the machine at that time is added.
    pub max: Duration,
    /// Greatest lateness of the machine. If the machine was later, the fault is repeated.
    pub lateness: Duration,
    /// Greatest number of repeated faults. More show that the machine is too busy.
    pub repeats: usize,
}

/// The result of a fault. `observed` begins just before the command that causes the fault. The record contains all
/// tries that started within `observed`.
pub fn fault_result(record: &Record, control: &Control, observed: Gap, bounds: &OutageBounds) -> FaultResult {
    let outage = find_outage(record, observed);
    let lateness = control.lateness(outage.unwrap_or(observed));
    if lateness > bounds.lateness {
        return FaultResult::MachineLate(format!("it was {lateness:.1?} late; the bound is {:?}", bounds.lateness));
    }
    // Lost tries of the control show that the machine loses packets or time by itself.
    if let Some(tries) = control.tries.as_ref().filter(|tries| tries.lost_at_first() > 0 || tries.tries.is_empty()) {
        return FaultResult::MachineLate(format!("the control lost tries: {tries}"));
    }
    match outage {
        Some(outage) => FaultResult::Recovered(Outage { length: outage.length(), lateness }),
        None => FaultResult::StillLost,
    }
}

/// The time of the outage, which is empty if no try was lost. `None` if no try was answered after the last lost one.
fn find_outage(record: &Record, observed: Gap) -> Option<Gap> {
    let sent = record.tries.iter().filter(|one| one.outcome != Outcome::NotSent);
    let mut tries: Vec<_> = sent.filter(|one| (observed.from..=observed.to).contains(&one.started)).collect();
    tries.sort_by_key(|one| one.started);
    let is_lost = |one: &&Try| one.outcome != Outcome::Ok;
    let (Some(first), Some(last)) = (tries.iter().position(is_lost), tries.iter().rposition(is_lost)) else {
        return tries.first().map(|_| Gap { to: observed.from, ..observed });
    };
    let from = tries[..first].last().map_or(observed.from, |answered| answered.started);
    tries.get(last + 1).map(|answered| Gap { from, to: answered.end() })
}

/// The outages of all repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// In the order of the faults.
    pub outages: Vec<Outage>,
    /// Why faults were repeated.
    pub repeated: Vec<String>,
}

impl Outages {
    /// The length that this share of the outages does not exceed: 0.5 is the median, 1.0 the maximum. Zero without
    /// outages.
    pub fn percentile(&self, share: f64) -> Duration {
        let mut lengths: Vec<Duration> = self.outages.iter().map(|outage| outage.length).collect();
        percentile(&mut lengths, share).unwrap_or_default()
    }

    /// The greatest lateness of the machine in any of the outages.
    pub fn lateness(&self) -> Duration {
        self.outages.iter().map(|outage| outage.lateness).max().unwrap_or_default()
    }

    /// The broken bounds.
    pub fn reasons(&self, bounds: &OutageBounds) -> Vec<String> {
        let mut reasons = Vec::new();
        let p50 = self.percentile(0.5);
        if p50 > bounds.p50 {
            reasons.push(format!("the median of the outages is {p50:.1?}; the bound is {:?}", bounds.p50));
        }
        for (number, Outage { length, lateness }) in (1..).zip(&self.outages) {
            if *length > bounds.max + *lateness {
                let max = bounds.max;
                reasons.push(format!(
                    "outage {number} is {length:.1?}; the bound is {max:?} and {lateness:.1?} of lateness"
                ));
            }
        }
        if self.repeated.len() > bounds.repeats {
            let (count, most) = (self.repeated.len(), bounds.repeats);
            reasons
                .push(format!("the machine was late {count} times; the bound is {most}: {}", self.repeated.join("; ")));
        }
        reasons
    }
}

/// One line: number, percentiles, lateness, repetitions.
impl fmt::Display for Outages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p95, max] = [0.5, 0.95, 1.0].map(|share| self.percentile(share));
        write!(f, "{} outages: p50 {p50:.1?}, p95 {p95:.1?}, max {max:.1?}; ", self.outages.len())?;
        write!(f, "machine late by at most {:.1?}; {} repeated", self.lateness(), self.repeated.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Wakeup;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const BOUNDS: OutageBounds = OutageBounds {
        p50: Duration::from_millis(200),
        max: Duration::from_millis(400),
        lateness: Duration::from_millis(50),
        repeats: 1,
    };

    /// A try every 10 ms from 0 to 990 ms, each ended after 2 ms. Those in `lost` have the outcome.
    fn record(lost: &[(u64, u64)], outcome: Outcome) -> Record {
        let tries = (0..100).map(|n| {
            let started = ms(10 * n);
            let is_lost = lost.iter().any(|(from, to)| (ms(*from)..ms(*to)).contains(&started));
            let outcome = if is_lost { outcome } else { Outcome::Ok };
            Try { started, latency: ms(2), outcome, server: None }
        });
        Record { from: ms(0), to: ms(1000), interval: ms(10), tries: tries.rev().collect() }
    }

    #[test]
    fn an_outage_ends_when_every_later_try_is_answered() {
        let all = |outcome| record(&[(0, 1000)], outcome);
        let observed = Gap { from: ms(100), to: ms(900) };
        for (why, record, expected) in [
            ("150 ms", record(&[(105, 255)], Outcome::TimedOut), Some(162)),
            ("answered only after a retransmission", record(&[(105, 255)], Outcome::Repeated), Some(162)),
            ("an answer in between", record(&[(105, 205), (215, 255)], Outcome::TimedOut), Some(162)),
            ("lost again later", record(&[(105, 255), (500, 510)], Outcome::Refused), Some(412)),
            ("lost only after the end", record(&[(105, 255), (910, 920)], Outcome::Refused), Some(162)),
            ("lost only before the fault", record(&[(50, 90)], Outcome::TimedOut), Some(0)),
            ("an effect only 200 ms later", record(&[(305, 455)], Outcome::TimedOut), Some(162)),
            ("no effect", record(&[], Outcome::TimedOut), Some(0)),
            ("not sent", record(&[(105, 255)], Outcome::NotSent), Some(0)),
            ("lost to the end", record(&[(105, 950)], Outcome::TimedOut), None),
            ("nothing was sent", all(Outcome::NotSent), None),
        ] {
            let found = fault_result(&record, &Control::default(), observed, &BOUNDS);
            let length = |length| FaultResult::Recovered(Outage { length: ms(length), lateness: ms(0) });
            assert_eq!(found, expected.map_or(FaultResult::StillLost, length), "{why}");
        }
    }

    #[test]
    fn a_fault_on_a_late_machine_shows_nothing() {
        let late = |at, late| Control { wakeups: vec![Wakeup { at: ms(at), late: ms(late) }], tries: None };
        let tries = |tries| Control { wakeups: Vec::new(), tries: Some(tries) };
        let short = |result| match result {
            FaultResult::Recovered(outage) => format!("{:?}", outage.lateness),
            FaultResult::StillLost => "still lost".to_owned(),
            FaultResult::MachineLate(_) => "late".to_owned(),
        };
        let observed = Gap { from: ms(100), to: ms(900) };
        let recovered = || record(&[(105, 255)], Outcome::TimedOut);
        let lost = || record(&[(105, 1000)], Outcome::TimedOut);
        for (why, record, control, expected) in [
            ("a little late", recovered(), late(200, 50), "50ms"),
            ("too late", recovered(), late(200, 51), "late"),
            ("too late before the effect", self::record(&[(305, 455)], Outcome::TimedOut), late(200, 51), "0ns"),
            ("too late after the outage", recovered(), late(800, 51), "0ns"),
            ("too late before the fault", recovered(), late(90, 51), "0ns"),
            ("too late while all is lost", lost(), late(800, 51), "late"),
            ("all is lost", lost(), Control::default(), "still lost"),
            ("a slow answer of the control", recovered(), tries(self::record(&[], Outcome::Ok)), "2ms"),
            ("the control lost a try", recovered(), tries(self::record(&[(10, 20)], Outcome::TimedOut)), "late"),
            ("the control has no try", recovered(), tries(Record::default()), "late"),
        ] {
            let found = fault_result(&record, &control, observed, &BOUNDS);
            assert_eq!(short(found), expected, "{why}");
        }
    }

    #[test]
    fn all_outages_together_keep_the_bounds() {
        let outages = |lengths: &[u64], lateness, repeats| Outages {
            outages: lengths.iter().map(|length| Outage { length: ms(*length), lateness: ms(lateness) }).collect(),
            repeated: vec!["busy".to_owned(); repeats],
        };
        for (why, found, expected) in [
            ("within all", outages(&[100, 200, 400], 0, 1), &[][..]),
            (
                "the median",
                outages(&[100, 201, 201], 50, 0),
                &["the median of the outages is 201.0ms; the bound is 200ms"],
            ),
            (
                "one is too long",
                outages(&[100, 100, 421], 20, 0),
                &["outage 3 is 421.0ms; the bound is 400ms and 20.0ms of lateness"],
            ),
            ("long, but the machine was late", outages(&[100, 100, 420], 20, 0), &[]),
            (
                "too many repetitions",
                outages(&[100], 0, 2),
                &["the machine was late 2 times; the bound is 1: busy; busy"],
            ),
        ] {
            assert_eq!(found.reasons(&BOUNDS), expected, "{why}");
        }
    }

    #[test]
    fn a_line_shows_percentiles_lateness_and_repetitions() {
        let outages = (1..=20).map(|n| Outage { length: ms(10 * n), lateness: ms(n) }).collect();
        let found = Outages { outages, repeated: vec!["busy".to_owned()] };
        let line = "20 outages: p50 100.0ms, p95 190.0ms, max 200.0ms; machine late by at most 20.0ms; 1 repeated";
        assert_eq!(found.to_string(), line);
        assert_eq!(Outages::default().percentile(0.5), Duration::ZERO);
    }
}
