//! The watch of one object by name, for roles that may read no other object of the kind.
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
use tokio::time::{Instant, sleep};

use crate::watch::{
    EVENT_TIMEOUT, MIN_DURATION, WATCH_SECONDS, WatchError, await_response, backoff_up_to, classify_status, jitter,
};

/// The object to watch.
#[derive(Clone, Debug)]
pub struct OneObject<K> {
    /// The API of the kind and namespace of the object.
    pub api: Api<K>,
    /// The name of the object.
    pub name: &'static str,
    /// How the object is read.
    pub read_by: ReadBy,
    /// Timeout for the response to one request.
    pub response_timeout: Duration,
    /// The longest delay between two attempts.
    pub longest_delay: Duration,
}

/// The verb of the requests that read the object. The role must grant this verb and `watch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBy {
    /// A read of the object by name. While the object does not exist, there is no version to watch from, so the read is
    /// repeated after a delay.
    Get,
    /// A list that is limited to the name. It has a version even if the object does not exist, so the watch also
    /// reports the creation.
    List,
}

/// A report of [`watch_one`].
#[derive(Debug)]
pub enum Seen<K> {
    /// The object exists, in this state.
    Present(K),
    /// A read found no object.
    Missing,
    /// The watch reported the deletion of the object.
    Deleted,
    /// An attempt failed, with this error and its causes. Further failures are not reported until a read succeeds.
    /// Attempts continue.
    Failing(String),
}

/// Reports the object after each read and each change. The future ends only when it is dropped.
pub async fn watch_one<K>(object: &OneObject<K>, mut report: impl FnMut(Seen<K>)) -> Infallible
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut backoff = backoff_up_to(object.longest_delay);
    let mut failing = false;
    loop {
        let start = Instant::now();
        let ended = read_and_watch(object, |seen| {
            failing = false;
            report(seen);
        });
        let ended = ended.await;
        let is_brief = start.elapsed() < MIN_DURATION;
        if !is_brief {
            backoff.reset();
        }
        let needs_delay = is_brief || ended.is_err();
        match ended {
            // If the version is too old, the next read returns a newer one.
            Ok(()) | Err(WatchError::Expired) => {}
            Err(_) if failing => {}
            Err(error) => {
                failing = true;
                report(Seen::Failing(error.to_string()));
            }
        }
        // After a watch of at least `MIN_DURATION` that had no error, the next round starts without delay.
        if needs_delay {
            sleep(add_jitter(backoff.fail(), jitter())).await;
        }
    }
}

/// Reads the object, then watches it from the version of this read.
async fn read_and_watch<K>(object: &OneObject<K>, mut report: impl FnMut(Seen<K>)) -> Result<(), WatchError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let fields = format!("metadata.name={}", object.name);
    let (found, version) = await_response(object.response_timeout, read(object, &fields)).await?;
    report(found.map_or(Seen::Missing, Seen::Present));
    let Some(version) = version else { return Ok(()) };
    let params = WatchParams::default().fields(&fields).timeout(WATCH_SECONDS);
    let mut events = pin!(await_response(object.response_timeout, object.api.watch(&params, &version)).await?);
    while let Some(event) = await_response(EVENT_TIMEOUT, events.try_next()).await? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => report(Seen::Present(object)),
            WatchEvent::Deleted(_) => report(Seen::Deleted),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(classify_status(status)),
        }
    }
    Ok(())
}

/// Reads the object. Also returns the version to watch from, if the response has one.
async fn read<K>(object: &OneObject<K>, fields: &str) -> kube::Result<(Option<K>, Option<String>)>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    Ok(match object.read_by {
        ReadBy::Get => {
            let found = object.api.get_opt(object.name).await?;
            let version = found.as_ref().map(|found| found.meta().resource_version.clone().unwrap_or_default());
            (found, version)
        }
        ReadBy::List => {
            let list = object.api.list(&ListParams::default().fields(fields)).await?;
            (list.items.into_iter().next(), Some(list.metadata.resource_version.unwrap_or_default()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tests::{events, refusal, scripted_client};
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    fn object(version: u64) -> Value {
        json!({"metadata": {"name": "one", "namespace": "here", "resourceVersion": version.to_string()}})
    }

    fn list(version: u64, items: Value) -> (u16, String) {
        let metadata = json!({"resourceVersion": version.to_string()});
        (200, json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
    }

    /// Runs a watch with these responses of the API server. Returns the reports, and the requested URLs.
    async fn run_watch(read_by: ReadBy, answers: Vec<(u16, String)>) -> (Vec<String>, Vec<String>) {
        let (client, requests) = scripted_client(answers);
        let api: Api<ConfigMap> = Api::namespaced(client, "here");
        let (response_timeout, longest_delay) = (Duration::from_secs(30), Duration::from_secs(1));
        let object = OneObject { api, name: "one", read_by, response_timeout, longest_delay };
        let mut reported = Vec::new();
        let watch = watch_one(&object, |seen| {
            reported.push(match seen {
                Seen::Present(object) => object.metadata.resource_version.unwrap_or_default(),
                Seen::Missing => "missing".to_owned(),
                Seen::Deleted => "deleted".to_owned(),
                Seen::Failing(_) => "failing".to_owned(),
            });
        });
        // The request after the last of these responses gets no response. 20 s is shorter than its timeout, so the
        // watch reports no failure.
        let never = timeout(Duration::from_secs(20), watch).await;
        assert!(never.is_err());
        let requests = requests.lock().expect("no panic").clone();
        (reported, requests)
    }

    #[tokio::test(start_paused = true)]
    async fn missing_object_is_watched_from_the_lists_version() {
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
        let sorted_parts = |request: &String| {
            let mut parts: Vec<_> = request.split('&').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        let expected: Vec<_> = [list.clone(), watch(9), list, watch(12)].iter().map(sorted_parts).collect();
        assert_eq!(requests.iter().map(sorted_parts).collect::<Vec<_>>(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn object_read_by_get_is_watched_once_it_exists() {
        let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
        let missing = || (404, status.to_string());
        let answers = vec![missing(), missing(), (200, object(7).to_string()), events(&[("MODIFIED", object(8))])];
        let (reported, requests) = run_watch(ReadBy::Get, answers).await;
        assert_eq!(reported, ["missing", "missing", "7", "8"]);
        let gets = requests.iter().filter(|request| request.starts_with("/api/v1/namespaces/here/configmaps/one"));
        assert_eq!(gets.count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn error_event_is_reported_unless_the_version_expired() {
        for (code, expected) in [(410, &["3", "11"][..]), (403, &["3", "failing", "11"])] {
            let answers =
                vec![list(9, json!([object(3)])), events(&[("ERROR", refusal(code))]), list(12, json!([object(11)]))];
            let (reported, _) = run_watch(ReadBy::List, answers).await;
            assert_eq!(reported, expected, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failure_is_reported_once_until_a_read_succeeds() {
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
