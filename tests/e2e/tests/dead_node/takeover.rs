//! The node that answers for an address after the death of its announcer, and after the dead node has restarted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::world::SOON;
use e2e::{LanClient, World};
use lab::{Topology, wait_until};
use serde_json::json;

/// Limit for the first answer of another node. A takeover takes a fraction of a second; the rest is for a busy machine.
/// Kubernetes needs more time than this limit to notice the death.
const TAKEOVER: Duration = Duration::from_secs(5);

/// A thread that continuously sends ARP requests for an address.
struct ArpProber {
    stop_tx: Sender<()>,
    replies: JoinHandle<Result<Vec<BTreeSet<String>>>>,
}

impl ArpProber {
    fn start(lan: LanClient, address: IpAddr) -> Self {
        let (stop_tx, stop_rx) = channel();
        let replies = std::thread::spawn(move || {
            let mut replies = Vec::new();
            let start = Instant::now();
            while stop_rx.try_recv().is_err() && start.elapsed() < 4 * SOON {
                replies.push(lan.arp_macs(address)?);
            }
            Ok(replies)
        });
        Self { stop_tx, replies }
    }

    /// Stops the thread, and returns the replying MAC addresses of each round.
    fn stop(self) -> Result<Vec<BTreeSet<String>>> {
        self.stop_tx.send(()).context("the ARP prober has ended by itself")?;
        self.replies.join().map_err(|_| anyhow!("the ARP prober panicked"))?
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_other_node_answers_after_the_announcer_dies() -> Result<()> {
    let world = World::with_landfall("e2e-death", Topology::default()).await?;
    world.create_pool("lan", &["192.0.2.200-192.0.2.203"]).await?;
    world.create_whoami("web", 3).await?;
    world.create_service("web", json!({})).await?;
    let address = world.wait_for_address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    let first = world.wait_for_announcer(address).await?;
    let mac = |node: &str| world.cluster.node(node).mac().map(|mac| BTreeSet::from([mac.to_lowercase()]));
    let seen = world.lan.arp_macs(address)?;
    ensure!(Some(&seen) == mac(&first).as_ref(), "{first} announces, but {seen:?} answer");

    world.power_off(&first)?;
    let died = Instant::now();
    // A third of the requests is sent to the pod of the dead node until Kubernetes notices the death. After such a
    // request the next attempt follows at once.
    let lan = &world.lan;
    wait_until(TAKEOVER, "another node to answer", async || lan.query_udp_within(address, Duration::from_millis(50)))
        .await?;
    eprintln!("{address} answered again {:?} after {first} lost its power", died.elapsed());
    let prober = ArpProber::start(world.lan.clone(), address);
    let second = wait_until(SOON, "the record to name another node", async || {
        let node = world.wait_for_announcer(address).await?;
        ensure!(node != first, "still {node}");
        Ok(node)
    })
    .await?;

    // The restarted node does not take the address back: only the second node answers, also after the agent has run for
    // a while.
    world.cluster.power_on(&first)?;
    world.wait_until_installed().await?;
    let restarted = world.cluster.node(&first);
    wait_until(SOON, "the agent of the restarted node", async || {
        ensure!(!restarted.processes("landfall node").is_empty());
        Ok(())
    })
    .await?;
    let since = Instant::now();
    wait_until(SOON, "the announcer to stay", async || {
        let node = world.wait_for_announcer(address).await?;
        ensure!(node == second && since.elapsed() > Duration::from_secs(4), "{node} for {:?}", since.elapsed());
        Ok(())
    })
    .await?;
    let rounds = prober.stop()?;
    let expected = mac(&second).context("a node has a MAC address")?;
    ensure!(rounds.len() >= 3 && rounds.iter().all(|round| *round == expected), "{second} is {expected:?}: {rounds:?}");
    world.end()
}
