//! The seeds of a run: fresh in each run, printed, and repeatable.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::OnceLock;

/// The number in an environment variable.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// The first fresh seed of this run: `LANDFALL_SEED`, or a random number. Printed once per run.
pub fn base_seed() -> u64 {
    static BASE: OnceLock<u64> = OnceLock::new();
    *BASE.get_or_init(|| {
        let base = number("LANDFALL_SEED").unwrap_or_else(|| {
            // Above the fixed seeds, and short enough to be copied by hand.
            1_000_000 + RandomState::new().hash_one(()) % 1_000_000_000_000
        });
        // This bypasses the test harness, which hides the output of tests that pass.
        let _ = writeln!(std::io::stderr(), "base seed {base}: LANDFALL_SEED={base} repeats this run");
        base
    })
}

/// The name of the running test. Call it on the thread of the test.
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// The command that replays a failure of the test `name` in the test target `target`.
pub fn replay_command(variables: &str, target: &str, name: &str) -> String {
    // With a single test thread, the harness runs the test on the main thread, and the name of the test is unknown.
    let filter = if name == "main" { String::new() } else { format!(" --exact {name}") };
    format!("{variables} cargo test -p speaker --test {target} -- --nocapture{filter}")
}
