//! Which pool an address comes from, and what edits of pools do: nothing to those that have an address.

use anyhow::{Context, Result, ensure};
use crds::node_network::{NodeLink, NodeNetwork, NodeNetworkSpec};
use e2e::World;
use e2e::scene::{ASK_IPS, ASK_POOL, KEY, Scene, Scenes, annotated};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::small;

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_from_the_right_pool_and_no_edit_of_a_pool_takes_one_away() -> Result<()> {
    let world = World::with_landfall("e2e-pools", small()).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(pools_are_tried_by_priority_then_those_without_allocation_and_stay_chosen).await;
    scenes.play(a_fence_of_namespaces_and_labels_is_passed_by_no_spelling_of_a_request).await;
    scenes.play(a_pool_without_auto_assign_gives_to_who_names_it_or_its_address).await;
    scenes.play(excluded_buggy_and_outer_addresses_are_not_given_to_who_takes_any).await;
    scenes.play(what_a_node_or_a_gateway_has_is_never_given_and_a_service_that_had_it_first_keeps_it).await;
    scenes.play(a_namespace_gets_as_many_addresses_as_its_quota_and_a_shared_one_counts_once).await;
    scenes.play(a_pool_that_is_deleted_takes_no_address_away_and_says_so_on_the_service).await;
    scenes.play(a_pool_that_shrinks_or_puts_up_fences_takes_no_address_away_and_says_so).await;
    scenes.play(a_service_whose_pool_goes_moves_to_another_when_it_asks_to_and_not_before).await;
    scenes.play(a_pool_that_drains_gives_nothing_and_tells_who_is_left_until_it_is_empty).await;
    scenes.play(a_pool_counts_what_is_given_and_an_edit_of_its_status_by_hand_is_undone).await;
    scenes.play(of_pools_that_overlap_the_older_one_has_the_addresses_and_the_other_one_says_so).await;
    scenes.play(what_is_wrong_with_an_object_is_refused_in_words_that_name_it).await;
    scenes.play(what_got_past_the_rules_harms_nobody_and_is_said_where_it_is_wrong).await;
    scenes.end()?;
    world.end()
}

async fn pools_are_tried_by_priority_then_those_without_allocation_and_stay_chosen(scene: &Scene<'_>) -> Result<()> {
    // The last to be tried is the oldest.
    scene.pool("open", json!({"addresses": [scene.ip(50)]})).await?;
    scene.pool("unset", json!({"addresses": [scene.ip(40)], "serviceAllocation": {}})).await?;
    for (name, last, priority) in [("twenty", 20, 20), ("ten", 10, 10)] {
        let spec = json!({"addresses": [scene.ip(last)], "serviceAllocation": {"priority": priority}});
        scene.pool(name, spec).await?;
    }
    for last in [10, 20, 40, 50] {
        let name = format!("s{last}");
        scene.service(&name, json!({})).await?;
        scene.has(&name, &[scene.ip(last)]).await?;
    }
    let spec = json!({"addresses": [scene.ip(5)], "serviceAllocation": {"priority": 1}});
    scene.pool("first", spec).await?;
    scene.settle().await?;
    for last in [10, 20, 40, 50] {
        scene.has(&format!("s{last}"), &[scene.ip(last)]).await?;
    }
    Ok(())
}

async fn a_fence_of_namespaces_and_labels_is_passed_by_no_spelling_of_a_request(scene: &Scene<'_>) -> Result<()> {
    let named = scene.namespace("named", &[]).await?;
    scene.namespace("labelled", &[("team", "bank")]).await?;
    scene.namespace("other", &[]).await?;
    let spec = json!({
        "addresses": [scene.range(10, 29)],
        "serviceAllocation": {
            "namespaces": [named],
            "namespaceSelectors": [{"matchLabels": {"team": "bank"}}],
            "serviceSelectors": [{"matchLabels": {"tier": "public"}}, {"matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["partner"]},
            ]}],
        },
    });
    scene.pool("fenced", spec).await?;
    let tier = |tier: &str| json!({"metadata": {"labels": {"tier": tier}}});
    for (name, labels) in [("named/a", tier("public")), ("labelled/b", tier("partner"))] {
        scene.service(name, labels).await?;
        let address = scene.address(name).await?;
        ensure!(address == scene.ip(10) || address == scene.ip(11), "{name}: {address}");
    }
    for (name, labels) in [("named/c", tier("inner")), ("other/d", tier("public"))] {
        scene.service(name, labels).await?;
        scene.refused(name, "NoAutomaticPool").await?;
        let ip = scene.ip(20).to_string();
        for (annotation, value) in [
            (ASK_POOL, "fenced"),
            ("metallb.io/address-pool", "fenced"),
            ("metallb.universe.tf/address-pool", "fenced"),
            (ASK_IPS, &ip),
            ("metallb.io/loadBalancerIPs", &ip),
            ("metallb.universe.tf/loadBalancerIPs", &ip),
        ] {
            scene.annotate(name, &[(annotation, value)]).await?;
            let message = scene.refused(name, "PoolNotAllowed").await?;
            ensure!(message.contains("fenced"), "{annotation}: {message}");
            scene.edit(name, json!({"metadata": {"annotations": null}})).await?;
            scene.refused(name, "NoAutomaticPool").await?;
        }
        scene.edit(name, json!({"spec": {"loadBalancerIP": ip}})).await?;
        scene.refused(name, "PoolNotAllowed").await?;
        scene.edit(name, json!({"spec": {"loadBalancerIP": null}})).await?;
    }
    // A label opens the gate, on the Service or on its namespace.
    scene.edit("named/c", tier("public")).await?;
    scene.address("named/c").await?;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(scene.world.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "bank"}}}));
    namespaces.patch(&scene.in_full("other"), &PatchParams::default(), &label).await?;
    scene.address("other/d").await?;
    Ok(())
}

async fn a_pool_without_auto_assign_gives_to_who_names_it_or_its_address(scene: &Scene<'_>) -> Result<()> {
    scene.pool("spare", json!({"addresses": [scene.range(10, 12)], "autoAssign": false})).await?;
    scene.service("any", json!({})).await?;
    let message = scene.refused("any", "NoAutomaticPool").await?;
    ensure!(message.contains("spare"), "{message}");
    scene.asking("pool", &[(ASK_POOL, "spare")]).await?;
    scene.has("pool", &[scene.ip(10)]).await?;
    scene.asking("address", &[(ASK_IPS, &scene.ip(12).to_string())]).await?;
    scene.has("address", &[scene.ip(12)]).await?;
    scene.edit_pool("spare", json!({"autoAssign": true})).await?;
    scene.has("any", &[scene.ip(11)]).await
}

async fn excluded_buggy_and_outer_addresses_are_not_given_to_who_takes_any(scene: &Scene<'_>) -> Result<()> {
    let net = |last: u8, length: u8| format!("{}/{length}", scene.ip(last));
    scene.pool("cidr", json!({"addresses": [net(0, 29)], "exclude": [scene.range(2, 4)]})).await?;
    scene.pool_counts("cidr", [0, 3, 0, 0]).await?;
    for (name, last) in [("a", 1), ("b", 5), ("c", 6)] {
        scene.service(name, json!({})).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.service("d", json!({})).await?;
    scene.refused("d", "PoolsExhausted").await?;
    // By name: the outer ones, and never what is excluded.
    for (name, last) in [("network", 0), ("broadcast", 7)] {
        scene.asking(name, &[(ASK_IPS, &scene.ip(last).to_string())]).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.annotate("d", &[(ASK_IPS, &scene.ip(3).to_string())]).await?;
    let message = scene.refused("d", "AddressExcluded").await?;
    ensure!(message.contains(&scene.ip(3).to_string()) && message.contains("cidr"), "{message}");

    scene.pool("range", json!({"addresses": [scene.range(254, 255)], "avoidBuggyIPs": true})).await?;
    scene.asking("e", &[(ASK_POOL, "range")]).await?;
    scene.has("e", &[scene.ip(254)]).await?;
    scene.annotate("d", &[(ASK_IPS, &scene.ip(255).to_string())]).await?;
    scene.refused("d", "AddressExcluded").await?;
    scene.edit_pool("range", json!({"avoidBuggyIPs": false})).await?;
    scene.has("d", &[scene.ip(255)]).await
}

async fn what_a_node_or_a_gateway_has_is_never_given_and_a_service_that_had_it_first_keeps_it(
    scene: &Scene<'_>,
) -> Result<()> {
    let networks: Api<NodeNetwork> = Api::all(scene.world.client.clone());
    let spec = NodeNetworkSpec {
        links: vec![NodeLink { name: "eth0".into(), addresses: vec![format!("{}/24", scene.ip(10))], mac: None }],
        gateways: vec![scene.ip(11).to_string()],
    };
    networks.create(&PostParams::default(), &NodeNetwork::new("ghost", spec.clone())).await?;
    scene.pool("lan", json!({"addresses": [scene.range(10, 14)]})).await?;
    scene.pool_counts("lan", [0, 3, 0, 0]).await?;
    scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(12)]).await?;
    for (name, last) in [("node", 10), ("gateway", 11)] {
        scene.asking(name, &[(ASK_IPS, &scene.ip(last).to_string())]).await?;
        let message = scene.refused(name, "AddressInUse").await?;
        ensure!(message.contains("ghost"), "{message}");
    }
    // A node that comes with the address of a Service takes nothing away, but somebody should know.
    let link = json!({"spec": {"links": [{"name": "eth0", "addresses": [format!("{}/24", scene.ip(12))]}]}});
    networks.patch("ghost", &PatchParams::default(), &Patch::Merge(link)).await?;
    scene.has_with("web", &[scene.ip(12)], "NodeHasAddress").await?;
    let note = scene.was_said("web", "Warning", "NodeHasAddress").await?;
    ensure!(note.contains("ghost"), "{note}");
    scene.has("node", &[scene.ip(10)]).await?;
    networks.delete("ghost", &DeleteParams::default()).await?;
    scene.has("web", &[scene.ip(12)]).await?;
    scene.has("gateway", &[scene.ip(11)]).await
}

async fn a_namespace_gets_as_many_addresses_as_its_quota_and_a_shared_one_counts_once(scene: &Scene<'_>) -> Result<()> {
    scene.namespace("b", &[]).await?;
    scene.pool("lan", json!({"addresses": [scene.range(10, 19)], "maxPerNamespace": 2})).await?;
    let port = |port: u16| json!({"spec": {"ports": [{"port": port}]}});
    let sharing = |number: u16| {
        let mut service = annotated(&[(KEY, "k")]);
        e2e::scene::merge(&mut service, port(number));
        service
    };
    for (name, number) in [("one", 1), ("two", 2)] {
        scene.service(name, sharing(number)).await?;
        scene.has(name, &[scene.ip(10)]).await?;
    }
    scene.service("three", json!({})).await?;
    scene.has("three", &[scene.ip(11)]).await?;
    scene.service("four", json!({})).await?;
    let message = scene.refused("four", "NamespaceQuota").await?;
    ensure!(message.contains("lan") && message.contains("spec.maxPerNamespace"), "{message}");
    scene.annotate("four", &[(ASK_IPS, &scene.ip(19).to_string())]).await?;
    scene.refused("four", "NamespaceQuota").await?;
    scene.service("b/five", json!({})).await?;
    scene.has("b/five", &[scene.ip(12)]).await?;
    // A lower quota takes nothing away; a higher one lets in who waits.
    scene.edit_pool("lan", json!({"maxPerNamespace": 1})).await?;
    scene.settle().await?;
    scene.has("three", &[scene.ip(11)]).await?;
    scene.edit_pool("lan", json!({"maxPerNamespace": 3})).await?;
    scene.has("four", &[scene.ip(19)]).await
}

async fn a_pool_that_is_deleted_takes_no_address_away_and_says_so_on_the_service(scene: &Scene<'_>) -> Result<()> {
    let spec = json!({"addresses": [scene.range(10, 11)]});
    scene.pool("lan", spec.clone()).await?;
    scene.service("web", json!({})).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    scene.delete_pool("lan").await?;
    scene.has_with("web", &[scene.ip(10)], "PoolGone").await?;
    scene.service("late", json!({})).await?;
    scene.refused("late", "NoPool").await?;
    // Nobody gets it a second time out of another pool, and who has it may be in that one.
    scene.pool("again", spec).await?;
    scene.has("web", &[scene.ip(10)]).await?;
    scene.has("late", &[scene.ip(11)]).await
}

async fn a_pool_that_shrinks_or_puts_up_fences_takes_no_address_away_and_says_so(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.service("web", json!({})).await?;
    let own = [scene.ip(10)];
    scene.has("web", &own).await?;
    let whole = json!({"addresses": [scene.range(10, 11)], "exclude": null, "serviceAllocation": null, "drain": null});
    for (edit, reason) in [
        (json!({"addresses": [scene.ip(11)]}), "PoolGone"),
        (json!({"exclude": [scene.ip(10)]}), "PoolChanged"),
        (json!({"serviceAllocation": {"namespaces": ["elsewhere"]}}), "PoolChanged"),
        (json!({"drain": true}), "PoolDraining"),
    ] {
        scene.edit_pool("lan", edit.clone()).await?;
        scene.has_with("web", &own, reason).await.with_context(|| edit.to_string())?;
        scene.edit_pool("lan", whole.clone()).await?;
        scene.has("web", &own).await?;
    }
    Ok(())
}

async fn a_service_whose_pool_goes_moves_to_another_when_it_asks_to_and_not_before(scene: &Scene<'_>) -> Result<()> {
    scene.pool("old", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.asking("pinned", &[(ASK_POOL, "old")]).await?;
    scene.has("pinned", &[scene.ip(10)]).await?;
    scene.service("free", json!({})).await?;
    scene.has("free", &[scene.ip(11)]).await?;
    scene.pool("new", json!({"addresses": [scene.range(20, 21)]})).await?;
    scene.delete_pool("old").await?;
    scene.has_with("free", &[scene.ip(11)], "PoolGone").await?;
    // It asks for a pool that is not there; it has what it asked for, of that pool.
    scene.settle().await?;
    ensure!(e2e::world::ingress(&scene.get("pinned").await?) == [scene.ip(10)]);
    scene.annotate("pinned", &[(ASK_POOL, "new")]).await?;
    scene.has("pinned", &[scene.ip(20)]).await?;
    scene.annotate("free", &[(ASK_IPS, &scene.ip(21).to_string())]).await?;
    scene.has("free", &[scene.ip(21)]).await
}

async fn a_pool_that_drains_gives_nothing_and_tells_who_is_left_until_it_is_empty(scene: &Scene<'_>) -> Result<()> {
    scene.pool("old", json!({"addresses": [scene.range(10, 19)]})).await?;
    for name in ["one", "two"] {
        scene.service(name, json!({})).await?;
        scene.addresses(name).await?;
    }
    scene.edit_pool("old", json!({"drain": true})).await?;
    scene.has_with("one", &[scene.ip(10)], "PoolDraining").await?;
    scene.service("late", json!({})).await?;
    scene.refused("late", "NoAutomaticPool").await?;
    for (annotation, value) in [(ASK_POOL, "old"), (ASK_IPS, &scene.ip(15).to_string())] {
        scene.edit("late", json!({"metadata": {"annotations": null}})).await?;
        scene.annotate("late", &[(annotation, value)]).await?;
        scene.refused("late", "PoolDraining").await?;
    }
    let held_by =
        || async { Ok::<_, anyhow::Error>(scene.pools().get("old").await?.status.unwrap_or_default().held_by) };
    let names = ["one", "two"].map(|name| format!("{}/{name}", scene.in_full("")));
    ensure!(held_by().await? == names, "{:?}", held_by().await?);
    scene.pool("new", json!({"addresses": [scene.range(20, 29)]})).await?;
    scene.annotate("one", &[(ASK_POOL, "new")]).await?;
    scene.has("one", &[scene.ip(20)]).await?;
    scene.delete("two").await?;
    scene.world.kubectl(&["wait", "--for=condition=Drained", "ipaddresspool/old", "--timeout=30s"])?;
    ensure!(held_by().await?.is_empty(), "{:?}", held_by().await?);
    Ok(())
}

async fn a_pool_counts_what_is_given_and_an_edit_of_its_status_by_hand_is_undone(scene: &Scene<'_>) -> Result<()> {
    scene.pool("lan", json!({"addresses": [scene.range(10, 12), scene.range6(0x10, 0x13)]})).await?;
    scene.pool_counts("lan", [0, 3, 0, 4]).await?;
    let families = json!({"spec": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
    scene.service("both", families).await?;
    scene.pool_counts("lan", [1, 2, 1, 3]).await?;
    scene.service("one", json!({})).await?;
    scene.pool_counts("lan", [2, 1, 1, 3]).await?;
    scene.edit_pool("lan", json!({"addresses": [scene.range(10, 19), "2001:db8:ff::/64"]})).await?;
    scene.pool_counts("lan", [2, 8, 0, i64::MAX]).await?;
    let forged = json!({"status": {"assignedIPv4": 77, "availableIPv6": 5}});
    scene.pools().patch_status("lan", &PatchParams::default(), &Patch::Merge(forged)).await?;
    scene.pool_counts("lan", [2, 8, 0, i64::MAX]).await?;
    scene.delete("one").await?;
    scene.pool_counts("lan", [1, 9, 0, i64::MAX]).await?;
    let table = scene.world.kubectl(&["get", "lbpool", "lan"])?;
    let heads: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    let expected = ["NAME", "ADDRESSES", "AUTO-ASSIGN", "USED", "FREE", "USED-IPV6", "FREE-IPV6", "READY", "AGE"];
    ensure!(heads == expected, "{heads:?}");
    Ok(())
}

async fn of_pools_that_overlap_the_older_one_has_the_addresses_and_the_other_one_says_so(
    scene: &Scene<'_>,
) -> Result<()> {
    scene.pool("first", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.pool("second", json!({"addresses": [scene.range(11, 12)]})).await?;
    let message = scene.pool_says("second", "Overlap", "True", "Overlap").await?;
    ensure!(message.contains("first"), "{message}");
    scene.pool_says("first", "Overlap", "False", "NoOverlap").await?;
    for (name, last) in [("one", 10), ("two", 11), ("three", 12)] {
        scene.service(name, json!({})).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.pool_counts("first", [2, 0, 0, 0]).await?;
    scene.pool_counts("second", [1, 0, 0, 0]).await
}

async fn what_is_wrong_with_an_object_is_refused_in_words_that_name_it(scene: &Scene<'_>) -> Result<()> {
    let good = scene.ip(10);
    for (spec, says) in [
        (json!({"addresses": [good, "192.0.2.300-192.0.2.301"]}), "spec.addresses[1]: Invalid value: \"192.0.2.300-"),
        (json!({"addresses": ["192.0.2.0/33"]}), "'192.0.2.0/33' is not a CIDR"),
        (json!({"addresses": ["everything"]}), "'everything' is not a CIDR"),
        (json!({"addresses": ["192.0.2.9-192.0.2.1"]}), "'192.0.2.9-192.0.2.1' ends before it begins"),
        (json!({"addresses": ["192.0.2.9-2001:db8::1"]}), "mixes IPv4 and IPv6"),
        (json!({"addresses": []}), "spec.addresses: Invalid value"),
        (json!({"addresses": [good], "exclude": ["nothing"]}), "'nothing' is not a CIDR"),
        (json!({"addresses": [good], "reuseAfter": "soon"}), "must be a duration such as 60s or 1h30m"),
        (json!({"addresses": [good], "maxPerNamespace": 0}), "should be greater than or equal to 1"),
        (json!({"addresses": [good], "serviceAllocation": {"priority": -1}}), "greater than or equal to 0"),
    ] {
        refused(scene, "IPAddressPool", "bad", &spec, says).await?;
    }
    for (name, spec, says) in [
        ("192.0.2.9", json!({"address": "192.0.2.8"}), "the name must be the address"),
        ("192.0.2.9", json!({"address": "192.0.2.09"}), "must be an IP address in canonical form"),
        ("2001-db8--1", json!({"address": "2001:db8::1"}), "the name must be the address"),
        (
            "192.0.2.9",
            json!({"address": "192.0.2.9", "reservation": {"service": "web"}}),
            "a reservation for a Service must also set its namespace",
        ),
    ] {
        refused(scene, "LoadBalancerIP", name, &spec, says).await?;
    }
    Ok(())
}

/// Creates an object that the API server must refuse, in these words.
async fn refused(scene: &Scene<'_>, kind: &str, name: &str, spec: &Value, says: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    let error = scene.world.cluster.apply(&object.to_string()).err().with_context(|| format!("{object} was taken"))?;
    ensure!(format!("{error:#}").contains(says), "{spec}: {error:#}");
    Ok(())
}

async fn what_got_past_the_rules_harms_nobody_and_is_said_where_it_is_wrong(scene: &Scene<'_>) -> Result<()> {
    // CEL has no order on IPv6 addresses, and selectors are Kubernetes' own.
    let backwards = scene.range6(9, 1);
    scene.pool("bad-range", json!({"addresses": [&backwards, scene.ip(10)]})).await?;
    let message = scene.pool_says("bad-range", "Ready", "False", "InvalidRange").await?;
    ensure!(message.contains(&backwards), "{message}");
    let nonsense = json!({"matchExpressions": [{"key": "tier", "operator": "In"}]});
    let spec =
        json!({"addresses": [scene.ip(5)], "serviceAllocation": {"priority": 1, "serviceSelectors": [nonsense]}});
    scene.pool("bad-selector", spec).await?;
    scene.pool_says("bad-selector", "Ready", "False", "InvalidSelector").await?;
    scene.pool("good", json!({"addresses": [scene.ip(20)]})).await?;
    for (name, last) in [("one", 10), ("two", 20)] {
        scene.service(name, json!({"metadata": {"labels": {"tier": "public"}}})).await?;
        scene.has(name, &[scene.ip(last)]).await?;
    }
    scene.asking("three", &[(ASK_POOL, "bad-selector")]).await?;
    scene.refused("three", "PoolNotAllowed").await?;
    Ok(())
}
