//! Whether a Service can have one particular address, and how.

use std::net::IpAddr;
use std::sync::Arc;

use crds::load_balancer_ip::MAX_HOLDERS;
use crds::{Key, Record, Service};

use crate::allocate::allocation::{Acquisition, Search, Unavailable};
use crate::allocate::refusal::{InUse, Refusal};
use crate::allocate::sharing::{self, Clash, Standing, clash};
use crate::pools::Withheld;
use crate::pools::occupied::NetworkEnd;
use crate::state::index::ClusterIndex;

impl From<Refusal> for Unavailable {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn in_use(lb_ip: IpAddr, by: InUse) -> Unavailable {
    Refusal::AddressInUse(lb_ip, by).into()
}

impl ClusterIndex {
    /// How a Service acquires this address, or why it cannot.
    pub(super) fn obtain(&mut self, search: &Search<'_>, lb_ip: IpAddr) -> Result<Acquisition, Unavailable> {
        if self.pools.pool_of(lb_ip).is_some_and(|pool| self.lacks_namespace_for(pool, search.service)) {
            let namespace = search.service.key.namespace.to_string();
            let waits = self.awaits_namespace(search.service, search.now);
            return Err(if waits { Unavailable::Blocked } else { Refusal::NamespaceUnknown(namespace).into() });
        }
        self.check_assignable(search, lb_ip)?;
        if self.unreadable.records.contains(&lb_ip) {
            return Err(in_use(lb_ip, InUse::Unknown));
        }
        let record = self.objects.records().get(&lb_ip).cloned();
        let acquisition = match &record {
            None => Acquisition::Create,
            Some(record) => self.join(search.service, record)?,
        };
        for key in self.promises.get(&lb_ip).filter(|key| **key != search.service.key) {
            let Some(other) = self.objects.services().get(key) else { continue };
            match clash(search.service, other) {
                Some(Clash::Key) => return Err(in_use(lb_ip, InUse::Service(key.clone()))),
                Some(clash) => return Err(Refusal::SharingConflict(lb_ip, key.clone(), clash).into()),
                // A series of the other Service creates the record. Then this Service can join it.
                None if acquisition == Acquisition::Create => return Err(Unavailable::Blocked),
                None => {}
            }
        }
        Ok(acquisition)
    }

    /// Checks the pools, the withheld addresses and the quota: these checks need no record.
    fn check_assignable(&self, search: &Search<'_>, lb_ip: IpAddr) -> Result<(), Refusal> {
        if self.pools.is_empty() {
            return Err(Refusal::NoPool);
        }
        let pool = self.pools.pool_of(lb_ip).ok_or(Refusal::AddressNotInPool(lb_ip, None))?;
        if let Some(other) = search.request.pool.filter(|requested| *requested != pool.name()) {
            return Err(Refusal::AddressNotInPool(lb_ip, Some(other.to_owned())));
        }
        self.check_pool(pool, search.service)?;
        match self.pools.withheld(lb_ip) {
            Some(Withheld::Excluded | Withheld::Buggy) => {
                return Err(Refusal::AddressExcluded(lb_ip, pool.name().to_owned()));
            }
            Some(Withheld::Occupied(occupant)) => {
                return Err(Refusal::AddressInUse(lb_ip, InUse::Occupant(occupant.clone())));
            }
            Some(Withheld::Unusable(network)) => {
                return Err(Refusal::AddressUnusable(NetworkEnd { address: lb_ip, network }));
            }
            Some(Withheld::NetworkEnd) | None => {}
        }
        if self.is_quota_full(search, pool, lb_ip) {
            return Err(Refusal::NamespaceQuota(pool.name().to_owned()));
        }
        Ok(())
    }

    /// Checks whether a Service can join an existing record. The reservation of the record must permit the Service, and
    /// the Service must fit with the holders that stay. Promises to other Services count towards the maximum.
    fn join(&mut self, service: &Service, record: &Arc<Record>) -> Result<Acquisition, Unavailable> {
        let lb_ip = record.address;
        if record.deleting {
            return Err(in_use(lb_ip, InUse::Withdrawn));
        }
        if let Some(quarantine) = record.quarantine.as_ref().filter(|_| record.holders.is_empty()) {
            return Err(in_use(lb_ip, InUse::OtherHost(quarantine.mac.clone())));
        }
        if !permits_reservation(record, &service.key) {
            return Err(Refusal::AddressReserved(lb_ip).into());
        }
        let standings = self.standings(record);
        // Services that the Service would share the address with.
        let mut others = Vec::new();
        let mut has_leaving_holder = false;
        for (holder, standing) in record.holders.iter().zip(standings.iter()) {
            let other = holder.service();
            let clash = match standing {
                Standing::Gone => continue,
                // This holder is the Service itself. It must leave, because it no longer fits with the Service `with`.
                Standing::Clashes(with, clash) if other == service.key => {
                    return Err(Refusal::SharingConflict(lb_ip, with.clone(), clash.clone()).into());
                }
                Standing::Clashes(..) => {
                    has_leaving_holder = true;
                    continue;
                }
                _ if self.departure(&other, lb_ip).is_some() => {
                    has_leaving_holder = true;
                    continue;
                }
                Standing::Unreadable => Some(Clash::Unreadable),
                Standing::Stays => self.objects.services().get(&other).and_then(|other| clash(service, other)),
            };
            match clash {
                None => others.push(other),
                Some(_) if sharing::key(service).is_none() => return Err(in_use(lb_ip, InUse::Service(other))),
                Some(clash) => return Err(Refusal::SharingConflict(lb_ip, other, clash).into()),
            }
        }
        if has_leaving_holder || (others.is_empty() && !record.is_reservation()) {
            return Err(in_use(lb_ip, InUse::Withdrawn));
        }
        others.extend(self.promises.get(&lb_ip).filter(|other| **other != service.key).cloned());
        if others.len() >= MAX_HOLDERS {
            return Err(Refusal::SharingConflict(lb_ip, others.swap_remove(0), Clash::Full).into());
        }
        Ok(Acquisition::Join)
    }
}

/// Whether the reservation of a record, if there is one, permits this Service.
fn permits_reservation(record: &Record, key: &Key) -> bool {
    record.reservation.as_ref().is_none_or(|reservation| {
        reservation.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && reservation.service.as_ref().is_none_or(|name| *name == key.name)
    })
}
