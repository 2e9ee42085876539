//! What becomes of the record of an address that several may hold, or nobody holds any more.
//!
//! A record, and what was decided about the Services that it names or is promised to → who is to stand there. All that
//! changes at once is one write, conditional on the version that was looked at: so who comes and who goes can't pass each
//! other unseen. A record that one Service alone has had all its life is written by what is about that Service.

use std::net::IpAddr;
use std::sync::Arc;

use crds::load_balancer_ip::MAX_HOLDERS;
use crds::{Holder, InternedStr, Key, Service};
use jiff::Timestamp;

use crate::allocate::sharing::{self, Known, Standing, clash, holder};
use crate::plan::effect::{AddressPatch, Effect};
use crate::state::index::{Leaving, Ledger};
use crate::state::record::{is_exclusive, quarantine_end};

impl Ledger {
    /// The write that makes the record of this address say who holds it, if it does not.
    pub(crate) fn tidied(&mut self, address: IpAddr, now: Timestamp) -> Option<Effect> {
        let record = self.addresses.get(&address)?.clone();
        if record.deleting || self.unreadable.addresses.contains(&address) {
            return None;
        }
        if let Some(quarantine) = record.quarantine.as_ref().filter(|_| record.holders.is_empty()) {
            let resource_version = Some(record.resource_version);
            let delete = Effect::Delete { address, uid: record.uid.clone(), resource_version };
            return (quarantine_end(quarantine) <= now).then_some(delete);
        }
        if let [holder] = record.holders.as_slice()
            && is_exclusive(&record)
            && holder.terms.is_none()
            && !self.leaving.contains_key(&address)
            && self.promised_to(address).next().is_none()
        {
            // As nearly all are: nothing follows from it that a search would find.
            let service = self.services.get(&Key::new(&holder.namespace, &holder.name));
            let is_own = |own: &&Arc<Service>| own.uid == holder.uid && sharing::key(own).is_none();
            if service.filter(is_own).is_some() {
                return None;
            }
        }
        let standings = self.standings(&record);
        let mut holders = Vec::with_capacity(record.holders.len());
        let mut staying = Vec::<Arc<Service>>::new();
        let mut is_settled = true;
        for (holder, standing) in record.holders.iter().zip(standings.iter()) {
            let key = Key::new(&holder.namespace, &holder.name);
            let leaving = self.leaving.get(&address).and_then(|keys| keys.get(&key));
            match (standing, leaving) {
                (Standing::Gone, _) => {
                    let exists = self.services.get(&key).is_some_and(|service| service.uid == holder.uid);
                    if is_exclusive(&record) && exists {
                        return None;
                    }
                }
                (_, Some(Leaving::Alone)) => return None,
                (_, Some(Leaving::Now)) => {}
                (Standing::Stays, None) => {
                    let service = match self.known(&key, &holder.uid) {
                        Known::Service(_) => self.services.get(&key).cloned(),
                        _ => None,
                    };
                    let terms = service.as_ref().map_or_else(|| holder.terms.clone(), |own| sharing::terms(own));
                    holders.push(Holder { terms, ..holder.clone() });
                    staying.extend(service);
                }
                _ => {
                    holders.push(holder.clone());
                    is_settled = false;
                }
            }
        }
        // Nobody comes before all who are to go have gone.
        let joining: Vec<_> = self.promised_to(address).filter_map(|key| self.services.get(key).cloned()).collect();
        for service in joining.into_iter().filter(|_| is_settled) {
            let fits = staying.iter().all(|other| clash(&service, other).is_none());
            if fits && holders.len() < MAX_HOLDERS {
                holders.push(holder(&service));
                staying.push(service);
            }
        }
        if holders.is_empty() && !record.is_reservation() {
            let resource_version = (!is_exclusive(&record)).then(|| record.resource_version);
            return Some(Effect::Delete { address, uid: record.uid.clone(), resource_version });
        }
        let sharing_key = match staying.first() {
            Some(service) => sharing::key(service).map(InternedStr::from),
            None if holders.is_empty() => None,
            None => record.sharing_key.clone(),
        };
        let is_first = record.holders.is_empty() && !holders.is_empty();
        let pool = self.pools.pool_of(address).map(|pool| InternedStr::from(pool.name()));
        let pool = pool.filter(|pool| is_first && *pool != record.pool);
        let becomes_reservation = is_first && record.reservation.is_none();
        if holders == record.holders && sharing_key == record.sharing_key && pool.is_none() {
            return None;
        }
        Some(Effect::PatchAddress(AddressPatch {
            address,
            resource_version: record.resource_version,
            holders,
            sharing_key,
            pool,
            becomes_reservation,
            quarantine: None,
        }))
    }
}
