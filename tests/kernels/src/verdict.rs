//! Decides on one guest: its transcript → passed, failed, known and skipped tests. Pure.
//!
//! A transcript has a section for each step. Sections of test executables are the output of libtest, and that of the
//! doctor has a line per check.

use std::collections::BTreeMap;

use ci::libtest;

use crate::catalog::{DOCTOR, KnownFailure, NOT_ABOUT_THE_KERNEL};
use crate::machine::GuestEnd;
use crate::plan::Step;

/// The results of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub passed: usize,
    /// Output by name.
    pub failed: BTreeMap<String, String>,
    /// Reason by name.
    pub known: BTreeMap<String, String>,
    /// Cause by name.
    pub skipped: BTreeMap<String, String>,
}

impl Verdict {
    pub fn passes(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    /// `41 passed, 0 failed, 1 known, 0 skipped`.
    pub fn counts(&self) -> String {
        let [failed, known, skipped] = [self.failed.len(), self.known.len(), self.skipped.len()];
        format!("{} passed, {failed} failed, {known} known, {skipped} skipped", self.passed)
    }

    fn fail(&mut self, name: &str, output: &str) {
        self.failed.insert(name.to_owned(), output.to_owned());
    }
}

/// Decides on the transcript of a guest with a kernel of this series.
pub fn decide(transcript: &str, end: GuestEnd, steps: &[Step], series: &str, known: &[KnownFailure]) -> Verdict {
    let mut verdict = Verdict::default();
    let transcript = transcript.replace('\r', "");
    let sections = sections(&transcript, steps);
    for step in steps {
        match sections.get(step.name.as_str()) {
            Some(section) if step.name == DOCTOR => read_doctor(section, &mut verdict),
            Some(section) => read_tests(step, section, &mut verdict),
            None if end == GuestEnd::Killed => verdict.fail(&step.name, "not run: the guest was ended before"),
            None => verdict.fail(&step.name, "not run: the guest ended before, see its console"),
        }
    }
    let has_run = |known: &&KnownFailure| steps.iter().any(|step| known.test.starts_with(&format!("{}::", step.name)));
    let known: Vec<_> = known.iter().filter(|known| known.series.contains(&series)).filter(has_run).collect();
    set_known_aside(&mut verdict, &known);
    verdict
}

/// The output of each step that has run, by name.
fn sections<'a>(transcript: &'a str, steps: &[Step]) -> BTreeMap<&'a str, String> {
    let headers: Vec<String> = steps.iter().map(Step::header).collect();
    let mut sections: BTreeMap<&str, String> = BTreeMap::new();
    let mut current = None;
    for line in transcript.lines() {
        if headers.iter().any(|header| header == line) {
            let name = line.trim_start().strip_prefix("Running ").and_then(|rest| rest.split(' ').next());
            current = name;
        }
        if let Some(name) = current {
            let section = sections.entry(name).or_default();
            section.push_str(line);
            section.push('\n');
        }
    }
    sections
}

/// `dataplane::spread 12 s` of each step that has ended.
pub fn durations(transcript: &str, steps: &[Step]) -> Vec<String> {
    let duration = |step: &Step| {
        let beginning = format!("=== {}: ", step.name);
        let end = transcript.lines().find_map(|line| line.trim_end().strip_prefix(&beginning))?;
        Some(format!("{} {}", step.name, end.rsplit(", ").next()?))
    };
    steps.iter().filter_map(duration).collect()
}

fn read_tests(step: &Step, section: &str, verdict: &mut Verdict) {
    let mut is_complete = false;
    for binary in libtest::parse(section) {
        is_complete = binary.is_complete;
        verdict.passed += binary.passed;
        verdict
            .failed
            .extend(binary.failed.into_iter().map(|(test, output)| (format!("{}::{test}", step.name), output)));
        if binary.skipped > 0 {
            verdict.skipped.insert(step.name.clone(), format!("{} tests are ignored", binary.skipped));
        }
    }
    if !is_complete {
        let lines: Vec<&str> = section.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n");
        verdict.fail(&step.name, &format!("ended without a result:\n{last}"));
    }
}

/// Each line of the doctor about the kernel that is not ok is a failure.
fn read_doctor(section: &str, verdict: &mut Verdict) {
    let mut checks = 0;
    for line in section.lines() {
        // `MISSING  kernel               Linux 5.10; needed: ...`: the subject has 20 characters.
        let Some((outcome, rest)) = line.split_at_checked(9) else { continue };
        let Some((subject, _)) = rest.split_at_checked(20) else { continue };
        let name = format!("{DOCTOR}::{}", subject.trim());
        match outcome.trim() {
            "ok" => verdict.passed += 1,
            "untried" => drop(verdict.skipped.insert(name, line.to_owned())),
            "note" | "MISSING" if NOT_ABOUT_THE_KERNEL.contains(&subject.trim()) => {
                verdict.skipped.insert(name, "not about the kernel".to_owned());
            }
            "note" | "MISSING" => verdict.fail(&name, line),
            _ => continue,
        }
        checks += 1;
    }
    if checks == 0 {
        verdict.fail(DOCTOR, section);
    }
}

/// Moves known failures from `failed` to `known`. A known failure that does not occur is a failure, so that the list
/// stays true.
fn set_known_aside(verdict: &mut Verdict, known: &[&KnownFailure]) {
    for known in known {
        let is_known = |name: &str| match known.test.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == known.test,
        };
        let found: Vec<_> = verdict.failed.extract_if(.., |name, _| is_known(name)).map(|(name, _)| name).collect();
        if found.is_empty() {
            verdict.fail(known.test, "passes, but is in the list of known failures");
        }
        verdict.known.extend(found.into_iter().map(|name| (name, known.reason.to_owned())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCTOR_OUTPUT: &str = "\
ok       user                 root; needed: root
MISSING  kernel               Linux 5.10.0; needed: Linux 5.14; do: boot a newer kernel
note     memory               1500 MiB available; needed: 2 GiB; do: end other programs
note     nft jhash            refused; needed: to spread frames
This machine cannot run the lab: 1 MISSING, see above.
";

    fn step(name: &str) -> Step {
        let (program, folder) = ("/t".into(), "/r".into());
        Step { name: name.to_owned(), program, arguments: Vec::new(), folder, seconds: 1 }
    }

    fn section(name: &str, output: &str) -> String {
        format!("{}\r\n{}=== {name}: exit status: 0, 1 s\r\n", step(name).header(), output.replace('\n', "\r\n"))
    }

    fn tests(passed: &[&str], failed: &[&str], ignored: usize) -> String {
        let lines = |tests: &[&str], outcome: &str| -> String {
            tests.iter().map(|test| format!("test {test} ... {outcome}\n")).collect()
        };
        let names: String = failed.iter().map(|test| format!("    {test}\n")).collect();
        let failures = if failed.is_empty() { String::new() } else { format!("\nfailures:\n\nfailures:\n{names}") };
        format!(
            "\nrunning {} tests\n{}{}{failures}\ntest result: x. {} passed; {} failed; {ignored} ignored; 0 measured\n",
            passed.len() + failed.len(),
            lines(passed, "ok"),
            lines(failed, "FAILED"),
            passed.len(),
            failed.len(),
        )
    }

    /// (passed, names of failures, names of known failures, names of skipped ones).
    type Names<'a> = (usize, &'a [&'a str], &'a [&'a str], &'a [&'a str]);

    #[track_caller]
    fn assert_decides(case: &str, transcript: &str, end: GuestEnd, steps: &[&str], expected: Names<'_>) {
        let known = |test| KnownFailure { series: &["5.10"], test, reason: "because" };
        let steps: Vec<Step> = steps.iter().map(|name| step(name)).collect();
        let list = [known("p::a::o*"), known("doctor::kernel")];
        let verdict = decide(transcript, end, &steps, if case.starts_with("6.1") { "6.1" } else { "5.10" }, &list);
        let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
        let found = (verdict.passed, names(&verdict.failed), names(&verdict.known), names(&verdict.skipped));
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(found, (expected.0, owned(expected.1), owned(expected.2), owned(expected.3)), "{case}");
    }

    #[test]
    fn each_step_counts_and_known_failures_are_set_aside() {
        use GuestEnd::{Killed, PoweredOff};
        let doctor = section("doctor", DOCTOR_OUTPUT);
        let a = section("p::a", &tests(&["x", "y"], &["old"], 0));
        let all = format!("{a}{doctor}=== end\r\n");
        let steps = ["p::a", "doctor"];
        assert_decides(
            "5.10",
            &all,
            PoweredOff,
            &steps,
            (3, &["doctor::nft jhash"], &["doctor::kernel", "p::a::old"], &["doctor::memory"]),
        );
        assert_decides(
            "6.1: no failure is known",
            &all,
            PoweredOff,
            &steps,
            (3, &["doctor::kernel", "doctor::nft jhash", "p::a::old"], &[], &["doctor::memory"]),
        );
        let passing = section("p::a", &tests(&["x", "old"], &[], 1)) + &doctor;
        assert_decides(
            "5.10: a known failure passes",
            &passing,
            PoweredOff,
            &steps,
            (3, &["doctor::nft jhash", "p::a::o*"], &["doctor::kernel"], &["doctor::memory", "p::a"]),
        );
        for (case, end) in [("6.1: killed", Killed), ("6.1: ended early", PoweredOff)] {
            assert_decides(case, &a, end, &steps, (2, &["doctor", "p::a::old"], &[], &[]));
        }
        let hung = format!("{}\r\n\r\nrunning 2 tests\r\ntest x ... ok\r\n", step("p::a").header());
        assert_decides("6.1: a step hangs", &hung, Killed, &steps, (1, &["doctor", "p::a"], &[], &[]));
        assert_decides("6.1: no transcript", "", Killed, &steps, (0, &["doctor", "p::a"], &[], &[]));
        let refused = section("doctor", "doctor: no such file\r\n");
        assert_decides("6.1: no line of the doctor", &refused, PoweredOff, &["doctor"], (0, &["doctor"], &[], &[]));
    }

    #[test]
    fn known_failures_are_expected_only_of_steps_that_ran() {
        let doctor = section("doctor", DOCTOR_OUTPUT);
        let failed = &["doctor::nft jhash"];
        assert_decides(
            "5.10",
            &doctor,
            GuestEnd::PoweredOff,
            &["doctor"],
            (1, failed, &["doctor::kernel"], &["doctor::memory"]),
        );
    }

    #[test]
    fn steps_have_durations_when_they_have_ended() {
        let transcript = section("doctor", DOCTOR_OUTPUT).replace(", 1 s", ", 12 s") + &step("p::a").header();
        assert_eq!(durations(&transcript, &[step("p::a"), step("doctor")]), ["doctor 12 s"]);
    }

    #[test]
    fn a_kernel_without_any_passed_test_does_not_pass() {
        assert!(!Verdict::default().passes());
        assert!(Verdict { passed: 1, ..Verdict::default() }.passes());
    }
}
