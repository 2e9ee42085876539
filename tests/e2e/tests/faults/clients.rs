//! Continuous load on one address, beside the same load on a server that no part of Landfall forwards to.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::World;
use load::{
    Bounds, Clock, Control, FlowReport, HeldFlows, OpenFlows, Prober, Record, Server, Transport, TryPlan, Verdict,
    WakeupThread, verdict,
};

/// Open connections, spread over all pods.
const FLOWS: usize = 60;

/// Time between two new connections.
const INTERVAL: Duration = Duration::from_millis(20);

/// An open connection without an answer for this long is broken. TCP retransmits after 0.2, 0.6, 1.4, 3, 6.2 and
/// 12.6 s.
const SILENCE: Duration = Duration::from_secs(13);

/// The port of the control, at the control plane.
const CONTROL_PORT: u16 = 7000;

/// A run on a machine that was later than this shows nothing.
const LATENESS: Duration = Duration::from_millis(250);

/// Agents on a machine that is this late can miss the window of Hellos, which is 150 ms.
const MISSED_HELLO: Duration = Duration::from_millis(75);

/// Clients notice no shorter gap.
const NOTICEABLE: Duration = Duration::from_millis(150);

/// Runs on a machine that is late.
pub const RUNS: usize = 3;

/// Clients of one address, on the first client host.
pub struct Clients {
    prober: Prober,
    flows: HeldFlows,
    past_landfall: Prober,
    wakeups: WakeupThread,
    _server: Server,
}

/// Results of all clients.
pub struct LoadReport {
    pub record: Record,
    pub flows: FlowReport,
    pub control: Control,
}

impl Clients {
    /// Opens connections, and starts to send requests over new ones.
    pub fn start(world: &World, address: IpAddr) -> Result<Self> {
        let (client, cp) = (world.cluster.client_host("c1").netns()?, world.cluster.control_plane());
        let clock = Clock::start();
        let control = SocketAddr::new(cp.ipv4().into(), CONTROL_PORT);
        let server = Server::start(control, "control", Some(&cp.netns()?))?;
        let plan = |target| TryPlan { interval: INTERVAL, ..TryPlan::new(target, Transport::Tcp) };
        let target = SocketAddr::new(address, 80);
        let flows = OpenFlows { timeout: SILENCE, ..OpenFlows::new(target, FLOWS) }.open(Some(&client), clock)?;
        let past_landfall = Prober::start(plan(control), Some(&client), clock);
        let prober = Prober::start(plan(target), Some(&client), clock);
        Ok(Self { prober, flows, past_landfall, wakeups: WakeupThread::start(clock), _server: server })
    }

    /// Stops all clients, after a last request on each open connection.
    pub fn end(self) -> Result<LoadReport> {
        let record = self.prober.stop()?;
        let flows = self.flows.end()?;
        let control = Control { tries: Some(self.past_landfall.stop()?), wakeups: self.wakeups.stop()? };
        Ok(LoadReport { record, flows, control })
    }
}

impl LoadReport {
    /// Prints the figures, whatever the verdict is.
    pub fn print(&self, event: &str) {
        let (broken, flows) = (self.flows.broken.len(), self.flows.flows);
        let late = self.control.greatest_lateness();
        eprintln!("  {event}: {broken} of {flows} open connections broke; machine {late:.0?} late; {}", self.record);
    }

    /// The verdict on a fault after which new connections may have no answer for `gap`, and open connections may break
    /// if their server `may_break`.
    pub fn verdict(&self, gap: Duration, may_break: impl Fn(&str) -> bool) -> Verdict {
        let slow = (gap.as_millis() / INTERVAL.as_millis()) as usize + 2;
        let bounds = Bounds {
            // If a busy machine answers late, the client probes for a lost tail (RFC 8985), and that counts as a
            // loss. Lost SYNs are slow.
            loss: 1.0,
            gap: gap.max(NOTICEABLE),
            slow_after: Duration::from_millis(900),
            slow,
            tries: 50,
            lateness: LATENESS,
        };
        let mut reasons = self.flows.reasons(may_break);
        let unanswered = self.record.unanswered_count();
        if unanswered > 0 {
            reasons.push(format!("{unanswered} new connections had no answer: {}", self.record));
        }
        self.excuse_late_machine(verdict(&self.record, &self.control, &bounds).add_reasons(reasons))
    }

    /// A failure on a machine on which agents can miss the window of Hellos shows nothing.
    pub fn excuse_late_machine(&self, verdict: Verdict) -> Verdict {
        let late = self.control.greatest_lateness();
        match verdict {
            Verdict::Failed(reasons) if late > MISSED_HELLO => {
                Verdict::MachineLate(format!("it was {late:.1?} late: {}", reasons.join("; ")))
            }
            verdict => verdict,
        }
    }

    /// Fails unless open connections to these servers broke, which is a defect that is not mended yet. If this fails,
    /// the defect is mended: remove the exception.
    pub fn expect_known_defect(&self, breaks: impl Fn(&str) -> bool, defect: &str) -> Result<()> {
        let broken = self.flows.broken.iter().filter(|flow| breaks(&flow.server)).count();
        ensure!(broken > 0, "no open connection broke: is this defect mended? {defect}");
        eprintln!("  known defect: {defect} ({broken} of {} open connections broke)", self.flows.flows);
        Ok(())
    }
}
