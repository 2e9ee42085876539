//! Addresses that rest after their last Service has given them up, so that clients and network devices forget whose they
//! were before somebody else has them.
//!
//! What was given up, when and by whom → who had it, and until when it rests. It is bounded by what rests: what has
//! rested is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::Key;
use jiff::Timestamp;

/// Addresses that rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resting {
    by_address: BTreeMap<IpAddr, Rest>,
    /// By the end of their rest.
    by_end: BTreeSet<(Timestamp, IpAddr)>,
    /// What each Service had last, in the order in which it gave it up.
    by_service: BTreeMap<Arc<Key>, Vec<IpAddr>>,
}

/// How an address rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    /// Who had it.
    pub(crate) last: Arc<Key>,
    /// Since when.
    pub(crate) since: Timestamp,
    /// Until when.
    pub(crate) until: Timestamp,
}

impl Resting {
    /// Lets an address rest.
    pub(crate) fn insert(&mut self, address: IpAddr, rest: Rest) {
        self.remove(address);
        self.by_end.insert((rest.until, address));
        self.by_service.entry(rest.last.clone()).or_default().push(address);
        self.by_address.insert(address, rest);
    }

    /// Ends the rest of an address, and says how it rested.
    pub(crate) fn remove(&mut self, address: IpAddr) -> Option<Rest> {
        let rest = self.by_address.remove(&address)?;
        self.by_end.remove(&(rest.until, address));
        if let Some(had) = self.by_service.get_mut(&*rest.last) {
            had.retain(|other| *other != address);
            if had.is_empty() {
                self.by_service.remove(&*rest.last);
            }
        }
        Some(rest)
    }

    /// Ends the rest of the first address that has rested, if there is one.
    pub(crate) fn remove_rested(&mut self, now: Timestamp) -> Option<(IpAddr, Rest)> {
        let (until, address) = *self.by_end.first()?;
        (until <= now).then(|| self.remove(address)).flatten().map(|rest| (address, rest))
    }

    /// The resting addresses that this Service had, the one that it gave up last first.
    pub(crate) fn had_by(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        self.by_service.get(service).into_iter().flatten().rev().copied()
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// All of them, in the order in which they were given up.
    pub(crate) fn into_iter(self) -> impl Iterator<Item = (IpAddr, Rest)> {
        let mut all: Vec<_> = self.by_address.into_iter().collect();
        all.sort_by_key(|(address, rest)| (rest.since, *address));
        all.into_iter()
    }
}
