//! What is promised, and what is counted: addresses that were given and that no record names yet, and how many addresses
//! of a pool each namespace has or gets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crds::service::Family;
use crds::{InternedStr, Key, Service};
use jiff::Timestamp;

use super::{Ledger, remove};
use crate::allocate::sharing;

impl Ledger {
    /// One Service more, or less, of that namespace has that address.
    pub(super) fn count(&mut self, address: IpAddr, namespace: &str, more: bool) {
        let Some(pool) = self.pools.pool_of(address).filter(|pool| pool.object.spec.max_per_namespace.is_some()) else {
            return;
        };
        let most = pool.object.spec.max_per_namespace.map_or(usize::MAX, |most| most as usize);
        let counts = self.quotas.entry((pool.name().to_owned(), namespace.to_owned())).or_default();
        let count = counts.entry(address).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            counts.remove(&address);
        }
        // Who waits for something else waits for this as well now, and has to be told.
        self.dirty.waiting |= more && counts.len() >= most;
    }

    /// Nobody can have this address any more.
    pub(super) fn take(&mut self, address: IpAddr) {
        self.free.take(address);
        if let Some(pool) = self.pools.pool_of(address) {
            self.dirty.waiting |= self.free.counts(pool)[Family::from(address)].available() == 0;
        }
    }

    /// The addresses of that pool that Services of that namespace have or get, each with how many of them.
    pub(crate) fn quota(&self, pool: &str, namespace: &str) -> Option<&BTreeMap<IpAddr, u32>> {
        self.quotas.get(&(pool.to_owned(), namespace.to_owned()))
    }

    /// Nobody else gets this, for the time being.
    pub(crate) fn promise(&mut self, address: IpAddr, service: &Service) {
        if !self.is_used(address) {
            self.take(address);
            self.dirty.pools.extend(self.pools.pool_of(address).map(|pool| pool.name().to_owned()));
        }
        self.promises.entry(address).or_default().insert(service.key.clone());
        self.promised.entry(service.key.clone()).or_default().push(address);
        self.count(address, &service.key.namespace, true);
        if let Some(key) = sharing::key(service) {
            let key = InternedStr::from(key);
            self.keyed.entry(key.clone()).or_default().insert(address);
            self.promised_under.insert(address, key);
        }
    }

    /// What was promised to this Service it has not any more. Whether there was something.
    pub(crate) fn break_promises(&mut self, key: &Key, now: Timestamp) -> bool {
        let addresses = self.promised.get(key).cloned().unwrap_or_default();
        addresses.iter().for_each(|address| self.break_promise(*address, key, now));
        !addresses.is_empty()
    }

    pub(super) fn break_promise(&mut self, address: IpAddr, key: &Key, now: Timestamp) {
        if let Some(promised) = self.promised.get_mut(key) {
            promised.retain(|other| *other != address);
            if promised.is_empty() {
                self.promised.remove(key);
            }
        }
        if let Some(keys) = self.promises.get_mut(&address) {
            keys.remove(key);
            if keys.is_empty() {
                self.promises.remove(&address);
            }
        }
        self.count(address, &key.namespace, false);
        if !self.promises.contains_key(&address)
            && let Some(key) = self.promised_under.remove(&address)
            && self.addresses.get(&address).is_none_or(|record| record.sharing_key.as_ref() != Some(&key))
        {
            remove(&mut self.keyed, &key, &address);
        }
        if !self.is_used(address) {
            self.free.release(address, None, now);
            self.dirty.pools.extend(self.pools.pool_of(address).map(|pool| pool.name().to_owned()));
        } else {
            self.dirty.addresses.insert(address);
        }
    }

    /// To whom this address is promised.
    pub(crate) fn promised_to(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        self.promises.get(&address).into_iter().flatten()
    }
}
