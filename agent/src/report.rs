//! Writes the report of this node to the status of each LoadBalancerIP: its announcements of the address, how it
//! forwards packets, and the conflict that it observes.
//!
//! ```text
//!   announcements, conflicts, forwarding, gaps --+
//!                                                +--> difference (pure) --pacer--> patches --> API server
//!   records (the written state) ----------------+
//! ```
//!
//! The status follows the announcements; an announcement never waits for the status. Only differences are written, so
//! an idle cluster has no writes. A node adds and removes its own entry. It also removes the entry of the node from
//! which it has taken the address over, because that node may be dead. Each write names the version that it is based
//! on, so concurrent writes of two nodes don't undo each other. Failed writes are retried.

mod difference;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crds::{LoadBalancerIP, Record, address};
use dataplane::Forwarding;
use dataplane::reply_path::Gap;
use futures::StreamExt;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use observe::{Listener, Store, await_response, error_chain, source};
use speaker::{Announcements, Conflicts};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::API_TIMEOUT;
use difference::{Difference, NodeState, Pacer, differences};

/// The number of writes in progress at once. A node that takes over thousands of addresses reports them within seconds,
/// and leaves the API server capacity for other clients.
const WRITES_AT_ONCE: usize = 16;

/// If there are more differences than this, many addresses have just moved. The reporter then waits for
/// [`BURST_PAUSE`].
const BURST: usize = 100;

/// The time in which the speaker sends most of its announcements after a burst of moves.
const BURST_PAUSE: Duration = Duration::from_secs(1);

/// The minimum time from one comparison to the next. The same time is added for every [`ADDRESSES_PER_PAUSE`]
/// addresses. A comparison visits all addresses, and takes milliseconds for thousands of them. While many addresses
/// move, the speaker needs the CPU.
const COMPARISON_PAUSE: Duration = Duration::from_millis(100);
const ADDRESSES_PER_PAUSE: usize = 1000;

/// The pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The reporter of one node.
pub(crate) struct Reporter {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) records: Store<IpAddr, Record>,
    pub(crate) announcements_rx: watch::Receiver<Announcements>,
    pub(crate) conflicts_rx: watch::Receiver<Conflicts>,
    pub(crate) forwarding_rx: watch::Receiver<Forwarding>,
    pub(crate) gaps_rx: watch::Receiver<BTreeSet<Gap>>,
}

impl Reporter {
    /// Writes all differences after each change.
    pub(crate) async fn run(mut self, mut listener: Listener) -> Result<Infallible> {
        let mut pacer = Pacer::default();
        let mut has_paused = false;
        loop {
            let began = Instant::now();
            let (records, mut differences) = self.compare();
            if differences.len() > BURST && !std::mem::replace(&mut has_paused, true) {
                sleep(BURST_PAUSE).await;
                continue;
            }
            has_paused = false;
            let postponed = pacer.postpone(&mut differences, Instant::now());
            let failed = self.write_all(differences).await;
            pacer.forget(&failed);
            let retry = (!failed.is_empty()).then(|| Instant::now() + RETRY_PAUSE);
            self.wait_for_change(&mut listener, postponed.into_iter().chain(retry).min()).await;
            sleep_until(began + comparison_pause(records)).await;
        }
    }

    /// Returns the number of records, and the differences between them and this node's state.
    fn compare(&mut self) -> (usize, Vec<(IpAddr, Difference)>) {
        let announcements = self.announcements_rx.borrow_and_update().clone();
        let conflicts = self.conflicts_rx.borrow_and_update().clone();
        let records: BTreeMap<IpAddr, Arc<Record>> = self.records.snapshot().unwrap_or_default();
        let state = NodeState {
            node: &self.node,
            announcements: &announcements,
            conflicts: &conflicts,
            forwarding: &self.forwarding_rx.borrow_and_update(),
            gaps: &self.gaps_rx.borrow_and_update(),
        };
        (records.len(), differences(&state, &records))
    }

    /// Waits until an input changes, but at most until `deadline`.
    async fn wait_for_change(&mut self, listener: &mut Listener, deadline: Option<Instant>) {
        let sender_exists = tokio::select! {
            () = listener.wait() => true,
            changed = self.announcements_rx.changed() => changed.is_ok(),
            changed = self.conflicts_rx.changed() => changed.is_ok(),
            changed = self.forwarding_rx.changed() => changed.is_ok(),
            // If another proxy forwards, the channel of the gaps has no sender.
            Ok(()) = self.gaps_rx.changed() => true,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => true,
        };
        if !sender_exists {
            // The speaker has stopped, and the process is about to end.
            std::future::pending().await
        }
    }

    /// Writes all differences. Returns the addresses whose write must be repeated.
    async fn write_all(&self, differences: Vec<(IpAddr, Difference)>) -> Vec<IpAddr> {
        let writes = futures::stream::iter(differences).map(|(lb_ip, difference)| async move {
            let is_done = self.write(lb_ip, &difference).await;
            (!is_done).then_some(lb_ip)
        });
        writes.buffer_unordered(WRITES_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// Writes one difference. Returns false if the write must be repeated.
    async fn write(&self, lb_ip: IpAddr, difference: &Difference) -> bool {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        let (name, params, patch) =
            (address::object_name(lb_ip), PatchParams::default(), Patch::Merge(difference.patch()));
        // The API server may be on a node that has just died. Then no response arrives.
        match await_response(API_TIMEOUT, addresses.patch_status(&name, &params, &patch)).await {
            Ok(object) => {
                self.records.apply_response(source::records(), &object);
                true
            }
            // The LoadBalancerIP has been deleted.
            Err(kube::Error::Api(status)) if status.code == 404 => true,
            // Another client has written first; the watch brings the new version.
            Err(kube::Error::Api(status)) if status.code == 409 => false,
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(%lb_ip, error, "cannot write the status of the LoadBalancerIP; trying again");
                false
            }
        }
    }
}

/// The minimum time from a comparison with this number of records to the next comparison.
fn comparison_pause(records: usize) -> Duration {
    COMPARISON_PAUSE * u32::try_from(1 + records / ADDRESSES_PER_PAUSE).unwrap_or(u32::MAX)
}
