//! Doing what was planned: one series of effects after the other's beginning, each effect after the one before.
//!
//! What the API server answers goes into the stores at once, so that the next plan sees its own writes. Every write is
//! conditional: a create on nobody having the address, a deletion on the record's UID, a patch on the version that was
//! looked at. So a write that comes late, or twice, or from a controller that was deposed meanwhile, changes nothing; and
//! an answer that got lost is found out by the next plan. Cancel safe for the same reason. And each write, when it is sent,
//! asks the mandate whether we lead still: a process that was stopped in the middle of a series writes nothing when it goes
//! on.

use std::net::IpAddr;
use std::time::Duration;

use crds::{IPAddressPool, LoadBalancerIP, ResourceVersion, address};
use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::apply::election::{Deposed, Mandate};
use crate::metrics::{Metrics, Outcome, Write};
use crate::plan::effect::{AddressPatch, Effect, Event, PoolPatch, Series, ServicePatch, load_balancer_ip};
use crate::state::stores::Stores;

/// For how long the API server is to answer one request. (Its own limit is 60 s, and its admission webhooks' 10 s.)
const ANSWER: Duration = Duration::from_secs(15);

/// Who we are in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-controller";

/// What applies effects.
#[derive(Clone)]
pub(crate) struct Applier {
    pub(crate) client: Client,
    pub(crate) stores: Stores,
    /// The right to write.
    pub(crate) mandate: Mandate,
    /// Where writes are counted.
    pub(crate) metrics: Metrics,
    /// Where events go. They are told as far as there is time for it.
    pub(crate) events: mpsc::Sender<Event>,
}

/// How far a series came without failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// To its end.
    Done,
    /// To a deletion that waits for somebody's finalizer, or an object that is gone. Other events lead on from there.
    Waits,
}

/// Why a series came to an end too early. What came before has happened; the rest is planned anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Somebody else has the address. Nothing changed.
    #[error("{0} is taken")]
    Taken(IpAddr),
    /// The object is not any more what it was when it was looked at. Nothing changed.
    #[error("it was changed meanwhile")]
    Changed,
    /// We don't lead any more. Nothing changed.
    #[error(transparent)]
    Deposed(#[from] Deposed),
    /// The API server did not answer. Nobody knows whether something changed.
    #[error("the API server did not answer within {} s", ANSWER.as_secs())]
    Silent,
    /// The API server refused, or can't be reached.
    #[error("{what} failed")]
    Refused {
        /// What was tried.
        what: &'static str,
        #[source]
        source: kube::Error,
    },
}

impl Failure {
    /// Whether it is of the kind that happens when somebody else writes too, and no fault.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Taken(_) | Self::Changed | Self::Deposed(_))
    }
}

impl Applier {
    /// Does the effects in their order, up to the first that fails.
    pub(crate) async fn apply(&self, series: &Series) -> Result<Progress, Failure> {
        for effect in &series.effects {
            let progress = match effect {
                Effect::Create { address, pool, holder, sharing_key } => {
                    let object = load_balancer_ip(*address, pool, holder, sharing_key.as_deref());
                    self.create(&object, *address).await?
                }
                Effect::PatchAddress(patch) => self.patch_address(patch).await?,
                Effect::Delete { address, uid, resource_version } => {
                    self.delete(*address, uid, *resource_version).await?
                }
                Effect::PatchService(patch) | Effect::TellService(patch) => self.patch_service(patch).await?,
                Effect::PatchPool(patch) => self.patch_pool(patch).await?,
                Effect::Event(event) => self.tell(event),
            };
            if progress == Progress::Waits {
                return Ok(Progress::Waits);
            }
        }
        Ok(Progress::Done)
    }

    async fn create(&self, object: &LoadBalancerIP, lb_ip: IpAddr) -> Result<Progress, Failure> {
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        match self.write(Write::CreateAddress, api.create(&params, object)).await {
            Ok(created) => {
                self.stores.put_address(&created);
                let holder = created.spec.services.first();
                let (namespace, service) = holder.map(|h| (h.namespace.as_str(), h.name.as_str())).unzip();
                tracing::info!(%lb_ip, pool = created.spec.pool, namespace, service, "allocated");
                Ok(Progress::Done)
            }
            Err(failure) if failure.code() == Some(409) => {
                // Or we have it: the answer to an earlier try may have got lost.
                let there = answer("reading a LoadBalancerIP", api.get_opt(&address::object_name(lb_ip))).await?;
                let Some(there) = there else { return Err(Failure::Taken(lb_ip)) };
                self.stores.put_address(&there);
                let is_ours =
                    there.spec.services == object.spec.services && there.metadata.deletion_timestamp.is_none();
                if is_ours { Ok(Progress::Done) } else { Err(Failure::Taken(lb_ip)) }
            }
            Err(failure) => Err(failure),
        }
    }

    async fn delete(
        &self,
        lb_ip: IpAddr,
        uid: &str,
        resource_version: Option<ResourceVersion>,
    ) -> Result<Progress, Failure> {
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let preconditions = Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: resource_version.map(|version| version.to_string()),
        });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.write(Write::DeleteAddress, api.delete(&address::object_name(lb_ip), &params)).await {
            Ok(deleted) => {
                if let Some(waiting) = deleted.left().filter(has_finalizers) {
                    self.stores.put_address(&waiting);
                    return Ok(Progress::Waits);
                }
                tracing::info!(%lb_ip, "withdrawn");
            }
            // Somebody came to it meanwhile, or it is gone.
            Err(failure) if failure.code() == Some(409) && resource_version.is_some() => {
                if let Some(there) =
                    answer("reading a LoadBalancerIP", api.get_opt(&address::object_name(lb_ip))).await?
                {
                    self.stores.put_address(&there);
                }
                return Err(Failure::Changed);
            }
            // It is gone, or gone and somebody else's by now.
            Err(failure) if matches!(failure.code(), Some(404 | 409)) => {}
            Err(failure) => return Err(failure),
        }
        self.stores.forget_address(lb_ip, uid);
        Ok(Progress::Done)
    }

    async fn patch_address(&self, patch: &AddressPatch) -> Result<Progress, Failure> {
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let (lb_ip, name) = (patch.address, address::object_name(patch.address));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let body = Patch::Merge(patch.body());
        match self.write(Write::PatchAddress, api.patch(&name, &params, &body)).await {
            Ok(object) => {
                self.stores.put_address(&object);
                let services = patch.holders.len();
                tracing::info!(%lb_ip, services, key = patch.sharing_key.as_deref(), "its holders changed");
                Ok(Progress::Done)
            }
            Err(failure) if failure.code() == Some(404) => Ok(Progress::Waits),
            Err(failure) if failure.code() == Some(409) => {
                if let Some(there) = answer("reading a LoadBalancerIP", api.get_opt(&name)).await? {
                    self.stores.put_address(&there);
                }
                Err(Failure::Changed)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn patch_service(&self, patch: &ServicePatch) -> Result<Progress, Failure> {
        let api = Api::<core::Service>::namespaced(self.client.clone(), &patch.key.namespace);
        match self.patch(Write::PatchService, &api, &patch.key.name, patch.body()).await {
            Ok(service) => {
                self.stores.put_service(&service);
                Ok(Progress::Done)
            }
            Err(failure) if failure.code() == Some(404) => Ok(Progress::Waits),
            Err(failure) if failure.code() == Some(409) => {
                if let Some(service) = answer("reading a Service", api.get_opt(&patch.key.name)).await? {
                    self.stores.put_service(&service);
                }
                Err(Failure::Changed)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn patch_pool(&self, patch: &PoolPatch) -> Result<Progress, Failure> {
        let api = Api::<IPAddressPool>::all(self.client.clone());
        match self.patch(Write::PatchPool, &api, &patch.name, patch.body()).await {
            Ok(pool) => {
                self.stores.put_pool(&pool);
                Ok(Progress::Done)
            }
            Err(failure) if failure.code() == Some(404) => Ok(Progress::Waits),
            Err(failure) if failure.code() == Some(409) => {
                if let Some(pool) = answer("reading an IPAddressPool", api.get_opt(&patch.name)).await? {
                    self.stores.put_pool(&pool);
                }
                Err(Failure::Changed)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn patch<K>(&self, kind: Write, api: &Api<K>, name: &str, body: Value) -> Result<K, Failure>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.write(kind, api.patch_status(name, &params, &Patch::Merge(body))).await
    }

    /// Sends a write, if we lead.
    async fn write<T>(&self, kind: Write, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        if let Err(deposed) = self.mandate.check() {
            self.metrics.wrote(kind, Outcome::Deposed);
            return Err(deposed.into());
        }
        let answer = answer(what(kind), request).await;
        self.metrics.wrote(kind, answer.as_ref().map_or_else(Failure::outcome, |_| Outcome::Ok));
        answer
    }

    pub(crate) fn tell(&self, event: &Event) -> Progress {
        let regarding = &event.regarding;
        let (kind, namespace, name) = (&regarding.kind, &regarding.namespace, &regarding.name);
        if event.is_warning {
            tracing::warn!(kind, namespace, name, reason = event.reason, "{}", event.message);
        }
        // Full: the API server is slow to take events. Those on conditions stay readable there.
        if self.events.try_send(event.clone()).is_err() {
            tracing::debug!(kind, namespace, name, reason = event.reason, "an event is dropped: too many at once");
        }
        Progress::Done
    }
}

fn has_finalizers(object: &LoadBalancerIP) -> bool {
    object.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
}

/// What is said of a write that failed.
fn what(kind: Write) -> &'static str {
    match kind {
        Write::CreateAddress => "creating its LoadBalancerIP",
        Write::DeleteAddress => "deleting its LoadBalancerIP",
        Write::PatchAddress => "writing a LoadBalancerIP",
        Write::PatchService | Write::PatchPool => "writing its status",
        Write::CreateEvent => "creating an event",
    }
}

async fn answer<T>(what: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let answer = timeout(ANSWER, request).await.map_err(|_| Failure::Silent)?;
    answer.map_err(|source| Failure::Refused { what, source })
}

impl Failure {
    /// How the write went that failed so.
    fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { source, .. } => Outcome::of(source),
            Self::Deposed(_) => Outcome::Deposed,
            Self::Taken(_) | Self::Changed => Outcome::Conflict,
            Self::Silent => Outcome::Unanswered,
        }
    }

    /// The HTTP status that the API server refused with.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{holder, ip};
    use crate::plan::effect::Subject;
    use crds::{Key, Service};
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    /// Applies one series against an API server that gives these answers in turn, and then none. Returns how that ended, what
    /// the server was asked, and what is known then.
    async fn applied(
        effects: Vec<Effect>,
        answers: Vec<(u16, Value)>,
    ) -> (Result<Progress, String>, Vec<String>, Stores) {
        applied_under(Mandate::unlimited(), Duration::ZERO, effects, answers).await
    }

    /// As above, with that mandate, and each answer after that time.
    async fn applied_under(
        mandate: Mandate,
        delay: Duration,
        effects: Vec<Effect>,
        answers: Vec<(u16, Value)>,
    ) -> (Result<Progress, String>, Vec<String>, Stores) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let log = asked.clone();
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
        stores.put_address(&serde_json::from_value(address("192.0.2.9", "a9", "web")).expect("a LoadBalancerIP"));
        let (events, _) = mpsc::channel(1);
        let (client, metrics) = (Client::new(service, "default"), Metrics::default());
        let applier = Applier { client, stores: stores.clone(), mandate, metrics, events };
        let series = Series { subject: Subject::Service(Key::new("default", "web")), effects };
        let result = applier.apply(&series).await.map_err(|failure| failure.to_string());
        let asked = asked.lock().expect("no panic").clone();
        (result, asked, stores)
    }

    fn create() -> Effect {
        Effect::Create { address: ip("192.0.2.1"), pool: "lan".into(), holder: holder("web"), sharing_key: None }
    }

    fn delete() -> Effect {
        Effect::Delete { address: ip("192.0.2.9"), uid: "a9".into(), resource_version: None }
    }

    fn delete_this_version() -> Effect {
        Effect::Delete { address: ip("192.0.2.9"), uid: "a9".into(), resource_version: Some(5) }
    }

    fn join() -> Effect {
        Effect::PatchAddress(AddressPatch {
            address: ip("192.0.2.9"),
            resource_version: 5,
            holders: vec![holder("web"), holder("other")],
            sharing_key: Some("k".into()),
            pool: None,
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

    fn address(address: &str, uid: &str, service: &str) -> Value {
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
        let known = stores.addresses.snapshot().expect("synced");
        known.values().map(|record| (record.address.to_string(), record.holders[0].name.to_string())).collect()
    }

    const LBIPS: &str = "/apis/landfall.dev/v1alpha1/loadbalancerips";
    const STATUS: &str = "PATCH /api/v1/namespaces/default/services/web/status";

    #[tokio::test]
    async fn answers_are_known_at_once() {
        let answers = vec![(201, address("192.0.2.1", "a1", "web")), (200, service("8"))];
        let (result, asked, stores) = applied(vec![create(), patch()], answers).await;
        assert_eq!((result, asked), (Ok(Progress::Done), vec![format!("POST {LBIPS}"), STATUS.into()]));
        assert_eq!(holders(&stores), [("192.0.2.1".into(), "web".into()), ("192.0.2.9".into(), "web".into())]);
        let version = |service: Arc<Service>| service.resource_version;
        assert_eq!(stores.services.get(&Key::new("default", "web")).map(version), Some(8));
    }

    #[tokio::test]
    async fn an_address_that_somebody_took_first_is_theirs_and_is_known_to_be() {
        let answers = vec![refusal(409, "AlreadyExists"), (200, address("192.0.2.1", "a1", "other"))];
        let (result, asked, stores) = applied(vec![create(), patch()], answers).await;
        assert_eq!(result, Err("192.0.2.1 is taken".into()));
        assert_eq!(asked, [format!("POST {LBIPS}"), format!("GET {LBIPS}/192.0.2.1")]);
        assert_eq!(holders(&stores)[0], ("192.0.2.1".into(), "other".into()));
    }

    #[tokio::test]
    async fn an_address_that_we_took_before_the_answer_got_lost_is_ours() {
        let answers =
            vec![refusal(409, "AlreadyExists"), (200, address("192.0.2.1", "a1", "web")), (200, service("8"))];
        let (result, asked, _) = applied(vec![create(), patch()], answers).await;
        assert_eq!((result, asked.len()), (Ok(Progress::Done), 3));
    }

    #[tokio::test]
    async fn an_address_that_is_free_again_when_we_look_is_left_to_the_next_plan() {
        let answers = vec![refusal(409, "AlreadyExists"), refusal(404, "NotFound")];
        let (result, ..) = applied(vec![create(), patch()], answers).await;
        assert_eq!(result, Err("192.0.2.1 is taken".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_ends_the_series() {
        let (result, asked, _) = applied(vec![create(), patch()], vec![]).await;
        assert_eq!(result, Err("the API server did not answer within 15 s".into()));
        assert_eq!(asked, [format!("POST {LBIPS}")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_ends_where_another_may_lead() {
        let answers = || vec![(201, address("192.0.2.1", "a1", "web")), (200, service("8"))];
        let second = Duration::from_secs(1);
        for (lasts, asked) in [(3 * second, 2), (2 * second, 2), (second, 1), (Duration::ZERO, 0)] {
            let mandate = Mandate::until(tokio::time::Instant::now() + lasts);
            let (result, sent, stores) = applied_under(mandate, second, vec![create(), patch()], answers()).await;
            let deposed = "another controller may lead by now".to_owned();
            let done = if asked == 2 { Ok(Progress::Done) } else { Err(deposed) };
            assert_eq!((result, sent.len()), (done, asked), "a mandate of {lasts:?}");
            assert_eq!(holders(&stores).len(), if asked > 0 { 2 } else { 1 }, "what was answered is known");
        }
    }

    #[tokio::test]
    async fn what_is_withdrawn_already_or_somebody_elses_by_now_is_withdrawn() {
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
        for answer in [(200, gone), refusal(404, "NotFound"), refusal(409, "Conflict")] {
            let (result, asked, stores) = applied(vec![delete(), patch()], vec![answer, (200, service("8"))]).await;
            assert_eq!(result, Ok(Progress::Done));
            assert_eq!(asked, [format!("DELETE {LBIPS}/192.0.2.9"), STATUS.into()]);
            assert_eq!(holders(&stores), []);
        }
    }

    #[tokio::test]
    async fn an_address_that_somebody_came_to_meanwhile_is_not_withdrawn() {
        let mut there = address("192.0.2.9", "a9", "other");
        there["metadata"]["resourceVersion"] = json!("6");
        let answers = vec![refusal(409, "Conflict"), (200, there)];
        let (result, asked, stores) = applied(vec![delete_this_version(), patch()], answers).await;
        assert_eq!(result, Err("it was changed meanwhile".into()));
        assert_eq!(asked, [format!("DELETE {LBIPS}/192.0.2.9"), format!("GET {LBIPS}/192.0.2.9")]);
        assert_eq!(holders(&stores), [("192.0.2.9".into(), "other".into())]);
    }

    #[tokio::test]
    async fn who_comes_to_an_address_is_known_at_once_and_a_conflict_is_read_anew() {
        let joined = |version: &str| {
            let mut object = address("192.0.2.9", "a9", "joined");
            object["metadata"]["resourceVersion"] = json!(version);
            object
        };
        let patch = format!("PATCH {LBIPS}/192.0.2.9");
        for (answers, expected, requests) in [
            (vec![(200, joined("6"))], Ok(Progress::Done), vec![patch.clone()]),
            (
                vec![refusal(409, "Conflict"), (200, joined("7"))],
                Err("it was changed meanwhile".to_owned()),
                vec![patch.clone(), format!("GET {LBIPS}/192.0.2.9")],
            ),
        ] {
            let (result, asked, stores) = applied(vec![join()], answers).await;
            assert_eq!((result, asked), (expected, requests));
            assert_eq!(holders(&stores), [("192.0.2.9".into(), "joined".into())]);
        }
        let (result, ..) = applied(vec![join(), delete()], vec![refusal(404, "NotFound")]).await;
        assert_eq!(result, Ok(Progress::Waits));
    }

    #[tokio::test]
    async fn a_withdrawal_that_waits_for_a_finalizer_is_waited_for() {
        let mut waiting = address("192.0.2.9", "a9", "web");
        waiting["metadata"]["finalizers"] = json!(["example.com/wait"]);
        waiting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        waiting["metadata"]["resourceVersion"] = json!("6");
        let (result, asked, stores) = applied(vec![delete(), patch()], vec![(200, waiting)]).await;
        assert_eq!((result, asked.len()), (Ok(Progress::Waits), 1));
        assert_eq!(stores.addresses.get(&ip("192.0.2.9")).map(|record| record.deleting), Some(true));
    }

    #[tokio::test]
    async fn a_service_that_changed_meanwhile_is_read_anew() {
        let answers = vec![refusal(409, "Conflict"), (200, service("9"))];
        let (result, asked, stores) = applied(vec![patch()], answers).await;
        assert_eq!(result, Err("it was changed meanwhile".into()));
        assert_eq!(asked, [STATUS, "GET /api/v1/namespaces/default/services/web"]);
        let version = |service: Arc<Service>| service.resource_version;
        assert_eq!(stores.services.get(&Key::new("default", "web")).map(version), Some(9));
    }

    #[tokio::test]
    async fn a_service_that_is_gone_needs_nothing_more() {
        let (result, ..) = applied(vec![patch(), create()], vec![refusal(404, "NotFound")]).await;
        assert_eq!(result, Ok(Progress::Waits));
    }
}
