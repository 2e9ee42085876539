//! Asking for addresses and pools, what becomes of forged status, and what kubectl shows.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::scene::{ASK_IPS, ASK_POOL, KEY, Scene, Scenes, annotated};
use e2e::world::{SOON, allocated, ingress};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{WatchEvent, WatchParams};
use lab::wait_until;
use serde_json::json;

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_given_or_refused_with_the_reason_and_forgers_get_nothing() -> Result<()> {
    let world = World::with_landfall("e2e-requests", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(every_spelling_of_a_request_is_understood).await;
    scenes.play(addresses_are_compared_by_value_and_written_in_canonical_form).await;
    scenes.play(several_addresses_are_given_together_or_not_at_all).await;
    scenes.play(what_makes_no_sense_or_cannot_be_had_is_refused_and_served_once_it_is_put_right).await;
    scenes.play(another_address_is_shown_before_the_old_one_is_given_up).await;
    scenes.play(who_asks_in_vain_keeps_what_it_has_until_the_wish_can_be_met).await;
    scenes.play(a_request_that_is_taken_back_changes_nothing).await;
    scenes.play(a_service_that_asks_for_the_address_it_had_from_another_provider_keeps_it).await;
    scenes.play(a_forged_status_is_repaired_with_an_event_and_gains_nobody_an_address).await;
    scenes.play(kubectl_waits_for_the_condition_and_shows_columns_that_a_person_wants).await;
    scenes.end()?;
    world.end()
}

async fn every_spelling_of_a_request_is_understood(scene: &Scene<'_>) -> Result<()> {
    scene.pool("first", json!({"addresses": [scene.range(10, 29)]})).await?;
    scene.pool("second", json!({"addresses": [scene.range(30, 49)]})).await?;
    let prefixes =
        ["landfall.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
    for (number, annotation) in prefixes.into_iter().enumerate() {
        let (name, address) = (format!("ip{number}"), scene.ip(20 + number as u8));
        scene.asking(&name, &[(annotation, &address.to_string())]).await?;
        scene.has(&name, &[address]).await?;
    }
    scene.service("field", json!({"spec": {"loadBalancerIP": scene.ip(23)}})).await?;
    scene.has("field", &[scene.ip(23)]).await?;
    let prefixes = ["landfall.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
    for (number, annotation) in prefixes.into_iter().enumerate() {
        let name = format!("pool{number}");
        scene.asking(&name, &[(annotation, "second")]).await?;
        scene.has(&name, &[scene.ip(30 + number as u8)]).await?;
    }
    let prefixes =
        ["landfall.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];
    for (number, annotation) in prefixes.into_iter().enumerate() {
        let mut service = annotated(&[(annotation, "k")]);
        service["spec"] = json!({"ports": [{"port": 100 + number}]});
        let name = format!("key{number}");
        scene.service(&name, service).await?;
        scene.has(&name, &[scene.ip(10)]).await?;
    }
    // All of them at once, as long as they agree.
    let address = scene.ip(25).to_string();
    let mut all = annotated(&[
        ("landfall.dev/load-balancer-ips", &address),
        ("metallb.universe.tf/loadBalancerIPs", &address),
        ("metallb.io/address-pool", "first"),
        ("landfall.dev/address-pool", ""),
    ]);
    all["spec"] = json!({"loadBalancerIP": address});
    scene.service("all", all).await?;
    scene.has("all", &[scene.ip(25)]).await
}

async fn addresses_are_compared_by_value_and_written_in_canonical_form(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range6(0x10, 0x1f)]})).await?;
    let address = scene.ip6(0x1a);
    let IpAddr::V6(v6) = address else { anyhow::bail!("{address}") };
    let written = v6.segments().map(|group| format!("{group:04X}")).join(":");
    let mut service = annotated(&[(ASK_IPS, &format!(" {written} "))]);
    service["spec"] = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "loadBalancerIP": address});
    scene.service("web", service).await?;
    scene.has("web", &[address]).await?;
    let status = scene.get("web").await?.status.context("a status")?;
    let entries = status.load_balancer.and_then(|status| status.ingress).context("ingress")?;
    let shown: Vec<_> = entries.iter().map(|entry| (entry.ip.clone(), entry.ip_mode.clone())).collect();
    ensure!(shown == [(Some(address.to_string()), Some("VIP".to_owned()))], "{shown:?}");
    Ok(())
}

async fn several_addresses_are_given_together_or_not_at_all(scene: &Scene<'_>) -> Result<()> {
    scene.pool("one", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.pool("two", json!({"addresses": [scene.range(20, 29)]})).await?;
    scene.asking("holder", &[(ASK_IPS, &scene.ip(21).to_string())]).await?;
    scene.has("holder", &[scene.ip(21)]).await?;
    let wish = [10, 21, 20].map(|last| scene.ip(last).to_string()).join(", ");
    scene.asking("web", &[(ASK_IPS, &wish)]).await?;
    scene.refused("web", "AddressInUse").await?;
    scene.delete("holder").await?;
    let addresses = scene.addresses("web").await?;
    let mut sorted = addresses.clone();
    sorted.sort_unstable();
    ensure!(sorted == [scene.ip(10), scene.ip(20), scene.ip(21)], "{addresses:?}");
    scene.has("web", &addresses).await?;
    // One more and one less.
    let wish = [10, 20, 22].map(|last| scene.ip(last).to_string()).join(",");
    scene.annotate("web", &[(ASK_IPS, &wish)]).await?;
    wait_until(SOON, "the new set", async || {
        let mut addresses = scene.addresses("web").await?;
        addresses.sort_unstable();
        ensure!(addresses == [scene.ip(10), scene.ip(20), scene.ip(22)], "{addresses:?}");
        Ok(())
    })
    .await
}

/// What is asked for, why it is refused, and what the message names.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

async fn what_makes_no_sense_or_cannot_be_had_is_refused_and_served_once_it_is_put_right(
    scene: &Scene<'_>,
) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 29)]})).await?;
    scene.pool("full", json!({"addresses": [scene.ip(40)], "autoAssign": false})).await?;
    scene.asking("holder", &[(ASK_POOL, "full")]).await?;
    scene.has("holder", &[scene.ip(40)]).await?;
    scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    let (outside, taken, there) = (scene.ip(200).to_string(), scene.ip(40).to_string(), scene.ip(12).to_string());
    let many = (10..27).map(|last| scene.ip(last).to_string()).collect::<Vec<_>>().join(",");
    let cases: [Case<'_>; 13] = [
        (&[(ASK_IPS, "web.example.com")], "InvalidRequest", "web.example.com"),
        (&[(ASK_IPS, "198.18.0.07")], "InvalidRequest", "198.18.0.07"),
        (&[(ASK_IPS, "::ffff:198.18.0.7")], "InvalidRequest", "::ffff:198.18.0.7"),
        (&[(ASK_IPS, "198.18.0.7/32")], "InvalidRequest", "198.18.0.7/32"),
        (&[(ASK_IPS, &many)], "InvalidRequest", "16"),
        (
            &[(ASK_IPS, &there), ("metallb.io/loadBalancerIPs", &outside)],
            "InvalidRequest",
            "metallb.io/loadBalancerIPs",
        ),
        (&[(ASK_POOL, "lan"), ("metallb.io/address-pool", "full")], "InvalidRequest", "metallb.io/address-pool"),
        (&[(ASK_IPS, &outside)], "AddressNotInPool", &outside),
        (&[(ASK_IPS, &there), (ASK_POOL, "full")], "AddressNotInPool", "full"),
        (&[(ASK_IPS, &taken)], "AddressInUse", "holder"),
        (&[(ASK_POOL, "nowhere")], "PoolNotFound", "nowhere"),
        (&[(ASK_POOL, "full")], "PoolExhausted", "full"),
        (&[(ASK_IPS, "2001:db8::1")], "FamilyMismatch", "2001:db8::1"),
    ];
    for (number, (annotations, reason, says)) in cases.into_iter().enumerate() {
        let name = format!("bad{number}");
        scene.asking(&name, annotations).await?;
        let message = scene.refused(&name, reason).await.with_context(|| format!("{annotations:?}"))?;
        ensure!(message.contains(says), "{annotations:?}: {message}");
        scene.edit(&name, json!({"metadata": {"annotations": null}})).await?;
        scene.address(&name).await?;
        scene.delete(&name).await?;
    }
    // A field that is wrong is found like an annotation.
    scene.service("field", json!({"spec": {"loadBalancerIP": "nonsense"}})).await?;
    let message = scene.refused("field", "InvalidRequest").await?;
    ensure!(message.contains("spec.loadBalancerIP"), "{message}");
    Ok(())
}

/// Watches a Service until it shows `last`; returns all that it showed on the way.
async fn shown_until(scene: &Scene<'_>, since: &Service, last: &[IpAddr]) -> Result<Vec<Vec<IpAddr>>> {
    let services: Api<Service> = Api::namespaced(scene.world.client.clone(), &scene.in_full(""));
    let name = since.metadata.name.clone().context("a name")?;
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let version = since.metadata.resource_version.clone().context("a version")?;
    let mut events = services.watch(&params, &version).await?.boxed();
    let mut shown = Vec::new();
    while let Some(event) = events.try_next().await? {
        let (WatchEvent::Added(service) | WatchEvent::Modified(service)) = event else { continue };
        let addresses = ingress(&service);
        shown.push(addresses.clone());
        if addresses == last {
            return Ok(shown);
        }
    }
    anyhow::bail!("the watch ended: {shown:?}")
}

async fn another_address_is_shown_before_the_old_one_is_given_up(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 29)]})).await?;
    scene.pool("other", json!({"addresses": [scene.range(30, 39)]})).await?;
    let made = scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    for (annotations, target) in [
        ([(ASK_IPS, scene.ip(20).to_string()), (ASK_POOL, String::new())], scene.ip(20)),
        ([(ASK_IPS, String::new()), (ASK_POOL, "other".into())], scene.ip(30)),
    ] {
        scene.annotate("web", &annotations.each_ref().map(|(name, value)| (*name, value.as_str()))).await?;
        scene.has("web", &[target]).await?;
    }
    let shown = tokio::time::timeout(SOON, shown_until(scene, &made, &[scene.ip(30)])).await.context("a watch")??;
    let mut changes = shown.clone();
    changes.dedup();
    let expected = [vec![], vec![scene.ip(10)], vec![scene.ip(20)], vec![scene.ip(30)]];
    // What was before the first address is not to be seen when the first event is its write.
    ensure!(changes == expected || changes == expected[1..], "{shown:?}");
    Ok(())
}

async fn who_asks_in_vain_keeps_what_it_has_until_the_wish_can_be_met(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 12)]})).await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.service(name, json!({})).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.annotate("two", &[(ASK_IPS, &scene.ip(10).to_string())]).await?;
    let message = scene.refused_with("two", "AddressInUse", &[scene.ip(11)]).await?;
    ensure!(message.ends_with(&format!("it keeps {} until then", scene.ip(11))), "{message}");
    ensure!(message.contains(&format!("{}/one", scene.in_full(""))), "{message}");
    scene.delete("one").await?;
    scene.has("two", &[scene.ip(10)]).await?;
    // Nonsense takes nothing away either.
    scene.annotate("two", &[(ASK_IPS, "nonsense")]).await?;
    scene.refused_with("two", "InvalidRequest", &[scene.ip(10)]).await?;
    Ok(())
}

async fn a_request_that_is_taken_back_changes_nothing(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.pool("other", json!({"addresses": [scene.range(20, 29)]})).await?;
    scene.asking("ip", &[(ASK_IPS, &scene.ip(15).to_string())]).await?;
    scene.asking("pool", &[(ASK_POOL, "other")]).await?;
    scene.has("ip", &[scene.ip(15)]).await?;
    scene.has("pool", &[scene.ip(20)]).await?;
    for name in ["ip", "pool"] {
        scene.edit(name, json!({"metadata": {"annotations": null}})).await?;
    }
    scene.settle().await?;
    scene.has("ip", &[scene.ip(15)]).await?;
    scene.has("pool", &[scene.ip(20)]).await
}

async fn a_service_that_asks_for_the_address_it_had_from_another_provider_keeps_it(scene: &Scene<'_>) -> Result<()> {
    let address = scene.ip(15);
    scene.asking("web", &[("metallb.io/loadBalancerIPs", &address.to_string())]).await?;
    scene.forge("web", json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})).await?;
    scene.service("other", json!({})).await?;
    scene.pool("lan", json!({"addresses": [scene.range(15, 16)]})).await?;
    scene.has("web", &[address]).await?;
    scene.has("other", &[scene.ip(16)]).await
}

async fn a_forged_status_is_repaired_with_an_event_and_gains_nobody_an_address(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.service("victim", json!({})).await?;
    scene.has("victim", &[scene.ip(10)]).await?;
    scene.service("forger", json!({})).await?;
    scene.has("forger", &[scene.ip(11)]).await?;
    scene.service("pending", json!({})).await?;
    scene.refused("pending", "PoolsExhausted").await?;
    let shows = |ip: IpAddr| json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
    let before =
        serde_json::to_value(scene.records().await?.into_values().map(|record| record.spec).collect::<Vec<_>>())?;
    // Somebody else's address, one of nobody, and none at all.
    for forged in [shows(scene.ip(10)), shows(scene.ip(77)), json!({"status": {"loadBalancer": null}})] {
        scene.forge("forger", forged.clone()).await?;
        scene.has("forger", &[scene.ip(11)]).await.with_context(|| forged.to_string())?;
    }
    let note = scene.was_said("forger", "Warning", "StatusRepaired").await?;
    ensure!(note.contains(&scene.ip(11).to_string()), "{note}");
    // Who is pending stays so, and shows nothing of ours.
    scene.forge("pending", shows(scene.ip(10))).await?;
    scene.was_said("pending", "Warning", "StatusRepaired").await?;
    scene.refused("pending", "PoolsExhausted").await?;
    // A condition that claims success is put right as well.
    let mut conditions = serde_json::to_value(scene.get("pending").await?.status.context("a status")?.conditions)?;
    conditions[0]["status"] = json!("True");
    conditions[0]["reason"] = json!("Allocated");
    scene.forge("pending", json!({"status": {"conditions": conditions}})).await?;
    scene.refused("pending", "PoolsExhausted").await?;
    let after =
        serde_json::to_value(scene.records().await?.into_values().map(|record| record.spec).collect::<Vec<_>>())?;
    ensure!(before == after, "{before} became {after}");
    scene.has("victim", &[scene.ip(10)]).await
}

async fn kubectl_waits_for_the_condition_and_shows_columns_that_a_person_wants(scene: &Scene<'_>) -> Result<()> {
    let namespace = scene.in_full("");
    let kubectl = |words: &str| {
        let words: Vec<_> = ["-n", &namespace].into_iter().chain(words.split(' ')).collect();
        scene.world.kubectl(&words)
    };
    scene.asking("web", &[(KEY, "k")]).await?;
    kubectl("wait --for=condition=landfall.dev/Allocated=false service/web --timeout=30s")?;
    let mut waiting = scene.world.cluster.kubectl_command()?;
    waiting.args(["-n", &namespace, "wait", "--for=condition=landfall.dev/Allocated", "service/web", "--timeout=30s"]);
    let waiting = tokio::task::spawn_blocking(move || waiting.output());
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let waited = waiting.await??;
    ensure!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    kubectl("wait --for=jsonpath={.status.loadBalancer.ingress[0].ip} service/web --timeout=30s")?;
    let table = kubectl("get service web")?;
    ensure!(table.contains(&scene.ip(10).to_string()), "{table}");

    // An edit of the spec has been seen when the condition says so.
    let edited = scene.edit("web", json!({"spec": {"sessionAffinity": "ClientIP"}})).await?;
    let generation = edited.metadata.generation;
    wait_until(SOON, "the condition to be about this spec", async || {
        let condition = allocated(&scene.get("web").await?).context("no condition")?;
        ensure!(condition.observed_generation == generation, "{condition:?} and not {generation:?}");
        Ok(())
    })
    .await?;
    let described = kubectl("describe service web")?;
    ensure!(described.contains("AllocationFailed") && described.contains("IPAllocated"), "{described}");

    let row = |table: &str, number: usize| -> Vec<String> {
        table.lines().nth(number).unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect()
    };
    let address = scene.ip(10).to_string();
    let table = scene.world.kubectl(&["get", "lbip"])?;
    let columns = ["NAME", "ADDRESS", "POOL", "NAMESPACE", "SERVICE", "ANNOUNCER", "REACH", "CONFLICT", "AGE"];
    ensure!(row(&table, 0) == columns, "{table}");
    ensure!(row(&table, 1)[..5] == [&address, &address, "lan", &namespace, "web"], "{table}");
    let wide = scene.world.kubectl(&["get", "lbip", "-o", "wide"])?;
    ensure!(row(&wide, 0).contains(&"SHARING-KEY".to_owned()) && row(&wide, 1).contains(&"k".to_owned()), "{wide}");
    let all = scene.world.kubectl(&["get", "landfall"])?;
    ensure!(all.contains("ipaddresspool") && all.contains("loadbalancerip"), "{all}");
    Ok(())
}
