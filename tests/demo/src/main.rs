//! Landfall told as a story: a cluster comes up, a Service waits in vain, Landfall arrives, the address appears and
//! answers, a node dies, and the address goes on answering.
//!
//! Everything that is shown happens: what looks like a command's output is one.

mod story;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::World;
use e2e::world::{SOON, ingress};
use lab::{Topology, wait_until};
use serde_json::json;

use crate::story::Story;

/// How long to watch a Service stay pending before believing it.
const IN_VAIN: Duration = Duration::from_secs(4);

/// How often the client asks while the node dies.
const BEAT: Duration = Duration::from_millis(10);

/// Show what Landfall does, on a real three-node Kubernetes on this machine.
#[derive(Debug, Parser)]
struct Demo {
    /// The name of the cluster. One of that name is removed first.
    #[arg(default_value = "demo")]
    name: String,

    /// Remove the cluster at the end, and leave nothing behind.
    #[arg(long)]
    clean: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let demo = Demo::parse();
    let story = Story::new();
    let begun = Instant::now();

    story.chapter("1. A cluster of three nodes");
    story.tell("etcd, API server, controller manager, scheduler; on each node containerd, kubelet, kube-proxy.");
    story.tell("Every machine is a network namespace; a switch joins them with a client on the LAN.");
    let world = World::to_stay(&demo.name, Topology::default(), |step| Story::new().tell(step)).await?;
    story.find(&format!("three nodes are Ready after {:.1} s", begun.elapsed().as_secs_f64()));
    let nodes = ["get", "nodes", "-o", "wide"];
    story.command("kubectl get nodes -o wide", &columns(&world.kubectl(&nodes)?, 6));

    let told = tell(&story, &world).await;
    if demo.clean {
        world.end()?;
        story.chapter("The cluster is gone, and nothing of it is left.");
    } else if let Ok(address) = told {
        yours(&story, &world, address);
    }
    told.map(drop)
}

/// The chapters with Landfall, and the address that they are about.
async fn tell(story: &Story, world: &World) -> Result<IpAddr> {
    waits_in_vain(story, world).await?;
    let address = arrives(story, world).await?;
    answers(story, world, address).await?;
    survives(story, world, address).await?;
    Ok(address)
}

async fn waits_in_vain(story: &Story, world: &World) -> Result<()> {
    story.chapter("2. A Service waits");
    story.tell("Three pods that tell who they are and who asks; a Service of type LoadBalancer for them.");
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    story.command("kubectl get service web", &world.kubectl(&["get", "service", "web"])?);
    let since = Instant::now();
    let appeared = wait_until(IN_VAIN, "an address that nobody gives", async || {
        let address = ingress(&world.get_service("web").await?);
        address.first().copied().context("pending")
    });
    ensure!(appeared.await.is_err(), "the Service has an address without Landfall");
    story.command("kubectl get service web", &world.kubectl(&["get", "service", "web"])?);
    let waited = since.elapsed().as_secs();
    story.find(&format!(
        "{waited} s later EXTERNAL-IP is still <pending>, and would be for ever: nobody is there to give one"
    ));
    Ok(())
}

async fn arrives(story: &Story, world: &World) -> Result<IpAddr> {
    story.chapter("3. Landfall arrives");
    let since = Instant::now();
    world.install().await?;
    story.command("kubectl apply -f deploy/", "");
    let pods = ["-n", e2e::world::SYSTEM, "get", "pods", "-o", "wide"];
    story.command("kubectl -n landfall-system get pods -o wide", &columns(&world.kubectl(&pods)?, 7));
    story.tell(&format!(
        "It runs after {:.1} s, and says on the Service what is missing:",
        since.elapsed().as_secs_f64()
    ));
    let refusal = world.refused("web").await?;
    story.find(&format!("{}: {}", refusal.reason, refusal.message));
    story.tell("So it gets some addresses of the LAN to give away:");
    // The clock starts when the API server has taken the pool: the first object of a kind that has just been defined can
    // take it two seconds.
    world.pool("lan", &["192.0.2.200-192.0.2.250"]).await?;
    let since = Instant::now();
    let address = world.address("web").await?;
    let appeared = since.elapsed();
    let lan = &world.lan;
    wait_until(SOON, "the first answer", async || lan.tcp(address)).await?;
    let answered = since.elapsed();
    story.command("kubectl get service web", &world.kubectl(&["get", "service", "web"])?);
    story.find(&format!(
        "{address} is there {:.0} ms after the pool, and answered a client on the LAN after {:.0} ms",
        appeared.as_secs_f64() * 1e3,
        answered.as_secs_f64() * 1e3
    ));
    Ok(address)
}

async fn answers(story: &Story, world: &World, address: IpAddr) -> Result<()> {
    story.chapter("4. Somebody on the LAN asks");
    story.tell(&format!(
        "The client c1 is {}. Each pod answers with its name, and with whom it saw:",
        world.lan.address()
    ));
    let announcer = world.announcer(address).await?;
    let nodes: BTreeMap<_, _> = world.pods("web").await?.into_iter().collect();
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        let answer = world.lan.tcp(address)?;
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
        "{announcer} announces the address, and hands frames to the nodes of the pods: each sees the client itself"
    ));
    story.command("landfall status", &world.landfall(&["status"])?);
    Ok(())
}

async fn survives(story: &Story, world: &World, address: IpAddr) -> Result<()> {
    story.chapter("5. A node dies");
    let first = world.announcer(address).await?;
    story.tell(&format!("{first} loses its power now, while the client asks every {} ms.", BEAT.as_millis()));
    let lan = world.lan.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    // One thread asks, with datagrams, for these wait for nothing; what it asked and when it was answered is kept.
    let asking = std::thread::spawn(move || {
        let mut asked = Vec::new();
        let began = Instant::now();
        while stopped.try_recv().is_err() && began.elapsed() < SOON {
            let sent = Instant::now();
            asked.push((sent, lan.udp_within(address, BEAT).is_ok()));
            std::thread::sleep(BEAT.saturating_sub(sent.elapsed()));
        }
        asked
    });
    world.cluster.power_off(&first)?;
    let died = Instant::now();
    let second = wait_until(SOON, "another announcer", async || {
        let node = world.announcer(address).await?;
        ensure!(node != first, "still {node}");
        Ok(node)
    })
    .await?;
    wait_until(SOON, "an answer", async || world.lan.udp(address)).await?;
    // A little longer, to see how it goes on.
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.send(()).context("the client has stopped by itself")?;
    let asked = asking.join().map_err(|_| anyhow::anyhow!("the client failed"))?;
    let answered = |from: Instant| asked.iter().filter(move |(sent, ok)| *ok && *sent >= from).map(|(sent, _)| *sent);
    let last = asked.iter().filter(|(sent, ok)| *ok && *sent < died).map(|(sent, _)| *sent).max().unwrap_or(died);
    let next = answered(died).next().context("no answer after the death")?;
    let after: Vec<bool> = asked.iter().filter(|(sent, _)| *sent >= next).map(|(_, ok)| *ok).collect();
    let lost = after.iter().filter(|ok| !**ok).count();
    story.find(&format!(
        "{second} took the address over: the client heard nothing for {:.0} ms, then answers again",
        next.duration_since(last).as_secs_f64() * 1e3
    ));
    if lost > 0 {
        story.tell(&format!(
            "({lost} of the {} questions after that were lost, before the dead node's pod got no more of them.)",
            after.len()
        ));
    }
    story.command("landfall status", &world.landfall(&["status"])?);
    Ok(())
}

fn yours(story: &Story, world: &World, address: IpAddr) {
    let name = world.cluster.name();
    story.chapter("6. It is yours now");
    story.tell("The cluster stays up. From this folder:");
    story.command(&format!("export KUBECONFIG={}", world.cluster.kubeconfig().display()), "");
    story.command("target/debug/lab kubectl demo -- get pods -A".replace("demo", name).as_str(), "");
    story.command(&format!("target/debug/lab exec {name} c1 -- curl -s http://{address}"), "");
    story.command("target/x86_64-unknown-linux-musl/release/landfall status", "");
    story.command(
        &format!("target/debug/lab power-on {name} NODE    (also: power-off, cut, heal, freeze, capture; --help)"),
        "",
    );
    story.command(&format!("make lab-down NAME={name}    (and nothing is left)"), "");
}

/// The first columns of a table: the rest is too wide for a story.
fn columns(table: &str, count: usize) -> String {
    let header = table.lines().next().unwrap_or_default();
    // A column begins where its title begins, after two blanks at least.
    let starts = header.char_indices().filter(|(at, c)| *c != ' ' && (*at == 0 || header[..*at].ends_with("  ")));
    let end = starts.map(|(at, _)| at).nth(count).unwrap_or(usize::MAX);
    table.lines().map(|line| line.chars().take(end).collect::<String>().trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_cut_at_a_column() {
        let table = "NAME   STATUS   EXTERNAL-IP   AGE\nn1     Ready    <none>        3s\n";
        assert_eq!(columns(table, 2), "NAME   STATUS\nn1     Ready\n");
        assert_eq!(columns(table, 9), table);
    }
}
