//! The application of a series: each effect after the one before.
//!
//! Answers of the API server are stored at once, so that the next plan sees the writes of the last one.
//!
//! Every write is conditional: a creation on the absence of the record, any other write on the version that was
//! read. So a write that arrives late, twice, or from a former lease holder overwrites no other write, and the
//! next plan recovers a lost answer. For the same reason, the application of a series is cancel safe.
//!
//! Each write is checked against the write fence when it is sent. So a process that resumes in the middle of a series
//! writes nothing if another controller may hold the Lease by then.

use std::fmt::Debug;
use std::net::IpAddr;

use crds::service::CONTROLLER_MANAGER;
use crds::{IPAddressPool, LoadBalancerIP, ResourceVersion, address};
use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::apply::election::WriteFence;
use crate::apply::failure::{ANSWER_TIMEOUT, Failure};
use crate::metrics::{Metrics, Outcome, Write};
use crate::plan::effect::{Effect, Event, PoolPatch, RecordPatch, Series, ServicePatch, load_balancer_ip};
use crate::state::stores::Stores;

/// Applies series.
#[derive(Clone)]
pub(crate) struct Applier {
    pub(crate) client: Client,
    pub(crate) stores: Stores,
    pub(crate) fence: WriteFence,
    pub(crate) metrics: Metrics,
    /// Events are dropped if the channel is full.
    pub(crate) event_tx: mpsc::Sender<Event>,
}

/// How a series ended without failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All effects have happened.
    Done,
    /// A deletion waits for a finalizer, or an object no longer exists. The next observation of the object leads to a
    /// new plan.
    Waiting,
}

impl Applier {
    /// Applies the effects in order, up to the first failure. Returns how many of them have happened, too.
    pub(crate) async fn apply(&self, series: &Series) -> (usize, Result<Progress, Failure>) {
        for (done, effect) in series.effects.iter().enumerate() {
            let result = self.apply_effect(effect).await;
            if !matches!(result, Ok(Progress::Done)) {
                return (done, result);
            }
        }
        (series.effects.len(), Ok(Progress::Done))
    }

    async fn apply_effect(&self, effect: &Effect) -> Result<Progress, Failure> {
        match effect {
            Effect::Create { lb_ip, pool, holder, sharing_key } => {
                let object = load_balancer_ip(*lb_ip, pool, holder, sharing_key.as_deref());
                self.create(&object, *lb_ip).await
            }
            Effect::PatchRecord(patch) => self.patch_record(patch).await,
            Effect::Delete { lb_ip, uid, resource_version } => self.delete(*lb_ip, uid, *resource_version).await,
            Effect::PatchService(patch) | Effect::PatchConditions(patch) | Effect::ReportRefusal(patch) => {
                self.patch_service(patch).await
            }
            Effect::PatchPool(patch) => self.patch_pool(patch).await,
            Effect::Event(event) => Ok(self.emit_event(event)),
        }
    }

    async fn create(&self, object: &LoadBalancerIP, lb_ip: IpAddr) -> Result<Progress, Failure> {
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let params = PostParams { field_manager: Some(CONTROLLER_MANAGER.into()), ..PostParams::default() };
        match self.write(Write::CreateRecord, api.create(&params, object)).await {
            Ok(created) => {
                self.stores.put_record(&created);
                let holder = created.spec.services.first();
                let (namespace, service) = holder.map(|h| (h.namespace.as_str(), h.name.as_str())).unzip();
                tracing::info!(%lb_ip, pool = created.spec.pool, namespace, service, "allocated");
                Ok(Progress::Done)
            }
            Err(failure) if failure.code() == Some(409) => {
                // The record may be ours, if the answer to an earlier attempt was lost.
                let existing = read_again(&api, &address::object_name(lb_ip)).await?;
                let Some(existing) = existing else { return Err(Failure::Taken(lb_ip)) };
                self.stores.put_record(&existing);
                let is_ours =
                    existing.spec.services == object.spec.services && existing.metadata.deletion_timestamp.is_none();
                if is_ours { Ok(Progress::Done) } else { Err(Failure::Taken(lb_ip)) }
            }
            Err(failure) => Err(failure),
        }
    }

    async fn delete(&self, lb_ip: IpAddr, uid: &str, version: ResourceVersion) -> Result<Progress, Failure> {
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let name = address::object_name(lb_ip);
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: Some(version.to_string()) };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.write(Write::DeleteRecord, api.delete(&name, &params)).await {
            Ok(deleted) => {
                if let Some(waiting) = deleted.left().filter(has_finalizers) {
                    self.stores.put_record(&waiting);
                    return Ok(Progress::Waiting);
                }
                tracing::info!(%lb_ip, "withdrawn");
            }
            Err(failure) if failure.code() == Some(409) => {
                let current = read_again(&api, &name).await?;
                current.iter().for_each(|current| self.stores.put_record(current));
                // The record has another version, for example because a Service has joined it. Otherwise it no longer
                // exists, or another one has replaced it.
                if current.is_some_and(|current| current.metadata.uid.as_deref() == Some(uid)) {
                    return Err(Failure::Changed);
                }
            }
            Err(failure) if failure.code() == Some(404) => {}
            Err(failure) => return Err(failure),
        }
        self.stores.records.forget(&lb_ip, uid);
        Ok(Progress::Done)
    }

    async fn patch_record(&self, patch: &RecordPatch) -> Result<Progress, Failure> {
        let (lb_ip, name) = (patch.lb_ip, address::object_name(patch.lb_ip));
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let body = Patch::Merge(patch.body());
        let answer = self.write(Write::PatchRecord, api.patch(&name, &patch_params(), &body)).await;
        if answer.is_ok() {
            let services = patch.holders.len();
            tracing::info!(%lb_ip, services, key = patch.sharing_key.as_deref(), "holders changed");
        }
        store_answer(answer, &api, &name, |object| self.stores.put_record(object)).await
    }

    async fn patch_service(&self, patch: &ServicePatch) -> Result<Progress, Failure> {
        let name = &patch.key.name;
        let api = Api::<core::Service>::namespaced(self.client.clone(), &patch.key.namespace);
        let body = Patch::Merge(patch.body());
        let answer = self.write(Write::PatchService, api.patch_status(name, &patch_params(), &body)).await;
        store_answer(answer, &api, name, |object| self.stores.put_service(object)).await
    }

    async fn patch_pool(&self, patch: &PoolPatch) -> Result<Progress, Failure> {
        let api = Api::<IPAddressPool>::all(self.client.clone());
        let body = Patch::Merge(patch.body());
        let answer = self.write(Write::PatchPool, api.patch_status(&patch.name, &patch_params(), &body)).await;
        store_answer(answer, &api, &patch.name, |object| self.stores.put_pool(object)).await
    }

    /// Sends a write, if the fence permits it.
    async fn write<T>(&self, kind: Write, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        if let Err(deposed) = self.fence.check() {
            self.metrics.count_write(kind, Outcome::Deposed);
            return Err(deposed.into());
        }
        let answer = answer(action(kind), request).await;
        self.metrics.count_write(kind, answer.as_ref().map_or_else(Failure::outcome, |_| Outcome::Ok));
        answer
    }

    /// Logs a warning, and queues the event.
    pub(crate) fn emit_event(&self, event: &Event) -> Progress {
        let regarding = &event.regarding;
        let (kind, namespace, name) = (&regarding.kind, &regarding.namespace, &regarding.name);
        if event.is_warning {
            tracing::warn!(kind, namespace, name, reason = event.reason, "{}", event.message);
        }
        // The channel is full if the API server is slow. The conditions contain the same messages.
        if self.event_tx.try_send(event.clone()).is_err() {
            tracing::debug!(kind, namespace, name, reason = event.reason, "event dropped: the channel is full");
        }
        Progress::Done
    }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(CONTROLLER_MANAGER.into()), ..PatchParams::default() }
}

/// Stores the answer to a patch. If another writer has changed the object, reads and stores the current one.
async fn store_answer<K>(
    answer: Result<K, Failure>,
    api: &Api<K>,
    name: &str,
    put: impl Fn(&K),
) -> Result<Progress, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    match answer {
        Ok(object) => {
            put(&object);
            Ok(Progress::Done)
        }
        Err(failure) if failure.code() == Some(404) => Ok(Progress::Waiting),
        Err(failure) if failure.code() == Some(409) => {
            read_again(api, name).await?.iter().for_each(put);
            Err(Failure::Changed)
        }
        Err(failure) => Err(failure),
    }
}

/// Reads an object after a conflict. `None`: it does not exist.
async fn read_again<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    answer("reading the object again", api.get_opt(name)).await
}

fn has_finalizers(object: &LoadBalancerIP) -> bool {
    object.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
}

/// The name of a write in the message of its failure.
fn action(kind: Write) -> &'static str {
    match kind {
        Write::CreateRecord => "creating its LoadBalancerIP",
        Write::DeleteRecord => "deleting its LoadBalancerIP",
        Write::PatchRecord => "writing a LoadBalancerIP",
        Write::PatchService | Write::PatchPool => "writing its status",
        Write::CreateEvent => "creating an event",
    }
}

/// Waits for the answer to a request.
async fn answer<T>(action: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let answer = timeout(ANSWER_TIMEOUT, request).await.map_err(|_| Failure::Unanswered)?;
    answer.map_err(|source| Failure::Refused { action, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{holder, ip};
    use crate::plan::effect::Subject;
    use crds::condition::MAX_MESSAGE;
    use crds::{Key, Service};
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// Applies one series against an API server that sends these answers in order, and then stops answering. Returns
    /// the result, the requests, and the stores.
    async fn apply(
        effects: Vec<Effect>,
        answers: Vec<(u16, Value)>,
    ) -> (Result<Progress, String>, Vec<String>, Stores) {
        apply_fenced(WriteFence::without_end(), Duration::ZERO, effects, answers).await
    }

    /// Same, with this fence, and a delay before each answer.
    async fn apply_fenced(
        fence: WriteFence,
        delay: Duration,
        effects: Vec<Effect>,
        answers: Vec<(u16, Value)>,
    ) -> (Result<Progress, String>, Vec<String>, Stores) {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let log = requests.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            log.lock().expect("no panic").push(format!("{} {path}", request.method()));
            let answer = answers.lock().expect("no panic").pop_front();
            async move {
                let Some((code, body)) = answer else { return std::future::pending().await };
                tokio::time::sleep(delay).await;
                Response::builder().status(code).body(Body::from(body.to_string().into_bytes()))
            }
        });
        let stores = Stores::empty();
        stores.put_record(&serde_json::from_value(record("192.0.2.9", "a9", "web")).expect("a LoadBalancerIP"));
        let (event_tx, _) = mpsc::channel(1);
        let (client, metrics) = (Client::new(service, "default"), Metrics::default());
        let applier = Applier { client, stores: stores.clone(), fence, metrics, event_tx };
        let series = Series { subject: Subject::Service(Key::new("default", "web")), effects };
        let (_, result) = applier.apply(&series).await;
        let result = result.map_err(|failure| failure.to_string());
        let requests = requests.lock().expect("no panic").clone();
        (result, requests, stores)
    }

    fn create() -> Effect {
        Effect::Create { lb_ip: ip("192.0.2.1"), pool: "lan".into(), holder: holder("web"), sharing_key: None }
    }

    fn delete() -> Effect {
        Effect::Delete { lb_ip: ip("192.0.2.9"), uid: "a9".into(), resource_version: 5 }
    }

    fn join() -> Effect {
        Effect::PatchRecord(RecordPatch {
            lb_ip: ip("192.0.2.9"),
            resource_version: 5,
            holders: vec![holder("web"), holder("other")],
            sharing_key: Some("k".into()),
            pool: None,
            changes_only_pool: false,
            becomes_reservation: false,
            quarantine: None,
        })
    }

    fn patch() -> Effect {
        Effect::PatchService(ServicePatch {
            key: Key::new("default", "web"),
            resource_version: 7,
            finalizers: Some(vec![]),
            ingress: None,
            conditions: None,
        })
    }

    fn record(address: &str, uid: &str, service: &str) -> Value {
        json!({
            "apiVersion": "landfall.dev/v1alpha1",
            "kind": "LoadBalancerIP",
            "metadata": {"name": address, "uid": uid, "resourceVersion": "5"},
            "spec": {
                "address": address,
                "pool": "lan",
                "services": [{"namespace": "default", "name": service, "uid": service}],
            },
        })
    }

    fn service(version: &str) -> Value {
        let metadata = json!({"namespace": "default", "name": "web", "uid": "web", "resourceVersion": version});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"type": "LoadBalancer"}})
    }

    fn refusal(code: u16, reason: &str) -> (u16, Value) {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no",
        });
        (code, status)
    }

    fn holders(stores: &Stores) -> Vec<(String, String)> {
        let known = stores.records.snapshot().expect("synced");
        known.values().map(|record| (record.address.to_string(), record.holders[0].name.to_string())).collect()
    }

    const LBIPS: &str = "/apis/landfall.dev/v1alpha1/loadbalancerips";
    const STATUS: &str = "PATCH /api/v1/namespaces/default/services/web/status";

    #[tokio::test]
    async fn answers_are_stored_at_once() {
        let answers = vec![(201, record("192.0.2.1", "a1", "web")), (200, service("8"))];
        let (result, requests, stores) = apply(vec![create(), patch()], answers).await;
        assert_eq!((result, requests), (Ok(Progress::Done), vec![format!("POST {LBIPS}"), STATUS.into()]));
        assert_eq!(holders(&stores), [("192.0.2.1".into(), "web".into()), ("192.0.2.9".into(), "web".into())]);
        let version = |service: Arc<Service>| service.resource_version;
        assert_eq!(stores.services.get(&Key::new("default", "web")).map(version), Some(8));
    }

    #[tokio::test]
    async fn record_of_another_service_fails_and_is_stored() {
        let answers = vec![refusal(409, "AlreadyExists"), (200, record("192.0.2.1", "a1", "other"))];
        let (result, requests, stores) = apply(vec![create(), patch()], answers).await;
        assert_eq!(result, Err("192.0.2.1 is taken".into()));
        assert_eq!(requests, [format!("POST {LBIPS}"), format!("GET {LBIPS}/192.0.2.1")]);
        assert_eq!(holders(&stores)[0], ("192.0.2.1".into(), "other".into()));
    }

    #[tokio::test]
    async fn own_record_after_a_lost_answer_is_a_success() {
        let answers = vec![refusal(409, "AlreadyExists"), (200, record("192.0.2.1", "a1", "web")), (200, service("8"))];
        let (result, requests, _) = apply(vec![create(), patch()], answers).await;
        assert_eq!((result, requests.len()), (Ok(Progress::Done), 3));
    }

    #[tokio::test]
    async fn deleted_record_after_a_conflict_is_a_failure() {
        let answers = vec![refusal(409, "AlreadyExists"), refusal(404, "NotFound")];
        let (result, ..) = apply(vec![create(), patch()], answers).await;
        assert_eq!(result, Err("192.0.2.1 is taken".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn missing_answer_ends_the_series() {
        let (result, requests, _) = apply(vec![create(), patch()], vec![]).await;
        assert_eq!(result, Err("the API server did not answer within 15 s".into()));
        assert_eq!(requests, [format!("POST {LBIPS}")]);
    }

    #[tokio::test(start_paused = true)]
    async fn series_ends_when_the_fence_closes() {
        let answers = || vec![(201, record("192.0.2.1", "a1", "web")), (200, service("8"))];
        let second = Duration::from_secs(1);
        for (lasts, expected) in [(3 * second, 2), (2 * second, 2), (second, 1), (Duration::ZERO, 0)] {
            let fence = WriteFence::until(tokio::time::Instant::now() + lasts);
            let (result, sent, stores) = apply_fenced(fence, second, vec![create(), patch()], answers()).await;
            let deposed = "another controller may lead by now".to_owned();
            let done = if expected == 2 { Ok(Progress::Done) } else { Err(deposed) };
            assert_eq!((result, sent.len()), (done, expected), "a fence of {lasts:?}");
            assert_eq!(holders(&stores).len(), if expected > 0 { 2 } else { 1 }, "answers are stored");
        }
    }

    #[tokio::test]
    async fn deleting_a_gone_or_reassigned_address_succeeds() {
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
        let mut next = record("192.0.2.9", "a10", "other");
        next["metadata"]["resourceVersion"] = json!("6");
        let conflict = || refusal(409, "Conflict");
        let next_holder = ("192.0.2.9".to_owned(), "other".to_owned());
        for (answers, is_read_again, left) in [
            (vec![(200, gone)], false, vec![]),
            (vec![refusal(404, "NotFound")], false, vec![]),
            (vec![conflict(), refusal(404, "NotFound")], true, vec![]),
            (vec![conflict(), (200, next)], true, vec![next_holder]),
        ] {
            let answers = answers.into_iter().chain([(200, service("8"))]).collect();
            let (result, requests, stores) = apply(vec![delete(), patch()], answers).await;
            assert_eq!(result, Ok(Progress::Done));
            let [delete, get] = ["DELETE", "GET"].map(|method| format!("{method} {LBIPS}/192.0.2.9"));
            let get = is_read_again.then_some(get);
            assert_eq!(requests, [delete].into_iter().chain(get).chain([STATUS.to_owned()]).collect::<Vec<_>>());
            assert_eq!(holders(&stores), left);
        }
    }

    #[tokio::test]
    async fn deletion_names_uid_and_version() {
        let (body_tx, mut body_rx) = mpsc::channel(1);
        let service = tower::service_fn(move |request: Request<Body>| {
            let body_tx = body_tx.clone();
            async move {
                let body = request.into_body().collect_bytes().await.expect("a body");
                body_tx.send(serde_json::from_slice::<Value>(&body).expect("JSON")).await.expect("a receiver");
                let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
                Response::builder().status(200).body(Body::from(gone.to_string().into_bytes()))
            }
        });
        let (client, stores) = (Client::new(service, "default"), Stores::empty());
        let (fence, metrics, (event_tx, _)) = (WriteFence::without_end(), Metrics::default(), mpsc::channel(1));
        let applier = Applier { client, stores, fence, metrics, event_tx };
        applier.apply_effect(&delete()).await.expect("a success");
        let body = body_rx.recv().await.expect("a request");
        assert_eq!(body["preconditions"], json!({"uid": "a9", "resourceVersion": "5"}));
    }

    #[tokio::test]
    async fn record_with_another_version_is_not_deleted() {
        let mut current = record("192.0.2.9", "a9", "other");
        current["metadata"]["resourceVersion"] = json!("6");
        let answers = vec![refusal(409, "Conflict"), (200, current)];
        let (result, requests, stores) = apply(vec![delete(), patch()], answers).await;
        assert_eq!(result, Err("another writer changed the object".into()));
        assert_eq!(requests, [format!("DELETE {LBIPS}/192.0.2.9"), format!("GET {LBIPS}/192.0.2.9")]);
        assert_eq!(holders(&stores), [("192.0.2.9".into(), "other".into())]);
    }

    #[tokio::test]
    async fn new_holders_are_stored_and_conflicts_are_read_again() {
        let joined = |version: &str| {
            let mut object = record("192.0.2.9", "a9", "joined");
            object["metadata"]["resourceVersion"] = json!(version);
            object
        };
        let patch = format!("PATCH {LBIPS}/192.0.2.9");
        for (answers, expected, expected_requests) in [
            (vec![(200, joined("6"))], Ok(Progress::Done), vec![patch.clone()]),
            (
                vec![refusal(409, "Conflict"), (200, joined("7"))],
                Err("another writer changed the object".to_owned()),
                vec![patch.clone(), format!("GET {LBIPS}/192.0.2.9")],
            ),
        ] {
            let (result, requests, stores) = apply(vec![join()], answers).await;
            assert_eq!((result, requests), (expected, expected_requests));
            assert_eq!(holders(&stores), [("192.0.2.9".into(), "joined".into())]);
        }
        let (result, ..) = apply(vec![join(), delete()], vec![refusal(404, "NotFound")]).await;
        assert_eq!(result, Ok(Progress::Waiting));
    }

    #[tokio::test]
    async fn deletion_that_waits_for_a_finalizer_ends_the_series() {
        let mut waiting = record("192.0.2.9", "a9", "web");
        waiting["metadata"]["finalizers"] = json!(["example.com/wait"]);
        waiting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        waiting["metadata"]["resourceVersion"] = json!("6");
        let (result, requests, stores) = apply(vec![delete(), patch()], vec![(200, waiting)]).await;
        assert_eq!((result, requests.len()), (Ok(Progress::Waiting), 1));
        assert_eq!(stores.records.get(&ip("192.0.2.9")).map(|record| record.deleting), Some(true));
    }

    #[tokio::test]
    async fn lasting_refusals_are_distinguished_from_transient_ones() {
        for (code, lasts) in [
            (400, true),
            (403, true),
            (422, true),
            (401, false),
            (404, false),
            (409, false),
            (429, false),
            (500, false),
            (503, false),
        ] {
            let status = kube::core::Status::failure("denied:\n  no", "Forbidden").with_code(code);
            let failure = Failure::Refused { action: "", source: kube::Error::Api(status.boxed()) };
            assert_eq!(failure.lasting_refusal(), lasts.then(|| "denied: no".to_owned()), "{code}");
        }
        let long = kube::core::Status::failure(&"ü".repeat(5000), "Invalid").with_code(422);
        let failure = Failure::Refused { action: "", source: kube::Error::Api(long.boxed()) };
        assert_eq!(failure.lasting_refusal().map(|text| text.chars().count()), Some(MAX_MESSAGE));
        assert_eq!(Failure::Unanswered.lasting_refusal(), None);
    }

    #[tokio::test]
    async fn changed_service_is_read_again() {
        let answers = vec![refusal(409, "Conflict"), (200, service("9"))];
        let (result, requests, stores) = apply(vec![patch()], answers).await;
        assert_eq!(result, Err("another writer changed the object".into()));
        assert_eq!(requests, [STATUS, "GET /api/v1/namespaces/default/services/web"]);
        let version = |service: Arc<Service>| service.resource_version;
        assert_eq!(stores.services.get(&Key::new("default", "web")).map(version), Some(9));
    }

    #[tokio::test]
    async fn missing_service_needs_no_further_effects() {
        let (result, ..) = apply(vec![patch(), create()], vec![refusal(404, "NotFound")]).await;
        assert_eq!(result, Ok(Progress::Waiting));
    }
}
