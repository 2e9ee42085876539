//! Checks an invariant at each step: clients hear several announcers of an address on a LAN only for a limited time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::World;

/// The addresses with several announcers that clients hear.
#[derive(Default)]
pub struct Observer {
    /// The longest time that an address may have several announcers after a fault; `None` if the test does not check
    /// it.
    pub limit: Option<Duration>,
    /// The addresses that have several announcers, each with its LAN, and the time since when.
    doubles: BTreeMap<(usize, IpAddr), Duration>,
    /// The longest time that an address had several announcers.
    pub longest: Duration,
}

impl World {
    /// Records that a fault begins or ends: the limit counts from now.
    pub fn record_fault(&mut self) {
        let now = self.now;
        self.observer.doubles.values_mut().for_each(|since| *since = now);
    }

    /// Finds the addresses with several announcers. Call it after each change of announcers, paths and links.
    pub(super) fn observe(&mut self) {
        if self.observer.limit.is_none() {
            return;
        }
        let mut counts = BTreeMap::<(usize, IpAddr), usize>::new();
        let clients = self.nodes();
        for (node, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.suspended_until <= self.now) {
            for (lan, lb_ip) in &host.owned {
                let is_cut = self.cut[*lan][node][clients] || self.cut[*lan][clients][node];
                if !is_cut && host.links[*lan].has_carrier {
                    *counts.entry((*lan, *lb_ip)).or_default() += 1;
                }
            }
        }
        let before = std::mem::take(&mut self.observer.doubles);
        let doubles = counts.into_iter().filter(|(_, count)| *count > 1);
        self.observer.doubles = doubles.map(|(at, _)| (at, before.get(&at).copied().unwrap_or(self.now))).collect();
    }

    /// Checks the time for which addresses have had several announcers.
    ///
    /// # Panics
    /// If clients have heard several announcers of an address for too long.
    pub(super) fn check_announcers(&mut self) {
        let Some(limit) = self.observer.limit else { return };
        for ((lan, lb_ip), since) in &self.observer.doubles {
            let time = self.now - *since;
            self.observer.longest = self.observer.longest.max(time);
            assert!(
                time <= limit,
                "{lb_ip} has several announcers on LAN {lan} for {time:?}: {:?}, at {:?}\n{}",
                self.announcers_on(*lan, *lb_ip),
                self.now,
                crate::event_log(self, *lb_ip)
            );
        }
    }

    /// The awake nodes that announce `lb_ip` on a LAN.
    pub fn announcers_on(&self, lan: usize, lb_ip: IpAddr) -> Vec<usize> {
        let announces = |node: &usize| {
            let host = &self.hosts[*node];
            host.suspended_until <= self.now && host.owned.contains(&(lan, lb_ip))
        };
        (0..self.nodes()).filter(announces).collect()
    }
}
