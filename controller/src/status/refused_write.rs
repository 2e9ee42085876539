//! Reports of writes that the API server refuses for a reason that lasts.
//!
//! A refused write, and the effects that repeat it → the report. A Service of ours whose addresses or release wait for
//! the write gets the condition `Allocated`, status `False`, and an event. The report is a series of its own, before
//! the next attempt. It is written once for each text, so a repeated attempt causes no other write. In all other cases
//! the report is an event: of a Service if its status is refused or up to date, of a LoadBalancerIP, or of a pool.

use crds::condition::DesiredCondition;
use crds::{Service, address};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;

use crate::allocate::allocation::Allocation;
use crate::allocate::refusal::Refusal;
use crate::plan::effect::{Effect, Event, ServicePatch, Subject, WriteKind};
use crate::state::index::ClusterIndex;
use crate::state::refused_write::RefusedWrite;
use crate::status::allocated::{allocated_event, refused_condition};
use crate::status::change::is_reported;
use crate::status::reason::EventReason;

impl RefusedWrite {
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::WriteRefused(self.kind, self.answer.clone())
    }
}

impl ClusterIndex {
    /// The report, if the API server refuses one of these effects and the condition of the Service does not state it
    /// yet. Otherwise the effects themselves: the next attempt.
    pub(crate) fn report_refused_write(&self, service: &Service, effects: Vec<Effect>, now: Timestamp) -> Vec<Effect> {
        let subject = Subject::Service(service.key.clone());
        let mut refused = effects.iter().filter_map(|effect| self.refused_write(&subject, effect.write_kind()?));
        let refused = refused.find(|refused| refused.delays_status);
        let report = refused.map(|refused| self.refusal_effects(service, refused, now)).unwrap_or_default();
        if report.is_empty() { effects } else { report }
    }

    /// The report for a Service that waits for a record, if the API server refuses to change that record.
    pub(crate) fn report_refused_record(&self, allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
        let awaited = allocation.targets.iter().filter(|target| target.acquisition.changes_record());
        let mut refused = awaited.filter_map(|target| {
            self.refused_write(&Subject::Record(target.lb_ip), WriteKind::PatchRecord(target.lb_ip))
        });
        refused.next().map(|refused| self.refusal_effects(&allocation.service, refused, now)).unwrap_or_default()
    }

    /// The event, and the write of the condition. Empty if the condition is up to date, or is not for this Service.
    fn refusal_effects(&self, service: &Service, refused: &RefusedWrite, now: Timestamp) -> Vec<Effect> {
        let subject = Subject::Service(service.key.clone());
        let is_status_refused = self.refused_write(&subject, WriteKind::PatchService).is_some();
        if is_status_refused || !service.is_ours(self.default_class) {
            return Vec::new();
        }
        let desired = self.desired_refusal(service, refused);
        if desired.is_in(&service.conditions) {
            return Vec::new();
        }
        // The event comes first: the API server may refuse the status as well.
        let event = (!is_reported(service, &desired)).then(|| Effect::Event(allocated_event(service, &desired)));
        let conditions = Some(desired.set_in(&service.conditions, now));
        let patch = Effect::ReportRefusal(ServicePatch { conditions, ..ServicePatch::new(service) });
        event.into_iter().chain([patch]).collect()
    }

    fn desired_refusal(&self, service: &Service, refused: &RefusedWrite) -> DesiredCondition {
        let held = self.records_held_by(service);
        let kept = held.iter().filter(|record| !record.deleting).map(|record| record.address);
        refused_condition(service, &refused.refusal(), kept)
    }

    /// The event about a refused write, if no condition reports it.
    pub(crate) fn refusal_event(&self, subject: &Subject, refused: &RefusedWrite) -> Option<Event> {
        let (reason, message) = (EventReason::WriteRefused.as_str(), refused.refusal().to_string());
        let regarding = match subject {
            Subject::Service(key) => {
                let service = self.objects.services().get(key)?;
                let has_condition = refused.delays_status && service.is_ours(self.default_class);
                return (!has_condition).then(|| Event::for_service(service, true, reason, message));
            }
            Subject::Record(lb_ip) => ObjectReference {
                api_version: Some(crds::LoadBalancerIP::api_version(&()).into_owned()),
                kind: Some(crds::LoadBalancerIP::kind(&()).into_owned()),
                name: Some(address::object_name(*lb_ip)),
                uid: self.objects.records().get(lb_ip).map(|record| record.uid.to_string()),
                ..ObjectReference::default()
            },
            Subject::Pool(name) => self.pools.get(name)?.object.object_ref(&()),
        };
        Some(Event { regarding, is_warning: true, reason, message })
    }
}
