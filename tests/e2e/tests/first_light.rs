//! From `<pending>` to an answer on the LAN, with each kind of Service proxy and with none.

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
    let nodes: std::collections::BTreeMap<_, _> = world.pods("web").await?.into_iter().collect();
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
    let report = world.landfall(&["status"])?;
    ensure!(report.contains("default/web") && report.contains(&announcer), "{report}");
    world.end()
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
