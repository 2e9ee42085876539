//! A simulated LAN, or two: nodes with the real machine, simulated clocks, links and API, and a network that loses,
//! delays, reorders and cuts frames.
//!
//! One seed determines the whole run. Tests act on the LAN ([`actions`], [`faults`]) and inspect it ([`queries`]). The
//! [`observer`] checks it at each step, and [`World::record_frame`] counts and checks each frame that a node sends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::SharedMap;
use model::eligibility::{AnnouncementPolicy, Candidates};
use speaker::Config;
use speaker::metrics::Event;
use speaker::wire::frame::{Channel, Frame};

mod actions;
mod api;
mod faults;
mod fixtures;
mod host;
mod kernel;
mod observer;
mod queries;
mod random;

pub use fixtures::{frame_of_other_host, key, lan_of, lb_ip, lb_ip_on_second, mac, name};
pub use random::Random;

use api::{Api, ApiStep};
use fixtures::{is_routine, mac_on, probed_address};
use host::{Host, Waiting};
use observer::Observer;

/// The interval between the Hellos of each node.
pub const INTERVAL: Duration = Config::INTERVAL;

/// The time after which a silent node is dead.
pub const WINDOW: Duration = Duration::from_millis(150);

/// The index of the link to the first LAN. The links to the other LANs have the next indices.
const LINK: u32 = 2;

/// How the network loses and delays frames.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The probability that a frame is lost.
    pub loss: f64,
    /// The probability that a frame is overtaken by later ones.
    pub straggle: f64,
}

/// A future step of the simulation.
enum Scheduled {
    /// The loop of a node wakes.
    Wake(usize),
    /// A frame arrives at the speaker of a node, on a LAN.
    Arrive(usize, usize, Channel, Arc<[u8]>),
    /// A frame of the first node arrives at the kernel of the second one on a LAN.
    Resolve([usize; 2], usize, Channel, Arc<[u8]>),
    /// The kernel of a node forwards these addresses from now on.
    Forward(usize, Arc<BTreeSet<IpAddr>>),
    /// The kernel of a node reports the link to a LAN as it is now.
    ReportLink(usize, usize),
    Api(ApiStep),
}

/// An unasked announcement seen on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub at: Duration,
    pub node: usize,
    /// The number of starts of the node's speaker until then.
    start: u64,
}

/// The nodes, on one or two LANs.
pub struct World {
    pub now: Duration,
    pub random: Random,
    /// The random numbers for unicast frames. They have a source of their own, so that these frames do not change the
    /// random numbers of everything else.
    unicast_random: Random,
    pub network: Network,
    /// The maximum time until a dataplane acknowledges an address.
    pub acknowledgement: Duration,
    hosts: Vec<Host>,
    /// `cut[lan][a][b]`: no frame gets from a to b. The last row and the last column stand for the clients.
    cut: Vec<Vec<Vec<bool>>>,
    /// The addresses that the nodes should announce.
    wanted: SharedMap<IpAddr, AnnouncementPolicy>,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    scheduled: BTreeMap<u64, Scheduled>,
    /// The number of scheduled steps so far, which is the id of the last one.
    count: u64,
    /// For each address, its last announcement on its LAN that reached the clients.
    pub last_announcements: BTreeMap<IpAddr, Announcement>,
    /// For each node, LAN and address, the start of a period of 100 ms, and the number of announcements in it.
    recent: BTreeMap<(usize, usize, IpAddr), (Duration, usize)>,
    /// The number of frames that announced an address unasked.
    pub announcement_count: u64,
    /// Other hosts: the address of each, and the frame with which it answers probes.
    pub other_hosts: Vec<(IpAddr, Arc<[u8]>)>,
    /// The number of probes for all addresses.
    pub probe_count: u64,
    /// The number of frames from one node to another.
    pub solicitation_count: u64,
    /// The number of packets between speakers.
    pub hello_count: u64,
    /// The events of all machines, with time and node.
    pub events: Vec<(Duration, usize, Event)>,
    /// The packets between speakers; `None` if the test does not record them.
    pub recorded: Option<Vec<Arc<[u8]>>>,
    /// The API; `None` if no node writes to it.
    pub api: Option<Api>,
    pub observer: Observer,
}

impl World {
    /// A LAN with this number of nodes and addresses. All nodes may announce all addresses. No speaker runs yet.
    pub fn new(seed: u64, nodes: usize, lb_ips: usize) -> Self {
        Self::with_lans(seed, nodes, lb_ips, 1)
    }

    /// Like [`World::new`], but each node has a link to each of `lans` LANs. The addresses are on the first LAN.
    pub fn with_lans(seed: u64, nodes: usize, lb_ips: usize, lans: usize) -> Self {
        let mut random = Random::new(seed);
        let all: Arc<Candidates> = Arc::new((0..nodes).map(name).collect());
        let wanted =
            (0..lb_ips).map(|n| (lb_ip(n), AnnouncementPolicy { candidates: Arc::clone(&all), epoch: 0 })).collect();
        let earliest = Duration::from_secs(100_000);
        let host = |_| Host::new(earliest + random.time(Duration::ZERO, Duration::from_secs(1_000_000)), lans);
        let hosts = (0..nodes).map(host).collect();
        Self {
            now: Duration::ZERO,
            network: Network { loss: 0.0, straggle: 0.0 },
            acknowledgement: Duration::from_millis(1),
            hosts,
            cut: vec![vec![vec![false; nodes + 1]; nodes + 1]; lans],
            wanted,
            queue: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            count: 0,
            last_announcements: BTreeMap::new(),
            recent: BTreeMap::new(),
            announcement_count: 0,
            other_hosts: Vec::new(),
            probe_count: 0,
            solicitation_count: 0,
            hello_count: 0,
            events: Vec::new(),
            recorded: None,
            api: None,
            observer: Observer::default(),
            unicast_random: Random::new(seed ^ 0x0a2b),
            random,
        }
    }

    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
        self.check_announcers();
    }

    /// Advances until `done` returns true, for at most `time`. Returns the elapsed time; `None` if it never did.
    pub fn advance_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let (begin, end) = (self.now, self.now + time);
        loop {
            if done(self) {
                return Some(self.now - begin);
            }
            if !self.step(end) {
                self.now = end;
                return None;
            }
        }
    }

    fn step(&mut self, end: Duration) -> bool {
        let Some(Reverse((at, id))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= end) else {
            return false;
        };
        self.queue.pop();
        self.now = at;
        self.check_announcers();
        match self.scheduled.remove(&id) {
            Some(Scheduled::Wake(node)) if self.hosts[node].wake == Some(at) => self.run_host(node, None),
            Some(Scheduled::Arrive(node, lan, channel, bytes)) if self.hosts[node].links[lan].has_carrier => {
                self.run_host(node, Some((lan, channel, bytes)));
            }
            Some(Scheduled::Resolve(nodes, lan, channel, bytes)) => self.resolve(nodes, lan, channel, &bytes),
            Some(Scheduled::Forward(node, forwarded)) => {
                self.hosts[node].forwarded = forwarded;
                self.hosts[node].unread.forwarded = true;
                self.run_host(node, None);
            }
            Some(Scheduled::ReportLink(node, lan)) => self.report_link(node, lan),
            Some(Scheduled::Api(step)) => self.step_api(step),
            _ => {}
        }
        true
    }

    fn schedule(&mut self, at: Duration, scheduled: Scheduled) {
        self.count += 1;
        self.scheduled.insert(self.count, scheduled);
        self.queue.push(Reverse((at, self.count)));
    }

    /// The values of the node's monotonic clock and of its wall clock.
    fn clocks(&self, node: usize) -> (Duration, Duration) {
        let host = &self.hosts[node];
        let now = host.paused_at.unwrap_or(self.now);
        (host.clock + now, host.wall + now)
    }

    fn clock(&self, node: usize) -> Duration {
        self.clocks(node).0
    }

    /// Runs one round of a node's loop.
    fn run_host(&mut self, node: usize, arrived: Option<(usize, Channel, Arc<[u8]>)>) {
        self.end_pause(node);
        let (clock, wall) = self.clocks(node);
        let host = &mut self.hosts[node];
        let Some(machine) = &mut host.machine else { return };
        let waits = host.idle && arrived.as_ref().is_some_and(|(_, channel, bytes)| is_routine(*channel, bytes));
        let is_asleep = host.suspended_until > self.now || waits;
        host.backlog.extend(arrived.map(|(lan, channel, bytes)| Waiting { at: clock, wall, lan, channel, bytes }));
        if is_asleep {
            return;
        }
        let was_suspended = machine.record_wake(clock);
        let backlog = std::mem::take(&mut host.backlog).into_iter();
        let (routine, prompt): (Vec<_>, Vec<_>) = backlog.partition(|it| is_routine(it.channel, &it.bytes));
        // The frames arrived after the last read of the sockets, whatever the wall clock shows.
        let max_age = clock.saturating_sub(host.read_at);
        for it in routine.into_iter().filter(|_| !was_suspended) {
            let age = wall.saturating_sub(it.wall).min(max_age);
            machine.receive(clock - age, LINK + it.lan as u32, it.channel, &it.bytes);
        }
        for it in prompt.into_iter().filter(|it| !was_suspended || it.at == clock) {
            machine.receive(clock, LINK + it.lan as u32, it.channel, &it.bytes);
        }
        host.read_at = clock;
        host.read_inputs(node, clock);
        self.poll_host(node, clock);
    }

    /// Polls the machine of a node, and applies its output.
    fn poll_host(&mut self, node: usize, clock: Duration) {
        let host = &mut self.hosts[node];
        let Some(machine) = &mut host.machine else { return };
        let output = machine.poll(clock, 256);
        let due = machine.next_deadline(clock).into_iter().chain(machine.announcement_due()).min();
        let is_done = machine.is_done();
        host.idle = machine.is_idle(clock);
        let clock_zero = host.clock;
        let wake = due.map(|due| due.saturating_sub(clock_zero).max(self.now));
        // A real scheduler is slightly late as well.
        let wake = wake.map(|at| at + self.random.time(Duration::ZERO, Duration::from_millis(1)));
        let host = &mut self.hosts[node];
        host.wake = wake;
        host.publish(&output);
        if is_done {
            host.end_speaker();
        }
        let has_changed = std::mem::take(&mut host.slept) || is_done || !output.events.is_empty();
        if let Some(at) = wake {
            self.schedule(at, Scheduled::Wake(node));
        }
        self.events.extend(output.events.into_iter().map(|event| (self.now, node, event)));
        for frame in output.frames {
            self.send(node, &frame);
        }
        if has_changed {
            self.observe();
        }
        if output.reports_changed {
            self.schedule_report(node);
        }
    }

    /// Sends a frame to all nodes of a LAN.
    fn send(&mut self, from: usize, frame: &Frame) {
        let lan = (frame.link - LINK) as usize;
        if !self.hosts[from].links[lan].has_carrier {
            return;
        }
        let bytes: Arc<[u8]> = frame.bytes.clone().into();
        if let Some(to) = (0..self.nodes()).find(|to| bytes[..6] == mac_on(lan, *to).octets()) {
            return self.send_to_node([from, to], lan, frame.channel, bytes);
        }
        self.record_frame(from, lan, frame);
        for to in (0..self.nodes()).filter(|to| *to != from) {
            if self.cut[lan][from][to] || self.random.happens(self.network.loss) {
                continue;
            }
            let straggles = self.random.happens(self.network.straggle);
            let limit = if straggles { Duration::from_millis(80) } else { Duration::from_micros(500) };
            let at = self.now + self.random.time(Duration::from_micros(20), limit);
            self.schedule(at, Scheduled::Arrive(to, lan, frame.channel, Arc::clone(&bytes)));
        }
    }

    /// Records a frame on the wire, and checks unasked announcements.
    fn record_frame(&mut self, from: usize, lan: usize, frame: &Frame) {
        if frame.channel == Channel::Hello {
            self.hello_count += 1;
            if let Some(recorded) = &mut self.recorded {
                recorded.push(frame.bytes.clone().into());
            }
            return;
        }
        if let Some(probed) = probed_address(frame) {
            self.probe_count += 1;
            // A host with the address answers, and its frame reaches all nodes.
            if let Some((_, answer)) = self.other_hosts.iter().find(|(lb_ip, _)| *lb_ip == probed).cloned() {
                for to in 0..self.nodes() {
                    if self.cut[lan][self.nodes()][to] {
                        continue;
                    }
                    let at = self.now + self.random.time(Duration::from_micros(100), Duration::from_millis(20));
                    self.schedule(at, Scheduled::Arrive(to, lan, frame.channel, Arc::clone(&answer)));
                }
            }
            return;
        }
        let lb_ip = match frame.channel {
            Channel::Ndp => IpAddr::from(<[u8; 16]>::try_from(&frame.bytes[62..78]).expect("16 bytes")),
            _ => IpAddr::from(<[u8; 4]>::try_from(&frame.bytes[28..32]).expect("4 bytes")),
        };
        assert!(self.hosts[from].forwarded.contains(&lb_ip), "{lb_ip} is announced but not forwarded there");
        let (station, group) = match frame.channel {
            Channel::Ndp => {
                (&frame.bytes[80..86], speaker::wire::ndp::ALL_NODES.octets().last() == frame.bytes.get(53))
            }
            _ => (&frame.bytes[22..28], true),
        };
        assert_eq!((station, group), (&mac_on(lan, from).octets()[..], true), "an announcement of another station");
        self.announcement_count += 1;
        // A burst sends two frames at once. A contest, a resumption or a new quorum starts the burst again. More than
        // 16 frames in 100 ms are a storm.
        let (since, count) = self.recent.entry((from, lan, lb_ip)).or_insert((self.now, 0));
        if *since + Duration::from_millis(100) < self.now {
            (*since, *count) = (self.now, 0);
        }
        *count += 1;
        assert!(*count <= 16, "n{from} announces {lb_ip} too often at {:?}", self.now);
        if lan == lan_of(lb_ip) && !self.cut[lan][from][self.nodes()] {
            self.last_announcements
                .insert(lb_ip, Announcement { at: self.now, node: from, start: self.hosts[from].starts });
        }
    }
}
