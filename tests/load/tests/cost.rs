//! The prober's own CPU time. It must be small, because tests run beside clusters on small machines.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use load::{Clock, OpenFlows, Prober, Server, Transport, TryPlan};
use netns::Namespace;

/// CPU time of this process's threads with one of these names, in clock ticks of 10 ms.
fn cpu_ticks(names: &[&str]) -> Result<u64> {
    let mut ticks = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let path = thread?.path();
        // A thread may end at any time.
        let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
        let (name, fields) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")).context("a stat")?;
        if names.contains(&name) {
            // utime and stime are the fields 14 and 15; the first field here is number 3.
            let fields: Vec<&str> = fields.split(' ').collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
    }
    Ok(ticks)
}

#[test]
fn a_thousand_tries_and_flows_need_less_than_half_a_core() -> Result<()> {
    let host = Namespace::new()?;
    let address = SocketAddr::from(([127, 0, 0, 1], 80));
    let _server = Server::start(address, "a", Some(&host))?;
    let clock = Clock::start();
    let interval = Duration::from_secs(1);
    let flows = OpenFlows { interval, ..OpenFlows::new(address, 1000) }.open(Some(&host), clock)?;
    let names = ["load-tries", "load-flows"];
    let (start, before) = (Instant::now(), cpu_ticks(&names)?);
    let plan = TryPlan { interval: Duration::from_millis(1), ..TryPlan::new(address, Transport::Tcp) };
    let prober = Prober::start(plan, Some(&host), clock);
    std::thread::sleep(Duration::from_secs(4));
    let (time, ticks) = (start.elapsed(), cpu_ticks(&names)? - before);
    let (record, report) = (prober.stop()?, flows.end()?);
    let cores = ticks as f64 / 100.0 / time.as_secs_f64();
    ensure!(record.first_try_loss() == 0.0 && report.broken.is_empty(), "{record}; {:?}", report.reasons(|_| false));
    // On a busy machine the prober skips tries, so the bound is per try.
    let tries = record.tries.len() as f64 / time.as_secs_f64();
    ensure!(tries > 100.0 && cores / tries < 0.5 / 1000.0, "{cores:.3} cores for {tries:.0} tries per second");
    eprintln!("{cores:.3} cores for {tries:.0} tries per second and 1,000 open connections");
    Ok(())
}
