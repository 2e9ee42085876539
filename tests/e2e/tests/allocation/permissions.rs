//! What the API server admits from the tokens of an agent and of the controller, and from users: a table of attempts.
//!
//! The tokens are those that the kubelet requests for the running pods. Every request is a dry run: the API server
//! authorizes, validates and admits it as usual, and stores nothing. So no attempt depends on another one.

use anyhow::{Context, Result, ensure};
use e2e::Scenes;
use e2e::scene::Scene;
use e2e::world::SYSTEM;
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(each_identity_writes_only_its_own_part);
}

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// The token of the agent on n1.
    Agent,
    /// A token of the agents' ServiceAccount that is bound to no pod.
    AgentWithoutNode,
    /// The token of a controller.
    Controller,
    /// A cluster administrator.
    Admin,
    /// A cluster administrator as a ServiceAccount with the controller's name in another namespace.
    Namesake,
    /// A user without rights.
    Tenant,
}

use Identity::{Admin, Agent, AgentWithoutNode, Controller, Namesake, Tenant};

/// One request. `refusal` is a text in the error; `None`: the request is accepted.
struct Attempt {
    what: &'static str,
    by: Identity,
    method: Method,
    path: String,
    body: Value,
    refusal: Option<&'static str>,
}

const RECORDS: &str = "/apis/landfall.dev/v1alpha1/loadbalancerips";
const NETWORKS: &str = "/apis/landfall.dev/v1alpha1/nodenetworks";
const BY_RBAC: Option<&str> = Some("cannot ");
const OTHERS_ENTRY: Option<&str> = Some("an agent writes only the announcements of its own node");
const NOT_OUTBID: Option<&str> = Some("removes the announcement of another node only if its own has a greater epoch");
const FIRST: Option<&str> = Some("an agent does not change the time of the first announcement");
const OTHERS_CONFLICT: Option<&str> = Some("an agent reports only the conflict that its own node observes");
const CONFLICT_STAYS: Option<&str> = Some("removes the conflict of another node only if it announces the address");
const METADATA: Option<&str> = Some("changes no labels, annotations and owners of Services");
const FINALIZERS: Option<&str> = Some("changes no finalizer of Services except its own");

/// The start of the forged announcement of n8, an earlier and a later time.
const SINCE: &str = "2026-01-02T00:00:00Z";
const EARLIER: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-03T00:00:00Z";

async fn each_identity_writes_only_its_own_part(scene: &Scene<'_>) -> Result<()> {
    let objects = Objects::create(scene).await?;
    let clients = Clients::new(scene).await?;
    let attempts = [
        objects.announcements(),
        objects.conflicts(),
        objects.networks(),
        objects.services(),
        objects.records(),
        objects.refused_by_rbac(),
    ];
    let mut wrong = Vec::new();
    for attempt in attempts.into_iter().flatten() {
        let result = clients.send(&attempt).await;
        let is_expected = match (&result, attempt.refusal) {
            (Ok(()), None) => true,
            (Err(error), Some(text)) => error.to_string().contains(text),
            (Ok(()), Some(_)) | (Err(_), None) => false,
        };
        if !is_expected {
            wrong.push(format!("{:?} {}: {result:?} instead of {:?}", attempt.by, attempt.what, attempt.refusal));
        }
    }
    scene.record_api().delete(&objects.reserved, &DeleteParams::default()).await.context("delete the reservation")?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A client of each sender.
struct Clients {
    admin: Client,
    agent: Client,
    agent_without_node: Client,
    controller: Client,
}

impl Clients {
    async fn new(scene: &Scene<'_>) -> Result<Self> {
        let cluster = &scene.world.cluster;
        let pods: Api<Pod> = Api::namespaced(cluster.client(), SYSTEM);
        let pod = async |component: &str| {
            let labels = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
            pods.list(&labels).await?.items.pop().with_context(|| format!("no pod of {component}"))
        };
        let (agent, controller) = (pod("node").await?, pod("controller").await?);
        Ok(Self {
            admin: cluster.client(),
            agent: cluster.service_account_client(SYSTEM, "landfall-node", Some(&agent)).await?,
            agent_without_node: cluster.service_account_client(SYSTEM, "landfall-node", None).await?,
            controller: cluster.service_account_client(SYSTEM, "landfall-controller", Some(&controller)).await?,
        })
    }

    async fn send(&self, attempt: &Attempt) -> Result<()> {
        let content = if attempt.method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(attempt.method.clone())
            .uri(format!("{}?dryRun=All", attempt.path))
            .header("Content-Type", content);
        let (client, request) = match attempt.by {
            Agent => (&self.agent, request),
            AgentWithoutNode => (&self.agent_without_node, request),
            Controller => (&self.controller, request),
            Admin => (&self.admin, request),
            Namesake => {
                let name = "system:serviceaccount:default:landfall-controller";
                let request = request.header("Impersonate-User", name).header("Impersonate-Group", "system:masters");
                (&self.admin, request)
            }
            Tenant => (&self.admin, request.header("Impersonate-User", "tenant")),
        };
        let body = if attempt.body.is_null() { Vec::new() } else { serde_json::to_vec(&attempt.body)? };
        client.request::<Value>(request.body(body)?).await.map(drop).map_err(Into::into)
    }
}

/// The objects of the attempts.
struct Objects {
    /// An address that the Service `web` holds and n1 announces.
    used: String,
    /// A reservation. According to its status, n8 announces the address, and n9 observes a conflict.
    reserved: String,
    /// An address without a record.
    free: String,
    /// The path of a Service of another provider, with a label and a finalizer of this provider.
    other_service: String,
    /// The path of `web`.
    service: String,
}

impl Objects {
    async fn create(scene: &Scene<'_>) -> Result<Self> {
        let [used, reserved, free] = [10, 11, 12].map(|last| scene.ip(last).to_string());
        scene.create_pool("lan", json!({"addresses": [used]})).await?;
        scene.create_service("web", json!({})).await?;
        scene.expect_addresses("web", &[scene.ip(10)]).await?;
        scene.world.wait_for_announcer(scene.ip(10)).await?;
        let theirs = json!({
            "metadata": {"labels": {"app": "other"}, "finalizers": ["example.com/keep"]},
            "spec": {"loadBalancerClass": "example.com/other"},
        });
        scene.create_service("other", theirs).await?;
        let reservation = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP", "metadata": {"name": reserved},
            "spec": {"address": reserved, "reservation": {}},
        });
        scene.world.cluster.apply(&reservation.to_string())?;
        let status = json!({
            "announcers": [entry("n8", 5, SINCE)], "firstAnnounced": SINCE, "conflicts": [conflict("n9")],
        });
        let patch = Patch::Merge(json!({"status": status}));
        scene.record_api().patch_status(&reserved, &PatchParams::default(), &patch).await.context("forge a status")?;
        let services = format!("/api/v1/namespaces/{}/services", scene.namespace_name(""));
        let [service, other_service] = ["web", "other"].map(|name| format!("{services}/{name}"));
        Ok(Self { used, reserved, free, other_service, service })
    }

    /// Announcements in the status of an address.
    fn announcements(&self) -> Vec<Attempt> {
        let path = format!("{RECORDS}/{}/status", self.reserved);
        let patch = |what, announcers: &[Value], refusal| {
            Attempt::patch(what, Agent, &path, json!({"status": {"announcers": announcers}}), refusal)
        };
        let theirs = entry("n8", 5, SINCE);
        let moved = json!({"node": "n8", "link": "eth9", "epoch": 5, "since": SINCE});
        let first = |what, time: Value, refusal| {
            Attempt::patch(what, Agent, &path, json!({"status": {"firstAnnounced": time}}), refusal)
        };
        // The renumbering of a Service that looks as if it were never announced.
        let renumber = json!({"status": {"announcers": [], "firstAnnounced": null, "conflicts": [conflict("n1")]}});
        vec![
            patch("announces beside another node", &[entry("n1", 1, SINCE), theirs.clone()], None),
            patch("takes over with a greater epoch", &[entry("n1", 6, EARLIER)], None),
            patch("takes over with the same epoch, later", &[entry("n1", 5, LATER)], None),
            patch("takes over with the same epoch, in the same second", &[entry("n1", 5, SINCE)], None),
            patch("announces for another node", &[theirs.clone(), entry("n7", 6, LATER)], OTHERS_ENTRY),
            patch("changes the link of another node", std::slice::from_ref(&moved), OTHERS_ENTRY),
            patch("raises the epoch of another node", &[entry("n8", 9, SINCE)], OTHERS_ENTRY),
            patch("changes another node beside itself", &[entry("n1", 1, SINCE), moved], OTHERS_ENTRY),
            patch("removes another node", &[], NOT_OUTBID),
            patch("takes over with a smaller epoch", &[entry("n1", 4, LATER)], NOT_OUTBID),
            patch("takes over with the same epoch, earlier", &[entry("n1", 5, EARLIER)], NOT_OUTBID),
            first("keeps the first announcement", json!(SINCE), None),
            first("unsets the first announcement", Value::Null, FIRST),
            first("changes the first announcement", json!(LATER), FIRST),
            Attempt::patch("clears the status", Agent, &path, json!({"status": null}), NOT_OUTBID),
            Attempt::patch("renumbers a Service", Agent, &format!("{RECORDS}/{}/status", self.used), renumber, FIRST),
            Attempt::patch(
                "announces without the name of a node",
                AgentWithoutNode,
                &path,
                json!({"status": {"announcers": [entry("n1", 6, LATER)]}}),
                OTHERS_ENTRY,
            ),
        ]
    }

    /// Conflicts in the status of an address.
    fn conflicts(&self) -> Vec<Attempt> {
        let path = format!("{RECORDS}/{}/status", self.reserved);
        let patch =
            |what, status: Value, refusal| Attempt::patch(what, Agent, &path, json!({"status": status}), refusal);
        let theirs = conflict("n9");
        let mut changed = theirs.clone();
        changed["heldBack"] = json!(false);
        let takeover = json!({"announcers": [entry("n1", 6, SINCE)], "conflicts": null});
        let beside = json!({"announcers": [entry("n1", 1, SINCE), entry("n8", 5, SINCE)], "conflicts": null});
        vec![
            patch("reports its conflict", json!({"conflicts": [conflict("n1"), theirs]}), None),
            patch("removes a conflict by a takeover", takeover, None),
            patch("removes a conflict and announces", beside, None),
            patch("reports for another node", json!({"conflicts": [theirs, conflict("n8")]}), OTHERS_CONFLICT),
            patch("changes the report of another node", json!({"conflicts": [changed]}), OTHERS_CONFLICT),
            patch(
                "reports two conflicts",
                json!({"conflicts": [conflict("n1"), theirs, {
                    "node": "n1", "link": "eth1", "mac": "02:00:00:00:00:98", "heldBack": true, "since": SINCE,
                }]}),
                OTHERS_CONFLICT,
            ),
            patch("removes the report of another node", json!({"conflicts": null}), CONFLICT_STAYS),
        ]
    }

    /// NodeNetworks.
    fn networks(&self) -> Vec<Attempt> {
        let (own, refusal) = (format!("{NETWORKS}/n1"), Some("an agent writes only the NodeNetwork of its own node"));
        let links = |count: usize| {
            let addresses: Vec<_> = (0..count).map(|last| format!("198.51.100.{last}/24")).collect();
            json!({"spec": {"links": [{"name": "eth0", "addresses": addresses}]}})
        };
        let other = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "NodeNetwork", "metadata": {"name": "n8"}, "spec": {},
        });
        vec![
            Attempt::patch("lists 64 addresses of a link", Agent, &own, links(64), None),
            Attempt::patch("lists 65 addresses of a link", Agent, &own, links(65), Some("must have at most 64 items")),
            Attempt::create("writes the network of another node", Agent, NETWORKS, other, refusal),
            Attempt::patch("writes without the name of a node", AgentWithoutNode, &own, links(1), refusal),
        ]
    }

    /// The status of Services, with their metadata.
    fn services(&self) -> Vec<Attempt> {
        let (other, own) = (format!("{}/status", self.other_service), format!("{}/status", self.service));
        let patch = |what, metadata: Value, refusal| {
            Attempt::patch(what, Controller, &other, json!({"metadata": metadata}), refusal)
        };
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "none"});
        let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": self.used}]}}});
        let finalizer = crds::service::FINALIZER;
        vec![
            patch("adds its finalizer", json!({"finalizers": ["example.com/keep", finalizer]}), None),
            patch("replaces a finalizer by its own", json!({"finalizers": [finalizer]}), FINALIZERS),
            patch("removes a finalizer of others", json!({"finalizers": null}), FINALIZERS),
            patch("adds a finalizer", json!({"finalizers": ["example.com/keep", "example.com/x"]}), FINALIZERS),
            patch("adds a label", json!({"labels": {"x": "y"}}), METADATA),
            patch("removes a label", json!({"labels": null}), METADATA),
            patch("adds an annotation", json!({"annotations": {"x": "y"}}), METADATA),
            patch("adds an owner", json!({"ownerReferences": [owner]}), METADATA),
            Attempt::patch("removes its finalizer", Controller, &own, json!({"metadata": {"finalizers": null}}), None),
            Attempt::patch("writes the address", Controller, &own, ingress, None),
        ]
    }

    /// Records of addresses.
    fn records(&self) -> Vec<Attempt> {
        let (used, reserved) = (format!("{RECORDS}/{}", self.used), format!("{RECORDS}/{}", self.reserved));
        let spec = |spec: Value| json!({"spec": spec});
        let holders = json!([{"namespace": "default", "name": "web", "uid": "none"}]);
        let create = |what, by, field: &str, value: Value, refusal| {
            let mut spec = json!({"address": self.free});
            spec[field] = value;
            let object = json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP", "metadata": {"name": self.free},
                "spec": spec,
            });
            Attempt::create(what, by, RECORDS, object, refusal)
        };
        let only = |field| {
            Some(match field {
                "services" => "only Landfall writes spec.services",
                "pool" => "only Landfall writes spec.pool",
                "sharingKey" => "only Landfall writes spec.sharingKey",
                _ => "only Landfall writes spec.quarantine",
            })
        };
        let held = Some("is held by Service");
        let quarantine = json!({
            "mac": "02:00:00:00:00:99", "node": "n1", "link": "eth0", "since": SINCE, "service": holders[0],
        });
        vec![
            create("reserves an address", Admin, "reservation", json!({"namespace": "default"}), None),
            create("assigns an address", Controller, "services", holders.clone(), None),
            create("assigns an address", Admin, "services", holders.clone(), only("services")),
            create("assigns an address", Namesake, "services", holders.clone(), only("services")),
            create("reserves with a pool", Admin, "pool", json!("lan"), only("pool")),
            create("quarantines an address", Admin, "quarantine", quarantine.clone(), only("quarantine")),
            Attempt::patch("reserves an address in use", Admin, &used, spec(json!({"reservation": {}})), None),
            Attempt::patch("labels a record", Admin, &used, json!({"metadata": {"labels": {"x": "y"}}}), None),
            Attempt::patch("takes an address away", Admin, &used, spec(json!({"services": []})), only("services")),
            Attempt::patch("takes it away as null", Admin, &used, spec(json!({"services": null})), only("services")),
            Attempt::patch("gives it to others", Admin, &used, spec(json!({"services": holders})), only("services")),
            Attempt::patch(
                "gives a reservation",
                Admin,
                &reserved,
                spec(json!({"services": holders})),
                only("services"),
            ),
            Attempt::patch("changes the pool", Admin, &used, spec(json!({"pool": "x"})), only("pool")),
            Attempt::patch("shares an address", Admin, &used, spec(json!({"sharingKey": "k"})), only("sharingKey")),
            Attempt::patch("quarantines", Admin, &used, spec(json!({"quarantine": quarantine})), only("quarantine")),
            Attempt::delete("deletes a reservation", Admin, &reserved, None),
            Attempt::delete("deletes an address in use", Controller, &used, None),
            Attempt::delete("deletes an address in use", Admin, &used, held),
            Attempt::delete("deletes an address in use", Namesake, &used, held),
        ]
    }

    /// Requests that the roles do not permit.
    fn refused_by_rbac(&self) -> Vec<Attempt> {
        let (used, status) = (format!("{RECORDS}/{}", self.used), json!({"status": {"announcers": []}}));
        let (spec, labels) = (json!({"spec": {"services": []}}), json!({"metadata": {"labels": {"x": "y"}}}));
        let secrets = format!("/api/v1/namespaces/{SYSTEM}/secrets");
        let record = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP", "metadata": {"name": self.free},
            "spec": {"address": self.free},
        });
        vec![
            Attempt::patch("assigns an address", Agent, &used, spec.clone(), BY_RBAC),
            Attempt::delete("deletes an address", Agent, &used, BY_RBAC),
            Attempt::create("reserves an address", Agent, RECORDS, record.clone(), BY_RBAC),
            Attempt::patch("writes a Service", Agent, &format!("{}/status", self.service), labels.clone(), BY_RBAC),
            Attempt::delete("deletes its network", Agent, &format!("{NETWORKS}/n1"), BY_RBAC),
            Attempt::get("reads all Secrets", Agent, &secrets, BY_RBAC),
            Attempt::get("reads another Secret", Agent, &format!("{secrets}/other"), BY_RBAC),
            Attempt::patch("writes a Service", Controller, &self.service, labels, BY_RBAC),
            Attempt::patch("announces", Controller, &format!("{used}/status"), status.clone(), BY_RBAC),
            Attempt::patch("writes a network", Controller, &format!("{NETWORKS}/n1"), json!({"spec": {}}), BY_RBAC),
            Attempt::get("reads all Secrets", Controller, &secrets, BY_RBAC),
            Attempt::patch("assigns an address", Tenant, &used, spec, BY_RBAC),
            Attempt::patch("announces", Tenant, &format!("{used}/status"), status, BY_RBAC),
            Attempt::create("reserves an address", Tenant, RECORDS, record, BY_RBAC),
        ]
    }
}

impl Attempt {
    fn patch(what: &'static str, by: Identity, path: &str, body: Value, refusal: Option<&'static str>) -> Self {
        Self { what, by, method: Method::PATCH, path: path.to_owned(), body, refusal }
    }

    fn create(what: &'static str, by: Identity, path: &str, body: Value, refusal: Option<&'static str>) -> Self {
        Self { what, by, method: Method::POST, path: path.to_owned(), body, refusal }
    }

    fn delete(what: &'static str, by: Identity, path: &str, refusal: Option<&'static str>) -> Self {
        Self { what, by, method: Method::DELETE, path: path.to_owned(), body: Value::Null, refusal }
    }

    fn get(what: &'static str, by: Identity, path: &str, refusal: Option<&'static str>) -> Self {
        Self { what, by, method: Method::GET, path: path.to_owned(), body: Value::Null, refusal }
    }
}

/// An announcement of a node on eth0.
fn entry(node: &str, epoch: i64, since: &str) -> Value {
    json!({"node": node, "link": "eth0", "epoch": epoch, "since": since})
}

/// A conflict that a node observes.
fn conflict(node: &str) -> Value {
    json!({"node": node, "link": "eth0", "mac": "02:00:00:00:00:99", "heldBack": true, "since": SINCE})
}
