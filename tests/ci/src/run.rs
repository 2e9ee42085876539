//! The run: every stage in order, then the verdict.
//!
//! A failed stage does not stop the run: the later stages report their failures as well. Only the end-to-end tests need
//! another stage, the set-up.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::evidence::Evidence;
use crate::libtest;
use crate::stage::{Finished, SET_UP, STAGES, Stage, StageKind, print, rerun_command, run_command};
use crate::summary::{self, StageResult, StageSummary};
use crate::verdict::{self, Counts, Decision, Rerun, RerunTarget, TestRun};

/// Folder of the evidence of the end-to-end tests' first run.
const FIRST: &str = "first";

/// Runs all stages in the repository at `root`. Returns whether the run passes.
pub fn run(root: &Path) -> io::Result<bool> {
    let start = Instant::now();
    let evidence = Evidence::create(root)?;
    let mut stages: Vec<StageSummary> = Vec::new();
    for stage in STAGES {
        print(&format!("\n=== {}\n", stage.title))?;
        let start = Instant::now();
        let is_set_up = stages.iter().all(|done| done.title != SET_UP.title || done.result == StageResult::Passed);
        let (result, counts) = if stage.kind == StageKind::EndToEndTests && !is_set_up {
            (StageResult::NotRun, Counts::default())
        } else {
            run_stage(&stage, root, &evidence)?
        };
        let took = start.elapsed();
        print(&closing_line(&stage, result, took))?;
        stages.push(StageSummary { title: stage.title, result, took, counts });
    }
    print(&summary::render(&stages, start.elapsed(), &evidence.relative("")))?;
    Ok(summary::passes(&stages))
}

fn closing_line(stage: &Stage, result: StageResult, took: Duration) -> String {
    let (title, seconds) = (stage.title, took.as_secs());
    match result {
        StageResult::Passed | StageResult::Flaky => format!("--- {title}: {seconds} s\n"),
        StageResult::Failed => format!("\n!!! {title} failed after {seconds} s\n"),
        StageResult::NotRun => format!("!!! {title}: not run, because the {} failed\n", SET_UP.title),
    }
}

fn run_stage(stage: &Stage, root: &Path, evidence: &Evidence) -> io::Result<(StageResult, Counts)> {
    let log = evidence.absolute(&format!("{}.log", stage.log));
    let finished = run_command(stage.command(root, &evidence.absolute(FIRST)), &log)?;
    if stage.kind == StageKind::Command {
        let result = if finished.succeeded { StageResult::Passed } else { StageResult::Failed };
        return Ok((result, Counts::default()));
    }
    let first = test_run(&finished);
    let may_rerun = stage.kind == StageKind::EndToEndTests;
    if may_rerun {
        write_test_logs(&first, evidence)?;
    }
    let reruns = match verdict::decide(&first, may_rerun) {
        Decision::Pass => return Ok((StageResult::Passed, verdict::count(&first, &[]))),
        Decision::Fail(reason) => {
            print(&format!("\n{reason}\n"))?;
            return Ok((StageResult::Failed, verdict::count(&first, &[])));
        }
        Decision::Rerun(targets) => rerun_all(targets, root, evidence)?,
    };
    let all_passed = reruns.iter().all(|rerun| rerun.passed);
    let result = if all_passed { StageResult::Flaky } else { StageResult::Failed };
    Ok((result, verdict::count(&first, &reruns)))
}

fn test_run(finished: &Finished) -> TestRun {
    TestRun { succeeded: finished.succeeded, binaries: libtest::parse(&finished.output) }
}

/// Runs each target alone, and prints a line for each that passes.
fn rerun_all(targets: Vec<RerunTarget>, root: &Path, evidence: &Evidence) -> io::Result<Vec<Rerun>> {
    let mut reruns = Vec::new();
    for (number, target) in (1..).zip(targets) {
        print(&format!("\n=== once more, alone: {target}\n"))?;
        let folder = format!("second-{number}");
        let path = evidence.create_folder(&folder)?;
        let finished = run_command(rerun_command(&target, root, &path), &path.join("output.log"))?;
        let passed = verdict::rerun_passed(&test_run(&finished));
        let (first, second) = (evidence.relative(&test_log(&target.binary, &target.test)), evidence.relative(&folder));
        let outcome = if passed { "FLAKY" } else { "FAILED twice" };
        print(&format!("{outcome} {target}: first run's evidence: {first}; second run's: {second}\n"))?;
        reruns.push(Rerun { target, passed });
    }
    Ok(reruns)
}

/// Writes the output of each failed test beside the evidence of its cluster.
fn write_test_logs(run: &TestRun, evidence: &Evidence) -> io::Result<()> {
    for binary in &run.binaries {
        for (test, output) in &binary.failed {
            evidence.create_folder(FIRST)?;
            fs::write(evidence.absolute(&test_log(&binary.target, test)), output)?;
        }
    }
    Ok(())
}

/// Log of a failed test, below the folder of the run.
fn test_log(binary: &str, test: &str) -> String {
    format!("{FIRST}/{binary}.{}.log", test.replace("::", "."))
}
