//! What tests ask of the LAN.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use speaker::machine::Machine;

use super::{World, name};

impl World {
    /// How many nodes there are, with or without a speaker.
    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    /// All addresses that are wanted.
    pub fn lb_ips(&self) -> Vec<IpAddr> {
        self.wanted.keys().copied().collect()
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
}
