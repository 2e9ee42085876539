//! The keys with which nodes seal what they say to each other: made, rotated, deleted; and who has none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use crds::LoadBalancerIP;
use crds::MacAddr;
use e2e::world::{SOON, SYSTEM};
use e2e::{Lan, World};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use lab::{Host, Topology, wait_until};
use serde_json::json;
use speaker::os::socket::{Buffer, Port};
use speaker::wire::datagram;
use speaker::wire::frame::Channel;
use speaker::wire::seal::KeyRing;
use speaker::{Authentication, Keys};

/// The Secret.
const NAME: &str = "landfall-hello-keys";

/// Packets without a seal by a key that the agent has.
const UNSEALED: &str = "landfall_hello_packets_dropped_total{reason=\"unsealed\"}";

/// How long a datagram waits for its answer: who is busy answers late, and who is gone never.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many frames of each kind are forged.
const FORGERIES: usize = 200;

/// Asks all the time, each time as a new client.
struct Probe {
    stop: Sender<()>,
    asked: JoinHandle<Result<usize>>,
}

impl Probe {
    fn begin(lan: Lan, address: IpAddr) -> Self {
        let (stop, stopped) = channel();
        let asked = std::thread::spawn(move || {
            let (mut count, begun) = (0, Instant::now());
            while stopped.try_recv().is_err() && begun.elapsed() < 20 * SOON {
                lan.udp_within(address, PATIENCE).with_context(|| format!("question {count}"))?;
                count += 1;
            }
            Ok(count)
        });
        Self { stop, asked }
    }

    /// Ends it, and returns how many questions there were; all of them were answered.
    fn end(self) -> Result<usize> {
        // If it has ended by itself, it says why.
        self.stop.send(()).ok();
        self.asked.join().map_err(|_| anyhow!("the probe panicked"))?
    }
}

/// A world in which one address is announced, and what must not change about it.
struct Stage {
    world: World,
    address: IpAddr,
    announcers: BTreeSet<(crds::InternedStr, i64)>,
    takeovers: f64,
}

impl Stage {
    async fn set(name: &str) -> Result<Self> {
        let world = World::with_landfall(name, Topology::default()).await?;
        world.pool("lan", &["192.0.2.200/32"]).await?;
        world.whoami("web", 3).await?;
        world.service("web", json!({})).await?;
        let address = world.address("web").await?;
        wait_until(SOON, "an answer", async || world.lan.udp(address)).await?;
        world.announcer(address).await?;
        let mut stage = Self { world, address, announcers: BTreeSet::new(), takeovers: 0.0 };
        (stage.announcers, stage.takeovers) = stage.standing().await?;
        Ok(stage)
    }

    fn nodes(&self) -> impl Iterator<Item = Host> {
        (1..=self.world.cluster.topology().nodes).map(|number| self.world.cluster.node(&format!("n{number}")))
    }

    fn client(&self) -> Host {
        self.world.cluster.client_host("c1")
    }

    /// Who announces the address, with the epoch; and how often any node has taken over any.
    async fn standing(&self) -> Result<(BTreeSet<(crds::InternedStr, i64)>, f64)> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.world.client.clone());
        let object = addresses.get(&crds::address::object_name(self.address)).await?;
        let announcers = object.status.unwrap_or_default().announcers;
        let announcers = announcers.into_iter().map(|announcer| (announcer.node, announcer.epoch)).collect();
        Ok((announcers, self.sum("landfall_takeover_silence_seconds_count")?))
    }

    /// The sum of these numbers over all nodes.
    fn sum(&self, beginning: &str) -> Result<f64> {
        self.nodes().map(|node| self.world.metric_of_agent(&node, beginning)).sum()
    }

    /// Sees to it that the address is where it was, and always has been.
    async fn nothing_has_moved(&self) -> Result<()> {
        let standing = self.standing().await?;
        ensure!(standing == (self.announcers.clone(), self.takeovers), "{standing:?} instead of {:?}", self.announcers);
        Ok(())
    }

    /// Waits until the sum of these numbers is as it should be on each node.
    async fn all_count(&self, beginning: &str, is_good: impl Fn(f64) -> bool) -> Result<()> {
        wait_until(2 * SOON, &format!("every agent to count {beginning} as it should"), async || {
            for node in self.nodes() {
                let count = self.world.metric_of_agent(&node, beginning)?;
                ensure!(is_good(count), "{count} on {}", node.name());
            }
            Ok(())
        })
        .await
    }

    /// Waits until the Secret has so many entries, and returns them.
    async fn entries(&self, is_good: impl Fn(&BTreeMap<String, Vec<u8>>) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
        let secrets: Api<Secret> = Api::namespaced(self.world.client.clone(), SYSTEM);
        wait_until(SOON, "the Secret to have other entries", async || {
            let data = secrets.get(NAME).await?.data.unwrap_or_default();
            let entries: BTreeMap<_, _> = data.into_iter().map(|(name, value)| (name, value.0)).collect();
            ensure!(is_good(&entries), "{:?}", entries.keys());
            Ok(entries)
        })
        .await
    }

    fn annotate(&self, annotation: &str) -> Result<String> {
        self.world.kubectl(&["-n", SYSTEM, "annotate", "--overwrite", "secret", NAME, annotation])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_rotated_and_replaced_without_a_takeover_or_a_lost_answer() -> Result<()> {
    let stage = Stage::set("e2e-keys").await?;
    let first = stage.entries(|entries| entries.len() == 1).await?;
    ensure!(first.values().all(|key| key.len() == 32), "keys of another length");
    let probe = Probe::begin(stage.world.lan.clone(), stage.address);
    // An agent that starts believes nobody until it has a key.
    let refused = stage.sum(UNSEALED)?;

    stage.annotate("landfall.dev/rotate=now")?;
    let both = stage.entries(|entries| entries.len() == 2).await?;
    ensure!(first.iter().all(|(name, key)| both.get(name) == Some(key)), "the first key has gone too early");
    stage.all_count("landfall_hello_keys ", |count| count == 2.0).await?;
    // An hour later.
    stage.annotate("landfall.dev/retire-after=2026-01-01T00:00:00Z")?;
    let second = stage.entries(|entries| entries.len() == 1).await?;
    ensure!(second.iter().all(|(name, key)| both.get(name) == Some(key) && !first.contains_key(name)));
    stage.all_count("landfall_hello_keys ", |count| count == 1.0).await?;

    // Who deletes it gets another one; and an agent that starts then has only that, and is heard.
    stage.world.kubectl(&["-n", SYSTEM, "delete", "secret", NAME])?;
    let third = stage.entries(|entries| entries.len() == 1 && *entries != second).await?;
    ensure!(third.values().all(|key| !second.values().any(|old| old == key)), "it is the same key");
    stage.all_count("landfall_hello_keys_missing", |count| count == 0.0).await?;
    ensure!(stage.sum(UNSEALED)? == refused, "agents have not understood each other");
    let announcers: BTreeSet<&str> = stage.announcers.iter().map(|(node, _)| node.as_str()).collect();
    let other = stage.nodes().find(|node| !announcers.contains(node.name())).context("another node")?;
    other.kill("landfall node")?;
    stage.all_count("landfall_hello_packets_received", |count| count > 0.0).await?;
    stage.world.wait_until_installed().await?;
    let asked = probe.end()?;
    eprintln!("{asked} questions were answered, and none was not");
    ensure!(asked >= 20, "only {asked} questions were asked");
    stage.nothing_has_moved().await?;
    stage.world.end()
}

/// The payload of a Hello that somebody really said, heard by this host; and how many forgeries of it were sent.
fn forge(client: &Host) -> Result<()> {
    let line = client.output(["ip", "-o", "link", "show", "eth0"])?;
    let index: u32 = line.split(':').next().unwrap_or_default().trim().parse().context("the index of eth0")?;
    let mac = client.mac().context("a client has a MAC")?;
    let octets: Vec<u8> = mac.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    let mac = MacAddr::from(<[u8; 6]>::try_from(octets).map_err(|_| anyhow!("{mac} is no MAC"))?);
    let own: IpAddr = client.ipv4().into();
    client.run(|| -> Result<()> {
        let mut port = Port::open(Channel::Hello)?;
        port.listen_on(BTreeSet::from([index]))?;
        let (mut buffer, mut heard) = (Buffer::default(), None);
        while heard.is_none() {
            ensure!(port.readable(SOON)?, "no Hello is heard");
            port.receive(&mut buffer, |_, frame| {
                heard = datagram::unwrap(frame).ok().map(|(_, payload)| payload.to_vec());
            })?;
        }
        let heard = heard.context("invariant: it was waited for")?;
        let (count, sealed) = heard.split_last().context("an empty packet")?;
        let body = &sealed[..sealed.len() - usize::from(*count) * 36];
        // It says that it is much later than it is, so that it would count if it were believed.
        let mut changed = heard.clone();
        changed[23] ^= 1;
        let mut ring = KeyRing::new(Authentication::Required);
        ring.set(Duration::ZERO, &Keys::new([&b"the key of somebody else"[..]])?);
        let with_another_key = ring.seal(Duration::ZERO, body.to_vec());
        for payload in [&changed, &heard, &with_another_key] {
            for _ in 0..FORGERIES {
                port.send([(index, datagram::wrap(mac, own, payload).as_slice())])?;
            }
        }
        Ok(())
    })?
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_without_the_key_says_is_counted_and_moves_nothing() -> Result<()> {
    let stage = Stage::set("e2e-forged").await?;
    let probe = Probe::begin(stage.world.lan.clone(), stage.address);
    forge(&stage.client())?;
    // Changed ones, and those of others that are sent again from elsewhere; and those with a seal by another key.
    stage
        .all_count("landfall_hello_packets_dropped_total{reason=\"forged\"}", |count| count >= FORGERIES as f64)
        .await?;
    stage.all_count(UNSEALED, |count| count >= FORGERIES as f64).await?;
    let asked = probe.end()?;
    eprintln!("{asked} questions were answered, and none was not");
    stage.nothing_has_moved().await?;
    stage.world.end()
}
