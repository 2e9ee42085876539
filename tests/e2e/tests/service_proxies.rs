//! From `<pending>` to an answer on the LAN, with each kind of Service proxy and with none.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use e2e::World;
use e2e::world::{SOON, ingress};
use lab::{KubeProxy, Topology, wait_until};
use serde_json::json;

async fn an_address_appears_and_answers(name: &str, kube_proxy: KubeProxy) -> Result<()> {
    let world = World::with_landfall(name, Topology { kube_proxy, ..Topology::default() }).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    let refusal = world.refused("web").await?;
    ensure!(refusal.reason == "NoPool", "{refusal:?}");

    world.pool("lan", &["192.0.2.200-192.0.2.201"]).await?;
    let address = world.address("web").await?;
    let service = world.get_service("web").await?;
    ensure!(ingress(&service) == ["192.0.2.200".parse::<std::net::IpAddr>()?], "{:?}", service.status);
    let entry = service.status.unwrap_or_default().load_balancer.unwrap_or_default().ingress.unwrap_or_default();
    ensure!(entry[0].ip_mode.as_deref() == Some("VIP"), "{entry:?}");

    wait_until(SOON, "an answer over TCP", async || world.lan.tcp(address)).await?;
    wait_until(SOON, "an answer over UDP", async || world.lan.udp(address)).await?;
    // Three pods on as many nodes: each gets its share of sixty connections, but with a chance of 10^-10.
    let pods = world.lan.pods(60, address)?;
    ensure!(pods.len() == 3, "only {pods:?} answered");

    let announcer = world.announcer(address).await?;
    // Wherever its node is, each pod sees the client as it is: what came to the announcer was handed on as a frame.
    wait_until(SOON, "every pod to see the client", async || {
        for _ in 0..20 {
            let answer = world.lan.tcp(address)?;
            ensure!(answer.client.ip() == world.lan.address(), "pod {} saw {}", answer.pod, answer.client);
        }
        Ok(())
    })
    .await?;
    // The other way, where the Service wants that: elsewhere than on the announcer, a pod sees that node.
    let annotate = |value: &str| json!({"metadata": {"annotations": {"landfall.dev/spread": value}}});
    world.patch_service("web", annotate("false")).await?;
    let nodes: BTreeMap<_, _> = world.pods("web").await?.into_iter().collect();
    wait_until(SOON, "the announcer to translate by itself", async || {
        for _ in 0..20 {
            let answer = world.lan.tcp(address)?;
            let kept = answer.client.ip() == world.lan.address();
            let local = nodes[&answer.pod] == announcer;
            ensure!(kept == local, "pod {} on {} saw {}", answer.pod, nodes[&answer.pod], answer.client);
        }
        Ok(())
    })
    .await?;
    if kube_proxy != KubeProxy::None {
        the_service_proxy_serves_it_too(&world).await?;
    }
    let report = world.landfall(&["status"])?;
    ensure!(report.contains("default/web") && report.contains(&announcer), "{report}");
    world.end()
}

/// Packets are given to kube-proxy, which sends them on as it sends what comes to its node port or to its ClusterIP.
async fn the_service_proxy_serves_it_too(world: &World) -> Result<()> {
    world.pool("both", &["192.0.2.210/32", "2001:db8::210/128"]).await?;
    world.service("through", json!({"selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack"})).await?;
    world.address("through").await?;
    let addresses = ingress(&world.get_service("through").await?);
    ensure!(addresses.len() == 2, "{addresses:?}");
    let client = world.cluster.client_host("c1");
    let clients: [IpAddr; 2] = [client.ipv4().into(), client.ipv6().into()];
    let nodes: BTreeMap<_, _> = world.pods("web").await?.into_iter().collect();
    for (backend, policy, chain) in [
        ("nodeport", "Cluster", "to-node-port"),
        ("nodeport", "Local", "to-node-port"),
        ("clusterip", "Cluster", "to-cluster-ip"),
        // Behind a ClusterIP nobody keeps to that policy, so it is not asked.
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
            let announcer = world.announcer(address).await?;
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            wait_until(SOON, &what, async || {
                world.cluster.node(&announcer).output(["nft", "list", "chain", family, "landfall", chain])?;
                // Where kube-proxy decides, it masquerades all but what it keeps on the node.
                let keeps = policy == "Local" || backend == "endpoints";
                for ask in 0..12 {
                    let answer = if ask % 2 == 0 { world.lan.tcp(address)? } else { world.lan.udp(address)? };
                    let on = &nodes[&answer.pod];
                    let (from, kept) = (answer.client.ip(), answer.client.ip() == client);
                    ensure!(kept == keeps, "{} on {on} saw {from} for {address}", answer.pod);
                    ensure!(
                        backend != "nodeport" || policy != "Local" || *on == announcer,
                        "{} is on {on}",
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

#[tokio::test(flavor = "multi_thread")]
async fn an_address_answers_beside_kube_proxy_nftables() -> Result<()> {
    an_address_appears_and_answers("e2e-nftables", KubeProxy::Nftables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_answers_beside_kube_proxy_iptables() -> Result<()> {
    an_address_appears_and_answers("e2e-iptables", KubeProxy::Iptables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_answers_without_kube_proxy() -> Result<()> {
    an_address_appears_and_answers("e2e-noproxy", KubeProxy::None).await
}
