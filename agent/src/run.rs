//! The tasks of the agent, and the channels between them.
//!
//! Tasks: one watch per kind, the composer (wakes on any change and sends new snapshots), the dataplane, the speaker, the
//! report, the keys, the numbers, and two which nothing here waits for: one says what is on the node's network, one answers
//! health checks of load balancers in front. The first that ends ends the process, for a half-alive agent is worse than none:
//! Kubernetes starts it again, and what is in the kernel stays there.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crds::{Backend, LoadBalancerIP};
use dataplane::reply_path::{self, Mask};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use observe::Wake;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::compose::{Composer, Stores, composer};
use crate::keys::{self, Place, Seen};
use crate::metrics::{Channels, Metrics};
use crate::{health, network, report};

/// How long the agent may take to leave; Kubernetes gives it 10 s.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long to wait for the API server to answer before asking again.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// What the agent of a node does.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the node.
    pub node: String,
    /// Whether our own dataplane forwards, with nftables; otherwise another proxy on the node does.
    pub forwards: bool,
    /// Whether an announcing node spreads frames over the nodes with endpoints.
    pub spread: bool,
    /// The backend of Services without the annotation `landfall.dev/backend`.
    pub backend: Backend,
    /// The bits of marks with which replies leave by the link that the request came in by; `None` if they take the node's
    /// routes.
    pub return_mark: Option<Mask>,
    /// Whether packets and bytes are counted for each Service.
    pub count_traffic: bool,
    /// How many Services, each at each of its addresses, have numbers of their own.
    pub service_metrics: usize,
    /// Namespace of the Secret landfall-hello-keys.
    pub keys_namespace: String,
}

/// Runs until SIGTERM. What the kernel forwards stays, unless no address is in use any more.
///
/// `serve` is polled with the metrics from when the cluster is known; `stop` completes when the agent is to end.
///
/// # Errors
/// When one of the agent's tasks ends: the process should be started again.
pub async fn run<S>(
    client: Client,
    config: Config,
    serve: impl FnOnce(Metrics) -> S,
    stop: impl Future<Output = io::Result<()>>,
) -> Result<()>
where
    S: Future<Output = Infallible> + Send + 'static,
{
    tokio::pin!(stop);
    // Which cluster this is must be known before anything is said to other nodes: two clusters may share a LAN.
    let cluster = tokio::select! {
        cluster = identity(&client) => cluster,
        stop = &mut stop => return Ok(stop?),
    };
    tracing::info!(node = config.node, cluster, "starting");

    let wake = Wake::default();
    let mut stores = Stores::new(&wake);
    let spreads = config.spread && config.forwards;
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
        kernel: config.forwards.then_some(programmed),
        cluster: for_dataplane.clone(),
        most_services: config.service_metrics,
        keys: supply,
        known: for_speaker.clone(),
    });

    let mut tasks: JoinSet<Result<Infallible>> = JoinSet::new();
    let served = serve(numbers);
    tasks.spawn(async move { Ok(served.await) });
    stores.watch(&client, &mut tasks);
    let composer = Composer {
        stores: stores.clone(),
        inputs: composer::Inputs { dead: buried, neighbours: met, network, returned },
        outputs: composer::Outputs { dataplane: to_dataplane, speaker: to_speaker, wanted: wished },
    };
    let own = (config.node.clone(), config.backend, config.count_traffic);
    tasks.spawn(composer.run(own, wake.listener()));
    let snapshots = for_dataplane.clone();
    if config.forwards {
        tasks.spawn(async move {
            dataplane::run(for_dataplane, forwarding, done).await.context("forward")?;
            bail!("the dataplane has ended")
        });
        let mask = config.return_mark;
        tasks.spawn(async move {
            reply_path::run(wanted, returns, gaps, mask).await.context("lead answers back")?;
            bail!("what leads answers back has ended")
        });
        tasks.spawn(async move { health::serve(snapshots).await.context("answer health checks") });
    } else {
        tasks.spawn(trust(for_dataplane, forwarding));
    }
    let reported = forwarded.clone();
    tasks.spawn(hand_on(forwarded, may_announce));
    let place = Place { client: client.clone(), namespace: config.keys_namespace.clone() };
    tasks.spawn({
        let place = place.clone();
        async move { Ok(keys::follow::follow(place, seen).await) }
    });
    tasks.spawn(keys::supply::supply(place, keys_seen, keys, supplied));
    let (node, addresses) = (config.node.clone(), stores.addresses.clone());
    let report = report::Report::new(client.clone(), node, addresses, announced, conflicting, reported, astray);
    tasks.spawn(report.run(wake.listener()));
    let network = network::report(client.clone(), config.node.clone(), spreads, found);
    tasks.spawn(async move { network.await.context("tell what is on the node's network") });
    let (left, has_left) = oneshot::channel();
    tasks.spawn({
        let authentication = speaker::Authentication::Required;
        let speaker = speaker::Config::new(&cluster, &config.node, incarnation(), authentication);
        let inputs = speaker::Inputs { snapshot: for_speaker, forwarded: announceable, keys: sealing };
        let outputs = speaker::Outputs { announcements, conflicts, counters, dead, neighbours };
        let leave = Arc::clone(&leave);
        async move {
            speaker::run(speaker, inputs, outputs, leave.notified()).await.context("announce")?;
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
        stop = stop => stop?,
    }
    // The speaker tells its peers, so that they take over at once and not when they miss it.
    leave.notify_one();
    let last = timeout(FAREWELL, async {
        let _ = has_left.await;
        tracing::info!(counters = ?*counted.borrow(), "nothing is announced from here any more");
        is_uninstalled(&client).await
    });
    if last.await.unwrap_or(false) && config.forwards {
        tasks.shutdown().await;
        dataplane::remove().context("remove the table of Landfall")?;
        reply_path::remove().context("remove the rules and routes of Landfall")?;
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
                let error = observe::error_chain(&error);
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
