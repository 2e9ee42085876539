//! A node of the simulated LAN: its speaker, its links and clocks, and the inputs that wait for the speaker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use netlink::links::Link;
use speaker::machine::{Machine, Output};
use speaker::metrics::Event;
use speaker::wire::frame::Channel;
use speaker::{Keys, Neighbours, Snapshot};

use super::api::ApiClient;
use super::fixtures::link_on;
use super::{LINK, key};

/// The link of a node to a LAN.
#[derive(Clone, Debug)]
pub(super) struct HostLink {
    pub name: String,
    pub has_carrier: bool,
    /// Whether the kernel reports the link to the speaker. The reports follow the carrier a little later, and the
    /// speaker gets only the links that have a carrier.
    pub is_reported: bool,
}

/// A frame that waits in a socket.
pub(super) struct Waiting {
    /// The values of the node's clocks at its arrival.
    pub at: Duration,
    pub wall: Duration,
    pub lan: usize,
    pub channel: Channel,
    pub bytes: Arc<[u8]>,
}

/// The inputs that the speaker has not read. It reads the latest value of each, like the real loop.
#[derive(Default)]
pub(super) struct Unread {
    pub leave: bool,
    pub keys: bool,
    pub forwarded: bool,
    pub links: bool,
    pub snapshot: Option<Arc<Snapshot>>,
}

/// A node, with or without a speaker.
pub(super) struct Host {
    /// Whether the node has power, so that its kernel answers for the node's own addresses.
    pub has_power: bool,
    pub machine: Option<Machine>,
    pub starts: u64,
    /// The value of the node's monotonic clock when the world's clock is zero.
    pub clock: Duration,
    /// The value of its wall clock at that time. The wall clocks of all nodes agree until one of them is set.
    pub wall: Duration,
    pub suspended_until: Duration,
    /// The world's time at which the node was paused. Its clocks stand still from then on.
    pub paused_at: Option<Duration>,
    /// Whether the node was suspended or paused since its last round.
    pub slept: bool,
    /// The frames that wait in the sockets.
    pub backlog: Vec<Waiting>,
    /// The value of its clock when it last read its sockets.
    pub read_at: Duration,
    pub unread: Unread,
    /// Whether routine Hellos may wait in the node's sockets until its next round.
    pub idle: bool,
    /// The time of its next round, if no frame arrives before.
    pub wake: Option<Duration>,
    /// The addresses that its kernel forwards.
    pub forwarded: Arc<BTreeSet<IpAddr>>,
    /// Whether its kernel forwards nothing and cannot be programmed.
    pub stuck: bool,
    /// One for each LAN.
    pub links: Vec<HostLink>,
    pub has_api: bool,
    pub api: ApiClient,
    pub keys: Keys,
    /// The addresses that its speaker announces according to its events, each with its LAN.
    pub owned: BTreeSet<(usize, IpAddr)>,
    /// The dead nodes, as last published by its speaker.
    pub dead: BTreeSet<String>,
    /// The nodes on its links, as last published by its speaker.
    pub neighbours: Neighbours,
}

impl Host {
    /// A node without a speaker. Its clock shows `clock` when the world's clock is zero.
    pub fn new(clock: Duration, lans: usize) -> Self {
        let link = |lan| HostLink { name: format!("eth{lan}"), has_carrier: true, is_reported: true };
        Self {
            has_power: true,
            machine: None,
            starts: 0,
            clock,
            wall: Duration::from_secs(1_000_000_000),
            suspended_until: Duration::ZERO,
            paused_at: None,
            slept: false,
            backlog: Vec::new(),
            read_at: Duration::ZERO,
            unread: Unread::default(),
            idle: false,
            wake: None,
            forwarded: Arc::default(),
            stuck: false,
            links: (0..lans).map(link).collect(),
            has_api: true,
            api: ApiClient::default(),
            keys: key(0),
            owned: BTreeSet::new(),
            dead: BTreeSet::new(),
            neighbours: Neighbours::default(),
        }
    }

    /// The links as reported to the speaker.
    pub fn reported_links(&self, node: usize) -> BTreeMap<u32, Link> {
        let reported = self.links.iter().enumerate().filter(|(_, link)| link.is_reported);
        reported.map(|(lan, link)| (LINK + lan as u32, link_on(lan, node, &link.name))).collect()
    }

    /// Passes the unread inputs to the speaker, in the order of the real loop.
    pub fn read_inputs(&mut self, node: usize, clock: Duration) {
        let links = self.unread.links.then(|| self.reported_links(node));
        let Some(machine) = &mut self.machine else { return };
        let unread = std::mem::take(&mut self.unread);
        if unread.leave {
            machine.leave(clock);
        }
        if unread.keys {
            machine.set_keys(clock, &self.keys);
        }
        if unread.forwarded {
            machine.set_forwarded(Arc::clone(&self.forwarded));
        }
        if let Some(links) = links {
            machine.set_links(clock, links);
        }
        if let Some(snapshot) = unread.snapshot {
            machine.set_snapshot(clock, Some(snapshot));
        }
    }

    /// Records the published state of the speaker.
    pub fn publish(&mut self, output: &Output) {
        for event in &output.events {
            match event {
                Event::Announced { lb_ip, link, .. } => drop(self.owned.insert((self.lan(link), *lb_ip))),
                Event::Withdrawn { lb_ip, link, .. } => drop(self.owned.remove(&(self.lan(link), *lb_ip))),
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

    /// The LAN of the link with this name. If no link has the name, a link to the first LAN had it: only those are
    /// renamed.
    pub fn lan(&self, link: &str) -> usize {
        self.links.iter().position(|known| known.name == link).unwrap_or(0)
    }

    /// Ends the speaker, and with it the published state.
    pub fn end_speaker(&mut self) {
        self.machine = None;
        self.unread = Unread::default();
        self.owned.clear();
        self.dead.clear();
        self.neighbours = Neighbours::default();
        self.api = ApiClient::default();
    }
}
