//! The part of the cluster state that the speaker needs: the addresses, and which nodes may announce each.
//!
//! Built by [`model::eligibility`] from the objects. The speaker reads nothing else of Kubernetes.

use std::net::IpAddr;

use model::SharedMap;
use model::eligibility::AnnouncementPolicy;

/// The cluster state for the speaker of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// This node's own addresses (type InternalIP). An lb_ip outside of all subnets is announced on the link that has
    /// one of them.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses that a Service holds.
    pub addresses: SharedMap<IpAddr, AnnouncementPolicy>,
}
