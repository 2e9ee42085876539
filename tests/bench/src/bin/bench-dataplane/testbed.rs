//! The cluster for what a client on the LAN sees: three nodes with Landfall as it is deployed, beside kube-proxy in nftables
//! mode, and five pods, of which one node has one and the others two.
//!
//! A silent node stays Ready for as long as Kubernetes' default says (50 s), for that is what kube-proxy goes by.

mod client;
pub mod connections;
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

/// How many pods each node has.
const PODS: [(&str, i32); 3] = [("n1", 1), ("n2", 2), ("n3", 2)];

/// The port of Services.
const PORT: u16 = 80;

/// The cluster.
pub struct Stand {
    /// It, with Landfall.
    pub world: World,
    /// Who asks.
    pub client: Host,
    /// Where Landfall's Service is asked.
    pub target: SocketAddr,
    /// The pods, and the node of each.
    pub nodes: BTreeMap<String, String>,
    node_port: u16,
}

impl Stand {
    /// Makes it.
    ///
    /// # Errors
    /// If the cluster doesn't come up, or the address doesn't answer.
    pub async fn set(bench: &Bench) -> Result<Self> {
        let topology = Topology { capture: false, ..Topology::default() };
        let world = World::with_landfall("bench-dataplane", topology).await?;
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
        let stand = Self {
            client: world.cluster.client_host("c1"),
            target: SocketAddr::new(address, PORT),
            nodes,
            node_port,
            world,
        };
        stand.whole().await?;
        bench.progress("three nodes, Landfall, and an address at which all pods answer")?;
        Ok(stand)
    }

    /// Waits until all pods answer at the address, and at the node port of each node.
    ///
    /// # Errors
    /// If they don't in time.
    pub async fn whole(&self) -> Result<()> {
        wait_until(4 * SOON, "all pods to answer", async || {
            let pods = self.world.lan.answering_pods(40, self.target.ip())?;
            ensure!(pods.len() == self.nodes.len(), "{} answer", pods.len());
            Ok(())
        })
        .await?;
        for (node, _) in PODS {
            let at = self.node_port(node);
            wait_until(4 * SOON, "the node port to answer", async || {
                self.client.query_tcp(at, Duration::from_millis(800)).map(drop)
            })
            .await?;
        }
        Ok(())
    }

    /// Where kube-proxy serves the same pods on a node.
    pub fn node_port(&self, node: &str) -> SocketAddr {
        SocketAddr::new(self.world.cluster.node(node).ipv4().into(), self.node_port)
    }

    /// Who announces the address.
    ///
    /// # Errors
    /// If nobody does.
    pub async fn owner(&self) -> Result<String> {
        self.world.wait_for_announcer(self.target.ip()).await
    }

    /// Waits until somebody else announces the address than this node.
    ///
    /// # Errors
    /// If nobody does in time.
    pub async fn moved(&self, from: &str) -> Result<String> {
        wait_until(SOON, &format!("the address to leave {from}"), async || {
            let owner = self.owner().await?;
            ensure!(owner != from, "it is there");
            Ok(owner)
        })
        .await
    }

    /// Gives a node its power back, and waits until all is as before.
    ///
    /// # Errors
    /// If it isn't in time.
    pub async fn regain(&self, node: &str) -> Result<()> {
        self.world.cluster.power_on(node)?;
        self.world.wait_until_installed().await?;
        self.whole().await
    }

    /// The share of the pods that each node has.
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

    /// Takes it down.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn strike(self) -> Result<()> {
        self.world.end()
    }
}
