//! Services with addresses of both families.

use super::*;

#[test]
fn both_families_come_from_one_pool_if_possible() {
    let web = || of_families(service("web", 5), V4_V6, FamilyPolicy::RequireDualStack);
    let mut world = World::new([lan(), both()], [web()]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.20", "2001:db8::20"]);
    assert_eq!(condition(&world, "web"), "True Allocated: 192.0.2.20 from pool both, 2001:db8::20 from pool both");
    let six = pool("six", 3, &["2001:db8::1-2001:db8::2"]);
    let mut world = World::new([lan(), six], [of_families(web(), &[Family::V6, Family::V4], web().family_policy)]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["2001:db8::1", "192.0.2.10"], "in the order of its families");
}

#[test]
fn first_address_stays_when_the_second_family_changes() {
    let mut world = World::new([lan(), both()], [service("web", 5)]);
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
fn second_family_comes_from_the_pool_of_the_first() {
    let older = pool("older", 1, &["2001:db8::1-2001:db8::2"]);
    let web = requesting("web", 5, |request| request.addresses = vec![ip("192.0.2.21")]);
    let mut world = World::new([older, both()], [web]);
    world.settle();
    world.edit("web", |service| {
        (service.families, service.family_policy) = (V4_V6.into(), FamilyPolicy::PreferDualStack)
    });
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.21", "2001:db8::20"]);
}

#[test]
fn named_addresses_are_assigned_together_or_not_at_all() {
    let requesting = |last: &str| {
        let request = RequestedAddresses {
            addresses: ["192.0.2.21", last, "2001:db8::21"].map(ip).into(),
            ..RequestedAddresses::default()
        };
        of_families(Service { request: Ok(request.into()), ..service("web", 5) }, V4_V6, FamilyPolicy::PreferDualStack)
    };
    let mut world = World::new([both()], [requesting("192.0.2.20")]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.21", "192.0.2.20", "2001:db8::21"]);
    let mut world = World::new([both()], [requesting("192.0.2.99")]);
    world.settle();
    assert_eq!((reason(&world, "web"), world.snapshot.records.len()), ("False AddressNotInPool".into(), 0));
}

#[test]
fn service_that_lacks_an_optional_family_waits_only_for_it() {
    let prefer = |n: i64| of_families(service(&format!("s{n}"), n), V4_V6, FamilyPolicy::PreferDualStack);
    let mut world = World::new([pool("lan", 1, &["192.0.2.0-192.0.2.99"])], (1..=50).map(prefer));
    let mut cluster = ClusterIndex::new(true);
    super::changes::follow(&mut cluster, &mut world);
    assert!(condition(&world, "s7").contains("without an IPv6 address"), "{}", condition(&world, "s7"));
    for (released, expected) in [("192.0.2.99", 0), ("2001:db8::1", 50)] {
        let (lb_ip, foreign) = record(released, "lan", &["gone"]);
        cluster.set_record(lb_ip, Some(foreign), false, at_second(1));
        cluster.take_dirty_services(&mut Plan::default(), at_second(1), usize::MAX);
        cluster.set_record(lb_ip, None, false, at_second(1));
        let woken = cluster.take_dirty_services(&mut Plan::default(), at_second(1), usize::MAX);
        assert_eq!(woken.len(), expected, "{released}");
    }
}

#[test]
fn sharing_service_wakes_only_waiting_services_with_its_key() {
    let waiting = |name: &str, key: &str| requesting(name, 5, |request| request.sharing_key = Some(key.into()));
    let refused = [waiting("same", "k"), waiting("other", "l"), service("none", 5)];
    let mut world = World::new([pool("lan", 1, &["192.0.2.1"])], [sharing("web", 1, 80)].into_iter().chain(refused));
    world.edit("same", |service| service.ports = sharing("web", 1, 80).ports);
    let mut cluster = ClusterIndex::new(true);
    super::changes::follow(&mut cluster, &mut world);
    world.edit("web", |service| service.ports[0].number = 443);
    cluster.set_service(&World::key("web"), Some(Arc::new(world.service("web").clone())), false);
    let woken = cluster.take_dirty_services(&mut Plan::default(), at_second(1), usize::MAX);
    assert_eq!(woken.iter().map(|service| &*service.key.name).collect::<Vec<_>>(), ["web", "same"]);
}
