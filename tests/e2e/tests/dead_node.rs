//! New connections after a node with endpoints loses its power, before Kubernetes notices.
//! [`takeover`] has the node that answers for the address then, [`failover`] the bounds of the outage.

mod failover;
mod takeover;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::world::SOON;
use e2e::{Target, TrafficPlan, World};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use lab::{Topology, wait_until};
use load::TryPlan;
use serde_json::json;

/// After this time every new connection must succeed. Landfall needs a fraction of it; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(5);

/// New connections are watched for this long after the deadline.
const WATCH_TIME: Duration = Duration::from_secs(6);

/// Limit of waiting for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Minimum number of new connections after the deadline.
const MIN_CONNECTIONS: usize = 30;

/// Whether the Node object is Ready.
async fn is_ready(world: &World, node: &str) -> Result<bool> {
    let node = Api::<Node>::all(world.client.clone()).get(node).await?;
    let conditions = node.status.context("a status")?.conditions.unwrap_or_default();
    Ok(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Powers off a node, and checks that all new connections and datagrams are answered after the deadline.
async fn power_off_and_check(world: &World, victim: &str, address: IpAddr) -> Result<()> {
    let targets = Target::over_both("web", address).map(|target| {
        let plan = TryPlan { timeout: TIMEOUT, ..target.plan };
        Target { plan, ..target }
    });
    let traffic = TrafficPlan::new(targets).past_nodes().start(world).await?;
    world.power_off(victim)?;
    let died = traffic.clock.now();
    tokio::time::sleep(DEADLINE + WATCH_TIME).await;
    let run = traffic.stop()?;
    run.print(&format!("{victim} without power since {died:.3?}"));
    for (target, record) in &run.records {
        let lost = record.tries.iter().filter(|one| !one.outcome.is_answered());
        let last = lost.max_by_key(|one| one.started).filter(|one| one.started >= died);
        let since = last.map_or(Duration::ZERO, |one| one.started - died);
        eprintln!("  {}: the last request without an answer was sent {since:.1?} later", target.label());
        ensure!(since < DEADLINE, "{}: a request failed {since:?} after the death of {victim}", target.label());
        let count = record.tries.iter().filter(|one| one.started >= died + DEADLINE).count();
        ensure!(count >= MIN_CONNECTIONS, "{}: only {count} requests after the deadline", target.label());
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
