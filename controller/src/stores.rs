//! What is known of the cluster, and how that becomes a snapshot.

use std::net::IpAddr;

use crds::{IPAddressPool, Key, LoadBalancerIP, Node, Record, Service};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::Resource;
use observe::{Source, Store, Wake, source};

use crate::snapshot::{Snapshot, Unreadable};

/// What is known of the cluster.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) pools: Store<String, IPAddressPool>,
    pub(crate) services: Store<Key, Service>,
    pub(crate) addresses: Store<IpAddr, Record>,
    pub(crate) nodes: Store<String, Node>,
}

impl Stores {
    /// Nothing yet. `wake` is woken when that changes.
    pub(crate) fn new(wake: &Wake) -> Self {
        Self {
            pools: Store::new(wake),
            services: Store::new(wake),
            addresses: Store::new(wake),
            nodes: Store::new(wake),
        }
    }

    /// All that is known; `None` as long as something is not known yet.
    pub(crate) fn snapshot(&self, default_class: bool, now: Timestamp) -> Option<Snapshot> {
        Some(Snapshot {
            pools: self.pools.snapshot()?,
            services: self.services.snapshot()?,
            addresses: self.addresses.snapshot()?,
            // Nodes that can't be read are no reason to do or leave anything.
            nodes: self.nodes.snapshot()?,
            unreadable: Unreadable { services: self.services.unreadable()?, addresses: self.addresses.unreadable()? },
            default_class,
            now,
        })
    }

    pub(crate) fn put_pool(&self, pool: &IPAddressPool) {
        put(&self.pools, source::pools(), pool);
    }

    pub(crate) fn put_service(&self, service: &core::Service) {
        put(&self.services, source::services(), service);
    }

    pub(crate) fn put_address(&self, address: &LoadBalancerIP) {
        put(&self.addresses, source::addresses(), address);
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
