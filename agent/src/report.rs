//! Writes to the status of an address that this node announces it, how it forwards what comes, and who else uses it, after
//! the fact.
//!
//! Only what differs is written, so an idle cluster sees no writes. A node writes itself in, and takes out only itself, or
//! whom it has taken the address over from: the successor's entry is the successor's to write. Each write is conditional on
//! the version that was looked at, so two nodes that write at once don't undo each other's. What can't be written now is
//! tried again; the wire does not wait.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crds::service::Family;
use crds::{
    AddressConflict, Announcer, ForwardingProblem, InternedStr, LoadBalancerIP, ProblemReason, Record, ResourceVersion,
    Takeover, address,
};
use dataplane::Forwarding;
use dataplane::reply_path::Gap;
use dataplane::snapshot::LinkName;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use observe::{Listener, Store, source};
use serde_json::{Value, json};
use speaker::metrics::takeovers::Move;
use speaker::{Announcement, Announcements, Conflict, Conflicts};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How many writes are under way at once: a node that takes over thousands of addresses reports them within seconds, and
/// does not hold up the API server for others.
const AT_ONCE: usize = 16;

/// If there is more to write at once than this, addresses have just changed hands: the wire goes first, whose announcements
/// are over for the most part after [`AFTER`]. What is written is written after the fact anyway.
const MANY: usize = 100;

/// How long to wait before so much is written.
const AFTER: Duration = Duration::from_secs(1);

/// The pause between two looks at what is to be written: each goes over all addresses, and a thousand changes a second are no
/// reason to do so a thousand times.
const REST: Duration = Duration::from_millis(100);

/// For each so many addresses the pause is longer by as much again: looks at thousands take milliseconds, and the wire needs them
/// when much changes.
const RESTED: usize = 1000;

/// How long to wait after a write has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long to wait for an answer: the connection may be to a node that has just died.
const ANSWER: Duration = Duration::from_secs(10);

/// The pause between two writes about who else uses one address: two strangers that take turns are no news each time.
const STRANGERS: Duration = Duration::from_secs(10);

/// The pause between two writes about nothing else than how what comes to one address is forwarded: endpoints may come and
/// go all the time.
const FORWARDED: Duration = Duration::from_secs(10);

/// How much is said of what is wrong with one Service, in characters; the field takes 253.
const WHAT: usize = 200;

/// The reporter of one node.
pub(super) struct Report {
    client: Client,
    node: String,
    addresses: Store<IpAddr, Record>,
    announced: watch::Receiver<Announcements>,
    conflicts: watch::Receiver<Conflicts>,
    forwarding: watch::Receiver<Forwarding>,
    gaps: watch::Receiver<BTreeSet<Gap>>,
}

/// What this node knows of how it forwards.
#[derive(Clone, Copy)]
struct Ways<'a> {
    forwarding: &'a Forwarding,
    /// Why answers may leave by another link than requests came in by.
    gaps: &'a BTreeSet<Gap>,
}

/// What is to be written of one address. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Difference {
    resource_version: ResourceVersion,
    announcers: Option<Vec<Announcer>>,
    /// Whether the announcers are the same as before, and only how they forward is not.
    forwards_otherwise: bool,
    first_announced: Option<Time>,
    conflicts: Option<Vec<AddressConflict>>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.announcers.is_none() && self.first_announced.is_none() && self.conflicts.is_none()
    }

    /// The JSON merge patch (RFC 7386) for `loadbalancerips/status`, where lists are replaced as a whole.
    fn body(&self) -> Value {
        let mut status = json!({});
        if let Some(announcers) = &self.announcers {
            status["announcers"] = json!(announcers);
        }
        if let Some(first_announced) = &self.first_announced {
            status["firstAnnounced"] = json!(first_announced);
        }
        if let Some(conflicts) = &self.conflicts {
            // `null` takes the list away.
            status["conflicts"] = if conflicts.is_empty() { Value::Null } else { json!(conflicts) };
        }
        json!({"metadata": {"resourceVersion": self.resource_version.to_string()}, "status": status})
    }
}

impl Report {
    pub(super) fn new(
        client: Client,
        node: String,
        addresses: Store<IpAddr, Record>,
        announced: watch::Receiver<Announcements>,
        conflicts: watch::Receiver<Conflicts>,
        forwarding: watch::Receiver<Forwarding>,
        gaps: watch::Receiver<BTreeSet<Gap>>,
    ) -> Self {
        Self { client, node, addresses, announced, conflicts, forwarding, gaps }
    }

    /// Writes whatever differs, whenever something changed.
    pub(super) async fn run(mut self, mut listener: Listener) -> Result<Infallible> {
        // When what is said of strangers was written last, and of nothing else than how it is forwarded.
        let (mut told, mut forwarded) = (Paced::new(STRANGERS), Paced::new(FORWARDED));
        let mut has_waited = false;
        loop {
            let looked = Instant::now();
            let announcements = self.announced.borrow_and_update().clone();
            let conflicts = self.conflicts.borrow_and_update().clone();
            let records = self.addresses.snapshot().unwrap_or_default();
            let mut wanted = {
                let ways =
                    Ways { forwarding: &self.forwarding.borrow_and_update(), gaps: &self.gaps.borrow_and_update() };
                differences(&self.node, &announcements, &conflicts, ways, &records)
            };
            if wanted.len() > MANY && !std::mem::replace(&mut has_waited, true) {
                // And what changes meanwhile is written along.
                sleep(AFTER).await;
                continue;
            }
            has_waited = false;
            let now = Instant::now();
            for (lb_ip, difference) in &mut wanted {
                if difference.conflicts.is_some() && !told.may_write(*lb_ip, now) {
                    difference.conflicts = None;
                }
                if difference.forwards_otherwise && !forwarded.may_write(*lb_ip, now) {
                    difference.announcers = None;
                }
            }
            let again = told.again.take().into_iter().chain(forwarded.again.take()).min();
            wanted.retain(|(_, difference)| !difference.is_empty());
            let this = &self;
            let writes = futures::stream::iter(wanted).map(|write| this.write(write)).buffer_unordered(AT_ONCE);
            let failed: Vec<IpAddr> = writes.filter_map(std::future::ready).collect().await;
            // What was not written has not been told.
            for lb_ip in &failed {
                told.written.remove(lb_ip);
                forwarded.written.remove(lb_ip);
            }
            let again = again.into_iter().chain((!failed.is_empty()).then(|| Instant::now() + PAUSE)).min();
            tokio::select! {
                () = listener.wait() => {}
                changed = self.announced.changed() => if changed.is_err() {
                    // The speaker has left, and so will the process in a moment.
                    return std::future::pending().await;
                },
                changed = self.conflicts.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                changed = self.forwarding.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                // Nobody tells of gaps where another proxy forwards.
                Ok(()) = self.gaps.changed() => {}
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
            sleep_until(looked + rest(records.len())).await;
        }
    }

    /// Writes one, and returns its address if that is to be tried again.
    async fn write(&self, (lb_ip, difference): (IpAddr, Difference)) -> Option<IpAddr> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        let patch = Patch::Merge(difference.body());
        let name = address::object_name(lb_ip);
        let params = PatchParams::default();
        let Ok(answer) = timeout(ANSWER, addresses.patch_status(&name, &params, &patch)).await else {
            tracing::warn!(%lb_ip, "the API server does not answer; reporting who announces it again");
            return Some(lb_ip);
        };
        match answer {
            Ok(object) => {
                if let Some((observation, _)) = source::records().observe(&object) {
                    self.addresses.put(observation);
                }
                None
            }
            // Gone meanwhile: there is nothing to say about it.
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            // Written by somebody else meanwhile: the watch brings what it is now.
            Err(kube::Error::Api(status)) if status.code == 409 => Some(lb_ip),
            Err(error) => {
                tracing::warn!(%lb_ip, %error, "can't report who announces it; trying again");
                Some(lb_ip)
            }
        }
    }
}

/// The pause after a look at so many addresses.
fn rest(addresses: usize) -> Duration {
    REST * u32::try_from(1 + addresses / RESTED).unwrap_or(u32::MAX)
}

/// When something was last written about an address, where that should not be too often.
struct Paced {
    pause: Duration,
    written: BTreeMap<IpAddr, Instant>,
    /// When the first of those may be written about again that were asked for too early.
    again: Option<Instant>,
}

impl Paced {
    fn new(pause: Duration) -> Self {
        Self { pause, written: BTreeMap::new(), again: None }
    }

    /// Whether it may be written about now; if so, it is taken for written.
    fn may_write(&mut self, lb_ip: IpAddr, now: Instant) -> bool {
        match self.written.get(&lb_ip).map(|written| *written + self.pause).filter(|next| *next > now) {
            Some(next) => {
                self.again = Some(self.again.map_or(next, |again| again.min(next)));
                false
            }
            None => {
                self.written.retain(|_, written| *written + self.pause > now);
                self.written.insert(lb_ip, now);
                true
            }
        }
    }
}

/// What is to be written: of each address whose status is not what this node knows, what it should be.
fn differences(
    node: &str,
    announcements: &Announcements,
    conflicts: &Conflicts,
    ways: Ways<'_>,
    records: &BTreeMap<IpAddr, Arc<Record>>,
) -> Vec<(IpAddr, Difference)> {
    let all = records.iter().map(|(lb_ip, record)| {
        let announcements = announcements.get(lb_ip).into_iter().flatten();
        let own: Vec<Announcer> =
            announcements.map(|announcement| announcer(node, announcement, record, ways)).collect();
        let news = announcers(node, &own, record);
        let forwards_otherwise = matches!(news, News::ForwardsOtherwise(_));
        let announcers = news.announcers();
        // Who had it before can't tell any more who else used it then; if somebody does, this node sees that for itself.
        let speaks = |other: &AddressConflict| {
            let left = announcers.as_ref().filter(|_| !own.is_empty());
            left.is_none_or(|left| left.iter().any(|announcer| announcer.node == other.node))
        };
        let first_announced = own.iter().map(|own| own.since.clone()).min_by_key(|since| since.0);
        let difference = Difference {
            resource_version: record.resource_version,
            first_announced: first_announced.filter(|_| record.first_announced.is_none()),
            conflicts: strangers(node, conflicts.get(lb_ip), record, speaks),
            announcers,
            forwards_otherwise,
        };
        (*lb_ip, difference)
    });
    all.filter(|(_, difference)| !difference.is_empty()).collect()
}

/// What there is to write of who announces an address.
enum News {
    None,
    /// Others announce it, or this node otherwise.
    Announcers(Vec<Announcer>),
    /// The same, who forward otherwise.
    ForwardsOtherwise(Vec<Announcer>),
}

impl News {
    fn announcers(self) -> Option<Vec<Announcer>> {
        match self {
            Self::None => None,
            Self::Announcers(announcers) | Self::ForwardsOtherwise(announcers) => Some(announcers),
        }
    }
}

/// Who announces an address now that this node does as in `own`, if that is not what is written.
fn announcers(node: &str, own: &[Announcer], record: &Record) -> News {
    let written: Vec<_> = record.announcers.iter().filter(|announcer| announcer.node == node).collect();
    // `since` is when this process took it: after a restart with the same epoch, what is written there holds.
    let is_same_place = |(a, b): (&Announcer, &&Announcer)| (&a.link, a.epoch) == (&b.link, b.epoch);
    let is_same_way = |(a, b): (&Announcer, &&Announcer)| (a.reach, &a.unforwarded) == (b.reach, &b.unforwarded);
    let both = || own.iter().zip(&written);
    // Whom an address was taken from may have written itself in again, just before it heard of that, and have ended since.
    let is_late = |other: &Announcer| {
        own.iter().any(|own| {
            let is_from = own.moved.as_ref().is_some_and(|moved| moved.from == other.node);
            is_from && own.link == other.link && own.epoch > other.epoch
        })
    };
    if own.len() == written.len() && both().all(is_same_place) && !record.announcers.iter().any(is_late) {
        if both().all(is_same_way) {
            return News::None;
        }
        let own = both().map(|(own, written)| Announcer { since: written.since.clone(), ..own.clone() });
        let others = record.announcers.iter().filter(|other| other.node != node).cloned();
        return News::ForwardsOtherwise(own.chain(others).collect());
    }
    // A greater epoch, or the same one taken later (by the last of two nodes), has taken the address over from
    // whoever had it. Links are not compared: the same LAN may have another name on another node.
    let taken = |other: &Announcer| own.iter().any(|own| (own.epoch, own.since.0) > (other.epoch, other.since.0));
    let others = record.announcers.iter().filter(|other| other.node != node && !taken(other) && !is_late(other));
    News::Announcers(own.iter().chain(others).cloned().collect())
}

/// Who else uses an address now that this node sees that stranger, if that is not what is written. Of other nodes' words
/// those stay that `speaks` admits.
fn strangers(
    node: &str,
    seen: Option<&Conflict>,
    record: &Record,
    speaks: impl Fn(&AddressConflict) -> bool,
) -> Option<Vec<AddressConflict>> {
    let own = seen.map(|seen| AddressConflict {
        node: node.to_owned(),
        link: seen.link.clone(),
        mac: seen.mac.to_string(),
        held_back: seen.held_back,
        since: Time(seen.since),
    });
    let is_same =
        |a: &AddressConflict, b: &AddressConflict| (&a.link, &a.mac, a.held_back) == (&b.link, &b.mac, b.held_back);
    let written = record.conflicts.iter().find(|conflict| conflict.node == node);
    // After a restart, what is written there holds: since when is known there.
    let own = match (own, written) {
        (Some(own), Some(written)) if is_same(&own, written) => Some(written.clone()),
        (own, _) => own,
    };
    let others = record.conflicts.iter().filter(|other| other.node != node && speaks(other));
    let all: Vec<_> = own.into_iter().chain(others.cloned()).collect();
    let is_written = all.len() == record.conflicts.len() && all.iter().all(|one| record.conflicts.contains(one));
    (!is_written).then_some(all)
}

fn announcer(node: &str, announcement: &Announcement, record: &Record, ways: Ways<'_>) -> Announcer {
    let lb_ip = record.address;
    let entry = |namespace: &InternedStr, name: &InternedStr, reason, what: &str| ForwardingProblem {
        namespace: namespace.clone(),
        name: name.clone(),
        reason,
        what: what.chars().take(WHAT).collect::<String>().into(),
    };
    let problems = ways.forwarding.problems.get(&lb_ip).into_iter().flatten();
    let problems = problems.map(|it| entry(&it.service.namespace, &it.service.name, it.reason, &it.what));
    // These are about the address, and so about each Service that has it.
    let astray: Vec<_> = astray(lb_ip, &announcement.link, ways).into_iter().collect();
    let holders = record.holders.iter();
    let astray =
        holders.flat_map(|it| astray.iter().map(|(reason, what)| entry(&it.namespace, &it.name, *reason, what)));
    Announcer {
        node: node.into(),
        link: announcement.link.as_str().into(),
        epoch: i64::try_from(announcement.epoch).unwrap_or(i64::MAX),
        since: Time(announcement.since),
        moved: announcement.moved.as_ref().map(moved),
        reach: ways.forwarding.reach.get(&lb_ip).copied(),
        unforwarded: problems.chain(astray).take(crds::load_balancer_ip::MAX_HOLDERS).collect(),
    }
}

/// Why requests to an lb_ip that come in by this link may be lost, or their answers leave by another one.
fn astray(lb_ip: IpAddr, link: &str, Ways { forwarding, gaps }: Ways<'_>) -> BTreeSet<(ProblemReason, String)> {
    let Some(link) = LinkName::new(link) else { return BTreeSet::new() };
    let mut all: BTreeSet<_> = gaps.iter().filter_map(|gap| gap.about(Family::from(lb_ip), link)).collect();
    if forwarding.unmarked {
        all.insert((ProblemReason::AnswersElsewhere, "the kernel does not mark connections".to_owned()));
    }
    all
}

fn moved(moved: &Move) -> Takeover {
    let took_milliseconds = i64::try_from(moved.silence.as_millis()).unwrap_or(i64::MAX);
    Takeover { from: moved.from.as_str().into(), cause: moved.cause.as_str().into(), took_milliseconds }
}

#[cfg(test)]
mod tests;
