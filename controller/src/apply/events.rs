//! Events, as `kubectl describe` and `kubectl events` show them (events.k8s.io/v1).
//!
//! One task reads a bounded channel and sends one request at a time, so that events never delay allocations. Repeated
//! events are written at long intervals ([`crate::apply::repeats`]). (kube's Recorder would count repetitions in the
//! event, but it searches all events of six minutes for each new one, and has no bound.) An event that cannot be
//! written is dropped.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::apply::election::WriteFence;
use crate::apply::repeats::RecentEvents;
use crate::metrics::{Metrics, Outcome, Write};
use crate::plan::effect::Event;

/// The reporting controller of all events.
pub(crate) const CONTROLLER: &str = "landfall.dev/controller";

/// The capacity of the channel. Events beyond it are dropped.
pub(crate) const CAPACITY: usize = 4096;

/// How long the API server has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The maximum length of a note, in bytes: the API server rejects longer ones.
const MAX_NOTE: usize = 1024;

/// Writes events until the channel closes. Drops them while this controller does not lead.
pub(crate) async fn write_events(
    client: Client,
    instance: String,
    mut event_rx: mpsc::Receiver<Event>,
    fence_rx: watch::Receiver<Option<WriteFence>>,
    metrics: Metrics,
) {
    let mut recent = RecentEvents::default();
    // One request at a time, so that events take a negligible share of the API server in a burst of new Services.
    while let Some(event) = event_rx.recv().await {
        if recent.is_new(&event, Instant::now().into_std()) {
            let leads = fence_rx.borrow().as_ref().is_some_and(|fence| fence.check().is_ok());
            let outcome = if leads { write_event(&client, &instance, event).await } else { Outcome::Deposed };
            metrics.count_write(Write::CreateEvent, outcome);
        }
    }
}

async fn write_event(client: &Client, instance: &str, event: Event) -> Outcome {
    let object = event_object(event, instance, Timestamp::now());
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api = Api::<events::Event>::namespaced(client.clone(), namespace);
    match timeout(ANSWER_TIMEOUT, api.create(&PostParams::default(), &object)).await {
        Ok(Ok(_)) => Outcome::Ok,
        // For example, the namespace is being deleted.
        Ok(Err(error)) => {
            tracing::debug!(namespace, error = observe::error_chain(&error), "event dropped");
            Outcome::from(&error)
        }
        Err(_) => {
            tracing::debug!(namespace, "event dropped: no answer");
            Outcome::Unanswered
        }
    }
}

/// The object for the API server.
fn event_object(event: Event, instance: &str, now: Timestamp) -> events::Event {
    let regarding = event.regarding;
    let name = regarding.name.clone().unwrap_or_default();
    events::Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            // By convention, events about cluster-scoped objects are in `default`.
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        action: Some("Allocate".into()),
        event_time: Some(MicroTime(now)),
        note: Some(event.message[..event.message.floor_char_boundary(MAX_NOTE)].to_owned()),
        reason: Some(event.reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if event.is_warning { "Warning" } else { "Normal" }.into()),
        ..events::Event::default()
    }
}
