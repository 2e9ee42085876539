//! Runs a test with many seeds: a fixed set for regressions, and fresh ones that explore.
//!
//! Each run has new fresh seeds, from a base seed that it prints. `LANDFALL_SEED=7` repeats the run with base seed 7.
//! `LANDFALL_SEEDS=10000` runs this number of fresh seeds and no fixed ones. `LANDFALL_SEED=7 LANDFALL_SEEDS=1` replays
//! seed 7 and prints its disturbances. A failure prints this command. Seeds run on all processors at once.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use crate::seed::{base_seed, number, replay_command, test_name};

/// Runs a test with `count` seeds. One in ten is fresh. The others are fixed, from 0 up, so that the run of an
/// unrelated change rarely finds a rare defect. `make soak` searches for rare defects.
pub fn seeds(count: u64, test: impl Fn(u64) + Sync) {
    match number("LANDFALL_SEEDS") {
        Some(fresh) => run(0, fresh, test),
        None => run(count - count.div_ceil(10), count.div_ceil(10), test),
    }
}

/// Runs a test with `count` fixed seeds, because fresh ones would meet a defect of [`crate::open_defects`].
pub fn fixed_seeds(count: u64, test: impl Fn(u64) + Sync) {
    if is_replay() { run(0, 1, test) } else { run(count, 0, test) }
}

fn run(fixed: u64, fresh: u64, test: impl Fn(u64) + Sync) {
    let (base, name) = (base_seed(), test_name());
    let (next, end) = (AtomicU64::new(0), fixed + fresh);
    let try_seeds = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= end {
                return;
            }
            let seed = if at < fixed { at } else { base + (at - fixed) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
                let command = replay_command(&format!("LANDFALL_SEED={seed} LANDFALL_SEEDS=1"), "simulation", &name);
                eprintln!("seed {seed} fails; this replays it: {command}");
                next.store(end, Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..available_parallelism().map_or(1, usize::from) {
            scope.spawn(try_seeds);
        }
        try_seeds();
    });
}

/// Whether a single seed is replayed, so that its disturbances are printed.
pub fn is_replay() -> bool {
    number("LANDFALL_SEEDS") == Some(1)
}
