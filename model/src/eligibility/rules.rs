//! The rules of [`super`], applied to one state of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::{Advertisement, Holder, Key, Node, PoolSettings, Reach, Record, Service, TrafficPolicy};

use super::advertisements::{Advertisements, Applicable};
use super::candidates::Candidates;
use crate::SharedMap;
use crate::cluster::{Cluster, Named, Slices};

/// The kinds of objects that the rules read.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) services: &'a SharedMap<Key, Arc<Service>>,
    pub(super) slices: &'a SharedMap<Key, Slices>,
    pub(super) nodes: &'a Named<Node>,
    pub(super) pools: &'a Named<PoolSettings>,
    pub(super) advertisements: &'a Named<Advertisement>,
}

impl<'a> View<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self {
            services: cluster.services(),
            slices: cluster.slices(),
            nodes: cluster.nodes(),
            pools: cluster.pools(),
            advertisements: cluster.advertisements(),
        }
    }
}

/// Finds the candidates of addresses, and keeps intermediate results that many addresses have in common.
pub(super) struct Rules<'a> {
    view: View<'a>,
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
    /// on control planes, even in clusters without other nodes, and an address without an announcer serves no client.
    pub(super) fn new(view: View<'a>) -> Self {
        let all_excluded = view.nodes.values().all(|node| node.excluded);
        let nodes = view.nodes.values().map(|node| &**node);
        Self {
            view,
            included: nodes.filter(|node| all_excluded || !node.excluded).collect(),
            advertisements: Advertisements::new(view.advertisements, view.nodes, view.pools),
            pools: BTreeMap::new(),
            decided: BTreeMap::new(),
        }
    }

    /// The nodes that may announce the address of `record`; `None` if no Service holds it.
    pub(super) fn candidates(&mut self, record: &'a Record) -> Option<Arc<Candidates>> {
        if record.deleting {
            return None;
        }
        let Self { view, included, advertisements, pools, decided } = self;
        let of_pool = pools.entry(&record.pool).or_insert_with(|| advertisements.select_by_pool(&record.pool));
        let services = record.holders.iter().filter_map(|holder| service_of(holder, view.services));
        let mut claimants: Vec<Claimant<'_>> = services
            .map(|service| Claimant {
                advertisements: advertisements.select_by_service(of_pool, &service.labels),
                local: local_nodes(service, view.slices.get(&service.key), record),
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

/// The `included` nodes that may announce an address that `claimants` hold: rules 2 to 4 of [`super`].
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
/// connections. Such an endpoint is ready. If no endpoint in the cluster is ready, endpoints that terminate and still
/// serve count instead (KEP-1669).
///
/// A node that announces the address and spreads its packets stays a candidate while its own endpoint terminates. The
/// endpoint gets no new connections, but its open connections continue. Only this node knows these connections: another
/// node would re-send their packets by its share table, which no longer counts the endpoint. When the endpoint ends,
/// this node is no longer a candidate. By then, all nodes have used the new share table for some time.
///
/// `None`: every node may announce, because the policy is Cluster or because there is no such endpoint. Without
/// endpoints, the dataplane of the announcing node refuses connections, which informs clients better than silence.
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
