//! The loop: wake → snapshot → plan → diff → apply → publish.
//!
//! One task, which owns a [`Worker`] and lends it to a blocking thread for each step, so that no async worker waits for
//! the kernel. Flows that go nowhere any more are forgotten on another such thread, one sweep at a time: the kernel takes ten
//! milliseconds to look through its table of flows, however few there are, and the next change must not wait for that. After
//! each one it rests for nine times as long: where endpoints change all the time, one sweep is for many changes. The loop
//! wakes when there is a new snapshot (any number of them at once count as one), when a check of the
//! kernel is due, and when a failed step is to be tried again. It ends when nobody can send snapshots any more.
//!
//! Cancel safe: dropped in the middle of a step, the step still finishes, and the kernel goes on forwarding either way.
//! Only [`remove`](crate::remove) ends that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crds::Reach;
use crds::service::Family;
use model::pacing::Backoff;
use tokio::sync::watch;
use tokio::task;
use tokio::time::{Instant, sleep_until};

use crate::flows::affinity::loose;
use crate::flows::conntrack;
use crate::flows::stale::stale;
use crate::metrics::counters::Counters;
use crate::netlink::socket::{self, Socket};
use crate::nft::diff::Change;
use crate::nft::elements::is_needed;
use crate::nft::engine::{Applied, Done, Engine, Error};
use crate::nft::layout::Table;
use crate::reply_path::Return;
use crate::rules::planner::Planner;
use crate::rules::ruleset::{LbIp, Problem, Ruleset};
use crate::snapshot::{Link, LinkName, Snapshot};

/// How often to look whether the kernel still has what was applied. Somebody flushing all of nf_tables (a firewall
/// that is reloaded) is the reason to look; nobody else should touch our tables.
const CHECK: Duration = Duration::from_secs(10);
/// After how many checks to try again what the kernel refused: five minutes.
const CHECKS_UNTIL_RETRY: u32 = 30;
/// For how many times its own length nothing is swept after a sweep: it takes a tenth of a processor at most.
const REST_AFTER_SWEEP: u32 = 9;
/// The pauses after failed steps in a row.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// What the kernel of this node does now: published when it has acknowledged it, and taken back before it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The lb_ips that the kernel knows. Only these may be announced from here.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of them for which it has an endpoint that packets from outside may use: under the traffic policy Local,
    /// one on this node.
    pub serving: BTreeSet<IpAddr>,
    /// How packets from outside get to the endpoints of each of them that are on other nodes.
    pub reach: BTreeMap<IpAddr, Reach>,
    /// What is not forwarded as it is written, where there is such a thing.
    pub problems: BTreeMap<IpAddr, BTreeSet<Problem>>,
    /// Whether the kernel refuses to mark connections, so that answers are not led back by the link of the request.
    pub unmarked: bool,
}

impl Forwarding {
    /// Says what the kernel knows of `address`. Returns whether that is news.
    fn set(&mut self, address: IpAddr, lb_ip: Option<&LbIp>) -> bool {
        let put = |set: &mut BTreeSet<IpAddr>, there| if there { set.insert(address) } else { set.remove(&address) };
        let known = put(&mut self.addresses, lb_ip.is_some());
        let served = put(&mut self.serving, lb_ip.is_some_and(serves));
        let reach = lb_ip.map(LbIp::reach);
        let reached = match reach {
            Some(reach) => self.reach.insert(address, reach),
            None => self.reach.remove(&address),
        } != reach;
        let problems = lb_ip.map(|lb_ip| &lb_ip.problems).filter(|problems| !problems.is_empty());
        let told = problems != self.problems.get(&address);
        if told {
            for problem in problems.into_iter().flatten().filter(|problem| problem.is_mistake()) {
                tracing::warn!(lb_ip = %address, %problem, "not all of a Service can be forwarded");
            }
            match problems {
                Some(problems) => self.problems.insert(address, problems.clone()),
                None => self.problems.remove(&address),
            };
        }
        known || served || reached || told
    }
}

/// Forwards what the latest snapshot says, until nobody can send any more. Nothing is done before the first snapshot
/// that is not `None`: what the kernel has from before stays. What is done is counted in `counters`.
///
/// # Errors
/// If there is no way to talk to the kernel at all. What fails later is logged and tried again.
pub async fn run(
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    forwarding: watch::Sender<Forwarding>,
    counters: watch::Sender<Counters>,
) -> Result<(), Error> {
    let mut worker = blocking(move || Worker::open(forwarding)).await?;
    let mut pauses = PAUSES;
    let mut next_check = Instant::now() + CHECK;
    let mut sweeping = None;
    let mut next_sweep = Instant::now();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let Some(snapshot) = snapshot else {
            if snapshots.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        // Due by the clock and not by silence: where something changes all the time, it must be looked at as well.
        let check = Instant::now() >= next_check;
        let done;
        (worker, done) = blocking(move || {
            let done = worker.step(&snapshot, check);
            (worker, done)
        })
        .await;
        worker.counters.settled += u64::from(done.is_ok());
        worker.counters.failures += u64::from(done.is_err());
        counters.send_replace(worker.counters);
        let wake = match done {
            Ok(()) => {
                pauses.reset();
                if check {
                    next_check = Instant::now() + CHECK;
                }
                next_check
            }
            Err(error) => {
                let cause = cause(&error);
                let pause = pauses.fail();
                tracing::error!(%error, cause, retry_in = ?pause, "the kernel does not forward what it should");
                Instant::now() + pause
            }
        };
        loop {
            let rests = sweeping.is_none() && Instant::now() < next_sweep;
            if sweeping.is_none() && !rests {
                sweeping = worker.sweep().map(|work| (Instant::now(), task::spawn_blocking(work)));
            }
            let swept = async {
                let (began, work) = sweeping.as_mut()?;
                Some((*began, work.await))
            };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return Ok(()) } else { break },
                () = sleep_until(wake) => break,
                () = sleep_until(next_sweep), if rests => {}
                Some((began, swept)) = swept => {
                    sweeping = None;
                    next_sweep = Instant::now() + began.elapsed() * REST_AFTER_SWEEP;
                    worker.has_swept(finished(swept).await);
                }
            }
        }
    }
}

/// What is behind an error, down to the kernel's own word.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes.join(": ")
}

/// Runs `work` where it may block. A panic in it is one of ours, and goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    finished(task::spawn_blocking(work).await).await
}

/// What a thread that may block has returned.
async fn finished<T>(done: Result<T, task::JoinError>) -> T {
    match done {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down and takes this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// How a sweep ended.
struct Swept {
    conntrack: Socket,
    /// The ruleset that it was for.
    after: Arc<Ruleset>,
    /// How many flows were forgotten.
    flows: Result<usize, socket::Error>,
}

/// What a step needs and leaves behind.
struct Worker {
    engine: Engine,
    forwarding: watch::Sender<Forwarding>,
    /// The ruleset that `forwarding` speaks of.
    published: Arc<Ruleset>,
    planner: Planner,
    /// The ruleset that the kernel has; `None` after a failure.
    done: Option<Arc<Ruleset>>,
    /// The ruleset for which the kernel was last made to forget clients.
    loosened: Option<Arc<Ruleset>>,
    /// Connection tracking; `None` while stale flows are being forgotten.
    conntrack: Option<Socket>,
    /// The ruleset for which stale flows were last forgotten.
    swept: Option<Arc<Ruleset>>,
    /// What was changed in the kernel's tables before they were for the first time.
    unswept: Vec<Change>,
    /// The ruleset for which that failed: it is tried again when the kernel is next checked.
    unsweepable: Option<Arc<Ruleset>>,
    /// The links on which the kernel did not let us spread frames.
    refused_links: Refused<BTreeMap<LinkName, Link>>,
    /// The links whose connections it did not let us mark.
    refused_returns: Refused<Arc<BTreeSet<Return>>>,
    /// The families for which the node has been asked whether it forwards.
    looked_at_forwarding: BTreeSet<Table>,
    counters: Counters,
}

impl Worker {
    fn open(forwarding: watch::Sender<Forwarding>) -> Result<Self, Error> {
        let (engine, conntrack) = (Engine::open()?, Socket::open()?);
        Ok(Self {
            engine,
            forwarding,
            published: Arc::default(),
            planner: Planner::default(),
            done: None,
            loosened: None,
            conntrack: Some(conntrack),
            swept: None,
            unswept: Vec::new(),
            unsweepable: None,
            refused_links: Refused::default(),
            refused_returns: Refused::default(),
            looked_at_forwarding: BTreeSet::new(),
            counters: Counters::default(),
        })
    }

    /// Makes the kernel do what `snapshot` says. With `check`, first looks whether it does what it was told before.
    ///
    /// Frames are spread and connections marked where the kernel lets us: if it does not (it may know no such table or no such
    /// marks, or a link may just have gone), everything is forwarded without that.
    fn step(&mut self, snapshot: &Arc<Snapshot>, check: bool) -> Result<(), Error> {
        let done = self.forward_what_can_be(snapshot, check);
        let unmarked = self.refused_returns.0.is_some();
        self.forwarding
            .send_if_modified(|forwarding| std::mem::replace(&mut forwarding.unmarked, unmarked) != unmarked);
        done
    }

    fn forward_what_can_be(&mut self, snapshot: &Arc<Snapshot>, check: bool) -> Result<(), Error> {
        let no_links = self.refused_links.holds(&snapshot.links, check);
        let no_returns = self.refused_returns.holds(&snapshot.returns, check);
        let asked = match (no_links, no_returns) {
            (false, false) => Arc::clone(snapshot),
            (true, false) => unspread(snapshot),
            (false, true) => unmarked(snapshot),
            (true, true) => unmarked(&unspread(snapshot)),
        };
        let error = match self.forward(&asked, check) {
            Err(error) if !asked.links.is_empty() && error.is_about_frames() => {
                let cause = cause(&error);
                tracing::warn!(%error, cause, "frames can't be spread: every packet is translated by the node it comes to");
                self.refused_links = Refused::now(&snapshot.links);
                return self.forward(&unspread(&asked), false);
            }
            Err(error) if !asked.returns.is_empty() && error.is_about_packets() => error,
            done => return done,
        };
        // Whether it was the marks is known when it goes without them.
        self.forward(&unmarked(&asked), false)?;
        let cause = cause(&error);
        tracing::warn!(%error, cause, "connections can't be marked: answers take the node's own routes, by whatever link");
        self.refused_returns = Refused::now(&snapshot.returns);
        Ok(())
    }

    fn forward(&mut self, snapshot: &Arc<Snapshot>, check: bool) -> Result<(), Error> {
        let began = Instant::now();
        // A check that fails must not keep what is new from the kernel: what was applied before is known without it.
        let wrong = match check.then(|| self.engine.check()) {
            Some(Ok(wrong)) => wrong,
            Some(Err(error)) => {
                tracing::warn!(%error, "can't look whether our tables are whole; looking again later");
                None
            }
            None => None,
        };
        if let Some(wrong) = &wrong {
            tracing::warn!(wrong, "somebody changed a table of ours, repairing it");
            self.counters.repairs += 1;
        }
        let desired = self.planner.plan(snapshot);
        if check {
            self.unsweepable = None;
        }
        if wrong.is_none() && self.done.as_ref().is_some_and(|done| Arc::ptr_eq(done, &desired)) {
            self.loosen();
            return Ok(());
        }
        // Until this step is done, the next one must not take anything for done.
        self.done = None;
        self.withdraw(&desired);
        let changes = match self.engine.apply(&desired) {
            Ok(applied) => {
                log(&applied, &desired);
                if !applied.is_empty() {
                    self.counters.programs.observe(began.elapsed());
                    self.counters.changes += applied.values().map(Done::size).sum::<u64>();
                }
                changes_in(applied)
            }
            Err(error) => {
                // A change that failed leaves the kernel as it was. A table that is known to be broken and could not
                // be repaired forwards nothing that others should rely on.
                if wrong.is_some() {
                    self.publish(Arc::default());
                }
                return Err(error);
            }
        };
        self.look_at_forwarding(&desired);
        self.publish(Arc::clone(&desired));
        self.done = Some(desired);
        if self.swept.is_none() {
            self.unswept.extend(changes);
        }
        self.loosen();
        Ok(())
    }

    /// Forgets clients that the ruleset before led where this one would not lead them. What fails is tried again when the
    /// kernel is next checked.
    fn loosen(&mut self) {
        let Some(ruleset) = &self.done else { return };
        if self.loosened.as_ref().is_some_and(|loosened| Arc::ptr_eq(loosened, ruleset)) {
            return;
        }
        match self.engine.forget(&loose(self.loosened.as_deref(), ruleset)) {
            Ok(clients) => {
                self.loosened = Some(Arc::clone(ruleset));
                if clients > 0 {
                    tracing::debug!(clients, "forgot where clients went whose endpoint is gone");
                }
            }
            Err(error) => {
                let cause = cause(&error);
                tracing::warn!(%error, cause, "clients may be sent to endpoints that are gone");
            }
        }
    }

    /// The work of forgetting flows that the ruleset before led where this one would not lead them, if there may be any. It
    /// takes connection tracking along, until [`has_swept`](Self::has_swept).
    fn sweep(&mut self) -> Option<impl FnOnce() -> Swept + use<>> {
        let ruleset = self.done.as_ref()?;
        let is = |other: &Option<Arc<Ruleset>>| other.as_ref().is_some_and(|other| Arc::ptr_eq(other, ruleset));
        // A client that is remembered must not be sent where a flow was just forgotten.
        if is(&self.swept) || is(&self.unsweepable) || !is(&self.loosened) {
            return None;
        }
        let mut conntrack = self.conntrack.take()?;
        let (before, after, changes) = (self.swept.clone(), Arc::clone(ruleset), self.unswept.clone());
        Some(move || {
            let flows = conntrack::forget(&mut conntrack, &stale(before.as_deref(), &after, &changes));
            Swept { conntrack, after, flows }
        })
    }

    /// Takes note of a sweep.
    fn has_swept(&mut self, swept: Swept) {
        self.conntrack = Some(swept.conntrack);
        match swept.flows {
            Ok(flows) => {
                self.swept = Some(swept.after);
                self.unswept = Vec::new();
                if flows > 0 {
                    tracing::debug!(flows, "forgot flows of UDP whose endpoint is gone");
                }
            }
            Err(error) => {
                let cause = cause(&error);
                tracing::warn!(%error, cause, "UDP clients may wait for endpoints that are gone");
                self.unsweepable = Some(swept.after);
            }
        }
    }

    /// Takes back what will end with the next change, before it does: nobody should announce what isn't forwarded.
    fn withdraw(&mut self, desired: &Ruleset) {
        let differing = self.published.addresses.differing(&desired.addresses);
        let going = differing.filter(|(_, before, after)| before.is_some() && after.is_none());
        let going: Vec<IpAddr> = going.map(|(address, ..)| *address).collect();
        if going.is_empty() {
            return;
        }
        let published = Arc::make_mut(&mut self.published);
        self.forwarding.send_modify(|forwarding| {
            for address in going {
                published.set(address, None);
                forwarding.set(address, None);
            }
        });
    }

    /// Says what the kernel does now, looking only at what differs from what was said before.
    fn publish(&mut self, ruleset: Arc<Ruleset>) {
        self.forwarding.send_if_modified(|forwarding| {
            let mut news = false;
            for (address, before, after) in self.published.addresses.differing(&ruleset.addresses) {
                let same = matches!((before, after), (Some(before), Some(after)) if Arc::ptr_eq(before, after));
                if !same {
                    news |= forwarding.set(*address, after.map(|lb_ip| &**lb_ip));
                }
            }
            news
        });
        self.published = ruleset;
    }

    /// Whether the node forwards at all is the business of whoever runs the cluster's network: say it, change nothing.
    fn look_at_forwarding(&mut self, desired: &Ruleset) {
        for table in Table::ALL {
            let Some(family) = table.family().filter(|_| is_needed(desired, table)) else { continue };
            if !self.looked_at_forwarding.insert(table) {
                continue;
            }
            let switch = match family {
                Family::V4 => "net/ipv4/ip_forward",
                Family::V6 => "net/ipv6/conf/all/forwarding",
            };
            match std::fs::read_to_string(format!("/proc/sys/{switch}")) {
                Ok(value) if value.trim() == "0" => tracing::warn!(
                    %family,
                    switch,
                    "this node does not forward, so packets won't reach endpoints: set the switch to 1 with sysctl \
                     (kube-proxy or the network plugin does so as a rule)"
                ),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, switch, "can't tell whether this node forwards"),
            }
        }
    }
}

/// What the kernel has refused, and is not asked for again for a while.
struct Refused<T>(Option<(T, u32)>);

impl<T> Default for Refused<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone + PartialEq> Refused<T> {
    /// It has just refused this.
    fn now(what: &T) -> Self {
        Self(Some((what.clone(), CHECKS_UNTIL_RETRY)))
    }

    /// Whether it would refuse this: the same, and not so long ago. With `check`, time has passed.
    fn holds(&mut self, what: &T, check: bool) -> bool {
        let Some((refused, checks)) = &mut self.0 else { return false };
        *checks = checks.saturating_sub(u32::from(check));
        let holds = *checks > 0 && refused == what;
        if !holds {
            self.0 = None;
        }
        holds
    }
}

/// The same, with no connection to mark.
fn unmarked(snapshot: &Snapshot) -> Arc<Snapshot> {
    Arc::new(Snapshot { returns: Arc::default(), ..snapshot.clone() })
}

/// The same, with nothing to spread.
fn unspread(snapshot: &Snapshot) -> Arc<Snapshot> {
    Arc::new(Snapshot { links: BTreeMap::new(), ..snapshot.clone() })
}

/// Whether packets from outside find an endpoint here.
fn serves(lb_ip: &LbIp) -> bool {
    lb_ip.ports.values().any(|target| target.outside.count > 0 || target.left)
}

/// What changed of tables that were there before.
fn changes_in(applied: Applied) -> Vec<Change> {
    let changed = applied.into_values().filter_map(|done| match done {
        Done::Changed(changes) | Done::Removed(changes) => Some(changes),
        Done::Created(_) | Done::Replaced { .. } => None,
    });
    changed.flatten().collect()
}

fn log(applied: &Applied, desired: &Ruleset) {
    let addresses = desired.addresses.len();
    for (table, done) in applied {
        match done {
            Done::Changed(changes) => tracing::debug!(%table, addresses, changes = changes.len(), "changed the table"),
            Done::Created(elements) => tracing::info!(%table, addresses, elements, "made the table"),
            Done::Removed(_) => tracing::info!(%table, "removed the table: it has nothing to do"),
            Done::Replaced { because, elements } => {
                tracing::warn!(%table, addresses, elements, because, "replaced the table");
            }
        }
    }
}
