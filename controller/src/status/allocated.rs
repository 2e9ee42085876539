//! What is said of a Service: whether it has the addresses it asks for, and what is odd about them.
//!
//! What comes of a Service, and the pools → the condition `landfall.dev/Allocated`. Sentences name nothing that changes
//! by itself.

use std::fmt;
use std::net::IpAddr;

use crds::Service;
use crds::condition::{ConditionStatus, DesiredCondition};
use crds::service::{ALLOCATED, Ingress};

use crate::allocate::allocation::Allocation;
use crate::plan::effect::{Event, service_reference};
use crate::pools::{Pools, Withheld};
use crate::state::index::Ledger;
use crate::status::reason::AllocatedReason;

/// Stands before the addresses that a Service keeps while it is refused others.
const KEEPS: &str = "; it keeps ";

/// What a Service's condition should say, given what comes of it.
pub(crate) fn condition(allocation: &Allocation, ledger: &Ledger) -> DesiredCondition {
    let service = &allocation.service;
    let addresses = || allocation.targets.iter().map(|target| target.address);
    let (status, reason, message) = if let Some(refusal) = &allocation.refusal {
        let mut message = refusal.to_string();
        if !allocation.targets.is_empty() {
            let keeps: Vec<_> = addresses().map(|address| address.to_string()).collect();
            message += &format!("{KEEPS}{} until then", keeps.join(", "));
        }
        (ConditionStatus::False, refusal.reason().as_str(), message)
    } else {
        let (oddities, sentences): (Vec<_>, Vec<_>) = addresses().map(|a| of_address(a, service, ledger)).unzip();
        let oddity = oddities.into_iter().max().unwrap_or(AllocatedReason::Allocated);
        let mut message = sentences.join(if oddity == AllocatedReason::Allocated { ", " } else { "; " });
        if let Some((family, why)) = &allocation.lacks {
            message += &format!("; without an {family} address: {why}");
        }
        (ConditionStatus::True, oddity.as_str(), message)
    };
    DesiredCondition { type_: ALLOCATED, status, reason, message, observed_generation: service.generation }
}

/// What is odd about an address that a Service has, and the sentence about it.
fn of_address(address: IpAddr, service: &Service, ledger: &Ledger) -> (AllocatedReason, String) {
    const ASK: &str = "to have another one, ask for it in landfall.dev/load-balancer-ips or landfall.dev/address-pool";
    let (oddity, what) = match (ledger.pools.withheld(address), ledger.pools.pool_of(address)) {
        (Some(Withheld::Node(node)), _) => {
            (AllocatedReason::NodeHasAddress, format!("is the address of node {node} as well"))
        }
        (Some(Withheld::Gateway(node)), _) => {
            (AllocatedReason::NodeHasAddress, format!("is the address of the gateway of node {node} as well"))
        }
        (_, None) => (AllocatedReason::PoolGone, "is in no IPAddressPool any more".to_owned()),
        (_, Some(pool)) if pool.object.spec.drain => {
            (AllocatedReason::PoolDraining, format!("is from pool {}, which is being drained", pool.name()))
        }
        (Some(withheld), Some(pool)) if withheld.is_from_everybody() => {
            (AllocatedReason::PoolChanged, format!("is left out of pool {} by now", pool.name()))
        }
        (_, Some(pool)) if !ledger.admits(pool, service) => (
            AllocatedReason::PoolChanged,
            format!("is from pool {}, which is not for this Service any more", pool.name()),
        ),
        (_, Some(pool)) => return (AllocatedReason::Allocated, format!("{address} from pool {}", pool.name())),
    };
    (oddity, format!("{address} {what}, and the Service keeps it: {ASK}"))
}

/// What people are told when a condition changes.
pub(crate) fn event(service: &Service, desired: &DesiredCondition) -> Event {
    let reason = match (desired.status, desired.reason) {
        (ConditionStatus::True, "Allocated") => "IPAllocated",
        (ConditionStatus::True, other) => other,
        _ => "AllocationFailed",
    };
    Event {
        regarding: service_reference(&service.key, &service.uid),
        is_warning: reason != "IPAllocated",
        reason,
        message: desired.message.clone(),
    }
}

/// What people are told when the status did not show what the Service has, though it said so before: somebody else wrote
/// there, and may do so again.
pub(crate) fn repaired(service: &Service, addresses: impl IntoIterator<Item = IpAddr>) -> Event {
    let addresses: Vec<_> = addresses.into_iter().map(|address| address.to_string()).collect();
    let shown = if addresses.is_empty() { "no address of a pool".to_owned() } else { addresses.join(", ") };
    Event {
        regarding: service_reference(&service.key, &service.uid),
        is_warning: true,
        reason: "StatusRepaired",
        message: format!("somebody else wrote status.loadBalancer; it shows {shown} again"),
    }
}

/// Whether people know this already: all but for which generation it is said.
pub(crate) fn is_told(service: &Service, desired: &DesiredCondition) -> bool {
    service.conditions.iter().any(|condition| {
        condition.type_ == desired.type_
            && condition.status == desired.status.as_str()
            && condition.reason == desired.reason
            && condition.message == desired.message
    })
}

/// Whether the status says that the Service has an address from us: what it asks for, or another one for as long as it
/// can't have that.
pub(crate) fn says_it_has_one(service: &Service) -> bool {
    let keeps = |c: &crds::Condition| c.type_ == ALLOCATED && c.message.contains(KEEPS);
    service.is_allocated() || service.conditions.iter().any(keeps)
}

/// Whether this is an address of a pool, which nobody but us may give away.
pub(crate) fn is_from(pools: &Pools, ingress: &Ingress) -> bool {
    let address = ingress.ip.as_ref().and_then(|ip| ip.parse().ok());
    address.is_some_and(|address| pools.pool_of(address).is_some())
}

/// Whether the status shows these addresses as we write them, and nothing else.
pub(crate) fn shows(service: &Service, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
    let mut shown = service.ingress.iter();
    let all = addresses.into_iter().all(|address| shown.next().is_some_and(|ingress| is_entry(ingress, address)));
    all && shown.next().is_none()
}

/// Whether the status shows this address in whatever way.
pub(crate) fn mentions(service: &Service, address: IpAddr) -> bool {
    service.ingress.iter().filter_map(|ingress| ingress.ip.as_ref()?.parse::<IpAddr>().ok()).any(|ip| ip == address)
}

/// Whether this is how we write that address.
fn is_entry(ingress: &Ingress, address: IpAddr) -> bool {
    let Ingress { ip: Some(ip), ip_mode: Some(mode), hostname: None } = ingress else { return false };
    mode == "VIP" && is_text(ip, &address)
}

/// Whether something would be written as `text`.
pub(crate) fn is_text(text: &str, written: &impl fmt::Display) -> bool {
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
