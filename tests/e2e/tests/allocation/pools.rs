//! Selection of pools, and edits of pools, which never take an address away.

use anyhow::{Context, Result, ensure};
use crds::node_network::{NodeLink, NodeNetwork, NodeNetworkSpec};
use e2e::Scenes;
use e2e::scene::{ADDRESSES_ANNOTATION, POOL_ANNOTATION, SHARING_KEY, Scene, with_annotations};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const UNUSABLE: &str = "contains addresses which no Service can use: unspecified, loopback, link-local or multicast";
const SYNTAX: &str = "is not a CIDR such as 192.0.2.0/28, a range such as 192.0.2.10-192.0.2.20 or an address";
const MIXED: &str = "mixes IPv4 and IPv6";
const REVERSED: &str = "ends before it begins";

/// Ranges that the API server refuses, each with the message after the range.
const REFUSED_RANGES: [(&str, &str); 41] = [
    ("everything", SYNTAX),
    ("nothing", SYNTAX),
    ("192.0.2.0/33", SYNTAX),
    ("192.0.2.0/028", SYNTAX),
    ("192.0.2.0/28 ", SYNTAX),
    ("192.0.2.1-", SYNTAX),
    ("192.0.2.1-2-3", SYNTAX),
    ("192.0.2.01", SYNTAX),
    ("192.0.2.300-192.0.2.301", SYNTAX),
    ("fe80::1%eth0", SYNTAX),
    ("::ffff:192.0.2.1", SYNTAX),
    ("192.0.2.9-2001:db8::1", MIXED),
    ("192.0.2.9-192.0.2.1", REVERSED),
    ("192.0.2.10-192.0.2.9", REVERSED),
    ("10.0.0.0-9.255.255.255", REVERSED),
    ("2001:db8::9-2001:db8::1", REVERSED),
    ("2001:db8::a-2001:db8::9", REVERSED),
    ("2001:DB8::B-2001:db8::a", REVERSED),
    ("2001:db8:1::-2001:db8::ffff", REVERSED),
    ("2001:db8::1:0:0:1-2001:db8::ffff", REVERSED),
    ("10.0.0.5/24", "has host bits set: write 10.0.0.0/24 for the whole network, or 10.0.0.5 for this address"),
    ("2001:db8::5/64", "has host bits set: write 2001:db8::/64 for the whole network, or 2001:db8::5 for this address"),
    ("0.0.0.0", UNUSABLE),
    ("0.0.0.0/0", UNUSABLE),
    ("0.0.0.0-192.0.2.1", UNUSABLE),
    ("127.0.0.1", UNUSABLE),
    ("127.0.0.0/24", UNUSABLE),
    ("126.0.0.0/7", UNUSABLE),
    ("126.0.0.0-128.0.0.0", UNUSABLE),
    ("169.254.0.0/24", UNUSABLE),
    ("169.253.255.255-169.254.0.0", UNUSABLE),
    ("224.0.0.5", UNUSABLE),
    ("239.0.0.0/8", UNUSABLE),
    ("223.255.255.255-240.0.0.0", UNUSABLE),
    ("::", UNUSABLE),
    ("::1", UNUSABLE),
    ("::/0", UNUSABLE),
    ("fe80::1-fe80::9", UNUSABLE),
    ("fe7f::-fec0::", UNUSABLE),
    ("ff02::/16", UNUSABLE),
    (
        "2001:DB8::1/127",
        "has host bits set: write 2001:db8::/127 for the whole network, or 2001:db8::1 for this address",
    ),
];

/// Ranges that the API server accepts.
const ACCEPTED_RANGES: [&str; 23] = [
    "192.0.2.0/28",
    "192.0.2.10-192.0.2.20",
    "192.0.2.10",
    " 192.0.2.10 - 192.0.2.10 ",
    "192.0.2.9-192.0.2.10",
    "9.255.255.255-10.0.0.0",
    "100.64.0.0/10",
    "1.0.0.0/8",
    "126.255.255.255",
    "128.0.0.0-169.253.255.255",
    "169.255.0.0-223.255.255.255",
    "240.0.0.1",
    "2001:db8::/64",
    "2001:DB8::/64",
    "2001:db8::9-2001:db8::a",
    "2001:db8::9-2001:DB8::A",
    "2001:db8::-2001:db8::ffff:ffff:ffff:ffff",
    "2001:db8:0:1::-2001:db8:0:1::1",
    "2001:db8:1:2:3:4:5::-2001:db8:1:2:3:4:5:6",
    "fd00:1::5",
    "fe7f::-fe7f::1",
    "fec0::1",
    "64:ff9b::192.0.2.1",
];

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(pools_are_tried_in_order_of_priority);
    scenes.add(no_spelling_of_a_request_bypasses_pool_selectors);
    scenes.add(a_pool_without_auto_assign_needs_a_request);
    scenes.add(excluded_and_outer_addresses_are_not_allocated_automatically);
    scenes.add(addresses_of_nodes_and_gateways_are_not_allocated);
    scenes.add(the_namespace_quota_counts_a_shared_address_once);
    scenes.add(a_deleted_pool_takes_no_address_away);
    scenes.add(a_restricted_pool_takes_no_address_away);
    scenes.add(a_service_leaves_a_deleted_pool_only_on_request);
    scenes.add(a_draining_pool_lists_its_holders_until_it_is_empty);
    scenes.add(a_pool_counts_addresses_and_repairs_its_status);
    scenes.add(the_older_of_overlapping_pools_owns_the_addresses);
    scenes.add(each_invalid_range_is_refused_for_one_reason);
    scenes.add(the_api_server_refuses_invalid_objects_by_name);
    scenes.add(an_invalid_pool_affects_only_itself);
}

async fn pools_are_tried_in_order_of_priority(scene: &Scene<'_>) -> Result<()> {
    // The pool that is tried last is the oldest.
    scene.create_pool("open", json!({"addresses": [scene.ip(50)]})).await?;
    scene.create_pool("unset", json!({"addresses": [scene.ip(40)], "serviceAllocation": {}})).await?;
    for (name, last, priority) in [("twenty", 20, 20), ("ten", 10, 10)] {
        let spec = json!({"addresses": [scene.ip(last)], "serviceAllocation": {"priority": priority}});
        scene.create_pool(name, spec).await?;
    }
    for last in [10, 20, 40, 50] {
        let name = format!("s{last}");
        scene.create_service(&name, json!({})).await?;
        scene.expect_addresses(&name, &[scene.ip(last)]).await?;
    }
    let spec = json!({"addresses": [scene.ip(5)], "serviceAllocation": {"priority": 1}});
    scene.create_pool("first", spec).await?;
    scene.settle().await?;
    for last in [10, 20, 40, 50] {
        scene.expect_addresses(&format!("s{last}"), &[scene.ip(last)]).await?;
    }
    Ok(())
}

async fn no_spelling_of_a_request_bypasses_pool_selectors(scene: &Scene<'_>) -> Result<()> {
    let named = scene.create_namespace("named", &[]).await?;
    scene.create_namespace("labelled", &[("team", "bank")]).await?;
    scene.create_namespace("other", &[]).await?;
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
    scene.create_pool("restricted", spec).await?;
    let tier = |tier: &str| json!({"metadata": {"labels": {"tier": tier}}});
    for (name, labels) in [("named/a", tier("public")), ("labelled/b", tier("partner"))] {
        scene.create_service(name, labels).await?;
        let address = scene.wait_for_address(name).await?;
        ensure!(address == scene.ip(10) || address == scene.ip(11), "{name}: {address}");
    }
    for (name, labels) in [("named/c", tier("inner")), ("other/d", tier("public"))] {
        scene.create_service(name, labels).await?;
        scene.expect_refusal(name, "NoAutomaticPool").await?;
        let ip = scene.ip(20).to_string();
        for (annotation, value) in [
            (POOL_ANNOTATION, "restricted"),
            ("metallb.io/address-pool", "restricted"),
            ("metallb.universe.tf/address-pool", "restricted"),
            (ADDRESSES_ANNOTATION, &ip),
            ("metallb.io/loadBalancerIPs", &ip),
            ("metallb.universe.tf/loadBalancerIPs", &ip),
        ] {
            scene.annotate(name, &[(annotation, value)]).await?;
            let message = scene.expect_refusal(name, "PoolNotAllowed").await?;
            ensure!(message.contains("restricted"), "{annotation}: {message}");
            scene.patch_service(name, json!({"metadata": {"annotations": null}})).await?;
            scene.expect_refusal(name, "NoAutomaticPool").await?;
        }
        scene.patch_service(name, json!({"spec": {"loadBalancerIP": ip}})).await?;
        scene.expect_refusal(name, "PoolNotAllowed").await?;
        scene.patch_service(name, json!({"spec": {"loadBalancerIP": null}})).await?;
    }
    // A label on the Service or on its namespace admits it.
    scene.patch_service("named/c", tier("public")).await?;
    scene.wait_for_address("named/c").await?;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(scene.world.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "bank"}}}));
    namespaces.patch(&scene.namespace_name("other"), &PatchParams::default(), &label).await?;
    scene.wait_for_address("other/d").await?;
    Ok(())
}

async fn a_pool_without_auto_assign_needs_a_request(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("spare", json!({"addresses": [scene.range(10, 12)], "autoAssign": false})).await?;
    scene.create_service("any", json!({})).await?;
    let message = scene.expect_refusal("any", "NoAutomaticPool").await?;
    ensure!(message.contains("spare"), "{message}");
    scene.create_annotated("pool", &[(POOL_ANNOTATION, "spare")]).await?;
    scene.expect_addresses("pool", &[scene.ip(10)]).await?;
    scene.create_annotated("address", &[(ADDRESSES_ANNOTATION, &scene.ip(12).to_string())]).await?;
    scene.expect_addresses("address", &[scene.ip(12)]).await?;
    scene.edit_pool("spare", json!({"autoAssign": true})).await?;
    scene.expect_addresses("any", &[scene.ip(11)]).await
}

async fn excluded_and_outer_addresses_are_not_allocated_automatically(scene: &Scene<'_>) -> Result<()> {
    let net = |last: u8, length: u8| format!("{}/{length}", scene.ip(last));
    scene.create_pool("cidr", json!({"addresses": [net(0, 29)], "exclude": [scene.range(2, 4)]})).await?;
    scene.expect_pool_counts("cidr", [0, 3, 0, 0]).await?;
    for (name, last) in [("a", 1), ("b", 5), ("c", 6)] {
        scene.create_service(name, json!({})).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.create_service("d", json!({})).await?;
    scene.expect_refusal("d", "PoolsExhausted").await?;
    // On request: the outer addresses, but never excluded ones.
    for (name, last) in [("network", 0), ("broadcast", 7)] {
        scene.create_annotated(name, &[(ADDRESSES_ANNOTATION, &scene.ip(last).to_string())]).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.annotate("d", &[(ADDRESSES_ANNOTATION, &scene.ip(3).to_string())]).await?;
    let message = scene.expect_refusal("d", "AddressExcluded").await?;
    ensure!(message.contains(&scene.ip(3).to_string()) && message.contains("cidr"), "{message}");

    scene.create_pool("range", json!({"addresses": [scene.range(254, 255)], "avoidBuggyIPs": true})).await?;
    scene.create_annotated("e", &[(POOL_ANNOTATION, "range")]).await?;
    scene.expect_addresses("e", &[scene.ip(254)]).await?;
    scene.annotate("d", &[(ADDRESSES_ANNOTATION, &scene.ip(255).to_string())]).await?;
    scene.expect_refusal("d", "AddressExcluded").await?;
    scene.edit_pool("range", json!({"avoidBuggyIPs": false})).await?;
    scene.expect_addresses("d", &[scene.ip(255)]).await
}

async fn addresses_of_nodes_and_gateways_are_not_allocated(scene: &Scene<'_>) -> Result<()> {
    let networks: Api<NodeNetwork> = Api::all(scene.world.client.clone());
    let spec = NodeNetworkSpec {
        links: vec![NodeLink { name: "eth0".into(), addresses: vec![format!("{}/24", scene.ip(10))], mac: None }],
        gateways: vec![scene.ip(11).to_string()],
    };
    networks.create(&PostParams::default(), &NodeNetwork::new("ghost", spec.clone())).await?;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 14)]})).await?;
    scene.expect_pool_counts("lan", [0, 3, 0, 0]).await?;
    scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(12)]).await?;
    for (name, last) in [("node", 10), ("gateway", 11)] {
        scene.create_annotated(name, &[(ADDRESSES_ANNOTATION, &scene.ip(last).to_string())]).await?;
        let message = scene.expect_refusal(name, "AddressInUse").await?;
        ensure!(message.contains("ghost"), "{message}");
    }
    let message = scene.expect_pool_condition("lan", "OverlapsCluster", "True", "OverlapsCluster").await?;
    ensure!(message.contains(&format!("{} (address of node ghost)", scene.ip(10))), "{message}");
    // The broadcast address of the node's network is assigned to no Service.
    scene.create_pool("end", json!({"addresses": [scene.range(254, 255)], "autoAssign": false})).await?;
    scene.expect_pool_counts("end", [0, 1, 0, 0]).await?;
    scene.create_annotated("broadcast", &[(ADDRESSES_ANNOTATION, &scene.ip(255).to_string())]).await?;
    let message = scene.expect_refusal("broadcast", "AddressUnusable").await?;
    ensure!(message.contains("is the broadcast address of"), "{message}");
    // ClusterIPs of the lab (10.96.0.0/16), and a network that no node has.
    let spec = json!({"addresses": ["10.96.200.1", "2001:db8:ffff::/64"], "autoAssign": false});
    scene.create_pool("cluster", spec).await?;
    let message = scene.expect_pool_condition("cluster", "OverlapsCluster", "True", "OverlapsCluster").await?;
    ensure!(message.contains("10.96.200.1-10.96.200.1 (ClusterIPs of ServiceCIDR kubernetes)"), "{message}");
    let message = scene.expect_pool_condition("cluster", "OffSubnet", "True", "OffSubnet").await?;
    ensure!(message.contains("2001:db8:ffff::-"), "{message}");
    // A new node with the address of a Service does not take it away, but there is an event.
    let link = json!({"spec": {"links": [{"name": "eth0", "addresses": [format!("{}/24", scene.ip(12))]}]}});
    networks.patch("ghost", &PatchParams::default(), &Patch::Merge(link)).await?;
    scene.expect_addresses_with("web", &[scene.ip(12)], "NodeHasAddress").await?;
    let note = scene.expect_event("web", "Warning", "NodeHasAddress").await?;
    ensure!(note.contains("ghost"), "{note}");
    scene.expect_addresses("node", &[scene.ip(10)]).await?;
    networks.delete("ghost", &DeleteParams::default()).await?;
    scene.expect_addresses("web", &[scene.ip(12)]).await?;
    scene.expect_addresses("gateway", &[scene.ip(11)]).await
}

async fn the_namespace_quota_counts_a_shared_address_once(scene: &Scene<'_>) -> Result<()> {
    scene.create_namespace("b", &[]).await?;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)], "maxPerNamespace": 2})).await?;
    let port = |port: u16| json!({"spec": {"ports": [{"port": port}]}});
    let sharing = |number: u16| {
        let mut service = with_annotations(&[(SHARING_KEY, "k")]);
        e2e::scene::merge(&mut service, port(number));
        service
    };
    for (name, number) in [("one", 1), ("two", 2)] {
        scene.create_service(name, sharing(number)).await?;
        scene.expect_addresses(name, &[scene.ip(10)]).await?;
    }
    scene.create_service("three", json!({})).await?;
    scene.expect_addresses("three", &[scene.ip(11)]).await?;
    scene.create_service("four", json!({})).await?;
    let message = scene.expect_refusal("four", "NamespaceQuota").await?;
    ensure!(message.contains("lan") && message.contains("spec.maxPerNamespace"), "{message}");
    scene.annotate("four", &[(ADDRESSES_ANNOTATION, &scene.ip(19).to_string())]).await?;
    scene.expect_refusal("four", "NamespaceQuota").await?;
    scene.create_service("b/five", json!({})).await?;
    scene.expect_addresses("b/five", &[scene.ip(12)]).await?;
    // A lower quota takes no address away; a higher one admits waiting Services.
    scene.edit_pool("lan", json!({"maxPerNamespace": 1})).await?;
    scene.settle().await?;
    scene.expect_addresses("three", &[scene.ip(11)]).await?;
    scene.edit_pool("lan", json!({"maxPerNamespace": 3})).await?;
    scene.expect_addresses("four", &[scene.ip(19)]).await
}

async fn a_deleted_pool_takes_no_address_away(scene: &Scene<'_>) -> Result<()> {
    let spec = json!({"addresses": [scene.range(10, 11)]});
    scene.create_pool("lan", spec.clone()).await?;
    scene.create_service("web", json!({})).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    scene.delete_pool("lan").await?;
    scene.expect_addresses_with("web", &[scene.ip(10)], "PoolGone").await?;
    scene.create_service("late", json!({})).await?;
    scene.expect_refusal("late", "NoPool").await?;
    // Another pool with the same address does not allocate it a second time, and admits its holder.
    scene.create_pool("again", spec).await?;
    scene.expect_addresses("web", &[scene.ip(10)]).await?;
    scene.expect_addresses("late", &[scene.ip(11)]).await
}

async fn a_restricted_pool_takes_no_address_away(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.create_service("web", json!({})).await?;
    let own = [scene.ip(10)];
    scene.expect_addresses("web", &own).await?;
    let whole = json!({"addresses": [scene.range(10, 11)], "exclude": null, "serviceAllocation": null, "drain": null});
    for (edit, reason) in [
        (json!({"addresses": [scene.ip(11)]}), "PoolGone"),
        (json!({"exclude": [scene.ip(10)]}), "PoolChanged"),
        (json!({"serviceAllocation": {"namespaces": ["elsewhere"]}}), "PoolChanged"),
        (json!({"drain": true}), "PoolDraining"),
    ] {
        scene.edit_pool("lan", edit.clone()).await?;
        scene.expect_addresses_with("web", &own, reason).await.with_context(|| edit.to_string())?;
        scene.edit_pool("lan", whole.clone()).await?;
        scene.expect_addresses("web", &own).await?;
    }
    Ok(())
}

async fn a_service_leaves_a_deleted_pool_only_on_request(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("old", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.create_annotated("pinned", &[(POOL_ANNOTATION, "old")]).await?;
    scene.expect_addresses("pinned", &[scene.ip(10)]).await?;
    scene.create_service("free", json!({})).await?;
    scene.expect_addresses("free", &[scene.ip(11)]).await?;
    scene.create_pool("new", json!({"addresses": [scene.range(20, 21)]})).await?;
    scene.delete_pool("old").await?;
    scene.expect_addresses_with("free", &[scene.ip(11)], "PoolGone").await?;
    // It requests a pool that no longer exists, and keeps its address of that pool.
    scene.settle().await?;
    ensure!(e2e::world::ingress(&scene.get_service("pinned").await?) == [scene.ip(10)]);
    scene.annotate("pinned", &[(POOL_ANNOTATION, "new")]).await?;
    scene.expect_addresses("pinned", &[scene.ip(20)]).await?;
    scene.annotate("free", &[(ADDRESSES_ANNOTATION, &scene.ip(21).to_string())]).await?;
    scene.expect_addresses("free", &[scene.ip(21)]).await
}

async fn a_draining_pool_lists_its_holders_until_it_is_empty(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("old", json!({"addresses": [scene.range(10, 19)]})).await?;
    for name in ["one", "two"] {
        scene.create_service(name, json!({})).await?;
        scene.wait_for_addresses(name).await?;
    }
    scene.edit_pool("old", json!({"drain": true})).await?;
    scene.expect_addresses_with("one", &[scene.ip(10)], "PoolDraining").await?;
    scene.create_service("late", json!({})).await?;
    scene.expect_refusal("late", "NoAutomaticPool").await?;
    for (annotation, value) in [(POOL_ANNOTATION, "old"), (ADDRESSES_ANNOTATION, &scene.ip(15).to_string())] {
        scene.patch_service("late", json!({"metadata": {"annotations": null}})).await?;
        scene.annotate("late", &[(annotation, value)]).await?;
        scene.expect_refusal("late", "PoolDraining").await?;
    }
    let held_by =
        || async { Ok::<_, anyhow::Error>(scene.pool_api().get("old").await?.status.unwrap_or_default().held_by) };
    let names = ["one", "two"].map(|name| format!("{}/{name}", scene.namespace_name("")));
    ensure!(held_by().await? == names, "{:?}", held_by().await?);
    scene.create_pool("new", json!({"addresses": [scene.range(20, 29)]})).await?;
    scene.annotate("one", &[(POOL_ANNOTATION, "new")]).await?;
    scene.expect_addresses("one", &[scene.ip(20)]).await?;
    scene.delete_service("two").await?;
    scene.world.kubectl(&["wait", "--for=condition=Drained", "ipaddresspool/old", "--timeout=30s"])?;
    ensure!(held_by().await?.is_empty(), "{:?}", held_by().await?);
    Ok(())
}

async fn a_pool_counts_addresses_and_repairs_its_status(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 12), scene.range6(0x10, 0x13)]})).await?;
    scene.expect_pool_counts("lan", [0, 3, 0, 4]).await?;
    let families = json!({"spec": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
    scene.create_service("both", families).await?;
    scene.expect_pool_counts("lan", [1, 2, 1, 3]).await?;
    scene.create_service("one", json!({})).await?;
    scene.expect_pool_counts("lan", [2, 1, 1, 3]).await?;
    scene.edit_pool("lan", json!({"addresses": [scene.range(10, 19), "2001:db8:ff::/64"]})).await?;
    scene.expect_pool_counts("lan", [2, 8, 0, i64::MAX]).await?;
    let forged = json!({"status": {"assignedIPv4": 77, "availableIPv6": 5}});
    scene.pool_api().patch_status("lan", &PatchParams::default(), &Patch::Merge(forged)).await?;
    scene.expect_pool_counts("lan", [2, 8, 0, i64::MAX]).await?;
    scene.delete_service("one").await?;
    scene.expect_pool_counts("lan", [1, 9, 0, i64::MAX]).await?;
    let table = scene.world.kubectl(&["get", "lbpool", "lan"])?;
    let heads: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    let expected = ["NAME", "ADDRESSES", "AUTO-ASSIGN", "USED", "FREE", "USED-IPV6", "FREE-IPV6", "READY", "AGE"];
    ensure!(heads == expected, "{heads:?}");
    Ok(())
}

async fn the_older_of_overlapping_pools_owns_the_addresses(scene: &Scene<'_>) -> Result<()> {
    scene.create_pool("first", json!({"addresses": [scene.range(10, 11)]})).await?;
    scene.create_pool("second", json!({"addresses": [scene.range(11, 12)]})).await?;
    let message = scene.expect_pool_condition("second", "Overlap", "True", "Overlap").await?;
    ensure!(message.contains("first"), "{message}");
    scene.expect_pool_condition("first", "Overlap", "False", "NoOverlap").await?;
    for (name, last) in [("one", 10), ("two", 11), ("three", 12)] {
        scene.create_service(name, json!({})).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.expect_pool_counts("first", [2, 0, 0, 0]).await?;
    scene.expect_pool_counts("second", [1, 0, 0, 0]).await
}

async fn each_invalid_range_is_refused_for_one_reason(scene: &Scene<'_>) -> Result<()> {
    let try_pool = async |addresses: &[&str], exclude: &[&str]| {
        let pool = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": "ranges"},
            "spec": {"addresses": addresses, "exclude": exclude},
        });
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        match scene.pool_api().create(&dry_run, &serde_json::from_value(pool)?).await {
            Ok(_) => Ok(Vec::new()),
            Err(kube::Error::Api(status)) => {
                Ok(status.details.as_ref().map(|it| it.causes.clone()).unwrap_or_default())
            }
            Err(error) => Err(error).context("create a pool"),
        }
    };
    let causes = try_pool(&ACCEPTED_RANGES, &ACCEPTED_RANGES).await?;
    ensure!(causes.is_empty(), "valid ranges are refused: {causes:#?}");
    let refused = REFUSED_RANGES.map(|(range, _)| range);
    for (field, causes) in
        [("addresses", try_pool(&refused, &[]).await?), ("exclude", try_pool(&ACCEPTED_RANGES, &refused).await?)]
    {
        for (index, (range, text)) in REFUSED_RANGES.iter().enumerate() {
            let path = format!("spec.{field}[{index}]");
            let own: Vec<_> = causes.iter().filter(|cause| cause.field == path).map(|cause| &cause.message).collect();
            let is_expected = own.len() == 1 && own[0].ends_with(&format!("'{range}' {text}"));
            ensure!(is_expected, "{path} is {range}: {own:?}");
        }
    }
    Ok(())
}

async fn the_api_server_refuses_invalid_objects_by_name(scene: &Scene<'_>) -> Result<()> {
    let good = scene.ip(10);
    for (spec, text) in [
        (json!({"addresses": [good, "192.0.2.300-192.0.2.301"]}), "spec.addresses[1]: Invalid value: \"192.0.2.300-"),
        (json!({"addresses": []}), "spec.addresses: Invalid value"),
        (json!({"addresses": [good], "reuseAfter": "soon"}), "must be a duration such as 60s or 1h30m"),
        (json!({"addresses": [good], "maxPerNamespace": 0}), "should be greater than or equal to 1"),
        (json!({"addresses": [good], "serviceAllocation": {"priority": -1}}), "greater than or equal to 0"),
    ] {
        expect_refused_object(scene, "IPAddressPool", "bad", &spec, text).await?;
    }
    for (name, spec, text) in [
        ("192.0.2.9", json!({"address": "192.0.2.8"}), "the name must be the address"),
        ("192.0.2.9", json!({"address": "192.0.2.09"}), "must be an IP address in canonical form"),
        ("2001-db8--1", json!({"address": "2001:db8::1"}), "the name must be the address"),
        ("2001-db8-0-0-0-0-0-1", json!({"address": "2001:db8::2"}), "the name must be the address"),
        ("127.0.0.1", json!({"address": "127.0.0.1"}), "must not be an address which no Service can use"),
        ("fe80-0-0-0-0-0-0-1", json!({"address": "fe80::1"}), "must not be an address which no Service can use"),
        (
            "192.0.2.9",
            json!({"address": "192.0.2.9", "reservation": {"service": "web"}}),
            "a reservation for a Service must also set its namespace",
        ),
    ] {
        expect_refused_object(scene, "LoadBalancerIP", name, &spec, text).await?;
    }
    Ok(())
}

/// Creates an object that the API server must refuse, with this text in the error.
async fn expect_refused_object(scene: &Scene<'_>, kind: &str, name: &str, spec: &Value, text: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    let error = scene.world.cluster.apply(&object.to_string()).err();
    let error = error.with_context(|| format!("{object} was accepted"))?;
    ensure!(format!("{error:#}").contains(text), "{spec}: {error:#}");
    Ok(())
}

async fn an_invalid_pool_affects_only_itself(scene: &Scene<'_>) -> Result<()> {
    // The CRD does not compare IPv6 addresses with dots, and does not check Kubernetes' selectors.
    let backwards = format!("{0}192.0.2.9-{0}192.0.2.1", scene.ip6(0));
    scene.create_pool("bad-range", json!({"addresses": [&backwards, scene.ip(10)]})).await?;
    let message = scene.expect_pool_condition("bad-range", "Ready", "False", "InvalidRange").await?;
    ensure!(message.contains(&backwards), "{message}");
    let nonsense = json!({"matchExpressions": [{"key": "tier", "operator": "In"}]});
    let spec =
        json!({"addresses": [scene.ip(5)], "serviceAllocation": {"priority": 1, "serviceSelectors": [nonsense]}});
    scene.create_pool("bad-selector", spec).await?;
    scene.expect_pool_condition("bad-selector", "Ready", "False", "InvalidSelector").await?;
    scene.create_pool("good", json!({"addresses": [scene.ip(20)]})).await?;
    for (name, last) in [("one", 10), ("two", 20)] {
        scene.create_service(name, json!({"metadata": {"labels": {"tier": "public"}}})).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.create_annotated("three", &[(POOL_ANNOTATION, "bad-selector")]).await?;
    scene.expect_refusal("three", "PoolNotAllowed").await?;
    Ok(())
}
