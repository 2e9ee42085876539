//! Plans: the writes after which the objects in the API server show which Service has which address.
//!
//! Cluster → [`Plan`]. A plan depends only on observed objects and on the series in flight. So the next plan repairs
//! the result of a crash, a lost response or a foreign write between any two effects. When nothing is left to write, a
//! plan is empty. The planner updates promises and dirty keys in the index, and reads no clock. A plan decides about a
//! limited number of Services, so that other work can have its turn between two plans: [`ClusterIndex::plan_some`].
//!
//! The order of effects within one [`Series`] matters:
//!
//! - Allocation: the LoadBalancerIP first, then one write of finalizer, addresses and condition of the Service. Until
//!   the second write, the LoadBalancerIP itself ensures the cleanup, because it names the Service as its holder.
//!   (KEP-980 requires a finalizer before provisioning; a record of our own has the same purpose and saves a write.)
//! - Release: the LoadBalancerIP is deleted, so that no node announces the address. Then status and finalizer are
//!   cleared (KEP-980).
//! - Change of address: the new address is created and shown before the old one is withdrawn or quarantined.
//!
//! An address with several holders or a reservation is a subject of its own. A Service joins or leaves such a record by
//! one write of that record. The next plan writes the status of the Service. In a change of address, however, the
//! status is written before the Service leaves the old record.
//!
//! | file | contents |
//! |---|---|
//! | `effect` | the writes as data |
//! | `service_effects`, `pool_effects` | the effects for one Service, and for one pool |
//! | `settled` | Services for which there is nothing to decide |
//! | `queue`, `backoff` | the order in which series start, and the delays between them |

use std::collections::BTreeSet;
use std::sync::Arc;

use crds::service::Family;
use crds::{Key, Record, Service};
use jiff::Timestamp;

use crate::allocate::allocation::{Acquisition, Allocation, Kept};
use crate::allocate::request::{Rank, families};
use crate::plan::effect::{Effect, Series, Subject};
use crate::pools::intervals::FAMILIES;
use crate::state::index::{ClusterIndex, Departure, set_member};
use crate::state::record::is_exclusive;
use crate::status::allocated::shows_address;

pub(crate) mod backoff;
pub(crate) mod effect;
mod pool_effects;
pub(crate) mod queue;
mod service_effects;
mod settled;

/// The series that a plan adds and removes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The series are independent of each other, so they may run concurrently and in any order. They are listed by
    /// precedence: records, released Services, Services in the order in which they are served, pools. Each series
    /// replaces an earlier one of its subject.
    pub series: Vec<Series>,
    /// Subjects whose earlier series must not start.
    pub revoked: Vec<Subject>,
}

/// Dirty Services by their next step.
#[derive(Default)]
struct Decisions {
    /// Services that may not hold addresses.
    released: Vec<Arc<Service>>,
    /// Allocations, in the order in which the Services are served.
    allocations: Vec<Allocation>,
}

impl ClusterIndex {
    /// Plans everything that has changed since the last plan.
    pub fn plan(&mut self, now: Timestamp) -> Plan {
        self.plan_some(now, usize::MAX)
    }

    /// Plans the changes since the last plan, for at most `limit` Services. While there is a
    /// [backlog](Self::has_backlog), the next plan continues.
    pub fn plan_some(&mut self, now: Timestamp, limit: usize) -> Plan {
        self.mark_due(now);
        self.begin_plan();
        self.rebuild_pools(now);
        let mut plan = Plan::default();
        let services = self.take_dirty_services(&mut plan, now, limit);
        #[cfg(test)]
        self.check_settled(now);
        let Decisions { released, allocations } = self.decide(services, now);
        for lb_ip in std::mem::take(&mut self.dirty.records) {
            let effects = self.reconcile_holders(lb_ip, now).into_iter().collect();
            self.emit(&mut plan, Subject::Record(lb_ip), effects);
        }
        for service in released {
            let effects = self.report_refused_write(&service, self.release_effects(&service), now);
            self.emit(&mut plan, Subject::Service(service.key.clone()), effects);
        }
        for allocation in allocations {
            self.update_unannounced(&allocation, now);
            let mut effects = self.allocation_effects(&allocation, now);
            if awaits_record(&allocation) {
                effects = self.report_refused_record(&allocation, now);
            } else if effects.is_empty() {
                effects = self.condition_effects(&allocation, now);
            }
            effects = self.report_refused_write(&allocation.service, effects, now);
            self.emit(&mut plan, Subject::Service(allocation.service.key.clone()), effects);
        }
        for name in std::mem::take(&mut self.dirty.pools) {
            let effects = self.pools.get(&name).map(|pool| self.pool_effects(pool, now)).unwrap_or_default();
            self.emit(&mut plan, Subject::Pool(name), effects);
        }
        plan
    }

    /// Decides about these Services. Those that keep their addresses come first, then the others by rank and age. But
    /// before any of the others is decided, each of them is promised the addresses that its status shows.
    fn decide(&mut self, services: Vec<Arc<Service>>, now: Timestamp) -> Decisions {
        let (mut decisions, mut needs) = (Decisions::default(), self.refusals_in_flight());
        for service in services {
            if !self.may_hold_addresses(&service) {
                self.forget_needs(&service.key, now);
                decisions.released.push(service);
                continue;
            }
            match self.try_keep(&service) {
                Kept::Enough(allocation) => decisions.allocations.push(self.record_outcome(allocation)),
                Kept::Needs(rank) => needs.push((rank, service)),
            }
        }
        needs.sort_by(|(rank, a), (other, b)| (rank, a.created, &a.key).cmp(&(other, b.created, &b.key)));
        let mut claims = BTreeSet::new();
        for (_, service) in &needs {
            claims.extend(self.claim_shown(service, now));
        }
        for (_, service) in needs {
            let allocation = self.allocate(&service, now);
            for target in &allocation.targets {
                claims.remove(&(service.key.clone(), target.lb_ip));
            }
            // A busy Service gets the promised address when its series ends.
            if !self.is_busy(&Subject::Service(service.key.clone())) {
                decisions.allocations.push(self.record_outcome(allocation));
            }
        }
        for (key, lb_ip) in claims {
            self.withdraw_promise(lb_ip, &key, now);
        }
        decisions
    }

    /// Takes at most `limit` dirty Services that are not busy, and breaks the promises to them.
    fn take_dirty_services(&mut self, plan: &mut Plan, now: Timestamp, limit: usize) -> Vec<Arc<Service>> {
        let mut keys = self.take_dirty_keys(limit);
        let mut taken = Vec::new();
        keys.iter().for_each(|key| self.take_service(key, plan, &mut taken, now));
        // Taking a Service breaks its promises, which wakes waiting Services.
        loop {
            let woken: Vec<_> = self.take_woken().into_iter().filter(|key| !keys.contains(key)).collect();
            if woken.is_empty() {
                return taken;
            }
            if self.has_backlog() || keys.len() + woken.len() > limit {
                self.defer(woken);
                return taken;
            }
            woken.iter().for_each(|key| self.take_service(key, plan, &mut taken, now));
            keys.extend(woken);
        }
    }

    /// Services whose refusal is being written, with their rank. They keep their turn: an address that was freed
    /// meanwhile does not go to a Service that comes after them in the order of [`Rank`].
    fn refusals_in_flight(&mut self) -> Vec<(Rank, Arc<Service>)> {
        let busy = self.busy.keys().filter_map(|subject| match subject {
            Subject::Service(key) => self.objects.services().get(key),
            _ => None,
        });
        let refused = busy.filter(|service| {
            let key = &service.key;
            self.is_waiting(key) && !self.promised.contains(key) && !self.unreadable.services.contains(key)
        });
        let refused: Vec<_> = refused.filter(|service| self.may_hold_addresses(service)).cloned().collect();
        let rank = |service: Arc<Service>| match self.try_keep(&service) {
            Kept::Needs(rank) => Some((rank, service)),
            Kept::Enough(_) => None,
        };
        refused.into_iter().filter_map(rank).collect()
    }

    /// Asserts that no settled Service needs effects.
    #[cfg(test)]
    fn check_settled(&mut self, now: Timestamp) {
        let services = self.objects.services_with_sole_address();
        let settled = services.filter(|(service, lb_ip)| self.is_settled(service, *lb_ip));
        for service in settled.map(|(service, _)| service.clone()).collect::<Vec<_>>() {
            let Kept::Enough(allocation) = self.try_keep(&service) else { panic!("{} needs addresses", service.key) };
            self.update_unannounced(&allocation, now);
            let mut effects = self.allocation_effects(&allocation, now);
            effects.extend(self.condition_effects(&allocation, now));
            assert!(
                effects.is_empty() && allocation.surplus.is_empty() && !self.unannounced.contains_key(&service.key),
                "{} is not settled: {effects:?}",
                service.key
            );
        }
    }

    /// Adds a Service to `taken`, unless it is busy or unreadable. Breaks the promises to it.
    fn take_service(&mut self, key: &Key, plan: &mut Plan, taken: &mut Vec<Arc<Service>>, now: Timestamp) {
        let subject = Subject::Service(key.clone());
        if self.is_busy(&subject) {
            self.dirty.services.insert(key.clone());
            return;
        }
        self.break_promises(key, now);
        match self.objects.services().get(key).cloned() {
            // The request of an unreadable Service is unknown: the Service keeps its addresses.
            Some(_) if self.unreadable.services.contains(key) => self.emit(plan, subject, Vec::new()),
            Some(service) => taken.push(service),
            None => {
                self.forget_needs(key, now);
                self.emit(plan, subject, Vec::new());
            }
        }
    }

    /// Records an allocation in the index, for the decisions about other Services and about records.
    fn record_outcome(&mut self, allocation: Allocation) -> Allocation {
        let key = &allocation.service.key;
        let live = allocation.surplus.iter().filter(|record| !record.deleting && !awaits_record(&allocation));
        let departures = live.map(|record| (record.address, departure(&allocation, record))).collect();
        self.set_departures(key, departures);
        let changed = allocation.targets.iter().filter(|target| target.acquisition.changes_record());
        self.dirty.records.extend(changed.map(|target| target.lb_ip));
        let moves = allocation.surplus.iter().any(|record| self.has_leavable_conflict(record));
        set_member(&mut self.moving, key, moves);
        self.set_waiting(key, &self.awaited_families(&allocation));
        allocation
    }

    /// The families of the addresses that a Service waits for.
    fn awaited_families(&self, allocation: &Allocation) -> Vec<Family> {
        let service = &allocation.service;
        if allocation.targets.iter().any(|target| self.would_leave(service, target.lb_ip)) {
            // The Service may move when a quarantine ends, and the limit of quarantines counts both families.
            FAMILIES.to_vec()
        } else if allocation.is_blocked || allocation.refusal.is_some() || joins_record(allocation) {
            // A Service that joins a record waits too: the holders may change before it joins.
            families(service).to_vec()
        } else {
            allocation.missing_family.iter().map(|(family, _)| *family).collect()
        }
    }

    /// Adds a series to the plan. Without effects, it revokes the earlier series of the subject instead.
    ///
    /// If a series of the subject has started, or if the new series collides with a started one, nothing is added. The
    /// subject stays dirty, and is planned when that series ends.
    fn emit(&mut self, plan: &mut Plan, subject: Subject, effects: Vec<Effect>) {
        if self.is_busy(&subject) {
            return self.dirty.add(subject);
        }
        let series = Series { subject, effects };
        self.forget_unplanned(&series);
        let collides = self.collides(&series);
        if collides {
            self.dirty.add(series.subject.clone());
        }
        let is_planned = !series.effects.is_empty() && !collides;
        let had_series = set_member(&mut self.pending, &series.subject, is_planned);
        if is_planned {
            plan.series.push(series);
        } else if had_series {
            plan.revoked.push(series.subject);
        }
    }
}

/// Whether a record must be written before the status of the Service.
fn awaits_record(allocation: &Allocation) -> bool {
    allocation.is_blocked || allocation.targets.iter().any(|target| target.acquisition.changes_record())
}

/// Whether a Service is added to a record.
fn joins_record(allocation: &Allocation) -> bool {
    allocation.targets.iter().any(|target| target.acquisition == Acquisition::Join)
}

/// How a Service leaves a record that it holds.
fn departure(allocation: &Allocation, record: &Record) -> Departure {
    if is_exclusive(record) {
        Departure::DeletesRecord
    } else if allocation.targets.is_empty() || !shows_address(&allocation.service, record.address) {
        Departure::Now
    } else {
        Departure::AfterStatusWrite
    }
}

#[cfg(test)]
#[path = "../tests/unit/rules/rules.rs"]
mod rules;
#[cfg(test)]
mod tests;
