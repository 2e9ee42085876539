//! Whether a run kept its bounds. Pure, except for [`repeat_while_late`], which repeats a run.

use std::time::Duration;

use anyhow::Result;

use crate::control::Control;
use crate::record::{Gap, Outcome, Record};

/// Bounds of a run. The control's lateness is added to bounds of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Greatest share of tries that are lost at the first try.
    pub loss: f64,
    /// Longest time without an answer, beyond the interval of tries.
    pub gap: Duration,
    /// An answer later than this is slow.
    pub slow_after: Duration,
    /// Greatest number of slow tries.
    pub slow: usize,
    /// Least number of tries: fewer do not show a small loss.
    pub tries: usize,
    /// Greatest lateness of the machine. If the machine was later, the run is repeated.
    pub lateness: Duration,
}

impl Bounds {
    /// Greatest first-try loss of a planned change: one in a thousand.
    pub const PLANNED_LOSS: f64 = 0.001;

    /// Bounds of a planned change with this longest gap: no loss above [`Bounds::PLANNED_LOSS`], no slow answer.
    ///
    /// TCP retransmits a SYN after one second and data after 200 ms, so a lost packet is slow.
    pub fn for_planned_change(gap: Duration) -> Self {
        Self {
            loss: Self::PLANNED_LOSS,
            gap,
            slow_after: Duration::from_millis(150),
            slow: 0,
            tries: 1000,
            lateness: Duration::from_millis(100),
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All bounds were kept.
    Passed,
    /// Bounds that were broken.
    Failed(Vec<String>),
    /// The machine was so late that the run shows nothing: it must be repeated.
    MachineLate(String),
}

impl Verdict {
    /// Adds reasons of other checks of the same run, such as broken flows. If the machine was late, they are dropped,
    /// because the run is repeated.
    pub fn add_reasons(self, others: Vec<String>) -> Self {
        match self {
            Self::Passed if !others.is_empty() => Self::Failed(others),
            Self::Failed(reasons) => Self::Failed([reasons, others].concat()),
            verdict => verdict,
        }
    }

    /// The verdict on both of two records of a run. A late machine precedes broken bounds.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::MachineLate(why), _) | (_, Self::MachineLate(why)) => Self::MachineLate(why),
            (Self::Failed(reasons), other) => Self::Failed(reasons).add_reasons(other.into_reasons()),
            (Self::Passed, other) => other,
        }
    }

    fn into_reasons(self) -> Vec<String> {
        if let Self::Failed(reasons) = self { reasons } else { Vec::new() }
    }

    /// # Errors
    /// Unless it passed.
    pub fn into_result(self) -> Result<()> {
        match self {
            Self::Passed => Ok(()),
            Self::Failed(reasons) => Err(anyhow::anyhow!(reasons.join("; "))),
            Self::MachineLate(why) => Err(anyhow::anyhow!("the run shows nothing: {why}")),
        }
    }
}

/// Compares a record with its bounds, corrected by the control.
pub fn verdict(record: &Record, control: &Control, bounds: &Bounds) -> Verdict {
    if let Some(why) = lateness_above(control, bounds) {
        return Verdict::MachineLate(why);
    }
    let mut reasons = Vec::new();
    if record.tries.len() < bounds.tries {
        reasons.push(format!("only {} tries of at least {}", record.tries.len(), bounds.tries));
    }
    let not_sent = record.count(Outcome::NotSent);
    if not_sent > 0 {
        reasons.push(format!("{not_sent} tries were not sent"));
    }
    if record.first_try_loss() > bounds.loss {
        let share = 100.0 * record.first_try_loss();
        reasons
            .push(format!("{share:.3} % lost at the first try; the bound is {:.3} %: {record}", 100.0 * bounds.loss));
    }
    let most = record.interval + bounds.gap;
    let long = record.gaps().into_iter().filter(|gap| gap.length() > most);
    // Lateness may excuse a long gap, but not a shorter gap at another time.
    let excess = |gap: &Gap| gap.length().saturating_sub(most + control.lateness(*gap));
    if let Some(gap) = long.max_by_key(excess).filter(|gap| excess(gap) > Duration::ZERO) {
        let (length, late) = (gap.length(), control.lateness(gap));
        let bound = bounds.gap;
        reasons.push(format!(
            "no answer for {length:.1?} from {:.3?}; the bound is {bound:?} and {late:.1?} of lateness",
            gap.from
        ));
    }
    let is_slow =
        |started, ended, latency| latency > bounds.slow_after + control.lateness(Gap { from: started, to: ended });
    let slow = record.slow(bounds.slow_after).filter(|one| is_slow(one.started, one.end(), one.latency)).count();
    if slow > bounds.slow {
        reasons
            .push(format!("{slow} answers later than {:?}; the bound is {}: {record}", bounds.slow_after, bounds.slow));
    }
    if reasons.is_empty() { Verdict::Passed } else { Verdict::Failed(reasons) }
}

/// Why the machine was too late, if it was.
fn lateness_above(control: &Control, bounds: &Bounds) -> Option<String> {
    let lateness = control.greatest_lateness();
    if lateness > bounds.lateness {
        return Some(format!("it was {lateness:.1?} late; the bound is {:?}", bounds.lateness));
    }
    let tries = control.tries.as_ref()?;
    // Lost tries of the control show that the machine loses packets or time by itself.
    (tries.first_try_loss() > bounds.loss).then(|| format!("the control lost tries: {tries}"))
}

/// Repeats `run` while the machine is late, at most `at_most` times in all. If the machine was late in every run, the
/// verdict is a failure.
///
/// # Errors
/// If a run has an error.
pub async fn repeat_while_late(at_most: usize, mut run: impl AsyncFnMut() -> Result<Verdict>) -> Result<Verdict> {
    let mut late = Vec::new();
    for _ in 0..at_most {
        match run().await? {
            Verdict::MachineLate(why) => late.push(why),
            verdict => return Ok(verdict),
        }
    }
    Ok(Verdict::Failed(vec![format!("the machine was late in all {at_most} runs: {}", late.join("; "))]))
}

#[cfg(test)]
mod tests;
