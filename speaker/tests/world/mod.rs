//! A simulated LAN: nodes with the real machine, a simulated clock, and a network that loses, delays, reorders and cuts.
//!
//! Everything follows from one seed. What happens on the wire is watched as it happens ([`World::observe`]); what should
//! be so after a while is asked by the tests.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crds::Mac;
use speaker::events::Event;
use speaker::hash;
use speaker::machine::{Channel, Config, Frame, Machine};
use speaker::placement::Link;
use speaker::snapshot::Links;
use speaker::{Authentication, Candidate, Candidates, Keys, Snapshot, Wanted};

/// The interval of all nodes.
pub const INTERVAL: Duration = Config::INTERVAL;

/// After how long without a Hello a node is dead.
pub const WINDOW: Duration = Duration::from_millis(150);

const LINK: u32 = 2;

/// A source of numbers that look random (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(hash::mix(seed ^ 0x5eed))
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash::mix(self.0)
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Whether something of this probability happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < probability
    }

    /// A time in between.
    pub fn time(&mut self, from: Duration, to: Duration) -> Duration {
        from + Duration::from_nanos(self.next() % (to - from).as_nanos().max(1) as u64)
    }
}

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
    backlog: Vec<(Channel, Arc<[u8]>)>,
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
    wanted: BTreeMap<IpAddr, Wanted>,
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
        let wanted = (0..lb_ips).map(|n| (lb_ip(n), Wanted { candidates: Arc::clone(&all), epoch: 0 })).collect();
        let host = |_| Host {
            machine: None,
            starts: 0,
            clock: random.time(Duration::ZERO, Duration::from_secs(1_000_000)),
            frozen_until: Duration::ZERO,
            backlog: Vec::new(),
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

    /// How many nodes there are, with or without a speaker.
    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    /// All addresses that are wanted.
    pub fn lb_ips(&self) -> Vec<IpAddr> {
        self.wanted.keys().copied().collect()
    }

    /// Starts the speaker of a node, which crashes first if it runs.
    pub fn start(&mut self, node: usize) {
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        host.starts += 1;
        let config = Config::new("world", &name(node), host.starts << 32 | node as u64, Authentication::Required);
        host.backlog.clear();
        host.frozen_until = Duration::ZERO;
        let mut machine = Machine::new(config);
        machine.set_links(clock, links(node, &host.link));
        machine.set_keys(clock, &host.keys);
        // The kernel keeps what was programmed before.
        machine.set_forwarded(Arc::clone(&host.forwarded));
        host.machine = Some(machine);
        self.tell(node);
        self.run_host(node, None);
    }

    /// Starts all speakers, one after the other within a second.
    pub fn start_all(&mut self) {
        for node in 0..self.nodes() {
            self.start(node);
            let pause = self.random.time(Duration::ZERO, Duration::from_millis(300));
            self.pass(pause);
        }
    }

    /// The speaker of a node is gone without a word.
    pub fn crash(&mut self, node: usize) {
        self.hosts[node].machine = None;
    }

    /// The speaker of a node is asked to stop.
    pub fn stop(&mut self, node: usize) {
        let clock = self.clock(node);
        if let Some(machine) = &mut self.hosts[node].machine {
            machine.leave(clock);
        }
        self.run_host(node, None);
    }

    /// The speaker of a node doesn't run for a while.
    pub fn freeze(&mut self, node: usize, time: Duration) {
        let until = self.now + time;
        self.hosts[node].frozen_until = until;
        self.hosts[node].wake = Some(until);
        self.happens(until, Happening::Wake(node));
    }

    /// The clock of a node jumps: it was suspended, and it takes no time in the world.
    pub fn step_clock(&mut self, node: usize, by: Duration) {
        self.hosts[node].clock += by;
        self.run_host(node, None);
    }

    /// Nothing gets from `a` to `b` any more, or everything does.
    pub fn cut(&mut self, a: usize, b: usize, cut: bool) {
        self.cut[a][b] = cut;
    }

    /// Nothing gets to or from a node any more, clients included; or everything does.
    pub fn isolate(&mut self, node: usize, cut: bool) {
        for other in (0..=self.nodes()).filter(|other| *other != node) {
            self.cut[node][other] = cut;
            self.cut[other][node] = cut;
        }
    }

    /// The nodes fall into two parts that don't hear each other. Clients are with the first part.
    pub fn part(&mut self, first: &BTreeSet<usize>) {
        for a in 0..=self.nodes() {
            for b in 0..=self.nodes() {
                let inside = |n: usize| n == self.nodes() || first.contains(&n);
                self.cut[a][b] = inside(a) != inside(b);
            }
        }
    }

    /// Everybody hears everybody again.
    pub fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|cut| *cut = false);
    }

    /// Changes which nodes may announce an address; `None`: it isn't wanted any more.
    pub fn want(&mut self, lb_ip: IpAddr, candidates: Option<&BTreeSet<usize>>) {
        match candidates {
            Some(nodes) => {
                let candidates = Arc::new(nodes.iter().copied().map(name).collect());
                self.wanted.insert(lb_ip, Wanted { candidates, epoch: 0 });
            }
            None => {
                self.wanted.remove(&lb_ip);
            }
        }
        (0..self.nodes()).for_each(|node| self.tell(node));
    }

    /// Many more addresses are wanted, which all nodes may announce.
    pub fn want_many(&mut self, lb_ips: impl Iterator<Item = IpAddr>) {
        let candidates: Arc<Candidates> = Arc::new((0..self.nodes()).map(name).collect());
        self.wanted.extend(lb_ips.map(|lb_ip| (lb_ip, Wanted { candidates: Arc::clone(&candidates), epoch: 0 })));
        (0..self.nodes()).for_each(|node| self.tell(node));
    }

    /// Changes how much nodes are preferred for an address. All of them may announce it.
    pub fn prefer(&mut self, lb_ip: IpAddr, preferences: &[u32]) {
        let candidate = |(node, preference): (usize, &u32)| {
            (name(node), Candidate { preference: *preference, ..Candidate::default() })
        };
        let candidates = Arc::new(preferences.iter().enumerate().map(candidate).collect());
        self.wanted.insert(lb_ip, Wanted { candidates, epoch: 0 });
        (0..self.nodes()).for_each(|node| self.tell(node));
    }

    /// What a node calls its link, from now on.
    pub fn call(&mut self, node: usize, link: &str) {
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        host.link = link.into();
        if let Some(machine) = &mut host.machine {
            machine.set_links(clock, links(node, link));
        }
        self.run_host(node, None);
    }

    /// All nodes may announce these addresses, but only on links with this name.
    pub fn confine(&mut self, lb_ips: &[IpAddr], link: &str) {
        let links = Links { home: false, named: [link.to_owned()].into() };
        let candidate = |node| (name(node), Candidate { links: links.clone(), preference: 0 });
        let candidates: Arc<Candidates> = Arc::new((0..self.nodes()).map(candidate).collect());
        let wanted = |lb_ip: &IpAddr| (*lb_ip, Wanted { candidates: Arc::clone(&candidates), epoch: 0 });
        self.wanted.extend(lb_ips.iter().map(wanted));
        (0..self.nodes()).for_each(|node| self.tell(node));
    }

    /// A node has no API server any more, or has it again. What it knew it goes on knowing, until it restarts.
    pub fn blind(&mut self, node: usize, blind: bool) {
        self.hosts[node].knows = !blind;
        self.tell(node);
    }

    /// The Secret with the keys of the speakers is another one for this node now.
    pub fn lock(&mut self, node: usize, keys: Keys) {
        let clock = self.clock(node);
        if let Some(machine) = &mut self.hosts[node].machine {
            machine.set_keys(clock, &keys);
        }
        self.hosts[node].keys = keys;
        self.run_host(node, None);
    }

    /// Somebody who is none of the nodes sends this frame to all of them that clients can reach.
    pub fn inject(&mut self, channel: Channel, frame: &Arc<[u8]>) {
        for to in (0..self.nodes()).filter(|to| !self.cut[self.nodes()][*to]).collect::<Vec<_>>() {
            let at = self.now + self.random.time(Duration::from_micros(20), Duration::from_micros(500));
            self.happens(at, Happening::Arrive(to, channel, Arc::clone(frame)));
        }
    }

    /// A node learns what is wanted. Its dataplane programs it and acknowledges some time later.
    fn tell(&mut self, node: usize) {
        let clock = self.clock(node);
        if !self.hosts[node].knows {
            return;
        }
        let snapshot = Arc::new(Snapshot { node_addresses: vec![], addresses: self.wanted.clone() });
        let later = self.now + self.random.time(Duration::ZERO, self.acknowledgement);
        let host = &mut self.hosts[node];
        let all: Arc<BTreeSet<IpAddr>> = Arc::new(self.wanted.keys().copied().collect());
        if let Some(machine) = &mut host.machine {
            machine.set_snapshot(clock, Some(snapshot));
        }
        if host.forwarded != all && !host.stuck {
            self.happens(later, Happening::Forward(node, all));
        }
        self.run_host(node, None);
    }

    /// Who announces `lb_ip`, of those that run.
    pub fn owners(&self, lb_ip: IpAddr) -> Vec<usize> {
        let owns = |node: &usize| {
            let host = &self.hosts[*node];
            let machine = host.machine.as_ref().filter(|_| host.frozen_until <= self.now);
            machine.is_some_and(|machine| machine.announced().any(|(announced, _, _)| announced == lb_ip))
        };
        (0..self.nodes()).filter(owns).collect()
    }

    /// The owners of all addresses.
    pub fn all_owners(&self) -> BTreeMap<IpAddr, Vec<usize>> {
        let mut owners: BTreeMap<IpAddr, Vec<usize>> = self.wanted.keys().map(|lb_ip| (*lb_ip, Vec::new())).collect();
        for (node, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.frozen_until <= self.now) {
            for (lb_ip, _, _) in host.machine.iter().flat_map(Machine::announced) {
                owners.entry(lb_ip).or_default().push(node);
            }
        }
        owners
    }

    /// Whether the speaker of a node runs, is awake, and may announce `lb_ip`.
    pub fn may(&self, node: usize, lb_ip: IpAddr) -> bool {
        let host = &self.hosts[node];
        host.machine.is_some()
            && host.frozen_until <= self.now
            && host.forwarded.contains(&lb_ip)
            && self.wanted.get(&lb_ip).is_some_and(|w| w.candidates.preference(&name(node), &host.link).is_some())
    }

    /// How much a node is preferred for `lb_ip`.
    pub fn preference(&self, node: usize, lb_ip: IpAddr) -> u32 {
        self.wanted[&lb_ip].candidates.get(&name(node)).map_or(0, |candidate| candidate.preference)
    }

    /// The kernel of a node forwards nothing any more, and nothing is programmed there; or it is, from now on.
    pub fn stick(&mut self, node: usize, stuck: bool) {
        self.hosts[node].stuck = stuck;
        if stuck {
            self.hosts[node].forwarded = Arc::default();
            if let Some(machine) = &mut self.hosts[node].machine {
                machine.set_forwarded(Arc::default());
            }
            self.run_host(node, None);
        } else {
            self.tell(node);
        }
    }

    /// The machine of a node.
    pub fn machine(&self, node: usize) -> Option<&Machine> {
        self.hosts[node].machine.as_ref()
    }

    /// Who announced `lb_ip` last, where clients hear it. `None` if that speaker is gone since.
    pub fn last_to_announce(&self, lb_ip: IpAddr) -> Option<usize> {
        let seen = self.announced.get(&lb_ip)?;
        let host = &self.hosts[seen.node];
        (host.machine.is_some() && host.starts == seen.start).then_some(seen.node)
    }

    /// When a node announced `lb_ip` last, give or take 100 ms, whether or not anybody could hear it.
    pub fn last_announced_by(&self, node: usize, lb_ip: IpAddr) -> Option<Duration> {
        self.recently.get(&(node, lb_ip)).map(|(at, _)| *at)
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
        if host.frozen_until > self.now {
            host.backlog.extend(arrived);
            return;
        }
        let slept = machine.woke(clock);
        let waiting = std::mem::take(&mut host.backlog);
        for (channel, bytes) in waiting.into_iter().filter(|_| !slept).chain(arrived) {
            machine.receive(clock, LINK, channel, &bytes);
        }
        machine.poll(clock, 256);
        let (frames, events) = (machine.take_frames(), machine.take_events());
        let due = machine.next_deadline(clock).into_iter().chain(machine.announcement_due()).min();
        let gone = machine.is_done();
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
            Channel::Ndp => (&frame.bytes[80..86], speaker::ndp::ALL_NODES.octets().last() == frame.bytes.get(53)),
            _ => (&frame.bytes[22..28], true),
        };
        assert_eq!((station, group), (&mac(from).0[..], true), "somebody speaks for somebody else");
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

/// A set of one key.
pub fn key(n: u8) -> Keys {
    Keys::new([&[n; 32][..]]).expect("a key")
}

/// The frame with which a host that is no node announces an address, and the channel it comes in on.
pub fn intrusion(lb_ip: IpAddr) -> (Channel, Arc<[u8]>) {
    let stranger = Mac([2, 0, 0, 0, 1, 0]);
    match lb_ip {
        IpAddr::V4(v4) => (Channel::Arp, speaker::arp::gratuitous_request(stranger, v4).into()),
        IpAddr::V6(v6) => (Channel::Ndp, speaker::ndp::unsolicited(stranger, v6).into()),
    }
}

/// The address that a frame asks for without having one.
fn asked(frame: &Frame) -> Option<IpAddr> {
    let bytes = &frame.bytes;
    match frame.channel {
        Channel::Ndp if bytes[54] == speaker::ndp::SOLICITATION => {
            Some(<[u8; 16]>::try_from(&bytes[62..78]).expect("16 bytes").into())
        }
        Channel::Arp if bytes[28..32] == [0; 4] => Some(<[u8; 4]>::try_from(&bytes[38..42]).expect("4 bytes").into()),
        _ => None,
    }
}

/// The name of a node.
pub fn name(node: usize) -> String {
    format!("n{node}")
}

/// An address. Every third one is an IPv6 address.
pub fn lb_ip(n: usize) -> IpAddr {
    match n % 3 {
        2 => Ipv6Addr::from_bits(0x2001_0db8_0000_0000_0000_0000_0000_0000 + n as u128).into(),
        _ => Ipv4Addr::from_bits(0x0a01_0000 + n as u32).into(),
    }
}

/// The MAC address of a node.
pub fn mac(node: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, node as u8 + 1])
}

/// The link of a node.
fn links(node: usize, name: &str) -> BTreeMap<u32, Link> {
    let addresses = ["10.0.0.1/8", "2001:db8::1/32"].map(|own| own.parse().expect("address")).into();
    BTreeMap::from([(LINK, Link { index: LINK, name: name.into(), mac: mac(node), addresses, is_bridge: false })])
}
