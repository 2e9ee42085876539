//! Landfall's controller beside rivals that do the least possible work, on a real API server and etcd.
//!
//! `make bench-controller` runs all parts, which takes long. With `--quick` there are at most 1,000 Services. The
//! program prints a table and writes `target/bench/controller.json`. Each part is a module that describes its
//! measurement:
//!
//! - [`allocate`]: finding an address, without a cluster
//! - [`bulk`]: many Services at once, beside a bare loop that makes the same writes
//! - [`one_more`]: one more Service, beside an echo of a watch
//! - [`restart`]: a restart, beside a client that only lists
//!
//! The rivals are modes of this program. Each is a process of its own, of the same build profile as the contender.

mod allocate;
mod bulk;
mod one_more;
mod restart;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bench::progress::print;
use bench::report::{FigureSpec, Report};
use bench::sightings::Sightings;
use bench::stage::{Actor, NAMESPACE, Stage};
use bench::{rivals, root};
use clap::{Parser, Subcommand};
use kube::{Client, Config};

use crate::one_more::Actors;

/// The controller beside the least possible work.
#[derive(Debug, Parser)]
#[command(max_term_width = 120)]
struct ControllerOptions {
    /// At most 1,000 Services, and fewer rounds: five minutes.
    #[arg(long)]
    quick: bool,

    /// Only these parts: allocate, bulk, one-more, restart.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,

    /// The contender: a `landfall` binary. By default the one that `make build` builds.
    #[arg(long, value_name = "PATH")]
    controller: Option<PathBuf>,

    #[command(subcommand)]
    rival: Option<Rival>,
}

/// The rivals. The benchmark runs them as processes.
#[derive(Debug, Subcommand)]
enum Rival {
    /// Give an address to every Service without one.
    Bare,
    /// Give an address to every new Service.
    Echo,
    /// List and decode all objects, and end.
    List,
}

/// Starts contender and rivals, and reports progress.
pub struct Runner {
    began: Instant,
    controller: PathBuf,
    this_program: PathBuf,
}

impl Runner {
    /// Prints a line of progress.
    pub fn progress(&self, text: &str) -> Result<()> {
        print(&format!("{:4} s  {text}\n", self.began.elapsed().as_secs()))
    }

    pub fn start_landfall(&self, stage: &Stage) -> Result<Actor> {
        stage.enter("landfall", &self.controller, &["controller"])
    }

    pub fn start_rival(&self, stage: &Stage, mode: &str) -> Result<Actor> {
        stage.enter(mode, &self.this_program, &[mode])
    }
}

/// A size of the cluster, and how often it is measured.
#[derive(Clone, Copy)]
pub struct Case {
    /// The number of Services as keys and report show it.
    pub name: &'static str,
    /// Rounds, or pairs of runs.
    pub rounds: usize,
}

fn main() -> Result<()> {
    let options = ControllerOptions::parse();
    let mut runtime = match options.rival {
        // The contender has one thread, too.
        Some(_) => tokio::runtime::Builder::new_current_thread(),
        None => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(async {
        match options.rival {
            Some(rival) => run_rival(rival).await,
            None => tokio::select! {
                ended = measure(options) => ended,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    anyhow::bail!("interrupted: the cluster is removed")
                }
            },
        }
    })
}

async fn run_rival(rival: Rival) -> Result<()> {
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
    // The parent reads the CPU time of this process, and then ends it.
    std::future::pending().await
}

async fn measure(options: ControllerOptions) -> Result<()> {
    let controller =
        options.controller.unwrap_or_else(|| root().join("target/x86_64-unknown-linux-musl/release/landfall"));
    let controller = controller.canonicalize().with_context(|| format!("no {}: `make build`", controller.display()))?;
    let runner = Runner { began: Instant::now(), controller, this_program: std::env::current_exe()? };
    for part in &options.only {
        ensure!(["allocate", "bulk", "one-more", "restart"].contains(&part.as_str()), "there is no part {part:?}");
    }
    let is_wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let mut report = Report::default();
    if is_wanted("allocate") {
        allocate::measure(&runner, &mut report)?;
    }
    if is_wanted("bulk") {
        bulk::measure(&runner, &mut report, 1000, "1k", if options.quick { 3 } else { 5 }).await?;
        if !options.quick {
            bulk::measure(&runner, &mut report, 10_000, "10k", 3).await?;
        }
    }
    if is_wanted("one-more") || is_wanted("restart") {
        measure_long_run(&runner, &mut report, options.quick, is_wanted).await?;
    }
    print(&format!("\n{}", report.table()))?;
    let path = root().join("target/bench/controller.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    // Parts that are not wanted now keep the figures of an earlier run.
    let earlier =
        if options.only.is_empty() { String::new() } else { std::fs::read_to_string(&path).unwrap_or_default() };
    std::fs::write(&path, report.json_over(&earlier)).with_context(|| format!("write {}", path.display()))?;
    print(&format!("\nwrote {} after {} s\n", path.display(), runner.began.elapsed().as_secs()))
}

/// The parts on one cluster with more and more Services.
async fn measure_long_run(
    runner: &Runner,
    report: &mut Report,
    quick: bool,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let stage = Stage::set("bench-long").await?;
    let mut landfall = runner.start_landfall(&stage)?;
    let echo = runner.start_rival(&stage, "echo")?;
    let rounds = if quick { 2 } else { 3 };
    let (mut existing, mut p99s) = (0, Vec::new());
    for (name, count) in [("0", 0), ("1k", 1000), ("10k", 10_000)] {
        if quick && count > 1000 {
            break;
        }
        if count > existing {
            let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
            let since = Instant::now();
            stage.create((existing..count).map(|n| format!("s-{n:05}"))).await?;
            let created = since.elapsed();
            let (_, last) = bulk::wait_until_served(&mut sightings, count - existing)
                .await
                .with_context(|| landfall.last_words())?;
            let text = format!(
                "{} Services created while it runs: created in {:.2} s, served after {:.2} s",
                count - existing,
                created.as_secs_f64(),
                (last - since).as_secs_f64()
            );
            runner.progress(&text)?;
            report.part(&text);
            existing = count;
        }
        if is_wanted("one-more") {
            let actors = Actors { landfall: &landfall, echo: &echo };
            let one_more = one_more::measure(runner, report, &stage, actors, Case { name, rounds }).await?;
            p99s.push(one_more.p99);
        }
    }
    if let (Some(first), Some(last)) = (p99s.first(), p99s.last())
        && p99s.len() > 1
    {
        report.row(
            "p99 with the most Services to p99 without Services",
            &format!("{:8.2}  goal 1.20 or less", last / first),
        );
    }
    echo.end().await?;
    if !quick {
        stage.settle().await?;
        let rss = landfall.rss()?;
        report.part(&format!("Memory at {existing} Services"));
        let spec = FigureSpec::lower("rss_mib_10k", "RSS of landfall", "MiB").goal("30 or less");
        report.measure(spec, &[rss]);
    }
    if is_wanted("restart") {
        let (name, rounds) = if quick { ("1k", 3) } else { ("10k", 5) };
        landfall = restart::measure(runner, report, &stage, landfall, Case { name, rounds }).await?;
        report.row("RSS after a restart", &format!("{:8.1} MiB", landfall.rss()?));
    }
    stage.strike()
}
