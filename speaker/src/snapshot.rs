//! What was observed from the API: which addresses are wanted, and who may announce them.
//!
//! Built by [`crate::eligibility`] from the objects; the wire loop reads nothing else of Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What the speaker knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// This node's own addresses (type InternalIP): an lb_ip outside of all subnets is announced on the link that has one.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses that some Service holds.
    pub addresses: BTreeMap<IpAddr, Wanted>,
}

/// An address that is to be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The nodes that may announce it. Most addresses have the same, so they share one set.
    pub candidates: Arc<BTreeSet<String>>,
    /// The greatest epoch in the status of its LoadBalancerIP: owners to come claim a greater one.
    pub epoch: u64,
}
