//! The snapshots of the dataplane and the speaker, kept up to date with each change of an object. Pure: changes in,
//! snapshots out.
//!
//! In a cluster of 30,000 Services a thousand endpoints may change in a second, so a change of endpoints must not visit
//! all Services. Each snapshot equals one that is composed from scratch, and shares with the previous one all parts
//! that did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::{NodeNetworkSpec, PeerLink};
use crds::service::Family;
use crds::{Backend, Key, MacAddr, Node, Service, parse_station};
use dataplane::reply_path::ReplyPathInput;
use dataplane::rules::Sources;
use dataplane::snapshot::{Link, LinkName, ServiceOptions};
use ipnet::IpNet;
use model::Cluster;
use model::cluster::Change;
use model::eligibility::Eligibility;
use speaker::Neighbours;

/// The cluster, and the snapshots that are composed from it.
#[derive(Debug)]
pub(crate) struct Composition {
    /// The observed objects. They include only Services that are load balancers, and no record that is being deleted.
    cluster: Cluster,
    /// The nodes that the speaker has heard on each link; `None` if no speaker runs.
    neighbours: Option<Neighbours>,
    /// The network of this node; `None` if it is unknown.
    network: Option<NodeNetworkSpec>,
    /// The links of this node since the start, with their last addresses. A link that loses its carrier stays here: when
    /// it returns, packets arrive before the kernel reports the link.
    seen_links: BTreeMap<LinkName, Vec<String>>,
    /// The pod ranges of this node.
    pod_ranges: Vec<IpNet>,
    /// The options of a Service that specifies none. Most Services share them.
    default_options: Arc<ServiceOptions>,
    /// The owner of this composition sets the dead nodes and the reply paths.
    pub(super) dataplane: dataplane::Snapshot,
    eligibility: Eligibility,
    pub(super) speaker: speaker::Snapshot,
}

impl Composition {
    /// A composition of no objects, for `node`. `backend` is the default for Services. `count_traffic` turns traffic
    /// counters on.
    pub(crate) fn new(node: &str, backend: Backend, count_traffic: bool) -> Self {
        Self {
            cluster: Cluster::default(),
            neighbours: None,
            network: None,
            seen_links: BTreeMap::new(),
            pod_ranges: Vec::new(),
            default_options: Arc::default(),
            dataplane: dataplane::Snapshot {
                node: node.to_owned(),
                backend,
                count_traffic,
                ..dataplane::Snapshot::default()
            },
            eligibility: Eligibility::default(),
            speaker: speaker::Snapshot::default(),
        }
    }

    /// Whether the cluster has the node of this composition.
    pub(super) fn has_own_node(&self) -> bool {
        self.cluster.nodes().contains_key(&self.dataplane.node)
    }

    /// Sets the nodes that the speaker has heard.
    pub(super) fn set_neighbours(&mut self, neighbours: &Neighbours) {
        if self.neighbours.as_ref() != Some(neighbours) {
            self.neighbours = Some(neighbours.clone());
            self.set_links();
        }
    }

    /// Sets the network of this node.
    pub(super) fn set_network(&mut self, network: Option<&NodeNetworkSpec>) {
        if self.network.as_ref() != network {
            self.network = network.cloned();
            let links = network.into_iter().flat_map(|network| &network.links);
            let links = links.filter_map(|link| Some((LinkName::new(&link.name)?, link.addresses.clone())));
            self.seen_links.extend(links);
            self.set_lan_links();
            self.set_own_addresses();
        }
    }

    fn set_lan_links(&mut self) {
        let are_on_lan = |addresses: &Vec<String>| !has_pod_address(addresses, &self.pod_ranges);
        let links = self.seen_links.iter().filter(|(_, addresses)| are_on_lan(addresses)).map(|(name, _)| *name);
        let links: BTreeSet<LinkName> = links.collect();
        if links != *self.dataplane.lan_links {
            self.dataplane.lan_links = Arc::new(links);
        }
    }

    /// The links and families that need a reply path; `None` while the network is unknown. A link with pod addresses
    /// needs none: only pods of this node send requests to an lb_ip through it.
    pub(super) fn reply_links(&self) -> Option<ReplyPathInput> {
        let links = &self.network.as_ref()?.links;
        let links = links.iter().filter(|link| !has_pod_address(&link.addresses, &self.pod_ranges));
        let lb_ips = &self.dataplane.addresses;
        let ends = [lb_ips.keys().next(), lb_ips.keys().next_back()];
        Some(ReplyPathInput {
            links: links.filter_map(|link| LinkName::new(&link.name)).collect(),
            // IPv4 addresses sort before IPv6 addresses.
            families: ends.into_iter().flatten().copied().map(Family::from).collect(),
        })
    }

    /// Whether the network of this node is known.
    pub(super) fn knows_network(&self) -> bool {
        self.network.is_some()
    }

    fn set_own_addresses(&mut self) {
        let addresses = own_addresses(&self.dataplane.node_ips, self.network.as_ref());
        if addresses != self.dataplane.own_addresses {
            self.dataplane.own_addresses = addresses;
        }
    }

    /// Whether the speaker has heard every node that may be on a link of this node.
    pub(super) fn has_heard_all(&self) -> bool {
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
            self.pod_ranges = pod_ranges(own);
            self.dataplane.node_ips = node_ips(own);
            self.set_lan_links();
            self.set_own_addresses();
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

    /// Updates the entries of these Services, with their options. Removes the entry of a Service that no longer exists.
    fn set_options(&mut self, services: &BTreeSet<Key>) {
        let some_pool_disables_spreading = self.cluster.pools().values().any(|pool| !pool.spread);
        for key in services {
            let Some(object) = self.cluster.services().get(key) else {
                self.dataplane.services.remove(key);
                continue;
            };
            let no_spreading =
                object.spread_disabled || some_pool_disables_spreading && self.pool_disables_spreading(key);
            let new = service_options(object, no_spreading);
            let known = self.dataplane.services.get(key);
            let old =
                known.map(|known| &known.options).into_iter().chain([&self.default_options]).find(|old| ***old == new);
            let options = old.cloned().unwrap_or_else(|| Arc::new(new));
            let is_known =
                known.is_some_and(|known| Arc::ptr_eq(&known.object, object) && Arc::ptr_eq(&known.options, &options));
            if !is_known {
                let service = dataplane::snapshot::Service { object: Arc::clone(object), options };
                self.dataplane.services.insert(key.clone(), service);
            }
        }
    }

    /// Whether a Service holds an address of a pool that disables spreading.
    fn pool_disables_spreading(&self, service: &Key) -> bool {
        let records = self.cluster.addresses_of(service).filter_map(|lb_ip| self.cluster.records().get(&lb_ip));
        let mut pools = records.filter_map(|record| self.cluster.pools().get(&*record.pool));
        pools.any(|pool| !pool.spread)
    }
}

/// Turns the change of an object that an agent does not use into the removal of the object. An agent uses only Services
/// that are load balancers, and no record that is being deleted.
fn only_in_use(change: Change) -> Change {
    match change {
        Change::Service(key, after) => Change::Service(key, after.filter(|service| service.is_load_balancer)),
        Change::Record(lb_ip, after) => Change::Record(lb_ip, after.filter(|record| !record.deleting)),
        other => other,
    }
}

/// The addresses of a link, without their prefix lengths. An invalid one is ignored.
fn link_addresses(addresses: &[String]) -> impl Iterator<Item = IpAddr> {
    addresses.iter().filter_map(|address| address.parse::<IpNet>().ok()).map(|net| net.addr())
}

/// Whether one of these addresses of a link is in a pod range: the link is the bridge of this node's pods.
fn has_pod_address(addresses: &[String], pod_ranges: &[IpNet]) -> bool {
    link_addresses(addresses).any(|own| pod_ranges.iter().any(|range| range.contains(&own)))
}

/// The links on which this node can re-send frames, and the nodes on each. Another node is on a link under two
/// conditions:
///
/// - Both nodes have an address of the same network there.
/// - The speaker heard the other node there, from the MAC address in the NodeNetwork of that node. The network alone is
///   no proof, because separate LANs may use the same network. Without `neighbours` (no speaker runs), the first
///   condition suffices.
fn links(node: &str, cluster: &Cluster, neighbours: Option<&Neighbours>) -> BTreeMap<LinkName, Link> {
    let (nodes, peer_links) = (cluster.nodes(), cluster.peer_links());
    let mut links = BTreeMap::new();
    for own in peer_links.get(node).iter().flat_map(|node| &node.links) {
        let (Some(name), Some(mac)) = (LinkName::new(&own.name), parse_station(&own.mac)) else { continue };
        let shares_network = |link: &&PeerLink| link.networks.iter().any(|network| own.networks.contains(network));
        let others = peer_links.iter().filter(|(other, _)| *other != node && nodes.contains_key(*other));
        let peers = others.filter_map(|(other, peer_links)| {
            let peer_link = peer_links.links.iter().find(shares_network)?;
            let peer = parse_station(&peer_link.mac)?;
            let is_heard = neighbours.is_none_or(|neighbours| neighbours.mac(&own.name, other) == Some(peer));
            // Two nodes with one MAC address cannot be distinguished.
            let is_reachable = |address: &&IpNet| own.networks.contains(&address.trunc());
            let addresses: Vec<IpAddr> = peer_link.addresses.iter().filter(is_reachable).map(IpNet::addr).collect();
            (is_heard && peer != mac).then(|| ((other.clone(), peer), (other.clone(), addresses)))
        });
        let (peers, addresses): (BTreeMap<String, MacAddr>, _) = peers.unzip();
        if !peers.is_empty() {
            links.insert(name, Link { mac, peers, addresses });
        }
    }
    links
}

/// The source ranges, the session affinity and the spreading of a Service.
fn service_options(service: &Service, no_spreading: bool) -> ServiceOptions {
    let field = service.source_ranges.iter().map(|range| &**range);
    let sources = Sources::parse(field, service.source_ranges_annotation.as_deref());
    ServiceOptions { sources, affinity: service.affinity, no_spreading }
}

/// The pod ranges of this node. An invalid range is ignored: a bridge of its pods counts as a link of clients.
fn pod_ranges(own: Option<&Arc<Node>>) -> Vec<IpNet> {
    own.into_iter().flat_map(|own| &own.pod_cidrs).filter_map(|cidr| cidr.parse().ok()).collect()
}

fn node_ips(own: Option<&Arc<Node>>) -> Vec<IpAddr> {
    own.map(|own| own.addresses.clone()).unwrap_or_default()
}

/// The addresses of this node: those in the Node, and those of its links.
fn own_addresses(node_ips: &[IpAddr], network: Option<&NodeNetworkSpec>) -> BTreeSet<IpAddr> {
    let of_links = network.into_iter().flat_map(|network| &network.links);
    let of_links = of_links.flat_map(|link| link_addresses(&link.addresses));
    node_ips.iter().copied().chain(of_links).collect()
}

#[cfg(test)]
mod tests;
