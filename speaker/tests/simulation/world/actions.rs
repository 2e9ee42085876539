//! The actions of tests on the simulated LAN.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::eligibility::{AnnouncementPolicy, Candidate, Candidates, Links};
use speaker::Config;
use speaker::machine::Machine;
use speaker::wire::frame::Channel;
use speaker::{Keys, Snapshot};

use super::fixtures::node_addresses;
use super::{Scheduled, World, name};

impl World {
    /// Starts the speaker of a node, and the node if it has no power. A running speaker is killed first.
    pub fn start(&mut self, node: usize) {
        self.end_pause(node);
        let clock = self.clock(node);
        let host = &mut self.hosts[node];
        host.end_speaker();
        host.starts += 1;
        host.has_power = true;
        let config = Config::new("world", &name(node), host.starts << 32 | node as u64);
        host.backlog.clear();
        host.read_at = clock;
        host.suspended_until = Duration::ZERO;
        let mut machine = Machine::new(config);
        machine.set_links(clock, host.reported_links(node));
        machine.set_keys(clock, &host.keys);
        // The kernel keeps the addresses that were programmed before.
        machine.set_forwarded(Arc::clone(&host.forwarded));
        host.machine = Some(machine);
        self.list_records(node);
        self.deliver_snapshot(node);
        self.run_host(node, None);
    }

    /// Starts all speakers, each at most 300 ms after the one before.
    pub fn start_all(&mut self) {
        for node in 0..self.nodes() {
            self.start(node);
            let pause = self.random.time(Duration::ZERO, Duration::from_millis(300));
            self.advance(pause);
        }
    }

    /// Cuts the power of a node.
    pub fn crash(&mut self, node: usize) {
        self.hosts[node].has_power = false;
        self.kill(node);
    }

    /// Ends the speaker of a node without a goodbye. The kernel of the node goes on.
    pub fn kill(&mut self, node: usize) {
        self.hosts[node].end_speaker();
        self.observe();
    }

    /// Restores the power of a node, on which no speaker runs yet.
    pub fn restore_power(&mut self, node: usize) {
        self.hosts[node].has_power = true;
    }

    /// Requests the speaker of a node to stop.
    pub fn stop(&mut self, node: usize) {
        self.hosts[node].unread.leave = true;
        self.run_host(node, None);
    }

    /// Suspends the speaker of a node. The kernel of the node goes on.
    pub fn suspend(&mut self, node: usize, time: Duration) {
        let until = self.now + time;
        let host = &mut self.hosts[node];
        (host.suspended_until, host.wake, host.slept) = (until, Some(until), true);
        self.schedule(until, Scheduled::Wake(node));
        self.observe();
    }

    /// Steps the monotonic clock of a node, as after a suspension that takes no time in the world.
    pub fn step_clock(&mut self, node: usize, by: Duration) {
        self.hosts[node].clock += by;
        self.run_host(node, None);
    }

    /// Cuts or restores the path from `a` to `b` on all LANs.
    pub fn cut(&mut self, a: usize, b: usize, cut: bool) {
        self.cut.iter_mut().for_each(|lan| lan[a][b] = cut);
        self.observe();
    }

    /// Cuts or restores all paths to and from a node, those of clients included.
    pub fn isolate(&mut self, node: usize, cut: bool) {
        for other in (0..=self.nodes()).filter(|other| *other != node) {
            self.cut(node, other, cut);
            self.cut(other, node, cut);
        }
    }

    /// Partitions the nodes into two parts that do not hear each other. Clients are in the first part.
    pub fn partition(&mut self, first: &BTreeSet<usize>) {
        for a in 0..=self.nodes() {
            for b in 0..=self.nodes() {
                let inside = |n: usize| n == self.nodes() || first.contains(&n);
                self.cut(a, b, inside(a) != inside(b));
            }
        }
    }

    /// Restores all paths.
    pub fn heal(&mut self) {
        self.cut.iter_mut().flatten().flatten().for_each(|cut| *cut = false);
        self.observe();
    }

    /// Sets the nodes that may announce an address; `None` removes the address.
    pub fn set_candidates(&mut self, lb_ip: IpAddr, candidates: Option<&BTreeSet<usize>>) {
        match candidates {
            Some(nodes) => {
                let candidates = Arc::new(nodes.iter().copied().map(name).collect());
                self.wanted.insert(lb_ip, AnnouncementPolicy { candidates, epoch: 0 });
            }
            None => {
                self.wanted.remove(&lb_ip);
                self.forget_record(lb_ip);
            }
        }
        (0..self.nodes()).for_each(|node| self.deliver_snapshot(node));
    }

    /// Adds addresses that all nodes may announce.
    pub fn add_addresses(&mut self, lb_ips: impl Iterator<Item = IpAddr>) {
        let candidates: Arc<Candidates> = Arc::new((0..self.nodes()).map(name).collect());
        self.wanted
            .extend(lb_ips.map(|lb_ip| (lb_ip, AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 })));
        (0..self.nodes()).for_each(|node| self.deliver_snapshot(node));
    }

    /// Sets the preference for each node, for one address. All nodes may announce the address.
    pub fn set_preferences(&mut self, lb_ip: IpAddr, preferences: &[u32]) {
        let candidate = |(node, preference): (usize, &u32)| {
            (name(node), Candidate { preference: *preference, ..Candidate::default() })
        };
        let candidates = Arc::new(preferences.iter().enumerate().map(candidate).collect());
        self.wanted.insert(lb_ip, AnnouncementPolicy { candidates, epoch: 0 });
        (0..self.nodes()).for_each(|node| self.deliver_snapshot(node));
    }

    /// Renames the link of a node to the first LAN.
    pub fn rename_link(&mut self, node: usize, link: &str) {
        let host = &mut self.hosts[node];
        host.links[0].name = link.into();
        host.unread.links = true;
        self.run_host(node, None);
    }

    /// Permits a node to announce an address on its home link, or on no link.
    pub fn permit_home_link(&mut self, lb_ip: IpAddr, node: usize, home: bool) {
        let mut policy = self.wanted[&lb_ip].clone();
        let candidate = |other| {
            let home = home || other != node;
            (name(other), Candidate { links: Links { home, ..Links::default() }, preference: 0 })
        };
        policy.candidates = Arc::new((0..self.nodes()).map(candidate).collect());
        self.wanted.insert(lb_ip, policy);
        (0..self.nodes()).for_each(|node| self.deliver_snapshot(node));
    }

    /// Lets all nodes announce these addresses, but only on links with this name.
    pub fn restrict_to_link(&mut self, lb_ips: &[IpAddr], link: &str) {
        let links = Links { home: false, named: [link.to_owned()].into() };
        let candidate = |node| (name(node), Candidate { links: links.clone(), preference: 0 });
        let candidates: Arc<Candidates> = Arc::new((0..self.nodes()).map(candidate).collect());
        let wanted = |lb_ip: &IpAddr| (*lb_ip, AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 });
        self.wanted.extend(lb_ips.iter().map(wanted));
        (0..self.nodes()).for_each(|node| self.deliver_snapshot(node));
    }

    /// Cuts a node off from the API server, or reconnects it. The node keeps its snapshot until it restarts.
    pub fn set_blind(&mut self, node: usize, blind: bool) {
        self.hosts[node].has_api = !blind;
        self.list_records(node);
        self.deliver_snapshot(node);
    }

    /// Delivers new keys to a node.
    pub fn set_keys(&mut self, node: usize, keys: Keys) {
        self.hosts[node].keys = keys;
        self.hosts[node].unread.keys = true;
        self.run_host(node, None);
    }

    /// Sends a frame of another host to all nodes that clients can reach on the first LAN.
    pub fn inject(&mut self, channel: Channel, frame: &Arc<[u8]>) {
        self.inject_on(0, channel, frame);
    }

    /// Sends a frame of another host to all nodes that clients can reach on a LAN.
    pub fn inject_on(&mut self, lan: usize, channel: Channel, frame: &Arc<[u8]>) {
        for to in (0..self.nodes()).filter(|to| !self.cut[lan][self.nodes()][*to]).collect::<Vec<_>>() {
            let at = self.now + self.random.time(Duration::from_micros(20), Duration::from_micros(500));
            self.schedule(at, Scheduled::Arrive(to, lan, channel, Arc::clone(frame)));
        }
    }

    /// Delivers the snapshot to a node. Its dataplane acknowledges the addresses some time later.
    pub(super) fn deliver_snapshot(&mut self, node: usize) {
        if !self.hosts[node].has_api {
            return;
        }
        let later = self.now + self.random.time(Duration::ZERO, self.acknowledgement);
        let all: Arc<BTreeSet<IpAddr>> = Arc::new(self.wanted.keys().copied().collect());
        let addresses = self.addresses_known_to(node);
        let node_addresses = if self.cut.len() > 1 { node_addresses(node) } else { vec![] };
        let host = &mut self.hosts[node];
        host.unread.snapshot = Some(Arc::new(Snapshot { node_addresses, addresses }));
        if host.forwarded != all && !host.stuck {
            self.schedule(later, Scheduled::Forward(node, all));
        }
        self.run_host(node, None);
    }

    /// Stops the kernel of a node from forwarding and from being programmed, or lets it continue.
    pub fn set_forwarding_stuck(&mut self, node: usize, stuck: bool) {
        self.hosts[node].stuck = stuck;
        if stuck {
            self.hosts[node].forwarded = Arc::default();
            self.hosts[node].unread.forwarded = true;
            self.run_host(node, None);
        } else {
            self.deliver_snapshot(node);
        }
    }
}
