//! From `<pending>` to an answer on the LAN, with each kind of Service proxy and with none.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use e2e::world::{SOON, ingress};
use e2e::{Scene, World};
use lab::{KubeProxy, wait_until};
use serde_json::json;

pub async fn a_pending_service_gets_an_address_that_answers(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_whoami("web", 3).await?;
    world.create_service("web", json!({})).await?;
    let refusal = world.wait_for_refusal("web").await?;
    ensure!(refusal.reason == "NoPool", "{refusal:?}");

    world.create_pool("lan", &["192.0.2.200-192.0.2.201"]).await?;
    let address = world.wait_for_address("web").await?;
    let service = world.get_service("web").await?;
    ensure!(ingress(&service) == ["192.0.2.200".parse::<std::net::IpAddr>()?], "{:?}", service.status);
    let entry = service.status.unwrap_or_default().load_balancer.unwrap_or_default().ingress.unwrap_or_default();
    ensure!(entry[0].ip_mode.as_deref() == Some("VIP"), "{entry:?}");

    wait_until(SOON, "an answer over TCP", async || world.lan.query_tcp(address)).await?;
    wait_until(SOON, "an answer over UDP", async || world.lan.query_udp(address)).await?;
    // Three pods on three nodes: the chance that sixty connections miss one is 10^-10.
    let pods = world.lan.answering_pods(60, address)?;
    ensure!(pods.len() == 3, "only {pods:?} answered");

    let announcer = world.wait_for_announcer(address).await?;
    // Each pod on any node sees the client's address: the announcer hands packets on as frames.
    wait_until(SOON, "every pod to see the client", async || {
        for _ in 0..20 {
            let answer = world.lan.query_tcp(address)?;
            ensure!(answer.client.ip() == world.lan.address(), "pod {} saw {}", answer.pod, answer.client);
        }
        Ok(())
    })
    .await?;
    // Without spreading, as the Service requests: a pod on another node than the announcer sees the announcer's
    // address.
    let annotate = |value: &str| json!({"metadata": {"annotations": {"landfall.dev/spread": value}}});
    world.patch_service("web", annotate("false")).await?;
    let nodes: BTreeMap<_, _> = world.pod_nodes("web").await?.into_iter().collect();
    wait_until(SOON, "the announcer to translate addresses", async || {
        for _ in 0..20 {
            let answer = world.lan.query_tcp(address)?;
            let sees_client = answer.client.ip() == world.lan.address();
            let is_local = nodes[&answer.pod] == announcer;
            ensure!(sees_client == is_local, "pod {} on {} saw {}", answer.pod, nodes[&answer.pod], answer.client);
        }
        Ok(())
    })
    .await?;
    if world.cluster.topology().kube_proxy != KubeProxy::None {
        check_forwarding_through_the_proxy(world).await?;
    }
    let report = world.run_landfall(&["status"])?;
    ensure!(report.contains("default/web") && report.contains(&announcer), "{report}");
    Ok(())
}

/// Checks the backends `nodeport` and `clusterip`, which hand packets to kube-proxy, and `endpoints`.
async fn check_forwarding_through_the_proxy(world: &World) -> Result<()> {
    world.create_pool("both", &["192.0.2.210/32", "2001:db8::210/128"]).await?;
    world.create_service("through", json!({"selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack"})).await?;
    world.wait_for_address("through").await?;
    let addresses = ingress(&world.get_service("through").await?);
    ensure!(addresses.len() == 2, "{addresses:?}");
    let client = world.cluster.client_host("c1");
    let clients: [IpAddr; 2] = [client.ipv4().into(), client.ipv6().into()];
    let nodes: BTreeMap<_, _> = world.pod_nodes("web").await?.into_iter().collect();
    for (backend, policy, chain) in [
        ("nodeport", "Cluster", "to-node-port"),
        ("nodeport", "Local", "to-node-port"),
        ("clusterip", "Cluster", "to-cluster-ip"),
        // kube-proxy ignores this policy for a ClusterIP, so Landfall uses endpoints.
        ("clusterip", "Local", "pick-1"),
        ("endpoints", "Cluster", "pick-1"),
    ] {
        world
            .patch_service(
                "through",
                json!({
                    "metadata": {"annotations": {"landfall.dev/backend": backend}},
                    "spec": {"externalTrafficPolicy": policy},
                }),
            )
            .await?;
        let what = format!("backend {backend} under the policy {policy}");
        for (&address, client) in addresses.iter().zip(clients) {
            let announcer = world.wait_for_announcer(address).await?;
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            wait_until(SOON, &what, async || {
                world.cluster.node(&announcer).output(["nft", "list", "chain", family, "landfall", chain])?;
                // kube-proxy masquerades under Cluster.
                let expects_client = policy == "Local" || backend == "endpoints";
                for request in 0..12 {
                    let answer =
                        if request % 2 == 0 { world.lan.query_tcp(address)? } else { world.lan.query_udp(address)? };
                    let node = &nodes[&answer.pod];
                    let (from, sees_client) = (answer.client.ip(), answer.client.ip() == client);
                    ensure!(sees_client == expects_client, "{} on {node} saw {from} for {address}", answer.pod);
                    ensure!(
                        backend != "nodeport" || policy != "Local" || *node == announcer,
                        "{} is on {node}",
                        answer.pod
                    );
                }
                Ok(())
            })
            .await?;
        }
    }
    world.delete_service("through").await
}
