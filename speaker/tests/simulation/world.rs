//! A simulated LAN: nodes with the real machine, simulated clocks, and a network that loses, delays, reorders and cuts
//! frames.
//!
//! One seed determines the whole run. Tests act on the LAN ([`actions`]) and inspect it ([`queries`]).
//! [`World::record_frame`] counts and checks each frame that a node sends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::SharedMap;
use model::eligibility::{AnnouncementPolicy, Candidates};
use speaker::machine::{Machine, Output};
use speaker::metrics::Event;
use speaker::wire::frame::{Channel, Frame};
use speaker::{Config, Keys, Neighbours};

mod actions;
mod fixtures;
mod queries;
mod random;

pub use fixtures::{frame_of_other_host, key, lb_ip, mac, name};
pub use random::Random;

use fixtures::{is_routine, links, probed_address};

/// The interval between the Hellos of each node.
pub const INTERVAL: Duration = Config::INTERVAL;

/// The time after which a silent node is dead.
pub const WINDOW: Duration = Duration::from_millis(150);

const LINK: u32 = 2;

/// How the network loses and delays frames.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The probability that a frame is lost.
    pub loss: f64,
    /// The probability that a frame is overtaken by later ones.
    pub straggle: f64,
}

struct Host {
    machine: Option<Machine>,
    starts: u64,
    /// The value of the node's clock when the world's clock is zero.
    clock: Duration,
    suspended_until: Duration,
    /// The frames that wait in the sockets, with their time of arrival.
    backlog: Vec<(Duration, Channel, Arc<[u8]>)>,
    /// Whether routine Hellos may wait in its sockets until its next round.
    idle: bool,
    /// The time of its next round, if no frame arrives before.
    wake: Option<Duration>,
    /// The addresses that its kernel forwards.
    forwarded: Arc<BTreeSet<IpAddr>>,
    /// Whether its kernel forwards nothing and cannot be programmed.
    stuck: bool,
    link: String,
    has_api: bool,
    keys: Keys,
    /// The addresses that its speaker announces, by its events.
    owned: BTreeSet<IpAddr>,
    /// The dead nodes, as last published by its speaker.
    dead: BTreeSet<String>,
    /// The nodes on its link, as last published by its speaker.
    neighbours: Neighbours,
}

impl Host {
    /// Records the published state of the speaker.
    fn publish(&mut self, output: &Output) {
        for event in &output.events {
            match event {
                Event::Announced { lb_ip, .. } => drop(self.owned.insert(*lb_ip)),
                Event::Withdrawn { lb_ip, .. } => drop(self.owned.remove(lb_ip)),
                _ => {}
            }
        }
        if let Some(dead) = &output.dead {
            self.dead.clone_from(dead);
        }
        if let Some(neighbours) = &output.neighbours {
            self.neighbours.clone_from(neighbours);
        }
    }

    /// Ends the speaker, and with it the published state.
    fn end_speaker(&mut self) {
        self.machine = None;
        self.owned.clear();
        self.dead.clear();
        self.neighbours = Neighbours::default();
    }
}

/// A future step of the simulation.
enum Scheduled {
    Wake(usize),
    Arrive(usize, Channel, Arc<[u8]>),
    Forward(usize, Arc<BTreeSet<IpAddr>>),
}

/// An unasked announcement seen on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub at: Duration,
    pub node: usize,
    /// The number of starts of the node's speaker until then.
    start: u64,
}

/// The LAN.
pub struct World {
    pub now: Duration,
    pub random: Random,
    pub network: Network,
    /// The maximum time until a dataplane acknowledges an address.
    pub acknowledgement: Duration,
    hosts: Vec<Host>,
    /// `cut[a][b]`: no frame gets from a to b. The last row and the last column stand for the clients.
    cut: Vec<Vec<bool>>,
    wanted: SharedMap<IpAddr, AnnouncementPolicy>,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    scheduled: BTreeMap<u64, Scheduled>,
    /// The number of scheduled steps so far, which is the id of the last one.
    count: u64,
    /// For each address, its last announcement that reached the clients.
    pub last_announcements: BTreeMap<IpAddr, Announcement>,
    /// For each node and address, the start of a period of 100 ms, and the number of announcements in it.
    recent: BTreeMap<(usize, IpAddr), (Duration, usize)>,
    /// The number of frames that announced an address unasked.
    pub announcement_count: u64,
    /// Other hosts: the address of each, and the frame with which it answers probes.
    pub other_hosts: Vec<(IpAddr, Arc<[u8]>)>,
    /// The number of probes for all addresses.
    pub probe_count: u64,
    /// The number of packets between speakers.
    pub hello_count: u64,
    /// The events of all machines, with time and node.
    pub events: Vec<(Duration, usize, Event)>,
    /// The packets between speakers; `None` if the test does not record them.
    pub recorded: Option<Vec<Arc<[u8]>>>,
}

impl World {
    /// A LAN with this number of nodes and addresses. All nodes may announce all addresses. No speaker runs yet.
    pub fn new(seed: u64, nodes: usize, lb_ips: usize) -> Self {
        let mut random = Random::new(seed);
        let all: Arc<Candidates> = Arc::new((0..nodes).map(name).collect());
        let wanted =
            (0..lb_ips).map(|n| (lb_ip(n), AnnouncementPolicy { candidates: Arc::clone(&all), epoch: 0 })).collect();
        let host = |_| Host {
            machine: None,
            starts: 0,
            clock: random.time(Duration::ZERO, Duration::from_secs(1_000_000)),
            suspended_until: Duration::ZERO,
            backlog: Vec::new(),
            idle: false,
            wake: None,
            forwarded: Arc::default(),
            stuck: false,
            link: "eth0".into(),
            has_api: true,
            keys: key(0),
            owned: BTreeSet::new(),
            dead: BTreeSet::new(),
            neighbours: Neighbours::default(),
        };
        let hosts = (0..nodes).map(host).collect();
        Self {
            now: Duration::ZERO,
            network: Network { loss: 0.0, straggle: 0.0 },
            acknowledgement: Duration::from_millis(1),
            hosts,
            cut: vec![vec![false; nodes + 1]; nodes + 1],
            wanted,
            queue: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            count: 0,
            last_announcements: BTreeMap::new(),
            recent: BTreeMap::new(),
            announcement_count: 0,
            other_hosts: Vec::new(),
            probe_count: 0,
            hello_count: 0,
            events: Vec::new(),
            recorded: None,
            random,
        }
    }

    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
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
        match self.scheduled.remove(&id) {
            Some(Scheduled::Wake(node)) if self.hosts[node].wake == Some(at) => self.run_host(node, None),
            Some(Scheduled::Arrive(node, channel, bytes)) => self.run_host(node, Some((channel, bytes))),
            Some(Scheduled::Forward(node, forwarded)) => {
                self.hosts[node].forwarded = Arc::clone(&forwarded);
                if let Some(machine) = &mut self.hosts[node].machine {
                    machine.set_forwarded(forwarded);
                }
                self.run_host(node, None);
            }
            _ => {}
        }
        true
    }

    fn schedule(&mut self, at: Duration, scheduled: Scheduled) {
        self.count += 1;
        self.scheduled.insert(self.count, scheduled);
        self.queue.push(Reverse((at, self.count)));
    }

    fn clock(&self, node: usize) -> Duration {
        self.hosts[node].clock + self.now
    }

    /// Runs one round of a node's loop.
    fn run_host(&mut self, node: usize, arrived: Option<(Channel, Arc<[u8]>)>) {
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let Some(machine) = &mut host.machine else { return };
        let waits = host.idle && arrived.as_ref().is_some_and(|(channel, bytes)| is_routine(*channel, bytes));
        let is_asleep = host.suspended_until > self.now || waits;
        host.backlog.extend(arrived.map(|(channel, bytes)| (clock, channel, bytes)));
        if is_asleep {
            return;
        }
        let was_suspended = machine.record_wake(clock);
        let waiting = std::mem::take(&mut host.backlog).into_iter();
        let (routine, prompt): (Vec<_>, Vec<_>) = waiting.partition(|(_, channel, bytes)| is_routine(*channel, bytes));
        for (at, channel, bytes) in routine.into_iter().filter(|_| !was_suspended) {
            machine.receive(at, LINK, channel, &bytes);
        }
        for (at, channel, bytes) in prompt.into_iter().filter(|(at, _, _)| !was_suspended || *at == clock) {
            machine.receive(clock.max(at), LINK, channel, &bytes);
        }
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
        if let Some(at) = wake {
            self.schedule(at, Scheduled::Wake(node));
        }
        self.events.extend(output.events.into_iter().map(|event| (self.now, node, event)));
        for frame in output.frames {
            self.send(node, &frame);
        }
    }

    /// Sends a frame to all nodes.
    fn send(&mut self, from: usize, frame: &Frame) {
        self.record_frame(from, frame);
        let bytes: Arc<[u8]> = frame.bytes.clone().into();
        for to in (0..self.nodes()).filter(|to| *to != from) {
            if self.cut[from][to] || self.random.happens(self.network.loss) {
                continue;
            }
            let straggles = self.random.happens(self.network.straggle);
            let limit = if straggles { Duration::from_millis(80) } else { Duration::from_micros(500) };
            let at = self.now + self.random.time(Duration::from_micros(20), limit);
            self.schedule(at, Scheduled::Arrive(to, frame.channel, Arc::clone(&bytes)));
        }
    }

    /// Records a frame on the wire, and checks unasked announcements.
    fn record_frame(&mut self, from: usize, frame: &Frame) {
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
                    if self.cut[self.nodes()][to] {
                        continue;
                    }
                    let at = self.now + self.random.time(Duration::from_micros(100), Duration::from_millis(20));
                    self.schedule(at, Scheduled::Arrive(to, frame.channel, Arc::clone(&answer)));
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
        assert_eq!((station, group), (&mac(from).octets()[..], true), "an announcement of another station");
        self.announcement_count += 1;
        // A burst sends two frames at once. A contest, a resumption or a new quorum starts it again. More frames in
        // 100 ms are a storm.
        let (since, count) = self.recent.entry((from, lb_ip)).or_insert((self.now, 0));
        if *since + Duration::from_millis(100) < self.now {
            (*since, *count) = (self.now, 0);
        }
        *count += 1;
        assert!(*count <= 16, "n{from} announces {lb_ip} too often at {:?}", self.now);
        if !self.cut[from][self.nodes()] {
            self.last_announcements
                .insert(lb_ip, Announcement { at: self.now, node: from, start: self.hosts[from].starts });
        }
    }
}
