//! The dataplane with the event loop of an agent, in a network namespace. The benchmark publishes the snapshots.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dataplane::{Counters, Forwarding, Snapshot};
use netns::Namespace;
use tokio::sync::watch;

/// The longest time for a change.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running dataplane.
pub struct Agent {
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    forwarding: watch::Receiver<Forwarding>,
    counters: watch::Receiver<Counters>,
    thread: JoinHandle<Result<()>>,
}

impl Agent {
    /// Starts the dataplane without a snapshot.
    pub fn start(node: &Namespace) -> Self {
        let (snapshots, snapshots_rx) = watch::channel(None);
        let (forwarding_tx, forwarding) = watch::channel(Forwarding::default());
        let (counters_tx, counters) = watch::channel(Counters::default());
        let node = node.clone();
        let thread = std::thread::spawn(move || {
            node.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime
                    .block_on(dataplane::run(snapshots_rx, forwarding_tx, counters_tx))
                    .context("the dataplane ended")
            })
        });
        Self { snapshots, forwarding, counters, thread }
    }

    /// Publishes a snapshot to the dataplane.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.snapshots.send_replace(Some(snapshot));
    }

    /// The number of failed changes of the kernel.
    pub fn failures(&self) -> u64 {
        self.counters.borrow().failed_steps
    }

    /// Waits until the kernel has acknowledged this number of addresses. Returns the time of the acknowledgement.
    pub async fn wait_for_addresses(&mut self, addresses: usize) -> Result<Instant> {
        let waited = self.forwarding.wait_for(|forwarding| forwarding.addresses.len() == addresses);
        let acknowledged = tokio::time::timeout(PATIENCE, waited).await;
        let at = Instant::now();
        ensure!(matches!(acknowledged, Ok(Ok(_))), "the kernel doesn't have {addresses} addresses after {PATIENCE:?}");
        Ok(at)
    }

    /// Ends the dataplane like its process: rules stay in the kernel. Fails if the dataplane had no access to the
    /// kernel.
    pub fn end(self) -> Result<()> {
        drop(self.snapshots);
        self.thread.join().map_err(|_| anyhow::anyhow!("the dataplane panicked"))?
    }
}
