//! Ten thousand Services on a real API server: the memory of agents, and kube-proxy's cold start.
//!
//! Agents of the shipped binary run on two nodes (which are namespaces) as they are deployed, with full watches and with
//! spreading between them: without Services, and started anew when all objects are there. Then kube-proxy is, on a third one. Services have no status, so
//! kube-proxy has their cluster addresses to program and no others: less than Landfall, which has their lb_ips.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::{Distribution, percentile};
use bench::report::Report;
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
const AGENTS: [&str; 2] = ["l1", "l2"];

/// The node with kube-proxy.
const PEER: &str = "l3";

/// Services.
const COUNT: usize = 10_000;

/// Creates under way at a time.
const CREATORS: usize = 64;

/// How long anything may take here. kube-proxy takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// Measures.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let binary = root().join("target/x86_64-unknown-linux-musl/release/landfall");
    ensure!(binary.is_file(), "no {}: `make build`", binary.display());
    let settle = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let stage = Stage::with_nodes("bench-dataplane", 3).await?;
    let agents = AGENTS.map(|node| agent(&stage, node, &binary));
    let agents = agents.into_iter().collect::<Result<Vec<_>>>()?;
    report.part(&format!("Resident memory of agents, {} s after the last change", settle.as_secs()));
    rss(bench, report, &agents, settle, ("rss_mib_empty", "without Services", "12 or less")).await?;
    // They would follow every single step of what comes now, and take the time of who makes it.
    for agent in &agents {
        agent.end().await?;
    }

    let begun = Instant::now();
    fill(&stage).await?;
    bench.progress(&format!("{COUNT} Services, slices and records made in {} s", begun.elapsed().as_secs()))?;
    stage.settle().await?;
    let agents = AGENTS.map(|node| agent(&stage, node, &binary));
    let agents = agents.into_iter().collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    for node in AGENTS {
        let host = stage.node(node);
        wait_until(PATIENCE, "an agent to have programmed everything", async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let table = host.output(["nft", "list", "table", "ip", "landfall"])?;
            let last = table.contains(&Writer::address(COUNT as u16 - 1).to_string());
            ensure!(last, "the last address is not there");
            Ok(())
        })
        .await?;
    }
    bench.progress(&format!("agents have programmed them {} s after their start", begun.elapsed().as_secs()))?;
    rss(bench, report, &agents, settle, ("rss_mib_10k", "10,000 Services × 2 endpoints", "40 or less")).await?;
    one_change(bench, report, &stage).await?;
    for agent in &agents {
        agent.end().await?;
    }
    stage.settle().await?;

    let proxy = KubeProxy::start(&stage, PEER)?;
    let seconds = proxy.synced(PATIENCE).await?;
    let ports = proxy.ports()?;
    ensure!(ports >= COUNT, "kube-proxy says that it is done, and has {ports} ports of Services");
    bench.progress(&format!("kube-proxy has programmed them in {seconds:.1} s"))?;
    report.part("kube-proxy nftables, cold, 10,000 Services × 2 endpoints");
    report.row("its full sync, by its own count", &format!("{seconds:8.1} s"));
    report.row("its resident memory", &format!("{:8.1} MiB", proxy.actor.rss()?));
    report.figure("kube_proxy_cold_10k_s", seconds);
    if let Some(ours) = report.get("cold_10k_s") {
        report.row("Landfall is faster by", &format!("{:8.0} times  goal 100 or more", seconds / ours));
    }
    proxy.actor.end().await?;
    stage.strike()
}

fn agent(stage: &Stage, node: &str, binary: &Path) -> Result<Actor> {
    stage.enter_on(&stage.node(node), "landfall", binary, &["node", "--node-name", node])
}

async fn rss(
    bench: &Bench,
    report: &mut Report,
    agents: &[Actor],
    settle: Duration,
    of: (&str, &str, &str),
) -> Result<()> {
    let (figure, what, goal) = of;
    tokio::time::sleep(settle).await;
    let found = agents.iter().map(|agent| agent.check().and_then(|()| agent.rss())).collect::<Result<Vec<_>>>()?;
    let spread = Distribution::from_values(&found).context("invariant: there are agents")?;
    bench.progress(&format!("an agent has {:.1} MiB {what}", spread.median))?;
    report.measurement(figure, what, spread, ("MiB", goal));
    Ok(())
}

/// Endpoints of the n-th Service, one on each node with an agent.
fn endpoints(n: usize) -> [(IpAddr, &'static str); 2] {
    let at = |node: u32| Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + 2 * n as u32 + node).into();
    [(at(0), AGENTS[0]), (at(1), AGENTS[1])]
}

fn name(n: usize) -> String {
    format!("s-{n:05}")
}

/// Makes Services, slices and records.
async fn fill(stage: &Stage) -> Result<()> {
    let services: Api<Service> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let (writer, params) = (Writer::new(stage.client.clone(), LANDFALL), PostParams::default());
    let made = stream::iter(0..COUNT).map(|n| {
        let (services, slices, writer, params) = (&services, &slices, &writer, &params);
        async move {
            let service = serde_json::from_value(service(&name(n), None))?;
            let slice = serde_json::from_value(slice(&name(n), 8080, &endpoints(n)))?;
            let service = services.create(params, &service).await.context("create a Service")?;
            slices.create(params, &slice).await.context("create a slice")?;
            writer.record(&service, Writer::address(n as u16)).await
        }
    });
    made.buffer_unordered(CREATORS).try_for_each(async |()| Ok(())).await
}

/// One slice is changed, and an agent's kernel follows: everything from the write on, the API server's part too.
async fn one_change(bench: &Bench, report: &mut Report, stage: &Stage) -> Result<()> {
    let (changes, begun) = (if bench.quick { 20 } else { 100 }, Instant::now());
    let (slices, host) = (Api::<EndpointSlice>::namespaced(stage.client.clone(), NAMESPACE), stage.node(AGENTS[0]));
    let change = async |n: usize| {
        let endpoints = slice(&name(n), 8080, &endpoints(COUNT + n))["endpoints"].clone();
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        slices.patch(&name(n), &PatchParams::default(), &patch).await.context("change a slice")?;
        anyhow::Ok(Instant::now())
    };
    let commits = Commits::begin(&host)?;
    // Until it listens.
    wait_until(Duration::from_secs(30), "nft to tell of a change", async || {
        let n = COUNT - 1 - begun.elapsed().as_millis() as usize % 1000;
        change(n).await?;
        block_in_place(|| commits.next(Duration::from_secs(1)))
    })
    .await?;
    let mut times = Vec::new();
    for n in 0..changes {
        block_in_place(|| commits.settle());
        let written = change(n).await?;
        let seen = block_in_place(|| commits.next(Duration::from_secs(10)))?;
        times.push(seen.saturating_duration_since(written).as_secs_f64() * 1e3);
    }
    let at = |share| percentile(&times, share).unwrap_or_default();
    report.part(&format!("One slice written at 10,000 Services, {changes} times: from the answer to its writer"));
    report.row("until the kernel of an agent's node has it", &format!("p50 {:.1}  p99 {:.1} ms", at(0.5), at(0.99)));
    Ok(())
}

/// What nf_tables commits in a host's namespace, as `nft monitor` prints it. It ends with this.
struct Commits {
    monitor: Child,
    lines: mpsc::Receiver<Instant>,
}

impl Commits {
    /// Those from now on. It takes a moment until the first is seen.
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

    /// Waits for one.
    fn next(&self, within: Duration) -> Result<Instant> {
        self.lines.recv_timeout(within).context("no change of the kernel")
    }

    /// Forgets those that have been seen, and waits until there are no more of them.
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
