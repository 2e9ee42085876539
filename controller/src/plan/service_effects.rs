//! The effects for one Service: its records, then its finalizer, addresses and conditions.

use std::sync::Arc;

use crds::condition::{Condition, without_ours};
use crds::service::{FINALIZER, Ingress};
use crds::{InternedStr, Record, Service};
use jiff::Timestamp;

use crate::allocate::allocation::{Acquisition, Allocation};
use crate::allocate::sharing::{self, holder};
use crate::plan::awaits_record;
use crate::plan::effect::{Effect, ServicePatch};
use crate::state::index::ClusterIndex;
use crate::state::record::is_exclusive;
use crate::status::allocated::{
    address_of, allocated_condition, allocated_event, is_pool_address, repaired_event, shows_exactly,
};
use crate::status::change::is_reported;

impl ClusterIndex {
    /// The effects after which a Service of ours has its addresses, and its status shows them.
    pub(super) fn allocation_effects(&self, allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
        if awaits_record(allocation) {
            return Vec::new();
        }
        let service = &allocation.service;
        let mut effects = self.creations(allocation);
        let patch = self.status_effects(allocation, !effects.is_empty(), now);
        if !allocation.targets.is_empty() {
            effects.extend(patch);
            for record in &allocation.surplus {
                match self.quarantine_effects(service, record, now) {
                    Some(quarantine) => effects.extend(quarantine),
                    None => effects.extend(withdrawals(std::slice::from_ref(record))),
                }
            }
        } else {
            effects.extend(withdrawals(&allocation.surplus));
            if is_release_complete(&allocation.surplus) {
                effects.extend(patch);
            }
        }
        effects
    }

    /// The creation of the records of new addresses.
    fn creations(&self, allocation: &Allocation) -> Vec<Effect> {
        let sharing_key = sharing::key(&allocation.service);
        let created = allocation.targets.iter().filter(|target| target.acquisition == Acquisition::Create);
        created
            .filter_map(|target| {
                let pool = self.pools.pool_of(target.lb_ip)?.name().into();
                let (holder, sharing_key) = (holder(&allocation.service), sharing_key.map(InternedStr::from));
                Some(Effect::Create { lb_ip: target.lb_ip, pool, holder, sharing_key })
            })
            .collect()
    }

    /// The write of the Service and the events about it, if anything differs. `has_new`: whether it gets a new record.
    fn status_effects(&self, allocation: &Allocation, has_new: bool, now: Timestamp) -> Vec<Effect> {
        let service = &allocation.service;
        let lb_ips = || allocation.targets.iter().map(|target| target.lb_ip);
        let desired = allocated_condition(allocation, self);
        let conditions = (!desired.is_in(&service.conditions)).then(|| desired.set_in(&service.conditions, now));
        let (has_finalizer, ingress) = if allocation.targets.is_empty() && self.pools.is_empty() {
            // When Landfall is installed again, no pool exists at first. Until one exists, only the status shows the
            // former addresses, so it stays.
            (service.has_finalizer(), None)
        } else if allocation.targets.is_empty() {
            // If Landfall never gave this Service an address, the ingress and the finalizer belong to another provider,
            // which may serve it.
            let is_ours = service.was_given_addresses() || !allocation.surplus.is_empty();
            let is_foreign = |ingress: &&Ingress| !is_ours && !is_pool_address(&self.pools, ingress);
            let foreign: Vec<_> = service.ingress.iter().filter(is_foreign).cloned().collect();
            (!is_ours && service.has_finalizer(), (foreign.len() < service.ingress.len()).then_some(foreign))
        } else {
            (true, (!shows_exactly(service, lb_ips())).then(|| lb_ips().map(Ingress::from).collect()))
        };
        // The allocation has not changed, so another client changed the ingress.
        let is_repair = ingress.is_some() && !has_new && allocation.surplus.is_empty();
        let event = if !is_reported(service, &desired) {
            Some(allocated_event(service, &desired))
        } else {
            is_repair.then(|| repaired_event(service, lb_ips()))
        };
        let mut effects = Vec::new();
        if let Some(mut patch) = service_patch(service, has_finalizer, ingress, conditions) {
            // The other conditions are part of this write.
            let conditions = patch.conditions.as_deref().unwrap_or(&service.conditions);
            let (conditions, events) = self.updated_conditions(allocation, conditions, now);
            patch.conditions = conditions.or(patch.conditions);
            effects.push(Effect::PatchService(patch));
            effects.extend(events.into_iter().map(Effect::Event));
        }
        effects.extend(event.map(Effect::Event));
        effects
    }

    /// The effects after which a Service that may not hold addresses has nothing from Landfall.
    ///
    /// A Service is touched only if Landfall wrote to it before: if it holds an address, or has a condition or a
    /// finalizer of ours. Other providers use the same finalizer (KEP-1959). On a Service that is not ours, the
    /// finalizer is removed only if Landfall gave the Service an address.
    pub(super) fn release_effects(&self, service: &Service) -> Vec<Effect> {
        let records = self.records_held_by(service);
        let foreign_conditions = without_ours(&service.conditions);
        let has_own_conditions = foreign_conditions.len() < service.conditions.len();
        let is_ours = service.is_ours(self.default_class);
        let is_finalizer_ours = !records.is_empty() || service.was_given_addresses() || is_ours;
        let has_own_finalizer = service.owns_finalizer || (is_ours && service.has_finalizer());
        if records.is_empty() && !has_own_conditions && !has_own_finalizer {
            return Vec::new();
        }
        let mut effects: Vec<_> = withdrawals(&records).collect();
        if !is_release_complete(&records) {
            return effects;
        }
        // On a Service of another provider, the addresses of that provider stay. If the type has changed, the API
        // server has cleared the ingress.
        let is_own = |ingress: &&Ingress| {
            is_ours
                || records.iter().any(|record| Some(record.address) == address_of(ingress))
                || is_pool_address(&self.pools, ingress)
        };
        let foreign: Vec<_> = service.ingress.iter().filter(|ingress| !is_own(ingress)).cloned().collect();
        let has_finalizer = !is_finalizer_ours && service.has_finalizer();
        let ingress = (service.is_load_balancer && foreign.len() < service.ingress.len()).then_some(foreign);
        let conditions = has_own_conditions.then_some(foreign_conditions);
        effects.extend(service_patch(service, has_finalizer, ingress, conditions).map(Effect::PatchService));
        effects
    }
}

/// The deletions of the records that only this Service can hold ([`is_exclusive`]), except those being deleted already.
fn withdrawals(records: &[Arc<Record>]) -> impl Iterator<Item = Effect> {
    let live = records.iter().filter(|record| !record.deleting && is_exclusive(record));
    live.map(|record| Effect::delete(record))
}

/// Whether the status may be cleared right after the [`withdrawals`]. A record that waits for a finalizer must
/// disappear first, and a shared record must drop the Service first.
fn is_release_complete(records: &[Arc<Record>]) -> bool {
    records.iter().all(|record| !record.deleting && is_exclusive(record))
}

/// The write of a Service: whether it has our finalizer, and its ingress and conditions (`None`: unchanged). Returns
/// `None` if nothing changes.
fn service_patch(
    service: &Service,
    has_finalizer: bool,
    ingress: Option<Vec<Ingress>>,
    conditions: Option<Vec<Condition>>,
) -> Option<ServicePatch> {
    let finalizers = (has_finalizer != service.has_finalizer()).then(|| {
        let others = service.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned();
        others.chain(has_finalizer.then(|| FINALIZER.into())).collect()
    });
    let has_changes = finalizers.is_some() || ingress.is_some() || conditions.is_some();
    has_changes.then(|| ServicePatch { finalizers, ingress, conditions, ..ServicePatch::new(service) })
}
