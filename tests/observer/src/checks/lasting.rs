//! Disagreements that are a breach only if they last: different sources change at different times. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::breach::{Invariant, Subject};

/// A breach before it has a time.
pub type Finding = (Invariant, Subject, String);

/// The beginning of each present disagreement, and whether it has been reported.
#[derive(Clone, Debug, Default)]
pub struct Lasting {
    since: BTreeMap<(Invariant, Subject), (Duration, bool)>,
}

impl Lasting {
    /// Sets the present disagreements. Returns those that have lasted for `limit`, each once. A disagreement whose text
    /// changes is still the same.
    pub fn update(&mut self, now: Duration, limit: Duration, present: Vec<Finding>) -> Vec<Finding> {
        let key = |finding: &Finding| (finding.0, finding.1.clone());
        self.since.retain(|known, _| present.iter().any(|finding| key(finding) == *known));
        let mut reported = Vec::new();
        for finding in present {
            let (since, is_reported) = self.since.entry(key(&finding)).or_insert((now, false));
            if !*is_reported && now.saturating_sub(*since) >= limit {
                *is_reported = true;
                reported.push(finding);
            }
        }
        reported
    }

    /// Whether each present disagreement has been reported.
    pub fn is_settled(&self) -> bool {
        self.since.values().all(|(_, is_reported)| *is_reported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disagreement_is_reported_once_if_it_lasts() {
        let finding = |node: &str, text: &str| (Invariant::I16, Subject::agent(node), text.to_owned());
        let mut lasting = Lasting::default();
        for (seconds, present, expected, is_settled) in [
            (0, &[("a", "x")][..], &[][..], false),
            (4, &[("a", "y"), ("b", "x")], &[], false),
            (5, &[("a", "z"), ("b", "x")], &[("a", "z")], false),
            (8, &[("a", "z")], &[], true),
            (9, &[("a", "z"), ("b", "x")], &[], false),
            (13, &[("a", "z"), ("b", "x")], &[], false),
            (14, &[("b", "x")], &[("b", "x")], true),
            (15, &[], &[], true),
        ] {
            let findings =
                |all: &[(&str, &str)]| all.iter().map(|(node, text)| finding(node, text)).collect::<Vec<_>>();
            let (now, limit) = (Duration::from_secs(seconds), Duration::from_secs(5));
            let reported = lasting.update(now, limit, findings(present));
            assert_eq!((reported, lasting.is_settled()), (findings(expected), is_settled), "after {seconds} s");
        }
    }
}
