//! The stages of a run, and their commands.

use std::path::Path;
use std::process::Command;

/// How a stage runs, and when it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    /// Passes if its command exits with status 0.
    Command,
    /// As `Command`, but the command starts with the run, and its output is printed when the turn of the stage comes.
    /// While a build has only one crate left to compile, a second build uses the idle core.
    Background,
    /// As `Command`. The messages of the command name the test executables.
    Build,
    /// Runs the command, and all test executables without clusters. A failed test never runs again.
    Tests,
    /// Runs the test executables with clusters. Failed tests may run again.
    EndToEndTests,
}

/// One part of a run. All parts run, also after a failure, except those that need a failed part.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    pub title: &'static str,
    /// Name of its log, without `.log`.
    pub log: &'static str,
    pub kind: StageKind,
    /// The titles of the stages that must have passed.
    pub needs: &'static [&'static str],
    pub command: &'static [&'static str],
}

/// The stage that compiles all tests.
const BUILD: &str = "build of the tests";

/// The stage that makes the clusters' programs and Landfall's image.
const SET_UP: &str = "set-up of the lab";

/// All stages, in order. Each command of cargo that compiles for debugging selects the whole workspace, with its tests.
/// Features depend on the selection, so another selection would compile most dependencies again.
pub const STAGES: [Stage; 6] = [
    Stage {
        title: "format",
        log: "format",
        kind: StageKind::Command,
        needs: &[],
        command: &["cargo", "fmt", "--all", "--check"],
    },
    Stage {
        title: BUILD,
        log: "build",
        kind: StageKind::Build,
        needs: &[],
        command: &[
            "cargo",
            "test",
            "--workspace",
            "--locked",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ],
    },
    Stage {
        title: "lints",
        log: "lints",
        kind: StageKind::Command,
        needs: &[],
        command: &["cargo", "clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    },
    Stage { title: SET_UP, log: "setup", kind: StageKind::Background, needs: &[], command: &["tests/setup.sh"] },
    Stage {
        title: "unit, property and kernel tests",
        log: "unit",
        kind: StageKind::Tests,
        needs: &[BUILD],
        // The examples in documentation have no executables.
        command: &["cargo", "test", "--workspace", "--locked", "--doc", "--no-fail-fast"],
    },
    Stage {
        title: "end-to-end tests on real clusters",
        log: "end-to-end",
        kind: StageKind::EndToEndTests,
        needs: &[BUILD, SET_UP],
        command: &[],
    },
];

/// Variable with the number of tests with clusters that run at the same time.
const CLUSTERS_VARIABLE: &str = "LANDFALL_TEST_CLUSTERS";

impl Stage {
    /// The command of the stage; `None` for a stage without a command.
    pub fn command(&self, root: &Path) -> Option<Command> {
        let (program, arguments) = self.command.split_first()?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root);
        Some(command)
    }
}

/// The number of tests with clusters that run at the same time.
pub fn clusters_at_once() -> usize {
    std::env::var(CLUSTERS_VARIABLE).ok().and_then(|text| text.parse().ok()).filter(|limit| *limit > 0).unwrap_or(2)
}
