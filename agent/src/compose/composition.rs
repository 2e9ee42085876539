//! What each library is to know, kept up to date: what changed in, snapshots out, at the price of what changed. Pure.
//!
//! A thousand endpoints a second may change in a cluster of 30,000 Services, and none of them waits for all the others to be
//! looked at. What comes out is the same as [`snapshots`](super::snapshots::snapshots) of everything, and shares with what came
//! out before whatever did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{
    Advertisement, Backend, EndpointSlice, Holder, Key, Node, PeerLinks, PoolSettings, Record, Service, TrafficPolicy,
};
use dataplane::reply_path::Return;
use dataplane::snapshot::Terms;
use model::Holdings;
use model::eligibility::{Eligibility, News, Observed};
use observe::Change;
use speaker::Neighbours;

use super::snapshots::{links, own_addresses, pod_ranges, terms};

/// What has changed of all that a node agent observes.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    pub(super) services: Vec<Change<Key, Service>>,
    pub(super) slices: Vec<Change<Key, EndpointSlice>>,
    pub(super) nodes: Vec<Change<String, Node>>,
    pub(super) pools: Vec<Change<String, PoolSettings>>,
    pub(super) advertisements: Vec<Change<String, Advertisement>>,
    pub(super) addresses: Vec<Change<IpAddr, Record>>,
    pub(super) wirings: Vec<Change<String, PeerLinks>>,
}

/// What is composed, and what of.
#[derive(Debug)]
pub(super) struct Composition {
    pools: BTreeMap<String, Arc<PoolSettings>>,
    wirings: BTreeMap<String, Arc<PeerLinks>>,
    /// Which nodes the speaker has met on which link.
    neighbours: Neighbours,
    /// What says who may announce: of Services the load balancers, with their slices; of addresses those in use.
    observed: Observed,
    /// The slices of all other Services, which may become load balancers. Those of one are in order of their keys.
    others: BTreeMap<Key, Vec<Arc<EndpointSlice>>>,
    /// Which addresses each Service holds.
    held: Holdings,
    /// The terms that most Services have.
    usual: Arc<Terms>,
    dataplane: dataplane::Snapshot,
    eligibility: Eligibility,
    speaker: speaker::Snapshot,
}

impl Composition {
    /// Of nothing, for `node`. Services that don't say what their packets go to have this `backend`; packets are counted if it
    /// `counts`.
    pub(super) fn new(node: &str, backend: Backend, counts: bool) -> Self {
        Self {
            pools: BTreeMap::new(),
            wirings: BTreeMap::new(),
            neighbours: Neighbours::default(),
            observed: Observed::default(),
            others: BTreeMap::new(),
            held: Holdings::default(),
            usual: Arc::default(),
            dataplane: dataplane::Snapshot { node: node.to_owned(), backend, counts, ..dataplane::Snapshot::default() },
            eligibility: Eligibility::default(),
            speaker: speaker::Snapshot::default(),
        }
    }

    /// What the dataplane is to know.
    pub(super) fn dataplane(&self) -> &dataplane::Snapshot {
        &self.dataplane
    }

    /// What the speaker is to know.
    pub(super) fn speaker(&self) -> &speaker::Snapshot {
        &self.speaker
    }

    /// These nodes are dead, as the speaker says.
    pub(super) fn bury(&mut self, dead: BTreeSet<String>) {
        self.dataplane.dead = dead;
    }

    /// Answers are led back by these links.
    pub(super) fn lead_back(&mut self, returns: Arc<BTreeSet<Return>>) {
        self.dataplane.returns = returns;
    }

    /// The speaker has met these nodes.
    pub(super) fn meet(&mut self, neighbours: &Neighbours) {
        if self.neighbours != *neighbours {
            self.neighbours.clone_from(neighbours);
            self.link();
        }
    }

    /// Whether everybody was met on this node's links who may be there.
    pub(super) fn is_acquainted(&self) -> bool {
        links(&self.dataplane.node, (&self.observed.nodes, &self.wirings), None) == self.dataplane.links
    }

    /// Takes in what has changed.
    pub(super) fn apply(&mut self, changes: Changes) {
        let Changes { services, slices, nodes, pools, advertisements, addresses, wirings } = changes;
        let of_all = !nodes.is_empty() || !pools.is_empty() || !advertisements.is_empty();
        let links_may_differ = !nodes.is_empty() || !wirings.is_empty();
        let pools_differ = !pools.is_empty();
        for change in pools {
            let labels = change.value.as_ref().map(|pool| Arc::clone(&pool.labels));
            put(&mut self.observed.pools, change.key.clone(), labels);
            put(&mut self.pools, change.key, change.value);
        }
        nodes.into_iter().for_each(|change| put(&mut self.observed.nodes, change.key, change.value));
        advertisements.into_iter().for_each(|change| put(&mut self.observed.advertisements, change.key, change.value));
        wirings.into_iter().for_each(|change| put(&mut self.wirings, change.key, change.value));

        let mut touched = Touched::default();
        addresses.into_iter().for_each(|change| self.take_address(change, &mut touched));
        services.into_iter().for_each(|change| self.take_service(change, &mut touched));
        if pools_differ {
            touched.terms.extend(self.observed.services.keys().cloned());
        }
        self.set_terms(&touched.terms);
        slices.into_iter().for_each(|change| self.take_slice(change, &mut touched));
        self.dataplane.slices = self.observed.slices.clone();

        let node = &self.dataplane.node;
        if links_may_differ {
            let own = self.observed.nodes.get(node);
            self.dataplane.pod_ranges = pod_ranges(own);
            self.dataplane.own = own_addresses(own);
            self.speaker.node_addresses.clone_from(&self.dataplane.own);
            self.link();
        }
        if of_all {
            self.eligibility.update(&self.observed, News::All);
        } else if !touched.announcing.is_empty() {
            self.eligibility.update(&self.observed, News::Of(&touched.announcing));
        }
        self.speaker.addresses = self.eligibility.policies().clone();
    }

    fn link(&mut self) {
        let known = (&self.observed.nodes, &self.wirings);
        self.dataplane.links = links(&self.dataplane.node, known, Some(&self.neighbours));
    }

    fn take_address(&mut self, change: Change<IpAddr, Record>, touched: &mut Touched) {
        let Change { key: address, before, value, .. } = change;
        touched.announcing.insert(address);
        let (before, value) = (before.filter(|record| !record.deleting), value.filter(|record| !record.deleting));
        let [old, new] = [&before, &value].map(|record| record.iter().flat_map(|record| &record.holders));
        self.held.change(address, old.clone(), new.clone());
        touched.terms.extend(old.chain(new).map(Holder::service));
        let Some(record) = value else {
            self.observed.addresses.remove(&address);
            self.dataplane.addresses.remove(&address);
            return;
        };
        if self.dataplane.addresses.get(&address).is_none_or(|holders| **holders != *record.holders) {
            self.dataplane.addresses.insert(address, record.holders.as_slice().into());
        }
        self.observed.addresses.insert(address, record);
    }

    fn take_service(&mut self, change: Change<Key, Service>, touched: &mut Touched) {
        let Change { key, value, .. } = change;
        touched.announcing.extend(self.held.of(&key));
        match value.filter(|service| service.is_load_balancer) {
            Some(service) => {
                if self.observed.services.insert(key.clone(), service).is_none()
                    && let Some(slices) = self.others.remove(&key)
                {
                    self.observed.slices.insert(key.clone(), slices.into());
                }
            }
            None => {
                self.observed.services.remove(&key);
                if let Some(slices) = self.observed.slices.remove(&key) {
                    self.others.insert(key.clone(), slices.to_vec());
                }
            }
        }
        touched.terms.insert(key);
    }

    fn take_slice(&mut self, change: Change<Key, EndpointSlice>, touched: &mut Touched) {
        let Change { key, before, value, .. } = change;
        let place = |slices: &[Arc<EndpointSlice>]| slices.binary_search_by(|slice| slice.key.cmp(&key));
        for service in [&before, &value].into_iter().flatten().map(|slice| &slice.service) {
            let mine = value.as_ref().filter(|slice| slice.service == *service);
            self.change_slices(service, |slices| match (place(slices), mine) {
                (Ok(place), Some(slice)) => slices[place] = Arc::clone(slice),
                (Err(place), Some(slice)) => slices.insert(place, Arc::clone(slice)),
                (Ok(place), None) => drop(slices.remove(place)),
                (Err(_), None) => {}
            });
            let known = self.observed.services.get(service);
            if known.is_some_and(|service| service.traffic_policy == TrafficPolicy::Local) {
                touched.announcing.extend(self.held.of(service));
            }
        }
    }

    fn change_slices(&mut self, service: &Key, change: impl FnOnce(&mut Vec<Arc<EndpointSlice>>)) {
        if self.observed.services.contains_key(service) {
            let mut slices = self.observed.slices.get(service).map(|slices| slices.to_vec()).unwrap_or_default();
            change(&mut slices);
            match slices.is_empty() {
                true => drop(self.observed.slices.remove(service)),
                false => drop(self.observed.slices.insert(service.clone(), slices.into())),
            }
        } else {
            let slices = self.others.entry(service.clone()).or_default();
            change(slices);
            if slices.is_empty() {
                self.others.remove(service);
            }
        }
    }

    /// Says on which terms these Services are forwarded, as far as they are there.
    fn set_terms(&mut self, services: &BTreeSet<Key>) {
        let some_are_unspread = self.pools.values().any(|pool| !pool.spread);
        for key in services {
            let Some(object) = self.observed.services.get(key) else {
                self.dataplane.services.remove(key);
                continue;
            };
            let new = terms(object, object.spread_disabled || some_are_unspread && self.is_in_unspread_pool(key));
            let known = self.dataplane.services.get(key);
            let old = known.map(|known| &known.terms).into_iter().chain([&self.usual]).find(|old| ***old == new);
            let terms = old.cloned().unwrap_or_else(|| Arc::new(new));
            let is_known =
                known.is_some_and(|known| Arc::ptr_eq(&known.object, object) && Arc::ptr_eq(&known.terms, &terms));
            if !is_known {
                let service = dataplane::snapshot::Service { object: Arc::clone(object), terms };
                self.dataplane.services.insert(key.clone(), service);
            }
        }
    }

    /// Whether a Service has an address of a pool that is not to be spread.
    fn is_in_unspread_pool(&self, service: &Key) -> bool {
        let records = self.held.of(service).filter_map(|address| self.observed.addresses.get(&address));
        let mut pools = records.filter_map(|record| self.pools.get(&*record.pool));
        pools.any(|pool| !pool.spread)
    }
}

/// What may have to be said otherwise.
#[derive(Debug, Default)]
struct Touched {
    /// Who may announce these.
    announcing: BTreeSet<IpAddr>,
    /// On which terms these are forwarded.
    terms: BTreeSet<Key>,
}

fn put<V>(map: &mut BTreeMap<String, V>, key: String, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

#[cfg(test)]
mod tests;
