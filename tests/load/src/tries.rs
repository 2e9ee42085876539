//! Sends requests at a fixed rate, each over a new connection or from a new port.
//!
//! Each try has its time on a fixed grid, so a lost one does not delay the next. Times that were missed because the
//! machine was late are skipped. Every try is recorded once, when it ends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use netns::Namespace;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::exchange::{Transport, outcome_of, query_tcp, query_udp};
use crate::record::{Outcome, Record, Try};
use crate::worker::{Clock, Worker, wait_for_stop};

/// The target of tries, their protocol and their rate.
#[derive(Clone, Copy, Debug)]
pub struct TryPlan {
    /// A server that answers like whoami.
    pub target: SocketAddr,
    /// The protocol.
    pub transport: Transport,
    /// Time between two tries, at least a millisecond.
    ///
    /// All datagrams of a process come from 20,000 ports. Below 150 per second in all, no port is used again while
    /// connection tracking still has its flow.
    pub interval: Duration,
    /// A try without an answer for this long has [`Outcome::TimedOut`].
    pub timeout: Duration,
}

impl TryPlan {
    /// A try every 10 ms. The timeout is long enough for two retransmissions of a SYN. So a record distinguishes an
    /// address that is down from one lost packet.
    pub fn new(target: SocketAddr, transport: Transport) -> Self {
        Self { target, transport, interval: Duration::from_millis(10), timeout: Duration::from_secs(4) }
    }
}

/// Sends requests until it is stopped or dropped.
pub struct Prober {
    plan: TryPlan,
    clock: Clock,
    log: Arc<Mutex<TryLog>>,
    worker: Worker<()>,
}

/// The tries that have ended since `from`.
struct TryLog {
    from: Duration,
    tries: Vec<Try>,
}

impl Prober {
    /// Starts to send requests from a namespace, or from that of the caller.
    pub fn start(plan: TryPlan, namespace: Option<&Namespace>, clock: Clock) -> Self {
        let log = Arc::new(Mutex::new(TryLog { from: clock.now(), tries: Vec::new() }));
        let worker = {
            let log = Arc::clone(&log);
            Worker::start("load-tries", namespace, move |stop_rx| send_tries(plan, clock, log, stop_rx))
        };
        Self { plan, clock, log, worker }
    }

    /// Returns the tries that have ended since the last call. Open tries are left to the next record.
    pub fn take_record(&self) -> Record {
        let mut log = lock(&self.log);
        let (from, to) = (log.from, self.clock.now());
        log.from = to;
        Record { from, to, interval: self.plan.interval, tries: std::mem::take(&mut log.tries) }
    }

    /// The number of tries that have ended since the last record was taken.
    pub fn tries(&self) -> usize {
        lock(&self.log).tries.len()
    }

    /// Stops, waits for open tries, and returns all tries since the last call of [`Prober::take_record`].
    ///
    /// # Errors
    /// If the thread failed.
    pub fn stop(self) -> Result<Record> {
        // The record ends here, because no try starts while this function waits for open ones.
        let to = self.clock.now();
        self.worker.stop().context("send requests")?;
        let mut log = lock(&self.log);
        let tries = std::mem::take(&mut log.tries);
        Ok(Record { from: log.from, to, interval: self.plan.interval, tries })
    }
}

fn lock(log: &Mutex<TryLog>) -> MutexGuard<'_, TryLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send_tries(
    plan: TryPlan,
    clock: Clock,
    log: Arc<Mutex<TryLog>>,
    mut stop_rx: watch::Receiver<bool>,
) -> Result<()> {
    let mut ticks = interval(plan.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut open, mut number) = (JoinSet::new(), 0);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                number += 1;
                let log = Arc::clone(&log);
                open.spawn(async move {
                    let one = send_try(plan, clock, number).await;
                    lock(&log).tries.push(one);
                });
            }
            Some(ended) = open.join_next() => ended.context("a try panicked")?,
            () = wait_for_stop(&mut stop_rx) => break,
        }
    }
    while let Some(ended) = open.join_next().await {
        ended.context("a try panicked")?;
    }
    Ok(())
}

async fn send_try(plan: TryPlan, clock: Clock, number: u64) -> Try {
    let started = clock.now();
    let exchange = async {
        match plan.transport {
            Transport::Tcp => query_tcp(plan.target, number).await,
            Transport::Udp => query_udp(plan.target, number).await.map(|server| (server, Outcome::Ok)),
        }
    };
    let (outcome, server) = match timeout(plan.timeout, exchange).await {
        Ok(Ok((server, outcome))) => (outcome, Some(server)),
        Ok(Err(error)) => (outcome_of(&error), None),
        Err(_) => (Outcome::TimedOut, None),
    };
    Try { started, latency: clock.now() - started, outcome, server }
}
