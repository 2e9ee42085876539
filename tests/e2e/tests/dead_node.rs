//! What clients notice when a node with endpoints loses its power, and Kubernetes does not know it yet.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::SOON;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use lab::{Topology, wait_until};
use serde_json::json;

/// From when on every new connection must succeed. It takes a fraction of this; the rest is for a machine that compiles at the
/// same time.
const DEADLINE: Duration = Duration::from_secs(5);

/// For how long they are watched after that.
const WATCHED: Duration = Duration::from_secs(6);

/// How long a connection may take that succeeds.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a datagram is given while the gap is measured: it decides how exactly.
const BRIEF: Duration = Duration::from_millis(40);

/// Whether Kubernetes takes the node for Ready.
async fn is_ready(world: &World, node: &str) -> Result<bool> {
    let node = Api::<Node>::all(world.client.clone()).get(node).await?;
    let conditions = node.status.context("a status")?.conditions.unwrap_or_default();
    Ok(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Takes the power from a node, and sees to it that soon all new connections succeed nevertheless.
async fn lose(world: &World, victim: &str, address: IpAddr) -> Result<()> {
    world.cluster.power_off(victim)?;
    let died = Instant::now();
    let mut bad = Duration::ZERO;
    while died.elapsed() < DEADLINE {
        if world.lan.udp_within(address, BRIEF).is_err() {
            bad = died.elapsed();
        }
    }
    eprintln!(
        "without {victim}, the last datagram that was not answered within {BRIEF:?} was lost {bad:?} after its death"
    );
    let mut count = 0;
    while died.elapsed() < DEADLINE + WATCHED || count < 30 {
        let begun = died.elapsed();
        let answer = world.lan.tcp_within(address, PATIENCE);
        ensure!(answer.is_ok(), "a connection failed that began {begun:?} after the death of {victim}: {answer:?}");
        count += 1;
    }
    // Otherwise Kubernetes has helped.
    ensure!(is_ready(world, victim).await?, "Kubernetes knows already that {victim} is dead");
    Ok(())
}

/// Gives it back, and waits until its pods get connections again.
async fn regain(world: &World, victim: &str, address: IpAddr, pod: &str) -> Result<()> {
    world.cluster.power_on(victim)?;
    world.wait_until_installed().await?;
    wait_until(4 * SOON, "the pod on the node that came back to be used", async || {
        let pods = world.lan.pods(10, address)?;
        ensure!(pods.contains(pod), "{pods:?} answer");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_goes_to_a_dead_node_although_kubernetes_calls_it_ready() -> Result<()> {
    let world = World::with_landfall("e2e-dead-node", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200/32"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let announcer = world.announcer(address).await?;
    let pods = world.pods("web").await?;
    let (pod, other) = pods.iter().find(|(_, node)| *node != announcer).context("all pods are on one node")?;
    wait_until(SOON, "all pods to be used", async || {
        ensure!(world.lan.pods(30, address)?.len() == pods.len());
        Ok(())
    })
    .await?;

    // One that only has endpoints; then the one that announces the address too, if it has any.
    lose(&world, other, address).await?;
    regain(&world, other, address, pod).await?;
    ensure!(world.announcer(address).await? == announcer, "the address has moved for no reason");
    lose(&world, &announcer, address).await?;
    world.end()
}
