//! On which terms clients reach a Service: over both families, from where they may, and with whom they stay.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::world::{SOON, ingress};
use e2e::{Connect, World};
use lab::{Topology, wait_until};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_both_families_from_where_they_may_and_stay_with_their_endpoint() -> Result<()> {
    let world = World::with_landfall("e2e-terms", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200/32", "2001:db8::200/128"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({"ipFamilyPolicy": "RequireDualStack"})).await?;
    world.address("web").await?;
    let both: Vec<IpAddr> = ingress(&world.get_service("web").await?);
    ensure!(both == ["192.0.2.200".parse::<IpAddr>()?, "2001:db8::200".parse()?], "{both:?}");
    both_answer(&world, &both).await?;
    for address in &both {
        let pods = world.lan.pods(40, *address)?;
        ensure!(pods.len() == 3, "{address}: of three pods only {pods:?} answered 40 connections");
    }

    // Only from elsewhere: nobody gets in, over neither family; then from the LAN again.
    let ranges = |ranges: &[&str]| json!({"spec": {"loadBalancerSourceRanges": ranges}});
    world.patch_service("web", ranges(&["198.51.100.0/24", "2001:db8:1::/48"])).await?;
    for address in &both {
        wait_until(SOON, &format!("{address} to be closed to this client"), async || {
            let seen = world.lan.connect(*address, 80)?;
            ensure!(seen == Connect::Silence, "{seen:?}");
            ensure!(world.lan.udp(*address).is_err(), "UDP is answered");
            Ok(())
        })
        .await?;
    }
    world.patch_service("web", ranges(&["192.0.2.0/24", "2001:db8::/64"])).await?;
    both_answer(&world, &both).await?;

    // A client that is to stay with its endpoint does, in each family.
    world.patch_service("web", json!({"spec": {"sessionAffinity": "ClientIP"}})).await?;
    for address in &both {
        wait_until(SOON, &format!("one pod alone to answer at {address}"), async || {
            let pods = world.lan.pods(15, *address)?;
            ensure!(pods.len() == 1, "{pods:?}");
            Ok(())
        })
        .await?;
    }
    world.patch_service("web", json!({"spec": {"sessionAffinity": "None"}})).await?;
    wait_until(SOON, "several pods to answer again", async || {
        let pods = world.lan.pods(15, both[0])?;
        ensure!(pods.len() > 1, "{pods:?}");
        Ok(())
    })
    .await?;

    // The announcer of the IPv6 address dies. The client's neighbour entry is as fresh as can be.
    let first = world.announcer(both[1]).await?;
    world.cluster.power_off(&first)?;
    wait_until(Duration::from_secs(5), "another node to answer over IPv6", async || {
        world.lan.udp_within(both[1], Duration::from_millis(50))
    })
    .await?;
    wait_until(SOON, "another node to say that it announces", async || {
        let node = world.announcer(both[1]).await?;
        ensure!(node != first, "still {node}");
        Ok(())
    })
    .await?;
    world.end()
}

async fn both_answer(world: &World, both: &[IpAddr]) -> Result<()> {
    for address in both {
        wait_until(SOON, &format!("an answer over TCP and UDP from {address}"), async || {
            world.lan.tcp(*address)?;
            world.lan.udp(*address)
        })
        .await?;
    }
    Ok(())
}
