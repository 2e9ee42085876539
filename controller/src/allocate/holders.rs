//! The update of a record that several Services may hold, or that has lost its last holder.
//!
//! A record, and the decisions about the Services that it names or is promised to → the new holders of the record. All
//! changes are one write. It is conditional on the version that was read, so it never overwrites a concurrent join,
//! departure or change of a holder. While one Service holds a record and does not share it, only the series of that
//! Service writes the record. The exception is its pool.

use std::net::IpAddr;
use std::sync::Arc;

use crds::load_balancer_ip::MAX_HOLDERS;
use crds::{Holder, InternedStr, Record, Service};
use jiff::Timestamp;

use crate::allocate::sharing::{self, Standing, clash, holder};
use crate::plan::effect::{Effect, RecordPatch};
use crate::state::index::{ClusterIndex, Departure};
use crate::state::record::{is_exclusive, quarantine_end};

/// The holders that remain on a record.
struct Remaining {
    holders: Vec<Holder>,
    /// The Services of the holders that stay, without unreadable ones.
    services: Vec<Arc<Service>>,
    /// Whether all these holders stay. `false` if one cannot leave yet, or has an unreadable Service.
    departures_complete: bool,
}

impl ClusterIndex {
    /// The write that updates the holders in the record of this address. `None` if the record is up to date. Also
    /// `None` if this write must not happen now, for example because only the series of the single holder writes the
    /// record.
    pub(crate) fn reconcile_holders(&mut self, lb_ip: IpAddr, now: Timestamp) -> Option<Effect> {
        let record = self.objects.records().get(&lb_ip)?.clone();
        if record.deleting || self.unreadable.records.contains(&lb_ip) {
            return None;
        }
        if let Some(quarantine) = record.quarantine.as_ref().filter(|_| record.holders.is_empty()) {
            return (quarantine_end(quarantine) <= now).then(|| Effect::delete(&record));
        }
        if self.is_unchanged(&record) {
            return None;
        }
        let Remaining { mut holders, mut services, departures_complete } = self.remaining_holders(&record)?;
        // Services join only if this write completes all departures.
        let joining = self.promises.get(&lb_ip).filter_map(|key| self.objects.services().get(key));
        for service in joining.filter(|_| departures_complete) {
            let fits = services.iter().all(|other| clash(service, other).is_none());
            if fits && holders.len() < MAX_HOLDERS {
                holders.push(holder(service));
                services.push(service.clone());
            }
        }
        if holders.is_empty() && !record.is_reservation() {
            return Some(Effect::delete(&record));
        }
        let sharing_key = match services.first() {
            Some(service) => sharing::key(service).map(InternedStr::from),
            None if holders.is_empty() => None,
            None => record.sharing_key.clone(),
        };
        let is_first = record.holders.is_empty() && !holders.is_empty();
        let pool = self.changed_pool(&record).filter(|_| !holders.is_empty()).map(InternedStr::from);
        let becomes_reservation = is_first && record.reservation.is_none();
        let keeps_holders = holders == record.holders && sharing_key == record.sharing_key;
        if keeps_holders && pool.is_none() {
            return None;
        }
        let patch = RecordPatch {
            holders,
            sharing_key,
            pool,
            changes_only_pool: keeps_holders,
            becomes_reservation,
            ..RecordPatch::new(&record)
        };
        Some(Effect::PatchRecord(patch))
    }

    /// The pool of an address, if its record names another one. Agents select advertisements by the pool in the record.
    /// An address without a pool keeps the name of its last one. So does an address whose holder may request that pool:
    /// only the name shows that the request of the holder is met.
    pub(crate) fn changed_pool(&self, record: &Record) -> Option<&str> {
        let pool = self.pools.pool_of(record.address)?.name();
        let is_changed = *pool != *record.pool;
        (is_changed && !record.holders.iter().any(|holder| self.may_request(holder, &record.pool))).then_some(pool)
    }

    /// Whether a holder requests this pool, or has a request that is invalid or unreadable now.
    fn may_request(&self, holder: &Holder, pool: &str) -> bool {
        let key = holder.service();
        let service = self.objects.services().get(&key);
        let is_requested = |service: &Arc<Service>| match &service.request {
            Ok(request) => request.pool.as_deref() == Some(pool),
            Err(_) => true,
        };
        self.unreadable.services.contains(&key) || service.is_some_and(is_requested)
    }

    /// Fast path for nearly all records: whether the record names its pool and a single holder, which does not share
    /// and stays.
    fn is_unchanged(&self, record: &Record) -> bool {
        let [holder] = record.holders.as_slice() else { return false };
        let key = holder.service();
        let may_change = !is_exclusive(record)
            || holder.terms.is_some()
            || self.changed_pool(record).is_some()
            || self.departure(&key, record.address).is_some()
            || self.promises.contains(&record.address);
        let service = self.objects.services().get(&key);
        !may_change && service.is_some_and(|service| service.uid == holder.uid && sharing::key(service).is_none())
    }

    /// The holders that stay, and those that cannot leave yet. `None`: the series of the single holder writes the
    /// record.
    fn remaining_holders(&mut self, record: &Record) -> Option<Remaining> {
        let standings = self.standings(record);
        let mut remaining = Remaining {
            holders: Vec::with_capacity(record.holders.len()),
            services: Vec::new(),
            departures_complete: true,
        };
        for (holder, standing) in record.holders.iter().zip(standings.iter()) {
            let key = holder.service();
            match (standing, self.departure(&key, record.address)) {
                (Standing::Gone, _) => {
                    let exists = self.objects.services().get(&key).is_some_and(|service| service.uid == holder.uid);
                    if is_exclusive(record) && exists {
                        return None;
                    }
                }
                (_, Some(Departure::DeletesRecord)) => return None,
                (_, Some(Departure::Now)) => {}
                (Standing::Stays, None) => {
                    // If the record names a former Service of this key, the present one takes its place.
                    let service = self.objects.services().get(&key).cloned();
                    let current = service.as_ref().map_or_else(|| holder.clone(), |service| sharing::holder(service));
                    remaining.holders.push(current);
                    remaining.services.extend(service);
                }
                _ => {
                    remaining.holders.push(holder.clone());
                    remaining.departures_complete = false;
                }
            }
        }
        Some(remaining)
    }
}
