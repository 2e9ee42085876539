//! What clients on the LAN see of the whole: shares, and what becomes of their connections.
//!
//! - *share*: ten thousand connections to one address under the traffic policy Cluster. How many each node's pods get, and
//!   whether all of them see the client.
//! - *planned*: the owner of the address is drained again and again, while others connect all the time and connections stay.
//! - *dead-node*: a node that has pods, but not the address, loses its power. Connects begin every 10 ms, to Landfall's address
//!   and, beside it, to the node port of a third node, where kube-proxy serves the same pods. The last that was lost says
//!   how long it was bad: each that takes longer than 400 ms is, for then its first packet is.
//! - *crash*: the owner of the address loses its power, while connections stay. Those whose pod was on it don't count.
//!
//! A power-off is silence first: no carrier goes down anywhere, and no neighbour is told.

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
use crate::testbed::Stand;
use crate::testbed::client::{self, Flow, Flows};

/// Connections that stay.
const FLOWS: usize = 1000;

/// How long after a death connections are watched: TCP sends a packet again after 0.2, 0.6, 1.4 and 3 s.
const AFTER: Duration = Duration::from_secs(8);

/// How long kube-proxy is watched: a silent node is Ready for 50 s after its last word, which may be some seconds old or
/// seconds after that be looked at, and then its endpoints go.
const KUBERNETES: Duration = Duration::from_secs(90);

/// Who gets how much.
pub async fn share(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let (rounds, count) = (if bench.quick { 1 } else { 3 }, 10_000);
    let (shares, mut errors, mut strangers) = (stand.shares(), Vec::new(), 0);
    let mut told = String::new();
    for _ in 0..rounds {
        let lines = block_in_place(|| client::ask(&stand.client, stand.target, count))?;
        let mut counts: BTreeMap<&str, f64> = shares.keys().map(|node| (*node, 0.0)).collect();
        for line in &lines {
            let node = stand.nodes.get(&line.pod).with_context(|| format!("{} answers", line.pod))?;
            *counts.entry(node.as_str()).or_default() += 1.0;
            strangers += usize::from(line.client.ip() != stand.client_address());
        }
        let error = |(node, share): (&&str, &f64)| (counts[*node] / count as f64 / share - 1.0).abs() * 100.0;
        errors.push(shares.iter().map(error).fold(0.0, f64::max));
        told = counts.iter().map(|(node, count)| format!("{node} {count} ")).collect();
    }
    let spread = Distribution::from_values(&errors).context("invariant: there are rounds")?;
    bench.progress(&format!("shares are off by {:.1} % at most: {told}", spread.median))?;
    report.part(&format!("Policy Cluster, {count} connections, {rounds} rounds"));
    report.measurement("share_error_percent", "share of a node, off by at most", spread, ("%", "5 or less"));
    report.row("connections of each node, in the last round", &told);
    report.row("pods that did not see the client", &format!("{strangers:8}  goal 0"));
    ensure!(strangers == 0, "{strangers} connections came with another address than the client's");
    Ok(())
}

/// The owner is drained, again and again.
pub async fn planned(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let count = if bench.quick { 10_000 } else { 100_000 };
    let flows = block_in_place(|| Flows::open(&stand.client, stand.target, FLOWS))?;
    let done = Arc::new(AtomicUsize::new(0));
    let connects = client::connect(&stand.client, stand.target, count, &done);
    let mut moves = 0;
    while done.load(Ordering::Relaxed) < count && !connects.is_finished() {
        let owner = stand.owner().await?;
        let node = format!("node/{owner}");
        stand.world.kubectl(&["label", &node, "landfall.dev/drain=true"])?;
        let moved = stand.moved(&owner).await;
        // Packets of clients that have not heard of it yet still come.
        sleep(Duration::from_secs(1)).await;
        stand.world.kubectl(&["label", &node, "landfall.dev/drain-"])?;
        moved?;
        moves += 1;
        sleep(Duration::from_secs(1)).await;
    }
    let tally = block_in_place(|| connects.join()).map_err(|_| anyhow!("those who connect panicked"))??;
    let flows = block_in_place(|| flows.end())?;
    let broken: Vec<&Flow> = flows.iter().filter(|flow| flow.broken.is_some()).collect();
    bench.progress(&format!("{moves} moves: {} flows broken, {} connects failed", broken.len(), tally.failed))?;
    report.part(&format!("{moves} planned moves of the address"));
    report
        .row(&format!("of {FLOWS} open connections, broken"), &format!("{:8}  goal 0{}", broken.len(), first(&broken)));
    report.row(&format!("of {} connects, failed", tally.made), &format!("{:8}  goal 0", tally.failed));
    report.row("  and took longer than 200 ms", &format!("{:8}", tally.slow));
    report.figure("planned_flows_broken", broken.len() as f64);
    report.figure("planned_connects_failed", tally.failed as f64);
    Ok(())
}

/// A node with pods dies that doesn't have the address.
pub async fn dead_node(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let owner = stand.owner().await?;
    let others: Vec<&str> = stand.shares().into_keys().filter(|node| *node != owner).collect();
    // The one with more pods dies; kube-proxy is asked at the owner, which lives.
    let victim = others.iter().copied().max_by(|a, b| stand.shares()[a].total_cmp(&stand.shares()[b]));
    let victim = victim.context("no node is left")?;
    let begun = Instant::now();
    let ours = Connector::begin(&stand.client, stand.target, CONNECTS, begun);
    let theirs = Connector::begin(&stand.client, stand.node_port(&owner), CONNECTS, begun);
    sleep(Duration::from_secs(2)).await;
    let death = begun.elapsed();
    stand.world.cluster.power_off(victim)?;
    let silent = begun.elapsed();
    sleep(KUBERNETES).await;
    let (ours, theirs) = block_in_place(|| Ok::<_, anyhow::Error>((ours.end()?, theirs.end()?)))?;
    for (who, attempts) in [("Landfall", &ours), ("kube-proxy", &theirs)] {
        let before =
            attempts.iter().filter(|attempt| attempt.began < death.saturating_sub(CONNECTS) && !attempt.accepted);
        // Connects that were under way when it died are about the death; those long before are not.
        let before = before.filter(|attempt| attempt.began + bench::connector::CONNECT_TIMEOUT < death).count();
        ensure!(before == 0, "{before} connects to {who} failed before anything happened");
    }
    let (bad, peers) = (bad(&ours, death), bad(&theirs, death));
    let text = |(ms, lost, all): (f64, usize, usize)| format!("{ms:8.0} ms, {lost} of {all} connects lost");
    bench.progress(&format!("without {victim}: {}; kube-proxy {}", text(bad), text(peers)))?;
    report.part(&format!(
        "A node with 2 of 5 pods dies, the address is on another; silent after {:.0} ms",
        (silent - death).as_secs_f64() * 1e3
    ));
    report.row("until all new connections succeed", &format!("{}  goal 250 ms or less", text(bad)));
    report.row("kube-proxy nftables, node port of a third node", &text(peers));
    report.figure("dead_node_bad_ms", bad.0);
    report.figure("kube_proxy_dead_node_bad_ms", peers.0);
    stand.regain(victim).await
}

/// The owner dies.
pub async fn crash(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let rounds = if bench.quick { 1 } else { 3 };
    let mut shares = Vec::new();
    report.part(&format!("The owner of the address dies, {FLOWS} open connections, {rounds} times"));
    for _ in 0..rounds {
        let flows = block_in_place(|| Flows::open(&stand.client, stand.target, FLOWS))?;
        let owner = stand.owner().await?;
        sleep(Duration::from_secs(1)).await;
        stand.world.cluster.power_off(&owner)?;
        sleep(AFTER).await;
        let flows = block_in_place(|| flows.end())?;
        let living: Vec<&Flow> = flows.iter().filter(|flow| stand.nodes.get(&flow.pod) != Some(&owner)).collect();
        let broken: Vec<&Flow> = living.iter().copied().filter(|flow| flow.broken.is_some()).collect();
        ensure!(!living.is_empty(), "all connections were to the node that died");
        let share = (1.0 - broken.len() as f64 / living.len() as f64) * 100.0;
        shares.push(share);
        bench.progress(&format!("without {owner}: {share:.2} % of {} survive", living.len()))?;
        report.row(
            &format!("without {owner}: of {} whose pod lives, broken", living.len()),
            &format!("{:8}{}", broken.len(), first(&broken)),
        );
        stand.regain(&owner).await?;
    }
    let spread = Distribution::from_values(&shares).context("invariant: there are rounds")?;
    report.measurement(
        "crash_flows_survived_percent",
        "of those whose pod lives, survive",
        spread,
        ("%", "99 or more"),
    );
    Ok(())
}

/// For how long after a death connects were lost, in milliseconds, how many, and of how many.
fn bad(attempts: &[Attempt], death: Duration) -> (f64, usize, usize) {
    let after: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.began >= death).collect();
    let lost: Vec<Duration> = after.iter().filter(|attempt| !attempt.accepted).map(|attempt| attempt.began).collect();
    // The next one after the last that was lost is the first of those that all succeed.
    let last = lost.last().map_or(Duration::ZERO, |last| *last + CONNECTS - death);
    (last.as_secs_f64() * 1e3, lost.len(), after.len())
}

/// Why the first of these ended.
fn first(broken: &[&Flow]) -> String {
    let why = broken.first().and_then(|flow| flow.broken.as_deref());
    why.map(|why| format!("  (the first: {why})")).unwrap_or_default()
}
