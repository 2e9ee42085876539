//! Keys that authenticate Hellos: creation, rotation, deletion, and forged Hellos.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use crds::LoadBalancerIP;
use crds::MacAddr;
use e2e::traffic::{NOTHING_LOST, RUNS, control};
use e2e::world::{SOON, SYSTEM};
use e2e::{Target, Traffic, TrafficPlan, TrafficRun, Transport, World};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use lab::{Host, Topology, wait_until};
use load::{Verdict, repeat_while_late};
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

/// The series of Hellos with a wrong seal by a key of the agent, or from another address.
const FORGED: &str = "landfall_hello_packets_dropped_total{reason=\"forged\"}";

/// The client is watched for this long after the forgeries.
const WATCH_TIME: Duration = Duration::from_secs(1);

/// Number of forged frames of each kind.
const FORGERIES: usize = 200;

/// A cluster with one announced address.
struct KeysFixture {
    world: World,
    address: IpAddr,
}

/// The announcers of the address with their epochs, and the number of takeovers on all nodes: no key may change them.
type AddressState = (BTreeSet<(crds::InternedStr, i64)>, f64);

impl KeysFixture {
    async fn start(name: &str) -> Result<Self> {
        let world = World::with_landfall(name, Topology::default()).await?;
        world.create_pool("lan", &["192.0.2.200/32"]).await?;
        control::create_pods(&world).await?;
        world.create_whoami("web", 3).await?;
        world.create_service("web", json!({})).await?;
        let address = world.wait_for_address("web").await?;
        wait_until(SOON, "an answer", async || world.lan.query_udp(address)).await?;
        world.wait_for_announcer(address).await?;
        Ok(Self { world, address })
    }

    /// Starts to send requests over UDP.
    async fn start_traffic(&self) -> Result<Traffic> {
        let target = Target::new("web", SocketAddr::new(self.address, 80), Transport::Udp);
        TrafficPlan::new([target]).start(&self.world).await
    }

    fn nodes(&self) -> impl Iterator<Item = Host> {
        (1..=self.world.cluster.topology().nodes).map(|number| self.world.cluster.node(&format!("n{number}")))
    }

    fn client(&self) -> Host {
        self.world.cluster.client_host("c1")
    }

    async fn address_state(&self) -> Result<AddressState> {
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

    /// The verdict on a change of keys: no request may be lost, and the address may not move.
    async fn verdict(&self, event: &str, run: &TrafficRun, before: &AddressState) -> Result<Verdict> {
        run.print(event);
        let after = self.address_state().await?;
        let moved = if after == *before { Vec::new() } else { vec![format!("{after:?} instead of {before:?}")] };
        Ok(run.excuse_late_machine(run.verdict(&NOTHING_LOST, moved)))
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
async fn changes_of_keys_and_forgeries_lose_no_answer_and_move_nothing() -> Result<()> {
    let fixture = KeysFixture::start("e2e-keys").await?;
    repeat_while_late(RUNS, async || keys_are_rotated_and_deleted(&fixture).await).await?.into_result()?;
    repeat_while_late(RUNS, async || forged_hellos_are_counted_and_ignored(&fixture).await).await?.into_result()?;
    fixture.world.end()
}

async fn keys_are_rotated_and_deleted(fixture: &KeysFixture) -> Result<Verdict> {
    let first = fixture.wait_for_keys(|keys| keys.len() == 1).await?;
    ensure!(first.values().all(|key| key.len() == 32), "keys of another length");
    let (before, traffic) = (fixture.address_state().await?, fixture.start_traffic().await?);
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

    // After its deletion, Landfall creates another key. An agent that starts then has only that key, and its peers
    // accept it.
    fixture.world.kubectl(&["-n", SYSTEM, "delete", "secret", SECRET])?;
    let third = fixture.wait_for_keys(|keys| keys.len() == 1 && *keys != second).await?;
    ensure!(third.values().all(|key| !second.values().any(|old| old == key)), "the same key");
    fixture.expect_on_all_nodes("landfall_hello_keys_missing", |count| count == 0.0).await?;
    ensure!(fixture.sum(UNSEALED)? == dropped, "agents have dropped each other's Hellos");
    let announcers: BTreeSet<&str> = before.0.iter().map(|(node, _)| node.as_str()).collect();
    let other = fixture.nodes().find(|node| !announcers.contains(node.name())).context("another node")?;
    fixture.world.kill(Component::Agent, other.name())?;
    fixture.expect_on_all_nodes("landfall_hello_packets_received", |count| count > 0.0).await?;
    fixture.world.wait_until_installed().await?;
    fixture.verdict("rotation and deletion of keys", &traffic.stop()?, &before).await
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

async fn forged_hellos_are_counted_and_ignored(fixture: &KeysFixture) -> Result<Verdict> {
    let (before, traffic) = (fixture.address_state().await?, fixture.start_traffic().await?);
    let counts =
        |series| fixture.nodes().map(|node| fixture.world.agent_metric(&node, series)).collect::<Result<Vec<_>>>();
    // Changed Hellos, and original ones from another address, count as forged; a seal by another key counts as none.
    let counted = [(FORGED, counts(FORGED)?), (UNSEALED, counts(UNSEALED)?)];
    send_forgeries(&fixture.client())?;
    for (series, before) in counted {
        wait_until(2 * SOON, &format!("{FORGERIES} more of {series} on all nodes"), async || {
            let after = counts(series)?;
            let is_counted = |(after, before): (&f64, &f64)| after - before >= FORGERIES as f64;
            ensure!(after.iter().zip(&before).all(is_counted), "{after:?}, before {before:?}");
            Ok(())
        })
        .await?;
    }
    tokio::time::sleep(WATCH_TIME).await;
    fixture.verdict("forged Hellos", &traffic.stop()?, &before).await
}
