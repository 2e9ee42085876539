//! Several Services on one address.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::scene::{ADDRESSES_ANNOTATION, SHARE_WITH, SHARING_KEY, Scene, merge, with_annotations};
use e2e::world::{SOON, ingress};
use e2e::{ConnectOutcome, Scenes};
use lab::wait_until;
use serde_json::{Value, json};

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(a_shared_address_answers_for_both_services);
    scenes.add(incompatible_services_get_other_addresses);
    scenes.add(an_incompatible_request_for_an_address_is_refused);
    scenes.add(local_policy_shares_only_with_equal_selectors);
    scenes.add(the_changed_service_loses_the_shared_address);
    scenes.add(namespaces_share_only_by_mutual_consent);
    scenes.add(the_last_service_releases_a_shared_address);
}

/// The fields of a Service with this sharing key and this TCP port, and more fields.
fn sharing(key: &str, port: u16, more: Value) -> Value {
    let mut service = with_annotations(&[(SHARING_KEY, key)]);
    merge(&mut service, json!({"spec": {"ports": [{"name": "main", "port": port, "targetPort": 8080}]}}));
    merge(&mut service, more);
    service
}

/// The holders of an address, in the order of its record, and its sharing key.
async fn holders(scene: &Scene<'_>, address: IpAddr) -> Result<(Vec<String>, Option<String>)> {
    let record = scene.records().await?.remove(&address).with_context(|| format!("no holder of {address}"))?;
    let names = record.spec.services.into_iter().map(|holder| holder.name.into()).collect();
    Ok((names, record.spec.sharing_key))
}

async fn a_shared_address_answers_for_both_services(scene: &Scene<'_>) -> Result<()> {
    let address: IpAddr = "192.0.2.201".parse()?;
    scene.create_pool("lan", json!({"addresses": ["192.0.2.201-192.0.2.209"]})).await?;
    scene.world.create_whoami("web", 1).await?;
    let pods = json!({"selector": {"app": "web"}});
    for (name, port) in [("one", 80), ("two", 81)] {
        // Pods are in the namespace `default`, so these Services are too.
        let mut spec = pods.clone();
        spec["ports"] = json!([{"port": port, "targetPort": 8080}]);
        scene.world.create_service(name, spec).await?;
        let key = with_annotations(&[(SHARING_KEY, "k"), (ADDRESSES_ANNOTATION, "192.0.2.201")]);
        scene.world.patch_service(name, key).await?;
        wait_until(SOON, "the shared address", async || {
            let shown = ingress(&scene.world.get_service(name).await?);
            ensure!(shown == [address], "{shown:?}");
            Ok(())
        })
        .await?;
    }
    ensure!(holders(scene, address).await? == (vec!["one".into(), "two".into()], Some("k".into())));
    let lan = &scene.world.lan;
    for port in [80, 81] {
        wait_until(SOON, "an answer", async || {
            let end = lan.connect(address, port)?;
            ensure!(end == ConnectOutcome::Accepted, "port {port}: {end:?}");
            Ok(())
        })
        .await?;
    }
    scene.world.delete_service("one").await?;
    wait_until(SOON, "the port of the deleted Service to be silent", async || {
        let ends = (lan.connect(address, 80)?, lan.connect(address, 81)?);
        ensure!(ends == (ConnectOutcome::Silence, ConnectOutcome::Accepted), "{ends:?}");
        Ok(())
    })
    .await?;
    scene.world.delete_service("two").await
}

async fn incompatible_services_get_other_addresses(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let udp = json!({"spec": {"ports": [{"name": "main", "port": 80, "protocol": "UDP"}]}});
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    for (name, service, last) in [
        ("first", sharing("k", 80, json!({})), 10),
        ("other-port", sharing("k", 81, json!({})), 10),
        ("other-protocol", sharing("k", 80, udp), 10),
        ("same-port", sharing("k", 81, json!({})), 11),
        ("other-key", sharing("K", 82, json!({})), 12),
        ("no-key", json!({}), 13),
        ("local", sharing("k", 83, local), 14),
        // Shares the first address that is compatible, not the first address.
        ("joins", sharing("k", 80, json!({})), 11),
    ] {
        scene.create_service(name, service).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    let expected = ["first", "other-port", "other-protocol"].map(ToOwned::to_owned).to_vec();
    ensure!(holders(scene, scene.ip(10)).await? == (expected, Some("k".into())));
    ensure!(holders(scene, scene.ip(13)).await? == (vec!["no-key".into()], None));
    Ok(())
}

async fn an_incompatible_request_for_an_address_is_refused(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let at = with_annotations(&[(ADDRESSES_ANNOTATION, &scene.ip(10).to_string())]);
    scene.create_service("first", sharing("k", 80, at.clone())).await?;
    scene.expect_addresses("first", &[scene.ip(10)]).await?;
    let mut plain = json!({});
    merge(&mut plain, at.clone());
    let mut local = at.clone();
    merge(&mut local, json!({"spec": {"externalTrafficPolicy": "Local"}}));
    for (name, service, reason) in [
        ("no-key", plain, "AddressInUse"),
        ("other-key", sharing("other", 81, at.clone()), "SharingConflict"),
        ("same-port", sharing("k", 80, at.clone()), "SharingConflict"),
        ("local", sharing("k", 81, local), "SharingConflict"),
    ] {
        scene.create_service(name, service).await?;
        let message = scene.expect_refusal(name, reason).await?;
        ensure!(message.contains(&format!("{}/first", scene.namespace_name(""))), "{name}: {message}");
    }
    // After a change that makes the Service compatible, it shares the address.
    scene.patch_service("same-port", json!({"spec": {"ports": [{"name": "main", "port": 8080}]}})).await?;
    scene.expect_addresses("same-port", &[scene.ip(10)]).await?;
    scene.expect_addresses("first", &[scene.ip(10)]).await
}

async fn local_policy_shares_only_with_equal_selectors(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.ip(10)]})).await?;
    let pods = json!({"spec": {"selector": {"app": "web"}}});
    for (name, port) in [("first", 80), ("second", 81)] {
        scene.create_service(name, sharing("k", port, pods.clone())).await?;
        scene.expect_addresses(name, &[scene.ip(10)]).await?;
    }
    scene.patch_service("second", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    scene.expect_refusal("second", "PoolsExhausted").await?;
    scene.expect_addresses("first", &[scene.ip(10)]).await?;
    scene.patch_service("first", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await?;
    scene.expect_addresses("first", &[scene.ip(10)]).await?;
    scene.patch_service("second", json!({"spec": {"selector": {"app": "other"}}})).await?;
    scene.expect_refusal("second", "PoolsExhausted").await?;
    scene.expect_addresses("first", &[scene.ip(10)]).await?;
    scene.patch_service("second", json!({"spec": {"selector": {"app": "web"}}})).await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await?;
    scene.expect_addresses("first", &[scene.ip(10)]).await?;
    // Without selectors, the pods of the two Services may differ.
    for name in ["first", "second"] {
        scene.patch_service(name, json!({"spec": {"selector": null}})).await?;
    }
    wait_until(SOON, "one of the two to be refused", async || {
        let mut shown = [ingress(&scene.get_service("first").await?), ingress(&scene.get_service("second").await?)];
        shown.sort();
        ensure!(shown == [vec![], vec![scene.ip(10)]], "{shown:?}");
        Ok(())
    })
    .await
}

async fn the_changed_service_loses_the_shared_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    for (name, port) in [("first", 80), ("second", 81), ("third", 82)] {
        scene.create_service(name, sharing("k", port, json!({}))).await?;
        scene.expect_addresses(name, &[scene.ip(10)]).await?;
    }
    // The Service that changes is the oldest one. Even so, it does not displace the others.
    scene.patch_service("first", json!({"spec": {"ports": [{"name": "main", "port": 81}]}})).await?;
    scene.expect_addresses("first", &[scene.ip(11)]).await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await?;
    scene.annotate("third", &[(SHARING_KEY, "other")]).await?;
    scene.expect_refusal("third", "PoolsExhausted").await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await?;
    // A compatible change keeps the address.
    scene.patch_service("second", json!({"spec": {"ports": [{"name": "main", "port": 90}]}})).await?;
    scene.settle().await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await?;
    scene.annotate("third", &[(SHARING_KEY, "k")]).await?;
    scene.expect_addresses("third", &[scene.ip(10)]).await
}

async fn namespaces_share_only_by_mutual_consent(scene: &Scene<'_>) -> Result<()> {
    let (shop, bank) = (scene.create_namespace("shop", &[]).await?, scene.create_namespace("bank", &[]).await?);
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let at = with_annotations(&[(ADDRESSES_ANNOTATION, &scene.ip(10).to_string())]);
    scene.create_service("shop/web", sharing("k", 80, json!({}))).await?;
    scene.expect_addresses("shop/web", &[scene.ip(10)]).await?;
    scene.create_service("bank/any", sharing("k", 81, json!({}))).await?;
    scene.expect_addresses("bank/any", &[scene.ip(11)]).await?;
    scene.create_service("bank/web", sharing("k", 81, at)).await?;
    scene.expect_refusal("bank/web", "SharingConflict").await?;
    scene.annotate("bank/web", &[(SHARE_WITH, &shop)]).await?;
    let message = scene.expect_refusal("bank/web", "SharingConflict").await?;
    ensure!(message.contains(SHARE_WITH), "{message}");
    scene.annotate("shop/web", &[(SHARE_WITH, &format!("elsewhere, {bank}"))]).await?;
    scene.expect_addresses("bank/web", &[scene.ip(10)]).await?;
    scene.annotate("shop/web", &[(SHARE_WITH, "*")]).await?;
    scene.settle().await?;
    scene.expect_addresses("bank/web", &[scene.ip(10)]).await?;
    // The Service that withdraws its consent loses the address.
    scene.annotate("shop/web", &[(SHARE_WITH, "")]).await?;
    wait_until(SOON, "the Service to move", async || {
        let shown = ingress(&scene.get_service("shop/web").await?);
        ensure!(shown.len() == 1 && shown != [scene.ip(10)], "{shown:?}");
        Ok(())
    })
    .await?;
    scene.expect_addresses("bank/web", &[scene.ip(10)]).await
}

async fn the_last_service_releases_a_shared_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    for (name, port) in [("first", 80), ("second", 81)] {
        scene.create_service(name, sharing("k", port, json!({}))).await?;
        scene.expect_addresses(name, &[scene.ip(10)]).await?;
    }
    scene.delete_service("first").await?;
    scene.expect_addresses("second", &[scene.ip(10)]).await?;
    ensure!(holders(scene, scene.ip(10)).await?.0 == ["second"]);
    scene.patch_service("second", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.expect_released("second").await?;
    ensure!(scene.records().await?.is_empty(), "{:?}", scene.records().await?);
    Ok(())
}
