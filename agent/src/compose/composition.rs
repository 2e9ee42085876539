//! The snapshots of the dataplane and the speaker, kept up to date at the cost of each change. Pure: changes in,
//! snapshots out.
//!
//! In a cluster of 30,000 Services a thousand endpoints may change in a second, so no change may visit all Services.
//! Each snapshot equals one that is composed from scratch, and shares with the previous one all parts that did not
//! change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Backend, Key};
use dataplane::reply_path::ReplyPath;
use dataplane::snapshot::ServiceOptions;
use model::Cluster;
use model::cluster::Change;
use model::eligibility::Eligibility;
use speaker::Neighbours;

use super::snapshots::{links, own_addresses, pod_ranges, service_options};

/// The cluster and the snapshots made of it.
#[derive(Debug)]
pub(super) struct Composition {
    /// The observed objects, without Services that are no load balancers, and without records that are being deleted.
    cluster: Cluster,
    /// The nodes that the speaker has heard on each link; `None` if no speaker runs.
    neighbours: Option<Neighbours>,
    /// The options that most Services have.
    usual: Arc<ServiceOptions>,
    dataplane: dataplane::Snapshot,
    eligibility: Eligibility,
    speaker: speaker::Snapshot,
}

impl Composition {
    /// An empty cluster, seen from `node`. `backend` is the default for Services; `counts` turns traffic counters on.
    pub(super) fn new(node: &str, backend: Backend, counts: bool) -> Self {
        Self {
            cluster: Cluster::default(),
            neighbours: None,
            usual: Arc::default(),
            dataplane: dataplane::Snapshot {
                node: node.to_owned(),
                backend,
                count_traffic: counts,
                ..dataplane::Snapshot::default()
            },
            eligibility: Eligibility::default(),
            speaker: speaker::Snapshot::default(),
        }
    }

    pub(super) fn dataplane(&self) -> &dataplane::Snapshot {
        &self.dataplane
    }

    pub(super) fn speaker(&self) -> &speaker::Snapshot {
        &self.speaker
    }

    /// Whether the cluster has the node from which it is seen.
    pub(super) fn has_own_node(&self) -> bool {
        self.cluster.nodes().contains_key(&self.dataplane.node)
    }

    /// Sets the nodes that the speaker reports as dead.
    pub(super) fn set_dead(&mut self, dead: BTreeSet<String>) {
        self.dataplane.dead = dead;
    }

    /// Sets the reply paths that the kernel has.
    pub(super) fn set_reply_paths(&mut self, reply_paths: Arc<BTreeSet<ReplyPath>>) {
        self.dataplane.reply_paths = reply_paths;
    }

    /// Sets the nodes that the speaker has heard.
    pub(super) fn set_neighbours(&mut self, neighbours: &Neighbours) {
        if self.neighbours.as_ref() != Some(neighbours) {
            self.neighbours = Some(neighbours.clone());
            self.set_links();
        }
    }

    /// Whether the speaker has heard every node that may be on a link of this node.
    pub(super) fn has_met_all(&self) -> bool {
        links(&self.dataplane.node, &self.cluster, None) == self.dataplane.links
    }

    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut affected = self.cluster.apply(changes.into_iter().map(only_in_use));
        affected.lb_ips.iter().for_each(|lb_ip| self.set_holders(*lb_ip));
        if affected.pools {
            affected.services.extend(self.cluster.services().keys().cloned());
        }
        self.set_options(&affected.services);
        self.dataplane.slices = self.cluster.slices().clone();
        if affected.nodes || affected.peer_links {
            let own = self.cluster.nodes().get(&self.dataplane.node);
            self.dataplane.pod_ranges = pod_ranges(own);
            self.dataplane.node_ips = own_addresses(own);
            self.speaker.node_addresses.clone_from(&self.dataplane.node_ips);
            self.set_links();
        }
        self.eligibility.update(&self.cluster, &affected);
        self.speaker.addresses = self.eligibility.policies().clone();
    }

    fn set_links(&mut self) {
        self.dataplane.links = links(&self.dataplane.node, &self.cluster, self.neighbours.as_ref());
    }

    fn set_holders(&mut self, lb_ip: IpAddr) {
        match self.cluster.records().get(&lb_ip) {
            Some(record) => {
                if self.dataplane.addresses.get(&lb_ip).is_none_or(|holders| **holders != *record.holders) {
                    self.dataplane.addresses.insert(lb_ip, record.holders.as_slice().into());
                }
            }
            None => drop(self.dataplane.addresses.remove(&lb_ip)),
        }
    }

    /// Updates the entries of these Services with their options. A Service that does not exist loses its entry.
    fn set_options(&mut self, services: &BTreeSet<Key>) {
        let some_are_unspread = self.cluster.pools().values().any(|pool| !pool.spread);
        for key in services {
            let Some(object) = self.cluster.services().get(key) else {
                self.dataplane.services.remove(key);
                continue;
            };
            let unspread = object.spread_disabled || some_are_unspread && self.is_in_unspread_pool(key);
            let new = service_options(object, unspread);
            let known = self.dataplane.services.get(key);
            let old = known.map(|known| &known.options).into_iter().chain([&self.usual]).find(|old| ***old == new);
            let options = old.cloned().unwrap_or_else(|| Arc::new(new));
            let is_known =
                known.is_some_and(|known| Arc::ptr_eq(&known.object, object) && Arc::ptr_eq(&known.options, &options));
            if !is_known {
                let service = dataplane::snapshot::Service { object: Arc::clone(object), options };
                self.dataplane.services.insert(key.clone(), service);
            }
        }
    }

    /// Whether a Service has an address of a pool whose packets are not spread.
    fn is_in_unspread_pool(&self, service: &Key) -> bool {
        let records = self.cluster.addresses_of(service).filter_map(|lb_ip| self.cluster.records().get(&lb_ip));
        let mut pools = records.filter_map(|record| self.cluster.pools().get(&*record.pool));
        pools.any(|pool| !pool.spread)
    }
}

/// Turns a change of a Service that is no load balancer, or of a record that is being deleted, into the removal of the
/// object: an agent treats such an object as if it did not exist.
fn only_in_use(change: Change) -> Change {
    match change {
        Change::Service(key, after) => Change::Service(key, after.filter(|service| service.is_load_balancer)),
        Change::Record(lb_ip, after) => Change::Record(lb_ip, after.filter(|record| !record.deleting)),
        other => other,
    }
}

#[cfg(test)]
mod tests;
