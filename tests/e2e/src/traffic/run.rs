//! The records of a run and of its control, and the verdict on them. Pure, except that figures are printed.

use std::time::Duration;

use anyhow::{Result, ensure};
use load::{Bounds, Control, DatagramReport, FlowReport, Record, Verdict, verdict};

use crate::traffic::Target;

/// Agents on a machine that is this late can miss the window of Hellos, which is 150 ms.
const MISSED_HELLO: Duration = Duration::from_millis(75);

/// Records of one run, and its control.
#[derive(Clone, Debug)]
pub struct TrafficRun {
    pub records: Vec<(Target, Record)>,
    /// The connections that stayed open, if there were some.
    pub flows: Option<FlowReport>,
    /// The datagrams of an open flow, if there were some.
    pub datagrams: Option<DatagramReport>,
    pub control: Control,
}

impl TrafficRun {
    /// Prints all figures, whatever the verdict is.
    pub fn print(&self, event: &str) {
        let control = self.control.tries.as_ref().map_or_else(String::new, Record::to_string);
        eprintln!("  {event}: the machine was {:.0?} late; control: {control}", self.control.greatest_lateness());
        for (target, record) in &self.records {
            eprintln!("    {}: {record}", target.label());
        }
        if let Some(flows) = &self.flows {
            eprintln!("    {} of {} open connections broke: {}", flows.broken.len(), flows.flows, flows.requests);
        }
        if let Some(datagrams) = &self.datagrams {
            eprintln!("    open UDP flow: {}", datagrams.record);
        }
    }

    /// The verdict on all records and on the open UDP flow, with reasons of other checks of this run.
    pub fn verdict(&self, bounds: &Bounds, reasons: Vec<String>) -> Verdict {
        let datagrams = self.datagrams.as_ref().map(|report| ("open UDP flow".to_owned(), &report.record));
        let records = self.records.iter().map(|(target, record)| (target.label(), record)).chain(datagrams);
        let verdicts = records.map(|(name, record)| match verdict(record, &self.control, bounds) {
            Verdict::Failed(reasons) => {
                Verdict::Failed(reasons.into_iter().map(|reason| format!("{name}: {reason}")).collect())
            }
            verdict => verdict,
        });
        let datagrams = self.datagrams.as_ref().map(DatagramReport::reasons).unwrap_or_default();
        let datagrams = datagrams.into_iter().map(|reason| format!("open UDP flow: {reason}"));
        verdicts.fold(Verdict::Passed, Verdict::and).add_reasons(reasons.into_iter().chain(datagrams).collect())
    }

    /// The open connections that broke, as reasons of a failure. Connections to pods for which `may_break` returns true
    /// are left out.
    pub fn flow_reasons(&self, may_break: impl Fn(&str) -> bool) -> Vec<String> {
        self.flows.as_ref().map(|flows| flows.reasons(may_break)).unwrap_or_default()
    }

    /// A reason for each target with requests that had no answer, not even after a retransmission.
    pub fn unanswered_reasons(&self) -> Vec<String> {
        let unanswered = self.records.iter().filter(|(_, record)| record.unanswered_count() > 0);
        let reason = |(target, record): &(Target, Record)| {
            format!("{}: {} requests had no answer: {record}", target.label(), record.unanswered_count())
        };
        unanswered.map(reason).collect()
    }

    /// A failure on a machine on which agents can miss the window of Hellos shows nothing.
    pub fn excuse_late_machine(&self, verdict: Verdict) -> Verdict {
        let late = self.control.greatest_lateness();
        match verdict {
            Verdict::Failed(reasons) if late > MISSED_HELLO => {
                let why = format!("it was {late:.1?} late: {}", reasons.join("; "));
                eprintln!("    excused by a late machine: {why}");
                Verdict::MachineLate(why)
            }
            verdict => verdict,
        }
    }

    /// Fails unless open connections to these pods broke, which is a defect that is not mended yet. If this fails, the
    /// defect is mended: remove the exception.
    pub fn expect_broken_flows(&self, breaks: impl Fn(&str) -> bool, defect: &str) -> Result<()> {
        let (flows, all) = self.flows.as_ref().map_or((&[][..], 0), |report| (&report.broken[..], report.flows));
        let broken = flows.iter().filter(|flow| breaks(&flow.server)).count();
        ensure!(broken > 0, "no open connection broke: is this defect mended? {defect}");
        eprintln!("  known defect: {defect} ({broken} of {all} open connections broke)");
        Ok(())
    }
}

/// A loss above [`Bounds::PLANNED_LOSS`] by a defect that is not mended yet, and that loses another share in each run.
#[derive(Clone, Copy, Debug)]
pub struct KnownLoss {
    /// The greatest share of first tries, as it was measured.
    pub at_most: f64,
    /// One sentence why.
    pub reason: &'static str,
}

impl KnownLoss {
    /// Prints the loss beside the bar that it misses, and returns a reason to fail if it is above the known one.
    pub fn reasons(&self, name: &str, record: &Record) -> Vec<String> {
        let [loss, bar, bound] = [record.first_try_loss(), Bounds::PLANNED_LOSS, self.at_most].map(|it| 100.0 * it);
        let text = format!("{name}: {loss:.3} % of {} first tries were lost", record.tries.len());
        if loss > bar {
            eprintln!("  known defect: {} ({text}; the bar is {bar} %, the bound {bound} %)", self.reason);
        }
        if loss > bound { vec![format!("{text}, at most {bound} %: {record}")] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use load::control::Wakeup;
    use load::{BrokenFlow, FlowBreak, Outcome, Try};

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn record(count: u64, lost: u64) -> Record {
        let tries = (0..count).map(|n| {
            let outcome = if n < lost { Outcome::TimedOut } else { Outcome::Ok };
            Try { started: ms(n), latency: ms(1), outcome, server: None }
        });
        Record { from: ms(0), to: ms(count), interval: ms(1), tries: tries.collect() }
    }

    fn run(lost: u64, late: u64) -> TrafficRun {
        let target = Target::new("web", ([192, 0, 2, 1], 80).into(), load::Transport::Tcp);
        let control = Control { wakeups: vec![Wakeup { at: ms(9), late: ms(late) }], tries: None };
        let broken = BrokenFlow { server: "a".to_owned(), at: ms(5), why: FlowBreak::Reset };
        let flows = FlowReport { flows: 2, broken: vec![broken], requests: Record::default() };
        TrafficRun { records: vec![(target, record(1000, lost))], flows: Some(flows), datagrams: None, control }
    }

    #[test]
    fn a_failure_on_a_late_machine_repeats_the_run() {
        let bounds = Bounds { lateness: ms(500), ..Bounds::for_planned_change(ms(50)) };
        for (case, lost, late, reasons, expected) in [
            ("nothing lost", 0, 0, &[][..], "passed"),
            ("nothing lost on a late machine", 0, 400, &[], "passed"),
            ("a machine later than its bound", 0, 501, &[], "late"),
            ("lost", 2, 0, &[], "failed"),
            ("lost on a machine that is a little late", 2, 75, &[], "failed"),
            ("lost on a late machine", 2, 76, &[], "late"),
            ("another reason", 0, 0, &["moved"], "failed"),
            ("another reason on a late machine", 0, 76, &["moved"], "late"),
        ] {
            let run = run(lost, late);
            let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
            let seen = match run.excuse_late_machine(run.verdict(&bounds, reasons)) {
                Verdict::Passed => "passed",
                Verdict::Failed(_) => "failed",
                Verdict::MachineLate(_) => "late",
            };
            assert_eq!(seen, expected, "{case}");
        }
    }

    #[test]
    fn broken_connections_and_unanswered_requests_are_reasons() {
        let run = run(3, 0);
        assert_eq!(run.flow_reasons(|_| false).len(), 1);
        assert_eq!(run.flow_reasons(|server| server == "a").len(), 0);
        assert!(run.unanswered_reasons()[0].starts_with("web, Tcp: 3 requests had no answer"));
        assert!(run.expect_broken_flows(|server| server == "a", "a row").is_ok());
        assert!(run.expect_broken_flows(|server| server == "b", "a row").is_err());
    }

    #[test]
    fn a_known_loss_has_an_upper_bound() {
        let known = KnownLoss { at_most: 0.02, reason: "a row of this table" };
        for (lost, broken) in [(0, false), (20, false), (21, true)] {
            assert_eq!(!known.reasons("web", &record(1000, lost)).is_empty(), broken, "{lost}");
        }
    }
}
