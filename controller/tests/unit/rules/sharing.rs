//! Services that share an address.

use super::*;

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
    let agree = |service: &mut Service| request_of(service).consent = Consent::All;
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
