//! The conditions `Announced` and `Forwarding` of a Service: both follow events on the network, so no write waits for
//! them.
//!
//! They are written together, with a deferrable series or with a write that happens anyway.

use crds::condition::Condition;
use crds::service::{ANNOUNCED, FORWARDING};
use crds::{Announcer, Record};
use jiff::Timestamp;
use std::sync::Arc;

use crate::allocate::allocation::Allocation;
use crate::plan::effect::{Effect, Event, ServicePatch};
use crate::state::index::ClusterIndex;
use crate::state::record::holds;
use crate::status::announced::announced_event;
use crate::status::forwarding::forwarding_event;
use crate::status::reason::EventReason;

impl ClusterIndex {
    /// The write of both conditions and its events, if they have changed.
    pub(crate) fn condition_effects(&self, allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
        let service = &allocation.service;
        let (conditions, events) = self.updated_conditions(allocation, &service.conditions, now);
        let patch = conditions.map(|conditions| {
            Effect::PatchConditions(ServicePatch { conditions: Some(conditions), ..ServicePatch::new(service) })
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
        if allocation.targets.is_empty() {
            let is_other = |condition: &&Condition| ![ANNOUNCED, FORWARDING].contains(&condition.type_.as_str());
            let others: Vec<_> = conditions.iter().filter(is_other).cloned().collect();
            return ((others.len() < conditions.len()).then_some(others), Vec::new());
        }
        let announced = self.announced_condition(allocation, now);
        // While it is too early to report `Announced`, it is too early for `Forwarding`.
        let forwarding = announced.as_ref().and_then(|_| self.forwarding_condition(allocation, now));
        let (mut changed, mut events) = (None::<Vec<Condition>>, Vec::new());
        for desired in announced.into_iter().chain(forwarding) {
            let current = changed.as_deref().unwrap_or(conditions);
            if desired.is_in(current) {
                continue;
            }
            let before = current.iter().find(|condition| condition.type_ == desired.type_);
            let is_new = before.is_none_or(|old| old.reason != desired.reason || old.message != desired.message);
            let reason =
                if desired.type_ == ANNOUNCED { announced_event(before, &desired) } else { forwarding_event(&desired) };
            if let Some(reason) = reason.filter(|_| is_new) {
                let is_warning = reason != EventReason::Announced.as_str();
                events.push(Event::for_service(&allocation.service, is_warning, reason, desired.message.clone()));
            }
            changed = Some(desired.set_in(current, now));
        }
        (changed, events)
    }

    /// The records of the addresses that a Service has, in the order in which its status shows them.
    pub(super) fn shown_records<'a>(&'a self, allocation: &'a Allocation) -> impl Iterator<Item = &'a Arc<Record>> {
        let records = allocation.targets.iter().filter_map(|target| self.objects.records().get(&target.lb_ip));
        records.filter(|record| !record.deleting && holds(record, &allocation.service))
    }

    /// The announcers of an address. Reports of deleted nodes are ignored.
    pub(super) fn announcers<'a>(&self, record: &'a Record) -> impl Iterator<Item = &'a Announcer> + use<'_, 'a> {
        record.announcers.iter().filter(|announcer| self.objects.nodes().contains_key(&*announcer.node))
    }
}
