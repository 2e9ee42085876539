//! The loop: wake, tell the ledger what changed, plan, apply.
//!
//! ```text
//! watches (7 tasks) --feed--> stores --wake--> the loop --series--> tasks (at most CONCURRENCY) --answers--> stores
//!                                                |  ^                                              |
//!                                                |  +--------------- done, or failed --------------+
//!                                                +--events--> report (1 task)
//! election (2 tasks) --mandate--> the loop, each write
//! ```
//!
//! Of several controllers one leads. The others watch and do nothing else, so that the one that is elected next knows all
//! from the start. One that leads no more drops what is under way, and waits to be elected again.
//!
//! What is to be done follows from what is there, and is looked at again for whatever has changed. Only one series about a
//! subject is under way at a time, so that one slow write holds up nothing else. What a plan has that can't begin yet is
//! kept until a newer plan has something else about the same subject.
//!
//! Plans are about what has changed, so as a rule they take microseconds, and each wake is answered at once: nothing
//! stands between a new Service and its first write, nor between that and what follows from its answer. Only after a plan
//! that took long (as when pools change) there is a pause. Stopping waits a little for the answers to what is under way.
//! Dropping the future stops all tasks; the next start finds out what was left undone.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use observe::{Wake, error_chain, jitter, source, watch};
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::apply::applier::{Applier, Failure, Progress};
use crate::apply::election::{Election, Mandate, elect};
use crate::apply::events as report;
use crate::metrics::Metrics;
use crate::metrics::latency::Waiting;
use crate::plan::Plan;
use crate::plan::backoff::{Notable, Paces};
use crate::plan::deferred_budget::Leisure;
use crate::plan::effect::{Event, Series, Subject, pool_reference, service_reference};
use crate::plan::queue::Queue;
use crate::state::index::Ledger;
use crate::state::index::unannounced::Obstacle;
use crate::state::stores::Stores;
use crate::status::announced::Judge;

/// Series under way at a time: enough to keep an API server busy, and less than its limit for one client's writes.
const CONCURRENCY: usize = 64;

/// Of these so many that only tell how things are.
const TELLING: usize = 8;

/// A plan that takes no longer than this is followed by the next one at once: at that rate planning is not what the
/// processor is busy with.
const BRIEF: Duration = Duration::from_millis(1);

/// After a longer one there is a pause of this many times as long, so that planning takes no more than a fifth of a core.
const PAUSE_PER_PLAN: u32 = 4;

/// How often to forget when subjects may be tried again of which nothing has been heard for long.
const FORGETTING: Duration = Duration::from_secs(2);

/// For how long stopping waits for answers.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a controller is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether Services without a class are ours (KEP-1959).
    pub default_class: bool,
    /// Where the one that leads is elected. `None`: there is no other.
    pub election: Option<Election>,
    /// Where the numbers go.
    pub metrics: Metrics,
    /// Says why no node may announce an address. `None`: that is never said.
    pub judge: Option<Judge>,
    /// What keeps every node from announcing, as long as something does.
    pub obstacle: channel::Receiver<Option<Obstacle>>,
}

impl Default for Config {
    fn default() -> Self {
        let obstacle = channel::channel(None).1;
        Self { default_class: true, election: None, metrics: Metrics::default(), judge: None, obstacle }
    }
}

/// Why a controller stopped, other than being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task broke down, which none should.
    #[error("a task of the controller broke down")]
    Task(#[from] JoinError),
}

/// Gives out addresses until `shutdown` completes.
///
/// # Errors
/// If the controller itself is broken. An API server that can't be reached or refuses is waited for.
pub async fn run(client: Client, config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let wake = Wake::default();
    let mut listener = wake.listener();
    let stores = Stores::new(&wake);
    let metrics = config.metrics;
    metrics.know(stores.clone(), config.default_class);
    let (events, incoming) = mpsc::channel(report::WAITING);
    let mut helpers = JoinSet::new();
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::pools(), stores.pools).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::services(), stores.services).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::records(), stores.addresses).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::nodes(), stores.nodes).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::namespaces(), stores.namespaces).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::node_networks(), stores.networks).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::l2_advertisements(), stores.advertisements).await {} });
    }
    let (office, mut leading) = channel::channel(config.election.is_none().then(Mandate::unlimited));
    helpers.spawn(report::report(client.clone(), instance(), incoming, leading.clone(), metrics.clone()));
    let (resign, resigned) = oneshot::channel();
    let mut elections = JoinSet::new();
    if let Some(election) = config.election {
        elections.spawn(elect(client.clone(), election, instance(), office.clone(), resigned));
    }

    let work = |mandate: Option<Mandate>| {
        metrics.leads(mandate.is_some());
        let (client, stores, metrics, events) = (client.clone(), stores.clone(), metrics.clone(), events.clone());
        Some(Work::new(Applier { client, stores, mandate: mandate?, metrics, events }))
    };
    let mut in_office = work(leading.borrow_and_update().clone());
    let mut ledger = Ledger::new(config.default_class);
    ledger.judge = config.judge;
    let mut obstacle = config.obstacle;
    ledger.set_obstacle(obstacle.borrow_and_update().clone());
    let mut watches_slices = false;
    let mut waiting = Waiting::default();
    let mut shutdown = pin!(shutdown);
    // When there is something new to plan from, and since when the next plan may be made.
    let (mut is_stale, mut not_before) = (true, Instant::now());
    loop {
        // Also while another one leads: what was given up rests from when that was seen.
        let is_known = is_stale && {
            let now = Instant::now().into_std();
            stores.tell(&mut ledger, Timestamp::now(), |key, service| {
                let waited = waiting.saw(key, service, config.default_class, now);
                if let Some(waited) = waited.filter(|_| in_office.is_some()) {
                    metrics.allocated(waited);
                }
            })
        };
        if let Some(work) = &mut in_office
            && is_known
            && not_before <= Instant::now()
        {
            is_stale = false;
            let began = Instant::now();
            work.take(ledger.plan(Timestamp::now()));
            let took = began.elapsed();
            metrics.planned(took);
            not_before = Instant::now() + if took > BRIEF { took * PAUSE_PER_PLAN } else { Duration::ZERO };
            if ledger.wants_slices() && !std::mem::replace(&mut watches_slices, true) {
                let (client, slices) = (client.clone(), stores.slices.clone());
                helpers.spawn(async move { match watch(client, source::endpoint_slices(), slices).await {} });
            }
        } else if in_office.is_none() {
            is_stale = false;
        }
        let due = ledger.alarm().filter(|_| in_office.is_some() && !is_stale).map(in_time);
        let alarm = in_office.as_mut().and_then(|work| {
            work.begin(&mut ledger);
            let planning = (is_stale && is_known).then_some(not_before);
            planning.into_iter().chain(work.alarm()).chain(due).min()
        });
        tokio::select! {
            () = &mut shutdown => break,
            () = listener.wait() => is_stale = true,
            ended = ended(&mut in_office) => {
                ledger.ended(&ended?);
                is_stale = true;
            }
            // Time for the next plan, or for what waits in this one.
            () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                is_stale |= due.is_some_and(|due| due <= Instant::now());
            }
            Ok(()) = leading.changed() => {
                in_office = work(leading.borrow_and_update().clone());
                ledger.start_over(Timestamp::now());
                is_stale = true;
            }
            Ok(()) = obstacle.changed() => {
                ledger.set_obstacle(obstacle.borrow_and_update().clone());
                is_stale = true;
            }
            Some(ended) = helpers.join_next() => ended?,
            Some(ended) = elections.join_next() => ended?,
        }
    }
    if let Some(work) = in_office {
        work.finish().await;
    }
    // After the last write, so that another can have the Lease at once.
    drop(resign);
    while let Some(ended) = elections.join_next().await {
        ended?;
    }
    Ok(())
}

/// When that time comes, a moment later so that it has come.
fn in_time(at: Timestamp) -> Instant {
    let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    Instant::now() + left + Duration::from_millis(1)
}

/// Waits for one series under way to end. Never returns if there is none. Cancel safe.
async fn ended(in_office: &mut Option<Work>) -> Result<Subject, JoinError> {
    match in_office {
        Some(work) => work.ended().await,
        None => std::future::pending().await,
    }
}

/// Who of several controllers reports: the host, which is the pod's name.
fn instance() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or(report::CONTROLLER).to_owned()
}

/// What is to be done, is under way, and waits for another try.
struct Work {
    applier: Applier,
    /// What has not begun.
    queue: Queue,
    under_way: BTreeSet<Subject>,
    /// Those of them that only tell how things are.
    telling: BTreeSet<Subject>,
    leisure: Leisure,
    tasks: JoinSet<(Subject, Result<Progress, Failure>)>,
    paces: Paces,
    /// When to forget something next.
    forgetting: Instant,
}

impl Work {
    fn new(applier: Applier) -> Self {
        let (queue, under_way, telling, tasks, paces) = Default::default();
        let now = Instant::now();
        let (leisure, forgetting) = (Leisure::new(now.into_std()), now + FORGETTING);
        Self { applier, queue, under_way, telling, leisure, tasks, paces, forgetting }
    }

    /// Takes over a new plan.
    fn take(&mut self, plan: Plan) {
        plan.revoked.iter().for_each(|subject| self.queue.revoke(subject));
        plan.series.into_iter().for_each(|series| self.queue.put(series));
        let now = Instant::now();
        if self.forgetting <= now {
            self.forgetting = now + FORGETTING;
            let is_pending = |subject: &Subject| self.queue.contains(subject) || self.under_way.contains(subject);
            self.paces.forget(now.into_std(), is_pending);
        }
    }

    /// Begins as much as there is room for.
    fn begin(&mut self, ledger: &mut Ledger) {
        let now = Instant::now().into_std();
        while self.tasks.len() < CONCURRENCY
            && let may_tell = self.telling.len() < TELLING
            && self.leisure.is_there(now)
            && let Some(series) = self.queue.next(now, may_tell, |subject| self.paces.held_until(subject, now))
        {
            if series.can_wait() {
                self.leisure.spend();
                self.telling.insert(series.subject.clone());
            } else {
                self.leisure.interrupt(now);
            }
            ledger.begins(&series);
            self.under_way.insert(series.subject.clone());
            self.spawn(series);
        }
    }

    fn spawn(&mut self, series: Series) {
        let applier = self.applier.clone();
        self.tasks.spawn(async move {
            let result = applier.apply(&series).await;
            (series.subject, result)
        });
    }

    /// When something that waits for its time may begin, if there is room for it.
    fn alarm(&self) -> Option<Instant> {
        let leisure = (self.queue.waits_for_leisure() && self.telling.len() < TELLING)
            .then(|| self.leisure.next(Instant::now().into_std()));
        let next = self.queue.alarm().into_iter().chain(leisure).min();
        next.filter(|_| self.tasks.len() < CONCURRENCY).map(Instant::from_std)
    }

    /// Waits for one series under way to end, draws the conclusions, and says what it was about. Never returns if there is
    /// none. Cancel safe.
    async fn ended(&mut self) -> Result<Subject, JoinError> {
        let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
        let (subject, result) = ended?;
        self.under_way.remove(&subject);
        let was_told = self.telling.remove(&subject);
        let success = matches!(result, Ok(Progress::Done));
        let notable = self.paces.ended(&subject, success, Instant::now().into_std(), jitter());
        match (result, notable) {
            (Err(failure), _) if failure.is_conflict() => tracing::debug!(%subject, %failure, "planning anew"),
            (Err(failure), Notable::Failing) => {
                tracing::warn!(%subject, error = error_chain(&failure), "trying again until it works");
            }
            (Ok(Progress::Done), Notable::Recovered) => tracing::info!(%subject, "works again"),
            // An address that moves from node to node is nobody's fight.
            (Ok(Progress::Done), Notable::Fight) if !was_told => drop(self.fight(&subject)),
            _ => {}
        }
        Ok(subject)
    }

    /// Tells people that somebody else writes what we write, again and again.
    fn fight(&self, subject: &Subject) -> Option<()> {
        let stores = &self.applier.stores;
        let regarding = match subject {
            Subject::Service(key) => service_reference(key, &stores.services.get(key)?.uid),
            Subject::Pool(name) => pool_reference(&*stores.pools.get(name)?),
            Subject::Address(_) => return None,
        };
        let message = "somebody else writes its status again and again: check for another load balancer provider that \
                       serves it, or a tool that restores it";
        let event = Event { regarding, is_warning: true, reason: "StatusContested", message: message.to_owned() };
        self.applier.tell(&event);
        Some(())
    }

    /// Waits a little for what is under way.
    async fn finish(mut self) {
        self.queue.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FAREWELL, all).await.is_err() {
            tracing::warn!("stopping without the answers to some writes; the next start finds out");
        }
    }
}
