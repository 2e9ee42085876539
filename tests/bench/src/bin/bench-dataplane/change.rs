//! How long one change takes until a packet takes the new way, alone and among a thousand others a second.
//!
//! The canary's endpoint changes its port, and a client sends it datagrams, each from a new port as a new client would, until
//! one arrives at the new port. The clock runs from the moment at which the agent's loop is told. Snapshots are made as the
//! agent makes them; reading the event and composing the snapshot are not in it for a change alone, and a copy of the whole
//! snapshot is for one among others.
//!
//! Nobody waits for an answer: where a cable hands packets over in the sender's context, a datagram has arrived when it is
//! sent, or never will. What is rounded up is the pause between two of them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::{Distribution, percentile};
use bench::report::Report;
use dataplane::Snapshot;

use crate::Bench;
use crate::agent::Agent;
use crate::path::{Ends, PORT, Way};
use crate::synthetic::{self, NODE, Size};

/// Between two datagrams.
const PAUSE: Duration = Duration::from_micros(100);

/// A change that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ports that the canary's endpoint has in turn.
const PORTS: usize = 64;

/// Between two changes of the canary among others.
const CANARY: Duration = Duration::from_millis(25);

/// Between two changes of anything, among others: a thousand a second.
const TICK: Duration = Duration::from_millis(1);

/// A node with an agent, and a client whose datagrams it forwards.
struct Stand {
    ends: Ends,
    way: Way,
    agent: Agent,
    sockets: Vec<UdpSocket>,
    size: Size,
    snapshot: Snapshot,
}

impl Stand {
    async fn set(size: Size) -> Result<Self> {
        let ends = Ends::new()?;
        let way = ends.way(1)?;
        let sockets = ends
            .server
            .run(|| (0..PORTS).map(|n| UdpSocket::bind(("0.0.0.0", port(n)))).collect::<Result<Vec<_>, _>>())?;
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        let snapshot = synthetic::snapshot(size, Some(SocketAddr::new(way.server().ip(), port(0))))?;
        ends.lead(synthetic::lb_ip(size.services - 1), &way)?;
        let mut agent = Agent::start(&way.host);
        agent.tell(Arc::new(snapshot.clone()));
        agent.knows(size.services as usize).await?;
        let stand = Self { ends, way, agent, sockets, size, snapshot };
        let target = stand.target();
        stand.ends.client.run(|| stand.arrives(target, 0))?;
        Ok(stand)
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(synthetic::lb_ip(self.size.services - 1), synthetic::PORT)
    }

    /// The canary's endpoint has the n-th port from now on.
    fn turn(&mut self, n: usize) {
        let canary = self.size.services - 1;
        let endpoint = synthetic::endpoint(self.way.server().ip(), NODE);
        self.snapshot.slices.insert(synthetic::key(canary), [synthetic::slice(canary, port(n), [endpoint])].into());
    }

    /// Sends until one arrives at the n-th port.
    fn arrives(&self, target: SocketAddr, n: usize) -> Result<Instant> {
        let (begun, socket, mut buffer) = (Instant::now(), &self.sockets[n % PORTS], [0; 64]);
        while begun.elapsed() < PATIENCE {
            send(target)?;
            if socket.recv(&mut buffer).is_ok() {
                return Ok(Instant::now());
            }
            thread::sleep(PAUSE);
        }
        anyhow::bail!("no datagram takes the new way after {PATIENCE:?}")
    }

    /// Ends it.
    fn strike(self) -> Result<()> {
        ensure!(self.agent.failures() == 0, "{} changes of the kernel failed", self.agent.failures());
        self.agent.end()?;
        self.way.has_lost_nothing()
    }
}

/// The n-th port of the canary's endpoint.
fn port(n: usize) -> u16 {
    PORT + (n % PORTS) as u16
}

/// One datagram, as a new client sends it.
fn send(target: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // A node that refuses for a moment says so here: then it has not arrived.
    let _ = socket.send_to(b"?", target);
    Ok(())
}

/// Forgets what has arrived.
fn drain(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    while socket.recv(&mut buffer).is_ok() {}
}

/// Measures one change alone, at few Services and at many.
pub async fn alone(bench: &Bench, report: &mut Report) -> Result<()> {
    let changes = if bench.quick { 100 } else { 500 };
    report.part(&format!("One change → a packet on the new way ({changes} changes each)"));
    for (figure, services) in [("change_ms_p99_100", 100), ("change_ms_p99_30k", 30_000)] {
        let mut stand = Stand::set(Size { services, endpoints: 4, spread: true }).await?;
        let (client, target) = (stand.ends.client.clone(), stand.target());
        let times = client.run(|| -> Result<Vec<f64>> {
            let change = |n: usize| {
                stand.turn(n);
                let snapshot = Arc::new(stand.snapshot.clone());
                drain(&stand.sockets[n % PORTS]);
                thread::sleep(bench.random(n, Duration::from_millis(2), Duration::from_millis(12)));
                let begun = Instant::now();
                stand.agent.tell(snapshot);
                Ok((stand.arrives(target, n)? - begun).as_secs_f64() * 1e3)
            };
            (1..=changes).map(change).collect()
        })?;
        stand.strike()?;
        tell(bench, report, (figure, &format!("{services} Services")), &times, "5 or less")?;
    }
    Ok(())
}

/// Measures a change among a thousand others a second.
pub async fn churn(bench: &Bench, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let size = Size { services: 10_000, endpoints: 2, spread: true };
    let mut stand = Stand::set(size).await?;
    let (current, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (client, target) = (stand.ends.client.clone(), stand.target());
    let sockets = std::mem::take(&mut stand.sockets);
    let cpu = bench::usage::cpu(std::process::id() as i32, "")?.0;
    let (due, seen, told) = thread::scope(|scope| {
        let watcher = scope.spawn(|| client.run(|| watch(target, &sockets, &current, &over)));
        let driven = drive(&mut stand, time, &current);
        // What was changed last may still be on its way.
        thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        driven.map(|(due, told)| (due, seen, told))
    })?;
    let cpu = bench::usage::percent(bench::usage::cpu(std::process::id() as i32, "")?.0 - cpu, time);
    stand.strike()?;
    let lags = lags(&due, &seen)?;
    let changes = time.as_millis();
    report.part(&format!("{changes} endpoint changes in {} s, 10,000 Services × 2", time.as_secs()));
    tell(bench, report, ("churn_lag_ms_p99", "lag of a change among them"), &lags, "50 or less")?;
    report.row("snapshots told", &format!("{told:8}"));
    report.row("CPU of agent and client together", &format!("{cpu:8.1} % of a core"));
    Ok(())
}

/// Changes something a thousand times a second, and the canary now and then. Returns when the canary's changes were due, and
/// how many snapshots were told: changes that are due at the same time are in one, as in the agent.
fn drive(stand: &mut Stand, time: Duration, current: &AtomicUsize) -> Result<(Vec<Instant>, usize)> {
    let (begun, mut due, mut told, mut done) = (Instant::now(), vec![], 0, 0);
    let others = stand.size.services - 1;
    while begun.elapsed() < time {
        let until = begun.elapsed().as_nanos() / TICK.as_nanos();
        for n in done..until as u32 {
            // Distribution over all Services; each time one of its endpoints is another one.
            let service = n.wrapping_mul(7919) % others;
            let first = service * stand.size.endpoints;
            let endpoints = [synthetic::nobody(first), synthetic::nobody(2_000_000 + n % 1_000_000)];
            stand.snapshot.slices.insert(synthetic::key(service), [synthetic::slice(service, PORT, endpoints)].into());
        }
        done = until as u32;
        // All that are due: when the loop is late, none of them is counted from later than it was due.
        let before = due.len();
        while let canary = begun + CANARY * (due.len() as u32 + 1)
            && canary <= Instant::now()
        {
            due.push(canary);
        }
        if due.len() > before {
            stand.turn(due.len());
            current.store(due.len(), Ordering::Release);
        }
        stand.agent.tell(Arc::new(stand.snapshot.clone()));
        told += 1;
        let next = begun + TICK * (done + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok((due, told))
}

/// Sends all the time, and writes down when which change of the canary was first seen.
fn watch(
    target: SocketAddr,
    sockets: &[UdpSocket],
    current: &AtomicUsize,
    over: &AtomicBool,
) -> Result<Vec<(usize, Instant)>> {
    let (mut seen, mut last, mut buffer) = (vec![], 0, [0; 64]);
    while !over.load(Ordering::Relaxed) {
        send(target)?;
        let newest = current.load(Ordering::Acquire);
        // The newest first: it has all before it in it. No more than there are ports, or one would stand for two.
        let candidates = (last + 1..=newest).rev().take(PORTS - 2);
        if let Some(n) = candidates.into_iter().find(|n| sockets[n % PORTS].recv(&mut buffer).is_ok()) {
            seen.push((n, Instant::now()));
            last = n;
        }
        // What still arrives at older ports would be taken for their next turn.
        for n in last.saturating_sub(PORTS / 2)..last {
            drain(&sockets[n % PORTS]);
        }
        thread::sleep(2 * PAUSE);
    }
    Ok(seen)
}

/// How long after each change was due it was seen, or one that came after it; in milliseconds.
fn lags(due: &[Instant], seen: &[(usize, Instant)]) -> Result<Vec<f64>> {
    let mut lags = Vec::new();
    for (n, due) in (1..).zip(due) {
        let first = seen.iter().find(|(seen, _)| *seen >= n).with_context(|| format!("change {n} was never seen"))?;
        lags.push(first.1.saturating_duration_since(*due).as_secs_f64() * 1e3);
    }
    Ok(lags)
}

fn tell(bench: &Bench, report: &mut Report, of: (&str, &str), times: &[f64], goal: &str) -> Result<()> {
    let at = |share| percentile(times, share).context("invariant: there are changes");
    let Distribution { median, max, .. } = Distribution::from_values(times).context("invariant: there are changes")?;
    let (figure, what) = of;
    let text = format!("p50 {median:.2}  p99 {:.2}  max {max:.2} ms  goal p99 {goal}", at(0.99)?);
    bench.progress(&format!("{what}: {text}"))?;
    report.row(what, &text);
    report.figure(figure, at(0.99)?);
    Ok(())
}
