//! Addresses that the cluster itself uses: for nodes, for pods or for ClusterIPs.

use std::fmt;

use crds::{Key, Range};

/// Addresses that the cluster uses, and their user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRange {
    pub(crate) range: Range,
    pub(crate) user: ClusterUser,
}

/// The object that reports a [`ClusterRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterUser {
    /// The address of a node.
    Node(String),
    /// The pods of a node (`spec.podCIDRs`).
    Pods(String),
    /// ClusterIPs of a ServiceCIDR.
    ServiceRange(String),
    /// The ClusterIP of a Service.
    Service(Key),
}

impl fmt::Display for ClusterRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, user } = self;
        match user {
            ClusterUser::Node(node) => write!(f, "{} (address of node {node})", range.first()),
            ClusterUser::Pods(node) => write!(f, "{range} (pods of node {node})"),
            ClusterUser::ServiceRange(name) => write!(f, "{range} (ClusterIPs of ServiceCIDR {name})"),
            ClusterUser::Service(key) => write!(f, "{} (ClusterIP of Service {key})", range.first()),
        }
    }
}
