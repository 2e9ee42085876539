//! The [`Ruleset`] of a node for a [`Snapshot`], by [`plan_ruleset`]: one lb_ip at a time. Pure.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{EndpointSlice, Forwarder, Port, ProblemReason, Protocol, Reach, TrafficPolicy};

use super::backend::{Fallback, choose_backend};
use super::problem::Problem;
use super::ring::Ring;
use super::ruleset::{Endpoint, LbIp, Pick, Ruleset, Target};
use super::spread::{HashBy, Share, rank};
use crate::link_name::LinkName;
use crate::snapshot::{Service, Snapshot};

/// Plans all lb_ips of a snapshot.
pub fn plan_ruleset(snapshot: &Snapshot) -> Ruleset {
    let mut ruleset = Ruleset::new(lan_links(snapshot), Arc::clone(&snapshot.reply_paths));
    for address in snapshot.addresses.keys() {
        if let Some(lb_ip) = plan_lb_ip(snapshot, *address) {
            ruleset.set(*address, Some(lb_ip));
        }
    }
    ruleset.resolve_next_hops(snapshot);
    ruleset
}

/// The links that packets from outside may come in by. Those with peers are always among them.
pub(super) fn lan_links(snapshot: &Snapshot) -> Arc<BTreeSet<LinkName>> {
    let with_peers = snapshot.links.keys();
    if with_peers.clone().all(|link| snapshot.lan_links.contains(link)) {
        return Arc::clone(&snapshot.lan_links);
    }
    Arc::new(snapshot.lan_links.iter().chain(with_peers).copied().collect())
}

/// Plans one lb_ip; `None` if no existing Service holds it.
pub(crate) fn plan_lb_ip(snapshot: &Snapshot, address: IpAddr) -> Option<LbIp> {
    let holders = holding_services(snapshot, address);
    if holders.is_empty() {
        return None;
    }
    let mut lb_ip = LbIp { counted: snapshot.count_traffic, ..LbIp::default() };
    if snapshot.own_addresses.contains(&address) {
        let (reason, what) = (ProblemReason::AddressOfNode, address.to_string());
        let problem = |service: &Service| Problem { service: service.object.key.clone(), reason, what: what.clone() };
        lb_ip.problems = holders.into_iter().map(problem).collect();
        return Some(LbIp { is_of_node: true, ..lb_ip });
    }
    for service in holders {
        plan_service(snapshot, Family::from(address), service, &mut lb_ip);
    }
    Some(lb_ip)
}

/// The existing Services that hold `address`, by name.
///
/// The controller lets Services share an lb_ip only if their ports differ. If two Services have the same port
/// nevertheless, the port belongs to the first Service by name, so that all nodes agree.
pub(crate) fn holding_services(snapshot: &Snapshot, address: IpAddr) -> Vec<&Service> {
    let mut holders: Vec<&Service> = Vec::new();
    for holder in snapshot.addresses.get(&address).into_iter().flat_map(|holders| holders.iter()) {
        let key = holder.service();
        let held_by = |service: &&Service| service.object.uid == holder.uid && service.object.is_load_balancer;
        holders.extend(snapshot.services.get(&key).filter(held_by));
    }
    holders.sort_by(|a, b| a.object.key.cmp(&b.object.key));
    holders
}

/// Adds the ports and problems of one Service.
fn plan_service(snapshot: &Snapshot, family: Family, service: &Service, lb_ip: &mut LbIp) {
    let Service { object, options } = service;
    let other_proxy = object.forwarder() == Forwarder::Other;
    let slices = snapshot.slices.get(&object.key).map_or(&[][..], |slices| slices);
    let view = PortView { snapshot, family, service, slices };
    let (mut no_endpoint, mut no_local_endpoint) = (Vec::new(), Vec::new());
    let mut fallbacks = BTreeSet::new();
    for port in &object.ports {
        let Entry::Vacant(entry) = lb_ip.ports.entry((port.protocol, port.number)) else { continue };
        if other_proxy {
            entry.insert(Box::new(Target { other_proxy, reach: Reach::Proxied, ..Target::default() }));
            continue;
        }
        let target = view.plan_port(port, &mut fallbacks);
        match (target.endpoints.is_empty(), target.outside.count) {
            (true, _) => no_endpoint.push(format!("{}/{}", port.number, port.protocol)),
            (false, 0) => no_local_endpoint.push(format!("{}/{}", port.number, port.protocol)),
            (false, _) => {}
        }
        entry.insert(Box::new(target));
    }
    let problem = |reason, what: &str| Problem { service: object.key.clone(), reason, what: what.to_owned() };
    let lacks = [(ProblemReason::NoEndpoints, no_endpoint), (ProblemReason::NoLocalEndpoints, no_local_endpoint)];
    let lacks = lacks.into_iter().filter(|(_, ports)| !ports.is_empty());
    lb_ip.problems.extend(lacks.map(|(reason, ports)| problem(reason, &ports.join(", "))));
    if let Some(Err(value)) = &object.backend {
        lb_ip.problems.insert(problem(ProblemReason::UnknownBackend, value));
    }
    let fallbacks = fallbacks.iter().map(ToString::to_string);
    lb_ip.problems.extend(fallbacks.map(|fallback| problem(ProblemReason::BackendUnavailable, &fallback)));
    let refused = slices.iter().filter(|_| !other_proxy).filter_map(|slice| slice.refused.as_deref()).min();
    lb_ip.problems.extend(refused.map(|refused| problem(ProblemReason::EndpointsRefused, refused)));
    let invalid = options.sources.invalid().iter();
    lb_ip.problems.extend(invalid.map(|entry| problem(ProblemReason::InvalidSourceRange, entry)));
}

/// The input for one port of a Service, in one family.
struct PortView<'a> {
    snapshot: &'a Snapshot,
    family: Family,
    service: &'a Service,
    slices: &'a [Arc<EndpointSlice>],
}

impl PortView<'_> {
    fn plan_port(&self, port: &Port, fallbacks: &mut BTreeSet<Fallback>) -> Target {
        let Service { object, options } = self.service;
        let proxied = choose_backend(object, port, self.family, self.snapshot).unwrap_or_else(|fallback| {
            fallbacks.insert(fallback);
            None
        });
        // If the Service proxy forwards the port, its frames stay here, and the proxy implements session affinity.
        let affinity = options.affinity.filter(|_| proxied.is_none());
        let hash_by = if affinity.is_some() { HashBy::Client } else { HashBy::Flow };
        let is_spread = !options.no_spreading && proxied.is_none();
        let target = self.plan_endpoints(port, is_spread.then_some(hash_by));
        let ring = if is_spread && port.protocol == Protocol::Tcp { self.plan_ring(port) } else { None };
        let reach = if proxied.is_some() { Reach::Proxied } else { target.reach };
        Target { sources: options.sources.for_family(self.family), affinity, reach, proxied, ring, ..target }
    }

    /// The nodes on a link that have an endpoint of the port, in any condition; `None` if none of them is another node.
    fn plan_ring(&self, port: &Port) -> Option<Arc<Ring>> {
        let Snapshot { node: own, links, .. } = self.snapshot;
        let is_peer = |node: &str| links.values().any(|link| link.addresses.contains_key(node));
        let mut nodes: BTreeSet<&str> = self.candidates(port).iter().filter_map(|candidate| candidate.node).collect();
        nodes.retain(|node| node == own || is_peer(node));
        nodes.iter().any(|node| node != own).then(|| Arc::new(Ring::new(nodes)))
    }

    /// Chooses the endpoints of a port. Its frames are spread by `hash_by`; `None`: they are not spread.
    fn plan_endpoints(&self, port: &Port, hash_by: Option<HashBy>) -> Target {
        let policy = self.service.object.traffic_policy;
        let all = self.candidates(port);
        let inside = usable_endpoints(&all, |_| true);
        let outside = match policy {
            TrafficPolicy::Cluster => inside.clone(),
            TrafficPolicy::Local => usable_endpoints(&all, |endpoint| !endpoint.remote),
        };
        match hash_by.and_then(|hash_by| plan_spread(self.snapshot, policy, &all, hash_by)) {
            // No endpoint gets new connections, but frames of open connections still go to their nodes.
            Some(spread) if inside.is_empty() => {
                Target { share: spread.share, ..order_endpoints(outside, inside, &all) }
            }
            // Under the policy Local, a node without an endpoint serves no client and spreads nothing.
            Some(spread) if policy == TrafficPolicy::Local && !outside.is_empty() => {
                Target { share: spread.share, reach: spread.reach, ..order_endpoints(outside, inside, &all) }
            }
            Some(spread) if policy == TrafficPolicy::Cluster => {
                let own: BTreeSet<Endpoint> = spread.own.intersection(&inside).copied().collect();
                let own = if own.is_empty() { outside } else { own };
                Target { share: spread.share, reach: spread.reach, ..order_endpoints(own, inside, &all) }
            }
            _ => order_endpoints(outside, inside, &all),
        }
    }

    /// The endpoints of a port in all slices, each address once.
    fn candidates(&self, port: &Port) -> Vec<Candidate<'_>> {
        let mut endpoints: BTreeMap<SocketAddr, &crds::Endpoint> = BTreeMap::new();
        for slice in self.slices {
            let Some(number) = slice.port(&port.name, port.protocol) else { continue };
            for endpoint in slice.endpoints.iter().filter(|endpoint| Family::from(endpoint.address) == self.family) {
                // An endpoint that moves between slices may be in two of them for a moment. The entry with the better
                // conditions counts. Of entries with equal conditions, the one with the lesser node name counts, so
                // that the order of slices has no effect.
                let rank = |e: &crds::Endpoint| (e.ready, e.serving, !e.terminating, Reverse(e.node.clone()));
                let known = endpoints.entry(SocketAddr::new(endpoint.address, number)).or_insert(endpoint);
                if rank(endpoint) > rank(known) {
                    *known = endpoint;
                }
            }
        }
        let Snapshot { node, dead, .. } = self.snapshot;
        endpoints
            .into_iter()
            .map(|(address, e)| Candidate {
                endpoint: Endpoint { remote: e.node.as_deref() != Some(node), address },
                node: e.node.as_deref(),
                // This node is alive, whatever the speaker reports.
                dead: e.node.as_deref().is_some_and(|on| on != node && dead.contains(on)),
                ready: e.ready,
                fallback: e.serving && e.terminating,
                serving: e.serving || e.ready,
            })
            .collect()
    }
}

/// How the packets to a port are spread.
struct Spread {
    /// The endpoints that this node serves.
    own: BTreeSet<Endpoint>,
    /// `None`: all frames stay on this node.
    share: Option<Arc<Share>>,
    reach: Reach,
}

/// Spreads packets from outside over the nodes on a link that have ready endpoints. If no endpoint is ready, those that
/// serve while they terminate count instead. `None`: the packets are not spread.
///
/// While another node has an endpoint in any condition, each frame is looked up, even if all new connections stay here.
/// So open connections to that endpoint continue there.
///
/// Dead nodes get slots too, because a table has a second node for each slot. An endpoint whose node is on no link is
/// assigned to a node that is on one, by the rank of the endpoint's address. That node forwards to the endpoint as it
/// does without spreading. Under the policy Local such an endpoint is not used.
fn plan_spread(snapshot: &Snapshot, policy: TrafficPolicy, all: &[Candidate<'_>], hash_by: HashBy) -> Option<Spread> {
    let is_on_link = |node: &str| {
        !snapshot.links.is_empty()
            && (node == snapshot.node || snapshot.links.values().any(|link| link.peers.contains_key(node)))
    };
    let select = |may: fn(&Candidate<'_>) -> bool| all.iter().filter(|c| may(c)).collect::<Vec<_>>();
    let mut used = select(|c| c.ready);
    if used.is_empty() {
        used = select(|c| c.fallback);
    }
    let mut parts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut away = Vec::new();
    let mut own = BTreeSet::new();
    for candidate in used {
        match candidate.node.filter(|node| is_on_link(node)) {
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
    let has_remote = all.iter().any(|c| c.endpoint.remote && c.node.is_some_and(is_on_link));
    if has_remote && parts.is_empty() && away.is_empty() && own.is_empty() {
        let share = Some(Arc::new(Share::new(hash_by, [(&*snapshot.node, 1)])));
        return Some(Spread { own, share, reach: Reach::default() });
    }
    let nodes: Vec<&str> = parts.keys().copied().collect();
    if nodes.is_empty() {
        return None;
    }
    for endpoint in &away {
        let name = endpoint.address.ip().to_string();
        if let Some(node) = nodes.iter().max_by_key(|node| rank(node, &name)) {
            *parts.entry(*node).or_default() += 1;
            if *node == snapshot.node {
                own.insert(*endpoint);
            }
        }
    }
    let reach = if away.is_empty() { Reach::Spread } else { Reach::Mixed };
    let share = has_remote.then(|| Arc::new(Share::new(hash_by, parts)));
    Some(Spread { own, share, reach })
}

/// An endpoint in the slices.
struct Candidate<'a> {
    endpoint: Endpoint,
    /// `None`: its node is unknown.
    node: Option<&'a str>,
    /// Whether its node is dead.
    dead: bool,
    ready: bool,
    /// Whether it may be used if no endpoint is ready.
    fallback: bool,
    /// Whether it answers its open connections.
    serving: bool,
}

/// The endpoints for new connections, of those that `may` be used. These are the first of four groups that is not
/// empty. Ready endpoints come first, then those that serve while they terminate (KEP-1669), since a short connection
/// is better than no connection. The same two groups on dead nodes follow.
fn usable_endpoints(all: &[Candidate<'_>], may: impl Fn(&Endpoint) -> bool) -> BTreeSet<Endpoint> {
    let select = |which: fn(&Candidate<'_>) -> bool| -> BTreeSet<Endpoint> {
        all.iter().filter(|c| may(&c.endpoint) && which(c)).map(|c| c.endpoint).collect()
    };
    let choices: [fn(&Candidate<'_>) -> bool; 4] =
        [|c| c.ready && !c.dead, |c| c.fallback && !c.dead, |c| c.ready, |c| c.fallback];
    choices.into_iter().map(select).find(|chosen| !chosen.is_empty()).unwrap_or_default()
}

/// Orders the endpoints so that those of each pick are consecutive: first `outside`, then the rest of `inside`.
///
/// `outside` is either a subset of `inside` or disjoint from it. They are disjoint if all local endpoints terminate
/// while remote ones are ready.
fn order_endpoints(outside: BTreeSet<Endpoint>, inside: BTreeSet<Endpoint>, all: &[Candidate<'_>]) -> Target {
    let count = |set: &BTreeSet<Endpoint>| u32::try_from(set.len()).unwrap_or(u32::MAX);
    let from = if outside.is_subset(&inside) { 0 } else { count(&outside) };
    let picks = (Pick { from: 0, count: count(&outside) }, Pick { from, count: count(&inside) });
    let endpoints: Vec<Endpoint> = outside.iter().chain(inside.difference(&outside)).copied().collect();
    let chosen = |endpoint: &Endpoint| outside.contains(endpoint) || inside.contains(endpoint);
    let draining =
        all.iter().filter(|c| c.serving && !c.dead && !chosen(&c.endpoint)).map(|c| c.endpoint.address).collect();
    Target { endpoints, outside: picks.0, inside: picks.1, draining, ..Target::default() }
}
