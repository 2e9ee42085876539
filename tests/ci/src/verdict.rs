//! Decides which failed tests run once more, and counts the tests of a run. Pure.
//!
//! An end-to-end test shares two cores with other clusters, so one that fails runs once more, alone. If it passes then,
//! it is flaky: the run passes and its summary names the test. A test without a cluster never runs again.

use std::fmt;

use crate::libtest::{BinaryKind, TestBinary};

/// At most this many tests of a run may fail and still run once more. More failures than this are no coincidence.
pub const MAX_RERUNS: usize = 2;

/// The beginning of the line in which a test lists its failed scenes, separated by spaces (`e2e::Scenes::play`).
const FAILED_SCENES: &str = "failed scenes: ";

/// One run of several test executables.
#[derive(Clone, Debug)]
pub struct TestRun {
    /// Whether all commands exited with status 0.
    pub succeeded: bool,
    pub binaries: Vec<TestBinary>,
}

/// A failed test, or one failed scene of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RerunTarget {
    /// Name of the cargo target.
    pub binary: String,
    pub test: String,
    /// The scene, if all failures of the test are scenes.
    pub scene: Option<String>,
}

/// Second run of a failed test or scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerun {
    pub target: RerunTarget,
    pub passed: bool,
}

/// What to do after the first run of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Pass,
    /// The stage failed, for this reason.
    Fail(String),
    /// The stage passes if each of these passes alone.
    Rerun(Vec<RerunTarget>),
}

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl fmt::Display for RerunTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.binary, self.test)?;
        self.scene.iter().try_for_each(|scene| write!(f, "/{scene}"))
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Decides on the first run of a stage. `may_rerun` is true for end-to-end tests only.
pub fn decide(run: &TestRun, may_rerun: bool) -> Decision {
    if run.succeeded {
        return Decision::Pass;
    }
    let failed: Vec<_> = run.binaries.iter().filter(|binary| !binary.failed.is_empty()).collect();
    let count: usize = failed.iter().map(|binary| binary.failed.len()).sum();
    if let Some(binary) = run.binaries.iter().find(|binary| !binary.is_complete) {
        return Decision::Fail(format!("test binary {} ended without a result", binary.target));
    }
    if failed.is_empty() {
        return Decision::Fail("a command failed outside of a test".to_owned());
    }
    if !may_rerun || failed.iter().any(|binary| binary.kind != BinaryKind::Integration) {
        return Decision::Fail(format!("{count} tests failed"));
    }
    let targets: Vec<_> = failed.into_iter().flat_map(rerun_targets).collect();
    if targets.len() > MAX_RERUNS {
        let reason = format!("{} end-to-end tests or scenes failed; at most {MAX_RERUNS} run again", targets.len());
        return Decision::Fail(reason);
    }
    Decision::Rerun(targets)
}

/// Counts the tests of a stage. A test that failed first and passed alone counts as passed, once.
pub fn count(run: &TestRun, reruns: &[Rerun]) -> Counts {
    let mut counts = Counts::default();
    for binary in &run.binaries {
        let flaky = binary.failed.keys().filter(|test| is_flaky(&binary.target, test, reruns)).count();
        // A binary that died before any of its tests failed is a failure as well.
        let failed = binary.failed.len().max(usize::from(!binary.is_complete));
        counts += Counts { passed: binary.passed + flaky, failed: failed - flaky, skipped: binary.skipped };
    }
    counts
}

/// Whether a failed test, or each of its failed scenes, ran again and passed.
fn is_flaky(binary: &str, test: &str, reruns: &[Rerun]) -> bool {
    let mut reruns =
        reruns.iter().filter(|rerun| rerun.target.binary == binary && rerun.target.test == test).peekable();
    reruns.peek().is_some() && reruns.all(|rerun| rerun.passed)
}

/// Whether the second run of one test or scene passed: at least one test ran, and none failed.
pub fn rerun_passed(run: &TestRun) -> bool {
    let counts = count(run, &[]);
    run.succeeded && counts.passed > 0 && counts.failed == 0
}

fn rerun_targets(binary: &TestBinary) -> Vec<RerunTarget> {
    let mut targets = Vec::new();
    for (test, output) in &binary.failed {
        let target = |scene: Option<&str>| RerunTarget {
            binary: binary.target.clone(),
            test: test.clone(),
            scene: scene.map(ToOwned::to_owned),
        };
        match output.lines().find_map(|line| line.strip_prefix(FAILED_SCENES)) {
            Some(scenes) => targets.extend(scenes.split(' ').map(|scene| target(Some(scene)))),
            None => targets.push(target(None)),
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test binary in which ten tests passed, one was skipped, and these failed, with their output.
    fn binary(target: &str, kind: BinaryKind, failed: &[(&str, &str)]) -> TestBinary {
        let failed = failed.iter().map(|(test, output)| ((*test).to_owned(), (*output).to_owned())).collect();
        TestBinary { target: target.to_owned(), kind, passed: 10, skipped: 1, failed, is_complete: true }
    }

    fn end_to_end(target: &str, failed: &[(&str, &str)]) -> TestBinary {
        binary(target, BinaryKind::Integration, failed)
    }

    fn target(binary: &str, test: &str, scene: Option<&str>) -> RerunTarget {
        RerunTarget { binary: binary.to_owned(), test: test.to_owned(), scene: scene.map(ToOwned::to_owned) }
    }

    #[test]
    fn at_most_two_failed_end_to_end_tests_run_again() {
        let fail = |reason: &str| Decision::Fail(reason.to_owned());
        let scenes = "scene a ... FAILED\nfailed scenes: a b\nError: 2 of 9 scenes failed\n";
        let mut killed = end_to_end("life", &[("f", "")]);
        killed.is_complete = false;
        let three = "3 end-to-end tests or scenes failed; at most 2 run again";
        let table = [
            ("no failure", true, vec![end_to_end("life", &[])], Decision::Pass),
            ("one", true, vec![end_to_end("life", &[("f", "")])], Decision::Rerun(vec![target("life", "f", None)])),
            (
                "two in two binaries",
                true,
                vec![end_to_end("life", &[("f", "")]), end_to_end("keys", &[("g", "")])],
                Decision::Rerun(vec![target("life", "f", None), target("keys", "g", None)]),
            ),
            ("three", true, vec![end_to_end("life", &[("f", ""), ("g", ""), ("h", "")])], fail(three)),
            (
                "two scenes of one test",
                true,
                vec![end_to_end("allocation", &[("pools::f", scenes)])],
                Decision::Rerun(["a", "b"].map(|scene| target("allocation", "pools::f", Some(scene))).to_vec()),
            ),
            (
                "two scenes and a test",
                true,
                vec![end_to_end("allocation", &[("pools::f", scenes), ("turns::g", "")])],
                fail(three),
            ),
            (
                "a test of a stage without reruns",
                false,
                vec![end_to_end("kernel", &[("f", "")])],
                fail("1 tests failed"),
            ),
            ("a unit test", true, vec![binary("lab", BinaryKind::Unit, &[("f", "")])], fail("1 tests failed")),
            (
                "a unit test and an end-to-end test",
                true,
                vec![binary("lab", BinaryKind::Unit, &[("f", "")]), end_to_end("life", &[("g", "")])],
                fail("2 tests failed"),
            ),
            ("an example", true, vec![binary("lab", BinaryKind::Documentation, &[("f", "")])], fail("1 tests failed")),
            ("a killed binary", true, vec![killed], fail("test binary life ended without a result")),
            ("nothing compiles", true, vec![], fail("a command failed outside of a test")),
        ];
        for (case, may_rerun, binaries, expected) in table {
            let run = TestRun { succeeded: expected == Decision::Pass, binaries };
            assert_eq!(decide(&run, may_rerun), expected, "{case}");
        }
    }

    #[test]
    fn a_flaky_test_counts_once_as_passed() {
        let (f, a, b) = (target("life", "f", None), target("life", "g", Some("a")), target("life", "g", Some("b")));
        let rerun = |target: &RerunTarget, passed| Rerun { target: target.clone(), passed };
        let table = [
            ("nothing ran again", vec![], [10, 2]),
            ("one passed alone", vec![rerun(&f, true)], [11, 1]),
            ("one failed again", vec![rerun(&f, false)], [10, 2]),
            ("both scenes passed alone", vec![rerun(&f, true), rerun(&a, true), rerun(&b, true)], [12, 0]),
            ("one scene failed again", vec![rerun(&f, true), rerun(&a, true), rerun(&b, false)], [11, 1]),
        ];
        let run = TestRun { succeeded: false, binaries: vec![end_to_end("life", &[("f", ""), ("g", "")])] };
        for (case, reruns, [passed, failed]) in table {
            assert_eq!(count(&run, &reruns), Counts { passed, failed, skipped: 1 }, "{case}");
        }
    }

    #[test]
    fn a_binary_that_dies_counts_as_one_failure() {
        let mut dead = end_to_end("life", &[]);
        dead.is_complete = false;
        let counts = count(&TestRun { succeeded: false, binaries: vec![dead] }, &[]);
        assert_eq!(counts, Counts { passed: 10, failed: 1, skipped: 1 });
    }

    #[test]
    fn a_rerun_passes_only_if_a_test_ran() {
        let mut none = end_to_end("life", &[]);
        none.passed = 0;
        let table = [
            (true, end_to_end("life", &[]), true),
            (true, none, false),
            (false, end_to_end("life", &[]), false),
            (false, end_to_end("life", &[("f", "")]), false),
        ];
        for (succeeded, binary, expected) in table {
            let run = TestRun { succeeded, binaries: vec![binary] };
            assert_eq!(rerun_passed(&run), expected, "{run:?}");
        }
    }
}
