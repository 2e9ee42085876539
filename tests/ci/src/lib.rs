//! Runs every check of this repository, and decides whether the run passes. `tests/run.sh` builds and starts it.
//!
//! | file | content |
//! |---|---|
//! | `clusters` | the end-to-end tests, each in a process of its own |
//! | `durations` | the durations of tests, and the slowest ones; pure |
//! | `executable` | messages of `cargo test --no-run` → the test executables; pure |
//! | `libtest` | output of test executables → passed, failed and skipped tests of each; pure |
//! | `verdict` | which failed tests run once more, and the counts of the whole run; pure |
//! | `summary` | the last lines of the run; pure |
//! | `stage` | the list of stages, and their commands |
//! | `transcript` | the output of a stage, and the commands that write it |
//! | `evidence` | the folder for the logs of one run |
//! | `run` | the run from the first stage to the exit status |
//!
//! This crate has no dependencies, because it must build in seconds on a machine that has nothing but Rust and a
//! linker. `docs/dev/testing.md` explains the rules.

mod clusters;
mod durations;
mod evidence;
pub mod executable;
pub mod libtest;
pub mod run;
mod stage;
mod summary;
mod transcript;
mod verdict;
