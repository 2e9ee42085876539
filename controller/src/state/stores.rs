//! The watched tables of all kinds, and how their changes reach the index.

use std::net::IpAddr;

use crds::{
    Advertisement, EndpointSlice, IPAddressPool, Key, LoadBalancerIP, Namespace, Node, NodeAddresses, Record, Service,
    ServiceRange,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use observe::{Change, Store, Wake, source};

use crate::state::index::ClusterIndex;

/// The watched tables of all kinds.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) pools: Store<String, IPAddressPool>,
    pub(crate) services: Store<Key, Service>,
    pub(crate) records: Store<IpAddr, Record>,
    pub(crate) namespaces: Store<String, Namespace>,
    pub(crate) nodes: Store<String, Node>,
    pub(crate) networks: Store<String, NodeAddresses>,
    pub(crate) advertisements: Store<String, Advertisement>,
    /// Old API servers do not know this kind, so nothing waits for it.
    pub(crate) service_ranges: Store<String, ServiceRange>,
    /// Watched only on demand: see `ClusterIndex::wants_slices`.
    pub(crate) slices: Store<Key, EndpointSlice>,
}

impl Stores {
    /// Complete and empty tables, for tests without an API server.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        let wake = Wake::default();
        Self {
            pools: Store::from_list(&wake, 1, []),
            services: Store::from_list(&wake, 1, []),
            records: Store::from_list(&wake, 1, []),
            namespaces: Store::from_list(&wake, 1, []),
            nodes: Store::from_list(&wake, 1, []),
            networks: Store::from_list(&wake, 1, []),
            advertisements: Store::from_list(&wake, 1, []),
            service_ranges: Store::from_list(&wake, 1, []),
            slices: Store::from_list(&wake, 1, []),
        }
    }

    /// Tables that are not listed yet. Each change wakes `wake`.
    pub(crate) fn new(wake: &Wake) -> Self {
        Self {
            pools: Store::new(wake),
            services: Store::new(wake),
            records: Store::new(wake),
            namespaces: Store::new(wake),
            nodes: Store::new(wake),
            networks: Store::new(wake),
            advertisements: Store::new(wake),
            service_ranges: Store::new(wake),
            slices: Store::new(wake),
        }
    }

    /// Whether every kind that allocation depends on has been listed completely.
    pub(crate) fn is_synced(&self) -> bool {
        let Self { pools, services, records, namespaces, nodes, networks, .. } = self;
        pools.is_listed()
            && services.is_listed()
            && records.is_listed()
            && namespaces.is_listed()
            && nodes.is_listed()
            && networks.is_listed()
    }

    /// Moves all changes since the last call into the index, and passes each changed Service to `observe`. Until all
    /// kinds have been listed, moves nothing and returns `false`: an object that is missing in the tables may exist.
    pub(crate) fn drain_into(
        &self,
        cluster: &mut ClusterIndex,
        now: Timestamp,
        mut observe: impl FnMut(&Key, Option<&Service>),
    ) -> bool {
        if !self.is_synced() {
            return false;
        }
        drain(&self.pools, |change| cluster.set_pool(&change.key, change.value));
        // An unreadable object of these kinds counts with its last readable state.
        drain(&self.nodes, |change| cluster.set_node(&change.key, change.value));
        drain(&self.networks, |change| cluster.set_network(&change.key, change.value));
        drain(&self.namespaces, |change| cluster.set_namespace(&change.key, change.value));
        drain(&self.advertisements, |change| cluster.set_advertisement(&change.key, change.value));
        drain(&self.service_ranges, |change| cluster.set_service_range(&change.key, change.value));
        if self.slices.is_listed() {
            cluster.mark_slices_known();
            drain(&self.slices, |change| cluster.set_slice(change.before, change.value));
        }
        drain(&self.services, |change| {
            observe(&change.key, change.value.as_deref());
            cluster.set_service(&change.key, change.value, change.is_unreadable);
        });
        drain(&self.records, |change| cluster.set_record(change.key, change.value, change.is_unreadable, now));
        true
    }

    pub(crate) fn put_pool(&self, pool: &IPAddressPool) {
        self.pools.apply_response(source::pools(), pool);
    }

    pub(crate) fn put_service(&self, service: &core::Service) {
        self.services.apply_response(source::services(), service);
    }

    pub(crate) fn put_record(&self, object: &LoadBalancerIP) {
        self.records.apply_response(source::records(), object);
    }
}

fn drain<K: Ord + Clone, V: PartialEq>(store: &Store<K, V>, set: impl FnMut(Change<K, V>)) {
    store.take_changes().into_iter().flatten().for_each(set);
}
