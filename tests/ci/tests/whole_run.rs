//! Whole runs of `ci` in a folder whose `cargo` and `tests/setup.sh` are scripts with prepared results.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stands for cargo and for each test executable. It takes its output and exit status from the files beside it:
/// `first-TEST` and `second-TEST` of an end-to-end test, or `second-SCENE` of one of its scenes.
const FAKE_PROGRAM: &str = r#"#!/bin/bash
fake=$(dirname "$0")
test=$(sed -n 's/.*--exact \([^ ]*\).*/\1/p' <<<"$*")
case "$(basename "$0") $*" in
    "cargo fmt"*) part=format ;;
    "cargo clippy"*) part=lints ;;
    cargo*--no-run*) part=build ;;
    cargo*--doc*) part=examples ;;
    crds-0f*) part=unit ;;
    *--list*) part=list ;;
    *) part=first-$test ;;
esac
[ $part = list ] || echo "$(basename "$0") $* LANDFALL_SCENE=$LANDFALL_SCENE" >>"$fake/calls"
[[ $LANDFALL_EVIDENCE = */second-* ]] && part=second-${LANDFALL_SCENE:-$test}
[ -z "$LANDFALL_EVIDENCE" ] || mkdir -p "$LANDFALL_EVIDENCE/e2e-$test"
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
    /// The commands that ran.
    calls: Vec<String>,
}

impl FakeRepository {
    /// A repository in which everything passes: two unit tests, the end-to-end tests `moves` and `stays`, and every
    /// second run.
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&root);
        for folder in ["bin", "crds", "tests/e2e"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let repository = Self { root };
        for program in ["cargo", "crds-0f", "life-0f"] {
            repository.write_script(&format!("bin/{program}"), FAKE_PROGRAM);
        }
        repository.write_script("tests/setup.sh", "#!/bin/bash\n");
        repository.prepare_executables(&[("crds", "lib", "crds"), ("tests/e2e", "test", "life")]);
        repository.prepare("unit", 0, &test_output(2, &[]));
        repository.prepare_tests(&["moves", "stays"]);
        repository
    }

    /// Sets the end-to-end tests, which all pass.
    fn prepare_tests(&self, tests: &[&str]) {
        self.prepare("list", 0, &tests.iter().map(|test| format!("{test}: test\n")).collect::<String>());
        for run in ["first", "second"] {
            tests.iter().for_each(|test| self.prepare(&format!("{run}-{test}"), 0, &test_output(1, &[])));
        }
    }

    /// Sets the executables that cargo builds: folder of the package, kind and name of the target.
    fn prepare_executables(&self, executables: &[(&str, &str, &str)]) {
        let root = self.root.display();
        let message = |(folder, kind, name): &(&str, &str, &str)| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"{root}/{folder}/Cargo.toml\",\
                 \"target\":{{\"kind\":[\"{kind}\"],\"name\":\"{name}\"}},\"profile\":{{\"test\":true}},\
                 \"executable\":\"{root}/bin/{name}-0f\"}}\n"
            )
        };
        self.prepare("build", 0, &executables.iter().map(message).collect::<String>());
    }

    fn write_script(&self, path: &str, text: &str) {
        fs::write(self.root.join(path), text).expect("a script");
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// Sets output and exit status of one part: `format`, `build`, `lints`, `unit`, `examples`, `list`, `first-TEST`,
    /// `second-TEST` or `second-SCENE`.
    fn prepare(&self, part: &str, status: u8, output: &str) {
        fs::write(self.root.join(format!("bin/{part}.out")), output).expect("an output");
        fs::write(self.root.join(format!("bin/{part}.status")), status.to_string()).expect("a status");
    }

    fn run(&self) -> RunResult {
        let path = format!("{}:{}", self.root.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ci"));
        let command = command.current_dir(&self.root).env("PATH", path).env_remove("LANDFALL_TEST_CLUSTERS");
        let output = command.output().expect("ci runs");
        let calls = fs::read_to_string(self.root.join("bin/calls")).expect("calls");
        let calls = calls.lines().map(ToOwned::to_owned).collect();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        RunResult { passed: output.status.success(), output: text, calls }
    }
}

impl RunResult {
    fn last_line(&self) -> &str {
        self.output.lines().last().unwrap_or_default()
    }

    /// The commands that ran a test or scene once more: those after the first run, which runs `first` tests.
    fn reruns(&self, first: usize) -> Vec<&str> {
        self.calls.iter().map(String::as_str).filter(|call| call.contains("--exact ")).skip(first).collect()
    }

    fn flaky_lines(&self) -> Vec<&str> {
        self.output.lines().filter(|line| line.starts_with("FLAKY ") && line.contains(": first run's")).collect()
    }
}

/// Output of a test executable. Failed tests have a name and an output.
fn test_output(passed: usize, failed: &[(&str, &str)]) -> String {
    let mut text = "\n".to_owned();
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
    repository.prepare("first-moves", 0, &format!("scene a ... ok (2.5 s)\n{}", test_output(1, &[])));
    let mut run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    // The end-to-end tests run at the same time.
    run.calls[5..].sort_unstable();
    let expected = [
        "cargo fmt --all --check LANDFALL_SCENE=",
        "cargo test --workspace --locked --no-run --message-format json-render-diagnostics LANDFALL_SCENE=",
        "cargo clippy --workspace --all-targets --locked -- -D warnings LANDFALL_SCENE=",
        "crds-0f  LANDFALL_SCENE=",
        "cargo test --workspace --locked --doc --no-fail-fast LANDFALL_SCENE=",
        "life-0f --exact moves --nocapture --test-threads 2 LANDFALL_SCENE=",
        "life-0f --exact stays --nocapture --test-threads 2 LANDFALL_SCENE=",
    ];
    assert_eq!(run.calls, expected);
    assert!(!run.output.contains("compiler-artifact"), "{}", run.output);
    assert!(run.output.contains("\n            2.5 s  life::moves/a\n"), "{}", run.output);
    let durations = fs::read_to_string(repository.root.join("target/evidence/run-1/durations.json"));
    assert!(durations.is_ok_and(|text| text.contains("{\"name\": \"life::moves/a\", \"seconds\": 2.5}")));
    assert!(run.output.contains("\nevidence: target/evidence/run-1\n"), "{}", run.output);
    assert!(repository.run().output.contains("\nevidence: target/evidence/run-2\n"));
}

#[test]
fn a_test_that_passes_alone_is_flaky() {
    let repository = FakeRepository::new("flaky");
    repository.prepare("first-moves", 101, &test_output(0, &[("moves", "Error: late")]));
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    assert_eq!(run.reruns(2), ["life-0f --exact moves --nocapture --test-threads 2 LANDFALL_SCENE="]);
    let evidence = "target/evidence/run-1";
    let line = format!(
        "FLAKY life::moves: first run's evidence: {evidence}/first/life.moves.log; second run's: {evidence}/second-1"
    );
    assert_eq!(run.flaky_lines(), [line]);
    for path in ["end-to-end.log", "first/life.moves.log", "first/e2e-moves", "second-1/output.log"] {
        assert!(repository.root.join(evidence).join(path).exists(), "{path}");
    }
    let log = fs::read_to_string(repository.root.join(evidence).join("first/life.moves.log"));
    assert!(log.is_ok_and(|text| text.contains("Error: late")));
}

#[test]
fn a_test_that_fails_twice_fails_the_run() {
    let repository = FakeRepository::new("twice");
    let failed = test_output(0, &[("moves", "Error: late")]);
    repository.prepare("first-moves", 101, &failed);
    repository.prepare("second-moves", 101, &failed);
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 1 failed, 0 skipped");
    assert_eq!((run.reruns(2).len(), run.flaky_lines()), (1, vec![]));
}

#[test]
fn only_the_failed_scenes_of_a_test_run_again() {
    let repository = FakeRepository::new("scenes");
    let output = "scene a ... FAILED\nscene b ... FAILED\nfailed scenes: a b\nError: 2 of 9 scenes failed\n";
    repository.prepare("first-moves", 101, &(output.to_owned() + &test_output(0, &[("moves", "")])));
    for scene in ["a", "b"] {
        repository.prepare(&format!("second-{scene}"), 0, &test_output(1, &[]));
    }
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    let rerun = |scene: &str| format!("life-0f --exact moves --nocapture --test-threads 2 LANDFALL_SCENE={scene}");
    assert_eq!(run.reruns(2), [rerun("a"), rerun("b")]);
    assert_eq!(run.flaky_lines().len(), 2);
}

#[test]
fn three_failed_tests_fail_the_run_without_a_second_run() {
    let repository = FakeRepository::new("three");
    repository.prepare_tests(&["a", "b", "c", "d"]);
    for test in ["a", "b", "c"] {
        repository.prepare(&format!("first-{test}"), 101, &test_output(0, &[(test, "")]));
    }
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 3 failed, 0 skipped");
    assert_eq!(run.reruns(4), [""; 0]);
}

#[test]
fn a_failed_unit_test_never_runs_again_and_later_stages_run() {
    let repository = FakeRepository::new("unit");
    repository.prepare("unit", 101, &test_output(1, &[("parses", "")]));
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 1 failed, 0 skipped");
    assert_eq!(run.reruns(2), [""; 0]);
    assert!(run.calls.iter().any(|call| call.starts_with("life-0f")), "{:?}", run.calls);
}

#[test]
fn a_failed_command_fails_the_run_after_all_stages() {
    for part in ["format", "lints"] {
        let repository = FakeRepository::new(part);
        repository.prepare(part, 1, "not as it should be\n");
        let run = repository.run();
        assert!(!run.passed, "{part}: {}", run.output);
        assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped", "{part}");
        assert_eq!(run.calls.len(), 7, "{part}: {:?}", run.calls);
    }
}

#[test]
fn end_to_end_tests_do_not_run_after_a_failed_set_up() {
    let repository = FakeRepository::new("setup");
    repository.write_script("tests/setup.sh", "#!/bin/bash\nexit 1\n");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "2 passed, 0 failed, 0 skipped");
    assert!(!run.calls.iter().any(|call| call.starts_with("life-0f")), "{:?}", run.calls);
    assert!(run.output.contains("end-to-end tests on real clusters: not run, because the set-up of the lab failed"));
}

#[test]
fn no_test_runs_after_a_failed_build() {
    let repository = FakeRepository::new("build");
    repository.prepare("build", 101, "error: could not compile `e2e`\n");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "0 passed, 0 failed, 0 skipped");
    assert_eq!(run.calls.len(), 3, "{:?}", run.calls);
    for title in ["unit, property and kernel tests", "end-to-end tests on real clusters"] {
        let line = format!("{title}: not run, because the build of the tests failed");
        assert!(run.output.contains(&line), "{}", run.output);
    }
}

#[test]
fn a_failed_example_in_documentation_fails_the_run() {
    let repository = FakeRepository::new("examples");
    let output = format!("   Doc-tests crds\n{}", test_output(0, &[("src/lib.rs - f (line 1)", "")]));
    repository.prepare("examples", 101, &output);
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 1 failed, 0 skipped");
}

#[test]
fn a_killed_test_fails_the_run_and_ends_no_other() {
    let repository = FakeRepository::new("killed");
    repository.prepare("first-moves", 137, "\nrunning 1 test\n");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!((run.last_line(), run.reruns(2)), ("3 passed, 1 failed, 0 skipped", vec![]));
}

#[test]
fn an_executable_without_a_list_of_tests_fails_the_run() {
    let repository = FakeRepository::new("list");
    repository.prepare("list", 1, "");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "2 passed, 0 failed, 0 skipped");
}
