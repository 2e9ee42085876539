//! Continuous requests of a client on the LAN, with the control: the same requests to a server on a node's own address,
//! which Landfall does not forward.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use lab::Host;
use load::{Bounds, Clock, Control, Prober, Record, Server, Transport, TryPlan, Verdict, WakeupThread, verdict};

use crate::world::World;

/// Time between two requests to a target. It leaves the cluster time for its work, and a client needs so few ports
/// that none is used twice within a minute.
const INTERVAL: Duration = Duration::from_millis(20);

/// The port of the control on the node.
const CONTROL_PORT: u16 = 4747;

/// The greatest number of runs while the machine is late.
pub const RUNS: usize = 3;

/// Bounds for changes that lose no request: not one is lost at the first try, and none is slow.
pub const NOTHING_LOST: Bounds = Bounds {
    loss: 0.0,
    gap: Duration::from_millis(250),
    // TCP sends data again after 200 ms, and a SYN after a second.
    slow_after: Duration::from_millis(200),
    slow: 0,
    tries: 20,
    lateness: Duration::from_millis(250),
};

/// An address that gets requests.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in failures.
    pub name: String,
    pub address: SocketAddr,
    pub transport: Transport,
}

impl Target {
    pub fn new(name: &str, address: SocketAddr, transport: Transport) -> Self {
        Self { name: name.to_owned(), address, transport }
    }

    /// The name and the protocol.
    pub fn label(&self) -> String {
        format!("{}, {:?}", self.name, self.transport)
    }
}

/// Sends requests to all targets until it is stopped or dropped.
pub struct Traffic {
    probers: Vec<(Target, Prober)>,
    past_landfall: Prober,
    wakeups: WakeupThread,
    server: Server,
}

/// Records of one run, and its control.
#[derive(Clone, Debug)]
pub struct TrafficRun {
    pub records: Vec<(Target, Record)>,
    pub control: Control,
}

impl Traffic {
    /// Starts to send requests from `client`. The control is on the node `n1`, which must stay powered on.
    ///
    /// # Errors
    /// If a host is off, or traffic of another client is running.
    pub fn start(world: &World, client: &Host, targets: impl IntoIterator<Item = Target>) -> Result<Self> {
        let node = world.cluster.node("n1");
        let control = SocketAddr::new(node.ipv4().into(), CONTROL_PORT);
        let server = Server::start(control, "control", Some(&node.netns()?))?;
        let (clock, namespace) = (Clock::start(), client.netns()?);
        let wakeups = WakeupThread::start(clock);
        let start = |address, transport| {
            let plan = TryPlan { interval: INTERVAL, ..TryPlan::new(address, transport) };
            Prober::start(plan, Some(&namespace), clock)
        };
        let past_landfall = start(control, Transport::Tcp);
        let start_target = |target: Target| {
            let prober = start(target.address, target.transport);
            (target, prober)
        };
        Ok(Self { probers: targets.into_iter().map(start_target).collect(), past_landfall, wakeups, server })
    }

    /// Returns the tries that have ended since the last call. Open tries are left to the next run.
    pub fn take_run(&self) -> TrafficRun {
        let records = self.probers.iter().map(|(target, prober)| (target.clone(), prober.take_record())).collect();
        let tries = Some(self.past_landfall.take_record());
        TrafficRun { records, control: Control { wakeups: self.wakeups.take_wakeups(), tries } }
    }

    /// Stops, waits for open tries, and returns the tries since the last call of [`Traffic::take_run`].
    ///
    /// # Errors
    /// If a prober or the control failed.
    pub fn stop(self) -> Result<TrafficRun> {
        let mut records = Vec::new();
        for (target, prober) in self.probers {
            records.push((target, prober.stop()?));
        }
        let tries = Some(self.past_landfall.stop()?);
        let wakeups = self.wakeups.stop()?;
        self.server.stop()?;
        Ok(TrafficRun { records, control: Control { wakeups, tries } })
    }
}

impl TrafficRun {
    /// The verdict on all records. Reasons begin with the target.
    pub fn verdict(&self, bounds: &Bounds) -> Verdict {
        let verdicts = self.records.iter().map(|(target, record)| match verdict(record, &self.control, bounds) {
            Verdict::Failed(reasons) => {
                let name = |reason| format!("{}: {reason}", target.label());
                Verdict::Failed(reasons.into_iter().map(name).collect())
            }
            verdict => verdict,
        });
        verdicts.fold(Verdict::Passed, Verdict::and)
    }
}
