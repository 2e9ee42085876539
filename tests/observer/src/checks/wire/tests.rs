use super::*;
use crds::LoadBalancerIP;
use serde_json::json;

const N1: MacAddr = MacAddr(2, 0, 0, 0, 0, 0x11);
const N2: MacAddr = MacAddr(2, 0, 0, 0, 0, 0x12);
const C1: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const LIMIT: Duration = Duration::from_secs(5);

fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn address() -> IpAddr {
    "192.0.2.200".parse().expect("an address")
}

fn wire() -> Wire {
    let nodes = [(N1, "n1".to_owned()), (N2, "n2".to_owned())].into();
    let own_addresses = BTreeSet::from(["192.0.2.11".parse().expect("an address")]);
    Wire::new(Lan { nodes, own_addresses, link: "eth0" })
}

fn answer(mac: MacAddr) -> Statement {
    Statement { address: address(), mac, is_answer: true }
}

/// The time of each answer, in milliseconds, and its sender.
type Answers = Vec<(u64, MacAddr)>;

#[test]
fn two_hosts_may_answer_only_during_a_move() {
    let alone: Answers = (0..20).map(|n| (100 * n, N1)).collect();
    let both: Answers = (0..20).flat_map(|n| [(100 * n, N1), (100 * n + 1, N2)]).collect();
    let with_client: Answers = both.iter().map(|(at, mac)| (*at, if *mac == N2 { C1 } else { *mac })).collect();
    let moved: Answers = (0..20).map(|n| (100 * n, if n < 10 { N1 } else { N2 })).collect();
    // Both answer two requests.
    let brief: Answers = (0..20)
        .flat_map(|n| [(n <= 10).then_some((100 * n, N1)), (n >= 9).then_some((100 * n + 1, N2))])
        .flatten()
        .collect();
    let there_and_back: Answers = (0..20).map(|n| (100 * n, if n == 10 { N2 } else { N1 })).collect();
    for (case, answers, delay, expected) in [
        ("one node", alone, 0, false),
        ("a move", moved, 0, false),
        ("an overlap of 100 ms", brief, 0, false),
        ("there and back", there_and_back, 0, false),
        ("two nodes", both.clone(), 0, true),
        ("a node and another host", with_client, 0, true),
        ("two nodes, while the machine is late", both, 5000, false),
    ] {
        let mut wire = wire();
        wire.add_delay(millis(0), millis(delay));
        let found: Vec<_> =
            answers.into_iter().filter_map(|(at, mac)| wire.add_statement(millis(at), answer(mac))).collect();
        assert_eq!(found.len(), usize::from(expected), "{case}: {found:?}");
        assert!(found.iter().all(|(invariant, ..)| *invariant == Invariant::I6), "{case}: {found:?}");
    }
}

#[test]
fn a_pair_is_reported_once_in_each_scene() {
    let mut wire = wire();
    for (from, is_next_scene, expected) in [(0, false, 1), (20, false, 0), (40, true, 1), (60, false, 0)] {
        if is_next_scene {
            wire.forget_reported_pairs();
        }
        let answers = (from..from + 20).flat_map(|n| [(100 * n, N1), (100 * n + 1, N2)]);
        let found = answers.filter_map(|(at, mac)| wire.add_statement(millis(at), answer(mac))).count();
        assert_eq!(found, expected, "from {from}");
    }
}

fn record(announcers: &[(&str, &str)]) -> Record {
    let announcer =
        |(node, link): &(&str, &str)| json!({"node": node, "link": link, "epoch": 1, "since": "2026-01-01T00:00:00Z"});
    let object: LoadBalancerIP = serde_json::from_value(json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP",
        "metadata": {"name": "192.0.2.200"}, "spec": {"address": "192.0.2.200"},
        "status": {"announcers": announcers.iter().map(announcer).collect::<Vec<_>>()},
    }))
    .expect("a LoadBalancerIP");
    Record::try_from(&object).expect("a record")
}

#[test]
fn status_and_last_announcement_must_name_the_answering_node() {
    let on_n1 = || Some(record(&[("n1", "eth0")]));
    let elsewhere = || Some(record(&[("n1", "eth1")]));
    for (case, record, announcing, answering, expected) in [
        ("agreement", on_n1(), &[N1][..], &[N1][..], &[][..]),
        ("a former announcer", on_n1(), &[N2, N1], &[N1], &[]),
        ("another node answers", on_n1(), &[N1], &[N2], &[Invariant::I16]),
        ("no node answers", on_n1(), &[N1], &[], &[Invariant::I16]),
        ("two nodes answer", on_n1(), &[N1], &[N1, N2], &[Invariant::I16]),
        ("another host answers", on_n1(), &[N1], &[N1, C1], &[]),
        ("not announced, but answered", Some(self::record(&[])), &[], &[N1], &[Invariant::I16]),
        ("neither announced nor answered", Some(self::record(&[])), &[], &[], &[]),
        ("announced on another link", elsewhere(), &[], &[], &[]),
        ("another node announced it last", on_n1(), &[N1, N2], &[N1], &[Invariant::I8]),
        ("another host announced it last", on_n1(), &[N1, C1], &[N1], &[Invariant::I8]),
        ("answered, but never announced", on_n1(), &[], &[N1], &[Invariant::I8]),
        ("without a record", None, &[N1], &[N1], &[Invariant::I5]),
    ] {
        let mut wire = wire();
        for mac in announcing {
            wire.add_statement(millis(0), Statement { is_answer: false, ..answer(*mac) });
        }
        let current = record.into_iter().map(|record| (address(), record)).collect();
        let (view, mut found) = (RecordView { current: &current, deleted: &BTreeMap::new() }, Vec::new());
        for second in 0..=5 {
            let now = Duration::from_secs(second);
            for mac in answering {
                wire.add_statement(now, answer(*mac));
            }
            assert!(found.is_empty(), "{case}: too early: {found:?}");
            found = wire.compare(now, LIMIT, &view);
        }
        let invariants: Vec<_> = found.iter().map(|(invariant, ..)| *invariant).collect();
        assert_eq!(invariants, expected, "{case}: {found:?}");
    }
}

#[test]
fn an_answer_for_a_deleted_record_is_a_leftover() {
    let own = Statement { address: "192.0.2.11".parse().expect("an address"), mac: N1, is_answer: true };
    let mut wire = wire();
    wire.add_statement(LIMIT, answer(N1));
    wire.add_statement(LIMIT, own);
    let (current, deleted) = (BTreeMap::new(), BTreeMap::from([(address(), Duration::ZERO)]));
    let found = wire.compare(LIMIT, Duration::ZERO, &RecordView { current: &current, deleted: &deleted });
    assert_eq!(found.len(), 1, "a host's own address is no leftover: {found:?}");
    assert_eq!((found[0].0, &found[0].1), (Invariant::I13, &Subject::Address(address())));
}
