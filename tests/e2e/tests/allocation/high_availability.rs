//! Two controllers: the time until the standby leads, and a former leader that writes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crds::service::ANNOUNCED;
use e2e::scene::Scene;
use e2e::world::{CONTROLLER, SOON, SYSTEM, ingress};
use e2e::{Scenes, World};
use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use lab::{Topology, wait_until};
use observer::{Component, Fault};
use serde_json::json;

/// Limit for the time that a Service waits for its address while the leader terminates. At most 2 s are expected; the
/// rest is for a busy machine. The limit is less than the duration of the Lease (6 s), so no Service waits for its
/// expiry.
const HANDOVER: Duration = Duration::from_secs(5);

/// Limit until the standby leads after the leader died or froze. The Lease expires 6 s after the standby has observed
/// the last renewal; the other 10 s are for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(16);

/// A thawed former leader is watched for writes for this long.
const WATCH_TIME: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_controller_takes_over_in_time() -> Result<()> {
    let world = World::with_landfall("e2e-leaders", Topology { nodes: 2, ..Topology::default() }).await?;
    let mut scenes = Scenes::new(&world);
    scenes.add(services_wait_briefly_while_a_leader_terminates);
    scenes.add(a_standby_leads_after_the_lease_of_a_killed_leader);
    scenes.add(a_thawed_former_leader_writes_nothing);
    scenes.play().await?;
    world.end()
}

/// The pod of a controller.
#[derive(Clone, Debug)]
struct ControllerPod {
    pod: String,
    node: String,
}

impl ControllerPod {
    /// Waits until a controller leads, and returns it.
    async fn leader(world: &World) -> Result<Self> {
        let leases: Api<Lease> = Api::namespaced(world.client.clone(), SYSTEM);
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
        wait_until(SOON, "a leader", async || {
            let lease = leases.get("landfall-controller").await?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
            let pods = pods.list(&ListParams::default().labels(CONTROLLER)).await?;
            let pod = pods.into_iter().find(|pod| holder.contains(&pod.name_any()));
            let pod = pod.with_context(|| format!("{holder:?} holds the Lease"))?;
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("no node")?;
            Ok(Self { pod: pod.name_any(), node })
        })
        .await
    }

    /// Waits until another controller leads, and returns it.
    async fn wait_for_successor(&self, world: &World) -> Result<Self> {
        wait_until(TAKEOVER, &format!("another controller than {} to lead", self.pod), async || {
            let leader = Self::leader(world).await?;
            ensure!(leader.pod != self.pod, "still the same leader");
            Ok(leader)
        })
        .await
    }

    fn pid(&self, world: &World) -> Result<i32> {
        let host = format!("HOSTNAME={}", self.pod);
        let has_host_name = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == host.as_bytes())
        };
        let all = world.cluster.node(&self.node).processes("landfall controller");
        all.iter()
            .map(|(pid, _)| *pid)
            .find(has_host_name)
            .with_context(|| format!("no process of {self:?} in {all:?}"))
    }

    /// Sends a signal to its process, and returns the pid.
    fn signal(&self, world: &World, signal: &str) -> Result<i32> {
        let pid = self.pid(world)?;
        let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().context("kill")?;
        ensure!(status.success(), "kill {signal} {pid}: {status}");
        Ok(pid)
    }
}

/// CPU time of a process, in clock ticks.
fn cpu_ticks(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // After the name, which ends in a parenthesis, utime and stime are the 12th and 13th field (proc(5)).
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let [user, system] = [11, 12].map(|field| fields.get(field).and_then(|text| text.parse::<u64>().ok()));
    Ok(user.context("utime")? + system.context("stime")?)
}

async fn services_wait_briefly_while_a_leader_terminates(scene: &Scene<'_>) -> Result<()> {
    /// Number of Services, created one after the other while the leader terminates.
    const COUNT: u8 = 40;
    let world = scene.world;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 10 + COUNT)]})).await?;
    for round in 1..=2 {
        world.wait_until_installed().await?;
        let leader = ControllerPod::leader(world).await?;
        let services: Api<Service> = Api::namespaced(world.client.clone(), &scene.namespace_name(""));
        let version = services.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
        let served = async {
            let mut served = BTreeMap::new();
            let mut events = std::pin::pin!(services.watch(&WatchParams::default(), &version).await?);
            while served.len() < usize::from(COUNT) {
                let event = events.try_next().await?.context("the watch ended")?;
                let (WatchEvent::Added(service) | WatchEvent::Modified(service)) = event else { continue };
                if !ingress(&service).is_empty() {
                    served.entry(service.name_any()).or_insert_with(Instant::now);
                }
            }
            anyhow::Ok(served)
        };
        let created = async {
            let mut created = BTreeMap::new();
            let mut interval = tokio::time::interval(Duration::from_millis(50));
            for number in 0..COUNT {
                interval.tick().await;
                if number == COUNT / 4 {
                    let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
                    pods.delete(&leader.pod, &kube::api::DeleteParams::default()).await?;
                }
                let name = format!("r{round}-{number}");
                created.insert(name.clone(), Instant::now());
                scene.create_service(&name, json!({})).await?;
            }
            anyhow::Ok(created)
        };
        let both = async { tokio::try_join!(served, created) };
        let (served, created) = tokio::time::timeout(SOON, both).await.context("not all Services are served")??;
        let waits = created.iter().map(|(name, since)| served[name].duration_since(*since));
        let longest = waits.max().unwrap_or_default();
        let next = leader.wait_for_successor(world).await?;
        eprintln!("    handover from {} to {}: no Service waited longer than {longest:?}", leader.pod, next.pod);
        ensure!(longest < HANDOVER, "a Service waited for {longest:?}");
        for name in created.keys() {
            services.delete(name, &kube::api::DeleteParams::default()).await?;
        }
        wait_until(SOON, "the Services to be deleted", async || {
            ensure!(services.list(&ListParams::default()).await?.items.is_empty());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn a_standby_leads_after_the_lease_of_a_killed_leader(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.wait_until_installed().await?;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 19)]})).await?;
    scene.create_service("before", json!({})).await?;
    scene.expect_addresses("before", &[scene.ip(10)]).await?;
    // The condition Announced is the controller's last write about a Service.
    let before = wait_until(SOON, "the address of `before` to be announced", async || {
        let service = scene.get_service("before").await?;
        let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let announced = conditions.clone().any(|condition| condition.type_ == ANNOUNCED && condition.status == "True");
        ensure!(announced, "{:?}", conditions.collect::<Vec<_>>());
        Ok(service)
    })
    .await?;
    let leader = ControllerPod::leader(world).await?;
    let killed = Instant::now();
    world.declare(Fault::restarts(Component::Controller, &leader.node, 1));
    leader.signal(world, "-KILL")?;
    scene.create_service("after", json!({})).await?;
    wait_until(TAKEOVER, "a Service to be served", async || {
        ensure!(ingress(&scene.get_service("after").await?) == [scene.ip(11)]);
        Ok(())
    })
    .await?;
    eprintln!("    the leader was killed; a Service was served {:?} later", killed.elapsed());
    scene.settle().await?;
    let after = scene.get_service("before").await?;
    ensure!(after.resource_version() == before.resource_version(), "{after:?}");
    Ok(())
}

/// If no object changes for this time, the leader has written everything. It is twice the interval at which the counts
/// of a pool are written.
const QUIET: Duration = Duration::from_secs(1);

/// All objects that controllers write, with managed fields and versions.
async fn written_objects(scene: &Scene<'_>) -> Result<BTreeMap<String, serde_json::Value>> {
    let services: Api<Service> = Api::all(scene.world.client.clone());
    let mut all = BTreeMap::new();
    for service in services.list(&ListParams::default()).await? {
        all.insert(format!("Service {}", service.name_any()), serde_json::to_value(service)?);
    }
    for pool in scene.pool_api().list(&ListParams::default()).await? {
        all.insert(format!("pool {}", pool.name_any()), serde_json::to_value(pool)?);
    }
    for (address, record) in scene.records().await? {
        all.insert(address.to_string(), serde_json::to_value(record)?);
    }
    Ok(all)
}

async fn a_thawed_former_leader_writes_nothing(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.wait_until_installed().await?;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 12)]})).await?;
    for (name, last) in [("one", 10), ("two", 11)] {
        scene.create_service(name, json!({})).await?;
        scene.expect_addresses(name, &[scene.ip(last)]).await?;
    }
    scene.settle().await?;
    let frozen = ControllerPod::leader(world).await?;
    let pid = frozen.signal(world, "-STOP")?;
    let since = Instant::now();
    // After the thaw the watches of the former leader deliver all these changes, the oldest first. A leader would have
    // to write after each.
    for name in ["three", "three-later"] {
        scene.create_service(name, json!({})).await?;
    }
    scene.patch_service("one", json!({"spec": {"type": "ClusterIP"}})).await?;
    let next = frozen.wait_for_successor(world).await?;
    eprintln!("    {} froze; {} leads {:?} later", frozen.pod, next.pod, since.elapsed());
    scene.expect_released("one").await?;
    scene.expect_addresses("three", &[scene.ip(12)]).await?;
    scene.expect_addresses("three-later", &[scene.ip(10)]).await?;
    scene.delete_service("three").await?;
    scene.create_service("five", json!({})).await?;
    scene.expect_addresses("five", &[scene.ip(12)]).await?;
    scene.create_service("six", json!({})).await?;
    scene.expect_refusal("six", "PoolsExhausted").await?;
    scene.expect_pool_counts("lan", [3, 0, 0, 0]).await?;
    scene.settle().await?;
    // Counts of pools are written at intervals. Waits until the leader has written everything.
    let (mut before, mut since) = (written_objects(scene).await?, Instant::now());
    wait_until(SOON, "the leader to have written everything", async || {
        let now = written_objects(scene).await?;
        if now != before {
            (before, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() > QUIET, "changed {:?} ago", since.elapsed());
        Ok(())
    })
    .await?;

    let ticks_before = cpu_ticks(pid)?;
    let thawed = Instant::now();
    frozen.signal(world, "-CONT")?;
    wait_until(SOON, "CPU time of the thawed controller", async || {
        let (ticks, passed) = (cpu_ticks(pid)? - ticks_before, thawed.elapsed());
        ensure!(ticks > 0 && passed > WATCH_TIME, "{ticks} ticks in {passed:?}");
        Ok(())
    })
    .await?;
    let after = written_objects(scene).await?;
    let changed: Vec<_> = after.iter().filter(|(name, object)| before.get(*name) != Some(object)).collect();
    ensure!(before.len() == after.len() && changed.is_empty(), "written by the thawed controller: {changed:#?}");
    let leader = ControllerPod::leader(world).await?;
    ensure!(leader.pod == next.pod, "{} leads again", leader.pod);

    // The thawed controller is a standby now, and leads after the end of the other one.
    world.kubectl(&["-n", SYSTEM, "delete", "pod", &next.pod, "--wait=false"])?;
    let leader = next.wait_for_successor(world).await?;
    if leader.pod == frozen.pod {
        ensure!(leader.pid(world)? == pid, "the thawed controller was restarted");
    } else {
        // The new pod of the Deployment was faster.
        bail!("{} leads, and not {}, which was warm", leader.pod, frozen.pod);
    }
    scene.delete_service("five").await?;
    scene.expect_addresses("six", &[scene.ip(12)]).await
}
