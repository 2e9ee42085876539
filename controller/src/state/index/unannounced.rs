//! Services with an address that no node announces, the objects that can explain it, and the deadlines of the index.

use std::sync::Arc;

use crds::{Advertisement, EndpointSlice, Key};
use jiff::{SignedDuration, Timestamp};
use model::cluster::Change;
use model::eligibility::Diagnosis;

use super::{ClusterIndex, Obstacle};

/// How long an address may be unannounced before the condition reports it. Agents need a fraction of a second; the rest
/// is for agents that are starting or being replaced.
const GRACE: SignedDuration = SignedDuration::from_secs(5);

/// The end of the grace period of an address that is unannounced since this time.
fn grace_end(since: Timestamp) -> Timestamp {
    since.saturating_add(GRACE).unwrap_or(Timestamp::MAX)
}

impl ClusterIndex {
    /// `None`: the advertisement does not exist.
    pub fn set_advertisement(&mut self, name: &str, advertisement: Option<Arc<Advertisement>>) {
        self.objects.apply([Change::Advertisement(name.to_owned(), advertisement)]);
        self.recheck_unannounced();
    }

    /// The state of a slice before and after a change. `None`: the slice does not exist.
    pub fn set_slice(&mut self, before: Option<Arc<EndpointSlice>>, after: Option<Arc<EndpointSlice>>) {
        let services = before.iter().chain(&after).map(|slice| slice.service.clone());
        self.dirty.rechecks.extend(services.filter(|service| self.unannounced.contains_key(service)));
        self.objects.apply([Change::Slice { before, after }]);
    }

    /// From now on, a Service without slices has no endpoints. The caller must set all slices before the next plan.
    pub fn mark_slices_known(&mut self) {
        if !std::mem::replace(&mut self.has_slices, true) {
            self.recheck_unannounced();
        }
    }

    pub fn set_obstacle(&mut self, obstacle: Option<Obstacle>) {
        if self.obstacle != obstacle {
            self.obstacle = obstacle;
            self.recheck_unannounced();
        }
    }

    /// Marks the Services with an unannounced address: the reason may have changed.
    pub(super) fn recheck_unannounced(&mut self) {
        self.diagnosis.take();
        self.dirty.rechecks.extend(self.unannounced.keys().cloned());
    }

    /// The diagnosis of why no node may announce an address. It is prepared once for all Services, and again when
    /// nodes, pools or advertisements have changed.
    pub(crate) fn diagnosis(&self) -> &Diagnosis {
        self.diagnosis.get_or_init(|| Diagnosis::new(&self.objects))
    }

    /// Sets whether this Service has an address that no node announces.
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

    /// When the next deadline makes a key dirty.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let grace = self.graces.first().map(|(until, _)| *until);
        grace.into_iter().chain(self.next_namespace_deadline()).chain(self.quarantined.values().copied()).min()
    }

    /// Marks the keys whose deadline has passed.
    pub(crate) fn mark_due(&mut self, now: Timestamp) {
        while let Some((until, key)) = self.graces.pop_first() {
            if until > now {
                self.graces.insert((until, key));
                break;
            }
            self.dirty.rechecks.insert(key);
        }
        let ended = self.quarantined.extract_if(.., |_, until| *until <= now).map(|(lb_ip, _)| lb_ip);
        self.dirty.records.extend(ended);
        self.end_namespace_waits(now);
    }
}
