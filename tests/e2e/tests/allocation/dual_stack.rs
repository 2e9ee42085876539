//! Services with an address of either family.

use anyhow::{Result, ensure};
use e2e::World;
use e2e::scene::{ASK_IPS, Scene, Scenes, annotated, merge};
use e2e::world::ingress;
use serde_json::{Value, json};

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn services_get_the_families_they_want_and_the_first_address_never_changes() -> Result<()> {
    let world = World::with_landfall("e2e-families", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(each_policy_gets_its_families_in_the_order_of_the_service).await;
    scenes.play(the_two_families_may_come_from_two_pools_but_a_pool_with_both_is_preferred).await;
    scenes.play(who_prefers_both_is_content_with_one_and_gets_the_second_where_its_first_is).await;
    scenes.play(who_prefers_both_does_not_move_to_a_pool_with_both_nor_leave_one_that_had_them).await;
    scenes.play(who_requires_both_gets_both_or_none).await;
    scenes.play(from_prefer_to_require_and_back_on_a_pool_with_one_family).await;
    scenes.play(the_second_family_comes_and_goes_and_the_first_address_stays).await;
    scenes.play(addresses_that_are_named_fill_their_family_and_the_other_one_takes_any).await;
    scenes.end()?;
    world.end()
}

/// A Service of this policy, with these families.
fn families(policy: &str, families: &[&str]) -> Value {
    json!({"spec": {"ipFamilyPolicy": policy, "ipFamilies": families}})
}

async fn each_policy_gets_its_families_in_the_order_of_the_service(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(0x10, 0x1f), scene.range6(0x10, 0x1f)]})).await?;
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
        scene.service(name, service).await?;
        scene.has(name, &expected).await?;
    }
    Ok(())
}

async fn the_two_families_may_come_from_two_pools_but_a_pool_with_both_is_preferred(scene: &Scene<'_>) -> Result<()> {
    scene.pool("v4", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.pool("v6", json!({"addresses": [scene.range6(0x10, 0x19)]})).await?;
    scene.service("apart", families("RequireDualStack", &["IPv4", "IPv6"])).await?;
    scene.has("apart", &[scene.ip(10), scene.ip6(0x10)]).await?;
    scene.pool("both", json!({"addresses": [scene.range(30, 39), scene.range6(0x30, 0x39)]})).await?;
    for (name, policy, last) in [("require", "RequireDualStack", 0), ("prefer", "PreferDualStack", 1)] {
        scene.service(name, families(policy, &["IPv4", "IPv6"])).await?;
        scene.has(name, &[scene.ip(30 + last), scene.ip6(0x30 + u16::from(last))]).await?;
    }
    let records = scene.records().await?;
    let pools: Vec<_> = [scene.ip(10), scene.ip6(0x10), scene.ip(30), scene.ip6(0x30)]
        .iter()
        .map(|address| records.get(address).map(|record| record.spec.pool.clone()).unwrap_or_default())
        .collect();
    ensure!(pools == ["v4", "v6", "both", "both"], "{pools:?}");
    Ok(())
}

async fn who_prefers_both_is_content_with_one_and_gets_the_second_where_its_first_is(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    for (name, order, last) in [("one", ["IPv4", "IPv6"], 10), ("two", ["IPv4", "IPv6"], 11)] {
        scene.service(name, families("PreferDualStack", &order)).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.edit_pool("lan", json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})).await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.has(name, &[scene.ip(last), scene.ip6(0x10 + u16::from(last) - 10)]).await?;
    }
    // The first family is the one that must be there.
    scene.edit_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.service("v6-first", families("PreferDualStack", &["IPv6", "IPv4"])).await?;
    scene.refused("v6-first", "NoAutomaticPool").await?;
    Ok(())
}

async fn who_prefers_both_does_not_move_to_a_pool_with_both_nor_leave_one_that_had_them(
    scene: &Scene<'_>,
) -> Result<()> {
    scene.pool("v4", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.service("web", families("PreferDualStack", &["IPv4", "IPv6"])).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    scene.pool("both", json!({"addresses": [scene.range(30, 39), scene.range6(0x30, 0x39)]})).await?;
    scene.has("web", &[scene.ip(10), scene.ip6(0x30)]).await?;
    scene.service("other", families("PreferDualStack", &["IPv4", "IPv6"])).await?;
    scene.has("other", &[scene.ip(30), scene.ip6(0x31)]).await?;
    // The pool loses a family: whoever has an address of it keeps it.
    scene.edit_pool("both", json!({"addresses": [scene.range(30, 39)]})).await?;
    scene.has_with("other", &[scene.ip(30), scene.ip6(0x31)], "PoolGone").await?;
    scene.has_with("web", &[scene.ip(10), scene.ip6(0x30)], "PoolGone").await
}

async fn who_requires_both_gets_both_or_none(scene: &Scene<'_>) -> Result<()> {
    scene.pool("v4", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.service("web", families("RequireDualStack", &["IPv4", "IPv6"])).await?;
    let message = scene.refused("web", "DualStackUnavailable").await?;
    ensure!(message.contains("IPv6"), "{message}");
    ensure!(scene.records().await?.is_empty(), "{:?}", scene.records().await?);
    scene.pool("v6", json!({"addresses": [scene.ip6(0x10)]})).await?;
    scene.has("web", &[scene.ip(10), scene.ip6(0x10)]).await?;
    scene.service("late", families("RequireDualStack", &["IPv6", "IPv4"])).await?;
    let message = scene.refused("late", "DualStackUnavailable").await?;
    ensure!(message.contains("IPv6"), "{message}");
    scene.delete("web").await?;
    let got = scene.addresses("late").await?;
    ensure!(got.len() == 2 && got[0] == scene.ip6(0x10), "{got:?}");
    Ok(())
}

async fn from_prefer_to_require_and_back_on_a_pool_with_one_family(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.service("web", families("PreferDualStack", &["IPv4", "IPv6"])).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    scene.edit("web", json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}})).await?;
    scene.refused("web", "DualStackUnavailable").await?;
    scene.edit("web", json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).await?;
    scene.has("web", &[scene.ip(10)]).await
}

async fn the_second_family_comes_and_goes_and_the_first_address_stays(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})).await?;
    scene.service("other", json!({})).await?;
    scene.has("other", &[scene.ip(10)]).await?;
    scene.service("web", families("SingleStack", &["IPv4"])).await?;
    scene.has("web", &[scene.ip(11)]).await?;
    for policy in ["PreferDualStack", "RequireDualStack"] {
        scene.edit("web", families(policy, &["IPv4", "IPv6"])).await?;
        scene.has("web", &[scene.ip(11), scene.ip6(0x10)]).await?;
    }
    let clusterip = scene.get("web").await?.spec.unwrap_or_default().cluster_ip;
    let mut single = families("SingleStack", &["IPv4"]);
    merge(&mut single, json!({"spec": {"clusterIPs": [clusterip]}}));
    scene.edit("web", single).await?;
    scene.has("web", &[scene.ip(11)]).await?;
    scene.settle().await?;
    let other = ingress(&scene.get("other").await?);
    ensure!(other == [scene.ip(10)], "{other:?}");
    Ok(())
}

async fn addresses_that_are_named_fill_their_family_and_the_other_one_takes_any(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19), scene.range6(0x10, 0x19)]})).await?;
    let asking = |policy: &str, order: &[&str], addresses: &str| {
        let mut service = annotated(&[(ASK_IPS, addresses)]);
        merge(&mut service, families(policy, order));
        service
    };
    let (a, b) = (scene.ip(15), scene.ip6(0x17));
    scene.service("v4", asking("RequireDualStack", &["IPv4", "IPv6"], &a.to_string())).await?;
    scene.has("v4", &[a, scene.ip6(0x10)]).await?;
    scene.service("v6", asking("PreferDualStack", &["IPv4", "IPv6"], &b.to_string())).await?;
    scene.has("v6", &[scene.ip(10), b]).await?;
    let both = format!("{},{}", scene.ip6(0x18), scene.ip(18));
    scene.service("both", asking("RequireDualStack", &["IPv4", "IPv6"], &both)).await?;
    scene.has("both", &[scene.ip(18), scene.ip6(0x18)]).await?;
    scene.service("mismatch", asking("SingleStack", &["IPv4"], &both)).await?;
    let message = scene.refused("mismatch", "FamilyMismatch").await?;
    ensure!(message.contains(&scene.ip6(0x18).to_string()), "{message}");
    Ok(())
}
