//! What clients notice of everyday life: updates of a backend, pods that move, parts of Kubernetes that start again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::rolling::Rolling;
use e2e::world::{SOON, ingress};
use e2e::{Asking, Connect, Over, World};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use lab::{Process, Topology, wait_until};
use serde_json::json;

/// How often the backend is updated, and which share of those who ask meanwhile must be answered, in percent.
const ROUNDS: usize = 5;
const ANSWERED: f64 = 99.5;

/// At least so many ask in each round, so that a share says something.
const ENOUGH: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn in_each_of_five_updates_of_a_backend_clients_are_answered_under_both_policies() -> Result<()> {
    let world = World::with_landfall("e2e-rolling", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.201"]).await?;
    // Of three nodes, two at once: quicker than one after the other, and harder to bear.
    let rolling = Rolling::begin(&world, 2).await?;
    for round in 1..=ROUNDS {
        for (policy, over, tally) in rolling.update().await? {
            let percent = tally.percent();
            let lost = tally.first_lost.as_deref().unwrap_or("none lost");
            let (asked, slow) = (tally.asked, tally.slow);
            eprintln!("  round {round}, {policy}, {over:?}: {percent:.2} % of {asked} answered, {slow} late, {lost}");
            ensure!(
                percent >= ANSWERED && tally.asked >= ENOUGH,
                "in round {round} under {policy}, {over:?}: {tally:?}"
            );
        }
    }
    rolling.end().await?;
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_follow_a_pod_over_all_nodes_and_notice_nothing_of_kube_proxy_and_api_server_that_start_again()
-> Result<()> {
    let world = World::with_landfall("e2e-life", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.204"]).await?;
    the_address_follows_its_only_pod_under_local(&world).await?;
    an_address_stays_through_all_edits_of_a_service_and_goes_with_its_type(&world).await?;
    a_pod_that_has_failed_is_not_used(&world).await?;
    nothing_is_lost_while_kube_proxy_and_the_api_server_start_again(&world).await?;
    world.end()
}

async fn the_address_follows_its_only_pod_under_local(world: &World) -> Result<()> {
    world.whoami_on("moved", 1, json!({"nodeName": "n1"})).await?;
    world.service("moved", json!({"externalTrafficPolicy": "Local"})).await?;
    let address = world.address("moved").await?;
    let spec = world.get_service("moved").await?.spec.unwrap_or_default();
    let health: u16 = spec.health_check_node_port.context("the API server gives it a port")?.try_into()?;
    let nodes = ["n1", "n2", "n3"];
    world.service("moved-cluster", json!({"selector": {"app": "moved"}})).await?;
    // Somebody who always asks from the same port, whose flow connection tracking knows from one pod to the next; under the
    // policy Local, where the address goes with the pod, and under Cluster, where it stays.
    let mut steady = Vec::new();
    for address in [address, world.address("moved-cluster").await?] {
        let socket = world.cluster.client_host("c1").run(|| netns::udp_flow(SocketAddr::new(address, 80)))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        steady.push((address, socket));
    }
    // From node to node, and at last to a new pod where the old one was.
    for (turn, node) in ["n1", "n2", "n3", "n1", "n1"].into_iter().enumerate() {
        let annotations = json!({"turn": turn.to_string()});
        let template = json!({"metadata": {"annotations": annotations}, "spec": {"nodeName": node}});
        let patch = json!({"spec": {"template": template}}).to_string();
        world.kubectl(&["patch", "deployment", "moved", "--patch", &patch])?;
        world.kubectl(&["rollout", "status", "deployment/moved", "--timeout=60s"])?;
        let pod = wait_until(SOON, &format!("the pod to be on {node} alone"), async || {
            let pods = world.pods("moved").await?;
            let [(pod, at)] = &pods[..] else { anyhow::bail!("{pods:?}") };
            ensure!(at == node, "it is on {at}");
            Ok(pod.clone())
        })
        .await?;
        wait_until(SOON, &format!("{node} to announce the address"), async || {
            let announcer = world.announcer(address).await?;
            ensure!(announcer == node, "{announcer} does");
            Ok(())
        })
        .await?;
        for over in [Over::Tcp, Over::Udp] {
            wait_until(SOON, &format!("the pod on {node} to answer over {over:?}"), async || {
                let answer = if over == Over::Tcp { world.lan.tcp(address) } else { world.lan.udp(address) }?;
                ensure!(answer.pod == pod && answer.client.ip() == world.lan.address(), "{answer:?}, not {pod}");
                Ok(())
            })
            .await?;
        }
        for (address, steady) in &steady {
            wait_until(SOON, &format!("who asks {address} from one port to get to the pod on {node}"), async || {
                let mut buffer = [0; 256];
                steady.send(b"who\n")?;
                let length = steady.recv(&mut buffer)?;
                let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                ensure!(answer.starts_with(&format!("{pod} ")), "{answer}, not {pod}");
                Ok(())
            })
            .await?;
        }
        for other in nodes {
            let expected = if other == node { 200 } else { 503 };
            let of_node = IpAddr::from(world.cluster.node(other).ipv4());
            wait_until(SOON, &format!("{other} to say {expected} for health"), async || {
                let (status, _) = world.lan.http(of_node, health)?;
                ensure!(status == expected, "{status}");
                Ok(())
            })
            .await?;
        }
    }
    world.kubectl(&["delete", "deployment", "moved", "--wait=false"])?;
    world.delete_service("moved-cluster").await?;
    world.delete_service("moved").await
}

async fn an_address_stays_through_all_edits_of_a_service_and_goes_with_its_type(world: &World) -> Result<()> {
    world.whoami("edited", 1).await?;
    world.service("edited", json!({"type": "NodePort"})).await?;
    let kept = node_ports(world, "edited").await?;
    ensure!(kept.len() == 2, "the API server gives it node ports: {kept:?}");
    world.patch_service("edited", json!({"spec": {"type": "LoadBalancer"}})).await?;
    let address = world.address("edited").await?;
    let ends = async |port, expected: Connect| {
        for over in [Over::Tcp, Over::Udp] {
            wait_until(SOON, &format!("port {port} to end in {expected:?} over {over:?}"), async || {
                let seen = world.lan.end(address, port, over)?;
                ensure!(seen == expected, "{seen:?}");
                Ok(())
            })
            .await?;
        }
        let shown = ingress(&world.get_service("edited").await?);
        ensure!(shown == [address], "{shown:?}, and not {address} any more");
        Ok(())
    };
    ends(80, Connect::Accepted).await?;
    ensure!(node_ports(world, "edited").await? == kept, "other node ports");
    let ports = |port: u16, node_port: i32| {
        let both = ["TCP", "UDP"].map(|protocol| {
            let name = protocol.to_lowercase();
            json!({"name": name, "port": port, "targetPort": 8080, "protocol": protocol, "nodePort": node_port})
        });
        json!({"spec": {"ports": both}})
    };
    // One that nobody has: others may have some, and health checks.
    let mut free = (30_000..30_050).filter(|port| !kept.contains(port));
    let other = loop {
        let other = free.next().context("all node ports are taken")?;
        if world.patch_service("edited", ports(80, other)).await.is_ok() {
            break other;
        }
    };
    ends(80, Connect::Accepted).await?;
    world.patch_service("edited", ports(81, other)).await?;
    ends(81, Connect::Accepted).await?;
    ends(80, Connect::Silence).await?;
    world.scale("edited", 0).await?;
    ends(81, Connect::Refused).await?;
    world.scale("edited", 1).await?;
    ends(81, Connect::Accepted).await?;
    world.patch_service("edited", json!({"spec": {"type": "ClusterIP"}})).await?;
    wait_until(SOON, "the address to be closed and gone", async || {
        let seen = [world.lan.connect(address, 81)?, world.lan.end(address, 81, Over::Udp)?];
        let shown = ingress(&world.get_service("edited").await?);
        ensure!(seen == [Connect::Silence; 2] && shown.is_empty(), "{seen:?}, {shown:?}");
        Ok(())
    })
    .await?;
    ensure!(node_ports(world, "edited").await?.is_empty(), "a node port is left");
    world.kubectl(&["delete", "deployment", "edited", "--wait=false"])?;
    world.delete_service("edited").await
}

/// The node ports of a Service.
async fn node_ports(world: &World, service: &str) -> Result<Vec<i32>> {
    let ports = world.get_service(service).await?.spec.unwrap_or_default().ports.unwrap_or_default();
    Ok(ports.iter().filter_map(|port| port.node_port).filter(|port| *port != 0).collect())
}

/// As one that was evicted: it stands there with an address, and nobody is behind it.
async fn a_pod_that_has_failed_is_not_used(world: &World) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    // What whoami takes for no port makes it end with an error.
    let failed = json!({
        "metadata": {"name": "failed", "labels": {"app": "failed"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "whoami", "image": "whoami:dev", "args": ["no-port"]}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(failed)?).await.context("create a pod")?;
    wait_until(SOON, "the pod to fail", async || {
        let phase = pods.get("failed").await?.status.unwrap_or_default().phase.unwrap_or_default();
        ensure!(phase == "Failed", "it is {phase}");
        Ok(())
    })
    .await?;
    world.service("failed", json!({})).await?;
    let address = world.address("failed").await?;
    let refused = async || {
        let seen = world.lan.connect(address, 80)?;
        ensure!(seen == Connect::Refused, "{seen:?}");
        Ok(())
    };
    wait_until(SOON, "a refusal where the only pod has failed", refused).await?;
    // Beside one that works, all get that one.
    world.whoami("works", 1).await?;
    world.kubectl(&["label", "pods", "--selector=app=works", "role=failed"])?;
    world.kubectl(&["label", "pod", "failed", "role=failed"])?;
    world.patch_service("failed", json!({"spec": {"selector": {"app": null, "role": "failed"}}})).await?;
    wait_until(SOON, "the pod that works to answer", async || world.lan.tcp(address)).await?;
    let (works, _) = world.pods("works").await?.remove(0);
    let seen = world.lan.pods(20, address)?;
    ensure!(seen == BTreeSet::from([works]), "{seen:?}");
    world.kubectl(&["delete", "deployment/works", "pod/failed", "--wait=false"])?;
    world.delete_service("failed").await
}

/// For how long clients are watched after something has started again: it takes a few seconds to get back to work.
const WATCHED: Duration = Duration::from_secs(5);

async fn nothing_is_lost_while_kube_proxy_and_the_api_server_start_again(world: &World) -> Result<()> {
    world.whoami("stays", 3).await?;
    let mut asked = Vec::new();
    let client = world.cluster.client_host("c1");
    for (policy, name) in [("Cluster", "stays"), ("Local", "stays-local")] {
        world.service(name, json!({"selector": {"app": "stays"}, "externalTrafficPolicy": policy})).await?;
        let address = world.address(name).await?;
        wait_until(SOON, &format!("all pods to answer under {policy}"), async || {
            let seen = world.lan.pods(40, address)?;
            ensure!(seen.len() == 3, "{seen:?}");
            Ok(())
        })
        .await?;
        let target = SocketAddr::new(address, 80);
        for over in [Over::Tcp, Over::Udp] {
            asked.push(Asking::begin(&client, target, over));
        }
    }
    let taken: BTreeSet<String> = world.addresses().await?.into_iter().collect();
    for node in ["n1", "n2", "n3"] {
        start_again(&world.cluster.node(node).process("kube-proxy"))?;
    }
    tokio::time::sleep(WATCHED).await;
    start_again(&world.cluster.control_plane().process("kube-apiserver"))?;
    wait_until(SOON, "the API server to be back", async || world.addresses().await).await?;
    tokio::time::sleep(WATCHED).await;
    // What is new gets an address of its own, and is served.
    world.service("new", json!({"selector": {"app": "stays"}})).await?;
    let new = world.address("new").await?;
    ensure!(!taken.contains(&crds::address::object_name(new)), "{new} was taken: {taken:?}");
    wait_until(SOON, "the new address to answer", async || world.lan.tcp(new)).await?;
    for asking in asked {
        let tally = asking.end()?;
        ensure!(tally.lost == 0 && tally.asked >= ENOUGH, "{tally:?}");
    }
    Ok(())
}

/// Ends it without a word, and starts it as it was.
fn start_again(process: &Process) -> Result<()> {
    process.kill()?;
    process.start().with_context(|| format!("start {} again", process.name()))
}
