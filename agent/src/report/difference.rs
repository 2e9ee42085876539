//! Decides which differences to write to the status of LoadBalancerIPs, and when. Pure.
//!
//! This node's state and the records → [`Difference`]s → [`Pacer`] → the differences that may be written now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crds::service::Family;
use crds::{
    AddressConflict, Announcer, ForwardingProblem, InternedStr, ProblemReason, Record, ResourceVersion, Takeover,
};
use dataplane::Forwarding;
use dataplane::reply_path::Gap;
use dataplane::snapshot::LinkName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use speaker::metrics::Move;
use speaker::{Announcement, Announcements, Conflict, Conflicts};
use tokio::time::Instant;

/// The longest description of one problem, in characters. The field in the CRD admits 253.
const MAX_PROBLEM_CHARS: usize = 200;

/// The state of this node that its reports depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeState<'a> {
    pub(super) node: &'a str,
    pub(super) announcements: &'a Announcements,
    pub(super) conflicts: &'a Conflicts,
    pub(super) forwarding: &'a Forwarding,
    /// Why requests may be lost, or replies may leave by another link than that of their requests.
    pub(super) gaps: &'a BTreeSet<Gap>,
}

/// The fields of the status to write for one address. A field that is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Difference {
    resource_version: ResourceVersion,
    pub(super) announcers: Option<Vec<Announcer>>,
    /// Whether the announcers differ only in how they forward.
    pub(super) is_reach_only: bool,
    first_announced: Option<Time>,
    pub(super) conflicts: Option<Vec<AddressConflict>>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.announcers.is_none() && self.first_announced.is_none() && self.conflicts.is_none()
    }

    /// The JSON merge patch (RFC 7396) for `loadbalancerips/status`. It replaces lists as a whole.
    pub(super) fn patch(&self) -> Value {
        let mut status = json!({});
        if let Some(announcers) = &self.announcers {
            status["announcers"] = json!(announcers);
        }
        if let Some(first_announced) = &self.first_announced {
            status["firstAnnounced"] = json!(first_announced);
        }
        if let Some(conflicts) = &self.conflicts {
            // `null` removes the list.
            status["conflicts"] = if conflicts.is_empty() { Value::Null } else { json!(conflicts) };
        }
        json!({"metadata": {"resourceVersion": self.resource_version.to_string()}, "status": status})
    }
}

/// The addresses whose record does not match this node's state.
pub(super) fn differences(state: &NodeState<'_>, records: &BTreeMap<IpAddr, Arc<Record>>) -> Vec<(IpAddr, Difference)> {
    let all = records.iter().map(|(lb_ip, record)| (*lb_ip, difference(state, *lb_ip, record)));
    all.filter(|(_, difference)| !difference.is_empty()).collect()
}

fn difference(state: &NodeState<'_>, lb_ip: IpAddr, record: &Record) -> Difference {
    let announcements = state.announcements.get(&lb_ip).into_iter().flatten();
    let own: Vec<Announcer> = announcements.map(|announcement| own_announcer(state, announcement, record)).collect();
    let (announcers, is_reach_only) = changed_announcers(state.node, &own, record);
    // If this node announces the address, a change of the announcers removes each conflict that no remaining announcer
    // reported. A node that still observes such a conflict reports it again.
    let stays = |other: &AddressConflict| {
        let remaining = announcers.as_ref().filter(|_| !own.is_empty());
        remaining.is_none_or(|remaining| remaining.iter().any(|announcer| announcer.node == other.node))
    };
    let first_announced = own.iter().map(|own| own.since.clone()).min_by_key(|since| since.0);
    Difference {
        resource_version: record.resource_version,
        first_announced: first_announced.filter(|_| record.first_announced.is_none()),
        conflicts: changed_conflicts(state.node, state.conflicts.get(&lb_ip), record, stays),
        announcers,
        is_reach_only,
    }
}

/// The announcers of an address, if they differ from the record, and whether they differ only in how they forward.
/// `own` has the entries that this node should have.
fn changed_announcers(node: &str, own: &[Announcer], record: &Record) -> (Option<Vec<Announcer>>, bool) {
    let written: Vec<_> = record.announcers.iter().filter(|announcer| announcer.node == node).collect();
    let others = || record.announcers.iter().filter(|other| other.node != node);
    let pairs = || own.iter().zip(&written);
    // After a restart with the same epoch, the written `since` stays. The `since` of `own` would be later, because it
    // is never before the start of this process.
    let is_same_place = |(a, b): (&Announcer, &&Announcer)| (&a.link, a.epoch) == (&b.link, b.epoch);
    let is_same_reach = |(a, b): (&Announcer, &&Announcer)| (a.reach, &a.unforwarded) == (b.reach, &b.unforwarded);
    // Just before a node notices that it has lost the address, it may write its entry again. If the node then ends, it
    // does not remove this entry. So the node that took the address over removes it.
    let is_late = |other: &Announcer| own.iter().any(|own| has_moved_from(own, other));
    if own.len() == written.len() && pairs().all(is_same_place) && !record.announcers.iter().any(is_late) {
        if pairs().all(is_same_reach) {
            return (None, false);
        }
        let own = pairs().map(|(own, written)| Announcer { since: written.since.clone(), ..own.clone() });
        return (Some(own.chain(others().cloned()).collect()), true);
    }
    // Of two entries, the one with the greater epoch has taken the address over. If the epochs are equal, the later
    // `since` decides. Links are not compared, because the link to a LAN may have another name on each node.
    let is_taken = |other: &Announcer| own.iter().any(|own| (own.epoch, own.since.0) > (other.epoch, other.since.0));
    let others = others().filter(|other| !is_taken(other) && !is_late(other));
    (Some(own.iter().chain(others).cloned().collect()), false)
}

/// Whether `own` has taken the address over from `other`, on the same link and with a greater epoch.
fn has_moved_from(own: &Announcer, other: &Announcer) -> bool {
    let is_predecessor = own.moved.as_ref().is_some_and(|moved| moved.from == other.node);
    is_predecessor && own.link == other.link && own.epoch > other.epoch
}

/// The conflicts of an address, if they differ from the record. They are the conflict that this node has `observed`,
/// and the conflicts of other nodes for which `stays` is true.
fn changed_conflicts(
    node: &str,
    observed: Option<&Conflict>,
    record: &Record,
    stays: impl Fn(&AddressConflict) -> bool,
) -> Option<Vec<AddressConflict>> {
    let own = observed.map(|conflict| AddressConflict {
        node: node.to_owned(),
        link: conflict.link.clone(),
        mac: conflict.mac.to_string(),
        held_back: conflict.held_back,
        since: Time(conflict.since),
    });
    let is_same =
        |a: &AddressConflict, b: &AddressConflict| (&a.link, &a.mac, a.held_back) == (&b.link, &b.mac, b.held_back);
    let written = record.conflicts.iter().find(|conflict| conflict.node == node);
    // The written `since` stays after a restart.
    let own = match (own, written) {
        (Some(own), Some(written)) if is_same(&own, written) => Some(written.clone()),
        (own, _) => own,
    };
    let others = record.conflicts.iter().filter(|other| other.node != node && stays(other));
    let all: Vec<_> = own.into_iter().chain(others.cloned()).collect();
    let is_written = all.len() == record.conflicts.len() && all.iter().all(|one| record.conflicts.contains(one));
    (!is_written).then_some(all)
}

/// This node's entry for an announcement.
fn own_announcer(state: &NodeState<'_>, announcement: &Announcement, record: &Record) -> Announcer {
    let lb_ip = record.address;
    let problems = state.forwarding.problems.get(&lb_ip).into_iter().flatten();
    let problems = problems.map(|it| problem_entry(&it.service.namespace, &it.service.name, it.reason, &it.what));
    // A problem of the reply path concerns every holder of the address.
    let reply_problems = reply_problems(state, lb_ip, &announcement.link);
    let reply_problems = record.holders.iter().flat_map(|holder| {
        let all = reply_problems.iter();
        all.map(|(reason, what)| problem_entry(&holder.namespace, &holder.name, *reason, what))
    });
    Announcer {
        node: state.node.into(),
        link: announcement.link.as_str().into(),
        epoch: i64::try_from(announcement.epoch).unwrap_or(i64::MAX),
        since: Time(announcement.since),
        moved: announcement.moved.as_ref().map(move_entry),
        reach: state.forwarding.reach.get(&lb_ip).copied(),
        unforwarded: problems.chain(reply_problems).take(crds::load_balancer_ip::MAX_HOLDERS).collect(),
    }
}

fn problem_entry(namespace: &InternedStr, name: &InternedStr, reason: ProblemReason, what: &str) -> ForwardingProblem {
    let what = what.chars().take(MAX_PROBLEM_CHARS).collect::<String>().into();
    ForwardingProblem { namespace: namespace.clone(), name: name.clone(), reason, what }
}

/// Why requests to an lb_ip that arrive on this link may be lost, or why their replies may leave by another link.
fn reply_problems(state: &NodeState<'_>, lb_ip: IpAddr, link: &str) -> BTreeSet<(ProblemReason, String)> {
    let Some(link) = LinkName::new(link) else { return BTreeSet::new() };
    let mut all: BTreeSet<_> = state.gaps.iter().filter_map(|gap| gap.problem(Family::from(lb_ip), link)).collect();
    if state.forwarding.marks_refused {
        all.insert((ProblemReason::AnswersElsewhere, "the kernel does not mark connections".to_owned()));
    }
    all
}

fn move_entry(moved: &Move) -> Takeover {
    let took_milliseconds = i64::try_from(moved.silence.as_millis()).unwrap_or(i64::MAX);
    Takeover { from: moved.from.as_str().into(), cause: moved.cause.as_str().into(), took_milliseconds }
}

/// The minimum time between two writes of the same [`Part`] of a status. If two hosts use the address, the conflict may
/// change with each frame. The reach may change with each change of endpoints.
const PAUSE: Duration = Duration::from_secs(10);

/// A part of the status of an address that may change many times per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Conflicts,
    /// The announcers, if they differ only in how they forward.
    Reach,
}

/// Admits at most one write of each [`Part`] of a status in [`PAUSE`].
#[derive(Debug, Default)]
pub(super) struct Pacer {
    written: BTreeMap<(IpAddr, Part), Instant>,
    /// When the first of the refused writes is admitted.
    postponed_until: Option<Instant>,
}

impl Pacer {
    /// Removes the parts that have to wait, and returns when the first of them may be written. The remaining parts
    /// count as written.
    pub(super) fn postpone(&mut self, differences: &mut Vec<(IpAddr, Difference)>, now: Instant) -> Option<Instant> {
        for (lb_ip, difference) in differences.iter_mut() {
            if difference.conflicts.is_some() && !self.may_write(*lb_ip, Part::Conflicts, now) {
                difference.conflicts = None;
            }
            if difference.is_reach_only && !self.may_write(*lb_ip, Part::Reach, now) {
                difference.announcers = None;
            }
        }
        differences.retain(|(_, difference)| !difference.is_empty());
        self.postponed_until.take()
    }

    /// Forgets the writes for these addresses, because they have failed.
    pub(super) fn forget(&mut self, failed: &[IpAddr]) {
        for lb_ip in failed {
            self.written.remove(&(*lb_ip, Part::Conflicts));
            self.written.remove(&(*lb_ip, Part::Reach));
        }
    }

    /// Whether a write is admitted now. If so, it counts as done.
    fn may_write(&mut self, lb_ip: IpAddr, part: Part, now: Instant) -> bool {
        match self.written.get(&(lb_ip, part)).map(|written| *written + PAUSE).filter(|next| *next > now) {
            Some(next) => {
                self.postponed_until = Some(self.postponed_until.map_or(next, |first| first.min(next)));
                false
            }
            None => {
                self.written.retain(|_, written| *written + PAUSE > now);
                self.written.insert((lb_ip, part), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
