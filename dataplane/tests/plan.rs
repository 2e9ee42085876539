//! The ruleset of a snapshot, and the changes from one table to another, without a kernel.

mod sample;

use std::collections::BTreeSet;
use std::sync::Arc;

use crds::Protocol::{self, Sctp, Tcp, Udp};
use crds::{Backend, Key, ProblemReason, Reach};
use dataplane::Snapshot;
use dataplane::nft::chain_name::ChainName;
use dataplane::nft::diff::{ElementChange, diff_elements, diff_rulesets};
use dataplane::nft::elements::{ElementKey, ElementValue, Elements};
use dataplane::nft::projection::ruleset_elements;
use dataplane::rules::Planner;
use dataplane::rules::plan_ruleset;
use dataplane::rules::{Endpoint, LbIp, Pick, Problem, Ruleset, Target};
use dataplane::snapshot::{LinkName, Service};
use model::SharedMap;
use proptest::prelude::*;
use sample::{Described, NODE, ip, nothing, on_eth0, ready, service, snapshot, socket_addr, terminating, unready};

/// The target of TCP port 80 of 192.0.2.10.
fn planned_target(service: Described) -> Target {
    let planned = plan_ruleset(&snapshot([service]));
    Target::clone(&planned.addresses[&ip("192.0.2.10")].ports[&(Tcp, 80)])
}

fn web(endpoints: impl IntoIterator<Item = crds::Endpoint>) -> Described {
    service("web").holds("192.0.2.10").port("http", Tcp, 80).slice(&[("http", Tcp, 8080)], endpoints)
}

/// In short: `l1` is the endpoint 10.0.0.1:8080 on this node, `r1` is 10.1.0.1:8080 on another.
fn endpoint(short: &str) -> Endpoint {
    let (remote, number) = (short.starts_with('r'), &short[1..]);
    Endpoint { remote, address: socket_addr(&format!("10.{}.0.{number}:8080", u8::from(remote))) }
}

fn ready_(short: &str) -> crds::Endpoint {
    let endpoint = endpoint(short);
    ready(&endpoint.address.ip().to_string(), if endpoint.remote { "n2" } else { NODE })
}

#[test]
fn endpoints_are_chosen_by_readiness_and_policy() {
    let gone = |short: &str| unready(terminating(ready_(short)));
    let stops = |short: &str| terminating(ready_(short));
    type Case = (&'static str, bool, Vec<crds::Endpoint>, &'static [&'static str], (u32, u32), (u32, u32), usize);
    // Policy Local?, endpoints, in order, outside (from, count), inside (from, count), draining.
    let cases: Vec<Case> = vec![
        ("all ready", false, vec![ready_("r1"), ready_("l1")], &["l1", "r1"], (0, 2), (0, 2), 0),
        ("unready ones are left out", false, vec![ready_("l1"), unready(ready_("l2"))], &["l1"], (0, 1), (0, 1), 0),
        ("terminating ones drain", false, vec![ready_("r1"), stops("l1")], &["r1"], (0, 1), (0, 1), 1),
        ("none ready: those that still serve", false, vec![stops("r1"), gone("l1")], &["r1"], (0, 1), (0, 1), 0),
        ("none at all", false, vec![gone("l1"), unready(ready_("r1"))], &[], (0, 0), (0, 0), 0),
        ("Local: local ones first", true, vec![ready_("r1"), ready_("l1")], &["l1", "r1"], (0, 1), (0, 2), 0),
        ("Local: none here", true, vec![ready_("r1")], &["r1"], (0, 0), (0, 1), 0),
        ("Local: here only terminating", true, vec![ready_("r1"), stops("l1")], &["l1", "r1"], (0, 1), (1, 1), 0),
        ("Local: all terminating", true, vec![stops("r1"), stops("l1")], &["l1", "r1"], (0, 1), (0, 2), 0),
        ("Local: one here ready", true, vec![ready_("l2"), stops("l1")], &["l2"], (0, 1), (0, 1), 1),
        ("Local: none", true, vec![], &[], (0, 0), (0, 0), 0),
    ];
    for (case, local, given, expected, outside, inside, draining) in cases {
        let described = if local { web(given).local() } else { web(given) };
        let found = planned_target(described);
        let pick = |(from, count)| Pick { from, count };
        let endpoints: Vec<Endpoint> = expected.iter().map(|short| endpoint(short)).collect();
        assert_eq!(
            (&found.endpoints, found.outside, found.inside, found.draining.len()),
            (&endpoints, pick(outside), pick(inside), draining),
            "{case}"
        );
    }
}

#[test]
fn endpoints_of_dead_nodes_are_the_last_resort() {
    let stops = |short: &str| terminating(ready_(short));
    let on_node = |short: &str, node: &str| crds::Endpoint { node: Some(node.into()), ..ready_(short) };
    // Endpoints, dead nodes, the endpoints in use, and the number of draining ones.
    type Case = (&'static str, Vec<crds::Endpoint>, &'static [&'static str], &'static [&'static str], usize);
    let cases: Vec<Case> = vec![
        ("the living serve", vec![ready_("l1"), ready_("r1")], &["n2"], &["l1"], 0),
        ("of two others the living one", vec![on_node("r1", "n2"), on_node("r2", "n3")], &["n2"], &["r2"], 0),
        ("all are dead", vec![on_node("r1", "n2"), on_node("r2", "n3")], &["n2", "n3"], &["r1", "r2"], 0),
        ("better stopping than dead", vec![stops("l1"), ready_("r1")], &["n2"], &["l1"], 0),
        ("a dead one does not drain", vec![ready_("l1"), stops("r1")], &["n2"], &["l1"], 0),
        ("a living one does", vec![ready_("l1"), stops("r1")], &["n3"], &["l1"], 1),
        ("this node is not dead", vec![ready_("l1"), ready_("r1")], &[NODE], &["l1", "r1"], 0),
        ("its node is unknown", vec![crds::Endpoint { node: None, ..ready_("r1") }], &["n2"], &["r1"], 0),
    ];
    for (case, given, dead, expected, draining) in cases {
        let dead = dead.iter().map(|node| (*node).to_owned()).collect();
        let planned = plan_ruleset(&Snapshot { dead, ..snapshot([web(given)]) });
        let found = &planned.addresses[&ip("192.0.2.10")].ports[&(Tcp, 80)];
        let endpoints: Vec<Endpoint> = expected.iter().map(|short| endpoint(short)).collect();
        assert_eq!((&found.endpoints, found.draining.len()), (&endpoints, draining), "{case}");
    }
}

#[test]
fn with_spreading_a_node_prefers_its_own_endpoints() {
    let on_node = |short: &str, node: &str| crds::Endpoint { node: Some(node.into()), ..ready_(short) };
    let stops = |endpoint: crds::Endpoint| terminating(endpoint);
    type Case = (&'static str, bool, Vec<crds::Endpoint>, &'static [&'static str], &'static [&'static str], Reach, u32);
    // Policy Local?, endpoints, dead nodes, the endpoints for packets from outside, their reach, and the number of
    // nodes that share the frames.
    let cases: Vec<Case> = vec![
        ("its own alone", false, vec![ready_("l1"), on_node("r1", "n2")], &[], &["l1"], Reach::Spread, 2),
        ("all are its own", false, vec![ready_("l1"), ready_("l2")], &[], &["l1", "l2"], Reach::Spread, 0),
        ("none is", false, vec![on_node("r1", "n2"), on_node("r2", "n3")], &[], &["r1", "r2"], Reach::Spread, 2),
        ("its own stops", false, vec![stops(ready_("l1")), on_node("r1", "n2")], &[], &["r1"], Reach::Spread, 1),
        ("all stop", false, vec![stops(ready_("l1")), stops(on_node("r1", "n2"))], &[], &["l1"], Reach::Spread, 2),
        ("the other is dead", false, vec![ready_("l1"), on_node("r1", "n2")], &["n2"], &["l1"], Reach::Spread, 2),
        // Open connections stay with the other node, so there is a share table. Its one node is this one.
        ("the other stops", false, vec![ready_("l1"), stops(on_node("r1", "n2"))], &[], &["l1"], Reach::Spread, 1),
        (
            "the other is unready",
            false,
            vec![ready_("l1"), unready(on_node("r1", "n2"))],
            &[],
            &["l1"],
            Reach::Spread,
            1,
        ),
        ("all are unready", false, vec![unready(on_node("r1", "n2"))], &[], &[], Reach::Translated, 1),
        (
            "Local: the other stops",
            true,
            vec![ready_("l1"), stops(on_node("r1", "n2"))],
            &[],
            &["l1"],
            Reach::Spread,
            1,
        ),
        ("Local: all are unready", true, vec![unready(on_node("r1", "n2"))], &[], &[], Reach::Translated, 1),
        (
            "one beyond the link stops",
            false,
            vec![ready_("l1"), stops(on_node("r1", "n9"))],
            &[],
            &["l1"],
            Reach::Spread,
            0,
        ),
        (
            "no node is on the link",
            false,
            vec![on_node("r1", "n8"), on_node("r2", "n9")],
            &[],
            &["r1", "r2"],
            Reach::Translated,
            0,
        ),
        (
            "one is not on the link: this node has its endpoint",
            false,
            vec![ready_("l1"), on_node("r1", "n9")],
            &[],
            &["l1", "r1"],
            Reach::Mixed,
            0,
        ),
        ("Local: its own alone", true, vec![ready_("l1"), on_node("r1", "n2")], &[], &["l1"], Reach::Spread, 2),
        (
            "Local: one is not on the link",
            true,
            vec![ready_("l1"), on_node("r1", "n9")],
            &[],
            &["l1"],
            Reach::Spread,
            0,
        ),
        ("Local: none is its own", true, vec![on_node("r1", "n2")], &[], &[], Reach::Translated, 0),
    ];
    for (case, local, given, dead, expected, reach, parts) in cases {
        let described = if local { web(given).local() } else { web(given) };
        let dead = dead.iter().map(|node| (*node).to_owned()).collect();
        let planned = plan_ruleset(&Snapshot { dead, links: on_eth0(&["n2", "n3"]), ..snapshot([described]) });
        let found = &planned.addresses[&ip("192.0.2.10")].ports[&(Tcp, 80)];
        let outside = found.endpoints.iter().skip(found.outside.from as usize).take(found.outside.count as usize);
        let expected: Vec<Endpoint> = expected.iter().map(|short| endpoint(short)).collect();
        let nodes = found.share.as_ref().map_or(0, |share| share.nodes().count());
        assert_eq!(
            (outside.copied().collect::<Vec<_>>(), found.reach, nodes),
            (expected, reach, parts as usize),
            "{case}"
        );
    }
}

#[test]
fn named_ports_are_resolved_in_each_slice() {
    let described = service("web")
        .holds("192.0.2.10")
        .port("http", Tcp, 80)
        .slice(&[("http", Tcp, 8080), ("other", Tcp, 1)], [ready_("l1"), unready(ready_("r1"))])
        .slice(&[("http", Tcp, 9090)], [ready_("l1")])
        .slice(&[("http", Tcp, 8080)], [ready_("r1"), ready_("l1")])
        .slice(&[("http", Udp, 7070)], [ready_("l2")])
        .slice(&[("", Tcp, 7071)], [ready_("l3")]);
    let also = Endpoint { remote: false, address: socket_addr("10.0.0.1:9090") };
    assert_eq!(planned_target(described).endpoints, [endpoint("l1"), also, endpoint("r1")]);
}

#[test]
fn endpoints_have_the_family_of_the_address() {
    let six = ready("2001:db8::5", NODE);
    let both = web([ready_("l1"), six.clone()]).holds("2001:db8::1");
    let planned = plan_ruleset(&snapshot([both]));
    let addresses = |lb_ip: &str| -> Vec<_> {
        planned.addresses[&ip(lb_ip)].ports[&(Tcp, 80)].endpoints.iter().map(|e| e.address.ip()).collect()
    };
    assert_eq!(addresses("192.0.2.10"), [ip("10.0.0.1")]);
    assert_eq!(addresses("2001:db8::1"), [six.address]);
}

#[test]
fn only_a_holder_with_a_matching_uid_is_forwarded() {
    let good = snapshot([web([ready_("l1")])]);
    assert_eq!(plan_ruleset(&good).addresses.len(), 1);
    let with = |change: fn(&mut crds::Service)| {
        let mut snapshot = good.clone();
        snapshot.services.values_mut().for_each(|service| change(Arc::make_mut(&mut service.object)));
        plan_ruleset(&snapshot)
    };
    assert_eq!(with(|service| service.uid = "another".into()), Ruleset::default());
    assert_eq!(with(|service| service.is_load_balancer = false), Ruleset::default());
    // A Service that is being deleted is served until its address is released.
    assert_eq!(with(|service| service.deleting = true), plan_ruleset(&good));
    assert_eq!(plan_ruleset(&Snapshot { services: SharedMap::default(), ..good.clone() }), Ruleset::default());
    // Without a LoadBalancerIP object nothing is forwarded. The status of the Service has no effect.
    assert_eq!(plan_ruleset(&Snapshot { addresses: SharedMap::default(), ..good }), Ruleset::default());
}

#[test]
fn services_may_share_an_address_by_port() {
    let other = |name| service(name).holds("192.0.2.10").port("", Udp, 80).port("", Tcp, 80);
    let planned = plan_ruleset(&snapshot([other("zzz"), web([ready_("l1")])]));
    let lb_ip: &LbIp = &planned.addresses[&ip("192.0.2.10")];
    assert_eq!(lb_ip.ports.keys().copied().collect::<Vec<_>>(), [(Tcp, 80), (Udp, 80)]);
    assert_eq!(lb_ip.ports[&(Tcp, 80)].endpoints, [endpoint("l1")], "the first by name has it");
}

#[test]
fn source_ranges_apply_per_family_and_mistakes_are_reported() {
    let both = web([ready_("l1")]).holds("2001:db8::1").only_from(&["10.0.0.0/24", "10.0.1.0/24", "all"]);
    let planned = plan_ruleset(&snapshot([both]));
    let sources = |lb_ip: &str| -> Option<Vec<String>> {
        let sources = planned.addresses[&ip(lb_ip)].ports[&(Tcp, 80)].sources.clone();
        sources.map(|ranges| ranges.iter().map(ToString::to_string).collect())
    };
    assert_eq!(sources("192.0.2.10"), Some(vec!["10.0.0.0-10.0.1.255".into()]));
    assert_eq!(sources("2001:db8::1"), Some(vec![]), "no client");
    let problem = |reason, what: &str| Problem { service: Key::new("default", "web"), reason, what: what.to_owned() };
    let invalid = problem(ProblemReason::InvalidSourceRange, "all");
    assert_eq!(planned.addresses[&ip("192.0.2.10")].problems, BTreeSet::from([invalid.clone()]));
    let lacks = problem(ProblemReason::NoEndpoints, "80/TCP");
    assert_eq!(planned.addresses[&ip("2001:db8::1")].problems, BTreeSet::from([invalid, lacks]));
}

#[test]
fn missing_and_refused_endpoints_are_reported_per_service() {
    let problem =
        |name: &str, reason, what: &str| Problem { service: Key::new("default", name), reason, what: what.to_owned() };
    let two = || service("two").holds("192.0.2.10").port("a", Tcp, 80).port("b", Tcp, 81).port("c", Udp, 53);
    let one = || service("one").holds("192.0.2.10").port("", Tcp, 443).slice(&[("", Tcp, 8443)], [ready_("l1")]);
    let problems = |described: [sample::Described; 2], refused: Option<&str>| {
        let mut snapshot = snapshot(described);
        for slice in snapshot.slices.values_mut().flat_map(Arc::make_mut) {
            Arc::make_mut(slice).refused = refused.map(Box::from);
        }
        plan_ruleset(&snapshot).addresses[&ip("192.0.2.10")].problems.clone()
    };
    let http = |endpoints: &[&str]| two().slice(&[("a", Tcp, 8080)], endpoints.iter().map(|name| ready_(name)));
    let nowhere = problem("two", ProblemReason::NoEndpoints, "81/TCP, 53/UDP");
    assert_eq!(problems([one(), http(&["l1"])], None), BTreeSet::from([nowhere.clone()]));
    let elsewhere = problem("two", ProblemReason::NoLocalEndpoints, "80/TCP");
    assert_eq!(problems([one(), http(&["r1"]).local()], None), BTreeSet::from([nowhere.clone(), elsewhere]));
    let refused = ["one", "two"].map(|name| problem(name, ProblemReason::EndpointsRefused, "127.0.0.1"));
    let all = BTreeSet::from_iter(refused.into_iter().chain([nowhere]));
    assert_eq!(problems([one(), http(&["l1"])], Some("127.0.0.1")), all);
    assert!(all.iter().filter(|problem| problem.is_mistake()).count() == 2);
}

#[test]
fn an_address_of_the_node_is_left_alone_and_reported() {
    let two = [web([ready_("l1")]), service("other").holds("192.0.2.10").holds("192.0.2.11").port("", Tcp, 81)];
    let snapshot = Snapshot { own_addresses: [ip("192.0.2.10")].into(), ..snapshot(two) };
    let planned = plan_ruleset(&snapshot);
    let lb_ip = &planned.addresses[&ip("192.0.2.10")];
    let problems = ["other", "web"].map(|name| Problem {
        service: Key::new("default", name),
        reason: ProblemReason::AddressOfNode,
        what: "192.0.2.10".into(),
    });
    assert!(problems.iter().all(Problem::is_mistake));
    assert_eq!((&lb_ip.problems, lb_ip.ports.len()), (&BTreeSet::from(problems), 0));
    let elements = ruleset_elements(&planned);
    let names: Vec<String> = elements.keys().map(ToString::to_string).collect();
    assert!(names.iter().all(|name| !name.contains("192.0.2.10")), "{names:?}");
    assert!(names.contains(&"192.0.2.11 in addresses".to_owned()), "{names:?}");
}

prop_compose! {
    fn an_endpoint()(
        number in 0u8..6,
        node in prop_oneof![Just(None), Just(Some(NODE)), Just(Some("n2")), Just(Some("n3"))],
        ready: bool,
        serving: bool,
        terminating: bool,
    ) -> crds::Endpoint {
        let node = node.map(crds::InternedStr::from);
        crds::Endpoint { address: ip(&format!("10.0.0.{number}")), node, ready, serving, terminating }
    }
}

fn a_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Tcp), Just(Udp), Just(Sctp)]
}

prop_compose! {
    fn a_service(name: &'static str)(
        addresses in proptest::collection::btree_set(1u8..4, 0..3),
        ports in proptest::collection::btree_map((a_protocol(), 80u16..83), "[ab]", 0..4),
        slices in proptest::collection::vec(
            (proptest::collection::btree_map(("[ab]", a_protocol()), 8080u16..8082, 0..4),
             proptest::collection::vec(an_endpoint(), 0..4)),
            0..3,
        ),
        local: bool,
        no_spreading: bool,
        backend in proptest::option::of(proptest::sample::select(Backend::ALL.to_vec())),
        elsewhere in proptest::bool::weighted(0.2),
        sources in proptest::option::of(proptest::collection::vec(
            prop_oneof![Just("10.0.0.0/31"), Just("10.0.0.2/31"), Just("0.0.0.0/0"), Just("fd00::/8"), Just("?")],
            1..3,
        )),
        affinity in proptest::option::of(1u32..3),
    ) -> Described {
        let mut described = service(name).only_from(&sources.unwrap_or_default());
        if let Some(seconds) = affinity {
            described = described.sticky(seconds);
        }
        for address in addresses {
            described = described.holds(&format!("192.0.2.{address}"));
        }
        for ((protocol, number), port) in ports {
            described = described.port(&port, protocol, number);
        }
        for (ports, endpoints) in slices {
            let ports: Vec<_> =
                ports.iter().map(|((name, protocol), number)| (name.as_str(), *protocol, *number)).collect();
            described = described.slice(&ports, endpoints);
        }
        if no_spreading {
            described = described.without_spreading();
        }
        if let Some(backend) = backend {
            described = described.backend(backend);
        }
        if elsewhere {
            described = described.labels([("service.kubernetes.io/service-proxy-name", "example.com")]);
        }
        if local { described.local() } else { described }
    }
}

prop_compose! {
    fn a_snapshot()(
        one in a_service("one"),
        other in a_service("other"),
        there: [bool; 2],
        lan in proptest::collection::btree_set("eth[0-2]", 0..3),
        own in proptest::collection::btree_set(0u8..4, 0..2),
        dead in proptest::collection::btree_set(prop_oneof![Just(NODE.to_owned()), Just("n2".to_owned())], 0..2),
        others in prop_oneof![Just(None), Just(Some(&[][..])), Just(Some(&["n2"][..])), Just(Some(&["n2", "n3"][..]))],
    ) -> Snapshot {
        let links = others.map(on_eth0).unwrap_or_default();
        let lan_links = Arc::new(lan.iter().filter_map(|name| LinkName::new(name)).collect());
        let services = [one, other].into_iter().zip(there).filter_map(|(service, there)| there.then_some(service));
        let node_ips = vec![ip("10.0.9.1")];
        let own_addresses = own.into_iter().map(|last| ip(&format!("192.0.2.{last}"))).collect();
        Snapshot { dead, links, node_ips, own_addresses, lan_links, ..snapshot(services) }
    }
}

/// Applies the changes as the kernel does. A change that the kernel refuses is an error.
fn make_changes(elements: &Elements, changes: &[ElementChange]) -> Result<Elements, String> {
    let mut elements = elements.clone();
    for change in changes {
        match change {
            ElementChange::Add(key, value) => {
                let missing = target(key, value).filter(|chain| !elements.contains_key(chain));
                if let Some(missing) = missing {
                    return Err(format!("{change} before {missing}"));
                }
                if elements.insert(*key, value.clone()).is_some() {
                    return Err(format!("{change}, which exists"));
                }
            }
            ElementChange::Delete(chain @ ElementKey::Chain(..), _)
                if elements.iter().any(|(key, value)| target(key, value) == Some(*chain)) =>
            {
                return Err(format!("{change}, which is in use"));
            }
            ElementChange::Delete(key, value) => {
                if elements.remove(key).as_ref() != Some(value) {
                    return Err(format!("{change}, which does not exist"));
                }
            }
        }
    }
    Ok(elements)
}

/// The chain that an element leads to, if it exists only while it is needed.
fn target(key: &ElementKey, value: &ElementValue) -> Option<ElementKey> {
    match value {
        ElementValue::Goto(chain @ (ChainName::Dispatch(_) | ChainName::Remember(_))) => {
            Some(ElementKey::Chain(key.table(), *chain))
        }
        _ => None,
    }
}

/// `after`, with the equal parts of `before` shared.
fn share_unchanged(before: &Snapshot, after: &Snapshot) -> Snapshot {
    fn reuse<T: ?Sized + PartialEq>(old: Option<&Arc<T>>, new: &Arc<T>) -> Arc<T> {
        Arc::clone(old.filter(|old| *old == new).unwrap_or(new))
    }
    let mut shared = after.clone();
    shared.addresses = update_map(&before.addresses, &after.addresses, |address, holders| {
        // The holders of another address can be equal as well.
        let old = before.addresses.get(address).or_else(|| before.addresses.values().find(|old| *old == holders));
        reuse(old, holders)
    });
    shared.services = update_map(&before.services, &after.services, |key, service| {
        let old = before.services.get(key);
        let (object, options) = (old.map(|old| &old.object), old.map(|old| &old.options));
        Service { object: reuse(object, &service.object), options: reuse(options, &service.options) }
    });
    shared.slices = update_map(&before.slices, &after.slices, |key, slices| {
        let old = before.slices.get(key);
        let slice = |(index, slice)| reuse(old.and_then(|slices| slices.get(index)), slice);
        slices.iter().enumerate().map(slice).collect()
    });
    shared
}

/// `before`, changed into `after`. Equal entries stay the same.
fn update_map<K: Ord + Clone, V: Clone + PartialEq>(
    before: &SharedMap<K, V>,
    after: &SharedMap<K, V>,
    value: impl Fn(&K, &V) -> V,
) -> SharedMap<K, V> {
    let mut map = before.clone();
    for (key, _, new) in before.differing(after).filter(|(_, old, new)| old != new) {
        match new {
            Some(new) => drop(map.insert(key.clone(), value(key, new))),
            None => drop(map.remove(key)),
        }
    }
    map
}

proptest! {
    #[test]
    fn changes_turn_applied_elements_into_desired_ones(before in a_snapshot(), after in a_snapshot()) {
        let (before, after) = (plan_ruleset(&before), plan_ruleset(&after));
        let (old, new) = (ruleset_elements(&before), ruleset_elements(&after));
        let changes = diff_elements(&old, &new);
        prop_assert_eq!(make_changes(&old, &changes), Ok(new));
        // The incremental diff finds the same.
        prop_assert_eq!(diff_rulesets(&before, &after), changes);
    }

    #[test]
    fn incremental_planning_equals_full_planning(
        snapshots in proptest::collection::vec(a_snapshot(), 1..5),
    ) {
        let mut planner = Planner::default();
        let mut before = Arc::new(nothing());
        let mut planned = planner.plan(&before);
        for snapshot in snapshots {
            let next = Arc::new(share_unchanged(&before, &snapshot));
            prop_assert_eq!(&*next, &snapshot);
            let replanned = planner.plan(&next);
            prop_assert_eq!(&*replanned, &plan_ruleset(&snapshot));
            let same_node = next.lan_links == before.lan_links && next.node_ips == before.node_ips;
            if replanned == planned && same_node && next.links == before.links {
                prop_assert!(Arc::ptr_eq(&replanned, &planned), "an equal ruleset is the same `Arc`");
            }
            (before, planned) = (next, replanned);
        }
    }

    #[test]
    fn planning_an_equal_snapshot_changes_nothing(snapshot in a_snapshot()) {
        prop_assert_eq!(diff_rulesets(&plan_ruleset(&snapshot), &plan_ruleset(&snapshot)), vec![]);
    }

    #[test]
    fn the_order_of_observed_objects_never_matters(snapshot in a_snapshot()) {
        let mut turned = snapshot.clone();
        for slices in turned.slices.values_mut().map(Arc::make_mut) {
            slices.reverse();
            for slice in slices {
                Arc::make_mut(slice).endpoints.reverse();
            }
        }
        for holders in turned.addresses.values_mut() {
            *holders = holders.iter().rev().cloned().collect();
        }
        prop_assert_eq!(plan_ruleset(&turned), plan_ruleset(&snapshot));
    }

    #[test]
    fn every_pick_is_within_the_endpoints(snapshot in a_snapshot()) {
        let planned = plan_ruleset(&snapshot);
        for lb_ip in planned.addresses.values() {
            for target in lb_ip.ports.values() {
                let count = u32::try_from(target.endpoints.len()).expect("few");
                for pick in [target.outside, target.inside] {
                    prop_assert!(pick.from + pick.count <= count);
                }
                prop_assert_eq!(target.inside.count == 0, target.endpoints.is_empty());
                prop_assert!(target.endpoints.iter().all(|e| !target.draining.contains(&e.address)));
            }
        }
    }
}
