//! The view of clients on the LAN: the share of each node, and the survival of connections.
//!
//! - *share*: 10,000 connections to one address under the traffic policy Cluster. It counts the connections to the pods
//!   of each node, and whether all pods see the client's address.
//! - *planned*: the owner of the address is drained again and again, with new connects all the time and open
//!   connections.
//! - *dead-node*: a node that has pods, but not the address, loses its power. Connects begin every 10 ms, to Landfall's
//!   address and to the node port of a third node, where kube-proxy serves the same pods. The outage lasts until the
//!   last lost connect. A connect of more than 400 ms is lost, because its first packet was lost.
//! - *crash*: the owner of the address loses its power, with open connections. Connections to its own pods do not
//!   count.
//!
//! A power-off is silent at first: no carrier goes down, and no neighbour is notified.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bench::connector::Connector;
use bench::distribution::Distribution;
use bench::gaps::Attempt;
use bench::probe::CONNECTS;
use bench::report::Report;
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::Bench;
use crate::testbed::ForwardingTestbed;
use crate::testbed::client::{self, Flow, Flows};

/// Open connections.
const FLOWS: usize = 1000;

/// The time after a death in which connections are observed. TCP sends a packet again after 0.2, 0.6, 1.4 and 3 s.
const OBSERVATION_OF_FLOWS: Duration = Duration::from_secs(8);

/// The time after a death in which kube-proxy is observed. A silent node stays Ready for 50 s after its last heartbeat,
/// and the controller checks that every few seconds. Then its endpoints are removed.
const OBSERVATION_OF_CONNECTS: Duration = Duration::from_secs(90);

pub async fn measure_shares(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let (rounds, count) = (if bench.quick { 1 } else { 3 }, 10_000);
    let (shares, mut errors, mut masked) = (testbed.shares(), Vec::new(), 0);
    let mut last_round = String::new();
    for _ in 0..rounds {
        let answers = block_in_place(|| client::query_all(&testbed.client, testbed.target, count))?;
        let mut counts: BTreeMap<&str, f64> = shares.keys().map(|node| (*node, 0.0)).collect();
        for answer in &answers {
            let node = testbed.nodes.get(&answer.pod).with_context(|| format!("{} answers", answer.pod))?;
            *counts.entry(node.as_str()).or_default() += 1.0;
            masked += usize::from(answer.client.ip() != testbed.client_address());
        }
        let error = |(node, share): (&&str, &f64)| (counts[*node] / count as f64 / share - 1.0).abs() * 100.0;
        errors.push(shares.iter().map(error).fold(0.0, f64::max));
        last_round = counts.iter().map(|(node, count)| format!("{node} {count} ")).collect();
    }
    let distribution = Distribution::from_values(&errors).context("invariant: there are rounds")?;
    bench.progress(&format!("shares are off by {:.1} % at most: {last_round}", distribution.median))?;
    report.part(&format!("Policy Cluster, {count} connections, {rounds} rounds"));
    report.measurement("share_error_percent", "share of a node, off by at most", distribution, ("%", "5 or less"));
    report.row("connections of each node, in the last round", &last_round);
    report.row("pods that did not see the client", &format!("{masked:8}  goal 0"));
    ensure!(masked == 0, "{masked} connections arrived with another source address than the client's");
    Ok(())
}

pub async fn measure_planned_moves(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let count = if bench.quick { 10_000 } else { 100_000 };
    let flows = block_in_place(|| Flows::open(&testbed.client, testbed.target, FLOWS))?;
    let done = Arc::new(AtomicUsize::new(0));
    let connects = client::connect(&testbed.client, testbed.target, count, &done);
    let mut moves = 0;
    while done.load(Ordering::Relaxed) < count && !connects.is_finished() {
        let owner = testbed.owner().await?;
        let node = format!("node/{owner}");
        testbed.world.kubectl(&["label", &node, "landfall.dev/drain=true"])?;
        let moved = testbed.wait_for_move(&owner).await;
        // Clients with an old neighbour entry still send packets here.
        sleep(Duration::from_secs(1)).await;
        testbed.world.kubectl(&["label", &node, "landfall.dev/drain-"])?;
        moved?;
        moves += 1;
        sleep(Duration::from_secs(1)).await;
    }
    let tally = block_in_place(|| connects.join()).map_err(|_| anyhow!("the connecting clients panicked"))??;
    let flows = block_in_place(|| flows.end())?;
    let broken: Vec<&Flow> = flows.iter().filter(|flow| flow.broken.is_some()).collect();
    bench.progress(&format!("{moves} moves: {} flows broken, {} connects failed", broken.len(), tally.failed))?;
    report.part(&format!("{moves} planned moves of the address"));
    report.row(
        &format!("of {FLOWS} open connections, broken"),
        &format!("{:8}  goal 0{}", broken.len(), first_reason(&broken)),
    );
    report.row(&format!("of {} connects, failed", tally.total), &format!("{:8}  goal 0", tally.failed));
    report.row("  slower than 200 ms", &format!("{:8}", tally.slow));
    report.figure("planned_flows_broken", broken.len() as f64);
    report.figure("planned_connects_failed", tally.failed as f64);
    Ok(())
}

pub async fn measure_dead_node(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let owner = testbed.owner().await?;
    let others: Vec<&str> = testbed.shares().into_keys().filter(|node| *node != owner).collect();
    // The node with more pods dies. kube-proxy is measured at the owner, which stays alive.
    let victim = others.iter().copied().max_by(|a, b| testbed.shares()[a].total_cmp(&testbed.shares()[b]));
    let victim = victim.context("no node is left")?;
    let begun = Instant::now();
    let ours = Connector::begin(&testbed.client, testbed.target, CONNECTS, begun);
    let theirs = Connector::begin(&testbed.client, testbed.node_port(&owner), CONNECTS, begun);
    sleep(Duration::from_secs(2)).await;
    let death = begun.elapsed();
    testbed.world.cluster.power_off(victim)?;
    let silent = begun.elapsed();
    sleep(OBSERVATION_OF_CONNECTS).await;
    let (ours, theirs) = block_in_place(|| Ok::<_, anyhow::Error>((ours.end()?, theirs.end()?)))?;
    for (product, attempts) in [("Landfall", &ours), ("kube-proxy", &theirs)] {
        let before =
            attempts.iter().filter(|attempt| attempt.began < death.saturating_sub(CONNECTS) && !attempt.accepted);
        // Connects under way at the death belong to it. Earlier ones do not.
        let before = before.filter(|attempt| attempt.began + bench::connector::CONNECT_TIMEOUT < death).count();
        ensure!(before == 0, "{before} connects to {product} failed before the death");
    }
    let (ours, theirs) = (Loss::since(&ours, death), Loss::since(&theirs, death));
    bench.progress(&format!("without {victim}: {}; kube-proxy {}", ours.text(), theirs.text()))?;
    report.part(&format!(
        "A node with 2 of 5 pods dies, the address is on another; silent after {:.0} ms",
        (silent - death).as_secs_f64() * 1e3
    ));
    report.row("until all new connections succeed", &format!("{}  goal 250 ms or less", ours.text()));
    report.row("kube-proxy nftables, node port of a third node", &theirs.text());
    report.figure("dead_node_bad_ms", ours.millis);
    report.figure("kube_proxy_dead_node_bad_ms", theirs.millis);
    testbed.restore(victim).await
}

pub async fn measure_crashes(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let rounds = if bench.quick { 1 } else { 3 };
    let mut shares = Vec::new();
    report.part(&format!("The owner of the address dies, {FLOWS} open connections, {rounds} times"));
    for _ in 0..rounds {
        let flows = block_in_place(|| Flows::open(&testbed.client, testbed.target, FLOWS))?;
        let owner = testbed.owner().await?;
        sleep(Duration::from_secs(1)).await;
        testbed.world.cluster.power_off(&owner)?;
        sleep(OBSERVATION_OF_FLOWS).await;
        let flows = block_in_place(|| flows.end())?;
        let living: Vec<&Flow> = flows.iter().filter(|flow| testbed.nodes.get(&flow.pod) != Some(&owner)).collect();
        let broken: Vec<&Flow> = living.iter().copied().filter(|flow| flow.broken.is_some()).collect();
        ensure!(!living.is_empty(), "all connections were to the node that died");
        let share = (1.0 - broken.len() as f64 / living.len() as f64) * 100.0;
        shares.push(share);
        bench.progress(&format!("without {owner}: {share:.2} % of {} survive", living.len()))?;
        report.row(
            &format!("without {owner}: of {} whose pod lives, broken", living.len()),
            &format!("{:8}{}", broken.len(), first_reason(&broken)),
        );
        testbed.restore(&owner).await?;
    }
    let distribution = Distribution::from_values(&shares).context("invariant: there are rounds")?;
    report.measurement(
        "crash_flows_survived_percent",
        "of those whose pod lives, survive",
        distribution,
        ("%", "99 or more"),
    );
    Ok(())
}

/// The lost connects after a death.
struct Loss {
    /// The time from the death to the first connect after the last lost one, in milliseconds.
    millis: f64,
    lost: usize,
    total: usize,
}

impl Loss {
    fn since(attempts: &[Attempt], death: Duration) -> Self {
        let after: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.began >= death).collect();
        let lost: Vec<Duration> =
            after.iter().filter(|attempt| !attempt.accepted).map(|attempt| attempt.began).collect();
        // All connects from the one after the last lost one succeed.
        let outage = lost.last().map_or(Duration::ZERO, |last| *last + CONNECTS - death);
        Self { millis: outage.as_secs_f64() * 1e3, lost: lost.len(), total: after.len() }
    }

    fn text(&self) -> String {
        format!("{:8.0} ms, {} of {} connects lost", self.millis, self.lost, self.total)
    }
}

/// Why the first of these flows broke, for a row.
fn first_reason(broken: &[&Flow]) -> String {
    let why = broken.first().and_then(|flow| flow.broken.as_deref());
    why.map(|why| format!("  (the first: {why})")).unwrap_or_default()
}
