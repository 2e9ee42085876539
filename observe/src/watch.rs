//! The list and the watch that feed a store.
//!
//! One future per kind, which ends only when it is dropped:
//!
//! ```text
//!        +--> list, page by page --> watch from the list's version on --+--> ended (every minute): watch on
//!        |                                                              +--> failed: wait, watch on
//!        +------------------ version too old (410) <--------------------+
//! ```
//!
//! kube's own watcher is not used because it keeps to itself which version a list has, without which nobody can tell
//! whether an own write's answer is newer than the list (see [`crate::table`]).
//!
//! Cancel safe: what was told is in the store, and a list in the middle is asked for again.

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
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Pauses;
use crate::decode::{Event, Invalid, Lenient, read_list};
use crate::source::{Source, version};
use crate::store::Store;
use crate::table::{Content, Observation, ResourceVersion};

/// Objects in one page of a list. It bounds the memory that receiving it takes, to some MiB; each page is a round trip, and
/// nothing is planned before the last one.
const PAGE: u32 = 500;

/// For how long the API server is to answer a request for a page, or begin a watch.
const ANSWER: Duration = Duration::from_secs(30);

/// For how long one watch is asked for, in seconds. A connection that died in silence is noticed when it is over.
const WATCH: u32 = 60;

/// How much longer than [`WATCH`] to wait for the end of a watch.
const GRACE: Duration = Duration::from_secs(5);

/// A watch that ends sooner than this did not work, even if it ended without an error.
const BRIEF: Duration = Duration::from_secs(1);

/// Why watching has to wait, or begin anew.
#[derive(Debug)]
enum Trouble {
    /// A request failed.
    Failed(kube::Error),
    /// The API server ended a watch with this.
    Refused(Box<Status>),
    /// No answer.
    Silent,
    /// The version to go on from is too old: only a new list helps.
    Expired,
    /// What came has no version, so it is no Kubernetes API that answers.
    NoVersion,
}

/// Lists and watches the objects of `source`, and feeds `store` with them. Logs when that stops working, with what to
/// check, and when it works again; tries again with growing pauses as long as it takes.
pub async fn watch<R, K, V>(client: Client, source: Source<R, K, V>, store: Store<K, V>) -> Infallible
where
    R: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Ord + Clone,
    V: PartialEq,
{
    let requests = Request::new(Api::<R>::all(client.clone()).resource_url());
    let watcher = Watcher { client, requests, source, store };
    let mut pauses = Pauses::default();
    let mut health = Health { kind: R::kind(&()).into_owned(), plural: R::plural(&()).into_owned(), trouble: None };
    loop {
        let mut from = match watcher.list().await {
            Ok(version) => version,
            Err(trouble) => {
                health.worsens(&trouble);
                sleep(pauses.next(jitter())).await;
                continue;
            }
        };
        health.heals();
        loop {
            let began = Instant::now();
            let ended = watcher.follow(&mut from, &mut health).await;
            let brief = began.elapsed() < BRIEF;
            if !brief {
                pauses.reset();
            }
            let expired = matches!(ended, Err(Trouble::Expired));
            if let Err(trouble) = &ended
                && !expired
            {
                health.worsens(trouble);
            }
            // A watch that ran its time is followed by the next one at once, and an expired version by a list.
            if brief || (ended.is_err() && !expired) {
                sleep(pauses.next(jitter())).await;
            }
            if expired {
                break;
            }
        }
    }
}

/// A random number from 0 to 1, to spread those who would do the same at the same time. The standard library seeds its
/// hash maps at random; that is randomness enough.
pub fn jitter() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// One kind's connection between the API server and its store.
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
    /// Receives a whole list, and returns the version that it shows.
    async fn list(&self) -> Result<ResourceVersion, Trouble> {
        self.change(|table| {
            table.list_begins();
            false
        });
        let mut page = ListParams::default().limit(PAGE);
        page.label_selector = self.labels();
        loop {
            let request = self.requests.list(&page).map_err(kube::Error::BuildRequest)?;
            let text = timeout(ANSWER, self.client.request_text(request)).await.map_err(|_| Trouble::Silent)?;
            let listed = |object| {
                if let Some(observation) = self.observe(object) {
                    self.change(|table| {
                        table.listed(observation);
                        false
                    });
                }
            };
            let metadata = read_list(&text?, listed).map_err(kube::Error::SerdeError)?;
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => {
                    let version = metadata.resource_version.and_then(|version| version.parse().ok());
                    let version = version.ok_or(Trouble::NoVersion)?;
                    self.change(|table| table.list_ends(version));
                    return Ok(version);
                }
            }
        }
    }

    /// Receives one watch's events from `from` on, which moves along, until the watch ends.
    async fn follow(&self, from: &mut ResourceVersion, health: &mut Health) -> Result<(), Trouble> {
        let mut params = WatchParams::default().timeout(WATCH);
        params.label_selector = self.labels();
        let request = self.requests.watch(&params, &from.to_string()).map_err(kube::Error::BuildRequest)?;
        let events = timeout(ANSWER, self.client.request_stream(request)).await;
        let events = pin!(events.map_err(|_| Trouble::Silent)??);
        let mut lines = events.lines();
        health.heals();
        let silence = Duration::from_secs(WATCH.into()) + GRACE;
        loop {
            let line = timeout(silence, lines.next()).await.map_err(|_| Trouble::Silent)?;
            // A connection that breaks ends the watch. If there is more to it than that, the next one fails.
            let Some(Ok(line)) = line else { return Ok(()) };
            match Event::read(&line).map_err(kube::Error::SerdeError)? {
                Event::Applied(object) => {
                    *from = version(meta(&object)).ok_or(Trouble::NoVersion)?;
                    if let Some(observation) = self.observe(object) {
                        self.change(|table| table.applied(observation));
                    }
                }
                Event::Deleted(object) => {
                    *from = version(meta(&object)).ok_or(Trouble::NoVersion)?;
                    if let Some(last) = self.source.observation(meta(&object), Content::Ignored) {
                        self.change(|table| table.deleted(&last.key, &last.uid, last.version));
                    }
                }
                Event::Bookmark(bookmark) => {
                    *from = version(&bookmark).ok_or(Trouble::NoVersion)?;
                    self.change(|table| {
                        table.reached(*from);
                        false
                    });
                }
                Event::Error(status) => return Err(refused(status)),
            }
        }
    }

    /// What an object says. One that can't be read harms only itself.
    fn observe(&self, Lenient(object): Lenient<R>) -> Option<Observation<K, V>> {
        match object {
            Ok(mut object) => {
                // Who wrote which field is half of an object's bytes and of no use here.
                object.meta_mut().managed_fields = None;
                let (observation, malformed) = self.source.observe(&object)?;
                if let Some(malformed) = malformed {
                    tracing::warn!(%malformed, "an object is skipped: it makes no sense");
                }
                Some(observation)
            }
            Err(Invalid { error, metadata: meta }) => {
                let (kind, namespace, name) = (R::kind(&()), meta.namespace.as_deref(), meta.name.as_deref());
                tracing::warn!(%kind, namespace, name, error, "an object is skipped: it can't be read");
                self.source.observation(&meta, Content::Unreadable)
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut crate::table::Table<K, V>) -> bool) {
        self.store.change(change);
    }

    fn labels(&self) -> Option<String> {
        Some(self.source.labels).filter(|labels| !labels.is_empty()).map(str::to_owned)
    }
}

fn meta<R: Resource>(Lenient(object): &Lenient<R>) -> &ObjectMeta {
    object.as_ref().map_or_else(|invalid| &invalid.metadata, Resource::meta)
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => refused(status),
            error => Self::Failed(error),
        }
    }
}

fn refused(status: Box<Status>) -> Trouble {
    if status.code == 410 { Trouble::Expired } else { Trouble::Refused(status) }
}

/// An error with all that caused it, as one line: what kube says of a refused connection names that only in the end.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Many errors print their cause as part of themselves.
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}

/// Whether watching works, so that only changes of that are logged.
#[derive(Debug)]
struct Health {
    kind: String,
    plural: String,
    /// What is wrong, if something is.
    trouble: Option<&'static str>,
}

impl Health {
    fn worsens(&mut self, trouble: &Trouble) {
        let advice = match trouble {
            Trouble::Refused(status) => match status.code {
                401 => "the API server does not know us: check the service account and its token",
                403 => "grant list and watch on it: deploy/landfall.yaml has the ClusterRole",
                404 => "the API server does not know this kind: kubectl apply -f deploy/crds.yaml",
                _ => "the API server refuses",
            },
            Trouble::Failed(_) => "check that the API server runs and can be reached from here",
            Trouble::Silent => "the API server does not answer: check that it can be reached from here",
            Trouble::NoVersion => "what answers is no Kubernetes API: check its address",
            // Begins anew at once, without a pause.
            Trouble::Expired => return,
        };
        if self.trouble.replace(advice) == Some(advice) {
            return;
        }
        let (kind, plural) = (&self.kind, &self.plural);
        match trouble {
            Trouble::Refused(status) => {
                tracing::warn!(kind, plural, advice, error = %status.message, "can't watch; trying again");
            }
            Trouble::Failed(error) => {
                tracing::warn!(kind, plural, advice, error = error_chain(error), "can't watch; trying again");
            }
            Trouble::Silent | Trouble::NoVersion | Trouble::Expired => {
                tracing::warn!(kind, plural, advice, "can't watch; trying again");
            }
        }
    }

    fn heals(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(kind = self.kind, "watching again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source;
    use crate::store::Wake;
    use http::{Request, Response};
    use k8s_openapi::api::core::v1 as core;
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::collections::{BTreeSet, VecDeque};
    use std::sync::{Arc, Mutex};

    /// An API server that gives these answers (code and body) in turn, and then none; and what it was asked.
    fn scripted(answers: Vec<(u16, String)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let log = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            log.lock().expect("no panic").push(request.uri().to_string());
            let answer = answers.lock().expect("no panic").pop_front();
            async move {
                let Some((code, body)) = answer else { return std::future::pending().await };
                Response::builder().status(code).body(Body::from(body.into_bytes()))
            }
        });
        (Client::new(service, "default"), asked)
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

    fn watched(events: &[(&str, Value)]) -> (u16, String) {
        (
            200,
            events.iter().map(|(type_, object)| json!({"type": type_, "object": object}).to_string() + "\n").collect(),
        )
    }

    fn refusal(code: u16) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no", "reason": "No"})
    }

    /// Watches nodes until `done` of what is known: name and address.
    async fn watch_until(
        answers: Vec<(u16, String)>,
        done: &[(&str, &str)],
    ) -> (Vec<String>, Store<String, crds::Node>) {
        let (client, asked) = scripted(answers);
        let wake = Wake::default();
        let mut listener = wake.listener();
        let store = Store::new(&wake);
        let mut watch = pin!(watch::<core::Node, _, _>(client, source::nodes(), store.clone()));
        let done: Vec<_> = done.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect();
        loop {
            let known = store.snapshot().map(|nodes| {
                nodes.into_iter().map(|(name, node)| (name, node.addresses[0].to_string())).collect::<Vec<_>>()
            });
            if known.as_ref() == Some(&done) {
                let asked = asked.lock().expect("no panic").clone();
                return (asked, store);
            }
            tokio::select! {
                never = &mut watch => match never {},
                () = listener.wait() => {}
                () = sleep(Duration::from_secs(600)) => panic!("known: {known:?}, expected: {done:?}"),
            }
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_none_twice() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(std::io::Error::other(refused)));
        assert_eq!(error_chain(&error), "ServiceError: connection refused");
        let error = kube::Error::ReadEvents(std::io::Error::other(kube::Error::TlsRequired));
        assert_eq!(error_chain(&error), "Error reading events stream: TLS required but no TLS stack selected");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_comes_in_pages_and_the_watch_goes_on_from_its_version() {
        let answers = vec![
            list(9, "more", json!([node("n1", 3, "192.0.2.1")])),
            list(9, "", json!([node("n2", 4, "192.0.2.2")])),
            watched(&[
                ("MODIFIED", node("n1", 10, "192.0.2.11")),
                ("DELETED", node("n2", 11, "192.0.2.2")),
                ("BOOKMARK", json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "15"}})),
            ]),
            watched(&[("ADDED", node("n3", 16, "192.0.2.3"))]),
        ];
        let (asked, _) = watch_until(answers, &[("n1", "192.0.2.11"), ("n3", "192.0.2.3")]).await;
        assert_eq!(
            asked,
            [
                "/api/v1/nodes?&limit=500",
                "/api/v1/nodes?&limit=500&continue=more",
                "/api/v1/nodes?&watch=true&timeoutSeconds=60&allowWatchBookmarks=true&resourceVersion=9",
                "/api/v1/nodes?&watch=true&timeoutSeconds=60&allowWatchBookmarks=true&resourceVersion=15",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_cannot_be_read_harms_no_other() {
        let mut bad = node("bad", 5, "");
        bad["status"]["addresses"] = json!("nonsense");
        let answers = vec![
            list(9, "", json!([bad, node("n1", 3, "192.0.2.1")])),
            watched(&[("ADDED", bad.clone()), ("ADDED", node("n2", 10, "192.0.2.2"))]),
        ];
        let (_, store) = watch_until(answers, &[("n1", "192.0.2.1"), ("n2", "192.0.2.2")]).await;
        assert_eq!(store.unreadable(), Some(BTreeSet::from(["bad".to_owned()])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_is_too_old_leads_to_a_new_list() {
        for expired in [(410, refusal(410).to_string()), watched(&[("ERROR", refusal(410))])] {
            let answers = vec![
                list(9, "", json!([node("n1", 3, "192.0.2.1")])),
                expired,
                list(20, "", json!([node("n2", 12, "192.0.2.2")])),
            ];
            watch_until(answers, &[("n2", "192.0.2.2")]).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_and_what_is_known_stays_meanwhile() {
        let forbidden = || (403, refusal(403).to_string());
        let answers = vec![
            forbidden(),
            (500, "nonsense".to_owned()),
            list(9, "", json!([node("n1", 3, "192.0.2.1")])),
            forbidden(),
            watched(&[("ERROR", refusal(500))]),
            watched(&[("ADDED", node("n2", 10, "192.0.2.2"))]),
        ];
        watch_until(answers, &[("n1", "192.0.2.1"), ("n2", "192.0.2.2")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_is_asked_again() {
        let (client, asked) = scripted(vec![]);
        let store = Store::new(&Wake::default());
        let watch = watch::<core::Node, _, _>(client, source::nodes(), store);
        assert!(timeout(ANSWER * 4, watch).await.is_err());
        assert!(asked.lock().expect("no panic").len() >= 2);
    }
}
