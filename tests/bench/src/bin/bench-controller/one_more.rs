//! The time until one more Service on a large cluster has its address.
//!
//! The time is from before the create is sent until a watch shows the address. Contender and echo run all the time and
//! take turns of ten Services. The other one is frozen, so that its work on these Services costs nothing. Before each
//! create, the previous Service is gone and the cluster is quiet for a moment, as between the commands of a person.
//! Creates without that pause are measured separately.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::{Distribution, percentile, ratios};
use bench::report::{FigureSpec, Report, quantiles_text};
use bench::sightings::{Change, Sightings};
use bench::stage::{Actor, NAMESPACE, Stage, service};
use bench::writes::ECHO_CLASS;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::{Case, Runner};

/// Services of one side in a turn. They take about a second, which is less than the term of a leader.
const TURN: usize = 10;

/// Turns of each side in a round: 100 Services, whose p99 gives one ratio.
const TURNS: usize = 10;

/// The longest time to serve a Service.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shortest pause before a create. The longest is twice as long.
const PAUSE: Duration = Duration::from_millis(40);

/// The contender or the echo, with its times in milliseconds.
struct Side<'a> {
    actor: &'a Actor,
    class: Option<&'a str>,
    /// One list per round.
    rounds: Vec<Vec<f64>>,
    /// Times of creates without a pause.
    unpaused: Vec<f64>,
    created: usize,
}

/// The result for one number of Services.
pub struct OneMore {
    /// The median of the p99 of all rounds of the contender, in milliseconds.
    pub p99: f64,
}

/// The processes that are compared.
#[derive(Clone, Copy)]
pub struct Actors<'a> {
    pub landfall: &'a Actor,
    pub echo: &'a Actor,
}

pub async fn measure(
    runner: &Runner,
    report: &mut Report,
    stage: &Stage,
    actors: Actors<'_>,
    case: Case,
) -> Result<OneMore> {
    let Case { name, rounds } = case;
    let mut sightings = Sightings::begin(&stage.client, NAMESPACE).await?;
    let api: Api<Service> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let side = |actor, class| Side { actor, class, rounds: Vec::new(), unpaused: Vec::new(), created: 0 };
    let mut ours = side(actors.landfall, None);
    let mut echo = side(actors.echo, Some(ECHO_CLASS));
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
        let (our_p99, echo_p99) = (p99(&ours), p99(&echo));
        runner.progress(&format!(
            "one more at {name}, round {} of {rounds}: p99 {our_p99:.1} ms, echo {echo_p99:.1} ms",
            round + 1
        ))?;
    }
    for _ in 0..TURNS {
        take_turn(&mut ours, &mut echo, &api, &mut sightings, false).await?;
        take_turn(&mut echo, &mut ours, &api, &mut sightings, false).await?;
    }
    for actor in [actors.landfall, actors.echo] {
        actor.thaw()?;
    }
    for actor in [actors.landfall, actors.echo] {
        actor.check()?;
    }

    report
        .part(&format!("One more Service at {name}, {rounds} rounds of {} each (ms, create to address)", TURN * TURNS));
    for (label, side) in [("landfall", &ours), ("echo", &echo)] {
        report.row(label, &quantiles_text(&side.rounds.concat()));
        report.row("  without a pause after the previous one", &quantiles_text(&side.unpaused));
    }
    let p99s = |side: &Side<'_>| side.rounds.iter().filter_map(|round| percentile(round, 0.99)).collect::<Vec<_>>();
    let (our_p99s, echo_p99s) = (p99s(&ours), p99s(&echo));
    let name = format!("one_more_p99_ratio_{name}");
    let spec = FigureSpec::lower(&name, "p99, landfall to echo", "ratio").goal("2 or less");
    report.measure(spec, &ratios(&our_p99s, &echo_p99s));
    let p99 = Distribution::from_values(&our_p99s).context("invariant: there are rounds")?.median;
    Ok(OneMore { p99 })
}

/// Creates the Services of one turn, one after the other. The first one follows a thaw, and does not count.
async fn take_turn(
    side: &mut Side<'_>,
    other: &mut Side<'_>,
    api: &Api<Service>,
    sightings: &mut Sightings,
    with_pause: bool,
) -> Result<()> {
    other.actor.freeze()?;
    side.actor.thaw()?;
    for sample in 0..=TURN {
        if with_pause || sample == 0 {
            // The pauses vary, so that creates do not fall into step with a timer.
            tokio::time::sleep(PAUSE + PAUSE * (side.created % 16) as u32 / 16).await;
        }
        let name = format!("{}-{}", if side.class.is_some() { "echo" } else { "ours" }, side.created);
        side.created += 1;
        let object = serde_json::from_value(service(&name, side.class))?;
        let since = Instant::now();
        api.create(&PostParams::default(), &object).await.context("create a Service")?;
        let served_at =
            sightings.until(&name, Change::Served, PATIENCE).await.with_context(|| side.actor.last_words())?;
        api.delete(&name, &DeleteParams::default()).await.context("delete a Service")?;
        sightings.until(&name, Change::Gone, PATIENCE).await.with_context(|| side.actor.last_words())?;
        ensure!(served_at > since, "a Service was served before it was created");
        let took = (served_at - since).as_secs_f64() * 1e3;
        match side.rounds.last_mut() {
            _ if sample == 0 => {}
            Some(round) if with_pause => round.push(took),
            _ => side.unpaused.push(took),
        }
    }
    Ok(())
}
