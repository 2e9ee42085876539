//! The watch channels between the agent's tasks, and the tasks that derive one channel from another. Each channel holds
//! the latest value of one thing, under one name.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use crds::node_network::NodeNetworkSpec;
use dataplane::reply_path::{Gap, ReplyPath, ReplyPathInput};
use netlink::links::Links;
use tokio::sync::watch;

use crate::keys::{KeysInUse, SecretState};

/// Sends `value` if it differs from the last value sent.
pub(crate) fn send_if_new<T: PartialEq>(value_tx: &watch::Sender<T>, value: T) {
    value_tx.send_if_modified(|last| {
        let is_new = *last != value;
        if is_new {
            *last = value;
        }
        is_new
    });
}

/// The sending ends of all channels of one agent. A sending task gets a clone; a receiving task subscribes. This struct
/// is dropped once the tasks run, so that a receiver notices the end of the sending task.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// Composer → dataplane, health checks, metrics. `None` until every kind has been listed.
    pub(crate) dataplane_snapshot: watch::Sender<Option<Arc<dataplane::Snapshot>>>,
    /// Composer → speaker, metrics. `None` until every kind has been listed.
    pub(crate) speaker_snapshot: watch::Sender<Option<Arc<speaker::Snapshot>>>,
    /// Dataplane → [`publish_forwarded`], report, metrics: the forwarding that the kernel has acknowledged.
    pub(crate) forwarding: watch::Sender<dataplane::Forwarding>,
    /// [`publish_forwarded`] → speaker: the addresses that this node may announce.
    pub(crate) announceable: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    /// Speaker → report, metrics.
    pub(crate) announcements: watch::Sender<speaker::Announcements>,
    /// Speaker → report, metrics: hosts that use our addresses.
    pub(crate) conflicts: watch::Sender<speaker::Conflicts>,
    /// Speaker → metrics.
    pub(crate) wire_counters: watch::Sender<speaker::Counters>,
    /// Dataplane → metrics.
    pub(crate) kernel_counters: watch::Sender<dataplane::Counters>,
    /// Speaker → composer, metrics: the names of dead nodes.
    pub(crate) dead: watch::Sender<BTreeSet<String>>,
    /// Speaker → composer: the nodes that it has heard on each link.
    pub(crate) neighbours: watch::Sender<speaker::Neighbours>,
    /// Kernel → speaker, NodeNetwork: the links of this node. `None` until all are listed.
    pub(crate) links: watch::Sender<Option<Links>>,
    /// Links and routes → composer, NodeNetwork: the links and gateways of this node.
    pub(crate) network: watch::Sender<Option<NodeNetworkSpec>>,
    /// Composer → reply paths: the links and families that need a reply path.
    pub(crate) reply_links: watch::Sender<Option<ReplyPathInput>>,
    /// Reply paths → composer: the reply paths that the kernel has.
    pub(crate) reply_paths: watch::Sender<Arc<BTreeSet<ReplyPath>>>,
    /// Reply paths → report: why, on some links, requests may be lost or replies may leave by another link.
    pub(crate) reply_gaps: watch::Sender<BTreeSet<Gap>>,
    /// The watch of the Secret → the keys in use.
    pub(crate) secret: watch::Sender<SecretState>,
    /// The keys in use → metrics.
    pub(crate) keys_in_use: watch::Sender<KeysInUse>,
    /// The keys in use → speaker.
    pub(crate) hello_keys: watch::Sender<Arc<speaker::Keys>>,
}

/// Sends the speaker each new set of addresses that the kernel forwards.
pub(crate) async fn publish_forwarded(
    mut forwarding_rx: watch::Receiver<dataplane::Forwarding>,
    announceable_tx: watch::Sender<Arc<BTreeSet<IpAddr>>>,
) -> Result<Infallible> {
    loop {
        let addresses = forwarding_rx.borrow_and_update().addresses.clone();
        send_if_new(&announceable_tx, Arc::new(addresses));
        forwarding_rx.changed().await.context("the dataplane has ended")?;
    }
}

/// Runs in place of Landfall's dataplane: assumes that another proxy forwards every address.
pub(crate) async fn assume_forwarded(
    mut snapshot_rx: watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    forwarding_tx: watch::Sender<dataplane::Forwarding>,
) -> Result<Infallible> {
    loop {
        let snapshot = snapshot_rx.borrow_and_update().clone();
        let addresses: BTreeSet<_> = snapshot.iter().flat_map(|known| known.addresses.keys().copied()).collect();
        let serving = addresses.clone();
        forwarding_tx.send_replace(dataplane::Forwarding { addresses, serving, ..Default::default() });
        snapshot_rx.changed().await.context("the composer has ended")?;
    }
}
