//! Services with addresses of one or both families.

use anyhow::{Result, ensure};
use e2e::Scenes;
use e2e::scene::{ADDRESSES_ANNOTATION, Scene, merge, with_annotations};
use e2e::world::ingress;
use serde_json::{Value, json};

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(families_are_allocated_in_the_order_of_the_service);
    scenes.add(a_pool_with_both_families_is_preferred);
    scenes.add(prefer_dual_stack_gets_the_second_family_later);
    scenes.add(prefer_dual_stack_keeps_its_addresses_when_pools_change);
    scenes.add(require_dual_stack_gets_both_families_or_none);
    scenes.add(a_changed_family_policy_is_applied_both_ways);
    scenes.add(the_first_address_stays_when_the_second_changes);
    scenes.add(an_unrequested_family_gets_any_address);
}

/// The fields of a Service with this policy and these families.
fn families(policy: &str, families: &[&str]) -> Value {
    json!({"spec": {"ipFamilyPolicy": policy, "ipFamilies": families}})
}

async fn families_are_allocated_in_the_order_of_the_service(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(0x10, 0x1f), scene.range6(0x10, 0x1f)]})).await?;
    let (v4, v6) = (|last| scene.ip(last), |last| scene.ip6(last));
    for (name, service, expected) in [
        ("v4", families("SingleStack", &["IPv4"]), vec![v4(0x10)]),
        ("v6", families("SingleStack", &["IPv6"]), vec![v6(0x10)]),
        ("prefer", families("PreferDualStack", &["IPv4", "IPv6"]), vec![v4(0x11), v6(0x11)]),
        ("prefer-v6", families("PreferDualStack", &["IPv6", "IPv4"]), vec![v6(0x12), v4(0x12)]),
        ("require", families("RequireDualStack", &["IPv4", "IPv6"]), vec![v4(0x13), v6(0x13)]),
        ("require-v6", families("RequireDualStack", &["IPv6", "IPv4"]), vec![v6(0x14), v4(0x14)]),
        // Kubernetes fills in the families of the cluster, IPv4 first.
        ("default", json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}}), vec![v4(0x15), v6(0x15)]),
    ] {
        scene.create_service(name, service).await?;
        scene.expect_addresses(name, &expected).await?;
    }
    Ok(())
}

async fn a_pool_with_both_families_is_preferred(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("v4", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_pool("v6", json!({"addresses": [scene.range6(0x10, 0x19)]})).await?;
    scene.create_service("apart", families("RequireDualStack", &["IPv4", "IPv6"])).await?;
    scene.expect_addresses("apart", &[scene.ip(10), scene.ip6(0x10)]).await?;
    scene.create_pool("both", json!({"addresses": [scene.range(30, 39), scene.range6(0x30, 0x39)]})).await?;
    for (name, policy, last) in [("require", "RequireDualStack", 0), ("prefer", "PreferDualStack", 1)] {
        scene.create_service(name, families(policy, &["IPv4", "IPv6"])).await?;
        scene.expect_addresses(name, &[scene.ip(30 + last), scene.ip6(0x30 + u16::from(last))]).await?;
    }
    let records = scene.records().await?;
    let pools: Vec<_> = [scene.ip(10), scene.ip6(0x10), scene.ip(30), scene.ip6(0x30)]
        .iter()
        .map(|address| records.get(address).map(|record| record.spec.pool.clone()).unwrap_or_default())
        .collect();
    ensure!(pools == ["v4", "v6", "both", "both"], "{pools:?}");
    Ok(())
}

async fn prefer_dual_stack_gets_the_second_family_later(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    for (name, order, last) in [("one", ["IPv4", "IPv6"], 10), ("two", ["IPv4", "IPv6"], 11)] {
        scene.create_service(name, families("PreferDualStack", &order)).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.edit_pool("lan", json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})).await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.expect_addresses(name, &[scene.ip(last), scene.ip6(0x10 + u16::from(last) - 10)]).await?;
    }
    // The first family is required.
    scene.edit_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("v6-first", families("PreferDualStack", &["IPv6", "IPv4"])).await?;
    scene.expect_refusal("v6-first", "NoAutomaticPool").await?;
    Ok(())
}

async fn prefer_dual_stack_keeps_its_addresses_when_pools_change(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("v4", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("web", families("PreferDualStack", &["IPv4", "IPv6"])).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    scene.create_pool("both", json!({"addresses": [scene.range(30, 39), scene.range6(0x30, 0x39)]})).await?;
    scene.expect_addresses("web", &[scene.ip(10), scene.ip6(0x30)]).await?;
    scene.create_service("other", families("PreferDualStack", &["IPv4", "IPv6"])).await?;
    scene.expect_addresses("other", &[scene.ip(30), scene.ip6(0x31)]).await?;
    // The pool loses a family: holders keep its addresses.
    scene.edit_pool("both", json!({"addresses": [scene.range(30, 39)]})).await?;
    scene.expect_addresses_with("other", &[scene.ip(30), scene.ip6(0x31)], "PoolGone").await?;
    scene.expect_addresses_with("web", &[scene.ip(10), scene.ip6(0x30)], "PoolGone").await
}

async fn require_dual_stack_gets_both_families_or_none(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("v4", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("web", families("RequireDualStack", &["IPv4", "IPv6"])).await?;
    let message = scene.expect_refusal("web", "DualStackUnavailable").await?;
    ensure!(message.contains("IPv6"), "{message}");
    ensure!(scene.records().await?.is_empty(), "{:?}", scene.records().await?);
    scene.create_pool("v6", json!({"addresses": [scene.ip6(0x10)]})).await?;
    scene.expect_addresses("web", &[scene.ip(10), scene.ip6(0x10)]).await?;
    scene.create_service("late", families("RequireDualStack", &["IPv6", "IPv4"])).await?;
    let message = scene.expect_refusal("late", "DualStackUnavailable").await?;
    ensure!(message.contains("IPv6"), "{message}");
    scene.delete_service("web").await?;
    let addresses = scene.wait_for_addresses("late").await?;
    ensure!(addresses.len() == 2 && addresses[0] == scene.ip6(0x10), "{addresses:?}");
    Ok(())
}

async fn a_changed_family_policy_is_applied_both_ways(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("web", families("PreferDualStack", &["IPv4", "IPv6"])).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    scene.patch_service("web", json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}})).await?;
    scene.expect_refusal("web", "DualStackUnavailable").await?;
    scene.patch_service("web", json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await
}

async fn the_first_address_stays_when_the_second_changes(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})).await?;
    scene.create_service("other", json!({})).await?;
    scene.expect_addresses("other", &[scene.ip(10)]).await?;
    scene.create_service("web", families("SingleStack", &["IPv4"])).await?;
    scene.expect_addresses("web", &[scene.ip(11)]).await?;
    for policy in ["PreferDualStack", "RequireDualStack"] {
        scene.patch_service("web", families(policy, &["IPv4", "IPv6"])).await?;
        scene.expect_addresses("web", &[scene.ip(11), scene.ip6(0x10)]).await?;
    }
    let clusterip = scene.get_service("web").await?.spec.unwrap_or_default().cluster_ip;
    let mut single = families("SingleStack", &["IPv4"]);
    merge(&mut single, json!({"spec": {"clusterIPs": [clusterip]}}));
    scene.patch_service("web", single).await?;
    scene.expect_addresses("web", &[scene.ip(11)]).await?;
    scene.settle().await?;
    let other = ingress(&scene.get_service("other").await?);
    ensure!(other == [scene.ip(10)], "{other:?}");
    Ok(())
}

async fn an_unrequested_family_gets_any_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})).await?;
    let request = |policy: &str, order: &[&str], addresses: &str| {
        let mut service = with_annotations(&[(ADDRESSES_ANNOTATION, addresses)]);
        merge(&mut service, families(policy, order));
        service
    };
    let (a, b) = (scene.ip(15), scene.ip6(0x17));
    scene.create_service("v4", request("RequireDualStack", &["IPv4", "IPv6"], &a.to_string())).await?;
    scene.expect_addresses("v4", &[a, scene.ip6(0x10)]).await?;
    scene.create_service("v6", request("PreferDualStack", &["IPv4", "IPv6"], &b.to_string())).await?;
    scene.expect_addresses("v6", &[scene.ip(10), b]).await?;
    let both = format!("{},{}", scene.ip6(0x18), scene.ip(18));
    scene.create_service("both", request("RequireDualStack", &["IPv4", "IPv6"], &both)).await?;
    scene.expect_addresses("both", &[scene.ip(18), scene.ip6(0x18)]).await?;
    scene.create_service("mismatch", request("SingleStack", &["IPv4"], &both)).await?;
    let message = scene.expect_refusal("mismatch", "FamilyMismatch").await?;
    ensure!(message.contains(&scene.ip6(0x18).to_string()), "{message}");
    Ok(())
}
