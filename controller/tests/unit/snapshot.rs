//! All observed objects at one moment, without indexes: the input of tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crds::{IPAddressPool, Key, Labels, Namespace, Node, NodeAddresses, Record, Service};
use jiff::Timestamp;

use crate::plan::Plan;
use crate::state::index::{ClusterIndex, Unreadable};

/// All observed objects at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) pools: BTreeMap<String, Arc<IPAddressPool>>,
    /// Services of all types and classes.
    pub(crate) services: BTreeMap<Key, Arc<Service>>,
    /// An address without a record has no holder, whatever the status of a Service shows.
    pub(crate) records: BTreeMap<IpAddr, Arc<Record>>,
    pub(crate) nodes: BTreeMap<String, Arc<Node>>,
    /// The addresses that agents found on the networks of their nodes, by node.
    pub(crate) networks: BTreeMap<String, Arc<NodeAddresses>>,
    pub(crate) namespaces: BTreeMap<String, Arc<Namespace>>,
    pub(crate) unreadable: Unreadable,
    /// Whether Services without a class are ours (KEP-1959).
    pub(crate) default_class: bool,
    pub(crate) now: Timestamp,
}

impl Default for Snapshot {
    /// A cluster in 1970 that contains only the namespaces of these tests. Landfall is the default provider.
    fn default() -> Self {
        let namespace = |name: &str| {
            let namespace = Namespace { name: name.into(), labels: Labels::default() };
            (name.to_owned(), Arc::new(namespace))
        };
        Self {
            pools: BTreeMap::new(),
            services: BTreeMap::new(),
            records: BTreeMap::new(),
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            namespaces: ["default", "other"].map(namespace).into(),
            unreadable: Unreadable::default(),
            default_class: true,
            now: Timestamp::UNIX_EPOCH,
        }
    }
}

impl ClusterIndex {
    /// An index of these objects, in which all are dirty.
    pub(crate) fn from_snapshot(snapshot: &Snapshot) -> Self {
        let mut cluster = Self::new(snapshot.default_class);
        let now = snapshot.now;
        snapshot.pools.iter().for_each(|(name, pool)| cluster.set_pool(name, Some(pool.clone())));
        snapshot.nodes.iter().for_each(|(name, node)| cluster.set_node(name, Some(node.clone())));
        snapshot.networks.iter().for_each(|(name, network)| cluster.set_network(name, Some(network.clone())));
        snapshot.namespaces.iter().for_each(|(name, namespace)| cluster.set_namespace(name, Some(namespace.clone())));
        let unreadable = &snapshot.unreadable;
        for (key, service) in &snapshot.services {
            cluster.set_service(key, Some(service.clone()), unreadable.services.contains(key));
        }
        for key in unreadable.services.iter().filter(|key| !snapshot.services.contains_key(key)) {
            cluster.set_service(key, None, true);
        }
        for (lb_ip, record) in &snapshot.records {
            cluster.set_record(*lb_ip, Some(record.clone()), unreadable.records.contains(lb_ip), now);
        }
        for lb_ip in unreadable.records.iter().filter(|lb_ip| !snapshot.records.contains_key(lb_ip)) {
            cluster.set_record(*lb_ip, None, true, now);
        }
        cluster
    }
}

/// The plan for a cluster that was just observed.
pub(crate) fn plan(snapshot: &Snapshot) -> Plan {
    ClusterIndex::from_snapshot(snapshot).plan(snapshot.now)
}
