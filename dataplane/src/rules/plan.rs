//! What the [`Ruleset`] of a node should be, from what was observed: one lb_ip at a time, and the endpoints of each port as things
//! stand on that node.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{EndpointSlice, Forwarder, Port, ProblemReason, Reach, TrafficPolicy};

use super::ruleset::{Endpoint, LbIp, Pick, Problem, Ruleset, Target};
use crate::rules::backend::proxied;
use crate::rules::sources::merged;
use crate::rules::spread::{By, Share, rank};
use crate::snapshot::{Service, Snapshot};

/// The ruleset for what was observed.
pub fn ruleset(snapshot: &Snapshot) -> Ruleset {
    let (pod_ranges, returns) = (merged(&snapshot.pod_ranges), Arc::clone(&snapshot.returns));
    let mut ruleset = Ruleset::new(pod_ranges, returns);
    for address in snapshot.addresses.keys() {
        if let Some(lb_ip) = lb_ip(snapshot, *address) {
            ruleset.set(*address, Some(lb_ip));
        }
    }
    ruleset.aim(snapshot);
    ruleset
}

/// What is behind `address`; `None` if no Service that exists holds it.
pub(crate) fn lb_ip(snapshot: &Snapshot, address: IpAddr) -> Option<LbIp> {
    let holders = holders(snapshot, address);
    if holders.is_empty() {
        return None;
    }
    let mut lb_ip = LbIp { counted: snapshot.counts, ..LbIp::default() };
    let family = Family::from(address);
    for Service { object, terms } in holders {
        let left = object.forwarder() == Forwarder::Other;
        let slices = snapshot.slices.get(&object.key).map_or(&[][..], |slices| slices);
        let (mut nowhere, mut elsewhere) = (Vec::new(), Vec::new());
        let mut fallbacks = BTreeSet::new();
        for port in &object.ports {
            let Entry::Vacant(place) = lb_ip.ports.entry((port.protocol, port.number)) else { continue };
            if left {
                place.insert(Box::new(Target { left, reach: Reach::Proxied, ..Target::default() }));
                continue;
            }
            let proxied = proxied(object, port, family, snapshot).unwrap_or_else(|fallback| {
                fallbacks.insert(fallback);
                None
            });
            // Where the proxy is asked, frames stay here, and it remembers where a client went.
            let affinity = terms.affinity.filter(|_| proxied.is_none());
            let by = if affinity.is_some() { By::Client } else { By::Flow };
            let by = (!terms.unspread && proxied.is_none()).then_some(by);
            let target = target(object, by, port, slices, (snapshot, family));
            let reach = if proxied.is_some() { Reach::Proxied } else { target.reach };
            match (target.endpoints.is_empty(), target.outside.count) {
                (true, _) => nowhere.push(format!("{}/{}", port.number, port.protocol)),
                (false, 0) => elsewhere.push(format!("{}/{}", port.number, port.protocol)),
                (false, _) => {}
            }
            let target = Target { sources: terms.sources.of(family), affinity, reach, proxied, ..target };
            place.insert(Box::new(target));
        }
        let problem = |reason, what: &str| Problem { service: object.key.clone(), reason, what: what.to_owned() };
        let lacks = [(ProblemReason::NoEndpoints, nowhere), (ProblemReason::NoLocalEndpoints, elsewhere)];
        let lacks = lacks.into_iter().filter(|(_, ports)| !ports.is_empty());
        lb_ip.problems.extend(lacks.map(|(reason, ports)| problem(reason, &ports.join(", "))));
        if let Some(Err(value)) = &object.backend {
            lb_ip.problems.insert(problem(ProblemReason::UnknownBackend, value));
        }
        let fallbacks = fallbacks.iter().map(ToString::to_string);
        lb_ip.problems.extend(fallbacks.map(|fallback| problem(ProblemReason::BackendUnavailable, &fallback)));
        let refused = slices.iter().filter(|_| !left).filter_map(|slice| slice.refused.as_deref()).min();
        lb_ip.problems.extend(refused.map(|refused| problem(ProblemReason::EndpointsRefused, refused)));
        let invalid = terms.sources.invalid().iter();
        lb_ip.problems.extend(invalid.map(|entry| problem(ProblemReason::InvalidSourceRange, entry)));
    }
    Some(lb_ip)
}

/// The Services that hold `address` and exist, by name.
///
/// Services that share an lb_ip have different ports, or the controller would not have let them. Should two claim the same
/// one nevertheless, it is the first one's: on every node the same.
pub(crate) fn holders(snapshot: &Snapshot, address: IpAddr) -> Vec<&Service> {
    let mut holders: Vec<&Service> = Vec::new();
    for holder in snapshot.addresses.get(&address).into_iter().flat_map(|holders| holders.iter()) {
        let key = holder.service();
        let held_by = |service: &&Service| service.object.uid == holder.uid && service.object.is_load_balancer;
        holders.extend(snapshot.services.get(&key).filter(held_by));
    }
    holders.sort_by(|a, b| a.object.key.cmp(&b.object.key));
    holders
}

/// What is behind one port: the endpoints of `slices` that are of the right family, as things stand on the node. Frames are
/// spread by `by`, or not at all.
fn target(
    service: &crds::Service,
    by: Option<By>,
    port: &Port,
    slices: &[Arc<EndpointSlice>],
    (snapshot, family): (&Snapshot, Family),
) -> Target {
    let mut candidates: BTreeMap<SocketAddr, &crds::Endpoint> = BTreeMap::new();
    for slice in slices {
        let Some(number) = slice.port(&port.name, port.protocol) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| Family::from(endpoint.address) == family) {
            // While an endpoint moves from one slice to another it may be in both: the better word counts, and of
            // two equal ones the lesser, so that the order of slices does not.
            let rank = |e: &crds::Endpoint| (e.ready, e.serving, !e.terminating, std::cmp::Reverse(e.node.clone()));
            let known = candidates.entry(SocketAddr::new(endpoint.address, number)).or_insert(endpoint);
            if rank(endpoint) > rank(known) {
                *known = endpoint;
            }
        }
    }
    let all: Vec<Candidate<'_>> = candidates
        .into_iter()
        .map(|(address, e)| Candidate {
            endpoint: Endpoint { remote: e.node.as_deref() != Some(&*snapshot.node), address },
            node: e.node.as_deref(),
            // Whoever reads this is alive.
            dead: e.node.as_ref().is_some_and(|node| *node != snapshot.node && snapshot.dead.contains(&**node)),
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
    match by.and_then(|by| spread(service.traffic_policy, &all, by, snapshot)) {
        // Nobody gets anything new.
        Some(spread) if inside.is_empty() => Target { share: spread.share, ..arranged(outside, inside, &all) },
        // Under the policy Local, a node without an endpoint serves nobody, and spreads nothing either.
        Some(spread) if service.traffic_policy == TrafficPolicy::Local && !outside.is_empty() => {
            Target { share: spread.share, reach: spread.reach, ..arranged(outside, inside, &all) }
        }
        Some(spread) if service.traffic_policy == TrafficPolicy::Cluster => {
            let own: BTreeSet<Endpoint> = spread.own.intersection(&inside).copied().collect();
            let own = if own.is_empty() { outside } else { own };
            Target { share: spread.share, reach: spread.reach, ..arranged(own, inside, &all) }
        }
        _ => arranged(outside, inside, &all),
    }
}

/// How the packets to a port are spread.
struct Spread {
    /// The endpoints that this node has to serve.
    own: BTreeSet<Endpoint>,
    /// How frames are shared among nodes; `None` if all of them stay here.
    share: Option<Arc<Share>>,
    reach: Reach,
}

/// How to spread packets from outside over the nodes with ready endpoints; `None` if none of them can be handed a frame.
///
/// As long as there are endpoints on other nodes, in whatever state, frames are looked at: those of connections that such an
/// endpoint has are to go on there, also where everything new stays here.
///
/// Who is dead does not matter here: a table has a second node for each. Endpoints on nodes that can't be handed a frame
/// are given to those that can, by rank of their address, and are reached from there as they would be without any
/// spreading; under the policy Local they can't be used.
fn spread(policy: TrafficPolicy, all: &[Candidate<'_>], by: By, snapshot: &Snapshot) -> Option<Spread> {
    let takes = |node: &str| {
        !snapshot.links.is_empty()
            && (node == snapshot.node || snapshot.links.values().any(|link| link.peers.contains_key(node)))
    };
    let chosen = |may: fn(&Candidate<'_>) -> bool| all.iter().filter(|c| may(c)).collect::<Vec<_>>();
    let mut used = chosen(|c| c.ready);
    if used.is_empty() {
        used = chosen(|c| c.fallback);
    }
    let mut parts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut away = Vec::new();
    let mut own = BTreeSet::new();
    for candidate in used {
        match candidate.node.filter(|node| takes(node)) {
            Some(node) => {
                *parts.entry(node).or_default() += 1;
                if node == snapshot.node {
                    own.insert(candidate.endpoint);
                }
            }
            None if candidate.dead => {}
            None => away.push(candidate.endpoint),
        }
    }
    if policy == TrafficPolicy::Local {
        away.clear();
    }
    let elsewhere = all.iter().any(|c| c.endpoint.remote && c.node.is_some_and(takes));
    if elsewhere && parts.is_empty() && away.is_empty() && own.is_empty() {
        let share = Some(Arc::new(Share::new(by, [(&*snapshot.node, 1)])));
        return Some(Spread { own, share, reach: Reach::default() });
    }
    let takers: Vec<&str> = parts.keys().copied().collect();
    if takers.is_empty() {
        return None;
    }
    for endpoint in &away {
        let name = endpoint.address.ip().to_string();
        if let Some(node) = takers.iter().max_by_key(|node| rank(node, &name)) {
            *parts.entry(*node).or_default() += 1;
            if *node == snapshot.node {
                own.insert(*endpoint);
            }
        }
    }
    let reach = if away.is_empty() { Reach::Spread } else { Reach::Mixed };
    let share = elsewhere.then(|| Arc::new(Share::new(by, parts)));
    Some(Spread { own, share, reach })
}

/// An endpoint that slices speak of.
struct Candidate<'a> {
    endpoint: Endpoint,
    /// The node it is on, as far as that is known.
    node: Option<&'a str>,
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
fn usable(all: &[Candidate<'_>], may: impl Fn(&Endpoint) -> bool) -> BTreeSet<Endpoint> {
    let choose = |which: fn(&Candidate<'_>) -> bool| -> BTreeSet<Endpoint> {
        all.iter().filter(|c| may(&c.endpoint) && which(c)).map(|c| c.endpoint).collect()
    };
    let choices: [fn(&Candidate<'_>) -> bool; 4] =
        [|c| c.ready && !c.dead, |c| c.fallback && !c.dead, |c| c.ready, |c| c.fallback];
    choices.into_iter().map(choose).find(|chosen| !chosen.is_empty()).unwrap_or_default()
}

/// Puts the endpoints in an order in which both choices are consecutive.
///
/// Either all of `outside` is in `inside`, or nothing of it: the one way to differ is that local endpoints all
/// terminate while remote ones are ready.
fn arranged(outside: BTreeSet<Endpoint>, inside: BTreeSet<Endpoint>, all: &[Candidate<'_>]) -> Target {
    let count = |set: &BTreeSet<Endpoint>| u32::try_from(set.len()).unwrap_or(u32::MAX);
    let from = if outside.is_subset(&inside) { 0 } else { count(&outside) };
    let picks = (Pick { from: 0, count: count(&outside) }, Pick { from, count: count(&inside) });
    let endpoints: Vec<Endpoint> = outside.iter().chain(inside.difference(&outside)).copied().collect();
    let chosen = |endpoint: &Endpoint| outside.contains(endpoint) || inside.contains(endpoint);
    let draining =
        all.iter().filter(|c| c.serving && !c.dead && !chosen(&c.endpoint)).map(|c| c.endpoint.address).collect();
    Target { endpoints, outside: picks.0, inside: picks.1, draining, ..Target::default() }
}
