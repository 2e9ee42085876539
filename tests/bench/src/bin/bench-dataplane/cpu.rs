//! The cost of forwarding: CPU time of a new connection, and of a packet of an open one.
//!
//! One thread is client and server (see [`crate::path`]). Its own CPU time is compared (`CLOCK_THREAD_CPUTIME_ID`, in
//! nanoseconds), so that other processes do not count. Contenders take turns in short blocks, forward and back (ABBA).
//! A ratio compares blocks of one round. Each round begins with the next contender, because the one at the turning
//! point has two blocks in a row, and warm caches.
//!
//! - A *connection* is opened and reset: four packets. The cost of client and server alone is subtracted. Thus the
//!   ratio compares the work of the host in between: routing, connection tracking, translation.
//! - A *question* is one byte each way over an open connection, without GSO or other batching, which would hide the
//!   cost of a packet. The ratio compares the whole cost, as a client sees it: questions in the same time. Client and
//!   server are most of that, so the ratio of the host in between alone is reported, too.
//!
//! By default agents spread, so in the main figures another Service is spread: each incoming frame is looked up, and
//! the measured Service has its only endpoint on this node. The names of other figures contain their variant:
//!
//! - *no Service is spread*, like a static rule.
//! - *packets and bytes counted*.
//! - *kept by the spread*: half of the measured Service's flows are re-sent, and the other half is measured.
//! - *30,000 Services*: some of them are spread. They are compared with two Services, one of which is spread, so their
//!   number is the only difference.
//! - *kube-proxy, Cluster* and *kube-proxy, Local*: kube-proxy masquerades external clients only under Cluster.
//!
//! All agents are off, so only the rules in the kernel are measured. Short timeouts empty the connection tracking
//! table. The measurement fails if connection tracking has dropped a packet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use bench::distribution::{Distribution, ratios};
use bench::report::{FigureSpec, Report, median_text};
use nix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use crate::Bench;
use crate::contenders::{self, Contender, KUBE_PROXY_PATHS};
use crate::kube_proxy;
use crate::path::{Ends, PORT};
use crate::synthetic::Size;

/// Connections or questions in a block.
const BLOCK: u32 = 1000;

/// The longest time for a connect. Without an answer its packet went to the node that does not exist.
const PATIENCE: Duration = Duration::from_millis(500);

/// Rounds per median. Medians are compared, because two blocks differ more than two contenders.
const BATCH: usize = 10;

/// The contenders, in the order of the first half of the first round.
const DIRECT: usize = 0;
const ROUTED: usize = 1;
const DNAT: usize = 2;
const ONE: usize = 3;
const MANY: usize = 4;
const FEW: usize = 5;
const SPREAD: usize = 6;
const COUNTED: usize = 7;
const KUBE_PROXY: usize = 8;
const KUBE_PROXY_LOCAL: usize = 9;

pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    // Without these rules the other contenders are measured.
    let rules = kube_proxy::rules_for_one(bench).await;
    let ends = Ends::new()?;
    let one = Size { services: 1, endpoints: 4, spread: true };
    let mut all = vec![
        contenders::direct(&ends),
        contenders::plain_routing(&ends)?,
        contenders::static_dnat(&ends)?,
        contenders::landfall(&ends, "landfall, 1 Service", 3, one)?,
        contenders::landfall(&ends, "landfall, 30,000 Services", 4, Size { services: 30_000, ..one })?,
        contenders::landfall(&ends, "landfall, 2 Services, one spread", 5, Size { services: 2, ..one })?,
        contenders::landfall_with_spreading(
            &ends,
            "landfall, 3 Services, kept by the spread",
            6,
            Size { services: 3, ..one },
        )?,
        // Its other Services have endpoints only on this node, so that nothing is spread.
        contenders::landfall_with_counters(
            &ends,
            "landfall, packets and bytes counted",
            7,
            Size { services: 4, endpoints: 1, spread: false },
        )?,
    ];
    match &rules {
        Ok([cluster, local]) => {
            all.push(contenders::kube_proxy(&ends, "kube-proxy nftables, Cluster", KUBE_PROXY_PATHS[0], cluster)?);
            all.push(contenders::kube_proxy(&ends, "kube-proxy nftables, Local", KUBE_PROXY_PATHS[1], local)?);
        }
        Err(error) => bench.progress(&format!("kube-proxy has no rules: {error:#}"))?,
    }
    let rounds = BATCH * if bench.quick { 5 } else { 15 };
    let listener = ends.server.run(|| TcpListener::bind(("0.0.0.0", PORT))).context("listen")?;
    let costs = ends.client.run(|| -> Result<_> {
        let connections = take_turns(&all, rounds, |contender| time_connections(contender, &listener))?;
        let mut open =
            all.iter().map(|contender| OpenConnection::new(contender, &listener)).collect::<Result<Vec<_>>>()?;
        let places: Vec<usize> = (0..all.len()).collect();
        let questions = take_turns(&places, rounds, |place| open[*place].time_questions())?;
        Ok(Costs { connections, questions })
    })?;
    for contender in &all {
        if let Some(path) = &contender.path {
            path.ensure_no_drops().with_context(|| contender.name)?;
        }
    }
    report_costs(bench, report, &all, rounds, &costs)
}

/// CPU time in nanoseconds: for each contender one value per round.
type Nanoseconds = Vec<Vec<f64>>;

/// The CPU time of a connection, and of a question with its answer.
struct Costs {
    connections: Nanoseconds,
    questions: Nanoseconds,
}

/// Measures blocks of all contenders in turns.
fn take_turns<T>(all: &[T], rounds: usize, mut block: impl FnMut(&T) -> Result<f64>) -> Result<Nanoseconds> {
    let mut costs = vec![Vec::new(); all.len()];
    // The first blocks resolve neighbours and fill caches.
    for one in all {
        block(one)?;
    }
    for round in 0..rounds {
        let turns: Vec<usize> = (0..all.len()).map(|place| (round + place) % all.len()).collect();
        let mut sums = vec![0.0; all.len()];
        for &turn in turns.iter().chain(turns.iter().rev()) {
            sums[turn] += block(&all[turn])?;
        }
        for (costs, sum) in costs.iter_mut().zip(sums) {
            costs.push(sum / 2.0);
        }
    }
    Ok(costs)
}

/// The CPU time of one connection, from a block. NaN for a contender that spreads, because half of its flows do not
/// arrive.
fn time_connections(contender: &Contender, listener: &TcpListener) -> Result<f64> {
    if contender.is_spread {
        return Ok(f64::NAN);
    }
    let (target, begun) = (contender.target, cpu()?);
    for _ in 0..BLOCK {
        let client = connect(target)?;
        let (server, _) = listener.accept()?;
        // Reset: lingering connections would use up the ports.
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        drop(client);
        drop(server);
    }
    Ok((cpu()? - begun).as_nanos() as f64 / f64::from(BLOCK))
}

/// Both ends of an open connection.
struct OpenConnection {
    client: TcpStream,
    server: TcpStream,
}

impl OpenConnection {
    fn new(contender: &Contender, listener: &TcpListener) -> Result<Self> {
        let mut client = connect(contender.target);
        // Each attempt is another flow. After a few attempts one stays on this node.
        for _ in 0..if contender.is_spread { 50 } else { 0 } {
            if client.is_ok() {
                break;
            }
            client = connect(contender.target);
        }
        let client = client?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        Ok(Self { client, server })
    }

    /// The CPU time of one question and its answer, from a block.
    fn time_questions(&mut self) -> Result<f64> {
        let mut byte = [0];
        let begun = cpu()?;
        for _ in 0..BLOCK {
            self.client.write_all(b"?")?;
            self.server.read_exact(&mut byte)?;
            self.server.write_all(b"!")?;
            self.client.read_exact(&mut byte)?;
        }
        Ok((cpu()? - begun).as_nanos() as f64 / f64::from(BLOCK))
    }
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect to {target}"))
}

/// The CPU time of this thread so far.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the CPU time of this thread")?.into())
}

fn report_costs(bench: &Bench, report: &mut Report, all: &[Contender], rounds: usize, costs: &Costs) -> Result<()> {
    report.part(&format!("CPU time, {rounds} rounds of 2 × {BLOCK} connections and questions each"));
    for (place, contender) in all.iter().enumerate() {
        report.row(contender.name, "");
        if !contender.is_spread {
            report.distribution("  a connection", &medians(&costs.connections[place]), "ns");
        }
        if contender.path.is_some() && !contender.is_spread {
            report.distribution("    of that, on the host in between", &costs.forwarding(place), "ns");
        }
        report.distribution("  a question and its answer", &medians(&costs.questions[place]), "ns");
    }
    report_connections(report, all, costs);
    report_questions(report, costs);
    let first = median_text(&costs.forwarding_ratios(FEW, DNAT));
    bench.progress(&format!("a connection costs {first} times as much as with one static rule"))
}

/// The cost of a new connection on the host in between, to that of others.
fn report_connections(report: &mut Report, all: &[Contender], costs: &Costs) {
    let ratios = |ours, theirs| costs.forwarding_ratios(ours, theirs);
    let default = "new connection, another Service is spread: to static DNAT";
    let spec = FigureSpec::lower("cpu_per_conn_vs_static_dnat", default, "ratio").goal("1.00 or less");
    report.measure(spec, &ratios(FEW, DNAT));
    let spec = FigureSpec::lower("cpu_per_conn_unspread_vs_static_dnat", "  no Service is spread", "ratio");
    report.measure(spec, &ratios(ONE, DNAT));
    let spec = FigureSpec::lower("cpu_per_conn_counted_vs_static_dnat", "  packets and bytes counted", "ratio");
    report.measure(spec, &ratios(COUNTED, DNAT));
    let label = "new connection, some spread: 30,000 Services to 2";
    let spec = FigureSpec::lower("cpu_per_conn_30k_vs_2", label, "ratio").goal("0.97 to 1.03");
    report.measure(spec, &ratios(MANY, FEW));
    let label = "new connection: 30,000 Services, some spread, to 1, unspread";
    report.measure(FigureSpec::lower("cpu_per_conn_30k_vs_1_unspread", label, "ratio"), &ratios(MANY, ONE));
    if all.len() > KUBE_PROXY_LOCAL {
        let label = "new connection, another Service is spread: to kube-proxy, Cluster";
        let spec = FigureSpec::lower("cpu_per_conn_vs_kube_proxy_cluster", label, "ratio").goal("0.90 or less");
        report.measure(spec, &ratios(FEW, KUBE_PROXY));
        let label = "  to kube-proxy, Local: without masquerading";
        let spec = FigureSpec::lower("cpu_per_conn_vs_kube_proxy_local", label, "ratio");
        report.measure(spec, &ratios(FEW, KUBE_PROXY_LOCAL));
    }
}

/// Questions in the same time as with plain routing: with client and server, and of the host in between alone.
fn report_questions(report: &mut Report, costs: &Costs) {
    let label = "questions per second, kept by the spread: to routed + conntrack";
    let spec = FigureSpec::higher("established_vs_routed", label, "ratio").goal("0.97 or more");
    report.measure(spec, &costs.question_rates(SPREAD));
    for (name, label, place) in [
        ("established_unspread_vs_routed", "  no Service is spread", ONE),
        ("established_30k_vs_routed", "  30,000 Services", MANY),
        ("established_counted_vs_routed", "  packets and bytes counted", COUNTED),
        ("static_dnat_established_vs_routed", "  static DNAT", DNAT),
    ] {
        report.measure(FigureSpec::higher(name, label, "ratio"), &costs.question_rates(place));
    }
    let label = "the same without client and server, kept by the spread";
    let spec = FigureSpec::higher("established_host_vs_routed", label, "ratio");
    report.measure(spec, &costs.host_question_rates(SPREAD));
    let label = "  no Service is spread";
    let spec = FigureSpec::higher("established_host_unspread_vs_routed", label, "ratio");
    report.measure(spec, &costs.host_question_rates(ONE));
}

impl Costs {
    /// The nanoseconds of a connection on the host in between.
    fn forwarding(&self, place: usize) -> Vec<f64> {
        subtract(&medians(&self.connections[place]), &medians(&self.connections[DIRECT]))
    }

    fn forwarding_ratios(&self, ours: usize, theirs: usize) -> Vec<f64> {
        ratios(&self.forwarding(ours), &self.forwarding(theirs))
    }

    /// The rate of questions, to that of plain routing.
    fn question_rates(&self, ours: usize) -> Vec<f64> {
        ratios(&medians(&self.questions[ROUTED]), &medians(&self.questions[ours]))
    }

    /// Like [`Costs::question_rates`], without the cost of client and server.
    fn host_question_rates(&self, ours: usize) -> Vec<f64> {
        let host = |place: usize| subtract(&medians(&self.questions[place]), &medians(&self.questions[DIRECT]));
        ratios(&host(ROUTED), &host(ours))
    }
}

/// The median of each batch of rounds.
fn medians(costs: &[f64]) -> Vec<f64> {
    costs.chunks(BATCH).filter_map(Distribution::from_values).map(|batch| batch.median).collect()
}

/// Subtracts the floor from each cost.
fn subtract(costs: &[f64], floor: &[f64]) -> Vec<f64> {
    costs.iter().zip(floor).map(|(cost, floor)| cost - floor).collect()
}
