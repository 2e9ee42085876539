//! Disagreements that are a breach only if they last: different sources change at different times. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::breach::{Invariant, Subject};

/// A breach before it has a time.
pub type Finding = (Invariant, Subject, String);

/// A disagreement whose text changes may last for this many limits: an address that moves again and again is between
/// two states most of the time.
const CHANGING: u32 = 4;

/// The present disagreements.
#[derive(Clone, Debug, Default)]
pub struct Lasting {
    present: BTreeMap<(Invariant, Subject), Disagreement>,
}

/// One disagreement, which may change its text.
#[derive(Clone, Debug)]
struct Disagreement {
    since: Duration,
    text: String,
    text_since: Duration,
    is_reported: bool,
}

impl Lasting {
    /// Sets the present disagreements. Returns those that have had one text for `limit`, or changing texts for
    /// [`CHANGING`] limits, each once.
    pub fn update(&mut self, now: Duration, limit: Duration, present: Vec<Finding>) -> Vec<Finding> {
        let key = |finding: &Finding| (finding.0, finding.1.clone());
        self.present.retain(|known, _| present.iter().any(|finding| key(finding) == *known));
        let mut reported = Vec::new();
        for finding in present {
            let text = &finding.2;
            let new = || Disagreement { since: now, text: text.clone(), text_since: now, is_reported: false };
            let known = self.present.entry(key(&finding)).or_insert_with(new);
            if known.text != *text {
                (known.text, known.text_since) = (text.clone(), now);
            }
            let lasts = now.saturating_sub(known.text_since) >= limit;
            if !known.is_reported && (lasts || now.saturating_sub(known.since) >= limit * CHANGING) {
                known.is_reported = true;
                reported.push(finding);
            }
        }
        reported
    }

    /// Whether each present disagreement has been reported.
    pub fn is_settled(&self) -> bool {
        self.present.values().all(|known| known.is_reported)
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
            (4, &[("a", "x"), ("b", "x")], &[], false),
            (5, &[("a", "x"), ("b", "x")], &[("a", "x")], false),
            (8, &[("a", "x")], &[], true),
            (9, &[("a", "y"), ("b", "x")], &[], false),
            (13, &[("a", "y"), ("b", "y")], &[], false),
            (14, &[("b", "y")], &[], false),
            (18, &[("b", "y")], &[("b", "y")], true),
            (19, &[], &[], true),
            (20, &[("c", "1")], &[], false),
            (24, &[("c", "2")], &[], false),
            (39, &[("c", "3")], &[], false),
            (40, &[("c", "4")], &[("c", "4")], true),
        ] {
            let findings =
                |all: &[(&str, &str)]| all.iter().map(|(node, text)| finding(node, text)).collect::<Vec<_>>();
            let (now, limit) = (Duration::from_secs(seconds), Duration::from_secs(5));
            let reported = lasting.update(now, limit, findings(present));
            assert_eq!((reported, lasting.is_settled()), (findings(expected), is_settled), "after {seconds} s");
        }
    }
}
