//! Plans again only what has changed: the same as [`ruleset`] of the whole snapshot, at the price of the difference.
//!
//! A cluster of 30,000 Services changes one at a time, and a packet should take the new way within milliseconds. So the
//! last snapshot is kept, what the new one shares with it (pieces of maps, the same `Arc`; of holders, also equal ones) is passed
//! over, and what is not affected is shared between the rulesets. Whoever compares two of those can do the same.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::{EndpointSlice, Key};
use model::Holdings;

use super::plan::{lb_ip, ruleset};
use super::ruleset::Ruleset;
use crate::snapshot::{Slices, Snapshot};

/// Plans one snapshot after the other.
#[derive(Debug, Default)]
pub struct Planner {
    planned: Option<(Arc<Snapshot>, Arc<Ruleset>)>,
    /// Which addresses each Service holds in the snapshot that was last planned: its `addresses`, turned around.
    held: Holdings,
}

impl Planner {
    /// The ruleset for `snapshot`: the same `Arc` as the last time if it says the same.
    pub fn plan(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Ruleset> {
        let ruleset = match self.planned.take() {
            Some((before, ruleset))
                if before.node == snapshot.node
                    && before.pod_ranges == snapshot.pod_ranges
                    && before.counts == snapshot.counts
                    && before.links == snapshot.links
                    && before.own == snapshot.own
                    && before.backend == snapshot.backend
                    && before.returns == snapshot.returns =>
            {
                let affected = self.affected(&before, snapshot);
                replanned(ruleset, &before, snapshot, &affected)
            }
            _ => {
                self.held = Holdings::default();
                self.affected(&Snapshot::default(), snapshot);
                Arc::new(ruleset(snapshot))
            }
        };
        self.planned = Some((Arc::clone(snapshot), Arc::clone(&ruleset)));
        ruleset
    }

    /// The addresses about which the two snapshots may say different things.
    fn affected(&mut self, before: &Snapshot, after: &Snapshot) -> BTreeSet<IpAddr> {
        let mut affected = BTreeSet::new();
        for (address, before, after) in before.addresses.differing(&after.addresses) {
            if before.is_some_and(|before| after.is_some_and(|after| Arc::ptr_eq(before, after) || before == after)) {
                continue;
            }
            affected.insert(*address);
            let [before, after] = [before, after].map(|holders| holders.into_iter().flat_map(|holders| holders.iter()));
            self.held.replace(*address, before, after);
        }
        let mut touch = |key: &Key| affected.extend(self.held.addresses_of(key));
        for (key, before, after) in before.services.differing(&after.services) {
            if !before.is_some_and(|before| after.is_some_and(|after| before.is_same(after))) {
                touch(key);
            }
        }
        let same = |a: &Slices, b: &Slices| a.len() == b.len() && a.iter().zip(&**b).all(|(a, b)| Arc::ptr_eq(a, b));
        for (key, before, after) in before.slices.differing(&after.slices) {
            if !before.is_some_and(|before| after.is_some_and(|after| same(before, after))) {
                touch(key);
            }
        }
        // Who died or came back. Slices that changed too have been touched above.
        let turned: BTreeSet<&str> = before.dead.symmetric_difference(&after.dead).map(String::as_str).collect();
        if !turned.is_empty() {
            let on = |slice: &Arc<EndpointSlice>| {
                slice.endpoints.iter().any(|e| e.node.as_deref().is_some_and(|node| turned.contains(node)))
            };
            after.slices.iter().filter(|(_, slices)| slices.iter().any(on)).for_each(|(key, _)| touch(key));
        }
        affected
    }
}

/// `before`, which was planned for `known`, with what `snapshot` says of the `affected` addresses.
fn replanned(before: Arc<Ruleset>, known: &Snapshot, snapshot: &Snapshot, affected: &BTreeSet<IpAddr>) -> Arc<Ruleset> {
    let news: Vec<_> = affected
        .iter()
        .map(|address| (*address, lb_ip(snapshot, *address)))
        .filter(|(address, new)| before.addresses.get(address).map(|before| &**before) != new.as_ref())
        .collect();
    let (has_news, turned) = (!news.is_empty(), known.dead != snapshot.dead);
    if !has_news && !turned {
        return before;
    }
    let mut ruleset = Ruleset::clone(&before);
    ruleset.astray = turned;
    for (address, new) in news {
        ruleset.set(address, new);
    }
    ruleset.aim(snapshot);
    if has_news || ruleset.wires != before.wires { Arc::new(ruleset) } else { before }
}
