//! Takeovers for which there is no reason: all processors are busy for minutes, and no node may be taken for dead.
//!
//! Each processor has a burner, a process that computes; agents, kubelets and the rest of the cluster get what that leaves.
//! A takeover is when an address is announced with another MAC than before, as the client hears it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::report::Report;
use bench::sniffer::{Sniffer, changes};
use tokio::time::sleep;

use crate::Bench;
use crate::testbed::{NODES, Stand};

/// How often to tell how far it is.
const TELL: Duration = Duration::from_secs(60);

/// Processes that compute. They end with this, with this process, and after their time.
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

/// Computes for so long, or until the parent process is gone.
pub fn burn(time: Duration) {
    let (begun, parent) = (Instant::now(), std::os::unix::process::parent_id());
    let mut n = 0u64;
    while begun.elapsed() < time && std::os::unix::process::parent_id() == parent {
        for _ in 0..10_000_000 {
            n = std::hint::black_box(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// Counts takeovers.
pub async fn measure(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let minutes = if bench.quick { 1 } else { 10 };
    let time = Duration::from_secs(60 * minutes);
    // Whoever was healed last has heard of everything.
    sleep(Duration::from_secs(5)).await;
    let sniffer = Sniffer::begin(&stand.client)?;
    let before = cpu(stand)?;
    let burners = Burners::start(time + TELL)?;
    let count = burners.0.len();
    for minute in 1..=minutes {
        sleep(TELL).await;
        bench.progress(&format!("busy processors: {minute} of {minutes} min"))?;
    }
    drop(burners);
    let agents = (cpu(stand)? - before).as_secs_f64() / time.as_secs_f64() * 100.0 / NODES.len() as f64;
    let heard = sniffer.end()?;
    // Who says nothing for a minute is not refreshed: then nothing was measured.
    ensure!(!heard.is_empty(), "no address was announced in {minutes} min");
    let takeovers = changes(&heard);
    bench.progress(&format!("{takeovers} takeovers without a reason"))?;
    report.part(&format!("{count} burners on as many processors, {minutes} min"));
    report.row("takeovers without a reason", &format!("{takeovers:8}  goal 0"));
    report.row("announcements heard", &format!("{:8}", heard.len()));
    report.row("CPU of an agent meanwhile", &format!("{agents:8.2} % of a core"));
    report.figure("false_takeovers", takeovers as f64);
    report.figure("false_takeover_minutes", minutes as f64);
    Ok(())
}

fn cpu(stand: &Stand) -> Result<Duration> {
    NODES.iter().map(|node| Ok(crate::idle::cpu(stand, node)?.0)).sum()
}
