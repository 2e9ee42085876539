//! The watch channels between the agent's tasks. Each holds the latest value of one thing, under one name.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::NodeNetworkSpec;
use dataplane::reply_path::{Gap, ReplyPath, ReplyPathInput};
use tokio::sync::watch;

use crate::keys::{KeysInUse, SecretState};

/// Both ends of a watch channel.
#[derive(Debug)]
pub(crate) struct Channel<T> {
    pub(crate) tx: watch::Sender<T>,
    pub(crate) rx: watch::Receiver<T>,
}

impl<T: Default> Default for Channel<T> {
    fn default() -> Self {
        let (tx, rx) = watch::channel(T::default());
        Self { tx, rx }
    }
}

/// All channels of one agent. Tasks clone the ends that they need; this is dropped once they run, so that a receiver
/// notices when the task that sends has ended.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// Composer → dataplane, health checks, metrics. `None` until every kind has been listed.
    pub(crate) dataplane_snapshot: Channel<Option<Arc<dataplane::Snapshot>>>,
    /// Composer → speaker, metrics. `None` until every kind has been listed.
    pub(crate) speaker_snapshot: Channel<Option<Arc<speaker::Snapshot>>>,
    /// Dataplane → announceable, report, metrics: what the kernel has acknowledged.
    pub(crate) forwarding: Channel<dataplane::Forwarding>,
    /// The forwarded addresses → speaker: those that this node may announce.
    pub(crate) announceable: Channel<Arc<BTreeSet<IpAddr>>>,
    /// Speaker → report, metrics.
    pub(crate) announcements: Channel<speaker::Announcements>,
    /// Speaker → report, metrics: hosts that use our addresses.
    pub(crate) conflicts: Channel<speaker::Conflicts>,
    /// Speaker → metrics.
    pub(crate) wire_counters: Channel<speaker::Counters>,
    /// Dataplane → metrics.
    pub(crate) kernel_counters: Channel<dataplane::Counters>,
    /// Speaker → composer, metrics: the names of dead nodes.
    pub(crate) dead: Channel<BTreeSet<String>>,
    /// Speaker → composer: which nodes it has heard on which link.
    pub(crate) neighbours: Channel<speaker::Neighbours>,
    /// Kernel → composer, NodeNetwork: the links and gateways of this node.
    pub(crate) network: Channel<Option<NodeNetworkSpec>>,
    /// Composer → reply paths: the links and families that need one.
    pub(crate) reply_links: Channel<Option<ReplyPathInput>>,
    /// Reply paths → composer: those that the kernel has.
    pub(crate) reply_paths: Channel<Arc<BTreeSet<ReplyPath>>>,
    /// Reply paths → report: why some links have none.
    pub(crate) reply_gaps: Channel<BTreeSet<Gap>>,
    /// The watch of the Secret → the keys in use.
    pub(crate) secret: Channel<SecretState>,
    /// The keys in use → metrics.
    pub(crate) keys_in_use: Channel<KeysInUse>,
    /// The keys in use → speaker.
    pub(crate) hello_keys: Channel<Arc<speaker::Keys>>,
}
