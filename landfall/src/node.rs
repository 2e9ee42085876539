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
mod composer;
mod composition;
mod dry_run;
mod health;
mod metrics;
mod network;
mod report;
mod stores;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::{self, Debug};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use crds::{Backend, LoadBalancerIP};
use dataplane::returns::{self, Mask};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use observe::Wake;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::Connection;
use crate::keys::{self, Place, Seen};
use crate::shutdown;
use composer::Composer;
use metrics::{Channels, Metrics};
use stores::Stores;

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
    /// microsecond or two; new connections, and what is dropped or refused, are counted in any case.
    #[arg(long, env = "LANDFALL_COUNT_TRAFFIC", value_enum, default_value_t = Switch::Off)]
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
        inputs: composer::Inputs { dead: buried, neighbours: met, network, returned },
        outputs: composer::Outputs { dataplane: to_dataplane, speaker: to_speaker, wanted: wished },
    };
    let own = (options.node_name.clone(), options.backend, options.count_traffic == Switch::On);
    tasks.spawn(composer.run(own, wake.listener()));
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

    #[test]
    fn the_bits_of_marks_can_be_chosen_or_none() {
        let read = |text: &str| text.parse::<ReturnMark>().map(|mark| mark.to_string());
        assert_eq!(read("off").as_deref(), Ok("off"));
        assert_eq!(read(&ReturnMark::default().to_string()).as_deref(), Ok("0x70"));
        assert!(read("0x5").is_err());
    }
}
