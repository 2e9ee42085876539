//! State that all measurements of a benchmark share: elapsed time, quick mode, random times.

use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use anyhow::Result;

/// A running benchmark.
#[derive(Debug)]
pub struct Bench {
    began: Instant,
    /// Fewer and shorter rounds.
    pub quick: bool,
    random: RandomState,
}

impl Bench {
    /// Starts one now.
    pub fn begin(quick: bool) -> Self {
        Self { began: Instant::now(), quick, random: RandomState::new() }
    }

    /// Time since the start.
    pub fn elapsed_time(&self) -> Duration {
        self.began.elapsed()
    }

    /// Prints a line of progress.
    ///
    /// # Errors
    /// If nothing can be printed.
    pub fn progress(&self, text: &str) -> Result<()> {
        print(&format!("{:4} s  {text}\n", self.elapsed_time().as_secs()))
    }

    /// A random time between `from` and `to`, another one for each `n`; uniform.
    pub fn random(&self, n: usize, from: Duration, to: Duration) -> Duration {
        let share = self.random.hash_one(n) as f64 / u64::MAX as f64;
        from + (to - from).mul_f64(share)
    }
}

/// Prints to standard output. A closed pipe (`| head`) is not an error.
///
/// # Errors
/// If it can't be written to.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
