//! Many Services that wait for an address: how fast they get it, and how fast they could.
//!
//! Each measurement has a control plane of its own on which the Services are, all pending. Then the contender or the bare
//! loop starts, and what counts is the time from the first address to the last as a watch sees them: neither start nor
//! list are part of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::{Distribution, ratios};
use bench::metrics;
use bench::report::Report;
use bench::sightings::{Change, Sightings};
use bench::stage::{NAMESPACE, Stage};

use crate::Bench;

/// How long to wait for addresses: fewer than this many a second, and half a minute, is no result.
const SLOWEST: u32 = 50;

/// One measurement.
struct Bulk {
    /// Addresses a second.
    rate: f64,
    /// CPU time of who gave them, in microseconds an address, start and list included.
    own: f64,
    /// CPU time of the control plane, likewise.
    others: f64,
    /// Writes for an address, whatever they are: two are needed.
    writes: f64,
}

/// Measures `runs` pairs with `count` Services each.
pub async fn measure(bench: &Bench, report: &mut Report, count: u32, name: &str, runs: usize) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // Who is first takes turns, or whatever drifts would be on one side.
        for contender in [run % 2 == 0, run % 2 == 1] {
            let bulk = once(bench, count, contender).await.with_context(|| format!("bulk of {count}"))?;
            let who = if contender { "landfall" } else { "bare loop" };
            bench.progress(&format!(
                "bulk {name}, pair {} of {runs}: {who:9} {:5.0}/s, {:4.0} us of CPU each, {:4.0} us in the control plane, {:.2} writes",
                run + 1,
                bulk.rate,
                bulk.own,
                bulk.others,
                bulk.writes,
            ))?;
            if contender { &mut ours } else { &mut bare }.push(bulk);
        }
    }
    report.part(&format!("{count} Services at once, {runs} pairs (addresses a second, first to last)"));
    let of = |bulks: &[Bulk], what: fn(&Bulk) -> f64| bulks.iter().map(what).collect::<Vec<_>>();
    for (who, bulks) in [("landfall", &ours), ("bare loop, 64 at a time", &bare)] {
        report.distribution(who, spread(&of(bulks, |bulk| bulk.rate))?, "/s");
        report.distribution("  CPU for an address", spread(&of(bulks, |bulk| bulk.own))?, "us");
        report.distribution("  CPU of the control plane for an address", spread(&of(bulks, |bulk| bulk.others))?, "us");
        report.distribution("  writes for an address, of any kind", spread(&of(bulks, |bulk| bulk.writes))?, "");
    }
    let ratio = spread(&ratios(&of(&ours, |bulk| bulk.rate), &of(&bare, |bulk| bulk.rate)))?;
    report.ratio(&format!("bulk_ratio_{name}"), "landfall to bare loop", ratio, "0.80 or more");
    Ok(())
}

async fn once(bench: &Bench, count: u32, contender: bool) -> Result<Bulk> {
    let stage = Stage::set("bench-bulk").await?;
    stage.create((0..count).map(|n| format!("s-{n:05}"))).await?;
    let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
    stage.settle().await?;
    let written = stage.writes().await?;
    let before = stage.cpu()?;
    let actor = if contender { bench.landfall(&stage)? } else { bench.rival(&stage, "bare")? };
    let (took, _) = served(&mut sightings, count).await.with_context(|| actor.last_words())?;
    let own = actor.cpu()?;
    let others = stage.cpu()? - before;
    actor.check()?;
    let written = metrics::since(&written, &stage.writes().await?).values().sum::<u64>();
    let records = stage.count("loadbalancerips").await?;
    ensure!(records == count as usize, "{records} records for {count} Services");
    stage.strike()?;
    let each = |seconds: f64| seconds * 1e6 / f64::from(count);
    Ok(Bulk {
        rate: f64::from(count - 1) / took.as_secs_f64(),
        own: each(own),
        others: each(others),
        writes: written as f64 / f64::from(count),
    })
}

/// Waits until `count` Services have an address; returns the time from the first to the last, and when that was.
pub async fn served(sightings: &mut Sightings, count: u32) -> Result<(Duration, Instant)> {
    let deadline = Instant::now() + Duration::from_secs(30) + Duration::from_secs((count / SLOWEST).into());
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

/// The spread of measurements of which there are some.
pub fn spread(values: &[f64]) -> Result<Distribution> {
    Distribution::from_values(values).context("nothing was measured")
}
