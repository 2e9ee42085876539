//! Health checks for external load balancers, of Services with `externalTrafficPolicy: Local`.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::world::SOON;
use e2e::{Scene, World};
use lab::wait_until;
use serde_json::json;

/// Waits until each node answers with this status; `None` means no answer.
async fn expect_statuses(world: &World, port: u16, expected: &[(&str, Option<u16>)]) -> Result<()> {
    for (node, status) in expected {
        let address = IpAddr::from(world.cluster.node(node).ipv4());
        wait_until(SOON, &format!("{node} to answer {status:?} at port {port}"), async || {
            let seen = world.lan.get_health(address, port).map(|(status, _)| status).ok();
            ensure!(seen == *status, "{seen:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Without kube-proxy. kube-proxy itself answers at these ports if it runs.
pub async fn health_checks_work_without_kube_proxy(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &["192.0.2.200/32"]).await?;
    world.create_whoami_with("web", 1, json!({"nodeName": "n1"})).await?;
    let local = json!({"externalTrafficPolicy": "Local"});
    world.create_service("web", local).await?;
    world.wait_for_address("web").await?;
    let spec = world.get_service("web").await?.spec.unwrap_or_default();
    let port = spec.health_check_node_port.context("the API server gives it a port")?.try_into()?;
    expect_statuses(world, port, &[("n1", Some(200)), ("n2", Some(503)), ("n3", Some(503))]).await?;
    let (_, answer) = world.lan.get_health(world.cluster.node("n1").ipv4().into(), port)?;
    ensure!(answer.to_lowercase().contains("x-load-balancing-endpoint-weight: 1"), "{answer}");
    ensure!(answer.contains("\"localEndpoints\":1"), "{answer}");
    // Over IPv6 as well.
    let (status, _) = world.lan.get_health(world.cluster.node("n1").ipv6().into(), port)?;
    ensure!(status == 200, "{status} over IPv6");

    world.scale("web", 0).await?;
    expect_statuses(world, port, &[("n1", Some(503)), ("n2", Some(503))]).await?;
    world.patch_service("web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await?;
    expect_statuses(world, port, &[("n1", None), ("n2", None), ("n3", None)]).await?;
    world.scale("web", 1).await?;
    // The API server reserves the port of a patch. If Landfall writes the status at the same moment, the patch is tried
    // again, and finds its own port reserved. So no write of a status may be due.
    world.kubectl(&["wait", "--for=condition=landfall.dev/Forwarding", "service/web", "--timeout=30s"])?;
    let again = json!({"spec": {"externalTrafficPolicy": "Local", "healthCheckNodePort": port}});
    world.patch_service("web", again).await?;
    expect_statuses(world, port, &[("n1", Some(200)), ("n2", Some(503)), ("n3", Some(503))]).await?;
    world.delete_service("web").await?;
    expect_statuses(world, port, &[("n1", None), ("n2", None), ("n3", None)]).await
}
