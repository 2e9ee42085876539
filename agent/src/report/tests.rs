use super::*;
use crds::{Holder, Key, Mac, Reach};
use dataplane::rules::ruleset::Problem;
use speaker::metrics::takeovers::Cause;

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
    let lacking = forwarding(Reach::Spread, ProblemReason::NoEndpoints, "80/TCP");
    let what = ForwardingProblem {
        namespace: "default".into(),
        name: "web".into(),
        reason: ProblemReason::NoEndpoints,
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
    let long = forwarding(Reach::Mixed, ProblemReason::InvalidSourceRange, &"ä".repeat(300));
    let (announcers, _) = written(&long, &before).expect("a difference");
    assert_eq!(announcers[0].unforwarded[0].what.chars().count(), WHAT);
}

#[test]
fn every_service_of_an_address_is_told_when_answers_leave_by_another_link() {
    let holder = |name: &str| Holder { namespace: "default".into(), name: name.into(), uid: "u".into(), terms: None };
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
fn whom_an_address_was_taken_from_does_not_stay_written_when_it_wrote_itself_in_again_too_late() {
    let moved = Move::new("other", Cause::Left, Duration::ZERO);
    let announcement = Announcement { link: "eth0".into(), epoch: 4, since: at(1).0, moved: Some(moved) };
    let ways = Ways { forwarding: &Forwarding::default(), gaps: &BTreeSet::new() };
    let mine = announcer("me", &announcement, &record(&[], &[]), ways);
    let on_eth1 = Announcer { link: "eth1".into(), ..entry("other", 3) };
    // The others are news, about another link, or somebody else's.
    for (written, stays) in
        [(entry("other", 3), false), (entry("other", 5), true), (on_eth1, true), (entry("third", 3), true)]
    {
        let record = record(&[mine.clone(), written.clone()], &[]);
        let news = announcers("me", std::slice::from_ref(&mine), &record).announcers();
        assert_eq!(news, (!stays).then(|| vec![mine.clone()]), "{written:?}");
    }
}

#[test]
fn how_an_address_came_here_is_written_with_it() {
    let moved = Move::new("other", Cause::Died, Duration::from_micros(142_900));
    let announcement = Announcement { link: "eth0".into(), epoch: 4, since: at(1).0, moved: Some(moved) };
    let expected = Takeover { from: "other".into(), cause: "died".into(), took_milliseconds: 142 };
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
