//! A model of the API: the records of the addresses, which the reporter of each node writes and all nodes watch.
//!
//! Reports follow the rules of the agent (`agent/src/report/difference.rs`). A node adds and removes its own entry. It
//! also removes the entries of nodes from which it has taken the address over. Each write names the version that it is
//! based on. A speaker gets back the greatest epoch in the record.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use model::SharedMap;
use model::eligibility::AnnouncementPolicy;

use super::{Scheduled, World};

/// The time between two publications of the speaker (`speaker/src/run/wire_loop.rs`).
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

/// The pause after a failed write (`agent/src/report.rs`).
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The entry of an announcer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    node: usize,
    lan: usize,
    epoch: u64,
    /// When the node made the claim, by its wall clock.
    since: Duration,
    /// The node that it took the address over from.
    from: Option<usize>,
}

/// The record of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    version: u64,
    announcers: Vec<Entry>,
}

/// The API server.
pub struct Api {
    records: BTreeMap<IpAddr, Record>,
    last_version: u64,
    /// The maximum time until a write is applied, and until a node sees it.
    pub delay: Duration,
    /// The probability that a write or its response is lost.
    pub loss: f64,
}

/// The state of a node's reporter.
#[derive(Default)]
pub(super) struct ApiClient {
    /// The records, as this node last saw them.
    known: BTreeMap<IpAddr, Record>,
    published: BTreeMap<(usize, IpAddr), Entry>,
    next_report: Option<Duration>,
    /// When the last event of its watch arrives. Later ones arrive after it.
    watched_until: Duration,
}

pub(super) enum ApiStep {
    Report(usize),
    Write(usize, IpAddr, Record),
    Watch(usize, IpAddr, Record),
}

impl World {
    /// Adds an API that the nodes write to.
    pub fn add_api(&mut self, delay: Duration, loss: f64) {
        self.api = Some(Api { records: BTreeMap::new(), last_version: 0, delay, loss });
    }

    /// The announcers of an address in the API, each with its LAN.
    pub fn reported_announcers(&self, lb_ip: IpAddr) -> Vec<(usize, usize)> {
        let record = self.api.as_ref().and_then(|api| api.records.get(&lb_ip));
        let entries = record.into_iter().flat_map(|record| &record.announcers);
        entries.map(|entry| (entry.node, entry.lan)).collect()
    }

    /// The addresses with the epochs that a node knows from the API.
    pub(super) fn addresses_known_to(&self, node: usize) -> SharedMap<IpAddr, AnnouncementPolicy> {
        let mut addresses = self.wanted.clone();
        if self.api.is_some() {
            for (lb_ip, record) in &self.hosts[node].api.known {
                let epoch = record.announcers.iter().map(|entry| entry.epoch).max().unwrap_or(0);
                if let Some(policy) = self.wanted.get(lb_ip).filter(|policy| policy.epoch != epoch) {
                    let candidates = policy.candidates.clone();
                    addresses.insert(*lb_ip, AnnouncementPolicy { candidates, epoch });
                }
            }
        }
        addresses
    }

    /// Deletes the record of an address, because no Service holds the address any longer.
    pub(super) fn forget_record(&mut self, lb_ip: IpAddr) {
        if let Some(api) = &mut self.api {
            api.records.remove(&lb_ip);
        }
        for host in self.hosts.iter_mut().filter(|host| host.has_api) {
            host.api.known.remove(&lb_ip);
        }
    }

    /// Lists all records for a node that has just connected to the API.
    pub(super) fn list_records(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        let Some(api) = self.api.as_ref().filter(|_| host.has_api) else { return };
        host.api.known.clone_from(&api.records);
        self.schedule_report(node);
    }

    /// Schedules the next comparison of a node's announcements with the records.
    pub(super) fn schedule_report(&mut self, node: usize) {
        self.schedule_report_at(node, self.now + PUBLISH_INTERVAL);
    }

    fn schedule_report_at(&mut self, node: usize, at: Duration) {
        let next = &mut self.hosts[node].api.next_report;
        if self.api.is_some() && next.is_none_or(|next| at < next || next < self.now) {
            *next = Some(at);
            self.schedule(at, Scheduled::Api(ApiStep::Report(node)));
        }
    }

    pub(super) fn step_api(&mut self, step: ApiStep) {
        match step {
            ApiStep::Report(node) if self.hosts[node].api.next_report == Some(self.now) => self.report(node),
            ApiStep::Report(_) => {}
            ApiStep::Write(node, lb_ip, record) => self.apply_write(node, lb_ip, record),
            ApiStep::Watch(node, lb_ip, record) => self.receive_record(node, lb_ip, record),
        }
    }

    /// Writes the differences between the announcements of a node and the records that it knows.
    fn report(&mut self, node: usize) {
        self.hosts[node].api.next_report = None;
        let (clock, wall) = self.clocks(node);
        let host = &mut self.hosts[node];
        if host.suspended_until > self.now {
            let until = host.suspended_until;
            return self.schedule_report_at(node, until);
        }
        let Some(machine) = &host.machine else { return };
        let published = machine.reportable(clock).map(|(lb_ip, link, claim, moved)| {
            let lan = host.lan(link);
            let from = moved.and_then(|moved| moved.from.strip_prefix('n')?.parse().ok());
            let known = host.api.published.get(&(lan, lb_ip)).filter(|known| known.epoch == claim.epoch);
            let new = Entry { node, lan, epoch: claim.epoch, since: wall, from };
            ((lan, lb_ip), known.cloned().unwrap_or(new))
        });
        host.api.published = published.collect();
        let (Some(api), true) = (&self.api, host.has_api) else { return };
        let (delay, loss) = (api.delay, api.loss);
        let differing = self.wanted.keys().filter_map(|lb_ip| {
            let record = host.api.known.get(lb_ip).cloned().unwrap_or_default();
            let own: Vec<Entry> =
                host.api.published.iter().filter(|((_, it), _)| it == lb_ip).map(|(_, it)| it.clone()).collect();
            let announcers = changed_announcers(node, &own, &record.announcers)?;
            Some((*lb_ip, Record { announcers, ..record }))
        });
        for (lb_ip, record) in differing.collect::<Vec<_>>() {
            let (request_lost, response_lost) = (self.random.happens(loss), self.random.happens(loss));
            if !request_lost {
                let at = self.now + self.random.time(Duration::ZERO, delay);
                self.schedule(at, Scheduled::Api(ApiStep::Write(node, lb_ip, record)));
            }
            // The next comparison comes with the response, and after a pause if the write failed.
            let pause = if request_lost || response_lost { RETRY_PAUSE } else { delay };
            self.schedule_report_at(node, self.now + pause + PUBLISH_INTERVAL);
        }
    }

    /// Applies a write at the API server, unless another one came first.
    fn apply_write(&mut self, node: usize, lb_ip: IpAddr, mut record: Record) {
        let Some(api) = self.api.as_mut().filter(|_| self.wanted.contains_key(&lb_ip)) else { return };
        if api.records.get(&lb_ip).map_or(0, |known| known.version) != record.version {
            let at = self.now + RETRY_PAUSE;
            return self.schedule_report_at(node, at);
        }
        api.last_version += 1;
        record.version = api.last_version;
        api.records.insert(lb_ip, record.clone());
        let delay = api.delay;
        for watcher in 0..self.nodes() {
            let later = self.now + self.random.time(Duration::ZERO, delay);
            let last = &mut self.hosts[watcher].api.watched_until;
            *last = later.max(*last);
            let at = *last;
            self.schedule(at, Scheduled::Api(ApiStep::Watch(watcher, lb_ip, record.clone())));
        }
    }

    /// Receives a record at a node, and passes its epoch to the speaker.
    fn receive_record(&mut self, node: usize, lb_ip: IpAddr, record: Record) {
        let host = &mut self.hosts[node];
        let is_newer = host.api.known.get(&lb_ip).is_none_or(|known| known.version < record.version);
        if !host.has_api || host.machine.is_none() || !is_newer || !self.wanted.contains_key(&lb_ip) {
            return;
        }
        host.api.known.insert(lb_ip, record);
        self.deliver_snapshot(node);
        self.schedule_report(node);
    }
}

/// The announcers of an address, if they differ from the record. `own` has the entries that the node should have.
fn changed_announcers(node: usize, own: &[Entry], announcers: &[Entry]) -> Option<Vec<Entry>> {
    let is_own = |entry: &&Entry| entry.node == node;
    let places = |entry: &Entry| (entry.lan, entry.epoch);
    let is_written = own.iter().map(places).eq(announcers.iter().filter(is_own).map(places));
    let is_late = |other: &Entry| {
        own.iter().any(|own| own.from == Some(other.node) && own.lan == other.lan && own.epoch > other.epoch)
    };
    if is_written && !announcers.iter().any(is_late) {
        return None;
    }
    let is_taken = |other: &Entry| own.iter().any(|own| (own.epoch, own.since) > (other.epoch, other.since));
    let others = announcers.iter().filter(|other| other.node != node && !is_taken(other) && !is_late(other));
    Some(own.iter().chain(others).cloned().collect())
}
