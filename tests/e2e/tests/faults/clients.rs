//! Clients of an address during faults of hosts: new connections, and connections that stay open.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use e2e::{Target, Traffic, TrafficPlan, TrafficRun, World};
use load::{Bounds, OpenFlows, Transport, Verdict};

/// Open connections, spread over all pods.
const FLOWS: usize = 60;

/// An open connection without an answer for this long is broken. TCP retransmits after 0.2, 0.6, 1.4, 3, 6.2 and
/// 12.6 s.
const SILENCE: Duration = Duration::from_secs(13);

/// A run on a machine that was later than this shows nothing.
const LATENESS: Duration = Duration::from_millis(250);

/// Clients notice no shorter gap.
const NOTICEABLE: Duration = Duration::from_millis(150);

/// Opens connections, and starts to send requests over new ones.
pub async fn start(world: &World, address: IpAddr) -> Result<Traffic> {
    let target = SocketAddr::new(address, 80);
    let plan = TrafficPlan::new([Target::new("new connections", target, Transport::Tcp)]);
    let flows = OpenFlows { timeout: SILENCE, ..OpenFlows::new(target, FLOWS) };
    plan.with_flows(flows).past_nodes().start(world).await
}

/// The verdict on a fault, with other reasons of the scene. New connections may have no answer for `gap`. Open
/// connections to a pod may break if `may_break` returns true for the pod.
pub fn check(run: &TrafficRun, gap: Duration, may_break: impl Fn(&str) -> bool, reasons: Vec<String>) -> Verdict {
    let interval = run.records.iter().map(|(target, _)| target.plan.interval).max().unwrap_or_default();
    let bounds = Bounds {
        // If a busy machine answers late, the client probes for a lost tail (RFC 8985), and that counts as a loss.
        // Lost SYNs are slow.
        loss: 1.0,
        gap: gap.max(NOTICEABLE),
        slow_after: Duration::from_millis(900),
        slow: (gap.as_millis() / interval.as_millis().max(1)) as usize + 2,
        tries: 50,
        lateness: LATENESS,
    };
    let reasons = [reasons, run.flow_reasons(may_break), run.unanswered_reasons()].concat();
    run.excuse_late_machine(run.verdict(&bounds, reasons))
}
