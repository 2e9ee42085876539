//! A cluster of the lab with Landfall installed as in the README, and objects for tests.

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
use observer::{Component, Fault, Observer};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::api_proxy::{ApiProxy, InjectedFaults};
use crate::lan_client::LanClient;

/// Limit of waiting for any change that a user would wait for.
pub const SOON: Duration = Duration::from_secs(30);

/// The namespace of Landfall's own pods.
pub const SYSTEM: &str = "landfall-system";

/// Label selector of the controller's pods.
pub const CONTROLLER: &str = "app.kubernetes.io/component=controller";

/// whoami's port in its pods, for TCP and UDP.
const WHOAMI_PORT: u16 = 8080;

/// The metrics port of a controller.
const CONTROLLER_PORT: u16 = 9646;

/// The metrics port of an agent.
pub const AGENT_PORT: u16 = 9647;

/// Part of the command line of an agent.
pub const AGENT_PROCESS: &str = "landfall node";

/// Part of the command line of a controller.
const CONTROLLER_PROCESS: &str = "landfall controller";

/// A cluster and its clients. Dropping it removes the cluster.
pub struct World {
    /// Checks invariants of Landfall until the end. It ends before the cluster.
    observer: Option<Observer>,
    /// Between Landfall and the API server, if the test injects faults of the API.
    api_proxy: Option<ApiProxy<InjectedFaults>>,
    pub cluster: Cluster,
    /// A client of the API server.
    pub client: Client,
    /// A client on the LAN.
    pub lan: LanClient,
}

impl World {
    /// Starts a cluster of this shape and installs Landfall.
    pub async fn with_landfall(name: &str, topology: Topology) -> Result<Self> {
        let world = Self::without_landfall(name, topology).await?;
        world.install().await?;
        Ok(world)
    }

    /// Starts a cluster of this shape and installs Landfall, with a proxy between it and the API server. Only such a
    /// cluster has the faults of the API in [`crate::faults::api`].
    pub async fn with_api_proxy(name: &str, topology: Topology) -> Result<Self> {
        let mut world = Self::without_landfall(name, topology).await?;
        let proxy = ApiProxy::start_beside_api_server(&world.cluster).await;
        world.api_proxy = Some(proxy.context("start the proxy of the API server")?);
        world.install().await?;
        Ok(world)
    }

    /// Starts a cluster of this shape with Landfall's image on its nodes, but without Landfall.
    pub async fn without_landfall(name: &str, topology: Topology) -> Result<Self> {
        let mut world = Self::from_cluster(Cluster::start(name, &with_image(topology)?).await?);
        world.observer = Some(Observer::start(&world.cluster).context("start the observer")?);
        Ok(world)
    }

    /// The same, but the cluster outlives the value, and is not observed. Calls `progress` after each step.
    pub async fn without_landfall_detached(name: &str, topology: Topology, progress: fn(&str)) -> Result<Self> {
        Ok(Self::from_cluster(Cluster::start_detached(name, &with_image(topology)?, progress).await?))
    }

    /// Ends the observer, for a measurement.
    pub fn stop_observing(mut self) -> Self {
        self.observer = None;
        self
    }

    /// Fails if an invariant was breached; otherwise removes the cluster, at the end of a test that passed. Dropping
    /// the value instead keeps logs of the failure.
    pub fn end(self) -> Result<()> {
        if let Some(observer) = &self.observer {
            tokio::task::block_in_place(|| Handle::current().block_on(observer.check_end()))?;
        }
        let Self { observer, cluster, .. } = self;
        drop(observer);
        cluster.remove()
    }

    /// Declares a fault that the scene causes, so that the observer permits its effects until the end of the scene.
    pub fn declare(&self, fault: Fault) {
        if let Some(observer) = &self.observer {
            observer.declare(fault);
        }
    }

    /// The observer, unless this is a measurement.
    pub fn observer(&self) -> Option<&Observer> {
        self.observer.as_ref()
    }

    /// The proxy between Landfall and the API server. Fails in a cluster of another constructor.
    pub fn api_proxy(&self) -> Result<&ApiProxy<InjectedFaults>> {
        self.api_proxy.as_ref().context("this cluster has no proxy of the API server: see World::with_api_proxy")
    }

    /// Adds breaches of invariants to the result of a scene.
    pub async fn add_breaches(&self, result: Result<()>) -> Result<()> {
        let Some(observer) = &self.observer else { return result };
        match (result, observer.check_scene().await) {
            (Ok(()), checked) => checked,
            (failed, Ok(())) => failed,
            (Err(failed), Err(breaches)) => bail!("{failed:#}\n{breaches:#}"),
        }
    }

    /// Ends the declared faults, at the end of a scene.
    pub fn end_faults(&self) {
        if let Some(observer) = &self.observer {
            observer.end_faults();
        }
    }

    /// Powers off a node.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.declare(Fault::power_off(node));
        self.cluster.power_off(node)
    }

    /// Kills the agent, or all controllers, on a node.
    pub fn kill(&self, component: Component, node: &str) -> Result<()> {
        let pattern = process_pattern(component);
        let host = self.cluster.node(node);
        self.declare(Fault::restarts(component, node, host.processes(pattern).len() as u32));
        host.kill(pattern).map(drop)
    }

    /// Collects logs, objects and frames of the cluster after a failed scene.
    pub fn keep_evidence(&self, scene: &str) {
        match self.cluster.keep_evidence(scene) {
            Ok(folder) => eprintln!("scene {scene}: logs and objects are in {}", folder.display()),
            Err(error) => eprintln!("scene {scene}: logs and objects are lost: {error:#}"),
        }
    }

    fn from_cluster(cluster: Cluster) -> Self {
        let client = cluster.client();
        let lan = LanClient::new(cluster.client_host("c1"));
        Self { observer: None, api_proxy: None, cluster, client, lan }
    }

    /// Installs Landfall as in the README, and waits until it runs on every node.
    pub async fn install(&self) -> Result<()> {
        self.kubectl(&["apply", "-f", &root().join("deploy/landfall.yaml").to_string_lossy()])?;
        let needs_url = self.cluster.topology().kube_proxy == KubeProxy::None;
        let url = self.api_proxy.as_ref().map(ApiProxy::lan_url).or(needs_url.then(|| self.cluster.lan_url()));
        if let Some(apiserver) = url {
            let config = json!({"metadata": {"name": "landfall"}, "data": {"apiserver": apiserver}});
            let configs: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
            configs
                .create(&PostParams::default(), &serde_json::from_value(config)?)
                .await
                .context("create ConfigMap")?;
            // The existing pods started without the ConfigMap.
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
            let (wanted, available) = (self.controller_replicas().await?, controller.available_replicas.unwrap_or(0));
            ensure!(
                available == wanted && controller.replicas == Some(wanted),
                "{available} of {wanted} controllers are available"
            );
            let ready = agents.number_ready;
            ensure!(ready == nodes, "agents are ready on {ready} of {nodes} nodes");
            Ok(())
        })
        .await
    }

    /// The wanted number of controllers.
    pub async fn controller_replicas(&self) -> Result<i32> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), SYSTEM);
        let controller = deployments.get("landfall-controller").await?;
        Ok(controller.spec.and_then(|spec| spec.replicas).unwrap_or(1))
    }

    /// Waits until `count` pods of the controller exist, in any state.
    pub async fn wait_for_controllers(&self, count: usize) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        wait_until(SOON, &format!("{count} controllers to exist"), async || {
            let existing = pods.list(&ListParams::default().labels(CONTROLLER)).await?.items.len();
            ensure!(existing == count, "{existing} exist");
            Ok(())
        })
        .await
    }

    /// Runs kubectl for the cluster and returns its standard output.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.cluster.kubectl(words)
    }

    /// Runs `landfall` outside of the cluster, like a user, and returns its standard output.
    pub fn run_landfall(&self, words: &[&str]) -> Result<String> {
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
    pub async fn create_pool(&self, name: &str, addresses: &[&str]) -> Result<IPAddressPool> {
        let pool = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool",
            "metadata": {"name": name}, "spec": {"addresses": addresses},
        });
        let pools: Api<IPAddressPool> = Api::all(self.client.clone());
        // Without context: some tests compare the API server's error.
        Ok(pools.create(&PostParams::default(), &serde_json::from_value(pool)?).await?)
    }

    /// Reads a pool.
    pub async fn get_pool(&self, name: &str) -> Result<IPAddressPool> {
        Ok(Api::all(self.client.clone()).get(name).await?)
    }

    /// Creates a Deployment of `replicas` whoami pods, and waits until all are ready.
    pub async fn create_whoami(&self, name: &str, replicas: i32) -> Result<()> {
        self.create_whoami_with(name, replicas, json!({})).await
    }

    /// The same with fields of the pods' spec: `{"nodeName": "n1"}`.
    pub async fn create_whoami_with(&self, name: &str, replicas: i32, spec: Value) -> Result<()> {
        let mut pod = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "whoami", "image": "whoami:dev", "resources": requested_cpu(),
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
        let deployments = self.deployment_api();
        let params = PostParams::default();
        deployments.create(&params, &serde_json::from_value(deployment)?).await.context("create a Deployment")?;
        self.wait_until_ready(name, replicas).await
    }

    /// Changes the number of pods, and waits until the new number is ready and no other is left.
    pub async fn scale(&self, name: &str, replicas: i32) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.deployment_api().patch(name, &PatchParams::default(), &patch).await.context("scale")?;
        self.wait_until_ready(name, replicas).await
    }

    async fn wait_until_ready(&self, name: &str, replicas: i32) -> Result<()> {
        let deployments = self.deployment_api();
        wait_until(SOON, &format!("{replicas} pods of {name} to be ready"), async || {
            let deployment = deployments.get(name).await?;
            let status = deployment.status.unwrap_or_default();
            ensure!(status.observed_generation == deployment.metadata.generation, "its controller is behind");
            let (ready, all) = (status.ready_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
            ensure!((ready, all) == (replicas, replicas), "{ready} of {all} pods are ready");
            Ok(())
        })
        .await
    }

    /// (pod, node) of all pods of a Deployment.
    pub async fn pod_nodes(&self, name: &str) -> Result<Vec<(String, String)>> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let pods = pods.list(&ListParams::default().labels(&format!("app={name}"))).await?;
        let node = |pod: &Pod| pod.spec.clone().and_then(|spec| spec.node_name).unwrap_or_default();
        Ok(pods.items.iter().map(|pod| (pod.name_any(), node(pod))).collect())
    }

    /// Waits until the API server lists exactly `count` endpoints of a Service, and none of them is terminating. A
    /// Deployment is ready earlier: it no longer counts a pod from the moment of its deletion.
    pub async fn wait_for_endpoints(&self, service: &str, count: usize) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.client.clone());
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        wait_until(SOON, &format!("{count} endpoints of {service}"), async || {
            let slices = slices.list(&of_service).await?;
            let endpoints: Vec<_> = slices.items.into_iter().flat_map(|slice| slice.endpoints).flatten().collect();
            let terminating = endpoints.iter().filter(|endpoint| is_terminating(endpoint)).count();
            ensure!(
                (endpoints.len(), terminating) == (count, 0),
                "{} endpoints, {terminating} of them terminating",
                endpoints.len()
            );
            Ok(())
        })
        .await
    }

    /// Creates a LoadBalancer Service for the pods of this name, with port 80 for TCP and UDP, and fields of its spec.
    pub async fn create_service(&self, name: &str, spec: Value) -> Result<Service> {
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
        self.service_api().create(&params, &serde_json::from_value(service)?).await.context("create a Service")
    }

    /// Merges `patch` into a Service.
    pub async fn patch_service(&self, name: &str, patch: Value) -> Result<Service> {
        let params = PatchParams::default();
        self.service_api()
            .patch(name, &params, &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch Service {name}"))
    }

    /// Deletes a Service and waits until it no longer exists.
    pub async fn delete_service(&self, name: &str) -> Result<()> {
        self.service_api().delete(name, &DeleteParams::default()).await.context("delete a Service")?;
        wait_until(SOON, &format!("Service {name} to be gone"), async || {
            let left = self.service_api().get_opt(name).await?;
            ensure!(left.is_none(), "finalizers {:?}", left.map(|service| service.metadata.finalizers));
            Ok(())
        })
        .await
    }

    /// Reads a Service.
    pub async fn get_service(&self, name: &str) -> Result<Service> {
        Ok(self.service_api().get(name).await?)
    }

    /// Waits until a Service has an address, and returns it.
    pub async fn wait_for_address(&self, name: &str) -> Result<IpAddr> {
        self.wait_for_address_within(SOON, name).await
    }

    /// The same, with another limit.
    pub async fn wait_for_address_within(&self, timeout: Duration, name: &str) -> Result<IpAddr> {
        wait_until(timeout, &format!("Service {name} to have an address"), async || {
            let service = self.get_service(name).await?;
            ingress(&service).first().copied().with_context(|| format!("pending: {:?}", allocated_condition(&service)))
        })
        .await
    }

    /// Waits until the condition of a Service gives the reason for its missing address, and returns the condition.
    pub async fn wait_for_refusal(&self, name: &str) -> Result<Condition> {
        wait_until(SOON, &format!("Service {name} to have a refusal"), async || {
            let service = self.get_service(name).await?;
            let condition = allocated_condition(&service).context("no condition yet")?;
            ensure!(condition.status == "False", "allocated: {:?}", ingress(&service));
            Ok(condition)
        })
        .await
    }

    /// Waits until a record names an announcer of an address, and returns its node.
    pub async fn wait_for_announcer(&self, address: IpAddr) -> Result<String> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        wait_until(SOON, &format!("{address} to have an announcer"), async || {
            let object = addresses.get(&crds::address::object_name(address)).await?;
            let announcers = object.status.unwrap_or_default().announcers;
            Ok(announcers.first().context("no announcer")?.node.to_string())
        })
        .await
    }

    /// The names of all records.
    pub async fn record_names(&self) -> Result<Vec<String>> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        Ok(addresses.list(&ListParams::default()).await?.items.iter().map(ResourceExt::name_any).collect())
    }

    /// Landfall's lines of `nft list tables` on a node.
    pub fn landfall_tables(&self, node: &str) -> Result<String> {
        let ruleset = self.cluster.node(node).output(["nft", "list", "tables"])?;
        Ok(ruleset.lines().filter(|line| line.contains("landfall")).collect::<Vec<_>>().join("\n"))
    }

    /// The sum of all series of a node's agent that begin with `prefix`.
    pub fn agent_metric(&self, node: &Host, prefix: &str) -> Result<f64> {
        metric(&self.lan, SocketAddr::new(node.ipv4().into(), AGENT_PORT), prefix)
    }

    /// The same, summed over all controllers. A standby has only series about itself.
    pub async fn controller_metric(&self, prefix: &str) -> Result<f64> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let router = LanClient::new(self.cluster.control_plane().clone());
        let mut found = Vec::new();
        for pod in pods.list(&ListParams::default().labels(CONTROLLER)).await? {
            let ip = pod.status.and_then(|status| status.pod_ip).context("a controller without an address")?;
            found.push(metric(&router, SocketAddr::new(ip.parse()?, CONTROLLER_PORT), prefix));
        }
        ensure!(found.iter().any(Result::is_ok), "{found:?}");
        Ok(found.into_iter().flatten().sum())
    }

    fn service_api(&self) -> Api<Service> {
        Api::default_namespaced(self.client.clone())
    }

    fn deployment_api(&self) -> Api<Deployment> {
        Api::default_namespaced(self.client.clone())
    }
}

/// Part of the command line of each process of a component.
pub fn process_pattern(component: Component) -> &'static str {
    match component {
        Component::Agent => AGENT_PROCESS,
        Component::Controller => CONTROLLER_PROCESS,
    }
}

/// The share of the processors that each pod of a test requests, like a pod of an operator. Without a request, its
/// control group has a fiftieth of the weight of an agent's.
pub fn requested_cpu() -> Value {
    json!({"requests": {"cpu": "100m"}})
}

fn is_terminating(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.terminating).unwrap_or(false)
}

/// The sum of all series of a server that begin with `prefix`. Fails without such a series.
fn metric(from: &LanClient, server: SocketAddr, prefix: &str) -> Result<f64> {
    let (_, text) = from.get(server, "/metrics", SOON)?;
    let values = text.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.rsplit_once(' '));
    let values: Vec<f64> = values.filter_map(|(_, value)| value.parse().ok()).collect();
    ensure!(!values.is_empty(), "no series at {server} begins with {prefix}");
    Ok(values.iter().sum())
}

/// The addresses in a Service's status.
pub fn ingress(service: &Service) -> Vec<IpAddr> {
    let status = service.status.clone().unwrap_or_default();
    let ingress = status.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
    ingress.iter().filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect()
}

/// The condition `landfall.dev/Allocated` of a Service.
pub fn allocated_condition(service: &Service) -> Option<Condition> {
    let conditions = service.status.clone().unwrap_or_default().conditions.unwrap_or_default();
    conditions.into_iter().find(|condition| condition.type_ == "landfall.dev/Allocated")
}

/// Adds Landfall's image to a topology.
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
