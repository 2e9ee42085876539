//! The main loop: wake, move changes into the index, plan, start series.
//!
//! ```text
//! watches (8 tasks) --feed--> stores --wake--> main loop --series--> tasks (at most CONCURRENCY) --answers--> stores
//!                                                |  ^                                               |
//!                                                |  +---------------- done or failed ---------------+
//!                                                +--events--> events::write_events (1 task)
//! election (a thread of its own) --write fence--> main loop, each write
//! ```
//!
//! A ninth task watches EndpointSlices, once a condition needs them.
//!
//! One of several controllers leads: the lease holder. The others only watch, so the next lease holder knows the
//! cluster and the cool-downs from the start. A controller that loses the Lease drops the series in flight, and waits
//! until it leads again. Nothing that this thread does delays a renewal of the Lease.
//!
//! A plan depends only on the observed state, and covers all changes since the last one. Series of different subjects
//! run concurrently, so a slow write delays no other subject. At most one series of a subject is in flight. A planned
//! series that cannot start yet stays in the queue until a newer plan replaces it.
//!
//! A plan usually takes microseconds, and each wake is handled at once. So nothing delays the first write for a new
//! Service. The same holds for a write that follows from an answer: the status of a Service that has just joined a
//! record. If there is much to plan, for example after a change of pools, the loop plans some Services at a time. After
//! [`TURN`], it handles new changes and writes before it plans the others. Only planning that takes longer than
//! [`SHORT_PLAN`] is followed by a pause. New Services come before those that have an address.
//!
//! A shutdown waits briefly for the answers to writes in flight. Dropping the future of [`run`] stops all tasks without
//! waiting. In both cases the next start of a controller recovers unfinished work.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use kube::{Client, Resource};
use observe::{Source, Store, Wake, error_chain, jitter, source, watch};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::apply::applier::{Applier, Progress};
use crate::apply::election::WriteFence;
use crate::apply::election_thread::{ElectionError, ElectionThread};
use crate::apply::events;
use crate::apply::failure::Failure;
use crate::metrics::Metrics;
use crate::metrics::latency::WaitingServices;
use crate::plan::Plan;
use crate::plan::backoff::{AttemptEnd, Backoff, Transition};
use crate::plan::effect::{Event, Series, Subject};
use crate::plan::queue::{DEFERRABLE_CONCURRENCY, DeferredBudget, Queue};
use crate::state::index::{ClusterIndex, Obstacle};
use crate::state::stores::Stores;
use crate::status::reason::EventReason;

/// Maximum number of series in flight: enough to keep an API server busy, and below its limit for the writes of one
/// client.
const CONCURRENCY: usize = 64;

/// The maximum number of Services in one plan. Such a plan takes about a millisecond.
const SERVICES_PER_PLAN: usize = 64;

/// After this time of planning, changes and writes have their turn. With the pause that follows, a new Service waits at
/// most about 25 ms for its plan.
const TURN: Duration = Duration::from_millis(5);

/// No pause follows a plan that takes at most this time, because short plans do not dominate the processor.
const SHORT_PLAN: Duration = Duration::from_millis(1);

/// A longer plan is followed by a pause of this many times its duration, so that planning takes at most a fifth of a
/// core.
const PAUSE_PER_PLAN: u32 = 4;

/// Interval between removals of idle entries of the backoff.
const PRUNE_INTERVAL: Duration = Duration::from_secs(2);

/// How long a stopping controller waits for the answers to its writes.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    /// Whether Services without a class are ours (KEP-1959).
    pub default_class: bool,
    /// The Lease that one of several controllers holds. `None`: there is no other controller.
    pub lease: Option<LeaseConfig>,
    pub metrics: Metrics,
    /// The problem that keeps every node from announcing.
    pub obstacle: channel::Receiver<Option<Obstacle>>,
}

/// Where the Lease is.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    pub namespace: String,
    /// The API server. The election makes connections of its own.
    pub kube_config: kube::Config,
}

/// Why a controller stopped without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task panicked, which is a bug.
    #[error("a task of the controller panicked")]
    Task(#[from] JoinError),
    /// The election cannot start, or it panicked, which is a bug.
    #[error(transparent)]
    Election(#[from] ElectionError),
}

/// Runs the controller until `shutdown` completes.
///
/// # Errors
/// If a task panics, which is a bug, or if the thread of the election cannot start. If the API server is unreachable or
/// refuses requests, the controller retries.
pub async fn run(client: Client, config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let wake = Wake::default();
    let mut listener = wake.listener();
    let stores = Stores::new(&wake);
    let metrics = config.metrics;
    metrics.attach(stores.clone(), config.default_class);
    let (event_tx, event_rx) = mpsc::channel(events::CAPACITY);
    let (fence_tx, mut fence_rx) = channel::channel(config.lease.is_none().then(WriteFence::without_end));
    let mut helpers = JoinSet::new();
    spawn_watches(&mut helpers, &client, &stores);
    helpers.spawn(events::write_events(client.clone(), instance(), event_rx, fence_rx.clone(), metrics.clone()));
    let mut election = match config.lease {
        Some(LeaseConfig { namespace, kube_config }) => {
            let connect = move || Client::try_from(kube_config);
            Some(ElectionThread::start(connect, namespace, instance(), fence_tx.clone())?)
        }
        None => None,
    };
    let mut cluster = ClusterIndex::new(config.default_class);
    let mut obstacle_rx = config.obstacle;
    cluster.set_obstacle(obstacle_rx.borrow_and_update().clone());
    let mut controller = Controller {
        client,
        stores,
        metrics,
        event_tx,
        cluster,
        waiting: WaitingServices::default(),
        watches_slices: false,
        worker: None,
        is_changed: true,
        is_synced: false,
        not_before: Instant::now(),
    };
    controller.set_fence(fence_rx.borrow_and_update().clone());
    let mut shutdown = pin!(shutdown);
    loop {
        controller.plan_if_due(&mut helpers);
        let alarm = controller.start_ready();
        tokio::select! {
            () = &mut shutdown => break,
            () = listener.wait() => controller.is_changed = true,
            ended = next_ended(&mut controller.worker) => controller.end_series(&ended?),
            // The next plan, a delayed series, or a deadline of the index is due.
            () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                controller.is_changed |= controller.cluster.next_deadline().is_some_and(|due| due <= Timestamp::now());
            }
            Ok(()) = fence_rx.changed() => {
                controller.set_fence(fence_rx.borrow_and_update().clone());
                controller.cluster.start_over(Timestamp::now());
                controller.is_changed = true;
            }
            Ok(()) = obstacle_rx.changed() => {
                controller.cluster.set_obstacle(obstacle_rx.borrow_and_update().clone());
                controller.is_changed = true;
            }
            Some(ended) = helpers.join_next() => ended?,
            ended = next_end(&mut election) => ended?,
        }
    }
    if let Some(worker) = controller.worker {
        worker.finish().await;
    }
    // Releases the Lease, so that another controller can lead at once. No write may follow.
    if let Some(election) = election {
        election.resign().await?;
    }
    Ok(())
}

/// The state of the main loop.
struct Controller {
    client: Client,
    stores: Stores,
    metrics: Metrics,
    event_tx: mpsc::Sender<Event>,
    cluster: ClusterIndex,
    waiting: WaitingServices,
    watches_slices: bool,
    /// `None`: this controller does not lead.
    worker: Option<Worker>,
    /// Whether there are changes to plan for.
    is_changed: bool,
    /// Whether these changes are in the index.
    is_synced: bool,
    /// Earliest time of the next plan.
    not_before: Instant,
}

impl Controller {
    /// Replaces the worker when the controller obtains or loses the Lease. The series of the old worker stop.
    fn set_fence(&mut self, fence: Option<WriteFence>) {
        self.metrics.set_leader(fence.is_some());
        self.worker = fence.map(|fence| {
            let (client, stores) = (self.client.clone(), self.stores.clone());
            let (metrics, event_tx) = (self.metrics.clone(), self.event_tx.clone());
            Worker::new(Applier { client, stores, fence, metrics, event_tx })
        });
    }

    /// Moves changes into the index, and plans if this controller leads and the pause after the last plan is over.
    fn plan_if_due(&mut self, helpers: &mut JoinSet<()>) {
        // A controller that does not lead does this too: cool-downs start when a release is observed.
        self.is_synced = self.is_changed && self.drain_stores();
        let Some(worker) = &mut self.worker else {
            if self.is_synced {
                self.cluster.stand_by(Timestamp::now());
            }
            self.is_changed = false;
            return;
        };
        if !self.is_synced || self.not_before > Instant::now() {
            return;
        }
        let started = Instant::now();
        let duration = loop {
            let plan = self.cluster.plan_some(Timestamp::now(), SERVICES_PER_PLAN);
            worker.enqueue(plan, &self.cluster);
            self.is_changed = self.cluster.has_backlog();
            let duration = started.elapsed();
            if !self.is_changed || duration >= TURN {
                break duration;
            }
        };
        self.metrics.observe_plan(duration);
        let pause = if duration > SHORT_PLAN { duration * PAUSE_PER_PLAN } else { Duration::ZERO };
        self.not_before = Instant::now() + pause;
        if self.cluster.wants_slices && !std::mem::replace(&mut self.watches_slices, true) {
            spawn_watch(helpers, &self.client, source::endpoint_slices(), &self.stores.slices);
        }
    }

    /// Moves the changes of the stores into the index. Returns `false` if not all kinds have been listed.
    fn drain_stores(&mut self) -> bool {
        let Self { stores, cluster, waiting, worker, metrics, .. } = self;
        let (default_class, now) = (cluster.default_class, Instant::now().into_std());
        stores.drain_into(cluster, Timestamp::now(), |key, service| {
            let waited = waiting.observe(key, service, default_class, now);
            if let Some(waited) = waited.filter(|_| worker.is_some()) {
                metrics.observe_allocation(waited);
            }
        })
    }

    /// Records the answers to the writes of a series, and emits the event about a refusal.
    fn end_series(&mut self, Ended { series, done, refusal }: &Ended) {
        let event = self.cluster.record_answers(series, *done, refusal.clone(), Timestamp::now());
        if let (Some(event), Some(worker)) = (event, &self.worker) {
            worker.applier.emit_event(&event);
        }
        self.cluster.end_series(&series.subject);
        self.is_changed = true;
    }

    /// Starts series while the limits permit it. Returns the time at which the main loop must continue even without an
    /// event.
    fn start_ready(&mut self) -> Option<Instant> {
        let worker = self.worker.as_mut()?;
        worker.start_ready(&mut self.cluster);
        let next_plan = if self.is_changed {
            self.is_synced.then_some(self.not_before)
        } else {
            self.cluster.next_deadline().map(instant_after)
        };
        next_plan.into_iter().chain(worker.next_deadline()).min()
    }
}

/// Starts the watches of all kinds except EndpointSlices, which are watched on demand.
fn spawn_watches(helpers: &mut JoinSet<()>, client: &Client, stores: &Stores) {
    spawn_watch(helpers, client, source::pools(), &stores.pools);
    spawn_watch(helpers, client, source::services(), &stores.services);
    spawn_watch(helpers, client, source::records(), &stores.records);
    spawn_watch(helpers, client, source::nodes(), &stores.nodes);
    spawn_watch(helpers, client, source::namespaces(), &stores.namespaces);
    spawn_watch(helpers, client, source::node_networks(), &stores.networks);
    spawn_watch(helpers, client, source::l2_advertisements(), &stores.advertisements);
    spawn_watch(helpers, client, source::service_ranges(), &stores.service_ranges);
}

fn spawn_watch<R, K, V>(helpers: &mut JoinSet<()>, client: &Client, source: Source<R, K, V>, store: &Store<K, V>)
where
    R: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Ord + Clone + Send + Sync + 'static,
    V: PartialEq + Send + Sync + 'static,
{
    let (client, store) = (client.clone(), store.clone());
    helpers.spawn(async move { match watch(client, source, store).await {} });
}

/// The instant just after `time`, or just after now if `time` is in the past.
fn instant_after(time: Timestamp) -> Instant {
    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
    Instant::now() + left + Duration::from_millis(1)
}

/// Waits for the end of a series in flight. If there is no worker or no such series, it never returns. Cancel safe.
async fn next_ended(worker: &mut Option<Worker>) -> Result<Ended, JoinError> {
    match worker {
        Some(worker) => worker.next_ended().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of the election. If there is no election, it never returns. Cancel safe.
async fn next_end(election: &mut Option<ElectionThread>) -> Result<(), ElectionError> {
    match election {
        Some(election) => election.wait_for_end().await,
        None => std::future::pending().await,
    }
}

/// The name of this controller among several: the host name, which is the name of the pod.
fn instance() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or(events::CONTROLLER).to_owned()
}

/// A series in flight that has ended.
struct Ended {
    series: Series,
    /// How many of its effects have happened.
    done: usize,
    /// The message of the API server, if it refuses the next effect for a reason that lasts.
    refusal: Option<String>,
}

/// The series of the lease holder: queued, in flight, and delayed after failures.
struct Worker {
    applier: Applier,
    queue: Queue,
    /// The subjects of deferrable series in flight.
    deferrable: BTreeSet<Subject>,
    budget: DeferredBudget,
    tasks: JoinSet<(Series, usize, Result<Progress, Failure>)>,
    backoff: Backoff,
    next_prune: Instant,
}

impl Worker {
    fn new(applier: Applier) -> Self {
        let (queue, deferrable, tasks, backoff) = Default::default();
        let now = Instant::now();
        let (budget, next_prune) = (DeferredBudget::new(now.into_std()), now + PRUNE_INTERVAL);
        Self { applier, queue, deferrable, budget, tasks, backoff, next_prune }
    }

    /// Adds the series of a new plan to the queue, and removes the series that the plan revokes.
    fn enqueue(&mut self, plan: Plan, cluster: &ClusterIndex) {
        plan.revoked.iter().for_each(|subject| drop(self.queue.remove(subject)));
        plan.series.into_iter().for_each(|series| self.queue.push(series));
        let now = Instant::now();
        if self.next_prune <= now {
            self.next_prune = now + PRUNE_INTERVAL;
            let is_pending = |subject: &Subject| self.queue.contains(subject) || cluster.is_busy(subject);
            self.backoff.prune(now.into_std(), is_pending);
        }
    }

    /// Starts series while the limits permit it.
    fn start_ready(&mut self, cluster: &mut ClusterIndex) {
        let now = Instant::now().into_std();
        while self.tasks.len() < CONCURRENCY
            && let Some(series) = self.next_series(now)
        {
            if series.is_deferrable() {
                self.deferrable.insert(series.subject.clone());
            }
            cluster.start_series(&series);
            let applier = self.applier.clone();
            self.tasks.spawn(async move {
                let (done, result) = applier.apply(&series).await;
                (series, done, result)
            });
        }
    }

    /// Removes the next series that may start from the queue.
    fn next_series(&mut self, now: std::time::Instant) -> Option<Series> {
        let Self { queue, budget, backoff, .. } = self;
        budget.pop(queue, now, self.deferrable.len(), |subject| backoff.not_before(subject, now))
    }

    /// When the next delayed or deferrable series may start; `None` if no series waits, or if too many are in flight.
    fn next_deadline(&self) -> Option<Instant> {
        let next_token = (self.queue.has_deferrable() && self.deferrable.len() < DEFERRABLE_CONCURRENCY)
            .then(|| self.budget.next_token(Instant::now().into_std()));
        let next = self.queue.next_deadline().into_iter().chain(next_token).min();
        next.filter(|_| self.tasks.len() < CONCURRENCY).map(Instant::from_std)
    }

    /// Waits for the end of a series in flight, and updates the backoff. If no series is in flight, it never returns.
    /// Cancel safe.
    async fn next_ended(&mut self) -> Result<Ended, JoinError> {
        let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
        let (series, done, result) = ended?;
        let refusal = result.as_ref().err().and_then(Failure::lasting_refusal);
        self.record_end(&series, result);
        Ok(Ended { series, done, refusal })
    }

    /// Updates the backoff, and logs a change.
    fn record_end(&mut self, series: &Series, result: Result<Progress, Failure>) {
        let subject = &series.subject;
        let was_deferrable = self.deferrable.remove(subject);
        let end = match result {
            Ok(Progress::Done) if series.is_report() => AttemptEnd::Report,
            Ok(Progress::Done) => AttemptEnd::Success,
            _ => AttemptEnd::Failure,
        };
        let transition = self.backoff.record_end(subject, end, Instant::now().into_std(), jitter());
        match (result, transition) {
            (Err(failure), _) if failure.is_conflict() => {
                tracing::debug!(%subject, %failure, "a write conflicted; its subject is planned again")
            }
            // An event or a condition states it, and the log contains the event.
            (Err(failure), _) if failure.lasting_refusal().is_some() => {}
            (Err(failure), Transition::Failing) => {
                tracing::warn!(%subject, error = error_chain(&failure), "a write failed; the controller repeats it");
            }
            (Ok(Progress::Done), Transition::Recovered) => {
                tracing::info!(%subject, "writes for this subject succeed again")
            }
            // Repeated deferrable writes only mean that an address moves from node to node.
            (Ok(Progress::Done), Transition::Contested) if !was_deferrable => drop(self.report_contested(subject)),
            _ => {}
        }
    }

    /// Emits an event for a Service to which another client keeps writing.
    fn report_contested(&self, subject: &Subject) -> Option<()> {
        let Subject::Service(key) = subject else { return None };
        let service = self.applier.stores.services.get(key)?;
        let message = "another client keeps changing the status of this Service: look for another load balancer \
                       provider that serves it, or a tool that restores its status";
        self.applier.emit_event(&Event::for_service(
            &service,
            true,
            EventReason::StatusContested.as_str(),
            message.to_owned(),
        ));
        Some(())
    }

    /// Waits briefly for the series in flight.
    async fn finish(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            tracing::warn!("stopping before all writes were answered; the next controller finishes them");
        }
    }
}
