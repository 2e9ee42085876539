//! Programming an empty kernel: the time from the snapshot to the acknowledgement of the last address.
//!
//! Each run has its own network namespace and the event loop of a deployed agent. The time excludes listing and
//! decoding the objects. The time of kube-proxy excludes both, too: it is the duration of its own full sync
//! ([`crate::kube_proxy`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bench::report::{FigureSpec, Report, median_text};
use netns::Namespace;

use crate::Bench;
use crate::agent::Agent;
use crate::synthetic::{self, MAC, Size};

pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let runs: u32 = if bench.quick { 5 } else { 7 };
    report.part(&format!("Cold programming, with spreading ({runs} runs each)"));
    for (key, size, goal) in [
        ("cold_library_10k_s", Size { services: 10_000, endpoints: 2, spread: true }, "0.5 or less"),
        ("cold_library_30k_s", Size { services: 30_000, endpoints: 4, spread: true }, "2 or less"),
    ] {
        let snapshot = Arc::new(synthetic::snapshot(size, None)?);
        let (mut seconds, cpu_before) = (Vec::new(), cpu()?);
        for _ in 0..runs {
            seconds.push(time_run(&snapshot, size).await?);
        }
        let cpu_seconds = (cpu()? - cpu_before).as_secs_f64() / f64::from(runs);
        bench.progress(&format!("{} Services: {} s", size.services, median_text(&seconds)))?;
        let label = format!("{} Services × {} endpoints", size.services, size.endpoints);
        report.measure(FigureSpec::lower(key, &label, "s").goal(goal), &seconds);
        report.row("  CPU time of a run, including the removal of the tables", &format!("{cpu_seconds:8.2} s"));
    }
    Ok(())
}

async fn time_run(snapshot: &Arc<dataplane::Snapshot>, size: Size) -> Result<f64> {
    let node = Namespace::new()?;
    node.ip([
        format!("link add eth0 address {MAC} type veth peer name lan"),
        "link set eth0 up".into(),
        "link set lan up".into(),
    ])?;
    node.sysctl("ipv4.ip_forward", "1")?;
    let mut agent = Agent::start(&node);
    let begun = Instant::now();
    agent.publish(Arc::clone(snapshot));
    let done = agent.wait_for_addresses(size.services as usize).await?;
    agent.end()?;
    Ok((done - begun).as_secs_f64())
}

/// The CPU time of this process so far.
fn cpu() -> Result<Duration> {
    Ok(bench::usage::cpu(std::process::id() as i32, "")?.0)
}
