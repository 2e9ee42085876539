//! Time from a Service to its address and to the first answer, and Landfall's memory.
//!
//! `make bench` runs it: a three-node cluster with kube-proxy, three pods, and Services for them created one after the
//! other. The time starts before the create request is sent. The floor is the same create and one status patch by this
//! program itself, which no controller can beat. Each ratio compares a Service with the floor right before it. The
//! program prints a table and writes `target/bench/first-light.json`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::ratios;
use bench::progress::print;
use bench::report::{FigureSpec, Report};
use bench::root;
use e2e::World;
use e2e::world::{SOON, SYSTEM, ingress};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use lab::{Topology, wait_until};
use serde_json::json;

/// Number of measured Services, after one that does not count.
const RUNS: usize = 20;

const MIB: f64 = (1 << 20) as f64;

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
    let mut report = Report::default();
    report_times(&mut report, &runs);
    report_memory(&mut report, &world).await?;
    let binary = std::fs::metadata(root().join("target/x86_64-unknown-linux-musl/release/landfall"))?.len();
    let spec = FigureSpec::lower("binary_mib", "binary, stripped", "MiB").goal("16 or less");
    report.measure(spec, &[binary as f64 / MIB]);
    let path = root().join("target/bench/first-light.json");
    std::fs::create_dir_all(path.parent().context("invariant: it has a parent")?)?;
    std::fs::write(&path, report.json_over("")).with_context(|| format!("write {}", path.display()))?;
    print(&format!("{}\nwrote {}\n", report.table(), path.display()))?;
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

fn report_times(report: &mut Report, runs: &[Times]) {
    let ms = |time: fn(&Times) -> Duration| -> Vec<f64> {
        runs.iter().map(|times| time(times).as_secs_f64() * 1e3).collect()
    };
    let (floor, address, answer) = (ms(|times| times.floor), ms(|times| times.address), ms(|times| times.answer));
    report.part(&format!("{RUNS} Services, one after the other"));
    report.distribution("floor: create and one status patch, no controller", &floor, "ms");
    report.distribution("create to address in the status", &address, "ms");
    report.distribution("create to first answer to a client on the LAN", &answer, "ms");
    let spec = FigureSpec::lower("create_to_address_vs_floor", "create to address, to the floor", "ratio");
    report.measure(spec, &ratios(&address, &floor));
    let spec = FigureSpec::lower("create_to_answer_vs_floor", "create to first answer, to the floor", "ratio");
    report.measure(spec, &ratios(&answer, &floor));
}

/// Resident memory of Landfall's processes, as the kernel counts it.
async fn report_memory(report: &mut Report, world: &World) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
    let pods = pods.list(&ListParams::default()).await?.items;
    report.part("Resident memory, after these Services");
    for (name, role, label) in
        [("controller_rss_mib", "landfall controller", "controllers"), ("agent_rss_mib", "landfall node", "agents")]
    {
        let is_role = |pod: &&Pod| pod.name_any().contains("controller") == role.contains("controller");
        let nodes = pods.iter().filter(is_role).filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
        let nodes: BTreeSet<String> = nodes.collect();
        let processes = nodes.iter().flat_map(|node| world.cluster.node(node).processes(role));
        let memory = processes.map(|(pid, _)| memory_mib(pid)).collect::<Result<Vec<_>>>()?;
        let (resident, peak): (Vec<f64>, Vec<f64>) = memory.into_iter().unzip();
        report.measure(FigureSpec::lower(name, label, "MiB"), &resident);
        report.distribution("  peak", &peak, "MiB");
    }
    Ok(())
}

/// The resident memory of a process, and its peak.
fn memory_mib(pid: i32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the status of a process")?;
    let field = |name: &str| -> Result<f64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(value.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
