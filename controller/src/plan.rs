//! What is to be written, so that everything says who got which address.
//!
//! Snapshot → [`Plan`]. It depends on nothing else and not on any order, and once its effects have happened, the next
//! plan is empty: so a crash, a lost answer or another writer between any two effects heals with the next plan.
//!
//! Orders that matter, each within one [`Series`]:
//!
//! - Allocation: the LoadBalancerIP, then one write of the Service's finalizer, address and condition. Until that second
//!   write is done, the LoadBalancerIP itself is what cleans up after the Service (KEP-980 asks for a finalizer before
//!   provisioning: a record of our own serves the same end, and doesn't cost a write more).
//! - Release: the LoadBalancerIP is deleted, so that nobody announces the address any more, then status and finalizer
//!   are cleared (KEP-980).
//! - Change to another address: the new one is taken and shown before the old one is withdrawn.

use std::fmt;
use std::net::IpAddr;

use crds::condition::{Desired, Status, without_ours};
use crds::service::{ALLOCATED, FINALIZER, Ingress};
use crds::{Holder, Record, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::allocation::{Allocation, Outcome, allocations};
use crate::effect::{Effect, Event, PoolPatch, Series, ServicePatch, Subject, pool_reference, service_reference};
use crate::free::Free;
use crate::occupied::Occupied;
use crate::pool_status::{self, Holders};
use crate::pools::{Pool, Pools};
use crate::snapshot::Snapshot;

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent of each other, and so in any order or at once. In this order nobody waits for who comes later: what
    /// is withdrawn, then Services in the order in which they are served, then pools.
    pub series: Vec<Series>,
}

/// Stands before the address that a Service keeps while it is refused another one.
const KEEPS: &str = "; it keeps ";

/// What is to be written, given what was observed.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let pools = Pools::new(snapshot.pools.values(), &Occupied::new(snapshot.nodes.values().map(|node| &**node), []));
    let allocations = allocations(snapshot, &pools);
    let mut series = Vec::new();
    for record in &allocations.orphans {
        push(&mut series, || Subject::Address(record.address), withdrawn(std::slice::from_ref(record)));
    }
    for (service, records) in &allocations.others {
        push(&mut series, about(service), released(service, records, &pools, snapshot));
    }
    for allocation in &allocations.served {
        push(&mut series, about(allocation.service), allocated(allocation, &pools, snapshot));
    }
    let used = snapshot.addresses.keys().chain(&snapshot.unreadable.addresses);
    let free = Free::new(&pools, used.copied());
    for pool in pools.iter() {
        push(&mut series, || Subject::Pool(pool.name().to_owned()), counted(pool, &free, snapshot));
    }
    Plan { series }
}

fn about(service: &Service) -> impl FnOnce() -> Subject {
    || Subject::Service(service.key.clone())
}

fn push(series: &mut Vec<Series>, subject: impl FnOnce() -> Subject, effects: Vec<Effect>) {
    if !effects.is_empty() {
        series.push(Series { subject: subject(), effects });
    }
}

/// What gives a Service that is ours what it gets, and says so.
fn allocated(allocation: &Allocation<'_>, pools: &Pools, snapshot: &Snapshot) -> Vec<Effect> {
    let service = allocation.service;
    if is_settled(allocation, pools) {
        return Vec::new();
    }
    let mut effects = Vec::new();
    if let Outcome::Gets(address, pool) = allocation.outcome {
        let (key, uid) = (&service.key, service.uid.clone());
        let holder = Holder { namespace: key.namespace.clone(), name: key.name.clone(), uid, terms: None };
        effects.push(Effect::Create { address, pool: pool.name().to_owned(), holder });
    }
    let desired = condition(allocation, pools);
    let address = allocation.address();
    let news = (!desired.is_in(&service.conditions)).then(|| desired.set_in(&service.conditions, snapshot.now));
    // What another provider wrote to a Service that never had anything from us stays: it may be the one that serves it.
    let wrote = says_it_has_one(service) || !allocation.gives_up.is_empty();
    let changed = match address {
        Some(address) => Changes {
            finalizer: true,
            ingress: (!shows(service, Some(address))).then(|| vec![Ingress::of(address)]),
            conditions: news,
        },
        None => {
            let foreign = |ingress: &&Ingress| !wrote && !is_from(pools, ingress);
            let left: Vec<_> = service.ingress.iter().filter(foreign).cloned().collect();
            Changes {
                finalizer: !wrote && service.has_finalizer(),
                ingress: (left.len() < service.ingress.len()).then_some(left),
                conditions: news,
            }
        }
    };
    let event = changed.conditions.is_some().then(|| Effect::Event(event(service, &desired)));
    let patch = changed.of(service).into_iter().chain(event);
    if address.is_some() {
        effects.extend(patch);
        effects.extend(withdrawn(&allocation.gives_up));
    } else {
        effects.extend(withdrawn(&allocation.gives_up));
        // Withdrawn is what is gone, not what waits for somebody's finalizer.
        if !allocation.gives_up.iter().any(|record| record.deleting) {
            effects.extend(patch);
        }
    }
    effects
}

/// Whether all is written that is to be. True of nearly all Services in nearly every plan, so it takes no memory.
fn is_settled(allocation: &Allocation<'_>, pools: &Pools) -> bool {
    let (service, Outcome::Keeps(record)) = (allocation.service, &allocation.outcome) else { return false };
    let Some(pool) = pools.pool_of(record.address) else { return false };
    let message = given(record.address, pool);
    let says = |c: &Condition| {
        c.type_ == ALLOCATED
            && c.status == "True"
            && c.reason == "Allocated"
            && c.observed_generation.is_none()
            && is_text(&c.message, &message)
    };
    allocation.gives_up.is_empty()
        && service.has_finalizer()
        && shows(service, Some(record.address))
        && service.conditions.iter().any(says)
}

/// Whether something would be written as `text`.
fn is_text(text: &str, written: &impl fmt::Display) -> bool {
    /// What is left of a text that has to follow.
    struct Rest<'a>(&'a str);
    impl fmt::Write for Rest<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut rest = Rest(text);
    fmt::write(&mut rest, format_args!("{written}")).is_ok() && rest.0.is_empty()
}

/// Whether the status says that the Service has an address from us: the one it asks for, or another one for as long as it
/// can't have that.
fn says_it_has_one(service: &Service) -> bool {
    let keeps = |c: &Condition| c.type_ == ALLOCATED && c.message.contains(KEEPS);
    service.is_allocated() || service.conditions.iter().any(keeps)
}

/// Whether this is an address of a pool, which nobody but us may give away.
fn is_from(pools: &Pools, ingress: &Ingress) -> bool {
    let address = ingress.ip.as_ref().and_then(|ip| ip.parse().ok());
    address.is_some_and(|address| pools.pool_of(address).is_some())
}

/// Whether the status shows this address as we write it, and nothing else.
fn shows(service: &Service, address: Option<IpAddr>) -> bool {
    match (service.ingress.as_slice(), address) {
        ([], None) => true,
        ([Ingress { ip: Some(ip), ip_mode: Some(mode), hostname: None }], Some(address)) => {
            mode == "VIP" && is_text(ip, &address)
        }
        _ => false,
    }
}

/// What is said of a Service that has its address.
fn given(address: IpAddr, pool: &Pool) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{address} from pool {}", pool.name()))
}

fn condition(allocation: &Allocation<'_>, pools: &Pools) -> Desired {
    let desired =
        |status, reason, message| Desired { type_: ALLOCATED, status, reason, message, observed_generation: None };
    let has = |address| match pools.pool_of(address) {
        Some(pool) => desired(Status::True, "Allocated", given(address, pool).to_string()),
        None => desired(
            Status::True,
            "PoolGone",
            format!(
                "{address} is in no IPAddressPool any more, and the Service keeps it: to have another one, ask for it \
                 in spec.loadBalancerIP, or delete this Service's LoadBalancerIP"
            ),
        ),
    };
    match &allocation.outcome {
        Outcome::Keeps(record) => has(record.address),
        Outcome::Gets(address, _) => has(*address),
        Outcome::Refused(refusal, None) => desired(Status::False, refusal.reason(), refusal.to_string()),
        Outcome::Refused(refusal, Some(record)) => {
            desired(Status::False, refusal.reason(), format!("{refusal}{KEEPS}{} until then", record.address))
        }
    }
}

fn event(service: &Service, desired: &Desired) -> Event {
    let reason = match (desired.status, desired.reason) {
        (Status::True, "Allocated") => "IPAllocated",
        (Status::True, other) => other,
        _ => "AllocationFailed",
    };
    Event {
        regarding: service_reference(&service.key, &service.uid),
        is_warning: reason != "IPAllocated",
        reason,
        message: desired.message.clone(),
    }
}

/// What takes from a Service that is not ours (any more), or is being deleted, what it has from us.
///
/// It is touched only if we did so before: if it holds an address, or carries a condition of ours. Its finalizer alone
/// says nothing, because other providers use the same one (KEP-1959), unless the Service is one of ours.
fn released(service: &Service, records: &[&Record], pools: &Pools, snapshot: &Snapshot) -> Vec<Effect> {
    let others = without_ours(&service.conditions);
    let has_conditions = others.len() < service.conditions.len();
    let is_ours = service.is_ours(snapshot.default_class);
    if records.is_empty() && !has_conditions && !(is_ours && service.has_finalizer()) {
        return Vec::new();
    }
    let mut effects = withdrawn(records);
    if records.iter().any(|record| record.deleting) {
        return effects;
    }
    // Of a Service that is somebody else's by now, the new owner's addresses stay. For another type there is none, and
    // the API server has seen to that.
    let from_us = |ingress: &&Ingress| {
        let address: Option<IpAddr> = ingress.ip.as_ref().and_then(|ip| ip.parse().ok());
        is_ours || records.iter().any(|record| Some(record.address) == address) || is_from(pools, ingress)
    };
    let wrote = !records.is_empty() || says_it_has_one(service) || is_ours;
    let left: Vec<_> = service.ingress.iter().filter(|ingress| !from_us(ingress)).cloned().collect();
    let changes = Changes {
        finalizer: !wrote && service.has_finalizer(),
        ingress: (service.is_load_balancer && left.len() < service.ingress.len()).then_some(left),
        conditions: has_conditions.then_some(others),
    };
    effects.extend(changes.of(service));
    effects
}

/// What withdraws addresses: those that are not being withdrawn yet.
fn withdrawn(records: &[&Record]) -> Vec<Effect> {
    let live = records.iter().filter(|record| !record.deleting);
    live.map(|record| Effect::Delete { address: record.address, uid: record.uid.clone() }).collect()
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
    fn of(self, service: &Service) -> Option<Effect> {
        let finalizers = (self.finalizer != service.has_finalizer()).then(|| {
            let others = service.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned();
            others.chain(self.finalizer.then(|| FINALIZER.to_owned())).collect()
        });
        if finalizers.is_none() && self.ingress.is_none() && self.conditions.is_none() {
            return None;
        }
        Some(Effect::PatchService(ServicePatch {
            key: service.key.clone(),
            resource_version: service.resource_version.clone(),
            finalizers,
            ingress: self.ingress,
            conditions: self.conditions,
        }))
    }
}

/// What makes a pool say how it is.
fn counted(pool: &Pool, free: &Free, snapshot: &Snapshot) -> Vec<Effect> {
    let holders = || {
        let ranges = || pool.ranges.iter().map(|range| range.first()..=range.last());
        let records = ranges().flat_map(|range| snapshot.addresses.range(range));
        let unreadable = ranges().flat_map(|range| snapshot.unreadable.addresses.range(range));
        Holders::new(records.map(|(_, record)| &**record), unreadable.count())
    };
    let status = pool_status::status(pool, &free.counts(pool), holders, snapshot.now);
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
            message: condition.message.clone(),
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

#[cfg(test)]
mod tests;
