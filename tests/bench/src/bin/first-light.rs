//! Time from a Service to its address and to the first answer, and Landfall's memory.
//!
//! `make bench` runs it: a three-node cluster with kube-proxy, three pods, and Services for them created one after the
//! other. The time starts before the create request is sent. The floor is the same create and one status patch by this
//! program itself, which no controller can beat.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::world::{SOON, SYSTEM, ingress, root};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use lab::{Topology, wait_until};
use serde_json::json;

/// Number of measured Services, after one that does not count.
const RUNS: usize = 20;

/// Limit of waiting for the answer to one request of the client.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Times of one Service since its creation.
struct Times {
    floor: Duration,
    address: Duration,
    answer: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let world = World::with_landfall("bench-first-light", Topology::default()).await?.stop_observing();
    world.create_pool("lan", &["192.0.2.200-192.0.2.250"]).await?;
    world.create_whoami("web", 3).await?;
    let mut runs = Vec::new();
    for run in 0..=RUNS {
        let times = measure_once(&world, run).await?;
        if run > 0 {
            runs.push(times);
        }
    }
    let mut out = String::new();
    out += &format!("{RUNS} Services, one after the other; milliseconds   min  median     max\n");
    out += &row("floor: create and one status patch, no controller", runs.iter().map(|times| times.floor));
    out += &row("create to address in the status", runs.iter().map(|times| times.address));
    out += &row("create to first answer to a client on the LAN", runs.iter().map(|times| times.answer));
    out += &memory(&world).await?;
    let binary = std::fs::metadata(root().join("target/x86_64-unknown-linux-musl/release/landfall"))?.len();
    out += &format!("binary, stripped: {:.1} MiB\n", binary as f64 / f64::from(1 << 20));
    e2e::print(&out)?;
    world.end()
}

async fn measure_once(world: &World, run: usize) -> Result<Times> {
    let services: Api<Service> = Api::default_namespaced(world.client.clone());
    let foreign = format!("floor-{run}");
    let since = Instant::now();
    world
        .create_service(&foreign, json!({"loadBalancerClass": "example.com/none", "selector": {"app": "web"}}))
        .await?;
    let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}));
    services.patch_status(&foreign, &PatchParams::default(), &status).await?;
    let floor = since.elapsed();

    let name = format!("web-{run}");
    let address = watch_for_address(&services, &name).await?;
    let since = Instant::now();
    world.create_service(&name, json!({"selector": {"app": "web"}})).await?;
    let address = address.await.context("the watch")??;
    let appeared = since.elapsed();
    let lan = world.lan.clone();
    let answer = tokio::task::spawn_blocking(move || -> Result<Duration> {
        while lan.query_tcp_within(address, TIMEOUT).is_err() {
            ensure!(since.elapsed() < SOON, "{address} does not answer");
        }
        Ok(since.elapsed())
    });
    let answer = answer.await??;
    for name in [foreign, name] {
        world.delete_service(&name).await?;
    }
    // The next Service must not get the same address before all parts of Landfall have released it.
    wait_until(SOON, "the address to be free", async || {
        ensure!(world.record_names().await?.is_empty());
        Ok(())
    })
    .await?;
    Ok(Times { floor, address: appeared, answer })
}

/// Starts a watch for the address of a Service that does not exist yet.
async fn watch_for_address(services: &Api<Service>, name: &str) -> Result<tokio::task::JoinHandle<Result<IpAddr>>> {
    let version = services.list(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
    let (services, params) = (services.clone(), WatchParams::default().fields(&format!("metadata.name={name}")));
    Ok(tokio::spawn(async move {
        let events = services.watch(&params, &version).await?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = futures::TryStreamExt::try_next(&mut events).await? {
            if let WatchEvent::Added(service) | WatchEvent::Modified(service) = event
                && let Some(address) = ingress(&service).first()
            {
                return Ok(*address);
            }
        }
        anyhow::bail!("the watch has ended")
    }))
}

fn row(title: &str, times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    format!("  {title:50}{:6.1}  {median:6.1}  {:6.1}\n", times[0], times[times.len() - 1])
}

/// Resident memory of Landfall's processes, as the kernel counts it.
async fn memory(world: &World) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
    let mut lines = String::new();
    for pod in pods.list(&ListParams::default()).await?.items {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let role = if pod.name_any().contains("controller") { "landfall controller" } else { "landfall node" };
        for (pid, _) in world.cluster.node(&node).processes(role) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
            };
            lines += &format!("{role} on {node}: RSS {:.1} MiB (peak {:.1})\n", field("VmRSS:"), field("VmHWM:"));
        }
    }
    Ok(lines)
}
