//! The owner of an address is cut off, again and again: how long nobody answers.
//!
//! A cut is what a power failure looks like from the LAN: nothing comes from the node and nothing gets there, its carrier
//! stays, nobody is told. (The switch drops frames from and to its port.) Nodes are not booted anew each time, which would
//! take longer than all the rest: the cable is healed, and the node hears that others have its addresses by now. keepalived
//! is started anew on a host before its cable is healed, as after a reboot: one that goes on as the master it was does not
//! announce the address again, and clients go on asking the other. With both the next one to be cut off is the one that
//! took over, for nothing moves back.
//!
//! The probe begins well before and asks all the time ([`bench::probe`]). The cut comes at any phase of whatever is
//! periodic. Contenders take turns, so each of them rests while the others are measured. In every second run the client
//! has asked for the address anew within the last second before the cut: Linux ignores most announcements that come so
//! soon after an update (`locktime`).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::percentile;
use bench::gaps::{Connects, Outage, connects};
use bench::probe::{CONNECTS, DATAGRAMS, Probe};
use bench::report::Report;
use lab::{Direction, wait_until};
use tokio::time::{sleep, sleep_until};

use crate::Bench;
use crate::keepalived::{self, SETTINGS, Setting};
use crate::testbed::Stand;

/// Answers come for at least so long before something is done to the address.
const BEFORE: Duration = Duration::from_millis(250);

/// And for so long after the first answer from the next owner: another gap would count. By then it is known of all connects
/// that were begun meanwhile whether they are lost.
const AFTER: Duration = Duration::from_millis(450);

/// How long an address may be silent until it is for good.
const PATIENCE: Duration = Duration::from_secs(20);

/// How soon after a healed cut nodes may be cut again: Landfall's agents hear each other and have told what they own.
const REST: Duration = Duration::from_secs(2);

/// Who gives an address.
struct Contender {
    name: &'static str,
    key: &'static str,
    address: IpAddr,
    is_keepalived: bool,
    /// The range in which the cut comes, at random: as long as its longest period at least.
    phase: Duration,
    /// How long it is left alone after a cut.
    rest: Duration,
    /// It takes part in every so many rounds.
    every: usize,
    healed: Instant,
    runs: Vec<Run>,
}

/// One cut.
#[derive(Clone, Copy, Debug)]
struct Run {
    outage: Outage,
    connects: Connects,
    /// Whether the client had asked for the address within the last second.
    fresh: bool,
}

/// Measures all contenders.
pub async fn measure(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let rounds = if bench.quick { 8 } else { 100 };
    let contender = |name, key, address, phase, rest, every| Contender {
        name,
        key,
        address,
        is_keepalived: address != stand.address,
        phase: Duration::from_millis(phase),
        rest,
        every,
        healed: Instant::now(),
        runs: Vec::new(),
    };
    let [often, seldom] = SETTINGS;
    let mut all = [
        contender("landfall", "", stand.address, 500, REST, 1),
        contender(often.name, often.key, often.address(), 500, REST, 1),
        contender(seldom.name, seldom.key, seldom.address(), 1000, 2 * REST, if bench.quick { 2 } else { 5 }),
    ];
    for setting in SETTINGS {
        setting.start(&stand.world.cluster)?;
    }
    for contender in &mut all {
        answers(stand, contender.address).await.with_context(|| contender.name)?;
        contender.healed = Instant::now();
    }
    for round in 0..rounds {
        let mut told = Vec::new();
        for (n, contender) in all.iter_mut().enumerate().filter(|(_, contender)| round % contender.every == 0) {
            sleep_until((contender.healed + contender.rest).into()).await;
            let fresh = contender.runs.len() % 2 == 1;
            let run = cut(bench, stand, contender, (SETTINGS.len() + 1) * round + n, fresh).await;
            let run = run.with_context(|| format!("{}, run {}", contender.name, contender.runs.len() + 1))?;
            told.push(format!("{} {:.0} ms{}", contender.name, ms(run.outage.length), late(run.outage)));
            contender.runs.push(run);
        }
        bench.progress(&format!("power-off {} of {rounds}: {}", round + 1, told.join(", ")))?;
    }
    for contender in &all {
        tell(report, contender);
    }
    Ok(())
}

/// Waits until somebody answers.
async fn answers(stand: &Stand, address: IpAddr) -> Result<()> {
    wait_until(PATIENCE, &format!("{address} to answer"), async || {
        let probe = Probe::begin(&stand.client, address, keepalived::PORT)?;
        sleep(BEFORE).await;
        ensure!(!probe.end()?.datagrams.answered.is_empty(), "nobody answers");
        Ok(())
    })
    .await
}

/// Cuts the owner off, and heals it when another one has answered for a while.
async fn cut(bench: &Bench, stand: &Stand, contender: &mut Contender, n: usize, fresh: bool) -> Result<Run> {
    let (address, cluster) = (contender.address, &stand.world.cluster);
    let probe = Probe::begin(&stand.client, address, keepalived::PORT)?;
    sleep(BEFORE).await;
    ensure!(!probe.last_answer().is_zero(), "nobody answered before the cut");
    let owner = stand.owner(address)?;
    if fresh {
        stand.forget(address)?;
        // From when the entry is there: long enough ago to be used, and less than `locktime`.
        sleep(bench.random(n, Duration::from_millis(50), Duration::from_millis(900))).await;
    } else {
        sleep(bench.random(n, Duration::ZERO, contender.phase)).await;
    }
    let before = probe.elapsed_time();
    cluster.cut(owner.name(), Direction::Both)?;
    let cut = probe.elapsed_time();
    let healed = async {
        // What the old owner sent before it was cut has arrived.
        let there = cut + Duration::from_millis(5);
        wait_until(PATIENCE, "another one to answer", async || {
            ensure!(
                probe.last_answer() > there,
                "nobody answers {:?} after {} was cut off",
                probe.elapsed_time() - cut,
                owner.name()
            );
            Ok(())
        })
        .await?;
        sleep(AFTER).await;
        let next = stand.owner(address)?;
        ensure!(next.name() != owner.name(), "{} answers although it is cut off", owner.name());
        Ok(())
    }
    .await;
    let log = probe.end()?;
    if contender.is_keepalived {
        Setting::end(&owner).await?;
    }
    cluster.heal(owner.name())?;
    if contender.is_keepalived {
        Setting::start_again(&owner)?;
    }
    contender.healed = Instant::now();
    healed?;
    let outage = log.datagrams.outage(before, DATAGRAMS).context("invariant: it answered after the cut")?;
    let connects = connects(&log.attempts, before, CONNECTS).context("no connect was accepted after the cut")?;
    Ok(Run { outage, connects, fresh })
}

fn tell(report: &mut Report, contender: &Contender) {
    let Contender { name, key, runs, .. } = contender;
    let of = |what: &dyn Fn(&Run) -> Option<f64>| runs.iter().filter_map(what).collect::<Vec<f64>>();
    let line = |values: &[f64]| {
        let at = |share| percentile(values, share).unwrap_or_default();
        format!("p50 {:6.1}  p99 {:6.1}  ({:.1} to {:.1}) ms", at(0.5), at(0.99), at(0.0), at(1.0))
    };
    report.part(&format!("{name}: the owner is cut off {} times", runs.len()));
    let outages = of(&|run| Some(ms(run.outage.length)));
    let goal = if key.is_empty() { "  goal p50 150, p99 250 or less" } else { "" };
    report.row("no answer to datagrams", &format!("{}{goal}", line(&outages)));
    let connects = of(&|run| Some(ms(run.connects.outage)));
    report.row("no connect accepted", &line(&connects));
    let fresh = of(&|run| run.fresh.then_some(ms(run.outage.length)));
    report.row(&format!("no answer, where the client had asked just before ({})", fresh.len()), &line(&fresh));
    let lost = of(&|run| Some(run.connects.lost as f64));
    report.row("connects lost", &line(&lost).replace(" ms", ""));
    let late = of(&|run| Some(ms(run.outage.late)));
    report.row("the probe was late meanwhile", &line(&late));
    for (figure, values) in [("outage_ms", &outages), ("connect_outage_ms", &connects), ("fresh_arp_outage_ms", &fresh)]
    {
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            report.figure(&format!("{key}{figure}_{name}"), percentile(values, share).unwrap_or_default());
        }
    }
    report.figure(&format!("{key}runs"), runs.len() as f64);
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Says so if the probe itself was late by more than a few milliseconds.
fn late(outage: Outage) -> String {
    if outage.late < Duration::from_millis(5) {
        String::new()
    } else {
        format!(" (probe late {:.0} ms)", ms(outage.late))
    }
}
