//! All observed objects with their indexes, and the keys whose outcome may have changed.
//!
//! Changes by key → updated indexes and dirty keys. A plan decides about the dirty keys alone, so one Service's change
//! costs the same whether there are ten other Services or thirty thousand.
//!
//! | change | dirty |
//! |---|---|
//! | a Service | the Service, the records that name it, and the Services that request these addresses; if it shares, also its co-holders and the waiting Services |
//! | a record | the record, its holders before and now, and the Services that request it; also the waiting Services, if space has become free or none is left |
//! | labels of a namespace | its Services |
//! | pools, nodes, gateways | everything; if only the status of a pool differs, that pool |
//! | the end of a series | its subject |
//! | announcers or conflicts of an address | its holders |
//! | advertisements, endpoints, nodes, pools | the Services with an unannounced address |
//! | the grace period of an unannounced address ends | its holders |
//!
//! An address that a plan assigns is promised until its record exists: no other Service gets it, unless the Service is
//! decided again first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Advertisement, EndpointSlice, IPAddressPool, InternedStr, Key, Namespace, Network, Node, Record, Service};
use jiff::Timestamp;

use crate::allocate::sharing::{self, HolderState, Standing};
use crate::plan::effect::{Series, Subject};
use crate::pools::Pools;
use crate::pools::free::Free;
use crate::pools::occupied::Occupied;
use crate::state::record::holds;

mod promises;
mod unannounced;
mod updates;

/// A problem that keeps every node from announcing, with its fix: `the Secret .. is missing: create it`. Its text must
/// be stable, because each change of it is a write for each Service.
pub type Obstacle = Arc<str>;

/// All observed objects with their indexes, and the work in progress.
#[derive(Debug)]
pub struct ClusterIndex {
    pub(crate) default_class: bool,
    pub(crate) services: BTreeMap<Key, Arc<Service>>,
    pub(crate) records: BTreeMap<IpAddr, Arc<Record>>,
    pub(crate) unreadable: Unreadable,
    pub(crate) namespaces: BTreeMap<String, Arc<Namespace>>,
    pool_objects: BTreeMap<String, Arc<IPAddressPool>>,
    pub(crate) nodes: BTreeMap<String, Arc<Node>>,
    pub(crate) networks: BTreeMap<String, Arc<Network>>,
    pub(crate) advertisements: BTreeMap<String, Arc<Advertisement>>,
    /// `None`: not watched yet, because they cost memory.
    pub(crate) slices: Option<BTreeMap<Key, Arc<EndpointSlice>>>,
    wants_slices: bool,
    /// The problem that keeps every node from announcing.
    pub(crate) obstacle: Option<Obstacle>,

    occupied: Occupied,
    pub(crate) pools: Pools,
    pub(crate) free: Free,
    /// By Service, the addresses whose records name it, whatever the UID.
    held: HashMap<Key, Vec<IpAddr>>,
    /// By address, the Services that request it by name.
    requested: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// By sharing key, the addresses that are shared or will be shared under it.
    by_sharing_key: HashMap<InternedStr, BTreeSet<IpAddr>>,
    /// By Service, the addresses that are reserved for it.
    reserved: HashMap<Key, BTreeSet<IpAddr>>,
    /// By pool (with a limit) and namespace, the addresses in use, each with its number of Services.
    quotas: HashMap<(String, String), BTreeMap<IpAddr, u32>>,
    /// The Services that get an address that has no record, or whose record does not name them yet.
    promises: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// The same, by Service.
    promised: HashMap<Key, Vec<IpAddr>>,
    /// The sharing keys of promised addresses.
    promised_keys: HashMap<IpAddr, InternedStr>,
    /// The Services that will leave an address.
    pub(crate) departures: BTreeMap<IpAddr, BTreeMap<Key, Departure>>,
    /// The same, by Service.
    departing: HashMap<Key, Vec<IpAddr>>,
    /// Services that lack an address they need.
    waiting: BTreeSet<Key>,
    /// Addresses in quarantine, and when it ends.
    pub(crate) quarantined: BTreeMap<IpAddr, Timestamp>,
    /// Services that will leave an address that then goes into quarantine.
    pub(crate) moving: BTreeSet<Key>,
    /// Services with an address that no node announces, and since when that is known.
    pub(crate) unannounced: BTreeMap<Key, Timestamp>,
    /// Those of them that are still in their grace period, by its end.
    graces: BTreeSet<(Timestamp, Key)>,

    pub(crate) dirty: Dirty,
    /// Subjects with an unfinished series.
    pending: BTreeSet<Subject>,
    /// Subjects whose series has started, with the addresses it writes.
    busy: BTreeMap<Subject, Vec<IpAddr>>,
    /// The standings of addresses with several holders, computed once in each plan.
    standings: HashMap<IpAddr, Arc<[Standing]>>,
}

/// Objects that exist and cannot be read. They are neither changed nor treated as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// They keep the addresses they hold.
    pub(crate) services: BTreeSet<Key>,
    /// Their addresses are in use.
    pub(crate) records: BTreeSet<IpAddr>,
}

/// Keys whose outcome may have changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) all: bool,
    pub(crate) waiting: bool,
    pub(crate) services: BTreeSet<Key>,
    pub(crate) records: BTreeSet<IpAddr>,
    pub(crate) pools: BTreeSet<String>,
    /// The specs of pools, or the occupied addresses.
    layout: bool,
    occupied: bool,
}

/// How a Service leaves an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It is the only holder: its own series deletes the record.
    DeletesRecord,
    /// The record may drop it now.
    Now,
    /// The record may drop it when its status no longer shows the address.
    AfterStatusWrite,
}

impl ClusterIndex {
    /// An empty cluster. `default_class`: whether Services without a class are ours (KEP-1959).
    pub fn new(default_class: bool) -> Self {
        let occupied = Occupied::default();
        let pools = Pools::new([], &occupied);
        Self {
            default_class,
            services: BTreeMap::new(),
            records: BTreeMap::new(),
            unreadable: Unreadable::default(),
            namespaces: BTreeMap::new(),
            pool_objects: BTreeMap::new(),
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            advertisements: BTreeMap::new(),
            slices: None,
            wants_slices: false,
            obstacle: None,
            free: Free::new(&pools, []),
            occupied,
            pools,
            held: HashMap::new(),
            requested: BTreeMap::new(),
            by_sharing_key: HashMap::new(),
            reserved: HashMap::new(),
            quotas: HashMap::new(),
            promises: BTreeMap::new(),
            promised: HashMap::new(),
            promised_keys: HashMap::new(),
            departures: BTreeMap::new(),
            departing: HashMap::new(),
            waiting: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            moving: BTreeSet::new(),
            unannounced: BTreeMap::new(),
            graces: BTreeSet::new(),
            dirty: Dirty::default(),
            pending: BTreeSet::new(),
            busy: BTreeMap::new(),
            standings: HashMap::new(),
        }
    }

    /// Rebuilds pools and occupied addresses, if their objects have changed.
    pub(crate) fn rebuild_pools(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.dirty.occupied) {
            let networks = self.networks.iter().map(|(name, network)| (name.as_str(), &**network));
            let occupied = Occupied::new(self.nodes.values().map(|node| &**node), networks);
            self.dirty.layout |= occupied != self.occupied;
            self.occupied = occupied;
        }
        if !std::mem::take(&mut self.dirty.layout) {
            return;
        }
        self.pools = Pools::new(self.pool_objects.values(), &self.occupied);
        let promised = self.promises.keys().chain(&self.unreadable.records);
        self.free.rebuild(&self.pools, self.records.keys().chain(promised).copied(), now);
        self.quotas.clear();
        if self.pool_objects.values().any(|pool| pool.spec.max_per_namespace.is_some()) {
            for record in self.records.values().cloned().collect::<Vec<_>>() {
                record.holders.iter().for_each(|holder| self.charge_quota(record.address, &holder.namespace));
            }
            for (key, lb_ips) in self.promised.clone() {
                lb_ips.iter().for_each(|lb_ip| self.charge_quota(*lb_ip, &key.namespace));
            }
        }
        self.dirty.all = true;
        self.dirty.pools.extend(self.pool_objects.keys().cloned());
    }

    fn is_used(&self, lb_ip: IpAddr) -> bool {
        self.records.contains_key(&lb_ip)
            || self.unreadable.records.contains(&lb_ip)
            || self.promises.contains_key(&lb_ip)
    }

    /// The addresses that are shared or will be shared under this key, in order.
    pub(crate) fn addresses_with_key(&self, key: &str) -> impl Iterator<Item = IpAddr> {
        self.by_sharing_key.get(key).into_iter().flatten().copied()
    }

    /// The addresses that are reserved for this Service, in order.
    pub(crate) fn addresses_reserved_for(&self, key: &Key) -> impl Iterator<Item = IpAddr> {
        self.reserved.get(key).into_iter().flatten().copied()
    }

    /// The records that name this very Service, in order of their addresses.
    pub(crate) fn records_held_by(&self, service: &Service) -> Vec<Arc<Record>> {
        let records = self.addresses_held_by(&service.key).iter().filter_map(|lb_ip| self.records.get(lb_ip));
        records.filter(|record| holds(record, service)).cloned().collect()
    }

    /// The addresses whose records name a Service of this key, whatever its UID, in order.
    pub(crate) fn addresses_held_by(&self, key: &Key) -> &[IpAddr] {
        self.held.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether nothing is planned, promised or missing for this Service.
    pub(crate) fn is_idle(&self, key: &Key) -> bool {
        let is_pending = || !self.pending.is_empty() && self.pending.contains(&Subject::Service(key.clone()));
        !self.promised.contains_key(key)
            && !self.departing.contains_key(key)
            && !self.waiting.contains(key)
            && !self.unreadable.services.contains(key)
            && !is_pending()
    }

    /// The state of the Service with this key and UID, as a holder.
    pub(crate) fn holder_state(&self, key: &Key, uid: &str) -> HolderState<'_> {
        if self.unreadable.services.contains(key) {
            return HolderState::Unreadable;
        }
        let service = self.services.get(key).filter(|service| service.uid == uid && self.may_hold_addresses(service));
        service.map_or(HolderState::Gone, |service| HolderState::Service(service))
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
        let state = |holder: &crds::Holder| self.holder_state(&Key::new(&holder.namespace, &holder.name), &holder.uid);
        let standings: Arc<[Standing]> = sharing::standings(&record.holders, state).into();
        if record.holders.len() > 1 {
            self.standings.insert(record.address, standings.clone());
        }
        standings
    }

    /// Prepares the next plan.
    pub(crate) fn start_plan(&mut self, now: Timestamp) {
        self.mark_due(now);
        self.standings.clear();
    }

    /// Replaces the departures of this Service.
    pub(crate) fn set_departures(&mut self, key: &Key, departures: impl IntoIterator<Item = (IpAddr, Departure)>) {
        for lb_ip in self.departing.remove(key).unwrap_or_default() {
            if let Some(keys) = self.departures.get_mut(&lb_ip) {
                keys.remove(key);
                if keys.is_empty() {
                    self.departures.remove(&lb_ip);
                }
            }
            self.dirty.records.insert(lb_ip);
        }
        for (lb_ip, departure) in departures {
            self.departures.entry(lb_ip).or_default().insert(key.clone(), departure);
            self.departing.entry(key.clone()).or_default().push(lb_ip);
            self.dirty.records.insert(lb_ip);
        }
    }

    /// Sets whether this Service lacks an address it needs.
    pub(crate) fn set_waiting(&mut self, key: &Key, waits: bool) {
        if waits {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
    }

    /// The Services that lack an address they need.
    pub(crate) fn waiting(&self) -> &BTreeSet<Key> {
        &self.waiting
    }

    /// Forgets the needs of a Service that may not hold addresses.
    pub(crate) fn forget_needs(&mut self, key: &Key, now: Timestamp) {
        self.set_departures(key, []);
        self.set_waiting(key, false);
        self.set_unannounced(key, false, now);
        self.moving.remove(key);
    }

    /// Forgets all planned and started series, so that their subjects are planned again.
    pub fn start_over(&mut self, now: Timestamp) {
        let busy = std::mem::take(&mut self.busy).into_keys();
        for subject in std::mem::take(&mut self.pending).into_iter().chain(busy) {
            self.dirty.add(subject);
        }
        for key in self.promised.keys().cloned().collect::<Vec<_>>() {
            self.break_promises(&key, now);
            self.dirty.services.insert(key);
        }
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

    /// The Services that lack an address, have none promised, and have a started series.
    pub(crate) fn waiting_with_series(&self) -> Vec<Arc<Service>> {
        let keys = self.busy.keys().filter_map(|subject| match subject {
            Subject::Service(key) => Some(key),
            _ => None,
        });
        keys.filter(|key| self.waiting.contains(*key))
            .filter(|key| !self.promised.contains_key(*key) && !self.unreadable.services.contains(*key))
            .filter_map(|key| self.services.get(key).cloned())
            .collect()
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

    /// Sets whether this subject has a series. Returns whether this revokes or replaces an earlier one.
    pub(crate) fn set_pending(&mut self, subject: &Subject, is_planned: bool) -> bool {
        if is_planned { !self.pending.insert(subject.clone()) } else { self.pending.remove(subject) }
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

/// Removes one address from an index.
fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<IpAddr>>, key: &K, lb_ip: &IpAddr) {
    if let Some(lb_ips) = index.get_mut(key) {
        lb_ips.remove(lb_ip);
        if lb_ips.is_empty() {
            index.remove(key);
        }
    }
}
