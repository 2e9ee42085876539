//! Who answers for an address when a node dies and when it comes back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::world::SOON;
use e2e::{Lan, World};
use lab::{Topology, wait_until};
use serde_json::json;

/// How soon another node must answer when the announcer dies. It takes a fraction of a second; the rest is for a machine that is
/// busy with something else, and less than Kubernetes needs to notice.
const TAKEOVER: Duration = Duration::from_secs(5);

/// Asks all the time who answers ARP for an address.
struct Inquiry {
    stop: Sender<()>,
    rounds: JoinHandle<Result<Vec<BTreeSet<String>>>>,
}

impl Inquiry {
    fn begin(lan: Lan, address: IpAddr) -> Self {
        let (stop, stopped) = channel();
        let rounds = std::thread::spawn(move || {
            let mut rounds = Vec::new();
            let begun = Instant::now();
            while stopped.try_recv().is_err() && begun.elapsed() < 4 * SOON {
                rounds.push(lan.macs(address)?);
            }
            Ok(rounds)
        });
        Self { stop, rounds }
    }

    /// Ends it, and returns who answered in each round.
    fn end(self) -> Result<Vec<BTreeSet<String>>> {
        self.stop.send(()).context("the inquiry has ended by itself")?;
        self.rounds.join().map_err(|_| anyhow!("the inquiry panicked"))?
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_announcer_dies_another_node_answers_and_never_two_at_once() -> Result<()> {
    let world = World::with_landfall("e2e-death", Topology::default()).await?;
    world.pool("lan", &["192.0.2.200-192.0.2.203"]).await?;
    world.whoami("web", 3).await?;
    world.service("web", json!({})).await?;
    let address = world.address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.tcp(address)).await?;
    let first = world.announcer(address).await?;
    let mac = |node: &str| world.cluster.node(node).mac().map(|mac| BTreeSet::from([mac.to_lowercase()]));
    let seen = world.lan.macs(address)?;
    ensure!(Some(&seen) == mac(&first).as_ref(), "{first} announces, but {seen:?} answer");

    world.cluster.power_off(&first)?;
    let died = Instant::now();
    // A third of the questions go to the dead node's pod, until Kubernetes knows; another one follows at once.
    let lan = &world.lan;
    wait_until(TAKEOVER, "another node to answer", async || lan.udp_within(address, Duration::from_millis(50))).await?;
    eprintln!("{address} answered again {:?} after {first} lost its power", died.elapsed());
    let inquiry = Inquiry::begin(world.lan.clone(), address);
    let second = wait_until(SOON, "another node to say that it announces", async || {
        let node = world.announcer(address).await?;
        ensure!(node != first, "still {node}");
        Ok(node)
    })
    .await?;

    // The node comes back, and takes nothing back: nobody but the second has answered when its agent has long been up.
    world.cluster.power_on(&first)?;
    world.wait_until_installed().await?;
    let agent = world.cluster.node(&first);
    wait_until(SOON, "the agent of the node that came back", async || {
        ensure!(!agent.processes("landfall node").is_empty());
        Ok(())
    })
    .await?;
    let since = Instant::now();
    wait_until(SOON, "the announcer to stay", async || {
        let node = world.announcer(address).await?;
        ensure!(node == second && since.elapsed() > Duration::from_secs(4), "{node} for {:?}", since.elapsed());
        Ok(())
    })
    .await?;
    let rounds = inquiry.end()?;
    let expected = mac(&second).context("a node has a MAC")?;
    ensure!(rounds.len() >= 3 && rounds.iter().all(|round| *round == expected), "{second} is {expected:?}: {rounds:?}");
    world.end()
}
