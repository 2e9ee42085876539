//! Scenes: steps of a scenario that share a cluster. Each is a function whose name is a sentence, has namespaces and
//! addresses of its own, and leaves nothing behind.
//!
//! A cluster takes longer to come up than most scenes take. So scenes share one, one after the other. A scene that fails
//! does not stop the next ones; [`Scenes::end`] reports all failures. With `LANDFALL_SCENE=NAME` only that scene is played.
//!
//! Addresses of scenes are out of those for benchmarks (RFC 2544) and documentation (RFC 3849): no node is on such a link,
//! so nobody announces them. Who wants traffic takes 192.0.2.200-250.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use crds::{IPAddressPool, LoadBalancerIP};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lab::wait_until;
use serde_json::{Value, json};

use crate::world::{SOON, World, allocated, ingress};

/// Variable with the name of the only scene to play.
const SELECTION: &str = "LANDFALL_SCENE";

/// How many failed scenes of a test have their cluster's logs and objects collected.
const MAX_EVIDENCE: usize = 2;

/// The scenes that are played on one cluster.
pub struct Scenes<'a> {
    world: &'a World,
    /// The only scene to play, if it is set.
    selected: Option<String>,
    /// Scenes so far, without regard to the selection: a scene has the same number, and so the same addresses, alone.
    count: u8,
    played: u8,
    failed: Vec<FailedScene>,
}

struct FailedScene {
    name: &'static str,
    error: anyhow::Error,
}

/// One step of a scenario.
pub struct Scene<'a> {
    /// Where it plays.
    pub world: &'a World,
    number: u8,
}

/// What was written about a Service or a pool as an event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// `Warning` or `Normal`.
    pub kind: String,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub note: String,
}

impl<'a> Scenes<'a> {
    /// No scene yet, on this cluster.
    pub fn on(world: &'a World) -> Self {
        let selected = std::env::var(SELECTION).ok().filter(|name| !name.is_empty());
        Self { world, selected, count: 0, played: 0, failed: Vec::new() }
    }

    /// Plays a scene: a function whose name states what it shows.
    pub async fn play<S: AsyncFnOnce(&Scene<'_>) -> Result<()>>(&mut self, show: S) {
        let name = std::any::type_name::<S>().rsplit("::").next().unwrap_or_default();
        self.count += 1;
        if self.selected.as_ref().is_some_and(|selected| selected != name) {
            return;
        }
        self.played += 1;
        let scene = Scene { world: self.world, number: self.count };
        let start = Instant::now();
        let mut result = async {
            scene.namespace("", &[]).await?;
            show(&scene).await
        }
        .await;
        let took = start.elapsed();
        if result.is_err() && self.failed.len() < MAX_EVIDENCE {
            self.world.keep_evidence(name);
        }
        if let Err(error) = scene.clear().await {
            result = result.and(Err(error.context("remove the objects of the scene")));
        }
        match result {
            Ok(()) => eprintln!("scene {name} ... ok ({took:.1?})"),
            Err(error) => {
                eprintln!("scene {name} ... FAILED ({took:.1?}): {error:#}");
                self.failed.push(FailedScene { name, error });
            }
        }
    }

    /// Returns an error if a scene failed, or if there is none of the selected name.
    pub fn end(self) -> Result<()> {
        if let Some(selected) = &self.selected {
            ensure!(self.played > 0, "{SELECTION}: this test has no scene {selected}");
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        // `tests/ci` reads this line: it runs these scenes once more, alone.
        eprintln!("failed scenes: {}", self.failed.iter().map(|scene| scene.name).collect::<Vec<_>>().join(" "));
        let errors: Vec<_> = self.failed.iter().map(|scene| format!("{}: {:#}", scene.name, scene.error)).collect();
        bail!("{} of {} scenes failed:\n{}", errors.len(), self.played, errors.join("\n"))
    }
}

impl Scene<'_> {
    /// An IPv4 address that is this scene's alone.
    pub fn ip(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(198, 18, self.number, last).into()
    }

    /// An IPv6 address that is this scene's alone.
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

    /// The full name of a namespace of this scene. The one called "" is always there, others by [`Scene::namespace`].
    pub fn in_full(&self, namespace: &str) -> String {
        let dash = if namespace.is_empty() { "" } else { "-" };
        format!("scene-{}{dash}{namespace}", self.number)
    }

    /// Makes a namespace. Its Services are called `namespace/name`; those of the scene's own namespace just `name`.
    pub async fn namespace(&self, namespace: &str, labels: &[(&str, &str)]) -> Result<String> {
        let name = self.in_full(namespace);
        let labels: BTreeMap<_, _> = labels.iter().copied().chain([("scene", "here")]).collect();
        let object = json!({"metadata": {"name": name, "labels": labels}});
        let namespaces: Api<Namespace> = Api::all(self.world.client.clone());
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await
            .context("create a namespace")?;
        Ok(name)
    }

    /// Creates a pool and waits until the controller has seen it.
    pub async fn pool(&self, name: &str, spec: Value) -> Result<()> {
        let object = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": name}, "spec": spec,
        });
        let object: IPAddressPool = serde_json::from_value(object)?;
        self.pools().create(&PostParams::default(), &object).await.with_context(|| format!("create pool {name}"))?;
        self.pool_is_seen(name).await
    }

    /// Merges `spec` into that of a pool, and waits until the controller has seen it.
    pub async fn edit_pool(&self, name: &str, spec: Value) -> Result<()> {
        self.edit_pool_unseen(name, spec).await?;
        self.pool_is_seen(name).await
    }

    /// The same, where no controller is there to see it.
    pub async fn edit_pool_unseen(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.pools().patch(name, &PatchParams::default(), &patch).await.with_context(|| format!("edit pool {name}"))?;
        Ok(())
    }

    /// Deletes a pool.
    pub async fn delete_pool(&self, name: &str) -> Result<()> {
        self.pools().delete(name, &DeleteParams::default()).await.with_context(|| format!("delete pool {name}"))?;
        Ok(())
    }

    async fn pool_is_seen(&self, name: &str) -> Result<()> {
        wait_until(SOON, &format!("pool {name} to be seen as it is"), async || {
            let pool = self.pools().get(name).await?;
            let ready = pool_condition(&pool, "Ready")?;
            ensure!(ready.observed_generation == pool.metadata.generation, "{ready:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a pool says this: condition, status, reason. Returns the message.
    pub async fn pool_says(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
        wait_until(SOON, &format!("pool {name} to say {type_}={status} {reason}"), async || {
            let pool = self.pools().get(name).await?;
            let said = pool_condition(&pool, type_)?;
            ensure!((said.status.as_str(), said.reason.as_str()) == (status, reason), "{said:?}");
            Ok(said.message.to_string())
        })
        .await
    }

    /// Waits until a pool counts this: used and free IPv4, used and free IPv6 addresses.
    pub async fn pool_counts(&self, name: &str, expected: [i64; 4]) -> Result<()> {
        wait_until(SOON, &format!("pool {name} to count {expected:?}"), async || {
            let status = self.pools().get(name).await?.status.context("no status yet")?;
            let counts = [status.assigned_ipv4, status.available_ipv4, status.assigned_ipv6, status.available_ipv6];
            ensure!(counts == expected, "{counts:?}");
            Ok(())
        })
        .await
    }

    /// Creates a Service of type LoadBalancer with TCP port 80, with `more` merged in.
    pub async fn service(&self, name: &str, more: Value) -> Result<Service> {
        let (services, name) = self.services_of(name);
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
    pub async fn asking(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Service> {
        self.service(name, annotated(annotations)).await
    }

    /// Merges `patch` into a Service.
    pub async fn edit(&self, name: &str, patch: Value) -> Result<Service> {
        let (services, name) = self.services_of(name);
        let patch = Patch::Merge(patch);
        services.patch(name, &PatchParams::default(), &patch).await.with_context(|| format!("patch Service {name}"))
    }

    /// Sets annotations of a Service.
    pub async fn annotate(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Service> {
        self.edit(name, annotated(annotations)).await
    }

    /// Merges `patch` into a Service through its status, as a provider would.
    pub async fn forge(&self, name: &str, patch: Value) -> Result<Service> {
        let (services, name) = self.services_of(name);
        let patch = Patch::Merge(patch);
        services.patch_status(name, &PatchParams::default(), &patch).await.with_context(|| format!("forge {name}"))
    }

    /// Deletes a Service and waits until it is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let (services, name) = self.services_of(name);
        services.delete(name, &DeleteParams::default()).await.with_context(|| format!("delete Service {name}"))?;
        self.is_gone(name).await
    }

    /// Waits until a Service is gone.
    pub async fn is_gone(&self, name: &str) -> Result<()> {
        let (services, name) = self.services_of(name);
        wait_until(SOON, &format!("Service {name} to be gone"), async || {
            let left = services.get_opt(name).await?;
            ensure!(left.is_none(), "finalizers {:?}", left.map(|service| service.metadata.finalizers));
            Ok(())
        })
        .await
    }

    /// The Service as it is now.
    pub async fn get(&self, name: &str) -> Result<Service> {
        let (services, name) = self.services_of(name);
        Ok(services.get(name).await?)
    }

    /// Waits until a Service is content, and returns its addresses.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        Ok(self.content(name).await?.0)
    }

    /// Waits until a Service is content, and returns its only address.
    pub async fn address(&self, name: &str) -> Result<IpAddr> {
        let addresses = self.addresses(name).await?;
        let [address] = addresses[..] else { bail!("{name} has {addresses:?}") };
        Ok(address)
    }

    async fn content(&self, name: &str) -> Result<(Vec<IpAddr>, String)> {
        wait_until(SOON, &format!("Service {name} to be content"), async || {
            let service = self.get(name).await?;
            let condition = allocated(&service).context("no condition yet")?;
            ensure!(condition.status == "True", "{}: {}", condition.reason, condition.message);
            ensure!(condition.observed_generation == service.metadata.generation, "{condition:?} is of another day");
            let shown = ingress(&service);
            ensure!(!shown.is_empty(), "content without an address");
            Ok((shown, condition.reason))
        })
        .await
    }

    /// Waits until a Service has exactly these addresses, by its status and by the records, and all is well with them.
    pub async fn has(&self, name: &str, expected: &[IpAddr]) -> Result<()> {
        self.has_with(name, expected, "Allocated").await
    }

    /// The same, where the condition says with this reason what is odd about the address.
    pub async fn has_with(&self, name: &str, expected: &[IpAddr], reason: &str) -> Result<()> {
        wait_until(SOON, &format!("Service {name} to have {expected:?}, {reason}"), async || {
            let service = self.get(name).await?;
            let condition = allocated(&service).context("no condition yet")?;
            let said = (condition.status.as_str(), condition.reason.as_str());
            ensure!(said == ("True", reason), "{}: {}", condition.reason, condition.message);
            ensure!(ingress(&service) == expected, "shows {:?}", ingress(&service));
            let held = self.held_by(&service).await?;
            ensure!(held == expected.iter().copied().collect(), "holds {held:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a Service is refused for this reason and has nothing; returns the message.
    pub async fn refused(&self, name: &str, reason: &str) -> Result<String> {
        self.refused_with(name, reason, &[]).await
    }

    /// Waits until a Service is refused for this reason and has these addresses meanwhile; returns the message.
    pub async fn refused_with(&self, name: &str, reason: &str, keeps: &[IpAddr]) -> Result<String> {
        wait_until(SOON, &format!("Service {name} to be refused, {reason}, with {keeps:?}"), async || {
            let service = self.get(name).await?;
            let condition = allocated(&service).context("no condition yet")?;
            let said = (condition.status.as_str(), condition.reason.as_str());
            ensure!(said == ("False", reason), "{}={}: {}", said.1, said.0, condition.message);
            ensure!(ingress(&service) == keeps, "shows {:?}", ingress(&service));
            let held = self.held_by(&service).await?;
            ensure!(held == keeps.iter().copied().collect(), "holds {held:?}");
            Ok(condition.message)
        })
        .await
    }

    /// Waits until nothing of Landfall is left on a Service.
    pub async fn is_let_go(&self, name: &str) -> Result<()> {
        wait_until(SOON, &format!("nothing of Landfall to be left on {name}"), async || {
            let service = self.get(name).await?;
            ensure!(service.metadata.finalizers.is_none(), "{:?}", service.metadata.finalizers);
            ensure!(ingress(&service).is_empty() && allocated(&service).is_none(), "{:?}", service.status);
            let held = self.held_by(&service).await?;
            ensure!(held.is_empty(), "holds {held:?}");
            Ok(())
        })
        .await
    }

    /// Waits until the controller has seen every Service as it is now: another one, made after them, is answered.
    pub async fn settle(&self) -> Result<()> {
        self.asking("canary", &[(ASK_POOL, "no-such-pool")]).await?;
        let answer = wait_until(SOON, "an answer to the canary", async || {
            allocated(&self.get("canary").await?).context("no answer yet")
        })
        .await?;
        ensure!(answer.status == "False", "{answer:?}");
        self.delete("canary").await
    }

    /// Who holds which address, of all of them.
    pub async fn records(&self) -> Result<BTreeMap<IpAddr, LoadBalancerIP>> {
        let records = self.lbips().list(&ListParams::default()).await?;
        records.into_iter().map(|record| Ok((record.address()?, record))).collect()
    }

    async fn held_by(&self, service: &Service) -> Result<BTreeSet<IpAddr>> {
        let uid = service.uid().unwrap_or_default();
        let mut records = self.records().await?;
        records.retain(|_, record| record.spec.services.iter().any(|holder| holder.uid == uid));
        Ok(records.into_keys().collect())
    }

    /// What events say of a Service, the oldest first.
    pub async fn said_of(&self, name: &str) -> Result<Vec<Said>> {
        let (services, name) = self.services_of(name);
        let namespace = services.namespace().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.world.client.clone(), namespace);
        let mut events = events.list(&ListParams::default()).await?.items;
        events.retain(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name)));
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        let said = |event: Event| Said {
            kind: event.type_.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            note: event.note.unwrap_or_default(),
        };
        Ok(events.into_iter().map(said).collect())
    }

    /// Waits until an event of this kind with this reason was written about a Service; returns what it says.
    pub async fn was_said(&self, name: &str, kind: &str, reason: &str) -> Result<String> {
        wait_until(SOON, &format!("an event {kind} {reason} about {name}"), async || {
            let said = self.said_of(name).await?;
            let found = said.iter().find(|said| (said.kind.as_str(), said.reason.as_str()) == (kind, reason));
            Ok(found.with_context(|| format!("{said:?}"))?.note.clone())
        })
        .await
    }

    /// All pools.
    pub fn pools(&self) -> Api<IPAddressPool> {
        Api::all(self.world.client.clone())
    }

    /// All addresses in use.
    pub fn lbips(&self) -> Api<LoadBalancerIP> {
        Api::all(self.world.client.clone())
    }

    /// The Services beside this one, and its bare name.
    fn services_of<'n>(&self, name: &'n str) -> (Api<Service>, &'n str) {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        (Api::namespaced(self.world.client.clone(), &self.in_full(namespace)), name)
    }

    /// Takes away all that the scene has made.
    async fn clear(&self) -> Result<()> {
        let client = &self.world.client;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let now = DeleteParams::default();
        let services: Api<Service> = Api::all(client.clone());
        let left = || async {
            let mut left = services.list(&ListParams::default()).await?.items;
            left.retain(|service| service.name_any() != "kubernetes");
            anyhow::Ok(left)
        };
        // Those of a foreign class wait for their own provider, which is away.
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        for service in left().await? {
            let services: Api<Service> = Api::namespaced(client.clone(), &service.namespace().unwrap_or_default());
            services.delete(&service.name_any(), &now).await?;
            let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
            if class.is_some_and(|class| class != crds::service::CLASS) {
                services.patch(&service.name_any(), &PatchParams::default(), &free).await.ok();
            }
        }
        let gone = wait_until(SOON, "the scene's Services and addresses to be gone", async || {
            let services = left().await?;
            ensure!(services.is_empty(), "{:?}", services.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
            let records = self.lbips().list(&ListParams::default()).await?;
            for record in records.items.iter().filter(|record| record.spec.reservation.is_some()) {
                self.lbips().delete(&record.name_any(), &now).await?;
            }
            ensure!(records.items.is_empty(), "{:?}", records.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
            Ok(())
        })
        .await;
        // What is left is no reason to leave more.
        for pool in self.pools().list(&ListParams::default()).await? {
            self.pools().delete(&pool.name_any(), &now).await?;
        }
        for namespace in &namespaces.list(&ListParams::default().labels("scene=here")).await? {
            namespaces.delete(&namespace.name_any(), &now).await?;
            let unlabel = Patch::Merge(json!({"metadata": {"labels": {"scene": null}}}));
            // It may be gone by now.
            namespaces.patch(&namespace.name_any(), &PatchParams::default(), &unlabel).await.ok();
        }
        gone
    }
}

/// The annotation that asks for addresses of a pool.
pub const ASK_POOL: &str = "landfall.dev/address-pool";

/// The annotation that asks for addresses.
pub const ASK_IPS: &str = "landfall.dev/load-balancer-ips";

/// The annotation with the sharing key.
pub const KEY: &str = "landfall.dev/allow-shared-ip";

/// The annotation that consents to sharing with other namespaces.
pub const CONSENT: &str = "landfall.dev/share-with-namespaces";

/// What puts these annotations on an object.
pub fn annotated(annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    json!({"metadata": {"annotations": annotations}})
}

/// A condition of a pool.
pub fn pool_condition(pool: &IPAddressPool, type_: &str) -> Result<crds::Condition> {
    let conditions = pool.status.clone().unwrap_or_default().conditions;
    let said = conditions.iter().find(|condition| condition.type_ == type_).cloned();
    said.with_context(|| format!("no condition {type_} yet: {conditions:?}"))
}

/// JSON merge patch (RFC 7386).
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
