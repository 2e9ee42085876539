//! The queries of tests about the simulated LAN.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crds::MacAddr;
use speaker::machine::Machine;

use super::{World, lan_of, name};

impl World {
    /// The number of nodes, with or without a speaker.
    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    pub fn lb_ips(&self) -> Vec<IpAddr> {
        self.wanted.keys().copied().collect()
    }

    /// The awake nodes that announce `lb_ip` on its LAN.
    pub fn owners(&self, lb_ip: IpAddr) -> Vec<usize> {
        let owns = |node: &usize| {
            let host = &self.hosts[*node];
            host.suspended_until <= self.now && host.owned.contains(&(lan_of(lb_ip), lb_ip))
        };
        (0..self.nodes()).filter(owns).collect()
    }

    pub fn all_owners(&self) -> BTreeMap<IpAddr, Vec<usize>> {
        let mut owners: BTreeMap<IpAddr, Vec<usize>> = self.wanted.keys().map(|lb_ip| (*lb_ip, Vec::new())).collect();
        for (node, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.suspended_until <= self.now) {
            for (_, lb_ip) in host.owned.iter().filter(|(lan, lb_ip)| *lan == lan_of(*lb_ip)) {
                owners.entry(*lb_ip).or_default().push(node);
            }
        }
        owners
    }

    /// The addresses that awake nodes announce on a LAN to which the address does not belong, each with the node.
    pub fn misplaced_announcements(&self) -> Vec<(usize, IpAddr)> {
        let awake = self.hosts.iter().enumerate().filter(|(_, host)| host.suspended_until <= self.now);
        let owned = awake.flat_map(|(node, host)| host.owned.iter().map(move |(lan, lb_ip)| (node, *lan, *lb_ip)));
        owned.filter(|(_, lan, lb_ip)| *lan != lan_of(*lb_ip)).map(|(node, _, lb_ip)| (node, lb_ip)).collect()
    }

    /// Whether a speaker of the node is awake and may announce `lb_ip`.
    pub fn is_eligible(&self, node: usize, lb_ip: IpAddr) -> bool {
        let host = &self.hosts[node];
        let link = &host.links[lan_of(lb_ip)];
        host.machine.is_some()
            && host.suspended_until <= self.now
            && link.has_carrier
            && host.forwarded.contains(&lb_ip)
            && self.wanted.get(&lb_ip).is_some_and(|w| w.candidates.preference(&name(node), &link.name).is_some())
    }

    /// The preference for a node.
    pub fn preference(&self, node: usize, lb_ip: IpAddr) -> u32 {
        self.wanted[&lb_ip].candidates.get(&name(node)).map_or(0, |candidate| candidate.preference)
    }

    /// The dead nodes as published by a node; `None` if no speaker runs there.
    pub fn dead(&self, node: usize) -> Option<&BTreeSet<String>> {
        let host = &self.hosts[node];
        host.machine.is_some().then_some(&host.dead)
    }

    /// The MAC address of another node on the link `eth0`, as published by a node.
    pub fn neighbour(&self, node: usize, other: usize) -> Option<MacAddr> {
        self.hosts[node].neighbours.mac("eth0", &name(other))
    }

    pub fn machine(&self, node: usize) -> Option<&Machine> {
        self.hosts[node].machine.as_ref()
    }

    /// The last node whose announcement of `lb_ip` the clients heard; `None` if its speaker has ended since.
    pub fn last_announcer(&self, lb_ip: IpAddr) -> Option<usize> {
        let seen = self.last_announcements.get(&lb_ip)?;
        let host = &self.hosts[seen.node];
        (host.machine.is_some() && host.starts == seen.start).then_some(seen.node)
    }

    /// When a node last announced `lb_ip`, with an error of at most 100 ms. The clients need not have heard it.
    pub fn last_announced_by(&self, node: usize, lb_ip: IpAddr) -> Option<Duration> {
        self.recent.get(&(node, lan_of(lb_ip), lb_ip)).map(|(at, _)| *at)
    }
}
