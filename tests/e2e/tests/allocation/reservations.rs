//! Addresses that are kept, with and without a Service.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use crds::{LoadBalancerIP, Reservation};
use e2e::World;
use e2e::scene::{ASK_IPS, Scene, Scenes, annotated};
use e2e::world::{SOON, allocated, ingress};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use lab::wait_until;
use serde_json::{Value, json};

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_address_is_kept_used_when_asked_for_and_not_deleted_from_under_a_service() -> Result<()> {
    let world = World::with_landfall("e2e-reserved", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(a_reserved_address_goes_to_who_asks_for_it_and_outlives_its_services).await;
    scenes.play(an_address_reserved_for_a_namespace_or_a_service_goes_to_nobody_else).await;
    scenes.play(a_service_that_an_address_is_kept_for_gets_it_without_asking).await;
    scenes.play(an_address_in_use_becomes_a_reservation_and_stops_being_one).await;
    scenes.play(a_reservation_gets_nobody_past_a_fence_and_none_out_of_no_pool).await;
    scenes.play(an_address_in_use_cannot_be_deleted_and_an_unused_reservation_can).await;
    scenes.end()?;
    world.end()
}

/// Creates a reservation.
async fn reserve(scene: &Scene<'_>, address: IpAddr, reservation: Value) -> Result<LoadBalancerIP> {
    let mut spec = json!({"address": address});
    if !reservation.is_null() {
        spec["reservation"] = reservation;
    }
    let object = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP",
        "metadata": {"name": crds::address::object_name(address)}, "spec": spec,
    });
    Ok(scene.lbips().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

fn asking(address: IpAddr) -> Value {
    annotated(&[(ASK_IPS, &address.to_string())])
}

/// Waits until this is what is recorded of an address: the holders' names, the pool, the reservation.
async fn is_recorded(
    scene: &Scene<'_>,
    address: IpAddr,
    holders: &[&str],
    pool: &str,
    reservation: Option<Reservation>,
) -> Result<()> {
    wait_until(SOON, &format!("{address} to be recorded as {holders:?} {pool:?} {reservation:?}"), async || {
        let record = scene.records().await?.remove(&address).context("there is no record")?;
        let names: Vec<_> = record.spec.services.iter().map(|holder| holder.name.as_str()).collect();
        let seen = (names.as_slice(), record.spec.pool.as_str(), &record.spec.reservation);
        ensure!(seen == (holders, pool, &reservation), "{seen:?}");
        Ok(())
    })
    .await
}

async fn a_reserved_address_goes_to_who_asks_for_it_and_outlives_its_services(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 12), scene.range6(0x10, 0x11)]})).await?;
    let anybody = Some(Reservation::default());
    // With the field, without it, and of the other family.
    reserve(scene, scene.ip(10), json!({})).await?;
    reserve(scene, scene.ip(11), Value::Null).await?;
    reserve(scene, scene.ip6(0x10), json!({})).await?;
    scene.pool_counts("lan", [2, 1, 1, 1]).await?;
    scene.service("any", json!({})).await?;
    scene.has("any", &[scene.ip(12)]).await?;
    scene.service("late", json!({})).await?;
    scene.refused("late", "PoolsExhausted").await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.service(name, asking(scene.ip(last))).await?;
        scene.has(name, &[scene.ip(last)]).await?;
        is_recorded(scene, scene.ip(last), &[name], "lan", anybody.clone()).await?;
    }
    scene.pool_counts("lan", [3, 0, 1, 1]).await?;
    scene.delete("one").await?;
    is_recorded(scene, scene.ip(10), &[], "lan", anybody.clone()).await?;
    scene.settle().await?;
    scene.refused("late", "PoolsExhausted").await?;
    scene.annotate("late", &[(ASK_IPS, &scene.ip(10).to_string())]).await?;
    scene.has("late", &[scene.ip(10)]).await?;
    // It is one Service's as any other address: two do not share it without a key.
    scene.service("second", asking(scene.ip(10))).await?;
    scene.refused("second", "AddressInUse").await?;
    scene.annotate("late", &[(ASK_IPS, &scene.ip(11).to_string())]).await?;
    scene.refused_with("late", "AddressInUse", &[scene.ip(10)]).await?;
    scene.delete("two").await?;
    scene.has("late", &[scene.ip(11)]).await?;
    scene.has("second", &[scene.ip(10)]).await
}

async fn an_address_reserved_for_a_namespace_or_a_service_goes_to_nobody_else(scene: &Scene<'_>) -> Result<()> {
    let shop = scene.namespace("shop", &[]).await?;
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    reserve(scene, scene.ip(10), json!({"namespace": shop})).await?;
    reserve(scene, scene.ip(11), json!({"namespace": shop, "service": "web"})).await?;
    for (name, last) in [("a", 10), ("b", 11)] {
        scene.service(name, asking(scene.ip(last))).await?;
        let message = scene.refused(name, "AddressReserved").await?;
        ensure!(message.contains(&format!("kubectl get lbip {}", scene.ip(last))), "{message}");
    }
    scene.service("shop/other", asking(scene.ip(11))).await?;
    scene.refused("shop/other", "AddressReserved").await?;
    scene.annotate("shop/other", &[(ASK_IPS, &scene.ip(10).to_string())]).await?;
    scene.has("shop/other", &[scene.ip(10)]).await?;
    // Opened to all, it is served to who has waited for it.
    let patch = Patch::Merge(json!({"spec": {"reservation": {"namespace": null, "service": null}}}));
    scene.lbips().patch(&scene.ip(11).to_string(), &PatchParams::default(), &patch).await?;
    scene.has("b", &[scene.ip(11)]).await
}

async fn a_service_that_an_address_is_kept_for_gets_it_without_asking(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let namespace = scene.in_full("");
    reserve(scene, scene.ip(15), json!({"namespace": namespace, "service": "web"})).await?;
    scene.service("other", json!({})).await?;
    scene.has("other", &[scene.ip(10)]).await?;
    for _ in 0..2 {
        scene.service("web", json!({})).await?;
        scene.has("web", &[scene.ip(15)]).await?;
        scene.delete("web").await?;
    }
    // One that has an address keeps it.
    reserve(scene, scene.ip(16), json!({"namespace": namespace, "service": "other"})).await?;
    scene.settle().await?;
    scene.has("other", &[scene.ip(10)]).await
}

async fn an_address_in_use_becomes_a_reservation_and_stops_being_one(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    let name = scene.ip(10).to_string();
    let kubectl = |patch: &str| scene.world.kubectl(&["patch", "lbip", &name, "--type", "merge", "--patch", patch]);
    kubectl(r#"{"spec": {"reservation": {}}}"#)?;
    scene.delete("web").await?;
    is_recorded(scene, scene.ip(10), &[], "lan", Some(Reservation::default())).await?;
    scene.service("web", asking(scene.ip(10))).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    kubectl(r#"{"spec": {"reservation": null}}"#)?;
    scene.has("web", &[scene.ip(10)]).await?;
    scene.delete("web").await?;
    wait_until(SOON, "the address to be given up", async || {
        let records = scene.records().await?;
        ensure!(records.is_empty(), "{records:?}");
        Ok(())
    })
    .await
}

async fn a_reservation_gets_nobody_past_a_fence_and_none_out_of_no_pool(scene: &Scene<'_>) -> Result<()> {
    let fence = json!({"addresses": [scene.range(10, 19)], "serviceAllocation": {"namespaces": ["elsewhere"]}});
    scene.pool("fenced", fence).await?;
    let mine = json!({"namespace": scene.in_full(""), "service": "web"});
    reserve(scene, scene.ip(10), mine.clone()).await?;
    reserve(scene, scene.ip(100), json!({})).await?;
    scene.service("web", json!({})).await?;
    wait_until(SOON, "a refusal", async || {
        let web = scene.get("web").await?;
        let condition = allocated(&web).context("no condition yet")?;
        ensure!(condition.status == "False" && ingress(&web).is_empty(), "{condition:?}");
        Ok(())
    })
    .await?;
    scene.service("named", asking(scene.ip(10))).await?;
    wait_until(SOON, "a refusal", async || {
        let reason = allocated(&scene.get("named").await?).context("no condition yet")?.reason;
        ensure!(["PoolNotAllowed", "AddressReserved"].contains(&reason.as_str()), "{reason}");
        Ok(())
    })
    .await?;
    scene.service("outside", asking(scene.ip(100))).await?;
    scene.refused("outside", "AddressNotInPool").await?;
    scene.edit_pool("fenced", json!({"serviceAllocation": null})).await?;
    scene.has("web", &[scene.ip(10)]).await
}

async fn an_address_in_use_cannot_be_deleted_and_an_unused_reservation_can(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.service("plain", json!({})).await?;
    scene.has("plain", &[scene.ip(10)]).await?;
    reserve(scene, scene.ip(11), json!({})).await?;
    scene.service("web", asking(scene.ip(11))).await?;
    scene.has("web", &[scene.ip(11)]).await?;
    for (last, holder) in [(10, "plain"), (11, "web")] {
        let error = scene
            .lbips()
            .delete(&scene.ip(last).to_string(), &DeleteParams::default())
            .await
            .err()
            .with_context(|| format!("the address of {holder} was deleted"))?;
        ensure!(error.to_string().contains(holder), "{error}");
    }
    // All at once is no way around it.
    let all = scene.lbips().delete_collection(&DeleteParams::default(), &kube::api::ListParams::default()).await;
    ensure!(all.is_err(), "all addresses were deleted");
    scene.settle().await?;
    scene.has("plain", &[scene.ip(10)]).await?;
    scene.has("web", &[scene.ip(11)]).await?;
    scene.delete("web").await?;
    is_recorded(scene, scene.ip(11), &[], "lan", Some(Reservation::default())).await?;
    scene.lbips().delete(&scene.ip(11).to_string(), &DeleteParams::default()).await?;
    scene.service("after", asking(scene.ip(11))).await?;
    scene.has("after", &[scene.ip(11)]).await?;
    is_recorded(scene, scene.ip(11), &["after"], "lan", None).await
}
