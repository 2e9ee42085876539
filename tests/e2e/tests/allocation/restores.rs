//! Services keep their addresses when they are restored from a backup, and when Landfall is installed again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::Scenes;
use e2e::scene::{SHARING_KEY, Scene, merge, with_annotations};
use e2e::world::{CONTROLLER, SOON, SYSTEM, allocated_condition};
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use lab::wait_until;
use observer::Fault;
use serde_json::{Value, json};

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add_last(restores_and_reinstallations_renumber_nothing);
}

const NAMES: [&str; 4] = ["a-shares", "b-shares", "c-both", "d-plain"];

async fn restores_and_reinstallations_renumber_nothing(scene: &Scene<'_>) -> Result<()> {
    let addresses = create_services(scene).await?;
    restore_with_records(scene).await?;
    expect_all(scene, &addresses).await.context("after the restore")?;
    reinstall(scene).await?;
    expect_all(scene, &addresses).await.context("after the reinstallation")
}

fn pool(scene: &Scene<'_>) -> Value {
    json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})
}

/// Creates the Services. None has the first free address of the pool.
async fn create_services(scene: &Scene<'_>) -> Result<BTreeMap<&'static str, Vec<IpAddr>>> {
    scene.create_pool("lan", pool(scene)).await?;
    let both = json!({"spec": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}});
    let mut shared = with_annotations(&[(SHARING_KEY, "k")]);
    merge(&mut shared, json!({"spec": {"ports": [{"port": 81}]}}));
    scene.create_service("first", both.clone()).await?;
    scene.wait_for_addresses("first").await?;
    let all = [with_annotations(&[(SHARING_KEY, "k")]), shared, both, json!({})];
    let mut addresses = BTreeMap::new();
    for (name, service) in NAMES.into_iter().zip(all) {
        scene.create_service(name, service).await?;
        addresses.insert(name, scene.wait_for_addresses(name).await?);
    }
    ensure!(addresses["a-shares"] == addresses["b-shares"], "{addresses:?}");
    scene.delete_service("first").await?;
    Ok(addresses)
}

/// While no controller runs, deletes all Services, and creates them again with their status. The records stay.
async fn restore_with_records(scene: &Scene<'_>) -> Result<()> {
    let scale =
        |replicas: &str| scene.world.kubectl(&["-n", SYSTEM, "scale", "deployment/landfall-controller", replicas]);
    let replicas = scene.world.controller_replicas().await?;
    let before = record_uids(scene).await?;
    scale("--replicas=0")?;
    scene.world.wait_for_controllers(0).await?;
    // It would be the first to get an address, and the lowest one.
    scene.create_service("a-fresh", json!({})).await?;
    for name in NAMES {
        let old = scene.get_service(name).await?;
        scene.patch_service(name, json!({"metadata": {"finalizers": null}})).await?;
        scene.delete_service(name).await?;
        let new = scene.create_service(name, backup_of(&old)?).await?;
        ensure!(new.uid() != old.uid() && new.metadata.finalizers.is_none(), "{:?}", new.metadata);
        scene.patch_service_status(name, json!({"status": old.status})).await?;
    }
    scale(&format!("--replicas={replicas}"))?;
    scene.wait_for_address("a-fresh").await?;
    let after = record_uids(scene).await?;
    ensure!(before.iter().all(|(lb_ip, uid)| after.get(lb_ip) == Some(uid)), "{before:?} became {after:?}");
    Ok(())
}

/// The Service in a backup.
fn backup_of(old: &Service) -> Result<Value> {
    let annotations = &old.metadata.annotations;
    Ok(json!({"metadata": {"annotations": annotations}, "spec": serde_json::to_value(&old.spec)?}))
}

/// Deletes the definitions and with them all pools and records. A new controller starts before the pool exists.
async fn reinstall(scene: &Scene<'_>) -> Result<()> {
    let services = NAMES.iter().chain(&["a-fresh"]);
    services.for_each(|name| scene.world.declare(Fault::lost_records(&format!("{}/{name}", scene.namespace_name("")))));
    let kinds = crds::manifest::definitions();
    let kinds: Vec<_> = kinds.iter().filter_map(|kind| kind.metadata.name.as_deref()).collect();
    scene.world.kubectl(&[&["delete", "crd"], &kinds[..]].concat())?;
    scene.world.kubectl(&["-n", SYSTEM, "delete", "pods", "-l", CONTROLLER, "--now"])?;
    scene.world.cluster.apply(&crds::manifest::yaml()?)?;
    scene.world.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
    for name in NAMES {
        wait_until(SOON, &format!("{name} to report that no pool exists"), async || {
            let condition = allocated_condition(&scene.get_service(name).await?).context("no condition")?;
            ensure!(condition.reason == "NoPool", "{condition:?}");
            Ok(())
        })
        .await?;
    }
    scene.create_pool("lan", pool(scene)).await
}

async fn expect_all(scene: &Scene<'_>, addresses: &BTreeMap<&str, Vec<IpAddr>>) -> Result<()> {
    for (name, expected) in addresses {
        scene.expect_addresses(name, expected).await?;
    }
    Ok(())
}

async fn record_uids(scene: &Scene<'_>) -> Result<BTreeMap<IpAddr, Option<String>>> {
    Ok(scene.records().await?.into_iter().map(|(lb_ip, record)| (lb_ip, record.uid())).collect())
}
