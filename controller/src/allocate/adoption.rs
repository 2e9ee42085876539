//! Adoption: a Service gets back the address that it had before.
//!
//! A Service that is restored from a backup, or created again, has another UID. Before any other address, it gets:
//!
//! 1. The address of a record that names its namespace and name with the UID of the former Service. The Service takes
//!    the place of that holder by one write of the record, so announcers and reports of nodes stay. As for any holder,
//!    changed pools do not take the address away. [`ClusterIndex::held_options`] finds these records.
//! 2. The address that its status shows, if the Service could get it without requesting it by name. The address must be
//!    free, or the Service must be able to share it. This works even if the records are lost, or if another provider
//!    wrote the status.
//!
//! Addresses that the Service requests come before both. A forged status chooses only among addresses that the Service
//! could have got anyway. Quotas and pool selectors apply, and no address in the cool-down of another Service is
//! adopted.
//!
//! A plan promises shown addresses first, so that a new Service gets none of them. All other addresses of the same plan
//! are assigned in the order of [`crate::allocate::request::Rank`].

use std::net::IpAddr;

use crds::service::Family;
use crds::{Key, Service};
use jiff::Timestamp;

use crate::allocate::allocation::{Acquisition, Blocked, Search, Unavailable, start_search};
use crate::allocate::request::address_request;
use crate::allocate::sharing::clash;
use crate::state::index::ClusterIndex;
use crate::state::record::names;
use crate::status::allocated::address_of;

/// Maximum number of status entries that are considered. It equals the maximum number of requested addresses.
const MAX_SHOWN: usize = 16;

/// The addresses in the status of a Service.
fn shown_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.ingress.iter().take(MAX_SHOWN).filter_map(address_of)
}

impl ClusterIndex {
    /// An address of this family and these pools that the status of the Service shows, and that the Service can have.
    pub(super) fn find_shown(
        &mut self,
        search: &Search<'_>,
        family: Family,
        pools: &[usize],
    ) -> Result<Option<(IpAddr, Acquisition)>, Blocked> {
        for lb_ip in shown_addresses(search.service).filter(|lb_ip| Family::from(*lb_ip) == family) {
            if !self.may_adopt(search, lb_ip, pools) {
                continue;
            }
            match self.obtain(search, lb_ip) {
                Ok(acquisition) => return Ok(Some((lb_ip, acquisition))),
                Err(Unavailable::Blocked) => return Err(Blocked),
                Err(Unavailable::Refused(_)) => {}
            }
        }
        Ok(None)
    }

    /// Whether the status of a Service may choose this address. One of these pools must assign it automatically. If it
    /// has a record, that must have holders, and none of them may have the key of the Service. The address must not be
    /// in the cool-down of another Service, unless both may share it.
    fn may_adopt(&mut self, search: &Search<'_>, lb_ip: IpAddr, pools: &[usize]) -> bool {
        let service = search.service;
        let is_open = self.pools.pool_of_open(lb_ip).is_some_and(|pool| pools.contains(&pool));
        let has_other_purpose =
            self.objects.records().get(&lb_ip).is_some_and(|it| it.holders.is_empty() || names(it, &service.key));
        let last = self.free.cooling_after(lb_ip, search.now).cloned();
        let is_cooling = last.is_some_and(|last| !self.may_follow(service, &last));
        is_open && !has_other_purpose && !is_cooling
    }

    /// Whether a Service may have an address during the cool-down after `last`: it is the same Service, or both may
    /// share the address.
    fn may_follow(&self, service: &Service, last: &Key) -> bool {
        *last == service.key || self.objects.services().get(last).is_some_and(|other| clash(service, other).is_none())
    }

    /// Whether the status of a Service shows a free address that the Service can get without requesting it by name.
    pub(crate) fn shows_free_address(&self, service: &Service) -> bool {
        let free = shown_addresses(service).filter(|lb_ip| !self.is_used(*lb_ip));
        let mut free = free.filter_map(|lb_ip| self.pools.pool_of_open(lb_ip)).peekable();
        let Ok(request) = address_request(service) else { return false };
        free.peek().is_some()
            && self.pools_for(service, &request).is_ok_and(|pools| free.any(|pool| pools.contains(&pool)))
    }

    /// Promises to a Service the addresses that its status shows, as far as it needs and can have them. Returns them.
    pub(crate) fn claim_shown(&mut self, service: &Service, now: Timestamp) -> Vec<(Key, IpAddr)> {
        let holds = |lb_ip: &IpAddr| self.objects.records().get(lb_ip).is_some_and(|it| names(it, &service.key));
        if shown_addresses(service).all(|lb_ip| holds(&lb_ip)) {
            return Vec::new();
        }
        let mut claimed = self.find_all_shown(service, now).unwrap_or_default();
        claimed.retain(|lb_ip| shown_addresses(service).any(|shown| shown == *lb_ip));
        claimed.iter().for_each(|lb_ip| self.promise(*lb_ip, service));
        claimed.into_iter().map(|lb_ip| (service.key.clone(), lb_ip)).collect()
    }

    /// The new addresses that a Service requests, and those that its status shows. `None`: its request is refused or
    /// blocked ([`Unavailable`]).
    fn find_all_shown(&mut self, service: &Service, now: Timestamp) -> Option<Vec<IpAddr>> {
        let request = address_request(service).ok()?;
        let held = self.held_records(service);
        let options = self.held_options(service, &request, &held);
        let mut search = start_search(service, &request, &held, &options, now);
        self.fill_requested(&mut search).ok()?;
        if !search.empty_slots().is_empty() {
            let pools = self.pools_for(service, &request).ok()?;
            for index in search.empty_slots() {
                if let Some((lb_ip, acquisition)) =
                    self.find_shown(&search, request.slots[index].family, &pools).ok()?
                {
                    search.fill(index, lb_ip, acquisition);
                }
            }
        }
        Some(search.new_addresses().collect())
    }
}
