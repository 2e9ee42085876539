//! A control plane for measurements, the processes on it, and their cost.
//!
//! Contender and rivals are processes on the control plane's host, so their requests take the same path: the loopback
//! interface of its namespace to the API server. All of them end with the cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::api::PostParams;
use kube::{Api, Client};
use lab::{Cluster, Host, KubeProxy, Process, Signal, Topology, wait_until};
use serde_json::{Value, json};

use crate::metrics;
use crate::writes::{COPY, LANDFALL, POOL};

/// The namespace of all measured Services.
pub const NAMESPACE: &str = "bench";

/// The namespace of Landfall and its Lease.
const SYSTEM: &str = "landfall-system";

/// Longest time to start or end a process.
const PATIENCE: Duration = Duration::from_secs(30);

/// Concurrent creates.
const CREATORS: usize = 64;

/// The control plane is idle if it uses less than this share of a core during [`LOOK`].
const REST: f64 = 0.25;

/// The time over which its CPU use is measured.
const LOOK: Duration = Duration::from_millis(400);

/// Clock ticks in a second, as `/proc` counts CPU time (USER_HZ, which is 100 on every architecture we run on).
const TICKS: f64 = 100.0;

/// A control plane with Landfall's definitions and a pool, without any controller.
pub struct Stage {
    cluster: Cluster,
    /// A client of its API server.
    pub client: Client,
}

/// A process on the stage. It ends with the cluster at the latest.
pub struct Actor {
    process: Process,
}

impl Stage {
    /// Creates a stage. Definitions, namespace and pool are ready when this returns.
    ///
    /// # Errors
    /// If the cluster does not start, or refuses an object.
    pub async fn set(name: &str) -> Result<Self> {
        Self::with_nodes(name, 0).await
    }

    /// Like [`set`](Self::set), with nodes that are a Node object and a network namespace: `l1`, `l2`, ..
    ///
    /// # Errors
    /// The same as for [`set`](Self::set).
    pub async fn with_nodes(name: &str, light_nodes: u8) -> Result<Self> {
        let (nodes, clients, kube_proxy) = (0, 0, KubeProxy::None);
        let topology = Topology { nodes, light_nodes, clients, kube_proxy, capture: false, ..Topology::default() };
        let cluster = Cluster::start(name, &topology).await?;
        let client = cluster.client();
        let crds = crds::manifest::yaml().context("generate the definitions")?;
        cluster.apply(&crds)?;
        cluster.apply(&crds.replace(LANDFALL, COPY)).context("make a copy of the definitions")?;
        cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        for namespace in [NAMESPACE, SYSTEM] {
            cluster.kubectl(["create", "namespace", namespace])?;
        }
        let pool = json!({
            "apiVersion": format!("{LANDFALL}/v1alpha1"), "kind": "IPAddressPool", "metadata": {"name": "bench"},
            "spec": {"addresses": [POOL]},
        });
        // An established definition may still take a moment to be served.
        wait_until(PATIENCE, "the pool to be made", async || cluster.apply(&pool.to_string())).await?;
        Ok(Self { cluster, client })
    }

    /// Takes it down.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn strike(self) -> Result<()> {
        self.cluster.remove()
    }

    /// Starts a program on the control plane's host.
    ///
    /// # Errors
    /// If it does not start.
    pub fn enter(&self, name: &str, program: &Path, arguments: &[&str]) -> Result<Actor> {
        self.enter_on(self.cluster.control_plane(), name, program, arguments)
    }

    /// One of its nodes.
    pub fn node(&self, name: &str) -> Host {
        self.cluster.node(name)
    }

    /// The rights of an administrator, for a program on one of its hosts.
    pub fn kubeconfig(&self) -> &Path {
        self.cluster.lan_kubeconfig()
    }

    /// Starts a program on one of its hosts.
    ///
    /// # Errors
    /// If it does not start.
    pub fn enter_on(&self, host: &Host, name: &str, program: &Path, arguments: &[&str]) -> Result<Actor> {
        let mut command = Command::new(program);
        // As in a deployment: with an election, although there is no other candidate.
        command
            .args(arguments)
            .env("KUBECONFIG", self.cluster.lan_kubeconfig())
            .env("LANDFALL_LEASE_NAMESPACE", SYSTEM);
        Ok(Actor { process: host.spawn(name, &command)? })
    }

    /// Creates Services of type LoadBalancer with these names, many at a time.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn create(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let made = stream::iter(names).map(|name| {
            let api = &api;
            async move {
                let service = serde_json::from_value(service(&name, None))?;
                api.create(&PostParams::default(), &service).await.with_context(|| format!("create Service {name}"))
            }
        });
        made.buffer_unordered(CREATORS).try_for_each(async |_| Ok(())).await
    }

    /// Waits until the control plane is idle, at most [`PATIENCE`].
    ///
    /// # Errors
    /// If it does not run.
    pub async fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.cpu()?;
            tokio::time::sleep(LOOK).await;
            let share = (self.cpu()? - before) / LOOK.as_secs_f64();
            if share < REST || Instant::now() > deadline {
                return Ok(());
            }
        }
    }

    /// The CPU time that the control plane has taken so far, in seconds.
    ///
    /// # Errors
    /// If it does not run.
    pub fn cpu(&self) -> Result<f64> {
        let names = ["etcd", "kube-apiserver", "kube-controller-manager"];
        let processes = names.map(|name| self.cluster.control_plane().process(name));
        processes.iter().flat_map(Process::pids).map(cpu).sum()
    }

    /// How many writes the API server has answered so far, by resource.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn writes(&self) -> Result<BTreeMap<String, u64>> {
        let page = self.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        Ok(metrics::writes(&page))
    }

    /// The number of objects of this kind.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn count(&self, plural: &str) -> Result<usize> {
        let path = format!("/apis/{LANDFALL}/v1alpha1/{plural}?limit=1");
        let list: Value = self.client.request(http::Request::get(path).body(Vec::new())?).await?;
        let metadata = &list["metadata"];
        let more = metadata["remainingItemCount"].as_u64().unwrap_or(0) as usize;
        Ok(list["items"].as_array().map_or(0, Vec::len) + more)
    }
}

/// A Service of type LoadBalancer for a measurement. It has no pods and no node ports: there are fewer node ports than
/// Services.
pub fn service(name: &str, class: Option<&str>) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]},
    });
    if let Some(class) = class {
        service["spec"]["loadBalancerClass"] = json!(class);
    }
    service
}

impl Actor {
    /// Checks that the process runs.
    ///
    /// # Errors
    /// If the process has ended. The error contains the end of its log.
    pub fn check(&self) -> Result<()> {
        ensure!(self.process.is_running(), "{} has ended: {}", self.process.name(), self.last_words());
        Ok(())
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.process.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" / ")
    }

    /// Sends SIGTERM, and waits until the process has ended.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn end(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.wait_for_end(PATIENCE).await
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn wait_for_end(&self, within: Duration) -> Result<()> {
        wait_until(within, &format!("{} to end", self.process.name()), async || {
            ensure!(!self.process.is_running(), "it runs");
            Ok(())
        })
        .await
    }

    /// Freezes the process.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn freeze(&self) -> Result<()> {
        self.process.freeze()
    }

    /// Thaws the process.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn thaw(&self) -> Result<()> {
        self.process.thaw()
    }

    /// The CPU time that it has taken so far, in seconds.
    ///
    /// # Errors
    /// If it has ended.
    pub fn cpu(&self) -> Result<f64> {
        self.process.pids().into_iter().map(cpu).sum()
    }

    /// Its resident memory in MiB, as the kernel counts it.
    ///
    /// # Errors
    /// If it has ended.
    pub fn rss(&self) -> Result<f64> {
        let Some(pid) = self.process.pids().first().copied() else { bail!("it has ended: {}", self.last_words()) };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>().context("VmRSS")? / 1024.0)
    }
}

/// User and system time of a process, in seconds (proc(5): fields 14 and 15; the name in field 2 may have spaces).
fn cpu(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} has ended"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS)
}
