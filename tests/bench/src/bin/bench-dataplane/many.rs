//! 10,000 Services on a real API server: the memory of agents, and the cold start of kube-proxy.
//!
//! Agents of the release binary run on two nodes, which are network namespaces, with full watches and with spreading
//! between them. They run without Services, and are restarted after all objects exist. Then kube-proxy runs on a third
//! node. Services have no status, so kube-proxy programs only their cluster addresses. Landfall programs their
//! load-balancer addresses.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::report::{FigureSpec, Report, median_text, quantiles_text};
use bench::root;
use bench::stage::{Actor, NAMESPACE, Stage, service};
use bench::writes::{LANDFALL, Writer};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lab::{Host, wait_until};
use serde_json::json;
use tokio::task::block_in_place;

use crate::Bench;
use crate::kube_proxy::{KubeProxy, slice};

/// The nodes with an agent.
const AGENT_NODES: [&str; 2] = ["l1", "l2"];

/// The node with kube-proxy.
const PROXY_NODE: &str = "l3";

/// The number of Services.
const COUNT: usize = 10_000;

/// Concurrent creates.
const CREATORS: usize = 64;

/// The longest time for each step. kube-proxy takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let binary = root().join("target/x86_64-unknown-linux-musl/release/landfall");
    ensure!(binary.is_file(), "no {}: `make build`", binary.display());
    let settle = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let stage = Stage::with_nodes("bench-dataplane", 3).await?;
    let agents = AGENT_NODES.map(|node| start_agent(&stage, node, &binary));
    let agents = agents.into_iter().collect::<Result<Vec<_>>>()?;
    report.part(&format!("Resident memory of agents, {} s after the last change", settle.as_secs()));
    let empty = FigureSpec::lower("rss_mib_empty", "without Services", "MiB").goal("12 or less");
    measure_memory(bench, report, &agents, settle, empty).await?;
    // Running agents would process every create, and slow the creation down.
    for agent in &agents {
        agent.end().await?;
    }

    let begun = Instant::now();
    create_objects(&stage).await?;
    bench.progress(&format!("{COUNT} Services, slices and records created in {} s", begun.elapsed().as_secs()))?;
    stage.settle().await?;
    let agents = AGENT_NODES.map(|node| start_agent(&stage, node, &binary));
    let agents = agents.into_iter().collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    for node in AGENT_NODES {
        let host = stage.node(node);
        wait_until(PATIENCE, "an agent to program all addresses", async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let table = host.output(["nft", "list", "table", "ip", "landfall"])?;
            let last = table.contains(&Writer::address(COUNT as u16 - 1).to_string());
            ensure!(last, "the last address is missing");
            Ok(())
        })
        .await?;
    }
    bench.progress(&format!("agents have programmed them {} s after the start", begun.elapsed().as_secs()))?;
    let full = FigureSpec::lower("rss_mib_10k", "10,000 Services × 2 endpoints", "MiB").goal("40 or less");
    measure_memory(bench, report, &agents, settle, full).await?;
    measure_change(bench, report, &stage).await?;
    for agent in &agents {
        agent.end().await?;
    }
    stage.settle().await?;

    let proxy = KubeProxy::start(&stage, PROXY_NODE)?;
    let seconds = proxy.wait_for_sync(PATIENCE).await?;
    let ports = proxy.ports()?;
    ensure!(ports >= COUNT, "kube-proxy reports a complete sync with only {ports} ports of Services");
    bench.progress(&format!("kube-proxy has programmed them in {seconds:.1} s"))?;
    report.part("kube-proxy nftables, cold, 10,000 Services × 2 endpoints");
    report.measure(FigureSpec::lower("kube_proxy_sync_10k_s", "its full sync, by its own metrics", "s"), &[seconds]);
    report.measure(FigureSpec::lower("kube_proxy_rss_mib_10k", "its resident memory", "MiB"), &[proxy.actor.rss()?]);
    proxy.actor.end().await?;
    stage.strike()
}

fn start_agent(stage: &Stage, node: &str, binary: &Path) -> Result<Actor> {
    stage.enter_on(&stage.node(node), "landfall", binary, &["node", "--node-name", node])
}

async fn measure_memory(
    bench: &Bench,
    report: &mut Report,
    agents: &[Actor],
    settle: Duration,
    spec: FigureSpec<'_>,
) -> Result<()> {
    tokio::time::sleep(settle).await;
    let sizes = agents.iter().map(|agent| agent.check().and_then(|()| agent.rss())).collect::<Result<Vec<_>>>()?;
    bench.progress(&format!("an agent has {} MiB {}", median_text(&sizes), spec.label))?;
    report.measure(spec, &sizes);
    Ok(())
}

/// The endpoints of the n-th Service, one on each node with an agent.
fn endpoints(n: usize) -> [(IpAddr, &'static str); 2] {
    let address = |node: u32| Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + 2 * n as u32 + node).into();
    [(address(0), AGENT_NODES[0]), (address(1), AGENT_NODES[1])]
}

fn name(n: usize) -> String {
    format!("s-{n:05}")
}

/// Creates Services, slices and records.
async fn create_objects(stage: &Stage) -> Result<()> {
    let services: Api<Service> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let (writer, params) = (Writer::new(stage.client.clone(), LANDFALL), PostParams::default());
    let creates = stream::iter(0..COUNT).map(|n| {
        let (services, slices, writer, params) = (&services, &slices, &writer, &params);
        async move {
            let service = serde_json::from_value(service(&name(n), None))?;
            let slice = serde_json::from_value(slice(&name(n), 8080, &endpoints(n)))?;
            let service = services.create(params, &service).await.context("create a Service")?;
            slices.create(params, &slice).await.context("create a slice")?;
            writer.record(&service, Writer::address(n as u16)).await
        }
    });
    creates.buffer_unordered(CREATORS).try_for_each(async |()| Ok(())).await
}

/// Measures the time from the write of a slice to the change of the kernel on an agent's node, including the API
/// server's part.
async fn measure_change(bench: &Bench, report: &mut Report, stage: &Stage) -> Result<()> {
    let (changes, begun) = (if bench.quick { 20 } else { 100 }, Instant::now());
    let (slices, host) =
        (Api::<EndpointSlice>::namespaced(stage.client.clone(), NAMESPACE), stage.node(AGENT_NODES[0]));
    let commits = Commits::begin(&host)?;
    // The first changes may come before the monitor listens.
    wait_until(Duration::from_secs(30), "nft to report a change", async || {
        let n = COUNT - 1 - begun.elapsed().as_millis() as usize % 1000;
        change_slice(&slices, n).await?;
        block_in_place(|| commits.next(Duration::from_secs(1)))
    })
    .await?;
    let mut times = Vec::new();
    for n in 0..changes {
        block_in_place(|| commits.settle());
        let written = change_slice(&slices, n).await?;
        let committed = block_in_place(|| commits.next(Duration::from_secs(10)))?;
        times.push(committed.saturating_duration_since(written).as_secs_f64() * 1e3);
    }
    report.part(&format!("One slice changed among 10,000 Services, {changes} times: from the API server's answer"));
    report.row("to the commit on an agent's node, in ms", &quantiles_text(&times));
    Ok(())
}

/// Replaces the endpoints of the n-th slice. Returns the time of the API server's answer.
async fn change_slice(slices: &Api<EndpointSlice>, n: usize) -> Result<Instant> {
    let endpoints = slice(&name(n), 8080, &endpoints(COUNT + n))["endpoints"].clone();
    let patch = Patch::Merge(json!({"endpoints": endpoints}));
    slices.patch(&name(n), &PatchParams::default(), &patch).await.context("change a slice")?;
    Ok(Instant::now())
}

/// The nf_tables commits in a host's network namespace, as `nft monitor` prints them. The monitor ends with this.
struct Commits {
    monitor: Child,
    lines: mpsc::Receiver<Instant>,
}

impl Commits {
    /// Starts the monitor. It misses changes in its first moments.
    fn begin(host: &Host) -> Result<Self> {
        let mut command = host.netns()?.command("nft");
        let mut monitor = command.args(["monitor", "elements"]).stdout(Stdio::piped()).spawn().context("run nft")?;
        let out = monitor.stdout.take().context("invariant: stdout is piped")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for _ in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { monitor, lines })
    }

    /// Waits for the next line.
    fn next(&self, within: Duration) -> Result<Instant> {
        self.lines.recv_timeout(within).context("no change of the kernel")
    }

    /// Discards all lines until there is a pause.
    fn settle(&self) {
        while self.lines.recv_timeout(Duration::from_millis(50)).is_ok() {}
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}
