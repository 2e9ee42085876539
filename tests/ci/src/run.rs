//! The run: every stage in order, then the verdict.
//!
//! A failed stage does not stop the run: the later stages report their failures as well, unless they need its result.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clusters::{self, ClusterTest, FinishedTest};
use crate::durations::{self, TestDuration};
use crate::evidence::Evidence;
use crate::executable::{TestExecutable, executables};
use crate::libtest::{self, TestBinary};
use crate::stage::{STAGES, Stage, StageKind, clusters_at_once};
use crate::summary::{self, StageResult, StageSummary};
use crate::transcript::{Transcript, print};
use crate::verdict::{self, Counts, Decision, Rerun, RerunTarget, TestRun};

/// Folder of the evidence of the end-to-end tests' first run.
const FIRST: &str = "first";

/// A run of all stages.
struct Run {
    root: PathBuf,
    evidence: Evidence,
    /// Filled by the build.
    executables: Vec<TestExecutable>,
    durations: Vec<TestDuration>,
    /// The running commands of stages in the background, by title. Each returns whether it succeeds, and its output.
    background: BTreeMap<&'static str, JoinHandle<io::Result<(bool, String)>>>,
}

/// Runs all stages in the repository at `root`. Returns whether the run passes.
pub fn run(root: &Path) -> io::Result<bool> {
    let start = Instant::now();
    let evidence = Evidence::create(root)?;
    let (executables, durations) = (Vec::new(), Vec::new());
    let mut run = Run { root: root.to_owned(), evidence, executables, durations, background: BTreeMap::new() };
    for stage in STAGES.iter().filter(|stage| stage.kind == StageKind::Background) {
        run.start_in_background(stage);
    }
    let mut stages: Vec<StageSummary> = Vec::new();
    for stage in STAGES {
        print(&format!("\n=== {}\n", stage.title))?;
        let start = Instant::now();
        let has_passed =
            |title: &str| stages.iter().any(|done| done.title == title && summary::has_passed(done.result));
        let missing = stage.needs.iter().find(|title| !has_passed(title));
        let (result, counts) = match missing {
            Some(_) => (StageResult::NotRun, Counts::default()),
            None => run.run_stage(&stage)?,
        };
        let took = start.elapsed();
        print(&closing_line(&stage, result, took, missing))?;
        stages.push(StageSummary { title: stage.title, result, took, counts });
    }
    fs::write(run.evidence.absolute("durations.json"), durations::json(&run.durations))?;
    print(&format!("\n=== slowest tests\n{}", durations::slowest(&run.durations)))?;
    print(&summary::render(&stages, start.elapsed(), &run.evidence.relative("")))?;
    Ok(summary::passes(&stages))
}

fn closing_line(stage: &Stage, result: StageResult, took: Duration, missing: Option<&&str>) -> String {
    let (title, seconds) = (stage.title, took.as_secs());
    match (result, missing) {
        (StageResult::Passed | StageResult::Flaky, _) => format!("--- {title}: {seconds} s\n"),
        (_, Some(missing)) => format!("!!! {title}: not run, because the {missing} failed\n"),
        (_, None) => format!("\n!!! {title} failed after {seconds} s\n"),
    }
}

impl Run {
    /// Starts the command of a stage.
    fn start_in_background(&mut self, stage: &Stage) {
        let log = self.evidence.absolute(&format!("{}.log", stage.log));
        let command = stage.command(&self.root);
        let run = move || -> io::Result<(bool, String)> {
            let (start, mut transcript) = (Instant::now(), Transcript::create_silent(&log)?);
            let succeeded = command.map_or(Ok(true), |command| transcript.run(command))?;
            transcript.add(format!("ended {} s after the start of the run\n", start.elapsed().as_secs()).as_bytes())?;
            Ok((succeeded, transcript.text()))
        };
        self.background.insert(stage.title, thread::spawn(run));
    }

    /// Waits for the end of a command in the background, and prints its output. Returns whether it succeeds.
    fn finish_background(&mut self, stage: &Stage) -> io::Result<bool> {
        let thread = self.background.remove(stage.title).expect("invariant: the command was started");
        let (succeeded, output) = thread.join().expect("invariant: the thread does not panic")?;
        print(&output)?;
        Ok(succeeded)
    }

    fn run_stage(&mut self, stage: &Stage) -> io::Result<(StageResult, Counts)> {
        if stage.kind == StageKind::Background {
            return Ok((result_of(self.finish_background(stage)?), Counts::default()));
        }
        let mut transcript = Transcript::create(&self.evidence.absolute(&format!("{}.log", stage.log)))?;
        match stage.kind {
            StageKind::Command | StageKind::Background => {
                Ok((result_of(self.run_own_command(stage, &mut transcript)?), Counts::default()))
            }
            StageKind::Build => {
                let result = result_of(self.run_own_command(stage, &mut transcript)?);
                self.executables = executables(&transcript.text());
                Ok((result, Counts::default()))
            }
            StageKind::Tests => {
                let mut succeeded = self.run_without_clusters(&mut transcript)?;
                succeeded &= self.run_own_command(stage, &mut transcript)?;
                let first = TestRun { succeeded, binaries: libtest::parse(&transcript.text()) };
                self.decide(&first, false)
            }
            StageKind::EndToEndTests => {
                let first = self.run_with_clusters(&mut transcript)?;
                self.write_test_logs(&first)?;
                self.decide(&first, true)
            }
        }
    }

    /// Runs the executables without clusters, one after the other. Returns whether all succeed.
    fn run_without_clusters(&mut self, transcript: &mut Transcript) -> io::Result<bool> {
        let mut succeeded = true;
        for executable in self.executables.iter().filter(|executable| !executable.needs_clusters()) {
            let start = Instant::now();
            transcript.add(executable.header().as_bytes())?;
            succeeded &= transcript.run(executable.command())?;
            self.durations.push(TestDuration::new(executable.name(), start.elapsed()));
        }
        Ok(succeeded)
    }

    /// Runs the end-to-end tests, a few at a time.
    fn run_with_clusters(&mut self, transcript: &mut Transcript) -> io::Result<TestRun> {
        let (mut tests, mut succeeded) = (Vec::new(), true);
        for executable in self.executables.iter().filter(|executable| executable.needs_clusters()) {
            match ClusterTest::list(executable) {
                Ok(listed) => tests.extend(listed),
                Err(error) => {
                    transcript.add(format!("{error}\n").as_bytes())?;
                    succeeded = false;
                }
            }
        }
        let finished = clusters::run_all(tests, clusters_at_once(), &self.evidence.absolute(FIRST), transcript)?;
        for FinishedTest { test, output, took, .. } in &finished {
            let name = format!("{}::{}", test.executable.target, test.name);
            self.durations.extend(durations::with_scenes(&name, *took, output));
        }
        succeeded &= finished.iter().all(|test| test.succeeded);
        Ok(TestRun { succeeded, binaries: finished.iter().flat_map(results).collect() })
    }

    /// Runs the command of the stage. Returns whether it succeeds; true for a stage without a command.
    fn run_own_command(&self, stage: &Stage, transcript: &mut Transcript) -> io::Result<bool> {
        stage.command(&self.root).map_or(Ok(true), |command| transcript.run(command))
    }

    /// Decides on the tests of a stage, and runs failed ones again if that is permitted.
    fn decide(&self, first: &TestRun, may_rerun: bool) -> io::Result<(StageResult, Counts)> {
        let reruns = match verdict::decide(first, may_rerun) {
            Decision::Pass => return Ok((StageResult::Passed, verdict::count(first, &[]))),
            Decision::Fail(reason) => {
                print(&format!("\n{reason}\n"))?;
                return Ok((StageResult::Failed, verdict::count(first, &[])));
            }
            Decision::Rerun(targets) => self.rerun_all(targets)?,
        };
        let all_passed = reruns.iter().all(|rerun| rerun.passed);
        let result = if all_passed { StageResult::Flaky } else { StageResult::Failed };
        Ok((result, verdict::count(first, &reruns)))
    }

    /// Runs each target alone, and prints a line for each that passes.
    fn rerun_all(&self, targets: Vec<RerunTarget>) -> io::Result<Vec<Rerun>> {
        let mut reruns = Vec::new();
        for (number, target) in (1..).zip(targets) {
            print(&format!("\n=== once more, alone: {target}\n"))?;
            let folder = format!("second-{number}");
            let path = self.evidence.create_folder(&folder)?;
            let mut transcript = Transcript::create(&path.join("output.log"))?;
            let named = |executable: &&TestExecutable| executable.target == target.binary;
            let executable = self.executables.iter().filter(|executable| executable.needs_clusters()).find(named);
            let executable = executable.ok_or_else(|| io::Error::other(format!("no executable of {target}")))?;
            let test = ClusterTest { executable, name: target.test.clone() };
            let finished = test.run(target.scene.as_deref(), &path, &Mutex::new(&mut transcript))?;
            let second = TestRun { succeeded: finished.succeeded, binaries: results(&finished) };
            let passed = verdict::rerun_passed(&second);
            let first = self.evidence.relative(&test_log(&target.binary, &target.test));
            let (second, outcome) = (self.evidence.relative(&folder), if passed { "FLAKY" } else { "FAILED twice" });
            print(&format!("{outcome} {target}: first run's evidence: {first}; second run's: {second}\n"))?;
            reruns.push(Rerun { target, passed });
        }
        Ok(reruns)
    }

    /// Writes the output of each failed test beside the evidence of its cluster.
    fn write_test_logs(&self, run: &TestRun) -> io::Result<()> {
        for binary in &run.binaries {
            for (test, output) in &binary.failed {
                self.evidence.create_folder(FIRST)?;
                fs::write(self.evidence.absolute(&test_log(&binary.target, test)), output)?;
            }
        }
        Ok(())
    }
}

/// The result of a stage that consists of one command.
fn result_of(succeeded: bool) -> StageResult {
    if succeeded { StageResult::Passed } else { StageResult::Failed }
}

/// The results in the output of an end-to-end test. The output of a failed test is the whole output of its process.
fn results(finished: &FinishedTest<'_>) -> Vec<TestBinary> {
    let mut binaries = libtest::parse(&finished.output);
    for output in binaries.iter_mut().flat_map(|binary| binary.failed.values_mut()) {
        output.clone_from(&finished.output);
    }
    binaries
}

/// Log of a failed test, below the folder of the run.
fn test_log(binary: &str, test: &str) -> String {
    format!("{FIRST}/{binary}.{}.log", test.replace("::", "."))
}
