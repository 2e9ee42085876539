//! Breaches of invariants on a real cluster, which the observer must find.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::LoadBalancerIP;
use e2e::World;
use e2e::world::{SOON, SYSTEM, ingress};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lab::{Host, Signal, Topology, wait_until};
use observer::Observer;
use serde_json::json;

/// Limit until the observer has found a breach. Most must last for five seconds.
const FOUND: Duration = Duration::from_secs(20);

/// Waits until the observer has reported breaches with all these beginnings.
async fn expect_breaches(observer: &Observer, expected: &[&str]) -> Result<()> {
    let (start, mut report) = (Instant::now(), String::new());
    loop {
        if let Err(breaches) = observer.check_scene().await {
            report += &format!("{breaches:#}\n");
        }
        let is_reported = |start: &str| report.lines().any(|line| line.starts_with(start));
        let missing: Vec<_> = expected.iter().filter(|start| !is_reported(start)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < FOUND, "{missing:?} are missing in\n{report}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn breaches_of_invariants_are_found() -> Result<()> {
    let world = World::with_landfall("e2e-observer", Topology { nodes: 1, ..Topology::default() }).await?;
    let observer = world.observer().context("the cluster of a test is observed")?;
    world.create_pool("lan", &["192.0.2.200-192.0.2.203", "2001:db8::200/128"]).await?;
    for (name, families) in [("one", "RequireDualStack"), ("two", "SingleStack")] {
        world.create_service(name, json!({"ipFamilyPolicy": families})).await?;
        world.wait_for_address(name).await?;
        for address in ingress(&world.get_service(name).await?) {
            world.wait_for_announcer(address).await?;
        }
    }
    wait_until(SOON, "no write while nothing happens", async || {
        let writes = observer.writes_during(tokio::time::sleep(Duration::from_millis(500))).await?;
        ensure!(writes.is_none(), "{writes:?}");
        Ok(())
    })
    .await?;
    observer.check_scene().await.context("before the first breach")?;

    // Without controllers, which would repair the objects.
    world.kubectl(&["-n", SYSTEM, "scale", "deployment/landfall-controller", "--replicas=0"])?;
    world.wait_for_controllers(0).await?;
    let node = world.cluster.node("n1");
    breach_on_the_lan(&world, observer).await?;
    breach_on_the_node(&world, observer, &node).await?;
    let mut forged = Ok(());
    let writes = observer.writes_during(async { forged = forge_objects(&world).await }).await?;
    forged?;
    ensure!(writes.is_some_and(|writes| writes.contains("PATCH services")), "writes are not counted");
    expect_breaches(
        observer,
        &[
            "I1: Service default/one shows 192.0.2.201, which default/two holds without sharing it",
            "I2: Service default/one lost [192.0.2.200, 2001:db8::200]",
            "I5: Service default/one shows",
            "I5: n1 forwards 192.0.2.202",
            "I8: 192.0.2.200 was last announced by 02:00:00:00:01:01",
            "I13: 192.0.2.203 is held by default/ghost",
            "I16: 192.0.2.200 is answered by no node",
            "I16: 2001:db8::200 is answered by no node",
        ],
    )
    .await?;
    node.signal("landfall node", Signal::SIGCONT)?;
    breach_after_uninstallation(&world, observer, &node).await?;
    world.stop_observing().end()
}

/// Another host answers for both addresses of a Service.
async fn breach_on_the_lan(world: &World, observer: &Observer) -> Result<()> {
    let client = world.cluster.client_host("c1");
    let both = ["192.0.2.200", "2001:db8::200"];
    let change = |verb: &str| {
        both.iter().try_for_each(|address| client.output(["ip", "address", verb, address, "dev", "eth0"]).map(drop))
    };
    // Without duplicate address detection in the lab.
    change("add")?;
    let expected = both.map(|address| format!("I6: {address} is answered by n1 and 02:00:00:00:01:01"));
    expect_breaches(observer, &expected.each_ref().map(String::as_str)).await?;
    change("del")
}

/// The agent is killed and then frozen, its log has a panic and an error, and an address is programmed that no Service
/// has.
async fn breach_on_the_node(world: &World, observer: &Observer, node: &Host) -> Result<()> {
    let logs = std::fs::read_dir(node.logs().join("pods"))?.flatten().map(|entry| entry.path().join("node/0.log"));
    let log = logs.into_iter().find(|log| log.exists()).context("the log of the agent")?;
    let lines = "TIME stderr F thread 'x' panicked at x.rs:1:1:\nTIME stderr F 2026 ERROR agent::x: y\n";
    std::io::Write::write_all(&mut std::fs::File::options().append(true).open(log)?, lines.as_bytes())?;
    let killed = node.kill("landfall node")?;
    wait_until(SOON, "another agent to be ready", async || {
        ensure!(node.processes("landfall node").iter().any(|process| !killed.contains(process)));
        world.agent_metric(node, "landfall_announced_addresses{family=\"ipv4\"}").and_then(|count| {
            ensure!(count == 2.0, "{count} addresses");
            Ok(())
        })
    })
    .await?;
    expect_breaches(
        observer,
        &[
            "I15: agent on n1 restarted (undeclared)",
            "I15: agent on n1 panicked: panicked at x.rs:1:1:",
            "I15: agent on n1 logged an error: agent::x: y",
        ],
    )
    .await?;
    node.signal("landfall node", Signal::SIGSTOP)?;
    let client = world.cluster.client_host("c1");
    client.output(["ip", "address", "add", "192.0.2.200", "dev", "eth0"])?;
    client.output(["arping", "-q", "-U", "-c", "2", "-I", "eth0", "192.0.2.200"])?;
    node.output(["nft", "add", "element", "ip", "landfall", "addresses", "{ 192.0.2.202 }"]).map(drop)
}

/// A Service shows the address of another, and a record has a holder that does not exist.
async fn forge_objects(world: &World) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(world.client.clone());
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.201"}]}}});
    services.patch_status("one", &PatchParams::default(), &Patch::Merge(status)).await.context("forge a status")?;
    let record = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP", "metadata": {"name": "192.0.2.203"},
        "spec": {
            "address": "192.0.2.203", "pool": "lan",
            "services": [{"namespace": "default", "name": "ghost", "uid": "none"}],
        },
    });
    // A policy refuses this record from any other client.
    let controller = world.cluster.service_account_client(SYSTEM, "landfall-controller", None).await?;
    let records: Api<LoadBalancerIP> = Api::all(controller);
    records.create(&PostParams::default(), &serde_json::from_value(record)?).await.context("forge a record")?;
    Ok(())
}

/// A table, a route, a rule, a sysctl and a socket stay after an uninstallation, and nothing else.
async fn breach_after_uninstallation(world: &World, observer: &Observer, node: &Host) -> Result<()> {
    world.cluster.client_host("c1").output(["ip", "address", "del", "192.0.2.200", "dev", "eth0"])?;
    world.run_landfall(&["uninstall", "--yes"])?;
    // The breaches of the objects that are deleted now.
    observer.check_scene().await.ok();
    node.output(["nft", "add", "table", "ip6", "landfall"])?;
    node.output(["ip", "-6", "rule", "add", "fwmark", "0x10", "lookup", "76001", "priority", "760"])?;
    node.output(["ip", "route", "add", "198.51.100.0/24", "dev", "eth0", "table", "76001"])?;
    node.netns()?.sysctl("ipv4.conf.eth0.arp_ignore", "1")?;
    let _socket = node.run(|| UdpSocket::bind("0.0.0.0:7946"))??;
    let report = observer.check_end().await.err().context("nothing was found")?.to_string();
    let lines: Vec<&str> = report.lines().skip(1).filter_map(|line| line.split(" (undeclared)").next()).collect();
    let expected = [
        r#"I13: n1 keeps "route -4 198.51.100.0/24 dev eth0 table 76001 scope link""#,
        r#"I13: n1 keeps "rule -6 760:\tfrom all fwmark 0x10 lookup 76001""#,
        r#"I13: n1 keeps "socket udp 0.0.0.0:7946""#,
        r#"I13: n1 keeps "sysctl net/ipv4/conf/eth0/arp_ignore 1""#,
        r#"I13: n1 keeps "table ip6 landfall""#,
    ];
    ensure!(lines == expected, "{lines:#?}");
    Ok(())
}
