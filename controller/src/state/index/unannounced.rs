//! Whose addresses nobody announces, what bears on that, and when it is time to look at something again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crds::{Advertisement, EndpointSlice, Key};
use jiff::{SignedDuration, Timestamp};

use super::Ledger;

/// How long an address may be unannounced before the condition reports it. Agents need a fraction of a second; the rest is
/// for agents that are starting or being replaced.
const GRACE: SignedDuration = SignedDuration::from_secs(5);

/// A problem that keeps every node from announcing, with its fix: `the Secret .. is missing: create it`. Its text must be
/// stable, because each change of it is a write for each Service.
pub type Obstacle = Arc<str>;

/// When the grace period of an address that is unannounced since then is over.
fn grace_end(since: Timestamp) -> Timestamp {
    since.saturating_add(GRACE).unwrap_or(Timestamp::MAX)
}

impl Ledger {
    /// An advertisement is like this now, or is gone.
    pub fn set_advertisement(&mut self, name: &str, advertisement: Option<Arc<Advertisement>>) {
        match advertisement {
            Some(advertisement) => drop(self.advertisements.insert(name.to_owned(), advertisement)),
            None => drop(self.advertisements.remove(name)),
        }
        self.judge_again();
    }

    /// A slice is like this now, or is gone. It counts only once they are known ([`Self::knows_slices`]).
    pub fn set_slice(&mut self, key: &Key, slice: Option<Arc<EndpointSlice>>) {
        let Some(slices) = &mut self.slices else { return };
        let old = match slice {
            Some(ref slice) => slices.insert(key.clone(), slice.clone()),
            None => slices.remove(key),
        };
        let concerned = old.iter().chain(&slice).map(|slice| slice.service.clone());
        self.dirty.services.extend(concerned.filter(|service| self.unannounced.contains_key(service)));
    }

    /// All slices that there are will have been told when the next plan is made: a Service without any has none then.
    pub fn knows_slices(&mut self) {
        if self.slices.is_none() {
            self.slices = Some(BTreeMap::new());
            self.judge_again();
        }
    }

    /// Whether somebody has to be told about slices.
    pub fn wants_slices(&self) -> bool {
        self.wants_endpoints
    }

    /// Somebody has to be told about slices from now on.
    pub(crate) fn want_slices(&mut self) {
        self.wants_endpoints = true;
    }

    /// This keeps every node from announcing now, or nothing does.
    pub fn set_obstacle(&mut self, obstacle: Option<Obstacle>) {
        if self.obstacle != obstacle {
            self.obstacle = obstacle;
            self.judge_again();
        }
    }

    /// Why nobody announces an address may be another reason now.
    pub(super) fn judge_again(&mut self) {
        self.dirty.services.extend(self.unannounced.keys().cloned());
    }

    /// Nobody announces an address of this Service, or (`false`) somebody announces them all.
    pub(crate) fn set_unannounced(&mut self, key: &Key, is_unannounced: bool, now: Timestamp) {
        if !is_unannounced {
            if let Some(since) = self.unannounced.remove(key) {
                self.graces.remove(&(grace_end(since), key.clone()));
            }
        } else if !self.unannounced.contains_key(key) {
            self.unannounced.insert(key.clone(), now);
            self.graces.insert((grace_end(now), key.clone()));
        }
    }

    /// Whether a Service has had an unannounced address for longer than the grace period.
    pub(crate) fn is_grace_over(&self, key: &Key, now: Timestamp) -> bool {
        self.unannounced.get(key).is_some_and(|since| grace_end(*since) <= now)
    }

    /// When something is to be looked at again that nobody will have changed.
    pub fn alarm(&self) -> Option<Timestamp> {
        let grace = self.graces.first().map(|(until, _)| *until);
        grace.into_iter().chain(self.quarantined.values().copied()).min()
    }

    /// Whatever the time has come for is dirty.
    pub(super) fn fall_due(&mut self, now: Timestamp) {
        while let Some((until, key)) = self.graces.pop_first() {
            if until > now {
                self.graces.insert((until, key));
                break;
            }
            self.dirty.services.insert(key);
        }
        self.dirty
            .addresses
            .extend(self.quarantined.extract_if(.., |_, until| *until <= now).map(|(address, _)| address));
    }
}
