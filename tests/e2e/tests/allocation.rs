//! Which Service gets which address, and what is said when none is left.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::{SOON, allocated, ingress};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use lab::{KubeProxy, Topology, wait_until};
use serde_json::json;

/// Allocation needs one node at most, and no Service proxy.
fn small() -> Topology {
    Topology { nodes: 1, ..Topology::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_services_get_three_addresses_and_the_next_one_waits_for_its_turn() -> Result<()> {
    let world = World::with_landfall("e2e-turns", small()).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.202"]).await?;
    let mut addresses = BTreeSet::new();
    for name in ["one", "two", "three"] {
        world.service(name, json!({})).await?;
        addresses.insert(world.address(name).await?);
    }
    ensure!(addresses.len() == 3, "{addresses:?}");

    world.service("late", json!({})).await?;
    let refusal = world.refused("late").await?;
    ensure!(refusal.reason == "PoolsExhausted", "{refusal:?}");
    let events: Api<Event> = Api::default_namespaced(world.client.clone());
    wait_until(SOON, "a Warning about it", async || {
        let events = events.list(&ListParams::default()).await?;
        let warned = events.items.iter().any(|event| {
            event.type_.as_deref() == Some("Warning")
                && event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref()) == Some("late")
        });
        ensure!(warned, "{} events, none of them", events.items.len());
        Ok(())
    })
    .await?;

    let freed = world.address("two").await?;
    world.delete_service("two").await?;
    let got = world.address_within(Duration::from_secs(5), "late").await?;
    ensure!(got == freed, "{got} instead of {freed}");

    world.service("later", json!({})).await?;
    world.refused("later").await?;
    world.patch_service("one", json!({"spec": {"type": "ClusterIP"}})).await?;
    world.address_within(Duration::from_secs(5), "later").await?;
    wait_until(SOON, "nothing of Landfall to be left on the Service that changed its type", async || {
        let service = world.get_service("one").await?;
        ensure!(service.metadata.finalizers.is_none(), "{:?}", service.metadata.finalizers);
        ensure!(ingress(&service).is_empty() && allocated(&service).is_none(), "{:?}", service.status);
        Ok(())
    })
    .await?;
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_finds_every_address_where_it_was_and_writes_nothing() -> Result<()> {
    let world = World::with_landfall("e2e-killed", small()).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.202"]).await?;
    for name in ["one", "two", "three"] {
        world.service(name, json!({})).await?;
        world.address(name).await?;
    }
    // Asks for what it can't have, and stays pending whatever becomes of the others.
    world.service("pending", json!({"loadBalancerIP": "203.0.113.1"})).await?;
    world.refused("pending").await?;
    let versions = async || -> Result<Vec<_>> {
        let mut versions = Vec::new();
        for name in ["one", "two", "pending"] {
            let service = world.get_service(name).await?;
            versions.push((name, ingress(&service), service.metadata.resource_version));
        }
        Ok(versions)
    };
    let before = versions().await?;
    let restarts = async || -> Result<i32> {
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(world.client.clone(), e2e::world::SYSTEM);
        let pods = pods.list(&ListParams::default().labels("app.kubernetes.io/component=controller")).await?;
        let pod = pods.items.into_iter().next().context("no controller")?;
        let statuses = pod.status.and_then(|status| status.container_statuses).context("not started")?;
        ensure!(statuses[0].ready, "not ready");
        Ok(statuses[0].restart_count)
    };
    let count = restarts().await?;
    world.cluster.node("n1").kill("landfall controller")?;
    wait_until(SOON, "the controller to be back", async || {
        ensure!(restarts().await? > count, "not restarted");
        Ok(())
    })
    .await?;
    // Only a controller takes its finalizer away and gives the address to the next one: then it has planned.
    let freed = world.address("three").await?;
    world.delete_service("three").await?;
    world.service("next", json!({})).await?;
    let got = world.address("next").await?;
    ensure!(got == freed, "{got} instead of {freed}");
    let after = versions().await?;
    ensure!(after == before, "something was written: {before:?}, then {after:?}");
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_pool_is_said_where_it_is_wrong_and_harms_nobody() -> Result<()> {
    let world = World::with_landfall("e2e-pools", small()).await?;
    for (range, says) in [
        ("192.0.2.300-192.0.2.301", "is neither a CIDR"),
        ("192.0.2.0/33", "is neither a CIDR"),
        ("everything", "is neither a CIDR"),
        ("192.0.2.9-192.0.2.1", "ends before it begins"),
        ("192.0.2.9-2001:db8::1", "goes from one address family to the other"),
    ] {
        let error = world.pool("bad", &["192.0.2.250/32", range]).await.expect_err("a bad range").to_string();
        ensure!(error.contains(says) && error.contains(range) && error.contains("addresses[1]"), "{range}: {error}");
    }
    world.pool("first", &["192.0.2.200-192.0.2.201"]).await?;
    world.service("one", json!({})).await?;
    world.address("one").await?;
    world.pool("second", &["192.0.2.201-192.0.2.202"]).await?;
    wait_until(SOON, "the overlap to be reported on the later pool", async || {
        let pool = world.get_pool("second").await?;
        let conditions = pool.status.unwrap_or_default().conditions;
        let overlap = conditions.iter().find(|c| c.type_ == "Overlap").context("no condition yet")?;
        ensure!(overlap.status == "True" && overlap.message.contains("first"), "{overlap:?}");
        Ok(())
    })
    .await?;
    let conditions = world.get_pool("first").await?.status.unwrap_or_default().conditions;
    ensure!(conditions.iter().all(|c| c.type_ != "Overlap" || c.status == "False"), "{conditions:?}");
    let mut addresses = BTreeSet::from([world.address("one").await?]);
    for name in ["two", "three"] {
        world.service(name, json!({})).await?;
        addresses.insert(world.address(name).await?);
    }
    ensure!(addresses.len() == 3, "all addresses of both pools: {addresses:?}");
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_a_foreign_class_is_never_touched() -> Result<()> {
    let world = World::with_landfall("e2e-foreign", Topology { kube_proxy: KubeProxy::Nftables, ..small() }).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.202"]).await?;
    let created = world.service("foreign", json!({"loadBalancerClass": "example.com/other"})).await?;
    // Whoever is served after it proves that it was seen.
    world.service("ours", json!({"loadBalancerClass": "landfall.dev/landfall"})).await?;
    world.address("ours").await?;
    let now = world.get_service("foreign").await?;
    ensure!(now.metadata.resource_version == created.metadata.resource_version, "{now:?}");
    ensure!(world.addresses().await?.len() == 1);
    world.end()
}
