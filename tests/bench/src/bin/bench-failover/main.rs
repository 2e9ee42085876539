//! What a client on the LAN notices when a node dies: Landfall beside keepalived, on the lab.
//!
//! `make bench-failover` runs it, which takes about 25 minutes; with `--quick` about five. It prints a table, and writes
//! `target/bench/failover.json`; with `--only`, what other parts found in an earlier run stays in there. What is measured,
//! and how, is in the rooms:
//!
//! - [`crowd`]: what it costs an agent that many others are there
//! - [`idle`]: what agents cost when nothing happens, beside what their Hellos cost by themselves ([`floor`])
//! - [`outage`]: the owner of an address is cut off, again and again
//! - [`calm`]: takeovers for which there is no reason, while all processors are busy
//! - [`many`]: the owner of thousands of addresses is cut off
//!
//! All but the first happens on one cluster ([`testbed`]), with [`keepalived`] on hosts of the same LAN. Everything runs on one machine,
//! where all hosts share the processors: what else runs there shows in the figures, and nothing else should.

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

use crate::testbed::Stand;

/// The parts, in the order in which they are measured.
const PARTS: [&str; 5] = ["crowd", "idle", "outage", "calm", "many"];

/// What a client notices when a node dies, beside keepalived.
#[derive(Debug, Parser)]
#[command(max_term_width = 120)]
struct Cli {
    /// Fewer and shorter rounds: five minutes.
    #[arg(long)]
    quick: bool,

    /// Only these parts, to look into one: crowd, idle, outage, calm, many.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,

    #[command(subcommand)]
    helper: Option<Helper>,
}

/// What the benchmark runs on hosts and beside itself.
#[derive(Debug, Subcommand)]
enum Helper {
    /// Answer datagrams and connects at an address, also while this host doesn't have it.
    Answer {
        /// The address.
        address: Ipv4Addr,
        /// The port.
        port: u16,
    },
    /// Keep one processor busy.
    Burn {
        /// For so many seconds, or until the parent process ends.
        seconds: u64,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.helper {
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
            ended = measure(cli) => ended,
            interrupted = ctrl_c() => {
                interrupted?;
                anyhow::bail!("interrupted: the cluster goes")
            }
            _ = terminated.recv() => anyhow::bail!("terminated: the cluster goes"),
        }
    })
}

async fn measure(cli: Cli) -> Result<()> {
    for part in &cli.only {
        ensure!(PARTS.contains(&part.as_str()), "there is no part {part:?}");
    }
    let wants = |part: &str| cli.only.is_empty() || cli.only.iter().any(|only| only == part);
    let bench = Bench::begin(cli.quick);
    let path = root().join("target/bench/failover.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    let earlier = if cli.only.is_empty() { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
    let mut report = Report::default();
    if wants("crowd") {
        crowd::measure(&bench, &mut report).context("part crowd")?;
        std::fs::write(&path, report.json_over(&earlier)).with_context(|| format!("write {}", path.display()))?;
    }
    let others: Vec<&str> = PARTS.into_iter().filter(|part| *part != "crowd" && wants(part)).collect();
    if others.is_empty() {
        return print(&format!("\n{}", report.table()));
    }
    let stand = Stand::set(&bench).await?;
    for part in others {
        let measured = match part {
            "idle" => idle::measure(&bench, &mut report, &stand).await,
            "outage" => outage::measure(&bench, &mut report, &stand).await,
            "calm" => calm::measure(&bench, &mut report, &stand).await,
            _ => many::measure(&bench, &mut report, &stand).await,
        };
        // What was found is not lost if the next part fails.
        std::fs::write(&path, report.json_over(&earlier)).with_context(|| format!("write {}", path.display()))?;
        if let Err(error) = measured {
            print(&format!("\n{}", report.table()))?;
            return Err(error.context(format!("part {part}")));
        }
    }
    stand.strike()?;
    print(&format!("\n{}", report.table()))?;
    print(&format!("\nwrote {} after {} s\n", path.display(), bench.elapsed_time().as_secs()))
}
