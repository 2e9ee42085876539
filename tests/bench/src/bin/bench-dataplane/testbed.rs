//! The cluster of the parts that observe a client on the LAN: three nodes with a deployed Landfall, beside kube-proxy
//! in nftables mode, and five pods: one on the first node, two on each of the others.
//!
//! A silent node stays Ready for the 50 s of Kubernetes' default, because kube-proxy depends on it.

mod client;
pub mod connections;
pub mod dead_node;
pub mod rolling;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::SOON;
use lab::{Host, Topology, wait_until};
use serde_json::json;

use crate::Bench;

/// The number of pods on each node.
const PODS: [(&str, i32); 3] = [("n1", 1), ("n2", 2), ("n3", 2)];

/// The port of Services.
const PORT: u16 = 80;

pub struct ForwardingTestbed {
    /// The cluster with Landfall.
    pub world: World,
    /// The host that sends requests.
    pub client: Host,
    /// The address and port of Landfall's Service.
    pub target: SocketAddr,
    /// The node of each pod.
    pub nodes: BTreeMap<String, String>,
    node_port: u16,
}

impl ForwardingTestbed {
    /// Starts the cluster, and waits until all pods answer.
    pub async fn start(bench: &Bench) -> Result<Self> {
        let topology = Topology { capture: false, ..Topology::default() };
        let world = World::with_landfall("bench-dataplane", topology).await?.stop_observing();
        world.create_pool("lan", &["192.0.2.200-192.0.2.209"]).await?;
        for (node, pods) in PODS {
            let spec = json!({"nodeName": node});
            world.create_whoami_with(&format!("web-{node}"), pods, spec).await?;
        }
        // One Service for all three Deployments.
        world.kubectl(&["label", "pods", "--all", "bench=web"])?;
        let service = world.create_service("web", json!({"selector": {"bench": "web"}})).await?;
        let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let node_port = ports.iter().find(|port| port.name.as_deref() == Some("tcp")).and_then(|port| port.node_port);
        let node_port = node_port.and_then(|port| u16::try_from(port).ok()).context("the Service has no node port")?;
        let address = world.wait_for_address("web").await?;
        let mut nodes = BTreeMap::new();
        for (node, _) in PODS {
            nodes.extend(world.pod_nodes(&format!("web-{node}")).await?);
        }
        world.wait_for_endpoints("web", nodes.len()).await?;
        let testbed = Self {
            client: world.cluster.client_host("c1"),
            target: SocketAddr::new(address, PORT),
            nodes,
            node_port,
            world,
        };
        testbed.wait_for_all_pods().await?;
        bench.progress("three nodes, Landfall, and an address at which all pods answer")?;
        Ok(testbed)
    }

    /// Waits until all pods answer at the address, and at the node port of each node.
    pub async fn wait_for_all_pods(&self) -> Result<()> {
        wait_until(4 * SOON, "all pods to answer", async || {
            let pods = self.world.lan.answering_pods(40, self.target.ip())?;
            ensure!(pods.len() == self.nodes.len(), "{} answer", pods.len());
            Ok(())
        })
        .await?;
        for (node, _) in PODS {
            let target = self.node_port(node);
            wait_until(4 * SOON, "the node port to answer", async || {
                self.client.query_tcp(target, Duration::from_millis(800)).map(drop)
            })
            .await?;
        }
        Ok(())
    }

    /// The node port of a node, where kube-proxy serves the same pods.
    pub fn node_port(&self, node: &str) -> SocketAddr {
        SocketAddr::new(self.world.cluster.node(node).ipv4().into(), self.node_port)
    }

    /// The node that announces the address.
    pub async fn owner(&self) -> Result<String> {
        self.world.wait_for_announcer(self.target.ip()).await
    }

    /// Waits until another node than this announces the address, and returns that node.
    pub async fn wait_for_move(&self, from: &str) -> Result<String> {
        wait_until(SOON, &format!("the address to leave {from}"), async || {
            let owner = self.owner().await?;
            ensure!(owner != from, "it is still there");
            Ok(owner)
        })
        .await
    }

    /// Powers a node on, and waits until all pods answer.
    pub async fn restore(&self, node: &str) -> Result<()> {
        self.world.cluster.power_on(node)?;
        self.world.wait_until_installed().await?;
        self.wait_for_all_pods().await
    }

    /// The share of all pods on each node.
    pub fn shares(&self) -> BTreeMap<&str, f64> {
        let mut shares = BTreeMap::new();
        for node in self.nodes.values() {
            *shares.entry(node.as_str()).or_default() += 1.0 / self.nodes.len() as f64;
        }
        shares
    }

    /// The client's own address.
    pub fn client_address(&self) -> IpAddr {
        self.client.ipv4().into()
    }

    /// Removes the cluster. Fails if a part of it remains.
    pub fn stop(self) -> Result<()> {
        self.world.end()
    }
}
