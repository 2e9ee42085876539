//! The condition Announced of a Service, and addresses that another host on the LAN uses.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::SOON;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lab::{Host, Topology, wait_until};
use observer::Fault;
use serde_json::json;

const ANNOUNCED: &str = "landfall.dev/Announced";

/// A host on the LAN that uses addresses of the pool.
struct ConflictingHost {
    host: Host,
}

impl ConflictingHost {
    fn add_address(&self, address: &str) -> Result<()> {
        self.host.output(["ip", "address", "add", &format!("{address}/32"), "dev", "eth0"]).map(drop)
    }

    fn delete_address(&self, address: &str) -> Result<()> {
        self.host.output(["ip", "address", "del", &format!("{address}/32"), "dev", "eth0"]).map(drop)
    }

    fn mac(&self) -> Result<String> {
        Ok(self.host.mac().context("a client has a MAC address")?.to_lowercase())
    }
}

/// Waits until a Service has the condition Announced with this status and reason, and these words in its message.
async fn expect_announced(world: &World, name: &str, status: &str, reason: &str, words: &[&str]) -> Result<Condition> {
    wait_until(SOON, &format!("Service {name} to have {ANNOUNCED}={status}, {reason}"), async || {
        let service = world.get_service(name).await?;
        let conditions = service.status.unwrap_or_default().conditions.unwrap_or_default();
        let condition = conditions.into_iter().find(|condition| condition.type_ == ANNOUNCED);
        let condition = condition.context("no condition yet")?;
        let is_expected = (condition.status.as_str(), condition.reason.as_str()) == (status, reason);
        ensure!(is_expected && words.iter().all(|word| condition.message.contains(word)), "{condition:?}");
        Ok(condition)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflicting_host_is_reported_and_avoided() -> Result<()> {
    let world = World::with_landfall("e2e-announced", Topology::default()).await?;
    let conflicting = ConflictingHost { host: world.cluster.client_host("c1") };
    let mac = conflicting.mac()?;
    let kubectl = |words: &[&str]| world.kubectl(words);
    let wait_for = |condition: &str, name: &str| {
        kubectl(&["wait", &format!("--for=condition={condition}"), &format!("service/{name}"), "--timeout=30s"])
    };

    // Announced: `kubectl wait` works, and the message names the node.
    world.create_pool("lan", &["192.0.2.200-192.0.2.209"]).await?;
    world.create_whoami("web", 3).await?;
    world.create_service("web", json!({})).await?;
    wait_for(ANNOUNCED, "web")?;
    let address = world.wait_for_address("web").await?;
    let node = world.wait_for_announcer(address).await?;
    let first = expect_announced(&world, "web", "True", "Announced", &[&format!("{address} by {node} (eth0)")]).await?;
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    let row = kubectl(&["get", "lbip", "192.0.2.200"])?;
    ensure!(row.contains("ANNOUNCER") && row.contains(&node), "{row}");

    // Another host uses the next address of the pool: the Service gets the following address, which answers.
    world.declare(Fault::conflict("192.0.2.201".parse()?));
    world.declare(Fault::address_change("default/second"));
    conflicting.add_address("192.0.2.201")?;
    world.create_service("second", json!({"selector": {"app": "web"}})).await?;
    let free: IpAddr = "192.0.2.202".parse()?;
    wait_until(SOON, "the Service to have another address", async || {
        let address = world.wait_for_address("second").await?;
        ensure!(address == free, "its address is {address}");
        Ok(())
    })
    .await?;
    expect_announced(&world, "second", "True", "Announced", &["192.0.2.202 by "]).await?;
    wait_until(SOON, "an answer from the other address", async || world.lan.query_tcp(free)).await?;
    let events = kubectl(&["get", "events", "--field-selector", "reason=AddressConflict,involvedObject.name=second"])?;
    ensure!(events.contains(&mac) && events.contains("192.0.2.201"), "{events}");
    wait_until(SOON, "the pool to report the conflict", async || {
        let pool = world.get_pool("lan").await?.status.unwrap_or_default();
        let condition = pool.conditions.iter().find(|condition| condition.type_ == "Conflict");
        let condition = condition.context("no condition yet")?;
        ensure!(condition.message.contains(&format!("192.0.2.201 by {mac}")), "{condition:?}");
        Ok(())
    })
    .await?;

    // A Service that requests an address of another host gets it, and its condition names the host. The address is
    // announced after the host no longer uses it.
    world.declare(Fault::conflict("192.0.2.205".parse()?));
    conflicting.add_address("192.0.2.205")?;
    world.create_service("named", json!({"selector": {"app": "web"}, "loadBalancerIP": "192.0.2.205"})).await?;
    wait_for(&format!("{ANNOUNCED}=false"), "named")?;
    expect_announced(&world, "named", "False", "Conflict", &["192.0.2.205", &mac, "eth0"]).await?;
    let status = world.run_landfall(&["status"])?;
    ensure!(status.contains(&format!("Conflict: 192.0.2.205 is not announced, because {mac}")), "{status}");
    conflicting.delete_address("192.0.2.205")?;
    expect_announced(&world, "named", "True", "Announced", &["192.0.2.205 by "]).await?;
    ensure!(world.wait_for_address("named").await?.to_string() == "192.0.2.205");

    // Another host starts to use an announced address: the Service keeps it.
    world.declare(Fault::conflict(free));
    conflicting.add_address("192.0.2.202")?;
    conflicting.host.output(["arping", "-q", "-U", "-c", "2", "-I", "eth0", "192.0.2.202"])?;
    expect_announced(&world, "second", "True", "Conflict", &["192.0.2.202 by ", &mac]).await?;
    conflicting.delete_address("192.0.2.202")?;
    ensure!(world.wait_for_address("second").await? == free);

    // An advertisement selects no node, and is deleted again.
    let no_node = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "L2Advertisement", "metadata": {"name": "no-node"},
        "spec": {"nodeSelectors": [{"matchLabels": {"e2e.landfall.dev/none": "true"}}]},
    });
    world.cluster.apply(&no_node.to_string())?;
    expect_announced(&world, "web", "False", "NoEligibleNode", &["none of them selects a node"]).await?;
    kubectl(&["delete", "l2advertisement", "no-node"])?;
    let second = expect_announced(&world, "web", "True", "Announced", &[&format!("{address} by ")]).await?;
    ensure!(second.last_transition_time.0 > first.last_transition_time.0, "{second:?} after {first:?}");
    world.end()
}
