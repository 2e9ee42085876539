//! Order of allocation, and an address during the life of its Service.

use anyhow::{Context, Result, ensure};
use e2e::scene::{ADDRESSES_ANNOTATION, Scene};
use e2e::world::{SOON, allocated_condition, ingress};
use e2e::{ConnectOutcome, Scenes};
use kube::ResourceExt;
use lab::wait_until;
use serde_json::json;

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(the_lowest_free_address_is_allocated_first);
    scenes.add(a_released_address_goes_to_the_oldest_waiting_service);
    scenes.add(an_address_in_cool_down_returns_to_its_service);
    scenes.add(the_older_service_gets_a_requested_address);
    scenes.add(services_of_a_foreign_class_are_never_written);
    scenes.add(a_changed_class_releases_the_service);
    scenes.add(edits_of_a_service_keep_its_address);
    scenes.add(a_service_without_node_ports_keeps_its_address);
    scenes.add(all_protocols_of_a_service_share_its_address);
}

async fn the_lowest_free_address_is_allocated_first(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 12)]})).await?;
    for (name, last) in [("one", 10), ("two", 11), ("three", 12)] {
        scene.create_service(name, json!({})).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.expect_pool_condition("lan", "Exhausted", "True", "Exhausted").await?;
    scene.create_service("late", json!({})).await?;
    let message = scene.expect_refusal("late", "PoolsExhausted").await?;
    ensure!(message.contains("lan"), "{message}");
    let note = scene.expect_event("late", "Warning", "AllocationFailed").await?;
    ensure!(note == message, "{note}");
    // Other Services do not change the order, and the refusal has one event.
    scene.settle().await?;
    scene.expect_refusal("late", "PoolsExhausted").await?;
    let events = scene.events_of("late").await?;
    ensure!(events.len() == 1, "{events:?}");
    Ok(())
}

async fn a_released_address_goes_to_the_oldest_waiting_service(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.ip(10)]})).await?;
    scene.create_service("one", json!({})).await?;
    scene.expect_addresses("one", &[scene.ip(10)]).await?;
    for name in ["two", "three"] {
        scene.create_service(name, json!({})).await?;
        scene.expect_refusal(name, "PoolsExhausted").await?;
    }
    scene.patch_service("one", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.expect_released("one").await?;
    let first = wait_until(SOON, "one of the two to be served", async || {
        for name in ["two", "three"] {
            if !ingress(&scene.get_service(name).await?).is_empty() {
                return Ok(name);
            }
        }
        anyhow::bail!("both are pending")
    })
    .await?;
    scene.expect_addresses(first, &[scene.ip(10)]).await?;
    let second = if first == "two" { "three" } else { "two" };
    scene.expect_refusal(second, "PoolsExhausted").await?;
    let (older, younger) = (scene.get_service(first).await?, scene.get_service(second).await?);
    let age = |service: &k8s_openapi::api::core::v1::Service| {
        (service.creation_timestamp().map(|time| time.0), service.name_any())
    };
    ensure!(age(&older) < age(&younger), "{first} was served before {second}");
    scene.delete_service(first).await?;
    scene.expect_addresses(second, &[scene.ip(10)]).await
}

async fn an_address_in_cool_down_returns_to_its_service(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 11)], "reuseAfter": "1h"})).await?;
    let before = scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    scene.delete_service("web").await?;
    scene.create_service("other", json!({})).await?;
    scene.expect_addresses("other", &[scene.ip(11)]).await?;
    let after = scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    ensure!(before.uid() != after.uid(), "the same UID twice");
    // Without another free address, the cool-down ends early.
    scene.delete_service("web").await?;
    scene.create_service("third", json!({})).await?;
    scene.expect_addresses("third", &[scene.ip(10)]).await?;
    scene.create_service("web", json!({})).await?;
    scene.expect_refusal("web", "PoolsExhausted").await?;
    Ok(())
}

async fn the_older_service_gets_a_requested_address(scene: &Scene<'_>) -> Result<()> {
    // Both wait for a pool, so that one plan decides about both.
    let address = scene.ip(20).to_string();
    let a = scene.create_annotated("a", &[(ADDRESSES_ANNOTATION, &address)]).await?;
    let b = scene.create_annotated("b", &[(ADDRESSES_ANNOTATION, &address)]).await?;
    scene.create_service("any", json!({})).await?;
    for name in ["a", "b", "any"] {
        wait_until(SOON, "a refusal", async || {
            allocated_condition(&scene.get_service(name).await?).context("none yet")
        })
        .await?;
    }
    ensure!(a.creation_timestamp() <= b.creation_timestamp());
    scene.create_pool("lan", json!({"addresses": [scene.range(20, 21)]})).await?;
    scene.expect_addresses("a", &[scene.ip(20)]).await?;
    let message = scene.expect_refusal("b", "AddressInUse").await?;
    ensure!(message.contains(&format!("{}/a", scene.namespace_name(""))), "{message}");
    // A Service without a request does not get an address that another Service requests.
    scene.expect_addresses("any", &[scene.ip(21)]).await
}

async fn services_of_a_foreign_class_are_never_written(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    let foreign = json!({
        "metadata": {"finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
        "spec": {"loadBalancerClass": "example.com/internal-vip"},
    });
    scene.create_service("foreign", foreign).await?;
    // A status like its own provider's, with an address of our pool.
    let status = json!({
        "loadBalancer": {"ingress": [{"ip": scene.ip(10)}]},
        "conditions": [{
            "type": "example.com/Ready", "status": "True", "reason": "Served", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    let before = scene.patch_service_status("foreign", json!({"status": status})).await?;
    for (name, class) in [("none", None), ("ours", Some("landfall.dev/landfall"))] {
        scene.create_service(name, json!({"spec": {"loadBalancerClass": class}})).await?;
        scene.wait_for_address(name).await?;
    }
    scene.settle().await?;
    let after = scene.get_service("foreign").await?;
    ensure!(after.resource_version() == before.resource_version(), "{after:?}");
    Ok(())
}

async fn a_changed_class_releases_the_service(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    // Kubernetes allows a change of the class only together with the type.
    scene.patch_service("web", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.expect_released("web").await?;
    let other = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}});
    scene.patch_service("web", other.clone()).await?;
    scene.settle().await?;
    scene.expect_released("web").await?;
    scene.patch_service("web", json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}})).await?;
    let ours = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "landfall.dev/landfall"}});
    scene.patch_service("web", ours).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    // Both edits at once, so that the controller may miss the state in between.
    scene.patch_service("web", json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}})).await?;
    scene.patch_service("web", other).await?;
    scene.expect_released("web").await
}

async fn edits_of_a_service_keep_its_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    scene.create_service("web", json!({"spec": {"type": "ClusterIP"}})).await?;
    scene.patch_service("web", json!({"spec": {"type": "NodePort"}})).await?;
    let web = scene.patch_service("web", json!({"spec": {"type": "LoadBalancer"}})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    let finalizers = || async { Ok::<_, anyhow::Error>(scene.get_service("web").await?.finalizers().to_vec()) };
    ensure!(finalizers().await? == ["service.kubernetes.io/load-balancer-cleanup"], "{:?}", finalizers().await?);
    let spec = web.spec.context("a spec")?;
    let mut port = serde_json::to_value(spec.ports.context("ports")?.remove(0))?;
    // The API server chooses no node port below 30,086 by itself (KEP-3668), so no other Service has this one.
    for (field, value) in [("nodePort", json!(30_023)), ("port", json!(81)), ("targetPort", json!(9090))] {
        port[field] = value;
        scene.patch_service("web", json!({"spec": {"ports": [port]}})).await?;
        scene.expect_addresses("web", &[scene.ip(10)]).await?;
    }
    for change in [
        json!({"selector": {"app": "another"}}),
        json!({"externalTrafficPolicy": "Local"}),
        json!({"externalTrafficPolicy": "Cluster"}),
        json!({"sessionAffinity": "ClientIP"}),
        json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]}),
    ] {
        scene.patch_service("web", json!({"spec": change})).await?;
        // Waits for the condition of this generation.
        let addresses = scene.wait_for_addresses("web").await?;
        ensure!(addresses == [scene.ip(10)], "{change}: {addresses:?}");
    }
    let inner = json!({"spec": {"type": "ClusterIP", "loadBalancerSourceRanges": null, "externalTrafficPolicy": null}});
    scene.patch_service("web", inner).await?;
    scene.expect_released("web").await?;
    scene.patch_service("web", json!({"spec": {"type": "LoadBalancer"}})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    ensure!(finalizers().await? == ["service.kubernetes.io/load-balancer-cleanup"], "{:?}", finalizers().await?);
    scene.delete_service("web").await
}

async fn a_service_without_node_ports_keeps_its_address(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_whoami("web", 1).await?;
    scene.create_pool("lan", json!({"addresses": ["192.0.2.200"]})).await?;
    world.create_service("web", json!({"allocateLoadBalancerNodePorts": false})).await?;
    let address = world.wait_for_address("web").await?;
    let ports = |service: k8s_openapi::api::core::v1::Service| -> Vec<Option<i32>> {
        let ports = service.spec.unwrap_or_default().ports.unwrap_or_default();
        ports.iter().map(|port| port.node_port.filter(|port| *port != 0)).collect()
    };
    ensure!(ports(world.get_service("web").await?) == [None, None]);
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    world.patch_service("web", json!({"spec": {"allocateLoadBalancerNodePorts": true}})).await?;
    ensure!(ports(world.get_service("web").await?).iter().all(Option::is_some), "no node ports");
    scene.settle().await?;
    ensure!(world.wait_for_address("web").await? == address, "another address");
    ensure!(world.lan.connect(address, 80)? == ConnectOutcome::Accepted);
    world.delete_service("web").await
}

async fn all_protocols_of_a_service_share_its_address(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 20)]})).await?;
    let ports = ["TCP", "UDP", "SCTP"]
        .map(|protocol| json!({"name": protocol.to_lowercase(), "port": 53, "targetPort": 5353, "protocol": protocol}));
    scene.create_service("dns", json!({"spec": {"ports": ports}})).await?;
    scene.expect_addresses("dns", &[scene.ip(10)]).await?;
    let status = scene.get_service("dns").await?.status.context("a status")?;
    let entries = status.load_balancer.and_then(|status| status.ingress).context("ingress")?;
    ensure!(entries.len() == 1 && entries[0].ip_mode.as_deref() == Some("VIP"), "{entries:?}");
    Ok(())
}
