//! The rate of addresses for many pending Services, beside the highest possible rate.
//!
//! Each measurement has its own control plane on which all Services are pending. Then the contender or the bare loop
//! starts. The measured time is from the first address to the last one in a watch. It includes neither the start nor
//! the list.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::ratios;
use bench::metrics;
use bench::report::{FigureSpec, Report};
use bench::sightings::{Change, Sightings};
use bench::stage::{NAMESPACE, Stage};

use crate::Runner;

/// The lowest accepted rate, in addresses per second. A measurement fails if it takes 30 s longer than that.
const MIN_RATE: u32 = 50;

/// One measurement.
struct Bulk {
    /// In addresses per second.
    rate: f64,
    /// CPU time of the contender or rival per address, in microseconds. It includes the start and the list.
    cpu: f64,
    /// CPU time of the control plane per address, in microseconds.
    control_plane_cpu: f64,
    /// Writes per address, of any kind. Two are necessary.
    writes: f64,
}

/// Measures `runs` pairs with `count` Services each.
pub async fn measure(runner: &Runner, report: &mut Report, count: u32, name: &str, runs: usize) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // The first one alternates, so that a drift affects both sides equally.
        for is_landfall in [run % 2 == 0, run % 2 == 1] {
            let bulk = measure_once(runner, count, is_landfall).await.with_context(|| format!("bulk of {count}"))?;
            let name_of_contender = if is_landfall { "landfall" } else { "bare loop" };
            runner.progress(&format!(
                "bulk {name}, pair {} of {runs}: {name_of_contender:9} {:5.0}/s, {:4.0} us of CPU each, {:4.0} us in the control plane, {:.2} writes",
                run + 1,
                bulk.rate,
                bulk.cpu,
                bulk.control_plane_cpu,
                bulk.writes,
            ))?;
            if is_landfall { &mut ours } else { &mut bare }.push(bulk);
        }
    }
    report.part(&format!("{count} Services at once, {runs} pairs (addresses per second, first to last)"));
    for (label, bulks) in [("landfall", &ours), ("bare loop, 64 at a time", &bare)] {
        report.distribution(label, &values(bulks, |bulk| bulk.rate), "/s");
        report.distribution("  CPU per address", &values(bulks, |bulk| bulk.cpu), "us");
        let cpu = values(bulks, |bulk| bulk.control_plane_cpu);
        report.distribution("  CPU of the control plane per address", &cpu, "us");
        report.distribution("  writes per address, of any kind", &values(bulks, |bulk| bulk.writes), "");
    }
    let ratios = ratios(&values(&ours, |bulk| bulk.rate), &values(&bare, |bulk| bulk.rate));
    let name = format!("bulk_ratio_{name}");
    report.measure(FigureSpec::higher(&name, "landfall to bare loop", "ratio").goal("0.80 or more"), &ratios);
    Ok(())
}

fn values(bulks: &[Bulk], field: fn(&Bulk) -> f64) -> Vec<f64> {
    bulks.iter().map(field).collect()
}

async fn measure_once(runner: &Runner, count: u32, is_landfall: bool) -> Result<Bulk> {
    let stage = Stage::set("bench-bulk").await?;
    stage.create((0..count).map(|n| format!("s-{n:05}"))).await?;
    let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
    stage.settle().await?;
    let writes_before = stage.writes().await?;
    let cpu_before = stage.cpu()?;
    let actor = if is_landfall { runner.start_landfall(&stage)? } else { runner.start_rival(&stage, "bare")? };
    let (took, _) = wait_until_served(&mut sightings, count).await.with_context(|| actor.last_words())?;
    let cpu = actor.cpu()?;
    let control_plane_cpu = stage.cpu()? - cpu_before;
    actor.check()?;
    let writes = metrics::since(&writes_before, &stage.writes().await?).values().sum::<u64>();
    let records = stage.count("loadbalancerips").await?;
    ensure!(records == count as usize, "{records} records for {count} Services");
    stage.strike()?;
    let micros_per_address = |seconds: f64| seconds * 1e6 / f64::from(count);
    Ok(Bulk {
        rate: f64::from(count - 1) / took.as_secs_f64(),
        cpu: micros_per_address(cpu),
        control_plane_cpu: micros_per_address(control_plane_cpu),
        writes: writes as f64 / f64::from(count),
    })
}

/// Waits until `count` Services have an address. Returns the time from the first address to the last, and when the last
/// one was assigned.
pub async fn wait_until_served(sightings: &mut Sightings, count: u32) -> Result<(Duration, Instant)> {
    let deadline = Instant::now() + Duration::from_secs(30) + Duration::from_secs((count / MIN_RATE).into());
    let (mut names, mut first) = (BTreeSet::new(), None);
    loop {
        let sighting = sightings.next(deadline).await.with_context(|| format!("{} of {count} served", names.len()))?;
        if sighting.change != Change::Served {
            continue;
        }
        let first = *first.get_or_insert(sighting.at);
        names.insert(sighting.name);
        if names.len() == count as usize {
            return Ok((sighting.at - first, sighting.at));
        }
    }
}
