//! What the agents of three nodes cost when nothing happens: CPU time, and writes to the API server.
//!
//! It is more than an agent on a node of its own would take: on this LAN the kernel has the sender of a frame pay for all of its
//! way, through the switch and into the sockets of all hosts. How much that is depends on the machine; so a thread that does
//! nothing but send the same Hellos ([`floor`]) is measured right after.

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

use crate::testbed::{NODES, Stand, mac};
use crate::{Bench, floor};

/// The thread of an agent that hears and speaks on the wire.
const WIRE: &str = "landfall-wire";

/// What agents and controllers write to, as the API server names it. Kubernetes itself writes to none of these while nothing
/// happens. The controllers' Lease, which their leader renews for being one, is not counted. Events are counted by who tells
/// them: kubelets go on about pods without a cluster's DNS.
const WRITTEN: [&str; 8] = [
    "ipaddresspools",
    "ipaddresspools/status",
    "l2advertisements",
    "loadbalancerips",
    "loadbalancerips/status",
    "nodenetworks",
    "services",
    "services/status",
];

/// After something happened it takes so long until nothing does: announcements are repeated, connections are closed.
const SETTLE: Duration = Duration::from_secs(10);

/// Measures.
pub async fn measure(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let time = Duration::from_secs(if bench.quick { 30 } else { 120 });
    sleep(SETTLE).await;
    let (written, told, begun) = (writes(stand).await?, events(stand).await?, Instant::now());
    let before: Vec<_> = NODES.iter().map(|node| cpu(stand, node)).collect::<Result<_>>()?;
    sleep(time).await;
    let after: Vec<_> = NODES.iter().map(|node| cpu(stand, node)).collect::<Result<_>>()?;
    let time = begun.elapsed();
    let written = metrics::since(&written, &writes(stand).await?);
    let (mut agents, mut wires) = (Vec::new(), Vec::new());
    for (before, after) in before.iter().zip(&after) {
        agents.push(usage::percent(after.0.saturating_sub(before.0), time));
        wires.push(usage::percent(after.1.saturating_sub(before.1), time));
    }
    let spread = |values: &[f64]| Distribution::from_values(values).context("invariant: there are nodes");
    let (agent, wire) = (spread(&agents)?, spread(&wires)?);
    let (seconds, ours) = (time.as_secs(), of_ours(&written) + events(stand).await?.saturating_sub(told));
    bench.progress(&format!("idle for {seconds} s: {:.2} % of a core for an agent, {ours} writes", agent.median))?;
    report.part(&format!("{} nodes on which nothing happens, {seconds} s", NODES.len()));
    let text = |s: Distribution| format!("{:8.3}  ({:.3} to {:.3}) % of a core", s.median, s.min, s.max);
    report.row("CPU of an agent", &format!("{}  goal 0.3 or less", text(agent)));
    report.row("of that, the thread of the wire", &text(wire));
    let floor = floors(stand, time / 4)?;
    report.row("a thread that only sends the same Hellos", &text(floor));
    let ratio = |s: Distribution| format!("{:8.2}  times that", s.median / floor.median);
    report.row("an agent", &ratio(agent));
    report.row("the thread of the wire", &ratio(wire));
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

/// What the Hellos of each node cost by themselves, one node after the other.
fn floors(stand: &Stand, time: Duration) -> Result<Distribution> {
    let of = |node: &&str| {
        let host = stand.world.cluster.node(node);
        floor::hellos(&host, mac(&host)?, &stand.client, time).with_context(|| format!("the floor on {node}"))
    };
    let floors: Vec<f64> = NODES.iter().map(of).collect::<Result<_>>()?;
    Distribution::from_values(&floors).context("invariant: there are nodes")
}

/// The CPU time of the agent on a node so far, and that of its thread of the wire.
///
/// # Errors
/// If there is no agent, or more than one.
pub fn cpu(stand: &Stand, node: &str) -> Result<(Duration, Duration)> {
    let agents = stand.world.cluster.node(node).processes("landfall node");
    let [(pid, _)] = agents[..] else { anyhow::bail!("agents on {node}: {agents:?}") };
    usage::cpu(pid, WIRE)
}

async fn writes(stand: &Stand) -> Result<BTreeMap<String, u64>> {
    let page = stand.world.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    Ok(metrics::writes(&page))
}

/// How often agents and controllers have told an event so far.
async fn events(stand: &Stand) -> Result<u64> {
    let all = Api::<Event>::all(stand.world.client.clone()).list(&ListParams::default()).await?;
    let is_ours = |event: &&Event| event.reporting_component.as_deref().is_some_and(|who| who.starts_with("landfall"));
    let times = |event: &Event| {
        let series = event.series.as_ref().and_then(|series| series.count);
        u64::try_from(series.or(event.count).unwrap_or(1)).unwrap_or(1)
    };
    Ok(all.items.iter().filter(is_ours).map(times).sum())
}

fn of_ours(written: &BTreeMap<String, u64>) -> u64 {
    WRITTEN.iter().filter_map(|name| written.get(*name)).sum()
}
