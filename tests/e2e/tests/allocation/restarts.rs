//! Restarts of the controller change nothing, for Services with and without an address.

use anyhow::{Result, ensure};
use e2e::Scenes;
use e2e::scene::{ADDRESSES_ANNOTATION, SHARING_KEY, Scene, merge, with_annotations};
use e2e::world::{CONTROLLER, SYSTEM};
use observer::Component;
use serde_json::json;

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(restarts_write_nothing);
    scenes.add(the_next_controller_repairs_changes_made_without_one);
}

/// Names and versions of all objects that a controller writes.
async fn versions(scene: &Scene<'_>, services: &[&str]) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    let mut note = |name: &str, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        versions.push(format!("{name} {}", meta.resource_version.as_deref().unwrap_or_default()));
    };
    for name in services {
        note(name, &scene.get_service(name).await?.metadata);
    }
    note("pool", &scene.pool_api().get("lan").await?.metadata);
    for (address, record) in scene.records().await? {
        note(&address.to_string(), &record.metadata);
    }
    Ok(versions)
}

async fn restarts_write_nothing(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 13), scene.ip6(0x10)]})).await?;
    // Waiting Services sort before allocated ones: a controller that forgot the allocations would serve them first.
    let mut shared = with_annotations(&[(SHARING_KEY, "k")]);
    merge(&mut shared, json!({"spec": {"ports": [{"port": 81}]}}));
    let both = json!({"spec": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
    let asks = with_annotations(&[(ADDRESSES_ANNOTATION, &scene.ip(13).to_string())]);
    for (name, service) in [
        ("m-plain", json!({})),
        ("n-key", with_annotations(&[(SHARING_KEY, "k")])),
        ("o-shares", shared),
        ("p-both", both),
        ("q-asks", asks),
    ] {
        scene.create_service(name, service).await?;
        scene.wait_for_addresses(name).await?;
    }
    scene.create_service("a-waits", json!({})).await?;
    scene.expect_refusal("a-waits", "PoolsExhausted").await?;
    scene.create_annotated("b-waits", &[(ADDRESSES_ANNOTATION, &scene.ip(10).to_string())]).await?;
    scene.expect_refusal("b-waits", "AddressInUse").await?;
    scene.expect_pool_counts("lan", [4, 0, 1, 0]).await?;
    scene.settle().await?;
    let names = ["m-plain", "n-key", "o-shares", "p-both", "q-asks", "a-waits", "b-waits"];
    let before = versions(scene, &names).await?;
    for round in 1..=5 {
        if round % 2 == 1 {
            // Kills all replicas at once.
            scene.world.kill(Component::Controller, "n1")?;
        } else {
            scene.world.kubectl(&["-n", SYSTEM, "delete", "pods", "-l", CONTROLLER, "--now"])?;
        }
        scene.world.wait_until_installed().await?;
        // The answer shows that the new controller has planned.
        scene.settle().await?;
        let after = versions(scene, &names).await?;
        ensure!(after == before, "round {round}: {before:?} became {after:?}");
    }
    scene.delete_service("m-plain").await?;
    // A Service with a request comes first.
    scene.expect_addresses("b-waits", &[scene.ip(10)]).await?;
    scene.expect_refusal("a-waits", "PoolsExhausted").await?;
    Ok(())
}

async fn the_next_controller_repairs_changes_made_without_one(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 13)]})).await?;
    for name in ["stays", "leaves", "goes"] {
        scene.create_service(name, json!({})).await?;
        scene.wait_for_addresses(name).await?;
    }
    let kept = scene.wait_for_address("stays").await?;
    let scale =
        |replicas: &str| scene.world.kubectl(&["-n", SYSTEM, "scale", "deployment/landfall-controller", replicas]);
    let replicas = scene.world.controller_replicas().await?;
    scale("--replicas=0")?;
    scene.world.wait_for_controllers(0).await?;
    scene.patch_service("leaves", json!({"spec": {"type": "ClusterIP"}})).await?;
    // Its finalizer keeps it until a controller has deleted the record.
    scene.world.kubectl(&["-n", &scene.namespace_name(""), "delete", "service", "goes", "--wait=false"])?;
    scene.create_service("comes", json!({})).await?;
    scene
        .patch_service_status("stays", json!({"status": {"loadBalancer": {"ingress": [{"ip": scene.ip(99)}]}}}))
        .await?;
    scene.patch_pool("lan", json!({"addresses": [scene.ip(13)]})).await?;
    scale(&format!("--replicas={replicas}"))?;
    scene.expect_addresses_with("stays", &[kept], "PoolGone").await?;
    scene.expect_addresses("comes", &[scene.ip(13)]).await?;
    scene.expect_released("leaves").await?;
    scene.expect_deleted("goes").await?;
    scene.world.wait_until_installed().await?;
    scene.expect_pool_counts("lan", [1, 0, 0, 0]).await
}
