//! A simulated LAN: nodes with the real machine, a simulated clock, and a network that loses, delays, reorders and cuts.
//!
//! Everything follows from one seed. Tests cause things ([`causes`]) and ask how the world is ([`views`]); what goes over the
//! wire is watched as it happens ([`World::observe`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::SharedMap;
use model::eligibility::{AnnouncementPolicy, Candidates};
use speaker::Config;
use speaker::Keys;
use speaker::machine::Machine;
use speaker::metrics::events::Event;
use speaker::wire::frame::{Channel, Frame};

mod causes;
mod names;
mod random;
mod views;

pub use names::{intrusion, key, lb_ip, mac, name};
pub use random::Random;

use names::{asked, is_routine, links};

/// The interval of all nodes.
pub const INTERVAL: Duration = Config::INTERVAL;

/// After how long without a Hello a node is dead.
pub const WINDOW: Duration = Duration::from_millis(150);

const LINK: u32 = 2;

/// How the network treats a frame.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The probability that it is lost.
    pub loss: f64,
    /// The probability that it takes so long that others overtake it.
    pub straggle: f64,
}

struct Host {
    machine: Option<Machine>,
    starts: u64,
    /// What its clock shows when the world's shows zero.
    clock: Duration,
    frozen_until: Duration,
    /// What nobody has read yet, and when it came.
    backlog: Vec<(Duration, Channel, Arc<[u8]>)>,
    /// Whether it sleeps through Hellos that can wait.
    calm: bool,
    wake: Option<Duration>,
    forwarded: Arc<BTreeSet<IpAddr>>,
    stuck: bool,
    link: String,
    knows: bool,
    keys: Keys,
}

enum Happening {
    Wake(usize),
    Arrive(usize, Channel, Arc<[u8]>),
    Forward(usize, Arc<BTreeSet<IpAddr>>),
}

/// A gratuitous ARP that was seen on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub at: Duration,
    /// From which node.
    pub node: usize,
    /// How often the speaker of the node had been started.
    start: u64,
}

/// The LAN.
pub struct World {
    /// The time.
    pub now: Duration,
    /// Where chance comes from.
    pub random: Random,
    /// How the network is.
    pub network: Network,
    /// How long a dataplane takes to acknowledge, at most.
    pub acknowledgement: Duration,
    hosts: Vec<Host>,
    /// `cut[a][b]`: nothing gets from a to b. The last row and column are the clients.
    cut: Vec<Vec<bool>>,
    wanted: SharedMap<IpAddr, AnnouncementPolicy>,
    happenings: BinaryHeap<Reverse<(Duration, u64)>>,
    what: BTreeMap<u64, Happening>,
    count: u64,
    /// Who announced what last, where clients can hear it.
    pub announced: BTreeMap<IpAddr, Seen>,
    recently: BTreeMap<(usize, IpAddr), (Duration, usize)>,
    /// How many gratuitous frames were sent.
    pub gratuitous: u64,
    /// Hosts that are no nodes: the address of each, and the frame with which it says that it has it.
    pub strangers: Vec<(IpAddr, Arc<[u8]>)>,
    /// How often it was asked whether somebody has an address.
    pub probes: u64,
    /// How many packets between speakers.
    pub packets: u64,
    /// What the machines told.
    pub told: Vec<(Duration, usize, Event)>,
    /// All packets between speakers, if somebody records them.
    pub recorded: Option<Vec<Arc<[u8]>>>,
}

impl World {
    /// A LAN with so many nodes, and addresses that all of them may announce. No speaker runs yet.
    pub fn new(seed: u64, nodes: usize, lb_ips: usize) -> Self {
        let mut random = Random::new(seed);
        let all: Arc<Candidates> = Arc::new((0..nodes).map(name).collect());
        let wanted =
            (0..lb_ips).map(|n| (lb_ip(n), AnnouncementPolicy { candidates: Arc::clone(&all), epoch: 0 })).collect();
        let host = |_| Host {
            machine: None,
            starts: 0,
            clock: random.time(Duration::ZERO, Duration::from_secs(1_000_000)),
            frozen_until: Duration::ZERO,
            backlog: Vec::new(),
            calm: false,
            wake: None,
            forwarded: Arc::default(),
            stuck: false,
            link: "eth0".into(),
            knows: true,
            keys: key(0),
        };
        let hosts = (0..nodes).map(host).collect();
        Self {
            now: Duration::ZERO,
            network: Network { loss: 0.0, straggle: 0.0 },
            acknowledgement: Duration::from_millis(1),
            hosts,
            cut: vec![vec![false; nodes + 1]; nodes + 1],
            wanted,
            happenings: BinaryHeap::new(),
            what: BTreeMap::new(),
            count: 0,
            announced: BTreeMap::new(),
            recently: BTreeMap::new(),
            gratuitous: 0,
            strangers: Vec::new(),
            probes: 0,
            packets: 0,
            told: Vec::new(),
            recorded: None,
            random,
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until `done`, or until the end. Returns how long it took, if it was done.
    pub fn pass_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
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
        let Some(Reverse((at, id))) = self.happenings.peek().copied().filter(|Reverse((at, _))| *at <= end) else {
            return false;
        };
        self.happenings.pop();
        self.now = at;
        match self.what.remove(&id) {
            Some(Happening::Wake(node)) if self.hosts[node].wake == Some(at) => self.run_host(node, None),
            Some(Happening::Arrive(node, channel, bytes)) => self.run_host(node, Some((channel, bytes))),
            Some(Happening::Forward(node, forwarded)) => {
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

    fn happens(&mut self, at: Duration, what: Happening) {
        self.count += 1;
        self.what.insert(self.count, what);
        self.happenings.push(Reverse((at, self.count)));
    }

    fn clock(&self, node: usize) -> Duration {
        self.hosts[node].clock + self.now
    }

    /// One round of the loop of a node.
    fn run_host(&mut self, node: usize, arrived: Option<(Channel, Arc<[u8]>)>) {
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        let Some(machine) = &mut host.machine else { return };
        let waits = host.calm && arrived.as_ref().is_some_and(|(channel, bytes)| is_routine(*channel, bytes));
        let asleep = host.frozen_until > self.now || waits;
        host.backlog.extend(arrived.map(|(channel, bytes)| (clock, channel, bytes)));
        if asleep {
            return;
        }
        let slept = machine.woke(clock);
        let waiting = std::mem::take(&mut host.backlog).into_iter();
        let (routine, prompt): (Vec<_>, Vec<_>) = waiting.partition(|(_, channel, bytes)| is_routine(*channel, bytes));
        for (at, channel, bytes) in routine.into_iter().filter(|_| !slept) {
            machine.receive(at, LINK, channel, &bytes);
        }
        for (at, channel, bytes) in prompt.into_iter().filter(|(at, _, _)| !slept || *at == clock) {
            machine.receive(clock.max(at), LINK, channel, &bytes);
        }
        machine.poll(clock, 256);
        let (frames, events) = (machine.take_frames(), machine.take_events());
        let due = machine.next_deadline(clock).into_iter().chain(machine.announcement_due()).min();
        let gone = machine.is_done();
        host.calm = machine.is_calm(clock);
        let clock_zero = host.clock;
        if gone {
            host.machine = None;
        }
        let wake = due.map(|due| due.saturating_sub(clock_zero).max(self.now));
        // The scheduler is never quite punctual.
        let wake = wake.map(|at| at + self.random.time(Duration::ZERO, Duration::from_millis(1)));
        self.hosts[node].wake = wake;
        if let Some(at) = wake {
            self.happens(at, Happening::Wake(node));
        }
        self.told.extend(events.into_iter().map(|event| (self.now, node, event)));
        for frame in frames {
            self.send(node, &frame);
        }
    }

    /// A frame goes out. All are sent to everybody.
    fn send(&mut self, from: usize, frame: &Frame) {
        self.observe(from, frame);
        let bytes: Arc<[u8]> = frame.bytes.clone().into();
        for to in (0..self.nodes()).filter(|to| *to != from) {
            if self.cut[from][to] || self.random.happens(self.network.loss) {
                continue;
            }
            let straggles = self.random.happens(self.network.straggle);
            let most = if straggles { Duration::from_millis(80) } else { Duration::from_micros(500) };
            let at = self.now + self.random.time(Duration::from_micros(20), most);
            self.happens(at, Happening::Arrive(to, frame.channel, Arc::clone(&bytes)));
        }
    }

    /// Watches what goes over the wire.
    fn observe(&mut self, from: usize, frame: &Frame) {
        if frame.channel == Channel::Hello {
            self.packets += 1;
            if let Some(recorded) = &mut self.recorded {
                recorded.push(frame.bytes.clone().into());
            }
            return;
        }
        if let Some(asked) = asked(frame) {
            self.probes += 1;
            // Whoever has it says so, to everybody as it were.
            if let Some((_, answer)) = self.strangers.iter().find(|(lb_ip, _)| *lb_ip == asked).cloned() {
                for to in 0..self.nodes() {
                    if self.cut[self.nodes()][to] {
                        continue;
                    }
                    let at = self.now + self.random.time(Duration::from_micros(100), Duration::from_millis(20));
                    self.happens(at, Happening::Arrive(to, frame.channel, Arc::clone(&answer)));
                }
            }
            return;
        }
        let lb_ip = match frame.channel {
            Channel::Ndp => IpAddr::from(<[u8; 16]>::try_from(&frame.bytes[62..78]).expect("16 bytes")),
            _ => IpAddr::from(<[u8; 4]>::try_from(&frame.bytes[28..32]).expect("4 bytes")),
        };
        assert!(self.hosts[from].forwarded.contains(&lb_ip), "{lb_ip} is announced from where it is not forwarded");
        let (station, group) = match frame.channel {
            Channel::Ndp => {
                (&frame.bytes[80..86], speaker::wire::ndp::ALL_NODES.octets().last() == frame.bytes.get(53))
            }
            _ => (&frame.bytes[22..28], true),
        };
        assert_eq!((station, group), (&mac(from).octets()[..], true), "somebody speaks for somebody else");
        self.gratuitous += 1;
        // Two forms at a time, and a few reasons to begin anew: more is a storm.
        let (since, count) = self.recently.entry((from, lb_ip)).or_insert((self.now, 0));
        if *since + Duration::from_millis(100) < self.now {
            (*since, *count) = (self.now, 0);
        }
        *count += 1;
        assert!(*count <= 16, "n{from} shouts {lb_ip} at {:?}", self.now);
        if !self.cut[from][self.nodes()] {
            self.announced.insert(lb_ip, Seen { at: self.now, node: from, start: self.hosts[from].starts });
        }
    }
}
