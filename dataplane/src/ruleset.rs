//! What must happen to packets: [`Snapshot`] → [`Ruleset`], by [`ruleset`].
//!
//! The ruleset knows lb_ips, ports and endpoints, and nothing of how a kernel is told: that is the engine's business.
//!
//! Two kinds of packets are told apart. Those from *outside* come from other hosts; the traffic policy binds them.
//! Those from *inside* come from this node or a pod on it; they may use every endpoint, whatever the policy is, as with
//! kube-proxy. Who may use a Service at all is the same for both.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{
    Backend, EndpointSlice, Forwarder, Key, Port, Protocol, Range, Reach, SharedMap, Shortcoming, TrafficPolicy,
};

use crate::backend::{Proxied, proxied};
use crate::returns::Return;
use crate::snapshot::{Link, LinkName, Service, Snapshot};
use crate::sources::merged;
use crate::spread::{By, Share, Table, Token, rank};
use crds::Mac;

/// What must happen to packets on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Where packets from this node's pods come from: sorted, and no two of them touch.
    pub pod_ranges: Vec<Range>,
    /// The links whose connections are answered by them.
    pub returns: Arc<BTreeSet<Return>>,
    /// Every lb_ip that a Service holds, with what is behind it. An lb_ip that is held by none that exists is not
    /// here: packets to it are none of our business, and it must not be announced.
    pub addresses: SharedMap<IpAddr, Arc<LbIp>>,
    /// Which ways to targets there are in each family, and how often: what an engine needs one of for all, without
    /// having to look at all. Kept by [`Ruleset::set`].
    ways: BTreeMap<(Family, Way), usize>,
    /// The tables by which frames are spread, the share that each is of, and how many ports need it. Kept by
    /// [`Ruleset::set`].
    tables: SharedMap<Token, (Arc<Table>, Arc<Share>, usize)>,
    /// Where frames go. Kept by [`Ruleset::aim`].
    pub(crate) wires: Arc<Wires>,
    /// Whether that is not as it should be any more.
    pub(crate) astray: bool,
}

/// What spreading frames needs to know of the links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wires {
    /// The links on which frames are spread.
    pub links: BTreeMap<LinkName, Link>,
    /// The nodes that are dead.
    pub dead: BTreeSet<String>,
    /// Where a frame goes on a link for what stands for nodes in a table: this node's own MAC address where it stays.
    pub hops: BTreeMap<(LinkName, Token), Mac>,
}

impl Ruleset {
    /// Puts `new` behind `address`, or nothing. When all is set, [`Ruleset::aim`] has to be called.
    pub(crate) fn set(&mut self, address: IpAddr, mut new: Option<LbIp>) {
        let family = Family::of(address);
        let shares = |lb_ip: &LbIp| lb_ip.shares().map(|(_, share)| share).collect::<Vec<_>>();
        for share in new.iter().flat_map(shares) {
            let token = share.token();
            if let Some((_, _, count)) = self.tables.get_mut(&token) {
                *count += 1;
            } else {
                self.astray = true;
                self.tables.insert(token, (Arc::new(share.table()), Arc::new(share), 1));
            }
        }
        // Most Services have one of a few shares, so they have it together.
        for share in new.iter_mut().flat_map(|new| new.ports.values_mut()).filter_map(|target| target.share.as_mut()) {
            if let Some((_, known, _)) = self.tables.get(&share.token()).filter(|(_, known, _)| known == share) {
                *share = Arc::clone(known);
            }
        }
        let ways = |lb_ip: &LbIp| -> Vec<(Family, Way)> {
            let ways = lb_ip.ports.values().flat_map(|target| [target.way_from_outside(), target.way_from_inside()]);
            ways.flatten().map(|way| (family, way)).collect()
        };
        for way in new.iter().flat_map(ways) {
            *self.ways.entry(way).or_default() += 1;
        }
        let old = match new {
            Some(new) => self.addresses.insert(address, Arc::new(new)),
            None => self.addresses.remove(&address),
        };
        for way in old.as_deref().into_iter().flat_map(ways) {
            if let Some(count) = self.ways.get_mut(&way) {
                *count -= 1;
            }
        }
        self.ways.retain(|_, count| *count > 0);
        for share in old.as_deref().into_iter().flat_map(shares) {
            let token = share.token();
            if let Some((_, _, count)) = self.tables.get_mut(&token) {
                *count -= 1;
                if *count == 0 {
                    self.astray = true;
                    self.tables.remove(&token);
                }
            }
        }
    }

    /// Says where frames go, as things stand on the links.
    pub(crate) fn aim(&mut self, snapshot: &Snapshot) {
        if !std::mem::take(&mut self.astray) {
            return;
        }
        let mut wires = Wires::default();
        if !self.tables.is_empty() {
            wires.links.clone_from(&snapshot.links);
            wires.dead.clone_from(&snapshot.dead);
        }
        let ranked: BTreeMap<_, _> = self.tables.values().flat_map(|(table, ..)| &table.nodes).collect();
        for (name, link) in &wires.links {
            let reached = |node: &str| link.peers.get(node).filter(|_| !snapshot.dead.contains(node)).copied();
            let to = |node: &str| if node == snapshot.node { Some(link.mac) } else { reached(node) };
            for (token, nodes) in &ranked {
                // Where nobody of the two can be reached the frame stays: this node knows what else to do.
                let mac = to(&nodes.first).or_else(|| nodes.second.as_deref().and_then(to)).unwrap_or(link.mac);
                wires.hops.insert((*name, **token), mac);
            }
        }
        if *self.wires != wires {
            self.wires = Arc::new(wires);
        }
    }

    /// The tables by which frames are spread.
    pub fn tables(&self) -> impl Iterator<Item = (Token, &Arc<Table>)> {
        self.tables.iter().map(|(token, (table, ..))| (*token, table))
    }

    /// The tables that only one of the two has: here, and in the other. What stands for a table follows from it, so there
    /// are not two of the same.
    pub(crate) fn differing_tables<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (Token, Option<&'a Arc<Table>>, Option<&'a Arc<Table>>)> {
        let differing = self.tables.differing(&other.tables);
        let table = |counted: Option<&'a (Arc<Table>, Arc<Share>, usize)>| counted.map(|(table, ..)| table);
        let tables = differing.map(move |(token, before, after)| (*token, table(before), table(after)));
        tables.filter(|(_, before, after)| before.is_some() != after.is_some())
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
    pub ports: BTreeMap<(Protocol, u16), Box<Target>>,
    /// What users should know.
    pub problems: BTreeSet<Problem>,
    /// Whether packets to it are counted.
    pub counted: bool,
}

/// What a frame is looked up by that is to be spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spreads {
    /// A port.
    Port(Protocol, u16),
    /// A protocol, for what has no port to look at: fragments.
    Whole(Protocol),
}

impl LbIp {
    /// By which share what is spread. Fragments of a protocol are spread as the least port of it is, but by the client
    /// alone; should another port have its endpoints elsewhere, its node hands them on.
    pub fn shares(&self) -> impl Iterator<Item = (Spreads, Share)> {
        let mut seen = BTreeSet::new();
        let shared = self.ports.iter().filter_map(|(&port, target)| Some((port, target.share.as_deref()?)));
        shared.flat_map(move |((protocol, port), share)| {
            let whole = seen.insert(protocol).then(|| (Spreads::Whole(protocol), share.by_client()));
            [Some((Spreads::Port(protocol, port), share.clone())), whole].into_iter().flatten()
        })
    }

    /// Whether all of it is another proxy's business.
    pub fn is_left(&self) -> bool {
        !self.ports.is_empty() && self.ports.values().all(|target| target.left)
    }

    /// How its packets get to endpoints.
    pub fn reach(&self) -> Reach {
        let served = self.ports.values().filter(|target| target.outside.count > 0 || target.left);
        let mut reaches = served.map(|target| target.reach);
        let first = reaches.next().unwrap_or(Reach::Translated);
        if reaches.all(|reach| reach == first) { first } else { Reach::Mixed }
    }
}

/// Something in a Service that is not forwarded as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The Service.
    pub service: Key,
    /// What is wrong.
    pub reason: Shortcoming,
    /// What it is about: ports, the address of an endpoint, a source range, or a backend and what is missing for it.
    pub what: String,
}

impl Problem {
    /// Whether somebody has made a mistake. That there is no endpoint happens to every Service now and then.
    pub fn is_mistake(&self) -> bool {
        !matches!(self.reason, Shortcoming::NoEndpoints | Shortcoming::NoLocalEndpoints)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, reason, what } = self;
        match reason {
            Shortcoming::InvalidSourceRange => write!(
                f,
                "loadBalancerSourceRanges of Service {service}: {what:?} is no CIDR such as 192.0.2.0/24, and lets nobody in"
            ),
            Shortcoming::EndpointsRefused => write!(
                f,
                "Service {service} has an endpoint {what}, which is no address of a pod or another host, and is left out: see \
                 its EndpointSlices"
            ),
            Shortcoming::UnknownBackend => write!(
                f,
                "annotation landfall.dev/backend of Service {service}: {what:?} is none of endpoints, nodeport and \
                 clusterip, and is ignored"
            ),
            Shortcoming::BackendUnavailable => {
                write!(f, "Service {service} is forwarded to its endpoints and not by the backend {what}")
            }
            Shortcoming::NoEndpoints => write!(f, "Service {service} has no endpoint for {what}, and refuses"),
            Shortcoming::AnswersElsewhere => {
                write!(f, "answers of Service {service} may leave by another link than requests came in by: {what}")
            }
            Shortcoming::RequestsFiltered => write!(f, "the kernel may drop requests to Service {service}: {what}"),
            Shortcoming::NoLocalEndpoints | Shortcoming::Other => {
                write!(
                    f,
                    "Service {service} has no endpoint for {what} on this node, and drops what comes from outside"
                )
            }
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
    /// How frames are shared among nodes; `None`: all that come here stay here.
    pub share: Option<Arc<Share>>,
    /// How packets from outside get to endpoints on other nodes.
    pub reach: Reach,
    /// What packets are given to in place of endpoints, if they are. The endpoints are those that it may send them to.
    pub proxied: Option<Proxied>,
    /// Whether it is another proxy's business: its packets are left as they are, and all else here counts for nothing.
    ///
    /// TODO(correctness): where the lb_ip has ports of ours too, what that proxy sends to endpoints is masqueraded.
    pub left: bool,
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
        let (restricted, affinity) = (self.sources.is_some(), self.affinity);
        let way = match self.proxied {
            None => Way { pick, restricted, affinity, backend: Backend::Endpoints },
            // Which endpoint it is to be is for the proxy to say.
            Some(proxied) => Way { restricted, backend: proxied.backend(), ..Way::default() },
        };
        (pick.count > 0).then_some(way)
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
    /// What it leads to: the endpoints themselves, or what the Service proxy serves.
    pub backend: Backend,
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
    let (pod_ranges, returns) = (merged(&snapshot.pod_ranges), Arc::clone(&snapshot.returns));
    let mut ruleset = Ruleset { pod_ranges, returns, ..Ruleset::default() };
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
    let family = Family::of(address);
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
        let lacks = [(Shortcoming::NoEndpoints, nowhere), (Shortcoming::NoLocalEndpoints, elsewhere)];
        let lacks = lacks.into_iter().filter(|(_, ports)| !ports.is_empty());
        lb_ip.problems.extend(lacks.map(|(reason, ports)| problem(reason, &ports.join(", "))));
        if let Some(Err(value)) = &object.backend {
            lb_ip.problems.insert(problem(Shortcoming::UnknownBackend, value));
        }
        let fallbacks = fallbacks.iter().map(ToString::to_string);
        lb_ip.problems.extend(fallbacks.map(|fallback| problem(Shortcoming::BackendUnavailable, &fallback)));
        let refused = slices.iter().filter(|_| !left).filter_map(|slice| slice.refused.as_deref()).min();
        lb_ip.problems.extend(refused.map(|refused| problem(Shortcoming::EndpointsRefused, refused)));
        let invalid = terms.sources.invalid().iter();
        lb_ip.problems.extend(invalid.map(|entry| problem(Shortcoming::InvalidSourceRange, entry)));
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
        let key = Key::new(holder.namespace.clone(), holder.name.clone());
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
        for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family) {
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
    let leaves = takers.iter().any(|node| *node != snapshot.node);
    let share = leaves.then(|| Arc::new(Share::new(by, parts)));
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
