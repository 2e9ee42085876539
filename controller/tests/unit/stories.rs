//! Known problems of other load balancers, as short stories about a cluster.
//!
//! Each story is a list of user actions. After each one, the cluster settles, and the addresses and conditions of the
//! Services are checked.

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

/// A Service with these annotations.
fn annotated_service(name: &str, created: i64, annotations: &[(&str, &str)]) -> Service {
    Service { request: request(annotations), ..service(name, created) }
}

fn request(annotations: &[(&str, &str)]) -> crds::request::ParsedRequest {
    let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    crds::RequestedAddresses::read(Some(&annotations), None)
}

/// A Service with this port that shares under this key.
fn sharing(name: &str, created: i64, key: &str, port: u16) -> Service {
    let ports = vec![Port { name: "".into(), protocol: Protocol::Tcp, number: port, node_port: None }];
    Service { ports, ..annotated_service(name, created, &[(KEY, key)]) }
}

fn dual(name: &str, created: i64, families: [Family; 2], family_policy: FamilyPolicy) -> Service {
    Service { families: families.into(), family_policy, ..service(name, created) }
}

fn edited_pool(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut IPAddressPoolSpec)) -> Arc<IPAddressPool> {
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

/// The addresses in the status of a Service, and status and reason of its condition. Asserts that it holds exactly
/// these addresses.
fn outcome(world: &World, name: &str) -> String {
    outcome_in(world, "default", name)
}

fn outcome_in(world: &World, namespace: &str, name: &str) -> String {
    let service = &world.snapshot.services[&Key::new(namespace, name)];
    let shown: Vec<_> = service.ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect();
    let condition = service.conditions.iter().find(|condition| condition.type_ == crds::service::ALLOCATED);
    let condition = condition.map(|c| format!("{} {}", c.status, c.reason)).unwrap_or_default();
    let held = world
        .snapshot
        .records
        .values()
        .filter(|record| record.holders.iter().any(|holder| holder.uid == service.uid && holder.name == name));
    let mut held: Vec<_> = held.map(|record| record.address.to_string()).collect();
    let mut sorted = shown.clone();
    held.sort();
    sorted.sort();
    assert_eq!(sorted, held, "{namespace}/{name} shows the addresses it holds: {condition}");
    format!("{} {condition}", shown.join(",")).trim().to_owned()
}

/// Settles the cluster, and returns the outcomes of these Services.
fn settle<const N: usize>(world: &mut World, names: [&str; N]) -> [String; N] {
    world.settle();
    names.map(|name| outcome(world, name))
}

const NONE_LEFT: &str = "False PoolsExhausted";

#[test]
fn released_address_goes_to_the_next_service() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [service("a", 1), service("b", 2), service("c", 3)]);
    let all = ["a", "b", "c"];
    assert_eq!(settle(&mut world, all), ["192.0.2.1 True Allocated", NONE_LEFT, NONE_LEFT]);
    world.edit("a", |service| service.is_load_balancer = false);
    assert_eq!(settle(&mut world, all), ["", "192.0.2.1 True Allocated", NONE_LEFT]);
    world.delete("b");
    assert_eq!(settle(&mut world, ["a", "c"]), ["", "192.0.2.1 True Allocated"]);
}

#[test]
fn changed_sharing_service_leaves_until_the_other_follows() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [sharing("a", 1, "k", 80), sharing("b", 2, "k", 443)]);
    for name in ["a", "b"] {
        world.edit(name, |service| service.selector = Labels::from([("app", "web")]));
    }
    let both = ["a", "b"];
    let shared = ["192.0.2.1 True Allocated"; 2];
    assert_eq!(settle(&mut world, both), shared);
    let local = |service: &mut Service| service.traffic_policy = TrafficPolicy::Local;
    world.edit("b", local);
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated", NONE_LEFT]);
    world.edit("a", local);
    assert_eq!(settle(&mut world, both), shared);
    world.edit("a", |service| service.selector = Labels::from([("app", "db")]));
    assert_eq!(settle(&mut world, both), [NONE_LEFT, "192.0.2.1 True Allocated"]);
    world.edit("b", |service| service.selector = Labels::from([("app", "db")]));
    assert_eq!(settle(&mut world, both), shared);
    // A change of the key has the same effect.
    world.edit("b", |service| service.request = request(&[(KEY, "other")]));
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated", NONE_LEFT]);
    world.edit("b", |service| service.request = request(&[(KEY, "k")]));
    assert_eq!(settle(&mut world, both), shared);
    // Without a key, a Service does not share.
    world.edit("a", |service| service.request = request(&[]));
    assert_eq!(settle(&mut world, both), [NONE_LEFT, "192.0.2.1 True Allocated"]);
}

#[test]
fn address_becomes_shared_when_its_service_gets_a_key() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [service("a", 1), sharing("b", 2, "k", 443)]);
    world.edit("a", |service| service.ports = sharing("a", 1, "k", 80).ports);
    let both = ["a", "b"];
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated", NONE_LEFT]);
    world.edit("a", |service| service.request = request(&[(KEY, "k")]));
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
    // The first Service leaves, the second holds the address alone, and a third joins it.
    world.delete("a");
    add(&mut world, sharing("c", 3, "k", 80));
    assert_eq!(settle(&mut world, ["b", "c"]), ["192.0.2.1 True Allocated"; 2]);
    world.delete("b");
    world.delete("c");
    world.settle();
    assert!(world.snapshot.records.is_empty(), "{:?}", world.snapshot.records);
}

#[test]
fn service_leaves_a_shared_address_and_returns() {
    let mut world =
        World::new([pool("lan", 1, &["192.0.2.1-192.0.2.2"])], [sharing("a", 1, "k", 80), sharing("b", 2, "k", 443)]);
    let both = ["a", "b"];
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
    world.edit("b", |service| service.request = request(&[(KEY, "k"), (IPS, "192.0.2.2")]));
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated", "192.0.2.2 True Allocated"]);
    world.edit("b", |service| service.request = request(&[(KEY, "k"), (IPS, "192.0.2.1")]));
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
    // At the requested address, the port of `b` clashes with that of `a`: `b` keeps its own address.
    world.edit("b", |service| {
        service.request = request(&[(KEY, "k"), (IPS, "192.0.2.2")]);
        service.ports = sharing("b", 2, "k", 80).ports;
    });
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated", "192.0.2.2 True Allocated"]);
    world.edit("b", |service| service.request = request(&[(KEY, "k"), (IPS, "192.0.2.1")]));
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated", "192.0.2.2 False SharingConflict"]);
    world.edit("a", |service| service.ports[0].number = 81);
    assert_eq!(settle(&mut world, both), ["192.0.2.1 True Allocated"; 2]);
}

#[test]
fn guessed_key_of_another_namespace_is_refused() {
    let mut guest = sharing("guest", 2, "k", 443);
    guest.key = Key::new("guests", "guest");
    guest.request = request(&[(KEY, "k"), (IPS, "192.0.2.1"), (WITH, "*")]);
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [sharing("a", 1, "k", 80)]);
    world.settle();
    add(&mut world, guest);
    world.settle();
    assert_eq!(outcome_in(&world, "guests", "guest"), "False SharingConflict");
    world.edit("a", |service| service.request = request(&[(KEY, "k"), (WITH, "guests")]));
    world.settle();
    assert_eq!(outcome_in(&world, "guests", "guest"), "192.0.2.1 True Allocated");
    // `a` leaves, not the guest, because `a` has changed: it withdraws its consent.
    world.edit("a", |service| service.request = request(&[(KEY, "k")]));
    world.settle();
    assert_eq!(
        (outcome(&world, "a"), outcome_in(&world, "guests", "guest")),
        (NONE_LEFT.into(), "192.0.2.1 True Allocated".into())
    );
}

#[test]
fn no_kind_of_request_bypasses_a_pool_selector() {
    let allocation = ServiceAllocation { namespaces: vec!["team".into()], ..ServiceAllocation::default() };
    let selective = edited_pool(pool("selective", 1, &["192.0.2.1-192.0.2.9", "2001:db8::1"]), |spec| {
        spec.service_allocation = Some(allocation);
    });
    let mut inside = sharing("inside", 1, "k", 80);
    inside.key.namespace = "team".into();
    inside.request = request(&[(KEY, "k"), (WITH, "*")]);
    let mut world = World::new([selective], [inside]);
    let spellings: [(&[(&str, &str)], &str); 7] = [
        (&[], "False NoAutomaticPool"),
        (&[(POOL, "selective")], "False PoolNotAllowed"),
        (&[("metallb.universe.tf/address-pool", "selective")], "False PoolNotAllowed"),
        (&[(IPS, "192.0.2.5")], "False PoolNotAllowed"),
        (&[("metallb.io/loadBalancerIPs", "192.0.2.5")], "False PoolNotAllowed"),
        (&[(KEY, "k"), (WITH, "*")], "False NoAutomaticPool"),
        (&[(KEY, "k"), (WITH, "*"), (IPS, "192.0.2.1")], "False PoolNotAllowed"),
    ];
    for (index, (annotations, _)) in spellings.iter().enumerate() {
        let mut outside = sharing(&format!("s{index}"), 2, "k", 1000 + index as u16);
        outside.request = request(annotations);
        add(&mut world, outside);
    }
    // A reservation does not bypass the selector either.
    let (address, reserved) = record("192.0.2.7", "", &[]);
    let mut reserved = (*reserved).clone();
    reserved.reservation =
        Some(Box::new(Reservation { namespace: Some("default".into()), service: Some("kept".into()) }));
    world.snapshot.records.insert(address, Arc::new(reserved));
    add(&mut world, service("kept", 3));
    world.settle();
    assert_eq!(outcome_in(&world, "team", "inside"), "192.0.2.1 True Allocated");
    assert_eq!(outcome(&world, "kept"), "False NoAutomaticPool");
    for (index, (annotations, expected)) in spellings.iter().enumerate() {
        assert_eq!(outcome(&world, &format!("s{index}")), *expected, "{annotations:?}");
    }
}

#[test]
fn namespace_keeps_its_addresses_when_it_loses_the_label() {
    let selector = serde_json::json!({"namespaceSelectors": [{"matchLabels": {"team": "a"}}], "priority": 5});
    let allocation: ServiceAllocation = serde_json::from_value(selector).expect("a serviceAllocation");
    let pools = [
        edited_pool(pool("team-a", 2, &["192.0.2.1"]), |spec| spec.service_allocation = Some(allocation)),
        pool("all", 1, &["192.0.2.9"]),
    ];
    let mut world = World::new(pools, []);
    let set_labels = |world: &mut World, labels: Labels| {
        let namespace = Namespace { name: "default".into(), labels };
        world.snapshot.namespaces.insert("default".into(), Arc::new(namespace));
    };
    set_labels(&mut world, Labels::from([("team", "a")]));
    add(&mut world, service("a", 1));
    add(&mut world, service("b", 2));
    assert_eq!(settle(&mut world, ["a", "b"]), ["192.0.2.1 True Allocated", "192.0.2.9 True Allocated"]);
    set_labels(&mut world, Labels::default());
    assert_eq!(settle(&mut world, ["a", "b"]), ["192.0.2.1 True PoolChanged", "192.0.2.9 True Allocated"]);
    world.delete("a");
    add(&mut world, service("c", 3));
    assert_eq!(settle(&mut world, ["b", "c"]), ["192.0.2.9 True Allocated", NONE_LEFT]);
}

#[test]
fn preferred_families_come_from_one_pool_without_moves() {
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};
    let pools = [pool("four", 1, &["192.0.2.1-192.0.2.9"]), pool("both", 2, &["198.51.100.1", "2001:db8::1"])];
    let mut world =
        World::new(pools, [dual("a", 1, [V4, V6], PreferDualStack), dual("b", 2, [V6, V4], PreferDualStack)]);
    assert_eq!(
        settle(&mut world, ["a", "b"]),
        ["198.51.100.1,2001:db8::1 True Allocated", "False PoolsExhausted"],
        "the first family of b is IPv6, which is exhausted"
    );
    world.snapshot.pools.insert("six".into(), pool("six", 3, &["2001:db8:6::1-2001:db8:6::2"]));
    assert_eq!(settle(&mut world, ["b"]), ["2001:db8:6::1,192.0.2.1 True Allocated"]);
    // A later pool with both families moves no Service.
    world.snapshot.pools.insert("later".into(), pool("later", 4, &["203.0.113.1-203.0.113.9", "2001:db8:7::/64"]));
    let before = settle(&mut world, ["a", "b"]);
    assert_eq!(before, ["198.51.100.1,2001:db8::1 True Allocated", "2001:db8:6::1,192.0.2.1 True Allocated"]);
    // A Service that changes to one family and back keeps its first address.
    world.edit("a", |service| (service.families, service.family_policy) = ([V4].into(), SingleStack));
    assert_eq!(settle(&mut world, ["a"]), ["198.51.100.1 True Allocated"]);
    world.edit("a", |service| (service.families, service.family_policy) = ([V4, V6].into(), RequireDualStack));
    assert_eq!(settle(&mut world, ["a"]), ["198.51.100.1,2001:db8::1 True Allocated"]);
}

#[test]
fn required_second_family_is_never_missing() {
    use FamilyPolicy::{PreferDualStack, RequireDualStack};
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [dual("a", 1, [V4, V6], PreferDualStack)]);
    assert_eq!(settle(&mut world, ["a"]), ["192.0.2.1 True Allocated"]);
    world.edit("a", |service| service.family_policy = RequireDualStack);
    assert_eq!(settle(&mut world, ["a"]), ["False DualStackUnavailable"]);
    add(&mut world, service("b", 2));
    assert_eq!(settle(&mut world, ["a", "b"]), [NONE_LEFT, "192.0.2.1 True Allocated"]);
    world.delete("b");
    world.edit("a", |service| service.family_policy = PreferDualStack);
    assert_eq!(settle(&mut world, ["a"]), ["192.0.2.1 True Allocated"]);
    edit_pool(&mut world, "lan", |spec| spec.addresses = ranges(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(
        settle(&mut world, ["a"]),
        ["192.0.2.1,2001:db8::1 True Allocated"],
        "the second family is added, the first address stays"
    );
    edit_pool(&mut world, "lan", |spec| spec.addresses = ranges(&["192.0.2.1"]));
    assert_eq!(settle(&mut world, ["a"]), ["192.0.2.1,2001:db8::1 True PoolGone"]);
    world.edit("a", |service| service.family_policy = RequireDualStack);
    assert_eq!(settle(&mut world, ["a"]), ["192.0.2.1,2001:db8::1 True PoolGone"]);
}

#[test]
fn one_family_by_name_and_the_other_by_default() {
    use FamilyPolicy::RequireDualStack;
    let mut both = dual("a", 1, [V6, V4], RequireDualStack);
    both.request = request(&[(IPS, "192.0.2.7")]);
    let mut world = World::new([pool("lan", 1, &["192.0.2.0/28", "2001:db8::/64"])], [both]);
    assert_eq!(settle(&mut world, ["a"]), ["2001:db8::1,192.0.2.7 True Allocated"]);
    world.edit("a", |service| service.request = request(&[(IPS, "192.0.2.7,2001:db8::,192.0.2.5")]));
    assert_eq!(settle(&mut world, ["a"]), ["2001:db8::,192.0.2.7,192.0.2.5 True Allocated"]);
    world.edit("a", |service| service.request = request(&[(IPS, "192.0.2.5")]));
    assert_eq!(settle(&mut world, ["a"]), ["2001:db8::,192.0.2.5 True Allocated"]);
    // A Service gets all requested addresses, or no new one.
    world.edit("a", |service| service.request = request(&[(IPS, "192.0.2.3,198.51.100.1")]));
    assert_eq!(settle(&mut world, ["a"]), ["2001:db8::,192.0.2.5 False AddressNotInPool"]);
    world.edit("a", |service| {
        (service.families, service.family_policy) = ([V6].into(), FamilyPolicy::SingleStack);
    });
    assert_eq!(settle(&mut world, ["a"])[0].split(' ').next_back(), Some("FamilyMismatch"));
}

#[test]
fn quota_limits_a_namespace_and_counts_shared_addresses_once() {
    let lan = edited_pool(pool("lan", 1, &["192.0.2.1-192.0.2.9"]), |spec| spec.max_per_namespace = Some(2));
    let mut other = service("other", 9);
    other.key.namespace = "other".into();
    let services = [
        sharing("a", 1, "k", 80),
        sharing("b", 2, "k", 443),
        service("c", 3),
        service("d", 4),
        annotated_service("e", 5, &[(IPS, "192.0.2.7")]),
    ];
    let mut world = World::new([lan], services.into_iter().chain([other]));
    let quota = "False NamespaceQuota";
    // Services that request an address by name come first.
    assert_eq!(
        settle(&mut world, ["a", "b", "c", "d", "e"]),
        ["192.0.2.1 True Allocated", "192.0.2.1 True Allocated", quota, quota, "192.0.2.7 True Allocated"]
    );
    assert_eq!(outcome_in(&world, "other", "other"), "192.0.2.2 True Allocated");
    add(&mut world, annotated_service("named", 6, &[(IPS, "192.0.2.9")]));
    assert_eq!(settle(&mut world, ["named"]), [quota]);
    world.delete("named");
    // A Service may exchange its address for another one, even if the quota is used up.
    world.edit("e", |service| service.request = request(&[(IPS, "192.0.2.8")]));
    assert_eq!(settle(&mut world, ["e"]), ["192.0.2.8 True Allocated"]);
    world.delete("e");
    assert_eq!(settle(&mut world, ["c", "d"]), ["192.0.2.3 True Allocated", quota]);
    edit_pool(&mut world, "lan", |spec| spec.max_per_namespace = Some(1));
    let kept = settle(&mut world, ["a", "b", "c"]);
    assert!(kept.iter().all(|kept| kept.ends_with("True Allocated")), "{kept:?}");
}

#[test]
fn reservation_serves_its_service_and_outlives_it() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.1-192.0.2.3"])], []);
    let reserve = |world: &mut World, address: &str, reservation: Option<Reservation>| {
        let (address, reserved) = record(address, "", &[]);
        let mut reserved = (*reserved).clone();
        reserved.reservation = reservation.map(Box::new);
        world.snapshot.records.insert(address, Arc::new(reserved));
    };
    let named = |service: &str| Reservation { namespace: Some("default".into()), service: Some(service.into()) };
    reserve(&mut world, "192.0.2.1", None);
    reserve(&mut world, "192.0.2.2", Some(named("kept")));
    add(&mut world, service("any", 1));
    add(&mut world, service("late", 2));
    add(&mut world, service("kept", 3));
    add(&mut world, annotated_service("thief", 4, &[(IPS, "192.0.2.2")]));
    assert_eq!(
        settle(&mut world, ["any", "late", "kept", "thief"]),
        ["192.0.2.3 True Allocated", NONE_LEFT, "192.0.2.2 True Allocated", "False AddressReserved"]
    );
    world.edit("late", |service| service.request = request(&[(IPS, "192.0.2.1")]));
    assert_eq!(settle(&mut world, ["late"]), ["192.0.2.1 True Allocated"]);
    let used = &world.snapshot.records[&ip("192.0.2.1")];
    assert_eq!((used.pool.as_str(), &used.reservation), ("lan", &Some(Box::default())));
    world.delete("late");
    world.delete("kept");
    world.settle();
    let left: Vec<_> = world.snapshot.records.values().map(|record| (record.address, record.holders.len())).collect();
    assert_eq!(left, [(ip("192.0.2.1"), 0), (ip("192.0.2.2"), 0), (ip("192.0.2.3"), 1)]);
    let status = world.snapshot.pools["lan"].status.as_ref().expect("a status");
    assert_eq!((status.assigned_ipv4, status.available_ipv4), (3, 0));
    // Recreated under the same name, the Service gets the same address.
    let mut again = service("kept", 9);
    again.uid = "again".into();
    add(&mut world, again);
    assert_eq!(settle(&mut world, ["kept", "thief"]), ["192.0.2.2 True Allocated", "False AddressReserved"]);
}

#[test]
fn draining_pool_assigns_nothing_until_it_is_empty() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.1-192.0.2.9"])], [service("a", 1), sharing("b", 2, "k", 80)]);
    world.settle();
    edit_pool(&mut world, "lan", |spec| spec.drain = true);
    add(&mut world, service("any", 3));
    add(&mut world, annotated_service("named", 4, &[(IPS, "192.0.2.9")]));
    add(&mut world, annotated_service("pool", 5, &[(POOL, "lan")]));
    add(&mut world, sharing("joins", 6, "k", 443));
    assert_eq!(
        settle(&mut world, ["a", "b", "any", "named", "pool", "joins"]),
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
    let moved = settle(&mut world, ["a", "any", "joins"]);
    assert!(moved.iter().all(|outcome| outcome.starts_with("198.51.100.")), "{moved:?}");
    assert_eq!(drained(&world), ("True".into(), vec![]));
}

#[test]
fn changes_around_an_assigned_address_are_reported() {
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
        let mut world = World::new([lan()], [service("a", 1)]);
        world.settle();
        change(&mut world);
        assert_eq!(settle(&mut world, ["a"]), [format!("192.0.2.1 {reason}")]);
    }
}

#[test]
fn service_moves_on_request_and_stays_when_refused() {
    let pools = [pool("a", 1, &["192.0.2.1"]), pool("b", 2, &["198.51.100.1"])];
    let mut world = World::new(pools, [service("web", 1)]);
    assert_eq!(settle(&mut world, ["web"]), ["192.0.2.1 True Allocated"]);
    for (annotations, expected) in [
        (&[(POOL, "b")][..], "198.51.100.1 True Allocated"),
        (&[], "198.51.100.1 True Allocated"),
        (&[(POOL, "a")], "192.0.2.1 True Allocated"),
        (&[(POOL, "c")], "192.0.2.1 False PoolNotFound"),
        (&[(POOL, "b"), (IPS, "192.0.2.1")], "192.0.2.1 False AddressNotInPool"),
        (&[(POOL, "b"), (IPS, "198.51.100.1")], "198.51.100.1 True Allocated"),
        (&[(IPS, "192.0.2.1"), ("metallb.io/loadBalancerIPs", "192.0.2.2")], "198.51.100.1 False InvalidRequest"),
    ] {
        world.edit("web", |service| service.request = request(annotations));
        assert_eq!(settle(&mut world, ["web"]), [expected], "{annotations:?}");
    }
}

#[test]
fn recreated_service_joins_its_shared_address_again() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [sharing("a", 1, "k", 80), sharing("b", 2, "k", 443)]);
    world.settle();
    let mut again = sharing("a", 9, "k", 80);
    again.uid = "again".into();
    add(&mut world, again);
    assert_eq!(settle(&mut world, ["a", "b"]), ["192.0.2.1 True Allocated"; 2]);
    let holders: Vec<_> = world.snapshot.records[&ip("192.0.2.1")].holders.iter().map(|h| h.uid.as_str()).collect();
    assert_eq!(holders, ["again", "b"], "in the place of the former Service");
}

#[test]
fn shared_address_is_left_before_the_status_is_cleared() {
    for by_type in [false, true] {
        let mut world =
            World::new([pool("lan", 1, &["192.0.2.1"])], [sharing("a", 1, "k", 80), sharing("b", 2, "k", 443)]);
        world.settle();
        if by_type {
            world.edit("a", |service| service.is_load_balancer = false);
        } else {
            world.delete("a");
            let [series] = crate::snapshot::plan(&world.snapshot).series.try_into().expect("one series");
            assert_eq!(series.subject, crate::plan::effect::Subject::Record(ip("192.0.2.1")));
        }
        world.settle();
        assert_eq!(outcome(&world, "b"), "192.0.2.1 True Allocated");
        let a = world.snapshot.services.get(&World::key("a"));
        assert_eq!(a.map(|a| (a.finalizers.len(), a.conditions.len())), by_type.then_some((0, 0)));
    }
}
