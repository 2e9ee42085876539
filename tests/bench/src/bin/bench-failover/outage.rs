//! The outage after the owner of an address is cut off, many times.
//!
//! On the LAN, a cut looks like a power failure: no frame comes from the node or reaches it, its carrier stays up, and
//! no host is notified. The switch drops the frames of its port. A reboot would take longer than all other steps, so
//! the cable is healed afterwards, and the node learns that other nodes have taken over its addresses. keepalived is
//! restarted before its cable is healed, as after a reboot. Without the restart, the old master would not announce the
//! address again, and clients would keep sending to the new master. No address moves back, so the next owner to be cut
//! off is the one that took over.
//!
//! The probe begins well before the cut and sends all the time ([`bench::probe`]). The cut comes at a random phase of
//! all periodic work. Products take turns, so each one rests while the others are measured. In every second run the
//! client has resolved the address within the last second before the cut: Linux ignores most announcements that come so
//! soon after an update (`locktime`).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::gaps::{Connects, Outage, connects};
use bench::probe::{CONNECTS, DATAGRAMS, Probe};
use bench::report::{FigureSpec, Report, quantiles_text};
use lab::{Direction, Host, wait_until};
use tokio::time::{sleep, sleep_until};

use crate::Bench;
use crate::keepalived::{self, SETTINGS, Setting};
use crate::testbed::FailoverTestbed;

/// The time with answers before each cut.
const LEAD_TIME: Duration = Duration::from_millis(250);

/// The time with answers from the next owner, in which a further gap counts. After it, the result of each connect of
/// the outage is known.
const FOLLOW_UP: Duration = Duration::from_millis(450);

/// The longest outage. A longer one is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shortest time between a healed cut and the next cut. In it, Landfall's agents receive each other's Hellos and
/// claims.
const REST: Duration = Duration::from_secs(2);

/// A product that moves an address to a living host.
struct Product {
    name: &'static str,
    key: &'static str,
    address: IpAddr,
    is_keepalived: bool,
    /// The cut comes at a random time in this range, which is at least its longest period.
    phase: Duration,
    /// The shortest time between two cuts.
    rest: Duration,
    /// Of this many rounds, it takes part in one.
    every: usize,
    healed: Instant,
    runs: Vec<Run>,
}

/// The result of one cut.
#[derive(Clone, Copy, Debug)]
struct Run {
    outage: Outage,
    connects: Connects,
    /// Whether the client had resolved the address within the last second.
    fresh: bool,
}

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &FailoverTestbed) -> Result<()> {
    let rounds = if bench.quick { 8 } else { 100 };
    let product = |name, key, address, phase, rest, every| Product {
        name,
        key,
        address,
        is_keepalived: address != testbed.address,
        phase: Duration::from_millis(phase),
        rest,
        every,
        healed: Instant::now(),
        runs: Vec::new(),
    };
    let [fast, default] = SETTINGS;
    let mut all = [
        product("landfall", "", testbed.address, 500, REST, 1),
        product(fast.name, fast.key, fast.address(), 500, REST, 1),
        product(default.name, default.key, default.address(), 1000, 2 * REST, if bench.quick { 2 } else { 5 }),
    ];
    for setting in SETTINGS {
        setting.start(&testbed.world.cluster)?;
    }
    for product in &mut all {
        wait_for_answer(testbed, product.address).await.with_context(|| product.name)?;
        product.healed = Instant::now();
    }
    for round in 0..rounds {
        let mut results = Vec::new();
        for (n, product) in all.iter_mut().enumerate().filter(|(_, product)| round % product.every == 0) {
            sleep_until((product.healed + product.rest).into()).await;
            let fresh = product.runs.len() % 2 == 1;
            let seed = (SETTINGS.len() + 1) * round + n;
            let run = cut_owner_off(bench, testbed, product, seed, fresh).await;
            let run = run.with_context(|| format!("{}, run {}", product.name, product.runs.len() + 1))?;
            results.push(format!("{} {:.0} ms{}", product.name, ms(run.outage.length), late_remark(run.outage)));
            product.runs.push(run);
        }
        bench.progress(&format!("switch cut {} of {rounds}: {}", round + 1, results.join(", ")))?;
    }
    for product in &all {
        report_product(report, product);
    }
    Ok(())
}

async fn wait_for_answer(testbed: &FailoverTestbed, address: IpAddr) -> Result<()> {
    wait_until(PATIENCE, &format!("{address} to answer"), async || {
        let probe = Probe::begin(&testbed.client, address, keepalived::PORT)?;
        sleep(LEAD_TIME).await;
        ensure!(!probe.end()?.datagrams.answered.is_empty(), "no answer");
        Ok(())
    })
    .await
}

/// Cuts the owner off, and heals it after the next owner has answered for a while. `seed` selects the random phase.
async fn cut_owner_off(
    bench: &Bench,
    testbed: &FailoverTestbed,
    product: &mut Product,
    seed: usize,
    fresh: bool,
) -> Result<Run> {
    let (address, cluster) = (product.address, &testbed.world.cluster);
    let probe = Probe::begin(&testbed.client, address, keepalived::PORT)?;
    sleep(LEAD_TIME).await;
    ensure!(!probe.last_answer().is_zero(), "no answer before the cut");
    let owner = testbed.owner(address)?;
    if fresh {
        testbed.delete_neighbour(address)?;
        // After this time the entry is in use, and younger than `locktime`.
        sleep(bench.random(seed, Duration::from_millis(50), Duration::from_millis(900))).await;
    } else {
        sleep(bench.random(seed, Duration::ZERO, product.phase)).await;
    }
    let before = probe.elapsed_time();
    cluster.cut(owner.name(), Direction::Both)?;
    let cut = probe.elapsed_time();
    let taken_over = wait_for_takeover(testbed, &probe, address, &owner, cut).await;
    let log = probe.end()?;
    if product.is_keepalived {
        Setting::stop(&owner).await?;
    }
    cluster.heal(owner.name())?;
    if product.is_keepalived {
        Setting::restart(&owner)?;
    }
    product.healed = Instant::now();
    taken_over?;
    let outage = log.datagrams.outage(before, DATAGRAMS).context("invariant: it answered after the cut")?;
    let connects = connects(&log.attempts, before, CONNECTS).context("no connect was accepted after the cut")?;
    Ok(Run { outage, connects, fresh })
}

/// Waits until another host than `owner`, which was cut off at `cut`, has answered for a while.
async fn wait_for_takeover(
    testbed: &FailoverTestbed,
    probe: &Probe,
    address: IpAddr,
    owner: &Host,
    cut: Duration,
) -> Result<()> {
    // All answers that the old owner sent before the cut have arrived by then.
    let begin = cut + Duration::from_millis(5);
    wait_until(PATIENCE, "the next owner to answer", async || {
        let waited = probe.elapsed_time() - cut;
        ensure!(probe.last_answer() > begin, "no answer {waited:?} after {} was cut off", owner.name());
        Ok(())
    })
    .await?;
    sleep(FOLLOW_UP).await;
    let next = testbed.owner(address)?;
    ensure!(next.name() != owner.name(), "{} answers although it is cut off", owner.name());
    Ok(())
}

fn report_product(report: &mut Report, product: &Product) {
    let Product { name, key, runs, .. } = product;
    let values = |field: &dyn Fn(&Run) -> Option<f64>| runs.iter().filter_map(field).collect::<Vec<f64>>();
    report.part(&format!("{name}: the switch cuts the owner off, {} times", runs.len()));
    let goal = if key.starts_with("keepalived") { "" } else { "p50 110, p99 200 or less" };
    let outages = values(&|run| Some(ms(run.outage.length)));
    let figure = format!("{key}cut_outage_ms");
    report.quantiles(FigureSpec::lower(&figure, "no answer to datagrams", "ms").goal(goal), &outages);
    let connects = values(&|run| Some(ms(run.connects.outage)));
    let figure = format!("{key}cut_connect_outage_ms");
    report.quantiles(FigureSpec::lower(&figure, "no connect accepted", "ms"), &connects);
    let fresh = values(&|run| run.fresh.then_some(ms(run.outage.length)));
    let (figure, label) =
        (format!("{key}cut_fresh_arp_outage_ms"), format!("no answer, with a fresh neighbour entry ({})", fresh.len()));
    report.quantiles(FigureSpec::lower(&figure, &label, "ms"), &fresh);
    report.row("connects lost", &quantiles_text(&values(&|run| Some(run.connects.lost as f64))));
    report.row("delay of the probe itself, in ms", &quantiles_text(&values(&|run| Some(ms(run.outage.late)))));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A remark if the probe itself was late by more than a few milliseconds.
fn late_remark(outage: Outage) -> String {
    if outage.late < Duration::from_millis(5) {
        String::new()
    } else {
        format!(" (probe late {:.0} ms)", ms(outage.late))
    }
}
