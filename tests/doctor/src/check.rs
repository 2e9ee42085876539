//! One check and its line, and the report of all checks. Pure.

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The machine has it.
    Ok,
    /// Not tried: another requirement is missing, or the set-up has not run.
    Untried,
    /// The lab runs, with a restriction.
    Note,
    /// The lab cannot run without it.
    Missing,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Untried => "untried",
            Self::Note => "note",
            Self::Missing => "MISSING",
        }
    }
}

/// One property of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The checked property, in a few words.
    pub subject: String,
    /// The requirement of the lab, and its purpose.
    pub needed: String,
    pub outcome: Outcome,
    /// The state of the machine.
    pub found: String,
    /// The fix. Empty if the outcome is ok.
    pub advice: String,
}

impl Check {
    pub fn new(subject: &str, needed: &str, outcome: Outcome, found: impl Into<String>) -> Self {
        let (subject, needed, found) = (subject.to_owned(), needed.to_owned(), found.into());
        Self { subject, needed, outcome, found, advice: String::new() }
    }

    /// The same with this fix, if there is something to fix.
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        if self.outcome != Outcome::Ok {
            self.advice = advice.into();
        }
        self
    }

    /// The same for a property that only some tests or features need: its absence is a note.
    pub fn optional(mut self) -> Self {
        if self.outcome == Outcome::Missing {
            self.outcome = Outcome::Note;
        }
        self
    }

    /// The check on one line: `MISSING  nft  not found; needed: to program the kernel; do: apt-get install nftables`.
    pub fn line(&self) -> String {
        let advice = if self.advice.is_empty() { String::new() } else { format!("; do: {}", self.advice) };
        let line =
            format!("{:7}  {:20} {}; needed: {}{advice}", self.outcome.label(), self.subject, self.found, self.needed);
        // Messages of other programs can have several lines.
        line.lines().map(str::trim_end).collect::<Vec<_>>().join(" ")
    }
}

/// All checks of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether nothing is missing.
    pub fn is_suitable(&self) -> bool {
        self.missing() == 0
    }

    fn missing(&self) -> usize {
        self.checks.iter().filter(|check| check.outcome == Outcome::Missing).count()
    }

    /// One line per check, and the conclusion. If `quiet`, only notes and missing requirements, and a conclusion only
    /// if something is missing.
    pub fn render(&self, quiet: bool) -> String {
        let is_quiet = |check: &&Check| matches!(check.outcome, Outcome::Ok | Outcome::Untried);
        let checks = self.checks.iter().filter(|check| !quiet || !is_quiet(check));
        let mut text: String = checks.map(|check| check.line() + "\n").collect();
        match self.missing() {
            0 if quiet => {}
            0 => text += "This machine can run the lab.\n",
            missing => text += &format!("This machine cannot run the lab: {missing} MISSING, see above.\n"),
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let check = |outcome: &Outcome| Check::new("nft", "rules", *outcome, "found").with_advice("install it");
        Report { checks: outcomes.iter().map(check).collect() }
    }

    #[test]
    fn only_a_missing_requirement_makes_a_machine_unsuitable() {
        use Outcome::{Missing, Note, Ok, Untried};
        for (outcomes, is_suitable) in [
            (&[][..], true),
            (&[Ok, Ok], true),
            (&[Ok, Note, Untried], true),
            (&[Missing], false),
            (&[Ok, Missing, Note, Missing], false),
        ] {
            assert_eq!(report(outcomes).is_suitable(), is_suitable, "{outcomes:?}");
        }
    }

    #[test]
    fn the_absence_of_an_optional_property_is_a_note() {
        use Outcome::{Missing, Note, Ok, Untried};
        for (outcome, expected) in [(Ok, Ok), (Untried, Untried), (Note, Note), (Missing, Note)] {
            let check = Check::new("curl", "tests", outcome, "found").with_advice("install it");
            assert_eq!(check.clone().optional(), Check { outcome: expected, ..check });
        }
    }

    #[test]
    fn each_check_is_one_line_with_its_fix() {
        let report = report(&[Outcome::Ok, Outcome::Note, Outcome::Missing]);
        let lines = "note     nft                  found; needed: rules; do: install it\n\
                     MISSING  nft                  found; needed: rules; do: install it\n\
                     This machine cannot run the lab: 1 MISSING, see above.\n";
        assert_eq!(report.render(true), lines);
        assert_eq!(report.render(false), format!("ok       nft                  found; needed: rules\n{lines}"));
        let error = Check::new("nft", "rules", Outcome::Missing, "Error:\n  line 1\n");
        assert_eq!(error.line(), "MISSING  nft                  Error:   line 1 ; needed: rules");
    }

    #[test]
    fn a_suitable_machine_is_reported_quietly() {
        let report = report(&[Outcome::Ok, Outcome::Untried]);
        assert_eq!(report.render(true), "");
        assert!(report.render(false).ends_with("This machine can run the lab.\n"));
    }
}
