//! Pools, their selectors and quotas, and reservations.

use super::*;

#[test]
fn service_moves_to_the_requested_pool_in_order() {
    let mut world = World::new([lan(), both()], [service("web", 5)]);
    world.settle();
    world.edit("web", |service| request_of(service).pool = Some("gone".into()));
    world.settle();
    let refused = "False PoolNotFound: no IPAddressPool gone exists: request another pool, or remove \
                   landfall.dev/address-pool; until then, the Service keeps 192.0.2.10";
    assert_eq!(
        world.view("web"),
        ServiceView { condition: Some(refused.into()), ..ServiceView::has("192.0.2.10", "lan") }
    );
    world.edit("web", |service| request_of(service).pool = Some("both".into()));
    let effects: Vec<_> = plan(&world.snapshot).series[0].effects.iter().map(Effect::lb_ip).collect();
    assert_eq!(effects, [Some(ip("192.0.2.20")), None, None, Some(ip("192.0.2.10"))]);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.20", "both"));
    // The Service keeps its address when the pool no longer contains it.
    set_pool(&mut world, pool("both", 2, &["192.0.2.200-192.0.2.201"]));
    world.settle();
    assert_eq!((ingress(&world, "web"), reason(&world, "web")), (vec!["192.0.2.20".into()], "True PoolGone".into()));
}

#[test]
fn reservation_serves_only_its_namespace_or_service() {
    let by_name = Service { request: request_for("192.0.2.10"), ..service("by-name", 5) };
    let of_namespace = |name: &str| Some(Reservation { namespace: Some(name.into()), service: None });
    let mut world = World::new([lan()], [by_name.clone(), service("web", 9), service("any", 1)]);
    world.reserve(ip("192.0.2.10"), of_namespace("away"));
    let service = Some("web".into());
    world.reserve(ip("192.0.2.12"), Some(Reservation { service, ..of_namespace("default").expect("one") }));
    world.settle();
    assert_eq!(reason(&world, "by-name"), "False AddressReserved");
    assert_eq!(ingress(&world, "web"), ["192.0.2.12"], "it is reserved for this Service");
    assert_eq!(ingress(&world, "any"), ["192.0.2.11"]);
    let mut world = World::new([lan()], [by_name]);
    world.reserve(ip("192.0.2.10"), of_namespace("default"));
    world.settle();
    assert_eq!(world.view("by-name"), ServiceView::has("192.0.2.10", "lan"));
}

#[test]
fn admitting_pools_are_tried_by_priority() {
    let with = |name: &str, created, address: &str, priority, team: bool| {
        edit_pool(pool(name, created, &[address]), |spec| {
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
    let mut world = World::new(pools, (1..=5).map(|n| service(&format!("s{n}"), n)));
    world.settle();
    let shown: Vec<_> = (1..=5).flat_map(|n| ingress(&world, &format!("s{n}"))).collect();
    assert_eq!(shown, ["192.0.2.3", "192.0.2.2", "192.0.2.5", "192.0.2.1"]);
    assert_eq!(reason(&world, "s5"), "False PoolsExhausted");
    let labels = Labels::from([("team", "a")]);
    let namespace = Namespace { name: "default".into(), labels };
    world.snapshot.namespaces.insert("default".into(), Arc::new(namespace));
    world.settle();
    assert_eq!(ingress(&world, "s5"), ["192.0.2.4"]);
}

#[test]
fn excluded_addresses_are_refused_and_network_ends_are_not() {
    let lan = edit_pool(pool("lan", 1, &["192.0.2.0/29"]), |spec| {
        spec.exclude = vec![AddressRange("192.0.2.1".into())];
        spec.avoid_buggy_ips = true;
    });
    let requesting =
        |name: &str, last: &str| Service { request: request_for(&format!("192.0.2.{last}")), ..service(name, 1) };
    let services = [
        requesting("excluded", "1"),
        requesting("buggy", "0"),
        requesting("node", "2"),
        requesting("gateway", "3"),
        requesting("end", "7"),
    ];
    let mut world = World::new([lan], services.into_iter().chain([service("any", 1)]));
    world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.2"));
    let network = NodeAddresses { gateways: vec![ip("192.0.2.3")], ..NodeAddresses::default() };
    world.snapshot.networks.insert("n1".into(), Arc::new(network));
    world.settle();
    assert_eq!(["end", "any"].map(|name| ingress(&world, name)), [["192.0.2.7"], ["192.0.2.4"]]);
    assert_eq!(["excluded", "buggy"].map(|name| reason(&world, name)), ["False AddressExcluded"; 2]);
    let in_use = "False AddressInUse: 192.0.2.3 is the address of the gateway of node n1; request another address, or \
                  remove the request";
    assert_eq!((reason(&world, "node"), condition(&world, "gateway")), ("False AddressInUse".into(), in_use.into()));
}

#[test]
fn end_of_a_network_is_assigned_to_no_service() {
    let lan = pool("lan", 1, &["192.0.2.254-192.0.2.255", "2001:db8::/126"]);
    let six = |service: Service| Service { families: [Family::V6].into(), ..service };
    let by_name = |name: &str, address: &str| Service { request: request_for(address), ..service(name, 2) };
    let held = by_name("held", "192.0.2.255");
    let mut world = World::new([lan], [held]);
    world.settle();
    assert_eq!(world.view("held"), ServiceView::has("192.0.2.255", "lan"));
    let networks = ["192.0.2.0/24", "2001:db8::/64"].map(|text| text.parse().expect("a network")).to_vec();
    let network = NodeAddresses { networks, ..NodeAddresses::default() };
    world.snapshot.networks.insert("n1".into(), Arc::new(network));
    let services =
        [service("any", 3), six(by_name("anycast", "2001:db8::")), six(service("six", 3)), service("late", 4)];
    for service in services {
        world.snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    world.settle();
    assert_eq!(["any", "six"].map(|name| ingress(&world, name)), [["192.0.2.254"], ["2001:db8::1"]]);
    assert_eq!(reason(&world, "late"), "False PoolsExhausted");
    let refused = "False AddressUnusable: 2001:db8:: is the subnet-router anycast address of 2001:db8::/64, a network \
                   of the nodes, so no Service can have it: request another address";
    assert_eq!(condition(&world, "anycast"), refused);
    // The Service that had the address before keeps it.
    let kept = "True AddressUnusable: 192.0.2.255 is the broadcast address of 192.0.2.0/24, a network of the nodes, \
                and the Service keeps it: to get another one, request it in landfall.dev/load-balancer-ips or \
                landfall.dev/address-pool";
    assert_eq!((ingress(&world, "held"), condition(&world, "held")), (vec!["192.0.2.255".into()], kept.into()));
    let status = world.snapshot.pools["lan"].status.clone().expect("a status");
    assert_eq!(
        (status.assigned_ipv4, status.available_ipv4, status.assigned_ipv6, status.available_ipv6),
        (2, 0, 1, 2)
    );
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("Ready");
    let message = "Services can get addresses of this pool, except the ends of the nodes' networks: 192.0.2.255 of \
                   network 192.0.2.0/24, 2001:db8:: of network 2001:db8::/64";
    assert_eq!(&*ready.message, message);
    world.delete("held");
    world.settle();
    assert_eq!(reason(&world, "late"), "False PoolsExhausted", "a released end is not assigned again");
}

#[test]
fn one_node_withholds_few_addresses_by_its_own_report() {
    let lan = pool("lan", 1, &["192.0.2.1-192.0.2.40"]);
    let mut world = World::new([lan], [service("web", 1)]);
    world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.40"));
    let addresses = (1..=40).map(|last| IpAddr::from([192, 0, 2, last])).collect();
    let network = NodeAddresses { addresses, ..NodeAddresses::default() };
    world.snapshot.networks.insert("n1".into(), Arc::new(network));
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.17", "lan"));
    let status = world.snapshot.pools["lan"].status.clone().expect("a status");
    assert_eq!((status.assigned_ipv4, status.available_ipv4), (1, 22));
    let line = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_).expect("one");
    let excess = "a node can withhold at most 16 addresses from pools, so these addresses are assigned although agents \
                  report them: 192.0.2.17 of node n1, 192.0.2.18 of node n1, 192.0.2.19 of node n1, 192.0.2.20 of node \
                  n1, 192.0.2.21 of node n1 and 18 more; check the links of these nodes, or exclude the addresses \
                  (spec.exclude)";
    assert_eq!(&*line("ExcessNodeAddresses").message, excess);
    let withheld = "Services can get addresses of this pool, except those of nodes or gateways: 192.0.2.1 of node n1, \
                    192.0.2.2 of node n1, 192.0.2.3 of node n1, 192.0.2.4 of node n1, 192.0.2.5 of node n1 and 12 more";
    assert_eq!((&*line("Ready").status, &*line("Ready").message), ("True", withheld));
    assert_eq!(&*line("OverlapsCluster").reason, "OverlapsCluster");
    let warned = world.events.iter().filter(|event| event.is_warning).map(|event| event.reason).collect::<Vec<_>>();
    assert_eq!(warned, ["OverlapsCluster", "ExcessNodeAddresses"]);
    world.snapshot.networks.clear();
    world.settle();
    let types = world.snapshot.pools["lan"].status.iter().flat_map(|status| &status.conditions);
    let types = types.map(|condition| condition.type_.to_string()).collect::<Vec<_>>();
    assert_eq!(types, ["Ready", "Overlap", "Exhausted", "OverlapsCluster"]);
}

#[test]
fn pool_in_a_range_of_the_cluster_is_reported() {
    let lan = pool("lan", 1, &["10.96.0.0-10.96.0.9", "10.244.1.7"]);
    let mut world = World::new([lan], [Service { cluster_ips: [ip("10.96.0.1")].into(), ..service("api", 1) }]);
    let n1 = Node { pod_cidrs: vec!["10.244.1.0/24".into()], ..Node::clone(&node("n1", "192.0.2.11")) };
    world.snapshot.nodes.insert("n1".into(), Arc::new(n1));
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    let message = |cluster: &mut ClusterIndex| {
        let series = cluster.plan(at_second(1)).series;
        let statuses = series.iter().flat_map(|series| &series.effects).filter_map(|effect| match effect {
            Effect::PatchPool(patch) => Some(patch.status.conditions.clone()),
            _ => None,
        });
        let found = statuses.flatten().find(|condition| condition.type_ == "OverlapsCluster");
        found.map(|condition| condition.message.to_string())
    };
    let expected = |services: &str| {
        Some(format!(
            "the cluster itself uses these addresses: 10.244.1.7-10.244.1.7 (pods of node n1), {services}; remove them \
             from spec.addresses, or exclude them (spec.exclude)"
        ))
    };
    assert_eq!(message(&mut cluster), expected("10.96.0.1 (ClusterIP of Service default/api)"));
    let range = ServiceRange { networks: vec!["10.96.0.0/16".parse().expect("a network")] };
    cluster.set_service_range("kubernetes", Some(Arc::new(range)));
    assert_eq!(message(&mut cluster), expected("10.96.0.0-10.96.0.9 (ClusterIPs of ServiceCIDR kubernetes)"));
    cluster.set_node("n1", Some(node("n1", "192.0.2.11")));
    cluster.set_service_range("kubernetes", None);
    let without_pods = expected("10.96.0.1 (ClusterIP of Service default/api)")
        .map(|text| text.replace("10.244.1.7-10.244.1.7 (pods of node n1), ", ""));
    assert_eq!(message(&mut cluster), without_pods);
}

#[test]
fn node_with_the_address_of_a_service_is_reported() {
    let mut world = World::new([lan()], [service("web", 1)]);
    world.settle();
    world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.10"));
    world.settle();
    let expected = "True NodeHasAddress: 192.0.2.10 is the address of node n1 as well, and the Service keeps it: to \
                    get another one, request it in landfall.dev/load-balancer-ips or landfall.dev/address-pool";
    assert_eq!(condition(&world, "web"), expected);
    let events: Vec<_> = world.events.iter().map(|event| (event.reason, event.is_warning)).collect();
    assert_eq!(events, [("IPAllocated", false), ("NodeHasAddress", true), ("OverlapsCluster", true)]);
}

#[test]
fn record_names_the_pool_that_its_address_belongs_to() {
    let range = ["192.0.2.10"];
    let mut world = World::new([pool("a", 3, &range)], [service("web", 1)]);
    world.settle();
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    cluster.plan(at_second(1));
    let b = pool("b", 4, &range);
    let older = pool("older", 2, &range);
    // A pool is renamed, and an older pool takes its address over. Without a pool, the record keeps the last name.
    for (name, object, expected) in [
        ("a", None, ("a", "True PoolGone")),
        ("b", Some(b), ("b", "True Allocated")),
        ("older", Some(older), ("older", "True Allocated")),
    ] {
        cluster.set_pool(name, object.clone());
        match object {
            Some(object) => set_pool(&mut world, object),
            None => drop(world.snapshot.pools.remove(name)),
        }
        let patch = |series: &Series| match series.effects.first() {
            Some(Effect::PatchRecord(patch)) => patch.pool.as_deref().map(str::to_owned),
            _ => None,
        };
        let planned: Vec<_> = cluster.plan(at_second(2)).series.iter().filter_map(patch).collect();
        let is_moved = world.snapshot.records[&ip("192.0.2.10")].pool != expected.0;
        assert_eq!(planned, if is_moved { vec![expected.0] } else { vec![] }, "{name}");
        world.settle();
        let record = world.snapshot.records[&ip("192.0.2.10")].clone();
        assert_eq!((&*record.pool, &*reason(&world, "web")), expected, "{name}");
        cluster.set_record(record.address, Some(record), false, at_second(2));
    }
}

#[test]
fn service_keeps_its_address_when_an_older_pool_gets_it() {
    let web = requesting("web", 1, |request| request.pool = Some("a".into()));
    let mut world = World::new([pool("a", 2, &["192.0.2.10-192.0.2.11"])], [web]);
    world.settle();
    set_pool(&mut world, pool("older", 1, &["192.0.2.10"]));
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "older"));
    world.snapshot.pools.remove("a");
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "older"));
    assert_eq!(&*world.snapshot.records[&ip("192.0.2.10")].pool, "a");
    world.edit("web", |service| request_of(service).pool = None);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "older"));
    assert_eq!(&*world.snapshot.records[&ip("192.0.2.10")].pool, "older");
}
