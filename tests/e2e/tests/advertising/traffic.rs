//! Both traffic policies, shared addresses, nodes that take no traffic, and nodes and agents that go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::scene::{ASK_IPS, KEY, Scene, annotated};
use e2e::world::{SOON, SYSTEM};
use e2e::{Connect, World};
use lab::wait_until;
use serde_json::json;

use crate::fixture::{EXCLUDE, NODES, Stage, others};
use crate::wire::answering;

/// Nodes of the pods of a Deployment, by the pods' names.
async fn nodes_of(world: &World, name: &str) -> Result<BTreeMap<String, String>> {
    Ok(world.pods(name).await?.into_iter().collect())
}

pub async fn one_node_answers_and_says_so_and_every_pod_is_reached_until_the_service_goes(
    scene: &Scene<'_>,
) -> Result<()> {
    let stage = Stage::set(scene, 200, 201).await?;
    let lan = &scene.world.lan;
    let addresses = stage.service("web", "web", json!({})).await?;
    stage.owners(&addresses).await?;
    for address in &addresses {
        wait_until(SOON, "an answer over TCP", async || lan.tcp(*address)).await?;
        wait_until(SOON, "an answer over UDP", async || lan.udp(*address)).await?;
        let pods = lan.pods(40, *address)?;
        ensure!(pods.len() == 3, "{address}: of three pods only {pods:?} answered 40 connections");
    }
    let owners = stage.owners(&addresses).await?;
    numbers_tell(scene.world, &owners, 1.0).await?;
    scene.world.delete_service("web").await?;
    wait_until(SOON, "nobody to answer", async || {
        let seen = answering(scene.world, &addresses)?;
        ensure!(seen.values().all(BTreeSet::is_empty), "{seen:?} answer");
        Ok(())
    })
    .await?;
    ensure!(scene.records().await?.is_empty(), "{:?}", scene.records().await?);
    numbers_tell(scene.world, &["".to_owned(), "".to_owned()], 0.0).await
}

/// Waits until the numbers say that of the two addresses of either family so many are given, and that these nodes announce them,
/// IPv4 first, and have answered for them and said so unasked.
async fn numbers_tell(world: &World, owners: &[String], given: f64) -> Result<()> {
    wait_until(SOON, "the numbers to tell it", async || {
        for ((family, protocol), owner) in [("ipv4", "arp"), ("ipv6", "ndp")].into_iter().zip(owners) {
            for (name, expected) in [("used", given), ("free", 2.0 - given), ("capacity", 2.0)] {
                let series = format!("landfall_pool_{name}_addresses{{pool=\"lan\",family=\"{family}\"}}");
                let count = world.metric_of_controllers(&series).await?;
                ensure!(count == expected, "{series} {count}, and not {expected}");
            }
            for node in NODES {
                let host = world.cluster.node(node);
                let series = format!("landfall_announced_addresses{{family=\"{family}\"}}");
                let expected = if node == owner { 1.0 } else { 0.0 };
                let count = world.metric_of_agent(&host, &series)?;
                ensure!(count == expected, "{series} {count} on {node}, and not {expected}");
                for name in ["landfall_neighbour_answers_total", "landfall_unasked_frames_total"] {
                    let series = format!("{name}{{protocol=\"{protocol}\"}}");
                    ensure!(node != owner || world.metric_of_agent(&host, &series)? > 0.0, "{series} 0 on {node}");
                }
            }
        }
        Ok(())
    })
    .await
}

pub async fn under_local_pods_on_all_nodes_are_reached_and_see_the_client(scene: &Scene<'_>) -> Result<()> {
    let stage = Stage::set(scene, 202, 203).await?;
    let lan = &scene.world.lan;
    let client = [lan.address(), scene.world.cluster.client_host("c1").ipv6().into()];
    let addresses = stage.service("web", "web", json!({"externalTrafficPolicy": "Local"})).await?;
    let nodes = nodes_of(scene.world, "web").await?;
    for address in addresses {
        // The node that announces hands packets on to the others, which have a pod each.
        wait_until(SOON, &format!("all pods to answer at {address}"), async || {
            let answers = (0..40).map(|_| lan.tcp(address)).collect::<Result<Vec<_>>>()?;
            let stranger = answers.iter().find(|answer| !client.contains(&answer.client.ip()));
            ensure!(stranger.is_none(), "{stranger:?} does not see the client");
            let pods: BTreeSet<_> = answers.iter().map(|answer| &answer.pod).collect();
            ensure!(pods.iter().copied().eq(nodes.keys()), "only {pods:?} of {nodes:?} answered");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

pub async fn services_that_share_an_address_are_announced_by_one_node_wherever_their_pods_are(
    scene: &Scene<'_>,
) -> Result<()> {
    let stage = Stage::set(scene, 204, 205).await?;
    let addresses = stage.service("one", "web", json!({"ports": [{"port": 80, "targetPort": 8080}]})).await?;
    let asked = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let sharing = annotated(&[(KEY, "k"), (ASK_IPS, &asked)]);
    scene.world.patch_service("one", sharing.clone()).await?;
    // Its only pod is on n1.
    let two = json!({
        "selector": {"app": "first"}, "ipFamilyPolicy": "RequireDualStack",
        "ports": [{"port": 81, "targetPort": 8080}],
    });
    scene.world.service("two", two).await?;
    scene.world.patch_service("two", sharing).await?;
    // It may have had others for a moment, before it asked for these.
    wait_until(SOON, "both to have the same addresses", async || {
        let both = stage.addresses("two").await?;
        ensure!(both == addresses, "{both:?}, and not {addresses:?}");
        Ok(())
    })
    .await?;
    stage.owners(&addresses).await?;
    for address in addresses {
        for port in [80, 81] {
            wait_until(SOON, &format!("{address} to take connections at port {port}"), async || {
                let end = scene.world.lan.connect(address, port)?;
                ensure!(end == Connect::Accepted, "{end:?}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

pub async fn a_node_without_network_or_excluded_by_label_gives_its_addresses_away_for_good(
    scene: &Scene<'_>,
) -> Result<()> {
    let stage = Stage::set(scene, 206, 207).await?;
    let addresses = stage.service("web", "web", json!({})).await?;
    let [first, _] = &stage.owners(&addresses).await?[..] else { bail!("two addresses, and not two owners") };
    stage.network_unavailable(first, true).await?;
    let [second, third] = others(first);
    stage.answered(&addresses, |seen| seen.len() == 1 && !seen.contains(first)).await?;
    stage.label(second, json!({EXCLUDE: "true"})).await?;
    stage.answered_by(&addresses, &[third]).await?;
    // Both may again, and nothing moves back.
    stage.network_unavailable(first, false).await?;
    stage.label(second, json!({EXCLUDE: null})).await?;
    scene.settle().await?;
    stage.answered_by(&addresses, &[third]).await
}

pub async fn without_its_agent_a_node_gives_its_addresses_away_and_they_stay_where_they_went(
    scene: &Scene<'_>,
) -> Result<()> {
    let stage = Stage::set(scene, 208, 209).await?;
    let lan = &scene.world.lan;
    let addresses = stage.service("web", "web", json!({})).await?;
    let owner = stage.owners(&addresses).await?.swap_remove(0);
    let pods = ["-n", SYSTEM, "-l", "app.kubernetes.io/component=node"];
    let field = format!("--field-selector=spec.nodeName={owner}");
    // Its pod goes for good: nobody makes another one.
    scene.world.kubectl(&["-n", SYSTEM, "delete", "daemonset", "landfall-node", "--cascade=orphan"])?;
    scene.world.kubectl(&[&["delete", "pods", &field][..], &pods[..]].concat())?;
    let after = stage.answered(&addresses, |seen| seen.len() == 1 && !seen.contains(&owner)).await?;
    for address in &addresses {
        wait_until(SOON, "an answer", async || lan.tcp(*address)).await?;
    }
    // It takes its old pods for its own, and makes the one that is missing.
    let manifests = e2e::world::root().join("deploy/landfall.yaml");
    scene.world.kubectl(&["apply", "-f", &manifests.to_string_lossy()])?;
    scene.world.wait_until_installed().await?;
    scene.settle().await?;
    let seen = stage.answered(&addresses, |seen| seen.len() == 1).await?;
    ensure!(seen == after, "{seen:?} answer, and not {after:?} any more");
    Ok(())
}

/// How soon another node must answer. It takes a fraction of this; the rest is for a machine that compiles meanwhile.
const TAKEOVER: Duration = Duration::from_secs(5);

pub async fn when_the_owner_dies_another_node_answers_and_serves(scene: &Scene<'_>) -> Result<()> {
    let stage = Stage::set(scene, 210, 211).await?;
    let lan = &scene.world.lan;
    let addresses = stage.service("web", "web", json!({})).await?;
    let owner = stage.owners(&addresses).await?.swap_remove(1);
    for address in &addresses {
        wait_until(SOON, "an answer", async || lan.tcp(*address)).await?;
    }
    scene.world.cluster.power_off(&owner)?;
    // The node's pod is gone too, and Kubernetes doesn't know yet: one question in three gets no answer.
    for address in &addresses {
        wait_until(TAKEOVER, &format!("{address} to answer"), async || {
            lan.udp_within(*address, Duration::from_millis(50))
        })
        .await?;
    }
    stage.answered(&addresses, |seen| seen.len() == 1 && !seen.contains(&owner)).await.map(drop)
}
