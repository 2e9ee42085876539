//! Composes snapshots from scratch. The snapshots of the incremental composition must equal them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Advertisement, Backend, EndpointSlice, Holder, Key, Node, PeerLinks, PoolSettings, Record, Service};
use dataplane::snapshot::Slices;
use model::cluster::{Affected, Change, Named};
use model::eligibility::Eligibility;
use model::{Cluster, SharedMap};
use speaker::Neighbours;

use super::super::{Composition, links, node_ips, own_addresses, service_options};

/// The objects of a cluster, by kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub(super) services: BTreeMap<Key, Arc<Service>>,
    pub(super) slices: BTreeMap<Key, Arc<EndpointSlice>>,
    pub(super) nodes: Named<Node>,
    pub(super) pools: Named<PoolSettings>,
    pub(super) advertisements: Named<Advertisement>,
    pub(super) addresses: BTreeMap<IpAddr, Arc<Record>>,
    pub(super) peer_links: Named<PeerLinks>,
    /// The nodes that the speaker has heard on each link; `None` if no speaker runs.
    pub(super) neighbours: Option<Neighbours>,
}

impl Observed {
    /// The changes from `before` to these objects. An object that is the same `Arc` has not changed.
    pub(super) fn changes_since(&self, before: &Self) -> Vec<Change> {
        let services =
            changed_entries(&before.services, &self.services).map(|(key, _, after)| Change::Service(key, after));
        let slices =
            changed_entries(&before.slices, &self.slices).map(|(_, before, after)| Change::Slice { before, after });
        let nodes = changed_entries(&before.nodes, &self.nodes).map(|(name, _, after)| Change::Node(name, after));
        let pools = changed_entries(&before.pools, &self.pools).map(|(name, _, after)| Change::Pool(name, after));
        let ads = changed_entries(&before.advertisements, &self.advertisements);
        let ads = ads.map(|(name, _, after)| Change::Advertisement(name, after));
        let records =
            changed_entries(&before.addresses, &self.addresses).map(|(lb_ip, _, after)| Change::Record(lb_ip, after));
        let peer_links = changed_entries(&before.peer_links, &self.peer_links);
        let peer_links = peer_links.map(|(name, _, after)| Change::PeerLinks(name, after));
        services.chain(slices).chain(nodes).chain(pools).chain(ads).chain(records).chain(peer_links).collect()
    }

    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::default();
        cluster.apply(self.changes_since(&Self::default()));
        cluster
    }

    /// A composition of these objects.
    pub(super) fn composition(&self, node: &str) -> Composition {
        let mut composition = Composition::new(node, Backend::Endpoints, false);
        if let Some(neighbours) = &self.neighbours {
            composition.set_neighbours(neighbours);
        }
        composition.apply(self.changes_since(&Self::default()));
        composition
    }
}

type Changed<K, V> = (K, Option<Arc<V>>, Option<Arc<V>>);

fn changed_entries<K: Ord + Clone, V>(
    before: &BTreeMap<K, Arc<V>>,
    after: &BTreeMap<K, Arc<V>>,
) -> impl Iterator<Item = Changed<K, V>> {
    let keys: BTreeSet<K> = before.keys().chain(after.keys()).cloned().collect();
    keys.into_iter().filter_map(|key| {
        let (before, after) = (before.get(&key).cloned(), after.get(&key).cloned());
        let differs = before.as_ref().map(Arc::as_ptr) != after.as_ref().map(Arc::as_ptr);
        differs.then_some((key, before, after))
    })
}

/// The snapshots for the dataplane and the speaker of `node`, composed kind by kind.
pub(super) fn snapshots(
    node: &str,
    observed: &Observed,
    dead: BTreeSet<String>,
) -> (dataplane::Snapshot, speaker::Snapshot) {
    let links = links(node, &observed.cluster(), observed.neighbours.as_ref());
    let mut eligibility = Eligibility::default();
    eligibility.update(&observed.cluster(), &Affected { nodes: true, ..Affected::default() });
    let Observed { mut services, slices: all, nodes, pools, mut addresses, .. } = observed.clone();
    services.retain(|_, service| service.is_load_balancer);
    let mut slices: BTreeMap<Key, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in all.into_values().filter(|slice| services.contains_key(&slice.service)) {
        slices.entry(slice.service.clone()).or_default().push(slice);
    }
    let slices: SharedMap<Key, Slices> = slices.into_iter().map(|(key, slices)| (key, slices.into())).collect();
    addresses.retain(|_, record| !record.deleting);
    let holders = |record: &Record| -> Arc<[Holder]> { record.holders.clone().into() };
    let unspread = holders_without_spreading(&addresses, &pools);
    let dataplane = dataplane::Snapshot {
        node: node.to_owned(),
        dead,
        lan_links: Arc::default(),
        own_addresses: own_addresses(&node_ips(nodes.get(node)), None),
        node_ips: node_ips(nodes.get(node)),
        backend: Backend::Endpoints,
        addresses: addresses.iter().map(|(address, record)| (*address, holders(record))).collect(),
        links,
        reply_paths: Arc::default(),
        services: services
            .iter()
            .map(|(key, object)| {
                let options = Arc::new(service_options(object, object.spread_disabled || unspread.contains(key)));
                (key.clone(), dataplane::snapshot::Service { object: Arc::clone(object), options })
            })
            .collect(),
        slices: slices.clone(),
        count_traffic: false,
    };
    let node_addresses = node_ips(nodes.get(node));
    (dataplane, speaker::Snapshot { node_addresses, addresses: eligibility.policies().clone() })
}

/// The Services that hold an address of a pool that disables spreading.
fn holders_without_spreading(
    addresses: &BTreeMap<IpAddr, Arc<Record>>,
    pools: &BTreeMap<String, Arc<PoolSettings>>,
) -> BTreeSet<Key> {
    if pools.values().all(|pool| pool.spread) {
        return BTreeSet::new();
    }
    let disables_spreading = |record: &&Arc<Record>| pools.get(&*record.pool).is_some_and(|pool| !pool.spread);
    let holders = addresses.values().filter(disables_spreading).flat_map(|record| &record.holders);
    holders.map(Holder::service).collect()
}
