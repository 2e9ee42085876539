//! Who is served when, and what becomes of an address in the life of its Service.

use anyhow::{Context, Result, ensure};
use e2e::scene::{ASK_IPS, Scene, Scenes};
use e2e::world::{SOON, allocated, ingress};
use e2e::{Connect, World};
use kube::ResourceExt;
use lab::wait_until;
use serde_json::json;

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_given_in_turn_kept_for_life_and_then_passed_on() -> Result<()> {
    let world = World::with_landfall("e2e-turns", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(the_lowest_addresses_are_given_and_who_comes_too_late_is_told_so_and_waits).await;
    scenes.play(the_only_address_goes_on_when_its_holder_turns_to_cluster_ip_or_is_deleted).await;
    scenes.play(a_freed_address_rests_and_its_own_service_finds_it_again_under_a_new_uid).await;
    scenes.play(of_two_services_that_name_one_address_the_older_one_gets_it).await;
    scenes.play(a_service_of_a_foreign_class_is_left_alone_whatever_is_written_there).await;
    scenes.play(a_service_that_changes_its_class_is_let_go_and_taken_in_again).await;
    scenes.play(types_ports_selectors_and_policies_change_and_the_address_stays).await;
    scenes.play(without_node_ports_an_address_answers_and_stays_when_there_are_some).await;
    scenes.play(tcp_udp_and_sctp_of_one_service_are_on_one_address).await;
    scenes.end()?;
    world.end()
}

async fn the_lowest_addresses_are_given_and_who_comes_too_late_is_told_so_and_waits(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 12)]})).await?;
    for (name, last) in [("one", 10), ("two", 11), ("three", 12)] {
        scene.service(name, json!({})).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.pool_says("lan", "Exhausted", "True", "Exhausted").await?;
    scene.service("late", json!({})).await?;
    let message = scene.refused("late", "PoolsExhausted").await?;
    ensure!(message.contains("lan"), "{message}");
    let note = scene.was_said("late", "Warning", "AllocationFailed").await?;
    ensure!(note == message, "{note}");
    // Whoever else comes or goes: nobody is served out of turn, and nothing is said twice.
    scene.settle().await?;
    scene.refused("late", "PoolsExhausted").await?;
    let said = scene.said_of("late").await?;
    ensure!(said.len() == 1, "{said:?}");
    Ok(())
}

async fn the_only_address_goes_on_when_its_holder_turns_to_cluster_ip_or_is_deleted(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.ip(10)]})).await?;
    scene.service("one", json!({})).await?;
    scene.has("one", &[scene.ip(10)]).await?;
    for name in ["two", "three"] {
        scene.service(name, json!({})).await?;
        scene.refused(name, "PoolsExhausted").await?;
    }
    scene.edit("one", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.is_let_go("one").await?;
    let first = wait_until(SOON, "one of the two to be served", async || {
        for name in ["two", "three"] {
            if !ingress(&scene.get(name).await?).is_empty() {
                return Ok(name);
            }
        }
        anyhow::bail!("both are pending")
    })
    .await?;
    scene.has(first, &[scene.ip(10)]).await?;
    let second = if first == "two" { "three" } else { "two" };
    scene.refused(second, "PoolsExhausted").await?;
    let (older, younger) = (scene.get(first).await?, scene.get(second).await?);
    let age = |service: &k8s_openapi::api::core::v1::Service| {
        (service.creation_timestamp().map(|time| time.0), service.name_any())
    };
    ensure!(age(&older) < age(&younger), "{first} was served before {second}");
    scene.delete(first).await?;
    scene.has(second, &[scene.ip(10)]).await
}

async fn a_freed_address_rests_and_its_own_service_finds_it_again_under_a_new_uid(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 11)], "reuseAfter": "1h"})).await?;
    let before = scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    scene.delete("web").await?;
    scene.service("other", json!({})).await?;
    scene.has("other", &[scene.ip(11)]).await?;
    let after = scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    ensure!(before.uid() != after.uid(), "the same UID twice");
    // Resting is no reason to keep somebody waiting: where nothing else is left, it is over.
    scene.delete("web").await?;
    scene.service("third", json!({})).await?;
    scene.has("third", &[scene.ip(10)]).await?;
    scene.service("web", json!({})).await?;
    scene.refused("web", "PoolsExhausted").await?;
    Ok(())
}

async fn of_two_services_that_name_one_address_the_older_one_gets_it(scene: &Scene<'_>) -> Result<()> {
    // Both wait for a pool, so that they are looked at together.
    let address = scene.ip(20).to_string();
    let a = scene.asking("a", &[(ASK_IPS, &address)]).await?;
    let b = scene.asking("b", &[(ASK_IPS, &address)]).await?;
    scene.service("any", json!({})).await?;
    for name in ["a", "b", "any"] {
        wait_until(SOON, "a refusal", async || allocated(&scene.get(name).await?).context("none yet")).await?;
    }
    ensure!(a.creation_timestamp() <= b.creation_timestamp());
    scene.pool("lan", json!({"addresses": [scene.range(20, 21)]})).await?;
    scene.has("a", &[scene.ip(20)]).await?;
    let message = scene.refused("b", "AddressInUse").await?;
    ensure!(message.contains(&format!("{}/a", scene.in_full(""))), "{message}");
    // Who takes any does not take what somebody asks for by name.
    scene.has("any", &[scene.ip(21)]).await
}

async fn a_service_of_a_foreign_class_is_left_alone_whatever_is_written_there(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    let foreign = json!({
        "metadata": {"finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
        "spec": {"loadBalancerClass": "example.com/internal-vip"},
    });
    scene.service("foreign", foreign).await?;
    // As its own provider would, with an address that happens to be one of ours.
    let status = json!({
        "loadBalancer": {"ingress": [{"ip": scene.ip(10)}]},
        "conditions": [{
            "type": "example.com/Ready", "status": "True", "reason": "Served", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    let before = scene.forge("foreign", json!({"status": status})).await?;
    for (name, class) in [("none", None), ("ours", Some("landfall.dev/landfall"))] {
        scene.service(name, json!({"spec": {"loadBalancerClass": class}})).await?;
        scene.address(name).await?;
    }
    scene.settle().await?;
    let after = scene.get("foreign").await?;
    ensure!(after.resource_version() == before.resource_version(), "{after:?}");
    Ok(())
}

async fn a_service_that_changes_its_class_is_let_go_and_taken_in_again(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    // Kubernetes lets a class change only together with the type.
    scene.edit("web", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.is_let_go("web").await?;
    let other = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}});
    scene.edit("web", other.clone()).await?;
    scene.settle().await?;
    scene.is_let_go("web").await?;
    scene.edit("web", json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}})).await?;
    let ours = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "landfall.dev/landfall"}});
    scene.edit("web", ours).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    // Both at once, so that nobody sees it between.
    scene.edit("web", json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}})).await?;
    scene.edit("web", other).await?;
    scene.is_let_go("web").await
}

async fn types_ports_selectors_and_policies_change_and_the_address_stays(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    scene.service("web", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.edit("web", json!({"spec": {"type": "NodePort"}})).await?;
    let web = scene.edit("web", json!({"spec": {"type": "LoadBalancer"}})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    let finalizers = || async { Ok::<_, anyhow::Error>(scene.get("web").await?.finalizers().to_vec()) };
    ensure!(finalizers().await? == ["service.kubernetes.io/load-balancer-cleanup"], "{:?}", finalizers().await?);
    let spec = web.spec.context("a spec")?;
    let mut port = serde_json::to_value(spec.ports.context("ports")?.remove(0))?;
    for (field, value) in [("nodePort", json!(32_123)), ("port", json!(81)), ("targetPort", json!(9090))] {
        port[field] = value;
        scene.edit("web", json!({"spec": {"ports": [port]}})).await?;
        scene.has("web", &[scene.ip(10)]).await?;
    }
    for change in [
        json!({"selector": {"app": "another"}}),
        json!({"externalTrafficPolicy": "Local"}),
        json!({"externalTrafficPolicy": "Cluster"}),
        json!({"sessionAffinity": "ClientIP"}),
        json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]}),
    ] {
        scene.edit("web", json!({"spec": change})).await?;
        // Content means: of this generation.
        let addresses = scene.addresses("web").await?;
        ensure!(addresses == [scene.ip(10)], "{change}: {addresses:?}");
    }
    let inner = json!({"spec": {"type": "ClusterIP", "loadBalancerSourceRanges": null, "externalTrafficPolicy": null}});
    scene.edit("web", inner).await?;
    scene.is_let_go("web").await?;
    scene.edit("web", json!({"spec": {"type": "LoadBalancer"}})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    ensure!(finalizers().await? == ["service.kubernetes.io/load-balancer-cleanup"], "{:?}", finalizers().await?);
    scene.delete("web").await
}

async fn without_node_ports_an_address_answers_and_stays_when_there_are_some(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.whoami("web", 1).await?;
    scene.pool("lan", json!({"addresses": ["192.0.2.200"]})).await?;
    world.service("web", json!({"allocateLoadBalancerNodePorts": false})).await?;
    let address = world.address("web").await?;
    let ports = |service: k8s_openapi::api::core::v1::Service| -> Vec<Option<i32>> {
        let ports = service.spec.unwrap_or_default().ports.unwrap_or_default();
        ports.iter().map(|port| port.node_port.filter(|port| *port != 0)).collect()
    };
    ensure!(ports(world.get_service("web").await?) == [None, None]);
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    world.patch_service("web", json!({"spec": {"allocateLoadBalancerNodePorts": true}})).await?;
    ensure!(ports(world.get_service("web").await?).iter().all(Option::is_some), "no node ports");
    scene.settle().await?;
    ensure!(world.address("web").await? == address, "another address");
    ensure!(world.lan.connect(address, 80)? == Connect::Accepted);
    world.delete_service("web").await
}

async fn tcp_udp_and_sctp_of_one_service_are_on_one_address(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    let ports = ["TCP", "UDP", "SCTP"]
        .map(|protocol| json!({"name": protocol.to_lowercase(), "port": 53, "targetPort": 5353, "protocol": protocol}));
    scene.service("dns", json!({"spec": {"ports": ports}})).await?;
    scene.has("dns", &[scene.ip(10)]).await?;
    let status = scene.get("dns").await?.status.context("a status")?;
    let entries = status.load_balancer.and_then(|status| status.ingress).context("ingress")?;
    ensure!(entries.len() == 1 && entries[0].ip_mode.as_deref() == Some("VIP"), "{entries:?}");
    Ok(())
}
