//! Where connections go while endpoints, ports and agents come and go.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::world::SOON;
use e2e::{Connect, World};
use lab::{Topology, wait_until};
use serde_json::json;

/// How soon a change that the API server knows of must show on the wire. It takes milliseconds; this is what a machine that is
/// busy with something else may add.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_endpoints_and_ports_show_at_once() -> Result<()> {
    let world = World::with_landfall("e2e-changes", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200/32"]).await?;
    world.whoami_on("web", 1, json!({"nodeName": "n1"})).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let says = |condition: &str| {
        let condition = format!("--for=condition=landfall.dev/Forwarding={condition}");
        world.kubectl(&["wait", &condition, "service/web", "--timeout=30s"])
    };
    says("true")?;

    // A port that no Service has is dropped; one without endpoints is refused.
    ensure!(world.lan.connect(address, 81)? == Connect::Silence);
    world.scale("web", 0).await?;
    world.endpoints("web", 0).await?;
    wait_until(AT_ONCE, "a refusal without endpoints", async || {
        let seen = world.lan.connect(address, 80)?;
        ensure!(seen == Connect::Refused, "{seen:?}");
        Ok(())
    })
    .await?;
    ensure!(world.lan.udp(address).is_err(), "UDP is answered without endpoints");
    says("false")?;
    world.scale("web", 1).await?;
    world.endpoints("web", 1).await?;
    wait_until(AT_ONCE, "an answer after scaling up", async || world.lan.tcp(address)).await?;
    says("true")?;
    let row = world.kubectl(&["get", "lbip", "192.0.2.200"])?;
    ensure!(row.contains("REACH") && row.contains("Spread"), "{row}");

    // The endpoint moves to another node: with the old one gone and the new one ready, only the new one answers.
    world.kubectl(&["delete", "deployment", "web", "--wait=true", "--cascade=foreground"])?;
    world.whoami_on("web", 1, json!({"nodeName": "n2"})).await?;
    let (pod, node) = world.pods("web").await?.remove(0);
    ensure!(node == "n2", "{pod} is on {node}");
    world.endpoints("web", 1).await?;
    wait_until(AT_ONCE, "an answer from the other node", async || world.lan.tcp(address)).await?;
    ensure!(world.lan.pods(10, address)? == [pod].into());

    let ports = |numbers: &[u16]| {
        let port = |n: &u16| json!({"name": format!("p{n}"), "port": n, "targetPort": 8080, "protocol": "TCP"});
        json!({"spec": {"ports": numbers.iter().map(port).collect::<Vec<_>>()}})
    };
    world.patch_service("web", ports(&[80, 81])).await?;
    wait_until(AT_ONCE, "the new port", async || {
        ensure!(world.lan.connect(address, 81)? == Connect::Accepted);
        Ok(())
    })
    .await?;
    world.patch_service("web", ports(&[81])).await?;
    wait_until(AT_ONCE, "the old port to be closed", async || {
        ensure!(world.lan.connect(address, 80)? == Connect::Silence);
        Ok(())
    })
    .await?;
    ensure!(world.lan.connect(address, 81)? == Connect::Accepted);
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_leaves_the_kernel_forwarding_and_flushes_nothing_when_it_is_back() -> Result<()> {
    let world = World::with_landfall("e2e-agent", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200/32"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let announcer = world.announcer(address).await?;
    let node = world.cluster.node(&announcer);
    // With the numbers that the kernel gave to tables, chains and rules, which change if anything is made anew; without
    // what was counted, which changes all the time.
    let rules = async || node.output(["nft", "-a", "-s", "list", "table", "ip", "landfall"]);
    let before = rules().await?;
    node.kill("landfall node")?;
    let (mut lost, begun) = (0, Instant::now());
    // Through the death, the start and the first reconciliation of the next agent.
    while begun.elapsed() < Duration::from_secs(6) {
        lost += usize::from(world.lan.tcp(address).is_err());
    }
    wait_until(SOON, "the agent to be back", async || {
        let running = node.processes("landfall node");
        ensure!(!running.is_empty(), "not started again");
        Ok(())
    })
    .await?;
    world.wait_until_installed().await?;
    ensure!(rules().await? == before, "handles changed: the table was made anew\n{before}\n{}", rules().await?);
    // The successor needs three Hellos to notice and one frame to say so; a connection attempt waits 800 ms. One more is for
    // a machine that is busy.
    ensure!(lost <= 2, "{lost} connections were lost");
    world.end()
}
