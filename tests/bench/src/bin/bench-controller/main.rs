//! Landfall's controller beside the least that anybody could do, on a real API server and etcd.
//!
//! `make bench-controller` runs it, which takes long; with `--quick` it goes no further than a thousand Services.
//! It prints a table, and writes `target/bench/controller.json`. What is measured, and how, is in the rooms:
//!
//! - [`allocate`]: what finding an address takes, without a cluster
//! - [`bulk`]: many Services at once, beside a bare loop that makes the same writes
//! - [`one_more`]: one more Service, beside an echo of a watch
//! - [`restart`]: a restart, beside a client that only lists
//!
//! The rivals are modes of this program: each is a process of its own, of the same build as the contender.

mod allocate;
mod bulk;
mod one_more;
mod restart;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bench::progress::print;
use bench::report::Report;
use bench::sightings::Sightings;
use bench::stage::{Actor, NAMESPACE, Stage};
use bench::{rivals, root};
use clap::{Parser, Subcommand};
use kube::{Client, Config};

/// The controller beside the least that anybody could do.
#[derive(Debug, Parser)]
#[command(max_term_width = 120)]
struct Cli {
    /// No more than a thousand Services, and fewer rounds: five minutes.
    #[arg(long)]
    quick: bool,

    /// Only these parts, to look into one: allocate, bulk, one-more, restart.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,

    /// The contender: a `landfall` binary. By default the one that `make build` makes.
    #[arg(long, value_name = "PATH")]
    controller: Option<PathBuf>,

    #[command(subcommand)]
    rival: Option<Rival>,
}

/// Who else can be run; the benchmark does.
#[derive(Debug, Subcommand)]
enum Rival {
    /// Give every Service an address that has none.
    Bare,
    /// Give every new Service an address.
    Echo,
    /// List and decode everything, and end.
    List,
}

/// What all measurements have in common.
pub struct Bench {
    began: Instant,
    controller: PathBuf,
    own: PathBuf,
}

impl Bench {
    /// Tells how far it is.
    pub fn progress(&self, text: &str) -> Result<()> {
        print(&format!("{:4} s  {text}\n", self.began.elapsed().as_secs()))
    }

    /// Starts the contender.
    pub fn landfall(&self, stage: &Stage) -> Result<Actor> {
        stage.enter("landfall", &self.controller, &["controller"])
    }

    /// Starts a rival.
    pub fn rival(&self, stage: &Stage, mode: &str) -> Result<Actor> {
        stage.enter(mode, &self.own, &[mode])
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut runtime = match cli.rival {
        // One thread, as the contender has.
        Some(_) => tokio::runtime::Builder::new_current_thread(),
        None => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(async {
        match cli.rival {
            Some(rival) => run(rival).await,
            None => tokio::select! {
                ended = measure(cli) => ended,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    anyhow::bail!("interrupted: the cluster goes")
                }
            },
        }
    })
}

async fn run(rival: Rival) -> Result<()> {
    let mut config = Config::infer().await?;
    config.default_retry = false;
    let client = Client::try_from(config)?;
    match rival {
        Rival::Bare => rivals::bare(client).await?,
        Rival::Echo => rivals::echo(client).await?,
        Rival::List => {
            let done = rivals::list(client).await?;
            return print(&format!("listed by {done}\n"));
        }
    }
    // What it cost is read from the process: it ends when it is told to.
    std::future::pending().await
}

async fn measure(cli: Cli) -> Result<()> {
    let controller = cli.controller.unwrap_or_else(|| root().join("target/x86_64-unknown-linux-musl/release/landfall"));
    let controller = controller.canonicalize().with_context(|| format!("no {}: `make build`", controller.display()))?;
    let bench = Bench { began: Instant::now(), controller, own: std::env::current_exe()? };
    for part in &cli.only {
        ensure!(["allocate", "bulk", "one-more", "restart"].contains(&part.as_str()), "there is no part {part:?}");
    }
    let wants = |part: &str| cli.only.is_empty() || cli.only.iter().any(|only| only == part);
    let mut report = Report::default();
    if wants("allocate") {
        allocate::measure(&bench, &mut report)?;
    }
    if wants("bulk") {
        bulk::measure(&bench, &mut report, 1000, "1k", if cli.quick { 3 } else { 5 }).await?;
        if !cli.quick {
            bulk::measure(&bench, &mut report, 10_000, "10k", 3).await?;
        }
    }
    if wants("one-more") || wants("restart") {
        long_run(&bench, &mut report, cli.quick, wants).await?;
    }
    print(&format!("\n{}", report.table()))?;
    let path = root().join("target/bench/controller.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    // Parts that were measured before and are not wanted now keep their figures.
    let earlier = if cli.only.is_empty() { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
    std::fs::write(&path, report.json_over(&earlier)).with_context(|| format!("write {}", path.display()))?;
    print(&format!("\nwrote {} after {} s\n", path.display(), bench.began.elapsed().as_secs()))
}

/// All that happens on one cluster, which gets more and more Services.
async fn long_run(bench: &Bench, report: &mut Report, quick: bool, wants: impl Fn(&str) -> bool) -> Result<()> {
    let stage = Stage::set("bench-long").await?;
    let mut ours = bench.landfall(&stage)?;
    let echo = bench.rival(&stage, "echo")?;
    let rounds = if quick { 2 } else { 3 };
    let (mut there, mut waits) = (0, Vec::new());
    for (name, count) in [("0", 0), ("1k", 1000), ("10k", 10_000)] {
        if quick && count > 1000 {
            break;
        }
        if count > there {
            let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
            let since = Instant::now();
            stage.create((there..count).map(|n| format!("s-{n:05}"))).await?;
            let created = since.elapsed();
            let (_, last) = bulk::served(&mut sightings, count - there).await.with_context(|| ours.last_words())?;
            let text = format!(
                "{} Services made while it runs: made in {:.2} s, served after {:.2} s",
                count - there,
                created.as_secs_f64(),
                (last - since).as_secs_f64()
            );
            bench.progress(&text)?;
            report.part(&text);
            there = count;
        }
        if wants("one-more") {
            let one_more = one_more::measure(bench, report, &stage, (&ours, &echo), (name, rounds)).await?;
            waits.push(one_more.p99);
        }
    }
    if let (Some(first), Some(last)) = (waits.first(), waits.last())
        && waits.len() > 1
    {
        report.row("p99 at the most Services to p99 at none", &format!("{:8.2}  goal 1.20 or less", last / first));
    }
    echo.end().await?;
    if !quick {
        stage.settle().await?;
        let rss = ours.rss()?;
        report.part(&format!("Memory at {there} Services"));
        report.row("RSS of landfall", &format!("{rss:8.1} MiB  goal 30 or less"));
        report.figure("rss_mib_10k", rss);
    }
    if wants("restart") {
        let (name, runs) = if quick { ("1k", 3) } else { ("10k", 5) };
        ours = restart::measure(bench, report, &stage, ours, (name, runs)).await?;
        report.row("RSS after a restart", &format!("{:8.1} MiB", ours.rss()?));
    }
    stage.strike()
}
