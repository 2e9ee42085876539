use super::*;
use crds::{Holder, Key, MacAddr, Reach};
use dataplane::rules::Problem;
use speaker::metrics::Cause;

const LB_IP: [u8; 4] = [192, 0, 2, 200];

fn second(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(second).expect("in range"))
}

fn entry(node: &str, epoch: i64) -> Announcer {
    let (node, link) = (node.into(), "eth0".into());
    Announcer { node, link, epoch, since: second(0), moved: None, reach: None, unforwarded: vec![] }
}

fn conflict(node: &str, last: u8, held_back: bool) -> AddressConflict {
    let mac = MacAddr(2, 0, 0, 0, 0, last).to_string();
    AddressConflict { node: node.into(), link: "eth0".into(), mac, held_back, since: second(0) }
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
        first_announced: (!announcers.is_empty()).then(|| second(0)),
        conflicts: conflicts.to_vec(),
    }
}

/// The state of node `me`, without gaps in the reply path.
fn state<'a>(announcements: &'a Announcements, conflicts: &'a Conflicts, forwarding: &'a Forwarding) -> NodeState<'a> {
    static NO_GAPS: BTreeSet<Gap> = BTreeSet::new();
    NodeState { node: "me", announcements, conflicts, forwarding, gaps: &NO_GAPS }
}

/// The difference that node `me` writes to `record` at second 1. The node announces the address with the epoch `own`,
/// and observes the conflict `seen`.
fn difference_of(own: Option<u64>, seen: Option<(u8, bool)>, record: Record) -> Option<Difference> {
    let since = second(1).0;
    let announcement = |epoch| Announcement { link: "eth0".into(), epoch, since, moved: None };
    let announcements = own.map(|epoch| (LB_IP.into(), vec![announcement(epoch)])).into_iter().collect();
    let conflict =
        |(last, held_back)| Conflict { link: "eth0".into(), mac: MacAddr(2, 0, 0, 0, 0, last), held_back, since };
    let conflicts = seen.map(|seen| (LB_IP.into(), conflict(seen))).into_iter().collect();
    let records = [(LB_IP.into(), Arc::new(record))].into();
    Some(differences(&state(&announcements, &conflicts, &Forwarding::default()), &records).pop()?.1)
}

#[test]
fn changes_of_reach_are_written_to_the_announcer() {
    let lb_ip = IpAddr::from(LB_IP);
    let forwarding = |reach, reason, what: &str| {
        let problem = Problem { service: Key::new("default", "web"), reason, what: what.to_owned() };
        let (reach, problems) = ([(lb_ip, reach)].into(), [(lb_ip, BTreeSet::from([problem]))].into());
        Forwarding { reach, problems, ..Forwarding::default() }
    };
    let announcement = Announcement { link: "eth0".into(), epoch: 3, since: second(1).0, moved: None };
    let announcements = [(lb_ip, vec![announcement])].into();
    let written = |forwarding: &Forwarding, record: &Record| {
        let records = [(lb_ip, Arc::new(record.clone()))].into();
        let difference = differences(&state(&announcements, &Conflicts::default(), forwarding), &records).pop()?.1;
        Some((difference.announcers.expect("announcers"), difference.is_reach_only))
    };
    let unserved = forwarding(Reach::Spread, ProblemReason::NoEndpoints, "80/TCP");
    let no_endpoints = ForwardingProblem {
        namespace: "default".into(),
        name: "web".into(),
        reason: ProblemReason::NoEndpoints,
        what: "80/TCP".into(),
    };
    let unserved_entry =
        Announcer { since: second(1), reach: Some(Reach::Spread), unforwarded: vec![no_endpoints], ..entry("me", 3) };
    assert_eq!(written(&unserved, &record(&[], &[])), Some((vec![unserved_entry.clone()], false)));
    // The entry of another node stays, and so does this node's `since`.
    let before = record(&[Announcer { since: second(0), ..unserved_entry.clone() }, entry("other", 4)], &[]);
    assert_eq!(written(&unserved, &before), None);
    let spread = Forwarding { problems: BTreeMap::new(), ..unserved };
    let served_entry = Announcer { since: second(0), unforwarded: vec![], ..unserved_entry };
    assert_eq!(written(&spread, &before), Some((vec![served_entry, entry("other", 4)], true)));
    let long = forwarding(Reach::Mixed, ProblemReason::InvalidSourceRange, &"ä".repeat(300));
    let (announcers, _) = written(&long, &before).expect("a difference");
    assert_eq!(announcers[0].unforwarded[0].what.chars().count(), MAX_PROBLEM_CHARS);
}

#[test]
fn a_reply_gap_is_reported_for_every_holder() {
    let holder = |name: &str| Holder { namespace: "default".into(), name: name.into(), uid: "u".into(), terms: None };
    let record = Record { holders: vec![holder("web"), holder("dns")], ..record(&[], &[]) };
    let link = |name| LinkName::new(name).expect("a name");
    let reported = |gaps: &[Gap], unmarked| {
        let forwarding = Forwarding { marks_refused: unmarked, ..Forwarding::default() };
        let gaps = gaps.iter().cloned().collect();
        let announcement = Announcement { link: "eth1".into(), epoch: 4, since: second(1).0, moved: None };
        let (announcements, conflicts) = Default::default();
        let state = NodeState { gaps: &gaps, ..state(&announcements, &conflicts, &forwarding) };
        let reported = own_announcer(&state, &announcement, &record).unforwarded.into_iter();
        reported.map(|entry| format!("{} {:?}: {}", entry.name, entry.reason, entry.what)).collect::<Vec<_>>()
    };
    let gap_on_eth1 = [
        "web AnswersElsewhere: no router is known on link eth1",
        "dns AnswersElsewhere: no router is known on link eth1",
    ];
    assert_eq!(reported(&[Gap::NoRouter(Family::V4, link("eth1"))], false), gap_on_eth1);
    let others = [
        Gap::NoRouter(Family::V6, link("eth1")),
        Gap::NoRouter(Family::V4, link("eth0")),
        Gap::StrictFilter(link("eth0")),
        Gap::TakenTable(76_001),
    ];
    assert_eq!(reported(&others, false), [""; 0], "another link or family");
    assert_eq!(reported(&[Gap::StrictFilter(link("eth1"))], false)[0], "web RequestsFiltered: link eth1");
    assert_eq!(reported(&[], true)[0], "web AnswersElsewhere: the kernel does not mark connections");
}

#[test]
fn a_node_writes_its_entry_only_if_it_differs() {
    let (me, other) = (|epoch| entry("me", epoch), |epoch| entry("other", epoch));
    let new = |epoch| Announcer { since: second(1), ..me(epoch) };
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
        let written = difference_of(own, None, record(&before, &[])).and_then(|difference| difference.announcers);
        assert_eq!(written, after, "{own:?} on {before:?}");
    }
}

#[test]
fn a_late_entry_of_the_predecessor_is_removed() {
    let moved = Move::new("other", Cause::Left, Duration::ZERO);
    let announcement = Announcement { link: "eth0".into(), epoch: 4, since: second(1).0, moved: Some(moved) };
    let (announcements, conflicts, forwarding) = Default::default();
    let mine = own_announcer(&state(&announcements, &conflicts, &forwarding), &announcement, &record(&[], &[]));
    let on_eth1 = Announcer { link: "eth1".into(), ..entry("other", 3) };
    // An entry stays if its epoch is greater, its link is another one, or its node is not the predecessor.
    for (written, stays) in
        [(entry("other", 3), false), (entry("other", 5), true), (on_eth1, true), (entry("third", 3), true)]
    {
        let record = record(&[mine.clone(), written.clone()], &[]);
        let change = changed_announcers("me", std::slice::from_ref(&mine), &record).0;
        assert_eq!(change, (!stays).then(|| vec![mine.clone()]), "{written:?}");
    }
}

#[test]
fn a_move_is_written_with_the_announcer() {
    let moved = Move::new("other", Cause::Died, Duration::from_micros(142_900));
    let announcement = Announcement { link: "eth0".into(), epoch: 4, since: second(1).0, moved: Some(moved) };
    let expected = Takeover { from: "other".into(), cause: "died".into(), took_milliseconds: 142 };
    let (announcements, conflicts, forwarding) = Default::default();
    let written = own_announcer(&state(&announcements, &conflicts, &forwarding), &announcement, &record(&[], &[]));
    assert_eq!(written, Announcer { since: second(1), moved: Some(expected), ..entry("me", 4) });
}

#[test]
fn the_first_announcement_is_written_once() {
    let first = |own, record| difference_of(own, None, record).and_then(|difference| difference.first_announced);
    assert_eq!(first(Some(1), record(&[], &[])), Some(second(1)));
    assert_eq!(first(None, record(&[], &[])), None);
    assert_eq!(first(Some(2), record(&[entry("other", 1)], &[])), None);
    // An older agent wrote this record without the field.
    let old = Record { first_announced: None, ..record(&[entry("me", 1)], &[]) };
    assert_eq!(first(Some(1), old), Some(second(1)));
}

#[test]
fn a_node_writes_its_conflicts_and_removes_past_ones() {
    let (mine, others) = (conflict("me", 1, true), conflict("other", 1, true));
    let new = |last, held_back| AddressConflict { since: second(1), ..conflict("me", last, held_back) };
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
        let written = difference_of(None, seen, record(&[], &before)).and_then(|difference| difference.conflicts);
        assert_eq!(written, after, "{seen:?} on {before:?}");
    }
}

#[test]
fn a_new_owner_removes_its_predecessors_conflicts() {
    let (others, mine) = (conflict("other", 1, false), conflict("me", 1, false));
    let taken = difference_of(Some(4), None, record(&[entry("other", 3)], std::slice::from_ref(&others)));
    assert_eq!(taken.and_then(|difference| difference.conflicts), Some(vec![]));
    let not_taken = difference_of(Some(3), None, record(&[entry("other", 4)], std::slice::from_ref(&others)));
    assert_eq!(not_taken.and_then(|difference| difference.conflicts), None, "the other node announces too");
    assert_eq!(difference_of(Some(3), Some((1, false)), record(&[entry("me", 3)], &[mine])), None);
}

#[test]
fn a_patch_has_only_differences_and_its_base_version() {
    let nothing = Difference { resource_version: 7, ..Difference::default() };
    let gone = Difference { conflicts: Some(vec![]), ..nothing.clone() };
    let body = |status: Value| json!({"metadata": {"resourceVersion": "7"}, "status": status});
    assert_eq!(gone.patch(), body(json!({"conflicts": null})));
    let withdrawn = Difference { announcers: Some(vec![]), first_announced: Some(second(0)), ..nothing };
    let first = "1970-01-01T00:00:00Z";
    assert_eq!(withdrawn.patch(), body(json!({"announcers": [], "firstAnnounced": first})));
}

#[test]
fn each_part_is_written_at_most_once_per_pause() {
    let mut pacer = Pacer::default();
    let now = Instant::now();
    let [one, other] = [200, 201].map(|last| IpAddr::from([192, 0, 2, last]));
    let later = |seconds| now + Duration::from_secs(seconds);
    assert!(pacer.may_write(one, Part::Reach, now));
    assert!(pacer.may_write(other, Part::Reach, later(3)));
    assert!(pacer.may_write(one, Part::Conflicts, later(1)), "another part");
    assert!(!pacer.may_write(other, Part::Reach, later(4)) && !pacer.may_write(one, Part::Reach, later(4)));
    assert_eq!(pacer.postponed_until.take(), Some(later(10)));
    assert!(pacer.may_write(one, Part::Reach, later(10)));
    assert_eq!((pacer.postponed_until, pacer.written.len()), (None, 3));
}
