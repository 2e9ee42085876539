//! All observed objects with their indexes, and the keys whose outcome may have changed.
//!
//! Changes by key → updated indexes and dirty keys. A plan decides about the dirty keys alone, so one Service's change
//! costs the same whether there are ten other Services or thirty thousand.
//!
//! | change | dirty |
//! |---|---|
//! | a Service | the Service, its records, and the Services that request their addresses |
//! | a Service that shares | also the other holders of its records, and the waiting Services with its sharing key |
//! | a record | the record, its holders before and now, and the Services that request its address |
//! | an address becomes free, or a pool or a quota is used up | the Services that wait for an address of its family |
//! | labels of a namespace, or the end of the wait for it | its Services |
//! | pools, addresses of nodes and gateways | everything; if only the status of a pool differs, that pool |
//! | ranges of pods or ClusterIPs | the pools that have other addresses in these ranges than before |
//! | the first NodeNetwork | everything |
//! | the end of a series | its subject |
//! | the API server refuses to change a record | the Services that wait for this change |
//! | the controller becomes the lease holder, or no longer is | everything |
//! | announcers or conflicts of an address, or the existence of a node that they name | the holders of the address |
//! | advertisements, endpoints, nodes, pools | the Services with an unannounced address |
//! | the grace period of an unannounced address ends | its holders |
//! | a quarantine ends | the record |
//!
//! A plan may leave dirty Services for later plans: [`backlog`].
//!
//! An address that a plan assigns is promised until its record exists: no other Service gets it. The next decision
//! about the Service replaces its promises.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use crds::{Holder, IPAddressPool, InternedStr, Key, Namespace, NodeAddresses, Range, Record, Service, ServiceRange};
use jiff::Timestamp;
use model::Cluster;
use model::eligibility::Diagnosis;

use crate::allocate::request::Rank;
use crate::allocate::sharing::{self, HolderState, Standing};
use crate::plan::effect::{Series, Subject};
use crate::pools::Pools;
use crate::pools::cluster_range::{ClusterRange, ClusterUser};
use crate::pools::free::Free;
use crate::pools::intervals::ByFamily;
use crate::pools::occupied::Occupied;
use crate::state::record::{holder_keys, holds, names};
use crate::state::refused_write::RefusedWrite;
use relation::Relation;

mod backlog;
mod namespaces;
mod promises;
mod refused_writes;
mod relation;
mod unannounced;
mod updates;
mod waiting;

/// A problem that keeps every node from announcing, with its fix: `the Secret .. is missing: create it`. Its text must
/// be stable, because each change of it is a write for each Service.
pub type Obstacle = Arc<str>;

/// All observed objects with their indexes, and the work in progress.
#[derive(Debug, Default)]
pub struct ClusterIndex {
    pub(crate) default_class: bool,
    /// All objects that decide which nodes may announce an address: Services, records, nodes, advertisements, pools,
    /// and EndpointSlices if they are watched.
    pub(crate) objects: Cluster,
    pub(crate) unreadable: Unreadable,
    pub(crate) namespaces: BTreeMap<String, Arc<Namespace>>,
    /// The namespaces that are not observed, and whose labels decide about a Service.
    awaited_namespaces: BTreeMap<String, NamespaceWait>,
    pool_objects: BTreeMap<String, Arc<IPAddressPool>>,
    pub(crate) networks: BTreeMap<String, Arc<NodeAddresses>>,
    /// ServiceCIDRs, by name. Empty if the API server does not know them.
    service_ranges: BTreeMap<String, Arc<ServiceRange>>,
    /// Whether EndpointSlices are watched. They cost memory.
    pub(crate) has_slices: bool,
    /// Whether EndpointSlices must be watched from now on.
    pub(crate) wants_slices: bool,
    /// The problem that keeps every node from announcing.
    pub(crate) obstacle: Option<Obstacle>,

    occupied: Occupied,
    pub(crate) pools: Pools,
    pub(crate) free: Free,
    /// By address, the Services that request it by name.
    requested: Relation<IpAddr, Key>,
    /// By sharing key, the addresses that are shared or will be shared under it.
    pub(crate) by_sharing_key: Relation<InternedStr, IpAddr>,
    /// By Service, the addresses that are reserved for it.
    pub(crate) reserved: Relation<Key, IpAddr>,
    /// By pool (with a limit) and namespace, the addresses in use, each with its number of Services.
    quotas: HashMap<String, HashMap<String, BTreeMap<IpAddr, u32>>>,
    /// By address, the Services that it is promised to: its record does not exist, or does not name them yet.
    pub(crate) promises: Relation<IpAddr, Key>,
    /// The same pairs, by Service.
    pub(crate) promised: Relation<Key, IpAddr>,
    /// The sharing keys of promised addresses.
    promised_keys: HashMap<IpAddr, InternedStr>,
    /// By Service, the addresses that it will leave.
    departures: HashMap<Key, BTreeMap<IpAddr, Departure>>,
    /// By family, the Services that wait for an address of that family, needed or optional.
    waiting: ByFamily<BTreeSet<Key>>,
    /// Addresses in quarantine, and when it ends.
    pub(crate) quarantined: BTreeMap<IpAddr, Timestamp>,
    /// Services that will leave an address that then goes into quarantine.
    pub(crate) moving: BTreeSet<Key>,
    /// Services with an address that no node announces, and since when that is known.
    pub(crate) unannounced: BTreeMap<Key, Timestamp>,
    /// The Services in `unannounced` that are in their grace period, by its end.
    graces: BTreeSet<(Timestamp, Key)>,
    /// Why no node may announce an address. Empty: no Service needed it since nodes, pools or advertisements changed.
    diagnosis: OnceLock<Diagnosis>,

    pub(crate) dirty: Dirty,
    /// Subjects with an unfinished series.
    pub(crate) pending: BTreeSet<Subject>,
    /// Subjects whose series has started, with the addresses it writes.
    pub(crate) busy: BTreeMap<Subject, Vec<IpAddr>>,
    /// By subject, the writes that the API server refuses for a reason that lasts.
    refused_writes: BTreeMap<Subject, Vec<RefusedWrite>>,
    /// The standings of addresses with several holders, computed once in each plan.
    pub(crate) standings: HashMap<IpAddr, Arc<[Standing]>>,
    /// The UIDs of all Services, collected at most once for a plan and its backlog: few plans need them.
    living_uids: OnceLock<BTreeSet<InternedStr>>,
}

/// Objects that exist and cannot be read. They are neither changed nor treated as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// These Services keep the addresses they hold.
    pub(crate) services: BTreeSet<Key>,
    /// The addresses of these records count as used.
    pub(crate) records: BTreeSet<IpAddr>,
}

/// Keys whose outcome may have changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) all: bool,
    /// Whether an address of a family may be available now, or available to fewer Services.
    pub(crate) waiting: ByFamily<bool>,
    /// The sharing keys of changed Services, which others may share an address with now.
    pub(crate) sharing_keys: BTreeSet<InternedStr>,
    pub(crate) services: BTreeSet<Key>,
    /// Services of which only the conditions about announcing may be outdated. They come after all others.
    pub(crate) rechecks: BTreeSet<Key>,
    /// Dirty Services that earlier plans have left, in the order in which they are planned.
    pub(crate) backlog: BTreeSet<(Precedence, Key)>,
    pub(crate) records: BTreeSet<IpAddr>,
    pub(crate) pools: BTreeSet<String>,
    /// Whether specs of pools or occupied addresses have changed, so that the pools must be built again.
    specs: bool,
    /// Whether addresses of nodes or gateways have changed, so that the occupied addresses must be collected again.
    occupied: bool,
    /// Whether ranges of pods or ClusterIPs have changed, so that they must be compared with the pools again.
    cluster_ranges: bool,
}

/// The order in which dirty Services are planned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Precedence {
    /// The Service may not hold addresses, or is gone.
    Released,
    /// The status of the Service shows a free address, which a new Service could get otherwise.
    Adopting(Rank, Timestamp),
    /// The Service holds no address. New addresses are assigned in this order, as in a single plan.
    New(Rank, Timestamp),
    /// The Service holds an address.
    Holder,
    /// Only the conditions about announcing may be outdated.
    Recheck,
}

/// The wait for a namespace that is not observed.
#[derive(Debug)]
struct NamespaceWait {
    until: Timestamp,
    /// Whether the Services of the namespace are refused.
    is_over: bool,
}

/// How a Service leaves an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// The Service is the only holder: its own series deletes the record.
    DeletesRecord,
    /// The record may drop the Service now.
    Now,
    /// The record may drop the Service when the status of the Service no longer shows the address.
    AfterStatusWrite,
}

impl ClusterIndex {
    /// An empty cluster. `default_class`: whether Services without a class are ours (KEP-1959).
    pub fn new(default_class: bool) -> Self {
        Self { default_class, ..Self::default() }
    }

    /// Rebuilds pools and occupied addresses, if their objects have changed.
    pub(crate) fn rebuild_pools(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.dirty.occupied) {
            let networks = self.networks.iter().map(|(name, network)| (name.as_str(), &**network));
            let occupied = Occupied::new(self.objects.nodes().values().map(|node| &**node), networks);
            self.dirty.specs |= occupied != self.occupied;
            self.occupied = occupied;
        }
        let is_outdated = std::mem::take(&mut self.dirty.specs);
        if is_outdated {
            self.build_pools(now);
        }
        if std::mem::take(&mut self.dirty.cluster_ranges) || is_outdated {
            self.compare_with_cluster_ranges();
        }
    }

    fn build_pools(&mut self, now: Timestamp) {
        self.pools = Pools::new(self.pool_objects.values(), &self.occupied);
        let used = self.objects.records().keys().chain(self.promises.keys()).chain(&self.unreadable.records);
        self.free.rebuild(&self.pools, used.copied(), now);
        self.quotas.clear();
        if self.pool_objects.values().any(|pool| pool.spec.max_per_namespace.is_some()) {
            let held = self.objects.records().values();
            let held = held.flat_map(|record| holder_keys(record).map(move |key| (record.address, key.namespace)));
            let promised = self.promises.keys();
            let promised =
                promised.flat_map(|lb_ip| self.promises.get(lb_ip).map(move |key| (*lb_ip, key.namespace.clone())));
            for (lb_ip, namespace) in held.chain(promised).collect::<Vec<_>>() {
                self.charge_quota(lb_ip, &namespace);
            }
        }
        self.dirty.all = true;
        self.dirty.pools.extend(self.pool_objects.keys().cloned());
        let moved = self.objects.records().values().filter(|record| self.changed_pool(record).is_some());
        let moved: Vec<_> = moved.map(|record| record.address).collect();
        self.dirty.records.extend(moved);
    }

    /// Finds the addresses of pools that the cluster uses. Without ServiceCIDRs, the ClusterIPs of the Services are
    /// compared instead of their ranges. A new Service does not start this comparison. So an overlap with its ClusterIP
    /// is found when pools, nodes or ranges change the next time.
    fn compare_with_cluster_ranges(&mut self) {
        let mut ranges = Vec::new();
        for (name, node) in self.objects.nodes() {
            let pods = node.pod_cidrs.iter().filter_map(|text| text.parse::<Range>().ok());
            ranges.extend(pods.map(|range| ClusterRange { range, user: ClusterUser::Pods(name.clone()) }));
        }
        for (name, service_range) in &self.service_ranges {
            let networks = service_range.networks.iter();
            let networks = networks.filter_map(|net| Range::new(net.network(), net.broadcast()));
            let user = || ClusterUser::ServiceRange(name.clone());
            ranges.extend(networks.map(|range| ClusterRange { range, user: user() }));
        }
        let services = self.objects.services().iter().filter(|_| self.service_ranges.is_empty());
        let cluster_ips = services.flat_map(|(key, service)| service.cluster_ips.iter().map(move |ip| (*ip, key)));
        self.dirty.pools.extend(self.pools.set_cluster_use(&ranges, cluster_ips));
    }

    pub(crate) fn is_used(&self, lb_ip: IpAddr) -> bool {
        self.objects.records().contains_key(&lb_ip)
            || self.unreadable.records.contains(&lb_ip)
            || self.promises.contains(&lb_ip)
    }

    /// The records that name this Service, with the same key and UID, in order of their addresses.
    pub(crate) fn records_held_by(&self, service: &Service) -> Vec<Arc<Record>> {
        let records = self.objects.addresses_of(&service.key).filter_map(|lb_ip| self.objects.records().get(&lb_ip));
        records.filter(|record| holds(record, service)).cloned().collect()
    }

    /// The records that name this Service or a former Service of the same key, in order of their addresses.
    pub(crate) fn records_of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a Arc<Record>> {
        let records = self.objects.addresses_of(key).filter_map(move |lb_ip| self.objects.records().get(&lb_ip));
        records.filter(move |record| names(record, key))
    }

    /// Whether nothing is planned, promised or missing for this Service.
    pub(crate) fn is_idle(&self, key: &Key) -> bool {
        let is_pending = || !self.pending.is_empty() && self.pending.contains(&Subject::Service(key.clone()));
        !self.promised.contains(key)
            && !self.departures.contains_key(key)
            && !self.is_waiting(key)
            && !self.unreadable.services.contains(key)
            && !is_pending()
    }

    /// The state of the Service that a record names as a holder. If another Service has the same key now, it takes the
    /// place of the former one: see [`crate::allocate::adoption`].
    pub(crate) fn holder_state(&self, holder: &Holder) -> HolderState<'_> {
        let key = holder.service();
        if self.unreadable.services.contains(&key) {
            return HolderState::Unreadable;
        }
        let service = self.objects.services().get(&key);
        let service = service.filter(|service| self.may_hold_addresses(service));
        let service = service.filter(|service| service.uid == holder.uid || !self.is_living(&holder.uid));
        service.map_or(HolderState::Gone, |service| HolderState::Service(service))
    }

    /// Whether a Service has this UID.
    fn is_living(&self, uid: &InternedStr) -> bool {
        let uids = || self.objects.services().values().map(|service| service.uid.clone()).collect();
        self.living_uids.get_or_init(uids).contains(uid)
    }

    /// Whether a Service may have addresses at all.
    pub(crate) fn may_hold_addresses(&self, service: &Service) -> bool {
        !service.deleting && service.is_ours(self.default_class)
    }

    /// The standings of the holders of this address, in their order.
    pub(crate) fn standings(&mut self, record: &Record) -> Arc<[Standing]> {
        if let Some(known) = self.standings.get(&record.address) {
            return known.clone();
        }
        let standings: Arc<[Standing]> = sharing::standings(&record.holders, |holder| self.holder_state(holder)).into();
        if record.holders.len() > 1 {
            self.standings.insert(record.address, standings.clone());
        }
        standings
    }

    /// Forgets the results that are valid only during one plan.
    pub(crate) fn begin_plan(&mut self) {
        self.standings.clear();
        if !self.has_backlog() {
            self.living_uids = OnceLock::new();
        }
    }

    /// Replaces the departures of this Service.
    pub(crate) fn set_departures(&mut self, key: &Key, departures: BTreeMap<IpAddr, Departure>) {
        self.dirty.records.extend(departures.keys());
        let old = self.departures.remove(key);
        self.dirty.records.extend(old.iter().flat_map(BTreeMap::keys));
        if !departures.is_empty() {
            self.departures.insert(key.clone(), departures);
        }
    }

    /// How this Service leaves this address; `None` if it stays.
    pub(crate) fn departure(&self, key: &Key, lb_ip: IpAddr) -> Option<Departure> {
        self.departures.get(key)?.get(&lb_ip).copied()
    }

    /// Forgets the needs of a Service that may not hold addresses.
    pub(crate) fn forget_needs(&mut self, key: &Key, now: Timestamp) {
        self.set_departures(key, BTreeMap::new());
        self.set_waiting(key, &[]);
        self.set_unannounced(key, false, now);
        self.moving.remove(key);
    }

    /// Forgets all decisions and all planned and started series, so that everything is planned again.
    pub fn start_over(&mut self, now: Timestamp) {
        self.forget_decisions(now);
        self.dirty.all = true;
        self.dirty.records.extend(self.objects.records().keys().chain(&self.unreadable.records));
        self.dirty.pools.extend(self.pool_objects.keys().cloned());
    }

    /// Called in place of [`Self::plan`] while the controller does not lead. The pools are kept up to date, because a
    /// cool-down lasts as long as the pool of the address specifies. Dirty keys are dropped, because their number would
    /// have no bound. [`Self::start_over`] marks everything as dirty when the controller leads.
    pub fn stand_by(&mut self, now: Timestamp) {
        self.forget_decisions(now);
        self.rebuild_pools(now);
        self.dirty = Dirty::default();
    }

    fn forget_decisions(&mut self, now: Timestamp) {
        self.busy.clear();
        self.pending.clear();
        for key in self.promised.keys().cloned().collect::<Vec<_>>() {
            self.break_promises(&key, now);
        }
        self.departures.clear();
        self.waiting = ByFamily::default();
        self.moving.clear();
        self.unannounced.clear();
        self.graces.clear();
        self.awaited_namespaces.clear();
        self.refused_writes.clear();
    }

    /// Marks a series as started. Until it ends, nothing is planned for its subject and its addresses.
    pub fn start_series(&mut self, series: &Series) {
        let lb_ips = series.effects.iter().filter_map(|effect| effect.lb_ip()).collect();
        self.busy.insert(series.subject.clone(), lb_ips);
    }

    /// Marks the series of a subject as ended, with or without success.
    pub fn end_series(&mut self, subject: &Subject) {
        self.busy.remove(subject);
        self.pending.remove(subject);
        self.dirty.add(subject.clone());
    }

    /// Whether the series of this subject has started.
    pub(crate) fn is_busy(&self, subject: &Subject) -> bool {
        self.busy.contains_key(subject)
    }

    /// Whether a series writes an address that a started series writes too.
    pub(crate) fn collides(&self, series: &Series) -> bool {
        let is_busy = |lb_ip: IpAddr| self.busy.values().flatten().any(|busy| *busy == lb_ip);
        !self.busy.is_empty() && series.effects.iter().filter_map(|effect| effect.lb_ip()).any(is_busy)
    }
}

impl Dirty {
    pub(crate) fn add(&mut self, subject: Subject) {
        match subject {
            Subject::Service(key) => drop(self.services.insert(key)),
            Subject::Record(lb_ip) => drop(self.records.insert(lb_ip)),
            Subject::Pool(name) => drop(self.pools.insert(name)),
        }
    }
}

/// Adds or removes an element. Returns whether the set contained it before.
pub(crate) fn set_member<T: Ord + Clone>(set: &mut BTreeSet<T>, element: &T, is_member: bool) -> bool {
    if is_member { !set.insert(element.clone()) } else { set.remove(element) }
}
