//! Requests for addresses and pools, forged status, and the output of kubectl.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::Scenes;
use e2e::scene::{ADDRESSES_ANNOTATION, POOL_ANNOTATION, SHARING_KEY, Scene, with_annotations};
use e2e::world::{SOON, allocated_condition, ingress};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{WatchEvent, WatchParams};
use lab::wait_until;
use serde_json::json;

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(every_spelling_of_a_request_is_accepted);
    scenes.add(requested_addresses_are_compared_by_value);
    scenes.add(several_requested_addresses_are_allocated_together);
    scenes.add(an_impossible_request_is_refused_until_it_changes);
    scenes.add(a_new_address_replaces_the_old_without_a_gap);
    scenes.add(a_refused_request_keeps_the_current_address);
    scenes.add(a_withdrawn_request_changes_nothing);
    scenes.add(a_requested_address_of_another_provider_is_kept);
    scenes.add(a_forged_status_is_repaired_and_gains_no_address);
    scenes.add(kubectl_waits_for_conditions_and_shows_columns);
}

async fn every_spelling_of_a_request_is_accepted(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("first", json!({"addresses": [scene.range(10, 29)]})).await?;
    scene.create_pool("second", json!({"addresses": [scene.range(30, 49)]})).await?;
    let spellings =
        ["landfall.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
    for (number, annotation) in spellings.into_iter().enumerate() {
        let (name, address) = (format!("ip{number}"), scene.ip(20 + number as u8));
        scene.create_annotated(&name, &[(annotation, &address.to_string())]).await?;
        scene.expect_addresses(&name, &[address]).await?;
    }
    scene.create_service("field", json!({"spec": {"loadBalancerIP": scene.ip(23)}})).await?;
    scene.expect_addresses("field", &[scene.ip(23)]).await?;
    let spellings = ["landfall.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
    for (number, annotation) in spellings.into_iter().enumerate() {
        let name = format!("pool{number}");
        scene.create_annotated(&name, &[(annotation, "second")]).await?;
        scene.expect_addresses(&name, &[scene.ip(30 + number as u8)]).await?;
    }
    let spellings =
        ["landfall.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];
    for (number, annotation) in spellings.into_iter().enumerate() {
        let mut service = with_annotations(&[(annotation, "k")]);
        service["spec"] = json!({"ports": [{"port": 100 + number}]});
        let name = format!("key{number}");
        scene.create_service(&name, service).await?;
        scene.expect_addresses(&name, &[scene.ip(10)]).await?;
    }
    // A Service may use several spellings together if they agree.
    let address = scene.ip(25).to_string();
    let mut all = with_annotations(&[
        ("landfall.dev/load-balancer-ips", &address),
        ("metallb.universe.tf/loadBalancerIPs", &address),
        ("metallb.io/address-pool", "first"),
        ("landfall.dev/address-pool", ""),
    ]);
    all["spec"] = json!({"loadBalancerIP": address});
    scene.create_service("all", all).await?;
    scene.expect_addresses("all", &[scene.ip(25)]).await
}

async fn requested_addresses_are_compared_by_value(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range6(0x10, 0x1f)]})).await?;
    let address = scene.ip6(0x1a);
    let IpAddr::V6(v6) = address else { anyhow::bail!("{address}") };
    let written = v6.segments().map(|group| format!("{group:04X}")).join(":");
    let mut service = with_annotations(&[(ADDRESSES_ANNOTATION, &format!(" {written} "))]);
    service["spec"] = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "loadBalancerIP": address});
    scene.create_service("web", service).await?;
    scene.expect_addresses("web", &[address]).await?;
    let status = scene.get_service("web").await?.status.context("a status")?;
    let entries = status.load_balancer.and_then(|status| status.ingress).context("ingress")?;
    let shown: Vec<_> = entries.iter().map(|entry| (entry.ip.clone(), entry.ip_mode.clone())).collect();
    ensure!(shown == [(Some(address.to_string()), Some("VIP".to_owned()))], "{shown:?}");
    Ok(())
}

async fn several_requested_addresses_are_allocated_together(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("one", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_pool("two", json!({"addresses": [scene.range(20, 29)]})).await?;
    scene.create_annotated("holder", &[(ADDRESSES_ANNOTATION, &scene.ip(21).to_string())]).await?;
    scene.expect_addresses("holder", &[scene.ip(21)]).await?;
    let request = [10, 21, 20].map(|last| scene.ip(last).to_string()).join(", ");
    scene.create_annotated("web", &[(ADDRESSES_ANNOTATION, &request)]).await?;
    scene.expect_refusal("web", "AddressInUse").await?;
    scene.delete_service("holder").await?;
    let addresses = scene.wait_for_addresses("web").await?;
    let mut sorted = addresses.clone();
    sorted.sort_unstable();
    ensure!(sorted == [scene.ip(10), scene.ip(20), scene.ip(21)], "{addresses:?}");
    scene.expect_addresses("web", &addresses).await?;
    // One address changes.
    let request = [10, 20, 22].map(|last| scene.ip(last).to_string()).join(",");
    scene.annotate("web", &[(ADDRESSES_ANNOTATION, &request)]).await?;
    wait_until(SOON, "the new addresses", async || {
        let mut addresses = scene.wait_for_addresses("web").await?;
        addresses.sort_unstable();
        ensure!(addresses == [scene.ip(10), scene.ip(20), scene.ip(22)], "{addresses:?}");
        Ok(())
    })
    .await
}

/// A refused request: its annotations, the reason of the refusal, and a text in the message.
type RefusalCase<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

async fn an_impossible_request_is_refused_until_it_changes(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 29)]})).await?;
    scene.create_pool("full", json!({"addresses": [scene.ip(40)], "autoAssign": false})).await?;
    scene.create_annotated("holder", &[(POOL_ANNOTATION, "full")]).await?;
    scene.expect_addresses("holder", &[scene.ip(40)]).await?;
    scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    let (outside, taken, unused) = (scene.ip(200).to_string(), scene.ip(40).to_string(), scene.ip(12).to_string());
    let many = (10..27).map(|last| scene.ip(last).to_string()).collect::<Vec<_>>().join(",");
    let long_key = "k".repeat(300);
    let cases: [RefusalCase<'_>; 14] = [
        (&[(ADDRESSES_ANNOTATION, "web.example.com")], "InvalidRequest", "web.example.com"),
        (&[(ADDRESSES_ANNOTATION, "198.18.0.07")], "InvalidRequest", "198.18.0.07"),
        (&[(ADDRESSES_ANNOTATION, "::ffff:198.18.0.7")], "InvalidRequest", "::ffff:198.18.0.7"),
        (&[(ADDRESSES_ANNOTATION, "198.18.0.7/32")], "InvalidRequest", "198.18.0.7/32"),
        (&[(ADDRESSES_ANNOTATION, &many)], "InvalidRequest", "16"),
        (&[(SHARING_KEY, &long_key)], "InvalidRequest", "253"),
        (
            &[(ADDRESSES_ANNOTATION, &unused), ("metallb.io/loadBalancerIPs", &outside)],
            "InvalidRequest",
            "metallb.io/loadBalancerIPs",
        ),
        (&[(POOL_ANNOTATION, "lan"), ("metallb.io/address-pool", "full")], "InvalidRequest", "metallb.io/address-pool"),
        (&[(ADDRESSES_ANNOTATION, &outside)], "AddressNotInPool", &outside),
        (&[(ADDRESSES_ANNOTATION, &unused), (POOL_ANNOTATION, "full")], "AddressNotInPool", "full"),
        (&[(ADDRESSES_ANNOTATION, &taken)], "AddressInUse", "holder"),
        (&[(POOL_ANNOTATION, "nowhere")], "PoolNotFound", "nowhere"),
        (&[(POOL_ANNOTATION, "full")], "PoolExhausted", "full"),
        (&[(ADDRESSES_ANNOTATION, "2001:db8::1")], "FamilyMismatch", "2001:db8::1"),
    ];
    for (number, (annotations, reason, text)) in cases.into_iter().enumerate() {
        let name = format!("bad{number}");
        scene.create_annotated(&name, annotations).await?;
        let message = scene.expect_refusal(&name, reason).await.with_context(|| format!("{annotations:?}"))?;
        ensure!(message.contains(text), "{annotations:?}: {message}");
        scene.patch_service(&name, json!({"metadata": {"annotations": null}})).await?;
        scene.wait_for_address(&name).await?;
        scene.delete_service(&name).await?;
    }
    // An invalid field is refused like an annotation.
    scene.create_service("field", json!({"spec": {"loadBalancerIP": "nonsense"}})).await?;
    let message = scene.expect_refusal("field", "InvalidRequest").await?;
    ensure!(message.contains("spec.loadBalancerIP"), "{message}");
    Ok(())
}

/// Watches a Service until its status has the addresses `last`. Returns the addresses in all events until then.
async fn watch_addresses_until(scene: &Scene<'_>, since: &Service, last: &[IpAddr]) -> Result<Vec<Vec<IpAddr>>> {
    let services: Api<Service> = Api::namespaced(scene.world.client.clone(), &scene.namespace_name(""));
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

async fn a_new_address_replaces_the_old_without_a_gap(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 29)]})).await?;
    scene.create_pool("other", json!({"addresses": [scene.range(30, 39)]})).await?;
    let created = scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    for (annotations, target) in [
        ([(ADDRESSES_ANNOTATION, scene.ip(20).to_string()), (POOL_ANNOTATION, String::new())], scene.ip(20)),
        ([(ADDRESSES_ANNOTATION, String::new()), (POOL_ANNOTATION, "other".into())], scene.ip(30)),
    ] {
        scene.annotate("web", &annotations.each_ref().map(|(name, value)| (*name, value.as_str()))).await?;
        scene.expect_addresses("web", &[target]).await?;
    }
    let shown = tokio::time::timeout(SOON, watch_addresses_until(scene, &created, &[scene.ip(30)]))
        .await
        .context("a watch")??;
    let mut changes = shown.clone();
    changes.dedup();
    let expected = [vec![], vec![scene.ip(10)], vec![scene.ip(20)], vec![scene.ip(30)]];
    // The empty status is missing if the first event is already the write of the first address.
    ensure!(changes == expected || changes == expected[1..], "{shown:?}");
    Ok(())
}

async fn a_refused_request_keeps_the_current_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 12)]})).await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.create_service(name, json!({})).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.annotate("two", &[(ADDRESSES_ANNOTATION, &scene.ip(10).to_string())]).await?;
    let message = scene.expect_refusal_with("two", "AddressInUse", &[scene.ip(11)]).await?;
    ensure!(message.ends_with(&format!("until then, the Service keeps {}", scene.ip(11))), "{message}");
    ensure!(message.contains(&format!("{}/one", scene.namespace_name(""))), "{message}");
    scene.delete_service("one").await?;
    scene.expect_addresses("two", &[scene.ip(10)]).await?;
    // An invalid request keeps the address as well.
    scene.annotate("two", &[(ADDRESSES_ANNOTATION, "nonsense")]).await?;
    scene.expect_refusal_with("two", "InvalidRequest", &[scene.ip(10)]).await?;
    Ok(())
}

async fn a_withdrawn_request_changes_nothing(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_pool("other", json!({"addresses": [scene.range(20, 29)]})).await?;
    scene.create_annotated("ip", &[(ADDRESSES_ANNOTATION, &scene.ip(15).to_string())]).await?;
    scene.create_annotated("pool", &[(POOL_ANNOTATION, "other")]).await?;
    scene.expect_addresses("ip", &[scene.ip(15)]).await?;
    scene.expect_addresses("pool", &[scene.ip(20)]).await?;
    for name in ["ip", "pool"] {
        scene.patch_service(name, json!({"metadata": {"annotations": null}})).await?;
    }
    scene.settle().await?;
    scene.expect_addresses("ip", &[scene.ip(15)]).await?;
    scene.expect_addresses("pool", &[scene.ip(20)]).await
}

async fn a_requested_address_of_another_provider_is_kept(scene: &Scene<'_>) -> Result<()> {
    let address = scene.ip(15);
    scene.create_annotated("web", &[("metallb.io/loadBalancerIPs", &address.to_string())]).await?;
    scene.patch_service_status("web", json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})).await?;
    scene.create_service("other", json!({})).await?;
    scene.create_pool("lan", json!({"addresses": [scene.range(15, 16)]})).await?;
    scene.expect_addresses("web", &[address]).await?;
    scene.expect_addresses("other", &[scene.ip(16)]).await
}

async fn a_forged_status_is_repaired_and_gains_no_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.create_service("victim", json!({})).await?;
    scene.expect_addresses("victim", &[scene.ip(10)]).await?;
    scene.create_service("forger", json!({})).await?;
    scene.expect_addresses("forger", &[scene.ip(11)]).await?;
    scene.create_service("pending", json!({})).await?;
    scene.expect_refusal("pending", "PoolsExhausted").await?;
    let shows = |ip: IpAddr| json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
    let before =
        serde_json::to_value(scene.records().await?.into_values().map(|record| record.spec).collect::<Vec<_>>())?;
    // The address of another Service, a free address, and no address.
    for forged in [shows(scene.ip(10)), shows(scene.ip(77)), json!({"status": {"loadBalancer": null}})] {
        scene.patch_service_status("forger", forged.clone()).await?;
        scene.expect_addresses("forger", &[scene.ip(11)]).await.with_context(|| forged.to_string())?;
    }
    let note = scene.expect_event("forger", "Warning", "StatusRepaired").await?;
    ensure!(note.contains(&scene.ip(11).to_string()), "{note}");
    // A pending Service stays pending, and shows no address of ours.
    scene.patch_service_status("pending", shows(scene.ip(10))).await?;
    scene.expect_event("pending", "Warning", "StatusRepaired").await?;
    scene.expect_refusal("pending", "PoolsExhausted").await?;
    // A forged condition is repaired as well.
    let mut conditions =
        serde_json::to_value(scene.get_service("pending").await?.status.context("a status")?.conditions)?;
    conditions[0]["status"] = json!("True");
    conditions[0]["reason"] = json!("Allocated");
    scene.patch_service_status("pending", json!({"status": {"conditions": conditions}})).await?;
    scene.expect_refusal("pending", "PoolsExhausted").await?;
    let after =
        serde_json::to_value(scene.records().await?.into_values().map(|record| record.spec).collect::<Vec<_>>())?;
    ensure!(before == after, "{before} became {after}");
    scene.expect_addresses("victim", &[scene.ip(10)]).await
}

async fn kubectl_waits_for_conditions_and_shows_columns(scene: &Scene<'_>) -> Result<()> {
    let namespace = scene.namespace_name("");
    let kubectl = |words: &str| {
        let words: Vec<_> = ["-n", &namespace].into_iter().chain(words.split(' ')).collect();
        scene.world.kubectl(&words)
    };
    scene.create_annotated("web", &[(SHARING_KEY, "k")]).await?;
    kubectl("wait --for=condition=landfall.dev/Allocated=false service/web --timeout=30s")?;
    let mut waiting = scene.world.cluster.kubectl_command()?;
    waiting.args(["-n", &namespace, "wait", "--for=condition=landfall.dev/Allocated", "service/web", "--timeout=30s"]);
    let waiting = tokio::task::spawn_blocking(move || waiting.output());
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    let waited = waiting.await??;
    ensure!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    kubectl("wait --for=jsonpath={.status.loadBalancer.ingress[0].ip} service/web --timeout=30s")?;
    let table = kubectl("get service web")?;
    ensure!(table.contains(&scene.ip(10).to_string()), "{table}");

    // The condition has the generation of the last edit.
    let edited = scene.patch_service("web", json!({"spec": {"sessionAffinity": "ClientIP"}})).await?;
    let generation = edited.metadata.generation;
    wait_until(SOON, "the condition of this generation", async || {
        let condition = allocated_condition(&scene.get_service("web").await?).context("no condition")?;
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
