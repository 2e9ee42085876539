//! Promises and quotas. A promise is an address that is assigned, but whose record does not name the Service yet. A
//! quota limits the addresses of a pool that the Services of a namespace hold or are promised.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crds::service::Family;
use crds::{InternedStr, Key, Service};
use jiff::Timestamp;

use super::ClusterIndex;
use crate::allocate::sharing;
use crate::pools::intervals::ByFamily;

impl ClusterIndex {
    /// Counts one more Service of this namespace at this address.
    pub(super) fn charge_quota(&mut self, lb_ip: IpAddr, namespace: &str) {
        let Some((usage, limit)) = self.quota_of(lb_ip, namespace) else { return };
        *usage.entry(lb_ip).or_default() += 1;
        // If the quota is used up, waiting Services may be refused because of the quota, and must report this reason.
        if usage.len() >= limit {
            self.wake_for_quota();
        }
    }

    /// Counts one fewer Service of this namespace at this address.
    pub(super) fn refund_quota(&mut self, lb_ip: IpAddr, namespace: &str) {
        let Some((usage, _)) = self.quota_of(lb_ip, namespace) else { return };
        let count = usage.entry(lb_ip).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            usage.remove(&lb_ip);
            self.wake_for_quota();
        }
    }

    /// Wakes all waiting Services: a quota counts addresses of both families.
    fn wake_for_quota(&mut self) {
        self.dirty.waiting = ByFamily { v4: true, v6: true };
    }

    /// The usage and the limit of a namespace in the pool of this address, if the pool has a limit.
    fn quota_of(&mut self, lb_ip: IpAddr, namespace: &str) -> Option<(&mut BTreeMap<IpAddr, u32>, usize)> {
        let pool = self.pools.pool_of(lb_ip)?;
        let limit = pool.object.spec.max_per_namespace? as usize;
        let of_pool = self.quotas.entry(pool.name().to_owned()).or_default();
        Some((of_pool.entry(namespace.to_owned()).or_default(), limit))
    }

    /// Marks an address as used.
    pub(super) fn take(&mut self, lb_ip: IpAddr) {
        self.free.take(lb_ip);
        let pool = self.pools.pool_of(lb_ip);
        if pool.is_some_and(|pool| self.free.counts(pool)[Family::from(lb_ip)].available() == 0) {
            self.wake_waiting(lb_ip);
        }
    }

    /// The addresses of this pool that Services of this namespace hold or are promised, each with the number of these
    /// Services.
    pub(crate) fn quota_usage(&self, pool: &str, namespace: &str) -> Option<&BTreeMap<IpAddr, u32>> {
        self.quotas.get(pool)?.get(namespace)
    }

    /// Keeps an address for a Service until its record names the Service. Does nothing if it is promised already.
    pub(crate) fn promise(&mut self, lb_ip: IpAddr, service: &Service) {
        if self.has_promise(&service.key, lb_ip) {
            return;
        }
        if !self.is_used(lb_ip) {
            self.take(lb_ip);
            self.mark_pool(lb_ip);
        }
        self.promises.insert(lb_ip, service.key.clone());
        self.promised.insert(service.key.clone(), lb_ip);
        self.charge_quota(lb_ip, &service.key.namespace);
        if let Some(key) = sharing::key(service) {
            let key = InternedStr::from(key);
            self.by_sharing_key.insert(key.clone(), lb_ip);
            self.promised_keys.insert(lb_ip, key);
        }
    }

    /// Whether this address is promised to this Service.
    pub(crate) fn has_promise(&self, key: &Key, lb_ip: IpAddr) -> bool {
        self.promised.get(key).any(|promised| *promised == lb_ip)
    }

    /// Breaks all promises to this Service. A waiting Service may get the address of a broken promise.
    pub(crate) fn break_promises(&mut self, key: &Key, now: Timestamp) {
        for lb_ip in self.promised.get(key).copied().collect::<Vec<_>>() {
            self.withdraw_promise(lb_ip, key, now);
        }
    }

    /// Breaks a promise. A waiting Service may get the address.
    pub(crate) fn withdraw_promise(&mut self, lb_ip: IpAddr, key: &Key, now: Timestamp) {
        self.break_promise(lb_ip, key, now);
        self.wake_waiting(lb_ip);
    }

    pub(super) fn break_promise(&mut self, lb_ip: IpAddr, key: &Key, now: Timestamp) {
        self.promised.remove(key, &lb_ip);
        self.promises.remove(&lb_ip, key);
        self.refund_quota(lb_ip, &key.namespace);
        if !self.promises.contains(&lb_ip)
            && let Some(key) = self.promised_keys.remove(&lb_ip)
            && self.objects.records().get(&lb_ip).is_none_or(|record| record.sharing_key.as_ref() != Some(&key))
        {
            self.by_sharing_key.remove(&key, &lb_ip);
        }
        if !self.is_used(lb_ip) {
            self.free.release(lb_ip, None, now);
            self.mark_pool(lb_ip);
        } else {
            self.dirty.records.insert(lb_ip);
        }
    }

    /// Marks the pool of this address: its counts have changed.
    pub(super) fn mark_pool(&mut self, lb_ip: IpAddr) {
        self.dirty.pools.extend(self.pools.pool_of(lb_ip).map(|pool| pool.name().to_owned()));
    }
}
