//! Several Services on one address.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::scene::{ASK_IPS, CONSENT, KEY, Scene, Scenes, annotated, merge};
use e2e::world::{SOON, ingress};
use e2e::{Connect, World};
use lab::wait_until;
use serde_json::{Value, json};

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn services_with_a_key_share_an_address_as_long_as_they_fit_and_the_one_that_changed_goes() -> Result<()> {
    let world = World::with_landfall("e2e-sharing", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(services_with_the_same_key_and_other_ports_share_an_address_that_answers_for_both).await;
    scenes.play(who_does_not_fit_on_a_shared_address_gets_one_of_its_own).await;
    scenes.play(who_names_an_address_where_it_does_not_fit_is_refused_with_the_reason).await;
    scenes.play(a_service_that_turns_to_local_loses_the_address_and_finds_back_when_all_are_local).await;
    scenes.play(a_service_that_changes_its_ports_or_key_goes_and_the_others_stay).await;
    scenes.play(other_namespaces_share_by_consent_of_both_and_not_by_knowing_the_key).await;
    scenes.play(a_shared_address_goes_with_the_last_of_its_services).await;
    scenes.end()?;
    world.end()
}

/// A Service with this key and this TCP port, and more.
fn sharing(key: &str, port: u16, more: Value) -> Value {
    let mut service = annotated(&[(KEY, key)]);
    merge(&mut service, json!({"spec": {"ports": [{"name": "main", "port": port, "targetPort": 8080}]}}));
    merge(&mut service, more);
    service
}

/// The names of the Services that hold an address, in its record's order, and its key.
async fn holders(scene: &Scene<'_>, address: IpAddr) -> Result<(Vec<String>, Option<String>)> {
    let record = scene.records().await?.remove(&address).with_context(|| format!("nobody holds {address}"))?;
    let names = record.spec.services.into_iter().map(|holder| holder.name.into()).collect();
    Ok((names, record.spec.sharing_key))
}

async fn services_with_the_same_key_and_other_ports_share_an_address_that_answers_for_both(
    scene: &Scene<'_>,
) -> Result<()> {
    let address: IpAddr = "192.0.2.201".parse()?;
    scene.pool("lan", json!({"addresses": ["192.0.2.201-192.0.2.209"]})).await?;
    scene.world.whoami("web", 1).await?;
    let pods = json!({"selector": {"app": "web"}});
    for (name, port) in [("one", 80), ("two", 81)] {
        // Pods are in the namespace `default`, so these Services are too.
        let mut spec = pods.clone();
        spec["ports"] = json!([{"port": port, "targetPort": 8080}]);
        scene.world.service(name, spec).await?;
        let key = annotated(&[(KEY, "k"), (ASK_IPS, "192.0.2.201")]);
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
            ensure!(end == Connect::Accepted, "port {port}: {end:?}");
            Ok(())
        })
        .await?;
    }
    scene.world.delete_service("one").await?;
    wait_until(SOON, "the port of the one that went to be silent", async || {
        let ends = (lan.connect(address, 80)?, lan.connect(address, 81)?);
        ensure!(ends == (Connect::Silence, Connect::Accepted), "{ends:?}");
        Ok(())
    })
    .await?;
    scene.world.delete_service("two").await
}

async fn who_does_not_fit_on_a_shared_address_gets_one_of_its_own(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
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
        // Joins the first it fits on, not the first there is.
        ("joins", sharing("k", 80, json!({})), 11),
    ] {
        scene.service(name, service).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    let expected = ["first", "other-port", "other-protocol"].map(ToOwned::to_owned).to_vec();
    ensure!(holders(scene, scene.ip(10)).await? == (expected, Some("k".into())));
    ensure!(holders(scene, scene.ip(13)).await? == (vec!["no-key".into()], None));
    Ok(())
}

async fn who_names_an_address_where_it_does_not_fit_is_refused_with_the_reason(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let at = annotated(&[(ASK_IPS, &scene.ip(10).to_string())]);
    scene.service("first", sharing("k", 80, at.clone())).await?;
    scene.has("first", &[scene.ip(10)]).await?;
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
        scene.service(name, service).await?;
        let message = scene.refused(name, reason).await?;
        ensure!(message.contains(&format!("{}/first", scene.in_full(""))), "{name}: {message}");
    }
    // Put right, it joins.
    scene.edit("same-port", json!({"spec": {"ports": [{"name": "main", "port": 8080}]}})).await?;
    scene.has("same-port", &[scene.ip(10)]).await?;
    scene.has("first", &[scene.ip(10)]).await
}

async fn a_service_that_turns_to_local_loses_the_address_and_finds_back_when_all_are_local(
    scene: &Scene<'_>,
) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.ip(10)]})).await?;
    let pods = json!({"spec": {"selector": {"app": "web"}}});
    for (name, port) in [("first", 80), ("second", 81)] {
        scene.service(name, sharing("k", port, pods.clone())).await?;
        scene.has(name, &[scene.ip(10)]).await?;
    }
    scene.edit("second", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    scene.refused("second", "PoolsExhausted").await?;
    scene.has("first", &[scene.ip(10)]).await?;
    scene.edit("first", json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    scene.has("second", &[scene.ip(10)]).await?;
    scene.has("first", &[scene.ip(10)]).await?;
    scene.edit("second", json!({"spec": {"selector": {"app": "other"}}})).await?;
    scene.refused("second", "PoolsExhausted").await?;
    scene.has("first", &[scene.ip(10)]).await?;
    scene.edit("second", json!({"spec": {"selector": {"app": "web"}}})).await?;
    scene.has("second", &[scene.ip(10)]).await?;
    scene.has("first", &[scene.ip(10)]).await?;
    // Without a selector nobody knows whose pods they are.
    for name in ["first", "second"] {
        scene.edit(name, json!({"spec": {"selector": null}})).await?;
    }
    wait_until(SOON, "one of the two to be refused", async || {
        let mut shown = [ingress(&scene.get("first").await?), ingress(&scene.get("second").await?)];
        shown.sort();
        ensure!(shown == [vec![], vec![scene.ip(10)]], "{shown:?}");
        Ok(())
    })
    .await
}

async fn a_service_that_changes_its_ports_or_key_goes_and_the_others_stay(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    for (name, port) in [("first", 80), ("second", 81), ("third", 82)] {
        scene.service(name, sharing("k", port, json!({}))).await?;
        scene.has(name, &[scene.ip(10)]).await?;
    }
    // The first to come is the one that changes: it has no right to push others off.
    scene.edit("first", json!({"spec": {"ports": [{"name": "main", "port": 81}]}})).await?;
    scene.has("first", &[scene.ip(11)]).await?;
    scene.has("second", &[scene.ip(10)]).await?;
    scene.annotate("third", &[(KEY, "other")]).await?;
    scene.refused("third", "PoolsExhausted").await?;
    scene.has("second", &[scene.ip(10)]).await?;
    // A change that fits is no reason to go.
    scene.edit("second", json!({"spec": {"ports": [{"name": "main", "port": 90}]}})).await?;
    scene.settle().await?;
    scene.has("second", &[scene.ip(10)]).await?;
    scene.annotate("third", &[(KEY, "k")]).await?;
    scene.has("third", &[scene.ip(10)]).await
}

async fn other_namespaces_share_by_consent_of_both_and_not_by_knowing_the_key(scene: &Scene<'_>) -> Result<()> {
    let (shop, bank) = (scene.namespace("shop", &[]).await?, scene.namespace("bank", &[]).await?);
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let at = annotated(&[(ASK_IPS, &scene.ip(10).to_string())]);
    scene.service("shop/web", sharing("k", 80, json!({}))).await?;
    scene.has("shop/web", &[scene.ip(10)]).await?;
    scene.service("bank/any", sharing("k", 81, json!({}))).await?;
    scene.has("bank/any", &[scene.ip(11)]).await?;
    scene.service("bank/web", sharing("k", 81, at)).await?;
    scene.refused("bank/web", "SharingConflict").await?;
    scene.annotate("bank/web", &[(CONSENT, &shop)]).await?;
    let message = scene.refused("bank/web", "SharingConflict").await?;
    ensure!(message.contains(CONSENT), "{message}");
    scene.annotate("shop/web", &[(CONSENT, &format!("elsewhere, {bank}"))]).await?;
    scene.has("bank/web", &[scene.ip(10)]).await?;
    scene.annotate("shop/web", &[(CONSENT, "*")]).await?;
    scene.settle().await?;
    scene.has("bank/web", &[scene.ip(10)]).await?;
    // Who takes its word back is the one that goes.
    scene.annotate("shop/web", &[(CONSENT, "")]).await?;
    wait_until(SOON, "it to move", async || {
        let shown = ingress(&scene.get("shop/web").await?);
        ensure!(shown.len() == 1 && shown != [scene.ip(10)], "{shown:?}");
        Ok(())
    })
    .await?;
    scene.has("bank/web", &[scene.ip(10)]).await
}

async fn a_shared_address_goes_with_the_last_of_its_services(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    for (name, port) in [("first", 80), ("second", 81)] {
        scene.service(name, sharing("k", port, json!({}))).await?;
        scene.has(name, &[scene.ip(10)]).await?;
    }
    scene.delete("first").await?;
    scene.has("second", &[scene.ip(10)]).await?;
    ensure!(holders(scene, scene.ip(10)).await?.0 == ["second"]);
    scene.edit("second", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.is_let_go("second").await?;
    ensure!(scene.records().await?.is_empty(), "{:?}", scene.records().await?);
    Ok(())
}
