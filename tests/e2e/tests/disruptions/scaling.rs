//! A Deployment that is scaled, with connections that are idle meanwhile and others that are used.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use e2e::traffic::{NOTHING_LOST, RUNS};
use e2e::world::SOON;
use e2e::{Traffic, TrafficPlan, World};
use lab::wait_until;
use load::{OpenFlows, repeat_while_late};
use serde_json::json;

/// Connections of each kind.
const FLOWS: usize = 60;

/// The idle time of a connection after its first request. It is longer than the scene, so the connection is idle until
/// its last request, at the end.
const IDLE: Option<Duration> = Some(Duration::from_secs(3600));
const USED: Option<Duration> = None;

pub async fn scaling_breaks_no_flow(world: &World) -> Result<()> {
    world.create_whoami("scaled", 1).await?;
    world.create_service("scaled", json!({})).await?;
    let target = SocketAddr::new(world.wait_for_address("scaled").await?, 80);
    let verdict = repeat_while_late(RUNS, async || {
        scale(world, 1).await?;
        wait_until(SOON, "an answer", async || world.lan.query_tcp(target.ip())).await?;
        let mut flows = vec![
            ("idle, began with one pod", open(world, target, IDLE).await?),
            ("used, began with one pod", open(world, target, USED).await?),
        ];
        scale(world, 3).await?;
        flows.push(("idle, began with three pods", open(world, target, IDLE).await?));
        // The three pods stay when the Deployment is scaled down.
        let cost = "controller.kubernetes.io/pod-deletion-cost=100";
        world.kubectl(&["annotate", "pods", "--selector", "app=scaled", "--overwrite", cost])?;
        scale(world, 6).await?;
        scale(world, 3).await?;
        let living: BTreeSet<String> = world.pod_nodes("scaled").await?.into_iter().map(|(pod, _)| pod).collect();
        let mut verdicts = Vec::new();
        for (name, traffic) in flows {
            let run = traffic.stop()?;
            run.print(name);
            let reasons = run.flow_reasons(|pod| !living.contains(pod));
            verdicts.push(run.excuse_late_machine(run.verdict(&NOTHING_LOST, reasons)));
        }
        let failed = verdicts.iter().position(|verdict| *verdict != load::Verdict::Passed);
        Ok(verdicts.swap_remove(failed.unwrap_or(0)))
    });
    verdict.await?.into_result()
}

async fn scale(world: &World, pods: i32) -> Result<()> {
    world.scale("scaled", pods).await?;
    world.wait_for_endpoints("scaled", usize::try_from(pods)?).await
}

/// Opens connections that are idle for this time.
async fn open(world: &World, target: SocketAddr, idle: Option<Duration>) -> Result<Traffic> {
    let flows = OpenFlows { idle, ..OpenFlows::new(target, FLOWS) };
    TrafficPlan::new([]).with_flows(flows).start(world).await
}
