//! Shells that gather facts. They change nothing, but send requests on the LAN.

pub mod kernel_state;
pub mod lan;
pub mod nodes;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::checks::{Checks, Fact};

/// The checks, which all shells share, and their clock.
pub struct Shared {
    start: Instant,
    checks: Mutex<Checks>,
    is_stopped: AtomicBool,
    /// The newest version of each kind of object so far.
    versions: Mutex<BTreeMap<&'static str, u64>>,
}

impl Shared {
    pub fn new(checks: Checks) -> Self {
        let (is_stopped, versions) = (AtomicBool::new(false), Mutex::default());
        Self { start: Instant::now(), checks: Mutex::new(checks), is_stopped, versions }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn checks(&self) -> MutexGuard<'_, Checks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fact of this moment.
    pub fn add(&self, fact: Fact) {
        self.checks().add(self.now(), fact);
    }

    /// Adds a fact about objects of a kind, unless a newer one was added before: a watch and lists of one kind are not
    /// synchronous. Returns whether it was added.
    pub fn add_in_order(&self, kind: &'static str, version: u64, fact: Fact) -> bool {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = versions.entry(kind).or_default();
        if version < *newest {
            return false;
        }
        *newest = version;
        self.add(fact);
        true
    }

    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::checks::wire::Lan;

    #[test]
    fn an_old_list_does_not_replace_a_newer_state() {
        let lan = Lan { nodes: BTreeMap::new(), own_addresses: BTreeSet::new(), link: "eth0" };
        let shared = Shared::new(Checks::new(lan));
        for (kind, version, is_added) in
            [("Service", 8, true), ("Service", 7, false), ("LoadBalancerIP", 7, true), ("Service", 9, true)]
        {
            let added = shared.add_in_order(kind, version, Fact::Services(Vec::new()));
            assert_eq!(added, is_added, "{kind} {version}");
        }
    }
}
