//! Takeovers without a reason: all processors are busy for minutes, and no node may be declared dead.
//!
//! Each processor runs a burner, a process that computes. The rest of the cluster, agents and kubelets included, gets
//! the remaining time. A takeover is an announcement of an address with another MAC address than before, as the client
//! receives it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::report::{FigureSpec, Report};
use bench::sniffer::{Sniffer, changes};
use tokio::time::sleep;

use crate::Bench;
use crate::testbed::{FailoverTestbed, NODES};

/// The time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// Processes that compute. They end after their time, with this process, and when this is dropped.
struct Burners(Vec<Child>);

impl Burners {
    fn start(time: Duration) -> Result<Self> {
        let processors = std::thread::available_parallelism().context("count processors")?.get();
        let own = std::env::current_exe().context("find this program")?;
        let mut burners = Self(Vec::new());
        for _ in 0..processors {
            let mut burner = Command::new(&own);
            burner.args(["burn", &time.as_secs().to_string()]).stdin(Stdio::null());
            burners.0.push(burner.spawn().context("start a burner")?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            // It may have ended.
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

/// Computes for `time`, or until the parent process has ended.
pub fn burn(time: Duration) {
    let (begun, parent) = (Instant::now(), std::os::unix::process::parent_id());
    let mut n = 0u64;
    while begun.elapsed() < time && std::os::unix::process::parent_id() == parent {
        for _ in 0..10_000_000 {
            n = std::hint::black_box(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &FailoverTestbed) -> Result<()> {
    let minutes = if bench.quick { 1 } else { 10 };
    let time = Duration::from_secs(60 * minutes);
    // The node that was healed last receives the claims of all others.
    sleep(Duration::from_secs(5)).await;
    let sniffer = Sniffer::begin(&testbed.client)?;
    let cpu_before = cpu(testbed)?;
    let burners = Burners::start(time + PROGRESS_INTERVAL)?;
    let count = burners.0.len();
    for minute in 1..=minutes {
        sleep(PROGRESS_INTERVAL).await;
        bench.progress(&format!("busy processors: {minute} of {minutes} min"))?;
    }
    drop(burners);
    let agent_cpu = (cpu(testbed)? - cpu_before).as_secs_f64() / time.as_secs_f64() * 100.0 / NODES.len() as f64;
    let announcements = sniffer.end()?;
    // An owner refreshes its addresses at least once a minute. Without announcements the sniffer is broken.
    ensure!(!announcements.is_empty(), "no address was announced in {minutes} min");
    let takeovers = changes(&announcements);
    bench.progress(&format!("{takeovers} takeovers without a reason"))?;
    report.part(&format!("{count} burners on as many processors, {minutes} min"));
    let name = format!("false_takeovers_{minutes}_min");
    let spec = FigureSpec::lower(&name, "takeovers without a reason", "takeovers").goal("0");
    report.count(spec, takeovers, 1);
    report.row("announcements received", &format!("{:8}", announcements.len()));
    report.row("CPU of an agent meanwhile", &format!("{agent_cpu:8.2} % of a core"));
    Ok(())
}

fn cpu(testbed: &FailoverTestbed) -> Result<Duration> {
    NODES.iter().map(|node| Ok(crate::idle::cpu(testbed, node)?.0)).sum()
}
