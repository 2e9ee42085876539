//! What users of other load balancers know to go wrong, told as short stories about a cluster.
//!
//! Each story goes through what a user does step by step, lets the cluster come to rest after each, and looks at what
//! the Services have then: their addresses, and the condition's status and reason.

use std::sync::Arc;

use crds::ip_address_pool::AddressRange;
use crds::service::Family::{self, V4, V6};
use crds::{
    FamilyPolicy, IPAddressPool, IPAddressPoolSpec, Key, Labels, Namespace, Port, Protocol, Reservation, Service,
    ServiceAllocation, TrafficPolicy,
};

use crate::fixtures::{ip, node, pool, record, service};
use crate::world::World;

const POOL: &str = "landfall.dev/address-pool";
const IPS: &str = "landfall.dev/load-balancer-ips";
const KEY: &str = "metallb.io/allow-shared-ip";
const WITH: &str = "landfall.dev/share-with-namespaces";

/// A Service of default/`name` with these annotations.
fn asks(name: &str, created: i64, annotations: &[(&str, &str)]) -> Service {
    Service { request: request(annotations), ..service(name, created) }
}

fn request(annotations: &[(&str, &str)]) -> crds::request::ParsedRequest {
    let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    crds::RequestedAddresses::read(Some(&annotations), None)
}

/// One with that port, under that key.
fn shares(name: &str, created: i64, key: &str, port: u16) -> Service {
    let ports = vec![Port { name: "".into(), protocol: Protocol::Tcp, number: port, node_port: None }];
    Service { ports, ..asks(name, created, &[(KEY, key)]) }
}

fn dual(name: &str, created: i64, families: [Family; 2], family_policy: FamilyPolicy) -> Service {
    Service { families: families.into(), family_policy, ..service(name, created) }
}

fn edited(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut IPAddressPoolSpec)) -> Arc<IPAddressPool> {
    edit(&mut Arc::make_mut(&mut pool).spec);
    pool
}

fn edit_pool(world: &mut World, name: &str, edit: impl FnOnce(&mut IPAddressPoolSpec)) {
    edit(&mut Arc::make_mut(world.snapshot.pools.get_mut(name).expect("a pool")).spec);
}

fn ranges(texts: &[&str]) -> Vec<AddressRange> {
    texts.iter().map(|text| AddressRange((*text).to_owned())).collect()
}

fn add(world: &mut World, service: Service) {
    world.snapshot.services.insert(service.key.clone(), Arc::new(service));
}

/// The addresses of a Service as its status shows them, and status and reason of its condition. What it shows it holds,
/// and nothing else.
fn has(world: &World, name: &str) -> String {
    has_in(world, "default", name)
}

fn has_in(world: &World, namespace: &str, name: &str) -> String {
    let service = &world.snapshot.services[&Key::new(namespace, name)];
    let shown: Vec<_> = service.ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect();
    let condition = service.conditions.iter().find(|condition| condition.type_ == crds::service::ALLOCATED);
    let said = condition.map(|c| format!("{} {}", c.status, c.reason)).unwrap_or_default();
    let held = world
        .snapshot
        .addresses
        .values()
        .filter(|record| record.holders.iter().any(|holder| holder.uid == service.uid && holder.name == name));
    let mut held: Vec<_> = held.map(|record| record.address.to_string()).collect();
    let mut sorted = shown.clone();
    held.sort();
    sorted.sort();
    assert_eq!(held, sorted, "{namespace}/{name} shows what it holds: {said}");
    format!("{} {said}", shown.join(",")).trim().to_owned()
}

/// Lets the cluster come to rest and looks at these Services.
fn rest<const N: usize>(world: &mut World, names: [&str; N]) -> [String; N] {
    world.settle();
    names.map(|name| has(world, name))
}

const NONE_LEFT: &str = "False PoolsExhausted";

#[test]
fn the_only_address_goes_to_the_next_when_the_first_is_deleted_or_becomes_another_type() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1"])], [service("a", 1), service("b", 2), service("c", 3)]);
    let all = ["a", "b", "c"];
    assert_eq!(rest(&mut world, all), ["192.0.2.1 True Allocated", NONE_LEFT, NONE_LEFT]);
    world.edit("a", |service| service.is_load_balancer = false);
    assert_eq!(rest(&mut world, all), ["", "192.0.2.1 True Allocated", NONE_LEFT]);
    world.delete("b");
    assert_eq!(rest(&mut world, ["a", "c"]), ["", "192.0.2.1 True Allocated"]);
}

#[test]
fn of_two_that_share_the_one_whose_policy_changes_loses_and_gets_it_back_when_the_other_follows() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1"])], [shares("a", 1, "k", 80), shares("b", 2, "k", 443)]);
    for name in ["a", "b"] {
        world.edit(name, |service| service.selector = Labels::from([("app", "web")]));
    }
    let both = ["a", "b"];
    let shared = ["192.0.2.1 True Allocated"; 2];
    assert_eq!(rest(&mut world, both), shared);
    let local = |service: &mut Service| service.traffic_policy = TrafficPolicy::Local;
    world.edit("b", local);
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated", NONE_LEFT]);
    world.edit("a", local);
    assert_eq!(rest(&mut world, both), shared);
    world.edit("a", |service| service.selector = Labels::from([("app", "db")]));
    assert_eq!(rest(&mut world, both), [NONE_LEFT, "192.0.2.1 True Allocated"]);
    world.edit("b", |service| service.selector = Labels::from([("app", "db")]));
    assert_eq!(rest(&mut world, both), shared);
    // The key is a term as well; and who has another one does not come in.
    world.edit("b", |service| service.request = request(&[(KEY, "other")]));
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated", NONE_LEFT]);
    world.edit("b", |service| service.request = request(&[(KEY, "k")]));
    assert_eq!(rest(&mut world, both), shared);
    // Without a key nobody shares.
    world.edit("a", |service| service.request = request(&[]));
    assert_eq!(rest(&mut world, both), [NONE_LEFT, "192.0.2.1 True Allocated"]);
}

#[test]
fn an_address_that_is_not_shared_becomes_so_when_its_service_gets_a_key() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1"])], [service("a", 1), shares("b", 2, "k", 443)]);
    world.edit("a", |service| service.ports = shares("a", 1, "k", 80).ports);
    let both = ["a", "b"];
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated", NONE_LEFT]);
    world.edit("a", |service| service.request = request(&[(KEY, "k")]));
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
    // The first one leaves, and the address is the other's alone. A third joins that one.
    world.delete("a");
    add(&mut world, shares("c", 3, "k", 80));
    assert_eq!(rest(&mut world, ["b", "c"]), ["192.0.2.1 True Allocated"; 2]);
    world.delete("b");
    world.delete("c");
    world.settle();
    assert!(world.snapshot.addresses.is_empty(), "{:?}", world.snapshot.addresses);
}

#[test]
fn a_service_moves_away_from_a_shared_address_and_back_and_the_other_stays() {
    let mut world =
        World::with([pool("lan", 1, &["192.0.2.1-192.0.2.2"])], [shares("a", 1, "k", 80), shares("b", 2, "k", 443)]);
    let both = ["a", "b"];
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
    world.edit("b", |service| service.request = request(&[(KEY, "k"), (IPS, "192.0.2.2")]));
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated", "192.0.2.2 True Allocated"]);
    world.edit("b", |service| service.request = request(&[(KEY, "k"), (IPS, "192.0.2.1")]));
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
    // A clash of ports with the address asked for: it keeps what it has.
    world.edit("b", |service| {
        service.request = request(&[(KEY, "k"), (IPS, "192.0.2.2")]);
        service.ports = shares("b", 2, "k", 80).ports;
    });
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated", "192.0.2.2 True Allocated"]);
    world.edit("b", |service| service.request = request(&[(KEY, "k"), (IPS, "192.0.2.1")]));
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated", "192.0.2.2 False SharingConflict"]);
    world.edit("a", |service| service.ports[0].number = 81);
    assert_eq!(rest(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
}

#[test]
fn a_key_that_is_guessed_in_another_namespace_opens_nothing() {
    let mut guest = shares("guest", 2, "k", 443);
    guest.key = Key::new("guests", "guest");
    guest.request = request(&[(KEY, "k"), (IPS, "192.0.2.1"), (WITH, "*")]);
    let mut world = World::with([pool("lan", 1, &["192.0.2.1"])], [shares("a", 1, "k", 80)]);
    world.settle();
    add(&mut world, guest);
    world.settle();
    assert_eq!(has_in(&world, "guests", "guest"), "False SharingConflict");
    world.edit("a", |service| service.request = request(&[(KEY, "k"), (WITH, "guests")]));
    world.settle();
    assert_eq!(has_in(&world, "guests", "guest"), "192.0.2.1 True Allocated");
    // Consent is taken back: who took it back has changed, and goes.
    world.edit("a", |service| service.request = request(&[(KEY, "k")]));
    world.settle();
    assert_eq!(
        (has(&world, "a"), has_in(&world, "guests", "guest")),
        (NONE_LEFT.into(), "192.0.2.1 True Allocated".into())
    );
}

#[test]
fn no_spelling_of_a_request_gets_past_a_fence() {
    let fence = ServiceAllocation { namespaces: vec!["team".into()], ..ServiceAllocation::default() };
    let fenced = edited(pool("fenced", 1, &["192.0.2.1-192.0.2.9", "2001:db8::1"]), |spec| {
        spec.service_allocation = Some(fence);
    });
    let mut inside = shares("inside", 1, "k", 80);
    inside.key.namespace = "team".into();
    inside.request = request(&[(KEY, "k"), (WITH, "*")]);
    let mut world = World::with([fenced], [inside]);
    let spellings: [(&[(&str, &str)], &str); 7] = [
        (&[], "False NoAutomaticPool"),
        (&[(POOL, "fenced")], "False PoolNotAllowed"),
        (&[("metallb.universe.tf/address-pool", "fenced")], "False PoolNotAllowed"),
        (&[(IPS, "192.0.2.5")], "False PoolNotAllowed"),
        (&[("metallb.io/loadBalancerIPs", "192.0.2.5")], "False PoolNotAllowed"),
        (&[(KEY, "k"), (WITH, "*")], "False NoAutomaticPool"),
        (&[(KEY, "k"), (WITH, "*"), (IPS, "192.0.2.1")], "False PoolNotAllowed"),
    ];
    for (index, (annotations, _)) in spellings.iter().enumerate() {
        let mut outside = shares(&format!("s{index}"), 2, "k", 1000 + index as u16);
        outside.request = request(annotations);
        add(&mut world, outside);
    }
    // Nor by a reservation, whoever made it.
    let (address, reserved) = record("192.0.2.7", "", &[]);
    let mut reserved = (*reserved).clone();
    reserved.reservation =
        Some(Box::new(Reservation { namespace: Some("default".into()), service: Some("kept".into()) }));
    world.snapshot.addresses.insert(address, Arc::new(reserved));
    add(&mut world, service("kept", 3));
    world.settle();
    assert_eq!(has_in(&world, "team", "inside"), "192.0.2.1 True Allocated");
    assert_eq!(has(&world, "kept"), "False NoAutomaticPool");
    for (index, (annotations, expected)) in spellings.iter().enumerate() {
        assert_eq!(has(&world, &format!("s{index}")), *expected, "{annotations:?}");
    }
}

#[test]
fn a_namespace_comes_into_a_fence_by_its_labels_and_keeps_what_it_has_when_it_goes() {
    let selector = serde_json::json!({"namespaceSelectors": [{"matchLabels": {"team": "a"}}], "priority": 5});
    let fence: ServiceAllocation = serde_json::from_value(selector).expect("a serviceAllocation");
    let pools = [
        edited(pool("team-a", 2, &["192.0.2.1"]), |spec| spec.service_allocation = Some(fence)),
        pool("all", 1, &["192.0.2.9"]),
    ];
    let mut world = World::with(pools, []);
    let labelled = |world: &mut World, labels: Labels| {
        let namespace = Namespace { name: "default".into(), labels };
        world.snapshot.namespaces.insert("default".into(), Arc::new(namespace));
    };
    labelled(&mut world, Labels::from([("team", "a")]));
    add(&mut world, service("a", 1));
    add(&mut world, service("b", 2));
    assert_eq!(rest(&mut world, ["a", "b"]), ["192.0.2.1 True Allocated", "192.0.2.9 True Allocated"]);
    labelled(&mut world, Labels::default());
    assert_eq!(rest(&mut world, ["a", "b"]), ["192.0.2.1 True PoolChanged", "192.0.2.9 True Allocated"]);
    world.delete("a");
    add(&mut world, service("c", 3));
    assert_eq!(rest(&mut world, ["b", "c"]), ["192.0.2.9 True Allocated", NONE_LEFT]);
}

#[test]
fn who_prefers_both_families_takes_them_from_one_pool_and_never_moves_for_it() {
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};
    let pools = [pool("four", 1, &["192.0.2.1-192.0.2.9"]), pool("both", 2, &["198.51.100.1", "2001:db8::1"])];
    let mut world =
        World::with(pools, [dual("a", 1, [V4, V6], PreferDualStack), dual("b", 2, [V6, V4], PreferDualStack)]);
    assert_eq!(
        rest(&mut world, ["a", "b"]),
        ["198.51.100.1,2001:db8::1 True Allocated", "False PoolsExhausted"],
        "the first family of b is IPv6, and that is all used"
    );
    world.snapshot.pools.insert("six".into(), pool("six", 3, &["2001:db8:6::1-2001:db8:6::2"]));
    assert_eq!(rest(&mut world, ["b"]), ["2001:db8:6::1,192.0.2.1 True Allocated"]);
    // A pool with both that comes later moves nobody.
    world.snapshot.pools.insert("later".into(), pool("later", 4, &["203.0.113.1-203.0.113.9", "2001:db8:7::/64"]));
    let before = rest(&mut world, ["a", "b"]);
    assert_eq!(before, ["198.51.100.1,2001:db8::1 True Allocated", "2001:db8:6::1,192.0.2.1 True Allocated"]);
    // To one family and back: the first address stays.
    world.edit("a", |service| (service.families, service.family_policy) = ([V4].into(), SingleStack));
    assert_eq!(rest(&mut world, ["a"]), ["198.51.100.1 True Allocated"]);
    world.edit("a", |service| (service.families, service.family_policy) = ([V4, V6].into(), RequireDualStack));
    assert_eq!(rest(&mut world, ["a"]), ["198.51.100.1,2001:db8::1 True Allocated"]);
}

#[test]
fn who_requires_both_families_never_has_half_and_takes_what_there_is_when_it_only_prefers() {
    use FamilyPolicy::{PreferDualStack, RequireDualStack};
    let mut world = World::with([pool("lan", 1, &["192.0.2.1"])], [dual("a", 1, [V4, V6], PreferDualStack)]);
    assert_eq!(rest(&mut world, ["a"]), ["192.0.2.1 True Allocated"]);
    world.edit("a", |service| service.family_policy = RequireDualStack);
    assert_eq!(rest(&mut world, ["a"]), ["False DualStackUnavailable"]);
    add(&mut world, service("b", 2));
    assert_eq!(rest(&mut world, ["a", "b"]), [NONE_LEFT, "192.0.2.1 True Allocated"]);
    world.delete("b");
    world.edit("a", |service| service.family_policy = PreferDualStack);
    assert_eq!(rest(&mut world, ["a"]), ["192.0.2.1 True Allocated"]);
    edit_pool(&mut world, "lan", |spec| spec.addresses = ranges(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(rest(&mut world, ["a"]), ["192.0.2.1,2001:db8::1 True Allocated"], "the second comes, the first stays");
    edit_pool(&mut world, "lan", |spec| spec.addresses = ranges(&["192.0.2.1"]));
    assert_eq!(rest(&mut world, ["a"]), ["192.0.2.1,2001:db8::1 True PoolGone"]);
    world.edit("a", |service| service.family_policy = RequireDualStack);
    assert_eq!(rest(&mut world, ["a"]), ["192.0.2.1,2001:db8::1 True PoolGone"]);
}

#[test]
fn an_address_of_one_family_by_name_and_any_of_the_other() {
    use FamilyPolicy::RequireDualStack;
    let mut both = dual("a", 1, [V6, V4], RequireDualStack);
    both.request = request(&[(IPS, "192.0.2.7")]);
    let mut world = World::with([pool("lan", 1, &["192.0.2.0/28", "2001:db8::/64"])], [both]);
    assert_eq!(rest(&mut world, ["a"]), ["2001:db8::1,192.0.2.7 True Allocated"]);
    world.edit("a", |service| service.request = request(&[(IPS, "192.0.2.7,2001:db8::,192.0.2.5")]));
    assert_eq!(rest(&mut world, ["a"]), ["2001:db8::,192.0.2.7,192.0.2.5 True Allocated"]);
    world.edit("a", |service| service.request = request(&[(IPS, "192.0.2.5")]));
    assert_eq!(rest(&mut world, ["a"]), ["2001:db8::,192.0.2.5 True Allocated"]);
    // All that is asked for, or nothing new.
    world.edit("a", |service| service.request = request(&[(IPS, "192.0.2.3,198.51.100.1")]));
    assert_eq!(rest(&mut world, ["a"]), ["2001:db8::,192.0.2.5 False AddressNotInPool"]);
    world.edit("a", |service| {
        (service.families, service.family_policy) = ([V6].into(), FamilyPolicy::SingleStack);
    });
    assert_eq!(rest(&mut world, ["a"])[0].split(' ').next_back(), Some("FamilyMismatch"));
}

#[test]
fn a_namespace_has_no_more_than_its_share_and_a_shared_address_counts_once() {
    let lan = edited(pool("lan", 1, &["192.0.2.1-192.0.2.9"]), |spec| spec.max_per_namespace = Some(2));
    let mut other = service("other", 9);
    other.key.namespace = "other".into();
    let services = [
        shares("a", 1, "k", 80),
        shares("b", 2, "k", 443),
        service("c", 3),
        service("d", 4),
        asks("e", 5, &[(IPS, "192.0.2.7")]),
    ];
    let mut world = World::with([lan], services.into_iter().chain([other]));
    let quota = "False NamespaceQuota";
    // By name comes first.
    assert_eq!(
        rest(&mut world, ["a", "b", "c", "d", "e"]),
        ["192.0.2.1 True Allocated", "192.0.2.1 True Allocated", quota, quota, "192.0.2.7 True Allocated"]
    );
    assert_eq!(has_in(&world, "other", "other"), "192.0.2.2 True Allocated");
    // One that has an address may change it.
    world.edit("e", |service| service.request = request(&[(IPS, "192.0.2.8")]));
    assert_eq!(rest(&mut world, ["e"]), ["192.0.2.8 True Allocated"]);
    world.delete("e");
    assert_eq!(rest(&mut world, ["c", "d"])[1], quota);
    edit_pool(&mut world, "lan", |spec| spec.max_per_namespace = Some(1));
    let kept = rest(&mut world, ["a", "b", "c"]);
    assert!(kept.iter().all(|kept| kept.ends_with("True Allocated")), "{kept:?}");
}

#[test]
fn a_reservation_is_for_whom_it_says_and_outlives_who_uses_it() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1-192.0.2.3"])], []);
    let reserve = |world: &mut World, address: &str, reservation: Option<Reservation>| {
        let (address, reserved) = record(address, "", &[]);
        let mut reserved = (*reserved).clone();
        reserved.reservation = reservation.map(Box::new);
        world.snapshot.addresses.insert(address, Arc::new(reserved));
    };
    let named = |service: &str| Reservation { namespace: Some("default".into()), service: Some(service.into()) };
    reserve(&mut world, "192.0.2.1", None);
    reserve(&mut world, "192.0.2.2", Some(named("kept")));
    add(&mut world, service("any", 1));
    add(&mut world, service("late", 2));
    add(&mut world, service("kept", 3));
    add(&mut world, asks("thief", 4, &[(IPS, "192.0.2.2")]));
    assert_eq!(
        rest(&mut world, ["any", "late", "kept", "thief"]),
        ["192.0.2.3 True Allocated", NONE_LEFT, "192.0.2.2 True Allocated", "False AddressReserved"]
    );
    world.edit("late", |service| service.request = request(&[(IPS, "192.0.2.1")]));
    assert_eq!(rest(&mut world, ["late"]), ["192.0.2.1 True Allocated"]);
    let used = &world.snapshot.addresses[&ip("192.0.2.1")];
    assert_eq!((used.pool.as_str(), &used.reservation), ("lan", &Some(Box::default())));
    world.delete("late");
    world.delete("kept");
    world.settle();
    let left: Vec<_> = world.snapshot.addresses.values().map(|record| (record.address, record.holders.len())).collect();
    assert_eq!(left, [(ip("192.0.2.1"), 0), (ip("192.0.2.2"), 0), (ip("192.0.2.3"), 1)]);
    let status = world.snapshot.pools["lan"].status.as_ref().expect("a status");
    assert_eq!((status.assigned_ipv4, status.available_ipv4), (3, 0));
    // Made again under the same name, it gets the same address.
    let mut again = service("kept", 9);
    again.uid = "again".into();
    add(&mut world, again);
    assert_eq!(rest(&mut world, ["kept", "thief"]), ["192.0.2.2 True Allocated", "False AddressReserved"]);
}

#[test]
fn a_pool_that_drains_gives_nothing_and_says_when_it_is_empty() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1-192.0.2.9"])], [service("a", 1), shares("b", 2, "k", 80)]);
    world.settle();
    edit_pool(&mut world, "lan", |spec| spec.drain = true);
    add(&mut world, service("any", 3));
    add(&mut world, asks("named", 4, &[(IPS, "192.0.2.9")]));
    add(&mut world, asks("pool", 5, &[(POOL, "lan")]));
    add(&mut world, shares("joins", 6, "k", 443));
    assert_eq!(
        rest(&mut world, ["a", "b", "any", "named", "pool", "joins"]),
        [
            "192.0.2.1 True PoolDraining",
            "192.0.2.2 True PoolDraining",
            "False NoAutomaticPool",
            "False PoolDraining",
            "False PoolDraining",
            "False NoAutomaticPool",
        ]
    );
    let drained = |world: &World| {
        let status = world.snapshot.pools["lan"].status.clone().expect("a status");
        let condition = status.conditions.iter().find(|condition| condition.type_ == "Drained").expect("Drained");
        (condition.status.clone(), status.held_by)
    };
    assert_eq!(drained(&world), ("False".into(), vec!["default/a".into(), "default/b".into()]));
    world.snapshot.pools.insert("new".into(), pool("new", 9, &["198.51.100.1-198.51.100.9"]));
    world.edit("a", |service| service.request = request(&[(POOL, "new")]));
    world.delete("b");
    let moved = rest(&mut world, ["a", "any", "joins"]);
    assert!(moved.iter().all(|has| has.starts_with("198.51.100.")), "{moved:?}");
    assert_eq!(drained(&world), ("True".into(), vec![]));
}

#[test]
fn what_becomes_of_an_address_that_a_service_has_is_said_and_it_keeps_it() {
    let lan = || pool("lan", 1, &["192.0.2.0/24"]);
    type Change = fn(&mut World);
    let changes: [(Change, &str); 6] = [
        (|world| world.snapshot.pools.clear(), "True PoolGone"),
        (|world| edit_pool(world, "lan", |spec| spec.exclude = ranges(&["192.0.2.1"])), "True PoolChanged"),
        (|world| edit_pool(world, "lan", |spec| spec.auto_assign = false), "True Allocated"),
        (|world| edit_pool(world, "lan", |spec| spec.drain = true), "True PoolDraining"),
        (|world| drop(world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.1"))), "True NodeHasAddress"),
        (
            // An older pool takes the address over.
            |world| drop(world.snapshot.pools.insert("old".into(), pool("old", 0, &["192.0.2.1"]))),
            "True Allocated",
        ),
    ];
    for (change, reason) in changes {
        let mut world = World::with([lan()], [service("a", 1)]);
        world.settle();
        change(&mut world);
        assert_eq!(rest(&mut world, ["a"]), [format!("192.0.2.1 {reason}")]);
    }
}

#[test]
fn a_service_moves_to_another_pool_when_it_asks_and_stays_when_it_cannot() {
    let pools = [pool("a", 1, &["192.0.2.1"]), pool("b", 2, &["198.51.100.1"])];
    let mut world = World::with(pools, [service("web", 1)]);
    assert_eq!(rest(&mut world, ["web"]), ["192.0.2.1 True Allocated"]);
    for (asked, expected) in [
        (&[(POOL, "b")][..], "198.51.100.1 True Allocated"),
        (&[], "198.51.100.1 True Allocated"),
        (&[(POOL, "a")], "192.0.2.1 True Allocated"),
        (&[(POOL, "c")], "192.0.2.1 False PoolNotFound"),
        (&[(POOL, "b"), (IPS, "192.0.2.1")], "192.0.2.1 False AddressNotInPool"),
        (&[(POOL, "b"), (IPS, "198.51.100.1")], "198.51.100.1 True Allocated"),
        (&[(IPS, "192.0.2.1"), ("metallb.io/loadBalancerIPs", "192.0.2.2")], "198.51.100.1 False InvalidRequest"),
    ] {
        world.edit("web", |service| service.request = request(asked));
        assert_eq!(rest(&mut world, ["web"]), [expected], "{asked:?}");
    }
}

#[test]
fn a_service_that_is_made_again_while_others_share_its_address_comes_back_as_another_one() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1"])], [shares("a", 1, "k", 80), shares("b", 2, "k", 443)]);
    world.settle();
    let mut again = shares("a", 9, "k", 80);
    again.uid = "again".into();
    add(&mut world, again);
    assert_eq!(rest(&mut world, ["a", "b"]), ["192.0.2.1 True Allocated"; 2]);
    let holders: Vec<_> = world.snapshot.addresses[&ip("192.0.2.1")].holders.iter().map(|h| h.uid.as_str()).collect();
    assert_eq!(holders, ["b", "again"]);
}

#[test]
fn a_shared_address_is_given_up_before_the_status_of_a_service_that_is_deleted_or_changes_type() {
    for by_type in [false, true] {
        let mut world =
            World::with([pool("lan", 1, &["192.0.2.1"])], [shares("a", 1, "k", 80), shares("b", 2, "k", 443)]);
        world.settle();
        if by_type {
            world.edit("a", |service| service.is_load_balancer = false);
        } else {
            world.delete("a");
            let [series] = crate::plan::plan(&world.snapshot).series.try_into().expect("one thing to do");
            assert_eq!(series.subject, crate::plan::effect::Subject::Address(ip("192.0.2.1")));
        }
        world.settle();
        assert_eq!(has(&world, "b"), "192.0.2.1 True Allocated");
        let a = world.snapshot.services.get(&World::key("a"));
        assert_eq!(a.map(|a| (a.finalizers.len(), a.conditions.len())), by_type.then_some((0, 0)));
    }
}

#[test]
fn a_gap_in_what_is_known_of_an_address_gives_it_to_nobody() {
    let mut world = World::with([pool("lan", 1, &["192.0.2.1-192.0.2.2"])], [service("a", 1), service("b", 2)]);
    world.snapshot.unreadable.addresses.insert(ip("192.0.2.1"));
    add(&mut world, asks("c", 3, &[(IPS, "192.0.2.1")]));
    assert_eq!(rest(&mut world, ["a", "b", "c"]), ["192.0.2.2 True Allocated", NONE_LEFT, "False AddressInUse"]);
}
