//! The rules for packets on this node: a [`Ruleset`], planned by [`plan_ruleset`](super::plan::plan_ruleset).
//!
//! A ruleset consists of lb_ips, ports and endpoints. Only the engine knows how a kernel is programmed.
//!
//! Packets have one of two origins. Packets from *outside* come in by a link of clients; the traffic policy applies to
//! them. Packets from *inside* come from this node or its pods; they may use every endpoint under either policy, as
//! with kube-proxy. The source ranges of a Service apply to both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{Backend, Protocol, Range, Reach};
use model::SharedMap;

use super::backend::ProxyTarget;
use super::next_hops::NextHops;
use super::problem::Problem;
use super::ring::{Ring, RingId};
use super::spread::{HashBy, Share, SlotTable, TableId};
use crate::link_name::LinkName;
use crate::reply_path::ReplyPath;
use crate::snapshot::Snapshot;

/// The rules for packets on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The links that packets from outside may come in by. If there are none, all packets that come by a link count as
    /// from outside.
    pub lan_links: Arc<BTreeSet<LinkName>>,
    /// The links whose connections are marked, so that replies leave by the link of the request.
    pub reply_paths: Arc<BTreeSet<ReplyPath>>,
    /// Every lb_ip that an existing Service holds. Packets to any other address pass unchanged, and no other
    /// address may be announced.
    pub addresses: SharedMap<IpAddr, Arc<LbIp>>,
    /// The number of uses of each dispatch by family: each port counts once for packets from outside, and once for
    /// packets from inside. So the engine makes one chain for each dispatch without reading all addresses.
    dispatches: BTreeMap<(Family, Dispatch), usize>,
    /// The share tables in use.
    tables: SharedMap<TableId, UsedTable>,
    /// The rings in use, by family, with the number of ports that use each.
    rings: BTreeMap<(Family, RingId), (Arc<Ring>, usize)>,
    pub(crate) next_hops: Arc<NextHops>,
    /// Set when `next_hops` must be resolved again by [`Ruleset::resolve_next_hops`], since other tables or rings are
    /// in use, or other nodes are dead.
    pub(super) next_hops_outdated: bool,
}

/// A share table that ports use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UsedTable {
    table: Arc<SlotTable>,
    share: Arc<Share>,
    /// The number of ports and fragment keys that use it.
    users: usize,
}

impl Ruleset {
    /// A ruleset without any lb_ip.
    pub(crate) fn new(lan_links: Arc<BTreeSet<LinkName>>, reply_paths: Arc<BTreeSet<ReplyPath>>) -> Self {
        Self { lan_links, reply_paths, ..Self::default() }
    }

    /// Sets or removes an lb_ip. After the last change, the caller must call [`Ruleset::resolve_next_hops`].
    pub(crate) fn set(&mut self, address: IpAddr, mut new: Option<LbIp>) {
        let family = Family::from(address);
        for (_, share, hash_by) in new.iter().flat_map(LbIp::shares) {
            self.use_table(share, hash_by);
        }
        // Most Services have one of a few shares, so ports with equal shares use one copy.
        for share in new.iter_mut().flat_map(|new| new.ports.values_mut()).filter_map(|target| target.share.as_mut()) {
            if let Some(used) = self.tables.get(&share.table_id()).filter(|used| used.share == *share) {
                *share = Arc::clone(&used.share);
            }
        }
        for ring in new.iter_mut().flat_map(LbIp::rings_mut) {
            self.use_ring(family, ring);
        }
        for dispatch in new.iter().flat_map(LbIp::dispatches) {
            *self.dispatches.entry((family, dispatch)).or_default() += 1;
        }
        let old = match new {
            Some(new) => self.addresses.insert(address, Arc::new(new)),
            None => self.addresses.remove(&address),
        };
        for dispatch in old.as_deref().into_iter().flat_map(LbIp::dispatches) {
            if let Some(ports) = self.dispatches.get_mut(&(family, dispatch)) {
                *ports -= 1;
            }
        }
        self.dispatches.retain(|_, ports| *ports > 0);
        for (_, share, hash_by) in old.as_deref().into_iter().flat_map(LbIp::shares) {
            self.release_table(share.table_id_by(hash_by));
        }
        for ring in old.as_deref().into_iter().flat_map(LbIp::rings) {
            self.release_ring((family, ring.id()));
        }
    }

    /// Counts a use of this ring, and replaces it by the shared copy.
    fn use_ring(&mut self, family: Family, ring: &mut Arc<Ring>) {
        let (shared, users) = self.rings.entry((family, ring.id())).or_insert_with(|| {
            self.next_hops_outdated = true;
            (Arc::clone(ring), 0)
        });
        *users += 1;
        if shared == ring {
            *ring = Arc::clone(shared);
        }
    }

    fn release_ring(&mut self, id: (Family, RingId)) {
        if let Some((_, users)) = self.rings.get_mut(&id) {
            *users -= 1;
            if *users == 0 {
                self.next_hops_outdated = true;
                self.rings.remove(&id);
            }
        }
    }

    fn use_table(&mut self, share: &Arc<Share>, hash_by: HashBy) {
        let id = share.table_id_by(hash_by);
        if let Some(used) = self.tables.get_mut(&id) {
            used.users += 1;
            return;
        }
        self.next_hops_outdated = true;
        let share = if hash_by == share.hash_by() { Arc::clone(share) } else { Arc::new(share.hashed_by(hash_by)) };
        self.tables.insert(id, UsedTable { table: Arc::new(share.table()), share, users: 1 });
    }

    fn release_table(&mut self, id: TableId) {
        if let Some(used) = self.tables.get_mut(&id) {
            used.users -= 1;
            if used.users == 0 {
                self.next_hops_outdated = true;
                self.tables.remove(&id);
            }
        }
    }

    /// Resolves the next hops again, if they are outdated.
    pub(crate) fn resolve_next_hops(&mut self, snapshot: &Snapshot) {
        if std::mem::take(&mut self.next_hops_outdated) {
            let rings = self.rings.iter().map(|((family, id), (ring, _))| (*family, *id, &**ring));
            let next_hops = NextHops::resolve(snapshot, self.tables.values().map(|used| &*used.table), rings);
            if *self.next_hops != next_hops {
                self.next_hops = Arc::new(next_hops);
            }
        }
    }

    /// The share tables in use.
    pub fn tables(&self) -> impl Iterator<Item = (TableId, &Arc<SlotTable>)> {
        self.tables.iter().map(|(id, used)| (*id, &used.table))
    }

    /// The tables that only one of the two rulesets has: the first `Option` is the table in `self`, the second that in
    /// `other`. Tables with the same id are equal.
    pub(crate) fn differing_tables<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (TableId, Option<&'a Arc<SlotTable>>, Option<&'a Arc<SlotTable>>)> {
        let differing = self.tables.differing(&other.tables);
        let table = |used: Option<&'a UsedTable>| used.map(|used| &used.table);
        let tables = differing.map(move |(id, before, after)| (*id, table(before), table(after)));
        tables.filter(|(_, before, after)| before.is_some() != after.is_some())
    }

    /// Every dispatch in use, with the family of its lb_ips.
    pub fn dispatches(&self) -> impl Iterator<Item = (Family, Dispatch)> {
        self.dispatches.keys().copied()
    }
}

/// An lb_ip, a protocol and a port: the destination of a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// The ports and problems of one lb_ip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LbIp {
    /// Packets to any other port are dropped, unless the lb_ip [is left alone](Self::is_left_alone). If they were
    /// routed, they would go back to the router they came from.
    pub ports: BTreeMap<(Protocol, u16), Box<Target>>,
    /// Problems to report to users.
    pub problems: BTreeSet<Problem>,
    /// Whether packets to it are counted.
    pub counted: bool,
    /// Whether it is an address of this node itself. Then it has no ports, and its packets pass unchanged: otherwise
    /// the node would lose its own ports, such as those of ssh and the kubelet.
    pub is_of_node: bool,
}

/// The key by which the share table of a frame is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpreadKey {
    Port(Protocol, u16),
    /// For fragments, which have no port.
    Protocol(Protocol),
}

impl LbIp {
    /// The share of each key whose frames are spread, and the part of the packet that is hashed.
    ///
    /// Fragments of a protocol use the share of its lowest port whose frames are spread, hashed by client. If another
    /// port has its endpoints on other nodes, the node that receives fragments of that port forwards them.
    pub fn shares(&self) -> impl Iterator<Item = (SpreadKey, &Arc<Share>, HashBy)> {
        let mut last = None;
        let shared = self.ports.iter().filter_map(|(&port, target)| Some((port, target.share.as_ref()?)));
        // Ports are sorted by protocol.
        shared.flat_map(move |((protocol, port), share)| {
            let is_first = last.replace(protocol) != Some(protocol);
            let fragments = is_first.then_some((SpreadKey::Protocol(protocol), share, HashBy::Client));
            [Some((SpreadKey::Port(protocol, port), share, share.hash_by())), fragments].into_iter().flatten()
        })
    }

    /// The ring of each port that has one.
    fn rings(&self) -> impl Iterator<Item = &Arc<Ring>> {
        self.ports.values().filter_map(|target| target.ring.as_ref())
    }

    fn rings_mut(&mut self) -> impl Iterator<Item = &mut Arc<Ring>> {
        self.ports.values_mut().filter_map(|target| target.ring.as_mut())
    }

    /// The dispatch of every port, from outside and from inside.
    fn dispatches(&self) -> impl Iterator<Item = Dispatch> {
        self.ports.values().flat_map(|target| [target.outside_dispatch(), target.inside_dispatch()]).flatten()
    }

    /// Whether its packets pass unchanged: it is an address of this node, or another proxy forwards all of its ports.
    pub fn is_left_alone(&self) -> bool {
        self.is_of_node || !self.ports.is_empty() && self.ports.values().all(|target| target.other_proxy)
    }

    /// How packets from outside reach endpoints on other nodes.
    pub fn reach(&self) -> Reach {
        let served = self.ports.values().filter(|target| target.outside.count > 0 || target.other_proxy);
        let mut reaches = served.map(|target| target.reach);
        let first = reaches.next().unwrap_or(Reach::Translated);
        if reaches.all(|reach| reach == first) { first } else { Reach::Mixed }
    }
}

/// The endpoints and rules of one port of an lb_ip.
///
/// If there is no endpoint, packets are refused. If there are endpoints, but none for packets from outside, packets
/// from outside are dropped and not refused: the endpoints are alive on other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// All endpoints that new connections may use: first those for packets from outside, then the others. Both parts
    /// are sorted: local endpoints first, then by address.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints for packets from outside.
    pub outside: Pick,
    /// The endpoints for packets from inside.
    pub inside: Pick,
    /// Endpoints that get no new connection but still serve their open connections.
    pub draining: BTreeSet<SocketAddr>,
    /// The ranges of allowed clients, sorted and merged. Packets of other clients are dropped, with or without
    /// endpoints. `None`: every client is allowed.
    pub sources: Option<Arc<[Range]>>,
    /// A client keeps its endpoint for this many seconds after its last new connection.
    pub affinity: Option<u32>,
    /// How frames are shared among nodes. `None`: all frames stay on this node.
    pub share: Option<Arc<Share>>,
    /// The nodes that may track an open TCP connection. `None`: only this node can.
    pub ring: Option<Arc<Ring>>,
    /// How packets from outside reach endpoints on other nodes.
    pub reach: Reach,
    /// The destination to which packets are readdressed for the Service proxy. The proxy then chooses from `endpoints`.
    pub proxied: Option<ProxyTarget>,
    /// Whether another proxy forwards this port. Its packets pass unchanged, and all other fields have no effect.
    ///
    /// TODO(correctness): if the lb_ip also has ports of ours, packets from that proxy to endpoints are masqueraded.
    pub other_proxy: bool,
}

impl Target {
    /// The dispatch of packets from outside; `None` if there are no endpoints for them.
    pub fn outside_dispatch(&self) -> Option<Dispatch> {
        self.dispatch(self.outside)
    }

    /// The dispatch of packets from inside; `None` if there are no endpoints for them.
    pub fn inside_dispatch(&self) -> Option<Dispatch> {
        self.dispatch(self.inside)
    }

    fn dispatch(&self, pick: Pick) -> Option<Dispatch> {
        let (restricted, affinity) = (self.sources.is_some(), self.affinity);
        let dispatch = match self.proxied {
            None => Dispatch { pick, restricted, affinity, backend: Backend::Endpoints },
            // The proxy chooses the endpoint.
            Some(proxied) => Dispatch { restricted, backend: proxied.backend(), ..Dispatch::default() },
        };
        (pick.count > 0).then_some(dispatch)
    }
}

/// How a new connection is sent to an endpoint. All ports with the same dispatch share a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dispatch {
    /// The endpoints to choose from.
    pub pick: Pick,
    /// Whether source ranges apply.
    pub restricted: bool,
    /// Session-affinity timeout in seconds.
    pub affinity: Option<u32>,
    pub backend: Backend,
}

/// An endpoint that packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Whether it is on another node. This is the first field, so that local endpoints sort first.
    pub remote: bool,
    pub address: SocketAddr,
}

/// Consecutive endpoints of a [`Target`]. Each new connection goes to one of them, chosen at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// The index of the first.
    pub from: u32,
    pub count: u32,
}
