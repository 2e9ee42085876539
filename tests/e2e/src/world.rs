//! A cluster of the lab with Landfall installed as an operator would, and the objects that scenarios need.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::{IPAddressPool, LoadBalancerIP};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use lab::{Cluster, Host, KubeProxy, Topology, wait_until};
use serde_json::{Value, json};

use crate::lan_client::Lan;

/// How long anything may take that a user would wait for.
pub const SOON: Duration = Duration::from_secs(30);

/// The namespace of Landfall's own pods.
pub const SYSTEM: &str = "landfall-system";

/// What selects the controller's pods there.
pub const CONTROLLER: &str = "app.kubernetes.io/component=controller";

/// The port that whoami listens on in its pods, TCP and UDP.
const WHOAMI_PORT: u16 = 8080;

/// Where a controller tells its numbers, and where an agent does.
const CONTROLLER_PORT: u16 = 9646;
const AGENT_PORT: u16 = 9647;

/// A cluster, and who uses it. The cluster goes with it.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// A client of its API server.
    pub client: Client,
    /// A client on its LAN.
    pub lan: Lan,
}

impl World {
    /// A cluster of this shape, on which Landfall runs.
    pub async fn with_landfall(name: &str, topology: Topology) -> Result<Self> {
        let world = Self::without_landfall(name, topology).await?;
        world.install().await?;
        Ok(world)
    }

    /// A cluster of this shape that has Landfall's image, and nothing else of it.
    pub async fn without_landfall(name: &str, topology: Topology) -> Result<Self> {
        Ok(Self::of(Cluster::start(name, &with_image(topology)?).await?))
    }

    /// The same, but the cluster stays when this goes. `progress` is told of each step.
    pub async fn to_stay(name: &str, topology: Topology, progress: fn(&str)) -> Result<Self> {
        Ok(Self::of(Cluster::start_detached(name, &with_image(topology)?, progress).await?))
    }

    /// Ends a scenario that went well: the cluster goes. One that is dropped instead leaves its logs behind, for then
    /// something went wrong.
    pub fn end(self) -> Result<()> {
        self.cluster.remove()
    }

    /// Collects logs, objects and frames of the cluster as it is now, for a scene that failed.
    pub fn keep_evidence(&self, scene: &str) {
        match self.cluster.keep_evidence(scene) {
            Ok(folder) => eprintln!("scene {scene}: logs and objects are in {}", folder.display()),
            Err(error) => eprintln!("scene {scene}: logs and objects are lost: {error:#}"),
        }
    }

    fn of(cluster: Cluster) -> Self {
        let client = cluster.client();
        let lan = Lan::new(cluster.client_host("c1"));
        Self { cluster, client, lan }
    }

    /// Installs Landfall as the README says, and waits until it runs on every node.
    pub async fn install(&self) -> Result<()> {
        self.kubectl(&["apply", "-f", &root().join("deploy").to_string_lossy()])?;
        if self.cluster.topology().kube_proxy == KubeProxy::None {
            let apiserver = self.cluster.lan_url();
            let config = json!({"metadata": {"name": "landfall"}, "data": {"apiserver": apiserver}});
            let configs: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
            configs
                .create(&PostParams::default(), &serde_json::from_value(config)?)
                .await
                .context("create ConfigMap")?;
            // The pods that exist have started without it.
            self.kubectl(&["-n", SYSTEM, "delete", "pods", "--all", "--now"])?;
        }
        self.wait_until_installed().await
    }

    /// Waits until the controller and an agent on every node run.
    pub async fn wait_until_installed(&self) -> Result<()> {
        let nodes = i32::from(self.cluster.topology().nodes);
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), SYSTEM);
        let daemons: Api<DaemonSet> = Api::namespaced(self.client.clone(), SYSTEM);
        wait_until(SOON, "Landfall to run", async || {
            let controller = deployments.get("landfall-controller").await?.status.unwrap_or_default();
            let agents = daemons.get("landfall-node").await?.status.unwrap_or_default();
            let (wanted, there) = (self.controllers().await?, controller.available_replicas.unwrap_or(0));
            ensure!(
                there == wanted && controller.replicas == Some(wanted),
                "{there} of {wanted} controllers are available"
            );
            let ready = agents.number_ready;
            ensure!(ready == nodes, "agents are ready on {ready} of {nodes} nodes");
            Ok(())
        })
        .await
    }

    /// How many controllers there should be.
    pub async fn controllers(&self) -> Result<i32> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), SYSTEM);
        let controller = deployments.get("landfall-controller").await?;
        Ok(controller.spec.and_then(|spec| spec.replicas).unwrap_or(1))
    }

    /// Waits until so many pods of the controller are left, in whatever state.
    pub async fn wait_for_controllers(&self, count: usize) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        wait_until(SOON, &format!("{count} controllers to be left"), async || {
            let left = pods.list(&ListParams::default().labels(CONTROLLER)).await?.items.len();
            ensure!(left == count, "{left} are");
            Ok(())
        })
        .await
    }

    /// Runs kubectl against the cluster and returns what it printed.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.cluster.kubectl(words)
    }

    /// Runs `landfall` as a person at a desk would, and returns what it printed.
    pub fn landfall(&self, words: &[&str]) -> Result<String> {
        let binary = root().join("target/x86_64-unknown-linux-musl/release/landfall");
        let mut command = std::process::Command::new(&binary);
        command.args(words).env("KUBECONFIG", self.cluster.kubeconfig()).env_remove("LANDFALL_APISERVER");
        let output = command.output().with_context(|| format!("run {}", binary.display()))?;
        if !output.status.success() {
            bail!("landfall {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Creates a pool.
    pub async fn pool(&self, name: &str, addresses: &[&str]) -> Result<IPAddressPool> {
        let pool = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool",
            "metadata": {"name": name}, "spec": {"addresses": addresses},
        });
        let pools: Api<IPAddressPool> = Api::all(self.client.clone());
        // Not wrapped: what the API server says of it is what some scenarios are about.
        Ok(pools.create(&PostParams::default(), &serde_json::from_value(pool)?).await?)
    }

    /// The pool as it is now.
    pub async fn get_pool(&self, name: &str) -> Result<IPAddressPool> {
        Ok(Api::all(self.client.clone()).get(name).await?)
    }

    /// Runs `replicas` pods that tell who they are and who asks, and waits until all of them are ready.
    pub async fn whoami(&self, name: &str, replicas: i32) -> Result<()> {
        self.whoami_on(name, replicas, json!({})).await
    }

    /// The same, with `spec` merged into the pods' spec: `{"nodeName": "n1"}`.
    pub async fn whoami_on(&self, name: &str, replicas: i32, spec: Value) -> Result<()> {
        let mut pod = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "whoami", "image": "whoami:dev",
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod[key] = value.clone();
        }
        let deployment = json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
            },
        });
        let deployments = self.deployments();
        let params = PostParams::default();
        deployments.create(&params, &serde_json::from_value(deployment)?).await.context("create a Deployment")?;
        self.wait_until_ready(name, replicas).await
    }

    /// Changes how many pods there are, and waits until as many are ready and the others gone.
    pub async fn scale(&self, name: &str, replicas: i32) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.deployments().patch(name, &PatchParams::default(), &patch).await.context("scale")?;
        self.wait_until_ready(name, replicas).await
    }

    async fn wait_until_ready(&self, name: &str, replicas: i32) -> Result<()> {
        let deployments = self.deployments();
        wait_until(SOON, &format!("{replicas} pods of {name} to be ready"), async || {
            let deployment = deployments.get(name).await?;
            let status = deployment.status.unwrap_or_default();
            ensure!(status.observed_generation == deployment.metadata.generation, "not seen by its controller");
            let (ready, all) = (status.ready_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
            ensure!((ready, all) == (replicas, replicas), "{ready} of {all} pods are ready");
            Ok(())
        })
        .await
    }

    /// The pods of a Deployment: name and node.
    pub async fn pods(&self, name: &str) -> Result<Vec<(String, String)>> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let pods = pods.list(&ListParams::default().labels(&format!("app={name}"))).await?;
        let node = |pod: &Pod| pod.spec.clone().and_then(|spec| spec.node_name).unwrap_or_default();
        Ok(pods.items.iter().map(|pod| (pod.name_any(), node(pod))).collect())
    }

    /// Waits until the API server lists exactly `count` endpoints of a Service, and none of them is on its way out: later than the
    /// Deployment, whose pods don't count any more as soon as they are told to end.
    pub async fn endpoints(&self, service: &str, count: usize) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.client.clone());
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        wait_until(SOON, &format!("{count} endpoints of {service}"), async || {
            let slices = slices.list(&of_service).await?;
            let endpoints: Vec<_> = slices.items.into_iter().flat_map(|slice| slice.endpoints).flatten().collect();
            let ending =
                |endpoint: &Endpoint| endpoint.conditions.as_ref().and_then(|c| c.terminating).unwrap_or(false);
            let left = endpoints.iter().filter(|endpoint| ending(endpoint)).count();
            ensure!((endpoints.len(), left) == (count, 0), "{} endpoints, {left} on their way out", endpoints.len());
            Ok(())
        })
        .await
    }

    /// Creates a Service of type LoadBalancer for the pods of this name: port 80 for TCP and UDP. `spec` is merged in.
    pub async fn service(&self, name: &str, spec: Value) -> Result<Service> {
        let mut service = json!({
            "metadata": {"name": name},
            "spec": {
                "type": "LoadBalancer",
                "selector": {"app": name},
                "ports": [
                    {"name": "tcp", "port": 80, "targetPort": WHOAMI_PORT, "protocol": "TCP"},
                    {"name": "udp", "port": 80, "targetPort": WHOAMI_PORT, "protocol": "UDP"},
                ],
            },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        let params = PostParams::default();
        self.services().create(&params, &serde_json::from_value(service)?).await.context("create a Service")
    }

    /// Merges `patch` into a Service.
    pub async fn patch_service(&self, name: &str, patch: Value) -> Result<Service> {
        let params = PatchParams::default();
        self.services()
            .patch(name, &params, &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch Service {name}"))
    }

    /// Deletes a Service and waits until it is gone.
    pub async fn delete_service(&self, name: &str) -> Result<()> {
        self.services().delete(name, &DeleteParams::default()).await.context("delete a Service")?;
        wait_until(SOON, &format!("Service {name} to be gone"), async || {
            let left = self.services().get_opt(name).await?;
            ensure!(left.is_none(), "finalizers {:?}", left.map(|service| service.metadata.finalizers));
            Ok(())
        })
        .await
    }

    /// The Service as it is now.
    pub async fn get_service(&self, name: &str) -> Result<Service> {
        Ok(self.services().get(name).await?)
    }

    /// Waits until the Service has an address, and returns it.
    pub async fn address(&self, name: &str) -> Result<IpAddr> {
        self.address_within(SOON, name).await
    }

    /// The same, with another patience.
    pub async fn address_within(&self, patience: Duration, name: &str) -> Result<IpAddr> {
        wait_until(patience, &format!("Service {name} to have an address"), async || {
            let service = self.get_service(name).await?;
            ingress(&service).first().copied().with_context(|| format!("pending: {:?}", allocated(&service)))
        })
        .await
    }

    /// Waits until the Service says that it has no address, and returns the condition that says so.
    pub async fn refused(&self, name: &str) -> Result<Condition> {
        wait_until(SOON, &format!("Service {name} to say why it is pending"), async || {
            let service = self.get_service(name).await?;
            let condition = allocated(&service).context("no condition yet")?;
            ensure!(condition.status == "False", "allocated: {:?}", ingress(&service));
            Ok(condition)
        })
        .await
    }

    /// Who announces an address, by its own word.
    pub async fn announcer(&self, address: IpAddr) -> Result<String> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        wait_until(SOON, &format!("{address} to have an announcer"), async || {
            let object = addresses.get(&crds::address::object_name(address)).await?;
            let announcers = object.status.unwrap_or_default().announcers;
            Ok(announcers.first().context("none")?.node.to_string())
        })
        .await
    }

    /// The addresses in use.
    pub async fn addresses(&self) -> Result<Vec<String>> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        Ok(addresses.list(&ListParams::default()).await?.items.iter().map(ResourceExt::name_any).collect())
    }

    /// What `nft list ruleset` says on a node, without the tables of others.
    pub fn landfall_tables(&self, node: &str) -> Result<String> {
        let ruleset = self.cluster.node(node).output(["nft", "list", "tables"])?;
        Ok(ruleset.lines().filter(|line| line.contains("landfall")).collect::<Vec<_>>().join("\n"))
    }

    /// The sum of those numbers of a node's agent whose series begin so.
    pub fn metric_of_agent(&self, node: &Host, beginning: &str) -> Result<f64> {
        metric(&self.lan, SocketAddr::new(node.ipv4().into(), AGENT_PORT), beginning)
    }

    /// The same, summed over all controllers: of those that don't lead, numbers about themselves are all there is.
    pub async fn metric_of_controllers(&self, beginning: &str) -> Result<f64> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let router = Lan::new(self.cluster.control_plane().clone());
        let mut found = Vec::new();
        for pod in pods.list(&ListParams::default().labels(CONTROLLER)).await? {
            let ip = pod.status.and_then(|status| status.pod_ip).context("a controller without an address")?;
            found.push(metric(&router, SocketAddr::new(ip.parse()?, CONTROLLER_PORT), beginning));
        }
        ensure!(found.iter().any(Result::is_ok), "{found:?}");
        Ok(found.into_iter().flatten().sum())
    }

    fn services(&self) -> Api<Service> {
        Api::default_namespaced(self.client.clone())
    }

    fn deployments(&self) -> Api<Deployment> {
        Api::default_namespaced(self.client.clone())
    }
}

/// The sum of those numbers whose series begin so; an error if there are none.
fn metric(from: &Lan, server: SocketAddr, beginning: &str) -> Result<f64> {
    let (_, text) = from.get(server, "/metrics", SOON)?;
    let values = text.lines().filter(|line| line.starts_with(beginning)).filter_map(|line| line.rsplit_once(' '));
    let values: Vec<f64> = values.filter_map(|(_, value)| value.parse().ok()).collect();
    ensure!(!values.is_empty(), "no series at {server} begins with {beginning}");
    Ok(values.iter().sum())
}

/// The addresses in a Service's status.
pub fn ingress(service: &Service) -> Vec<IpAddr> {
    let status = service.status.clone().unwrap_or_default();
    let ingress = status.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
    ingress.iter().filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect()
}

/// The condition that says whether a Service has an address.
pub fn allocated(service: &Service) -> Option<Condition> {
    let conditions = service.status.clone().unwrap_or_default().conditions.unwrap_or_default();
    conditions.into_iter().find(|condition| condition.type_ == "landfall.dev/Allocated")
}

/// The topology with Landfall's image on every node.
fn with_image(mut topology: Topology) -> Result<Topology> {
    let image = root().join("target/landfall.tar");
    ensure!(image.is_file(), "{} is missing: run `make build`", image.display());
    topology.images.push(image);
    Ok(topology)
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}
