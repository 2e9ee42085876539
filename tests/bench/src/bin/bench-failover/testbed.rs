//! The cluster that everything is measured on: three nodes with Landfall as it is deployed, a client, and hosts for
//! keepalived at the same switch.
//!
//! There is no Service proxy, and a node stays Ready for an hour after it was heard last: what is measured is how addresses
//! move, and nothing else is to move meanwhile. The Service that is asked has a pod on every node and the traffic policy
//! Local: whoever has its address answers by itself, and no question goes to a node that is cut off.

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

/// The nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Addresses beside the one that is asked, so that every node has some.
const OTHERS: usize = 9;

/// The cluster.
pub struct Stand {
    /// It, with Landfall.
    pub world: World,
    /// Who asks.
    pub client: Host,
    /// The address that is asked.
    pub address: IpAddr,
}

impl Stand {
    /// Makes it.
    ///
    /// # Errors
    /// If the cluster doesn't come up, or the address doesn't answer.
    pub async fn set(bench: &Bench) -> Result<Self> {
        let topology = Topology {
            nodes: NODES.len() as u8,
            // The first one asks, the others are keepalived's.
            clients: 1 + keepalived::HOSTS,
            kube_proxy: KubeProxy::None,
            node_monitor_grace: Duration::from_secs(3600),
            capture: false,
            ..Topology::default()
        };
        let world = World::with_landfall("bench-failover", topology).await?;
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

    /// Takes it down.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn strike(self) -> Result<()> {
        self.world.end()
    }

    /// The host whom the client takes for the owner of an address, by its table of neighbours.
    ///
    /// # Errors
    /// If the client doesn't know, or nobody has this MAC address.
    pub fn owner(&self, address: IpAddr) -> Result<Host> {
        let shown = self.client.output(["ip", "neigh", "show", &address.to_string(), "dev", "eth0"])?;
        let mac = shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
        let mac = mac.with_context(|| format!("the client doesn't know where {address} is: {shown:?}"))?;
        let hosts = self.world.cluster.hosts()?.into_iter();
        hosts.into_iter().find(|host| host.mac().as_deref() == Some(mac)).with_context(|| format!("nobody is {mac}"))
    }

    /// The client asks again where this address is before it sends anything else there, and so has a fresh entry.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn forget(&self, address: IpAddr) -> Result<()> {
        self.client.output(["ip", "neigh", "del", &address.to_string(), "dev", "eth0"]).map(drop)
    }
}

/// A Service that nobody serves: its address is announced, and refuses connects.
pub fn without_pods() -> Value {
    json!({"allocateLoadBalancerNodePorts": false})
}

/// The MAC address of a host.
///
/// # Errors
/// If it has none.
pub fn mac(host: &Host) -> Result<MacAddr> {
    let text = host.mac().context("the switch has no MAC address")?;
    let bytes: Vec<u8> = text.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    ensure!(bytes.len() == 6, "{text} is no MAC address");
    Ok(std::array::from_fn(|n| bytes[n]))
}
