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
    AddressConflict, Announcer, LoadBalancerIP, Moved, Record, Shortcoming, Text, Unforwarded, Version, address,
};
use dataplane::Forwarding;
use dataplane::returns::Gap;
use dataplane::snapshot::LinkName;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use observe::{Listener, Store, source};
use serde_json::{Value, json};
use speaker::takeovers::Move;
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
    resource_version: Version,
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
                () = listener.woken() => {}
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
            sleep_until(looked + REST).await;
        }
    }

    /// Writes one, and returns its address if that is to be tried again.
    async fn write(&self, (lb_ip, difference): (IpAddr, Difference)) -> Option<IpAddr> {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        let patch = Patch::Merge(difference.body());
        let name = address::name(lb_ip);
        let params = PatchParams::default();
        let Ok(answer) = timeout(ANSWER, addresses.patch_status(&name, &params, &patch)).await else {
            tracing::warn!(%lb_ip, "the API server does not answer; reporting who announces it again");
            return Some(lb_ip);
        };
        match answer {
            Ok(object) => {
                if let Some((observation, _)) = source::addresses().observe(&object) {
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
    if own.len() == written.len() && both().all(is_same_place) {
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
    let others = record.announcers.iter().filter(|other| other.node != node && !taken(other));
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
    let entry = |namespace: &Text, name: &Text, reason, what: &str| Unforwarded {
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
fn astray(lb_ip: IpAddr, link: &str, Ways { forwarding, gaps }: Ways<'_>) -> BTreeSet<(Shortcoming, String)> {
    let Some(link) = LinkName::new(link) else { return BTreeSet::new() };
    let mut all: BTreeSet<_> = gaps.iter().filter_map(|gap| gap.about(Family::of(lb_ip), link)).collect();
    if forwarding.unmarked {
        all.insert((Shortcoming::AnswersElsewhere, "the kernel does not mark connections".to_owned()));
    }
    all
}

fn moved(moved: &Move) -> Moved {
    let took_milliseconds = i64::try_from(moved.silence.as_millis()).unwrap_or(i64::MAX);
    Moved { from: moved.from.as_str().into(), cause: moved.cause.as_str().into(), took_milliseconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{Holder, Key, Mac, Reach};
    use dataplane::ruleset::Problem;
    use speaker::takeovers::Cause;

    const LB_IP: [u8; 4] = [192, 0, 2, 200];

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).expect("in range"))
    }

    fn entry(node: &str, epoch: i64) -> Announcer {
        let (node, link) = (node.into(), "eth0".into());
        Announcer { node, link, epoch, since: at(0), moved: None, reach: None, unforwarded: vec![] }
    }

    fn stranger(node: &str, last: u8, held_back: bool) -> AddressConflict {
        let mac = Mac([2, 0, 0, 0, 0, last]).to_string();
        AddressConflict { node: node.into(), link: "eth0".into(), mac, held_back, since: at(0) }
    }

    fn record(announcers: &[Announcer], conflicts: &[AddressConflict]) -> Record {
        Record {
            address: LB_IP.into(),
            uid: "".into(),
            resource_version: 7,
            deleting: false,
            pool: "lan".into(),
            holders: vec![],
            sharing_key: None,
            reservation: None,
            quarantine: None,
            announcers: announcers.to_vec(),
            first_announced: (!announcers.is_empty()).then(|| at(0)),
            conflicts: conflicts.to_vec(),
        }
    }

    /// What node `me` writes that announces with `own` epoch and sees that stranger, at second 1.
    fn difference(own: Option<u64>, seen: Option<(u8, bool)>, record: Record) -> Option<Difference> {
        let since = at(1).0;
        let announcement = |epoch| Announcement { link: "eth0".into(), epoch, since, moved: None };
        let announcements = own.map(|epoch| (LB_IP.into(), vec![announcement(epoch)])).into_iter().collect();
        let conflict =
            |(last, held_back)| Conflict { link: "eth0".into(), mac: Mac([2, 0, 0, 0, 0, last]), held_back, since };
        let conflicts = seen.map(|seen| (LB_IP.into(), conflict(seen))).into_iter().collect();
        let records = [(LB_IP.into(), Arc::new(record))].into();
        let ways = Ways { forwarding: &Forwarding::default(), gaps: &BTreeSet::new() };
        Some(differences("me", &announcements, &conflicts, ways, &records).pop()?.1)
    }

    #[test]
    fn how_it_is_forwarded_is_written_with_who_announces_it_and_when_it_is_another_way() {
        let lb_ip = IpAddr::from(LB_IP);
        let forwarding = |reach, reason, what: &str| {
            let problem = Problem { service: Key::new("default", "web"), reason, what: what.to_owned() };
            let (reach, problems) = ([(lb_ip, reach)].into(), [(lb_ip, BTreeSet::from([problem]))].into());
            Forwarding { reach, problems, ..Forwarding::default() }
        };
        let announcement = Announcement { link: "eth0".into(), epoch: 3, since: at(1).0, moved: None };
        let announcements = [(lb_ip, vec![announcement])].into();
        let written = |forwarding: &Forwarding, record: &Record| {
            let records = [(lb_ip, Arc::new(record.clone()))].into();
            let ways = Ways { forwarding, gaps: &BTreeSet::new() };
            let difference = differences("me", &announcements, &Conflicts::default(), ways, &records).pop()?.1;
            Some((difference.announcers.expect("announcers"), difference.forwards_otherwise))
        };
        let lacking = forwarding(Reach::Spread, Shortcoming::NoEndpoints, "80/TCP");
        let what = Unforwarded {
            namespace: "default".into(),
            name: "web".into(),
            reason: Shortcoming::NoEndpoints,
            what: "80/TCP".into(),
        };
        let told = Announcer { since: at(1), reach: Some(Reach::Spread), unforwarded: vec![what], ..entry("me", 3) };
        assert_eq!(written(&lacking, &record(&[], &[])), Some((vec![told.clone()], false)));
        // What another node says stays, and so does since when this one announces it.
        let before = record(&[Announcer { since: at(0), ..told.clone() }, entry("other", 4)], &[]);
        assert_eq!(written(&lacking, &before), None);
        let spread = Forwarding { problems: BTreeMap::new(), ..lacking };
        let well = Announcer { since: at(0), unforwarded: vec![], ..told };
        assert_eq!(written(&spread, &before), Some((vec![well, entry("other", 4)], true)));
        let long = forwarding(Reach::Mixed, Shortcoming::InvalidSourceRange, &"ä".repeat(300));
        let (announcers, _) = written(&long, &before).expect("a difference");
        assert_eq!(announcers[0].unforwarded[0].what.chars().count(), WHAT);
    }

    #[test]
    fn every_service_of_an_address_is_told_when_answers_leave_by_another_link() {
        let holder =
            |name: &str| Holder { namespace: "default".into(), name: name.into(), uid: "u".into(), terms: None };
        let record = Record { holders: vec![holder("web"), holder("dns")], ..record(&[], &[]) };
        let link = |name| LinkName::new(name).expect("a name");
        let said = |gaps: &[Gap], unmarked| {
            let forwarding = Forwarding { unmarked, ..Forwarding::default() };
            let gaps = gaps.iter().cloned().collect();
            let announcement = Announcement { link: "eth1".into(), epoch: 4, since: at(1).0, moved: None };
            let ways = Ways { forwarding: &forwarding, gaps: &gaps };
            let said = announcer("me", &announcement, &record, ways).unforwarded.into_iter();
            said.map(|lack| format!("{} {:?}: {}", lack.name, lack.reason, lack.what)).collect::<Vec<_>>()
        };
        let astray = [
            "web AnswersElsewhere: no router is known on link eth1",
            "dns AnswersElsewhere: no router is known on link eth1",
        ];
        assert_eq!(said(&[Gap::NoRouter(Family::V4, link("eth1"))], false), astray);
        let others = [
            Gap::NoRouter(Family::V6, link("eth1")),
            Gap::NoRouter(Family::V4, link("eth0")),
            Gap::StrictFilter(link("eth0")),
            Gap::TakenTable(76_001),
        ];
        assert_eq!(said(&others, false), [""; 0], "neither this link nor this family");
        assert_eq!(said(&[Gap::StrictFilter(link("eth1"))], false)[0], "web RequestsFiltered: link eth1");
        assert_eq!(said(&[], true)[0], "web AnswersElsewhere: the kernel does not mark connections");
    }

    #[test]
    fn what_changes_all_the_time_is_written_now_and_then() {
        let mut paced = Paced::new(Duration::from_secs(10));
        let (now, other) = (Instant::now(), IpAddr::from([192, 0, 2, 201]));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(paced.may_write(LB_IP.into(), now));
        assert!(paced.may_write(other, later(3)));
        assert!(!paced.may_write(other, later(4)) && !paced.may_write(LB_IP.into(), later(4)));
        assert_eq!(paced.again.take(), Some(later(10)));
        assert!(paced.may_write(LB_IP.into(), later(10)));
        assert_eq!((paced.again, paced.written.len()), (None, 2));
    }

    #[test]
    fn a_node_writes_itself_in_and_out_and_nothing_that_is_there_already() {
        let (me, other) = (|epoch| entry("me", epoch), |epoch| entry("other", epoch));
        let new = |epoch| Announcer { since: at(1), ..me(epoch) };
        for (own, before, after) in [
            (None, vec![], None),
            (None, vec![other(3)], None),
            (Some(3), vec![me(3)], None),
            (Some(3), vec![], Some(vec![new(3)])),
            (Some(3), vec![me(2)], Some(vec![new(3)])),
            (Some(3), vec![other(2)], Some(vec![new(3)])),
            (Some(3), vec![other(4)], Some(vec![new(3), other(4)])),
            (Some(4), vec![other(4)], Some(vec![new(4)])),
            (None, vec![me(3)], Some(vec![])),
            (None, vec![me(3), other(4)], Some(vec![other(4)])),
        ] {
            let written = difference(own, None, record(&before, &[])).and_then(|difference| difference.announcers);
            assert_eq!(written, after, "{own:?} on {before:?}");
        }
    }

    #[test]
    fn how_an_address_came_here_is_written_with_it() {
        let moved = Move::new("other", Cause::Died, Duration::from_micros(142_900));
        let announcement = Announcement { link: "eth0".into(), epoch: 4, since: at(1).0, moved: Some(moved) };
        let expected = Moved { from: "other".into(), cause: "died".into(), took_milliseconds: 142 };
        let ways = Ways { forwarding: &Forwarding::default(), gaps: &BTreeSet::new() };
        let written = announcer("me", &announcement, &record(&[], &[]), ways);
        assert_eq!(written, Announcer { since: at(1), moved: Some(expected), ..entry("me", 4) });
    }

    #[test]
    fn the_first_announcement_is_written_once_and_for_good() {
        let first = |own, record| difference(own, None, record).and_then(|difference| difference.first_announced);
        assert_eq!(first(Some(1), record(&[], &[])), Some(at(1)));
        assert_eq!(first(None, record(&[], &[])), None);
        assert_eq!(first(Some(2), record(&[entry("other", 1)], &[])), None);
        // By an agent that didn't know of it.
        let old = Record { first_announced: None, ..record(&[entry("me", 1)], &[]) };
        assert_eq!(first(Some(1), old), Some(at(1)));
    }

    #[test]
    fn a_node_writes_down_whom_it_sees_and_takes_it_back_when_that_is_gone() {
        let (mine, others) = (stranger("me", 1, true), stranger("other", 1, true));
        let new = |last, held_back| AddressConflict { since: at(1), ..stranger("me", last, held_back) };
        for (seen, before, after) in [
            (None, vec![], None),
            (None, vec![others.clone()], None),
            (Some((1, true)), vec![], Some(vec![new(1, true)])),
            (Some((1, true)), vec![mine.clone()], None),
            (Some((1, true)), vec![others.clone(), mine.clone()], None),
            (Some((2, true)), vec![mine.clone()], Some(vec![new(2, true)])),
            (Some((1, false)), vec![mine.clone()], Some(vec![new(1, false)])),
            (Some((1, true)), vec![others.clone()], Some(vec![new(1, true), others.clone()])),
            (None, vec![mine.clone()], Some(vec![])),
            (None, vec![mine.clone(), others.clone()], Some(vec![others.clone()])),
        ] {
            let written = difference(None, seen, record(&[], &before)).and_then(|difference| difference.conflicts);
            assert_eq!(written, after, "{seen:?} on {before:?}");
        }
    }

    #[test]
    fn who_takes_an_address_over_takes_back_what_its_last_owner_said_of_strangers() {
        let (others, mine) = (stranger("other", 1, false), stranger("me", 1, false));
        let taken = difference(Some(4), None, record(&[entry("other", 3)], std::slice::from_ref(&others)));
        assert_eq!(taken.and_then(|difference| difference.conflicts), Some(vec![]));
        let beside = difference(Some(3), None, record(&[entry("other", 4)], std::slice::from_ref(&others)));
        assert_eq!(beside.and_then(|difference| difference.conflicts), None, "it announces as well");
        assert_eq!(difference(Some(3), Some((1, false)), record(&[entry("me", 3)], &[mine])), None);
    }

    #[test]
    fn a_patch_names_only_what_differs_and_the_version_it_is_for() {
        let nothing = Difference { resource_version: 7, ..Difference::default() };
        let gone = Difference { conflicts: Some(vec![]), ..nothing.clone() };
        let body = |status: Value| json!({"metadata": {"resourceVersion": "7"}, "status": status});
        assert_eq!(gone.body(), body(json!({"conflicts": null})));
        let withdrawn = Difference { announcers: Some(vec![]), first_announced: Some(at(0)), ..nothing };
        let first = "1970-01-01T00:00:00Z";
        assert_eq!(withdrawn.body(), body(json!({"announcers": [], "firstAnnounced": first})));
    }
}
