//! What it costs an agent that many others are on its link: the processor time of the speaker's decisions, without a cluster.
//!
//! As many machines as there are nodes say Hello to each other in simulated time, with real packets and real seals, while
//! nothing happens. They all do the same, so each of them takes its share of the time that all of them take. What the kernel
//! does for each packet is not in it; how many packets there are is told.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bench::report::Report;
use bench::usage;
use crds::MacAddr;
use model::eligibility::{AnnouncementPolicy, Candidates};
use speaker::Config;
use speaker::announce::placement::Link;
use speaker::machine::Machine;
use speaker::{Authentication, Keys, Snapshot};

use crate::Bench;

/// How many nodes there are, each time.
const NODES: [usize; 4] = [3, 26, 50, 100];

/// Addresses that the nodes share.
const ADDRESSES: u32 = 200;

/// The index of the link, on each node.
const LINK: u32 = 2;

/// How long a packet is under way.
const DELAY: Duration = Duration::from_micros(100);

/// After so long everybody knows everybody, all addresses have an owner, and all bursts are over.
const SETTLE: Duration = Duration::from_secs(10);

/// Measures.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs(if bench.quick { 10 } else { 60 });
    report.part(&format!("many nodes on a link, {} s in simulated time", time.as_secs()));
    for nodes in NODES {
        let mut crowd = Crowd::new(nodes)?;
        crowd.pass(SETTLE);
        let (before, read) = (usage::of_this_thread()?, crowd.read());
        crowd.pass(time);
        let share = (usage::of_this_thread()? - before).as_secs_f64() / time.as_secs_f64() / nodes as f64 * 100.0;
        let read = (crowd.read() - read) as f64 / time.as_secs_f64() / nodes as f64;
        let lost: u64 = crowd.machines.iter().map(|machine| machine.counters().peers_lost).sum();
        ensure!(lost == 0, "{nodes} nodes: somebody was taken for dead {lost} times");
        bench.progress(&format!(
            "{nodes} nodes: {share:.3} % of a core, and {read:.0} Hellos to read a second, for each"
        ))?;
        report.row(
            &format!("{nodes} nodes: decisions of each"),
            &format!("{share:8.3} % of a core, {read:.0} Hellos read a second"),
        );
        report.figure(&format!("crowd_{nodes}_cpu_percent"), share);
        report.figure(&format!("crowd_{nodes}_hellos_per_second"), read);
    }
    Ok(())
}

/// Nodes that hear each other, and nothing else.
struct Crowd {
    now: Duration,
    machines: Vec<Machine>,
    /// When each of them is to run next.
    due: Vec<Duration>,
    said: VecDeque<(usize, speaker::wire::frame::Frame)>,
}

impl Crowd {
    fn new(nodes: usize) -> Result<Self> {
        let name = |node: usize| format!("node-{node}.example.com");
        let candidates: Arc<Candidates> = Arc::new((0..nodes).map(name).collect());
        let lb_ips: Vec<IpAddr> = (0..ADDRESSES).map(|n| Ipv4Addr::from_bits(0xc612_0000 + n).into()).collect();
        let wanted = |lb_ip: &IpAddr| (*lb_ip, AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 });
        let snapshot = Arc::new(Snapshot { node_addresses: vec![], addresses: lb_ips.iter().map(wanted).collect() });
        let forwarded = Arc::new(lb_ips.iter().copied().collect());
        let keys = Keys::new([&[7; 32][..]])?;
        let address: ipnet::IpNet = "198.18.255.1/15".parse()?;
        let machine = |node: usize| {
            let config = Config::new("crowd", &name(node), node as u64 + 1, Authentication::Required);
            let mut machine = Machine::new(config);
            let [high, low] = (node as u16).to_be_bytes();
            let mac = MacAddr(2, 0, 0, 0, high, low);
            let link = Link { index: LINK, name: "eth0".into(), mac, addresses: vec![address], is_bridge: false };
            machine.set_links(Duration::ZERO, BTreeMap::from([(LINK, link)]));
            machine.set_keys(Duration::ZERO, &keys);
            machine.set_forwarded(Arc::clone(&forwarded));
            machine.set_snapshot(Duration::ZERO, Some(Arc::clone(&snapshot)));
            machine
        };
        let machines: Vec<Machine> = (0..nodes).map(machine).collect();
        // They come one after the other, within an interval.
        let due = (0..nodes).map(|node| Config::INTERVAL * node as u32 / nodes as u32).collect();
        Ok(Self { now: Duration::ZERO, machines, due, said: VecDeque::new() })
    }

    /// How many packets all of them have read.
    fn read(&self) -> u64 {
        self.machines.iter().map(|machine| machine.counters().packets_received).sum()
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((node, at)) = self.next().filter(|(_, at)| *at <= end) {
            self.now = at.max(self.now);
            self.round(node, |_, _| {});
            while let Some((from, frame)) = self.said.pop_front() {
                let arrives = self.now + DELAY;
                for to in (0..self.machines.len()).filter(|to| *to != from) {
                    self.now = arrives;
                    self.round(to, |machine, now| machine.receive(now, LINK, frame.channel, &frame.bytes));
                }
            }
        }
        self.now = end.max(self.now);
    }

    /// Who is to run next, and when.
    fn next(&self) -> Option<(usize, Duration)> {
        self.due.iter().copied().enumerate().min_by_key(|(node, at)| (*at, *node))
    }

    /// One round of the loop of a node.
    fn round(&mut self, node: usize, hear: impl FnOnce(&mut Machine, Duration)) {
        let (machine, now) = (&mut self.machines[node], self.now);
        if !machine.woke(now) {
            hear(machine, now);
        }
        machine.poll(now, 256);
        machine.take_events();
        let due = machine.next_deadline(now).into_iter().chain(machine.announcement_due()).min();
        self.due[node] = due.map_or(Duration::MAX, |due| due.max(now));
        let said = machine.take_frames().into_iter().map(|frame| (node, frame));
        self.said.extend(said);
    }
}
