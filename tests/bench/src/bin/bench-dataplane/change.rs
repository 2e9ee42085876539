//! The time until a packet follows a change, alone and among a thousand other changes per second.
//!
//! The canary is the last of the Services. Its endpoint changes its port. A client sends datagrams to the canary, each
//! from a new port like a new client, until one arrives at the endpoint's new port. The time starts when the agent's
//! event loop receives the snapshot. Snapshots are created as in the agent. The time of a single change excludes
//! reading the event and composing the snapshot. The time of a change among others includes a copy of the whole
//! snapshot.
//!
//! The client does not wait for answers. A veth delivers packets in the context of the sender, so a datagram has
//! arrived when `send` returns, or never arrives. Times are rounded up to the pause between two datagrams.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::report::{FigureSpec, Report, quantiles_text};
use dataplane::Snapshot;

use crate::Bench;
use crate::agent::Agent;
use crate::path::{Ends, ForwardingPath, PORT};
use crate::synthetic::{self, NODE, Size};

/// The pause between two datagrams.
const PAUSE: Duration = Duration::from_micros(100);

/// The longest time to wait for the effect of a change.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of ports that the canary's endpoint uses, one after the other.
const PORTS: usize = 64;

/// The time between two changes of the canary, among other changes.
const CANARY_INTERVAL: Duration = Duration::from_millis(25);

/// The time between two other changes: a thousand per second.
const CHANGE_INTERVAL: Duration = Duration::from_millis(1);

/// A node with an agent, a client, and the sockets of the canary's endpoint.
struct Canary {
    ends: Ends,
    path: ForwardingPath,
    agent: Agent,
    sockets: Vec<UdpSocket>,
    size: Size,
    snapshot: Snapshot,
}

impl Canary {
    async fn start(size: Size) -> Result<Self> {
        let ends = Ends::new()?;
        let path = ends.add_path(1)?;
        let sockets = ends
            .server
            .run(|| (0..PORTS).map(|n| UdpSocket::bind(("0.0.0.0", port(n)))).collect::<Result<Vec<_>, _>>())?;
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        let snapshot = synthetic::snapshot(size, Some(SocketAddr::new(path.server().ip(), port(0))))?;
        ends.route_via(synthetic::lb_ip(size.services - 1), &path)?;
        let mut agent = Agent::start(&path.host);
        agent.publish(Arc::new(snapshot.clone()));
        agent.wait_for_addresses(size.services as usize).await?;
        let canary = Self { ends, path, agent, sockets, size, snapshot };
        let target = canary.target();
        canary.ends.client.run(|| canary.wait_for_arrival(target, 0))?;
        Ok(canary)
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(synthetic::lb_ip(self.size.services - 1), synthetic::PORT)
    }

    /// Moves the canary's endpoint to its n-th port.
    fn move_to_port(&mut self, n: usize) {
        let service = self.size.services - 1;
        let endpoint = synthetic::endpoint(self.path.server().ip(), NODE);
        self.snapshot.slices.insert(synthetic::key(service), [synthetic::slice(service, port(n), [endpoint])].into());
    }

    /// Sends datagrams until one arrives at the n-th port.
    fn wait_for_arrival(&self, target: SocketAddr, n: usize) -> Result<Instant> {
        let (begun, socket, mut buffer) = (Instant::now(), &self.sockets[n % PORTS], [0; 64]);
        while begun.elapsed() < PATIENCE {
            send(target)?;
            if socket.recv(&mut buffer).is_ok() {
                return Ok(Instant::now());
            }
            thread::sleep(PAUSE);
        }
        anyhow::bail!("no datagram arrives at the new port after {PATIENCE:?}")
    }

    /// Ends the agent. Fails if a change failed, or if connection tracking dropped a packet.
    fn stop(self) -> Result<()> {
        ensure!(self.agent.failures() == 0, "{} changes of the kernel failed", self.agent.failures());
        self.agent.end()?;
        self.path.ensure_no_drops()
    }
}

/// The n-th port of the canary's endpoint.
fn port(n: usize) -> u16 {
    PORT + (n % PORTS) as u16
}

/// Sends one datagram from a new port, like a new client.
fn send(target: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // The node may refuse a datagram during a change. Such a datagram has not arrived.
    let _ = socket.send_to(b"?", target);
    Ok(())
}

/// Discards all received datagrams.
fn drain(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    while socket.recv(&mut buffer).is_ok() {}
}

/// Measures single changes, with few Services and with many.
pub async fn measure_single_changes(bench: &Bench, report: &mut Report) -> Result<()> {
    let changes = if bench.quick { 100 } else { 500 };
    report.part(&format!("One change → a packet at the new port ({changes} changes each)"));
    for (key, services) in [("change_ms_100", 100), ("change_ms_30k", 30_000)] {
        let mut canary = Canary::start(Size { services, endpoints: 4, spread: true }).await?;
        let (client, target) = (canary.ends.client.clone(), canary.target());
        let times = client.run(|| -> Result<Vec<f64>> {
            (1..=changes).map(|n| time_change(bench, &mut canary, target, n)).collect()
        })?;
        canary.stop()?;
        let label = format!("{services} Services");
        report_times(bench, report, FigureSpec::lower(key, &label, "ms").goal("p99 5 or less"), &times)?;
    }
    Ok(())
}

/// The milliseconds from the n-th change until a datagram arrives at the new port.
fn time_change(bench: &Bench, canary: &mut Canary, target: SocketAddr, n: usize) -> Result<f64> {
    canary.move_to_port(n);
    let snapshot = Arc::new(canary.snapshot.clone());
    drain(&canary.sockets[n % PORTS]);
    thread::sleep(bench.random(n, Duration::from_millis(2), Duration::from_millis(12)));
    let begun = Instant::now();
    canary.agent.publish(snapshot);
    Ok((canary.wait_for_arrival(target, n)? - begun).as_secs_f64() * 1e3)
}

/// Measures changes of the canary among a thousand other changes per second.
pub async fn measure_churn(bench: &Bench, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let size = Size { services: 10_000, endpoints: 2, spread: true };
    let mut canary = Canary::start(size).await?;
    let (current, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (client, target) = (canary.ends.client.clone(), canary.target());
    let sockets = std::mem::take(&mut canary.sockets);
    let cpu_before = bench::usage::cpu(std::process::id() as i32, "")?.0;
    let (changes, arrivals) = thread::scope(|scope| {
        let watcher = scope.spawn(|| client.run(|| watch_arrivals(target, &sockets, &current, &over)));
        let changes = make_changes(&mut canary, time, &current);
        // The last changes may still be under way.
        thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        let arrivals = watcher.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        changes.map(|changes| (changes, arrivals))
    })?;
    let cpu = bench::usage::percent(bench::usage::cpu(std::process::id() as i32, "")?.0 - cpu_before, time);
    canary.stop()?;
    let lags = lags(&changes.due, &arrivals)?;
    let count = time.as_millis();
    report.part(&format!("{count} endpoint changes in {} s, 10,000 Services × 2", time.as_secs()));
    let spec = FigureSpec::lower("churn_lag_ms", "lag of a change among them", "ms").goal("p99 50 or less");
    report_times(bench, report, spec, &lags)?;
    report.row("snapshots published", &format!("{:8}", changes.snapshots));
    report.row("CPU of agent and client together", &format!("{cpu:8.1} % of a core"));
    Ok(())
}

/// The changes that were made.
struct Changes {
    /// When the changes of the canary were due.
    due: Vec<Instant>,
    /// The number of published snapshots.
    snapshots: usize,
}

/// Changes one of the other Services every [`CHANGE_INTERVAL`], and the canary every [`CANARY_INTERVAL`]. As in the
/// agent, one snapshot contains all changes that are due at the same time.
fn make_changes(canary: &mut Canary, time: Duration, current: &AtomicUsize) -> Result<Changes> {
    let (begun, mut due, mut snapshots, mut done) = (Instant::now(), vec![], 0, 0);
    let others = canary.size.services - 1;
    while begun.elapsed() < time {
        let until = begun.elapsed().as_nanos() / CHANGE_INTERVAL.as_nanos();
        for n in done..until as u32 {
            // Changes are spread over all Services. Each replaces one endpoint of its Service.
            let service = n.wrapping_mul(7919) % others;
            let first = service * canary.size.endpoints;
            let endpoints = [synthetic::idle_endpoint(first), synthetic::idle_endpoint(2_000_000 + n % 1_000_000)];
            canary.snapshot.slices.insert(synthetic::key(service), [synthetic::slice(service, PORT, endpoints)].into());
        }
        done = until as u32;
        // If the loop is late, the time of a change still starts when the change was due.
        let before = due.len();
        while let next = begun + CANARY_INTERVAL * (due.len() as u32 + 1)
            && next <= Instant::now()
        {
            due.push(next);
        }
        if due.len() > before {
            canary.move_to_port(due.len());
            current.store(due.len(), Ordering::Release);
        }
        canary.agent.publish(Arc::new(canary.snapshot.clone()));
        snapshots += 1;
        let next = begun + CHANGE_INTERVAL * (done + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(Changes { due, snapshots })
}

/// Sends datagrams until `over`. Returns each change of the canary whose port received a datagram, with the time of the
/// first arrival.
fn watch_arrivals(
    target: SocketAddr,
    sockets: &[UdpSocket],
    current: &AtomicUsize,
    over: &AtomicBool,
) -> Result<Vec<(usize, Instant)>> {
    let (mut arrivals, mut last, mut buffer) = (vec![], 0, [0; 64]);
    while !over.load(Ordering::Relaxed) {
        send(target)?;
        let newest = current.load(Ordering::Acquire);
        // The newest change comes first, because it includes all earlier ones. There are fewer candidates than ports,
        // so that a port belongs to one change.
        let candidates = (last + 1..=newest).rev().take(PORTS - 2);
        if let Some(n) = candidates.into_iter().find(|n| sockets[n % PORTS].recv(&mut buffer).is_ok()) {
            arrivals.push((n, Instant::now()));
            last = n;
        }
        // Late datagrams at older ports would count for the next use of the port.
        for n in last.saturating_sub(PORTS / 2)..last {
            drain(&sockets[n % PORTS]);
        }
        thread::sleep(2 * PAUSE);
    }
    Ok(arrivals)
}

/// For each change the milliseconds from when it was due until a datagram arrived at its port, or at the port of a
/// later change.
fn lags(due: &[Instant], arrivals: &[(usize, Instant)]) -> Result<Vec<f64>> {
    let mut lags = Vec::new();
    for (n, due) in (1..).zip(due) {
        let (_, arrival) =
            arrivals.iter().find(|(change, _)| *change >= n).with_context(|| format!("change {n} never arrived"))?;
        lags.push(arrival.saturating_duration_since(*due).as_secs_f64() * 1e3);
    }
    Ok(lags)
}

/// Reports times in milliseconds.
fn report_times(bench: &Bench, report: &mut Report, spec: FigureSpec<'_>, times: &[f64]) -> Result<()> {
    bench.progress(&format!("{}: {} ms", spec.label, quantiles_text(times)))?;
    report.quantiles(spec, times);
    Ok(())
}
