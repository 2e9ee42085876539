//! One more Service on a cluster that has many: how long it waits for its address.
//!
//! The time is from before the create is sent until a watch shows the address. Contender and echo run all the time and
//! take turns, ten Services each; whoever has not its turn is frozen, so that what it would make of the other's Services
//! costs the other nothing. Before a Service is made the one before is gone, and there was some quiet, as among people;
//! what happens without the quiet is measured apart.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::{percentile, ratios};
use bench::report::Report;
use bench::sightings::{Change, Sightings};
use bench::stage::{Actor, NAMESPACE, Stage, service};
use bench::writes::ECHO_CLASS;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::Bench;
use crate::bulk::spread;

/// Services of one side before it is the other's turn. They take about a second: less than the term of a leader.
const TURN: usize = 10;

/// Turns of each side in a round, whose p99 make one ratio: a hundred Services.
const TURNS: usize = 10;

/// How long a Service may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The quiet before a Service is made: this at least, and up to as much again.
const QUIET: Duration = Duration::from_millis(40);

/// One of the two.
struct Side<'a> {
    actor: &'a Actor,
    class: Option<&'a str>,
    /// Milliseconds, a list for each round.
    rounds: Vec<Vec<f64>>,
    hasty: Vec<f64>,
    made: usize,
}

/// What was measured at one number of Services.
pub struct OneMore {
    /// Milliseconds of the contender: the median of the rounds' p99.
    pub p99: f64,
}

/// Measures `rounds` rounds.
pub async fn measure(
    bench: &Bench,
    report: &mut Report,
    stage: &Stage,
    actors: (&Actor, &Actor),
    at: (&str, usize),
) -> Result<OneMore> {
    let (name, rounds) = at;
    let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
    let api: Api<Service> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let side = |actor, class| Side { actor, class, rounds: Vec::new(), hasty: Vec::new(), made: 0 };
    let mut ours = side(actors.0, None);
    let mut echo = side(actors.1, Some(ECHO_CLASS));
    stage.settle().await?;
    for round in 0..rounds {
        ours.rounds.push(Vec::new());
        echo.rounds.push(Vec::new());
        for turn in 0..TURNS {
            let mut order = [&mut ours, &mut echo];
            order.rotate_left(turn % 2);
            let [first, second] = order;
            take_turn(first, second, &api, &mut sightings, true).await?;
            take_turn(second, first, &api, &mut sightings, true).await?;
        }
        let p99 = |side: &Side<'_>| side.rounds.last().and_then(|round| percentile(round, 0.99)).unwrap_or_default();
        let (of_ours, of_echo) = (p99(&ours), p99(&echo));
        bench.progress(&format!(
            "one more at {name}, round {} of {rounds}: p99 {of_ours:.1} ms, echo {of_echo:.1} ms",
            round + 1
        ))?;
    }
    for _ in 0..TURNS {
        take_turn(&mut ours, &mut echo, &api, &mut sightings, false).await?;
        take_turn(&mut echo, &mut ours, &api, &mut sightings, false).await?;
    }
    actors.0.thaw()?;
    actors.1.thaw()?;
    actors.0.check()?;
    actors.1.check()?;

    report
        .part(&format!("One more Service at {name}, {rounds} rounds of {} each (ms, create to address)", TURN * TURNS));
    let p99s = |side: &Side<'_>| side.rounds.iter().filter_map(|round| percentile(round, 0.99)).collect::<Vec<_>>();
    for (who, side) in [("landfall", &ours), ("echo", &echo)] {
        let all = side.rounds.concat();
        let of = |values: &[f64], share| percentile(values, share).unwrap_or_default();
        report.row(who, &format!("p50 {:5.1}  p99 {:5.1}  max {:5.1}", of(&all, 0.5), of(&all, 0.99), of(&all, 1.0)));
        let hasty = &side.hasty;
        report.row(
            "  the moment another is gone",
            &format!("p50 {:5.1}  p99 {:5.1}  max {:5.1}", of(hasty, 0.5), of(hasty, 0.99), of(hasty, 1.0)),
        );
    }
    let (of_ours, of_echo) = (p99s(&ours), p99s(&echo));
    let ratio = spread(&ratios(&of_ours, &of_echo))?;
    report.ratio(&format!("one_more_p99_ratio_{name}"), "p99, landfall to echo", ratio, "2 or less");
    Ok(OneMore { p99: spread(&of_ours)?.median })
}

/// Makes some Services of one side, one after the other; the first of a turn, after a thaw, does not count.
async fn take_turn(
    side: &mut Side<'_>,
    other: &mut Side<'_>,
    api: &Api<Service>,
    sightings: &mut Sightings,
    quiet: bool,
) -> Result<()> {
    other.actor.freeze()?;
    side.actor.thaw()?;
    for sample in 0..=TURN {
        if quiet || sample == 0 {
            // Distribution evenly, or it could be in step with somebody's clock.
            tokio::time::sleep(QUIET + QUIET * (side.made % 16) as u32 / 16).await;
        }
        let name = format!("{}-{}", if side.class.is_some() { "echo" } else { "ours" }, side.made);
        side.made += 1;
        let object = serde_json::from_value(service(&name, side.class))?;
        let since = Instant::now();
        api.create(&PostParams::default(), &object).await.context("create a Service")?;
        let seen = sightings.until(&name, Change::Served, PATIENCE).await.with_context(|| side.actor.last_words())?;
        api.delete(&name, &DeleteParams::default()).await.context("delete a Service")?;
        sightings.until(&name, Change::Gone, PATIENCE).await.with_context(|| side.actor.last_words())?;
        ensure!(seen > since, "a Service was served before it was made");
        let took = (seen - since).as_secs_f64() * 1e3;
        match side.rounds.last_mut() {
            _ if sample == 0 => {}
            Some(round) if quiet => round.push(took),
            _ => side.hasty.push(took),
        }
    }
    Ok(())
}
