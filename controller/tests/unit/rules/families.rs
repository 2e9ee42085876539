//! Services that want addresses of both families.

use super::*;

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
        let request = RequestedAddresses {
            addresses: ["192.0.2.21", last, "2001:db8::21"].map(ip).into(),
            ..RequestedAddresses::default()
        };
        of_families(Service { request: Ok(request.into()), ..service("web", 5) }, V4_V6, FamilyPolicy::PreferDualStack)
    };
    let mut world = World::with([both()], [asks("192.0.2.20")]);
    world.settle();
    assert_eq!(ingress(&world, "web"), ["192.0.2.21", "192.0.2.20", "2001:db8::21"]);
    let mut world = World::with([both()], [asks("192.0.2.99")]);
    world.settle();
    assert_eq!((reason(&world, "web"), world.snapshot.addresses.len()), ("False AddressNotInPool".into(), 0));
}
