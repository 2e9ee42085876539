//! What is known, with what follows from it and what is to be looked at again.
//!
//! Changes by key → the same in indexes, and who is dirty: whose outcome may be another one now. A plan decides about
//! those alone, so that one Service's change costs the same whether there are ten others or thirty thousand.
//!
//! Who is dirty after what:
//!
//! | what changed | who is dirty |
//! |---|---|
//! | a Service | it, the records that name it, who asks for these addresses; and if it shares, its co-holders and who waits |
//! | a record | it, its holders before and now, who asks for it; and if there is room now that was not before, or none is left, who waits |
//! | a namespace's labels | its Services |
//! | pools, nodes, gateways | all; but if only what is said of a pool has changed, only the pool |
//! | a series came to its end | its subject |
//! | who announces an address, or who else uses it | its holders |
//! | advertisements, endpoints, nodes, pools | whose addresses nobody announces |
//! | nobody has announced an address for some seconds | its holders |
//!
//! What a plan gives and no record has yet is promised: nobody else gets it, until its Service is looked at again, or
//! the record is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Advertisement, EndpointSlice, IPAddressPool, InternedStr, Key, Namespace, Network, Node, Record, Service};
use jiff::Timestamp;

use crate::allocate::sharing::{self, Known, Standing};
use crate::plan::effect::{Series, Subject};
use crate::pools::Pools;
use crate::pools::free::Free;
use crate::pools::occupied::Occupied;
use crate::state::index::unannounced::Obstacle;
use crate::state::record::holds;
use crate::state::snapshot::{Snapshot, Unreadable};
use crate::status::announced::Judge;

mod promises;
pub(crate) mod unannounced;
mod updates;

/// What is known.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) default_class: bool,
    pub(crate) services: BTreeMap<Key, Arc<Service>>,
    pub(crate) addresses: BTreeMap<IpAddr, Arc<Record>>,
    pub(crate) unreadable: Unreadable,
    pub(crate) namespaces: BTreeMap<String, Arc<Namespace>>,
    objects: BTreeMap<String, Arc<IPAddressPool>>,
    pub(crate) nodes: BTreeMap<String, Arc<Node>>,
    pub(crate) networks: BTreeMap<String, Arc<Network>>,
    pub(crate) advertisements: BTreeMap<String, Arc<Advertisement>>,
    /// `None`: nobody has asked for them yet, and they cost memory.
    pub(crate) slices: Option<BTreeMap<Key, Arc<EndpointSlice>>>,
    wants_endpoints: bool,
    /// Says why no node may announce an address.
    pub(crate) judge: Option<Judge>,
    /// What keeps every node from announcing.
    pub(crate) obstacle: Option<Obstacle>,

    occupied: Occupied,
    pub(crate) pools: Pools,
    pub(crate) free: Free,
    /// The addresses whose records name a Service of this key, whatever its UID.
    held: HashMap<Key, Vec<IpAddr>>,
    /// Who asks for an address by name.
    asked: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// By sharing key, the addresses that are shared under it, or are going to be.
    keyed: HashMap<InternedStr, BTreeSet<IpAddr>>,
    /// The addresses that are reserved for a Service.
    kept_for: HashMap<Key, BTreeSet<IpAddr>>,
    /// Of pools with a limit, how many Services of a namespace have each address, by pool and namespace.
    quotas: HashMap<(String, String), BTreeMap<IpAddr, u32>>,
    /// Who gets an address that has no record, or a record that does not say so yet.
    promises: BTreeMap<IpAddr, BTreeSet<Key>>,
    promised: HashMap<Key, Vec<IpAddr>>,
    /// The sharing key of those to whom an address is promised.
    promised_under: HashMap<IpAddr, InternedStr>,
    /// Who is to leave an address.
    pub(crate) leaving: BTreeMap<IpAddr, BTreeMap<Key, Leaving>>,
    leaves: HashMap<Key, Vec<IpAddr>>,
    /// Services that want something that they have not.
    waiting: BTreeSet<Key>,
    /// The addresses that nobody is to get, and until when.
    pub(crate) quarantined: BTreeMap<IpAddr, Timestamp>,
    /// Services that are to leave an address which nobody is to get then.
    pub(crate) moving: BTreeSet<Key>,
    /// Services with an address that nobody announces, and since when that is known.
    pub(crate) unannounced: BTreeMap<Key, Timestamp>,
    /// Those of them of whom nothing is said yet, by when it is time to.
    graces: BTreeSet<(Timestamp, Key)>,

    pub(crate) dirty: Dirty,
    /// Subjects of which a series was planned that has not ended.
    pending: BTreeSet<Subject>,
    /// Those that are under way, with the addresses they are about.
    busy: BTreeMap<Subject, Vec<IpAddr>>,
    /// Of this plan: what becomes of the holders of addresses that several hold.
    standings: HashMap<IpAddr, Arc<[Standing]>>,
}

/// Whose outcome may be another one now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) all: bool,
    pub(crate) waiting: bool,
    pub(crate) services: BTreeSet<Key>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) pools: BTreeSet<String>,
    /// The pools' specs, or what is occupied.
    layout: bool,
    occupied: bool,
}

/// How a Service leaves an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It has it alone: what is about the Service deletes the record.
    Alone,
    /// It can be taken off the record now.
    Now,
    /// First its status has to show something else.
    Later,
}

impl Ledger {
    /// Nothing is known yet. `default_class`: whether Services without a class are ours (KEP-1959).
    pub fn new(default_class: bool) -> Self {
        let occupied = Occupied::default();
        let pools = Pools::new([], &occupied);
        Self {
            default_class,
            services: BTreeMap::new(),
            addresses: BTreeMap::new(),
            unreadable: Unreadable::default(),
            namespaces: BTreeMap::new(),
            objects: BTreeMap::new(),
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            advertisements: BTreeMap::new(),
            slices: None,
            wants_endpoints: false,
            judge: None,
            obstacle: None,
            free: Free::new(&pools, []),
            occupied,
            pools,
            held: HashMap::new(),
            asked: BTreeMap::new(),
            keyed: HashMap::new(),
            kept_for: HashMap::new(),
            quotas: HashMap::new(),
            promises: BTreeMap::new(),
            promised: HashMap::new(),
            promised_under: HashMap::new(),
            leaving: BTreeMap::new(),
            leaves: HashMap::new(),
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

    /// A ledger that has just learnt all this.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut ledger = Self::new(snapshot.default_class);
        let now = snapshot.now;
        snapshot.pools.iter().for_each(|(name, pool)| ledger.set_pool(name, Some(pool.clone())));
        snapshot.nodes.iter().for_each(|(name, node)| ledger.set_node(name, Some(node.clone())));
        snapshot.networks.iter().for_each(|(name, network)| ledger.set_network(name, Some(network.clone())));
        snapshot.namespaces.iter().for_each(|(name, namespace)| ledger.set_namespace(name, Some(namespace.clone())));
        let unreadable = &snapshot.unreadable;
        for (key, service) in &snapshot.services {
            ledger.set_service(key, Some(service.clone()), unreadable.services.contains(key));
        }
        for key in unreadable.services.iter().filter(|key| !snapshot.services.contains_key(key)) {
            ledger.set_service(key, None, true);
        }
        for (address, record) in &snapshot.addresses {
            ledger.set_address(*address, Some(record.clone()), unreadable.addresses.contains(address), now);
        }
        for address in unreadable.addresses.iter().filter(|address| !snapshot.addresses.contains_key(address)) {
            ledger.set_address(*address, None, true, now);
        }
        ledger
    }

    /// Reads pools and what is occupied anew, if that has changed.
    pub(crate) fn refresh(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.dirty.occupied) {
            let networks = self.networks.iter().map(|(name, network)| (name.as_str(), &**network));
            let occupied = Occupied::new(self.nodes.values().map(|node| &**node), networks);
            self.dirty.layout |= occupied != self.occupied;
            self.occupied = occupied;
        }
        if !std::mem::take(&mut self.dirty.layout) {
            return;
        }
        self.pools = Pools::new(self.objects.values(), &self.occupied);
        let promised = self.promises.keys().chain(&self.unreadable.addresses);
        self.free.renew(&self.pools, self.addresses.keys().chain(promised).copied(), now);
        self.quotas.clear();
        if self.objects.values().any(|pool| pool.spec.max_per_namespace.is_some()) {
            for record in self.addresses.values().cloned().collect::<Vec<_>>() {
                record.holders.iter().for_each(|holder| self.count(record.address, &holder.namespace, true));
            }
            for (key, addresses) in self.promised.clone() {
                addresses.iter().for_each(|address| self.count(*address, &key.namespace, true));
            }
        }
        self.dirty.all = true;
        self.dirty.pools.extend(self.objects.keys().cloned());
    }

    fn is_used(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
            || self.unreadable.addresses.contains(&address)
            || self.promises.contains_key(&address)
    }

    /// The addresses that are shared under this key, or are going to be, in order.
    pub(crate) fn shared_under(&self, key: &str) -> impl Iterator<Item = IpAddr> {
        self.keyed.get(key).into_iter().flatten().copied()
    }

    /// The addresses that are reserved for this Service, in order.
    pub(crate) fn reserved_for(&self, key: &Key) -> impl Iterator<Item = IpAddr> {
        self.kept_for.get(key).into_iter().flatten().copied()
    }

    /// The records that name this very Service, in order of their addresses.
    pub(crate) fn records_of(&self, service: &Service) -> Vec<Arc<Record>> {
        let addresses = self.held.get(&service.key).into_iter().flatten();
        let records = addresses.filter_map(|address| self.addresses.get(address));
        records.filter(|record| holds(record, service)).cloned().collect()
    }

    /// The addresses whose records name a Service of this key, whatever its UID, in order.
    pub(crate) fn addresses_of(&self, key: &Key) -> &[IpAddr] {
        self.held.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether nothing is planned, promised or wanted about this Service.
    pub(crate) fn is_at_rest(&self, key: &Key) -> bool {
        let is_pending = || !self.pending.is_empty() && self.pending.contains(&Subject::Service(key.clone()));
        !self.promised.contains_key(key)
            && !self.leaves.contains_key(key)
            && !self.waiting.contains(key)
            && !self.unreadable.services.contains(key)
            && !is_pending()
    }

    /// What is known of the Service that has this key and UID.
    pub(crate) fn known(&self, key: &Key, uid: &str) -> Known<'_> {
        if self.unreadable.services.contains(key) {
            return Known::Unreadable;
        }
        let service = self.services.get(key).filter(|service| service.uid == uid && self.is_served(service));
        service.map_or(Known::Gone, |service| Known::Service(service))
    }

    /// Whether a Service may have addresses at all.
    pub(crate) fn is_served(&self, service: &Service) -> bool {
        !service.deleting && service.is_ours(self.default_class)
    }

    /// What becomes of the holders of this address.
    pub(crate) fn standings(&mut self, record: &Record) -> Arc<[Standing]> {
        if let Some(known) = self.standings.get(&record.address) {
            return known.clone();
        }
        let known = |holder: &crds::Holder| self.known(&Key::new(&holder.namespace, &holder.name), &holder.uid);
        let standings: Arc<[Standing]> = sharing::standings(&record.holders, known).into();
        if record.holders.len() > 1 {
            self.standings.insert(record.address, standings.clone());
        }
        standings
    }

    /// From here on another plan is made.
    pub(crate) fn begin_plan(&mut self, now: Timestamp) {
        self.fall_due(now);
        self.standings.clear();
    }

    /// Notes what this Service is to leave, instead of what it was before.
    pub(crate) fn set_leaving(&mut self, key: &Key, leaving: impl IntoIterator<Item = (IpAddr, Leaving)>) {
        for address in self.leaves.remove(key).unwrap_or_default() {
            if let Some(keys) = self.leaving.get_mut(&address) {
                keys.remove(key);
                if keys.is_empty() {
                    self.leaving.remove(&address);
                }
            }
            self.dirty.addresses.insert(address);
        }
        for (address, how) in leaving {
            self.leaving.entry(address).or_default().insert(key.clone(), how);
            self.leaves.entry(key.clone()).or_default().push(address);
            self.dirty.addresses.insert(address);
        }
    }

    /// Notes whether this Service wants something that it has not.
    pub(crate) fn set_waiting(&mut self, key: &Key, waits: bool) {
        if waits {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
    }

    /// Those that want something that they have not.
    pub(crate) fn waiting(&self) -> &BTreeSet<Key> {
        &self.waiting
    }

    /// Whether something is to be looked at again, other than what waits for something under way.
    pub fn is_dirty(&self) -> bool {
        let Dirty { all, waiting, services, addresses, pools, layout, occupied } = &self.dirty;
        *all || *waiting || *layout || *occupied || {
            services.iter().any(|key| !self.busy.contains_key(&Subject::Service(key.clone())))
                || addresses.iter().any(|address| !self.busy.contains_key(&Subject::Address(*address)))
                || pools.iter().any(|name| !self.busy.contains_key(&Subject::Pool(name.clone())))
        }
    }

    /// Nothing is under way any more, and of what was planned nothing is to come: it is to be planned again.
    pub fn start_over(&mut self, now: Timestamp) {
        let busy = std::mem::take(&mut self.busy).into_keys();
        for subject in std::mem::take(&mut self.pending).into_iter().chain(busy) {
            match subject {
                Subject::Service(key) => drop(self.dirty.services.insert(key)),
                Subject::Address(address) => drop(self.dirty.addresses.insert(address)),
                Subject::Pool(name) => drop(self.dirty.pools.insert(name)),
            }
        }
        for key in self.promised.keys().cloned().collect::<Vec<_>>() {
            self.break_promises(&key, now);
            self.dirty.services.insert(key);
        }
    }

    /// A series is under way. Until it ends, nothing is planned about its subject and its addresses.
    pub fn begins(&mut self, series: &Series) {
        let addresses = series.effects.iter().filter_map(|effect| effect.address()).collect();
        self.busy.insert(series.subject.clone(), addresses);
    }

    /// A series under way came to its end, whether all of it has happened or not.
    pub fn ended(&mut self, subject: &Subject) {
        self.busy.remove(subject);
        self.pending.remove(subject);
        match subject {
            Subject::Service(key) => drop(self.dirty.services.insert(key.clone())),
            Subject::Address(address) => drop(self.dirty.addresses.insert(*address)),
            Subject::Pool(name) => drop(self.dirty.pools.insert(name.clone())),
        }
    }

    /// The Services that want something that they have not, have nothing promised, and about which a series is under way.
    pub(crate) fn waiting_under_way(&self) -> Vec<Arc<Service>> {
        let keys = self.busy.keys().filter_map(|subject| match subject {
            Subject::Service(key) => Some(key),
            _ => None,
        });
        let wait = |key: &&Key| {
            self.waiting.contains(*key) && !self.promised.contains_key(*key) && !self.unreadable.services.contains(*key)
        };
        keys.filter(wait).filter_map(|key| self.services.get(key).cloned()).collect()
    }

    /// Whether a series about this subject is under way.
    pub(crate) fn is_busy(&self, subject: &Subject) -> bool {
        self.busy.contains_key(subject)
    }

    /// Whether a series of these would be in the way of one that is under way.
    pub(crate) fn is_in_the_way(&self, series: &Series) -> bool {
        let is_busy = |address: IpAddr| self.busy.values().flatten().any(|busy| *busy == address);
        !self.busy.is_empty() && series.effects.iter().filter_map(|effect| effect.address()).any(is_busy)
    }

    /// A series was planned about this subject, or (`false`) there is nothing to be done about it. Whether an earlier
    /// one is not to come any more.
    pub(crate) fn set_pending(&mut self, subject: &Subject, is_planned: bool) -> bool {
        if is_planned { !self.pending.insert(subject.clone()) } else { self.pending.remove(subject) }
    }
}

fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<IpAddr>>, key: &K, address: &IpAddr) {
    if let Some(addresses) = index.get_mut(key) {
        addresses.remove(address);
        if addresses.is_empty() {
            index.remove(key);
        }
    }
}
