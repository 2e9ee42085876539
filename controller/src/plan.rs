//! What is to be written, so that everything says who got which address.
//!
//! Ledger → [`Plan`]. It depends on nothing but what is known, and once its effects have happened, the next plan is
//! empty: so a crash, a lost answer or another writer between any two effects heals with the next plan.
//!
//! Orders that matter, each within one [`Series`]:
//!
//! - Allocation: the LoadBalancerIP, then one write of the Service's finalizer, addresses and condition. Until that second
//!   write is done, the LoadBalancerIP itself is what cleans up after the Service (KEP-980 asks for a finalizer before
//!   provisioning: a record of our own serves the same end, and doesn't cost a write more).
//! - Release: the LoadBalancerIP is deleted, so that nobody announces the address any more, then status and finalizer
//!   are cleared (KEP-980).
//! - Change to another address: the new one is taken and shown before the old one is withdrawn, or put into quarantine.
//!
//! Addresses that several hold, or that are reserved, are subjects of their own: a Service comes to such a record, or
//! leaves it, in one write of that record, and what its status says follows in the next plan; or precedes it, in a change
//! to another address.

use std::net::IpAddr;
use std::sync::Arc;

use crds::condition::{Condition, without_ours};
use crds::service::{FINALIZER, Ingress};
use crds::{InternedStr, Record, Service};
use jiff::Timestamp;

use crate::allocate::allocation::{Allocation, How};
use crate::allocate::request::Rank;
use crate::allocate::sharing;
use crate::allocate::sharing::holder;
use crate::plan::effect::{Effect, Event, PoolPatch, Series, ServicePatch, Subject, pool_reference};
use crate::pools::Pool;
use crate::state::index::{Dirty, Leaving, Ledger};
use crate::state::record::is_exclusive;
use crate::state::snapshot::Snapshot;
use crate::status::allocated::{condition, event, is_from, is_told, mentions, repaired, says_it_has_one, shows};
use crate::status::pool as pool_status;
use crate::status::pool::{Holders, Strange};

pub(crate) mod backoff;
pub(crate) mod deferred_budget;
pub(crate) mod effect;
pub(crate) mod queue;
mod settled;

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent of each other, and so in any order or at once. In this order nobody waits for who comes later: what
    /// is withdrawn, then Services in the order in which they are served, then pools. Each takes the place of an earlier
    /// one about the same subject.
    pub series: Vec<Series>,
    /// What earlier plans had about these subjects is not to be begun any more.
    pub revoked: Vec<Subject>,
}

/// What is to be written, given all that was observed.
pub fn plan(snapshot: &Snapshot) -> Plan {
    Ledger::of(snapshot).plan(snapshot.now)
}

impl Ledger {
    /// What is to be written about whatever has changed since the last plan.
    pub fn plan(&mut self, now: Timestamp) -> Plan {
        self.begin_plan(now);
        self.refresh(now);
        let mut plan = Plan::default();
        let services = self.take_services(&mut plan, now);
        #[cfg(test)]
        self.check_settled(now);
        let (mut others, mut served, mut needs) = (Vec::new(), Vec::new(), self.told_in_vain());
        for service in services {
            if !self.is_served(&service) {
                self.set_leaving(&service.key, []);
                self.set_waiting(&service.key, false);
                self.set_unannounced(&service.key, false, now);
                self.moving.remove(&service.key);
                others.push(service);
                continue;
            }
            match self.kept(&service) {
                Ok(allocation) => served.push(self.noted(allocation)),
                Err(rank) => needs.push((rank, service)),
            }
        }
        needs.sort_by(|(rank, a), (other, b)| (rank, a.created, &a.key).cmp(&(other, b.created, &b.key)));
        for (_, service) in needs {
            let allocation = self.served(&service, now);
            // What is promised to one that is under way is its own when that has ended.
            if !self.is_busy(&Subject::Service(service.key.clone())) {
                served.push(self.noted(allocation));
            }
        }
        for address in std::mem::take(&mut self.dirty.addresses) {
            if self.is_busy(&Subject::Address(address)) {
                self.dirty.addresses.insert(address);
                continue;
            }
            let effects = self.tidied(address, now).into_iter().collect();
            self.emit(&mut plan, Subject::Address(address), effects);
        }
        for service in others {
            let effects = self.released(&service);
            self.emit(&mut plan, Subject::Service(service.key.clone()), effects);
        }
        for allocation in served {
            self.note_unannounced(&allocation, now);
            let mut effects = self.allocated(&allocation, now);
            if effects.is_empty() && !is_pending(&allocation) {
                effects = self.told(&allocation, now);
            }
            self.emit(&mut plan, Subject::Service(allocation.service.key.clone()), effects);
        }
        for name in std::mem::take(&mut self.dirty.pools) {
            if self.is_busy(&Subject::Pool(name.clone())) {
                self.dirty.pools.insert(name);
                continue;
            }
            let effects = self.pools.get(&name).map(|pool| self.counted(pool, now)).unwrap_or_default();
            self.emit(&mut plan, Subject::Pool(name), effects);
        }
        plan
    }

    /// The Services that are to be looked at again. They have nothing promised any more.
    fn take_services(&mut self, plan: &mut Plan, now: Timestamp) -> Vec<Arc<Service>> {
        let Dirty { all, waiting, services, .. } = &mut self.dirty;
        let (all, mut waiting, keys) = (std::mem::take(all), std::mem::take(waiting), std::mem::take(services));
        let mut taken = Vec::new();
        for key in &keys {
            if !all || !self.services.contains_key(key) {
                waiting |= self.take_service(key, plan, &mut taken, now);
            }
        }
        if all {
            let unsettled = self.services.values().filter(|service| !self.is_settled(service));
            for service in unsettled.cloned().collect::<Vec<_>>() {
                self.take_service(&service.key, plan, &mut taken, now);
            }
        } else if waiting {
            // Somebody else may have what was promised.
            for key in self.waiting().difference(&keys).cloned().collect::<Vec<_>>() {
                self.take_service(&key, plan, &mut taken, now);
            }
        }
        taken
    }

    /// Those that need something and are just being told that there is nothing, with their turns: what has come meanwhile is
    /// not for who comes later and happens not to be under way.
    fn told_in_vain(&mut self) -> Vec<(Rank, Arc<Service>)> {
        let told = self.waiting_under_way().into_iter().filter(|service| self.is_served(service)).collect::<Vec<_>>();
        told.into_iter().filter_map(|service| Some((self.kept(&service).err()?, service))).collect()
    }

    /// Of whom it is said that there is nothing to do, there is nothing to do.
    #[cfg(test)]
    fn check_settled(&mut self, now: Timestamp) {
        for service in self.services.values().filter(|service| self.is_settled(service)).cloned().collect::<Vec<_>>() {
            let allocation = self.kept(&service).expect("it needs nothing");
            self.note_unannounced(&allocation, now);
            let (mut effects, told) = (self.allocated(&allocation, now), self.told(&allocation, now));
            effects.extend(told);
            assert!(
                effects.is_empty() && allocation.gives_up.is_empty() && !self.unannounced.contains_key(&service.key),
                "{} is not settled: {effects:?}",
                service.key
            );
        }
    }

    /// Takes one of them, unless something about it is under way. Whether what was promised to it is free now.
    fn take_service(
        &mut self,
        key: &crds::Key,
        plan: &mut Plan,
        taken: &mut Vec<Arc<Service>>,
        now: Timestamp,
    ) -> bool {
        let subject = Subject::Service(key.clone());
        if self.is_busy(&subject) {
            self.dirty.services.insert(key.clone());
            return false;
        }
        let is_free = self.break_promises(key, now);
        match self.services.get(key) {
            // Nobody knows what it asks for: it keeps what it holds.
            Some(_) if self.unreadable.services.contains(key) => self.emit(plan, subject, Vec::new()),
            Some(service) => taken.push(service.clone()),
            None => {
                self.set_leaving(key, []);
                self.set_waiting(key, false);
                self.set_unannounced(key, false, now);
                self.moving.remove(key);
                self.emit(plan, subject, Vec::new());
            }
        }
        is_free
    }

    /// Notes what the others have to know of what comes of a Service.
    fn noted(&mut self, allocation: Allocation) -> Allocation {
        let key = &allocation.service.key;
        let leaves = |record: &Arc<Record>| {
            let how = if is_exclusive(record) {
                Leaving::Alone
            } else if allocation.targets.is_empty() || !mentions(&allocation.service, record.address) {
                Leaving::Now
            } else {
                Leaving::Later
            };
            (record.address, how)
        };
        let live = allocation.gives_up.iter().filter(|record| !record.deleting);
        let leaving: Vec<_> = live.filter(|_| !is_pending(&allocation)).map(leaves).collect();
        self.set_leaving(key, leaving);
        for target in allocation.targets.iter().filter(|target| target.how == How::Join) {
            self.dirty.addresses.insert(target.address);
        }
        if allocation.gives_up.iter().any(|record| is_exclusive(record) && self.intruder(record).is_some()) {
            self.moving.insert(key.clone());
        } else {
            self.moving.remove(key);
        }
        // Who is to come to a record waits as well: its holders may change before it does.
        let waits = is_pending(&allocation)
            || allocation.refusal.is_some()
            || allocation.lacks.is_some()
            || allocation.targets.iter().any(|target| self.would_leave(&allocation.service, target.address));
        self.set_waiting(key, waits);
        allocation
    }

    /// Adds a series to a plan, or says that there is none any more. One that would be in the way of another has to wait
    /// for the end of that.
    fn emit(&mut self, plan: &mut Plan, subject: Subject, effects: Vec<Effect>) {
        let series = Series { subject, effects };
        let has_to_wait = self.is_in_the_way(&series);
        if has_to_wait {
            match &series.subject {
                Subject::Service(key) => drop(self.dirty.services.insert(key.clone())),
                Subject::Address(address) => drop(self.dirty.addresses.insert(*address)),
                Subject::Pool(name) => drop(self.dirty.pools.insert(name.clone())),
            }
        }
        let is_planned = !series.effects.is_empty() && !has_to_wait;
        let had_one = self.set_pending(&series.subject, is_planned);
        if is_planned {
            plan.series.push(series);
        } else if had_one {
            plan.revoked.push(series.subject);
        }
    }

    /// What gives a Service that is ours what it gets, and says so.
    fn allocated(&self, allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
        let service = &allocation.service;
        if is_pending(allocation) {
            return Vec::new();
        }
        let sharing_key = sharing::key(service);
        let creates = allocation.targets.iter().filter(|target| target.how == How::Create);
        let mut effects: Vec<_> = creates
            .filter_map(|target| {
                let pool = self.pools.pool_of(target.address)?.name().into();
                let (holder, sharing_key) = (holder(service), sharing_key.map(InternedStr::from));
                Some(Effect::Create { address: target.address, pool, holder, sharing_key })
            })
            .collect();
        let desired = condition(allocation, self);
        let news = (!desired.is_in(&service.conditions)).then(|| desired.set_in(&service.conditions, now));
        // What another provider wrote to a Service that never had anything from us stays: it may be the one that serves it.
        let wrote = says_it_has_one(service) || !allocation.gives_up.is_empty();
        let addresses = || allocation.targets.iter().map(|target| target.address);
        let has_any = !allocation.targets.is_empty();
        let changed = if has_any {
            Changes {
                finalizer: true,
                ingress: (!shows(service, addresses())).then(|| addresses().map(Ingress::from).collect()),
                conditions: news,
            }
        } else {
            let foreign = |ingress: &&Ingress| !wrote && !is_from(&self.pools, ingress);
            let left: Vec<_> = service.ingress.iter().filter(foreign).cloned().collect();
            Changes {
                finalizer: !wrote && service.has_finalizer(),
                ingress: (left.len() < service.ingress.len()).then_some(left),
                conditions: news,
            }
        };
        // Nothing has come of this Service but what its status said already.
        let is_repair = changed.ingress.is_some() && effects.is_empty() && allocation.gives_up.is_empty();
        let told = if !is_told(service, &desired) {
            Some(Effect::Event(event(service, &desired)))
        } else {
            is_repair.then(|| Effect::Event(repaired(service, addresses())))
        };
        let mut patch = Vec::new();
        if let Some(mut changed) = changed.of(service) {
            // What is to be said besides costs no further write.
            let conditions = changed.conditions.as_deref().unwrap_or(&service.conditions);
            let (conditions, retold) = self.retold(allocation, conditions, now);
            changed.conditions = conditions.or(changed.conditions);
            patch.push(Effect::PatchService(changed));
            patch.extend(retold.into_iter().map(Effect::Event));
        }
        patch.extend(told);
        if has_any {
            effects.extend(patch);
            for record in &allocation.gives_up {
                match self.quarantined(service, record, now) {
                    Some(quarantined) => effects.extend(quarantined),
                    None => effects.extend(withdrawn(std::slice::from_ref(record))),
                }
            }
        } else {
            effects.extend(withdrawn(&allocation.gives_up));
            if is_withdrawn_here(&allocation.gives_up) {
                effects.extend(patch);
            }
        }
        effects
    }

    /// What takes from a Service that is not ours (any more), or is being deleted, what it has from us.
    ///
    /// It is touched only if we did so before: if it holds an address, or carries a condition of ours. Its finalizer
    /// alone says nothing, because other providers use the same one (KEP-1959), unless the Service is one of ours.
    fn released(&self, service: &Service) -> Vec<Effect> {
        let records = self.records_of(service);
        let others = without_ours(&service.conditions);
        let has_conditions = others.len() < service.conditions.len();
        let is_ours = service.is_ours(self.default_class);
        if records.is_empty() && !has_conditions && !(is_ours && service.has_finalizer()) {
            return Vec::new();
        }
        let mut effects: Vec<_> = withdrawn(&records).collect();
        if !is_withdrawn_here(&records) {
            return effects;
        }
        // Of a Service that is somebody else's by now, the new owner's addresses stay. For another type there is none, and
        // the API server has seen to that.
        let from_us = |ingress: &&Ingress| {
            let address = ingress.ip.as_ref().and_then(|ip| ip.parse().ok());
            is_ours || records.iter().any(|record| Some(record.address) == address) || is_from(&self.pools, ingress)
        };
        let wrote = !records.is_empty() || says_it_has_one(service) || is_ours;
        let left: Vec<_> = service.ingress.iter().filter(|ingress| !from_us(ingress)).cloned().collect();
        let changes = Changes {
            finalizer: !wrote && service.has_finalizer(),
            ingress: (service.is_load_balancer && left.len() < service.ingress.len()).then_some(left),
            conditions: has_conditions.then_some(others),
        };
        effects.extend(changes.of(service).map(Effect::PatchService));
        effects
    }

    /// What makes a pool say how it is.
    fn counted(&self, pool: &Pool, now: Timestamp) -> Vec<Effect> {
        let holders = || {
            let ranges = || pool.ranges.iter().map(|range| range.first()..=range.last());
            let records = ranges().flat_map(|range| self.addresses.range(range));
            let unreadable = ranges().flat_map(|range| self.unreadable.addresses.range(range));
            Holders::new(records.map(|(_, record)| &**record), unreadable.count())
        };
        let of_pool = |address: &&IpAddr| self.pools.pool_of(**address).is_some_and(|own| own.index == pool.index);
        let mac = |address: &IpAddr| Some(self.addresses.get(address)?.quarantine.as_ref()?.mac.clone());
        let strange = |address: &IpAddr| Some(Strange { address: *address, mac: mac(address)? });
        let strangers = self.quarantined.keys().filter(of_pool).filter_map(strange).collect();
        let status = pool_status::status(pool, &self.free.counts(pool), holders, &strangers, now);
        let old = pool.object.status.as_ref();
        if old == Some(&status) {
            return Vec::new();
        }
        let before = old.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let events = pool_status::warnings(before, &status.conditions).map(|(reason, condition)| {
            Effect::Event(Event {
                regarding: pool_reference(&pool.object),
                is_warning: true,
                reason,
                message: condition.message.to_string(),
            })
        });
        let events: Vec<_> = events.collect();
        let patch = PoolPatch {
            name: pool.name().to_owned(),
            resource_version: pool.object.metadata.resource_version.clone().unwrap_or_default(),
            status,
        };
        std::iter::once(Effect::PatchPool(patch)).chain(events).collect()
    }
}

/// Whether something has to happen to a record first, before anything is said of the Service.
fn is_pending(allocation: &Allocation) -> bool {
    allocation.is_later || allocation.targets.iter().any(|target| target.how == How::Join)
}

/// What withdraws addresses that a Service has alone: those that are not being withdrawn yet.
fn withdrawn(records: &[Arc<Record>]) -> impl Iterator<Item = Effect> {
    let live = records.iter().filter(|record| !record.deleting && is_exclusive(record));
    live.map(|record| Effect::Delete { address: record.address, uid: record.uid.clone(), resource_version: None })
}

/// Whether nothing more stands between a Service and its end when [`withdrawn`] has happened. Withdrawn is what is gone,
/// not what waits for somebody's finalizer, or for a write of a record that is not the Service's alone.
fn is_withdrawn_here(records: &[Arc<Record>]) -> bool {
    records.iter().all(|record| !record.deleting && is_exclusive(record))
}

/// What should be different about a Service.
struct Changes {
    /// Whether it should have our finalizer.
    finalizer: bool,
    ingress: Option<Vec<Ingress>>,
    conditions: Option<Vec<Condition>>,
}

impl Changes {
    /// The one write that makes it so; none if it is.
    fn of(self, service: &Service) -> Option<ServicePatch> {
        let finalizers = (self.finalizer != service.has_finalizer()).then(|| {
            let others = service.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned();
            others.chain(self.finalizer.then(|| FINALIZER.into())).collect()
        });
        if finalizers.is_none() && self.ingress.is_none() && self.conditions.is_none() {
            return None;
        }
        Some(ServicePatch {
            key: service.key.clone(),
            resource_version: service.resource_version,
            finalizers,
            ingress: self.ingress,
            conditions: self.conditions,
        })
    }
}

#[cfg(test)]
#[path = "../tests/unit/rules/rules.rs"]
mod rules;
#[cfg(test)]
mod tests;
