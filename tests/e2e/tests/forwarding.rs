//! Where connections go while endpoints, ports and agents come and go.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::world::SOON;
use e2e::{Asking, Connect, Over, World};
use lab::{Topology, wait_until};
use serde_json::{Value, json};

/// How soon a change that the API server knows of must show on the wire. It takes milliseconds; this is what a machine that is
/// busy with something else may add.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How long a connection may take while nobody answers ARP: the successor says so in a fraction of a second, and the kernel
/// sends a packet again after one second, and after three.
const PATIENCE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_endpoints_and_ports_show_at_once() -> Result<()> {
    let world = World::with_landfall("e2e-changes", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200/32"]).await?;
    world.whoami_on("web", 1, json!({"nodeName": "n1"})).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let says = |condition: &str| {
        let condition = format!("--for=condition=landfall.dev/Forwarding={condition}");
        world.kubectl(&["wait", &condition, "service/web", "--timeout=30s"])
    };
    says("true")?;

    // A port that no Service has is dropped; one without endpoints is refused.
    ensure!(world.lan.connect(address, 81)? == Connect::Silence);
    world.scale("web", 0).await?;
    world.endpoints("web", 0).await?;
    wait_until(AT_ONCE, "a refusal without endpoints", async || {
        let seen = world.lan.connect(address, 80)?;
        ensure!(seen == Connect::Refused, "{seen:?}");
        Ok(())
    })
    .await?;
    ensure!(world.lan.udp(address).is_err(), "UDP is answered without endpoints");
    says("false")?;
    world.scale("web", 1).await?;
    world.endpoints("web", 1).await?;
    wait_until(AT_ONCE, "an answer after scaling up", async || world.lan.tcp(address)).await?;
    says("true")?;
    let row = world.kubectl(&["get", "lbip", "192.0.2.200"])?;
    ensure!(row.contains("REACH") && row.contains("Spread"), "{row}");

    // The endpoint moves to another node: with the old one gone and the new one ready, only the new one answers.
    world.kubectl(&["delete", "deployment", "web", "--wait=true", "--cascade=foreground"])?;
    world.whoami_on("web", 1, json!({"nodeName": "n2"})).await?;
    let (pod, node) = world.pods("web").await?.remove(0);
    ensure!(node == "n2", "{pod} is on {node}");
    world.endpoints("web", 1).await?;
    wait_until(AT_ONCE, "an answer from the other node", async || world.lan.tcp(address)).await?;
    ensure!(world.lan.pods(10, address)? == [pod].into());

    let ports = |numbers: &[u16]| {
        let port = |n: &u16| json!({"name": format!("p{n}"), "port": n, "targetPort": 8080, "protocol": "TCP"});
        json!({"spec": {"ports": numbers.iter().map(port).collect::<Vec<_>>()}})
    };
    world.patch_service("web", ports(&[80, 81])).await?;
    wait_until(AT_ONCE, "the new port", async || {
        ensure!(world.lan.connect(address, 81)? == Connect::Accepted);
        Ok(())
    })
    .await?;
    world.patch_service("web", ports(&[81])).await?;
    wait_until(AT_ONCE, "the old port to be closed", async || {
        ensure!(world.lan.connect(address, 80)? == Connect::Silence);
        Ok(())
    })
    .await?;
    ensure!(world.lan.connect(address, 81)? == Connect::Accepted);
    one_port_is_two_where_protocols_differ(&world).await?;
    a_named_port_is_another_one_at_each_endpoint(&world).await?;
    a_service_says_which_proxy_forwards_it(&world).await?;
    world.end()
}

/// Waits until a question at port 80 ends so.
async fn ends(world: &World, address: IpAddr, over: Over, expected: Connect) -> Result<()> {
    wait_until(SOON, &format!("{expected:?} over {over:?}"), async || {
        let seen = world.lan.end(address, 80, over)?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    })
    .await
}

async fn one_port_is_two_where_protocols_differ(world: &World) -> Result<()> {
    let address = world.address("web").await?;
    let client = world.cluster.client_host("c1");
    for (left, right) in [(Over::Tcp, Over::Udp), (Over::Udp, Over::Tcp)] {
        let port = |over: Over| {
            let protocol = if over == Over::Tcp { "TCP" } else { "UDP" };
            json!({"name": protocol.to_lowercase(), "port": 80, "targetPort": 8080, "protocol": protocol})
        };
        world.patch_service("web", json!({"spec": {"ports": [port(left), port(right)]}})).await?;
        ends(world, address, left, Connect::Accepted).await?;
        ends(world, address, right, Connect::Accepted).await?;
        // One goes, and who asks over the other does not notice.
        let asking = Asking::begin(&client, SocketAddr::new(address, 80), left);
        world.patch_service("web", json!({"spec": {"ports": [port(left)]}})).await?;
        ends(world, address, right, Connect::Silence).await?;
        let tally = asking.end()?;
        ensure!(tally.lost == 0 && tally.asked > 0, "over {left:?}: {tally:?}");
    }
    Ok(())
}

async fn a_named_port_is_another_one_at_each_endpoint(world: &World) -> Result<()> {
    world.pool("named", &["192.0.2.201/32"]).await?;
    for (name, number) in [("one", 8081), ("two", 8082)] {
        let port = |protocol: &str| {
            let name = format!("who-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": number, "protocol": protocol})
        };
        let container = json!({
            "name": "whoami", "image": "whoami:dev", "args": [number.to_string()], "ports": [port("TCP"), port("UDP")],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        });
        world.whoami_on(name, 1, json!({"containers": [container]})).await?;
    }
    world.kubectl(&["label", "pods", "--selector", "app in (one, two)", "role=named"])?;
    let port = |protocol: &str| {
        let name = protocol.to_lowercase();
        json!({"name": name, "port": 80, "targetPort": format!("who-{name}"), "protocol": protocol})
    };
    let spec = json!({"selector": {"role": "named"}, "ports": [port("TCP"), port("UDP")]});
    world.service("named", spec).await?;
    let address = world.address("named").await?;
    for over in [Over::Tcp, Over::Udp] {
        wait_until(SOON, &format!("both pods to answer over {over:?}"), async || {
            let ask = |_| if over == Over::Tcp { world.lan.tcp(address) } else { world.lan.udp(address) };
            let pods: BTreeSet<String> = (0..20).map(|n| Ok(ask(n)?.pod)).collect::<Result<_>>()?;
            ensure!(pods.len() == 2, "{pods:?}");
            Ok(())
        })
        .await?;
    }
    world.delete_service("named").await
}

async fn a_service_says_which_proxy_forwards_it(world: &World) -> Result<()> {
    const PROXY: &str = "service.kubernetes.io/service-proxy-name";
    const HEADLESS: &str = "service.kubernetes.io/headless";
    let address = world.address("web").await?;
    let node = world.cluster.node(&world.announcer(address).await?);
    for (label, value, ours) in [
        (PROXY, json!("landfall"), true),
        (PROXY, json!("example.com"), false),
        (PROXY, Value::Null, true),
        (HEADLESS, json!(""), false),
        (HEADLESS, Value::Null, true),
    ] {
        world.patch_service("web", json!({"metadata": {"labels": {label: value}}})).await?;
        wait_until(SOON, &format!("{label}: {value} to be followed"), async || {
            // Where nothing is forwarded, there is no table.
            let rules = node.output(["nft", "list", "map", "ip", "landfall", "services"]).unwrap_or_default();
            ensure!(rules.contains(&address.to_string()) == ours, "{rules}");
            Ok(())
        })
        .await?;
        // Of that label, kube-proxy takes no notice.
        if label != HEADLESS || ours {
            let expected = if ours { Connect::Accepted } else { Connect::Silence };
            ends(world, address, Over::Udp, expected).await.with_context(|| format!("{label}: {value}"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_leaves_the_kernel_forwarding_and_flushes_nothing_when_it_is_back() -> Result<()> {
    let world = World::with_landfall("e2e-agent", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200/32"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let announcer = world.announcer(address).await?;
    let node = world.cluster.node(&announcer);
    // With the numbers that the kernel gave to tables, chains and rules, which change if anything is made anew; without
    // what was counted, which changes all the time.
    let rules = async || node.output(["nft", "-a", "-s", "list", "table", "ip", "landfall"]);
    let before = rules().await?;
    node.kill("landfall node")?;
    let (mut lost, begun) = (0, Instant::now());
    // Through the death, the start and the first reconciliation of the next agent.
    while begun.elapsed() < Duration::from_secs(6) {
        lost += usize::from(world.lan.tcp_within(address, PATIENCE).is_err());
    }
    wait_until(SOON, "the agent to be back", async || {
        let running = node.processes("landfall node");
        ensure!(!running.is_empty(), "not started again");
        Ok(())
    })
    .await?;
    world.wait_until_installed().await?;
    ensure!(rules().await? == before, "handles changed: the table was made anew\n{before}\n{}", rules().await?);
    ensure!(lost == 0, "{lost} connections were lost");
    world.end()
}
