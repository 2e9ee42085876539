//! Two controllers: who leads, how soon the other one does, and that one whose time is over writes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crds::service::ANNOUNCED;
use e2e::World;
use e2e::scene::{Scene, Scenes};
use e2e::world::{CONTROLLER, SOON, SYSTEM, ingress};
use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use lab::{Topology, wait_until};
use serde_json::json;

/// How long a Service may wait when the leader ends as asked. It should be 2 s at most; the rest is for a machine that
/// compiles at the same time, and still less than it takes for the Lease to run out (6 s).
const HANDOVER: Duration = Duration::from_secs(5);

/// How long it may take until another one leads when the leader dies or freezes: 6 s for the Lease to run out, 2 s since
/// it was renewed last, and as much again for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(16);

/// How long one that has woken is watched for writing something.
const WATCHED: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_controller_takes_over_in_time() -> Result<()> {
    let world = World::with_landfall("e2e-leaders", Topology { nodes: 2, ..Topology::default() }).await?;
    let mut scenes = Scenes::new(&world);
    scenes.play(services_wait_briefly_while_a_leader_terminates).await;
    scenes.play(a_standby_leads_after_the_lease_of_a_killed_leader).await;
    scenes.play(a_thawed_former_leader_writes_nothing).await;
    scenes.end()?;
    world.end()
}

/// A controller.
#[derive(Clone, Debug)]
struct Controller {
    pod: String,
    node: String,
}

impl Controller {
    /// The one that leads.
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

    /// Waits until another one than this leads.
    async fn is_replaced(&self, world: &World) -> Result<Self> {
        wait_until(TAKEOVER, &format!("another one than {} to lead", self.pod), async || {
            let leader = Self::leader(world).await?;
            ensure!(leader.pod != self.pod, "it still leads");
            Ok(leader)
        })
        .await
    }

    /// Its process.
    fn process(&self, world: &World) -> Result<i32> {
        let host = format!("HOSTNAME={}", self.pod);
        let is_its = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == host.as_bytes())
        };
        let all = world.cluster.node(&self.node).processes("landfall controller");
        all.iter().map(|(pid, _)| *pid).find(is_its).with_context(|| format!("no process of {self:?} in {all:?}"))
    }

    /// Sends its process a signal.
    fn signal(&self, world: &World, signal: &str) -> Result<i32> {
        let pid = self.process(world)?;
        let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().context("kill")?;
        ensure!(status.success(), "kill {signal} {pid}: {status}");
        Ok(pid)
    }
}

/// How much processor time a process has had, in ticks of the clock.
fn time_used(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // After the name, which ends in a parenthesis, utime and stime are the 12th and 13th field (proc(5)).
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let [user, system] = [11, 12].map(|field| fields.get(field).and_then(|text| text.parse::<u64>().ok()));
    Ok(user.context("utime")? + system.context("stime")?)
}

async fn services_wait_briefly_while_a_leader_terminates(scene: &Scene<'_>) -> Result<()> {
    /// Services that are made, one after the other, while the leader ends.
    const COUNT: u8 = 40;
    let world = scene.world;
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 10 + COUNT)]})).await?;
    for round in 1..=2 {
        world.wait_until_installed().await?;
        let leader = Controller::leader(world).await?;
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
        let made = async {
            let mut made = BTreeMap::new();
            let mut pace = tokio::time::interval(Duration::from_millis(50));
            for number in 0..COUNT {
                pace.tick().await;
                if number == COUNT / 4 {
                    let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
                    pods.delete(&leader.pod, &kube::api::DeleteParams::default()).await?;
                }
                let name = format!("r{round}-{number}");
                made.insert(name.clone(), Instant::now());
                scene.create_service(&name, json!({})).await?;
            }
            anyhow::Ok(made)
        };
        let both = async { tokio::try_join!(served, made) };
        let (served, made) = tokio::time::timeout(SOON, both).await.context("not all of them are served")??;
        let waited = made.iter().map(|(name, since)| served[name].duration_since(*since));
        let longest = waited.max().unwrap_or_default();
        let next = leader.is_replaced(world).await?;
        eprintln!("    handover from {} to {}: no Service waited longer than {longest:?}", leader.pod, next.pod);
        ensure!(longest < HANDOVER, "a Service waited for {longest:?}");
        for name in made.keys() {
            services.delete(name, &kube::api::DeleteParams::default()).await?;
        }
        wait_until(SOON, "the Services to be gone", async || {
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
    // Who announces it is written later: then nothing is left to write.
    let before = wait_until(SOON, "its address to be announced", async || {
        let service = scene.get_service("before").await?;
        let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let announced = conditions.clone().any(|condition| condition.type_ == ANNOUNCED && condition.status == "True");
        ensure!(announced, "{:?}", conditions.collect::<Vec<_>>());
        Ok(service)
    })
    .await?;
    let leader = Controller::leader(world).await?;
    let killed = Instant::now();
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

/// When nothing was written for so long, nothing is left to write: twice the pause between two writes of a pool's counts.
const QUIET: Duration = Duration::from_secs(1);

/// All that controllers write, whole: managed fields and versions included.
async fn everything(scene: &Scene<'_>) -> Result<BTreeMap<String, serde_json::Value>> {
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
    let frozen = Controller::leader(world).await?;
    let pid = frozen.signal(world, "-STOP")?;
    let since = Instant::now();
    // It will hear of all this when it wakes, the oldest first, and each alone would be something to do.
    for name in ["three", "three-later"] {
        scene.create_service(name, json!({})).await?;
    }
    scene.patch_service("one", json!({"spec": {"type": "ClusterIP"}})).await?;
    let next = frozen.is_replaced(world).await?;
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
    // Counts of pools follow at intervals: nothing may be left to write for the one that leads.
    let (mut before, mut since) = (everything(scene).await?, Instant::now());
    wait_until(SOON, "the one that leads to have written everything", async || {
        let now = everything(scene).await?;
        if now != before {
            (before, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() > QUIET, "changed {:?} ago", since.elapsed());
        Ok(())
    })
    .await?;

    let used = time_used(pid)?;
    let woken = Instant::now();
    frozen.signal(world, "-CONT")?;
    wait_until(SOON, "the one that woke to do something", async || {
        let now = time_used(pid)?;
        let (ticks, passed) = (now - used, woken.elapsed());
        ensure!(ticks > 0 && passed > WATCHED, "{ticks} ticks in {passed:?}");
        Ok(())
    })
    .await?;
    let after = everything(scene).await?;
    let changed: Vec<_> = after.iter().filter(|(name, object)| before.get(*name) != Some(object)).collect();
    ensure!(before.len() == after.len() && changed.is_empty(), "written by the one that woke: {changed:#?}");
    let leader = Controller::leader(world).await?;
    ensure!(leader.pod == next.pod, "{} leads again", leader.pod);

    // It is as good as any now: when the other one goes, it serves.
    world.kubectl(&["-n", SYSTEM, "delete", "pod", &next.pod, "--wait=false"])?;
    let leader = next.is_replaced(world).await?;
    if leader.pod == frozen.pod {
        ensure!(leader.process(world)? == pid, "the one that woke was started anew");
    } else {
        // A third one was faster.
        bail!("{} leads, and not {}, which was warm", leader.pod, frozen.pod);
    }
    scene.delete_service("five").await?;
    scene.expect_addresses("six", &[scene.ip(12)]).await
}
