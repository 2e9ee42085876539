//! The loop: wake, take a snapshot, plan, apply.
//!
//! ```text
//! watches (4 tasks) --feed--> stores --wake--> the loop --series--> tasks (at most CONCURRENCY) --answers--> stores
//!                                                |  ^                                              |
//!                                                |  +--------------- done, or failed --------------+
//!                                                +--events--> report (1 task)
//! election (2 tasks) --mandate--> the loop, each write
//! ```
//!
//! Of several controllers one leads. The others watch and do nothing else, so that the one that is elected next knows all
//! from the start. One that leads no more drops what is under way, and waits to be elected again.
//!
//! Level-triggered: a wake says nothing but "look again", and what is to be done follows from what is there. Only one
//! series about a subject is under way at a time, so that one slow write holds up nothing else. The addresses of those
//! under way count as taken. What a plan has that can't begin yet is kept until the next plan replaces it.
//!
//! The first wake after some quiet is answered at once; in a burst, plans come with pauses between them. Stopping waits
//! a little for the answers to what is under way. Dropping the future stops all tasks; the next start finds out what was
//! left undone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::time::Duration;

use crds::Record;
use jiff::Timestamp;
use kube::Client;
use observe::{Wake, causes, jitter, source, watch};
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::apply::{Applier, Failure, Progress};
use crate::effect::{Effect, Series, Subject};
use crate::election::{Election, Mandate, elect};
use crate::pace::{Notable, Paces};
use crate::plan::plan;
use crate::report;
use crate::snapshot::Snapshot;
use crate::stores::Stores;

/// Series under way at a time: enough to keep an API server busy, and less than its limit for one client's writes.
const CONCURRENCY: usize = 64;

/// The shortest pause between two plans.
const PAUSE: Duration = Duration::from_millis(20);

/// A pause is this many times as long as the plan took, so that planning takes no more than a fifth of a core.
const PAUSE_PER_PLAN: u32 = 4;

/// For how long stopping waits for answers.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a controller is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether Services without a class are ours (KEP-1959).
    pub default_class: bool,
    /// Where the one that leads is elected. `None`: there is no other.
    pub election: Option<Election>,
}

impl Default for Config {
    fn default() -> Self {
        Self { default_class: true, election: None }
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
        helpers.spawn(async move { match watch(client, source::addresses(), stores.addresses).await {} });
    }
    {
        let client = client.clone();
        let stores = stores.clone();
        helpers.spawn(async move { match watch(client, source::nodes(), stores.nodes).await {} });
    }
    let (office, mut leading) = channel::channel(config.election.is_none().then(Mandate::unlimited));
    helpers.spawn(report::report(client.clone(), instance(), incoming, leading.clone()));
    let (resign, resigned) = oneshot::channel();
    let mut elections = JoinSet::new();
    if let Some(election) = config.election {
        elections.spawn(elect(client.clone(), election, instance(), office.clone(), resigned));
    }

    let work = |mandate| {
        Work::new(Applier { client: client.clone(), stores: stores.clone(), events: events.clone(), mandate })
    };
    let mut in_office = leading.borrow_and_update().clone().map(work);
    let mut shutdown = pin!(shutdown);
    // When there is something new to plan from, and since when the next plan may be made.
    let (mut is_stale, mut not_before) = (true, Instant::now());
    loop {
        if let Some(work) = &mut in_office
            && is_stale
            && not_before <= Instant::now()
        {
            is_stale = false;
            let began = Instant::now();
            if let Some(mut snapshot) = stores.snapshot(config.default_class, Timestamp::now()) {
                work.claim(&mut snapshot);
                work.replace(plan(&snapshot).series);
            }
            not_before = Instant::now() + PAUSE.max(began.elapsed() * PAUSE_PER_PLAN);
        }
        let alarm = in_office.as_mut().and_then(|work| {
            work.begin();
            is_stale.then_some(not_before).or(work.alarm)
        });
        tokio::select! {
            () = &mut shutdown => break,
            () = listener.woken() => is_stale = true,
            ended = ended(&mut in_office) => {
                ended?;
                is_stale = true;
            }
            // Time for the next plan, or for what waits in this one.
            () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
            Ok(()) = leading.changed() => {
                in_office = leading.borrow_and_update().clone().map(work);
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

/// Waits for one series under way to end. Never returns if there is none. Cancel safe.
async fn ended(in_office: &mut Option<Work>) -> Result<(), JoinError> {
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
    /// Of the newest plan, what has not begun.
    waiting: VecDeque<Series>,
    /// What is under way: subject by subject, the addresses that are being taken.
    under_way: BTreeMap<Subject, Vec<Record>>,
    tasks: JoinSet<(Subject, Result<Progress, Failure>)>,
    paces: Paces,
    /// When something that waits for its time may begin.
    alarm: Option<Instant>,
}

impl Work {
    fn new(applier: Applier) -> Self {
        let (waiting, under_way, tasks, paces, alarm) = Default::default();
        Self { applier, waiting, under_way, tasks, paces, alarm }
    }

    /// Adds to the snapshot what is being taken.
    fn claim(&self, snapshot: &mut Snapshot) {
        for record in self.under_way.values().flatten() {
            snapshot.addresses.entry(record.address).or_insert_with(|| record.clone().into());
        }
    }

    /// Takes over a new plan, of which nothing has begun but what is under way.
    fn replace(&mut self, series: Vec<Series>) {
        self.waiting = series.into_iter().filter(|series| !self.under_way.contains_key(&series.subject)).collect();
        let planned: BTreeSet<_> = self.waiting.iter().map(|series| &series.subject).collect();
        let is_pending = |subject: &Subject| planned.contains(subject) || self.under_way.contains_key(subject);
        self.paces.forget(Instant::now().into_std(), is_pending);
    }

    /// Begins as much as there is room for.
    fn begin(&mut self) {
        let now = Instant::now();
        let mut held = VecDeque::new();
        self.alarm = None;
        while self.tasks.len() < CONCURRENCY
            && let Some(series) = self.waiting.pop_front()
        {
            if let Some(until) = self.paces.held_until(&series.subject, now.into_std()) {
                let until = Instant::from_std(until);
                self.alarm = Some(self.alarm.map_or(until, |alarm| alarm.min(until)));
                held.push_back(series);
                continue;
            }
            self.under_way.insert(series.subject.clone(), taken(&series));
            let applier = self.applier.clone();
            self.tasks.spawn(async move {
                let result = applier.apply(&series).await;
                (series.subject, result)
            });
        }
        // Whose time has not come keeps its place.
        held.append(&mut self.waiting);
        self.waiting = held;
    }

    /// Waits for one series under way to end, and draws the conclusions. Never returns if there is none. Cancel safe.
    async fn ended(&mut self) -> Result<(), JoinError> {
        let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
        let (subject, result) = ended?;
        self.under_way.remove(&subject);
        let success = matches!(result, Ok(Progress::Done));
        let notable = self.paces.ended(&subject, success, Instant::now().into_std(), jitter());
        match (result, notable) {
            (Err(failure), _) if failure.is_conflict() => tracing::debug!(%subject, %failure, "planning anew"),
            (Err(failure), Notable::Failing) => {
                tracing::warn!(%subject, error = causes(&failure), "trying again until it works");
            }
            (Ok(Progress::Done), Notable::Recovered) => tracing::info!(%subject, "works again"),
            (Ok(Progress::Done), Notable::Fight) => {
                tracing::warn!(%subject, "written again and again: check for another load balancer provider that writes it");
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits a little for what is under way.
    async fn finish(mut self) {
        self.waiting.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FAREWELL, all).await.is_err() {
            tracing::warn!("stopping without the answers to some writes; the next start finds out");
        }
    }
}

/// The addresses that a series takes.
fn taken(series: &Series) -> Vec<Record> {
    let created = series.effects.iter().filter_map(|effect| match effect {
        Effect::Create { address, pool, holder } => Some(Record {
            address: *address,
            uid: String::new(),
            resource_version: String::new(),
            deleting: false,
            pool: pool.clone(),
            holders: vec![holder.clone()],
            sharing_key: None,
            reservation: None,
            announcers: vec![],
        }),
        _ => None,
    });
    created.collect()
}
