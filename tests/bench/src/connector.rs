//! Connects to an address at a fixed rate, from a host on the LAN.
//!
//! Each connect has its time on a fixed grid, so a late or lost one does not delay the next. An address that is down
//! for a second fails all connects that start in that second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::Host;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use crate::gaps::Attempt;

/// A connect that takes longer is lost: the kernel would repeat its first packet only after a second.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(400);

/// Connects until it is stopped or dropped.
pub struct Connector {
    over: Arc<AtomicBool>,
    last_lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Vec<Attempt>>>>,
}

impl Connector {
    /// Starts, with one connect per `every`. Times are since `begun`.
    pub fn begin(host: &Host, target: SocketAddr, every: Duration, begun: Instant) -> Self {
        let (over, last_lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (host, over, last_lost) = (host.clone(), Arc::clone(&over), Arc::clone(&last_lost));
            let grid = Grid { begun, every };
            thread::spawn(move || host.run(|| connect(target, grid, &last_lost, || over.load(Ordering::Relaxed)))?)
        };
        Self { over, last_lost, thread: Some(thread) }
    }

    /// When the last lost connect began; zero if none was lost yet.
    pub fn last_lost(&self) -> Duration {
        Duration::from_nanos(self.last_lost.load(Ordering::Relaxed))
    }

    /// Stops, and returns the result of each connect, in order. Connects without a result yet are left out.
    ///
    /// # Errors
    /// If the host is off.
    pub fn end(mut self) -> Result<Vec<Attempt>> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("invariant: it ends once")?;
        thread.join().map_err(|_| anyhow!("the thread that connects panicked"))?
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Times at a fixed interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) begun: Instant,
    pub(crate) every: Duration,
}

impl Grid {
    /// The next time. Missed times are skipped.
    pub(crate) fn next(self) -> Instant {
        let passed = self.begun.elapsed().as_nanos() / self.every.as_nanos();
        self.begun + self.every * (passed as u32 + 1)
    }
}

/// Connects repeatedly, in the network namespace of the thread. `last_lost` is the start of the last lost connect, in
/// nanoseconds on the grid.
pub(crate) fn connect(
    target: SocketAddr,
    grid: Grid,
    last_lost: &Arc<AtomicU64>,
    is_over: impl Fn() -> bool,
) -> Result<Vec<Attempt>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(async {
        let (done, mut attempts) = mpsc::unbounded_channel();
        let mut next = grid.next();
        while !is_over() {
            sleep_until(next.into()).await;
            let (done, last_lost) = (done.clone(), Arc::clone(last_lost));
            tokio::spawn(async move {
                let began = grid.begun.elapsed();
                let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await;
                let accepted = matches!(stream, Ok(Ok(_)));
                if let Ok(Ok(stream)) = stream {
                    // Reset: lingering connections would use up the ports.
                    let _ = stream.set_zero_linger();
                }
                if !accepted {
                    last_lost.fetch_max(began.as_nanos() as u64, Ordering::Relaxed);
                }
                // At the end the receiver is gone.
                let _ = done.send(Attempt { began, accepted });
            });
            next = grid.next();
        }
        let mut all = Vec::new();
        while let Ok(attempt) = attempts.try_recv() {
            all.push(attempt);
        }
        all.sort_by_key(|attempt| attempt.began);
        Ok(all)
    })
}
