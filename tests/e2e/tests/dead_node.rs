//! New connections after a node with endpoints loses its power, before Kubernetes notices.
//! [`takeover`] has the node that answers for the address then, [`failover`] the bounds of the outage.

mod failover;
mod takeover;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::SOON;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use lab::{Topology, wait_until};
use serde_json::json;

/// After this time every new connection must succeed. Landfall needs a fraction of it; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(5);

/// New connections are watched for this long after the deadline.
const WATCH_TIME: Duration = Duration::from_secs(6);

/// Limit of waiting for a connection.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Limit of waiting for the answer to a datagram while the outage is measured. It is the resolution of the measurement.
const UDP_TIMEOUT: Duration = Duration::from_millis(40);

/// Whether the Node object is Ready.
async fn is_ready(world: &World, node: &str) -> Result<bool> {
    let node = Api::<Node>::all(world.client.clone()).get(node).await?;
    let conditions = node.status.context("a status")?.conditions.unwrap_or_default();
    Ok(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Powers off a node, and checks that all new connections succeed after the deadline.
async fn power_off_and_check(world: &World, victim: &str, address: IpAddr) -> Result<()> {
    world.power_off(victim)?;
    let died = Instant::now();
    let mut last_loss = Duration::ZERO;
    while died.elapsed() < DEADLINE {
        if world.lan.query_udp_within(address, UDP_TIMEOUT).is_err() {
            last_loss = died.elapsed();
        }
    }
    eprintln!("{victim} died; the last datagram without an answer within {UDP_TIMEOUT:?} was sent {last_loss:?} later");
    let mut count = 0;
    while died.elapsed() < DEADLINE + WATCH_TIME || count < 30 {
        let since = died.elapsed();
        let answer = world.lan.query_tcp_within(address, TIMEOUT);
        ensure!(answer.is_ok(), "a connection failed {since:?} after the death of {victim}: {answer:?}");
        count += 1;
    }
    // If the node were not Ready, the connections could succeed because Kubernetes has removed its endpoints.
    ensure!(is_ready(world, victim).await?, "Kubernetes has noticed the death of {victim}");
    Ok(())
}

/// Powers on a node, and waits until its pod gets connections again.
async fn power_on_and_wait(world: &World, victim: &str, address: IpAddr, pod: &str) -> Result<()> {
    world.cluster.power_on(victim)?;
    world.wait_until_installed().await?;
    wait_until(4 * SOON, "the pod on the restarted node to be used", async || {
        let pods = world.lan.answering_pods(10, address)?;
        ensure!(pods.contains(pod), "{pods:?} answer");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_avoid_a_dead_node_at_once() -> Result<()> {
    let world = World::with_landfall("e2e-dead-node", Topology::default()).await?;
    world.create_pool("lan", &["192.0.2.200/32"]).await?;
    world.create_whoami("web", 3).await?;
    world.create_service("web", json!({})).await?;
    let address = world.wait_for_address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    let announcer = world.wait_for_announcer(address).await?;
    let pods = world.pod_nodes("web").await?;
    let (pod, other) = pods.iter().find(|(_, node)| *node != announcer).context("all pods are on one node")?;
    wait_until(SOON, "all pods to be used", async || {
        ensure!(world.lan.answering_pods(30, address)?.len() == pods.len());
        Ok(())
    })
    .await?;

    // First a node that only has endpoints, then the node that also announces the address.
    power_off_and_check(&world, other, address).await?;
    power_on_and_wait(&world, other, address, pod).await?;
    ensure!(world.wait_for_announcer(address).await? == announcer, "the address has moved for no reason");
    power_off_and_check(&world, &announcer, address).await?;
    world.end()
}
