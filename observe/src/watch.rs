//! The list and the watch that feed a store.
//!
//! One future per kind, which ends only when it is dropped:
//!
//! ```text
//!        +--> list, page by page --> watch from the list's version on --+--> ended (every minute): watch again
//!        |                                                              +--> failed: wait, watch again
//!        +------------------ version too old (410) <--------------------+
//! ```
//!
//! The watcher of kube is not used because it does not expose the version of a list. Without this version, the response
//! to one of our writes cannot be ordered relative to the list (see [`crate::table`]).
//!
//! Cancel safe: received events are in the store, and an unfinished list is requested again.

use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, WatchParams};
use kube::core::{Request, Status};
use kube::{Api, Client, Resource};
use model::pacing::{Backoff, add_jitter};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::decode::{Decoded, Event, Undecodable, decode_list};
use crate::source::{Source, version};
use crate::store::Store;
use crate::table::{Content, Observation, ResourceVersion};

/// The number of objects per page of a list. With this number, receiving a page needs at most a few MiB of memory.
/// Smaller pages would delay planning: each page costs a round trip, and planning starts after the last page.
const PAGE_SIZE: u32 = 500;

/// The first delay after a failed attempt. An API server ends all watches of a kind when its CustomResourceDefinition
/// is created or changed. The delay is short, because a user who has just installed Landfall waits for the first pool
/// to take effect.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay between two attempts. Every node of a cluster retries, and the API server may be down because of
/// its load.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Timeout for the response to a request for a page or a watch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The requested duration of one watch, in seconds. The API server ends the watch after this time. If it does not, the
/// connection is broken: see [`EVENT_TIMEOUT`].
pub(crate) const WATCH_SECONDS: u32 = 60;

/// The maximum time to wait for the next event of a watch: 5 s longer than [`WATCH_SECONDS`].
pub(crate) const EVENT_TIMEOUT: Duration = Duration::from_secs(65);

/// A watch that ends sooner than this has failed, even if it ends without an error.
pub(crate) const MIN_DURATION: Duration = Duration::from_secs(1);

/// Error of a list or watch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// A request failed.
    #[error("{}", error_chain(.0))]
    Failed(kube::Error),
    /// The API server refused the request or ended the watch with this status.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// The version to resume from is too old. A new list is required.
    #[error("the version to watch from is too old")]
    Expired,
    /// An object or list has no version: the server is not a Kubernetes API server.
    #[error("an object has no version")]
    NoVersion,
}

/// Returns the result of a request, or an error if no response arrives within `limit`.
///
/// # Errors
/// Those of the request, and [`kube::Error::Service`] if no response arrives.
pub async fn await_response<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let no_response = |_| Err(kube::Error::Service("the API server does not answer".into()));
    timeout(limit, request).await.unwrap_or_else(no_response)
}

/// Delays of at most `longest` between attempts to reach an API server that fails, or that ends a watch right after its
/// start.
pub(crate) fn backoff_up_to(longest: Duration) -> Backoff {
    Backoff::new(FIRST_DELAY, longest)
}

/// Lists and watches the objects of `source`, and feeds them to `store`. Logs a failure with advice, and the recovery.
/// Retries with growing delays until it succeeds.
pub async fn watch<R, K, V>(client: Client, source: Source<R, K, V>, store: Store<K, V>) -> Infallible
where
    R: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Ord + Clone,
    V: PartialEq,
{
    let requests = Request::new(Api::<R>::all(client.clone()).resource_url());
    let watcher = Watcher { client, requests, source, store };
    let mut backoff = backoff_up_to(LONGEST_DELAY);
    let mut health = Health::new::<R>();
    loop {
        let mut from = match watcher.list().await {
            Ok(version) => version,
            Err(error) => {
                health.log_failure(&error);
                sleep(add_jitter(backoff.fail(), jitter())).await;
                continue;
            }
        };
        health.log_recovery();
        loop {
            let start = Instant::now();
            let result = watcher.follow(&mut from, &mut health).await;
            let is_brief = start.elapsed() < MIN_DURATION;
            if !is_brief {
                backoff.reset();
            }
            if let Err(error) = &result {
                health.log_failure(error);
            }
            let expired = matches!(result, Err(WatchError::Expired));
            // There is no delay after a watch of at least `MIN_DURATION` that had no error, or whose version expired.
            if is_brief || (result.is_err() && !expired) {
                sleep(add_jitter(backoff.fail(), jitter())).await;
            }
            if expired {
                break;
            }
        }
    }
}

/// A random number from 0 to 1, to keep processes from acting at the same time. Its source is the random seed of hash
/// maps in the standard library.
pub fn jitter() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// Feeds the objects of one kind from the API server to a store.
struct Watcher<R, K, V> {
    client: Client,
    requests: Request,
    source: Source<R, K, V>,
    store: Store<K, V>,
}

impl<R, K, V> Watcher<R, K, V>
where
    R: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Ord + Clone,
    V: PartialEq,
{
    /// Receives a complete list, and returns its version.
    async fn list(&self) -> Result<ResourceVersion, WatchError> {
        self.store.update(|table| {
            table.begin_list();
            false
        });
        let mut page = ListParams::default().limit(PAGE_SIZE);
        page.label_selector = self.labels();
        loop {
            let request = self.requests.list(&page).map_err(kube::Error::BuildRequest)?;
            let text = await_response(RESPONSE_TIMEOUT, self.client.request_text(request)).await?;
            let add = |object| {
                if let Some(observation) = self.observe(object) {
                    self.store.update(|table| {
                        table.add_listed(observation);
                        false
                    });
                }
            };
            let metadata = decode_list(&text, add).map_err(kube::Error::SerdeError)?;
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => {
                    let version = metadata.resource_version.and_then(|version| version.parse().ok());
                    let version = version.ok_or(WatchError::NoVersion)?;
                    self.store.update(|table| table.finish_list(version));
                    return Ok(version);
                }
            }
        }
    }

    /// Receives the events after version `from` until the watch ends. Each event advances `from`.
    async fn follow(&self, from: &mut ResourceVersion, health: &mut Health) -> Result<(), WatchError> {
        let mut params = WatchParams::default().timeout(WATCH_SECONDS);
        params.label_selector = self.labels();
        let request = self.requests.watch(&params, &from.to_string()).map_err(kube::Error::BuildRequest)?;
        let events = pin!(await_response(RESPONSE_TIMEOUT, self.client.request_stream(request)).await?);
        let mut lines = events.lines();
        health.log_recovery();
        loop {
            let line = await_response(EVENT_TIMEOUT, async { Ok(lines.next().await) }).await?;
            // A broken connection ends the watch. If the cause persists, the next watch fails.
            let Some(Ok(line)) = line else { return Ok(()) };
            match Event::decode(&line).map_err(kube::Error::SerdeError)? {
                Event::Applied(object) => {
                    *from = version(metadata(&object)).ok_or(WatchError::NoVersion)?;
                    if let Some(observation) = self.observe(object) {
                        self.store.update(|table| table.apply(observation));
                    }
                }
                Event::Deleted(object) => {
                    *from = version(metadata(&object)).ok_or(WatchError::NoVersion)?;
                    if let Some(last) = self.source.observation(metadata(&object), Content::Ignored) {
                        self.store.update(|table| table.apply_deletion(&last.key, &last.uid, last.version));
                    }
                }
                Event::Bookmark(bookmark) => {
                    *from = version(&bookmark).ok_or(WatchError::NoVersion)?;
                    self.store.update(|table| {
                        table.apply_bookmark(*from);
                        false
                    });
                }
                Event::Error(status) => return Err(classify_status(status)),
            }
        }
    }

    /// Returns the observation of an object. Logs an object that cannot be decoded or parsed.
    fn observe(&self, object: Decoded<R>) -> Option<Observation<K, V>> {
        match object {
            Ok(object) => self.observe_decoded(&object),
            Err(Undecodable { error, metadata: meta, without_status }) => {
                let (kind, namespace, name) = (R::kind(&()), meta.namespace.as_deref(), meta.name.as_deref());
                if let Some(object) = without_status.filter(|_| self.source.is_status_optional) {
                    tracing::warn!(%kind, namespace, name, error, "status skipped: it cannot be decoded");
                    return self.observe_decoded(&object);
                }
                tracing::warn!(%kind, namespace, name, error, "object skipped: it cannot be decoded");
                self.source.observation(&meta, Content::Unreadable)
            }
        }
    }

    fn observe_decoded(&self, object: &R) -> Option<Observation<K, V>> {
        let (observation, malformed) = self.source.observe(object)?;
        if let Some(malformed) = malformed {
            tracing::warn!(%malformed, "object skipped: it has invalid contents");
        }
        Some(observation)
    }

    fn labels(&self) -> Option<String> {
        Some(self.source.labels).filter(|labels| !labels.is_empty()).map(str::to_owned)
    }
}

fn metadata<R: Resource>(object: &Decoded<R>) -> &ObjectMeta {
    object.as_ref().map_or_else(|undecodable| &undecodable.metadata, Resource::meta)
}

impl From<kube::Error> for WatchError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => classify_status(status),
            error => Self::Failed(error),
        }
    }
}

pub(crate) fn classify_status(status: Box<Status>) -> WatchError {
    if status.code == 410 { WatchError::Expired } else { WatchError::Refused(status) }
}

/// An error and its causes as one line. kube names a refused connection only in the last cause.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Many errors include their cause in their own text.
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}

/// Whether the list and the watch work. Logs only changes.
#[derive(Debug)]
struct Health {
    kind: String,
    plural: String,
    /// Advice if the API server does not know the kind.
    unknown_kind: &'static str,
    /// Advice that was logged for the current failure; `None` while there is no failure.
    failure: Option<&'static str>,
}

impl Health {
    fn new<R: Resource<DynamicType = ()>>() -> Self {
        let unknown_kind = if R::group(&()) == crds::GROUP {
            "the API server does not know this kind: kubectl apply -f deploy/landfall.yaml"
        } else {
            "the API server is too old for this kind: Landfall works without it"
        };
        Self { kind: R::kind(&()).into_owned(), plural: R::plural(&()).into_owned(), unknown_kind, failure: None }
    }

    fn log_failure(&mut self, error: &WatchError) {
        let advice = match error {
            WatchError::Refused(status) => match status.code {
                401 => "the API server rejects the credentials: check the service account and its token",
                403 => "grant list and watch on this resource: see the ClusterRole in deploy/landfall.yaml",
                404 => self.unknown_kind,
                _ => "the API server refuses the request",
            },
            WatchError::Failed(_) => "check that the API server runs and is reachable from here",
            WatchError::NoVersion => "the server is not a Kubernetes API server: check its address",
            // Not a failure: a new list follows.
            WatchError::Expired => return,
        };
        if self.failure.replace(advice) != Some(advice) {
            let (kind, plural) = (&self.kind, &self.plural);
            tracing::warn!(kind, plural, advice, %error, "watch failed; trying again");
        }
    }

    fn log_recovery(&mut self) {
        if self.failure.take().is_some() {
            tracing::info!(kind = self.kind, "watch works again");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::source;
    use crate::store::Wake;
    use futures::stream;
    use http::{Request, Response};
    use http_body_util::{BodyStream, StreamBody};
    use k8s_openapi::api::core::v1 as core;
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    /// A mark at the end of a body: the server sends the text before it, and then leaves the response open and silent.
    const STAYS_OPEN: &str = "\n(silence)";

    /// A client of an API server, and the list of the requested URLs. The server sends these responses (code and body)
    /// in turn, and answers no further request.
    pub(crate) fn scripted_client(responses: Vec<(u16, String)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let requested = Arc::new(Mutex::new(Vec::new()));
        let responses = Arc::new(Mutex::new(VecDeque::from(responses)));
        let log = requested.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            log.lock().expect("no panic").push(request.uri().to_string());
            let response = responses.lock().expect("no panic").pop_front();
            async move {
                let Some((code, body)) = response else { return std::future::pending().await };
                let silence = body.strip_suffix(STAYS_OPEN).map(|_| stream::pending());
                let text = body.strip_suffix(STAYS_OPEN).unwrap_or(&body).to_owned();
                let frames = BodyStream::new(Body::from(text.into_bytes())).chain(stream::iter(silence).flatten());
                Response::builder().status(code).body(StreamBody::new(frames))
            }
        });
        (Client::new(service, "default"), requested)
    }

    fn node(name: &str, version: u64, address: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": format!("u-{name}"), "resourceVersion": version.to_string()},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    }

    fn list(version: u64, more: &str, items: Value) -> (u16, String) {
        let metadata = json!({"resourceVersion": version.to_string(), "continue": more});
        (200, json!({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
    }

    pub(crate) fn events(events: &[(&str, Value)]) -> (u16, String) {
        (
            200,
            events.iter().map(|(type_, object)| json!({"type": type_, "object": object}).to_string() + "\n").collect(),
        )
    }

    pub(crate) fn refusal(code: u16) -> Value {
        let (kind, message) = ("Status", "no");
        json!({"kind": kind, "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "No"})
    }

    /// Watches nodes until the store contains `expected`: names and addresses.
    async fn watch_until(
        responses: Vec<(u16, String)>,
        expected: &[(&str, &str)],
    ) -> (Vec<String>, Store<String, crds::Node>) {
        let (client, requested) = scripted_client(responses);
        let wake = Wake::default();
        let mut listener = wake.listener();
        let store = Store::new(&wake);
        let mut watch = pin!(watch::<core::Node, _, _>(client, source::nodes(), store.clone()));
        let expected: Vec<_> =
            expected.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect();
        loop {
            let known = store.snapshot().map(|nodes| {
                nodes.into_iter().map(|(name, node)| (name, node.addresses[0].to_string())).collect::<Vec<_>>()
            });
            if known.as_ref() == Some(&expected) {
                let requested = requested.lock().expect("no panic").clone();
                return (requested, store);
            }
            tokio::select! {
                never = &mut watch => match never {},
                () = listener.wait() => {}
                () = sleep(Duration::from_secs(600)) => panic!("known: {known:?}, expected: {expected:?}"),
            }
        }
    }

    #[test]
    fn error_chain_has_each_cause_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(std::io::Error::other(refused)));
        assert_eq!(error_chain(&error), "ServiceError: connection refused");
        let error = kube::Error::ReadEvents(std::io::Error::other(kube::Error::TlsRequired));
        assert_eq!(error_chain(&error), "Error reading events stream: TLS required but no TLS stack selected");
    }

    #[tokio::test(start_paused = true)]
    async fn watch_resumes_from_the_version_of_a_paged_list() {
        let responses = vec![
            list(9, "more", json!([node("n1", 3, "192.0.2.1")])),
            list(9, "", json!([node("n2", 4, "192.0.2.2")])),
            events(&[
                ("MODIFIED", node("n1", 10, "192.0.2.11")),
                ("DELETED", node("n2", 11, "192.0.2.2")),
                ("BOOKMARK", json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "15"}})),
            ]),
            events(&[("ADDED", node("n3", 16, "192.0.2.3"))]),
        ];
        let (requested, _) = watch_until(responses, &[("n1", "192.0.2.11"), ("n3", "192.0.2.3")]).await;
        assert_eq!(
            requested,
            [
                "/api/v1/nodes?&limit=500",
                "/api/v1/nodes?&limit=500&continue=more",
                "/api/v1/nodes?&watch=true&timeoutSeconds=60&allowWatchBookmarks=true&resourceVersion=9",
                "/api/v1/nodes?&watch=true&timeoutSeconds=60&allowWatchBookmarks=true&resourceVersion=15",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn undecodable_object_does_not_affect_others() {
        let mut bad = node("bad", 5, "");
        bad["status"]["addresses"] = json!("nonsense");
        let responses = vec![
            list(9, "", json!([bad, node("n1", 3, "192.0.2.1")])),
            events(&[("ADDED", bad.clone()), ("ADDED", node("n2", 10, "192.0.2.2"))]),
        ];
        let (_, store) = watch_until(responses, &[("n1", "192.0.2.1"), ("n2", "192.0.2.2")]).await;
        let unreadable = store.take_changes().into_iter().flatten().filter(|change| change.is_unreadable);
        assert_eq!(unreadable.map(|change| change.key).collect::<Vec<_>>(), ["bad"]);
    }

    #[tokio::test(start_paused = true)]
    async fn undecodable_status_leaves_the_holders_of_a_record_known() {
        let record = |last: u8, status: Value| {
            let name = format!("192.0.2.{last}");
            json!({
                "metadata": {"name": name, "uid": "u", "resourceVersion": last.to_string()},
                "spec": {"address": name, "services": [{"namespace": "default", "name": "web", "uid": "w"}]},
                "status": status,
            })
        };
        let announcer = json!({"node": "n1", "link": "eth0", "epoch": 1, "since": "2026-01-01T00:00:00Z"});
        let good = json!({"announcers": [announcer]});
        let bad = json!({"announcers": "nonsense", "firstAnnounced": "2026-01-01T00:00:00Z"});
        let metadata = json!({"resourceVersion": "9"});
        let items = json!([record(1, bad.clone()), record(2, good)]);
        let (client, _) = scripted_client(vec![
            (200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string()),
            events(&[("ADDED", record(10, bad))]),
        ]);
        let wake = Wake::default();
        let (mut listener, store) = (wake.listener(), Store::new(&wake));
        let mut watch = pin!(watch::<crds::LoadBalancerIP, _, _>(client, source::records(), store.clone()));
        while store.read(|table| table.objects().count()) != Some(3) {
            tokio::select! {
                never = &mut watch => match never {},
                () = listener.wait() => {}
                () = sleep(Duration::from_secs(600)) => panic!("known: {:?}", store.snapshot()),
            }
        }
        let records = store.snapshot().expect("a list");
        let known = records.values().map(|record| (record.holders.len(), record.announcers.len()));
        assert_eq!(known.collect::<Vec<_>>(), [(1, 0), (1, 1), (1, 0)]);
        assert!(store.take_changes().into_iter().flatten().all(|change| !change.is_unreadable));
    }

    #[tokio::test(start_paused = true)]
    async fn expired_version_causes_a_new_list() {
        for expired in [(410, refusal(410).to_string()), events(&[("ERROR", refusal(410))])] {
            let responses = vec![
                list(9, "", json!([node("n1", 3, "192.0.2.1")])),
                expired,
                list(20, "", json!([node("n2", 12, "192.0.2.2")])),
            ];
            watch_until(responses, &[("n2", "192.0.2.2")]).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_watch_is_repeated_from_its_last_event() {
        let (code, text) = events(&[("ADDED", node("n2", 10, "192.0.2.2"))]);
        let responses = vec![
            list(9, "", json!([node("n1", 3, "192.0.2.1")])),
            (code, text + STAYS_OPEN),
            events(&[("ADDED", node("n3", 11, "192.0.2.3"))]),
        ];
        let start = Instant::now();
        let all = [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "192.0.2.3")];
        let (requested, _) = watch_until(responses, &all).await;
        let took = start.elapsed();
        assert!((EVENT_TIMEOUT..=EVENT_TIMEOUT + FIRST_DELAY).contains(&took), "{took:?}");
        assert!(requested[2].contains("watch=true") && requested[2].ends_with("resourceVersion=10"), "{requested:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_requests_are_retried_and_lose_no_object() {
        let forbidden = || (403, refusal(403).to_string());
        let responses = vec![
            forbidden(),
            (500, "nonsense".to_owned()),
            list(9, "", json!([node("n1", 3, "192.0.2.1")])),
            forbidden(),
            events(&[("ERROR", refusal(500))]),
            events(&[("ADDED", node("n2", 10, "192.0.2.2"))]),
        ];
        watch_until(responses, &[("n1", "192.0.2.1"), ("n2", "192.0.2.2")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn request_without_response_is_repeated() {
        let (client, requested) = scripted_client(vec![]);
        let store = Store::new(&Wake::default());
        let watch = watch::<core::Node, _, _>(client, source::nodes(), store);
        assert!(timeout(RESPONSE_TIMEOUT * 4, watch).await.is_err());
        assert!(requested.lock().expect("no panic").len() >= 2);
    }
}
