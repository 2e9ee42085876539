//! A restart on a cluster with many Services: how long until somebody is served again, and what is written.
//!
//! One Service is made while nobody is there. The time is from before the process is started until a watch shows its
//! address; beside it, a process that lists and decodes the same objects and ends. What the restart writes is counted by
//! the API server, in restarts with nobody waiting, when every write is one too many.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bench::distribution::ratios;
use bench::metrics;
use bench::report::Report;
use bench::sightings::{Change, Sightings};
use bench::stage::{Actor, NAMESPACE, Stage};

use crate::Bench;
use crate::bulk::spread;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// For how long writes are looked for after the controller has come to rest: longer than its longest pause, and than it
/// takes to become the leader.
const WATCHED: Duration = Duration::from_secs(8);

/// What a leader writes for being one, and what is only told to people.
const APART: [&str; 2] = ["leases", "events"];

/// Measures `runs` pairs; `ours` runs when this begins. Returns who runs when it ends.
pub async fn measure(
    bench: &Bench,
    report: &mut Report,
    stage: &Stage,
    ours: Actor,
    at: (&str, usize),
) -> Result<Actor> {
    let (name, runs) = at;
    let (mut served, mut listed) = (Vec::new(), Vec::new());
    let mut ours = ours;
    for run in 0..runs {
        ours.end().await?;
        stage.settle().await?;
        if run % 2 == 0 {
            listed.push(list(bench, stage).await?);
        }
        let waiting = format!("waiting-{run}");
        stage.create([waiting.clone()]).await?;
        let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
        stage.settle().await?;
        let since = Instant::now();
        ours = bench.landfall(stage)?;
        let seen = sightings.until(&waiting, Change::Served, PATIENCE).await.with_context(|| ours.last_words())?;
        served.push((seen - since).as_secs_f64() * 1e3);
        stage.settle().await?;
        if run % 2 == 1 {
            listed.push(list(bench, stage).await?);
        }
        bench.progress(&format!(
            "restart at {name}, pair {} of {runs}: served after {:.0} ms, list and decode {:.0} ms",
            run + 1,
            served[run],
            listed[run]
        ))?;
    }
    ours.end().await?;
    stage.settle().await?;
    let before = stage.writes().await?;
    let ours = bench.landfall(stage)?;
    tokio::time::sleep(WATCHED).await;
    ours.check()?;
    let written = metrics::since(&before, &stage.writes().await?);
    let (apart, counted): (Vec<_>, Vec<_>) =
        written.iter().partition(|(name, _)| APART.contains(&name.split('/').next().unwrap_or_default()));
    let total: u64 = counted.iter().map(|(_, count)| **count).sum();

    report.part(&format!("Restart at {name} Services, {runs} pairs (ms from the start of the process)"));
    report.distribution("landfall: a waiting Service is served", spread(&served)?, "ms");
    report.distribution("bare client: has listed and decoded the same", spread(&listed)?, "ms");
    report.ratio(
        &format!("restart_ratio_{name}"),
        "landfall to bare client",
        spread(&ratios(&served, &listed))?,
        "1.30 or less",
    );
    let words = |counts: &[(&String, &u64)]| {
        let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    report.row("writes of a restart", &format!("{total} ({})  goal 0", words(&counted)));
    report.row("  apart from these", &words(&apart));
    report.figure("restart_writes", total as f64);
    Ok(ours)
}

/// Milliseconds from the start of a process until it has listed all.
async fn list(bench: &Bench, stage: &Stage) -> Result<f64> {
    let since = SystemTime::now();
    let lister = bench.rival(stage, "list")?;
    lister.wait_for_end(PATIENCE).await?;
    let words = lister.last_words();
    let nanoseconds = words.split(' ').next_back().and_then(|word| word.parse::<u64>().ok());
    let done = UNIX_EPOCH + Duration::from_nanos(nanoseconds.with_context(|| words.clone())?);
    Ok(done.duration_since(since).context("it was done before it began")?.as_secs_f64() * 1e3)
}
