//! Planned work on Landfall's nodes, with clients and open connections: a drain of the announcer, and a rolling restart
//! of all agents.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::traffic::{ALMOST_NOTHING_LOST, NOTHING_LOST, RUNS};
use e2e::world::{AGENT_PROCESS, SOON, SYSTEM};
use e2e::{Target, TrafficPlan, World};
use lab::wait_until;
use load::{Bounds, OpenFlows, repeat_while_late};
use serde_json::json;

/// Connections that stay open during the work.
const FLOWS: usize = 200;

/// Time between two requests on each of them. All together send as many requests as a prober.
const FLOW_INTERVAL: Duration = Duration::from_secs(2);

/// Clients with an old neighbour entry still send packets to a drained node for this long.
const OLD_NEIGHBOURS: Duration = Duration::from_secs(2);

const NODES: [&str; 3] = ["n1", "n2", "n3"];

pub async fn a_drain_and_new_agents_break_no_flow(world: &World) -> Result<()> {
    world.create_whoami("steady", 3).await?;
    world.create_service("steady", json!({})).await?;
    let target = SocketAddr::new(world.wait_for_address("steady").await?, 80);
    wait_until(SOON, "all pods to answer", async || {
        let seen = world.lan.answering_pods(40, target.ip())?;
        ensure!(seen.len() == 3, "{seen:?}");
        Ok(())
    })
    .await?;
    let drain = Bounds { tries: 100, ..NOTHING_LOST };
    expect_no_loss(world, "drain of the announcer", target, &drain, async || drain_announcer(world, target).await)
        .await?;
    let restart = async || restart_agents(world).await;
    expect_no_loss(world, "rolling restart of the agents", target, &ALMOST_NOTHING_LOST, restart).await
}

/// Does some work with clients: all open connections must stay with their pods, and all requests be answered.
async fn expect_no_loss(
    world: &World,
    name: &str,
    target: SocketAddr,
    bounds: &Bounds,
    work: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let verdict = repeat_while_late(RUNS, async || {
        let flows = OpenFlows { interval: FLOW_INTERVAL, ..OpenFlows::new(target, FLOWS) };
        let plan = TrafficPlan::new(Target::over_both("steady", target.ip()));
        let traffic = plan.with_flows(flows).with_datagrams(target).start(world).await?;
        ensure!(traffic.pods_of_flows() == 3, "open connections to {} pods", traffic.pods_of_flows());
        work().await?;
        let run = traffic.stop()?;
        run.print(name);
        let reasons = [run.flow_reasons(|_| false), run.unanswered_reasons()].concat();
        Ok(run.excuse_late_machine(run.verdict(bounds, reasons)))
    });
    verdict.await?.into_result()
}

async fn drain_announcer(world: &World, target: SocketAddr) -> Result<()> {
    let node = world.wait_for_announcer(target.ip()).await?;
    world.kubectl(&["label", &format!("node/{node}"), "landfall.dev/drain=true"])?;
    let moved = wait_until(SOON, "another node to announce the address", async || {
        let announcer = world.wait_for_announcer(target.ip()).await?;
        ensure!(announcer != node, "still {node}");
        Ok(())
    });
    let moved = moved.await;
    tokio::time::sleep(OLD_NEIGHBOURS).await;
    world.kubectl(&["label", &format!("node/{node}"), "landfall.dev/drain-"])?;
    moved
}

async fn restart_agents(world: &World) -> Result<()> {
    let before = agents(world);
    world.kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/landfall-node"])?;
    world.kubectl(&["-n", SYSTEM, "rollout", "status", "daemonset/landfall-node", "--timeout=120s"])?;
    world.wait_until_installed().await?;
    let after = agents(world);
    ensure!(after.len() == NODES.len() && before.is_disjoint(&after), "agents {before:?}, then {after:?}");
    Ok(())
}

/// The processes of all agents.
fn agents(world: &World) -> BTreeSet<i32> {
    let on = |node| world.cluster.node(node).processes(AGENT_PROCESS).into_iter().map(|(pid, _)| pid);
    NODES.into_iter().flat_map(on).collect()
}
