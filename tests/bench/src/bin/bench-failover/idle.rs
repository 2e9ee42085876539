//! The cost of the agents of three idle nodes: CPU time, and writes to the API server.
//!
//! An agent on a real node takes less. On this LAN the kernel charges the whole way of a frame to its sender, through
//! the switch and into the sockets of all hosts. That part depends on the machine. Therefore a thread that only sends
//! the same Hellos ([`floor`]) is measured right after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::distribution::Distribution;
use bench::report::Report;
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
    let (agent, wire) = (distribution(&agents)?, distribution(&wires)?);
    let (seconds, ours) = (time.as_secs(), count_ours(&written) + events(testbed).await?.saturating_sub(events_before));
    bench.progress(&format!("idle for {seconds} s: {:.2} % of a core for an agent, {ours} writes", agent.median))?;
    report.part(&format!("{} idle nodes, {seconds} s", NODES.len()));
    report.row("CPU of an agent", &format!("{}  goal 0.3 or less", core_share(agent)));
    report.row("of that, the wire thread", &core_share(wire));
    let floor = measure_floors(testbed, time / 4)?;
    report.row("a thread that only sends the same Hellos", &core_share(floor));
    let ratio = |s: Distribution| format!("{:8.2}  times that", s.median / floor.median);
    report.row("an agent", &ratio(agent));
    report.row("the wire thread", &ratio(wire));
    report.row("writes of agents and controllers", &format!("{ours:8}  goal 0"));
    report.row("writes of all", &format!("{written:?}"));
    report.figure("idle_cpu_percent", agent.median);
    report.figure("idle_wire_cpu_percent", wire.median);
    report.figure("idle_floor_cpu_percent", floor.median);
    report.figure("idle_floor_ratio", agent.median / floor.median);
    report.figure("idle_wire_floor_ratio", wire.median / floor.median);
    report.figure("idle_api_writes", ours as f64);
    Ok(())
}

/// The CPU time that only the Hellos of each node take, one node after the other.
fn measure_floors(testbed: &FailoverTestbed, time: Duration) -> Result<Distribution> {
    let mut floors = Vec::new();
    for node in NODES {
        let host = testbed.world.cluster.node(node);
        let floor = floor::hello_cpu_percent(&host, mac(&host)?, &testbed.client, time);
        floors.push(floor.with_context(|| format!("the floor on {node}"))?);
    }
    distribution(&floors)
}

fn distribution(values: &[f64]) -> Result<Distribution> {
    Distribution::from_values(values).context("invariant: there are nodes")
}

fn core_share(share: Distribution) -> String {
    format!("{:8.3}  ({:.3} to {:.3}) % of a core", share.median, share.min, share.max)
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
