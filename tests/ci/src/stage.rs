//! The stages of a run, and one command with its log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a stage checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    /// Passes if its command exits with status 0.
    Command,
    /// `cargo test` without clusters: a failed test never runs again.
    Tests,
    /// `cargo test` with clusters: the set-up must have succeeded, and failed tests may run again.
    EndToEndTests,
}

/// One part of a run. All parts run, also after a failure.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    pub title: &'static str,
    /// Name of its log, without `.log`.
    pub log: &'static str,
    pub kind: StageKind,
    pub command: &'static [&'static str],
}

/// The stage that makes the clusters' programs and Landfall's image.
pub const SET_UP: Stage =
    Stage { title: "set-up of the lab", log: "setup", kind: StageKind::Command, command: &["tests/setup.sh"] };

/// All stages, in order.
pub const STAGES: [Stage; 5] = [
    Stage { title: "format", log: "format", kind: StageKind::Command, command: &["cargo", "fmt", "--all", "--check"] },
    SET_UP,
    Stage {
        title: "lints",
        log: "lints",
        kind: StageKind::Command,
        command: &["cargo", "clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    },
    Stage {
        title: "unit, property and kernel tests",
        log: "unit",
        kind: StageKind::Tests,
        command: &[
            "cargo",
            "test",
            "--workspace",
            "--locked",
            "--exclude",
            "lab",
            "--exclude",
            "e2e",
            "--no-fail-fast",
        ],
    },
    Stage {
        title: "end-to-end tests on real clusters",
        log: "end-to-end",
        kind: StageKind::EndToEndTests,
        command: &END_TO_END,
    },
];

/// Compiles and runs the end-to-end tests.
const END_TO_END: [&str; 8] = ["cargo", "test", "--locked", "-p", "lab", "-p", "e2e", "--no-fail-fast"];

/// Variable with the folder in which the lab collects the evidence of a failed test's cluster.
const EVIDENCE_VARIABLE: &str = "LANDFALL_EVIDENCE";

/// Variable with the only scene to play (`e2e::Scenes`).
const SCENE_VARIABLE: &str = "LANDFALL_SCENE";

/// Variable with the number of tests with clusters that run at the same time.
const CLUSTERS_VARIABLE: &str = "LANDFALL_TEST_CLUSTERS";

/// The result of one command.
#[derive(Clone, Debug)]
pub struct Finished {
    pub succeeded: bool,
    /// Its standard output and standard error, in order.
    pub output: String,
}

impl Stage {
    /// The command of the stage. End-to-end tests leave their clusters' evidence in `evidence`.
    pub fn command(&self, root: &Path, evidence: &Path) -> Command {
        let mut command = Command::new(self.command[0]);
        command.args(&self.command[1..]).current_dir(root);
        if self.kind == StageKind::EndToEndTests {
            let clusters = std::env::var(CLUSTERS_VARIABLE).unwrap_or_else(|_| "2".to_owned());
            command.args(["--", "--test-threads", &clusters]);
            command.env(EVIDENCE_VARIABLE, evidence).env_remove(SCENE_VARIABLE);
        }
        command
    }
}

/// The command that runs one end-to-end test, or one scene of it, alone. It selects the packages of the whole stage, so
/// that cargo has nothing to compile.
pub fn rerun_command(target: &crate::verdict::RerunTarget, root: &Path, evidence: &Path) -> Command {
    let mut command = Command::new(END_TO_END[0]);
    command.args(&END_TO_END[1..]).current_dir(root);
    command.args(["--test", &target.binary, "--", "--exact", &target.test, "--test-threads", "1"]);
    command.env(EVIDENCE_VARIABLE, evidence).env_remove(SCENE_VARIABLE);
    if let Some(scene) = &target.scene {
        command.env(SCENE_VARIABLE, scene);
    }
    command
}

/// Runs a command to its end. Each line of its output goes to standard output and to the log.
pub fn run_command(mut command: Command, log: &Path) -> io::Result<Finished> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).env("CARGO_TERM_COLOR", "never");
    let mut log = File::create(log)?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let output = format!("{}: {error}\n", command.get_program().display());
            print(&output)?;
            log.write_all(output.as_bytes())?;
            return Ok(Finished { succeeded: false, output });
        }
    };
    // It holds the writing end of the pipe, which would never end otherwise.
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut output = Vec::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        io::stdout().lock().write_all(&line)?;
        log.write_all(&line)?;
        output.append(&mut line);
    }
    let succeeded = child.wait()?.success();
    Ok(Finished { succeeded, output: String::from_utf8_lossy(&output).into_owned() })
}

/// Writes to standard output.
pub fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}
