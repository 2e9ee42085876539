//! The watches of the agent, and the stores that they feed.

use std::convert::Infallible;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use kube::{Client, Resource};
use model::cluster::Change;
use observe::{Source, Store, Wake, source};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::config::API_TIMEOUT;

/// The stores of the kinds that the agent watches.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) services: Store<crds::Key, crds::Service>,
    pub(crate) slices: Store<crds::Key, crds::EndpointSlice>,
    pub(crate) nodes: Store<String, crds::Node>,
    pub(crate) pools: Store<String, crds::PoolSettings>,
    pub(crate) advertisements: Store<String, crds::Advertisement>,
    pub(crate) records: Store<IpAddr, crds::Record>,
    /// `None` if this node does not spread frames.
    pub(crate) peer_links: Option<PeerLinkStore>,
}

/// The links of other nodes, from their NodeNetworks.
///
/// The first snapshot waits for the first list. Until then, the kernel keeps spreading frames as before the start of
/// the agent. A snapshot without these links would stop the spreading and break connections. If no list arrives within
/// [`API_TIMEOUT`], for example because the role does not permit it, the first snapshot no longer waits. Then the agent
/// spreads nothing until the list arrives.
#[derive(Clone)]
pub(crate) struct PeerLinkStore {
    pub(crate) store: Store<String, crds::PeerLinks>,
    given_up: Arc<AtomicBool>,
    wake: Wake,
}

impl PeerLinkStore {
    pub(crate) fn new(wake: &Wake) -> Self {
        Self { store: Store::new(wake), given_up: Arc::default(), wake: wake.clone() }
    }

    /// The changes since the last call; `None` while it waits for the first list.
    fn take_changes(&self) -> Option<Vec<observe::Change<String, crds::PeerLinks>>> {
        let nothing = || self.given_up.load(Ordering::Relaxed).then(Vec::new);
        self.store.take_changes().or_else(nothing)
    }

    async fn give_up(self) -> Result<Infallible> {
        tokio::time::sleep(API_TIMEOUT).await;
        self.given_up.store(true, Ordering::Relaxed);
        self.wake.wake();
        std::future::pending().await
    }
}

impl Stores {
    pub(crate) fn new(wake: &Wake) -> Self {
        Self {
            services: Store::new(wake),
            slices: Store::new(wake),
            nodes: Store::new(wake),
            pools: Store::new(wake),
            advertisements: Store::new(wake),
            records: Store::new(wake),
            peer_links: Some(PeerLinkStore::new(wake)),
        }
    }

    pub(crate) fn watch(&self, client: &Client, tasks: &mut JoinSet<Result<Infallible>>) {
        fn spawn<R, K, V>(
            client: &Client,
            source: Source<R, K, V>,
            store: &Store<K, V>,
            tasks: &mut JoinSet<Result<Infallible>>,
        ) where
            R: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
            K: Ord + Clone + Send + Sync + 'static,
            V: PartialEq + Send + Sync + 'static,
        {
            let (client, store) = (client.clone(), store.clone());
            tasks.spawn(async move { Ok(observe::watch(client, source, store).await) });
        }
        spawn(client, source::load_balancers(), &self.services, tasks);
        spawn(client, source::endpoint_slices(), &self.slices, tasks);
        spawn(client, source::nodes(), &self.nodes, tasks);
        spawn(client, source::pool_settings(), &self.pools, tasks);
        spawn(client, source::l2_advertisements(), &self.advertisements, tasks);
        spawn(client, source::records(), &self.records, tasks);
        if let Some(peer_links) = &self.peer_links {
            spawn(client, source::peer_links(), &peer_links.store, tasks);
            tasks.spawn(peer_links.clone().give_up());
        }
    }

    /// The changes since the last call; `None` until every kind has been listed. Each change is returned once, so there
    /// must be only one caller.
    pub(super) fn take_changes(&self) -> Option<impl Iterator<Item = Change> + use<>> {
        let Self { services, slices, nodes, pools, advertisements, records, peer_links } = self;
        let is_listed = services.is_listed()
            && slices.is_listed()
            && nodes.is_listed()
            && pools.is_listed()
            && advertisements.is_listed()
            && records.is_listed();
        // No change is taken before all kinds are listed, because each change that is taken must be applied. A listed
        // kind stays listed.
        if !is_listed {
            return None;
        }
        let peer_links = peer_links.as_ref().map_or(Some(Vec::new()), PeerLinkStore::take_changes)?;
        let slices = slices.take_changes()?.into_iter();
        Some(
            map_changes(services.take_changes()?, Change::Service)
                .chain(slices.map(|change| Change::Slice { before: change.before, after: change.value }))
                .chain(map_changes(records.take_changes()?, Change::Record))
                .chain(map_changes(nodes.take_changes()?, Change::Node))
                .chain(map_changes(pools.take_changes()?, Change::Pool))
                .chain(map_changes(advertisements.take_changes()?, Change::Advertisement))
                .chain(map_changes(peer_links, Change::PeerLinks)),
        )
    }
}

fn map_changes<K, V>(
    changes: Vec<observe::Change<K, V>>,
    to_change: fn(K, Option<Arc<V>>) -> Change,
) -> impl Iterator<Item = Change> {
    changes.into_iter().map(move |change| to_change(change.key, change.value))
}
