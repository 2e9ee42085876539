//! Reserved addresses, with and without a Service.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use crds::{LoadBalancerIP, Reservation};
use e2e::Scenes;
use e2e::scene::{ADDRESSES_ANNOTATION, Scene, with_annotations};
use e2e::world::{SOON, allocated_condition, ingress};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use lab::wait_until;
use serde_json::{Value, json};

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(a_reserved_address_is_allocated_only_on_request);
    scenes.add(a_reservation_excludes_other_namespaces_and_services);
    scenes.add(a_service_gets_its_reserved_address_without_a_request);
    scenes.add(an_address_in_use_can_become_a_reservation);
    scenes.add(a_reservation_does_not_bypass_pool_selectors);
    scenes.add(only_an_unused_address_can_be_deleted);
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
    Ok(scene.record_api().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// The annotation that requests an address.
fn request(address: IpAddr) -> Value {
    with_annotations(&[(ADDRESSES_ANNOTATION, &address.to_string())])
}

/// Waits until the record of an address has these holders, this pool and this reservation.
async fn expect_record(
    scene: &Scene<'_>,
    address: IpAddr,
    holders: &[&str],
    pool: &str,
    reservation: Option<Reservation>,
) -> Result<()> {
    wait_until(SOON, &format!("the record of {address} to have {holders:?} {pool:?} {reservation:?}"), async || {
        let record = scene.records().await?.remove(&address).context("no record")?;
        let names: Vec<_> = record.spec.services.iter().map(|holder| holder.name.as_str()).collect();
        let seen = (names.as_slice(), record.spec.pool.as_str(), &record.spec.reservation);
        ensure!(seen == (holders, pool, &reservation), "{seen:?}");
        Ok(())
    })
    .await
}

async fn a_reserved_address_is_allocated_only_on_request(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 12), scene.range6(0x10, 0x11)]})).await?;
    let for_all = Some(Reservation::default());
    // With the field, without it, and of the other family.
    reserve(scene, scene.ip(10), json!({})).await?;
    reserve(scene, scene.ip(11), Value::Null).await?;
    reserve(scene, scene.ip6(0x10), json!({})).await?;
    scene.expect_pool_counts("lan", [2, 1, 1, 1]).await?;
    scene.create_service("any", json!({})).await?;
    scene.expect_addresses("any", &[scene.ip(12)]).await?;
    scene.create_service("late", json!({})).await?;
    scene.expect_refusal("late", "PoolsExhausted").await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.create_service(name, request(scene.ip(last))).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
        expect_record(scene, scene.ip(last), &[name], "lan", for_all.clone()).await?;
    }
    scene.expect_pool_counts("lan", [3, 0, 1, 1]).await?;
    scene.delete_service("one").await?;
    expect_record(scene, scene.ip(10), &[], "lan", for_all.clone()).await?;
    scene.settle().await?;
    scene.expect_refusal("late", "PoolsExhausted").await?;
    scene.annotate("late", &[(ADDRESSES_ANNOTATION, &scene.ip(10).to_string())]).await?;
    scene.expect_addresses("late", &[scene.ip(10)]).await?;
    // Like any other address, it is not shared without a key.
    scene.create_service("second", request(scene.ip(10))).await?;
    scene.expect_refusal("second", "AddressInUse").await?;
    scene.annotate("late", &[(ADDRESSES_ANNOTATION, &scene.ip(11).to_string())]).await?;
    scene.expect_refusal_with("late", "AddressInUse", &[scene.ip(10)]).await?;
    scene.delete_service("two").await?;
    scene.expect_addresses("late", &[scene.ip(11)]).await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await
}

async fn a_reservation_excludes_other_namespaces_and_services(scene: &Scene<'_>) -> Result<()> {
    let shop = scene.create_namespace("shop", &[]).await?;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    reserve(scene, scene.ip(10), json!({"namespace": shop})).await?;
    reserve(scene, scene.ip(11), json!({"namespace": shop, "service": "web"})).await?;
    for (name, last) in [("a", 10), ("b", 11)] {
        scene.create_service(name, request(scene.ip(last))).await?;
        let message = scene.expect_refusal(name, "AddressReserved").await?;
        ensure!(message.contains(&format!("kubectl get lbip {}", scene.ip(last))), "{message}");
    }
    scene.create_service("shop/other", request(scene.ip(11))).await?;
    scene.expect_refusal("shop/other", "AddressReserved").await?;
    scene.annotate("shop/other", &[(ADDRESSES_ANNOTATION, &scene.ip(10).to_string())]).await?;
    scene.expect_addresses("shop/other", &[scene.ip(10)]).await?;
    // Opened to all, it is allocated to the Service that waits for it.
    let patch = Patch::Merge(json!({"spec": {"reservation": {"namespace": null, "service": null}}}));
    scene.record_api().patch(&scene.ip(11).to_string(), &PatchParams::default(), &patch).await?;
    scene.expect_addresses("b", &[scene.ip(11)]).await
}

async fn a_service_gets_its_reserved_address_without_a_request(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let namespace = scene.namespace_name("");
    reserve(scene, scene.ip(15), json!({"namespace": namespace, "service": "web"})).await?;
    scene.create_service("other", json!({})).await?;
    scene.expect_addresses("other", &[scene.ip(10)]).await?;
    for _ in 0..2 {
        scene.create_service("web", json!({})).await?;
        scene.expect_addresses("web", &[scene.ip(15)]).await?;
        scene.delete_service("web").await?;
    }
    // A Service with an address keeps it.
    reserve(scene, scene.ip(16), json!({"namespace": namespace, "service": "other"})).await?;
    scene.settle().await?;
    scene.expect_addresses("other", &[scene.ip(10)]).await
}

async fn an_address_in_use_can_become_a_reservation(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    let name = scene.ip(10).to_string();
    let kubectl = |patch: &str| scene.world.kubectl(&["patch", "lbip", &name, "--type", "merge", "--patch", patch]);
    kubectl(r#"{"spec": {"reservation": {}}}"#)?;
    scene.delete_service("web").await?;
    expect_record(scene, scene.ip(10), &[], "lan", Some(Reservation::default())).await?;
    scene.create_service("web", request(scene.ip(10))).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    kubectl(r#"{"spec": {"reservation": null}}"#)?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    scene.delete_service("web").await?;
    wait_until(SOON, "the record to be deleted", async || {
        let records = scene.records().await?;
        ensure!(records.is_empty(), "{records:?}");
        Ok(())
    })
    .await
}

async fn a_reservation_does_not_bypass_pool_selectors(scene: &Scene<'_>) -> Result<()> {
    let restricted = json!({"addresses": [scene.range(10, 19)], "serviceAllocation": {"namespaces": ["elsewhere"]}});
    scene.create_pool("restricted", restricted).await?;
    let mine = json!({"namespace": scene.namespace_name(""), "service": "web"});
    reserve(scene, scene.ip(10), mine.clone()).await?;
    reserve(scene, scene.ip(100), json!({})).await?;
    scene.create_service("web", json!({})).await?;
    wait_until(SOON, "a refusal", async || {
        let web = scene.get_service("web").await?;
        let condition = allocated_condition(&web).context("no condition yet")?;
        ensure!(condition.status == "False" && ingress(&web).is_empty(), "{condition:?}");
        Ok(())
    })
    .await?;
    scene.create_service("named", request(scene.ip(10))).await?;
    wait_until(SOON, "a refusal", async || {
        let reason = allocated_condition(&scene.get_service("named").await?).context("no condition yet")?.reason;
        ensure!(["PoolNotAllowed", "AddressReserved"].contains(&reason.as_str()), "{reason}");
        Ok(())
    })
    .await?;
    scene.create_service("outside", request(scene.ip(100))).await?;
    scene.expect_refusal("outside", "AddressNotInPool").await?;
    scene.edit_pool("restricted", json!({"serviceAllocation": null})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await
}

async fn only_an_unused_address_can_be_deleted(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("plain", json!({})).await?;
    scene.expect_addresses("plain", &[scene.ip(10)]).await?;
    reserve(scene, scene.ip(11), json!({})).await?;
    scene.create_service("web", request(scene.ip(11))).await?;
    scene.expect_addresses("web", &[scene.ip(11)]).await?;
    for (last, holder) in [(10, "plain"), (11, "web")] {
        let error = scene
            .record_api()
            .delete(&scene.ip(last).to_string(), &DeleteParams::default())
            .await
            .err()
            .with_context(|| format!("the address of {holder} was deleted"))?;
        ensure!(error.to_string().contains(holder), "{error}");
    }
    // A deletion of all addresses is refused as well.
    let all = scene.record_api().delete_collection(&DeleteParams::default(), &kube::api::ListParams::default()).await;
    ensure!(all.is_err(), "all addresses were deleted");
    scene.settle().await?;
    scene.expect_addresses("plain", &[scene.ip(10)]).await?;
    scene.expect_addresses("web", &[scene.ip(11)]).await?;
    scene.delete_service("web").await?;
    expect_record(scene, scene.ip(11), &[], "lan", Some(Reservation::default())).await?;
    scene.record_api().delete(&scene.ip(11).to_string(), &DeleteParams::default()).await?;
    scene.create_service("after", request(scene.ip(11))).await?;
    scene.expect_addresses("after", &[scene.ip(11)]).await?;
    expect_record(scene, scene.ip(11), &["after"], "lan", None).await
}
