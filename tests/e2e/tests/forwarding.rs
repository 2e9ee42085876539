//! Targets of connections while endpoints, ports and agents change.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::traffic::{NOTHING_LOST, RUNS, control};
use e2e::world::{AGENT_PROCESS, SOON};
use e2e::{ConnectOutcome, Target, TrafficPlan, Transport, World};
use lab::{Topology, wait_until};
use load::{Bounds, Verdict, repeat_while_late};
use observer::Component;
use serde_json::{Value, json};

/// Limit from a change in the API server to its effect on packets. It takes milliseconds; the rest is for a busy
/// machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Clients are watched for this long after the death of an agent: it covers the death, the restart and the first
/// reconciliation.
const WATCH_TIME: Duration = Duration::from_secs(6);

/// Minimum number of requests to each target in this time.
const MIN_REQUESTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_endpoints_and_ports_apply_at_once() -> Result<()> {
    let world = World::with_landfall("e2e-changes", Topology::default()).await?;
    world.create_pool("lan", &["192.0.2.200/32"]).await?;
    control::create_pods(&world).await?;
    world.create_whoami_with("web", 1, json!({"nodeName": "n1"})).await?;
    world.create_service("web", json!({})).await?;
    let address = world.wait_for_address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    let wait_for_forwarding = |status: &str| {
        let condition = format!("--for=condition=landfall.dev/Forwarding={status}");
        world.kubectl(&["wait", &condition, "service/web", "--timeout=30s"])
    };
    wait_for_forwarding("true")?;

    // A port that no Service has is dropped; one without endpoints is refused.
    ensure!(world.lan.connect(address, 81)? == ConnectOutcome::Silence);
    world.scale("web", 0).await?;
    world.wait_for_endpoints("web", 0).await?;
    wait_until(AT_ONCE, "a refusal without endpoints", async || {
        let seen = world.lan.connect(address, 80)?;
        ensure!(seen == ConnectOutcome::Refused, "{seen:?}");
        Ok(())
    })
    .await?;
    ensure!(world.lan.query_udp(address).is_err(), "UDP is answered without endpoints");
    wait_for_forwarding("false")?;
    world.scale("web", 1).await?;
    world.wait_for_endpoints("web", 1).await?;
    wait_until(AT_ONCE, "an answer after scaling up", async || world.lan.query_tcp(address)).await?;
    wait_for_forwarding("true")?;
    let row = world.kubectl(&["get", "lbip", "192.0.2.200"])?;
    ensure!(row.contains("REACH") && row.contains("Spread"), "{row}");

    // The endpoint moves to another node: after the end of the old pod, only the new pod answers.
    world.kubectl(&["delete", "deployment", "web", "--wait=true", "--cascade=foreground"])?;
    world.create_whoami_with("web", 1, json!({"nodeName": "n2"})).await?;
    let (pod, node) = world.pod_nodes("web").await?.remove(0);
    ensure!(node == "n2", "{pod} is on {node}");
    world.wait_for_endpoints("web", 1).await?;
    wait_until(AT_ONCE, "an answer from the other node", async || world.lan.query_tcp(address)).await?;
    ensure!(world.lan.answering_pods(10, address)? == [pod].into());

    let ports = |numbers: &[u16]| {
        let port = |n: &u16| json!({"name": format!("p{n}"), "port": n, "targetPort": 8080, "protocol": "TCP"});
        json!({"spec": {"ports": numbers.iter().map(port).collect::<Vec<_>>()}})
    };
    world.patch_service("web", ports(&[80, 81])).await?;
    wait_until(AT_ONCE, "the new port", async || {
        ensure!(world.lan.connect(address, 81)? == ConnectOutcome::Accepted);
        Ok(())
    })
    .await?;
    world.patch_service("web", ports(&[81])).await?;
    wait_until(AT_ONCE, "the old port to be closed", async || {
        ensure!(world.lan.connect(address, 80)? == ConnectOutcome::Silence);
        Ok(())
    })
    .await?;
    ensure!(world.lan.connect(address, 81)? == ConnectOutcome::Accepted);
    ports_of_two_protocols_are_independent(&world).await?;
    a_named_port_can_differ_per_endpoint(&world).await?;
    service_proxy_labels_stop_forwarding(&world).await?;
    a_killed_agent_loses_no_connection(&world).await?;
    world.end()
}

/// Waits until a request at port 80 has this outcome.
async fn expect_outcome(world: &World, address: IpAddr, transport: Transport, expected: ConnectOutcome) -> Result<()> {
    wait_until(SOON, &format!("{expected:?} over {transport:?}"), async || {
        let seen = world.lan.probe(address, 80, transport)?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    })
    .await
}

async fn ports_of_two_protocols_are_independent(world: &World) -> Result<()> {
    let address = world.wait_for_address("web").await?;
    for (left, right) in [(Transport::Tcp, Transport::Udp), (Transport::Udp, Transport::Tcp)] {
        let port = |transport: Transport| {
            let protocol = if transport == Transport::Tcp { "TCP" } else { "UDP" };
            json!({"name": protocol.to_lowercase(), "port": 80, "targetPort": 8080, "protocol": protocol})
        };
        let verdict = repeat_while_late(RUNS, async || {
            world.patch_service("web", json!({"spec": {"ports": [port(left), port(right)]}})).await?;
            expect_outcome(world, address, left, ConnectOutcome::Accepted).await?;
            expect_outcome(world, address, right, ConnectOutcome::Accepted).await?;
            // Removing one port loses no request to the other.
            let target = Target::new("the port that stays", SocketAddr::new(address, 80), left);
            let traffic = TrafficPlan::new([target]).start(world).await?;
            world.patch_service("web", json!({"spec": {"ports": [port(left)]}})).await?;
            expect_outcome(world, address, right, ConnectOutcome::Silence).await?;
            let run = traffic.stop()?;
            run.print("removal of the other port");
            Ok(run.excuse_late_machine(run.verdict(&NOTHING_LOST, Vec::new())))
        });
        verdict.await?.into_result()?;
    }
    Ok(())
}

async fn a_named_port_can_differ_per_endpoint(world: &World) -> Result<()> {
    world.create_pool("named", &["192.0.2.201/32"]).await?;
    for (name, number) in [("one", 8081), ("two", 8082)] {
        let port = |protocol: &str| {
            let name = format!("query-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": number, "protocol": protocol})
        };
        let container = json!({
            "name": "whoami", "image": "whoami:dev", "args": [number.to_string()], "ports": [port("TCP"), port("UDP")],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        });
        world.create_whoami_with(name, 1, json!({"containers": [container]})).await?;
    }
    world.kubectl(&["label", "pods", "--selector", "app in (one, two)", "role=named"])?;
    let port = |protocol: &str| {
        let name = protocol.to_lowercase();
        json!({"name": name, "port": 80, "targetPort": format!("query-{name}"), "protocol": protocol})
    };
    let spec = json!({"selector": {"role": "named"}, "ports": [port("TCP"), port("UDP")]});
    world.create_service("named", spec).await?;
    let address = world.wait_for_address("named").await?;
    for transport in [Transport::Tcp, Transport::Udp] {
        wait_until(SOON, &format!("both pods to answer over {transport:?}"), async || {
            let query = || match transport {
                Transport::Tcp => world.lan.query_tcp(address),
                Transport::Udp => world.lan.query_udp(address),
            };
            let pods: BTreeSet<String> = (0..20).map(|_| Ok(query()?.pod)).collect::<Result<_>>()?;
            ensure!(pods.len() == 2, "{pods:?}");
            Ok(())
        })
        .await?;
    }
    world.delete_service("named").await
}

async fn service_proxy_labels_stop_forwarding(world: &World) -> Result<()> {
    const PROXY: &str = "service.kubernetes.io/service-proxy-name";
    const HEADLESS: &str = "service.kubernetes.io/headless";
    let address = world.wait_for_address("web").await?;
    let node = world.cluster.node(&world.wait_for_announcer(address).await?);
    for (label, value, ours) in [
        (PROXY, json!("landfall"), true),
        (PROXY, json!("example.com"), false),
        (PROXY, Value::Null, true),
        (HEADLESS, json!(""), false),
        (HEADLESS, Value::Null, true),
    ] {
        world.patch_service("web", json!({"metadata": {"labels": {label: value}}})).await?;
        wait_until(SOON, &format!("{label}: {value} to take effect"), async || {
            // Without a forwarded Service there is no table.
            let rules = node.output(["nft", "list", "map", "ip", "landfall", "services"]).unwrap_or_default();
            ensure!(rules.contains(&address.to_string()) == ours, "{rules}");
            Ok(())
        })
        .await?;
        // kube-proxy ignores the label of headless Services.
        if label != HEADLESS || ours {
            let expected = if ours { ConnectOutcome::Accepted } else { ConnectOutcome::Silence };
            expect_outcome(world, address, Transport::Udp, expected)
                .await
                .with_context(|| format!("{label}: {value}"))?;
        }
    }
    Ok(())
}

async fn a_killed_agent_loses_no_connection(world: &World) -> Result<()> {
    world.create_pool("steady", &["192.0.2.202/32"]).await?;
    world.create_whoami("steady", 3).await?;
    world.create_service("steady", json!({})).await?;
    let address = world.wait_for_address("steady").await?;
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    let verdict = repeat_while_late(RUNS, async || kill_agent_under_traffic(world, address).await);
    verdict.await?.into_result()
}

/// Kills the agent of the announcer, with clients.
async fn kill_agent_under_traffic(world: &World, address: IpAddr) -> Result<Verdict> {
    let announcer = world.wait_for_announcer(address).await?;
    let node = world.cluster.node(&announcer);
    // With the kernel's handles of tables, sets, chains and rules, which change if they are created again; without
    // counters, and without the elements of dynamic sets: packets change both.
    let rules = || {
        let listing = node.output(["nft", "-a", "-s", "list", "table", "ip", "landfall"])?;
        let parts = listing.split("\n\n").map(|part| match part.split_once("elements = {") {
            Some((declaration, _)) if declaration.contains("flags dynamic") => declaration,
            _ => part,
        });
        anyhow::Ok(parts.map(str::trim_end).collect::<Vec<_>>().join("\n\n"))
    };
    let before = rules()?;
    let traffic = TrafficPlan::new(Target::over_both("steady", address)).start(world).await?;
    world.kill(Component::Agent, &announcer)?;
    tokio::time::sleep(WATCH_TIME).await;
    wait_until(SOON, "the agent to run again", async || {
        let running = node.processes(AGENT_PROCESS);
        ensure!(!running.is_empty(), "not started again");
        Ok(())
    })
    .await?;
    world.wait_until_installed().await?;
    let run = traffic.stop()?;
    run.print("death of the announcing agent");
    let after = rules()?;
    ensure!(after == before, "handles changed: the table was created again\n{before}\n{after}");
    let bounds = Bounds { tries: MIN_REQUESTS, ..NOTHING_LOST };
    Ok(run.excuse_late_machine(run.verdict(&bounds, Vec::new())))
}
