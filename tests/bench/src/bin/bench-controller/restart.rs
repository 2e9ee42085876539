//! A restart on a cluster with many Services: the time until the next Service is served, and the number of writes.
//!
//! One Service is created while no controller runs. The time is from before the process is started until a watch shows
//! the address of that Service. Its rival is a process that lists and decodes the same objects, and ends. The API
//! server counts the writes of another restart without a pending Service, where no write is necessary.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bench::distribution::ratios;
use bench::metrics;
use bench::report::{FigureSpec, Report};
use bench::sightings::{Change, Sightings};
use bench::stage::{Actor, NAMESPACE, Stage};

use crate::{Case, Runner};

/// The longest time to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time after the start of the controller in which writes are counted. It is longer than its longest pause, and
/// than the election of a leader.
const OBSERVATION: Duration = Duration::from_secs(8);

/// Resources that are reported separately: the Lease of the leader, and events for people.
const SEPARATE: [&str; 2] = ["leases", "events"];

/// Measures the pairs. Ends `ours`, which runs, and returns the controller that runs afterwards.
pub async fn measure(runner: &Runner, report: &mut Report, stage: &Stage, ours: Actor, case: Case) -> Result<Actor> {
    let Case { name, rounds: pairs } = case;
    let (mut served, mut listed) = (Vec::new(), Vec::new());
    let mut ours = ours;
    for run in 0..pairs {
        ours.end().await?;
        stage.settle().await?;
        if run % 2 == 0 {
            listed.push(time_list(runner, stage).await?);
        }
        let waiting = format!("waiting-{run}");
        stage.create([waiting.clone()]).await?;
        let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
        stage.settle().await?;
        let since = Instant::now();
        ours = runner.start_landfall(stage)?;
        let served_at = sightings.until(&waiting, Change::Served, PATIENCE).await.with_context(|| ours.last_words())?;
        served.push((served_at - since).as_secs_f64() * 1e3);
        stage.settle().await?;
        if run % 2 == 1 {
            listed.push(time_list(runner, stage).await?);
        }
        runner.progress(&format!(
            "restart at {name}, pair {} of {pairs}: served after {:.0} ms, list and decode {:.0} ms",
            run + 1,
            served[run],
            listed[run]
        ))?;
    }
    ours.end().await?;
    stage.settle().await?;
    let before = stage.writes().await?;
    let ours = runner.start_landfall(stage)?;
    tokio::time::sleep(OBSERVATION).await;
    ours.check()?;
    let written = metrics::since(&before, &stage.writes().await?);
    let (separate, counted): (Vec<_>, Vec<_>) =
        written.iter().partition(|(name, _)| SEPARATE.contains(&name.split('/').next().unwrap_or_default()));
    let total: u64 = counted.iter().map(|(_, count)| **count).sum();

    report.part(&format!("Restart at {name} Services, {pairs} pairs (ms from the start of the process)"));
    report.distribution("landfall: the pending Service is served", &served, "ms");
    report.distribution("bare client: the same objects are listed and decoded", &listed, "ms");
    let name = format!("restart_ratio_{name}");
    let spec = FigureSpec::lower(&name, "landfall to bare client", "ratio").goal("1.30 or less");
    report.measure(spec, &ratios(&served, &listed));
    let writes = FigureSpec::lower("restart_writes", "writes of a restart", "writes").goal("0");
    report.count(writes, total as usize, 1);
    report.row("  these are", &list_counts(&counted));
    report.row("  and separately", &list_counts(&separate));
    Ok(ours)
}

fn list_counts(counts: &[(&String, &u64)]) -> String {
    let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Milliseconds from the start of a process until it has listed all objects.
async fn time_list(runner: &Runner, stage: &Stage) -> Result<f64> {
    let since = SystemTime::now();
    let lister = runner.start_rival(stage, "list")?;
    lister.wait_for_end(PATIENCE).await?;
    let last_line = lister.last_words();
    let nanoseconds = last_line.split(' ').next_back().and_then(|word| word.parse::<u64>().ok());
    let done = UNIX_EPOCH + Duration::from_nanos(nanoseconds.with_context(|| last_line.clone())?);
    Ok(done.duration_since(since).context("the process ended before it began")?.as_secs_f64() * 1e3)
}
