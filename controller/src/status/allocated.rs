//! The condition `landfall.dev/Allocated`, and `status.loadBalancer.ingress`.
//!
//! The allocation of a Service, and the pools → the condition. Messages contain nothing that changes on its own: each
//! change would cause a write and an event.

use std::fmt;
use std::net::IpAddr;

use crds::Service;
use crds::condition::{ConditionStatus, DesiredCondition};
use crds::service::{ALLOCATED, Ingress};

use crate::allocate::allocation::Allocation;
use crate::allocate::refusal::Refusal;
use crate::plan::effect::Event;
use crate::pools::occupied::NetworkEnd;
use crate::pools::{Pools, Withheld};
use crate::state::index::ClusterIndex;
use crate::status::change::displays_as;
use crate::status::reason::{AllocatedReason, EventReason, RefusalReason};

/// The condition that a Service should have.
pub(crate) fn allocated_condition(allocation: &Allocation, cluster: &ClusterIndex) -> DesiredCondition {
    let service = &allocation.service;
    let lb_ips = || allocation.targets.iter().map(|target| target.lb_ip);
    if let Some(refusal) = &allocation.refusal {
        return refused_condition(service, refusal, lb_ips());
    }
    let (reasons, sentences): (Vec<_>, Vec<_>) = lb_ips().map(|lb_ip| address_state(lb_ip, service, cluster)).unzip();
    let reason = reasons.into_iter().max().unwrap_or(AllocatedReason::Allocated);
    let mut message = sentences.join(if reason == AllocatedReason::Allocated { ", " } else { "; " });
    if let Some((family, why)) = &allocation.missing_family {
        message += &format!("; without an {family} address: {why}");
    }
    DesiredCondition::new(ALLOCATED, ConditionStatus::True, reason.as_str(), message, service.generation)
}

/// The condition of a refused Service that keeps these addresses meanwhile.
pub(crate) fn refused_condition(
    service: &Service,
    refusal: &Refusal,
    kept: impl IntoIterator<Item = IpAddr>,
) -> DesiredCondition {
    let (mut message, kept) = (refusal.to_string(), join_addresses(kept));
    if !kept.is_empty() {
        message += &format!("; until then, the Service keeps {kept}");
    }
    DesiredCondition::new(ALLOCATED, ConditionStatus::False, refusal.reason().as_str(), message, service.generation)
}

/// The message about an address without a problem.
pub(crate) fn allocated_message(lb_ip: IpAddr, pool: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{lb_ip} from pool {pool}"))
}

/// The state of an address that a Service has, and the sentence about it.
fn address_state(lb_ip: IpAddr, service: &Service, cluster: &ClusterIndex) -> (AllocatedReason, String) {
    const FIX: &str = "to get another one, request it in landfall.dev/load-balancer-ips or landfall.dev/address-pool";
    let (reason, state) = match (cluster.pools.withheld(lb_ip), cluster.pools.pool_of(lb_ip)) {
        (Some(Withheld::Occupied(occupant)), _) => {
            (AllocatedReason::NodeHasAddress, format!("is the address of {occupant} as well"))
        }
        (Some(Withheld::Unusable(network)), _) => {
            let end = NetworkEnd { address: lb_ip, network };
            (AllocatedReason::AddressUnusable, format!("is {end}, a network of the nodes"))
        }
        (_, None) => (AllocatedReason::PoolGone, "is no longer in any IPAddressPool".to_owned()),
        (_, Some(pool)) if pool.object.spec.drain => {
            (AllocatedReason::PoolDraining, format!("is from pool {}, which is being drained", pool.name()))
        }
        (Some(Withheld::Excluded | Withheld::Buggy), Some(pool)) => {
            (AllocatedReason::PoolChanged, format!("is now excluded from pool {}", pool.name()))
        }
        (_, Some(pool)) if !cluster.admits(pool, service) => {
            (AllocatedReason::PoolChanged, format!("is from pool {}, which no longer admits this Service", pool.name()))
        }
        (_, Some(pool)) => return (AllocatedReason::Allocated, allocated_message(lb_ip, pool.name()).to_string()),
    };
    (reason, format!("{lb_ip} {state}, and the Service keeps it: {FIX}"))
}

/// The event when the condition changes.
pub(crate) fn allocated_event(service: &Service, desired: &DesiredCondition) -> Event {
    let reason = match (desired.status, desired.reason) {
        (ConditionStatus::True, "Allocated") => EventReason::IPAllocated.as_str(),
        (ConditionStatus::True, other) => other,
        (_, reason) if reason == RefusalReason::WriteRefused.as_str() => EventReason::WriteRefused.as_str(),
        _ => EventReason::AllocationFailed.as_str(),
    };
    Event::for_service(service, reason != EventReason::IPAllocated.as_str(), reason, desired.message.clone())
}

/// The event when the ingress differs from the addresses that the condition reports: another client wrote it, and may
/// do so again.
pub(crate) fn repaired_event(service: &Service, lb_ips: impl IntoIterator<Item = IpAddr>) -> Event {
    let lb_ips = join_addresses(lb_ips);
    let shown = if lb_ips.is_empty() { "no address of a pool".to_owned() } else { lb_ips };
    let message = format!("another client wrote status.loadBalancer; Landfall restored it, so that it shows {shown}");
    Event::for_service(service, true, EventReason::StatusRepaired.as_str(), message)
}

fn join_addresses(lb_ips: impl IntoIterator<Item = IpAddr>) -> String {
    lb_ips.into_iter().map(|lb_ip| lb_ip.to_string()).collect::<Vec<_>>().join(", ")
}

/// The address of an entry of the ingress, written in any form.
pub(crate) fn address_of(ingress: &Ingress) -> Option<IpAddr> {
    ingress.ip.as_ref()?.parse().ok()
}

/// Whether this is an address of a pool, which only Landfall may assign.
pub(crate) fn is_pool_address(pools: &Pools, ingress: &Ingress) -> bool {
    address_of(ingress).is_some_and(|lb_ip| pools.pool_of(lb_ip).is_some())
}

/// Whether the ingress shows exactly these addresses, in the form in which Landfall writes them.
pub(crate) fn shows_exactly(service: &Service, lb_ips: impl IntoIterator<Item = IpAddr>) -> bool {
    let mut shown = service.ingress.iter();
    let all = lb_ips.into_iter().all(|lb_ip| shown.next().is_some_and(|ingress| is_own_entry(ingress, lb_ip)));
    all && shown.next().is_none()
}

/// Whether the ingress shows this address in any form.
pub(crate) fn shows_address(service: &Service, lb_ip: IpAddr) -> bool {
    service.ingress.iter().any(|ingress| address_of(ingress) == Some(lb_ip))
}

/// Whether this entry is in the form in which Landfall writes the address.
fn is_own_entry(ingress: &Ingress, lb_ip: IpAddr) -> bool {
    let Ingress { ip: Some(ip), ip_mode: Some(mode), hostname: None } = ingress else { return false };
    mode == "VIP" && displays_as(&lb_ip, ip)
}
