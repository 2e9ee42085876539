//! The condition `landfall.dev/Announced`: which nodes announce the addresses of a Service, and why none does.
//!
//! The announcers and conflicts that nodes wrote to the LoadBalancerIPs, and the time without an announcer → the
//! condition. A move of an address is one write. Messages contain nothing that changes on its own.
//!
//! The report of a node counts until another node reports, or its Node is deleted. TODO(correctness): an owner that
//! dies while no other agent runs is named forever. The condition `Ready` of its Node does not help: the kubelet may
//! run without the agent, or the other way round. A heartbeat of agents would be a write for each of them every few
//! seconds, for a case in which no traffic passes anyway.
//!
//! An unannounced address is reported only after a grace period: a new address and one that moves both need a moment.
//! The reason comes from [`model::eligibility`], which decides for the agents as well.

use std::fmt;
use std::net::IpAddr;

use crds::condition::{Condition, ConditionStatus, DesiredCondition};
use crds::service::ANNOUNCED;
use crds::{AddressConflict, Announcer, Record, TrafficPolicy};
use jiff::Timestamp;

use crate::allocate::allocation::Allocation;
use crate::state::index::ClusterIndex;
use crate::state::record::holder_keys;
use crate::status::reason::{AnnouncedReason, EventReason};

impl ClusterIndex {
    /// Updates whether a Service has an address that no node announces.
    pub(crate) fn update_unannounced(&mut self, allocation: &Allocation, now: Timestamp) {
        let service = &allocation.service;
        let records: Vec<_> = self.shown_records(allocation).cloned().collect();
        // Without a NodeNetwork, no agent has ever run.
        let has_agents = !self.networks.is_empty();
        let is_unannounced = has_agents && records.iter().any(|record| self.announcers(record).next().is_none());
        self.set_unannounced(&service.key, is_unannounced, now);
        if is_unannounced && self.is_grace_over(&service.key, now) {
            self.wants_slices |= records.iter().any(|record| self.lacks_endpoints(record));
        }
    }

    /// The condition that a Service with addresses should have. `None`: not enough is known yet.
    pub(super) fn announced_condition(&self, allocation: &Allocation, now: Timestamp) -> Option<DesiredCondition> {
        let service = &allocation.service;
        let mut sentences = Vec::new();
        // The reasons of unannounced addresses.
        let mut reasons = Vec::new();
        let mut has_conflict = false;
        for record in self.shown_records(allocation) {
            let lb_ip = record.address;
            let mut places: Vec<_> = self.announcers(record).map(|announcer| place(announcer).to_string()).collect();
            places.sort();
            if !places.is_empty() {
                sentences.push(announced_message(lb_ip, &places.join(", ")).to_string());
                if let Some(conflict) = self.first_conflict(record) {
                    has_conflict = true;
                    sentences.push(announced_conflict_message(lb_ip, conflict));
                }
            } else if let Some(conflict) = self.blocking_conflict(record) {
                reasons.push(AnnouncedReason::Conflict);
                sentences.push(blocking_conflict_message(lb_ip, conflict));
            } else if self.is_grace_over(&service.key, now) {
                let (reason, sentence) = self.unannounced_reason(record)?;
                reasons.push(reason);
                sentences.push(sentence);
            } else {
                return None;
            }
        }
        let (status, reason) = match reasons.into_iter().min() {
            Some(worst) => (ConditionStatus::False, worst),
            None if has_conflict => (ConditionStatus::True, AnnouncedReason::Conflict),
            None => (ConditionStatus::True, AnnouncedReason::Announced),
        };
        (!sentences.is_empty()).then(|| {
            DesiredCondition::new(ANNOUNCED, status, reason.as_str(), sentences.join("; "), service.generation)
        })
    }

    /// Why no node announces an address, with the sentence about it. `None` if that depends on endpoints, which are not
    /// watched yet.
    fn unannounced_reason(&self, record: &Record) -> Option<(AnnouncedReason, String)> {
        let lb_ip = record.address;
        if self.lacks_endpoints(record) {
            return None;
        }
        Some(match (self.diagnosis().why_not(&self.objects, record), &self.obstacle) {
            (Some(reason), _) => (AnnouncedReason::NoEligibleNode, format!("no node may announce {lb_ip}: {reason}")),
            (None, Some(obstacle)) => (AnnouncedReason::NoHelloKey, format!("no node announces {lb_ip}: {obstacle}")),
            (None, None) => (
                AnnouncedReason::Pending,
                format!(
                    "no node has reported yet that it announces {lb_ip}: see whether the agents of the eligible nodes \
                     run and are ready (kubectl -n landfall-system get pods -o wide), and whether these nodes have a \
                     network interface for it"
                ),
            ),
        })
    }

    /// Whether endpoints decide which nodes may announce an address, and are not watched yet.
    fn lacks_endpoints(&self, record: &Record) -> bool {
        let mut holders = holder_keys(record).filter_map(|key| self.objects.services().get(&key));
        !self.has_slices && holders.any(|holder| holder.traffic_policy == TrafficPolicy::Local)
    }
}

/// The message about an address that is announced at these places.
pub(crate) fn announced_message(lb_ip: IpAddr, places: &impl fmt::Display) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{lb_ip} by {places}"))
}

/// Node and link of an announcer: `n1 (eth0)`.
pub(crate) fn place(announcer: &Announcer) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{} ({})", announcer.node, announcer.link))
}

fn announced_conflict_message(lb_ip: IpAddr, conflict: &AddressConflict) -> String {
    let AddressConflict { mac, node, link, .. } = conflict;
    format!(
        "{mac} on the LAN uses {lb_ip} as well, as node {node} sees on {link}, and receives some of its packets: find \
         that host and give it another address, or request another one for this Service in \
         landfall.dev/load-balancer-ips"
    )
}

fn blocking_conflict_message(lb_ip: IpAddr, conflict: &AddressConflict) -> String {
    let AddressConflict { mac, node, link, .. } = conflict;
    format!(
        "{lb_ip} is not announced, because {mac} on the LAN uses it already, as node {node} sees on {link}: find that \
         host and give it another address, or request another one for this Service in landfall.dev/load-balancer-ips"
    )
}

/// The reason of the event when the condition changes: a new problem, or the end of one. A move of an address is no
/// event.
pub(super) fn announced_event(before: Option<&Condition>, desired: &DesiredCondition) -> Option<&'static str> {
    match (desired.status, desired.reason) {
        (_, "Conflict") => Some(EventReason::AddressConflict.as_str()),
        (ConditionStatus::True, _) => {
            before.filter(|before| before.status == "False").map(|_| EventReason::Announced.as_str())
        }
        _ => Some(EventReason::NotAnnounced.as_str()),
    }
}

#[cfg(test)]
mod tests;
