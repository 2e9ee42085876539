//! What was observed from the API: which addresses are wanted, and who may announce them.
//!
//! Built by [`model::eligibility`] from the objects; the wire loop reads nothing else of Kubernetes.

use std::net::IpAddr;

use model::SharedMap;
use model::eligibility::AnnouncementPolicy;

/// What the speaker knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// This node's own addresses (type InternalIP): an lb_ip outside of all subnets is announced on the link that has one.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses that some Service holds.
    pub addresses: SharedMap<IpAddr, AnnouncementPolicy>,
}
