//! Whole runs of `ci` in a folder whose `cargo` and `tests/setup.sh` are scripts with prepared results.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Takes its output and exit status from the files beside it. The second run of a test has a file per binary, or per scene.
const FAKE_CARGO: &str = r#"#!/bin/bash
fake=$(dirname "$0")
echo "cargo $* LANDFALL_SCENE=$LANDFALL_SCENE" >>"$fake/calls"
case "$*" in
    fmt*) part=format ;;
    clippy*) part=lints ;;
    *--workspace*) part=unit ;;
    *"--test "*) part=second ;;
    *) part=first ;;
esac
if [ $part = first ] && [ -n "$LANDFALL_EVIDENCE" ]; then mkdir -p "$LANDFALL_EVIDENCE/e2e-life"; fi
[ $part = second ] && [ -n "$LANDFALL_SCENE" ] && part=second-$LANDFALL_SCENE
cat "$fake/$part.out" 2>/dev/null
exit "$(cat "$fake/$part.status" 2>/dev/null || echo 0)"
"#;

/// A repository with prepared results.
struct FakeRepository {
    root: PathBuf,
}

/// Results of one run.
struct RunResult {
    passed: bool,
    output: String,
    /// The commands that ran, without `cargo`.
    calls: Vec<String>,
}

impl FakeRepository {
    /// A repository in which everything passes: two unit tests, two end-to-end tests, and every second run.
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&root);
        for folder in ["bin", "tests"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let repository = Self { root };
        repository.write_script("bin/cargo", FAKE_CARGO);
        repository.write_script("tests/setup.sh", "#!/bin/bash\n");
        let unit = [binary_output("unittests src/lib.rs", "crds", 2, &[])];
        repository.prepare("unit", 0, &unit.concat());
        repository.prepare("first", 0, &binary_output("tests/life.rs", "life", 2, &[]));
        repository.prepare("second", 0, &binary_output("tests/life.rs", "life", 1, &[]));
        repository
    }

    fn write_script(&self, path: &str, text: &str) {
        fs::write(self.root.join(path), text).expect("a script");
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// Sets output and exit status of one part: `format`, `lints`, `unit`, `first`, `second` or `second-SCENE`.
    fn prepare(&self, part: &str, status: u8, output: &str) {
        fs::write(self.root.join(format!("bin/{part}.out")), output).expect("an output");
        fs::write(self.root.join(format!("bin/{part}.status")), status.to_string()).expect("a status");
    }

    fn run(&self) -> RunResult {
        let path = format!("{}:{}", self.root.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ci"));
        let command = command.current_dir(&self.root).env("PATH", path).env_remove("LANDFALL_TEST_CLUSTERS");
        let output = command.output().expect("ci runs");
        let calls = fs::read_to_string(self.root.join("bin/calls")).expect("calls of cargo");
        let calls = calls.lines().map(|line| line.trim_start_matches("cargo ").to_owned()).collect();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        RunResult { passed: output.status.success(), output: text, calls }
    }
}

impl RunResult {
    fn last_line(&self) -> &str {
        self.output.lines().last().unwrap_or_default()
    }

    /// The commands that ran a test or scene once more.
    fn reruns(&self) -> Vec<&str> {
        self.calls.iter().filter_map(|call| call.split_once("--test ")).map(|(_, rest)| rest).collect()
    }

    fn flaky_lines(&self) -> Vec<&str> {
        self.output.lines().filter(|line| line.starts_with("FLAKY ") && line.contains(": first run's")).collect()
    }
}

/// Output of one test binary as `cargo test` prints it. Failed tests have a name and an output.
fn binary_output(source: &str, target: &str, passed: usize, failed: &[(&str, &str)]) -> String {
    let mut text = format!("     Running {source} (target/debug/deps/{target}-0f)\n\n");
    for number in 0..passed {
        text += &format!("test passes_{number} ... ok\n");
    }
    for (name, _) in failed {
        text += &format!("test {name} ... FAILED\n");
    }
    if !failed.is_empty() {
        text += "\nfailures:\n\n";
        for (name, output) in failed {
            text += &format!("---- {name} stdout ----\n{output}\n\n");
        }
        text += "failures:\n";
        for (name, _) in failed {
            text += &format!("    {name}\n");
        }
    }
    let outcome = if failed.is_empty() { "ok" } else { "FAILED" };
    text + &format!("\ntest result: {outcome}. {passed} passed; {} failed; 0 ignored; 0 measured\n", failed.len())
}

#[test]
fn everything_passes_and_each_stage_runs_once() {
    let repository = FakeRepository::new("passes");
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    let first_words: Vec<_> = run.calls.iter().map(|call| call.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(first_words, ["fmt", "clippy", "test", "test"]);
    assert!(run.output.contains("\nevidence: target/evidence/run-1\n"), "{}", run.output);
    assert!(repository.run().output.contains("\nevidence: target/evidence/run-2\n"));
}

#[test]
fn a_test_that_passes_alone_is_flaky() {
    let repository = FakeRepository::new("flaky");
    repository.prepare("first", 101, &binary_output("tests/life.rs", "life", 1, &[("moves", "Error: late")]));
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    assert_eq!(run.reruns(), ["life -- --exact moves --test-threads 1 LANDFALL_SCENE="]);
    let evidence = "target/evidence/run-1";
    let line = format!(
        "FLAKY life::moves: first run's evidence: {evidence}/first/life.moves.log; second run's: {evidence}/second-1"
    );
    assert_eq!(run.flaky_lines(), [line]);
    for path in ["end-to-end.log", "first/life.moves.log", "first/e2e-life", "second-1/output.log"] {
        assert!(repository.root.join(evidence).join(path).exists(), "{path}");
    }
}

#[test]
fn a_test_that_fails_twice_fails_the_run() {
    let repository = FakeRepository::new("twice");
    let failed = binary_output("tests/life.rs", "life", 1, &[("moves", "Error: late")]);
    repository.prepare("first", 101, &failed);
    repository.prepare("second", 101, &failed);
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 1 failed, 0 skipped");
    assert_eq!((run.reruns().len(), run.flaky_lines()), (1, vec![]));
}

#[test]
fn only_the_failed_scenes_of_a_test_run_again() {
    let repository = FakeRepository::new("scenes");
    let output = "scene a ... FAILED\nscene b ... FAILED\nfailed scenes: a b\nError: 2 of 9 scenes failed";
    let failed = binary_output("tests/allocation/main.rs", "allocation", 1, &[("pools::edits", output)]);
    repository.prepare("first", 101, &failed);
    for scene in ["a", "b"] {
        let passed = binary_output("tests/allocation/main.rs", "allocation", 1, &[]);
        repository.prepare(&format!("second-{scene}"), 0, &passed);
    }
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    let rerun = |scene: &str| format!("allocation -- --exact pools::edits --test-threads 1 LANDFALL_SCENE={scene}");
    assert_eq!(run.reruns(), [rerun("a"), rerun("b")]);
    assert_eq!(run.flaky_lines().len(), 2);
}

#[test]
fn three_failed_tests_fail_the_run_without_a_second_run() {
    let repository = FakeRepository::new("three");
    let failed = [("a", ""), ("b", ""), ("c", "")];
    repository.prepare("first", 101, &binary_output("tests/life.rs", "life", 1, &failed));
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 3 failed, 0 skipped");
    assert_eq!(run.reruns(), [""; 0]);
}

#[test]
fn a_failed_unit_test_never_runs_again_and_later_stages_run() {
    let repository = FakeRepository::new("unit");
    repository.prepare("unit", 101, &binary_output("unittests src/lib.rs", "crds", 1, &[("parses", "")]));
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 1 failed, 0 skipped");
    assert_eq!(run.reruns(), [""; 0]);
    assert!(run.calls.iter().any(|call| call.contains("-p e2e")), "{:?}", run.calls);
}

#[test]
fn a_failed_command_fails_the_run_after_all_stages() {
    for part in ["format", "lints"] {
        let repository = FakeRepository::new(part);
        repository.prepare(part, 1, "not as it should be\n");
        let run = repository.run();
        assert!(!run.passed, "{part}: {}", run.output);
        assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped", "{part}");
        assert_eq!(run.calls.len(), 4, "{part}: {:?}", run.calls);
    }
}

#[test]
fn end_to_end_tests_do_not_run_after_a_failed_set_up() {
    let repository = FakeRepository::new("setup");
    repository.write_script("tests/setup.sh", "#!/bin/bash\nexit 1\n");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "2 passed, 0 failed, 0 skipped");
    assert!(!run.calls.iter().any(|call| call.contains("-p e2e")), "{:?}", run.calls);
    assert!(run.output.contains("end-to-end tests on real clusters: not run, because the set-up of the lab failed"));
}

#[test]
fn a_build_error_of_the_end_to_end_tests_fails_the_run() {
    let repository = FakeRepository::new("build");
    repository.prepare("first", 101, "error: could not compile `e2e`\n");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "2 passed, 0 failed, 0 skipped");
    assert_eq!(run.reruns(), [""; 0]);
}
