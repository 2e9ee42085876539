//! What forwarding costs: CPU time of a new connection, and of a packet of one that is open.
//!
//! One thread is client and server ([`crate::path`] says why), and its own CPU time (`CLOCK_THREAD_CPUTIME_ID`, nanoseconds)
//! is what is compared: time that other processes take doesn't count. Contenders take turns in short blocks, there and back
//! (ABBA); a ratio is of blocks of the same round. Each round begins with another one: who turns around has two blocks in a row,
//! and finds its caches warm.
//!
//! - A *connection* is made and reset: four packets. What client and server alone cost is taken off, so the ratio is of what
//!   the host in between costs: routing, connection tracking, translation.
//! - A *question* is a byte there and a byte back over an open connection, without GSO or any other batching, which hides what
//!   a packet costs. The ratio is of the whole, as whoever asks sees it: questions that can be asked in the same time.
//!
//! One Service alone has its endpoint on the node and nothing to spread, as a static rule has it. Of 30,000 some are spread, so
//! each frame is looked at as it comes in. What they cost is therefore compared with that of two, one of which is spread: the
//! number of Services is all that differs.
//!
//! All agents are off: what is in the kernel is what is measured. The table of connection tracking is emptied by its own
//! short timeouts, and nothing may have been dropped by it in the end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use bench::distribution::{Distribution, ratios};
use bench::report::Report;
use nix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use crate::Bench;
use crate::contenders::{self, Contender};
use crate::kube_proxy;
use crate::path::{Ends, PORT};
use crate::synthetic::Size;

/// Connections, or questions, in a block.
const BLOCK: u32 = 1000;

/// A connect is done when it returns, or the packet went elsewhere.
const PATIENCE: Duration = Duration::from_millis(500);

/// Rounds of which medians are taken before anything is compared: what is left of a difference is small beside what one block
/// differs from the next.
const BATCH: usize = 10;

/// Who takes part, in the order of the first half of the first round.
const DIRECT: usize = 0;
const ROUTED: usize = 1;
const DNAT: usize = 2;
const ONE: usize = 3;
const MANY: usize = 4;
const FEW: usize = 5;
const SPREAD: usize = 6;
const COUNTED: usize = 7;
const PEER: usize = 8;

/// Measures both.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    // Without it the others are measured nevertheless.
    let rules = kube_proxy::rules_for_one(bench).await;
    let ends = Ends::new()?;
    let one = Size { services: 1, endpoints: 4, spread: true };
    let mut all = vec![
        contenders::direct(&ends),
        contenders::routed(&ends)?,
        contenders::dnat(&ends)?,
        contenders::landfall(&ends, "landfall, 1 Service", 3, one)?,
        contenders::landfall(&ends, "landfall, 30,000 Services", 4, Size { services: 30_000, ..one })?,
        contenders::landfall(&ends, "landfall, 2 Services, one spread", 5, Size { services: 2, ..one })?,
        contenders::spread(&ends, "landfall, 3 Services, kept by the spread", 6, Size { services: 3, ..one })?,
        // Its other Services are on this node too, so that nothing is spread.
        contenders::counted(
            &ends,
            "landfall, packets and bytes counted",
            7,
            Size { services: 4, endpoints: 1, spread: false },
        )?,
    ];
    match &rules {
        Ok(rules) => all.push(contenders::kube_proxy(&ends, rules)?),
        Err(error) => bench.progress(&format!("kube-proxy's rules are not there: {error:#}"))?,
    }
    let rounds = BATCH * if bench.quick { 4 } else { 15 };
    let listener = ends.server.run(|| TcpListener::bind(("0.0.0.0", PORT))).context("listen")?;
    let (connections, questions) = ends.client.run(|| -> Result<_> {
        let connections = rounds_of(&all, rounds, |contender| connections(contender, &listener))?;
        let mut open = all.iter().map(|contender| Open::to(contender, &listener)).collect::<Result<Vec<_>>>()?;
        let places: Vec<usize> = (0..all.len()).collect();
        Ok((connections, rounds_of(&places, rounds, |place| open[*place].ask())?))
    })?;
    for contender in &all {
        if let Some(way) = &contender.way {
            way.has_lost_nothing().with_context(|| contender.name)?;
        }
    }
    tell(bench, report, &all, rounds, (&connections, &questions))
}

/// Nanoseconds of each, for every contender: one per round.
type Costs = Vec<Vec<f64>>;

/// Lets all take turns.
fn rounds_of<T>(all: &[T], rounds: usize, mut block: impl FnMut(&T) -> Result<f64>) -> Result<Costs> {
    let mut costs = vec![Vec::new(); all.len()];
    // The first blocks find addresses of neighbours, and fill caches.
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

/// What one connection costs, of a block. Of one whose flows are spread, nothing: half of them would not come here.
fn connections(contender: &Contender, listener: &TcpListener) -> Result<f64> {
    if contender.is_spread {
        return Ok(f64::NAN);
    }
    let (target, begun) = (contender.target, cpu()?);
    for _ in 0..BLOCK {
        let client = connected(target)?;
        let (server, _) = listener.accept()?;
        // Reset: what lingers would use up ports.
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        drop(client);
        drop(server);
    }
    Ok((cpu()? - begun).as_nanos() as f64 / f64::from(BLOCK))
}

/// An open connection, both ends of it.
struct Open {
    client: TcpStream,
    server: TcpStream,
}

impl Open {
    fn to(contender: &Contender, listener: &TcpListener) -> Result<Self> {
        let mut client = connected(contender.target);
        // The flow of each attempt is another one: sooner or later one stays here.
        for _ in 0..if contender.is_spread { 50 } else { 0 } {
            if client.is_ok() {
                break;
            }
            client = connected(contender.target);
        }
        let client = client?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        Ok(Self { client, server })
    }

    /// What one question costs, of a block.
    fn ask(&mut self) -> Result<f64> {
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

fn connected(target: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect to {target}"))
}

/// The CPU time of this thread so far.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("ask for the time of this thread")?.into())
}

fn tell(bench: &Bench, report: &mut Report, all: &[Contender], rounds: usize, costs: (&Costs, &Costs)) -> Result<()> {
    let (connections, questions) = costs;
    let spread = |values: &[f64]| Distribution::from_values(values).context("invariant: there are rounds");
    report.part(&format!("CPU time, {rounds} rounds of 2 × {BLOCK} connections and questions each"));
    for (contender, (connections, questions)) in all.iter().zip(connections.iter().zip(questions)) {
        let between = extra(&batches(connections), &batches(&costs.0[DIRECT]));
        report.row(contender.name, "");
        if !contender.is_spread {
            report.distribution("  a connection", spread(connections)?, "ns");
        }
        if contender.way.is_some() && !contender.is_spread {
            report.distribution("    of that, on the host in between", spread(&between)?, "ns");
        }
        report.distribution("  a question and its answer", spread(questions)?, "ns");
    }
    // Of what the host in between costs.
    let between = |of: usize| extra(&batches(&connections[of]), &batches(&connections[DIRECT]));
    let to = |ours: usize, theirs: usize| spread(&ratios(&between(ours), &between(theirs)));
    let asked = |ours: usize| spread(&ratios(&batches(&questions[ROUTED]), &batches(&questions[ours])));
    let first = to(ONE, DNAT)?;
    report.ratio("cpu_per_conn_vs_static_dnat", "new connection: 1 Service to static DNAT", first, "1.15 or less");
    for (what, of) in [("another Service is spread", FEW), ("packets and bytes counted", COUNTED)] {
        report.row(&format!("  the same, {what}"), &format!("{:8.2}", to(of, DNAT)?.median));
    }
    let flat = to(MANY, FEW)?;
    report.ratio("cpu_per_conn_30k_vs_1", "new connection: 30,000 Services to 2, some spread", flat, "0.97 to 1.03");
    if all.len() > PEER {
        let what = "new connection: 1 Service to kube-proxy nftables";
        report.ratio("cpu_per_conn_vs_kube_proxy", what, to(ONE, PEER)?, "0.90 or less");
    }
    report.ratio(
        "established_vs_routed",
        "questions in a second: 1 Service to routed + conntrack",
        asked(ONE)?,
        "0.97 or more",
    );
    let others = [
        ("30,000 Services", MANY),
        ("kept by the spread", SPREAD),
        ("packets and bytes counted", COUNTED),
        ("static DNAT", DNAT),
    ];
    for (what, of) in others {
        report.row(&format!("  the same, {what}"), &format!("{:8.2}", asked(of)?.median));
    }
    bench.progress(&format!("a connection costs {:.2} times what it does with one static rule", first.median))
}

/// The median of each batch.
fn batches(costs: &[f64]) -> Vec<f64> {
    costs.chunks(BATCH).filter_map(Distribution::from_values).map(|spread| spread.median).collect()
}

/// What is more than the floor, one by one.
fn extra(costs: &[f64], floor: &[f64]) -> Vec<f64> {
    costs.iter().zip(floor).map(|(cost, floor)| cost - floor).collect()
}
