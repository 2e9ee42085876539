//! The effects and the cost of forwarding: Landfall beside kube-proxy, plain routing and one static rule.
//!
//! `make bench-dataplane` runs all parts, in about 28 minutes, or in eleven with `--quick`. The program prints a table
//! and writes `target/bench/dataplane.json`. With `--only`, that file keeps the figures of the other parts from an
//! earlier run. A part that fails prints the reason, and has no figures. The parts:
//!
//! | part | module | requires |
//! |---|---|---|
//! | cold | [`cold`] | network namespaces, and the dataplane as a library |
//! | change, churn | [`change`] | the same |
//! | cpu | [`cpu`] | the same, and for a moment a control plane for kube-proxy to write its rules |
//! | many | [`many`] | a control plane, and agents and kube-proxy on nodes without kubelets |
//! | share, planned, crash | [`testbed::connections`] | a cluster of three nodes |
//! | rolling | [`testbed::rolling`] | the same |
//! | dead-node | [`testbed::dead_node`] | the same |
//!
//! Effects that would distort the figures, and their remedies:
//!
//! - *GSO and other batching hide the cost of a packet*: cost is measured with packets of one byte, never with a
//!   stream.
//! - *On a veth the sender's context does the receiver's work*: this is used on purpose, see [`path`]. No work is
//!   charged to the wrong side, because there is one thread. The cost of client and server is measured and subtracted.
//! - *The connection tracking table fills up*: all contenders have the same short timeouts. A run fails if the kernel
//!   has dropped or failed to insert an entry.
//! - *Ports run out*: connections are reset, and port ranges are wide.
//! - *Bridges may send frames through the host's rules*: measured paths have no bridge, and the lab's switch has it
//!   disabled. `rp_filter` and forwarding are set per namespace.
//! - *Virtual machines lose CPU time to others, and clock rates change*: CPU time of the thread is measured, not
//!   elapsed time. Contenders take turns, forward and back, and only ratios within a round count. Bare metal has other
//!   ratios, because mitigations of processor flaws make nftables' indirect calls expensive.
//! - *Fairness to kube-proxy*: its time comes from its own metrics, without its pause between syncs, once no sync is
//!   queued. Its rules are loaded as it wrote them, with no process running on either side, and it has the same
//!   endpoints. It masquerades external clients under the policy Cluster; Landfall does not have to.
//! - *A lost carrier would announce the node's death*: the node falls silent first, see the lab. The probe's connects
//!   begin on a grid, so that a hanging one does not delay the next. The retransmission of a SYN after a second is not
//!   a success.
//! - *Averages hide outliers*: percentiles, extremes and shares of slow results are reported.
//! - *One Service is a size, too*: new connections are compared at one Service, the best case of kube-proxy.

mod agent;
mod change;
mod cold;
mod contenders;
mod cpu;
mod kube_proxy;
mod many;
mod path;
mod synthetic;
mod testbed;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bench::progress::{Bench, print};
use bench::report::Report;
use bench::root;
use clap::Parser;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

use crate::testbed::{ForwardingTestbed, connections, dead_node, rolling};

/// The parts, in the order of measurement.
const PARTS: [&str; 10] =
    ["cold", "change", "churn", "cpu", "many", "share", "planned", "rolling", "crash", "dead-node"];

/// The parts that need a cluster of three nodes.
const ON_TESTBED: [&str; 5] = ["share", "planned", "rolling", "crash", "dead-node"];

/// The effects and the cost of forwarding, beside kube-proxy and the least possible work.
#[derive(Debug, Parser)]
#[command(max_term_width = 120)]
struct DataplaneOptions {
    /// Fewer and shorter rounds: eleven minutes.
    #[arg(long)]
    quick: bool,

    /// Only these parts: cold, change, churn, cpu, many, share, planned, rolling, crash, dead-node.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,
}

fn main() -> Result<()> {
    let options = DataplaneOptions::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = measure(options) => ended,
            interrupted = ctrl_c() => {
                interrupted?;
                anyhow::bail!("interrupted: the testbed is removed")
            }
            _ = terminated.recv() => anyhow::bail!("terminated: the testbed is removed"),
        }
    })
}

async fn measure(options: DataplaneOptions) -> Result<()> {
    for part in &options.only {
        ensure!(PARTS.contains(&part.as_str()), "there is no part {part:?}");
    }
    let is_wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let bench = Bench::begin(options.quick);
    let path = root().join("target/bench/dataplane.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    let earlier =
        if options.only.is_empty() { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
    let (mut report, mut failed) = (Report::default(), Vec::new());
    let mut testbed = None;
    for part in PARTS.into_iter().filter(|part| is_wanted(part)) {
        let measured = match part {
            "cold" => cold::measure(&bench, &mut report).await,
            "change" => change::measure_single_changes(&bench, &mut report).await,
            "churn" => change::measure_churn(&bench, &mut report).await,
            "cpu" => cpu::measure(&bench, &mut report).await,
            "many" => many::measure(&bench, &mut report).await,
            part => measure_on_testbed(&bench, &mut report, &mut testbed, part).await,
        };
        if let Err(error) = measured {
            bench.progress(&format!("part {part} failed: {error:#}"))?;
            failed.push(part);
            // The failure may have left the cluster in a bad state.
            testbed = None;
        }
        write(&path, &report.json_over(&earlier))?;
    }
    if let Some(testbed) = testbed {
        testbed.stop()?;
    }
    print(&format!("\n{}", report.table()))?;
    print(&format!("\nwrote {} after {} s\n", path.display(), bench.elapsed_time().as_secs()))?;
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Measures a part on the cluster of three nodes. The first of these parts starts it.
async fn measure_on_testbed(
    bench: &Bench,
    report: &mut Report,
    testbed: &mut Option<ForwardingTestbed>,
    part: &str,
) -> Result<()> {
    debug_assert!(ON_TESTBED.contains(&part), "{part} needs no cluster");
    let testbed = match testbed {
        Some(testbed) => testbed,
        None => testbed.insert(ForwardingTestbed::start(bench).await?),
    };
    match part {
        "share" => connections::measure_shares(bench, report, testbed).await,
        "planned" => connections::measure_planned_moves(bench, report, testbed).await,
        "rolling" => rolling::measure(bench, report, testbed).await,
        "crash" => connections::measure_crashes(bench, report, testbed).await,
        _ => dead_node::measure(bench, report, testbed).await,
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
