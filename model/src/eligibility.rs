//! Which nodes may announce a load-balancer address.
//!
//! [`Cluster`] → an [`AnnouncementPolicy`] for each address. There is one decision per address, for all Services that
//! hold it. Separate decisions per Service could contradict each other.
//!
//! A node is a candidate for an address if
//!
//! 1. it exists and has no label that excludes it from load balancers;
//! 2. advertisements let it announce for a Service that holds the address ([`Advertisements`]), and so do the endpoints
//!    of this Service ([`local_nodes`]);
//! 3. no other node satisfies 1 and 2 for more of these Services;
//! 4. it has no [`crds::DrainReason`], or all nodes that satisfy 1 to 3 have one.
//!
//! Rule 4 never leaves an address without a candidate: a drained node keeps an address that only this node may
//! announce. For example, if only this node runs the pods of a Service of traffic policy Local, the address moves when
//! the pods move.
//!
//! These rules do not check whether a node is alive, forwards the address, or has the link that an advertisement names.
//! Speakers detect this by their Hellos.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Holder, Key, Node, Reach, Record, Service, TrafficPolicy};

use crate::SharedMap;
use crate::cluster::{Affected, Cluster, Slices};

mod advertisements;
#[cfg(test)]
mod tests;
mod why_not;

pub use advertisements::{Candidate, Links};
pub use why_not::{Diagnosis, NoCandidateReason};

use advertisements::{Advertisements, Applicable};

/// The nodes that may announce an address, and the greatest epoch that was reported for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncementPolicy {
    /// Most addresses have the same candidates, so they share one set.
    pub candidates: Arc<Candidates>,
    /// The greatest epoch in the status of the LoadBalancerIP: future owners claim a greater one.
    pub epoch: u64,
}

/// The nodes that may announce an address, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidates {
    nodes: BTreeMap<String, Candidate>,
    greatest_preference: u32,
}

impl Candidates {
    pub fn get(&self, node: &str) -> Option<&Candidate> {
        self.nodes.get(node)
    }

    /// Whether `node` may announce the address on some link.
    pub fn contains(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The preference of `node` on its link `link`; `None` if the node may not announce the address there.
    ///
    /// If the candidate may use its home link, the result is the same for every link. Only the node itself knows which
    /// of its links is the home link.
    pub fn preference(&self, node: &str, link: &str) -> Option<u32> {
        let candidate = self.get(node)?;
        (candidate.links.home || candidate.links.named.contains(link)).then_some(candidate.preference)
    }

    /// The greatest preference of any candidate, alive or not.
    pub fn greatest_preference(&self) -> u32 {
        self.greatest_preference
    }

    /// All candidates with their nodes, in order of the names of the nodes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Candidate)> {
        self.nodes.iter().map(|(node, candidate)| (node.as_str(), candidate))
    }
}

impl FromIterator<(String, Candidate)> for Candidates {
    fn from_iter<T: IntoIterator<Item = (String, Candidate)>>(candidates: T) -> Self {
        let nodes: BTreeMap<String, Candidate> = candidates.into_iter().collect();
        let greatest_preference = nodes.values().map(|candidate| candidate.preference).max().unwrap_or(0);
        Self { nodes, greatest_preference }
    }
}

impl FromIterator<String> for Candidates {
    /// Nodes that may announce the address on their home links, none of them preferred.
    fn from_iter<T: IntoIterator<Item = String>>(nodes: T) -> Self {
        nodes.into_iter().map(|node| (node, Candidate::default())).collect()
    }
}

/// The announcement policy of each address that a Service holds, kept up to date.
#[derive(Debug, Default)]
pub struct Eligibility {
    policies: SharedMap<IpAddr, AnnouncementPolicy>,
    /// Equal sets of candidates are stored once: there may be as many addresses as Services, and a set names most
    /// nodes.
    sets: BTreeSet<Arc<Candidates>>,
    /// If there are more sets than this, unused ones are removed.
    limit: usize,
}

/// The lowest `limit` after a removal of unused sets. It keeps removals rare while there are few sets.
const FEW_SETS: usize = 64;

impl Eligibility {
    /// The policy of each address that a Service holds.
    ///
    /// An address has no policy if its record is being deleted, or if no holder in the record is an existing Service of
    /// type LoadBalancer. For example, the address is only reserved, or another Service has the name of the holder now.
    pub fn policies(&self) -> &SharedMap<IpAddr, AnnouncementPolicy> {
        &self.policies
    }

    /// Updates the policies of the `affected` addresses.
    pub fn update(&mut self, cluster: &Cluster, affected: &Affected) {
        if affected.nodes || affected.pools || affected.advertisements {
            let mut rules = Rules::new(cluster);
            self.policies = SharedMap::default();
            for (lb_ip, record) in cluster.records.iter() {
                self.decide(*lb_ip, Some(record), &mut rules);
            }
        } else if !affected.lb_ips.is_empty() {
            let mut rules = Rules::new(cluster);
            for lb_ip in &affected.lb_ips {
                self.decide(*lb_ip, cluster.records.get(lb_ip), &mut rules);
            }
        }
        if self.sets.len() > self.limit {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.limit = (self.sets.len() * 2).max(FEW_SETS);
        }
    }

    fn decide<'a>(&mut self, lb_ip: IpAddr, record: Option<&'a Arc<Record>>, rules: &mut Rules<'a>) {
        let decided = record.and_then(|record| Some((record, rules.candidates(record)?)));
        let Some((record, candidates)) = decided else {
            self.policies.remove(&lb_ip);
            return;
        };
        let candidates = self.sets.get(&candidates).cloned().unwrap_or_else(|| {
            self.sets.insert(Arc::clone(&candidates));
            candidates
        });
        let policy = AnnouncementPolicy { candidates, epoch: greatest_epoch(record) };
        if self.policies.get(&lb_ip) != Some(&policy) {
            self.policies.insert(lb_ip, policy);
        }
    }
}

/// The greatest epoch in the reports of the announcers.
fn greatest_epoch(record: &Record) -> u64 {
    let epochs = record.announcers.iter().filter_map(|announcer| u64::try_from(announcer.epoch).ok());
    epochs.max().unwrap_or(0)
}

/// Finds the candidates of addresses, and keeps intermediate results that many addresses have in common.
struct Rules<'a> {
    cluster: &'a Cluster,
    /// The nodes that are not excluded from load balancers.
    included: Vec<&'a Node>,
    advertisements: Advertisements<'a>,
    /// The applicable advertisements of each pool that was looked up.
    pools: BTreeMap<&'a str, Applicable>,
    /// The candidates for each set of claimants that was looked up.
    decided: BTreeMap<Vec<Claimant<'a>>, Arc<Candidates>>,
}

/// The properties of a holder that the candidates depend on. Equal claimants have equal candidates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant<'a> {
    advertisements: Applicable,
    /// The nodes that may announce because of the endpoints: see [`local_nodes`]. `None`: all nodes.
    local: Option<BTreeSet<&'a str>>,
}

impl Claimant<'_> {
    fn may_use(&self, node: &Node, advertisements: &Advertisements<'_>) -> bool {
        let is_local = self.local.as_ref().is_none_or(|local| local.contains(node.name.as_str()));
        is_local && advertisements.admit(&self.advertisements, &node.name)
    }
}

impl<'a> Rules<'a> {
    /// If every node has the label that excludes it from load balancers, the label is ignored. kubeadm sets the label
    /// on control planes, even in clusters without other nodes. If the label counted there, no node could announce any
    /// address.
    fn new(cluster: &'a Cluster) -> Self {
        let all_excluded = cluster.nodes.values().all(|node| node.excluded);
        let nodes = cluster.nodes.values().map(|node| &**node);
        Self {
            cluster,
            included: nodes.filter(|node| all_excluded || !node.excluded).collect(),
            advertisements: Advertisements::new(cluster),
            pools: BTreeMap::new(),
            decided: BTreeMap::new(),
        }
    }

    /// The nodes that may announce the address of `record`; `None` if no Service holds it.
    fn candidates(&mut self, record: &'a Record) -> Option<Arc<Candidates>> {
        if record.deleting {
            return None;
        }
        let Self { cluster, included, advertisements, pools, decided } = self;
        let of_pool = pools.entry(&record.pool).or_insert_with(|| advertisements.select_by_pool(&record.pool));
        let services = record.holders.iter().filter_map(|holder| service_of(holder, &cluster.services));
        let mut claimants: Vec<Claimant<'_>> = services
            .map(|service| Claimant {
                advertisements: advertisements.select_by_service(of_pool, &service.labels),
                local: local_nodes(service, cluster.slices.get(&service.key), record),
            })
            .collect();
        if claimants.is_empty() {
            return None;
        }
        // Sorted, so that the order of holders does not matter.
        claimants.sort_unstable();
        let candidates = decided
            .entry(claimants)
            .or_insert_with_key(|claimants| Arc::new(candidates(included, claimants, advertisements)));
        Some(Arc::clone(candidates))
    }
}

/// The Service that a holder names; `None` if it is deleted or not a LoadBalancer. A Service with the same name and
/// another UID is another Service.
fn service_of<'a>(holder: &Holder, services: &'a SharedMap<Key, Arc<Service>>) -> Option<&'a Service> {
    let service = services.get(&holder.service())?;
    (service.uid == holder.uid && service.is_load_balancer).then_some(service)
}

/// The `included` nodes that may announce an address that `claimants` hold: rules 2 to 4.
fn candidates(included: &[&Node], claimants: &[Claimant<'_>], advertisements: &Advertisements<'_>) -> Candidates {
    let claims = |node: &Node| claimants.iter().filter(|claimant| claimant.may_use(node, advertisements)).count();
    let counted: Vec<(&Node, usize)> = included.iter().map(|node| (*node, claims(node))).collect();
    let most = counted.iter().map(|(_, claims)| *claims).max().unwrap_or(0);
    let able = counted.into_iter().filter(|(_, claims)| *claims == most && most > 0).map(|(node, _)| node);
    let able: Vec<&Node> = able.collect();
    let all_drained = able.iter().all(|node| node.drain_reason.is_some());
    let chosen = able.into_iter().filter(|node| all_drained || node.drain_reason.is_none());
    chosen
        .map(|node| {
            let served = claimants.iter().filter(|claimant| claimant.may_use(node, advertisements));
            let applicable = served.map(|claimant| &claimant.advertisements);
            (node.name.clone(), advertisements.candidate(applicable, &node.name))
        })
        .collect()
}

/// The nodes that may announce for a Service of traffic policy Local: nodes with an endpoint that accepts new
/// connections. Such an endpoint is ready. If no endpoint of the Service is ready on any node, endpoints that terminate
/// and still serve count instead (KEP-1669).
///
/// A node that announces the address and spreads its packets stays a candidate while its own endpoint terminates. The
/// endpoint gets no new connections, but its open connections continue. Only this node knows these connections: another
/// node would re-send their packets by its share table, which no longer counts the endpoint. When the endpoint ends,
/// this node is no longer a candidate. By then, all nodes use the new share table, so a takeover moves no open
/// connection.
///
/// `None`: every node may announce, because the policy is Cluster or because there is no such endpoint. Without
/// endpoints, the dataplane of the announcing node refuses connections: clients fail at once and not after a timeout.
fn local_nodes<'a>(service: &Service, slices: Option<&'a Slices>, record: &Record) -> Option<BTreeSet<&'a str>> {
    if service.traffic_policy != TrafficPolicy::Local {
        return None;
    }
    let endpoints = || slices.into_iter().flat_map(|slices| slices.iter()).flat_map(|slice| &slice.endpoints);
    let ready = endpoints().filter(|endpoint| endpoint.ready).filter_map(|endpoint| endpoint.node.as_deref());
    let serving = endpoints().filter(|endpoint| endpoint.serving).filter_map(|endpoint| endpoint.node.as_deref());
    let mut nodes: BTreeSet<&str> = ready.collect();
    let none_is_ready = nodes.is_empty();
    nodes.extend(serving.filter(|node| none_is_ready || spreads(record, node)));
    (!nodes.is_empty()).then_some(nodes)
}

/// Whether `node` announces the address and spreads its packets over nodes.
fn spreads(record: &Record, node: &str) -> bool {
    record.announcers.iter().any(|announcer| &*announcer.node == node && announcer.reach == Some(Reach::Spread))
}
