//! What must happen to packets: [`Snapshot`] → [`Ruleset`], by [`ruleset`](super::plan::ruleset).
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
use crds::{Backend, Key, MacAddr, ProblemReason, Protocol, Range, Reach};
use model::SharedMap;

use crate::reply_path::Return;
use crate::rules::backend::Proxied;
use crate::rules::spread::{By, Share, Table, Token};
use crate::snapshot::{Link, LinkName, Snapshot};

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
    pub hops: BTreeMap<(LinkName, Token), MacAddr>,
}

impl Ruleset {
    /// A ruleset without any lb_ip.
    pub(crate) fn new(pod_ranges: Vec<Range>, returns: Arc<BTreeSet<Return>>) -> Self {
        Self { pod_ranges, returns, ..Self::default() }
    }

    /// Puts `new` behind `address`, or nothing. When all is set, [`Ruleset::aim`] has to be called.
    pub(crate) fn set(&mut self, address: IpAddr, mut new: Option<LbIp>) {
        let family = Family::from(address);
        for (_, share, by) in new.iter().flat_map(LbIp::shares) {
            let token = share.token_by(by);
            if let Some((_, _, count)) = self.tables.get_mut(&token) {
                *count += 1;
            } else {
                self.astray = true;
                let share = if by == share.by() { Arc::clone(share) } else { Arc::new(share.decided(by)) };
                self.tables.insert(token, (Arc::new(share.table()), share, 1));
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
        for (_, share, by) in old.as_deref().into_iter().flat_map(LbIp::shares) {
            let token = share.token_by(by);
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
    /// By which share what is spread, and what of a packet decides. Fragments of a protocol are spread as the least port of it
    /// is, but by the client alone; should another port have its endpoints elsewhere, its node hands them on.
    pub fn shares(&self) -> impl Iterator<Item = (Spreads, &Arc<Share>, By)> {
        let mut last = None;
        let shared = self.ports.iter().filter_map(|(&port, target)| Some((port, target.share.as_ref()?)));
        // Ports are in order of their protocols.
        shared.flat_map(move |((protocol, port), share)| {
            let is_first = last.replace(protocol) != Some(protocol);
            let whole = is_first.then_some((Spreads::Whole(protocol), share, By::Client));
            [Some((Spreads::Port(protocol, port), share, share.by())), whole].into_iter().flatten()
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
    pub reason: ProblemReason,
    /// What it is about: ports, the address of an endpoint, a source range, or a backend and what is missing for it.
    pub what: String,
}

impl Problem {
    /// Whether somebody has made a mistake. That there is no endpoint happens to every Service now and then.
    pub fn is_mistake(&self) -> bool {
        !matches!(self.reason, ProblemReason::NoEndpoints | ProblemReason::NoLocalEndpoints)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, reason, what } = self;
        match reason {
            ProblemReason::InvalidSourceRange => write!(
                f,
                "loadBalancerSourceRanges of Service {service}: {what:?} is no CIDR such as 192.0.2.0/24, and lets nobody in"
            ),
            ProblemReason::EndpointsRefused => write!(
                f,
                "Service {service} has an endpoint {what}, which is no address of a pod or another host, and is left out: see \
                 its EndpointSlices"
            ),
            ProblemReason::UnknownBackend => write!(
                f,
                "annotation landfall.dev/backend of Service {service}: {what:?} is none of endpoints, nodeport and \
                 clusterip, and is ignored"
            ),
            ProblemReason::BackendUnavailable => {
                write!(f, "Service {service} is forwarded to its endpoints and not by the backend {what}")
            }
            ProblemReason::NoEndpoints => write!(f, "Service {service} has no endpoint for {what}, and refuses"),
            ProblemReason::AnswersElsewhere => {
                write!(f, "answers of Service {service} may leave by another link than requests came in by: {what}")
            }
            ProblemReason::RequestsFiltered => write!(f, "the kernel may drop requests to Service {service}: {what}"),
            ProblemReason::NoLocalEndpoints | ProblemReason::Other => {
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
