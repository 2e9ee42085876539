//! What is planned for each thing that a Service may ask for, or that may become of its pool: case by case. What any
//! history of them comes to is in [`crate::history`].

use super::*;
use crate::fixtures::{asking, at, ip, node, pool, request_of, service};
use crate::world::{Seen, World, shows};
use crds::ip_address_pool::AddressRange;
use crds::request::Consent;
use crds::service::{ALLOCATED, Family};
use crds::{
    FamilyPolicy, IPAddressPool, Key, Labels, Namespace, Network, Port, Protocol, Request, Reservation,
    ServiceAllocation, TrafficPolicy,
};
use std::net::IpAddr;

fn edited(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut crds::IPAddressPoolSpec)) -> Arc<IPAddressPool> {
    edit(&mut Arc::make_mut(&mut pool).spec);
    pool
}

fn lan() -> Arc<IPAddressPool> {
    pool("lan", 1, &["192.0.2.10-192.0.2.12"])
}

fn both() -> Arc<IPAddressPool> {
    pool("both", 2, &["192.0.2.20-192.0.2.21", "2001:db8::20-2001:db8::21"])
}

/// A Service that asks for this, in annotations.
fn wanting(name: &str, created: i64, edit: impl FnOnce(&mut Request)) -> Service {
    let mut service = service(name, created);
    edit(request_of(&mut service));
    service
}

fn of_families(mut service: Service, families: &[Family], policy: FamilyPolicy) -> Service {
    (service.families, service.family_policy) = (families.into(), policy);
    service
}

/// A Service that shares under `k` with that port.
fn sharing(name: &str, created: i64, port: u16) -> Service {
    let mut service = wanting(name, created, |request| request.sharing_key = Some("k".into()));
    service.ports = vec![Port { name: "".into(), protocol: Protocol::Tcp, number: port, node_port: None }];
    service
}

fn ingress(world: &World, name: &str) -> Vec<String> {
    world.seen(name).ingress
}

fn condition(world: &World, name: &str) -> String {
    world.seen(name).condition.unwrap_or_default()
}

/// The reason of a condition.
fn reason(world: &World, name: &str) -> String {
    let condition = condition(world, name);
    condition.split(':').next().unwrap_or_default().to_owned()
}

/// Who holds an address, by name, and under which key.
fn holders(world: &World, address: &str) -> (Vec<String>, Option<String>) {
    let record = &world.snapshot.addresses[&ip(address)];
    (
        record.holders.iter().map(|holder| holder.name.to_string()).collect(),
        record.sharing_key.clone().map(String::from),
    )
}

fn set_pool(world: &mut World, pool: Arc<IPAddressPool>) {
    let name = pool.metadata.name.clone().expect("a name");
    world.snapshot.pools.insert(name, pool);
}

const V4_V6: &[Family] = &[Family::V4, Family::V6];

#[test]
fn services_with_one_key_share_an_address_also_when_they_are_new_at_once() {
    let mut world = World::with([lan()], [sharing("a", 1, 80), sharing("b", 2, 443), sharing("c", 3, 80)]);
    world.settle();
    let shown = ["a", "b", "c"].map(|name| ingress(&world, name));
    assert_eq!(shown, [["192.0.2.10"], ["192.0.2.10"], ["192.0.2.11"]], "two have the same port");
    assert_eq!(holders(&world, "192.0.2.10"), (vec!["a".into(), "b".into()], Some("k".into())));
    assert_eq!(world.seen("b"), Seen::has("192.0.2.10", "lan"));
}

#[test]
fn a_service_that_stops_fitting_loses_the_address_and_the_others_keep_it() {
    let named = |mut service: Service| {
        request_of(&mut service).addresses = vec![ip("192.0.2.10")];
        service
    };
    let mut world = World::with([lan()], [named(sharing("a", 1, 80)), named(sharing("b", 2, 443))]);
    world.settle();
    // `a` came first, and it is `a` that changes.
    world.edit("a", |service| service.traffic_policy = TrafficPolicy::Local);
    world.settle();
    let refused = "False SharingConflict: 192.0.2.10 can't be shared with Service default/b, which has another \
                   spec.externalTrafficPolicy, or both are Local and not in one namespace with one spec.selector; ask for \
                   another address, or make them fit";
    assert_eq!(world.seen("a"), Seen { condition: Some(refused.into()), ..Seen::nothing() });
    assert_eq!(world.seen("b"), Seen::has("192.0.2.10", "lan"));
    let local = |service: &mut Service| {
        (service.traffic_policy, service.selector) = (TrafficPolicy::Local, [("app", "web")].into());
    };
    world.edit("a", local);
    world.edit("b", local);
    world.settle();
    assert_eq!(["a", "b"].map(|name| ingress(&world, name)), [["192.0.2.10"], ["192.0.2.10"]]);
    assert_eq!(holders(&world, "192.0.2.10").0, ["b", "a"], "in the order in which they came to it");
}

#[test]
fn services_of_two_namespaces_share_when_both_agree() {
    let mut far = sharing("far", 2, 443);
    far.key = Key::new("away", "far");
    let key = far.key.clone();
    let mut world = World::with([lan()], [sharing("web", 1, 80), far]);
    world.settle();
    assert_eq!(world.seen_key(&key).ingress, ["192.0.2.11"]);
    let agree = |service: &mut Service| request_of(service).consent = Consent::Everybody;
    world.edit("web", agree);
    world.settle();
    world.edit_key(&key, |service| {
        agree(service);
        request_of(service).addresses = vec![ip("192.0.2.10")];
    });
    world.settle();
    assert_eq!((world.seen_key(&key).ingress, world.snapshot.addresses.len()), (vec!["192.0.2.10".into()], 1));
}

#[test]
fn who_has_no_key_or_another_is_refused_a_shared_address() {
    let stranger = Service { request: asking("192.0.2.10"), ..service("stranger", 3) };
    let other = wanting("other", 4, |request| {
        (request.sharing_key, request.addresses) = (Some("l".into()), vec![ip("192.0.2.10")]);
    });
    let mut world = World::with([lan()], [sharing("a", 1, 80), stranger, other]);
    world.edit("a", |service| request_of(service).addresses = vec![ip("192.0.2.10")]);
    world.settle();
    assert_eq!(ingress(&world, "a"), ["192.0.2.10"]);
    assert_eq!(reason(&world, "stranger"), "False AddressInUse");
    assert_eq!(reason(&world, "other"), "False SharingConflict");
}

#[test]
fn the_last_of_those_who_share_takes_the_address_along() {
    let mut world = World::with([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
    world.settle();
    world.delete("a");
    world.settle();
    assert_eq!((holders(&world, "192.0.2.10").0, ingress(&world, "b")), (vec!["b".into()], vec!["192.0.2.10".into()]));
    world.edit("b", |service| service.is_load_balancer = false);
    let version = world.snapshot.addresses[&ip("192.0.2.10")].resource_version;
    let uid = world.snapshot.addresses[&ip("192.0.2.10")].uid.clone();
    let delete = Effect::Delete { address: ip("192.0.2.10"), uid, resource_version: Some(version) };
    assert_eq!(plan(&world.snapshot).series[0].effects, [delete], "somebody may come to it meanwhile");
    world.settle();
    assert_eq!((world.seen("b"), world.snapshot.addresses.len()), (Seen::nothing(), 0));
}

#[test]
fn a_service_that_leaves_a_shared_address_for_another_shows_that_one_first() {
    let mut world = World::with([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
    world.settle();
    world.edit("b", |service| {
        request_of(service).addresses = vec![ip("192.0.2.12")];
        service.ports[0].number = 8443;
    });
    for (shown, holding) in [("192.0.2.10", vec!["a", "b"]), ("192.0.2.12", vec!["a", "b"]), ("192.0.2.12", vec!["a"])]
    {
        assert_eq!(ingress(&world, "b"), [shown]);
        assert_eq!(holders(&world, "192.0.2.10").0, holding);
        for effect in plan(&world.snapshot).series.iter().flat_map(|series| &series.effects) {
            world.apply(effect);
        }
    }
}

#[test]
fn both_families_come_from_the_first_pool_that_has_both_and_else_from_the_first_that_has_each() {
    let web = || of_families(service("web", 5), V4_V6, FamilyPolicy::RequireDualStack);
    let mut world = World::with([lan(), both()], [web()]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.20", "2001:db8::20"]);
    assert_eq!(condition(&world, "web"), "True Allocated: 192.0.2.20 from pool both, 2001:db8::20 from pool both");
    let six = pool("six", 3, &["2001:db8::1-2001:db8::2"]);
    let mut world = World::with([lan(), six], [of_families(web(), &[Family::V6, Family::V4], web().family_policy)]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["2001:db8::1", "192.0.2.10"], "in the order of its families");
}

#[test]
fn a_second_family_comes_and_goes_and_the_first_address_stays() {
    let mut world = World::with([lan(), both()], [service("web", 5)]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.10"]);
    for (families, policy, shown) in [
        (V4_V6, FamilyPolicy::PreferDualStack, &["192.0.2.10", "2001:db8::20"][..]),
        (V4_V6, FamilyPolicy::RequireDualStack, &["192.0.2.10", "2001:db8::20"]),
        (&V4_V6[..1], FamilyPolicy::SingleStack, &["192.0.2.10"]),
    ] {
        world.edit("web", |service| (service.families, service.family_policy) = (families.into(), policy));
        world.settle();
        assert_eq!(ingress(&world, "web"), shown, "{policy:?}");
    }
}

#[test]
fn a_second_family_is_from_the_pool_of_the_first_if_that_has_it() {
    let older = pool("older", 1, &["2001:db8::1-2001:db8::2"]);
    let web = wanting("web", 5, |request| request.addresses = vec![ip("192.0.2.21")]);
    let mut world = World::with([older, both()], [web]);
    world.settle();
    world.edit("web", |service| {
        (service.families, service.family_policy) = (V4_V6.into(), FamilyPolicy::PreferDualStack)
    });
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.21", "2001:db8::20"]);
}

#[test]
fn who_requires_both_families_never_has_half_of_that() {
    let mut world = World::with([lan()], [of_families(service("web", 5), V4_V6, FamilyPolicy::PreferDualStack)]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.10"]);
    world.edit("web", |service| service.family_policy = FamilyPolicy::RequireDualStack);
    world.settle();
    assert_eq!((reason(&world, "web"), world.seen("web").held), ("False DualStackUnavailable".into(), vec![]));
    assert!(!world.seen("web").has_finalizer);
    world.edit("web", |service| service.family_policy = FamilyPolicy::PreferDualStack);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.10"]);
    set_pool(&mut world, both());
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.10", "2001:db8::20"], "it got what it lacked");
}

#[test]
fn all_addresses_that_a_service_names_are_given_or_none() {
    let asks = |last: &str| {
        let request = Request { addresses: ["192.0.2.21", last, "2001:db8::21"].map(ip).into(), ..Request::default() };
        of_families(Service { request: Ok(request.into()), ..service("web", 5) }, V4_V6, FamilyPolicy::PreferDualStack)
    };
    let mut world = World::with([both()], [asks("192.0.2.20")]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.21", "192.0.2.20", "2001:db8::21"]);
    let mut world = World::with([both()], [asks("192.0.2.99")]);
    world.settle();
    assert_eq!((reason(&world, "web"), world.snapshot.addresses.len()), ("False AddressNotInPool".into(), 0));
}

#[test]
fn a_service_that_asks_for_another_pool_moves_there_before_it_leaves() {
    let mut world = World::with([lan(), both()], [service("web", 5)]);
    world.settle();
    world.edit("web", |service| request_of(service).pool = Some("gone".into()));
    world.settle();
    let refused = "False PoolNotFound: there is no IPAddressPool gone: ask for another, or leave landfall.dev/address-pool \
                   out; it keeps 192.0.2.10 until then";
    assert_eq!(world.seen("web"), Seen { condition: Some(refused.into()), ..Seen::has("192.0.2.10", "lan") });
    world.edit("web", |service| request_of(service).pool = Some("both".into()));
    let effects: Vec<_> = plan(&world.snapshot).series[0].effects.iter().map(Effect::address).collect();
    assert_eq!(effects, [Some(ip("192.0.2.20")), None, None, Some(ip("192.0.2.10"))]);
    world.settle();
    assert_eq!(world.seen("web"), Seen::has("192.0.2.20", "both"));
    // And what it has it keeps, whatever becomes of that pool.
    set_pool(&mut world, pool("both", 2, &["192.0.2.200-192.0.2.201"]));
    world.settle();
    assert_eq!((ingress(&world, "web"), reason(&world, "web")), (vec!["192.0.2.20".into()], "True PoolGone".into()));
}

#[test]
fn a_reservation_is_used_by_who_asks_and_outlives_them() {
    let asks = Service { request: asking("192.0.2.11"), ..service("asks", 5) };
    let mut world = World::with([lan()], [asks, service("any", 1)]);
    world.reserve(ip("192.0.2.10"), None);
    world.reserve(ip("192.0.2.11"), None);
    world.settle();
    assert_eq!(world.seen("any"), Seen::has("192.0.2.12", "lan"), "what is reserved is not free");
    assert_eq!(world.seen("asks"), Seen::has("192.0.2.11", "lan"));
    let record = world.snapshot.addresses[&ip("192.0.2.11")].clone();
    assert_eq!((record.pool.as_str(), &record.reservation), ("lan", &Some(Box::default())));
    world.delete("asks");
    world.settle();
    assert_eq!(holders(&world, "192.0.2.11"), (vec![], None));
    assert_eq!(world.snapshot.services.len(), 1);
}

#[test]
fn a_reservation_for_somebody_is_for_nobody_else_and_for_a_service_it_needs_no_asking() {
    let asks = Service { request: asking("192.0.2.10"), ..service("asks", 5) };
    let of_namespace = |name: &str| Some(Reservation { namespace: Some(name.into()), service: None });
    let mut world = World::with([lan()], [asks.clone(), service("web", 9), service("any", 1)]);
    world.reserve(ip("192.0.2.10"), of_namespace("away"));
    let service = Some("web".into());
    world.reserve(ip("192.0.2.12"), Some(Reservation { service, ..of_namespace("default").expect("one") }));
    world.settle();
    assert_eq!(reason(&world, "asks"), "False AddressReserved");
    assert_eq!(ingress(&world, "web"), ["192.0.2.12"], "it is kept for it");
    assert_eq!(ingress(&world, "any"), ["192.0.2.11"]);
    let mut world = World::with([lan()], [asks]);
    world.reserve(ip("192.0.2.10"), of_namespace("default"));
    world.settle();
    assert_eq!(world.seen("asks"), Seen::has("192.0.2.10", "lan"));
}

#[test]
fn a_fence_is_passed_by_no_spelling_of_a_request() {
    let fenced = edited(pool("fenced", 1, &["192.0.2.30-192.0.2.31"]), |spec| {
        spec.service_allocation =
            Some(ServiceAllocation { namespaces: vec!["team".into()], ..ServiceAllocation::default() });
    });
    let by_address = Service { request: asking("192.0.2.30"), ..service("by-address", 1) };
    let by_pool = wanting("by-pool", 2, |request| request.pool = Some("fenced".into()));
    let mut sharing_there = sharing("inside", 3, 80);
    sharing_there.key.namespace = "team".into();
    request_of(&mut sharing_there).consent = Consent::Everybody;
    let mut by_key = sharing("by-key", 4, 443);
    request_of(&mut by_key).consent = Consent::Everybody;
    let mut world = World::with([fenced.clone()], [by_address, by_pool, sharing_there, by_key, service("any", 5)]);
    world.reserve(
        ip("192.0.2.31"),
        Some(Reservation { namespace: Some("default".into()), service: Some("any".into()) }),
    );
    world.settle();
    assert_eq!(world.seen_key(&Key::new("team", "inside")).ingress, ["192.0.2.30"]);
    for name in ["by-address", "by-pool"] {
        assert_eq!(reason(&world, name), "False PoolNotAllowed", "{name}");
    }
    for name in ["by-key", "any"] {
        assert_eq!(reason(&world, name), "False NoAutomaticPool", "{name}");
    }
}

#[test]
fn pools_are_tried_by_priority_and_a_label_of_the_namespace_opens_one() {
    let with = |name: &str, created, address: &str, priority, team: bool| {
        edited(pool(name, created, &[address]), |spec| {
            let selectors = if team {
                vec![serde_json::from_value(serde_json::json!({"matchLabels": {"team": "a"}})).expect("a selector")]
            } else {
                vec![]
            };
            let namespace_selectors = selectors;
            spec.service_allocation =
                Some(ServiceAllocation { priority, namespace_selectors, ..ServiceAllocation::default() });
        })
    };
    let pools = [
        pool("general", 1, &["192.0.2.1"]),
        with("twenty", 2, "192.0.2.2", 20, false),
        with("ten", 3, "192.0.2.3", 10, false),
        with("team", 4, "192.0.2.4", 1, true),
        with("last", 5, "192.0.2.5", 0, false),
    ];
    let mut world = World::with(pools, (1..=5).map(|n| service(&format!("s{n}"), n)));
    world.settle();
    let shown: Vec<_> = (1..=5).flat_map(|n| ingress(&world, &format!("s{n}"))).collect();
    assert_eq!(shown, ["192.0.2.3", "192.0.2.2", "192.0.2.5", "192.0.2.1"]);
    assert_eq!(reason(&world, "s5"), "False PoolsExhausted");
    let labels = Labels::from([("team", "a")]);
    let namespace = Namespace { name: "default".into(), labels };
    world.snapshot.namespaces.insert("default".into(), Arc::new(namespace));
    world.settle();
    assert_eq!(ingress(&world, "s5"), ["192.0.2.4"]);
    // And when the label goes, what was given stays.
    world.snapshot.namespaces.clear();
    world.settle();
    assert_eq!((ingress(&world, "s5"), reason(&world, "s5")), (vec!["192.0.2.4".into()], "True PoolChanged".into()));
}

#[test]
fn a_namespace_has_no_more_addresses_than_its_quota_and_a_shared_one_counts_once() {
    let limited = edited(lan(), |spec| spec.max_per_namespace = Some(1));
    let mut far = service("far", 9);
    far.key.namespace = "away".into();
    let named = Service { request: asking("192.0.2.12"), ..service("named", 4) };
    let mut world = World::with([limited], [sharing("a", 1, 80), sharing("b", 2, 443), service("c", 3), far]);
    world.settle();
    assert_eq!(["a", "b"].map(|name| ingress(&world, name)), [["192.0.2.10"], ["192.0.2.10"]]);
    world.snapshot.services.insert(named.key.clone(), Arc::new(named));
    world.settle();
    assert_eq!(["c", "named"].map(|name| reason(&world, name)), ["False NamespaceQuota"; 2]);
    world.delete("named");
    assert_eq!(world.seen_key(&Key::new("away", "far")).ingress, ["192.0.2.11"]);
    world.delete("a");
    world.delete("b");
    world.settle();
    assert_eq!(ingress(&world, "c"), ["192.0.2.10"]);
    world.edit("c", |service| service.request = asking("192.0.2.12"));
    world.settle();
    assert_eq!(ingress(&world, "c"), ["192.0.2.12"], "one that moves needs no more than it has");
}

#[test]
fn a_pool_that_drains_gives_nothing_more_and_takes_nothing_away() {
    let mut world = World::with([lan()], [service("web", 1)]);
    world.settle();
    set_pool(&mut world, edited(lan(), |spec| spec.drain = true));
    for new in [
        service("any", 2),
        Service { request: asking("192.0.2.12"), ..service("by-address", 3) },
        wanting("by-pool", 4, |request| request.pool = Some("lan".into())),
    ] {
        world.snapshot.services.insert(new.key.clone(), Arc::new(new));
    }
    world.settle();
    assert_eq!(
        (ingress(&world, "web"), reason(&world, "web")),
        (vec!["192.0.2.10".into()], "True PoolDraining".into())
    );
    assert_eq!(reason(&world, "any"), "False NoAutomaticPool");
    assert_eq!(["by-address", "by-pool"].map(|name| reason(&world, name)), ["False PoolDraining"; 2]);
    let status = world.snapshot.pools["lan"].status.clone().expect("a status");
    assert_eq!(status.held_by, ["default/web"]);
}

#[test]
fn what_a_pool_leaves_out_is_given_to_nobody_and_its_ends_only_by_name() {
    let lan = edited(pool("lan", 1, &["192.0.2.0/29"]), |spec| {
        spec.exclude = vec![AddressRange("192.0.2.1".into())];
        spec.avoid_buggy_ips = true;
    });
    let asks = |name: &str, last: &str| Service { request: asking(&format!("192.0.2.{last}")), ..service(name, 1) };
    let services =
        [asks("excluded", "1"), asks("buggy", "0"), asks("node", "2"), asks("gateway", "3"), asks("end", "7")];
    let mut world = World::with([lan], services.into_iter().chain([service("any", 1)]));
    world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.2"));
    let network = Network { addresses: vec![], gateways: vec![ip("192.0.2.3")] };
    world.snapshot.networks.insert("n1".into(), Arc::new(network));
    world.settle();
    assert_eq!(["end", "any"].map(|name| ingress(&world, name)), [["192.0.2.7"], ["192.0.2.4"]]);
    assert_eq!(["excluded", "buggy"].map(|name| reason(&world, name)), ["False AddressExcluded"; 2]);
    let in_use = "False AddressInUse: 192.0.2.3 is the address of the gateway of node n1; ask for another address, or \
                  leave it out";
    assert_eq!((reason(&world, "node"), condition(&world, "gateway")), ("False AddressInUse".into(), in_use.into()));
}

#[test]
fn a_node_that_comes_with_a_services_address_takes_nothing_away_and_is_warned_of() {
    let mut world = World::with([lan()], [service("web", 1)]);
    world.settle();
    world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.10"));
    world.settle();
    let said = "True NodeHasAddress: 192.0.2.10 is the address of node n1 as well, and the Service keeps it: to have \
                another one, ask for it in landfall.dev/load-balancer-ips or landfall.dev/address-pool";
    assert_eq!(condition(&world, "web"), said);
    let told: Vec<_> = world.events.iter().map(|event| (event.reason, event.is_warning)).collect();
    assert_eq!(told, [("IPAllocated", false), ("NodeHasAddress", true)]);
}

#[test]
fn a_condition_says_for_which_generation_it_is_and_that_is_no_news() {
    let mut world = World::with([lan()], [Service { generation: Some(3), ..service("web", 1) }]);
    world.settle();
    let generation = |world: &World| {
        let condition = world.service("web").conditions.iter().find(|condition| condition.type_ == ALLOCATED).cloned();
        condition.and_then(|condition| condition.observed_generation)
    };
    assert_eq!(generation(&world), Some(3));
    world.edit("web", |service| service.generation = Some(4));
    world.settle();
    assert_eq!((generation(&world), world.events.len()), (Some(4), 1));
}

/// Tells a ledger all that is, and does what it plans until nothing is left to do. What each plan was about.
fn follow(ledger: &mut Ledger, world: &mut World) -> Vec<Vec<String>> {
    let mut plans = Vec::new();
    loop {
        let snapshot = world.snapshot.clone();
        snapshot.pools.iter().for_each(|(name, pool)| {
            if ledger.pools.get(name).is_none_or(|known| known.object != *pool) {
                ledger.set_pool(name, Some(pool.clone()));
            }
        });
        let keys: Vec<_> = ledger.services.keys().chain(snapshot.services.keys()).cloned().collect();
        for key in keys {
            let service = snapshot.services.get(&key);
            if ledger.services.get(&key) != service {
                ledger.set_service(&key, service.cloned(), false);
            }
        }
        let addresses: Vec<IpAddr> = ledger.addresses.keys().chain(snapshot.addresses.keys()).copied().collect();
        for address in addresses {
            let record = snapshot.addresses.get(&address);
            if ledger.addresses.get(&address) != record {
                ledger.set_address(address, record.cloned(), false, snapshot.now);
            }
        }
        let plan = ledger.plan(snapshot.now);
        if plan.series.is_empty() {
            return plans;
        }
        plans.push(plan.series.iter().map(|series| series.subject.to_string()).collect());
        for series in plan.series {
            ledger.begins(&series);
            for effect in &series.effects {
                world.apply(effect);
            }
            ledger.ended(&series.subject);
        }
    }
}

#[test]
fn a_freed_address_rests_for_others_and_waits_for_its_service_to_come_back() {
    let mut world = World::with([lan()], [service("web", 1)]);
    world.snapshot.now = at(100);
    let mut ledger = Ledger::new(true);
    follow(&mut ledger, &mut world);
    world.delete("web");
    follow(&mut ledger, &mut world);
    for (second, name, expected) in [(110, "other", "192.0.2.11"), (120, "web", "192.0.2.10")] {
        world.snapshot.now = at(second);
        let mut new = service(name, second);
        new.uid = format!("{name}-again").into();
        world.snapshot.services.insert(new.key.clone(), Arc::new(new));
        follow(&mut ledger, &mut world);
        assert_eq!(ingress(&world, name), [expected]);
    }
    world.delete("web");
    follow(&mut ledger, &mut world);
    world.snapshot.now = at(181);
    let late = service("late", 181);
    world.snapshot.services.insert(late.key.clone(), Arc::new(late));
    follow(&mut ledger, &mut world);
    assert_eq!(ingress(&world, "late"), ["192.0.2.10"], "it has rested");
    // Also where an older pool would have one for it.
    world.delete("late");
    follow(&mut ledger, &mut world);
    set_pool(&mut world, pool("older", 0, &["192.0.2.200-192.0.2.201"]));
    let again = Service { uid: "late-again".into(), ..service("late", 182) };
    world.snapshot.services.insert(again.key.clone(), Arc::new(again));
    follow(&mut ledger, &mut world);
    assert_eq!(ingress(&world, "late"), ["192.0.2.10"]);
}

#[test]
fn a_plan_is_about_what_has_changed_and_about_nothing_else() {
    let wide = pool("wide", 1, &["10.0.0.0/16"]);
    let mut world = World::with([wide], (0..200).map(|n| service(&format!("s{n:03}"), n)));
    let mut ledger = Ledger::new(true);
    let plans = follow(&mut ledger, &mut world);
    assert_eq!((plans.len(), plans[0].len()), (1, 201));
    world.edit("s007", |service| service.ingress = shows("198.51.100.1"));
    assert_eq!(follow(&mut ledger, &mut world), [["Service default/s007"]]);
    let new = service("new", 500);
    world.snapshot.services.insert(new.key.clone(), Arc::new(new));
    assert_eq!(follow(&mut ledger, &mut world), [["Service default/new", "IPAddressPool wide"]]);
    assert_eq!(follow(&mut ledger, &mut world), Vec::<Vec<String>>::new());
}

#[test]
fn who_is_to_come_to_an_address_does_not_if_its_holder_changes_first() {
    let mut world = World::with([lan()], [sharing("a", 1, 80)]);
    world.settle();
    let mut ledger = Ledger::of(&world.snapshot);
    ledger.plan(at(1));
    let b = Arc::new(sharing("b", 2, 443));
    ledger.set_service(&b.key, Some(b.clone()), false);
    let address = Subject::Address(ip("192.0.2.10"));
    let planned = ledger.plan(at(1));
    assert_eq!(planned.series.iter().map(|series| &series.subject).collect::<Vec<_>>(), [&address]);
    world.edit("a", |service| service.ports[0].number = 443);
    ledger.set_service(&World::key("a"), Some(Arc::new(world.service("a").clone())), false);
    // Even if nobody had looked at `b` again.
    let Some(Effect::PatchAddress(patch)) = ledger.tidied(ip("192.0.2.10"), at(9)) else { panic!("new terms") };
    assert_eq!(patch.holders.iter().map(|holder| holder.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let again = ledger.plan(at(2));
    let of_b = again.series.iter().find(|series| series.subject == Subject::Service(b.key.clone())).expect("a series");
    assert_eq!(of_b.effects[0].address(), Some(ip("192.0.2.11")));
}

#[test]
fn nobody_comes_to_an_address_whose_deletion_is_under_way() {
    let mut world = World::with([lan()], [service("a", 1)]);
    world.settle();
    let mut ledger = Ledger::of(&world.snapshot);
    ledger.plan(at(1));
    let tell = |ledger: &mut Ledger, world: &World, name: &str| {
        ledger.set_service(&World::key(name), Some(Arc::new(world.service(name).clone())), false);
    };
    world.edit("a", |service| service.is_load_balancer = false);
    tell(&mut ledger, &world, "a");
    let release = ledger.plan(at(1)).series.remove(0);
    assert_eq!(release.effects[0].address(), Some(ip("192.0.2.10")));
    ledger.begins(&release);
    // It changes its mind, and somebody else would share with it now.
    world.edit("a", |service| *service = Service { uid: "a".into(), ..sharing("a", 1, 80) });
    let mut b = sharing("b", 2, 443);
    request_of(&mut b).addresses = vec![ip("192.0.2.10")];
    world.snapshot.services.insert(b.key.clone(), Arc::new(b));
    tell(&mut ledger, &world, "a");
    tell(&mut ledger, &world, "b");
    let touched: Vec<_> =
        ledger.plan(at(2)).series.iter().flat_map(|s| &s.effects).filter_map(Effect::address).collect();
    assert_eq!(touched, Vec::<IpAddr>::new());
}

#[test]
fn what_is_promised_to_one_is_given_to_nobody_else_before_it_is_written() {
    let mut world = World::with([lan()], [service("one", 1)]);
    let mut ledger = Ledger::of(&world.snapshot);
    let first = ledger.plan(at(1));
    assert_eq!(first.series[0].effects[0].address(), Some(ip("192.0.2.10")));
    let two = Arc::new(service("two", 2));
    world.snapshot.services.insert(two.key.clone(), two.clone());
    ledger.set_service(&two.key, Some(two.clone()), false);
    let second = ledger.plan(at(2));
    assert_eq!(second.series[0].effects[0].address(), Some(ip("192.0.2.11")));
    // Who is gone before it began needs nothing any more.
    ledger.set_service(&World::key("one"), None, false);
    let third = ledger.plan(at(3));
    assert_eq!(third.revoked, [Subject::Service(World::key("one"))]);
    let three = Arc::new(service("three", 3));
    ledger.set_service(&three.key, Some(three.clone()), false);
    assert_eq!(ledger.plan(at(4)).series[0].effects[0].address(), Some(ip("192.0.2.10")));
}
