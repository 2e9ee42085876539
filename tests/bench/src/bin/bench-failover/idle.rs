//! The cost of the agents of three idle nodes: CPU time, and writes to the API server.
//!
//! An agent on a real node takes less. On this LAN the kernel charges the whole way of a frame to its sender, through
//! the switch and into the sockets of all hosts. That part depends on the machine. Therefore a thread that only sends
//! the same Hellos ([`floor`]) is measured right after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::distribution::ratios;
use bench::report::{FigureSpec, Report, median_text};
use bench::{metrics, usage};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use tokio::time::sleep;

use crate::testbed::{FailoverTestbed, NODES, mac};
use crate::{Bench, floor};

/// The thread of an agent that sends and receives frames.
const WIRE: &str = "landfall-wire";

/// Resources that agents and controllers write, as the API server names them. Kubernetes does not write to them on an
/// idle cluster. The Lease is not counted, because its leader must renew it. Events are counted separately, by
/// reporter, because kubelets report pods without a cluster DNS forever.
const RESOURCES: [&str; 8] = [
    "ipaddresspools",
    "ipaddresspools/status",
    "l2advertisements",
    "loadbalancerips",
    "loadbalancerips/status",
    "nodenetworks",
    "services",
    "services/status",
];

/// The time after a change until repeated announcements and open connections have ended.
const SETTLE: Duration = Duration::from_secs(10);

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &FailoverTestbed) -> Result<()> {
    let time = Duration::from_secs(if bench.quick { 30 } else { 120 });
    sleep(SETTLE).await;
    let (writes_before, events_before, begun) = (writes(testbed).await?, events(testbed).await?, Instant::now());
    let cpu_before: Vec<_> = NODES.iter().map(|node| cpu(testbed, node)).collect::<Result<_>>()?;
    sleep(time).await;
    let cpu_after: Vec<_> = NODES.iter().map(|node| cpu(testbed, node)).collect::<Result<_>>()?;
    let time = begun.elapsed();
    let written = metrics::since(&writes_before, &writes(testbed).await?);
    let (mut agents, mut wires) = (Vec::new(), Vec::new());
    for (before, after) in cpu_before.iter().zip(&cpu_after) {
        agents.push(usage::percent(after.0.saturating_sub(before.0), time));
        wires.push(usage::percent(after.1.saturating_sub(before.1), time));
    }
    let (seconds, ours) = (time.as_secs(), count_ours(&written) + events(testbed).await?.saturating_sub(events_before));
    bench
        .progress(&format!("idle for {seconds} s: {} % of a core for an agent, {ours} writes", median_text(&agents)))?;
    report.part(&format!("{} idle nodes, {seconds} s", NODES.len()));
    let spec = FigureSpec::lower("idle_cpu_percent", "CPU of an agent", "% of a core").goal("0.3 or less");
    report.measure(spec, &agents);
    report.measure(FigureSpec::lower("idle_wire_cpu_percent", "of that, the wire thread", "% of a core"), &wires);
    let floors = measure_floors(testbed, time / 4)?;
    report.distribution("a thread that only sends the same Hellos", &floors, "% of a core");
    let spec = FigureSpec::lower("idle_vs_bare_hellos", "an agent to this thread", "ratio");
    report.measure(spec, &ratios(&agents, &floors));
    let spec = FigureSpec::lower("idle_wire_vs_bare_hellos", "the wire thread to this thread", "ratio");
    report.measure(spec, &ratios(&wires, &floors));
    let spec = FigureSpec::lower("idle_api_writes", "writes of agents and controllers", "writes").goal("0");
    report.count(spec, ours as usize, 1);
    report.row("writes of all", &format!("{written:?}"));
    Ok(())
}

/// The CPU time that only the Hellos of each node take, one node after the other.
fn measure_floors(testbed: &FailoverTestbed, time: Duration) -> Result<Vec<f64>> {
    let mut floors = Vec::new();
    for node in NODES {
        let host = testbed.world.cluster.node(node);
        let floor = floor::hello_cpu_percent(&host, mac(&host)?, &testbed.client, time);
        floors.push(floor.with_context(|| format!("the floor on {node}"))?);
    }
    Ok(floors)
}

/// The CPU time so far of the agent on a node, and that of its wire thread. Fails unless exactly one agent runs there.
pub fn cpu(testbed: &FailoverTestbed, node: &str) -> Result<(Duration, Duration)> {
    let agents = testbed.world.cluster.node(node).processes("landfall node");
    let [(pid, _)] = agents[..] else { anyhow::bail!("agents on {node}: {agents:?}") };
    usage::cpu(pid, WIRE)
}

async fn writes(testbed: &FailoverTestbed) -> Result<BTreeMap<String, u64>> {
    let page = testbed.world.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    Ok(metrics::writes(&page))
}

/// The number of events of agents and controllers so far, repetitions included.
async fn events(testbed: &FailoverTestbed) -> Result<u64> {
    let all = Api::<Event>::all(testbed.world.client.clone()).list(&ListParams::default()).await?;
    let is_ours =
        |event: &&Event| event.reporting_component.as_deref().is_some_and(|reporter| reporter.starts_with("landfall"));
    let times = |event: &Event| {
        let series = event.series.as_ref().and_then(|series| series.count);
        u64::try_from(series.or(event.count).unwrap_or(1)).unwrap_or(1)
    };
    Ok(all.items.iter().filter(is_ours).map(times).sum())
}

fn count_ours(written: &BTreeMap<String, u64>) -> u64 {
    RESOURCES.iter().filter_map(|name| written.get(*name)).sum()
}
