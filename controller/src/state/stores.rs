//! What is known of the cluster, and how the ledger gets to know it.

use std::net::IpAddr;

use crds::{
    Advertisement, EndpointSlice, IPAddressPool, Key, LoadBalancerIP, Namespace, Network, Node, Record, Service,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::Resource;
use observe::{Source, Store, Wake, source};

use crate::state::index::Ledger;

/// What is known of the cluster.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) pools: Store<String, IPAddressPool>,
    pub(crate) services: Store<Key, Service>,
    pub(crate) addresses: Store<IpAddr, Record>,
    pub(crate) namespaces: Store<String, Namespace>,
    pub(crate) nodes: Store<String, Node>,
    pub(crate) networks: Store<String, Network>,
    pub(crate) advertisements: Store<String, Advertisement>,
    /// Watched only when somebody wants them: see [`Ledger::wants_slices`].
    pub(crate) slices: Store<Key, EndpointSlice>,
}

impl Stores {
    /// All that is known is that there is nothing: for tests, where no API server is.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        let wake = Wake::default();
        Self {
            pools: Store::from_list(&wake, 1, []),
            services: Store::from_list(&wake, 1, []),
            addresses: Store::from_list(&wake, 1, []),
            namespaces: Store::from_list(&wake, 1, []),
            nodes: Store::from_list(&wake, 1, []),
            networks: Store::from_list(&wake, 1, []),
            advertisements: Store::from_list(&wake, 1, []),
            slices: Store::from_list(&wake, 1, []),
        }
    }

    /// Nothing yet. `wake` is woken when that changes.
    pub(crate) fn new(wake: &Wake) -> Self {
        Self {
            pools: Store::with_changes(wake),
            services: Store::with_changes(wake),
            addresses: Store::with_changes(wake),
            namespaces: Store::with_changes(wake),
            nodes: Store::with_changes(wake),
            networks: Store::with_changes(wake),
            advertisements: Store::with_changes(wake),
            slices: Store::with_changes(wake),
        }
    }

    /// Whether of each kind that bears on who gets which address a whole list was received.
    pub(crate) fn is_synced(&self) -> bool {
        let synced = [
            self.pools.read(|_| ()),
            self.services.read(|_| ()),
            self.addresses.read(|_| ()),
            self.namespaces.read(|_| ()),
            self.nodes.read(|_| ()),
            self.networks.read(|_| ()),
        ];
        synced.iter().all(Option::is_some)
    }

    /// Tells the ledger what has changed since it was told last. `false` as long as something is not known yet: then
    /// nothing is told, because what is missing may still exist. `saw` is told of Services too.
    pub(crate) fn tell(
        &self,
        ledger: &mut Ledger,
        now: Timestamp,
        mut saw: impl FnMut(&Key, Option<&Service>),
    ) -> bool {
        if !self.is_synced() {
            return false;
        }
        for change in self.pools.take_changes().into_iter().flatten() {
            ledger.set_pool(&change.key, change.value);
        }
        // Of these kinds, objects that can't be read are no reason to do or leave anything.
        for change in self.nodes.take_changes().into_iter().flatten() {
            ledger.set_node(&change.key, change.value);
        }
        for change in self.networks.take_changes().into_iter().flatten() {
            ledger.set_network(&change.key, change.value);
        }
        for change in self.namespaces.take_changes().into_iter().flatten() {
            ledger.set_namespace(&change.key, change.value);
        }
        for change in self.advertisements.take_changes().into_iter().flatten() {
            ledger.set_advertisement(&change.key, change.value);
        }
        if let Some(changes) = self.slices.take_changes() {
            ledger.knows_slices();
            for change in changes {
                ledger.set_slice(&change.key, change.value);
            }
        }
        for change in self.services.take_changes().into_iter().flatten() {
            saw(&change.key, change.value.as_deref());
            ledger.set_service(&change.key, change.value, change.is_unreadable);
        }
        for change in self.addresses.take_changes().into_iter().flatten() {
            ledger.set_address(change.key, change.value, change.is_unreadable, now);
        }
        true
    }

    pub(crate) fn put_pool(&self, pool: &IPAddressPool) {
        put(&self.pools, source::pools(), pool);
    }

    pub(crate) fn put_service(&self, service: &core::Service) {
        put(&self.services, source::services(), service);
    }

    pub(crate) fn put_address(&self, address: &LoadBalancerIP) {
        put(&self.addresses, source::records(), address);
    }

    pub(crate) fn forget_address(&self, address: IpAddr, uid: &str) {
        self.addresses.forget(&address, uid);
    }
}

fn put<R, K, V>(store: &Store<K, V>, source: Source<R, K, V>, object: &R)
where
    R: Resource<DynamicType = ()>,
    K: Ord + Clone,
    V: PartialEq,
{
    // What is wrong with an object, the watch says.
    if let Some((observation, _)) = source.observe(object) {
        store.put(observation);
    }
}
