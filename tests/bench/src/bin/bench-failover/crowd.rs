//! The CPU time of the speaker's decisions with many nodes on a link, without a cluster.
//!
//! One machine per node exchanges Hellos with all others in simulated time, with real packets and real seals, while
//! nothing else happens. All machines do the same work, so each accounts for an equal share of the total time. The work
//! of the kernel for each packet is not included. The number of packets is reported.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bench::report::{FigureSpec, Report};
use bench::usage;
use crds::MacAddr;
use model::eligibility::{AnnouncementPolicy, Candidates};
use netlink::links::Link;
use speaker::Config;
use speaker::machine::Machine;
use speaker::wire::frame::Frame;
use speaker::{Keys, Snapshot};

use crate::Bench;

/// Measured numbers of nodes.
const NODES: [usize; 4] = [3, 26, 50, 100];

const ADDRESSES: u32 = 200;

/// The index of the link on each node.
const LINK: u32 = 2;

/// The transmission time of a packet.
const DELAY: Duration = Duration::from_micros(100);

/// The time until all nodes know each other, all addresses have an owner, and all bursts are over.
const SETTLE: Duration = Duration::from_secs(10);

pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs(if bench.quick { 10 } else { 60 });
    report.part(&format!("many nodes on a link, {} s of simulated time", time.as_secs()));
    for nodes in NODES {
        let mut crowd = Crowd::new(nodes)?;
        crowd.advance(SETTLE);
        let (cpu_before, hellos_before) = (usage::of_this_thread()?, crowd.packets_read());
        crowd.advance(time);
        let share = (usage::of_this_thread()? - cpu_before).as_secs_f64() / time.as_secs_f64() / nodes as f64 * 100.0;
        let hellos = (crowd.packets_read() - hellos_before) as f64 / time.as_secs_f64() / nodes as f64;
        let lost: u64 = crowd.machines.iter().map(|machine| machine.counters().peers_lost).sum();
        ensure!(lost == 0, "{nodes} nodes: nodes were declared dead {lost} times");
        bench.progress(&format!("{nodes} nodes: {share:.3} % of a core and {hellos:.0} Hellos per second for each"))?;
        let (name, label) = (format!("crowd_{nodes}_cpu_percent"), format!("{nodes} nodes: decisions of each"));
        report.measure(FigureSpec::lower(&name, &label, "% of a core"), &[share]);
        report.row("  Hellos read by each", &format!("{hellos:8.0} per second"));
    }
    Ok(())
}

/// Nodes that receive packets of each other, and of no other host.
struct Crowd {
    now: Duration,
    machines: Vec<Machine>,
    /// The time of the next round of each machine.
    due: Vec<Duration>,
    /// Frames under way, with their sender.
    in_flight: VecDeque<(usize, Frame)>,
}

impl Crowd {
    fn new(nodes: usize) -> Result<Self> {
        let candidates: Arc<Candidates> = Arc::new((0..nodes).map(node_name).collect());
        let lb_ips: Vec<IpAddr> = (0..ADDRESSES).map(|n| Ipv4Addr::from_bits(0xc612_0000 + n).into()).collect();
        let with_policy =
            |lb_ip: &IpAddr| (*lb_ip, AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 });
        let snapshot =
            Arc::new(Snapshot { node_addresses: vec![], addresses: lb_ips.iter().map(with_policy).collect() });
        let forwarded = Arc::new(lb_ips.iter().copied().collect());
        let keys = Keys::new([&[7; 32][..]])?;
        let address: ipnet::IpNet = "198.18.255.1/15".parse()?;
        let mut machines = Vec::with_capacity(nodes);
        for node in 0..nodes {
            let config = Config::new("crowd", &node_name(node), node as u64 + 1);
            let mut machine = Machine::new(config);
            let [high, low] = (node as u16).to_be_bytes();
            let mac = MacAddr(2, 0, 0, 0, high, low);
            let link = Link {
                index: LINK,
                name: "eth0".into(),
                mac,
                addresses: vec![address],
                unusable: vec![],
                is_bridge: false,
            };
            machine.set_links(Duration::ZERO, BTreeMap::from([(LINK, link)]));
            machine.set_keys(Duration::ZERO, &keys);
            machine.set_forwarded(Arc::clone(&forwarded));
            machine.set_snapshot(Duration::ZERO, Some(Arc::clone(&snapshot)));
            machines.push(machine);
        }
        // The first rounds are spread over one interval.
        let due = (0..nodes).map(|node| Config::INTERVAL * node as u32 / nodes as u32).collect();
        Ok(Self { now: Duration::ZERO, machines, due, in_flight: VecDeque::new() })
    }

    /// The number of packets that all machines have read.
    fn packets_read(&self) -> u64 {
        self.machines.iter().map(|machine| machine.counters().packets_received).sum()
    }

    fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((node, at)) = self.next_due().filter(|(_, at)| *at <= end) {
            self.now = at.max(self.now);
            self.run_round(node, |_, _| {});
            while let Some((from, frame)) = self.in_flight.pop_front() {
                let arrives = self.now + DELAY;
                for to in (0..self.machines.len()).filter(|to| *to != from) {
                    self.now = arrives;
                    self.run_round(to, |machine, now| machine.receive(now, LINK, frame.channel, &frame.bytes));
                }
            }
        }
        self.now = end.max(self.now);
    }

    /// The machine with the next round, and its time.
    fn next_due(&self) -> Option<(usize, Duration)> {
        self.due.iter().copied().enumerate().min_by_key(|(node, at)| (*at, *node))
    }

    /// One round of the event loop of a node.
    fn run_round(&mut self, node: usize, receive: impl FnOnce(&mut Machine, Duration)) {
        let (machine, now) = (&mut self.machines[node], self.now);
        if !machine.record_wake(now) {
            receive(machine, now);
        }
        let output = machine.poll(now, 256);
        let due = machine.next_deadline(now).into_iter().chain(machine.announcement_due()).min();
        self.due[node] = due.map_or(Duration::MAX, |due| due.max(now));
        self.in_flight.extend(output.frames.into_iter().map(|frame| (node, frame)));
    }
}

fn node_name(node: usize) -> String {
    format!("node-{node}.example.com")
}
