//! Shows Landfall step by step: a cluster starts, a Service stays pending, Landfall is installed, the Service gets an
//! address that answers, a node dies, and the address keeps answering.
//!
//! Every command runs, and every output shown is its real output.

mod story;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::World;
use e2e::world::{SOON, ingress};
use lab::{Topology, wait_until};
use load::{Clock, Prober, Transport, Try, TryPlan};
use serde_json::json;

use crate::story::Story;

/// Without Landfall, the Service is watched for this long.
const PENDING: Duration = Duration::from_secs(4);

/// Interval between two requests of the client while the node dies.
const REQUEST_INTERVAL: Duration = Duration::from_millis(10);

/// The client sends requests for this time before the node dies.
const LEAD_TIME: Duration = Duration::from_millis(500);

/// A request without an answer for this long is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Show Landfall on a real three-node Kubernetes cluster on this machine.
#[derive(Debug, Parser)]
struct Demo {
    /// Name of the cluster. An existing cluster of that name is removed first.
    #[arg(default_value = "demo")]
    name: String,

    /// Remove the cluster at the end.
    #[arg(long)]
    clean: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let demo = Demo::parse();
    let story = Story::new();
    let start = Instant::now();

    story.chapter("1. A cluster of three nodes");
    story.explain("etcd, API server, controller manager, scheduler; on each node containerd, kubelet, kube-proxy.");
    story.explain("Every machine is a network namespace. A switch connects them and a client on the LAN.");
    let world =
        World::without_landfall_detached(&demo.name, Topology::default(), |step| Story::new().explain(step)).await?;
    story.find(&format!("three nodes are Ready after {:.1} s", start.elapsed().as_secs_f64()));
    let nodes = ["get", "nodes", "-o", "wide"];
    story.command("kubectl get nodes -o wide", &columns(&world.kubectl(&nodes)?, 6));

    let result = show_landfall(&story, &world).await;
    if demo.clean {
        world.end()?;
        story.chapter("The cluster is removed.");
    } else if let Ok(address) = result {
        show_next_commands(&story, &world, address);
    }
    result.map(drop)
}

/// Plays the chapters with Landfall. Returns the Service's address.
async fn show_landfall(story: &Story, world: &World) -> Result<IpAddr> {
    show_pending(story, world).await?;
    let address = show_installation(story, world).await?;
    show_answers(story, world, address).await?;
    show_takeover(story, world, address).await?;
    Ok(address)
}

async fn show_pending(story: &Story, world: &World) -> Result<()> {
    story.chapter("2. A Service without Landfall");
    story.explain(
        "Three pods that answer with their name and the client's address, and a LoadBalancer Service for them.",
    );
    world.create_whoami("web", 3).await?;
    world.create_service("web", json!({})).await?;
    story.command("kubectl get service web", &world.kubectl(&["get", "service", "web"])?);
    let since = Instant::now();
    let appeared = wait_until(PENDING, "an address", async || {
        let address = ingress(&world.get_service("web").await?);
        address.first().copied().context("pending")
    });
    ensure!(appeared.await.is_err(), "the Service has an address without Landfall");
    story.command("kubectl get service web", &world.kubectl(&["get", "service", "web"])?);
    let waited = since.elapsed().as_secs();
    story.find(&format!("{waited} s later EXTERNAL-IP is still <pending>: no controller assigns addresses"));
    Ok(())
}

async fn show_installation(story: &Story, world: &World) -> Result<IpAddr> {
    story.chapter("3. Landfall is installed");
    let since = Instant::now();
    world.install().await?;
    story.command("kubectl apply -f deploy/landfall.yaml", "");
    let pods = ["-n", e2e::world::SYSTEM, "get", "pods", "-o", "wide"];
    story.command("kubectl -n landfall-system get pods -o wide", &columns(&world.kubectl(&pods)?, 7));
    story.explain(&format!(
        "Landfall runs after {:.1} s, and a condition of the Service reports the missing pool:",
        since.elapsed().as_secs_f64()
    ));
    let refusal = world.wait_for_refusal("web").await?;
    story.find(&format!("{}: {}", refusal.reason, refusal.message));
    story.explain("A pool gives Landfall unused addresses of the LAN:");
    // Measured from the end of this request: the first object of a new kind can take the API server two seconds.
    world.create_pool("lan", &["192.0.2.200-192.0.2.250"]).await?;
    let since = Instant::now();
    let address = world.wait_for_address("web").await?;
    let appeared = since.elapsed();
    let lan = &world.lan;
    wait_until(SOON, "the first answer", async || lan.query_tcp(address)).await?;
    let answered = since.elapsed();
    story.command("kubectl get service web", &world.kubectl(&["get", "service", "web"])?);
    story.find(&format!(
        "the Service has {address} {:.0} ms after the pool, and a client on the LAN has an answer after {:.0} ms",
        appeared.as_secs_f64() * 1e3,
        answered.as_secs_f64() * 1e3
    ));
    Ok(address)
}

async fn show_answers(story: &Story, world: &World, address: IpAddr) -> Result<()> {
    story.chapter("4. A client on the LAN");
    story.explain(&format!(
        "The client c1 is {}. Each pod answers with its name and the client's address:",
        world.lan.address()
    ));
    let announcer = world.wait_for_announcer(address).await?;
    let nodes: BTreeMap<_, _> = world.pod_nodes("web").await?.into_iter().collect();
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        let answer = world.lan.query_tcp(address)?;
        seen.entry(answer.pod.clone()).or_insert(answer);
        if seen.len() == nodes.len() {
            break;
        }
    }
    for (pod, answer) in seen {
        let node = nodes.get(&pod).map_or("?", String::as_str);
        let printed = format!("{pod} {}\n      (a pod on {node})", answer.client);
        story.command(&format!("curl http://{address}"), &printed);
    }
    story.find(&format!(
        "{announcer} announces the address and re-sends frames to the pods' nodes: each pod sees the client's address"
    ));
    story.command("landfall status", &world.run_landfall(&["status"])?);
    Ok(())
}

async fn show_takeover(story: &Story, world: &World, address: IpAddr) -> Result<()> {
    story.chapter("5. A node dies");
    let first = world.wait_for_announcer(address).await?;
    let milliseconds = REQUEST_INTERVAL.as_millis();
    story.explain(&format!("{first} loses its power now, while the client sends a request every {milliseconds} ms."));
    // The requests are datagrams, which need no connection.
    let (clock, client) = (Clock::start(), world.cluster.client_host("c1").netns()?);
    let plan = TryPlan::new(SocketAddr::new(address, 80), Transport::Udp);
    let plan = TryPlan { interval: REQUEST_INTERVAL, timeout: ANSWER_TIMEOUT, ..plan };
    let prober = Prober::start(plan, Some(&client), clock);
    tokio::time::sleep(LEAD_TIME).await;
    // A power-off begins with the cut of the cable, and returns much later.
    let cut = clock.now();
    world.cluster.power_off(&first)?;
    let second = wait_until(SOON, "another announcer", async || {
        let node = world.wait_for_announcer(address).await?;
        ensure!(node != first, "still {node}");
        Ok(node)
    })
    .await?;
    wait_until(SOON, "an answer", async || world.lan.query_udp(address)).await?;
    // The client sends requests for two more seconds, so that later losses are counted.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let record = tokio::task::block_in_place(|| prober.stop())?;
    let outage = record.longest_gap_after(cut).context("no answer after the death")?;
    let after: Vec<&Try> = record.tries.iter().filter(|one| one.started >= outage.to).collect();
    let lost = after.iter().filter(|one| !one.outcome.is_answered()).count();
    story.find(&format!(
        "{second} took the address over: the client had no answer for {:.0} ms",
        outage.length().as_secs_f64() * 1e3
    ));
    if lost > 0 {
        story.explain(&format!(
            "({lost} of the {} requests after that were lost, while the dead node's pod was still an endpoint.)",
            after.len()
        ));
    }
    story.command("landfall status", &world.run_landfall(&["status"])?);
    Ok(())
}

fn show_next_commands(story: &Story, world: &World, address: IpAddr) {
    let name = world.cluster.name();
    story.chapter("6. Try it yourself");
    story.explain("The cluster stays up. From this folder:");
    story.command(&format!("export KUBECONFIG={}", world.cluster.kubeconfig().display()), "");
    story.command("target/debug/lab kubectl demo -- get pods -A".replace("demo", name).as_str(), "");
    story.command(&format!("target/debug/lab exec {name} c1 -- curl -s http://{address}"), "");
    story.command("target/x86_64-unknown-linux-musl/release/landfall status", "");
    story.command(
        &format!("target/debug/lab power-on {name} NODE    (also: power-off, cut, heal, freeze, capture; --help)"),
        "",
    );
    story.command(&format!("make lab-down NAME={name}    (removes the cluster)"), "");
}

/// The first columns of a table: the others are too wide for a terminal.
fn columns(table: &str, count: usize) -> String {
    let header = table.lines().next().unwrap_or_default();
    // A column starts where its title starts, after at least two blanks.
    let starts = header.char_indices().filter(|(at, c)| *c != ' ' && (*at == 0 || header[..*at].ends_with("  ")));
    let end = starts.map(|(at, _)| at).nth(count).unwrap_or(usize::MAX);
    table.lines().map(|line| line.chars().take(end).collect::<String>().trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_is_cut_between_columns() {
        let table = "NAME   STATUS   EXTERNAL-IP   AGE\nn1     Ready    <none>        3s\n";
        assert_eq!(columns(table, 2), "NAME   STATUS\nn1     Ready\n");
        assert_eq!(columns(table, 9), table);
    }
}
