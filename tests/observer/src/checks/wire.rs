//! Statements of hosts on the LAN, compared with each other and with the records: I5, I6, I8, I16. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crds::{MacAddr, Record};

use crate::breach::{Invariant, Subject};
use crate::checks::lasting::{Finding, Lasting};
use crate::frame::Statement;

/// Two hosts may answer for this long during a move. The observer's own delay is added.
const MAX_OVERLAP: Duration = Duration::from_millis(250);

/// A host that answers again within this time counts as answering without interruption. The time is less than
/// [`MAX_OVERLAP`], so that an address that moves away and back does not seem to have two owners.
const SAME_PERIOD: Duration = Duration::from_millis(240);

/// A host that answered within this time counts as answering now. The observer sends several requests in this time.
const NOW: Duration = Duration::from_secs(1);

/// A delay of the observer counts for this time, because frames may have arrived late.
const DELAY_MEMORY: Duration = Duration::from_secs(2);

/// Time of continuous answers of one host.
#[derive(Clone, Copy, Debug)]
struct Period {
    first: Duration,
    last: Duration,
}

/// The hosts of the LAN that belong to the cluster.
#[derive(Clone, Debug, Default)]
pub struct Lan {
    /// Node by MAC address.
    pub nodes: BTreeMap<MacAddr, String>,
    /// The hosts' own addresses, for which they may answer.
    pub own_addresses: BTreeSet<IpAddr>,
    /// The name of each node's link to this LAN.
    pub link: &'static str,
}

/// All that was observed on the LAN.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    lan: Lan,
    answers: BTreeMap<IpAddr, BTreeMap<MacAddr, Period>>,
    /// Two hosts that have already been reported for an address.
    reported_pairs: BTreeSet<(IpAddr, MacAddr, MacAddr)>,
    /// The last unsolicited announcement of each address: its time and its sender.
    last_announced: BTreeMap<IpAddr, (Duration, MacAddr)>,
    delays: Vec<(Duration, Duration)>,
    /// Records that disagree with the wire.
    pub mismatches: Lasting,
    /// Numbers of answers and of unsolicited announcements.
    pub counts: [u64; 2],
}

/// The records that are compared with the wire.
pub struct RecordView<'a> {
    pub current: &'a BTreeMap<IpAddr, Record>,
    pub deleted: &'a BTreeMap<IpAddr, Duration>,
}

impl Wire {
    pub fn new(lan: Lan) -> Self {
        Self { lan, ..Self::default() }
    }

    /// The hosts' own addresses.
    pub fn own_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.lan.own_addresses
    }

    /// Adds another MAC address of a node.
    pub fn add_mac(&mut self, node: &str, mac: MacAddr) {
        self.lan.nodes.insert(mac, node.to_owned());
    }

    /// Adds how late the observer itself was.
    pub fn add_delay(&mut self, now: Duration, delay: Duration) {
        self.delays.retain(|(at, _)| now.saturating_sub(*at) < DELAY_MEMORY);
        self.delays.push((now, delay));
    }

    /// Forgets which pairs of hosts were reported.
    pub fn forget_reported_pairs(&mut self) {
        self.reported_pairs.clear();
    }

    /// Adds a statement of a host. Finds a second host that answers for the same address.
    pub fn add_statement(&mut self, now: Duration, statement: Statement) -> Option<Finding> {
        let Statement { address, mac, is_answer } = statement;
        self.counts[usize::from(!is_answer)] += 1;
        if !is_answer {
            self.last_announced.insert(address, (now, mac));
            return None;
        }
        let answers = self.answers.entry(address).or_default();
        let period = answers.entry(mac).or_insert(Period { first: now, last: now });
        if now.saturating_sub(period.last) > SAME_PERIOD {
            period.first = now;
        }
        period.last = now;
        let own = *period;
        let delay = self.delays.iter().map(|(_, delay)| *delay).max().unwrap_or_default();
        let overlap = |other: &Period| own.last.min(other.last).saturating_sub(own.first.max(other.first));
        let mut others = answers.iter().filter(|(other, _)| **other != mac);
        let (other, _) = others.find(|(_, other)| overlap(other) > MAX_OVERLAP + delay)?;
        let pair = [mac.min(*other), mac.max(*other)];
        let names = pair.map(|mac| self.name(mac));
        let is_new = self.reported_pairs.insert((address, pair[0], pair[1]));
        let text = format!("is answered by {} and {} for more than {MAX_OVERLAP:?}", names[0], names[1]);
        is_new.then_some((Invariant::I6, Subject::Address(address), text))
    }

    /// Finds records that have disagreed with the wire for `limit`.
    pub fn compare(&mut self, now: Duration, limit: Duration, records: &RecordView<'_>) -> Vec<Finding> {
        let mut present = Vec::new();
        let addresses: BTreeSet<IpAddr> = records.current.keys().chain(self.answers.keys()).copied().collect();
        for address in addresses.difference(&self.lan.own_addresses) {
            let answering = self.answering_nodes(now, *address);
            let Some(record) = records.current.get(address) else {
                if !answering.is_empty() {
                    // A record that was deleted before the observer began is not in `deleted`.
                    let invariant = if records.deleted.contains_key(address) { Invariant::I13 } else { Invariant::I5 };
                    let text = format!("is answered by {}, and has no LoadBalancerIP", list(&answering));
                    present.push((invariant, Subject::Address(*address), text));
                }
                continue;
            };
            let announcers = record.announcers.iter().filter(|announcer| *announcer.link == *self.lan.link);
            let announcers: BTreeSet<String> = announcers.map(|announcer| announcer.node.to_string()).collect();
            if answering != announcers {
                let text = format!("is answered by {}, and its status names {}", list(&answering), list(&announcers));
                present.push((Invariant::I16, Subject::Address(*address), text));
            }
            let last = self.last_announced.get(address).map(|(_, mac)| self.name(*mac));
            if let [announcer] = &Vec::from_iter(&announcers)[..]
                && last.as_ref() != Some(*announcer)
            {
                let last = last.unwrap_or_else(|| "no host".to_owned());
                let text = format!("was last announced by {last}, and its status names {announcer}");
                present.push((Invariant::I8, Subject::Address(*address), text));
            }
        }
        self.mismatches.update(now, limit, present)
    }

    /// The nodes that answer for an address now. Other hosts are not compared with the status.
    fn answering_nodes(&self, now: Duration, address: IpAddr) -> BTreeSet<String> {
        let answers = self.answers.get(&address).into_iter().flatten();
        let recent = answers.filter(|(_, period)| now.saturating_sub(period.last) < NOW);
        recent.filter_map(|(mac, _)| self.lan.nodes.get(mac).cloned()).collect()
    }

    fn name(&self, mac: MacAddr) -> String {
        self.lan.nodes.get(&mac).cloned().unwrap_or_else(|| mac.to_string())
    }
}

fn list(nodes: &BTreeSet<String>) -> String {
    match nodes.len() {
        0 => "no node".to_owned(),
        _ => nodes.iter().map(String::as_str).collect::<Vec<_>>().join(" and "),
    }
}

#[cfg(test)]
mod tests;
