//! Which nodes may announce an lb_ip.
//!
//! Objects in, an [`AnnouncementPolicy`] for each address out. It is decided for each address, over all Services that hold it: two decisions about one
//! address could only contradict each other.
//!
//! A node is a candidate for an address if
//!
//! 1. it exists, and isn't labelled to take no traffic from outside;
//! 2. advertisements let it announce for a Service that holds the address ([`Advertisements`]), and it has an
//!    endpoint of that Service where the traffic policy is Local;
//! 3. of the nodes of which that is true, it is one for as many of these Services as any other;
//! 4. and nothing says that others should announce in its place ([`crds::DrainReason`]), or they couldn't.
//!
//! What is said in 4 is no reason to announce an address nowhere: who drains a node wants its work to go elsewhere, and not
//! to end. A pod that only this node has must move first, and its address moves with it.
//!
//! Whether a node is alive, forwards the address, and has the link that an advertisement names is not asked here: speakers
//! tell each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Advertisement, EndpointSlice, Holder, Key, Labels, Node, Reach, Record, Service, TrafficPolicy};

use crate::SharedMap;

mod advertisements;
mod candidates;

pub use advertisements::{Advertisements, Applicable};
pub use candidates::{AnnouncementPolicy, Candidate, Candidates, Links};

/// What is observed, as far as it bears on who may announce.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All Services that a holder may name. More do no harm.
    pub services: SharedMap<Key, Arc<Service>>,
    /// The slices of each Service, in any order.
    pub slices: SharedMap<Key, Arc<[Arc<EndpointSlice>]>>,
    /// All nodes, by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// The labels of all pools, by name.
    pub pools: BTreeMap<String, Arc<Labels>>,
    /// All advertisements, by name.
    pub advertisements: BTreeMap<String, Arc<Advertisement>>,
    /// Who holds each address. What is being deleted isn't held any more.
    pub addresses: SharedMap<IpAddr, Arc<Record>>,
}

/// A Service that holds an address, as far as it matters where that is announced. Equal ones have equal candidates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant<'a> {
    /// The advertisements that count for it.
    advertisements: Applicable,
    /// The nodes that it is confined to.
    local: Option<BTreeSet<&'a str>>,
}

/// Of which addresses something else may have been observed.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// Of all.
    All,
    /// Of these: of their records, of Services that hold them, or of those Services' slices.
    Of(&'a BTreeSet<IpAddr>),
}

/// Who may announce each address, from nothing but this.
pub fn policies(observed: &Observed) -> SharedMap<IpAddr, AnnouncementPolicy> {
    let mut eligibility = Eligibility::default();
    eligibility.update(observed, News::All);
    eligibility.policies
}

/// Who may announce each address, kept up to date.
#[derive(Debug, Default)]
pub struct Eligibility {
    policies: SharedMap<IpAddr, AnnouncementPolicy>,
    /// Equal sets are one set: there may be as many addresses as Services, and as many names in each as nodes.
    sets: BTreeSet<Arc<Candidates>>,
    /// With so many sets it is time to look which of them nobody holds.
    full: usize,
}

impl Eligibility {
    /// Who may announce each address that some Service holds.
    pub fn policies(&self) -> &SharedMap<IpAddr, AnnouncementPolicy> {
        &self.policies
    }

    /// Takes in what is observed now. What is no news is not looked at.
    ///
    /// An address without a Service (a reservation, or one whose holder is gone or is another one by now) is not wanted.
    ///
    /// Where every node is labelled to take no traffic from outside, none is: kubeadm labels control planes so, also where
    /// they are the only nodes, and an address that nobody announces serves nobody.
    pub fn update(&mut self, observed: &Observed, news: News<'_>) {
        let mut decider = Decider::new(observed);
        match news {
            News::All => {
                self.policies = SharedMap::default();
                for (lb_ip, record) in observed.addresses.iter() {
                    self.decide(*lb_ip, Some(record), &mut decider);
                }
            }
            News::Of(lb_ips) => {
                lb_ips.iter().for_each(|lb_ip| self.decide(*lb_ip, observed.addresses.get(lb_ip), &mut decider));
            }
        }
        if self.sets.len() > self.full {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.full = (self.sets.len() * 2).max(FEW);
        }
    }

    fn decide<'a>(&mut self, lb_ip: IpAddr, record: Option<&'a Arc<Record>>, decider: &mut Decider<'a>) {
        let candidates = record.filter(|record| !record.deleting).and_then(|record| decider.candidates(record));
        let Some((record, candidates)) = record.zip(candidates) else {
            self.policies.remove(&lb_ip);
            return;
        };
        let candidates = self.sets.get(&candidates).cloned().unwrap_or_else(|| {
            self.sets.insert(Arc::clone(&candidates));
            candidates
        });
        let policy = AnnouncementPolicy { candidates, epoch: epoch(record) };
        if self.policies.get(&lb_ip) != Some(&policy) {
            self.policies.insert(lb_ip, policy);
        }
    }
}

/// Below this many sets it is not worth to look which of them nobody holds.
const FEW: usize = 64;

/// Decides who may announce addresses, as things are observed at one time.
struct Decider<'a> {
    observed: &'a Observed,
    /// The nodes that take traffic from outside.
    included: Vec<&'a Node>,
    advertisements: Advertisements<'a>,
    /// The advertisements of the pools that were asked for.
    pools: BTreeMap<&'a str, Applicable>,
    /// What was decided already.
    known: BTreeMap<Vec<Claimant<'a>>, Arc<Candidates>>,
}

impl<'a> Decider<'a> {
    fn new(observed: &'a Observed) -> Self {
        let all_excluded = observed.nodes.values().all(|node| node.excluded);
        let nodes = observed.nodes.values().map(|node| &**node);
        Self {
            observed,
            included: nodes.filter(|node| all_excluded || !node.excluded).collect(),
            advertisements: Advertisements::new(&observed.advertisements, &observed.nodes, &observed.pools),
            pools: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    /// Who may announce an address, if a Service holds it.
    fn candidates(&mut self, record: &'a Record) -> Option<Arc<Candidates>> {
        let Self { observed, included, advertisements, pools, known } = self;
        let of_pool = pools.entry(&record.pool).or_insert_with(|| advertisements.of_pool(&record.pool));
        let services = record.holders.iter().filter_map(|holder| holding(holder, observed));
        let mut claimants: Vec<Claimant<'_>> = services
            .map(|service| Claimant {
                advertisements: advertisements.of_service(of_pool, &service.labels),
                local: confined(service, observed, record),
            })
            .collect();
        if claimants.is_empty() {
            return None;
        }
        // Whoever came first to a shared address is no better for it.
        claimants.sort_unstable();
        let decided = known
            .entry(claimants)
            .or_insert_with_key(|claimants| Arc::new(candidates(included, claimants, advertisements)));
        Some(Arc::clone(decided))
    }
}

/// The Service that a holder means: a Service of that name with another UID is another one.
fn holding<'a>(holder: &Holder, observed: &'a Observed) -> Option<&'a Service> {
    let service = observed.services.get(&holder.service())?;
    (service.uid == holder.uid && service.is_load_balancer).then_some(service)
}

/// The greatest epoch that any announcer of an address wrote.
fn epoch(record: &Record) -> u64 {
    let epochs = record.announcers.iter().filter_map(|announcer| u64::try_from(announcer.epoch).ok());
    epochs.max().unwrap_or(0)
}

/// Who may announce an address that `claimants` hold: see the top of this file.
fn candidates(included: &[&Node], claimants: &[Claimant<'_>], advertisements: &Advertisements<'_>) -> Candidates {
    let serves = |node: &Node, claimant: &Claimant<'_>| {
        let here = claimant.local.as_ref().is_none_or(|local| local.contains(node.name.as_str()));
        here && advertisements.admit(&claimant.advertisements, &node.name)
    };
    let count = |node: &Node| claimants.iter().filter(|claimant| serves(node, claimant)).count();
    let counted: Vec<(&Node, usize)> = included.iter().map(|node| (*node, count(node))).collect();
    let most = counted.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let able = counted.iter().filter(|(_, count)| *count == most && most > 0).map(|(node, _)| *node);
    let able: Vec<&Node> = able.collect();
    let all_relieved = able.iter().all(|node| node.drain_reason.is_some());
    let candidate = |node: &Node| {
        let served = claimants.iter().filter(|claimant| serves(node, claimant)).map(|c| &c.advertisements);
        (node.name.clone(), advertisements.candidate(served, &node.name))
    };
    able.into_iter().filter(|node| all_relieved || node.drain_reason.is_none()).map(candidate).collect()
}

/// The nodes that a Service of traffic policy Local is confined to: those with an endpoint that new connections may go to,
/// one that is ready or, if there is none in the whole cluster, one that still serves while it terminates (KEP-1669).
///
/// One that announces the address and spreads what comes stays a candidate for as long as it has an endpoint that serves.
/// Nothing new goes to that one, but what it has goes on; and only this node knows which connections are whose, now that it
/// has left the table by which others would hand them on. When the endpoint ends, the table has long been the same everywhere.
///
/// `None` for a Service without any: then every node may announce its address, and the dataplane there refuses connections,
/// which tells clients more than silence.
fn confined<'a>(service: &Service, observed: &'a Observed, record: &Record) -> Option<BTreeSet<&'a str>> {
    if service.traffic_policy != TrafficPolicy::Local {
        return None;
    }
    let slices = observed.slices.get(&service.key);
    let endpoints = || slices.into_iter().flat_map(|slices| slices.iter()).flat_map(|slice| &slice.endpoints);
    let ready = endpoints().filter(|endpoint| endpoint.ready).filter_map(|endpoint| endpoint.node.as_deref());
    let serving = endpoints().filter(|endpoint| endpoint.serving).filter_map(|endpoint| endpoint.node.as_deref());
    let mut nodes: BTreeSet<&str> = ready.collect();
    let none_is_ready = nodes.is_empty();
    let spreads = |node: &str| {
        record.announcers.iter().any(|announcer| &*announcer.node == node && announcer.reach == Some(Reach::Spread))
    };
    nodes.extend(serving.filter(|node| none_is_ready || spreads(node)));
    (!nodes.is_empty()).then_some(nodes)
}

#[cfg(test)]
mod tests;
