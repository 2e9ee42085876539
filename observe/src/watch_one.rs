//! The watch of one object, by name: for roles that may read no other object of its kind.
//!
//! ```text
//!   +--> read it --> watch it from there --+--> ended (every minute): read it again
//!   +---- delay (growing) <----------------+--> failed
//! ```
//!
//! One future, which ends only when it is dropped. Cancel safe.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource};
use model::pacing::add_jitter;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::backoff_up_to;
use crate::watch::{EVENT_TIMEOUT, MIN_DURATION, WATCH_SECONDS, error_chain, jitter};

/// The object to watch.
#[derive(Clone, Debug)]
pub struct OneObject<K> {
    /// The objects of its kind in its namespace.
    pub api: Api<K>,
    /// The name of the object.
    pub name: &'static str,
    /// How it is read.
    pub read_by: ReadBy,
    /// How long the API server may take to answer one request.
    pub answer: Duration,
    /// The longest delay between two attempts.
    pub longest_delay: Duration,
}

/// The verb that reads the object, which its role must grant beside `watch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBy {
    /// While the object is missing there is no version to watch from, and it is read again after a delay.
    Get,
    /// A list of the one name. Its version is there even if the object is not, so its creation is watched too.
    List,
}

/// What [`watch_one`] reports.
#[derive(Debug)]
pub enum Seen<K> {
    /// It exists.
    Present(K),
    /// A read found no object.
    Missing,
    /// The watch saw it deleted.
    Deleted,
    /// The first failure since the object was last read, with its causes. Attempts go on.
    Failing(String),
}

/// Why one round ended early.
enum Ended {
    Failed(String),
    /// The API server ended the watch, as a rule because the version is too old. The next read helps.
    Refused,
}

impl From<kube::Error> for Ended {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error_chain(&error))
    }
}

/// Reports the object after each read and each change, for as long as it is polled.
pub async fn watch_one<K>(object: &OneObject<K>, mut report: impl FnMut(Seen<K>)) -> Infallible
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut backoff = backoff_up_to(object.longest_delay);
    let mut failing = false;
    loop {
        let began = Instant::now();
        let ended = round(object, |seen| {
            failing = false;
            report(seen);
        });
        let ended = ended.await;
        let brief = began.elapsed() < MIN_DURATION;
        if !brief {
            backoff.reset();
        }
        let waits = brief || ended.is_err();
        if let Err(Ended::Failed(error)) = ended
            && !std::mem::replace(&mut failing, true)
        {
            report(Seen::Failing(error));
        }
        // A watch that ran its time is followed by the next one at once.
        if waits {
            sleep(add_jitter(backoff.fail(), jitter())).await;
        }
    }
}

/// One read, and one watch from there.
async fn round<K>(object: &OneObject<K>, mut report: impl FnMut(Seen<K>)) -> Result<(), Ended>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let silent = |_| Ended::Failed("the API server does not answer".to_owned());
    let fields = format!("metadata.name={}", object.name);
    let read = timeout(object.answer, read(object, &fields)).await.map_err(silent)??;
    report(read.object.map_or(Seen::Missing, Seen::Present));
    let Some(version) = read.version else { return Ok(()) };
    let params = WatchParams::default().fields(&fields).timeout(WATCH_SECONDS);
    let events = timeout(object.answer, object.api.watch(&params, &version)).await.map_err(silent)?;
    let mut events = pin!(events?);
    while let Some(event) = timeout(EVENT_TIMEOUT, events.try_next()).await.map_err(silent)?? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => report(Seen::Present(object)),
            WatchEvent::Deleted(_) => report(Seen::Deleted),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(_) => return Err(Ended::Refused),
        }
    }
    Ok(())
}

/// What a read found.
struct Read<K> {
    object: Option<K>,
    /// The version to watch from.
    version: Option<String>,
}

async fn read<K>(object: &OneObject<K>, fields: &str) -> kube::Result<Read<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    Ok(match object.read_by {
        ReadBy::Get => {
            let object = object.api.get_opt(object.name).await?;
            Read {
                version: object.as_ref().map(|object| object.meta().resource_version.clone().unwrap_or_default()),
                object,
            }
        }
        ReadBy::List => {
            let list = object.api.list(&ListParams::default().fields(fields)).await?;
            let version = list.metadata.resource_version.unwrap_or_default();
            Read { object: list.items.into_iter().next(), version: Some(version) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tests::{events, refusal, scripted_client};
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    fn object(version: u64) -> Value {
        json!({"metadata": {"name": "one", "namespace": "here", "resourceVersion": version.to_string()}})
    }

    fn list(version: u64, items: Value) -> (u16, String) {
        let metadata = json!({"resourceVersion": version.to_string()});
        (200, json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
    }

    /// The reports for these answers of the API server, and the requests that it got.
    async fn run_watch(read_by: ReadBy, answers: Vec<(u16, String)>) -> (Vec<String>, Vec<String>) {
        let (client, requests) = scripted_client(answers);
        let api: Api<ConfigMap> = Api::namespaced(client, "here");
        let (answer, longest_delay) = (Duration::from_secs(30), Duration::from_secs(1));
        let object = OneObject { api, name: "one", read_by, answer, longest_delay };
        let mut reported = Vec::new();
        let watch = watch_one(&object, |seen| {
            reported.push(match seen {
                Seen::Present(object) => object.metadata.resource_version.unwrap_or_default(),
                Seen::Missing => "missing".to_owned(),
                Seen::Deleted => "deleted".to_owned(),
                Seen::Failing(_) => "failing".to_owned(),
            });
        });
        // Without a further answer the last request is silent for longer than this.
        let never = timeout(Duration::from_secs(20), watch).await;
        assert!(never.is_err());
        let requests = requests.lock().expect("no panic").clone();
        (reported, requests)
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_object_is_watched_from_the_version_of_the_list() {
        let answers = vec![
            list(9, json!([])),
            events(&[("ADDED", object(10)), ("MODIFIED", object(11)), ("DELETED", object(12))]),
            list(12, json!([])),
        ];
        let (reported, requests) = run_watch(ReadBy::List, answers).await;
        assert_eq!(reported, ["missing", "10", "11", "deleted", "missing"]);
        let path = "/api/v1/namespaces/here/configmaps?&";
        let fields = "fieldSelector=metadata.name%3Done";
        let list = format!("{path}{fields}");
        let watch = |version: u64| {
            let bookmarks = "timeoutSeconds=60&allowWatchBookmarks=true";
            format!("{path}watch=true&{bookmarks}&{fields}&resourceVersion={version}")
        };
        let normal = |request: &String| {
            let mut parts: Vec<_> = request.split('&').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        let expected: Vec<_> = [list.clone(), watch(9), list, watch(12)].iter().map(normal).collect();
        assert_eq!(requests.iter().map(normal).collect::<Vec<_>>(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_read_by_get_is_watched_once_it_exists() {
        let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
        let missing = || (404, status.to_string());
        let answers = vec![missing(), missing(), (200, object(7).to_string()), events(&[("MODIFIED", object(8))])];
        let (reported, requests) = run_watch(ReadBy::Get, answers).await;
        assert_eq!(reported, ["missing", "missing", "7", "8"]);
        let gets = requests.iter().filter(|request| request.starts_with("/api/v1/namespaces/here/configmaps/one"));
        assert_eq!(gets.count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_reported_once_until_the_object_is_read() {
        let answers = vec![
            (403, refusal(403).to_string()),
            (500, "nonsense".to_owned()),
            list(9, json!([object(3)])),
            events(&[("ERROR", refusal(410))]),
            list(12, json!([object(11)])),
            (403, refusal(403).to_string()),
        ];
        let (reported, _) = run_watch(ReadBy::List, answers).await;
        assert_eq!(reported, ["failing", "3", "11", "failing"]);
    }
}
