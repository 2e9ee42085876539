//! Cool-down: the time after the last holder of an address has released it. No other Service gets the address in this
//! time, so that clients and network devices forget the former holder.
//!
//! Released addresses, each with its time and its Service → which addresses cool down, and until when. Expired
//! cool-downs are forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::Key;
use jiff::Timestamp;

/// All addresses in cool-down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cooldowns {
    by_address: BTreeMap<IpAddr, Cooldown>,
    by_end: BTreeSet<(Timestamp, IpAddr)>,
    /// The addresses of each former Service, in the order in which it released them.
    by_service: BTreeMap<Arc<Key>, Vec<IpAddr>>,
}

/// The cool-down of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cooldown {
    /// The Service that had the address.
    pub(crate) service: Arc<Key>,
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
}

impl Cooldowns {
    pub(crate) fn insert(&mut self, address: IpAddr, cooldown: Cooldown) {
        self.remove(address);
        self.by_end.insert((cooldown.until, address));
        self.by_service.entry(cooldown.service.clone()).or_default().push(address);
        self.by_address.insert(address, cooldown);
    }

    pub(crate) fn remove(&mut self, address: IpAddr) -> Option<Cooldown> {
        let cooldown = self.by_address.remove(&address)?;
        self.by_end.remove(&(cooldown.until, address));
        if let Some(addresses) = self.by_service.get_mut(&*cooldown.service) {
            addresses.retain(|other| *other != address);
            if addresses.is_empty() {
                self.by_service.remove(&*cooldown.service);
            }
        }
        Some(cooldown)
    }

    /// The address whose cool-down ends first, if it has ended.
    pub(crate) fn first_expired(&self, now: Timestamp) -> Option<IpAddr> {
        self.by_end.first().filter(|(until, _)| *until <= now).map(|(_, address)| *address)
    }

    /// The addresses in cool-down that this Service had. The address that it released last comes first.
    pub(crate) fn last_held_by(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        self.by_service.get(service).into_iter().flatten().rev().copied()
    }

    /// The Service that had this address.
    pub(crate) fn service_of(&self, address: IpAddr) -> Option<&Key> {
        self.by_address.get(&address).map(|cooldown| &*cooldown.service)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// All cool-downs, in the order of the releases.
    pub(crate) fn into_iter(self) -> impl Iterator<Item = (IpAddr, Cooldown)> {
        let mut all: Vec<_> = self.by_address.into_iter().collect();
        all.sort_by_key(|(address, cooldown)| (cooldown.since, *address));
        all.into_iter()
    }
}
