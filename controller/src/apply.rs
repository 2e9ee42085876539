//! Doing what was planned: one series of effects after the other's beginning, each effect after the one before.
//!
//! What the API server answers goes into the stores at once, so that the next plan sees its own writes. Every write is
//! conditional: a create on nobody having the address, a deletion on the record's UID, a patch on the version that was
//! looked at. So a write that comes late, or twice, or from a controller that was deposed meanwhile, changes nothing; and
//! an answer that got lost is found out by the next plan. Cancel safe for the same reason.

use std::net::IpAddr;
use std::time::Duration;

use crds::{IPAddressPool, LoadBalancerIP, address};
use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::effect::{Effect, Event, PoolPatch, Series, ServicePatch, load_balancer_ip};
use crate::stores::Stores;

/// For how long the API server is to answer one request. (Its own limit is 60 s, and its admission webhooks' 10 s.)
const ANSWER: Duration = Duration::from_secs(15);

/// Who we are in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-controller";

/// What applies effects.
#[derive(Clone)]
pub(crate) struct Applier {
    pub(crate) client: Client,
    pub(crate) stores: Stores,
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
        matches!(self, Self::Taken(_) | Self::Changed)
    }
}

impl Applier {
    /// Does the effects in their order, up to the first that fails.
    pub(crate) async fn apply(&self, series: &Series) -> Result<Progress, Failure> {
        for effect in &series.effects {
            let progress = match effect {
                Effect::Create { address, pool, holder } => {
                    self.create(&load_balancer_ip(*address, pool, holder), *address).await?
                }
                Effect::Delete { address, uid } => self.delete(*address, uid).await?,
                Effect::PatchService(patch) => self.patch_service(patch).await?,
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
        match answer("creating its LoadBalancerIP", api.create(&params, object)).await {
            Ok(created) => {
                self.stores.put_address(&created);
                let holder = created.spec.services.first();
                let (namespace, service) = holder.map(|h| (h.namespace.as_str(), h.name.as_str())).unzip();
                tracing::info!(%lb_ip, pool = created.spec.pool, namespace, service, "allocated");
                Ok(Progress::Done)
            }
            Err(failure) if failure.code() == Some(409) => {
                // Or we have it: the answer to an earlier try may have got lost.
                let there = answer("reading a LoadBalancerIP", api.get_opt(&address::name(lb_ip))).await?;
                let Some(there) = there else { return Err(Failure::Taken(lb_ip)) };
                self.stores.put_address(&there);
                let is_ours =
                    there.spec.services == object.spec.services && there.metadata.deletion_timestamp.is_none();
                if is_ours { Ok(Progress::Done) } else { Err(Failure::Taken(lb_ip)) }
            }
            Err(failure) => Err(failure),
        }
    }

    async fn delete(&self, lb_ip: IpAddr, uid: &str) -> Result<Progress, Failure> {
        let api = Api::<LoadBalancerIP>::all(self.client.clone());
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match answer("deleting its LoadBalancerIP", api.delete(&address::name(lb_ip), &params)).await {
            Ok(deleted) => {
                if let Some(waiting) = deleted.left().filter(has_finalizers) {
                    self.stores.put_address(&waiting);
                    return Ok(Progress::Waits);
                }
                tracing::info!(%lb_ip, "withdrawn");
            }
            // It is gone, or gone and somebody else's by now.
            Err(failure) if matches!(failure.code(), Some(404 | 409)) => {}
            Err(failure) => return Err(failure),
        }
        self.stores.forget_address(lb_ip, uid);
        Ok(Progress::Done)
    }

    async fn patch_service(&self, patch: &ServicePatch) -> Result<Progress, Failure> {
        let api = Api::<core::Service>::namespaced(self.client.clone(), &patch.key.namespace);
        match patched("writing its status", &api, &patch.key.name, patch.body()).await {
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
        match patched("writing its status", &api, &patch.name, patch.body()).await {
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

    fn tell(&self, event: &Event) -> Progress {
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

async fn patched<K>(what: &'static str, api: &Api<K>, name: &str, body: Value) -> Result<K, Failure>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    answer(what, api.patch_status(name, &params, &Patch::Merge(body))).await
}

async fn answer<T>(what: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let answer = timeout(ANSWER, request).await.map_err(|_| Failure::Silent)?;
    answer.map_err(|source| Failure::Refused { what, source })
}

impl Failure {
    /// The HTTP status that the API server refused with.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }
}
