//! Runs the end-to-end tests: each in a process of its own, a few at a time.
//!
//! So the tests of all binaries share one limit of clusters at a time. Each test has its own duration and output, and a
//! test that aborts ends no other.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::executable::TestExecutable;
use crate::transcript::{Transcript, run_command};

/// Variable with the folder in which the lab collects the evidence of a failed test's cluster.
const EVIDENCE_VARIABLE: &str = "LANDFALL_EVIDENCE";

/// Variables that select scenes (`e2e::scenes`).
const SCENE_VARIABLES: [&str; 3] = ["LANDFALL_SCENE", "LANDFALL_REPEAT", "LANDFALL_SHUFFLE"];

/// One end-to-end test.
#[derive(Clone, Debug)]
pub struct ClusterTest<'a> {
    pub executable: &'a TestExecutable,
    pub name: String,
}

/// Result of one end-to-end test.
#[derive(Clone, Debug)]
pub struct FinishedTest<'a> {
    pub test: ClusterTest<'a>,
    /// Whether its process exited with status 0.
    pub succeeded: bool,
    /// The header of its executable, and its output.
    pub output: String,
    pub took: Duration,
}

impl<'a> ClusterTest<'a> {
    /// The tests of an executable, in its order.
    ///
    /// # Errors
    /// If the executable cannot list them.
    pub fn list(executable: &'a TestExecutable) -> io::Result<Vec<Self>> {
        let mut command = executable.command();
        let output = command.args(["--list", "--format", "terse"]).output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("{} lists no tests", executable.path.display())));
        }
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = lines.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(|name| Self { executable, name: name.to_owned() }).collect())
    }

    /// The command that runs it, or only one of its scenes. Its cluster's evidence goes to `evidence`.
    fn command(&self, scene: Option<&str>, evidence: &Path) -> Command {
        let mut command = self.executable.command();
        // With one thread, libtest would print the name of the test on the first line of its output.
        command.args(["--exact", &self.name, "--nocapture", "--test-threads", "2"]).env(EVIDENCE_VARIABLE, evidence);
        for variable in SCENE_VARIABLES {
            command.env_remove(variable);
        }
        if let Some(scene) = scene {
            command.env(SCENE_VARIABLES[0], scene);
        }
        command
    }

    /// Runs it, or only one of its scenes, and adds its output to the transcript when it has ended.
    pub fn run(
        self,
        scene: Option<&str>,
        evidence: &Path,
        transcript: &Mutex<&mut Transcript>,
    ) -> io::Result<FinishedTest<'a>> {
        let (start, mut output) = (Instant::now(), self.executable.header().into_bytes());
        let succeeded = run_command(self.command(scene, evidence), |line| {
            output.extend_from_slice(line);
            Ok(())
        })?;
        lock(transcript).add(&output)?;
        let output = String::from_utf8_lossy(&output).into_owned();
        Ok(FinishedTest { test: self, succeeded, output, took: start.elapsed() })
    }
}

/// Runs tests in their order, at most `limit` at a time.
pub fn run_all<'a>(
    tests: Vec<ClusterTest<'a>>,
    limit: usize,
    evidence: &Path,
    transcript: &mut Transcript,
) -> io::Result<Vec<FinishedTest<'a>>> {
    let (waiting, transcript) = (Mutex::new(VecDeque::from(tests)), Mutex::new(transcript));
    let work = || -> io::Result<Vec<FinishedTest<'a>>> {
        let mut finished = Vec::new();
        loop {
            let next = lock(&waiting).pop_front();
            let Some(test) = next else { return Ok(finished) };
            finished.push(test.run(None, evidence, &transcript)?);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..limit).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| worker.join().expect("invariant: a worker does not panic"));
        Ok(results.collect::<io::Result<Vec<_>>>()?.concat())
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
