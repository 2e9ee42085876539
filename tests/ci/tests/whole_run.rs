//! Whole runs of `ci` in a folder whose `cargo` and `tests/setup.sh` are scripts with prepared results.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stands for cargo, the set-up and each test executable. It takes its output and exit status from the files beside it.
/// The second run of a test has a file per binary, or per scene.
const FAKE_PROGRAM: &str = r#"#!/bin/bash
fake=$(dirname "$0")
echo "$(basename "$0") $* LANDFALL_SCENE=$LANDFALL_SCENE" >>"$fake/calls"
case "$(basename "$0") $*" in
    "cargo fmt"*) part=format ;;
    "cargo clippy"*) part=lints ;;
    cargo*--no-run*) part=build ;;
    cargo*--doc*) part=examples ;;
    crds-0f*) part=unit ;;
    *--exact*) part=second ;;
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
    /// The commands that ran.
    calls: Vec<String>,
}

impl FakeRepository {
    /// A repository in which everything passes: two unit tests, two end-to-end tests, and every second run.
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&root);
        for folder in ["bin", "crds", "tests/e2e"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let repository = Self { root };
        for program in ["cargo", "crds-0f", "life-0f", "allocation-0f"] {
            repository.write_script(&format!("bin/{program}"), FAKE_PROGRAM);
        }
        repository.write_script("tests/setup.sh", "#!/bin/bash\n");
        repository.prepare_executables(&[("crds", "lib", "crds"), ("tests/e2e", "test", "life")]);
        repository.prepare("unit", 0, &test_output(2, &[]));
        repository.prepare("first", 0, &test_output(2, &[]));
        repository.prepare("second", 0, &test_output(1, &[]));
        repository
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

    /// Sets output and exit status of one part: `format`, `build`, `lints`, `unit`, `examples`, `first`, `second` or
    /// `second-SCENE`.
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

    /// The commands that ran a test or scene once more.
    fn reruns(&self) -> Vec<&str> {
        self.calls.iter().map(String::as_str).filter(|call| call.contains("--exact ")).collect()
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
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    let expected = [
        "cargo fmt --all --check LANDFALL_SCENE=",
        "cargo test --workspace --locked --no-run --message-format json-render-diagnostics LANDFALL_SCENE=",
        "cargo clippy --workspace --all-targets --locked -- -D warnings LANDFALL_SCENE=",
        "crds-0f  LANDFALL_SCENE=",
        "cargo test --workspace --locked --doc --no-fail-fast LANDFALL_SCENE=",
        "life-0f --test-threads 2 LANDFALL_SCENE=",
    ];
    assert_eq!(run.calls, expected);
    assert!(!run.output.contains("compiler-artifact"), "{}", run.output);
    assert!(run.output.contains("\nevidence: target/evidence/run-1\n"), "{}", run.output);
    assert!(repository.run().output.contains("\nevidence: target/evidence/run-2\n"));
}

#[test]
fn a_test_that_passes_alone_is_flaky() {
    let repository = FakeRepository::new("flaky");
    repository.prepare("first", 101, &test_output(1, &[("moves", "Error: late")]));
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    assert_eq!(run.reruns(), ["life-0f --exact moves --test-threads 1 LANDFALL_SCENE="]);
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
    let failed = test_output(1, &[("moves", "Error: late")]);
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
    repository.prepare_executables(&[("crds", "lib", "crds"), ("tests/e2e", "test", "allocation")]);
    let output = "scene a ... FAILED\nscene b ... FAILED\nfailed scenes: a b\nError: 2 of 9 scenes failed";
    let failed = test_output(1, &[("pools::edits", output)]);
    repository.prepare("first", 101, &failed);
    for scene in ["a", "b"] {
        let passed = test_output(1, &[]);
        repository.prepare(&format!("second-{scene}"), 0, &passed);
    }
    let run = repository.run();
    assert!(run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "4 passed, 0 failed, 0 skipped");
    let rerun = |scene: &str| format!("allocation-0f --exact pools::edits --test-threads 1 LANDFALL_SCENE={scene}");
    assert_eq!(run.reruns(), [rerun("a"), rerun("b")]);
    assert_eq!(run.flaky_lines().len(), 2);
}

#[test]
fn three_failed_tests_fail_the_run_without_a_second_run() {
    let repository = FakeRepository::new("three");
    let failed = [("a", ""), ("b", ""), ("c", "")];
    repository.prepare("first", 101, &test_output(1, &failed));
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 3 failed, 0 skipped");
    assert_eq!(run.reruns(), [""; 0]);
}

#[test]
fn a_failed_unit_test_never_runs_again_and_later_stages_run() {
    let repository = FakeRepository::new("unit");
    repository.prepare("unit", 101, &test_output(1, &[("parses", "")]));
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!(run.last_line(), "3 passed, 1 failed, 0 skipped");
    assert_eq!(run.reruns(), [""; 0]);
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
        assert_eq!(run.calls.len(), 6, "{part}: {:?}", run.calls);
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
fn a_killed_executable_fails_the_run() {
    let repository = FakeRepository::new("killed");
    repository.prepare("first", 137, "\ntest passes_0 ... ok\n");
    let run = repository.run();
    assert!(!run.passed, "{}", run.output);
    assert_eq!((run.last_line(), run.reruns()), ("3 passed, 1 failed, 0 skipped", vec![]));
}
