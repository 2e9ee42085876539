//! The thread of a prober: it enters a network namespace, and runs an async runtime there until it is stopped.

use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use netns::Namespace;
use tokio::sync::watch;

/// The clock of a run. All parts of a run share one, so that their times can be compared. It never steps.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts a clock at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// A thread with an async runtime. It is stopped when it is dropped.
pub(crate) struct Worker<T> {
    stop_tx: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work` in a namespace, or in that of the caller. `name` is the name of its thread, at most 15 bytes.
    pub(crate) fn start<F>(
        name: &'static str,
        namespace: Option<&Namespace>,
        work: impl FnOnce(watch::Receiver<bool>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T>>,
    {
        let (stop_tx, stop_rx) = watch::channel(false);
        let run = move || {
            // For `top`, and for tests that measure the CPU time of a prober.
            let _ = fs::write("/proc/thread-self/comm", name);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
            runtime.block_on(work(stop_rx))
        };
        let namespace = namespace.cloned();
        let thread = thread::spawn(move || match namespace {
            Some(namespace) => namespace.run(run),
            None => run(),
        });
        Self { stop_tx, thread: Some(thread) }
    }

    /// Stops the work, and waits for its result.
    pub(crate) fn stop(mut self) -> Result<T> {
        let _ = self.stop_tx.send(true);
        self.join()
    }

    /// Waits for a worker that ends by itself.
    pub(crate) fn join(&mut self) -> Result<T> {
        let thread = self.thread.take().context("invariant: a worker ends once")?;
        thread.join().map_err(|_| anyhow!("a thread of the prober panicked"))?
    }
}

/// Waits until the worker is stopped or dropped.
pub(crate) async fn wait_for_stop(stop_rx: &mut watch::Receiver<bool>) {
    // An error means that the worker was dropped.
    let _ = stop_rx.wait_for(|stop| *stop).await;
}
