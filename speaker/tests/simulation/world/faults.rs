//! Faults of links, paths and clocks on the simulated LAN.

use std::time::Duration;

use super::{Scheduled, World};

/// The kernel reports a change of a link within this time.
const LINK_REPORT: Duration = Duration::from_millis(5);

impl World {
    /// Removes or restores the carrier of a node's link to a LAN. A little later the speaker gets the new list of
    /// links, which has only the links with a carrier.
    pub fn set_carrier(&mut self, node: usize, lan: usize, carrier: bool) {
        if std::mem::replace(&mut self.hosts[node].links[lan].has_carrier, carrier) == carrier {
            return;
        }
        let at = self.now + self.random.time(Duration::ZERO, LINK_REPORT);
        self.schedule(at, Scheduled::ReportLink(node, lan));
        self.observe();
    }

    pub(super) fn report_link(&mut self, node: usize, lan: usize) {
        let host = &mut self.hosts[node];
        host.links[lan].is_reported = host.links[lan].has_carrier;
        host.unread.links = true;
        self.run_host(node, None);
    }

    /// Cuts or restores the path from `a` to `b` on one LAN.
    pub fn cut_on(&mut self, lan: usize, a: usize, b: usize, cut: bool) {
        self.cut[lan][a][b] = cut;
        self.observe();
    }

    /// The cut paths: the LAN, the sending node and the receiving node of each.
    pub fn cuts(&self) -> Vec<(usize, usize, usize)> {
        let all = 0..=self.nodes();
        let paths = all.clone().flat_map(|a| all.clone().map(move |b| (a, b)));
        let lans = 0..self.cut.len();
        lans.flat_map(|lan| paths.clone().map(move |(a, b)| (lan, a, b)))
            .filter(|(lan, a, b)| self.cut[*lan][*a][*b])
            .collect()
    }

    /// The links without carrier: the node, and the LAN.
    pub fn links_down(&self) -> Vec<(usize, usize)> {
        let hosts = self.hosts.iter().enumerate();
        let links = hosts.flat_map(|(node, host)| host.links.iter().enumerate().map(move |(lan, it)| (node, lan, it)));
        links.filter(|(_, _, link)| !link.has_carrier).map(|(node, lan, _)| (node, lan)).collect()
    }

    /// Pauses a node together with its clocks, as a hypervisor does. The frames that arrive meanwhile are delivered
    /// when it resumes, all at once. By its monotonic clock, no time has passed.
    pub fn pause(&mut self, node: usize, time: Duration) {
        if self.hosts[node].paused_at.is_none() {
            self.hosts[node].paused_at = Some(self.now);
        }
        self.suspend(node, time);
    }

    /// Ends a pause whose time is over.
    pub(super) fn end_pause(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.hosts[node];
        if let Some(since) = host.paused_at.take_if(|_| host.suspended_until <= now) {
            // The monotonic clock continues from the pause, and the wall clock is correct again at once. The frames get
            // their time of arrival only now.
            host.clock -= now - since;
            let (clock, wall) = (host.clock + now, host.wall + now);
            host.backlog.iter_mut().filter(|it| it.at == clock).for_each(|it| it.wall = wall);
        }
    }

    /// Sets the wall clock of a node back. Its monotonic clock goes on.
    pub fn set_wall_clock_back(&mut self, node: usize, by: Duration) {
        self.hosts[node].wall -= by;
    }
}
