//! Who answers for an address when a node dies and when it comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::World;
use e2e::world::SOON;
use lab::{Topology, wait_until};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn when_the_announcer_dies_another_node_answers_and_never_two_at_once() -> Result<()> {
    let world = World::with_landfall("e2e-death", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.203"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let first = world.announcer(address).await?;
    let macs = world.lan.macs(address)?;
    ensure!(macs.len() == 1, "{macs:?} answer before anything happened");

    world.cluster.power_off(&first)?;
    let died = Instant::now();
    // Connections that the dead node's pod would serve fail on, until its endpoint is known to be gone.
    let answered = wait_until(SOON, "an answer from another node", async || world.lan.udp(address)).await?;
    eprintln!("{address} answered {:?} after {first} lost its power, by {}", died.elapsed(), answered.pod);
    let second = wait_until(SOON, "another announcer", async || {
        let node = world.announcer(address).await?;
        ensure!(node != first, "still {node}");
        Ok(node)
    })
    .await?;
    let after = world.lan.macs(address)?;
    ensure!(after.len() == 1 && after != macs, "{after:?} answer after the death, {macs:?} before");

    // The node comes back, and takes nothing back.
    world.cluster.power_on(&first)?;
    world.wait_until_installed().await?;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        let now = world.lan.macs(address)?;
        ensure!(now == after, "{now:?} answer after {first} came back, {after:?} before");
    }
    ensure!(world.announcer(address).await? == second);
    world.end()
}
