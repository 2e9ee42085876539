//! Reads the output of test executables: the failed tests of each, and the number of those that passed. Pure.
//!
//! ```text
//!      Running tests/life.rs (target/debug/deps/life-0123)     header, as cargo prints it
//! test a ... ok
//! test b ... FAILED
//! failures:
//! ---- b stdout ----                                           captured output of b
//! failures:
//!     b                                                        list of failed tests
//! test result: FAILED. 1 passed; 1 failed; 0 ignored; ...      the binary ran to its end
//! ```

use std::collections::BTreeMap;

/// Kind of a test binary, as its header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BinaryKind {
    /// Tests inside `src/`.
    Unit,
    /// A target in `tests/`.
    Integration,
    /// Examples in the documentation of a crate.
    Documentation,
}

/// Results of one test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestBinary {
    /// Name of the cargo target: `life`.
    pub target: String,
    pub kind: BinaryKind,
    pub passed: usize,
    pub skipped: usize,
    /// Captured output by name of the failed test.
    pub failed: BTreeMap<String, String>,
    /// Whether the binary printed a result, and the result agrees with the list of failures. A binary that was killed
    /// or that aborted is incomplete.
    pub is_complete: bool,
}

/// Counts in a `test result:` line.
struct ResultLine {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Reads the results of all test binaries, in the order in which they ran.
pub fn parse(output: &str) -> Vec<TestBinary> {
    let mut binaries: Vec<TestBinary> = Vec::new();
    // Lines between `failures:` and the result. Tests print these lines, so a header among them does not count.
    let mut failures: Option<Vec<&str>> = None;
    for line in output.lines() {
        if failures.is_none()
            && let Some((target, kind)) = header(line)
        {
            let (failed, is_complete) = (BTreeMap::new(), false);
            binaries.push(TestBinary { target, kind, passed: 0, skipped: 0, failed, is_complete });
            continue;
        }
        let Some(binary) = binaries.last_mut() else { continue };
        if let Some(result) = result_line(line) {
            binary.finish(&result, &failures.take().unwrap_or_default());
        } else if let Some(lines) = &mut failures {
            lines.push(line);
        } else if line == "failures:" {
            failures = Some(Vec::new());
        } else {
            binary.add_test_line(line);
        }
    }
    binaries
}

impl TestBinary {
    /// Adds `test NAME ... ok` or `test NAME ... FAILED`. Counts of passed tests are preliminary until the result line.
    fn add_test_line(&mut self, line: &str) {
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            return;
        };
        match outcome {
            "ok" => self.passed += 1,
            "FAILED" => drop(self.failed.entry(name.to_owned()).or_default()),
            _ => {}
        }
    }

    fn finish(&mut self, result: &ResultLine, failures: &[&str]) {
        let list = failures.iter().rposition(|line| *line == "failures:").map_or(0, |at| at + 1);
        for name in failures[list..].iter().filter_map(|line| line.strip_prefix("    ")) {
            self.failed.entry(name.to_owned()).or_default();
        }
        let mut section: Option<&str> = None;
        for line in &failures[..list] {
            let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
            if let Some(name) = name.filter(|name| self.failed.contains_key(*name)) {
                section = Some(name);
            } else if let Some(output) = section.and_then(|name| self.failed.get_mut(name))
                && *line != "failures:"
            {
                output.push_str(line);
                output.push('\n');
            }
        }
        (self.passed, self.skipped) = (result.passed, result.skipped);
        self.is_complete = result.failed == self.failed.len();
    }
}

/// Target and kind in a header line of cargo.
fn header(line: &str) -> Option<(String, BinaryKind)> {
    if let Some(package) = line.strip_prefix("   Doc-tests ") {
        return Some((package.to_owned(), BinaryKind::Documentation));
    }
    let (source, executable) = line.strip_prefix("     Running ")?.strip_suffix(')')?.split_once(" (")?;
    let (target, _hash) = executable.rsplit('/').next()?.rsplit_once('-')?;
    let kind = if source.starts_with("unittests ") { BinaryKind::Unit } else { BinaryKind::Integration };
    Some((target.to_owned(), kind))
}

fn result_line(line: &str) -> Option<ResultLine> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |noun: &str| counts.split("; ").find_map(|part| part.strip_suffix(noun)?.trim().parse().ok());
    Some(ResultLine { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "   Compiling lab v0.1.0
    Finished `test` profile
     Running unittests src/lib.rs (target/debug/deps/lab-00ff)

running 2 tests
test state::tests::a ... ok
test state::tests::b ... ignored

test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/allocation/main.rs (target/debug/deps/allocation-00ff)

running 3 tests
test pools::c ... ok
test pools::d ... FAILED
test turns::e ... noise of a childFAILED

failures:

---- pools::d stdout ----
     Running tests/forged.rs (target/debug/deps/forged-1)
Error: late

---- turns::e stdout ----
failed scenes: one two

failures:
    pools::d
    turns::e

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s

error: test failed, to rerun pass `-p e2e --test allocation`
     Running tests/life.rs (target/debug/deps/life-00ff)

running 2 tests
test f ... ok
test g ... FAILED
error: test failed, to rerun pass `-p e2e --test life`

Caused by:
  process didn't exit successfully: `life-00ff` (signal: 9, SIGKILL: kill)
   Doc-tests lab

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn each_binary_reports_its_own_tests() {
        let failed = |tests: &[(&str, &str)]| {
            tests.iter().map(|(name, output)| ((*name).to_owned(), (*output).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let binary = |target: &str, kind, [passed, skipped]: [usize; 2], failed, is_complete| TestBinary {
            target: target.to_owned(),
            kind,
            passed,
            skipped,
            failed,
            is_complete,
        };
        let d = "     Running tests/forged.rs (target/debug/deps/forged-1)\nError: late\n\n";
        let expected = [
            binary("lab", BinaryKind::Unit, [1, 1], failed(&[]), true),
            binary(
                "allocation",
                BinaryKind::Integration,
                [1, 0],
                failed(&[("pools::d", d), ("turns::e", "failed scenes: one two\n\n")]),
                true,
            ),
            binary("life", BinaryKind::Integration, [1, 0], failed(&[("g", "")]), false),
            binary("lab", BinaryKind::Documentation, [0, 0], failed(&[]), true),
        ];
        assert_eq!(parse(OUTPUT), expected);
    }

    #[test]
    fn a_result_that_contradicts_the_list_is_incomplete() {
        let one_missing = OUTPUT.replace("    turns::e\n", "").replace("1 passed; 2 failed", "1 passed; 3 failed");
        assert!(!parse(&one_missing)[1].is_complete);
    }
}
