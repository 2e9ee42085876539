//! What is said of who announces the addresses of a Service: the condition `landfall.dev/Announced`.
//!
//! What the nodes wrote to the LoadBalancerIPs, and for how long nobody has → the condition. It follows what has happened
//! on the wire already, so nobody waits for it: it is written when there is nothing better to do, and an address that moves
//! is one write. Sentences name nothing that changes by itself.
//!
//! The word of a node counts until another one says something else, or its Node is gone. TODO(correctness): an owner that died
//! while no other agent ran is named for ever. Its kubelet may be as well as it, or dead where it is not, so the condition `Ready`
//! of its Node says nothing of it; and a heartbeat of agents would be a write for each of them every few seconds, for a case in
//! which nothing works anyway.
//!
//! That nobody announces an address is said only after a grace period: a new one takes a moment, and so does one that moves. Why
//! it is so is asked of a [`Judge`]: which nodes may announce what the speakers decide, who are no part of this library.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crds::condition::{Condition, ConditionStatus, DesiredCondition};
use crds::service::{ANNOUNCED, FORWARDING};
use crds::{Advertisement, EndpointSlice, Key, Labels, Node, Record, Service, TrafficPolicy};
use jiff::Timestamp;

use crate::allocate::allocation::Allocation;
use crate::plan::effect::{Effect, Event, ServicePatch, service_reference};
use crate::state::index::Ledger;
use crate::state::record::holds;
use crate::status::change::ConditionChange;
use crate::status::forwarding;
use crate::status::reason::AnnouncedReason;

/// Says why no node may announce an address; `None` if one may.
pub type Judge = fn(&Circumstances<'_>) -> Option<Nowhere>;

/// What decides who may announce an address.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// The address.
    pub record: &'a Arc<Record>,
    /// The Services that hold it.
    pub services: BTreeMap<Key, Arc<Service>>,
    /// The slices of those whose traffic policy is Local.
    pub slices: BTreeMap<Key, Vec<Arc<EndpointSlice>>>,
    /// All nodes, by name.
    pub nodes: &'a BTreeMap<String, Arc<Node>>,
    /// The labels of its pool, by name, if that exists.
    pub pools: BTreeMap<String, Arc<Labels>>,
    /// All advertisements, by name.
    pub advertisements: &'a BTreeMap<String, Arc<Advertisement>>,
}

/// Why no node may announce an address: what would have to be otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nowhere {
    /// An endpoint would have to be ready on a node that may otherwise announce.
    NoEndpoint,
    /// A node would have to be without the label that keeps traffic from it.
    NodesExcluded,
    /// An L2Advertisement that selects the pool would have to select the Service.
    ServiceNotSelected,
    /// An L2Advertisement that selects the pool and the Service would have to select a node.
    NodesNotSelected,
    /// More than one of these.
    Several,
}

/// What people are told when a condition changes to what is desired.
type Tell = fn(&Service, Option<&Condition>, &DesiredCondition) -> Option<Event>;

impl fmt::Display for Nowhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoint => {
                "externalTrafficPolicy is Local, and no endpoint is ready on a node that may announce it: let pods run there, \
                 or let other nodes announce"
            }
            Self::NodesExcluded => {
                "the nodes that could have the label node.kubernetes.io/exclude-from-external-load-balancers: take it from \
                 one of them"
            }
            Self::ServiceNotSelected => {
                "L2Advertisements select its pool, and none of them selects this Service: see their serviceSelectors, or \
                 create another L2Advertisement"
            }
            Self::NodesNotSelected => {
                "the L2Advertisements that select it select no node: see their nodeSelectors and the labels of the nodes"
            }
            Self::Several => {
                "L2Advertisements, labels of nodes and endpoints together leave none: see which nodes have an endpoint, \
                 which ones the L2Advertisements select, and which ones are labelled \
                 node.kubernetes.io/exclude-from-external-load-balancers"
            }
        })
    }
}

impl Ledger {
    /// Notes whether nobody announces an address that a Service has.
    pub(crate) fn note_unannounced(&mut self, allocation: &Allocation, now: Timestamp) {
        let service = &allocation.service;
        let records: Vec<_> = self.shown_records(allocation).cloned().collect();
        // Where no agent has ever been is nobody who could.
        let is_unannounced = !self.networks.is_empty() && records.iter().any(|record| self.places(record).is_empty());
        self.set_unannounced(&service.key, is_unannounced, now);
        if is_unannounced && self.slices.is_none() && self.is_grace_over(&service.key, now) {
            let holders = records.iter().flat_map(|record| self.services_of(record));
            if holders.into_iter().any(|holder| holder.traffic_policy == TrafficPolicy::Local) {
                self.want_slices();
            }
        }
    }

    /// The write that makes a Service say who announces its addresses and how they are forwarded, if it does not; with what
    /// people are told.
    pub(crate) fn told(&self, allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
        let service = &allocation.service;
        let (conditions, events) = self.retold(allocation, &service.conditions, now);
        let patch = conditions.map(|conditions| {
            Effect::TellService(ServicePatch {
                key: service.key.clone(),
                resource_version: service.resource_version,
                finalizers: None,
                ingress: None,
                conditions: Some(conditions),
            })
        });
        patch.into_iter().chain(events.into_iter().map(Effect::Event)).collect()
    }

    /// `conditions` of a Service with what is to be said of who announces its addresses and how they are forwarded, if that is
    /// not said there; and what people are told about it.
    pub(crate) fn retold(
        &self,
        allocation: &Allocation,
        conditions: &[Condition],
        now: Timestamp,
    ) -> (Option<Vec<Condition>>, Vec<Event>) {
        let (mut changed, mut events) = (None::<Vec<Condition>>, Vec::new());
        let announced = self.announced(allocation, now);
        // Both are said at once or not at all: where nobody knows yet who announces an address, nobody knows how.
        let is_early = matches!(announced, ConditionChange::Keep);
        let forwarded = if is_early { ConditionChange::Keep } else { self.forwarded(allocation, now) };
        let all: [(_, _, Tell); 2] = [(ANNOUNCED, announced, event), (FORWARDING, forwarded, forwarding::event)];
        for (type_, said, event) in all {
            let known = changed.as_deref().unwrap_or(conditions);
            let before = known.iter().find(|condition| condition.type_ == type_);
            let new = match said {
                ConditionChange::Keep => None,
                ConditionChange::Remove => before.map(|_| known.iter().filter(|c| c.type_ != type_).cloned().collect()),
                ConditionChange::Set(desired) if desired.is_in(known) => None,
                ConditionChange::Set(desired) => {
                    events.extend(event(&allocation.service, before, &desired));
                    Some(desired.set_in(known, now))
                }
            };
            changed = new.or(changed);
        }
        (changed, events)
    }

    /// What is to be said of who announces the addresses of a Service.
    fn announced(&self, allocation: &Allocation, now: Timestamp) -> ConditionChange {
        let service = &allocation.service;
        let mut sentences = Vec::new();
        let mut silences = Vec::new();
        let mut has_strangers = false;
        for record in self.shown_records(allocation) {
            let address = record.address;
            let places = self.places(record);
            if !places.is_empty() {
                sentences.push(format!("{address} by {}", places.join(", ")));
                if let Some(conflict) = self.stranger(record) {
                    has_strangers = true;
                    sentences.push(format!(
                        "{} on the LAN uses {address} as well, as node {} sees on {}, and takes packets away: find that \
                         machine and give it another address, or have this Service ask for another one in \
                         landfall.dev/load-balancer-ips",
                        conflict.mac, conflict.node, conflict.link,
                    ));
                }
            } else if let Some(conflict) = self.intruder(record) {
                silences.push(AnnouncedReason::Conflict);
                sentences.push(format!(
                    "{address} is not announced, because {} on the LAN uses it already, as node {} sees on {}: find that \
                     machine and give it another address, or have this Service ask for another one in \
                     landfall.dev/load-balancer-ips",
                    conflict.mac, conflict.node, conflict.link,
                ));
            } else if self.is_grace_over(&service.key, now) {
                let Some((silence, sentence)) = self.silence(record) else { return ConditionChange::Keep };
                silences.push(silence);
                sentences.push(sentence);
            } else {
                return ConditionChange::Keep;
            }
        }
        if sentences.is_empty() {
            return if allocation.targets.is_empty() { ConditionChange::Remove } else { ConditionChange::Keep };
        }
        let (status, reason) = match silences.first() {
            Some(_) if silences.contains(&AnnouncedReason::Conflict) => {
                (ConditionStatus::False, AnnouncedReason::Conflict.as_str())
            }
            Some(_) if silences.contains(&AnnouncedReason::NoEligibleNode) => {
                (ConditionStatus::False, AnnouncedReason::NoEligibleNode.as_str())
            }
            Some(silence) => (ConditionStatus::False, silence.as_str()),
            None if has_strangers => (ConditionStatus::True, AnnouncedReason::Conflict.as_str()),
            None => (ConditionStatus::True, AnnouncedReason::Announced.as_str()),
        };
        let message = sentences.join("; ");
        let observed_generation = service.generation;
        ConditionChange::Set(DesiredCondition { type_: ANNOUNCED, status, reason, message, observed_generation })
    }

    /// Why nobody announces an address, with the sentence about it. `None` if that can't be told yet: nothing is known of
    /// endpoints before they are asked for.
    fn silence(&self, record: &Arc<Record>) -> Option<(AnnouncedReason, String)> {
        let address = record.address;
        let services = self.services_of(record);
        let is_local = services.iter().any(|service| service.traffic_policy == TrafficPolicy::Local);
        if is_local && self.slices.is_none() {
            return None;
        }
        let slices = services.iter().filter(|service| service.traffic_policy == TrafficPolicy::Local);
        let labels = |pool: &crate::pools::Pool| Arc::new(Labels::from(pool.object.metadata.labels.as_ref()));
        let circumstances = Circumstances {
            record,
            slices: slices.map(|service| (service.key.clone(), self.slices_of(&service.key))).collect(),
            services: services.iter().map(|service| (service.key.clone(), service.clone())).collect(),
            nodes: &self.nodes,
            pools: self
                .pools
                .get(&record.pool)
                .map(|pool| (record.pool.to_string(), labels(pool)))
                .into_iter()
                .collect(),
            advertisements: &self.advertisements,
        };
        Some(match (self.judge.and_then(|judge| judge(&circumstances)), &self.obstacle) {
            (Some(nowhere), _) => {
                (AnnouncedReason::NoEligibleNode, format!("no node may announce {address}: {nowhere}"))
            }
            (None, Some(obstacle)) => (AnnouncedReason::NoHelloKey, format!("no node announces {address}: {obstacle}")),
            (None, None) => (
                AnnouncedReason::Pending,
                format!(
                    "no node has said yet that it announces {address}: see whether the agents of the nodes that may run \
                     and are ready (kubectl -n landfall-system get pods -o wide), and whether these nodes have a network interface for it"
                ),
            ),
        })
    }

    /// The records of the addresses that a Service has, in the order in which its status shows them.
    pub(crate) fn shown_records<'a>(&'a self, allocation: &'a Allocation) -> impl Iterator<Item = &'a Arc<Record>> {
        let records = allocation.targets.iter().filter_map(|target| self.addresses.get(&target.address));
        records.filter(|record| !record.deleting && holds(record, &allocation.service))
    }

    /// Where an address is announced: `n1 (eth0)`. The word of a node that is gone is none.
    fn places(&self, record: &Record) -> Vec<String> {
        let there = record.announcers.iter().filter(|announcer| self.nodes.contains_key(&*announcer.node));
        let mut places: Vec<_> = there.map(|announcer| format!("{} ({})", announcer.node, announcer.link)).collect();
        places.sort();
        places
    }

    fn services_of(&self, record: &Record) -> Vec<Arc<Service>> {
        let key = |holder: &crds::Holder| Key::new(&holder.namespace, &holder.name);
        record.holders.iter().filter_map(|holder| self.services.get(&key(holder)).cloned()).collect()
    }

    fn slices_of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        let of_namespace = self.slices.iter().flat_map(|slices| slices.range(Key::new(&service.namespace, "")..));
        let of_namespace = of_namespace.take_while(|(key, _)| key.namespace == service.namespace);
        of_namespace.filter(|(_, slice)| slice.service == *service).map(|(_, slice)| slice.clone()).collect()
    }
}

/// What people are told when the condition changes: that something is wrong, what now, and that it is right again. That an
/// address moved is told by the condition alone.
fn event(service: &Service, before: Option<&Condition>, desired: &DesiredCondition) -> Option<Event> {
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
