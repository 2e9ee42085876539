//! `landfall node`: one agent on every node. Watches the API server once, and gives the dataplane and the speaker what
//! concerns them.
//!
//! ```text
//!                 +-> dataplane::Snapshot --> dataplane --> kernel
//!                 |      ^ who is dead            | acknowledged addresses
//!   API server -> |      +--------------------+   |
//!     (observe)   +-> speaker::Snapshot ----> speaker ----> wire
//!                 |                            ^  | what it announces
//!                 +-> Secret ---------- keys --+  |
//!   API server <----------- report <--------------+
//! ```
//!
//! Tasks: one watch per kind, the composer (wakes on any change and sends new snapshots), the dataplane, the speaker, the
//! report, the keys, the numbers, and two which nothing here waits for: one says what is on the node's network, one answers
//! health checks of load balancers in front. The first that ends ends the process, for a half-alive agent is worse than none:
//! Kubernetes starts it again, and what is in the kernel stays there.

mod compose;
mod dry_run;
mod health;
mod metrics;
mod network;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::{self, Debug};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use crds::node_network::NodeNetworkSpec;
use crds::{Backend, LoadBalancerIP};
use dataplane::returns::{self, Mask, Return, Wanted};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use observe::{Source, Store, Wake, source};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::Connection;
use crate::keys::{self, Place, Seen};
use crate::shutdown;
use metrics::{Channels, Metrics};

/// How long the agent may take to leave; Kubernetes gives it 10 s.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long an agent that starts waits for Hellos of those who may be on its links, before it hands frames to the others
/// alone: some intervals of Hellos, and the time that it takes to get the key. The kernel goes on as it was until then.
const ACQUAINTANCE: Duration = Duration::from_secs(1);

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

    /// Whether the node that announces an address hands what comes to it on to the nodes with endpoints, which then see
    /// the client. With `off` it translates all of it itself. The same on all nodes.
    #[arg(long, env = "LANDFALL_SPREAD", value_enum, default_value_t = Switch::On)]
    spread: Switch,

    /// What packets to a Service are sent to that does not say so itself (annotation landfall.dev/backend): its endpoints, or
    /// what the Service proxy of the node serves: its node port, or its ClusterIP. The same on all nodes.
    #[arg(long, env = "LANDFALL_BACKEND", value_parser = backend, default_value_t = Backend::Endpoints)]
    backend: Backend,

    /// Which bits of the marks of packets and connections tell by which link a connection came in, on a node with several
    /// links: 1 to 8 bits side by side, which nothing else on the node uses. Its answers leave by the same link then. With
    /// `off` they take the node's own routes.
    #[arg(long, env = "LANDFALL_RETURN_MARK", default_value_t = ReturnMark::default(), value_name = "MASK|off")]
    return_mark: ReturnMark,

    /// Whether packets and bytes are counted for each Service. That costs every packet that comes to this node a tenth of a
    /// microsecond or two; connections, and what is dropped, are counted in any case.
    #[arg(long, env = "LANDFALL_COUNT_TRAFFIC", value_enum, default_value_t = Switch::On)]
    count_traffic: Switch,

    /// For how many Services, each at each of its addresses, /metrics has numbers of their own: the busiest ones. The others
    /// are summed up. With 0 all are.
    #[arg(long, env = "LANDFALL_SERVICE_METRICS", default_value_t = 1000, value_name = "NUMBER")]
    service_metrics: usize,

    /// Namespace of the Secret landfall-hello-keys, with which what agents say to each other is sealed. Without a key
    /// nothing is announced.
    #[arg(long, env = "LANDFALL_KEYS_NAMESPACE", default_value = "landfall-system", value_name = "NAMESPACE")]
    keys_namespace: String,

    /// Where to answer /metrics (for Prometheus), /healthz and /readyz (for probes), over HTTP without TLS; or off.
    #[arg(long, env = "LANDFALL_METRICS_ADDRESS", default_value = "[::]:9647", value_name = "ADDRESS:PORT|off")]
    metrics_address: crate::metrics::Address,

    /// Print what would be programmed into the kernel of this node, as the cluster is now, and end. Nothing is programmed,
    /// announced or written: it can be run anywhere, for any node.
    #[arg(long)]
    dry_run: bool,
}

/// Reads a backend as users write it.
fn backend(text: &str) -> Result<Backend, String> {
    text.parse()
        .map_err(|_| format!("one of {} is expected", Backend::ALL.map(|backend| backend.to_string()).join(", ")))
}

/// The bits of marks that are used, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReturnMark(Option<Mask>);

impl Default for ReturnMark {
    fn default() -> Self {
        Self(Some(Mask::default()))
    }
}

impl fmt::Display for ReturnMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(mask) => write!(f, "{mask}"),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for ReturnMark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|mask| Self(Some(mask))) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// It does.
    On,
    /// It does not.
    Off,
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
    if options.dry_run {
        return dry_run::run(&client, &options.node_name, options.backend, options.count_traffic == Switch::On).await;
    }
    let stopping = shutdown::requested();
    tokio::pin!(stopping);
    // Which cluster this is must be known before anything is said to other nodes: two clusters may share a LAN.
    let cluster = tokio::select! {
        cluster = identity(&client) => cluster,
        stop = &mut stopping => return Ok(stop?),
    };
    tracing::info!(node = options.node_name, cluster, "starting");

    let wake = Wake::default();
    let mut stores = Stores::new(&wake);
    let spreads = options.spread == Switch::On && options.dataplane == Dataplane::Nft;
    if !spreads {
        stores.wirings = None;
    }
    let (to_dataplane, for_dataplane) = watch::channel(None);
    let (to_speaker, for_speaker) = watch::channel(None);
    let (forwarding, forwarded) = watch::channel(dataplane::Forwarding::default());
    let (may_announce, announceable) = watch::channel(Arc::default());
    let (announcements, announced) = watch::channel(speaker::Announcements::default());
    let (conflicts, conflicting) = watch::channel(speaker::Conflicts::default());
    let (counters, counted) = watch::channel(speaker::Counters::default());
    let (dead, buried) = watch::channel(BTreeSet::new());
    let (neighbours, met) = watch::channel(speaker::Neighbours::default());
    let (found, network) = watch::channel(None);
    let (wished, wanted) = watch::channel(None);
    let (returns, returned) = watch::channel(Arc::default());
    let (gaps, astray) = watch::channel(BTreeSet::new());
    let (keys, sealing) = watch::channel(Arc::default());
    let (seen, keys_seen) = watch::channel(Seen::Unknown);
    let (supplied, supply) = watch::channel(keys::supply::Supply::default());
    let (done, programmed) = watch::channel(dataplane::Counters::default());
    let leave = Arc::new(Notify::new());

    let numbers = Metrics::new(Channels {
        announcements: announced.clone(),
        conflicts: conflicting.clone(),
        dead: buried.clone(),
        wire: counted.clone(),
        forwarding: forwarded.clone(),
        kernel: (options.dataplane == Dataplane::Nft).then_some(programmed),
        cluster: for_dataplane.clone(),
        most_services: options.service_metrics,
        keys: supply,
        known: for_speaker.clone(),
    });

    let mut tasks: JoinSet<Result<Infallible>> = JoinSet::new();
    tasks.spawn(async move { Ok(crate::metrics::serve(options.metrics_address, numbers).await) });
    stores.watch(&client, &mut tasks);
    let composer = Composer {
        stores: stores.clone(),
        node: options.node_name.clone(),
        backend: options.backend,
        counts: options.count_traffic == Switch::On,
        dead: buried,
        neighbours: met,
        patience: None,
        network,
        returned,
        dataplane: to_dataplane,
        speaker: to_speaker,
        wanted: wished,
    };
    tasks.spawn(composer.run(wake.listener()));
    let snapshots = for_dataplane.clone();
    match options.dataplane {
        Dataplane::Nft => tasks.spawn(async move {
            dataplane::run(for_dataplane, forwarding, done).await.context("forward")?;
            bail!("the dataplane has ended")
        }),
        Dataplane::Off => tasks.spawn(trust(for_dataplane, forwarding)),
    };
    if options.dataplane == Dataplane::Nft {
        let ReturnMark(mask) = options.return_mark;
        tasks.spawn(async move {
            returns::run(wanted, returns, gaps, mask).await.context("lead answers back")?;
            bail!("what leads answers back has ended")
        });
        tasks.spawn(async move { health::serve(snapshots).await.context("answer health checks") });
    }
    let reported = forwarded.clone();
    tasks.spawn(hand_on(forwarded, may_announce));
    let place = Place { client: client.clone(), namespace: options.keys_namespace.clone() };
    tasks.spawn({
        let place = place.clone();
        async move { Ok(keys::follow::follow(place, seen).await) }
    });
    tasks.spawn(keys::supply::supply(place, keys_seen, keys, supplied));
    let (node, addresses) = (options.node_name.clone(), stores.addresses.clone());
    let report = report::Report::new(client.clone(), node, addresses, announced, conflicting, reported, astray);
    tasks.spawn(report.run(wake.listener()));
    let network = network::report(client.clone(), options.node_name.clone(), spreads, found);
    tasks.spawn(async move { network.await.context("tell what is on the node's network") });
    let (left, has_left) = oneshot::channel();
    tasks.spawn({
        let authentication = speaker::Authentication::Required;
        let config = speaker::Config::new(&cluster, &options.node_name, incarnation(), authentication);
        let inputs = speaker::Inputs { snapshot: for_speaker, forwarded: announceable, keys: sealing };
        let outputs = speaker::Outputs { announcements, conflicts, counters, dead, neighbours };
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
        returns::remove().context("remove the rules and routes of Landfall")?;
        tracing::info!("no address is in use any more: tables, rules and routes are removed");
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
    pools: Store<String, crds::PoolTerms>,
    advertisements: Store<String, crds::Advertisement>,
    addresses: Store<IpAddr, crds::Record>,
    /// None where frames are not spread.
    wirings: Option<Wirings>,
}

/// Who is on which link, as other agents say. An agent that starts must not take it that nobody is anywhere: its kernel
/// spreads frames since before, and connections would break. But if it is never told (it may lack the right to ask), each
/// node can still forward by itself.
#[derive(Clone)]
struct Wirings {
    store: Store<String, crds::Wiring>,
    given_up: Arc<AtomicBool>,
    wake: Wake,
}

impl Wirings {
    fn new(wake: &Wake) -> Self {
        Self { store: Store::new(wake), given_up: Arc::default(), wake: wake.clone() }
    }

    /// What is known; `None` while it is worth waiting for.
    fn snapshot(&self) -> Option<BTreeMap<String, Arc<crds::Wiring>>> {
        let nothing = || self.given_up.load(Ordering::Relaxed).then(BTreeMap::new);
        self.store.snapshot().or_else(nothing)
    }

    async fn give_up(self) -> Result<Infallible> {
        tokio::time::sleep(ANSWER).await;
        self.given_up.store(true, Ordering::Relaxed);
        self.wake.wake();
        std::future::pending().await
    }
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
            wirings: Some(Wirings::new(wake)),
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
        spawn(client, source::pool_terms(), &self.pools, tasks);
        spawn(client, source::l2_advertisements(), &self.advertisements, tasks);
        spawn(client, source::addresses(), &self.addresses, tasks);
        if let Some(wirings) = &self.wirings {
            spawn(client, source::wirings(), &wirings.store, tasks);
            tasks.spawn(wirings.clone().give_up());
        }
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
            wirings: match &self.wirings {
                Some(wirings) => wirings.snapshot()?,
                None => BTreeMap::new(),
            },
            neighbours: None,
        })
    }
}

/// Sends new snapshots whenever something changed that matters to those who get them.
struct Composer {
    stores: Stores,
    node: String,
    backend: Backend,
    /// Whether packets and bytes are counted.
    counts: bool,
    /// The nodes that the speaker says are dead.
    dead: watch::Receiver<BTreeSet<String>>,
    /// Which nodes it has met on which link.
    neighbours: watch::Receiver<speaker::Neighbours>,
    /// Until when the dataplane waits for that, once all else is known.
    patience: Option<Instant>,
    /// What is on this node's network.
    network: watch::Receiver<Option<NodeNetworkSpec>>,
    /// The links by which answers are led back.
    returned: watch::Receiver<Arc<BTreeSet<Return>>>,
    dataplane: watch::Sender<Option<Arc<dataplane::Snapshot>>>,
    speaker: watch::Sender<Option<Arc<speaker::Snapshot>>>,
    /// The links by which they should be.
    wanted: watch::Sender<Option<Wanted>>,
}

impl Composer {
    async fn run(mut self, mut listener: observe::Listener) -> Result<Infallible> {
        loop {
            let dead = self.dead.borrow_and_update().clone();
            let mut waits = None;
            if let Some(mut observed) = self.stores.observed() {
                observed.neighbours = Some(self.neighbours.borrow_and_update().clone());
                // The kernel spreads frames since before: who will be met in a moment must not be missing meanwhile.
                let patience = *self.patience.get_or_insert_with(|| Instant::now() + ACQUAINTANCE);
                let waiting = Instant::now() < patience && !compose::is_acquainted(&self.node, &observed);
                waits = waiting.then_some(patience);
                let mut new = compose::snapshots(&self.node, self.backend, observed, dead);
                new.dataplane.counts = self.counts;
                new.dataplane.returns = self.returned.borrow_and_update().clone();
                let wanted = self.network.borrow_and_update().as_ref().map(|it| compose::wanted(it, &new.dataplane));
                self.wanted.send_if_modified(|known| std::mem::replace(known, wanted.clone()) != wanted);
                if waits.is_none() {
                    send_if_new(&self.dataplane, new.dataplane);
                }
                send_if_new(&self.speaker, new.speaker);
            }
            // A death waits for nothing else: neither for the API server, nor for all that is known to be looked at.
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = self.dead.changed() => {
                        let dead = self.dead.borrow_and_update().clone();
                        self.dataplane.send_if_modified(|known| bury(known, dead));
                    }
                    Ok(()) = self.neighbours.changed() => break,
                    () = sleep_until(waits.unwrap_or_else(Instant::now)), if waits.is_some() => break,
                    Ok(()) = self.network.changed() => break,
                    Ok(()) = self.returned.changed() => break,
                    () = listener.woken() => break,
                }
            }
        }
    }
}

/// Says in what the dataplane knows who is dead. Returns whether that is news.
fn bury(known: &mut Option<Arc<dataplane::Snapshot>>, dead: BTreeSet<String>) -> bool {
    let Some(before) = known.as_ref().filter(|known| known.dead != dead) else { return false };
    *known = Some(Arc::new(dataplane::Snapshot { dead, ..dataplane::Snapshot::clone(before) }));
    true
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// How long anything may take that takes microseconds, on a machine that does something else.
    const SOON: Duration = Duration::from_secs(30);

    /// Stores that have been listed once, and have one Service without anything.
    fn stores(wake: &Wake) -> Stores {
        let service = serde_json::json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u-web", "resourceVersion": "2"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        });
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(service).expect("a Service");
        let (service, _) = source::services().observe(&service).expect("a Service");
        Stores {
            services: Store::listed(wake, 2, [service]),
            slices: Store::listed(wake, 1, []),
            nodes: Store::listed(wake, 1, []),
            pools: Store::listed(wake, 1, []),
            advertisements: Store::listed(wake, 1, []),
            addresses: Store::listed(wake, 1, []),
            wirings: None,
        }
    }

    #[tokio::test]
    async fn a_death_reaches_the_dataplane_without_a_word_from_the_api_server() {
        let wake = Wake::default();
        let (dead, buried) = watch::channel(BTreeSet::new());
        let (to_dataplane, mut told) = watch::channel(None);
        let (to_speaker, _) = watch::channel(None);
        let (_, network) = watch::channel(None);
        let (_, returned) = watch::channel(Arc::default());
        let (wished, _) = watch::channel(None);
        let composer = Composer {
            stores: stores(&wake),
            node: "n1".into(),
            backend: Backend::Endpoints,
            counts: true,
            dead: buried,
            neighbours: watch::channel(speaker::Neighbours::default()).1,
            patience: None,
            network,
            returned,
            dataplane: to_dataplane,
            speaker: to_speaker,
            wanted: wished,
        };
        let story = async {
            let mut is_told = async |expected: &[&str]| {
                let expected: BTreeSet<String> = expected.iter().map(|node| (*node).to_owned()).collect();
                let said = |known: &Option<Arc<dataplane::Snapshot>>| {
                    known.as_ref().is_some_and(|known| known.dead == expected && known.services.len() == 1)
                };
                timeout(SOON, told.wait_for(said)).await.expect("in time").expect("a snapshot");
            };
            is_told(&[]).await;
            dead.send_replace(BTreeSet::from(["n2".to_owned()]));
            is_told(&["n2"]).await;
            // Who is dead stays so when the API server tells of something else.
            wake.wake();
            dead.send_replace(BTreeSet::from(["n2".to_owned(), "n3".to_owned()]));
            is_told(&["n2", "n3"]).await;
            dead.send_replace(BTreeSet::new());
            is_told(&[]).await;
        };
        tokio::select! {
            ended = composer.run(wake.listener()) => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[tokio::test]
    async fn what_is_on_the_network_is_wished_for_and_what_is_led_back_reaches_the_dataplane() {
        let wake = Wake::default();
        let (_dead, buried) = watch::channel(BTreeSet::new());
        let (found, network) = watch::channel(None);
        let (returns, returned) = watch::channel(Arc::default());
        let (to_dataplane, mut told) = watch::channel(None);
        let (to_speaker, _) = watch::channel(None);
        let (wished, mut wanted) = watch::channel(None);
        let composer = Composer {
            stores: stores(&wake),
            node: "n1".into(),
            backend: Backend::Endpoints,
            counts: true,
            dead: buried,
            neighbours: watch::channel(speaker::Neighbours::default()).1,
            patience: None,
            network,
            returned,
            dataplane: to_dataplane,
            speaker: to_speaker,
            wanted: wished,
        };
        let link = dataplane::snapshot::LinkName::new("eth0").expect("a name");
        let story = async {
            timeout(SOON, told.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot");
            assert_eq!(*wanted.borrow(), None, "nothing is known of the network");
            let eth0 = json!({"links": [{"name": "eth0", "addresses": ["192.0.2.11/24"]}], "gateways": []});
            found.send_replace(Some(serde_json::from_value(eth0).expect("a network")));
            let expected = Wanted { links: [link].into(), families: BTreeSet::new() };
            let is_wished = timeout(SOON, wanted.wait_for(|wanted| wanted.as_ref() == Some(&expected))).await;
            is_wished.expect("in time").expect("a wish");
            let family = crds::service::Family::V4;
            let all = Arc::new(BTreeSet::from([Return { family, link, mark: Mask::default().mark(1) }]));
            returns.send_replace(Arc::clone(&all));
            let knows = |known: &Option<Arc<dataplane::Snapshot>>| known.as_ref().is_some_and(|k| k.returns == all);
            timeout(SOON, told.wait_for(knows)).await.expect("in time").expect("a snapshot");
        };
        tokio::select! {
            ended = composer.run(wake.listener()) => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_dataplane_waits_a_moment_for_those_who_may_be_on_the_link_and_gets_who_was_met() {
        let wake = Wake::default();
        let meta = |name: &str| json!({"name": name, "uid": format!("u-{name}"), "resourceVersion": "1"});
        let wiring = |last: u8| {
            let eth0 = json!({
                "name": "eth0", "addresses": [format!("192.0.2.{last}/24")], "mac": format!("02:00:00:00:00:{last:02x}"),
            });
            let (kind, name) = ("NodeNetwork", format!("n{last}"));
            let object = json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": kind, "metadata": meta(&name), "spec": {"links": [eth0]},
            });
            let object = serde_json::from_value(object).expect("a NodeNetwork");
            source::wirings().observe(&object).expect("a NodeNetwork").0
        };
        let node = |last: u8| {
            let object = json!({"metadata": meta(&format!("n{last}"))});
            source::nodes().observe(&serde_json::from_value(object).expect("a Node")).expect("a Node").0
        };
        let wirings = Wirings { store: Store::listed(&wake, 1, [1, 2, 3].map(wiring)), ..Wirings::new(&wake) };
        let nodes = Store::listed(&wake, 1, [1, 2, 3].map(node));
        let stores = Stores { wirings: Some(wirings), nodes, ..stores(&wake) };
        let (_dead, buried) = watch::channel(BTreeSet::new());
        let (meet, neighbours) = watch::channel(speaker::Neighbours::default());
        let (to_dataplane, mut told) = watch::channel(None);
        let (to_speaker, mut speaks) = watch::channel(None);
        let composer = Composer {
            stores,
            node: "n1".into(),
            backend: Backend::Endpoints,
            counts: true,
            dead: buried,
            neighbours,
            patience: None,
            network: watch::channel(None).1,
            returned: watch::channel(Arc::default()).1,
            dataplane: to_dataplane,
            speaker: to_speaker,
            wanted: watch::channel(None).0,
        };
        let mac = |last: u8| crds::Mac([2, 0, 0, 0, 0, last]);
        let met = |last: u8| {
            meet.send_modify(|met| {
                met.meet("eth0", &format!("n{last}"), mac(last));
            });
        };
        let began = Instant::now();
        let story = async {
            timeout(SOON, speaks.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot");
            met(2);
            let first =
                timeout(SOON, told.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot").clone();
            assert!(began.elapsed() >= ACQUAINTANCE, "one is still missing");
            let peers = |known: &dataplane::Snapshot| {
                known.links.values().flat_map(|link| link.peers.keys().cloned()).collect::<Vec<_>>()
            };
            assert_eq!(first.as_deref().map(peers), Some(vec!["n2".to_owned()]));
            met(3);
            let knows =
                |known: &Option<Arc<dataplane::Snapshot>>| known.as_deref().is_some_and(|k| peers(k).len() == 2);
            timeout(SOON, told.wait_for(knows)).await.expect("in time").expect("a snapshot");
            assert!(began.elapsed() < 2 * ACQUAINTANCE, "it does not wait again");
        };
        tokio::select! {
            ended = composer.run(wake.listener()) => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[test]
    fn the_bits_of_marks_can_be_chosen_or_none() {
        let read = |text: &str| text.parse::<ReturnMark>().map(|mark| mark.to_string());
        assert_eq!(read("off").as_deref(), Ok("off"));
        assert_eq!(read(&ReturnMark::default().to_string()).as_deref(), Ok("0x70"));
        assert!(read("0x5").is_err());
    }

    #[test]
    fn a_death_leaves_all_else_that_the_dataplane_knows_as_it_is() {
        let dead = BTreeSet::from(["n2".to_owned()]);
        let mut known = None;
        assert!(!bury(&mut known, dead.clone()) && known.is_none(), "nothing is known yet");
        let before = dataplane::Snapshot { node: "n1".into(), ..dataplane::Snapshot::default() };
        known = Some(Arc::new(before.clone()));
        assert!(bury(&mut known, dead.clone()));
        assert_eq!(known.as_deref(), Some(&dataplane::Snapshot { dead: dead.clone(), ..before }));
        assert!(!bury(&mut known, dead), "that is no news");
    }
}
