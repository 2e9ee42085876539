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
use std::sync::Arc;

use crds::condition::{Condition, ConditionStatus, DesiredCondition};
use crds::service::ANNOUNCED;
use crds::{AddressConflict, Announcer, EndpointSlice, Key, PoolSettings, Record, Service, TrafficPolicy};
use jiff::Timestamp;
use model::Cluster;
use model::cluster::Change;
use model::eligibility::why_not;

use crate::allocate::allocation::Allocation;
use crate::plan::effect::{Event, service_reference};
use crate::state::index::ClusterIndex;
use crate::status::change::ConditionChange;
use crate::status::reason::AnnouncedReason;

impl ClusterIndex {
    /// Updates whether a Service has an address that no node announces.
    pub(crate) fn update_unannounced(&mut self, allocation: &Allocation, now: Timestamp) {
        let service = &allocation.service;
        let records: Vec<_> = self.shown_records(allocation).cloned().collect();
        // Without a NodeNetwork, no agent has ever run.
        let has_agents = !self.networks.is_empty();
        let is_unannounced = has_agents && records.iter().any(|record| self.announcers(record).next().is_none());
        self.set_unannounced(&service.key, is_unannounced, now);
        if is_unannounced && self.slices.is_none() && self.is_grace_over(&service.key, now) {
            let holders = records.iter().flat_map(|record| self.holder_services(record));
            if holders.into_iter().any(|holder| holder.traffic_policy == TrafficPolicy::Local) {
                self.request_slices();
            }
        }
    }

    /// How the condition should change.
    pub(super) fn announced_change(&self, allocation: &Allocation, now: Timestamp) -> ConditionChange {
        let service = &allocation.service;
        let mut sentences = Vec::new();
        // The reasons of unannounced addresses.
        let mut reasons = Vec::new();
        let mut has_conflict = false;
        for record in self.shown_records(allocation) {
            let lb_ip = record.address;
            let places = self.places(record);
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
                let Some((reason, sentence)) = self.unannounced_reason(record) else { return ConditionChange::Keep };
                reasons.push(reason);
                sentences.push(sentence);
            } else {
                return ConditionChange::Keep;
            }
        }
        if sentences.is_empty() {
            return if allocation.targets.is_empty() { ConditionChange::Remove } else { ConditionChange::Keep };
        }
        let worst = [AnnouncedReason::Conflict, AnnouncedReason::NoEligibleNode];
        let (status, reason) = match reasons.first() {
            Some(first) => {
                (ConditionStatus::False, worst.into_iter().find(|reason| reasons.contains(reason)).unwrap_or(*first))
            }
            None if has_conflict => (ConditionStatus::True, AnnouncedReason::Conflict),
            None => (ConditionStatus::True, AnnouncedReason::Announced),
        };
        let (reason, message) = (reason.as_str(), sentences.join("; "));
        let observed_generation = service.generation;
        ConditionChange::Set(DesiredCondition { type_: ANNOUNCED, status, reason, message, observed_generation })
    }

    /// Why no node announces an address, with the sentence about it. `None` if that depends on endpoints, which are not
    /// watched yet.
    fn unannounced_reason(&self, record: &Arc<Record>) -> Option<(AnnouncedReason, String)> {
        let lb_ip = record.address;
        let services = self.holder_services(record);
        let is_local = services.iter().any(|service| service.traffic_policy == TrafficPolicy::Local);
        if is_local && self.slices.is_none() {
            return None;
        }
        Some(match (why_not(&self.cluster_around(record, &services), record), &self.obstacle) {
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

    /// The objects that decide which nodes may announce an address that `services` hold.
    fn cluster_around(&self, record: &Record, services: &[Arc<Service>]) -> Cluster {
        let local = services.iter().filter(|service| service.traffic_policy == TrafficPolicy::Local);
        let slices = local.flat_map(|service| self.slices_of(&service.key));
        let slices = slices.map(|slice| Change::Slice { before: None, after: Some(slice) });
        let services = services.iter().map(|service| Change::Service(service.key.clone(), Some(Arc::clone(service))));
        let pool = self
            .pools
            .get(&record.pool)
            .map(|pool| Change::Pool(record.pool.to_string(), Some(Arc::new(PoolSettings::from(&*pool.object)))));
        let nodes = self.nodes.iter().map(|(name, node)| Change::Node(name.clone(), Some(Arc::clone(node))));
        let advertisements = self.advertisements.iter();
        let advertisements = advertisements.map(|(name, ad)| Change::Advertisement(name.clone(), Some(Arc::clone(ad))));
        let mut cluster = Cluster::default();
        cluster.apply(services.chain(slices).chain(pool).chain(nodes).chain(advertisements));
        cluster
    }

    /// Where an address is announced.
    fn places(&self, record: &Record) -> Vec<String> {
        let mut places: Vec<_> = self.announcers(record).map(|announcer| place(announcer).to_string()).collect();
        places.sort();
        places
    }

    fn holder_services(&self, record: &Record) -> Vec<Arc<Service>> {
        let key = |holder: &crds::Holder| Key::new(&holder.namespace, &holder.name);
        record.holders.iter().filter_map(|holder| self.services.get(&key(holder)).cloned()).collect()
    }

    fn slices_of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        let following = self.slices.iter().flat_map(|slices| slices.range(Key::new(&service.namespace, "")..));
        let of_namespace = following.take_while(|(key, _)| key.namespace == service.namespace);
        of_namespace.filter(|(_, slice)| slice.service == *service).map(|(_, slice)| slice.clone()).collect()
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
        "{mac} on the LAN uses {lb_ip} as well, as node {node} sees on {link}, and takes packets away: find that host \
         and give it another address, or request another one for this Service in landfall.dev/load-balancer-ips"
    )
}

fn blocking_conflict_message(lb_ip: IpAddr, conflict: &AddressConflict) -> String {
    let AddressConflict { mac, node, link, .. } = conflict;
    format!(
        "{lb_ip} is not announced, because {mac} on the LAN uses it already, as node {node} sees on {link}: find that \
         host and give it another address, or request another one for this Service in landfall.dev/load-balancer-ips"
    )
}

/// The event when the condition changes: a new problem, or the end of one. A move of an address is no event.
pub(super) fn announced_event(
    service: &Service,
    before: Option<&Condition>,
    desired: &DesiredCondition,
) -> Option<Event> {
    let is_same = before.is_some_and(|before| before.reason == desired.reason && before.message == desired.message);
    let reason = match (desired.status, desired.reason) {
        _ if is_same => return None,
        (_, "Conflict") => "AddressConflict",
        (ConditionStatus::True, _) if before.is_some_and(|before| before.status == "False") => "Announced",
        (ConditionStatus::True, _) => return None,
        _ => "NotAnnounced",
    };
    let regarding = service_reference(&service.key, &service.uid);
    Some(Event { regarding, is_warning: reason != "Announced", reason, message: desired.message.clone() })
}

#[cfg(test)]
mod tests;
