//! Programming a kernel that has nothing: from a snapshot to the acknowledgement of the last address.
//!
//! A network namespace of its own for each run, and the loop of the agent as it is deployed. Listing the objects and reading
//! them is not in it, on either side: kube-proxy's time, beside, is that of its own full sync ([`crate::kube_proxy`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::distribution::Distribution;
use bench::report::Report;
use netns::Namespace;

use crate::Bench;
use crate::agent::Agent;
use crate::synthetic::{self, MAC, Size};

/// Measures.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let runs: u32 = if bench.quick { 3 } else { 7 };
    report.part(&format!("Cold programming, with spreading ({runs} runs each)"));
    for (figure, size, goal) in [
        ("cold_10k_s", Size { services: 10_000, endpoints: 2, spread: true }, "0.5 s or less"),
        ("cold_30k_s", Size { services: 30_000, endpoints: 4, spread: true }, "2 s or less"),
    ] {
        let snapshot = Arc::new(synthetic::snapshot(size, None)?);
        let (mut seconds, before) = (Vec::new(), cpu()?);
        for _ in 0..runs {
            seconds.push(once(&snapshot, size).await?);
        }
        let busy = (cpu()? - before).as_secs_f64() / f64::from(runs);
        let spread = Distribution::from_values(&seconds).context("invariant: there are runs")?;
        bench.progress(&format!("{} Services: {:.3} s", size.services, spread.median))?;
        let what = format!("{} Services × {} endpoints", size.services, size.endpoints);
        report.measurement(figure, &what, spread, ("s", goal));
        report.row("  CPU time of a run, the tables' removal with it", &format!("{busy:8.2} s"));
    }
    Ok(())
}

async fn once(snapshot: &Arc<dataplane::Snapshot>, size: Size) -> Result<f64> {
    let node = Namespace::new()?;
    node.ip([
        format!("link add eth0 address {MAC} type veth peer name lan"),
        "link set eth0 up".into(),
        "link set lan up".into(),
    ])?;
    node.sysctl("ipv4.ip_forward", "1")?;
    let mut agent = Agent::start(&node);
    let begun = Instant::now();
    agent.tell(Arc::clone(snapshot));
    let done = agent.knows(size.services as usize).await?;
    agent.end()?;
    Ok((done - begun).as_secs_f64())
}

/// The CPU time of this process so far.
fn cpu() -> Result<Duration> {
    Ok(bench::usage::cpu(std::process::id() as i32, "")?.0)
}
