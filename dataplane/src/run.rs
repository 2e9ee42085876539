//! The loop: wake → snapshot → plan → diff → apply → publish.
//!
//! One task owns a [`Worker`] and moves it to a blocking thread for each step, so that no async worker waits for the
//! kernel. Stale flows are deleted on another blocking thread, in one sweep at a time. The kernel takes ten
//! milliseconds to walk its table of flows, even if there are few, and the next change must not wait for that. The next
//! sweep begins after a pause of nine times the duration of the last one. So if endpoints change constantly, one sweep
//! covers many changes.
//!
//! The loop wakes for a new snapshot (several at once count as one), for a check of the kernel, and to retry a failed
//! step. It ends when all senders of snapshots are dropped.
//!
//! Cancel safe: if the future is dropped within a step, that step still finishes. The kernel continues to forward in
//! any case, until [`remove`](crate::remove) deletes the tables.

mod forwarding;
mod refused;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use model::pacing::Backoff;
use tokio::sync::watch;
use tokio::task::{self, JoinError};
use tokio::time::{Instant, sleep_until};

use crate::error_chain::error_chain;
use crate::metrics::Counters;
use crate::nft::EngineError;
use crate::snapshot::Snapshot;
pub use forwarding::Forwarding;
use worker::{Sweep, Worker};

/// The interval of checks whether the kernel still has the applied tables. Another program, such as a firewall that is
/// reloaded, may flush all of nf_tables. Other changes of our tables are not expected.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The pause after a sweep, as a multiple of its duration: sweeps use at most a tenth of a processor.
const PAUSE_PER_SWEEP: u32 = 9;
/// The delays after failed steps in a row.
const RETRY_DELAYS: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// Forwards according to the latest snapshot, until all senders are dropped. The kernel's state does not change before
/// the first snapshot that is not `None`. Publishes to `forwarding` and `counters`.
///
/// # Errors
/// If there is no socket to the kernel. Later errors are logged, and the step is retried.
pub async fn run(
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    forwarding: watch::Sender<Forwarding>,
    counters: watch::Sender<Counters>,
) -> Result<(), EngineError> {
    let mut worker = run_blocking(move || Worker::open(forwarding)).await?;
    let mut backoff = RETRY_DELAYS;
    let mut next_check = Instant::now() + CHECK_INTERVAL;
    let mut sweeps = Sweeps { running: None, next: Instant::now() };
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let Some(snapshot) = snapshot else {
            if snapshots.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        // A check is due by the clock, so that constant changes do not postpone it.
        let check = Instant::now() >= next_check;
        let result;
        (worker, result) = run_blocking(move || {
            let result = worker.step(&snapshot, check);
            (worker, result)
        })
        .await;
        counters.send_replace(worker.counters());
        let wake = match result {
            Ok(()) => {
                backoff.reset();
                if check {
                    next_check = Instant::now() + CHECK_INTERVAL;
                }
                next_check
            }
            Err(error) => {
                let cause = error_chain(&error);
                let retry_in = backoff.fail();
                tracing::error!(%error, cause, ?retry_in, "programming the kernel failed");
                Instant::now() + retry_in
            }
        };
        if sweeps.run_until(wake, &mut worker, &mut snapshots).await.is_err() {
            return Ok(());
        }
    }
}

/// The running sweep, and the time of the next one.
struct Sweeps {
    running: Option<(Instant, task::JoinHandle<Sweep>)>,
    next: Instant,
}

impl Sweeps {
    /// Runs sweeps until `wake`, or until there is a new snapshot. `Err`: all senders of snapshots are dropped.
    async fn run_until(
        &mut self,
        wake: Instant,
        worker: &mut Worker,
        snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
    ) -> Result<(), watch::error::RecvError> {
        loop {
            let pauses = self.running.is_none() && Instant::now() < self.next;
            if self.running.is_none() && !pauses {
                self.running = worker.start_sweep().map(|work| (Instant::now(), task::spawn_blocking(work)));
            }
            let finished = async {
                let (start, work) = self.running.as_mut()?;
                Some((*start, work.await))
            };
            tokio::select! {
                changed = snapshots.changed() => return changed,
                () = sleep_until(wake) => return Ok(()),
                () = sleep_until(self.next), if pauses => {}
                Some((start, sweep)) = finished => {
                    self.running = None;
                    self.next = Instant::now() + start.elapsed() * PAUSE_PER_SWEEP;
                    worker.finish_sweep(unwrap_join(sweep).await);
                }
            }
        }
    }
}

/// Runs `work` on a thread that may block. A panic in `work` continues in the caller.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    unwrap_join(task::spawn_blocking(work).await).await
}

async fn unwrap_join<T>(result: Result<T, JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
