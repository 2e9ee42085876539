//! Services that were created again or restored from a backup, and Services whose status shows an address of another
//! provider.

use super::*;
use crate::fixtures::holder;
use crate::plan::rules::changes::follow;
use crds::Holder;
use crds::service::{FINALIZER, Ingress};

/// Services `first`, `web` and `next` with the first three addresses of `lan`, of which node `n1` announces all.
fn settled_world() -> World {
    let mut world = World::new([lan()], [service("first", 1), service("web", 2), service("next", 3)]);
    world.settle();
    for lb_ip in ["192.0.2.10", "192.0.2.11", "192.0.2.12"] {
        world.announce(ip(lb_ip));
    }
    world.settle();
    world
}

/// Creates a Service again, with another UID and without a finalizer. Its status stays.
fn restore(world: &mut World, name: &str) {
    world.edit(name, |service| {
        service.uid = format!("{name}-again").into();
        service.finalizers.clear();
    });
}

fn clear_status(world: &mut World, name: &str) {
    world.edit(name, |service| (service.ingress, service.conditions) = (vec![], vec![]));
}

/// A Service whose status shows these addresses, as another provider writes them.
fn showing(name: &str, created: i64, lb_ips: &[&str]) -> Service {
    let entry = |lb_ip: &&str| Ingress { ip: Some((*lb_ip).into()), ip_mode: None, hostname: None };
    Service { ingress: lb_ips.iter().map(entry).collect(), ..service(name, created) }
}

fn writes(world: &World) -> Vec<String> {
    let names = |plan: Plan| effects(&plan).into_iter().filter(|effect| !effect.starts_with("event"));
    names(plan(&world.snapshot)).collect()
}

/// The effects of a plan, without their contents.
fn effects(plan: &Plan) -> Vec<String> {
    plan.series.iter().flat_map(|series| series.effects.iter().map(effect_name)).collect()
}

#[test]
fn record_of_the_former_service_is_taken_over_in_place() {
    for has_status in [true, false] {
        let mut world = settled_world();
        let before = world.snapshot.records[&ip("192.0.2.11")].clone();
        restore(&mut world, "web");
        if !has_status {
            clear_status(&mut world, "web");
        }
        assert_eq!(writes(&world), ["patch 192.0.2.11"], "the status follows the record");
        world.settle();
        let after = &world.snapshot.records[&ip("192.0.2.11")];
        let expected = Record {
            resource_version: after.resource_version,
            holders: vec![Holder { uid: "web-again".into(), ..holder("web") }],
            ..(*before).clone()
        };
        assert_eq!(**after, expected, "announcers and UID stay");
        assert_eq!(
            world.view("web"),
            ServiceView { condition: world.view("web").condition, ..ServiceView::has("192.0.2.11", "lan") }
        );
        assert_eq!(["first", "next"].map(|name| ingress(&world, name)), [["192.0.2.10"], ["192.0.2.12"]]);
    }
}

#[test]
fn all_services_restored_at_once_have_their_addresses() {
    let names = ["first", "web", "next"];
    let mut world = settled_world();
    names.iter().for_each(|name| restore(&mut world, name));
    // A fresh Service that is older than all others takes none of their addresses.
    let fresh = service("fresh", 0);
    world.snapshot.services.insert(fresh.key.clone(), Arc::new(fresh));
    for has_records in [true, false] {
        if !has_records {
            world.snapshot.records.clear();
        }
        world.settle();
        let shown = names.map(|name| ingress(&world, name));
        assert_eq!(shown, [["192.0.2.10"], ["192.0.2.11"], ["192.0.2.12"]], "records: {has_records}");
        assert_eq!(reason(&world, "fresh"), "False PoolsExhausted");
    }
}

#[test]
fn record_is_taken_over_whatever_its_pool_is_now() {
    type Edit = fn(&mut World);
    let edits: [(Edit, &str); 4] = [
        (|world| world.snapshot.pools.clear(), "True PoolGone"),
        (|world| set_pool(world, edit_pool(lan(), |spec| spec.drain = true)), "True PoolDraining"),
        (
            |world| {
                let exclude = vec![AddressRange("192.0.2.11".into())];
                set_pool(world, edit_pool(lan(), |spec| spec.exclude = exclude));
            },
            "True PoolChanged",
        ),
        (|world| set_pool(world, edit_pool(lan(), |spec| spec.auto_assign = false)), "True Allocated"),
    ];
    for (edit, expected) in edits {
        let mut world = settled_world();
        restore(&mut world, "web");
        clear_status(&mut world, "web");
        edit(&mut world);
        world.settle();
        assert_eq!((ingress(&world, "web"), reason(&world, "web")), (vec!["192.0.2.11".into()], expected.into()));
    }
}

#[test]
fn request_of_a_restored_service_comes_before_its_record() {
    for (requested, expected, outcome) in [
        ("192.0.2.13", "192.0.2.13", "True Allocated"),
        ("192.0.2.11", "192.0.2.11", "True Allocated"),
        ("192.0.2.10", "192.0.2.11", "False AddressInUse"),
    ] {
        let mut world = settled_world();
        set_pool(&mut world, pool("lan", 1, &["192.0.2.10-192.0.2.13"]));
        restore(&mut world, "web");
        world.edit("web", |web| web.request = request_for(requested));
        world.settle();
        assert_eq!((ingress(&world, "web"), reason(&world, "web")), (vec![expected.into()], outcome.into()));
        assert_eq!(world.snapshot.records.len(), 3, "the former address is released if it is not in use");
    }
}

#[test]
fn record_of_a_service_that_may_hold_none_is_released() {
    type Edit = fn(&mut Service);
    let edits: [Edit; 3] = [
        |web| web.is_load_balancer = false,
        |web| web.deleting = true,
        |web| {
            (web.class, web.finalizers) = (Some("example.com/other".into()), vec![FINALIZER.into()]);
            web.ingress = shows("198.51.100.1");
        },
    ];
    for edit in edits {
        let mut world = settled_world();
        restore(&mut world, "web");
        clear_status(&mut world, "web");
        world.edit("web", edit);
        let before = world.service("web").clone();
        world.settle();
        assert!(!world.snapshot.records.contains_key(&ip("192.0.2.11")));
        assert_eq!(*world.service("web"), before, "Landfall never wrote to this Service");
    }
}

#[test]
fn shared_record_is_taken_over_by_each_holder_that_still_fits() {
    for restored in [&["a"][..], &["b"], &["a", "b"]] {
        let mut world = World::new([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
        world.settle();
        restored.iter().for_each(|name| restore(&mut world, name));
        assert_eq!(writes(&world), ["patch 192.0.2.10"], "one write for all holders");
        world.settle();
        assert_eq!(["a", "b"].map(|name| ingress(&world, name)), [["192.0.2.10"], ["192.0.2.10"]], "{restored:?}");
        assert_eq!(holders(&world, "192.0.2.10"), (vec!["a".into(), "b".into()], Some("k".into())));
    }
    // The restored `a` has the port of `b`.
    let mut world = World::new([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
    world.settle();
    restore(&mut world, "a");
    world.edit("a", |service| service.ports[0].number = 443);
    world.settle();
    assert_eq!(["a", "b"].map(|name| ingress(&world, name)), [["192.0.2.11"], ["192.0.2.10"]]);
    assert_eq!(holders(&world, "192.0.2.10").0, ["b"]);
}

#[test]
fn both_families_return_from_records_or_from_the_status() {
    let dual = |name: &str, created: i64| of_families(service(name, created), V4_V6, FamilyPolicy::PreferDualStack);
    for lost in [&[][..], &["192.0.2.21"], &["2001:db8::21"], &["192.0.2.21", "2001:db8::21"]] {
        for is_reversed in [false, true] {
            let mut world = World::new([both()], [dual("first", 1), dual("web", 2)]);
            world.settle();
            world.delete("first");
            world.settle();
            restore(&mut world, "web");
            lost.iter().for_each(|lb_ip| drop(world.snapshot.records.remove(&ip(lb_ip))));
            if is_reversed {
                world.edit("web", |web| web.ingress.reverse());
            }
            world.settle();
            assert_eq!(ingress(&world, "web"), ["192.0.2.21", "2001:db8::21"], "without {lost:?}");
        }
    }
}

#[test]
fn shown_address_is_adopted_if_free_open_and_admitted() {
    let closed = || edit_pool(pool("closed", 2, &["192.0.2.40-192.0.2.41"]), |spec| spec.auto_assign = false);
    let drained = edit_pool(pool("drained", 3, &["192.0.2.50-192.0.2.51"]), |spec| spec.drain = true);
    let fenced = edit_pool(pool("fenced", 4, &["192.0.2.60-192.0.2.61"]), |spec| {
        let namespaces = vec!["other".to_owned()];
        spec.service_allocation = Some(ServiceAllocation { namespaces, ..ServiceAllocation::default() });
    });
    let broken = edit_pool(pool("broken", 5, &["192.0.2.70-192.0.2.71"]), |spec| {
        spec.exclude = vec![AddressRange("nonsense".into())];
    });
    let limited = edit_pool(pool("limited", 6, &["192.0.2.80-192.0.2.81"]), |spec| spec.max_per_namespace = Some(1));
    let full = edit_pool(pool("full", 7, &["192.0.2.90-192.0.2.91"]), |spec| spec.max_per_namespace = Some(1));
    let mut lan = pool("lan", 1, &["192.0.2.8/29"]);
    Arc::make_mut(&mut lan).spec.exclude = vec![AddressRange("192.0.2.14".into())];
    let pools = [lan, closed(), drained, fenced, broken, limited, full];
    let fresh = "192.0.2.9";
    for (shown, expected) in [
        (&["192.0.2.12"][..], "192.0.2.12"),
        (&["192.0.2.99"], fresh),
        (&["192.0.2.8"], fresh),
        (&["192.0.2.14"], fresh),
        (&["192.0.2.13"], fresh),
        (&["192.0.2.10"], fresh),
        (&["192.0.2.40"], fresh),
        (&["192.0.2.50"], fresh),
        (&["192.0.2.60"], fresh),
        (&["192.0.2.70"], fresh),
        (&["192.0.2.81"], "192.0.2.81"),
        (&["192.0.2.91"], fresh),
        (&["2001:db8::1"], fresh),
        (&["nonsense"], fresh),
        (&["192.0.2.99", "192.0.2.12", "192.0.2.11"], "192.0.2.12"),
    ] {
        let mut world = World::new(pools.clone(), [showing("web", 5, shown)]);
        world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.13"));
        world.snapshot.services.insert(World::key("holds"), Arc::new(service("holds", 9)));
        world.snapshot.services.insert(World::key("other"), Arc::new(service("other", 9)));
        world.snapshot.records =
            [record("192.0.2.10", "lan", &["holds"]), record("192.0.2.90", "full", &["other"])].into();
        world.settle();
        assert_eq!(
            (ingress(&world, "web"), reason(&world, "web")),
            (vec![expected.into()], "True Allocated".into()),
            "{shown:?}"
        );
        let mut of_services = world.events.iter().filter(|event| event.regarding.kind.as_deref() == Some("Service"));
        assert!(of_services.all(|event| event.reason == "IPAllocated"), "{:?}", world.events);
    }
    // A Service that requests a pool by name gets the address that it shows there.
    let mut web = showing("web", 5, &["192.0.2.41"]);
    request_of(&mut web).pool = Some("closed".into());
    let mut world = World::new([closed()], [web]);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.41", "closed"));
}

#[test]
fn services_that_show_an_address_come_before_others() {
    let by_name = || Service { request: request_for("192.0.2.10"), ..service("by-name", 1) };
    let both = || Service { request: request_for("192.0.2.10"), ..showing("both", 9, &["192.0.2.10"]) };
    for (services, expected) in [
        (
            vec![service("old", 1), showing("web", 5, &["192.0.2.10"])],
            vec![("web", "192.0.2.10"), ("old", "192.0.2.11")],
        ),
        (vec![by_name(), showing("web", 5, &["192.0.2.10"])], vec![("web", "192.0.2.10")]),
        (vec![both(), showing("web", 5, &["192.0.2.10"])], vec![("both", "192.0.2.10"), ("web", "192.0.2.11")]),
        (
            vec![showing("web", 5, &["192.0.2.10"]), showing("old", 1, &["192.0.2.10"])],
            vec![("old", "192.0.2.10"), ("web", "192.0.2.11")],
        ),
        // An address that the Service cannot have gives it no precedence.
        (
            vec![service("old", 1), showing("web", 5, &["192.0.2.99"])],
            vec![("old", "192.0.2.10"), ("web", "192.0.2.11")],
        ),
    ] {
        let mut world = World::new([lan()], services);
        world.settle();
        for (name, lb_ip) in expected {
            assert_eq!(ingress(&world, name), [lb_ip], "{name}");
        }
    }
}

#[test]
fn cut_plans_serve_services_that_show_an_address_first() {
    let (old, web) = (service("a-old", 1), showing("web", 5, &["192.0.2.10"]));
    let world = World::new([lan()], [old, web, showing("b-other", 2, &["192.0.2.99"])]);
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    let mut created = Vec::new();
    loop {
        let plan = cluster.plan_some(at_second(9), 1);
        created.extend(effects(&plan).into_iter().filter(|effect| effect.starts_with("create")));
        if !cluster.has_backlog() {
            break;
        }
    }
    assert_eq!(created, ["create 192.0.2.10", "create 192.0.2.11", "create 192.0.2.12"]);
    assert_eq!(cluster.promises.get(&ip("192.0.2.10")).collect::<Vec<_>>(), [&World::key("web")]);
}

#[test]
fn second_family_of_an_adopting_service_has_no_precedence() {
    let dual = of_families(showing("web", 5, &["192.0.2.21"]), V4_V6, FamilyPolicy::PreferDualStack);
    let by_name = of_families(
        Service {
            request: Ok(
                RequestedAddresses { addresses: vec![ip("2001:db8::20")], ..RequestedAddresses::default() }.into()
            ),
            ..service("by-name", 9)
        },
        &[Family::V6],
        FamilyPolicy::SingleStack,
    );
    let mut world = World::new([both()], [dual, by_name]);
    world.settle();
    assert_eq!(ingress(&world, "by-name"), ["2001:db8::20"]);
    assert_eq!(ingress(&world, "web"), ["192.0.2.21", "2001:db8::21"]);
}

#[test]
fn sharing_services_adopt_their_address_together() {
    let mut world = World::new([lan()], [service("first", 1), sharing("a", 2, 80), sharing("b", 3, 443)]);
    world.settle();
    for key in [Some("k"), None] {
        if key.is_none() {
            ["a", "b"].iter().for_each(|name| world.edit(name, |service| request_of(service).sharing_key = None));
        }
        world.snapshot.records.clear();
        world.settle();
        let second = if key.is_some() { "192.0.2.11" } else { "192.0.2.12" };
        let shown = ["first", "a", "b"].map(|name| ingress(&world, name));
        assert_eq!(shown, [["192.0.2.10"], ["192.0.2.11"], [second]], "{key:?}");
    }
}

#[test]
fn address_in_cooldown_returns_only_to_its_services() {
    let mut world = World::new([lan()], [service("first", 1), sharing("a", 2, 80), sharing("b", 3, 443)]);
    world.snapshot.now = at_second(100);
    let mut cluster = ClusterIndex::new(true);
    follow(&mut cluster, &mut world);
    // Another client deletes all records.
    world.snapshot.records.clear();
    follow(&mut cluster, &mut world);
    let shown = ["first", "a", "b"].map(|name| ingress(&world, name));
    assert_eq!(shown, [["192.0.2.10"], ["192.0.2.11"], ["192.0.2.11"]]);
    world.delete("first");
    follow(&mut cluster, &mut world);
    for (second, expected) in [(110, "192.0.2.12"), (161, "192.0.2.10")] {
        world.snapshot.now = at_second(second);
        world.snapshot.services.insert(World::key("web"), Arc::new(showing("web", second, &["192.0.2.10"])));
        follow(&mut cluster, &mut world);
        assert_eq!(ingress(&world, "web"), [expected], "at {second} s");
        world.delete("web");
        follow(&mut cluster, &mut world);
    }
}

#[test]
fn status_stays_while_no_pool_exists() {
    let mut world = settled_world();
    let before = world.service("web").clone();
    // All definitions of Landfall are deleted.
    world.snapshot.pools.clear();
    world.snapshot.records.clear();
    world.settle();
    assert_eq!((world.service("web").ingress.clone(), reason(&world, "web")), (before.ingress, "False NoPool".into()));
    set_pool(&mut world, pool("lan", 9, &["192.0.2.1-192.0.2.12"]));
    world.settle();
    let shown = ["first", "web", "next"].map(|name| ingress(&world, name));
    assert_eq!(shown, [["192.0.2.10"], ["192.0.2.11"], ["192.0.2.12"]]);
    assert!(world.events.iter().all(|event| event.reason != "StatusRepaired"), "{:?}", world.events);
    // If the Service can't have the address again, the status no longer shows it.
    world.snapshot.pools.clear();
    world.snapshot.records.clear();
    world.settle();
    set_pool(&mut world, edit_pool(lan(), |spec| spec.auto_assign = false));
    world.settle();
    let refused = ServiceView { condition: world.view("web").condition, ..ServiceView::nothing() };
    assert_eq!((reason(&world, "web"), world.view("web")), ("False NoAutomaticPool".into(), refused));
}

#[test]
fn status_of_a_refused_service_chooses_no_address() {
    let web = Service { request: request_for("198.51.100.1"), ..showing("web", 5, &["192.0.2.11"]) };
    let mut world = World::new([lan()], [web]);
    world.settle();
    assert_eq!((reason(&world, "web"), world.view("web").held), ("False AddressNotInPool".into(), vec![]));
}

#[test]
fn crash_at_any_write_of_an_adoption_moves_no_address() {
    let dual = of_families(service("dual", 4), V4_V6, FamilyPolicy::PreferDualStack);
    let mut before =
        World::new([both(), lan()], [service("first", 1), sharing("a", 2, 80), sharing("b", 3, 443), dual]);
    before.settle();
    before.delete("first");
    before.settle();
    let names = ["a", "b", "dual"];
    let addresses = |world: &World| names.map(|name| (ingress(world, name), world.view(name).held));
    let expected = addresses(&before);
    for lost in
        [&[][..], &["192.0.2.21"], &["2001:db8::20"], &["192.0.2.11", "192.0.2.20", "192.0.2.21", "2001:db8::20"]]
    {
        let mut restored = before.clone();
        restored.restore(true);
        lost.iter().for_each(|lb_ip| drop(restored.snapshot.records.remove(&ip(lb_ip))));
        restored.snapshot.services.insert(World::key("fresh"), Arc::new(service("fresh", 0)));
        for writes in 0..20 {
            let mut world = restored.clone();
            let mut left = writes;
            while left > 0 {
                // A controller that has just started makes one write, and crashes.
                let plan = plan(&world.snapshot);
                let Some(effect) = plan.series.first().and_then(|series| series.effects.first()) else { break };
                world.apply(effect);
                left -= 1;
            }
            world.settle();
            assert_eq!(addresses(&world), expected, "without {lost:?}, after {writes} writes");
        }
    }
}
