//! Creates the Secret if it is missing, and rotates its keys on request.
//!
//! The keeper runs in every controller, not only in the lease holder, so that a new installation has keys before the
//! first election. The API server accepts one creation of the Secret. A late write of another controller names an old
//! version, and the API server refuses it. The keeper writes only this Secret, and only if there is something to
//! change.
//!
//! Cancel safe: the next start continues from the state of the Secret.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Error};
use observe::{await_response, error_chain};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use speaker::wire::seal::MIN_KEY;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::rotation::{LENGTH, Step, next_step};
use super::{KeySecret, NAME, SecretState, watch_secret};
use crate::channels::send_if_new;
use crate::config::API_TIMEOUT;

/// Our name in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-controller";

/// The pause after a write or a failure. Meanwhile the watch reports the result of the write.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the first answer may take before the Secret is reported as unreadable.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// The longest sleep. It is limited, because the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why agents have no key: a sentence for users.
pub type Obstacle = Arc<str>;

/// Maintains the Secret for as long as this future is polled, and keeps `obstacle_tx` up to date.
pub async fn keep(secret: KeySecret, obstacle_tx: watch::Sender<Option<Obstacle>>) -> Infallible {
    let (state_tx, state_rx) = watch::channel(SecretState::Unknown);
    tokio::select! {
        never = watch_secret(secret.clone(), state_tx) => match never {},
        never = maintain(secret, state_rx, obstacle_tx) => match never {},
    }
}

/// Takes the next step each time the Secret changes or a step is due.
async fn maintain(
    secret: KeySecret,
    mut state_rx: watch::Receiver<SecretState>,
    obstacle_tx: watch::Sender<Option<Obstacle>>,
) -> Infallible {
    let (api, random, began) = (secret.api(), SystemRandom::new(), Instant::now());
    let mut failing = false;
    loop {
        let state = state_rx.borrow_and_update().clone();
        let now = Timestamp::now();
        let step = match &state {
            SecretState::Unknown => Step::Wait(None),
            SecretState::Missing => next_step(None, now, &random_key(&random)),
            SecretState::Present(view) => next_step(Some(view), now, &random_key(&random)),
        };
        let pause = match step {
            Step::Wait(None) if state == SecretState::Unknown => FIRST_ANSWER,
            Step::Wait(None) => LONGEST_SLEEP,
            Step::Wait(Some(until)) => {
                Duration::try_from(until.duration_since(now)).unwrap_or_default().min(LONGEST_SLEEP)
            }
            step => {
                failing = log_write(write(&api, step).await, &secret, failing);
                PAUSE
            }
        };
        let obstacle = find_obstacle(&secret, &state, failing, began.elapsed());
        send_if_new(&obstacle_tx, obstacle);
        // The sender exists for as long as this future, because `keep` polls both futures.
        tokio::select! {
            Ok(()) = state_rx.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Logs the result of a write. Of successive failures, logs only the first. Returns whether writes fail now.
fn log_write(written: kube::Result<&'static str>, secret: &KeySecret, failing: bool) -> bool {
    match written {
        Ok(what) => {
            tracing::info!(%secret, what, "changed the Hello keys");
            false
        }
        // Another controller was first.
        Err(Error::Api(status)) if status.code == 409 => failing,
        Err(error) => {
            if !failing {
                let error = error_chain(&error);
                tracing::warn!(%secret, error, "cannot write the Hello keys; trying again");
            }
            true
        }
    }
}

/// Why agents have no key. `failing`: the last write failed; `waited`: the time since the watch began.
fn find_obstacle(secret: &KeySecret, state: &SecretState, failing: bool, waited: Duration) -> Option<Obstacle> {
    let namespace = &secret.namespace;
    let advice = "check the logs of the controllers, and that the Roles of deploy/landfall.yaml exist";
    let what = match state {
        SecretState::Unknown if waited >= FIRST_ANSWER => format!(
            "the controllers cannot read the Secret {secret}, and nothing is announced without its key; {advice}"
        ),
        SecretState::Missing if failing => format!(
            "the Secret {secret} is missing, nothing is announced without its key, and the controllers cannot create \
             it; {advice}, or create it: \
             kubectl -n {namespace} create secret generic {NAME} --from-file=key=<(head -c 32 /dev/urandom)"
        ),
        SecretState::Present(view) if failing && view.usable_keys().names.is_empty() => format!(
            "the Secret {secret} has no key (an entry of at least {MIN_KEY} bytes), nothing is announced without one, \
             and the controllers cannot write one; {advice}, or add one"
        ),
        SecretState::Unknown | SecretState::Missing | SecretState::Present(_) => return None,
    };
    Some(what.into())
}

/// Performs the write of a step, and returns a description of it.
async fn write(secrets: &Api<Secret>, step: Step) -> kube::Result<&'static str> {
    let field_manager = Some(FIELD_MANAGER.to_owned());
    let written = async {
        match step {
            Step::Wait(_) => Ok("nothing"),
            Step::Create(fields) => {
                let params = PostParams { field_manager, ..PostParams::default() };
                secrets.create(&params, &new_secret(&fields)).await.map(|_| "created the Secret with a first key")
            }
            Step::Patch { what, body } => {
                let params = PatchParams { field_manager, ..PatchParams::default() };
                secrets.patch(NAME, &params, &Patch::Merge(body)).await.map(|_| what)
            }
        }
    };
    await_response(API_TIMEOUT, written).await
}

fn new_secret(fields: &Value) -> Secret {
    let metadata = json!({"name": NAME, "labels": {"app.kubernetes.io/name": "landfall"}});
    let object = json!({"metadata": metadata, "type": "Opaque", "data": fields["data"]});
    serde_json::from_value(object).expect("invariant: this is a Secret")
}

/// A key from the operating system's random source.
fn random_key(random: &SystemRandom) -> [u8; LENGTH] {
    let mut key = [0; LENGTH];
    // Blocks until the random source of the kernel is seeded. Without a random source this process ends, because a key
    // that can be guessed is worse than no key.
    random.fill(&mut key).expect("invariant: the kernel has a random source");
    key
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::{merge, secret};
    use super::super::secret::{RETIRE_AFTER, ROTATE, SecretView};
    use super::*;
    use http::{Method, Request, Response};
    use kube::Client;
    use kube::client::Body;
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use tokio::time::timeout;

    /// An API server with at most one Secret, and the number of writes. Its watches end at once.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<(Option<Value>, usize)>>);

    impl Server {
        fn secret(&self) -> KeySecret {
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
            KeySecret { client: Client::new(service, "default"), namespace: "here".into() }
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
                    let Some(object) = state else { panic!("no Secret") };
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

        /// Merges a patch of a user.
        fn edit(&self, patch: &Value) {
            let (state, _) = &mut *self.0.lock().expect("no panic");
            let object = state.as_mut().expect("a Secret");
            merge(object, patch);
            Self::version(object);
        }

        /// Waits for this number of entries, and until no rotation is requested. Returns their names, and the number of
        /// writes.
        async fn wait_for(&self, count: usize) -> (BTreeSet<String>, usize) {
            // Waits in real time: a key is named after the second of its creation, and two keys need two names.
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(30) {
                let (state, writes) = self.0.lock().expect("no panic").clone();
                let view = state.map(|object| SecretView::from(&serde_json::from_value(object).expect("a Secret")));
                if let Some(view) = view.filter(|view| view.entries.len() == count && !view.rotate) {
                    return (view.usable_keys().names, writes);
                }
                sleep(Duration::from_millis(10)).await;
            }
            panic!("these entries never appeared: {:?}", self.0.lock().expect("no panic").0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_keepers_make_each_step_of_a_rotation_once() {
        let server = Server::default();
        let story = async {
            let (first, writes) = server.wait_for(1).await;
            assert_eq!(writes, 1);
            server.edit(&json!({"metadata": {"annotations": {ROTATE: "now"}}}));
            let (both, writes) = server.wait_for(2).await;
            assert!(first.is_subset(&both) && writes == 2, "{first:?} {both:?} after {writes} writes");
            server.edit(&json!({"metadata": {"annotations": {RETIRE_AFTER: "2026-01-01T00:00:00Z"}}}));
            let (second, writes) = server.wait_for(1).await;
            assert!(second.is_disjoint(&first) && second.is_subset(&both) && writes == 3, "{second:?} of {both:?}");
        };
        tokio::select! {
            never = keep(server.secret(), watch::channel(None).0) => match never {},
            never = keep(server.secret(), watch::channel(None).0) => match never {},
            () = story => {}
        }
    }

    #[tokio::test]
    async fn a_lasting_lack_of_keys_is_an_obstacle() {
        let secret_ref = Server::default().secret();
        let present = |entries| SecretState::Present(Arc::new(SecretView::from(&secret(entries, &[]))));
        for (state, failing, waited, expected) in [
            (SecretState::Unknown, false, Duration::ZERO, None),
            (SecretState::Unknown, false, FIRST_ANSWER, Some("cannot read the Secret here/landfall-hello-keys")),
            (SecretState::Missing, false, LONGEST_SLEEP, None),
            (SecretState::Missing, true, Duration::ZERO, Some("the Secret here/landfall-hello-keys is missing")),
            (present(&[("short", b"1")]), false, LONGEST_SLEEP, None),
            (present(&[("short", b"1")]), true, LONGEST_SLEEP, Some("has no key (an entry of at least 16 bytes)")),
            (present(&[("good", &[1; LENGTH])]), true, LONGEST_SLEEP, None),
        ] {
            let obstacle = find_obstacle(&secret_ref, &state, failing, waited);
            match expected {
                None => assert_eq!(obstacle, None, "{state:?}"),
                Some(part) => {
                    assert!(obstacle.as_ref().is_some_and(|text| text.contains(part)), "{state:?}: {obstacle:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_made_by_hand_is_left_alone() {
        let server = Server::default();
        let by_hand = serde_json::to_value(secret(&[("ours", &[1; LENGTH])], &[])).expect("JSON");
        server.0.lock().expect("no panic").0 = Some(by_hand);
        assert!(timeout(LONGEST_SLEEP * 10, keep(server.secret(), watch::channel(None).0)).await.is_err());
        let (names, writes) = server.wait_for(1).await;
        assert_eq!((names, writes), (BTreeSet::from(["ours".to_owned()]), 0));
    }
}
