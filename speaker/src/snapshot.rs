//! The part of the cluster state that the speaker needs: the addresses, and which nodes may announce each.
//!
//! The agent builds it from the objects, with [`model::eligibility`]. The speaker reads nothing else of Kubernetes.

use std::net::IpAddr;

use model::SharedMap;
use model::eligibility::AnnouncementPolicy;

/// The cluster state for the speaker of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// This node's own addresses (type InternalIP). An lb_ip outside of all subnets of this node is announced on the
    /// link that has one of these addresses.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses that Services hold, each with the nodes that may announce it.
    pub addresses: SharedMap<IpAddr, AnnouncementPolicy>,
}
