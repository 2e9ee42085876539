//! The view of clients on the LAN: the share of each node, and the survival of connections.
//!
//! - *share*: 10,000 connections to one address under the traffic policy Cluster. It counts the connections to the pods
//!   of each node, and whether all pods see the client's address.
//! - *planned*: the owner of the address is drained again and again, with new connects all the time and open
//!   connections.
//! - *crash*: the owner of the address loses its power, with open connections. Connections to its own pods do not
//!   count.
//!
//! A power-off is silent at first: no carrier goes down, and no neighbour is notified.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bench::report::{FigureSpec, Report, median_text};
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::Bench;
use crate::testbed::ForwardingTestbed;
use crate::testbed::client::{self, Flow, Flows};

/// Open connections.
const FLOWS: usize = 1000;

/// The time after a death in which connections are observed. TCP sends a packet again after 0.2, 0.6, 1.4 and 3 s.
const OBSERVATION_OF_FLOWS: Duration = Duration::from_secs(8);

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
    bench.progress(&format!("shares are off by {} % at most: {last_round}", median_text(&errors)))?;
    report.part(&format!("Policy Cluster, {count} connections, {rounds} rounds"));
    let spec = FigureSpec::lower("share_error_percent", "share of a node, off by at most", "%").goal("5 or less");
    report.measure(spec, &errors);
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
    let label = format!("of {FLOWS} open connections, broken{}", first_reason(&broken));
    let spec = FigureSpec::lower("planned_flows_broken", &label, "flows").goal("0");
    report.count(spec, broken.len(), moves);
    let label = format!("of {} connects, failed within 4 s", tally.total);
    report.count(FigureSpec::lower("planned_connects_failed", &label, "connects").goal("0"), tally.failed, moves);
    let spec = FigureSpec::lower("planned_connects_slow", "  slower than 200 ms", "connects").goal("0");
    report.count(spec, tally.slow, moves);
    Ok(())
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
    let label = "of those whose pod lives, survive";
    report.measure(FigureSpec::higher("crash_flows_survived_percent", label, "%").goal("99 or more"), &shares);
    Ok(())
}

/// Why the first of these flows broke, for a row.
fn first_reason(broken: &[&Flow]) -> String {
    let why = broken.first().and_then(|flow| flow.broken.as_deref());
    why.map(|why| format!("  (the first: {why})")).unwrap_or_default()
}
