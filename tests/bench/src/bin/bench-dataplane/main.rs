//! What forwarding does and costs: Landfall beside kube-proxy, plain routing and one static rule.
//!
//! `make bench-dataplane` runs it, which takes about 28 minutes; with `--quick` about eleven. It prints a table, and writes
//! `target/bench/dataplane.json`; with `--only`, what other parts found in an earlier run stays in there. A part that fails
//! says why, and its figures are missing. The parts:
//!
//! | part | room | what it needs |
//! |---|---|---|
//! | cold | [`cold`] | network namespaces, and the dataplane as a library |
//! | change, churn | [`change`] | the same |
//! | cpu | [`cpu`] | the same; a control plane for a moment, for kube-proxy to write its rules |
//! | many | [`many`] | a control plane, and agents and kube-proxy on nodes without kubelets |
//! | share, planned, crash, dead-node | [`testbed::connections`] | a cluster of three nodes |
//! | rolling | [`testbed::rolling`] | the same |
//!
//! What would make figures worthless, and what is done about it:
//!
//! - *GSO and other batching hide what a packet costs*: cost is measured with packets of one byte, never with a stream.
//! - *On a veth the sender's context does the receiver's work*: used on purpose, see [`path`]; nothing is charged to the
//!   wrong side, for there is one thread, and what client and server cost is measured and taken off.
//! - *Tables of connection tracking fill up*: short timeouts for all contenders alike, and a run in which the kernel has dropped
//!   or failed to insert an entry fails.
//! - *Ports run out*: connections are reset, and ranges are wide.
//! - *Bridges may send frames through the host's rules*: there is no bridge on the measured ways; in the lab the switch has it
//!   off. `rp_filter` and forwarding are set for each namespace.
//! - *Virtual machines steal time, and clocks change*: CPU time of the thread and not of the wall; contenders take turns, there
//!   and back, and only ratios within a round count. Expect other ratios on bare metal: mitigations of the processor's
//!   flaws make nftables' indirect calls dear.
//! - *Fairness to kube-proxy*: it is timed by its own metric, its pause between syncs left out, once it has nothing queued;
//!   its rules are loaded as it wrote them, with no process running on either side; it gets the same endpoints. It
//!   masquerades what comes from outside under the policy Cluster, and Landfall does not have to.
//! - *A node's death seen by its cable is no death*: silence first, see the lab; and the probe's connects begin on a grid,
//!   so that one that hangs hides no other, and the repetition of a SYN after a second does not count as success.
//! - *Averages hide*: percentiles, extremes, and shares of what was slow are told.
//! - *One Service is a size too*: new connections are compared at one Service, where kube-proxy is at its best.

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

use crate::testbed::Stand;

/// The parts, in the order in which they are measured.
const PARTS: [&str; 10] =
    ["cold", "change", "churn", "cpu", "many", "share", "planned", "rolling", "crash", "dead-node"];

/// Those that need a cluster of three nodes.
const SEEN: [&str; 5] = ["share", "planned", "rolling", "crash", "dead-node"];

/// What forwarding does and costs, beside kube-proxy and the least that anybody could do.
#[derive(Debug, Parser)]
#[command(max_term_width = 120)]
struct Cli {
    /// Fewer and shorter rounds: eleven minutes.
    #[arg(long)]
    quick: bool,

    /// Only these parts, to look into one: cold, change, churn, cpu, many, share, planned, rolling, crash,
    /// dead-node.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = measure(cli) => ended,
            interrupted = ctrl_c() => {
                interrupted?;
                anyhow::bail!("interrupted: what was made goes")
            }
            _ = terminated.recv() => anyhow::bail!("terminated: what was made goes"),
        }
    })
}

async fn measure(cli: Cli) -> Result<()> {
    for part in &cli.only {
        ensure!(PARTS.contains(&part.as_str()), "there is no part {part:?}");
    }
    let wants = |part: &str| cli.only.is_empty() || cli.only.iter().any(|only| only == part);
    let bench = Bench::begin(cli.quick);
    let path = root().join("target/bench/dataplane.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    let earlier = if cli.only.is_empty() { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
    let (mut report, mut failed) = (Report::default(), Vec::new());
    let mut stand = None;
    for part in PARTS.into_iter().filter(|part| wants(part)) {
        let measured = match part {
            "cold" => cold::measure(&bench, &mut report).await,
            "change" => change::alone(&bench, &mut report).await,
            "churn" => change::churn(&bench, &mut report).await,
            "cpu" => cpu::measure(&bench, &mut report).await,
            "many" => many::measure(&bench, &mut report).await,
            part => seen(&bench, &mut report, &mut stand, part).await,
        };
        if let Err(error) = measured {
            bench.progress(&format!("part {part} failed: {error:#}"))?;
            failed.push(part);
            // What is left of a cluster after a failure is no place to measure on.
            stand = None;
        }
        write(&path, &report.json_over(&earlier))?;
    }
    if let Some(stand) = stand {
        stand.strike()?;
    }
    print(&format!("\n{}", report.table()))?;
    print(&format!("\nwrote {} after {} s\n", path.display(), bench.elapsed_time().as_secs()))?;
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// A part on the cluster of three nodes, which is made when the first of them needs it.
async fn seen(bench: &Bench, report: &mut Report, stand: &mut Option<Stand>, part: &str) -> Result<()> {
    debug_assert!(SEEN.contains(&part), "{part} needs no such cluster");
    let stand = match stand {
        Some(stand) => stand,
        None => stand.insert(Stand::set(bench).await?),
    };
    match part {
        "share" => testbed::connections::share(bench, report, stand).await,
        "planned" => testbed::connections::planned(bench, report, stand).await,
        "rolling" => testbed::rolling::measure(bench, report, stand).await,
        "crash" => testbed::connections::crash(bench, report, stand).await,
        _ => testbed::connections::dead_node(bench, report, stand).await,
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
