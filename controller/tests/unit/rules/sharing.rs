//! Services that share an address.

use super::*;
use crds::load_balancer_ip::MAX_HOLDERS;

#[test]
fn new_services_with_one_key_share_an_address() {
    let mut world = World::new([lan()], [sharing("a", 1, 80), sharing("b", 2, 443), sharing("c", 3, 80)]);
    world.settle();
    let shown = ["a", "b", "c"].map(|name| ingress(&world, name));
    assert_eq!(shown, [["192.0.2.10"], ["192.0.2.10"], ["192.0.2.11"]], "two Services have the same port");
    assert_eq!(holders(&world, "192.0.2.10"), (vec!["a".into(), "b".into()], Some("k".into())));
    assert_eq!(world.view("b"), ServiceView::has("192.0.2.10", "lan"));
}

#[test]
fn changed_service_that_no_longer_fits_loses_the_address() {
    let named = |mut service: Service| {
        request_of(&mut service).addresses = vec![ip("192.0.2.10")];
        service
    };
    let mut world = World::new([lan()], [named(sharing("a", 1, 80)), named(sharing("b", 2, 443))]);
    world.settle();
    // `a` joined first, but only `a` changes, so `a` leaves.
    world.edit("a", |service| service.traffic_policy = TrafficPolicy::Local);
    world.settle();
    let refused = "False SharingConflict: 192.0.2.10 can't be shared with Service default/b, which has another \
                   spec.externalTrafficPolicy, or another namespace or spec.selector while both policies are Local; \
                   request another address, or change one of the two Services";
    assert_eq!(world.view("a"), ServiceView { condition: Some(refused.into()), ..ServiceView::nothing() });
    assert_eq!(world.view("b"), ServiceView::has("192.0.2.10", "lan"));
    let local = |service: &mut Service| {
        (service.traffic_policy, service.selector) = (TrafficPolicy::Local, [("app", "web")].into());
    };
    world.edit("a", local);
    world.edit("b", local);
    world.settle();
    assert_eq!(["a", "b"].map(|name| ingress(&world, name)), [["192.0.2.10"], ["192.0.2.10"]]);
    assert_eq!(holders(&world, "192.0.2.10").0, ["b", "a"], "in the order in which they joined");
}

#[test]
fn services_of_two_namespaces_share_with_mutual_consent() {
    let mut far = sharing("far", 2, 443);
    far.key = Key::new("away", "far");
    let key = far.key.clone();
    let mut world = World::new([lan()], [sharing("web", 1, 80), far]);
    world.settle();
    assert_eq!(world.view_key(&key).ingress, ["192.0.2.11"]);
    let consent = |service: &mut Service| request_of(service).consent = Consent::All;
    world.edit("web", consent);
    world.settle();
    world.edit_key(&key, |service| {
        consent(service);
        request_of(service).addresses = vec![ip("192.0.2.10")];
    });
    world.settle();
    assert_eq!((world.view_key(&key).ingress, world.snapshot.records.len()), (vec!["192.0.2.10".into()], 1));
}

#[test]
fn shared_address_is_refused_without_the_same_key() {
    let keyless = Service { request: request_for("192.0.2.10"), ..service("keyless", 3) };
    let other = requesting("other", 4, |request| {
        (request.sharing_key, request.addresses) = (Some("l".into()), vec![ip("192.0.2.10")]);
    });
    let mut world = World::new([lan()], [sharing("a", 1, 80), keyless, other]);
    world.edit("a", |service| request_of(service).addresses = vec![ip("192.0.2.10")]);
    world.settle();
    assert_eq!(ingress(&world, "a"), ["192.0.2.10"]);
    assert_eq!(reason(&world, "keyless"), "False AddressInUse");
    assert_eq!(reason(&world, "other"), "False SharingConflict");
}

#[test]
fn refusal_names_another_service_when_all_holders_are_promised() {
    let named = |n: u16| {
        let mut service = sharing(&format!("s{n:03}"), n.into(), 1000 + n);
        request_of(&mut service).addresses = vec![ip("192.0.2.10")];
        service
    };
    let mut world = World::new([lan()], (0..=MAX_HOLDERS as u16).map(named));
    world.reserve(ip("192.0.2.10"), None);
    let last = Subject::Service(World::key("s100"));
    let series = plan(&world.snapshot).series.into_iter().find(|series| series.subject == last).expect("a series");
    let message = "192.0.2.10 can't be shared with Service default/s000, which shares it with the maximum number of \
                   Services already; request another address, or change one of the two Services";
    let Some(Effect::Event(event)) = series.effects.last() else { panic!("{series:?}") };
    assert_eq!((event.reason, event.message.as_str()), ("AllocationFailed", message));
    world.settle();
    assert_eq!(condition(&world, "s100"), format!("False SharingConflict: {message}"));
    assert_eq!(holders(&world, "192.0.2.10").0.len(), MAX_HOLDERS);
}

#[test]
fn last_sharing_service_releases_the_address() {
    let mut world = World::new([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
    world.settle();
    world.delete("a");
    world.settle();
    assert_eq!((holders(&world, "192.0.2.10").0, ingress(&world, "b")), (vec!["b".into()], vec!["192.0.2.10".into()]));
    world.edit("b", |service| service.is_load_balancer = false);
    let version = world.snapshot.records[&ip("192.0.2.10")].resource_version;
    let uid = world.snapshot.records[&ip("192.0.2.10")].uid.clone();
    let delete = Effect::Delete { lb_ip: ip("192.0.2.10"), uid, resource_version: version };
    assert_eq!(plan(&world.snapshot).series[0].effects, [delete], "another Service may join meanwhile");
    world.settle();
    assert_eq!((world.view("b"), world.snapshot.records.len()), (ServiceView::nothing(), 0));
}

#[test]
fn new_address_is_shown_before_leaving_a_shared_one() {
    let mut world = World::new([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
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
