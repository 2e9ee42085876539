//! Events, as `kubectl describe` and `kubectl events` show them (events.k8s.io/v1).
//!
//! One task reads a bounded channel and sends one request at a time, so that events never delay allocations. Repeated
//! events are written at long intervals ([`crate::apply::repeats`]). (kube's Recorder would count repetitions in the
//! event, but it searches all events of six minutes for each new one, and has no bound.) An event that cannot be
//! written is dropped.

use std::time::Duration;

use futures::StreamExt;
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

/// Concurrent requests: one, so that events take a negligible share of the API server in a burst of new Services.
const CONCURRENCY: usize = 1;

/// How long the API server has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The maximum length of a note, in bytes: the API server rejects longer ones.
const MAX_NOTE: usize = 1024;

/// Writes events until the channel closes. Drops them while this controller does not lead.
pub(crate) async fn write_events(
    client: Client,
    instance: String,
    event_rx: mpsc::Receiver<Event>,
    fence_rx: watch::Receiver<Option<WriteFence>>,
    metrics: Metrics,
) {
    let events = futures::stream::unfold((event_rx, RecentEvents::default()), |(mut event_rx, mut recent)| async {
        loop {
            let event = event_rx.recv().await?;
            if recent.is_new(&event, Instant::now().into_std()) {
                return Some((event, (event_rx, recent)));
            }
        }
    });
    let write = |event: Event| {
        let object = event_object(event, &instance, Timestamp::now());
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let api = Api::<events::Event>::namespaced(client.clone(), &namespace);
        let (fence, metrics) = (fence_rx.borrow().clone(), metrics.clone());
        async move {
            if fence.is_none_or(|fence| fence.check().is_err()) {
                metrics.count_write(Write::CreateEvent, Outcome::Deposed);
                return tracing::debug!(namespace, "event dropped: not leading");
            }
            let outcome = match timeout(ANSWER_TIMEOUT, api.create(&PostParams::default(), &object)).await {
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
            };
            metrics.count_write(Write::CreateEvent, outcome);
        }
    };
    events.for_each_concurrent(CONCURRENCY, write).await;
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
