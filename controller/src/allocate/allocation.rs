//! The decision for one Service: which addresses it keeps, gets and releases.
//!
//! Service and cluster → [`Allocation`]. How it is written to the API server is decided in [`crate::plan`].
//!
//! A Service keeps its addresses while it has the same UID, is ours and requests no others. It keeps them even if their
//! pool is gone or would no longer assign them. There are two exceptions. A Service that no longer fits with the other
//! holders of a shared address loses it. A Service leaves an address that another host on the LAN used before the first
//! announcement ([`crate::allocate::quarantine`]).
//!
//! New addresses are assigned in the order of [`Rank`], and within a rank the oldest Service is first (by creation
//! time, then namespace and name). So a request by name comes before a Service that takes any address.
//!
//! Only LoadBalancerIPs are trusted. The status of a Service is not: the API server clears it when the type changes,
//! and every client with write access can forge it. It only decides which of the available addresses a Service gets
//! ([`crate::allocate::adoption`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crds::service::Family;
use crds::{Record, Service};
use jiff::Timestamp;

use crate::allocate::refusal::Refusal;
use crate::allocate::request::{AddressRequest, Rank, Slot, address_request, families, requires_both_families};
use crate::allocate::sharing::Standing;
use crate::pools::Pool;
use crate::pools::truncated::Truncated;
use crate::state::index::ClusterIndex;
use crate::state::record::holds;

/// The decision for one Service.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) service: Arc<Service>,
    /// The addresses that the Service has afterwards, in the order in which its status shows them.
    pub(crate) targets: Vec<Target>,
    /// Records that the Service holds and leaves.
    pub(crate) surplus: Vec<Arc<Record>>,
    /// Why the Service does not get the addresses that it requests.
    pub(crate) refusal: Option<Refusal>,
    /// An optional family without an address, and the reason.
    pub(crate) missing_family: Option<(Family, Refusal)>,
    /// Whether the decision depends on a write that is still in flight, or on a namespace that is not observed yet.
    pub(crate) is_blocked: bool,
}

/// An address that a Service keeps or gets.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) lb_ip: IpAddr,
    pub(crate) acquisition: Acquisition,
}

/// How a Service acquires an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Acquisition {
    /// Its record names the Service already.
    Held,
    /// Its record names a former Service of the same namespace and name, whose place the Service takes.
    TakeOver,
    /// Its record is created.
    Create,
    /// The Service is added to its record, which is reserved or has holders with the same sharing key.
    Join,
}

impl Acquisition {
    /// Whether the record must be changed before the status of the Service shows the address.
    pub(crate) fn changes_record(self) -> bool {
        matches!(self, Self::TakeOver | Self::Join)
    }
}

/// Whether the addresses that a Service holds are all it needs.
pub(crate) enum Kept {
    /// Yes, or its request is invalid.
    Enough(Allocation),
    /// No: it needs new addresses, in this order.
    Needs(Rank),
}

/// Why an address is unavailable.
pub(crate) enum Unavailable {
    Refused(Refusal),
    /// It depends on a write that is still in flight, or on a namespace that is not observed yet.
    Blocked,
}

/// See [`Unavailable::Blocked`].
pub(super) struct Blocked;

/// The records that name a Service, or a former Service of the same key.
#[derive(Default)]
pub(super) struct HeldRecords {
    /// Records that the Service may keep.
    live: Vec<Arc<Record>>,
    /// Records that the Service loses: they are being deleted, or it no longer fits with the other holders.
    lost: Vec<Arc<Record>>,
}

/// The search for new addresses of a Service.
pub(crate) struct Search<'a> {
    pub(crate) service: &'a Service,
    pub(crate) request: &'a AddressRequest<'a>,
    /// For each slot of the request, the address found so far.
    targets: Vec<Option<Target>>,
    /// Addresses that the Service holds and would release.
    spare: Vec<IpAddr>,
    pub(crate) now: Timestamp,
}

impl Search<'_> {
    /// The positions of the slots that are empty and request no particular address.
    pub(super) fn empty_slots(&self) -> Vec<usize> {
        let slots = &self.request.slots;
        (0..slots.len()).filter(|i| self.targets[*i].is_none() && slots[*i].lb_ip.is_none()).collect()
    }

    pub(super) fn fill(&mut self, index: usize, lb_ip: IpAddr, acquisition: Acquisition) {
        self.targets[index] = Some(Target { lb_ip, acquisition });
    }

    /// The addresses found whose records do not name the Service or a former one of the same key.
    pub(super) fn new_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let is_new = |target: &&Target| matches!(target.acquisition, Acquisition::Create | Acquisition::Join);
        let new = self.targets.iter().flatten().filter(is_new);
        new.map(|target| target.lb_ip)
    }
}

impl ClusterIndex {
    /// Decides for a Service that needs no new addresses. For any other Service, returns the rank of its request.
    pub(crate) fn try_keep(&mut self, service: &Arc<Service>) -> Kept {
        let held = self.held_records(service);
        let request = match address_request(service) {
            Ok(request) => request,
            Err(refusal) => return Kept::Enough(refused_allocation(service, held, refusal)),
        };
        let targets = staying_targets(&self.held_options(service, &request, &held));
        match targets.into_iter().collect() {
            Some(targets) => Kept::Enough(allocation(service, held, targets)),
            None => Kept::Needs(request.rank()),
        }
    }

    /// Decides for a Service that needs new addresses, and promises them to it.
    pub(crate) fn allocate(&mut self, service: &Arc<Service>, now: Timestamp) -> Allocation {
        let held = self.held_records(service);
        let request = match address_request(service) {
            Ok(request) => request,
            Err(refusal) => return refused_allocation(service, held, refusal),
        };
        let options = self.held_options(service, &request, &held);
        let mut search = start_search(service, &request, &held, &options, now);
        let mut is_blocked = match self.fill_requested(&mut search) {
            Ok(()) => false,
            Err(Unavailable::Refused(refusal)) => return refused_allocation(service, held, refusal),
            Err(Unavailable::Blocked) => true,
        };
        if !search.empty_slots().is_empty() && self.lacks_namespace(&request, service) {
            if !self.awaits_namespace(service, now) {
                let refusal = Refusal::NamespaceUnknown(service.key.namespace.to_string());
                return refused_allocation(service, held, refusal);
            }
            is_blocked = true;
        }
        let pools = self.pools_for(service, &request);
        if let Ok(pools) = &pools {
            is_blocked |= self.fill_known(&mut search, pools).is_err();
        }
        if is_blocked {
            return Allocation { is_blocked, ..allocation(service, held, Vec::new()) };
        }
        if let Ok(pools) = &pools {
            self.fill_fresh(&mut search, pools);
        }
        // An address with a conflict is better than none: the conflict may end.
        for index in search.empty_slots() {
            search.targets[index] = options[index].map(HeldOption::target);
        }
        let mut missing_family = None;
        for index in search.empty_slots() {
            let slot = request.slots[index];
            let why = match &pools {
                Ok(pools) => self.exhaustion_refusal(&search, slot.family, pools),
                Err(refusal) => refusal.clone(),
            };
            if !slot.is_required {
                missing_family = Some((slot.family, why));
                continue;
            }
            let is_half = requires_both_families(service) && search.targets.iter().any(Option::is_some);
            let refusal = if is_half { Refusal::DualStackUnavailable(slot.family, Box::new(why)) } else { why };
            return refused_allocation(service, held, refusal);
        }
        search.new_addresses().for_each(|lb_ip| self.promise(lb_ip, service));
        let targets = search.targets.into_iter().flatten().collect();
        Allocation { missing_family, ..allocation(service, held, targets) }
    }

    /// Fills the slots that request a particular address. Stops at the first refusal; a blocked address is reported at
    /// the end.
    pub(super) fn fill_requested(&mut self, search: &mut Search<'_>) -> Result<(), Unavailable> {
        let mut result = Ok(());
        for (index, slot) in search.request.slots.iter().enumerate() {
            let Some(lb_ip) = slot.lb_ip.filter(|_| search.targets[index].is_none()) else { continue };
            match self.obtain(search, lb_ip) {
                Ok(acquisition) => search.fill(index, lb_ip, acquisition),
                Err(Unavailable::Blocked) => result = Err(Unavailable::Blocked),
                Err(refused) => return Err(refused),
            }
        }
        result
    }

    /// Fills empty slots with known addresses: see [`Self::find_known`].
    fn fill_known(&mut self, search: &mut Search<'_>, pools: &[usize]) -> Result<(), Blocked> {
        let mut result = Ok(());
        for index in search.empty_slots() {
            match self.find_known(search, search.request.slots[index].family, pools) {
                Ok(Some((lb_ip, acquisition))) => search.fill(index, lb_ip, acquisition),
                Ok(None) => {}
                Err(Blocked) => result = Err(Blocked),
            }
        }
        result
    }

    /// Fills empty slots with unused addresses.
    fn fill_fresh(&mut self, search: &mut Search<'_>, pools: &[usize]) {
        let slots = &search.request.slots;
        let families: Vec<_> = search.empty_slots().iter().map(|index| slots[*index].family).collect();
        let mut pools = pools.to_vec();
        // A second family comes from the pool of the first, if that pool has it.
        let first = search.targets.iter().flatten().next().and_then(|target| self.pools.pool_of(target.lb_ip));
        let best = match first {
            Some(pool) => Some(pool.index),
            None => pools.iter().copied().find(|pool| {
                families.len() > 1 && families.iter().all(|family| self.find_fresh(search, *family, &[*pool]).is_some())
            }),
        };
        // Stable: the other pools keep their order. A pool that is not among them is not added.
        pools.sort_by_key(|pool| Some(*pool) != best);
        for index in search.empty_slots() {
            if let Some(lb_ip) = self.find_fresh(search, slots[index].family, &pools) {
                search.fill(index, lb_ip, Acquisition::Create);
            }
        }
    }

    pub(super) fn held_records(&mut self, service: &Service) -> HeldRecords {
        let mut held = HeldRecords::default();
        for record in self.records_of(&service.key).cloned().collect::<Vec<_>>() {
            let standings = self.standings(&record);
            let own = record.holders.iter().zip(&*standings).filter(|(holder, _)| holder.service() == service.key);
            match own.map(|(_, standing)| standing).find(|standing| **standing != Standing::Gone) {
                // The entry has the UID of a Service with another key.
                None => {}
                Some(Standing::Clashes(..)) => held.lost.push(record),
                Some(_) if record.deleting => held.lost.push(record),
                Some(_) => held.live.push(record),
            }
        }
        held
    }

    /// For each slot of a request, the address that the Service holds for it, or that a former Service of the same key
    /// held. Several addresses can fit: after a crash in the middle of a change, or when fewer are requested than
    /// before. Then addresses without a conflict come first, and of these the addresses in the status, so that users
    /// see no change.
    pub(super) fn held_options(
        &self,
        service: &Service,
        request: &AddressRequest<'_>,
        held: &HeldRecords,
    ) -> Vec<Option<HeldOption>> {
        let live = held.live.iter().filter(|record| self.is_from_requested_pool(record, request));
        let mut options: Vec<_> = live
            .map(|record| HeldOption {
                should_leave: self.should_leave(service, record),
                status_position: status_position(service, record.address),
                acquisition: acquisition(record, service),
                lb_ip: record.address,
            })
            .collect();
        options.sort();
        let first_fit = |slot: &Slot| match slot.lb_ip {
            Some(requested) => {
                let found = options.iter().find(|option| option.lb_ip == requested);
                found.map(|found| HeldOption { should_leave: false, ..*found })
            }
            None => options.iter().find(|option| Family::from(option.lb_ip) == slot.family).copied(),
        };
        request.slots.iter().map(first_fit).collect()
    }

    fn is_from_requested_pool(&self, record: &Record, request: &AddressRequest<'_>) -> bool {
        request.pool.is_none_or(|pool| {
            // The pool may have been edited since.
            record.pool == pool || self.pools.pool_of(record.address).is_some_and(|now| now.name() == pool)
        })
    }

    /// The pools from which a Service may get any address, in the order in which they are tried.
    pub(super) fn pools_for(&self, service: &Service, request: &AddressRequest<'_>) -> Result<Vec<usize>, Refusal> {
        if self.pools.is_empty() {
            return Err(Refusal::NoPool);
        }
        let Some(name) = request.pool else {
            let pools = self.pools.automatic().filter(|pool| self.admits(pool, service));
            return Ok(pools.map(|pool| pool.index).collect());
        };
        let pool = self.pools.get(name).ok_or_else(|| Refusal::PoolNotFound(name.to_owned()))?;
        self.check_pool(pool, service).map(|()| vec![pool.index])
    }

    /// Whether labels of the namespace decide from which pools a Service may get any address, and are unknown.
    fn lacks_namespace(&self, request: &AddressRequest<'_>, service: &Service) -> bool {
        match request.pool {
            Some(name) => self.pools.get(name).is_some_and(|pool| self.lacks_namespace_for(pool, service)),
            None => self.pools.automatic().any(|pool| self.lacks_namespace_for(pool, service)),
        }
    }

    /// Returns why a Service cannot get addresses of this pool.
    pub(crate) fn check_pool(&self, pool: &Pool, service: &Service) -> Result<(), Refusal> {
        if !self.admits(pool, service) {
            Err(Refusal::PoolNotAllowed(pool.name().to_owned()))
        } else if pool.object.spec.drain {
            Err(Refusal::PoolDraining(pool.name().to_owned()))
        } else {
            Ok(())
        }
    }

    /// Whether the selectors of a pool admit a Service.
    pub(crate) fn admits(&self, pool: &Pool, service: &Service) -> bool {
        let labels = self.namespaces.get(&*service.key.namespace).map(|namespace| &namespace.labels);
        pool.admits(&service.key.namespace, labels, &service.labels)
    }

    /// An address of this family for the Service: shown by its status, reserved for it, shared under its key, or in
    /// cool-down since it released the address.
    fn find_known(
        &mut self,
        search: &Search<'_>,
        family: Family,
        pools: &[usize],
    ) -> Result<Option<(IpAddr, Acquisition)>, Blocked> {
        let service = search.service;
        if let Some(found) = self.find_shown(search, family, pools)? {
            return Ok(Some(found));
        }
        let is_of_family = |lb_ip: &IpAddr| Family::from(*lb_ip) == family;
        let reserved: Vec<_> = self.reserved.get(&service.key).copied().filter(is_of_family).collect();
        if let Some(lb_ip) = self.find_joinable(search, &reserved)? {
            return Ok(Some((lb_ip, Acquisition::Join)));
        }
        if let Some(key) = search.request.sharing_key {
            let pool_position = |lb_ip: &IpAddr| {
                let pool = self.pools.pool_of(*lb_ip)?.index;
                pools.iter().position(|other| *other == pool)
            };
            let shared = self.by_sharing_key.get(key).copied().filter(is_of_family);
            let mut shared: Vec<_> = shared.filter_map(|lb_ip| Some((pool_position(&lb_ip)?, lb_ip))).collect();
            shared.sort();
            let shared: Vec<_> = shared.into_iter().map(|(_, lb_ip)| lb_ip).collect();
            if let Some(lb_ip) = self.find_joinable(search, &shared)? {
                return Ok(Some((lb_ip, Acquisition::Join)));
            }
        }
        let former: Vec<_> = self.free.last_held_by(&service.key).filter(is_of_family).collect();
        for lb_ip in former {
            let is_in_pools = self.pools.pool_of(lb_ip).is_some_and(|pool| pools.contains(&pool.index));
            let is_withheld = self.pools.withheld(lb_ip).is_some();
            if is_in_pools && !is_withheld && matches!(self.obtain(search, lb_ip), Ok(Acquisition::Create)) {
                return Ok(Some((lb_ip, Acquisition::Create)));
            }
        }
        Ok(None)
    }

    /// The first of these addresses whose record the Service can join.
    fn find_joinable(&mut self, search: &Search<'_>, lb_ips: &[IpAddr]) -> Result<Option<IpAddr>, Blocked> {
        for lb_ip in lb_ips {
            match self.obtain(search, *lb_ip) {
                Ok(Acquisition::Join) => return Ok(Some(*lb_ip)),
                Err(Unavailable::Blocked) => return Err(Blocked),
                _ => {}
            }
        }
        Ok(None)
    }

    /// An unused address of the first of these pools that has one for this Service.
    fn find_fresh(&mut self, search: &Search<'_>, family: Family, pools: &[usize]) -> Option<IpAddr> {
        for index in pools {
            let Some(pool) = self.pools.iter().nth(*index) else { continue };
            let next = self.free.next_address(pool, family, &search.service.key, search.now);
            let next = next.filter(|lb_ip| !self.is_quota_full(search, pool, *lb_ip));
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// Whether this address would exceed the quota of the namespace. The addresses that the Service gets or releases in
    /// the same decision count too.
    pub(crate) fn is_quota_full(&self, search: &Search<'_>, pool: &Pool, lb_ip: IpAddr) -> bool {
        let Some(limit) = pool.object.spec.max_per_namespace else { return false };
        let none = BTreeMap::new();
        let usage = self.quota_usage(pool.name(), &search.service.key.namespace).unwrap_or(&none);
        let is_of_pool = |lb_ip: &IpAddr| self.pools.pool_of(*lb_ip).is_some_and(|of| of.index == pool.index);
        // Released addresses that no other Service of the namespace has: they no longer count.
        let spare =
            search.spare.iter().copied().filter(is_of_pool).filter(|spare| usage.get(spare) == Some(&1)).count();
        let found = search.new_addresses().filter(is_of_pool).filter(|found| !usage.contains_key(found)).count();
        !usage.contains_key(&lb_ip) && usage.len() - spare + found >= limit as usize
    }

    /// The refusal when none of these pools has an address of this family.
    fn exhaustion_refusal(&self, search: &Search<'_>, family: Family, pools: &[usize]) -> Refusal {
        let pools: Vec<_> = pools.iter().filter_map(|index| self.pools.iter().nth(*index)).collect();
        let is_quota_full = |pool: &&&Pool| {
            pool.object.spec.max_per_namespace.is_some_and(|limit| {
                let usage = self.quota_usage(pool.name(), &search.service.key.namespace);
                pool.has_family(family) && usage.map_or(0, BTreeMap::len) >= limit as usize
            })
        };
        if let Some(full) = pools.iter().find(is_quota_full) {
            return Refusal::NamespaceQuota(full.name().to_owned());
        }
        if let Some(pool) = search.request.pool {
            return Refusal::PoolExhausted(family, pool.to_owned());
        }
        let with_family = pool_names(pools.iter().copied().filter(|pool| pool.has_family(family)));
        if with_family.is_empty() {
            let on_request =
                |pool: &&Pool| pool.has_family(family) && !pool.object.spec.drain && self.admits(pool, search.service);
            Refusal::NoAutomaticPool(family, pool_names(self.pools.iter().filter(on_request)))
        } else {
            Refusal::PoolsExhausted(family, with_family)
        }
    }
}

/// The names of these pools for a message. There may be thousands of pools, and the message names the first few.
fn pool_names<'a>(pools: impl Iterator<Item = &'a Pool>) -> Truncated<String> {
    let mut names = Truncated::default();
    pools.for_each(|pool| names.push_with(|| pool.name().to_owned()));
    names
}

/// A held address that may fill a slot, in the order of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HeldOption {
    /// Whether the Service should get another address, because of a conflict.
    should_leave: bool,
    status_position: usize,
    acquisition: Acquisition,
    lb_ip: IpAddr,
}

impl HeldOption {
    fn target(self) -> Target {
        Target { lb_ip: self.lb_ip, acquisition: self.acquisition }
    }
}

/// A search that has found the held addresses.
pub(super) fn start_search<'a>(
    service: &'a Service,
    request: &'a AddressRequest<'a>,
    held: &HeldRecords,
    options: &[Option<HeldOption>],
    now: Timestamp,
) -> Search<'a> {
    let targets = staying_targets(options);
    let is_spare = |lb_ip: &IpAddr| targets.iter().flatten().all(|target| target.lb_ip != *lb_ip);
    let spare = held.live.iter().map(|record| record.address).filter(is_spare).collect();
    Search { service, request, targets, spare, now }
}

/// How a Service acquires the address of a record that names its key.
fn acquisition(record: &Record, service: &Service) -> Acquisition {
    if holds(record, service) { Acquisition::Held } else { Acquisition::TakeOver }
}

/// For each slot, its held address as a target. `None` if the slot has no address, or if the Service should leave it.
fn staying_targets(options: &[Option<HeldOption>]) -> Vec<Option<Target>> {
    options.iter().map(|option| option.filter(|option| !option.should_leave).map(HeldOption::target)).collect()
}

/// The position of this address in the status; after all others if it is not there.
fn status_position(service: &Service, lb_ip: IpAddr) -> usize {
    let text = lb_ip.to_string();
    service.ingress.iter().position(|ingress| ingress.ip.as_deref() == Some(&*text)).unwrap_or(usize::MAX)
}

/// The allocation with these targets. The Service leaves all other records that it holds.
fn allocation(service: &Arc<Service>, held: HeldRecords, targets: Vec<Target>) -> Allocation {
    let is_target = |record: &Arc<Record>| targets.iter().any(|target| target.lb_ip == record.address);
    let live = held.live.into_iter().filter(|record| !is_target(record));
    let surplus = live.chain(held.lost).collect();
    Allocation { service: service.clone(), targets, surplus, refusal: None, missing_family: None, is_blocked: false }
}

/// The allocation of a refused Service, which keeps its addresses. A Service that requires both families never keeps
/// only one.
fn refused_allocation(service: &Arc<Service>, held: HeldRecords, refusal: Refusal) -> Allocation {
    let families = families(service);
    let has = |family: &Family| held.live.iter().any(|record| Family::from(record.address) == *family);
    let target = |record: &Arc<Record>| Target { lb_ip: record.address, acquisition: acquisition(record, service) };
    let mut keeps: Vec<_> = held.live.iter().map(target).collect();
    if requires_both_families(service) && !families.iter().all(has) {
        keeps.clear();
    }
    let family_position = |lb_ip: &IpAddr| families.iter().position(|family| *family == Family::from(*lb_ip));
    keeps.sort_by_key(|Target { lb_ip, .. }| {
        (family_position(lb_ip).unwrap_or(usize::MAX), status_position(service, *lb_ip), *lb_ip)
    });
    Allocation { refusal: Some(refusal), ..allocation(service, held, keeps) }
}
