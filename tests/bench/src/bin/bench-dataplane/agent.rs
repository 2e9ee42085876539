//! The dataplane as an agent runs it, in a network namespace: the same loop, fed with snapshots by hand.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dataplane::{Counters, Forwarding, Snapshot};
use netns::Namespace;
use tokio::sync::watch;

/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One that runs.
pub struct Agent {
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    forwarding: watch::Receiver<Forwarding>,
    counters: watch::Receiver<Counters>,
    thread: JoinHandle<Result<()>>,
}

impl Agent {
    /// Starts one, which knows nothing yet.
    pub fn start(node: &Namespace) -> Self {
        let (snapshots, receiver) = watch::channel(None);
        let (sender, forwarding) = watch::channel(Forwarding::default());
        let (counting, counters) = watch::channel(Counters::default());
        let node = node.clone();
        let thread = std::thread::spawn(move || {
            node.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(dataplane::run(receiver, sender, counting)).context("the dataplane ended")
            })
        });
        Self { snapshots, forwarding, counters, thread }
    }

    /// Says what is observed from now on.
    pub fn tell(&self, snapshot: Arc<Snapshot>) {
        self.snapshots.send_replace(Some(snapshot));
    }

    /// How many changes of the kernel failed.
    pub fn failures(&self) -> u64 {
        self.counters.borrow().failures
    }

    /// Waits until the kernel has acknowledged so many addresses.
    ///
    /// # Errors
    /// If it doesn't in time.
    pub async fn knows(&mut self, addresses: usize) -> Result<Instant> {
        let waited = self.forwarding.wait_for(|forwarding| forwarding.addresses.len() == addresses);
        let known = tokio::time::timeout(PATIENCE, waited).await;
        let at = Instant::now();
        ensure!(matches!(known, Ok(Ok(_))), "the kernel doesn't have {addresses} addresses after {PATIENCE:?}");
        Ok(at)
    }

    /// Ends it, as a process ends: what is in the kernel stays.
    ///
    /// # Errors
    /// If it could not talk to the kernel at all.
    pub fn end(self) -> Result<()> {
        drop(self.snapshots);
        self.thread.join().map_err(|_| anyhow::anyhow!("the dataplane panicked"))?
    }
}
