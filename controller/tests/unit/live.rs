//! A controller in a live cluster, for tests: observations, writes and answers are late, lost and reordered at random.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::Key;

use crate::plan::effect::{Effect, Series, Subject};
use crate::snapshot::Snapshot;
use crate::state::index::ClusterIndex;
use crate::world::{World, effect_name};

/// A controller that follows the cluster: it observes changes late and in any order, starts some of the planned series,
/// and loses some answers.
pub(crate) struct Live {
    cluster: ClusterIndex,
    /// The objects as last observed.
    observed: Snapshot,
    queue: Vec<Series>,
    /// The series in flight, each with the number of effects done.
    in_flight: Vec<(Series, usize)>,
    pub(crate) seed: u64,
}

impl Live {
    pub(crate) fn new(seed: u64) -> Self {
        let cluster = ClusterIndex::new(true);
        let observed = Snapshot { namespaces: BTreeMap::new(), ..Snapshot::default() };
        Self { cluster, observed, queue: Vec::new(), in_flight: Vec::new(), seed }
    }

    /// A number below `sides` (SplitMix64).
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (model::stable_hash::mix64(self.seed) % sides as u64) as usize
    }

    /// Observes some changes or all, in random order.
    pub(crate) fn observe(&mut self, world: &World, all: bool) {
        let now = world.snapshot.now;
        let mut objects: Vec<(u8, String)> = Vec::new();
        let truth = &world.snapshot;
        let of_kind = |kind: u8, names: BTreeSet<String>| names.into_iter().map(move |name| (kind, name));
        let names = |a: Vec<String>, b: Vec<String>| -> BTreeSet<String> { a.into_iter().chain(b).collect() };
        let keys = |s: &Snapshot| s.pools.keys().cloned().collect::<Vec<_>>();
        objects.extend(of_kind(0, names(keys(truth), keys(&self.observed))));
        let keys = |s: &Snapshot| s.services.keys().chain(&s.unreadable.services).map(ToString::to_string).collect();
        objects.extend(of_kind(1, names(keys(truth), keys(&self.observed))));
        let keys = |s: &Snapshot| s.records.keys().chain(&s.unreadable.records).map(ToString::to_string).collect();
        objects.extend(of_kind(2, names(keys(truth), keys(&self.observed))));
        objects.extend([(3, "n1".to_owned()), (4, "n1".to_owned())]);
        objects.extend(of_kind(5, truth.namespaces.keys().cloned().collect()));
        while !objects.is_empty() {
            let (kind, name) = objects.swap_remove(self.roll(objects.len()));
            if all || self.roll(3) > 0 {
                self.observe_object(kind, &name, world, now);
            }
        }
    }

    fn observe_object(&mut self, kind: u8, name: &str, world: &World, now: jiff::Timestamp) {
        let (truth, cluster, observed) = (&world.snapshot, &mut self.cluster, &mut self.observed);
        fn follow<K: Ord + Clone, V: PartialEq>(
            from: &BTreeMap<K, Arc<V>>,
            to: &mut BTreeMap<K, Arc<V>>,
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
                if let Some(new) = follow(&truth.pools, &mut observed.pools, &key_name) {
                    cluster.set_pool(name, new);
                }
            }
            1 => {
                let (namespace, name) = name.split_once('/').expect("a key");
                let key = Key::new(namespace, name);
                let is_unreadable = truth.unreadable.services.contains(&key);
                let change = follow(&truth.services, &mut observed.services, &key);
                if change.is_some() || observed.unreadable.services.contains(&key) != is_unreadable {
                    observed.unreadable.services.retain(|other| *other != key);
                    observed.unreadable.services.extend(is_unreadable.then(|| key.clone()));
                    cluster.set_service(&key, truth.services.get(&key).cloned(), is_unreadable);
                }
            }
            2 => {
                let address: IpAddr = name.parse().expect("an address");
                let is_unreadable = truth.unreadable.records.contains(&address);
                let change = follow(&truth.records, &mut observed.records, &address);
                if change.is_some() || observed.unreadable.records.contains(&address) != is_unreadable {
                    observed.unreadable.records.retain(|other| *other != address);
                    observed.unreadable.records.extend(is_unreadable.then_some(address));
                    cluster.set_record(address, truth.records.get(&address).cloned(), is_unreadable, now);
                }
            }
            3 => {
                if let Some(new) = follow(&truth.nodes, &mut observed.nodes, &key_name) {
                    cluster.set_node(name, new);
                }
            }
            4 => {
                if let Some(new) = follow(&truth.networks, &mut observed.networks, &key_name) {
                    cluster.set_network(name, new);
                }
            }
            _ => {
                if let Some(new) = follow(&truth.namespaces, &mut observed.namespaces, &key_name) {
                    cluster.set_namespace(name, new);
                }
            }
        }
    }

    pub(crate) fn plan(&mut self, world: &World) {
        // Some plans decide about few Services, and leave the others in the backlog.
        let limit = [1, 2, 3, usize::MAX][self.roll(4)];
        let plan = self.cluster.plan_some(world.snapshot.now, limit);
        let is_replaced =
            |subject: &Subject| plan.revoked.contains(subject) || plan.series.iter().any(|s| s.subject == *subject);
        self.queue.retain(|series| !is_replaced(&series.subject));
        self.queue.extend(plan.series);
    }

    /// Starts a series, or applies the next effect of one in flight.
    pub(crate) fn act(&mut self, world: &mut World, is_faulty: bool) {
        if !self.queue.is_empty() && (self.in_flight.is_empty() || self.roll(2) == 0) {
            let index = self.roll(self.queue.len());
            let series = self.queue.remove(index);
            let is_same = |(other, _): &(Series, usize)| other.subject == series.subject;
            assert!(!self.in_flight.iter().any(is_same), "two series of {} are in flight", series.subject);
            self.cluster.start_series(&series);
            self.in_flight.push((series, 0));
        } else if !self.in_flight.is_empty() {
            let index = self.roll(self.in_flight.len());
            let (series, done) = &mut self.in_flight[index];
            let (subject, effect) = (series.subject.clone(), series.effects.get(*done).cloned());
            *done += 1;
            // The request may be lost, or the answer with the new object.
            let is_lost = is_faulty && self.roll(6) == 0;
            let is_delivered = !is_lost || self.roll(2) == 0;
            let is_refused = is_faulty && self.roll(6) == 0;
            let happened = is_delivered && !is_refused && effect.as_ref().is_some_and(|effect| world.apply(effect));
            let now = world.snapshot.now;
            if let Some(effect) = effect.filter(|_| !is_lost && !is_refused) {
                if let Some(address) = effect.lb_ip() {
                    self.observe_object(2, &address.to_string(), world, now);
                }
                match effect {
                    Effect::PatchService(patch) | Effect::PatchConditions(patch) | Effect::ReportRefusal(patch) => {
                        self.observe_object(1, &patch.key.to_string(), world, now);
                    }
                    Effect::PatchPool(patch) => self.observe_object(0, &patch.name, world, now),
                    _ => {}
                }
            }
            if is_lost || !happened {
                let (series, tried) = self.in_flight.swap_remove(index);
                let refusal = (is_refused && !is_lost).then(|| "no".to_owned());
                world.events.extend(self.cluster.record_answers(&series, tried - 1, refusal, now));
                self.cluster.end_series(&subject);
            }
        }
    }

    /// Observes all changes, plans, and applies all series. `refuse`: the message with which the API server refuses an
    /// effect. Returns the effects and the events in order.
    pub(crate) fn take_turn(
        &mut self,
        world: &mut World,
        refuse: impl Fn(&Effect) -> Option<&'static str>,
    ) -> Vec<String> {
        self.observe(world, true);
        let now = world.snapshot.now;
        let mut log = Vec::new();
        for series in self.cluster.plan(now).series {
            self.cluster.start_series(&series);
            let (mut done, mut refusal) = (0, None);
            for effect in &series.effects {
                refusal = refuse(effect).map(str::to_owned);
                let outcome = if refusal.is_some() { " (refused)" } else { "" };
                log.push(format!("{}{outcome}", effect_name(effect)));
                if refusal.is_some() || !world.apply(effect) {
                    break;
                }
                done += 1;
            }
            let event = self.cluster.record_answers(&series, done, refusal, now);
            log.extend(event.iter().map(|event| format!("event {}", event.reason)));
            world.events.extend(event);
            self.cluster.end_series(&series.subject);
        }
        log
    }

    /// Continues until nothing is left to do.
    pub(crate) fn settle(&mut self, world: &mut World) {
        for _ in 0..5000 {
            self.observe(world, true);
            self.plan(world);
            if self.queue.is_empty() && self.in_flight.is_empty() && !self.cluster.has_backlog() {
                return;
            }
            self.act(world, false);
        }
        panic!("plans do not end: {:#?}", self.queue);
    }
}
