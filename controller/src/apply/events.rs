//! Telling people: events, as `kubectl describe` and `kubectl events` show them (events.k8s.io/v1).
//!
//! One task, fed by a bounded channel; a few requests at a time, so that events never stand in the way of addresses.
//! What is told again and again is told once in a while ([`crate::apply::repeats`]). (kube's Recorder would count repetitions in
//! the event, looks through all events of six minutes for that at each, and has no bound.) An event that can't be written
//! is given up.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::apply::election::Mandate;
use crate::apply::repeats::Repeats;
use crate::metrics::{Metrics, Outcome, Write};
use crate::plan::effect::Event;

/// Who reports, in all events.
pub(crate) const CONTROLLER: &str = "landfall.dev/controller";

/// Events that wait to be written. More at once are dropped.
pub(crate) const WAITING: usize = 4096;

/// Requests at a time: one, so that in a burst of new Services events take no part of the API server worth speaking of.
const CONCURRENCY: usize = 1;

/// For how long the API server is to answer.
const ANSWER: Duration = Duration::from_secs(15);

/// The longest text of an event that the API server takes, in bytes.
const NOTE: usize = 1024;

/// Writes the events that come, until no more can. Those that come to their turn when we don't lead any more are given up.
pub(crate) async fn report(
    client: Client,
    instance: String,
    incoming: mpsc::Receiver<Event>,
    leading: watch::Receiver<Option<Mandate>>,
    metrics: Metrics,
) {
    let events = futures::stream::unfold((incoming, Repeats::default()), |(mut incoming, mut repeats)| async {
        loop {
            let event = incoming.recv().await?;
            if repeats.is_news(&event, Instant::now().into_std()) {
                return Some((event, (incoming, repeats)));
            }
        }
    });
    let write = |event: Event| {
        let object = object(event, &instance, Timestamp::now());
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let api = Api::<events::Event>::namespaced(client.clone(), &namespace);
        let (mandate, metrics) = (leading.borrow().clone(), metrics.clone());
        async move {
            if mandate.is_none_or(|mandate| mandate.check().is_err()) {
                metrics.wrote(Write::CreateEvent, Outcome::Deposed);
                return tracing::debug!(namespace, "an event is given up: not leading");
            }
            let outcome = match timeout(ANSWER, api.create(&PostParams::default(), &object)).await {
                Ok(Ok(_)) => Outcome::Ok,
                // Such as in a namespace that is being deleted.
                Ok(Err(error)) => {
                    tracing::debug!(namespace, error = observe::error_chain(&error), "an event is given up");
                    Outcome::of(&error)
                }
                Err(_) => {
                    tracing::debug!(namespace, "an event is given up: no answer");
                    Outcome::Unanswered
                }
            };
            metrics.wrote(Write::CreateEvent, outcome);
        }
    };
    events.for_each_concurrent(CONCURRENCY, write).await;
}

/// The event as the API server takes it.
fn object(event: Event, instance: &str, now: Timestamp) -> events::Event {
    let regarding = event.regarding;
    let about = regarding.name.clone().unwrap_or_default();
    events::Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{:x}", now.as_nanosecond())),
            // Those about objects of the whole cluster are by convention in `default`.
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        action: Some("Allocate".into()),
        event_time: Some(MicroTime(now)),
        note: Some(event.message[..event.message.floor_char_boundary(NOTE)].to_owned()),
        reason: Some(event.reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if event.is_warning { "Warning" } else { "Normal" }.into()),
        ..events::Event::default()
    }
}
