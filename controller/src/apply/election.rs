//! Participation in the leader election by Lease, and the write fence of the lease holder.
//!
//! ```text
//! API server --watch--> run_election --> Candidate (pure) --request--> API server
//!                            |               ^                             |
//!                            |               +---------- answer -----------+
//!                            +--> Option<WriteFence> --> the main loop (plans while it leads)
//!                                         ^---check--- each write, when it is sent
//! ```
//!
//! Two tasks: [`run_election`], and in it the watch of the Lease (one channel, which holds its latest version). The
//! election works without the watch too, only slower: a Lease that seems to have expired is read before it is taken.
//! Both run on a thread of their own: `election_thread.rs`.
//!
//! Cancel safe: a Lease that is not renewed expires.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use observe::{OneObject, ReadBy, Seen, error_chain, watch_one};
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::apply::lease::{self, Answer, Candidate, Entry, Lease, Next, Request};

/// The name of the Lease.
const NAME: &str = "landfall-controller";

/// Our name in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-election";

/// How long a request waits for its answer: short enough for a second attempt before the right to write ends.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest delay between two watches.
const WATCH_DELAY: Duration = Duration::from_secs(1);

/// How long a stopping controller tries to release the Lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The right to write, which ends at some time.
#[derive(Clone, Debug)]
pub(crate) struct WriteFence(Option<Arc<Mutex<Instant>>>);

/// The right to write has ended: another controller may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another controller may lead by now")]
pub(crate) struct Deposed;

impl WriteFence {
    /// The right of a controller without competitors, which never ends.
    pub(crate) fn without_end() -> Self {
        Self(None)
    }

    /// A right that ends at this time.
    pub(crate) fn until(end: Instant) -> Self {
        Self(Some(Arc::new(Mutex::new(end))))
    }

    /// Returns an error if the right has ended. Call this when a write is sent, not earlier: a process can be suspended
    /// for any time between any two steps.
    pub(crate) fn check(&self) -> Result<(), Deposed> {
        let Some(end) = &self.0 else { return Ok(()) };
        let end = *end.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < end { Ok(()) } else { Err(Deposed) }
    }

    fn set(&self, end: Instant) {
        if let Some(own) = &self.0 {
            *own.lock().unwrap_or_else(PoisonError::into_inner) = end;
        }
    }
}

/// Takes part in the election until `resign_rx` receives, then releases the Lease within [`RELEASE_TIMEOUT`]. If the
/// sender is dropped, returns at once, and the Lease expires. Each term has its own fence. The identity of this
/// candidate in the Lease is `instance` with a random part.
pub(crate) async fn run_election(
    client: Client,
    namespace: String,
    instance: String,
    fence_tx: watch::Sender<Option<WriteFence>>,
    mut resign_rx: oneshot::Receiver<()>,
) {
    let identity = format!("{instance}_{:016x}", RandomState::new().hash_one(()));
    let api = Api::<coordination::Lease>::namespaced(client, &namespace);
    let (lease_tx, mut lease_rx) = watch::channel(None);
    let mut watches = JoinSet::new();
    watches.spawn(watch_lease(api.clone(), lease_tx));
    let mut leadership = Leadership { identity: identity.clone(), fence: None, leader: None, fence_tx };
    let mut candidate = Candidate::new(identity);
    let mut request: Option<BoxFuture<'static, (Answer, Option<String>)>> = None;
    let mut is_failing = false;
    let mut release_deadline = None;
    loop {
        let now = Instant::now().into_std();
        let next = candidate.next(now);
        leadership.update(&candidate, now);
        let alarm = match next {
            Next::Send(next) => {
                request = Some(send(api.clone(), next).boxed());
                continue;
            }
            Next::Wait(until) => until.map(Instant::from_std),
            Next::Done => return,
        };
        let alarm = [alarm, release_deadline].into_iter().flatten().min();
        let is_waiting = request.is_some();
        tokio::select! {
            Some((answer, problem)) = OptionFuture::from(request.as_mut()), if is_waiting => {
                request = None;
                log_health(&mut is_failing, problem);
                candidate.handle_answer(answer, Instant::now().into_std());
            }
            Ok(()) = lease_rx.changed() => {
                let lease = lease_rx.borrow_and_update().clone();
                candidate.handle_event(lease, Instant::now().into_std());
            }
            resigns = &mut resign_rx, if release_deadline.is_none() => {
                if resigns.is_err() {
                    return;
                }
                release_deadline = Some(Instant::now() + RELEASE_TIMEOUT);
                candidate.resign();
            }
            () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
        }
        if release_deadline.is_some_and(|end| end <= Instant::now()) {
            tracing::warn!("stopping without releasing the Lease; another controller takes over when it expires");
            return;
        }
    }
}

/// The current lease holder, as published to the main loop and the log.
struct Leadership {
    identity: String,
    fence: Option<WriteFence>,
    /// The lease holder that was logged last.
    leader: Option<String>,
    fence_tx: watch::Sender<Option<WriteFence>>,
}

impl Leadership {
    /// Publishes the state of the candidate.
    fn update(&mut self, candidate: &Candidate, now: std::time::Instant) {
        match (candidate.writable_until(now), &self.fence) {
            (Some(until), Some(fence)) => fence.set(Instant::from_std(until)),
            (Some(until), None) => {
                tracing::info!(identity = self.identity, "leading");
                self.leader = Some(self.identity.clone());
                self.fence = Some(WriteFence::until(Instant::from_std(until)));
                self.fence_tx.send_replace(self.fence.clone());
            }
            (None, Some(fence)) => {
                fence.set(Instant::from_std(now));
                tracing::info!(identity = self.identity, "no longer leading");
                self.fence = None;
                self.fence_tx.send_replace(None);
            }
            (None, None) => {}
        }
        let leader = candidate.leader();
        if self.fence.is_none() && leader != self.leader.as_deref() {
            if let Some(leader) = leader.filter(|leader| *leader != self.identity) {
                tracing::info!(identity = self.identity, leader, "standing by");
            }
            self.leader = leader.map(str::to_owned);
        }
    }
}

/// Logs whether requests fail, if that has changed.
fn log_health(is_failing: &mut bool, problem: Option<String>) {
    if problem.is_some() != std::mem::replace(is_failing, problem.is_some()) {
        match problem {
            Some(error) => tracing::warn!(error, "cannot read or write the Lease; retrying"),
            None => tracing::info!("the Lease can be read and written again"),
        }
    }
}

/// Sends a request. Returns the answer, and the problem if it failed.
async fn send(api: Api<coordination::Lease>, request: Request) -> (Answer, Option<String>) {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let answer = timeout(ANSWER_TIMEOUT, async {
        match &request {
            Request::Read => api.get(NAME).await,
            Request::Create(entry) => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let object = coordination::Lease { metadata, spec: Some(lease_spec(entry, Timestamp::now())) };
                let params = PostParams { field_manager: params.field_manager.clone(), ..PostParams::default() };
                api.create(&params, &object).await
            }
            Request::Replace(version, entry) => {
                let mut spec = json!(lease_spec(entry, Timestamp::now()));
                if entry.holder.is_none() {
                    spec["holderIdentity"] = json!(null);
                }
                let body = json!({"metadata": {"resourceVersion": version.to_string()}, "spec": spec});
                api.patch(NAME, &params, &Patch::Merge(body)).await
            }
        }
    });
    match answer.await {
        Ok(Ok(object)) => match parse_lease(&object) {
            Some(lease) => (Answer::Lease(lease), None),
            None => (Answer::Failed, Some("the server is not a Kubernetes API: the Lease has no version".into())),
        },
        // The answer 404 to a creation means that the namespace does not exist.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 && !matches!(request, Request::Create(_)) => {
            (Answer::Absent, None)
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => (Answer::Conflict, None),
        Ok(Err(error)) => (Answer::Failed, Some(error_chain(&error))),
        Err(_) => {
            (Answer::Failed, Some(format!("the API server did not answer within {} s", ANSWER_TIMEOUT.as_secs())))
        }
    }
}

/// The new spec. The times are for users, and make each renewal a change.
fn lease_spec(entry: &Entry, now: Timestamp) -> coordination::LeaseSpec {
    coordination::LeaseSpec {
        holder_identity: entry.holder.clone(),
        lease_duration_seconds: i32::try_from(lease::DURATION.as_secs()).ok(),
        lease_transitions: Some(entry.transitions),
        renew_time: Some(MicroTime(now)),
        acquire_time: entry.is_new.then_some(MicroTime(now)),
        ..coordination::LeaseSpec::default()
    }
}

/// `None` if the object has no version. (Each object of an API server has one.)
fn parse_lease(object: &coordination::Lease) -> Option<Lease> {
    let spec = object.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Some(Lease {
        version: observe::source::version(&object.metadata)?,
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: seconds.map_or(lease::DURATION, Duration::from_secs),
        transitions: spec.lease_transitions.unwrap_or_default(),
    })
}

/// Keeps `lease_tx` up to date: the latest version of the Lease, or `None` once it has been deleted.
async fn watch_lease(api: Api<coordination::Lease>, lease_tx: watch::Sender<Option<Lease>>) -> Infallible {
    let object = OneObject {
        api,
        name: NAME,
        // A watch that starts with the current objects would need no read, but requires etcd 3.4.31 or 3.5.13.
        read_by: ReadBy::Get,
        response_timeout: ANSWER_TIMEOUT,
        longest_delay: WATCH_DELAY,
    };
    watch_one(&object, |seen| match seen {
        Seen::Present(object) => drop(lease_tx.send_replace(parse_lease(&object))),
        Seen::Deleted => drop(lease_tx.send_replace(None)),
        // The candidate reads and creates it.
        Seen::Missing => {}
        Seen::Failing(error) => tracing::debug!(error, "the watch of the Lease has failed"),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::election_thread::ElectionThread;
    use http::{Method, Response};
    use kube::client::Body;
    use serde_json::Value;
    use tokio::time::sleep;

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/landfall-system/leases";

    /// An API server with at most one Lease, and without watches.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<(u64, Option<Value>)>>);

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: http::Request<Body>| {
                let server = server.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect_bytes().await.expect("a body");
                    let (code, answer) = server.answer(&head.method, head.uri.path(), head.uri.query(), &body);
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()))
                }
            });
            Client::new(service, "default")
        }

        fn answer(&self, method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> (u16, Value) {
            let refused = |code: u16| (code, json!({"kind": "Status", "status": "Failure", "code": code}));
            let mut state = self.0.lock().expect("no panic");
            let (version, lease) = &mut *state;
            if query.is_some_and(|query| query.contains("watch=")) {
                return refused(500);
            }
            match (method, lease.as_mut()) {
                (&Method::GET, None) => return refused(404),
                (&Method::GET, Some(_)) => assert_eq!(path, format!("{PATH}/landfall-controller")),
                (&Method::POST, None) => {
                    assert_eq!(path, PATH);
                    *version += 1;
                    *lease = Some(serde_json::from_slice(body).expect("a Lease"));
                }
                (&Method::PATCH, Some(lease)) => {
                    let patch: Value = serde_json::from_slice(body).expect("a patch");
                    if patch["metadata"]["resourceVersion"] != json!(version.to_string()) {
                        return refused(409);
                    }
                    *version += 1;
                    let spec = lease["spec"].as_object_mut().expect("a spec");
                    for (field, value) in patch["spec"].as_object().expect("a spec") {
                        spec.insert(field.clone(), value.clone());
                    }
                }
                _ => return refused(409),
            }
            let lease = lease.as_mut().expect("just made");
            lease["metadata"]["resourceVersion"] = json!(version.to_string());
            (200, lease.clone())
        }

        /// Holder, duration and transitions of the Lease; `None` for each missing field.
        fn lease_fields(&self) -> (Option<String>, Option<i64>, Option<i64>) {
            let state = self.0.lock().expect("no panic");
            let spec = &state.1.as_ref().expect("a Lease")["spec"];
            assert!(spec["renewTime"].is_string() && spec["acquireTime"].is_string(), "{spec}");
            // The holder without its random part.
            let holder = spec["holderIdentity"].as_str().and_then(|holder| holder.split('_').next());
            (holder.map(str::to_owned), spec["leaseDurationSeconds"].as_i64(), spec["leaseTransitions"].as_i64())
        }

        fn start(&self, name: &str) -> (JoinSet<()>, oneshot::Sender<()>, watch::Receiver<Option<WriteFence>>) {
            let election = "landfall-system".to_owned();
            let (fence_tx, fence_rx) = watch::channel(None);
            let (resign_tx, resign_rx) = oneshot::channel();
            let mut tasks = JoinSet::new();
            tasks.spawn(run_election(self.client(), election, name.into(), fence_tx, resign_rx));
            (tasks, resign_tx, fence_rx)
        }

        /// As `start`, on a thread of its own.
        fn start_thread(&self, name: &str) -> (ElectionThread, watch::Receiver<Option<WriteFence>>) {
            let (fence_tx, fence_rx) = watch::channel(None);
            let server = self.clone();
            let connect = move || Ok(server.client());
            let election = ElectionThread::start(connect, "landfall-system".into(), name.into(), fence_tx);
            (election.expect("a thread"), fence_rx)
        }
    }

    async fn wait(fence_rx: &mut watch::Receiver<Option<WriteFence>>, leads: bool) -> Option<WriteFence> {
        let changed = fence_rx.wait_for(|fence| fence.is_some() == leads);
        timeout(Duration::from_secs(60), changed).await.expect("in time").expect("the election goes on").clone()
    }

    #[tokio::test(start_paused = true)]
    async fn second_candidate_leads_after_the_first_resigns() {
        let server = Server::default();
        let (mut one, resign_tx, mut fence_rx) = server.start("one");
        let fence = wait(&mut fence_rx, true).await.expect("a fence");
        assert_eq!(server.lease_fields(), (Some("one".into()), Some(6), Some(0)));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(fence.check(), Ok(()), "it is renewed");

        resign_tx.send(()).expect("it listens");
        assert!(one.join_next().await.is_some_and(|ended| ended.is_ok()), "it ends by itself");
        assert_eq!((fence.check(), server.lease_fields()), (Err(Deposed), (None, Some(6), Some(0))));
        let began = Instant::now();
        let (_other, _resign, mut other) = server.start("other");
        wait(&mut other, true).await;
        assert!(began.elapsed() < Duration::from_secs(1), "after {:?}", began.elapsed());
        assert_eq!(server.lease_fields(), (Some("other".into()), Some(6), Some(1)));
    }

    #[tokio::test]
    async fn busy_main_thread_delays_no_renewal() {
        let server = Server::default();
        let (election, mut fence_rx) = server.start_thread("one");
        let fence = wait(&mut fence_rx, true).await.expect("a fence");
        let version = || server.0.lock().expect("no panic").0;
        let before = version();
        // A plan that takes long, and reads and writes nothing.
        std::thread::sleep(lease::RENEWAL + Duration::from_millis(500));
        assert!(version() > before, "the Lease is renewed meanwhile");
        election.resign().await.expect("it ends");
        assert_eq!((fence.check(), server.lease_fields().0), (Err(Deposed), None));
    }

    #[tokio::test]
    async fn abandoned_election_ends_and_keeps_the_lease() {
        let server = Server::default();
        let (election, mut fence_rx) = server.start_thread("one");
        wait(&mut fence_rx, true).await;
        drop(election);
        // The election drops its sender when it ends.
        let ended = async { while fence_rx.changed().await.is_ok() {} };
        timeout(Duration::from_secs(10), ended).await.expect("in time");
        assert_eq!(server.lease_fields().0, Some("one".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn crashed_leader_is_replaced_and_may_not_write() {
        let server = Server::default();
        let (mut one, _resign_tx, mut fence_rx) = server.start("one");
        let fence = wait(&mut fence_rx, true).await.expect("a fence");
        one.abort_all();
        assert!(one.join_next().await.is_some());
        // As in a suspended process: the fence itself ends in time.
        assert_eq!(fence.check(), Ok(()));
        let (_other, _resign, mut other) = server.start("other");
        wait(&mut other, true).await;
        assert_eq!((fence.check(), server.lease_fields().0), (Err(Deposed), Some("other".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn leader_that_loses_the_lease_stops() {
        let server = Server::default();
        let (_one, _resign_tx, mut fence_rx) = server.start("one");
        let fence = wait(&mut fence_rx, true).await.expect("a fence");
        server.answer(
            &Method::PATCH,
            PATH,
            None,
            br#"{"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "thief"}}"#,
        );
        wait(&mut fence_rx, false).await;
        assert_eq!(fence.check(), Err(Deposed));
        let second = wait(&mut fence_rx, true).await.expect("a fence");
        assert_eq!((second.check(), fence.check()), (Ok(()), Err(Deposed)), "the fence of the first term stays closed");
    }
}
