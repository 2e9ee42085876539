//! Keeps the Secret: makes it where it is missing, and rotates its keys when it is asked to.
//!
//! Runs in every controller, and not only in the one that leads, so that a fresh installation has keys before anybody is
//! elected: the API server lets one of them create the Secret, and the others' late writes name a version that is gone.
//! Touches nothing but that Secret. Idle, it writes nothing.
//!
//! Cancel safe: the next start finds in the Secret what was left undone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Error};
use observe::error_chain;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use speaker::wire::seal::MIN_KEY;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::rotation::{LENGTH, Step, step};
use super::{NAME, Place, Seen, follow};

/// Who we are in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-controller";

/// For how long the API server is to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long to wait for the watch to show what was written, before looking again whether there is something to do; also the
/// pause after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the first answer may take before it is said that the Secret can't be read.
const FIRST: Duration = Duration::from_secs(3);

/// The longest sleep: the clock may be set.
const LOOK: Duration = Duration::from_secs(60);

/// Why agents have no key, for users.
pub type Obstacle = Arc<str>;

/// Keeps it for as long as it is polled, and tells what keeps agents from having a key.
pub async fn keep(place: Place, hinder: watch::Sender<Option<Obstacle>>) -> Infallible {
    let (seen, known) = watch::channel(Seen::Unknown);
    tokio::select! {
        never = follow::follow(place.clone(), seen) => match never {},
        never = tend(place, known, hinder) => match never {},
    }
}

/// Does what there is to do, whenever the Secret changes or it is time.
async fn tend(place: Place, mut known: watch::Receiver<Seen>, hinder: watch::Sender<Option<Obstacle>>) -> Infallible {
    let (secrets, random, began) = (place.secrets(), SystemRandom::new(), Instant::now());
    let mut failing = false;
    loop {
        let seen = known.borrow_and_update().clone();
        let now = Timestamp::now();
        let todo = match &seen {
            Seen::Unknown => Step::Wait(None),
            Seen::Missing => step(None, now, &fresh(&random)),
            Seen::There(content) => step(Some(content), now, &fresh(&random)),
        };
        let pause = match todo {
            Step::Wait(None) if seen == Seen::Unknown => FIRST,
            Step::Wait(None) => LOOK,
            Step::Wait(Some(until)) => Duration::try_from(until.duration_since(now)).unwrap_or_default().min(LOOK),
            todo => {
                match write(&secrets, todo).await {
                    Ok(what) => {
                        tracing::info!(secret = %place, what, "keys of the speakers");
                        failing = false;
                    }
                    // Somebody else was first.
                    Err(Trouble::Refused(Error::Api(status))) if status.code == 409 => {}
                    Err(trouble) => {
                        if !std::mem::replace(&mut failing, true) {
                            let error = trouble.to_string();
                            tracing::warn!(secret = %place, error, "can't write the keys of the speakers; trying again");
                        }
                    }
                }
                PAUSE
            }
        };
        let new = obstacle(&place, &seen, failing, began.elapsed());
        hinder.send_if_modified(|told| std::mem::replace(told, new.clone()) != new);
        // If the watch ends, so does this.
        tokio::select! {
            Ok(()) = known.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Why agents have no key, if what is seen of the Secret for so long says so and, where one is to be made, that is `failing`.
fn obstacle(place: &Place, seen: &Seen, failing: bool, since: Duration) -> Option<Obstacle> {
    let namespace = &place.namespace;
    let roles = "see the log of the controllers, and whether the Roles of deploy/landfall.yaml are there";
    let what = match seen {
        Seen::Unknown if since >= FIRST => format!(
            "the controllers can't read the Secret {place}, in which the key is without which nothing is announced: {roles}"
        ),
        Seen::Missing if failing => format!(
            "the Secret {place} is missing, without which nothing is announced, and the controllers can't create it: {roles}, \
             or create it (kubectl -n {namespace} create secret generic {NAME} --from-file=key=<(head -c 32 /dev/urandom))"
        ),
        Seen::There(content) if failing && content.usable().names.is_empty() => format!(
            "the Secret {place} has no entry that is a key, of {MIN_KEY} bytes at least, without which nothing is announced, \
             and the controllers can't write one: {roles}, or write one"
        ),
        Seen::Unknown | Seen::Missing | Seen::There(_) => return None,
    };
    Some(what.into())
}

enum Trouble {
    Refused(Error),
    Silent,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => f.write_str(&error_chain(error)),
            Self::Silent => f.write_str("the API server does not answer"),
        }
    }
}

/// Does it, and says what was done.
async fn write(secrets: &Api<Secret>, todo: Step) -> Result<&'static str, Trouble> {
    let written = async {
        match todo {
            Step::Wait(_) => Ok("nothing"),
            Step::Create(fields) => {
                let manager = Some(FIELD_MANAGER.to_owned());
                let params = PostParams { field_manager: manager, ..PostParams::default() };
                secrets.create(&params, &object(fields)).await.map(|_| "the Secret is made, with a first key")
            }
            Step::Patch(patch) => {
                let manager = Some(FIELD_MANAGER.to_owned());
                let params = PatchParams { field_manager: manager, ..PatchParams::default() };
                secrets.patch(NAME, &params, &Patch::Merge(patch.body)).await.map(|_| patch.what)
            }
        }
    };
    timeout(ANSWER, written).await.map_err(|_| Trouble::Silent)?.map_err(Trouble::Refused)
}

fn object(fields: Value) -> Secret {
    let mut object = json!({
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": "landfall"}},
        "type": "Opaque",
    });
    object["data"] = fields["data"].clone();
    serde_json::from_value(object).expect("invariant: this is a Secret")
}

/// A key that nobody knows, from the operating system's random source.
fn fresh(random: &SystemRandom) -> [u8; LENGTH] {
    let mut key = [0; LENGTH];
    // It blocks while the kernel has no randomness yet, and fails where there is none: a key that can be guessed is worse
    // than no controller.
    random.fill(&mut key).expect("invariant: the kernel has a random source");
    key
}

#[cfg(test)]
mod tests {
    use super::super::content::tests::{merge, secret};
    use super::super::content::{Content, RETIRE_AFTER, ROTATE};
    use super::*;
    use http::{Method, Request, Response};
    use kube::Client;
    use kube::client::Body;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// An API server that has at most this one Secret; and how often it was written. Its watches end at once.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<(Option<Value>, usize)>>);

    impl Server {
        fn place(&self) -> Place {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect_bytes().await.expect("a body");
                    let (code, answer) = server.answer(&head.method, &head.uri, &body);
                    Response::builder().status(code).body(Body::from(answer.into_bytes()))
                }
            });
            Place { client: Client::new(service, "default"), namespace: "here".into() }
        }

        fn answer(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> (u16, String) {
            let conflict =
                (409, json!({"kind": "Status", "status": "Failure", "code": 409, "message": ""}).to_string());
            let query = uri.query().unwrap_or_default();
            let (state, writes) = &mut *self.0.lock().expect("no panic");
            match (method, uri.path()) {
                (&Method::GET, "/api/v1/namespaces/here/secrets") => {
                    assert!(query.contains("fieldSelector=metadata.name%3Dlandfall-hello-keys"), "{query}");
                    if query.contains("watch=true") {
                        return (200, String::new());
                    }
                    let items: Vec<_> = state.iter().collect();
                    let list = json!({"kind": "SecretList", "metadata": {"resourceVersion": "1"}, "items": items});
                    return (200, list.to_string());
                }
                (&Method::POST, "/api/v1/namespaces/here/secrets") if state.is_some() => return conflict,
                (&Method::POST, "/api/v1/namespaces/here/secrets") => {
                    let mut object: Value = serde_json::from_slice(body).expect("JSON");
                    object["metadata"]["resourceVersion"] = json!("1");
                    *state = Some(object);
                }
                (&Method::PATCH, "/api/v1/namespaces/here/secrets/landfall-hello-keys") => {
                    let patch: Value = serde_json::from_slice(body).expect("JSON");
                    let Some(object) = state else { panic!("it is gone") };
                    if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                        return conflict;
                    }
                    merge(object, &patch);
                    Self::version(object);
                }
                _ => panic!("{method} {uri}"),
            }
            *writes += 1;
            (200, json!(state).to_string())
        }

        fn version(object: &mut Value) {
            let version = object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
            object["metadata"]["resourceVersion"] = json!((version.unwrap_or_default() + 1).to_string());
        }

        /// Somebody else merges this into it.
        fn edit(&self, patch: &Value) {
            let (state, _) = &mut *self.0.lock().expect("no panic");
            let object = state.as_mut().expect("a Secret");
            merge(object, patch);
            Self::version(object);
        }

        /// The names of its entries when there are so many and nothing is asked for; and how often it was written.
        async fn settled(&self, count: usize) -> (BTreeSet<String>, usize) {
            // In real time: the names of keys tell its seconds, and two in one second can't be.
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(30) {
                let (state, writes) = self.0.lock().expect("no panic").clone();
                let content = state.map(|object| Content::from(&serde_json::from_value(object).expect("a Secret")));
                if let Some(content) = content.filter(|content| content.entries.len() == count && !content.rotate) {
                    return (content.usable().names, writes);
                }
                sleep(Duration::from_millis(10)).await;
            }
            panic!("never: {:?}", self.0.lock().expect("no panic").0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_keep_it_one_makes_the_secret_and_one_does_each_step_of_a_rotation() {
        let server = Server::default();
        let story = async {
            let (first, writes) = server.settled(1).await;
            assert_eq!(writes, 1);
            server.edit(&json!({"metadata": {"annotations": {ROTATE: "now"}}}));
            let (both, writes) = server.settled(2).await;
            assert!(first.is_subset(&both) && writes == 2, "{first:?} {both:?} after {writes} writes");
            server.edit(&json!({"metadata": {"annotations": {RETIRE_AFTER: "2026-01-01T00:00:00Z"}}}));
            let (second, writes) = server.settled(1).await;
            assert!(second.is_disjoint(&first) && second.is_subset(&both) && writes == 3, "{second:?} of {both:?}");
        };
        tokio::select! {
            never = keep(server.place(), watch::channel(None).0) => match never {},
            never = keep(server.place(), watch::channel(None).0) => match never {},
            () = story => {}
        }
    }

    #[tokio::test]
    async fn that_there_is_no_key_is_an_obstacle_only_where_it_stays_so() {
        let place = Server::default().place();
        let there = |entries| Seen::There(Arc::new(Content::from(&secret(entries, &[]))));
        for (seen, failing, since, expected) in [
            (Seen::Unknown, false, Duration::ZERO, None),
            (Seen::Unknown, false, FIRST, Some("can't read the Secret here/landfall-hello-keys")),
            (Seen::Missing, false, LOOK, None),
            (Seen::Missing, true, Duration::ZERO, Some("the Secret here/landfall-hello-keys is missing")),
            (there(&[("short", b"1")]), false, LOOK, None),
            (there(&[("short", b"1")]), true, LOOK, Some("has no entry that is a key, of 16 bytes")),
            (there(&[("good", &[1; LENGTH])]), true, LOOK, None),
        ] {
            let said = obstacle(&place, &seen, failing, since);
            match expected {
                None => assert_eq!(said, None, "{seen:?}"),
                Some(words) => assert!(said.as_ref().is_some_and(|said| said.contains(words)), "{seen:?}: {said:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_somebody_else_has_made_is_left_alone() {
        let server = Server::default();
        let theirs = serde_json::to_value(secret(&[("ours", &[1; LENGTH])], &[])).expect("JSON");
        server.0.lock().expect("no panic").0 = Some(theirs);
        assert!(timeout(LOOK * 10, keep(server.place(), watch::channel(None).0)).await.is_err());
        let (names, writes) = server.settled(1).await;
        assert_eq!((names, writes), (BTreeSet::from(["ours".to_owned()]), 0));
    }
}
