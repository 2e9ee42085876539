//! What was observed, all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{IPAddressPool, Key, Namespace, Network, Node, Record, Service};
use jiff::Timestamp;

/// What was observed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The pools, by name.
    pub pools: BTreeMap<String, Arc<IPAddressPool>>,
    /// The Services, of all types and classes.
    pub services: BTreeMap<Key, Arc<Service>>,
    /// Who holds which address. What is not here is held by nobody, whatever a Service's status says.
    pub addresses: BTreeMap<IpAddr, Arc<Record>>,
    /// The nodes, whose own addresses are nobody else's.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// What the nodes' agents found on their networks, by node: addresses that are nobody else's either.
    pub networks: BTreeMap<String, Arc<Network>>,
    /// The namespaces, by name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// What exists and could not be read.
    pub unreadable: Unreadable,
    /// Whether Services without a class are ours (KEP-1959).
    pub default_class: bool,
    /// When this was observed.
    pub now: Timestamp,
}

/// Objects that exist and cannot be read: nothing is done to them or because of them, as their absence would have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Services. They keep what they hold.
    pub services: BTreeSet<Key>,
    /// LoadBalancerIPs, by address. These addresses are somebody's.
    pub addresses: BTreeSet<IpAddr>,
}

impl Default for Snapshot {
    /// An empty cluster of which we are the default provider, in 1970.
    fn default() -> Self {
        Self {
            pools: BTreeMap::new(),
            services: BTreeMap::new(),
            addresses: BTreeMap::new(),
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            unreadable: Unreadable::default(),
            default_class: true,
            now: Timestamp::UNIX_EPOCH,
        }
    }
}
