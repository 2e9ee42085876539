//! The effect of a node's death on a client on the LAN: Landfall beside keepalived, on the lab.
//!
//! `make bench-failover` runs all parts, in about 25 minutes, or in five with `--quick`. The program prints a table and
//! writes `target/bench/failover.json`. With `--only`, that file keeps the figures of the other parts from an earlier
//! run. Each part is a module that describes its measurement:
//!
//! - [`crowd`]: the cost of an agent with many nodes on its link
//! - [`idle`]: the cost of idle agents, beside the cost of their Hellos alone ([`floor`])
//! - [`outage`]: the owner of an address is cut off, again and again
//! - [`calm`]: takeovers without a reason, while all processors are busy
//! - [`many`]: the owner of thousands of addresses is cut off
//!
//! All parts but the first share one cluster ([`testbed`]), with [`keepalived`] on hosts of the same LAN. All hosts
//! share the processors of one machine. Other programs on that machine distort the figures.

mod calm;
mod crowd;
mod floor;
mod idle;
mod keepalived;
mod many;
mod outage;
mod testbed;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::progress::{Bench, print};
use bench::report::Report;
use bench::root;
use clap::{Parser, Subcommand};
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

use crate::testbed::FailoverTestbed;

/// The parts, in the order of measurement.
const PARTS: [&str; 5] = ["crowd", "idle", "outage", "calm", "many"];

/// The effect of a node's death on a client, beside keepalived.
#[derive(Debug, Parser)]
#[command(max_term_width = 120)]
struct FailoverOptions {
    /// Fewer and shorter rounds: five minutes.
    #[arg(long)]
    quick: bool,

    /// Only these parts: crowd, idle, outage, calm, many.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,

    #[command(subcommand)]
    helper: Option<Helper>,
}

/// Processes that the benchmark starts on hosts and beside itself.
#[derive(Debug, Subcommand)]
enum Helper {
    /// Answer datagrams and connects at an address, even if this host does not have it.
    Answer {
        /// The address.
        address: Ipv4Addr,
        /// The port.
        port: u16,
    },
    /// Keep one processor busy.
    Burn {
        /// The number of seconds. It ends earlier with the parent process.
        seconds: u64,
    },
}

fn main() -> Result<()> {
    let options = FailoverOptions::parse();
    match options.helper {
        Some(Helper::Answer { address, port }) => return keepalived::answer(address, port),
        Some(Helper::Burn { seconds }) => {
            calm::burn(Duration::from_secs(seconds));
            return Ok(());
        }
        None => {}
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = measure(options) => ended,
            interrupted = ctrl_c() => {
                interrupted?;
                anyhow::bail!("interrupted: the cluster is removed")
            }
            _ = terminated.recv() => anyhow::bail!("terminated: the cluster is removed"),
        }
    })
}

async fn measure(options: FailoverOptions) -> Result<()> {
    for part in &options.only {
        ensure!(PARTS.contains(&part.as_str()), "there is no part {part:?}");
    }
    let is_wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let bench = Bench::begin(options.quick);
    let path = root().join("target/bench/failover.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    let earlier =
        if options.only.is_empty() { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
    let mut report = Report::default();
    if is_wanted("crowd") {
        crowd::measure(&bench, &mut report).context("part crowd")?;
        std::fs::write(&path, report.json_over(&earlier)).with_context(|| format!("write {}", path.display()))?;
    }
    let others: Vec<&str> = PARTS.into_iter().filter(|part| *part != "crowd" && is_wanted(part)).collect();
    if others.is_empty() {
        return print(&format!("\n{}", report.table()));
    }
    let testbed = FailoverTestbed::start(&bench).await?;
    for part in others {
        let measured = match part {
            "idle" => idle::measure(&bench, &mut report, &testbed).await,
            "outage" => outage::measure(&bench, &mut report, &testbed).await,
            "calm" => calm::measure(&bench, &mut report, &testbed).await,
            _ => many::measure(&bench, &mut report, &testbed).await,
        };
        // These figures survive a failure of the next part.
        std::fs::write(&path, report.json_over(&earlier)).with_context(|| format!("write {}", path.display()))?;
        if let Err(error) = measured {
            print(&format!("\n{}", report.table()))?;
            return Err(error.context(format!("part {part}")));
        }
    }
    testbed.stop()?;
    print(&format!("\n{}", report.table()))?;
    print(&format!("\nwrote {} after {} s\n", path.display(), bench.elapsed_time().as_secs()))
}
