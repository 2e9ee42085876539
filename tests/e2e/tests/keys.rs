//! Keys that authenticate Hellos: creation, rotation, deletion, and forged Hellos.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use crds::LoadBalancerIP;
use crds::MacAddr;
use e2e::world::{SOON, SYSTEM};
use e2e::{LanClient, World};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use lab::{Host, Topology, wait_until};
use observer::Component;
use serde_json::json;
use speaker::Keys;
use speaker::os::socket::{PacketSocket, ReceiveBuffer};
use speaker::wire::datagram;
use speaker::wire::frame::{Channel, FrameClass};
use speaker::wire::seal::KeyRing;

/// The Secret with the keys.
const SECRET: &str = "landfall-hello-keys";

/// The series of Hellos that no key of the agent authenticates.
const UNSEALED: &str = "landfall_hello_packets_dropped_total{reason=\"unsealed\"}";

/// Limit of waiting for an answer: a busy machine answers late, a dead one never.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Number of forged frames of each kind.
const FORGERIES: usize = 200;

/// A client that sends UDP requests all the time, each from a new port, and fails if one is lost.
struct StrictProber {
    stop_tx: Sender<()>,
    requests: JoinHandle<Result<usize>>,
}

impl StrictProber {
    fn start(lan: LanClient, address: IpAddr) -> Self {
        let (stop_tx, stop_rx) = channel();
        let requests = std::thread::spawn(move || {
            let (mut count, start) = (0, Instant::now());
            while stop_rx.try_recv().is_err() && start.elapsed() < 20 * SOON {
                lan.query_udp_within(address, TIMEOUT).with_context(|| format!("request {count}"))?;
                count += 1;
            }
            Ok(count)
        });
        Self { stop_tx, requests }
    }

    /// Stops it, and returns the number of requests. Fails if a request was lost.
    fn stop(self) -> Result<usize> {
        // Fails if the thread has ended by itself, with an error that the next line returns.
        self.stop_tx.send(()).ok();
        self.requests.join().map_err(|_| anyhow!("the prober panicked"))?
    }
}

/// A cluster with one announced address, and the state of that address which must not change.
struct KeysFixture {
    world: World,
    address: IpAddr,
    announcers: BTreeSet<(crds::InternedStr, i64)>,
    takeovers: f64,
}

impl KeysFixture {
    async fn start(name: &str) -> Result<Self> {
        let world = World::with_landfall(name, Topology::default()).await?;
        world.create_pool("lan", &["192.0.2.200/32"]).await?;
        world.create_whoami("web", 3).await?;
        world.create_service("web", json!({})).await?;
        let address = world.wait_for_address("web").await?;
        wait_until(SOON, "an answer", async || world.lan.query_udp(address)).await?;
        world.wait_for_announcer(address).await?;
        let mut fixture = Self { world, address, announcers: BTreeSet::new(), takeovers: 0.0 };
        (fixture.announcers, fixture.takeovers) = fixture.announcers_and_takeovers().await?;
        Ok(fixture)
    }

    fn nodes(&self) -> impl Iterator<Item = Host> {
        (1..=self.world.cluster.topology().nodes).map(|number| self.world.cluster.node(&format!("n{number}")))
    }

    fn client(&self) -> Host {
        self.world.cluster.client_host("c1")
    }

    /// The announcers of the address with their epochs, and the number of takeovers on all nodes.
    async fn announcers_and_takeovers(&self) -> Result<(BTreeSet<(crds::InternedStr, i64)>, f64)> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.world.client.clone());
        let object = addresses.get(&crds::address::object_name(self.address)).await?;
        let announcers = object.status.unwrap_or_default().announcers;
        let announcers = announcers.into_iter().map(|announcer| (announcer.node, announcer.epoch)).collect();
        Ok((announcers, self.sum("landfall_takeover_silence_seconds_count")?))
    }

    /// The sum of the series that begin with `prefix`, over all nodes.
    fn sum(&self, prefix: &str) -> Result<f64> {
        self.nodes().map(|node| self.world.agent_metric(&node, prefix)).sum()
    }

    /// Fails if the address has moved since the start.
    async fn expect_no_move(&self) -> Result<()> {
        let now = self.announcers_and_takeovers().await?;
        ensure!(now == (self.announcers.clone(), self.takeovers), "{now:?} instead of {:?}", self.announcers);
        Ok(())
    }

    /// Waits until the series that begin with `prefix` meet a condition on each node.
    async fn expect_on_all_nodes(&self, prefix: &str, is_expected: impl Fn(f64) -> bool) -> Result<()> {
        wait_until(2 * SOON, &format!("the right value of {prefix} on all nodes"), async || {
            for node in self.nodes() {
                let value = self.world.agent_metric(&node, prefix)?;
                ensure!(is_expected(value), "{value} on {}", node.name());
            }
            Ok(())
        })
        .await
    }

    /// Waits until the entries of the Secret meet a condition, and returns them.
    async fn wait_for_keys(
        &self,
        is_expected: impl Fn(&BTreeMap<String, Vec<u8>>) -> bool,
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        let secrets: Api<Secret> = Api::namespaced(self.world.client.clone(), SYSTEM);
        wait_until(SOON, "the Secret to have other entries", async || {
            let data = secrets.get(SECRET).await?.data.unwrap_or_default();
            let entries: BTreeMap<_, _> = data.into_iter().map(|(name, value)| (name, value.0)).collect();
            ensure!(is_expected(&entries), "{:?}", entries.keys());
            Ok(entries)
        })
        .await
    }

    fn annotate_secret(&self, annotation: &str) -> Result<String> {
        self.world.kubectl(&["-n", SYSTEM, "annotate", "--overwrite", "secret", SECRET, annotation])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_rotation_loses_no_answer_and_moves_nothing() -> Result<()> {
    let fixture = KeysFixture::start("e2e-keys").await?;
    let first = fixture.wait_for_keys(|keys| keys.len() == 1).await?;
    ensure!(first.values().all(|key| key.len() == 32), "keys of another length");
    let prober = StrictProber::start(fixture.world.lan.clone(), fixture.address);
    // An agent drops all Hellos until it has a key.
    let dropped = fixture.sum(UNSEALED)?;

    fixture.annotate_secret("landfall.dev/rotate=now")?;
    let both = fixture.wait_for_keys(|keys| keys.len() == 2).await?;
    ensure!(first.iter().all(|(name, key)| both.get(name) == Some(key)), "the first key was deleted too early");
    fixture.expect_on_all_nodes("landfall_hello_keys ", |count| count == 2.0).await?;
    // An hour later.
    fixture.annotate_secret("landfall.dev/retire-after=2026-01-01T00:00:00Z")?;
    let second = fixture.wait_for_keys(|keys| keys.len() == 1).await?;
    ensure!(second.iter().all(|(name, key)| both.get(name) == Some(key) && !first.contains_key(name)));
    fixture.expect_on_all_nodes("landfall_hello_keys ", |count| count == 1.0).await?;

    // After its deletion, Landfall creates another key. An agent that starts then has only that key, and its peers accept it.
    fixture.world.kubectl(&["-n", SYSTEM, "delete", "secret", SECRET])?;
    let third = fixture.wait_for_keys(|keys| keys.len() == 1 && *keys != second).await?;
    ensure!(third.values().all(|key| !second.values().any(|old| old == key)), "the same key");
    fixture.expect_on_all_nodes("landfall_hello_keys_missing", |count| count == 0.0).await?;
    ensure!(fixture.sum(UNSEALED)? == dropped, "agents have dropped each other's Hellos");
    let announcers: BTreeSet<&str> = fixture.announcers.iter().map(|(node, _)| node.as_str()).collect();
    let other = fixture.nodes().find(|node| !announcers.contains(node.name())).context("another node")?;
    fixture.world.kill(Component::Agent, other.name())?;
    fixture.expect_on_all_nodes("landfall_hello_packets_received", |count| count > 0.0).await?;
    fixture.world.wait_until_installed().await?;
    let requests = prober.stop()?;
    eprintln!("all {requests} requests were answered");
    ensure!(requests >= 20, "only {requests} requests");
    fixture.expect_no_move().await?;
    fixture.world.end()
}

/// Captures a Hello on this host, and sends three kinds of forgeries of it.
fn send_forgeries(client: &Host) -> Result<()> {
    let line = client.output(["ip", "-o", "link", "show", "eth0"])?;
    let index: u32 = line.split(':').next().unwrap_or_default().trim().parse().context("the index of eth0")?;
    let mac = client.mac().context("a client has a MAC address")?;
    let octets: Vec<u8> = mac.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    let mac = MacAddr::from(<[u8; 6]>::try_from(octets).map_err(|_| anyhow!("{mac} is no MAC address"))?);
    let own: IpAddr = client.ipv4().into();
    client.run(|| -> Result<()> {
        let mut port = PacketSocket::open(Channel::Hello, FrameClass::All)?;
        port.listen_on(BTreeSet::from([index]))?;
        let (mut buffer, mut received) = (ReceiveBuffer::default(), None);
        while received.is_none() {
            ensure!(port.wait_readable(SOON)?, "no Hello is received");
            port.receive(&mut buffer, |_, _, frame| {
                received = datagram::unwrap(frame).ok().map(|(_, payload)| payload.to_vec());
            })?;
        }
        let received = received.context("invariant: the loop waits for it")?;
        let (count, sealed) = received.split_last().context("an empty packet")?;
        let body = &sealed[..sealed.len() - usize::from(*count) * 36];
        // A time far in the future, so that an agent would use this Hello if it accepted it.
        let mut changed = received.clone();
        changed[23] ^= 1;
        let mut ring = KeyRing::default();
        ring.set(Duration::ZERO, &Keys::new([&b"the key of another cluster"[..]])?);
        let with_another_key = ring.seal(Duration::ZERO, body.to_vec());
        for payload in [&changed, &received, &with_another_key] {
            for _ in 0..FORGERIES {
                port.send([(index, datagram::wrap(mac, own, payload).as_slice())])?;
            }
        }
        Ok(())
    })?
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_hellos_are_counted_and_ignored() -> Result<()> {
    let fixture = KeysFixture::start("e2e-forged").await?;
    let prober = StrictProber::start(fixture.world.lan.clone(), fixture.address);
    send_forgeries(&fixture.client())?;
    // Changed Hellos, and original ones from another address, count as forged; a seal by another key counts as none.
    fixture
        .expect_on_all_nodes("landfall_hello_packets_dropped_total{reason=\"forged\"}", |count| {
            count >= FORGERIES as f64
        })
        .await?;
    fixture.expect_on_all_nodes(UNSEALED, |count| count >= FORGERIES as f64).await?;
    let requests = prober.stop()?;
    eprintln!("all {requests} requests were answered");
    fixture.expect_no_move().await?;
    fixture.world.end()
}
