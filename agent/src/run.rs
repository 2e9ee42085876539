//! Starts the agent's tasks, and ends them.
//!
//! - Inputs: one watch for each kind of object, one for the Secret, and one for the links of this node.
//! - Work: the composer, the dataplane, the reply paths, the keys, and the speaker.
//! - Outputs: the report, this node's NodeNetwork, the metrics, and the answers to health checks.
//!
//! When one of these tasks ends, [`run`] returns an error and the process ends: an agent that lacks a task is worse
//! than no agent. Kubernetes restarts the agent. The kernel keeps forwarding meanwhile.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dataplane::reply_path;
use kube::Client;
use netlink::watch::watch_links;
use observe::Wake;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::channels::{Channels, assume_forwarded, publish_forwarded};
use crate::compose::{Composer, Composition, Stores};
use crate::config::Config;
use crate::identity::{cluster_uid, incarnation};
use crate::keys::{self, KeySecret};
use crate::metrics::Metrics;
use crate::removal::{DaemonSetState, is_removed, watch_daemon_set};
use crate::report::Reporter;
use crate::{health, network};

/// Time to withdraw the addresses and to detect a removal of Landfall. Kubernetes kills the process after 10 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The agent's tasks. None of them ends by itself, except with an error.
type Tasks = JoinSet<Result<Infallible>>;

/// Runs the agent until `stop` completes. `serve` gets the metrics; the future that it returns is one of the tasks.
///
/// When the agent stops, it removes its tables from the kernel only if Landfall is being removed from the cluster.
/// Otherwise the tables stay, and the kernel keeps forwarding.
///
/// # Errors
/// When one of the agent's tasks ends, and when the kernel's tables can't be removed.
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
    // Two clusters may share a LAN, so the agent sends no Hello before it knows the identifier of its cluster.
    let cluster = tokio::select! {
        cluster = cluster_uid(&client) => cluster,
        stop = &mut stop => return Ok(stop?),
    };
    tracing::info!(node = config.node, cluster, "starting");
    let (forwards, namespace) = (config.forwards, config.keys_namespace.clone());
    let agent = Agent::new(client.clone(), config);
    let mut tasks = Tasks::new();
    let served = serve(agent.metrics());
    tasks.spawn(async move { Ok(served.await) });
    agent.stores.watch(&client, &mut tasks);
    agent.spawn_composer(&mut tasks);
    agent.spawn_dataplane(&mut tasks);
    agent.spawn_keys(&mut tasks);
    agent.spawn_report(&mut tasks);
    agent.spawn_network(&mut tasks);
    let speaker = agent.spawn_speaker(&cluster, &mut tasks);
    let daemon_set_rx = agent.spawn_removal(&mut tasks);
    let wire_counters_rx = agent.channels.wire_counters.subscribe();
    drop(agent);

    tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(panic)) => return Err(panic).context("a task of the agent"),
            Some(Ok(Ok(never))) => match never {},
            None => bail!("invariant: the agent has tasks"),
        },
        stop = stop => stop?,
    }
    // The speaker requests that its peers take over its addresses, so that they need not detect its death first.
    speaker.leave.notify_one();
    let is_removed = timeout(STOP_TIMEOUT, async {
        let _ = speaker.left_rx.await;
        tracing::info!(counters = ?*wire_counters_rx.borrow(), "this node announces no address");
        let daemon_set = *daemon_set_rx.borrow();
        is_removed(&client, &namespace, daemon_set).await
    });
    if is_removed.await.unwrap_or(false) && forwards {
        tasks.shutdown().await;
        dataplane::remove().context("remove the tables of Landfall")?;
        reply_path::remove().context("remove the rules and routes of Landfall")?;
        tracing::info!("Landfall is being removed from the cluster: removed tables, rules and routes");
    }
    Ok(())
}

/// The client, the stores and the channels that the tasks share.
struct Agent {
    client: Client,
    config: Config,
    wake: Wake,
    stores: Stores,
    channels: Channels,
}

/// Stops the speaker, and waits until it has stopped.
struct SpeakerHandle {
    /// A notification makes the speaker withdraw its addresses and end.
    leave: Arc<Notify>,
    /// Completes when the speaker has withdrawn its addresses.
    left_rx: oneshot::Receiver<()>,
}

impl Agent {
    fn new(client: Client, config: Config) -> Self {
        let wake = Wake::default();
        let mut stores = Stores::new(&wake);
        if !config.spreads() {
            stores.peer_links = None;
        }
        Self { client, config, wake, stores, channels: Channels::default() }
    }

    fn metrics(&self) -> Metrics {
        Metrics::new(&self.channels, &self.config)
    }

    fn spawn_composer(&self, tasks: &mut Tasks) {
        let Self { config, channels, .. } = self;
        let composition = Composition::new(&config.node, config.backend, config.count_traffic);
        let composer = Composer::new(self.stores.clone(), composition, channels);
        tasks.spawn(composer.run(self.wake.listener()));
    }

    /// Spawns the dataplane, the reply paths and the answers to health checks. Where another proxy forwards, spawns
    /// [`assume_forwarded`] instead.
    fn spawn_dataplane(&self, tasks: &mut Tasks) {
        let Self { config, channels, .. } = self;
        let snapshot_rx = channels.dataplane_snapshot.subscribe();
        let forwarding_tx = channels.forwarding.clone();
        tasks.spawn(publish_forwarded(channels.forwarding.subscribe(), channels.announceable.clone()));
        if !config.forwards {
            tasks.spawn(assume_forwarded(snapshot_rx, forwarding_tx));
            return;
        }
        let health_rx = snapshot_rx.clone();
        tasks.spawn(async move { health::serve(health_rx).await.context("answer health checks") });
        let counters_tx = channels.kernel_counters.clone();
        tasks.spawn(async move {
            dataplane::run(snapshot_rx, forwarding_tx, counters_tx).await.context("run the dataplane")?;
            bail!("the dataplane has ended")
        });
        let (links_rx, paths_tx) = (channels.reply_links.subscribe(), channels.reply_paths.clone());
        let (gaps_tx, mask) = (channels.reply_gaps.clone(), config.return_mark);
        tasks.spawn(async move {
            reply_path::run(links_rx, paths_tx, gaps_tx, mask).await.context("run the reply paths")?;
            bail!("the reply paths have ended")
        });
    }

    fn spawn_keys(&self, tasks: &mut Tasks) {
        let Self { client, config, channels, .. } = self;
        let secret = KeySecret { client: client.clone(), namespace: config.keys_namespace.clone() };
        let (keys_tx, in_use_tx) = (channels.hello_keys.clone(), channels.keys_in_use.clone());
        tasks.spawn(keys::publish_keys(secret.clone(), channels.secret.subscribe(), keys_tx, in_use_tx));
        let secret_tx = channels.secret.clone();
        tasks.spawn(async move { Ok(keys::watch_secret(secret, secret_tx).await) });
    }

    /// Spawns the watch of the DaemonSet, and returns its states.
    fn spawn_removal(&self, tasks: &mut Tasks) -> watch::Receiver<DaemonSetState> {
        let (state_tx, state_rx) = watch::channel(DaemonSetState::default());
        let (client, namespace) = (self.client.clone(), self.config.keys_namespace.clone());
        tasks.spawn(async move { Ok(watch_daemon_set(client, namespace, state_tx).await) });
        state_rx
    }

    fn spawn_report(&self, tasks: &mut Tasks) {
        let Self { client, config, channels, .. } = self;
        let reporter = Reporter {
            client: client.clone(),
            node: config.node.clone(),
            records: self.stores.records.clone(),
            announcements_rx: channels.announcements.subscribe(),
            conflicts_rx: channels.conflicts.subscribe(),
            forwarding_rx: channels.forwarding.subscribe(),
            gaps_rx: channels.reply_gaps.subscribe(),
        };
        tasks.spawn(reporter.run(self.wake.listener()));
    }

    fn spawn_network(&self, tasks: &mut Tasks) {
        let Self { client, config, channels, .. } = self;
        let links = watch_links(channels.links.clone());
        tasks.spawn(async move { links.await.context("observe the node's links") });
        let (client, node) = (client.clone(), config.node.clone());
        let (links_rx, network_tx) = (channels.links.subscribe(), channels.network.clone());
        let network = network::run(client, node, config.spreads(), links_rx, network_tx);
        tasks.spawn(async move { network.await.context("report the node's network") });
    }

    fn spawn_speaker(&self, cluster: &str, tasks: &mut Tasks) -> SpeakerHandle {
        let channels = &self.channels;
        let config = speaker::Config::new(cluster, &self.config.node, incarnation());
        let inputs = speaker::Inputs {
            snapshot: channels.speaker_snapshot.subscribe(),
            forwarded: channels.announceable.subscribe(),
            links: channels.links.subscribe(),
            keys: channels.hello_keys.subscribe(),
        };
        let outputs = speaker::Outputs {
            announcements: channels.announcements.clone(),
            conflicts: channels.conflicts.clone(),
            counters: channels.wire_counters.clone(),
            dead: channels.dead.clone(),
            neighbours: channels.neighbours.clone(),
        };
        let leave = Arc::new(Notify::new());
        let leaving = Arc::clone(&leave);
        let (left_tx, left_rx) = oneshot::channel();
        tasks.spawn(async move {
            speaker::run(config, inputs, outputs, leaving.notified()).await.context("run the speaker")?;
            // The speaker ends without an error only when the process is stopping.
            let _ = left_tx.send(());
            std::future::pending().await
        });
        SpeakerHandle { leave, left_rx }
    }
}
