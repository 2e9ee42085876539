//! Events, as `kubectl describe` and `kubectl events` show them (events.k8s.io/v1).
//!
//! One task reads a bounded channel and sends one request at a time, so that events never delay allocations. An event
//! that cannot be written is dropped.
//!
//! Repeated events are written at long intervals ([`RecentEvents`]). The Recorder of kube would count repetitions in
//! the event. For each new event, however, it searches all events of six minutes, and their number has no bound.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::apply::election::WriteFence;
use crate::metrics::{Metrics, Outcome, Write};
use crate::plan::effect::Event;

/// The reporting controller of all events.
pub(crate) const CONTROLLER: &str = "landfall.dev/controller";

/// The capacity of the channel. Events beyond it are dropped.
pub(crate) const CAPACITY: usize = 4096;

/// How long a request waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The maximum length of a note, in bytes: the API server rejects longer ones.
const MAX_NOTE: usize = 1024;

/// Time during which the same event is not written again. Users look at the newest events, and the API server keeps
/// them for an hour.
const QUIET: Duration = Duration::from_secs(5 * 60);

/// Maximum number of remembered events, of about 40 bytes each: the capacity of a table of 2¹⁴ slots. It is enough for
/// a burst of 10k Services.
const REMEMBERED: usize = 14_336;

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
        if recent.is_new(&event, tokio::time::Instant::now().into_std()) {
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
            tracing::debug!(namespace, "event dropped: the API server did not answer");
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

/// The recent events, whether their writes succeeded or not.
#[derive(Debug, Default)]
pub(crate) struct RecentEvents {
    hasher: RandomState,
    /// The hashes of the events.
    hashes: HashSet<u64>,
    /// The same hashes, each with the time at which the event was new, the oldest first.
    order: VecDeque<(Instant, u64)>,
}

impl RecentEvents {
    /// Whether this event should be written now. If so, it is remembered.
    pub(crate) fn is_new(&mut self, event: &Event, now: Instant) -> bool {
        while let Some((written, _)) = self.order.front()
            && now.duration_since(*written) >= QUIET
        {
            self.forget_oldest();
        }
        let object = &event.regarding;
        let hash = self
            .hasher
            .hash_one(((&object.kind, &object.namespace, &object.name, &object.uid), (event.reason, &event.message)));
        if self.hashes.contains(&hash) {
            return false;
        }
        if self.order.len() >= REMEMBERED {
            self.forget_oldest();
        }
        self.hashes.insert(hash);
        self.order.push_back((now, hash));
        true
    }

    fn forget_oldest(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            self.hashes.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::effect::service_reference;
    use crds::Key;

    fn event(name: &str, uid: &str, reason: &'static str, message: &str) -> Event {
        let regarding = service_reference(&Key::new("default", name), uid);
        Event { regarding, is_warning: true, reason, message: message.into() }
    }

    #[test]
    fn same_event_is_new_again_after_a_while() {
        let (mut recent, now) = (RecentEvents::default(), Instant::now());
        let first = event("web", "u1", "NoPool", "none");
        assert!(recent.is_new(&first, now));
        assert!(!recent.is_new(&first, now));
        for other in [
            event("api", "u1", "NoPool", "none"),
            event("web", "u2", "NoPool", "none"),
            event("web", "u1", "PoolExhausted", "none"),
            event("web", "u1", "NoPool", "still none"),
        ] {
            assert!(recent.is_new(&other, now), "{other:?}");
        }
        assert!(!recent.is_new(&first, now + QUIET - Duration::from_millis(1)));
        assert!(recent.is_new(&first, now + QUIET));
    }

    #[test]
    fn oldest_events_are_forgotten_at_capacity() {
        let (mut recent, now) = (RecentEvents::default(), Instant::now());
        let events: Vec<_> = (0..=REMEMBERED).map(|n| event(&format!("s{n}"), "u", "NoPool", "none")).collect();
        assert!(events.iter().all(|event| recent.is_new(event, now)));
        assert_eq!((recent.hashes.len(), recent.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!recent.is_new(&events[REMEMBERED], now));
        assert!(!recent.is_new(&events[1], now), "a repeated event displaces no other");
        assert!(recent.is_new(&events[0], now));
    }
}
