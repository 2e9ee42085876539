//! Leading: taking part in the election by Lease, and what those who write ask.
//!
//! ```text
//! API server --watch--> elect --> Candidate (pure) --request--> API server
//!                         |          ^                              |
//!                         |          +----------- answer -----------+
//!                         +--> Option<Mandate> --> the loop (plans while there is one)
//!                                     ^---check--- each write, when it is sent
//! ```
//!
//! Two tasks: [`elect`], and in it the watch of that one Lease (one bounded channel; full, the watch waits). Without the
//! watch it works too, only slower: a Lease that seems to be over is read before it is taken.
//!
//! Cancel safe: a Lease that is not renewed is over in time.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::{BoxFuture, FutureExt, OptionFuture};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use observe::error_chain;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::apply::lease::{Answer, Candidate, Entry, Lease, Next, Request, Timing};

/// The name of the Lease.
const NAME: &str = "landfall-controller";

/// Who we are in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-election";

/// For how long the API server is to answer: so that of the time that a renewal has, there is enough for a second try.
const ANSWER: Duration = Duration::from_secs(2);

/// For how long one watch is asked for, in seconds.
const WATCH: u32 = 60;

/// How much longer than [`WATCH`] to wait for its end.
const GRACE: Duration = Duration::from_secs(5);

/// The pause between two watches.
const PAUSE: Duration = Duration::from_secs(1);

/// For how long stopping tries to release the Lease.
const FAREWELL: Duration = Duration::from_secs(2);

/// Events of the watch that wait.
const WAITING: usize = 16;

/// Where several controllers elect one that leads.
#[derive(Clone, Debug)]
pub struct Election {
    /// The namespace of the Lease.
    pub namespace: String,
}

/// The right to write, as long as it lasts.
#[derive(Clone, Debug)]
pub(crate) struct Mandate(Option<Arc<Mutex<Instant>>>);

/// The right to write is over: another may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another controller may lead by now")]
pub(crate) struct Deposed;

impl Mandate {
    /// That of the only one there is.
    pub(crate) fn unlimited() -> Self {
        Self(None)
    }

    /// One that lasts until then.
    pub(crate) fn until(end: Instant) -> Self {
        Self(Some(Arc::new(Mutex::new(end))))
    }

    /// Whether it lasts still. To be asked when a write is sent, and no earlier: a process can be stopped for any time
    /// between any two of its steps.
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

/// Takes part in the election until it is told to `resign`; then releases the Lease, as far as there is time for it. Each
/// time in office has its own mandate. `instance` is for people who read who holds it: something random is added.
pub(crate) async fn elect(
    client: Client,
    election: Election,
    instance: String,
    leading: watch::Sender<Option<Mandate>>,
    mut resign: oneshot::Receiver<()>,
) {
    let identity = format!("{instance}_{:016x}", RandomState::new().hash_one(()));
    let api = Api::<coordination::Lease>::namespaced(client, &election.namespace);
    let (events, mut seen) = mpsc::channel(WAITING);
    let mut watches = JoinSet::new();
    watches.spawn(watch_lease(api.clone(), events));
    let mut office = Office { identity: identity.clone(), mandate: None, leader: None, leading };
    let mut candidate = Candidate::new(identity, Timing::USUAL);
    let mut asked: Option<BoxFuture<'static, (Answer, Option<String>)>> = None;
    let mut trouble = Trouble::default();
    let mut last_call = None;
    loop {
        let now = Instant::now().into_std();
        let next = candidate.next(now);
        office.update(&candidate, now);
        let alarm = match next {
            Next::Send(request) => {
                asked = Some(ask(api.clone(), request).boxed());
                continue;
            }
            Next::Wait(until) => until.map(Instant::from_std),
            Next::Done => return,
        };
        let alarm = [alarm, last_call].into_iter().flatten().min();
        let waiting = asked.is_some();
        tokio::select! {
            Some((answer, problem)) = OptionFuture::from(asked.as_mut()), if waiting => {
                asked = None;
                trouble.tell(problem);
                candidate.answered(answer, Instant::now().into_std());
            }
            Some(lease) = seen.recv() => candidate.watched(lease, Instant::now().into_std()),
            _ = &mut resign, if last_call.is_none() => {
                last_call = Some(Instant::now() + FAREWELL);
                candidate.resign();
            }
            () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
        }
        if last_call.is_some_and(|end| end <= Instant::now()) {
            tracing::warn!("stopping without releasing the Lease; another controller waits until it is over");
            return;
        }
    }
}

/// Who leads, as the loop and the log are told.
struct Office {
    identity: String,
    mandate: Option<Mandate>,
    /// Who was told to lead last.
    leader: Option<String>,
    leading: watch::Sender<Option<Mandate>>,
}

impl Office {
    /// Draws the conclusions from what the candidate knows.
    fn update(&mut self, candidate: &Candidate, now: std::time::Instant) {
        match (candidate.until(now), &self.mandate) {
            (Some(until), Some(mandate)) => mandate.set(Instant::from_std(until)),
            (Some(until), None) => {
                tracing::info!(identity = self.identity, "leading");
                self.leader = Some(self.identity.clone());
                self.mandate = Some(Mandate::until(Instant::from_std(until)));
                self.leading.send_replace(self.mandate.clone());
            }
            (None, Some(mandate)) => {
                mandate.set(Instant::from_std(now));
                tracing::info!(identity = self.identity, "not leading any more");
                self.mandate = None;
                self.leading.send_replace(None);
            }
            (None, None) => {}
        }
        let leader = candidate.leader();
        if self.mandate.is_none() && leader != self.leader.as_deref() {
            if let Some(leader) = leader.filter(|leader| *leader != self.identity) {
                tracing::info!(identity = self.identity, leader, "standing by");
            }
            self.leader = leader.map(str::to_owned);
        }
    }
}

/// Whether the election works, so that only changes of that are logged.
#[derive(Default)]
struct Trouble(bool);

impl Trouble {
    fn tell(&mut self, problem: Option<String>) {
        match (problem, self.0) {
            (Some(error), false) => tracing::warn!(error, "can't read or write the Lease; trying again"),
            (None, true) => tracing::info!("the Lease can be read and written again"),
            (Some(_), true) | (None, false) => return,
        }
        self.0 = !self.0;
    }
}

/// Sends a request. The answer, and what is wrong if there is none.
async fn ask(api: Api<coordination::Lease>, request: Request) -> (Answer, Option<String>) {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let answer = timeout(ANSWER, async {
        match &request {
            Request::Read => api.get(NAME).await,
            Request::Create(entry) => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let object = coordination::Lease { metadata, spec: Some(spec(entry, Timestamp::now())) };
                let params = PostParams { field_manager: params.field_manager.clone(), ..PostParams::default() };
                api.create(&params, &object).await
            }
            Request::Replace(version, entry) => {
                let mut spec = json!(spec(entry, Timestamp::now()));
                if entry.holder.is_none() {
                    spec["holderIdentity"] = json!(null);
                }
                let body = json!({"metadata": {"resourceVersion": version.to_string()}, "spec": spec});
                api.patch(NAME, &params, &Patch::Merge(body)).await
            }
        }
    });
    match answer.await {
        Ok(Ok(object)) => match read(&object) {
            Some(lease) => (Answer::Lease(lease), None),
            None => (Answer::Failed, Some("what answers is no Kubernetes API: the Lease has no version".into())),
        },
        // Of a creation that says that the namespace is missing.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 && !matches!(request, Request::Create(_)) => {
            (Answer::Absent, None)
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => (Answer::Conflict, None),
        Ok(Err(error)) => (Answer::Failed, Some(error_chain(&error))),
        Err(_) => (Answer::Failed, Some(format!("the API server did not answer within {} s", ANSWER.as_secs()))),
    }
}

/// What to write. The times are for people to read, and for others to see that it changed.
fn spec(entry: &Entry, now: Timestamp) -> coordination::LeaseSpec {
    coordination::LeaseSpec {
        holder_identity: entry.holder.clone(),
        lease_duration_seconds: i32::try_from(entry.duration.as_secs()).ok(),
        lease_transitions: Some(entry.transitions),
        renew_time: Some(MicroTime(now)),
        acquire_time: entry.is_new.then_some(MicroTime(now)),
        ..coordination::LeaseSpec::default()
    }
}

/// What a Lease says; `None` if it has no version, which no API server sends.
fn read(object: &coordination::Lease) -> Option<Lease> {
    let spec = object.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Some(Lease {
        version: observe::source::version(&object.metadata)?,
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: seconds.map_or(Timing::USUAL.duration, Duration::from_secs),
        transitions: spec.lease_transitions.unwrap_or_default(),
    })
}

/// Tells what becomes of the Lease, as long as somebody listens.
async fn watch_lease(api: Api<coordination::Lease>, events: mpsc::Sender<Option<Lease>>) {
    loop {
        let began = Instant::now();
        let ended = follow(&api, &events).await;
        if events.is_closed() {
            return;
        }
        if let Err(error) = ended {
            tracing::debug!(error, "the watch of the Lease has ended");
        }
        // One that ran its time is followed by the next one at once.
        sleep(PAUSE.saturating_sub(began.elapsed())).await;
    }
}

/// Tells what the Lease is, and what one watch from there on tells.
async fn follow(api: &Api<coordination::Lease>, events: &mpsc::Sender<Option<Lease>>) -> Result<(), String> {
    const SILENCE: &str = "no answer";
    let params = WatchParams::default().fields(&format!("metadata.name={NAME}")).timeout(WATCH);
    let silence = Duration::from_secs(WATCH.into()) + GRACE;
    // A watch that begins with what there is would need no question before it, but an etcd of 3.4.31 or 3.5.13 at least.
    let object = timeout(ANSWER, api.get_opt(NAME)).await.map_err(|_| SILENCE)?.map_err(|error| error_chain(&error))?;
    // There is no version to watch from where there is none; it is created any moment.
    let Some(object) = object else { return Ok(()) };
    let version = object.metadata.resource_version.clone().unwrap_or_default();
    if events.send(read(&object)).await.is_err() {
        return Ok(());
    }
    let watch = timeout(ANSWER, api.watch(&params, &version)).await.map_err(|_| SILENCE)?;
    let mut stream = std::pin::pin!(watch.map_err(|error| error_chain(&error))?);
    loop {
        let event = timeout(silence, stream.try_next()).await.map_err(|_| SILENCE)?;
        let lease = match event.map_err(|error| error_chain(&error))? {
            None => return Ok(()),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => read(&object),
            Some(WatchEvent::Deleted(_)) => None,
            Some(WatchEvent::Bookmark(_)) => continue,
            Some(WatchEvent::Error(status)) => return Err(status.message),
        };
        if events.send(lease).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Response};
    use kube::client::Body;
    use serde_json::Value;

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/landfall-system/leases";

    /// An API server that has one Lease at most, and no watch.
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

        /// What the Lease says, without times: `None` where it says nothing.
        fn written(&self) -> (Option<String>, Option<i64>, Option<i64>) {
            let state = self.0.lock().expect("no panic");
            let spec = &state.1.as_ref().expect("a Lease")["spec"];
            assert!(spec["renewTime"].is_string() && spec["acquireTime"].is_string(), "{spec}");
            // The name of the holder, without what is random.
            let holder = spec["holderIdentity"].as_str().and_then(|holder| holder.split('_').next());
            (holder.map(str::to_owned), spec["leaseDurationSeconds"].as_i64(), spec["leaseTransitions"].as_i64())
        }

        fn start(&self, name: &str) -> (JoinSet<()>, oneshot::Sender<()>, watch::Receiver<Option<Mandate>>) {
            let election = Election { namespace: "landfall-system".into() };
            let (leading, led) = watch::channel(None);
            let (resign, resigned) = oneshot::channel();
            let mut tasks = JoinSet::new();
            tasks.spawn(elect(self.client(), election, name.into(), leading, resigned));
            (tasks, resign, led)
        }
    }

    async fn wait(led: &mut watch::Receiver<Option<Mandate>>, leads: bool) -> Option<Mandate> {
        let changed = led.wait_for(|mandate| mandate.is_some() == leads);
        timeout(Duration::from_secs(60), changed).await.expect("in time").expect("the election goes on").clone()
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_leads_when_the_first_has_resigned() {
        let server = Server::default();
        let (mut one, resign, mut led) = server.start("one");
        let mandate = wait(&mut led, true).await.expect("a mandate");
        assert_eq!(server.written(), (Some("one".into()), Some(6), Some(0)));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(mandate.check(), Ok(()), "it is renewed");

        resign.send(()).expect("it listens");
        assert!(one.join_next().await.is_some_and(|ended| ended.is_ok()), "it ends by itself");
        assert_eq!((mandate.check(), server.written()), (Err(Deposed), (None, Some(6), Some(0))));
        let began = Instant::now();
        let (_other, _resign, mut other) = server.start("other");
        wait(&mut other, true).await;
        assert!(began.elapsed() < Duration::from_secs(1), "after {:?}", began.elapsed());
        assert_eq!(server.written(), (Some("other".into()), Some(6), Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_heard_of_any_more_is_followed_and_may_not_write() {
        let server = Server::default();
        let (mut one, _resign, mut led) = server.start("one");
        let mandate = wait(&mut led, true).await.expect("a mandate");
        one.abort_all();
        assert!(one.join_next().await.is_some());
        // As if it had been stopped there: its mandate knows the time by itself.
        assert_eq!(mandate.check(), Ok(()));
        let (_other, _resign, mut other) = server.start("other");
        wait(&mut other, true).await;
        assert_eq!((mandate.check(), server.written().0), (Err(Deposed), Some("other".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_robbed_of_the_lease_stops_and_waits() {
        let server = Server::default();
        let (_one, _resign, mut led) = server.start("one");
        let mandate = wait(&mut led, true).await.expect("a mandate");
        server.answer(
            &Method::PATCH,
            PATH,
            None,
            br#"{"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "robber"}}"#,
        );
        wait(&mut led, false).await;
        assert_eq!(mandate.check(), Err(Deposed));
        let anew = wait(&mut led, true).await.expect("a mandate");
        assert_eq!((anew.check(), mandate.check()), (Ok(()), Err(Deposed)), "what began before stays over");
    }
}
