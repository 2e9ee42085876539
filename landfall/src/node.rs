//! `landfall node`: one agent on every node. Watches the API server once, and gives the dataplane and the speaker what
//! concerns them.
//!
//! ```text
//!                 +-> dataplane::Snapshot --> dataplane --> kernel
//!   API server -> |                               | acknowledged addresses
//!     (observe)   +-> speaker::Snapshot ----> speaker ----> wire
//!                                                 | what it announces
//!   API server <----------- report <--------------+
//! ```
//!
//! Tasks: one watch per kind, the composer (wakes on any change and sends new snapshots), the dataplane, the speaker, the
//! report, and two which nothing here waits for: one says what is on the node's network, one answers health checks of load
//! balancers in front. The first that ends ends the process, for a half-alive agent is worse than none: Kubernetes starts it
//! again, and what is in the kernel stays there.

mod compose;
mod health;
mod network;
mod report;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use crds::LoadBalancerIP;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use observe::{Source, Store, Wake, source};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::Connection;
use crate::shutdown;

/// How long the agent may take to leave; Kubernetes gives it 10 s.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long to wait for the API server to answer before asking again.
const ANSWER: Duration = Duration::from_secs(10);

/// What this node does.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The name of this node, as Kubernetes has it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,

    /// What forwards. With `off` Landfall only announces, and another proxy on the node has to forward.
    #[arg(long, env = "LANDFALL_DATAPLANE", value_enum, default_value_t = Dataplane::Nft)]
    dataplane: Dataplane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dataplane {
    /// Landfall, with nftables.
    Nft,
    /// Somebody else.
    Off,
}

/// Runs until SIGTERM. What the kernel forwards stays, unless no address is in use any more.
pub(crate) async fn run(connection: &Connection, options: Options) -> Result<()> {
    let client = connection.client().await?;
    let stopping = shutdown::requested();
    tokio::pin!(stopping);
    // Which cluster this is must be known before anything is said to other nodes: two clusters may share a LAN.
    let cluster = tokio::select! {
        cluster = identity(&client) => cluster,
        stop = &mut stopping => return Ok(stop?),
    };
    tracing::info!(node = options.node_name, cluster, "starting");

    let wake = Wake::default();
    let stores = Stores::new(&wake);
    let (to_dataplane, for_dataplane) = watch::channel(None);
    let (to_speaker, for_speaker) = watch::channel(None);
    let (forwarding, forwarded) = watch::channel(dataplane::Forwarding::default());
    let (may_announce, announceable) = watch::channel(Arc::default());
    let (announcements, announced) = watch::channel(speaker::Announcements::default());
    let (conflicts, conflicting) = watch::channel(speaker::Conflicts::default());
    let (counters, counted) = watch::channel(speaker::Counters::default());
    let leave = Arc::new(Notify::new());

    let mut tasks: JoinSet<Result<Infallible>> = JoinSet::new();
    stores.watch(&client, &mut tasks);
    tasks.spawn(compose(stores.clone(), options.node_name.clone(), wake.listener(), to_dataplane, to_speaker));
    let snapshots = for_dataplane.clone();
    match options.dataplane {
        Dataplane::Nft => tasks.spawn(async move {
            dataplane::run(for_dataplane, forwarding).await.context("forward")?;
            bail!("the dataplane has ended")
        }),
        Dataplane::Off => tasks.spawn(trust(for_dataplane, forwarding)),
    };
    if options.dataplane == Dataplane::Nft {
        tasks.spawn(async move { health::serve(snapshots).await.context("answer health checks") });
    }
    tasks.spawn(hand_on(forwarded, may_announce));
    let (node, addresses) = (options.node_name.clone(), stores.addresses.clone());
    let report = report::Report::new(client.clone(), node, addresses, announced, conflicting);
    tasks.spawn(report.run(wake.listener()));
    let network = network::report(client.clone(), options.node_name.clone());
    tasks.spawn(async move { network.await.context("tell what is on the node's network") });
    let (left, has_left) = oneshot::channel();
    tasks.spawn({
        let authentication = speaker::Authentication::Off;
        let config = speaker::Config::new(&cluster, &options.node_name, incarnation(), authentication);
        let (_, keys) = watch::channel(Arc::default());
        let inputs = speaker::Inputs { snapshot: for_speaker, forwarded: announceable, keys };
        let (dead, _) = watch::channel(BTreeSet::new());
        let outputs = speaker::Outputs { announcements, conflicts, counters, dead };
        let leave = Arc::clone(&leave);
        async move {
            speaker::run(config, inputs, outputs, leave.notified()).await.context("announce")?;
            // It was told to, so the process is about to end.
            let _ = left.send(());
            std::future::pending().await
        }
    });

    tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(panic)) => return Err(panic).context("a task of the agent"),
            Some(Ok(Ok(never))) => match never {},
            None => bail!("invariant: the agent has tasks"),
        },
        stop = stopping => stop?,
    }
    // The speaker tells its peers, so that they take over at once and not when they miss it.
    leave.notify_one();
    let last = timeout(FAREWELL, async {
        let _ = has_left.await;
        tracing::info!(counters = ?*counted.borrow(), "nothing is announced from here any more");
        is_uninstalled(&client).await
    });
    if last.await.unwrap_or(false) && options.dataplane == Dataplane::Nft {
        tasks.shutdown().await;
        dataplane::remove().context("remove the table of Landfall")?;
        tracing::info!("no address is in use any more: the table is removed");
    }
    Ok(())
}

/// What tells this cluster from others: the UID of a namespace that every cluster has, and keeps. Asked for until it is
/// answered, for without it there is nothing this agent could do.
async fn identity(client: &Client) -> String {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut pause = Duration::from_millis(100);
    loop {
        match timeout(ANSWER, namespaces.get("kube-system")).await {
            Ok(Ok(namespace)) => return namespace.metadata.uid.unwrap_or_default(),
            Ok(Err(error)) => {
                let error = observe::causes(&error);
                tracing::warn!(error, retry_in = ?pause, "the API server does not tell which cluster this is");
            }
            Err(_) => tracing::warn!("the API server does not answer"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Whether no address is in use: then Landfall is being taken off the cluster, and leaves nothing in the kernel. An
/// API server that does not answer says nothing of the kind.
async fn is_uninstalled(client: &Client) -> bool {
    let addresses = Api::<LoadBalancerIP>::all(client.clone()).list(&ListParams::default().limit(1)).await;
    addresses.is_ok_and(|list| list.items.is_empty())
}

/// What the agent watches.
#[derive(Clone)]
struct Stores {
    services: Store<crds::Key, crds::Service>,
    slices: Store<crds::Key, crds::EndpointSlice>,
    nodes: Store<String, crds::Node>,
    pools: Store<String, crds::Labels>,
    advertisements: Store<String, crds::Advertisement>,
    addresses: Store<IpAddr, crds::Record>,
}

impl Stores {
    fn new(wake: &Wake) -> Self {
        Self {
            services: Store::new(wake),
            slices: Store::new(wake),
            nodes: Store::new(wake),
            pools: Store::new(wake),
            advertisements: Store::new(wake),
            addresses: Store::new(wake),
        }
    }

    fn watch(&self, client: &Client, tasks: &mut JoinSet<Result<Infallible>>) {
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
        spawn(client, source::services(), &self.services, tasks);
        spawn(client, source::endpoint_slices(), &self.slices, tasks);
        spawn(client, source::nodes(), &self.nodes, tasks);
        spawn(client, source::pool_labels(), &self.pools, tasks);
        spawn(client, source::l2_advertisements(), &self.advertisements, tasks);
        spawn(client, source::addresses(), &self.addresses, tasks);
    }

    /// All that is known, once everything has been listed.
    fn observed(&self) -> Option<compose::Observed> {
        Some(compose::Observed {
            services: self.services.snapshot()?,
            slices: self.slices.snapshot()?,
            nodes: self.nodes.snapshot()?,
            pools: self.pools.snapshot()?,
            advertisements: self.advertisements.snapshot()?,
            addresses: self.addresses.snapshot()?,
        })
    }
}

/// Sends new snapshots whenever something changed that matters to those who get them.
async fn compose(
    stores: Stores,
    node: String,
    mut listener: observe::Listener,
    dataplane: watch::Sender<Option<Arc<dataplane::Snapshot>>>,
    speaker: watch::Sender<Option<Arc<speaker::Snapshot>>>,
) -> Result<Infallible> {
    loop {
        if let Some(observed) = stores.observed() {
            let new = compose::snapshots(&node, observed);
            send_if_new(&dataplane, new.dataplane);
            send_if_new(&speaker, new.speaker);
        }
        listener.woken().await;
    }
}

fn send_if_new<T: PartialEq>(to: &watch::Sender<Option<Arc<T>>>, new: T) {
    to.send_if_modified(|current| {
        let changed = current.as_deref() != Some(&new);
        if changed {
            *current = Some(Arc::new(new));
        }
        changed
    });
}

/// Tells the speaker which addresses the kernel forwards.
async fn hand_on(
    mut forwarded: watch::Receiver<dataplane::Forwarding>,
    to: watch::Sender<Arc<BTreeSet<IpAddr>>>,
) -> Result<Infallible> {
    loop {
        let addresses = forwarded.borrow_and_update().addresses.clone();
        to.send_if_modified(|current| {
            let changed = **current != addresses;
            if changed {
                *current = Arc::new(addresses);
            }
            changed
        });
        forwarded.changed().await.context("the dataplane is gone")?;
    }
}

/// In place of our own dataplane: takes it that another one forwards every address.
async fn trust(
    mut snapshots: watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    forwarding: watch::Sender<dataplane::Forwarding>,
) -> Result<Infallible> {
    loop {
        let known = snapshots.borrow_and_update().clone();
        let addresses: BTreeSet<_> = known.iter().flat_map(|known| known.addresses.keys().copied()).collect();
        let serving = addresses.clone();
        forwarding.send_replace(dataplane::Forwarding { addresses, serving, ..Default::default() });
        snapshots.changed().await.context("the composer is gone")?;
    }
}

/// A number that no other start of this agent has, as far as chance allows: what peers remember of an earlier one does
/// not count for this one.
fn incarnation() -> u64 {
    // The standard library seeds its hash maps at random; that is randomness enough, and no further dependency.
    RandomState::new().build_hasher().finish()
}
