//! What all measurements of a benchmark have in common: how far it is, how much of it is wanted, and its dice.

use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use anyhow::Result;

/// A benchmark that runs.
#[derive(Debug)]
pub struct Bench {
    began: Instant,
    /// Fewer and shorter rounds.
    pub quick: bool,
    random: RandomState,
}

impl Bench {
    /// One that begins now.
    pub fn begin(quick: bool) -> Self {
        Self { began: Instant::now(), quick, random: RandomState::new() }
    }

    /// For how long it has run.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells how far it is.
    ///
    /// # Errors
    /// If nothing can be printed.
    pub fn progress(&self, text: &str) -> Result<()> {
        print(&format!("{:4} s  {text}\n", self.elapsed().as_secs()))
    }

    /// A time between these two, another one for each `n`, as likely as any.
    pub fn random(&self, n: usize, from: Duration, to: Duration) -> Duration {
        let share = self.random.hash_one(n) as f64 / u64::MAX as f64;
        from + (to - from).mul_f64(share)
    }
}

/// Prints to standard output. A reader that went away (`| head`) is no error.
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
