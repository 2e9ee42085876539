//! Plans again only what has changed: the same as [`ruleset`] of the whole snapshot, at the price of the difference.
//!
//! A cluster of 30,000 Services changes one at a time, and a packet should take the new way within milliseconds. So the
//! last snapshot is kept, parts of the new one that are the same (the same `Arc`; of holders, also equal ones) are passed over, and
//! what is not affected is shared between the rulesets. Whoever compares two of those can do the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{EndpointSlice, Holder, Key};

use crate::ruleset::{Ruleset, lb_ip, ruleset};
use crate::snapshot::{Service, Snapshot};

/// Plans one snapshot after the other.
#[derive(Debug, Default)]
pub struct Planner {
    planned: Option<(Arc<Snapshot>, Arc<Ruleset>)>,
    /// Which addresses each Service holds in the snapshot that was last planned: its `addresses`, turned around.
    held: BTreeMap<Key, BTreeSet<IpAddr>>,
    /// The snapshot before, which nobody needs any more.
    spent: Option<Arc<Snapshot>>,
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
                let ruleset = replanned(ruleset, &before, snapshot, &affected);
                self.spent = Some(before);
                ruleset
            }
            _ => {
                self.held = BTreeMap::new();
                self.affected(&Snapshot::default(), snapshot);
                Arc::new(ruleset(snapshot))
            }
        };
        self.planned = Some((Arc::clone(snapshot), Arc::clone(&ruleset)));
        ruleset
    }

    /// The snapshot that was planned before the last one. To drop it takes longer than to plan where there are many
    /// Services, so whoever waits for the plan should do that later.
    pub fn spent(&mut self) -> Option<Arc<Snapshot>> {
        self.spent.take()
    }

    /// The addresses about which the two snapshots may say different things.
    fn affected(&mut self, before: &Snapshot, after: &Snapshot) -> BTreeSet<IpAddr> {
        let mut affected = BTreeSet::new();
        // Several addresses may share one list of holders, so the same list does not mean the same address.
        let never = |_: &Arc<[Holder]>, _: &Arc<[Holder]>| false;
        let same = |a: &Arc<[Holder]>, b: &Arc<[Holder]>| Arc::ptr_eq(a, b) || a == b;
        differing(&before.addresses, &after.addresses, never, same, |address, before, after| {
            affected.insert(*address);
            for key in before.into_iter().flat_map(|holders| holders.iter()).map(key) {
                let left = self.held.get_mut(&key).is_some_and(|held| held.remove(address) && held.is_empty());
                if left {
                    self.held.remove(&key);
                }
            }
            for key in after.into_iter().flat_map(|holders| holders.iter()).map(key) {
                self.held.entry(key).or_default().insert(*address);
            }
        });
        let held = &self.held;
        let mut touch = |key: &Key| affected.extend(held.get(key).into_iter().flatten());
        differing(&before.services, &after.services, Service::is_same, Service::is_same, |key, _, _| touch(key));
        let same = |a: &Vec<_>, b: &Vec<_>| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b));
        differing(&before.slices, &after.slices, |a, b| !a.is_empty() && same(a, b), same, |key, _, _| touch(key));
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

fn key(holder: &Holder) -> Key {
    Key::new(holder.namespace.clone(), holder.name.clone())
}

/// `before`, which was planned for `known`, with what `snapshot` says of the `affected` addresses.
fn replanned(before: Arc<Ruleset>, known: &Snapshot, snapshot: &Snapshot, affected: &BTreeSet<IpAddr>) -> Arc<Ruleset> {
    let news: Vec<_> = affected
        .iter()
        .map(|address| (*address, lb_ip(snapshot, *address).map(Arc::new)))
        .filter(|(address, new)| before.addresses.get(address) != new.as_ref())
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

/// Walks two maps at once: every key that one of them lacks, or under which they don't have the `same`.
///
/// Comparing long keys is what costs. Values that are `identical` (which must mean that their keys are the same too)
/// spare it.
fn differing<K: Ord, V>(
    left: &BTreeMap<K, V>,
    right: &BTreeMap<K, V>,
    identical: impl Fn(&V, &V) -> bool,
    same: impl Fn(&V, &V) -> bool,
    mut each: impl FnMut(&K, Option<&V>, Option<&V>),
) {
    let (mut left, mut right) = (left.iter(), right.iter());
    let (mut a, mut b) = (left.next(), right.next());
    loop {
        let order = match (a, b) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((_, v)), Some((_, w))) if identical(v, w) => {
                (a, b) = (left.next(), right.next());
                continue;
            }
            (Some((k, _)), Some((l, _))) => k.cmp(l),
        };
        let from_left = if order.is_le() { std::mem::replace(&mut a, left.next()) } else { None };
        let from_right = if order.is_ge() { std::mem::replace(&mut b, right.next()) } else { None };
        match (from_left, from_right) {
            (Some((_, v)), Some((_, w))) if same(v, w) => {}
            (Some((key, _)), _) | (None, Some((key, _))) => {
                each(key, from_left.map(|(_, value)| value), from_right.map(|(_, value)| value));
            }
            (None, None) => return,
        }
    }
}
