//! The conditions `Announced` and `Forwarding` of a Service: both follow events on the network, so no write waits for
//! them.
//!
//! They are written together, with a deferrable series or with a write that happens anyway.

use crds::condition::{Condition, DesiredCondition};
use crds::service::{ANNOUNCED, FORWARDING};
use crds::{Announcer, Record, Service};
use jiff::Timestamp;
use std::sync::Arc;

use crate::allocate::allocation::Allocation;
use crate::plan::effect::{Effect, Event, ServicePatch};
use crate::state::index::ClusterIndex;
use crate::state::record::holds;
use crate::status::announced::announced_event;
use crate::status::change::ConditionChange;
use crate::status::forwarding::forwarding_event;

/// Returns the event for a change from a condition to another.
type EventOf = fn(&Service, Option<&Condition>, &DesiredCondition) -> Option<Event>;

impl ClusterIndex {
    /// The write of both conditions and its events, if they have changed.
    pub(crate) fn condition_effects(&self, allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
        let service = &allocation.service;
        let (conditions, events) = self.updated_conditions(allocation, &service.conditions, now);
        let patch = conditions.map(|conditions| {
            Effect::PatchConditions(ServicePatch {
                key: service.key.clone(),
                resource_version: service.resource_version,
                finalizers: None,
                ingress: None,
                conditions: Some(conditions),
            })
        });
        patch.into_iter().chain(events.into_iter().map(Effect::Event)).collect()
    }

    /// `conditions` with both conditions updated (`None` if they are up to date), and the events.
    pub(crate) fn updated_conditions(
        &self,
        allocation: &Allocation,
        conditions: &[Condition],
        now: Timestamp,
    ) -> (Option<Vec<Condition>>, Vec<Event>) {
        let (mut changed, mut events) = (None::<Vec<Condition>>, Vec::new());
        let announced = self.announced_change(allocation, now);
        // Without a known announcer, nothing is known about forwarding.
        let is_unknown = matches!(announced, ConditionChange::Keep);
        let forwarding = if is_unknown { ConditionChange::Keep } else { self.forwarding_change(allocation, now) };
        let changes: [(_, _, EventOf); 2] =
            [(ANNOUNCED, announced, announced_event), (FORWARDING, forwarding, forwarding_event)];
        for (type_, change, event_of) in changes {
            let current = changed.as_deref().unwrap_or(conditions);
            let before = current.iter().find(|condition| condition.type_ == type_);
            let new = match change {
                ConditionChange::Keep => None,
                ConditionChange::Remove => {
                    before.map(|_| current.iter().filter(|c| c.type_ != type_).cloned().collect())
                }
                ConditionChange::Set(desired) if desired.is_in(current) => None,
                ConditionChange::Set(desired) => {
                    events.extend(event_of(&allocation.service, before, &desired));
                    Some(desired.set_in(current, now))
                }
            };
            changed = new.or(changed);
        }
        (changed, events)
    }

    /// The records of the addresses that a Service has, in the order in which its status shows them.
    pub(super) fn shown_records<'a>(&'a self, allocation: &'a Allocation) -> impl Iterator<Item = &'a Arc<Record>> {
        let records = allocation.targets.iter().filter_map(|target| self.records.get(&target.lb_ip));
        records.filter(|record| !record.deleting && holds(record, &allocation.service))
    }

    /// The announcers of an address. Reports of deleted nodes are ignored.
    pub(super) fn announcers<'a>(&self, record: &'a Record) -> impl Iterator<Item = &'a Announcer> + use<'_, 'a> {
        record.announcers.iter().filter(|announcer| self.nodes.contains_key(&*announcer.node))
    }
}
