//! Settled Services: each is the only holder of the one address it needs, and its status is up to date. There is
//! nothing to decide and nothing to write.
//!
//! In a plan of all Services, nearly all of them are settled. This check finds them without allocating memory, in a
//! tenth of the time of a decision. It only saves work: a decision about a settled Service has no effects.

use std::net::IpAddr;

use crds::condition::ConditionStatus;
use crds::service::{ALLOCATED, ANNOUNCED, FORWARDING, Family};
use crds::{Announcer, Key, Record, Service};

use crate::allocate::request::families;
use crate::allocate::sharing;
use crate::pools::Withheld;
use crate::state::index::ClusterIndex;
use crate::state::record::is_exclusive;
use crate::status::allocated::{allocated_message, shows_exactly};
use crate::status::announced::{announced_message, place};
use crate::status::change::is_current;
use crate::status::forwarding::is_forwarding_current;
use crate::status::reason::{AllocatedReason, AnnouncedReason};

impl ClusterIndex {
    /// The keys of the Services about which there is something to decide or to write, and of some others.
    pub(crate) fn unsettled_services(&self) -> impl Iterator<Item = &Key> {
        let services = self.objects.services_with_sole_address();
        services.filter(|(service, lb_ip)| !self.is_settled(service, *lb_ip)).map(|(service, _)| &service.key)
    }

    /// Whether there is nothing to decide about this Service and nothing to write. `lb_ip`: the address that the
    /// Service holds if that is exactly one.
    pub(crate) fn is_settled(&self, service: &Service, lb_ip: Option<IpAddr>) -> bool {
        if !self.may_hold_addresses(service) || !service.has_finalizer() || !self.is_idle(&service.key) {
            return false;
        }
        let Some(lb_ip) = lb_ip else { return false };
        let Some(record) = self.objects.records().get(&lb_ip) else { return false };
        let is_own = is_exclusive(record) && record.holders[0].uid == service.uid && record.holders[0].terms.is_none();
        if !is_own || record.deleting || !record.conflicts.is_empty() || sharing::key(service).is_some() {
            return false;
        }
        let Ok(request) = &service.request else { return false };
        let fits_request = request.pool.is_none() && (request.addresses.is_empty() || request.addresses == [lb_ip]);
        if !fits_request || families(service) != [Family::from(lb_ip)] || !shows_exactly(service, [lb_ip]) {
            return false;
        }
        let Some(pool) = self.pools.pool_of(lb_ip) else { return false };
        let may_stay = !pool.object.spec.drain
            && matches!(self.pools.withheld(lb_ip), None | Some(Withheld::NetworkEnd))
            && self.admits(pool, service);
        let (reason, message) = (AllocatedReason::Allocated.as_str(), allocated_message(lb_ip, pool.name()));
        may_stay
            && self.are_conditions_current(service, record)
            && is_current(service, ALLOCATED, ConditionStatus::True, reason, &message)
    }

    /// Whether the conditions `Announced` and `Forwarding` of a Service with one address are up to date.
    fn are_conditions_current(&self, service: &Service, record: &Record) -> bool {
        let has = |type_: &str| service.conditions.iter().any(|condition| condition.type_ == type_);
        match record.announcers.as_slice() {
            // Without agents, no node can announce.
            [] => self.networks.is_empty() && !has(ANNOUNCED) && !has(FORWARDING),
            [announcer @ Announcer { node, .. }] => {
                let place = place(announcer);
                let (reason, message) =
                    (AnnouncedReason::Announced.as_str(), announced_message(record.address, &place));
                is_forwarding_current(service, record.address, announcer)
                    && self.objects.nodes().contains_key(&**node)
                    && is_current(service, ANNOUNCED, ConditionStatus::True, reason, &message)
            }
            _ => false,
        }
    }
}
