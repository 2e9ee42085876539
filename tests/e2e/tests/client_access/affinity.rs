//! Clients that stay with their endpoint (`sessionAffinity: ClientIP`): under both traffic policies, wherever the address
//! moves, and for no longer than the Service says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::world::SOON;
use e2e::{Over, World};
use lab::{Answer, Host, wait_until};
use serde_json::{Value, json};

use crate::addresses;

/// The nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The Deployment with two pods on this node.
pub fn pods_on(node: &str) -> String {
    format!("on-{node}")
}

/// For how long clients of a Service that forgets them soon are remembered.
const REMEMBERED: Duration = Duration::from_secs(3);

pub async fn a_client_that_was_away_for_longer_than_the_service_says_is_forgotten(world: &World) -> Result<()> {
    let config = json!({"clientIP": {"timeoutSeconds": REMEMBERED.as_secs()}});
    let spec = json!({
        "selector": {"app": pods_on("n1")}, "sessionAffinity": "ClientIP", "sessionAffinityConfig": config,
    });
    world.service("forgetful", spec).await?;
    let address = world.address("forgetful").await?;
    let first = wait_until(SOON, "one of two pods to answer", async || {
        let pods = world.lan.pods(15, address)?;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(pods)
    })
    .await?;
    // Each time it comes back it goes to either of them.
    wait_until(2 * SOON, "the other pod to answer who was away", async || {
        tokio::time::sleep(REMEMBERED + Duration::from_secs(1)).await;
        let pods = world.lan.pods(1, address)?;
        ensure!(pods != first, "{pods:?} again");
        Ok(())
    })
    .await?;
    world.delete_service("forgetful").await
}

/// Who answers, at each address and over each protocol.
type Known = BTreeMap<(IpAddr, Over), BTreeSet<String>>;

/// A client that asks all the time and keeps who answered.
struct Client {
    over: Arc<AtomicBool>,
    known: Arc<Mutex<Known>>,
    asks: Vec<JoinHandle<Result<()>>>,
}

impl Client {
    fn begin(host: &Host, both: [IpAddr; 2]) -> Self {
        let (over, known) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Known::new())));
        let asks = each(both).map(|(address, by)| {
            let (host, over, known) = (host.clone(), Arc::clone(&over), Arc::clone(&known));
            std::thread::spawn(move || {
                host.run(|| {
                    while !over.load(Ordering::Relaxed) {
                        // Whether it is answered is not what this is about.
                        if let Ok(answer) = ask(address, by) {
                            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                            known.entry((address, by)).or_default().insert(answer.pod);
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                })
            })
        });
        let asks = asks.collect();
        Self { over, known, asks }
    }

    /// Waits until everything it asks for was answered at least once more, and returns by whom it has ever been.
    async fn hears(&self) -> Result<Known> {
        let before = std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner));
        let mut heard = wait_until(SOON, "the client to be answered", async || {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ensure!(known.len() == self.asks.len(), "only {known:?}");
            Ok(known)
        })
        .await?;
        for (what, pods) in before {
            heard.entry(what).or_default().extend(pods);
        }
        Ok(heard)
    }

    fn end(&mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.asks.drain(..).try_for_each(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn each(both: [IpAddr; 2]) -> impl Iterator<Item = (IpAddr, Over)> {
    both.into_iter().flat_map(|address| [(address, Over::Tcp), (address, Over::Udp)])
}

fn ask(address: IpAddr, over: Over) -> std::io::Result<Answer> {
    let target = SocketAddr::new(address, 80);
    match over {
        Over::Tcp => Answer::over_tcp(target, Duration::from_secs(1)),
        Over::Udp => Answer::over_udp(target, Duration::from_secs(1)),
    }
}

/// Waits until, of fifteen who ask, each address over each protocol gets to several pods, or to one. Who answered.
async fn answered(world: &World, both: [IpAddr; 2], what: &str, several: bool) -> Result<Known> {
    let client = world.cluster.client_host("c1");
    wait_until(SOON, &format!("{what} to answer"), async || {
        let mut known = Known::new();
        for (address, over) in each(both) {
            let answers =
                client.run(|| (0..15).map(|_| Ok(ask(address, over)?.pod)).collect::<Result<BTreeSet<_>>>())?;
            let pods = answers?;
            ensure!(!pods.is_empty() && (pods.len() > 1) == several, "{pods:?} over {over:?} at {address}");
            known.insert((address, over), pods);
        }
        Ok(known)
    })
    .await
}

/// Has this node announce all addresses, and waits until it does.
async fn move_to(world: &World, both: [IpAddr; 2], node: &str) -> Result<()> {
    let this = json!({"matchLabels": {"kubernetes.io/hostname": node}});
    let advertisement = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "L2Advertisement", "metadata": {"name": "mover"},
        "spec": {"nodeSelectors": [this]},
    });
    world.cluster.apply(&advertisement.to_string())?;
    for address in both {
        wait_until(SOON, &format!("{node} to announce {address}"), async || {
            let announcer = world.announcer(address).await?;
            ensure!(announcer == node, "{announcer} does");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

pub async fn a_client_stays_under_both_policies_and_wherever_the_address_moves(world: &World) -> Result<()> {
    world.kubectl(&["label", "pods", "--selector", "app in (on-n1, on-n2, on-n3)", "role=steady"])?;
    let spec = json!({"selector": {"role": "steady"}, "ipFamilyPolicy": "RequireDualStack"});
    world.service("steady", spec).await?;
    let both = addresses(world, "steady").await?;
    let host = world.cluster.client_host("c1");
    let (mut stays, mut away) = (Known::new(), "");
    for policy in ["Cluster", "Local"] {
        let affinity = |affinity: &str| -> Value {
            json!({"spec": {"externalTrafficPolicy": policy, "sessionAffinity": affinity}})
        };
        for (kind, what, several) in [
            ("None", "several pods", true),
            ("ClientIP", "one pod", false),
            ("None", "several pods again", true),
            ("ClientIP", "one pod again", false),
        ] {
            world.patch_service("steady", affinity(kind)).await?;
            stays = answered(world, both, &format!("under {policy}, {what}"), several).await?;
        }
        let mut client = Client::begin(&host, both);
        for node in NODES {
            move_to(world, both, node).await?;
            let heard = client.hears().await?;
            ensure!(heard == stays, "under {policy}, with the address on {node}: {heard:?}, and not {stays:?}");
        }
        client.end()?;
        // One that has nothing to do with this client but to announce.
        let mut nodes = BTreeMap::new();
        for node in NODES {
            nodes.extend(world.pods(&pods_on(node)).await?);
        }
        let busy: BTreeSet<&str> = stays.values().flatten().filter_map(|pod| Some(&**nodes.get(pod)?)).collect();
        away = NODES.into_iter().find(|node| !busy.contains(node)).context("the client is on every node")?;
    }

    // The node that announces dies. The client's neighbour entries are as fresh as can be.
    move_to(world, both, away).await?;
    world.kubectl(&["delete", "l2advertisement", "mover"])?;
    let mut client = Client::begin(&host, both);
    client.hears().await?;
    world.cluster.power_off(away)?;
    for address in both {
        wait_until(SOON, &format!("another node than {away} to say that it announces {address}"), async || {
            let node = world.announcer(address).await?;
            ensure!(node != away, "still {node}");
            Ok(())
        })
        .await?;
    }
    let heard = client.hears().await?;
    ensure!(heard == stays, "after the death of {away}: {heard:?}, and not {stays:?}");
    client.end()
}
