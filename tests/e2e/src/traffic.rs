//! Clients of load-balancer addresses, beside a control: new connections and datagrams, connections that stay open, and
//! one UDP flow. All requests come from the client `c1`, and every try is recorded (see the crate `load`).
//!
//! | file | content |
//! |---|---|
//! | [`control`] | the servers of the control, which Landfall does not forward to |
//! | [`run`] | the records of a run, and its verdict |

pub mod control;
pub mod run;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::wait_until;
use load::{
    Bounds, Clock, Control, DatagramPlan, DatagramSender, HeldFlows, OpenFlows, Prober, Transport, TryPlan,
    WakeupThread,
};
use tokio::task::block_in_place;

pub use control::ControlServers;
pub use run::{KnownLoss, TrafficRun};

use crate::traffic::control::RunningControl;
use crate::world::{SOON, World};

/// Time between two requests to a target. It leaves the cluster time for its work, and a client needs so few ports
/// that none is used twice within a minute.
const INTERVAL: Duration = Duration::from_millis(20);

/// A datagram of an open flow without an answer for this long is lost.
const DATAGRAM_TIMEOUT: Duration = Duration::from_secs(1);

/// Requests to each target before the change.
const LEAD: usize = 10;

/// The greatest number of runs while the machine is late.
pub const RUNS: usize = 3;

/// Bounds of a change that loses nothing. A retransmission is a loss, and the control corrects each bound of time.
pub const NOTHING_LOST: Bounds = Bounds {
    loss: 0.0,
    gap: Duration::from_millis(250),
    // Later than this, a packet was lost.
    slow_after: Duration::from_millis(700),
    slow: 0,
    tries: 20,
    lateness: Duration::from_secs(1),
};

/// The same for a change with more than a thousand tries to each target.
pub const ALMOST_NOTHING_LOST: Bounds = Bounds { loss: Bounds::PLANNED_LOSS, slow: 1, tries: 1000, ..NOTHING_LOST };

/// An address that gets requests.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in results.
    pub name: String,
    pub plan: TryPlan,
}

impl Target {
    pub fn new(name: &str, address: SocketAddr, transport: Transport) -> Self {
        Self { name: name.to_owned(), plan: TryPlan { interval: INTERVAL, ..TryPlan::new(address, transport) } }
    }

    /// Port 80 of an address, over TCP and over UDP.
    pub fn over_both(name: &str, address: IpAddr) -> [Self; 2] {
        [Transport::Tcp, Transport::Udp].map(|transport| Self::new(name, SocketAddr::new(address, 80), transport))
    }

    /// The name and the protocol.
    pub fn label(&self) -> String {
        format!("{}, {:?}", self.name, self.plan.transport)
    }
}

/// The clients of a run.
#[derive(Clone, Debug)]
pub struct TrafficPlan {
    targets: Vec<Target>,
    flows: Option<OpenFlows>,
    datagrams: Option<DatagramPlan>,
    control: ControlServers,
}

impl TrafficPlan {
    /// Requests to these targets, beside pods on all nodes as the control.
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Self {
        let targets = targets.into_iter().collect();
        Self { targets, flows: None, datagrams: None, control: ControlServers::NodePods }
    }

    /// The same with connections that stay open.
    pub fn with_flows(self, flows: OpenFlows) -> Self {
        Self { flows: Some(flows), ..self }
    }

    /// The same with a UDP flow of numbered datagrams to this server.
    pub fn with_datagrams(self, target: SocketAddr) -> Self {
        Self { datagrams: Some(DatagramPlan { target, interval: INTERVAL, timeout: DATAGRAM_TIMEOUT }), ..self }
    }

    /// The same with the control at the control plane, for faults of nodes and of their links.
    pub fn past_nodes(self) -> Self {
        Self { control: ControlServers::ControlPlane, ..self }
    }

    /// Starts all clients, and waits for the first requests to each target.
    ///
    /// # Errors
    /// If a host is off, an open connection has no answer, or the control does not answer.
    pub async fn start(self, world: &World) -> Result<Traffic> {
        let client = world.cluster.client_host("c1").netns()?;
        let clock = Clock::start();
        let is_ipv6 = |target: &Target| target.plan.target.is_ipv6();
        let control = RunningControl::start(self.control, world, clock, self.targets.iter().any(is_ipv6)).await?;
        let flows = self.flows.map(|flows| block_in_place(|| flows.open(Some(&client), clock))).transpose()?;
        let datagrams = self.datagrams.map(|plan| DatagramSender::start(plan, Some(&client), clock));
        let start = |target: Target| {
            let prober = Prober::start(target.plan, Some(&client), clock);
            (target, prober)
        };
        let probers = self.targets.into_iter().map(start).collect();
        let traffic = Traffic { clock, probers, flows, datagrams, control, wakeups: WakeupThread::start(clock) };
        traffic.wait_for_tries(LEAD).await?;
        Ok(traffic)
    }
}

/// Clients that send requests until they are stopped or dropped.
pub struct Traffic {
    /// The clock of all records.
    pub clock: Clock,
    probers: Vec<(Target, Prober)>,
    flows: Option<HeldFlows>,
    datagrams: Option<DatagramSender>,
    control: RunningControl,
    wakeups: WakeupThread,
}

impl Traffic {
    /// The number of pods that serve the open connections.
    pub fn pods_of_flows(&self) -> usize {
        self.flows.as_ref().map_or(0, |flows| flows.servers().len())
    }

    /// Waits until this many requests to each target have ended since the last record.
    pub async fn wait_for_tries(&self, count: usize) -> Result<()> {
        wait_until(SOON, &format!("{count} requests to each target"), async || {
            let tries = self.probers.iter().map(|(_, prober)| prober.tries()).min().unwrap_or(count);
            ensure!(tries >= count, "{tries} have ended");
            Ok(())
        })
        .await
    }

    /// Returns the tries that have ended since the last call. Open tries are left to the next run, and open connections
    /// are reported when the traffic stops.
    pub fn take_run(&self) -> TrafficRun {
        let records = self.probers.iter().map(|(target, prober)| (target.clone(), prober.take_record())).collect();
        let control = Control { wakeups: self.wakeups.take_wakeups(), tries: self.control.take_record() };
        TrafficRun { records, flows: None, datagrams: None, control }
    }

    /// Stops after a last request on each open connection, waits for open tries, and returns all results since the last
    /// call of [`Traffic::take_run`].
    ///
    /// # Errors
    /// If a client or the control failed.
    pub fn stop(self) -> Result<TrafficRun> {
        block_in_place(|| {
            let mut records = Vec::new();
            for (target, prober) in self.probers {
                records.push((target, prober.stop()?));
            }
            let flows = self.flows.map(HeldFlows::end).transpose()?;
            let datagrams = self.datagrams.map(DatagramSender::stop).transpose()?;
            let control = Control { tries: self.control.stop()?, wakeups: self.wakeups.stop()? };
            Ok(TrafficRun { records, flows, datagrams, control })
        })
    }
}
