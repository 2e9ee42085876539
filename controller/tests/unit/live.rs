//! A controller as it lives in a cluster, for tests: between the cluster and its ledger, between its plans and what becomes
//! of them, things are late, lost, and in any order, as dice have it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::Key;

use crate::plan::effect::{Effect, Series, Subject};
use crate::state::index::Ledger;
use crate::state::snapshot::Snapshot;
use crate::world::World;

/// A controller that follows the cluster: it hears of changes late and in any order, begins some of what it planned, and
/// doesn't hear how all of that ended.
pub(crate) struct Live {
    ledger: Ledger,
    /// The cluster as the ledger knows it.
    heard: Snapshot,
    queue: Vec<Series>,
    /// What is under way: of each series what is left of it.
    under_way: Vec<(Series, usize)>,
    pub(crate) dice: u64,
}

impl Live {
    pub(crate) fn new(dice: u64) -> Self {
        let (ledger, heard) = (Ledger::new(true), Snapshot::default());
        Self { ledger, heard, queue: Vec::new(), under_way: Vec::new(), dice }
    }

    /// A number below `sides` (SplitMix64).
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (model::stable_hash::mix64(self.dice) % sides as u64) as usize
    }

    /// Hears of some changes or of all, in some order.
    pub(crate) fn hear(&mut self, world: &World, all: bool) {
        let now = world.snapshot.now;
        let mut news: Vec<(u8, String)> = Vec::new();
        let truth = &world.snapshot;
        let differ = |kind: u8, keys: BTreeSet<String>| keys.into_iter().map(move |key| (kind, key));
        let names = |a: Vec<String>, b: Vec<String>| -> BTreeSet<String> { a.into_iter().chain(b).collect() };
        let of = |s: &Snapshot| s.pools.keys().cloned().collect::<Vec<_>>();
        news.extend(differ(0, names(of(truth), of(&self.heard))));
        let of = |s: &Snapshot| s.services.keys().chain(&s.unreadable.services).map(ToString::to_string).collect();
        news.extend(differ(1, names(of(truth), of(&self.heard))));
        let of = |s: &Snapshot| s.addresses.keys().chain(&s.unreadable.addresses).map(ToString::to_string).collect();
        news.extend(differ(2, names(of(truth), of(&self.heard))));
        news.extend([(3, "n1".to_owned()), (4, "n1".to_owned()), (5, "other".to_owned())]);
        while !news.is_empty() {
            let (kind, name) = news.swap_remove(self.roll(news.len()));
            if all || self.roll(3) > 0 {
                self.hear_of(kind, &name, world, now);
            }
        }
    }

    fn hear_of(&mut self, kind: u8, name: &str, world: &World, now: jiff::Timestamp) {
        let (truth, ledger, heard) = (&world.snapshot, &mut self.ledger, &mut self.heard);
        fn follow<K: Ord + Clone, V: PartialEq>(
            from: &std::collections::BTreeMap<K, Arc<V>>,
            to: &mut std::collections::BTreeMap<K, Arc<V>>,
            key: &K,
        ) -> Option<Option<Arc<V>>> {
            let new = from.get(key).cloned();
            if to.get(key) == new.as_ref() {
                return None;
            }
            match new.clone() {
                Some(value) => drop(to.insert(key.clone(), value)),
                None => drop(to.remove(key)),
            }
            Some(new)
        }
        let key_name = name.to_owned();
        match kind {
            0 => {
                if let Some(new) = follow(&truth.pools, &mut heard.pools, &key_name) {
                    ledger.set_pool(name, new);
                }
            }
            1 => {
                let (namespace, name) = name.split_once('/').expect("a key");
                let key = Key::new(namespace, name);
                let is_unreadable = truth.unreadable.services.contains(&key);
                let news = follow(&truth.services, &mut heard.services, &key);
                if news.is_some() || heard.unreadable.services.contains(&key) != is_unreadable {
                    heard.unreadable.services.retain(|other| *other != key);
                    heard.unreadable.services.extend(is_unreadable.then(|| key.clone()));
                    ledger.set_service(&key, truth.services.get(&key).cloned(), is_unreadable);
                }
            }
            2 => {
                let address: IpAddr = name.parse().expect("an address");
                let is_unreadable = truth.unreadable.addresses.contains(&address);
                let news = follow(&truth.addresses, &mut heard.addresses, &address);
                if news.is_some() || heard.unreadable.addresses.contains(&address) != is_unreadable {
                    heard.unreadable.addresses.retain(|other| *other != address);
                    heard.unreadable.addresses.extend(is_unreadable.then_some(address));
                    ledger.set_address(address, truth.addresses.get(&address).cloned(), is_unreadable, now);
                }
            }
            3 => {
                if let Some(new) = follow(&truth.nodes, &mut heard.nodes, &key_name) {
                    ledger.set_node(name, new);
                }
            }
            4 => {
                if let Some(new) = follow(&truth.networks, &mut heard.networks, &key_name) {
                    ledger.set_network(name, new);
                }
            }
            _ => {
                if let Some(new) = follow(&truth.namespaces, &mut heard.namespaces, &key_name) {
                    ledger.set_namespace(name, new);
                }
            }
        }
    }

    pub(crate) fn plan(&mut self, world: &World) {
        let plan = self.ledger.plan(world.snapshot.now);
        let is_replaced =
            |subject: &Subject| plan.revoked.contains(subject) || plan.series.iter().any(|s| s.subject == *subject);
        self.queue.retain(|series| !is_replaced(&series.subject));
        self.queue.extend(plan.series);
    }

    /// Begins something, or goes on with something that is under way.
    pub(crate) fn act(&mut self, world: &mut World, is_faulty: bool) {
        if !self.queue.is_empty() && (self.under_way.is_empty() || self.roll(2) == 0) {
            let index = self.roll(self.queue.len());
            let series = self.queue.remove(index);
            let is_same = |(other, _): &(Series, usize)| other.subject == series.subject;
            assert!(!self.under_way.iter().any(is_same), "two series are under way about {}", series.subject);
            self.ledger.begins(&series);
            self.under_way.push((series, 0));
        } else if !self.under_way.is_empty() {
            let index = self.roll(self.under_way.len());
            let (series, done) = &mut self.under_way[index];
            let (subject, effect) = (series.subject.clone(), series.effects.get(*done).cloned());
            *done += 1;
            // The request may get lost, and so may the answer, which tells how things are now.
            let is_lost = is_faulty && self.roll(6) == 0;
            let is_delivered = !is_lost || self.roll(2) == 0;
            let happened = is_delivered && effect.as_ref().is_some_and(|effect| world.apply(effect));
            if let Some(effect) = effect.filter(|_| !is_lost) {
                let now = world.snapshot.now;
                if let Some(address) = effect.address() {
                    self.hear_of(2, &address.to_string(), world, now);
                }
                match effect {
                    Effect::PatchService(patch) | Effect::TellService(patch) => {
                        self.hear_of(1, &patch.key.to_string(), world, now);
                    }
                    Effect::PatchPool(patch) => self.hear_of(0, &patch.name, world, now),
                    _ => {}
                }
            }
            if is_lost || !happened {
                self.under_way.swap_remove(index);
                self.ledger.ended(&subject);
            }
        }
    }

    /// Goes on until nothing is left to do.
    pub(crate) fn rest(&mut self, world: &mut World) {
        for _ in 0..5000 {
            self.hear(world, true);
            self.plan(world);
            if self.queue.is_empty() && self.under_way.is_empty() {
                return;
            }
            self.act(world, false);
        }
        panic!("no end of plans: {:#?}", self.queue);
    }
}
