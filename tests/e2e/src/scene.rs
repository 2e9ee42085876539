//! A scene: a part of a test that shares its cluster with others. It is a function whose name is a sentence. It has its
//! own namespaces and addresses, and its objects are removed when it ends. [`crate::scenes`] plays them.
//!
//! Addresses of scenes are in the ranges for benchmarks (RFC 2544) and documentation (RFC 3849). No node is in such a
//! network, so no client reaches them, although nodes announce them on the link of their InternalIP. Scenes with
//! traffic use 192.0.2.200-250.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use crds::{IPAddressPool, LoadBalancerIP};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lab::wait_until;
use observer::Fault;
use serde_json::{Value, json};

use crate::world::{SOON, World, allocated_condition, ingress};

/// The context of one scene.
pub struct Scene<'a> {
    pub world: &'a World,
    /// Selects its addresses and namespaces.
    pub(crate) number: u8,
    /// Counts repetitions: each has its own namespaces, because those of the last one may still be terminating.
    pub(crate) round: u8,
}

/// An event about a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReportedEvent {
    /// `Warning` or `Normal`.
    pub kind: String,
    /// One CamelCase word.
    pub reason: String,
    /// The message.
    pub note: String,
}

impl Scene<'_> {
    /// An IPv4 address of this scene only.
    pub fn ip(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(198, 18, self.number, last).into()
    }

    /// An IPv6 address of this scene only.
    pub fn ip6(&self, last: u16) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, last).into()
    }

    /// `first-last` of [`Scene::ip`].
    pub fn range(&self, first: u8, last: u8) -> String {
        format!("{}-{}", self.ip(first), self.ip(last))
    }

    /// `first-last` of [`Scene::ip6`].
    pub fn range6(&self, first: u16, last: u16) -> String {
        format!("{}-{}", self.ip6(first), self.ip6(last))
    }

    /// The full name of a namespace of this scene. The namespace "" always exists, others after
    /// [`Scene::create_namespace`].
    pub fn namespace_name(&self, namespace: &str) -> String {
        let dash = if namespace.is_empty() { "" } else { "-" };
        let round = if self.round == 0 { String::new() } else { format!("r{}", self.round) };
        format!("scene-{}{round}{dash}{namespace}", self.number)
    }

    /// Creates a namespace. Other functions name its Services `namespace/name`, and those of the namespace "" just
    /// `name`.
    pub async fn create_namespace(&self, namespace: &str, labels: &[(&str, &str)]) -> Result<String> {
        let name = self.namespace_name(namespace);
        let labels: BTreeMap<_, _> = labels.iter().copied().chain([("scene", "here")]).collect();
        let object = json!({"metadata": {"name": name, "labels": labels}});
        let namespaces: Api<Namespace> = Api::all(self.world.client.clone());
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await
            .context("create a namespace")?;
        Ok(name)
    }

    /// Creates a pool and waits until the controller has processed it.
    pub async fn create_pool(&self, name: &str, spec: Value) -> Result<()> {
        let object = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": name}, "spec": spec,
        });
        let object: IPAddressPool = serde_json::from_value(object)?;
        self.pool_api().create(&PostParams::default(), &object).await.with_context(|| format!("create pool {name}"))?;
        self.wait_for_pool_generation(name).await
    }

    /// Merges `spec` into the spec of a pool, and waits until the controller has processed it.
    pub async fn edit_pool(&self, name: &str, spec: Value) -> Result<()> {
        self.patch_pool(name, spec).await?;
        self.wait_for_pool_generation(name).await
    }

    /// The same without waiting, for clusters without a controller.
    pub async fn patch_pool(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.pool_api()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("edit pool {name}"))?;
        Ok(())
    }

    /// Deletes a pool.
    pub async fn delete_pool(&self, name: &str) -> Result<()> {
        self.pool_api().delete(name, &DeleteParams::default()).await.with_context(|| format!("delete pool {name}"))?;
        Ok(())
    }

    async fn wait_for_pool_generation(&self, name: &str) -> Result<()> {
        wait_until(SOON, &format!("pool {name} to be processed"), async || {
            let pool = self.pool_api().get(name).await?;
            let ready = pool_condition(&pool, "Ready")?;
            ensure!(ready.observed_generation == pool.metadata.generation, "{ready:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a pool has a condition with this status and reason. Returns its message.
    pub async fn expect_pool_condition(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
        wait_until(SOON, &format!("pool {name} to have {type_}={status} {reason}"), async || {
            let pool = self.pool_api().get(name).await?;
            let condition = pool_condition(&pool, type_)?;
            ensure!((condition.status.as_str(), condition.reason.as_str()) == (status, reason), "{condition:?}");
            Ok(condition.message.to_string())
        })
        .await
    }

    /// Waits until a pool has these counts: used and free IPv4, used and free IPv6 addresses.
    pub async fn expect_pool_counts(&self, name: &str, expected: [i64; 4]) -> Result<()> {
        wait_until(SOON, &format!("pool {name} to count {expected:?}"), async || {
            let status = self.pool_api().get(name).await?.status.context("no status yet")?;
            let counts = [status.assigned_ipv4, status.available_ipv4, status.assigned_ipv6, status.available_ipv6];
            ensure!(counts == expected, "{counts:?}");
            Ok(())
        })
        .await
    }

    /// Creates a LoadBalancer Service with TCP port 80, and merges `more` into the object.
    pub async fn create_service(&self, name: &str, more: Value) -> Result<Service> {
        let (services, name) = self.service_api(name);
        let mut object = json!({
            "metadata": {"name": name},
            "spec": {
                "type": "LoadBalancer",
                "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
            },
        });
        merge(&mut object, more);
        let object = serde_json::from_value(object).context("a Service")?;
        services.create(&PostParams::default(), &object).await.with_context(|| format!("create Service {name}"))
    }

    /// Creates a Service with these annotations.
    pub async fn create_annotated(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Service> {
        self.create_service(name, with_annotations(annotations)).await
    }

    /// Merges `patch` into a Service.
    pub async fn patch_service(&self, name: &str, patch: Value) -> Result<Service> {
        let (services, name) = self.service_api(name);
        let patch = Patch::Merge(patch);
        services.patch(name, &PatchParams::default(), &patch).await.with_context(|| format!("patch Service {name}"))
    }

    /// Sets annotations of a Service.
    pub async fn annotate(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Service> {
        self.patch_service(name, with_annotations(annotations)).await
    }

    /// Merges `patch` into the status of a Service, like another provider.
    pub async fn patch_service_status(&self, name: &str, patch: Value) -> Result<Service> {
        let (services, name) = self.service_api(name);
        let namespace = services.namespace().unwrap_or_default();
        self.world.declare(Fault::forged_status(&format!("{namespace}/{name}")));
        let patch = Patch::Merge(patch);
        services
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("patch the status of {name}"))
    }

    /// Deletes a Service and waits until it no longer exists.
    pub async fn delete_service(&self, name: &str) -> Result<()> {
        let (services, name) = self.service_api(name);
        services.delete(name, &DeleteParams::default()).await.with_context(|| format!("delete Service {name}"))?;
        self.expect_deleted(name).await
    }

    /// Waits until a Service no longer exists.
    pub async fn expect_deleted(&self, name: &str) -> Result<()> {
        let (services, name) = self.service_api(name);
        wait_until(SOON, &format!("Service {name} to be deleted"), async || {
            let left = services.get_opt(name).await?;
            ensure!(left.is_none(), "finalizers {:?}", left.map(|service| service.metadata.finalizers));
            Ok(())
        })
        .await
    }

    /// Reads a Service.
    pub async fn get_service(&self, name: &str) -> Result<Service> {
        let (services, name) = self.service_api(name);
        Ok(services.get(name).await?)
    }

    /// Waits until a Service is allocated, at its current generation, and returns its addresses.
    pub async fn wait_for_addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        wait_until(SOON, &format!("Service {name} to be allocated"), async || {
            let service = self.get_service(name).await?;
            let condition = allocated_condition(&service).context("no condition yet")?;
            ensure!(condition.status == "True", "{}: {}", condition.reason, condition.message);
            ensure!(condition.observed_generation == service.metadata.generation, "{condition:?} is out of date");
            let shown = ingress(&service);
            ensure!(!shown.is_empty(), "allocated, but without an address");
            Ok(shown)
        })
        .await
    }

    /// Waits until a Service is allocated, at its current generation, and returns its only address.
    pub async fn wait_for_address(&self, name: &str) -> Result<IpAddr> {
        let addresses = self.wait_for_addresses(name).await?;
        let [address] = addresses[..] else { bail!("{name} has {addresses:?}") };
        Ok(address)
    }

    /// Waits until a Service has exactly these addresses, in its status and in the records, with the reason
    /// `Allocated`.
    pub async fn expect_addresses(&self, name: &str, expected: &[IpAddr]) -> Result<()> {
        self.expect_addresses_with(name, expected, "Allocated").await
    }

    /// The same, with another reason in the condition.
    pub async fn expect_addresses_with(&self, name: &str, expected: &[IpAddr], reason: &str) -> Result<()> {
        wait_until(SOON, &format!("Service {name} to have {expected:?}, {reason}"), async || {
            let service = self.get_service(name).await?;
            let condition = allocated_condition(&service).context("no condition yet")?;
            let state = (condition.status.as_str(), condition.reason.as_str());
            ensure!(state == ("True", reason), "{}: {}", condition.reason, condition.message);
            ensure!(ingress(&service) == expected, "shows {:?}", ingress(&service));
            let held = self.held_addresses(&service).await?;
            ensure!(held == expected.iter().copied().collect(), "holds {held:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a Service is refused for this reason and has no address. Returns the message.
    pub async fn expect_refusal(&self, name: &str, reason: &str) -> Result<String> {
        self.expect_refusal_with(name, reason, &[]).await
    }

    /// Waits until a Service is refused for this reason and keeps these addresses. Returns the message.
    pub async fn expect_refusal_with(&self, name: &str, reason: &str, keeps: &[IpAddr]) -> Result<String> {
        wait_until(SOON, &format!("Service {name} to be refused, {reason}, with {keeps:?}"), async || {
            let service = self.get_service(name).await?;
            let condition = allocated_condition(&service).context("no condition yet")?;
            let state = (condition.status.as_str(), condition.reason.as_str());
            ensure!(state == ("False", reason), "{}={}: {}", state.1, state.0, condition.message);
            ensure!(ingress(&service) == keeps, "shows {:?}", ingress(&service));
            let held = self.held_addresses(&service).await?;
            ensure!(held == keeps.iter().copied().collect(), "holds {held:?}");
            Ok(condition.message)
        })
        .await
    }

    /// Waits until a Service has no finalizer, address, condition or record of Landfall.
    pub async fn expect_released(&self, name: &str) -> Result<()> {
        wait_until(SOON, &format!("Landfall to release {name}"), async || {
            let service = self.get_service(name).await?;
            ensure!(service.metadata.finalizers.is_none(), "{:?}", service.metadata.finalizers);
            ensure!(ingress(&service).is_empty() && allocated_condition(&service).is_none(), "{:?}", service.status);
            let held = self.held_addresses(&service).await?;
            ensure!(held.is_empty(), "holds {held:?}");
            Ok(())
        })
        .await
    }

    /// Waits until the controller has processed all earlier changes of Services: creates another Service, and waits for
    /// its condition.
    pub async fn settle(&self) -> Result<()> {
        self.create_annotated("canary", &[(POOL_ANNOTATION, "no-such-pool")]).await?;
        let condition = wait_until(SOON, "a condition of the canary", async || {
            allocated_condition(&self.get_service("canary").await?).context("no condition yet")
        })
        .await?;
        ensure!(condition.status == "False", "{condition:?}");
        self.delete_service("canary").await
    }

    /// All records, by address.
    pub async fn records(&self) -> Result<BTreeMap<IpAddr, LoadBalancerIP>> {
        let records = self.record_api().list(&ListParams::default()).await?;
        records.into_iter().map(|record| Ok((record.address()?, record))).collect()
    }

    async fn held_addresses(&self, service: &Service) -> Result<BTreeSet<IpAddr>> {
        let uid = service.uid().unwrap_or_default();
        let mut records = self.records().await?;
        records.retain(|_, record| record.spec.services.iter().any(|holder| holder.uid == uid));
        Ok(records.into_keys().collect())
    }

    /// The events about a Service, the oldest first.
    pub async fn events_of(&self, name: &str) -> Result<Vec<ReportedEvent>> {
        let (services, name) = self.service_api(name);
        let namespace = services.namespace().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.world.client.clone(), namespace);
        let mut events = events.list(&ListParams::default()).await?.items;
        events.retain(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name)));
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        Ok(events.into_iter().map(ReportedEvent::from).collect())
    }

    /// Waits until a Service has an event of this kind with this reason. Returns its message.
    pub async fn expect_event(&self, name: &str, kind: &str, reason: &str) -> Result<String> {
        wait_until(SOON, &format!("an event {kind} {reason} about {name}"), async || {
            let events = self.events_of(name).await?;
            let found = events.iter().find(|event| (event.kind.as_str(), event.reason.as_str()) == (kind, reason));
            Ok(found.with_context(|| format!("{events:?}"))?.note.clone())
        })
        .await
    }

    pub fn pool_api(&self) -> Api<IPAddressPool> {
        Api::all(self.world.client.clone())
    }

    pub fn record_api(&self) -> Api<LoadBalancerIP> {
        Api::all(self.world.client.clone())
    }

    /// The API of the Service's namespace, and the Service's bare name.
    fn service_api<'n>(&self, name: &'n str) -> (Api<Service>, &'n str) {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        (Api::namespaced(self.world.client.clone(), &self.namespace_name(namespace)), name)
    }

    /// Removes all Services, records, pools and namespaces of the scene.
    pub(crate) async fn remove_objects(&self) -> Result<()> {
        let client = &self.world.client;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let now = DeleteParams::default();
        let services: Api<Service> = Api::all(client.clone());
        let list_services = || async {
            let mut left = services.list(&ListParams::default()).await?.items;
            left.retain(|service| service.name_any() != "kubernetes");
            anyhow::Ok(left)
        };
        // Services of a foreign class would wait for their provider, which does not run here.
        let without_finalizers = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        for service in list_services().await? {
            let services: Api<Service> = Api::namespaced(client.clone(), &service.namespace().unwrap_or_default());
            services.delete(&service.name_any(), &now).await?;
            let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
            if class.is_some_and(|class| class != crds::service::CLASS) {
                services.patch(&service.name_any(), &PatchParams::default(), &without_finalizers).await.ok();
            }
        }
        let result = wait_until(SOON, "the scene's Services and records to be removed", async || {
            let services = list_services().await?;
            ensure!(services.is_empty(), "{:?}", services.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
            let records = self.record_api().list(&ListParams::default()).await?;
            for record in records.items.iter().filter(|record| record.spec.reservation.is_some()) {
                self.record_api().delete(&record.name_any(), &now).await?;
            }
            ensure!(records.items.is_empty(), "{:?}", records.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
            Ok(())
        })
        .await;
        // Also after a failure.
        for pool in self.pool_api().list(&ListParams::default()).await? {
            self.pool_api().delete(&pool.name_any(), &now).await?;
        }
        for namespace in &namespaces.list(&ListParams::default().labels("scene=here")).await? {
            namespaces.delete(&namespace.name_any(), &now).await?;
            let unlabel = Patch::Merge(json!({"metadata": {"labels": {"scene": null}}}));
            // The namespace may no longer exist.
            namespaces.patch(&namespace.name_any(), &PatchParams::default(), &unlabel).await.ok();
        }
        result
    }
}

impl From<Event> for ReportedEvent {
    fn from(event: Event) -> Self {
        Self {
            kind: event.type_.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            note: event.note.unwrap_or_default(),
        }
    }
}

/// The annotation that requests a pool.
pub const POOL_ANNOTATION: &str = "landfall.dev/address-pool";

/// The annotation that requests addresses.
pub const ADDRESSES_ANNOTATION: &str = "landfall.dev/load-balancer-ips";

/// The annotation with the sharing key.
pub const SHARING_KEY: &str = "landfall.dev/allow-shared-ip";

/// The annotation that permits sharing with other namespaces.
pub const SHARE_WITH: &str = "landfall.dev/share-with-namespaces";

/// An object with these annotations, for a merge.
pub fn with_annotations(annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    json!({"metadata": {"annotations": annotations}})
}

/// A condition of a pool.
pub fn pool_condition(pool: &IPAddressPool, type_: &str) -> Result<crds::Condition> {
    let conditions = pool.status.clone().unwrap_or_default().conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == type_).cloned();
    condition.with_context(|| format!("no condition {type_} yet: {conditions:?}"))
}

/// JSON merge patch (RFC 7396).
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|object| object.remove(&name));
        } else {
            merge(&mut target[&name], value);
        }
    }
}
