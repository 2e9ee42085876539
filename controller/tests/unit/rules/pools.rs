//! What pools, their fences, quotas and reservations give, and to whom.

use super::*;

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
    request_of(&mut sharing_there).consent = Consent::All;
    let mut by_key = sharing("by-key", 4, 443);
    request_of(&mut by_key).consent = Consent::All;
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
