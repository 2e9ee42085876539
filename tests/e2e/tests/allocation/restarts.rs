//! Controllers that come and go: nothing changes for those that have an address, nor for those that wait.

use anyhow::{Result, ensure};
use e2e::World;
use e2e::scene::{ASK_IPS, KEY, Scene, Scenes, annotated, merge};
use e2e::world::{CONTROLLER, SYSTEM};
use serde_json::json;

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_comes_back_finds_every_address_where_it_was_and_writes_nothing() -> Result<()> {
    let world = World::with_landfall("e2e-restarts", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(five_restarts_with_services_that_wait_change_nothing_and_write_nothing).await;
    scenes.play(what_happened_while_no_controller_was_there_is_put_right_by_the_next_one).await;
    scenes.end()?;
    world.end()
}

/// Names and versions of all that a controller writes.
async fn versions(scene: &Scene<'_>, services: &[&str]) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    let mut note = |name: &str, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        versions.push(format!("{name} {}", meta.resource_version.as_deref().unwrap_or_default()));
    };
    for name in services {
        note(name, &scene.get(name).await?.metadata);
    }
    note("pool", &scene.pools().get("lan").await?.metadata);
    for (address, record) in scene.records().await? {
        note(&address.to_string(), &record.metadata);
    }
    Ok(versions)
}

async fn five_restarts_with_services_that_wait_change_nothing_and_write_nothing(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 13), scene.ip6(0x10)]})).await?;
    // Those that wait sort before those that have addresses, so that who forgets what is given gives it to them.
    let mut shared = annotated(&[(KEY, "k")]);
    merge(&mut shared, json!({"spec": {"ports": [{"port": 81}]}}));
    let both = json!({"spec": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
    let asks = annotated(&[(ASK_IPS, &scene.ip(13).to_string())]);
    for (name, service) in [
        ("m-plain", json!({})),
        ("n-key", annotated(&[(KEY, "k")])),
        ("o-shares", shared),
        ("p-both", both),
        ("q-asks", asks),
    ] {
        scene.service(name, service).await?;
        scene.addresses(name).await?;
    }
    scene.service("a-waits", json!({})).await?;
    scene.refused("a-waits", "PoolsExhausted").await?;
    scene.asking("b-waits", &[(ASK_IPS, &scene.ip(10).to_string())]).await?;
    scene.refused("b-waits", "AddressInUse").await?;
    scene.pool_counts("lan", [4, 0, 1, 0]).await?;
    scene.settle().await?;
    let names = ["m-plain", "n-key", "o-shares", "p-both", "q-asks", "a-waits", "b-waits"];
    let before = versions(scene, &names).await?;
    for round in 1..=5 {
        if round % 2 == 1 {
            // All replicas at once, in the middle of whatever they do.
            scene.world.cluster.node("n1").kill("landfall controller")?;
        } else {
            scene.world.kubectl(&["-n", SYSTEM, "delete", "pods", "-l", CONTROLLER, "--now"])?;
        }
        scene.world.wait_until_installed().await?;
        // Somebody answers, so it has planned.
        scene.settle().await?;
        let after = versions(scene, &names).await?;
        ensure!(after == before, "round {round}: {before:?} became {after:?}");
    }
    scene.delete("m-plain").await?;
    // Who asks by name comes first.
    scene.has("b-waits", &[scene.ip(10)]).await?;
    scene.refused("a-waits", "PoolsExhausted").await?;
    Ok(())
}

async fn what_happened_while_no_controller_was_there_is_put_right_by_the_next_one(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 13)]})).await?;
    for name in ["stays", "leaves", "goes"] {
        scene.service(name, json!({})).await?;
        scene.addresses(name).await?;
    }
    let kept = scene.address("stays").await?;
    let scale =
        |replicas: &str| scene.world.kubectl(&["-n", SYSTEM, "scale", "deployment/landfall-controller", replicas]);
    let replicas = scene.world.controllers().await?;
    scale("--replicas=0")?;
    scene.world.wait_for_controllers(0).await?;
    scene.edit("leaves", json!({"spec": {"type": "ClusterIP"}})).await?;
    // Its finalizer keeps it until somebody has withdrawn the address.
    scene.world.kubectl(&["-n", &scene.in_full(""), "delete", "service", "goes", "--wait=false"])?;
    scene.service("comes", json!({})).await?;
    scene.forge("stays", json!({"status": {"loadBalancer": {"ingress": [{"ip": scene.ip(99)}]}}})).await?;
    scene.edit_pool_unseen("lan", json!({"addresses": [scene.ip(13)]})).await?;
    scale(&format!("--replicas={replicas}"))?;
    scene.has_with("stays", &[kept], "PoolGone").await?;
    scene.has("comes", &[scene.ip(13)]).await?;
    scene.is_let_go("leaves").await?;
    scene.is_gone("goes").await?;
    scene.world.wait_until_installed().await?;
    scene.pool_counts("lan", [1, 0, 0, 0]).await
}
