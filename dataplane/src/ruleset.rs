//! What must happen to packets: [`Snapshot`] → [`Ruleset`], by [`ruleset`].
//!
//! The ruleset knows lb_ips, ports and endpoints, and nothing of how a kernel is told: that is the engine's business.
//!
//! Two kinds of packets are told apart. Those from *outside* come from other hosts; the traffic policy binds them.
//! Those from *inside* come from this node or a pod on it; they may use every endpoint, whatever the policy is, as with
//! kube-proxy. Who may use a Service at all is the same for both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{EndpointSlice, Key, Port, Protocol, Range, TrafficPolicy};

use crate::snapshot::{Service, Snapshot};
use crate::sources::merged;

/// What must happen to packets on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Where packets from this node's pods come from: sorted, and no two of them touch.
    pub pod_ranges: Vec<Range>,
    /// Every lb_ip that a Service holds, with what is behind it. An lb_ip that is held by none that exists is not
    /// here: packets to it are none of our business, and it must not be announced.
    pub addresses: BTreeMap<IpAddr, Arc<LbIp>>,
    /// Which ways to targets there are in each family, and how often: what an engine needs one of for all, without
    /// having to look at all. Kept by [`Ruleset::set`].
    ways: BTreeMap<(Family, Way), usize>,
}

impl Ruleset {
    /// Puts `new` behind `address`, or nothing.
    pub(crate) fn set(&mut self, address: IpAddr, new: Option<Arc<LbIp>>) {
        let family = Family::of(address);
        let ways = |lb_ip: &Arc<LbIp>| -> Vec<(Family, Way)> {
            let ways = lb_ip.ports.values().flat_map(|target| [target.way_from_outside(), target.way_from_inside()]);
            ways.flatten().map(|way| (family, way)).collect()
        };
        for way in new.iter().flat_map(ways) {
            *self.ways.entry(way).or_default() += 1;
        }
        let old = match new {
            Some(new) => self.addresses.insert(address, new),
            None => self.addresses.remove(&address),
        };
        for way in old.iter().flat_map(ways) {
            if let Some(count) = self.ways.get_mut(&way) {
                *count -= 1;
            }
        }
        self.ways.retain(|_, count| *count > 0);
    }

    /// Every way to a target, with the family of its lb_ip.
    pub fn ways(&self) -> impl Iterator<Item = (Family, Way)> {
        self.ways.keys().copied()
    }
}

/// What is behind one lb_ip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LbIp {
    /// What is behind each port. Packets to any other port are dropped: handed on, they would go back to the router
    /// they came from.
    pub ports: BTreeMap<(Protocol, u16), Target>,
    /// What users should know.
    pub problems: BTreeSet<Problem>,
}

/// Something in a Service that is not forwarded as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// An entry of its source ranges is no range, and opens it to nobody.
    InvalidSourceRange {
        /// The Service.
        service: Key,
        /// The entry.
        entry: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidSourceRange { service, entry } => write!(
                f,
                "loadBalancerSourceRanges of Service {service}: {entry:?} is no CIDR such as 192.0.2.0/24, and lets nobody in"
            ),
        }
    }
}

/// What is behind one port of an lb_ip.
///
/// Without any endpoint, packets are refused. With endpoints, but none for packets from outside, those are dropped:
/// the endpoints are alive, only not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// All endpoints that new connections may go to: first those for packets from outside, of these first the local
    /// ones, and else by address.
    pub endpoints: Vec<Endpoint>,
    /// Which of them packets from outside may use.
    pub outside: Pick,
    /// Which of them packets from inside may use.
    pub inside: Pick,
    /// Endpoints that get no new connection but still serve those they have.
    pub draining: BTreeSet<SocketAddr>,
    /// The ranges that clients may come from, sorted, without two that touch; packets from elsewhere are dropped,
    /// whether there are endpoints or not. `None`: from anywhere.
    pub sources: Option<Arc<[Range]>>,
    /// For how many seconds after its last new connection a client stays with its endpoint.
    pub affinity: Option<u32>,
}

impl Target {
    /// How packets from outside get to endpoints, if there are any for them.
    pub fn way_from_outside(&self) -> Option<Way> {
        self.way(self.outside)
    }

    /// How packets from inside do.
    pub fn way_from_inside(&self) -> Option<Way> {
        self.way(self.inside)
    }

    fn way(&self, pick: Pick) -> Option<Way> {
        (pick.count > 0).then_some(Way { pick, restricted: self.sources.is_some(), affinity: self.affinity })
    }
}

/// How a new connection gets to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// Which endpoints there are for it.
    pub pick: Pick,
    /// Whether only some clients may go it.
    pub restricted: bool,
    /// For how many seconds it is remembered where a client went, who goes there again.
    pub affinity: Option<u32>,
}

/// An endpoint that packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Whether it is on another node. (So that local ones are first in order.)
    pub remote: bool,
    /// Its address and port.
    pub address: SocketAddr,
}

/// Some consecutive endpoints of a [`Target`]: one of them is picked at random for each new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// The index of the first.
    pub from: u32,
    /// How many there are.
    pub count: u32,
}

/// The ruleset for what was observed.
pub fn ruleset(snapshot: &Snapshot) -> Ruleset {
    let mut ruleset = Ruleset { pod_ranges: merged(&snapshot.pod_ranges), ..Ruleset::default() };
    for address in snapshot.addresses.keys() {
        if let Some(lb_ip) = lb_ip(snapshot, *address) {
            ruleset.set(*address, Some(Arc::new(lb_ip)));
        }
    }
    ruleset
}

/// What is behind `address`; `None` if no Service that exists holds it.
pub(crate) fn lb_ip(snapshot: &Snapshot, address: IpAddr) -> Option<LbIp> {
    let mut holders: Vec<&Service> = Vec::new();
    for holder in snapshot.addresses.get(&address)?.iter() {
        let key = Key::new(holder.namespace.clone(), holder.name.clone());
        let held_by = |service: &&Service| service.object.uid == holder.uid && service.object.is_load_balancer;
        holders.extend(snapshot.services.get(&key).filter(held_by));
    }
    if holders.is_empty() {
        return None;
    }
    // Services that share an lb_ip have different ports, or the controller would not have let them. Should two claim
    // the same one nevertheless, it is the first one's by name: on every node the same.
    holders.sort_by(|a, b| a.object.key.cmp(&b.object.key));
    let mut lb_ip = LbIp::default();
    for Service { object, terms } in holders {
        let slices = snapshot.slices.get(&object.key).map_or(&[][..], Vec::as_slice);
        for port in &object.ports {
            lb_ip.ports.entry((port.protocol, port.number)).or_insert_with(|| Target {
                sources: terms.sources.of(Family::of(address)),
                affinity: terms.affinity,
                ..target(object, port, slices, (snapshot, address.is_ipv4()))
            });
        }
        let problem =
            |entry: &String| Problem::InvalidSourceRange { service: object.key.clone(), entry: entry.clone() };
        lb_ip.problems.extend(terms.sources.invalid().iter().map(problem));
    }
    Some(lb_ip)
}

/// What is behind one port: the endpoints of `slices` that are of the right family, as things stand on the node.
fn target(
    service: &crds::Service,
    port: &Port,
    slices: &[Arc<EndpointSlice>],
    (snapshot, ipv4): (&Snapshot, bool),
) -> Target {
    let mut candidates: BTreeMap<SocketAddr, &crds::Endpoint> = BTreeMap::new();
    let name = (port.name.clone(), port.protocol);
    for slice in slices {
        let Some(&number) = slice.ports.get(&name) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == ipv4) {
            // While an endpoint moves from one slice to another it may be in both: the better word counts, and of
            // two equal ones the lesser, so that the order of slices does not.
            let rank = |e: &crds::Endpoint| (e.ready, e.serving, !e.terminating, std::cmp::Reverse(e.node.clone()));
            let known = candidates.entry(SocketAddr::new(endpoint.address, number)).or_insert(endpoint);
            if rank(endpoint) > rank(known) {
                *known = endpoint;
            }
        }
    }
    let all: Vec<Candidate> = candidates
        .into_iter()
        .map(|(address, e)| Candidate {
            endpoint: Endpoint { remote: e.node.as_deref() != Some(&*snapshot.node), address },
            // Whoever reads this is alive.
            dead: e.node.as_ref().is_some_and(|node| *node != snapshot.node && snapshot.dead.contains(node)),
            ready: e.ready,
            fallback: e.serving && e.terminating,
            serving: e.serving || e.ready,
        })
        .collect();
    let inside = usable(&all, |_| true);
    let outside = match service.traffic_policy {
        TrafficPolicy::Cluster => inside.clone(),
        TrafficPolicy::Local => usable(&all, |endpoint| !endpoint.remote),
    };
    arranged(outside, inside, &all)
}

/// An endpoint that slices speak of.
struct Candidate {
    endpoint: Endpoint,
    /// Whether the node it is on is said to be dead.
    dead: bool,
    ready: bool,
    /// Whether it may be used when none is ready.
    fallback: bool,
    /// Whether it answers those that are connected to it.
    serving: bool,
}

/// Which of those that `may` be used are: the ready ones, and if there are none, those that serve while they
/// terminate (KEP-1669): better a connection that will be short than none. In either case on nodes that live, before
/// any on nodes that are said to be dead.
fn usable(all: &[Candidate], may: impl Fn(&Endpoint) -> bool) -> BTreeSet<Endpoint> {
    let choose = |which: fn(&Candidate) -> bool| -> BTreeSet<Endpoint> {
        all.iter().filter(|c| may(&c.endpoint) && which(c)).map(|c| c.endpoint).collect()
    };
    let choices: [fn(&Candidate) -> bool; 4] =
        [|c| c.ready && !c.dead, |c| c.fallback && !c.dead, |c| c.ready, |c| c.fallback];
    choices.into_iter().map(choose).find(|chosen| !chosen.is_empty()).unwrap_or_default()
}

/// Puts the endpoints in an order in which both choices are consecutive.
///
/// Either all of `outside` is in `inside`, or nothing of it: the one way to differ is that local endpoints all
/// terminate while remote ones are ready.
fn arranged(outside: BTreeSet<Endpoint>, inside: BTreeSet<Endpoint>, all: &[Candidate]) -> Target {
    let count = |set: &BTreeSet<Endpoint>| u32::try_from(set.len()).unwrap_or(u32::MAX);
    let from = if outside.is_subset(&inside) { 0 } else { count(&outside) };
    let picks = (Pick { from: 0, count: count(&outside) }, Pick { from, count: count(&inside) });
    let endpoints: Vec<Endpoint> = outside.iter().chain(inside.difference(&outside)).copied().collect();
    let chosen = |endpoint: &Endpoint| outside.contains(endpoint) || inside.contains(endpoint);
    let draining =
        all.iter().filter(|c| c.serving && !c.dead && !chosen(&c.endpoint)).map(|c| c.endpoint.address).collect();
    Target { endpoints, outside: picks.0, inside: picks.1, draining, ..Target::default() }
}
