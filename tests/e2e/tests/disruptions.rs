//! Clients during rolling updates, moves of pods, and restarts of Kubernetes' components.
//! [`planned`] has the drain of a node, and a rolling restart of the agents; [`scaling`] a Deployment that is scaled.

mod planned;
mod scaling;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::rolling::RollingUpdates;
use e2e::traffic::{KnownLoss, NOTHING_LOST, RUNS, control};
use e2e::world::{SOON, ingress};
use e2e::{ConnectOutcome, Target, TrafficPlan, Transport, World};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use lab::{Process, Topology, wait_until};
use load::{Bounds, Record, Verdict, repeat_while_late};
use serde_json::json;

/// Number of updates of the backend.
const ROUNDS: usize = 5;

/// Minimum number of requests in each update, for a meaningful share.
const MIN_REQUESTS: usize = 200;

/// Bounds of one update. The share of lost tries is bounded over all updates, because one try of a few hundred is more
/// than the bar.
const UPDATE: Bounds =
    Bounds { loss: 1.0, gap: Duration::from_millis(500), slow: usize::MAX, tries: MIN_REQUESTS, ..NOTHING_LOST };

/// Losses of all updates together, by policy. The bar is 0.1 %.
const KNOWN_LOSSES: [(&str, KnownLoss); 2] = [
    (
        "Cluster",
        KnownLoss { at_most: 0.004, reason: "some connections reach a pod that has ended, before the nodes know it" },
    ),
    (
        "Local",
        KnownLoss {
            at_most: 0.04,
            reason: "the address of a node can move only when its last pod has ended, and packets are lost until then",
        },
    ),
];

/// The greatest share of requests over TCP that all updates together may leave without an answer, also after
/// retransmissions.
const UNANSWERED: f64 = 0.005;

#[tokio::test(flavor = "multi_thread")]
async fn rolling_updates_lose_almost_no_request() -> Result<()> {
    let world = World::with_landfall("e2e-rolling", Topology::default()).await?;
    world.create_pool("lan", &["192.0.2.200-192.0.2.201"]).await?;
    // Two of three nodes at a time: faster than one after the other, and a harder test.
    let rolling = RollingUpdates::start(&world, 2).await?;
    let mut all = BTreeMap::new();
    for round in 1..=ROUNDS {
        let verdict = repeat_while_late(RUNS, async || {
            let run = rolling.update().await?;
            run.print(&format!("update {round}"));
            let verdict = run.excuse_late_machine(run.verdict(&UPDATE, Vec::new()));
            // An update on a late machine is repeated.
            if verdict == Verdict::Passed {
                for (target, record) in run.records {
                    let tries =
                        &mut all.entry((target.name, target.plan.transport)).or_insert_with(Record::default).tries;
                    tries.extend(record.tries);
                }
            }
            Ok(verdict)
        });
        verdict.await?.into_result().with_context(|| format!("update {round}"))?;
    }
    let mut reasons = Vec::new();
    for ((policy, transport), record) in all {
        let name = format!("all updates, {policy}, {transport:?}");
        eprintln!("  {name}: {:.3} % of {} first tries", 100.0 * record.first_try_loss(), record.tries.len());
        let known = KNOWN_LOSSES.iter().find(|(name, _)| *name == policy).context("a known loss for each policy")?;
        reasons.extend(known.1.reasons(&name, &record));
        let unanswered = record.unanswered_count() as f64 / record.tries.len().max(1) as f64;
        if transport == Transport::Tcp && unanswered > UNANSWERED {
            reasons.push(format!("{name}: {:.3} % were not answered at all", 100.0 * unanswered));
        }
    }
    ensure!(reasons.is_empty(), "{}", reasons.join("; "));
    rolling.end().await?;
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_follow_moved_pods_and_survive_restarts() -> Result<()> {
    let world = World::with_landfall("e2e-life", Topology::default()).await?;
    world.create_pool("lan", &["192.0.2.200-192.0.2.209"]).await?;
    control::create_pods(&world).await?;
    local_policy_moves_the_address_with_its_only_pod(&world).await?;
    an_address_stays_until_the_type_changes(&world).await?;
    failed_pods_get_no_traffic(&world).await?;
    restarts_of_kubernetes_lose_no_request(&world).await?;
    scaling::scaling_breaks_no_flow(&world).await?;
    planned::a_drain_and_new_agents_break_no_flow(&world).await?;
    world.end()
}

async fn local_policy_moves_the_address_with_its_only_pod(world: &World) -> Result<()> {
    world.create_whoami_with("moved", 1, json!({"nodeName": "n1"})).await?;
    world.create_service("moved", json!({"externalTrafficPolicy": "Local"})).await?;
    let address = world.wait_for_address("moved").await?;
    let spec = world.get_service("moved").await?.spec.unwrap_or_default();
    let health: u16 = spec.health_check_node_port.context("the API server gives it a port")?.try_into()?;
    let nodes = ["n1", "n2", "n3"];
    world.create_service("moved-cluster", json!({"selector": {"app": "moved"}})).await?;
    // Clients that keep their port, so that connection tracking still knows the flow after a move of the pod: under
    // Local, where the address moves with the pod, and under Cluster, where it stays.
    let mut fixed_ports = Vec::new();
    for address in [address, world.wait_for_address("moved-cluster").await?] {
        let socket = world.cluster.client_host("c1").run(|| netns::udp_flow(SocketAddr::new(address, 80)))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        fixed_ports.push((address, socket));
    }
    // The pod moves from node to node, and at last is replaced on the same node.
    for (turn, node) in ["n1", "n2", "n3", "n1", "n1"].into_iter().enumerate() {
        let annotations = json!({"turn": turn.to_string()});
        let template = json!({"metadata": {"annotations": annotations}, "spec": {"nodeName": node}});
        let patch = json!({"spec": {"template": template}}).to_string();
        world.kubectl(&["patch", "deployment", "moved", "--patch", &patch])?;
        world.kubectl(&["rollout", "status", "deployment/moved", "--timeout=60s"])?;
        let pod = wait_until(SOON, &format!("one pod, on {node}"), async || {
            let pods = world.pod_nodes("moved").await?;
            let [(pod, current)] = &pods[..] else { anyhow::bail!("{pods:?}") };
            ensure!(current == node, "the pod is on {current}");
            Ok(pod.clone())
        })
        .await?;
        wait_until(SOON, &format!("{node} to announce the address"), async || {
            let announcer = world.wait_for_announcer(address).await?;
            ensure!(announcer == node, "{announcer} announces it");
            Ok(())
        })
        .await?;
        for transport in [Transport::Tcp, Transport::Udp] {
            wait_until(SOON, &format!("the pod on {node} to answer over {transport:?}"), async || {
                let answer = match transport {
                    Transport::Tcp => world.lan.query_tcp(address)?,
                    Transport::Udp => world.lan.query_udp(address)?,
                };
                ensure!(answer.pod == pod && answer.client.ip() == world.lan.address(), "{answer:?}, not {pod}");
                Ok(())
            })
            .await?;
        }
        for (address, socket) in &fixed_ports {
            wait_until(
                SOON,
                &format!("a client of {address} with a fixed port to reach the pod on {node}"),
                async || {
                    let mut buffer = [0; 256];
                    socket.send(b"?\n")?;
                    let length = socket.recv(&mut buffer)?;
                    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    ensure!(answer.starts_with(&format!("{pod} ")), "{answer}, not {pod}");
                    Ok(())
                },
            )
            .await?;
        }
        for other in nodes {
            let expected = if other == node { 200 } else { 503 };
            let node_ip = IpAddr::from(world.cluster.node(other).ipv4());
            wait_until(SOON, &format!("the health check of {other} to answer {expected}"), async || {
                let (status, _) = world.lan.get_health(node_ip, health)?;
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

async fn an_address_stays_until_the_type_changes(world: &World) -> Result<()> {
    world.create_whoami("edited", 1).await?;
    world.create_service("edited", json!({"type": "NodePort"})).await?;
    let first_ports = node_ports(world, "edited").await?;
    ensure!(first_ports.len() == 2, "the API server gives it node ports: {first_ports:?}");
    world.patch_service("edited", json!({"spec": {"type": "LoadBalancer"}})).await?;
    let address = world.wait_for_address("edited").await?;
    let expect_outcome = async |port, expected: ConnectOutcome| {
        for transport in [Transport::Tcp, Transport::Udp] {
            wait_until(SOON, &format!("{expected:?} at port {port} over {transport:?}"), async || {
                let seen = world.lan.probe(address, port, transport)?;
                ensure!(seen == expected, "{seen:?}");
                Ok(())
            })
            .await?;
        }
        let shown = ingress(&world.get_service("edited").await?);
        ensure!(shown == [address], "{shown:?}, and not {address}");
        Ok(())
    };
    expect_outcome(80, ConnectOutcome::Accepted).await?;
    ensure!(node_ports(world, "edited").await? == first_ports, "other node ports");
    let ports = |port: u16, node_port: i32| {
        let both = ["TCP", "UDP"].map(|protocol| {
            let name = protocol.to_lowercase();
            json!({"name": name, "port": port, "targetPort": 8080, "protocol": protocol, "nodePort": node_port})
        });
        json!({"spec": {"ports": both}})
    };
    // A free node port: other Services and health checks may use some.
    let mut free = (30_000..30_050).filter(|port| !first_ports.contains(port));
    let other = loop {
        let other = free.next().context("all node ports are taken")?;
        if world.patch_service("edited", ports(80, other)).await.is_ok() {
            break other;
        }
    };
    expect_outcome(80, ConnectOutcome::Accepted).await?;
    world.patch_service("edited", ports(81, other)).await?;
    expect_outcome(81, ConnectOutcome::Accepted).await?;
    expect_outcome(80, ConnectOutcome::Silence).await?;
    world.scale("edited", 0).await?;
    expect_outcome(81, ConnectOutcome::Refused).await?;
    world.scale("edited", 1).await?;
    expect_outcome(81, ConnectOutcome::Accepted).await?;
    world.patch_service("edited", json!({"spec": {"type": "ClusterIP"}})).await?;
    wait_until(SOON, "the address to be closed and released", async || {
        let seen = [world.lan.connect(address, 81)?, world.lan.probe(address, 81, Transport::Udp)?];
        let shown = ingress(&world.get_service("edited").await?);
        ensure!(seen == [ConnectOutcome::Silence; 2] && shown.is_empty(), "{seen:?}, {shown:?}");
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

/// A failed pod, like an evicted one, still has an address, but no process.
async fn failed_pods_get_no_traffic(world: &World) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    // whoami fails if its argument is no port.
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
        ensure!(phase == "Failed", "the pod is {phase}");
        Ok(())
    })
    .await?;
    world.create_service("failed", json!({})).await?;
    let address = world.wait_for_address("failed").await?;
    wait_until(SOON, "a refusal with only a failed pod", async || {
        let seen = world.lan.connect(address, 80)?;
        ensure!(seen == ConnectOutcome::Refused, "{seen:?}");
        Ok(())
    })
    .await?;
    // With a working pod, all connections reach that one.
    world.create_whoami("works", 1).await?;
    world.kubectl(&["label", "pods", "--selector=app=works", "role=failed"])?;
    world.kubectl(&["label", "pod", "failed", "role=failed"])?;
    world.patch_service("failed", json!({"spec": {"selector": {"app": null, "role": "failed"}}})).await?;
    wait_until(SOON, "the pod that works to answer", async || world.lan.query_tcp(address)).await?;
    let (works, _) = world.pod_nodes("works").await?.remove(0);
    let seen = world.lan.answering_pods(20, address)?;
    ensure!(seen == BTreeSet::from([works]), "{seen:?}");
    world.kubectl(&["delete", "deployment/works", "pod/failed", "--wait=false"])?;
    world.delete_service("failed").await
}

/// Clients are watched for this long after a restart: a component needs a few seconds to work again.
const WATCH_TIME: Duration = Duration::from_secs(5);

async fn restarts_of_kubernetes_lose_no_request(world: &World) -> Result<()> {
    world.create_whoami("stays", 3).await?;
    let mut targets = Vec::new();
    for (policy, name) in [("Cluster", "stays"), ("Local", "stays-local")] {
        world.create_service(name, json!({"selector": {"app": "stays"}, "externalTrafficPolicy": policy})).await?;
        let address = world.wait_for_address(name).await?;
        wait_until(SOON, &format!("all pods to answer under {policy}"), async || {
            let seen = world.lan.answering_pods(40, address)?;
            ensure!(seen.len() == 3, "{seen:?}");
            Ok(())
        })
        .await?;
        targets.extend(Target::over_both(policy, address));
    }
    let mut number = 0;
    let verdict = repeat_while_late(RUNS, async || {
        number += 1;
        restart_under_traffic(world, &targets, &format!("new-{number}")).await
    });
    verdict.await?.into_result()
}

/// Restarts kube-proxy and the API server, with clients, and creates a Service of this name afterwards.
async fn restart_under_traffic(world: &World, targets: &[Target], new: &str) -> Result<Verdict> {
    let traffic = TrafficPlan::new(targets.iter().cloned()).start(world).await?;
    let used: BTreeSet<String> = world.record_names().await?.into_iter().collect();
    for node in ["n1", "n2", "n3"] {
        restart(&world.cluster.node(node).process("kube-proxy"))?;
    }
    tokio::time::sleep(WATCH_TIME).await;
    restart(&world.cluster.control_plane().process("kube-apiserver"))?;
    wait_until(SOON, "the API server to answer again", async || world.record_names().await).await?;
    tokio::time::sleep(WATCH_TIME).await;
    // A new Service gets an unused address, and is served.
    world.create_service(new, json!({"selector": {"app": "stays"}})).await?;
    let new = world.wait_for_address(new).await?;
    ensure!(!used.contains(&crds::address::object_name(new)), "{new} was in use: {used:?}");
    wait_until(SOON, "the new address to answer", async || world.lan.query_tcp(new)).await?;
    let run = traffic.stop()?;
    run.print("restarts of kube-proxy and of the API server");
    let bounds = Bounds { tries: MIN_REQUESTS, ..NOTHING_LOST };
    Ok(run.excuse_late_machine(run.verdict(&bounds, Vec::new())))
}

/// Kills a daemon, and starts it again with the same command.
fn restart(process: &Process) -> Result<()> {
    process.kill()?;
    process.start().with_context(|| format!("start {} again", process.name()))
}
