//! Holds connections open, and sends numbered requests on each.
//!
//! Each connection must be answered in order and by the same server. A connection with an unanswered request counts as
//! broken, and is not opened again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netns::Namespace;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::exchange::{outcome_of, query_on, retransmissions};
use crate::record::{Outcome, Record, Try};
use crate::worker::{Clock, Worker, wait_for_stop};

/// The number of connections that are opened at the same time.
const OPENED_AT_ONCE: usize = 64;

/// Connections to hold open.
#[derive(Clone, Copy, Debug)]
pub struct OpenFlows {
    /// A server that answers like whoami, on open connections as well.
    pub target: SocketAddr,
    /// The number of connections.
    pub count: usize,
    /// Time between two requests on a connection.
    pub interval: Duration,
    /// Every connection is idle for this time after its first request.
    pub idle: Option<Duration>,
    /// A connection without an answer for this long is broken.
    pub timeout: Duration,
}

impl OpenFlows {
    /// Connections with two requests per second each. The timeout of 4 s leaves time for retransmissions.
    pub fn new(target: SocketAddr, count: usize) -> Self {
        let interval = Duration::from_millis(500);
        Self { target, count, interval, idle: None, timeout: Duration::from_secs(4) }
    }

    /// Opens all connections from a namespace, or from that of the caller, and waits for an answer on each.
    ///
    /// # Errors
    /// If a connection can't be opened, or its first request has no answer.
    pub fn open(self, namespace: Option<&Namespace>, clock: Clock) -> Result<HeldFlows> {
        let (opened_tx, opened_rx) = mpsc::channel();
        let mut worker =
            Worker::start("load-flows", namespace, move |stop_rx| hold_all(self, clock, opened_tx, stop_rx));
        match opened_rx.recv() {
            Ok(servers) => Ok(HeldFlows { servers, worker }),
            Err(mpsc::RecvError) => {
                worker.join().context("open connections")?;
                bail!("the connections ended before they were open")
            }
        }
    }
}

/// Open connections. They are closed when this is dropped.
pub struct HeldFlows {
    servers: BTreeMap<String, usize>,
    worker: Worker<FlowReport>,
}

impl HeldFlows {
    /// The number of connections to each server.
    pub fn servers(&self) -> &BTreeMap<String, usize> {
        &self.servers
    }

    /// Sends a last request on each connection, closes it, and returns the results.
    ///
    /// # Errors
    /// If the thread failed.
    pub fn end(self) -> Result<FlowReport> {
        self.worker.stop()
    }
}

/// Why a connection broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowBreak {
    /// It was reset, or closed by the other end.
    Reset,
    /// No answer within the time.
    Silent,
    /// Another server answered: its name.
    OtherServer(String),
    /// The answer belongs to another request, or is of another protocol.
    WrongAnswer,
}

/// A broken connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenFlow {
    /// The server of its first answer.
    pub server: String,
    /// When it was seen to be broken.
    pub at: Duration,
    /// Why it broke.
    pub why: FlowBreak,
}

/// Results of open connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowReport {
    /// The number of connections.
    pub flows: usize,
    /// The connections that broke, in order of time.
    pub broken: Vec<BrokenFlow>,
    /// All requests except the first one of each connection.
    pub requests: Record,
}

impl FlowReport {
    /// Reasons of a failure: broken connections, except those to servers for which `may_break` returns true, because
    /// the test ends them. Empty if there are none.
    pub fn reasons(&self, may_break: impl Fn(&str) -> bool) -> Vec<String> {
        let broken: Vec<&BrokenFlow> = self.broken.iter().filter(|flow| !may_break(&flow.server)).collect();
        let first = broken.first();
        let reason = |first: &&BrokenFlow| {
            let BrokenFlow { server, at, why } = first;
            let (count, all) = (broken.len(), self.flows);
            format!("{count} of {all} open connections broke, the first one to {server} at {at:.3?}: {why:?}")
        };
        first.map(reason).into_iter().collect()
    }
}

/// One connection, and the server of its first answer.
struct Flow {
    stream: TcpStream,
    server: String,
}

async fn hold_all(
    plan: OpenFlows,
    clock: Clock,
    opened_tx: mpsc::Sender<BTreeMap<String, usize>>,
    mut stop_rx: watch::Receiver<bool>,
) -> Result<FlowReport> {
    let flows = open_all(plan).await?;
    let mut servers = BTreeMap::new();
    for flow in &flows {
        *servers.entry(flow.server.clone()).or_default() += 1;
    }
    let from = clock.now();
    // The caller may have gone.
    let _ = opened_tx.send(servers);
    let mut held = JoinSet::new();
    for (n, flow) in flows.into_iter().enumerate() {
        // The requests of all connections are spread over the interval.
        let spread = plan.interval.mul_f64(n as f64 / plan.count as f64);
        let first = plan.idle.unwrap_or_default() + spread;
        held.spawn(hold(plan, clock, flow, first, stop_rx.clone()));
    }
    wait_for_stop(&mut stop_rx).await;
    let mut report = FlowReport { flows: plan.count, ..FlowReport::default() };
    while let Some(ended) = held.join_next().await {
        let (tries, broken) = ended.context("a connection panicked")?;
        report.requests.tries.extend(tries);
        report.broken.extend(broken);
    }
    report.broken.sort_by_key(|flow| flow.at);
    let interval = plan.interval.div_f64(plan.count.max(1) as f64);
    let tries = std::mem::take(&mut report.requests.tries);
    report.requests = Record { from, to: clock.now(), interval, tries };
    Ok(report)
}

async fn open_all(plan: OpenFlows) -> Result<Vec<Flow>> {
    let (mut opening, mut flows) = (JoinSet::new(), Vec::new());
    for _ in 0..plan.count {
        if opening.len() >= OPENED_AT_ONCE {
            flows.extend(opening.join_next().await.transpose()?.transpose()?);
        }
        opening.spawn(open_one(plan));
    }
    while let Some(flow) = opening.join_next().await {
        flows.push(flow??);
    }
    Ok(flows)
}

async fn open_one(plan: OpenFlows) -> Result<Flow> {
    let open = async {
        let mut stream = TcpStream::connect(plan.target).await.context("connect")?;
        stream.set_zero_linger()?;
        stream.set_nodelay(true)?;
        let (server, number) = query_on(&mut stream, 0).await.context("the first request")?;
        anyhow::ensure!(number == 0, "the first request was answered as number {number}");
        anyhow::Ok(Flow { stream, server })
    };
    timeout(plan.timeout, open).await.with_context(|| format!("no answer from {}", plan.target))?
}

/// Sends requests at the interval until the stop, and then a last one. Returns all tries, and why the connection broke,
/// if it did.
async fn hold(
    plan: OpenFlows,
    clock: Clock,
    mut flow: Flow,
    first: Duration,
    mut stop_rx: watch::Receiver<bool>,
) -> (Vec<Try>, Option<BrokenFlow>) {
    let (mut tries, mut number, mut pause) = (Vec::new(), 0, first);
    loop {
        let last = tokio::select! {
            () = sleep(pause) => false,
            () = wait_for_stop(&mut stop_rx) => true,
        };
        (number, pause) = (number + 1, plan.interval);
        let (one, broken) = request_on(plan, clock, &mut flow, number).await;
        tries.push(one);
        if last || broken.is_some() {
            return (tries, broken);
        }
    }
}

/// Sends one request on an open connection.
async fn request_on(plan: OpenFlows, clock: Clock, flow: &mut Flow, number: u64) -> (Try, Option<BrokenFlow>) {
    let (started, before) = (clock.now(), retransmissions(&flow.stream).unwrap_or_default());
    let answer = timeout(plan.timeout, query_on(&mut flow.stream, number)).await;
    let latency = clock.now() - started;
    let (outcome, server, why) = match answer {
        Ok(Ok((server, answered))) if answered != number => {
            (Outcome::WrongAnswer, Some(server), Some(FlowBreak::WrongAnswer))
        }
        Ok(Ok((server, _))) if server != flow.server => {
            (Outcome::WrongAnswer, Some(server.clone()), Some(FlowBreak::OtherServer(server)))
        }
        Ok(Ok((server, _))) => {
            let repeated = retransmissions(&flow.stream).is_ok_and(|count| count > before);
            (if repeated { Outcome::Repeated } else { Outcome::Ok }, Some(server), None)
        }
        Ok(Err(error)) => match outcome_of(&error) {
            Outcome::WrongAnswer => (Outcome::WrongAnswer, None, Some(FlowBreak::WrongAnswer)),
            outcome @ (Outcome::TimedOut | Outcome::Unreachable) => (outcome, None, Some(FlowBreak::Silent)),
            _ => (Outcome::Reset, None, Some(FlowBreak::Reset)),
        },
        Err(_) => (Outcome::TimedOut, None, Some(FlowBreak::Silent)),
    };
    let broken = why.map(|why| BrokenFlow { server: flow.server.clone(), at: started + latency, why });
    (Try { started, latency, outcome, server }, broken)
}
