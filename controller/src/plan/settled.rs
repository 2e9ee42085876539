//! Whether a Service has, by itself, the one address that it wants, and all says so: then there is nothing to decide and
//! nothing to write.
//!
//! That is so of nearly all Services in nearly every plan about everything, and told here without taking any memory, in
//! a tenth of the time that deciding takes. It is a shortcut and no rule: whatever it says yes to, a plan would come to
//! the same.

use crds::service::{ALLOCATED, ANNOUNCED, FORWARDING, Family};
use crds::{Announcer, Record, Service};

use crate::allocate::request::families;
use crate::allocate::sharing;
use crate::pools::Withheld;
use crate::state::index::Ledger;
use crate::state::record::is_exclusive;
use crate::status::allocated::{is_text, shows};
use crate::status::reason::{AllocatedReason, AnnouncedReason};

impl Ledger {
    /// Whether there is nothing to decide about this Service, and nothing to write.
    pub(crate) fn is_settled(&self, service: &Service) -> bool {
        if !self.is_served(service) || !service.has_finalizer() || !self.is_at_rest(&service.key) {
            return false;
        }
        let [address] = self.addresses_of(&service.key) else { return false };
        let Some(record) = self.addresses.get(address) else { return false };
        let is_own = is_exclusive(record) && record.holders[0].uid == service.uid && record.holders[0].terms.is_none();
        if !is_own || record.deleting || !record.conflicts.is_empty() || sharing::key(service).is_some() {
            return false;
        }
        let Ok(request) = &service.request else { return false };
        let is_asked = request.pool.is_none() && (request.addresses.is_empty() || request.addresses == [*address]);
        if !is_asked || families(service) != [Family::from(*address)] || !shows(service, [*address]) {
            return false;
        }
        let Some(pool) = self.pools.pool_of(*address) else { return false };
        let is_odd = pool.object.spec.drain
            || !matches!(self.pools.withheld(*address), None | Some(Withheld::NetworkEnd))
            || !self.admits(pool, service);
        !is_odd
            && self.is_told(service, record)
            && service.conditions.iter().any(|condition| {
                condition.type_ == ALLOCATED
                    && condition.status == "True"
                    && condition.reason == AllocatedReason::Allocated.as_str()
                    && condition.observed_generation == service.generation
                    && is_text(&condition.message, &format_args!("{address} from pool {}", pool.name()))
            })
    }

    /// Whether what is said of who announces the one address of a Service, and how it is forwarded, is what there is to say.
    fn is_told(&self, service: &Service, record: &Record) -> bool {
        let mut said = service.conditions.iter().filter(|condition| condition.type_ == ANNOUNCED);
        match (record.announcers.as_slice(), said.next()) {
            // Where no agent has been, there is nobody who could.
            ([], None) => self.networks.is_empty() && !service.conditions.iter().any(|said| said.type_ == FORWARDING),
            ([announcer @ Announcer { node, link, .. }], Some(condition)) => {
                Self::is_told_how(service, record.address, announcer)
                    && self.nodes.contains_key(&**node)
                    && condition.status == "True"
                    && condition.reason == AnnouncedReason::Announced.as_str()
                    && condition.observed_generation == service.generation
                    && is_text(&condition.message, &format_args!("{} by {node} ({link})", record.address))
            }
            _ => false,
        }
    }
}
