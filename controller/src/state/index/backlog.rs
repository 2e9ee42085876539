//! The order in which dirty Services are planned, if there are more than one plan may decide about.
//!
//! A plan of all Services can take long, and new Services would wait for its end. So a plan decides about a limited
//! number of Services, and leaves the others dirty. For them it is as if their changes were observed later: their
//! promises and their earlier series stay.

use std::collections::BTreeSet;

use crds::Key;

use super::{ClusterIndex, Precedence};
use crate::allocate::request::{Rank, address_request};
use crate::plan::effect::Subject;

impl ClusterIndex {
    /// Whether the last plan has left dirty Services that another plan can decide about at once.
    pub fn has_backlog(&self) -> bool {
        !self.dirty.backlog.is_empty()
    }

    /// Takes at most `limit` dirty Services that are not busy.
    pub(crate) fn take_dirty_keys(&mut self, limit: usize) -> BTreeSet<Key> {
        let mut keys = std::mem::take(&mut self.dirty.services);
        let mut rechecks = std::mem::take(&mut self.dirty.rechecks);
        if std::mem::take(&mut self.dirty.all) {
            // Services with outdated conditions are among the unsettled ones.
            rechecks.clear();
            keys.retain(|key| !self.objects.services().contains_key(key));
            keys.extend(self.unsettled_services().cloned());
        }
        if !self.has_backlog() && keys.len() + rechecks.len() <= limit {
            keys.append(&mut rechecks);
            return keys;
        }
        self.defer(keys);
        self.dirty.backlog.extend(rechecks.into_iter().map(|key| (Precedence::Recheck, key)));
        let mut first = BTreeSet::new();
        while first.len() < limit
            && let Some((_, key)) = self.dirty.backlog.pop_first()
        {
            if self.is_busy(&Subject::Service(key.clone())) {
                self.dirty.services.insert(key);
            } else {
                first.insert(key);
            }
        }
        first
    }

    /// Leaves dirty Services for the next plan.
    pub(crate) fn defer(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            let precedence = self.precedence(&key);
            self.dirty.backlog.insert((precedence, key));
        }
    }

    fn precedence(&self, key: &Key) -> Precedence {
        let service = self.objects.services().get(key).filter(|service| self.may_hold_addresses(service));
        let Some(service) = service.filter(|_| !self.unreadable.services.contains(key)) else {
            return Precedence::Released;
        };
        let rank = || address_request(service).map_or(Rank::Any, |request| request.rank());
        if self.shows_free_address(service) {
            return Precedence::Adopting(rank(), service.created);
        }
        if self.objects.addresses_of(key).next().is_some() {
            return Precedence::Holder;
        }
        Precedence::New(rank(), service.created)
    }
}
