//! The options of the agent on a node.

use std::time::Duration;

use crds::Backend;
use dataplane::reply_path::Mask;

/// How long the API server may take to answer one request.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(10);

/// The options of an agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the Node object of this node.
    pub node: String,
    /// Whether Landfall's dataplane forwards packets, with nftables. Otherwise another proxy on the node must forward
    /// them.
    pub forwards: bool,
    /// Whether an announcing node re-sends frames to the nodes with endpoints, so that endpoints see the client's
    /// address.
    pub spread: bool,
    /// Default backend for Services without the annotation `landfall.dev/backend`.
    pub backend: Backend,
    /// The bits of packet marks and connection marks that store the link of a request. The reply leaves by that link.
    /// `None`: replies follow the node's routes.
    pub return_mark: Option<Mask>,
    /// Whether packets and bytes are counted for each Service.
    pub count_traffic: bool,
    /// The maximal number of Services with metrics of their own. A Service counts once for each of its addresses.
    pub service_metrics: usize,
    /// Namespace of Landfall. It contains the DaemonSet of the agents, and the Secret [`NAME`](crate::keys::NAME) with
    /// the Hello keys.
    pub keys_namespace: String,
}

impl Config {
    /// Whether this node re-sends frames and accepts those that other nodes re-send.
    pub(crate) fn spreads(&self) -> bool {
        self.spread && self.forwards
    }
}
