//! Access of clients to a Service: both families, source ranges, session affinity.
//!
//! | file | content |
//! |---|---|
//! | [`ranges`] | source ranges, also while rules change |
//! | [`affinity`] | session affinity, under both traffic policies and when the address moves |

mod affinity;
mod ranges;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use e2e::World;
use e2e::traffic::control;
use e2e::world::{SOON, ingress};
use lab::{Topology, wait_until};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn source_ranges_and_affinity_hold_for_both_families() -> Result<()> {
    let world = World::with_landfall("e2e-terms", Topology { clients: 2, ..Topology::default() }).await?;
    world.create_pool("lan", &["192.0.2.200-192.0.2.202", "2001:db8::200-2001:db8::202"]).await?;
    control::create_pods(&world).await?;
    world.create_whoami("web", 3).await?;
    world.create_service("web", json!({"ipFamilyPolicy": "RequireDualStack"})).await?;
    let both = wait_for_both_addresses(&world, "web").await?;
    ensure!(both == ["192.0.2.200".parse::<IpAddr>()?, "2001:db8::200".parse()?], "{both:?}");
    for address in both {
        wait_until(SOON, &format!("all pods to answer at {address}"), async || {
            world.lan.query_udp(address)?;
            let pods = world.lan.answering_pods(40, address)?;
            ensure!(pods.len() == 3, "of three pods only {pods:?} answered 40 connections");
            Ok(())
        })
        .await?;
    }
    for node in affinity::NODES {
        world.create_whoami_with(&affinity::pods_on(node), 2, json!({"nodeName": node})).await?;
    }
    let affinity_timeout = affinity::affinity_ends_after_its_timeout(&world);
    tokio::try_join!(ranges::only_clients_in_source_ranges_are_served(&world, both), affinity_timeout)?;
    ranges::excluded_clients_get_no_answer_during_changes(&world, both).await?;
    affinity::affinity_survives_moves_of_the_address(&world).await?;
    world.end()
}

/// Waits until a Service has an address of each family, and returns them.
async fn wait_for_both_addresses(world: &World, service: &str) -> Result<[IpAddr; 2]> {
    wait_until(SOON, &format!("both addresses of {service}"), async || {
        let shown = ingress(&world.get_service(service).await?);
        shown.try_into().map_err(|shown| anyhow::anyhow!("{shown:?}"))
    })
    .await
}
