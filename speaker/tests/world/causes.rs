//! What tests have happen on the LAN.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::eligibility::{AnnouncementPolicy, Candidate, Candidates, Links};
use speaker::Config;
use speaker::machine::Machine;
use speaker::wire::frame::Channel;
use speaker::{Authentication, Keys, Snapshot};

use super::{Happening, World, links, name};

impl World {
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
                self.wanted.insert(lb_ip, AnnouncementPolicy { candidates, epoch: 0 });
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
        self.wanted
            .extend(lb_ips.map(|lb_ip| (lb_ip, AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 })));
        (0..self.nodes()).for_each(|node| self.tell(node));
    }

    /// Changes how much nodes are preferred for an address. All of them may announce it.
    pub fn prefer(&mut self, lb_ip: IpAddr, preferences: &[u32]) {
        let candidate = |(node, preference): (usize, &u32)| {
            (name(node), Candidate { preference: *preference, ..Candidate::default() })
        };
        let candidates = Arc::new(preferences.iter().enumerate().map(candidate).collect());
        self.wanted.insert(lb_ip, AnnouncementPolicy { candidates, epoch: 0 });
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
        let wanted = |lb_ip: &IpAddr| (*lb_ip, AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 });
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
}
