//! On which terms clients reach a Service: over both families, from where they may, and with whom they stay.
//!
//! | room | what is in it |
//! |---|---|
//! | [`ranges`] | who may come, and that nobody else gets in while that changes |
//! | [`affinity`] | clients that stay with their endpoint, under both traffic policies and when the address moves |

mod affinity;
mod ranges;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use e2e::World;
use e2e::world::{SOON, ingress};
use lab::{Topology, wait_until};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_both_families_from_where_they_may_and_stay_with_their_endpoint() -> Result<()> {
    let world = World::with_landfall("e2e-terms", Topology { clients: 2, ..Topology::default() }).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.202", "2001:db8::200-2001:db8::202"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({"ipFamilyPolicy": "RequireDualStack"})).await?;
    let both = addresses(&world, "web").await?;
    ensure!(both == ["192.0.2.200".parse::<IpAddr>()?, "2001:db8::200".parse()?], "{both:?}");
    for address in both {
        wait_until(SOON, &format!("all pods to answer at {address}"), async || {
            world.lan.udp(address)?;
            let pods = world.lan.pods(40, address)?;
            ensure!(pods.len() == 3, "of three pods only {pods:?} answered 40 connections");
            Ok(())
        })
        .await?;
    }
    for node in affinity::NODES {
        world.whoami_on(&affinity::pods_on(node), 2, json!({"nodeName": node})).await?;
    }
    let forgets = affinity::a_client_that_was_away_for_longer_than_the_service_says_is_forgotten(&world);
    tokio::try_join!(ranges::who_may_is_served_and_nobody_else(&world, both), forgets)?;
    ranges::who_may_not_is_never_answered_while_rules_change(&world, both).await?;
    affinity::a_client_stays_under_both_policies_and_wherever_the_address_moves(&world).await?;
    world.end()
}

/// Waits until a Service has an address of either family, and returns them.
async fn addresses(world: &World, service: &str) -> Result<[IpAddr; 2]> {
    wait_until(SOON, &format!("both addresses of {service}"), async || {
        let shown = ingress(&world.get_service(service).await?);
        shown.try_into().map_err(|shown| anyhow::anyhow!("{shown:?}"))
    })
    .await
}
