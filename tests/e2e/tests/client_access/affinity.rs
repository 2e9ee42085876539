//! Session affinity (`sessionAffinity: ClientIP`): under both traffic policies, when the address moves, and until the
//! timeout of the Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::world::SOON;
use e2e::{Transport, World};
use lab::{Answer, Host, wait_until};
use load::{Clock, Prober, TryPlan};
use serde_json::{Value, json};

use super::wait_for_both_addresses;

pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The Deployment with two pods on this node.
pub fn pods_on(node: &str) -> String {
    format!("on-{node}")
}

/// The affinity timeout of a Service.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(3);

pub async fn affinity_ends_after_its_timeout(world: &World) -> Result<()> {
    let config = json!({"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT.as_secs()}});
    let spec = json!({
        "selector": {"app": pods_on("n1")}, "sessionAffinity": "ClientIP", "sessionAffinityConfig": config,
    });
    world.create_service("forgetful", spec).await?;
    let address = world.wait_for_address("forgetful").await?;
    let first = wait_until(SOON, "one of two pods to answer", async || {
        let pods = world.lan.answering_pods(15, address)?;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(pods)
    })
    .await?;
    // After each timeout the client gets one of the two pods at random.
    wait_until(2 * SOON, "the other pod to answer after the timeout", async || {
        tokio::time::sleep(AFFINITY_TIMEOUT + Duration::from_secs(1)).await;
        let pods = world.lan.answering_pods(1, address)?;
        ensure!(pods != first, "{pods:?} again");
        Ok(())
    })
    .await?;
    world.delete_service("forgetful").await
}

/// The answering pods, by address and protocol.
type AnsweringPods = BTreeMap<(IpAddr, Transport), BTreeSet<String>>;

/// Limit of waiting for an answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Time between two requests to an address over one protocol.
const INTERVAL: Duration = Duration::from_millis(20);

/// A client that sends requests all the time, and the answering pods. Lost requests are ignored: this test is about
/// affinity.
struct RecordingClient {
    probers: Vec<((IpAddr, Transport), Prober)>,
    pods: AnsweringPods,
}

impl RecordingClient {
    fn start(host: &Host, both: [IpAddr; 2]) -> Result<Self> {
        let (namespace, clock) = (host.netns()?, Clock::start());
        let start = |(address, transport)| {
            let plan = TryPlan::new(SocketAddr::new(address, 80), transport);
            let plan = TryPlan { interval: INTERVAL, timeout: TIMEOUT, ..plan };
            ((address, transport), Prober::start(plan, Some(&namespace), clock))
        };
        Ok(Self { probers: each_transport(both).map(start).collect(), pods: AnsweringPods::new() })
    }

    /// Waits for another answer at each address over each protocol, and returns all pods that have answered since the
    /// last call.
    async fn wait_for_answers(&mut self) -> Result<AnsweringPods> {
        self.take_pods();
        let mut all = std::mem::take(&mut self.pods);
        wait_until(SOON, "answers to the client", async || {
            self.take_pods();
            ensure!(self.pods.len() == self.probers.len(), "only {:?}", self.pods);
            Ok(())
        })
        .await?;
        for (target, pods) in std::mem::take(&mut self.pods) {
            all.entry(target).or_default().extend(pods);
        }
        Ok(all)
    }

    /// Adds the pods that have answered since the last call.
    fn take_pods(&mut self) {
        for (target, prober) in &self.probers {
            let record = prober.take_record();
            for pod in record.servers() {
                self.pods.entry(*target).or_default().insert(pod.to_owned());
            }
        }
    }

    fn stop(self) -> Result<()> {
        self.probers.into_iter().try_for_each(|(_, prober)| prober.stop().map(drop))
    }
}

fn each_transport(both: [IpAddr; 2]) -> impl Iterator<Item = (IpAddr, Transport)> {
    both.into_iter().flat_map(|address| [(address, Transport::Tcp), (address, Transport::Udp)])
}

fn query(address: IpAddr, transport: Transport) -> std::io::Result<Answer> {
    let target = SocketAddr::new(address, 80);
    match transport {
        Transport::Tcp => Answer::over_tcp(target, TIMEOUT),
        Transport::Udp => Answer::over_udp(target, TIMEOUT),
    }
}

/// Waits until fifteen requests to each address over each protocol reach several pods, or only one. Returns the pods.
async fn wait_for_pods(world: &World, both: [IpAddr; 2], what: &str, several: bool) -> Result<AnsweringPods> {
    let client = world.cluster.client_host("c1");
    wait_until(SOON, &format!("{what} to answer"), async || {
        let mut all = AnsweringPods::new();
        for (address, transport) in each_transport(both) {
            let answers =
                client.run(|| (0..15).map(|_| Ok(query(address, transport)?.pod)).collect::<Result<BTreeSet<_>>>())?;
            let pods = answers?;
            ensure!(!pods.is_empty() && (pods.len() > 1) == several, "{pods:?} over {transport:?} at {address}");
            all.insert((address, transport), pods);
        }
        Ok(all)
    })
    .await
}

/// Lets only this node announce the addresses, and waits until it does.
async fn move_to(world: &World, both: [IpAddr; 2], node: &str) -> Result<()> {
    let this = json!({"matchLabels": {"kubernetes.io/hostname": node}});
    let advertisement = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "L2Advertisement", "metadata": {"name": "mover"},
        "spec": {"nodeSelectors": [this]},
    });
    world.cluster.apply(&advertisement.to_string())?;
    for address in both {
        wait_until(SOON, &format!("{node} to announce {address}"), async || {
            let announcer = world.wait_for_announcer(address).await?;
            ensure!(announcer == node, "{announcer} announces it");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

pub async fn affinity_survives_moves_of_the_address(world: &World) -> Result<()> {
    world.kubectl(&["label", "pods", "--selector", "app in (on-n1, on-n2, on-n3)", "role=steady"])?;
    let spec = json!({"selector": {"role": "steady"}, "ipFamilyPolicy": "RequireDualStack"});
    world.create_service("steady", spec).await?;
    let both = wait_for_both_addresses(world, "steady").await?;
    let host = world.cluster.client_host("c1");
    let (mut expected, mut without_endpoint) = (AnsweringPods::new(), "");
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
            expected = wait_for_pods(world, both, &format!("under {policy}, {what}"), several).await?;
        }
        let mut client = RecordingClient::start(&host, both)?;
        for node in NODES {
            move_to(world, both, node).await?;
            let seen = client.wait_for_answers().await?;
            ensure!(seen == expected, "under {policy}, with the address on {node}: {seen:?}, and not {expected:?}");
        }
        client.stop()?;
        // A node without an endpoint of this client.
        let mut nodes = BTreeMap::new();
        for node in NODES {
            nodes.extend(world.pod_nodes(&pods_on(node)).await?);
        }
        let used: BTreeSet<&str> = expected.values().flatten().filter_map(|pod| Some(&**nodes.get(pod)?)).collect();
        without_endpoint =
            NODES.into_iter().find(|node| !used.contains(node)).context("the client has endpoints on every node")?;
    }

    // The announcing node dies, while the client's neighbour entries are fresh.
    move_to(world, both, without_endpoint).await?;
    world.kubectl(&["delete", "l2advertisement", "mover"])?;
    let mut client = RecordingClient::start(&host, both)?;
    client.wait_for_answers().await?;
    world.power_off(without_endpoint)?;
    for address in both {
        wait_until(SOON, &format!("another node than {without_endpoint} to announce {address}"), async || {
            let node = world.wait_for_announcer(address).await?;
            ensure!(node != without_endpoint, "still {node}");
            Ok(())
        })
        .await?;
    }
    let seen = client.wait_for_answers().await?;
    ensure!(seen == expected, "after the death of {without_endpoint}: {seen:?}, and not {expected:?}");
    client.stop()
}
