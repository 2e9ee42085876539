//! The cluster of all parts: three nodes with a deployed Landfall, a client, and hosts for keepalived at the same
//! switch.
//!
//! There is no Service proxy, and a silent node stays Ready for an hour. Only addresses may move during a measurement.
//! The measured Service has a pod on every node and the traffic policy Local. Thus the owner of its address answers by
//! itself, and no request reaches a node that is cut off.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::sniffer::MacAddr;
use e2e::World;
use e2e::world::SOON;
use lab::{Host, KubeProxy, Topology, wait_until};
use serde_json::{Value, json};

use crate::Bench;
use crate::keepalived;

pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The number of further addresses, so that every node has some.
const OTHERS: usize = 9;

pub struct FailoverTestbed {
    /// The cluster with Landfall.
    pub world: World,
    /// The host that sends requests.
    pub client: Host,
    /// The measured address.
    pub address: IpAddr,
}

impl FailoverTestbed {
    /// Starts the cluster, and waits until the address answers.
    pub async fn start(bench: &Bench) -> Result<Self> {
        let topology = Topology {
            nodes: NODES.len() as u8,
            // The first one sends requests, the others run keepalived.
            clients: 1 + keepalived::HOSTS,
            kube_proxy: KubeProxy::None,
            node_monitor_grace: Duration::from_secs(3600),
            capture: false,
            ..Topology::default()
        };
        let world = World::with_landfall("bench-failover", topology).await?.stop_observing();
        let client = world.cluster.client_host("c1");
        world.create_pool("lan", &["192.0.2.200-192.0.2.229"]).await?;
        let spread = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
        world.create_whoami_with("web", NODES.len() as i32, json!({"topologySpreadConstraints": spread})).await?;
        world.create_service("web", json!({"externalTrafficPolicy": "Local"})).await?;
        for n in 0..OTHERS {
            world.create_service(&format!("other-{n}"), without_pods()).await?;
            world.wait_for_address(&format!("other-{n}")).await?;
        }
        let address = world.wait_for_address("web").await?;
        wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
        bench.progress("three nodes, Landfall, and an address that answers")?;
        Ok(Self { world, client, address })
    }

    /// Removes the cluster. Fails if a part of it remains.
    pub fn stop(self) -> Result<()> {
        self.world.end()
    }

    /// The owner of an address according to the client's neighbour table. Fails without an entry, or if no host has its
    /// MAC address.
    pub fn owner(&self, address: IpAddr) -> Result<Host> {
        let shown = self.client.output(["ip", "neigh", "show", &address.to_string(), "dev", "eth0"])?;
        let mac = shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
        let mac = mac.with_context(|| format!("the client has no neighbour {address}: {shown:?}"))?;
        let hosts = self.world.cluster.hosts()?.into_iter();
        hosts.into_iter().find(|host| host.mac().as_deref() == Some(mac)).with_context(|| format!("no host has {mac}"))
    }

    /// Deletes the client's neighbour entry of an address. Its next packet then resolves the address, and the entry is
    /// fresh.
    pub fn delete_neighbour(&self, address: IpAddr) -> Result<()> {
        self.client.output(["ip", "neigh", "del", &address.to_string(), "dev", "eth0"]).map(drop)
    }
}

/// The spec of a Service without pods: its address is announced, and refuses connects.
pub fn without_pods() -> Value {
    json!({"allocateLoadBalancerNodePorts": false})
}

pub fn mac(host: &Host) -> Result<MacAddr> {
    let text = host.mac().context("the switch has no MAC address")?;
    let bytes: Vec<u8> = text.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    ensure!(bytes.len() == 6, "{text} is no MAC address");
    Ok(std::array::from_fn(|n| bytes[n]))
}
