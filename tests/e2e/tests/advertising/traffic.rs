//! Both traffic policies, shared addresses, excluded nodes, dead nodes and agents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::scene::{ADDRESSES_ANNOTATION, SHARING_KEY, Scene, with_annotations};
use e2e::world::{SOON, SYSTEM};
use e2e::{ConnectOutcome, World};
use lab::wait_until;
use serde_json::json;

use super::fixture::{AdvertisingFixture, EXCLUDE, NODES, other_nodes};
use super::wire::answering_nodes;

/// The node of each pod of a Deployment.
async fn nodes_of(world: &World, name: &str) -> Result<BTreeMap<String, String>> {
    Ok(world.pod_nodes(name).await?.into_iter().collect())
}

pub async fn one_node_announces_and_all_pods_are_reached(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 200, 201).await?;
    let lan = &scene.world.lan;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    fixture.wait_for_owners(&addresses).await?;
    for address in &addresses {
        wait_until(SOON, "an answer over TCP", async || lan.query_tcp(*address)).await?;
        wait_until(SOON, "an answer over UDP", async || lan.query_udp(*address)).await?;
        let pods = lan.answering_pods(40, *address)?;
        ensure!(pods.len() == 3, "{address}: of three pods only {pods:?} answered 40 connections");
    }
    let owners = fixture.wait_for_owners(&addresses).await?;
    expect_metrics(scene.world, &owners, 1.0).await?;
    scene.world.delete_service("web").await?;
    wait_until(SOON, "no node to answer", async || {
        let seen = answering_nodes(scene.world, &addresses)?;
        ensure!(seen.values().all(BTreeSet::is_empty), "{seen:?} answer");
        Ok(())
    })
    .await?;
    ensure!(scene.records().await?.is_empty(), "{:?}", scene.records().await?);
    expect_metrics(scene.world, &["".to_owned(), "".to_owned()], 0.0).await
}

/// Waits until the metrics report `used` of the two addresses of each family, and an announced address only on its
/// owner (IPv4 first). The owner has also sent ARP or NDP replies, and unsolicited frames.
async fn expect_metrics(world: &World, owners: &[String], used: f64) -> Result<()> {
    wait_until(SOON, "the metrics", async || {
        for ((family, protocol), owner) in [("ipv4", "arp"), ("ipv6", "ndp")].into_iter().zip(owners) {
            for (name, expected) in [("used", used), ("free", 2.0 - used), ("capacity", 2.0)] {
                let series = format!("landfall_pool_{name}_addresses{{pool=\"lan\",family=\"{family}\"}}");
                let count = world.controller_metric(&series).await?;
                ensure!(count == expected, "{series} {count}, and not {expected}");
            }
            for node in NODES {
                let host = world.cluster.node(node);
                let series = format!("landfall_announced_addresses{{family=\"{family}\"}}");
                let expected = if node == owner { 1.0 } else { 0.0 };
                let count = world.agent_metric(&host, &series)?;
                ensure!(count == expected, "{series} {count} on {node}, and not {expected}");
                for name in ["landfall_neighbour_answers_total", "landfall_unasked_frames_total"] {
                    let series = format!("{name}{{protocol=\"{protocol}\"}}");
                    ensure!(node != owner || world.agent_metric(&host, &series)? > 0.0, "{series} 0 on {node}");
                }
            }
        }
        Ok(())
    })
    .await
}

pub async fn local_policy_reaches_all_pods_with_the_client_address(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 202, 203).await?;
    let lan = &scene.world.lan;
    let client = [lan.address(), scene.world.cluster.client_host("c1").ipv6().into()];
    let addresses = fixture.create_service("web", "web", json!({"externalTrafficPolicy": "Local"})).await?;
    let nodes = nodes_of(scene.world, "web").await?;
    for address in addresses {
        // The announcing node hands packets on to the other nodes, each of which has a pod.
        wait_until(SOON, &format!("all pods to answer at {address}"), async || {
            let answers = (0..40).map(|_| lan.query_tcp(address)).collect::<Result<Vec<_>>>()?;
            let masqueraded = answers.iter().find(|answer| !client.contains(&answer.client.ip()));
            ensure!(masqueraded.is_none(), "{masqueraded:?} does not see the client");
            let pods: BTreeSet<_> = answers.iter().map(|answer| &answer.pod).collect();
            ensure!(pods.iter().copied().eq(nodes.keys()), "only {pods:?} of {nodes:?} answered");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

pub async fn shared_addresses_are_announced_by_one_node(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 204, 205).await?;
    let addresses = fixture.create_service("one", "web", json!({"ports": [{"port": 80, "targetPort": 8080}]})).await?;
    let requested = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let sharing = with_annotations(&[(SHARING_KEY, "k"), (ADDRESSES_ANNOTATION, &requested)]);
    scene.world.patch_service("one", sharing.clone()).await?;
    // Its only pod is on n1.
    let two = json!({
        "selector": {"app": "first"}, "ipFamilyPolicy": "RequireDualStack",
        "ports": [{"port": 81, "targetPort": 8080}],
    });
    scene.world.create_service("two", two).await?;
    scene.world.patch_service("two", sharing).await?;
    // It may have had other addresses before its request.
    wait_until(SOON, "both to have the same addresses", async || {
        let both = fixture.wait_for_both_addresses("two").await?;
        ensure!(both == addresses, "{both:?}, and not {addresses:?}");
        Ok(())
    })
    .await?;
    fixture.wait_for_owners(&addresses).await?;
    for address in addresses {
        for port in [80, 81] {
            wait_until(SOON, &format!("{address} to accept connections at port {port}"), async || {
                let end = scene.world.lan.connect(address, port)?;
                ensure!(end == ConnectOutcome::Accepted, "{end:?}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

pub async fn an_ineligible_node_hands_over_its_addresses_for_good(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 206, 207).await?;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    let [first, _] = &fixture.wait_for_owners(&addresses).await?[..] else {
        bail!("two addresses, and not two owners")
    };
    fixture.set_network_unavailable(first, true).await?;
    let [second, third] = other_nodes(first);
    fixture.wait_for_answering(&addresses, |seen| seen.len() == 1 && !seen.contains(first)).await?;
    fixture.label(second, json!({EXCLUDE: "true"})).await?;
    fixture.expect_answering(&addresses, &[third]).await?;
    // Both nodes are eligible again, and the address does not move back.
    fixture.set_network_unavailable(first, false).await?;
    fixture.label(second, json!({EXCLUDE: null})).await?;
    scene.settle().await?;
    fixture.expect_answering(&addresses, &[third]).await
}

pub async fn addresses_of_a_node_without_agent_move_for_good(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 208, 209).await?;
    let lan = &scene.world.lan;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    let owner = fixture.wait_for_owners(&addresses).await?.swap_remove(0);
    let pods = ["-n", SYSTEM, "-l", "app.kubernetes.io/component=node"];
    let field = format!("--field-selector=spec.nodeName={owner}");
    // Without the DaemonSet, no controller replaces the deleted pod.
    scene.world.kubectl(&["-n", SYSTEM, "delete", "daemonset", "landfall-node", "--cascade=orphan"])?;
    scene.world.kubectl(&[&["delete", "pods", &field][..], &pods[..]].concat())?;
    let after = fixture.wait_for_answering(&addresses, |seen| seen.len() == 1 && !seen.contains(&owner)).await?;
    for address in &addresses {
        wait_until(SOON, "an answer", async || lan.query_tcp(*address)).await?;
    }
    // The new DaemonSet adopts the old pods, and creates the missing one.
    let manifests = e2e::world::root().join("deploy/landfall.yaml");
    scene.world.kubectl(&["apply", "-f", &manifests.to_string_lossy()])?;
    scene.world.wait_until_installed().await?;
    scene.settle().await?;
    let seen = fixture.wait_for_answering(&addresses, |seen| seen.len() == 1).await?;
    ensure!(seen == after, "{seen:?} answer, and not {after:?}");
    Ok(())
}

/// Limit for another node's first answer. It takes a fraction of this; the rest is for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(5);

pub async fn another_node_takes_over_from_a_dead_owner(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 210, 211).await?;
    let lan = &scene.world.lan;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    let owner = fixture.wait_for_owners(&addresses).await?.swap_remove(1);
    for address in &addresses {
        wait_until(SOON, "an answer", async || lan.query_tcp(*address)).await?;
    }
    scene.world.power_off(&owner)?;
    // The node's pod is dead as well, and Kubernetes has not noticed yet: one request in three gets no answer.
    for address in &addresses {
        wait_until(TAKEOVER, &format!("{address} to answer"), async || {
            lan.query_udp_within(*address, Duration::from_millis(50))
        })
        .await?;
    }
    fixture.wait_for_answering(&addresses, |seen| seen.len() == 1 && !seen.contains(&owner)).await.map(drop)
}
