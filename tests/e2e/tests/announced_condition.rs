//! What a Service says of who announces its addresses, and what becomes of one that somebody else on the LAN uses.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::SOON;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lab::{Host, Topology, wait_until};
use serde_json::json;

const ANNOUNCED: &str = "landfall.dev/Announced";

/// A host on the LAN that has an address which Landfall was told is free.
struct Stranger {
    host: Host,
}

impl Stranger {
    fn takes(&self, address: &str) -> Result<()> {
        self.host.output(["ip", "address", "add", &format!("{address}/32"), "dev", "eth0"]).map(drop)
    }

    fn leaves(&self, address: &str) -> Result<()> {
        self.host.output(["ip", "address", "del", &format!("{address}/32"), "dev", "eth0"]).map(drop)
    }

    fn mac(&self) -> Result<String> {
        Ok(self.host.mac().context("a client has a MAC")?.to_lowercase())
    }
}

/// Waits until the Service says this of who announces its addresses, with these words in the message.
async fn says(world: &World, name: &str, status: &str, reason: &str, words: &[&str]) -> Result<Condition> {
    wait_until(SOON, &format!("Service {name} to say {ANNOUNCED}={status}, {reason}"), async || {
        let service = world.get_service(name).await?;
        let conditions = service.status.unwrap_or_default().conditions.unwrap_or_default();
        let said = conditions.into_iter().find(|said| said.type_ == ANNOUNCED).context("nothing yet")?;
        let is_this = (said.status.as_str(), said.reason.as_str()) == (status, reason);
        ensure!(is_this && words.iter().all(|word| said.message.contains(word)), "{said:?}");
        Ok(said)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_says_who_announces_it_and_leaves_an_address_that_somebody_else_has() -> Result<()> {
    let world = World::with_landfall("e2e-announced", Topology::default()).await?;
    let stranger = Stranger { host: world.cluster.client_host("c1") };
    let mac = stranger.mac()?;
    let kubectl = |words: &[&str]| world.kubectl(words);
    let wait_for = |condition: &str, name: &str| {
        kubectl(&["wait", &format!("--for=condition={condition}"), &format!("service/{name}"), "--timeout=30s"])
    };

    // Announced: as one waits for it, and with the name of the node.
    world.pool("lan", &["192.0.2.200-192.0.2.209"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    wait_for(ANNOUNCED, "web")?;
    let address = world.address("web").await?;
    let node = world.announcer(address).await?;
    let said = says(&world, "web", "True", "Announced", &[&format!("{address} by {node} (eth0)")]).await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let row = kubectl(&["get", "lbip", "192.0.2.200"])?;
    ensure!(row.contains("ANNOUNCER") && row.contains(&node), "{row}");

    // Somebody has the next address of the pool: the Service gets the one after that, and it answers.
    stranger.takes("192.0.2.201")?;
    world.service("second", json!({"selector": {"app": "web"}})).await?;
    let free: IpAddr = "192.0.2.202".parse()?;
    wait_until(SOON, "the Service to have another address", async || {
        let address = world.address("second").await?;
        ensure!(address == free, "it has {address}");
        Ok(())
    })
    .await?;
    says(&world, "second", "True", "Announced", &["192.0.2.202 by "]).await?;
    wait_until(SOON, "an answer from the other address", async || world.lan.tcp(free)).await?;
    let events = kubectl(&["get", "events", "--field-selector", "reason=AddressConflict,involvedObject.name=second"])?;
    ensure!(events.contains(&mac) && events.contains("192.0.2.201"), "{events}");
    wait_until(SOON, "the pool to say so", async || {
        let pool = world.get_pool("lan").await?.status.unwrap_or_default();
        let said = pool.conditions.iter().find(|condition| condition.type_ == "Conflict").context("nothing yet")?;
        ensure!(said.message.contains(&format!("192.0.2.201 by {mac}")), "{said:?}");
        Ok(())
    })
    .await?;

    // Who asks for such an address by name keeps it, and says whose it is; and is announced once that one is gone.
    stranger.takes("192.0.2.205")?;
    world.service("named", json!({"selector": {"app": "web"}, "loadBalancerIP": "192.0.2.205"})).await?;
    wait_for(&format!("{ANNOUNCED}=false"), "named")?;
    says(&world, "named", "False", "Conflict", &["192.0.2.205", &mac, "eth0"]).await?;
    let status = world.landfall(&["status"])?;
    ensure!(status.contains(&format!("Conflict: 192.0.2.205 is not announced, because {mac}")), "{status}");
    stranger.leaves("192.0.2.205")?;
    says(&world, "named", "True", "Announced", &["192.0.2.205 by "]).await?;
    ensure!(world.address("named").await?.to_string() == "192.0.2.205");

    // Somebody turns up with an address that is in use: it is kept.
    stranger.takes("192.0.2.202")?;
    stranger.host.output(["arping", "-q", "-U", "-c", "2", "-I", "eth0", "192.0.2.202"])?;
    says(&world, "second", "True", "Conflict", &["192.0.2.202 by ", &mac]).await?;
    stranger.leaves("192.0.2.202")?;
    ensure!(world.address("second").await? == free);

    // No node may announce any more, and then every node again.
    let nobody = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "L2Advertisement", "metadata": {"name": "nobody"},
        "spec": {"nodeSelectors": [{"matchLabels": {"e2e.landfall.dev/none": "true"}}]},
    });
    world.cluster.apply(&nobody.to_string())?;
    says(&world, "web", "False", "NoEligibleNode", &["select no node"]).await?;
    kubectl(&["delete", "l2advertisement", "nobody"])?;
    let again = says(&world, "web", "True", "Announced", &[&format!("{address} by ")]).await?;
    ensure!(again.last_transition_time.0 > said.last_transition_time.0, "{again:?} after {said:?}");
    world.end()
}
