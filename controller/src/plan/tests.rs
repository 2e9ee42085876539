//! The plans of single cases. Random histories are in [`crate::history`].

use super::*;
use crate::fixtures::{at_second, holder, ip, node, pool, record, request_for, service};
use crate::plan::effect::{Event, PoolPatch, ServicePatch, service_reference};
use crate::snapshot::plan;
use crate::world::{ServiceView, World, effect_name, shows};
use crds::ip_address_pool::IPAddressPoolStatus;
use crds::service::{ALLOCATED, FINALIZER, Family};
use crds::{Condition, FamilyPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::sync::Arc;

fn lan() -> Arc<crds::IPAddressPool> {
    pool("lan", 1, &["192.0.2.10-192.0.2.12"])
}

fn condition(type_: &str, status: &str, reason: &str, message: &str, second: i64) -> Condition {
    Condition {
        last_transition_time: Time(at_second(second)),
        message: message.into(),
        observed_generation: None,
        reason: reason.into(),
        status: status.into(),
        type_: type_.into(),
    }
}

fn subjects(plan: &Plan) -> Vec<String> {
    plan.series.iter().map(|series| series.subject.to_string()).collect()
}

/// The effects of a plan, without their contents.
fn effects(plan: &Plan) -> Vec<String> {
    plan.series.iter().flat_map(|series| series.effects.iter().map(effect_name)).collect()
}

#[test]
fn new_service_gets_its_address_in_two_writes() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.snapshot.now = at_second(9);
    let message = "192.0.2.10 from pool lan";
    let patch = ServicePatch {
        key: Key::new("default", "web"),
        resource_version: 1,
        finalizers: Some(vec![FINALIZER.into()]),
        ingress: Some(shows("192.0.2.10")),
        conditions: Some(vec![condition(ALLOCATED, "True", "Allocated", message, 9)]),
    };
    let event = Event {
        regarding: service_reference(&Key::new("default", "web"), "web"),
        is_warning: false,
        reason: "IPAllocated",
        message: message.into(),
    };
    let create =
        Effect::Create { lb_ip: ip("192.0.2.10"), pool: "lan".into(), holder: holder("web"), sharing_key: None };
    let conditions = vec![
        condition("Ready", "True", "Ready", "Services can get addresses of this pool", 9),
        condition("Overlap", "False", "NoOverlap", "no older pool has any of its addresses", 9),
        condition("Exhausted", "False", "NotExhausted", "it has free addresses", 9),
    ];
    let status =
        IPAddressPoolStatus { assigned_ipv4: 1, available_ipv4: 2, conditions, ..IPAddressPoolStatus::default() };
    assert_eq!(
        plan(&world.snapshot).series,
        [
            Series {
                subject: Subject::Service(Key::new("default", "web")),
                effects: vec![create, Effect::PatchService(patch), Effect::Event(event)],
            },
            Series {
                subject: Subject::Pool("lan".into()),
                effects: vec![Effect::PatchPool(PoolPatch {
                    name: "lan".into(),
                    resource_version: "1".into(),
                    status
                })],
            },
        ]
    );
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
    let status = world.snapshot.pools["lan"].status.clone().expect("a status");
    assert_eq!((status.assigned_ipv4, status.available_ipv4), (1, 2));
}

#[test]
fn requests_by_name_come_first_then_the_oldest_service() {
    let mut by_name = service("by-name", 9);
    by_name.request = request_for("192.0.2.10");
    let world = World::new([lan()], [service("c-old", 1), by_name, service("a-young", 3), service("b-young", 3)]);
    let plan = plan(&world.snapshot);
    assert_eq!(
        subjects(&plan),
        [
            "Service default/by-name",
            "Service default/c-old",
            "Service default/a-young",
            "Service default/b-young",
            "IPAddressPool lan"
        ]
    );
    let mut world = world;
    world.settle();
    let ingress = ["by-name", "c-old", "a-young", "b-young"].map(|name| world.view(name).ingress);
    assert_eq!(ingress, [vec!["192.0.2.10".to_owned()], vec!["192.0.2.11".into()], vec!["192.0.2.12".into()], vec![]]);
}

#[test]
fn refused_service_reports_the_reason_and_the_fix() {
    let mut manual = pool("manual", 1, &["192.0.2.30-192.0.2.30"]);
    Arc::make_mut(&mut manual).spec.auto_assign = false;
    let requesting = |address: &str| {
        let mut service = service("web", 5);
        service.request = request_for(address);
        service
    };
    let mut six = service("web", 5);
    six.families = [Family::V6].into();
    let mut both = service("web", 5);
    (both.families, both.family_policy) = ([Family::V4, Family::V6].into(), FamilyPolicy::RequireDualStack);
    let full = || pool("full", 1, &["192.0.2.20-192.0.2.20"]);
    for (pools, service, reason, message) in [
        (
            vec![],
            service("web", 5),
            "NoPool",
            "no IPAddressPool exists: create one with addresses of the nodes' network that nothing else uses, such as \
             spec.addresses: [192.0.2.200-192.0.2.250]",
        ),
        (
            vec![manual.clone()],
            service("web", 5),
            "NoAutomaticPool",
            "no IPAddressPool assigns IPv4 addresses to this Service automatically: request a pool in \
             landfall.dev/address-pool (manual), set spec.autoAssign of a pool to true, or create another pool",
        ),
        (
            vec![full(), manual.clone()],
            service("web", 5),
            "PoolsExhausted",
            "no IPv4 address is free in full: add addresses there, or create another IPAddressPool",
        ),
        (
            vec![lan()],
            requesting("192.0.2.300"),
            "InvalidRequest",
            "spec.loadBalancerIP \"192.0.2.300\" is not an IP address: use an address such as 192.0.2.10, or remove it",
        ),
        (
            vec![lan()],
            requesting("192.0.2.99"),
            "AddressNotInPool",
            "192.0.2.99 is in no IPAddressPool: request an address of a pool, or add this address to a pool",
        ),
        (
            vec![full()],
            requesting("192.0.2.20"),
            "AddressInUse",
            "192.0.2.20 is held by Service default/other; request another address, or remove the request",
        ),
        (
            vec![lan()],
            requesting("192.0.2.11"),
            "AddressInUse",
            "192.0.2.11 is the address of node n1; request another address, or remove the request",
        ),
        (
            vec![lan()],
            requesting("192.0.2.12"),
            "AddressInUse",
            "192.0.2.12 is in use: see kubectl get lbip 192.0.2.12; request another address, or remove \
             the request",
        ),
        (
            vec![lan()],
            requesting("2001:db8::1"),
            "FamilyMismatch",
            "2001:db8::1 is IPv6, and this Service has IPv4: request an address of that family, or change \
             spec.ipFamilies",
        ),
        (
            vec![lan()],
            six.clone(),
            "NoAutomaticPool",
            "no IPAddressPool has IPv6 addresses for this Service: create a pool with such addresses",
        ),
        (
            vec![lan()],
            both.clone(),
            "DualStackUnavailable",
            "spec.ipFamilyPolicy RequireDualStack requires both families, and no IPv6 address is available: no \
             IPAddressPool has IPv6 addresses for this Service: create a pool with such addresses; with \
             PreferDualStack, one family is enough",
        ),
    ] {
        let mut world = World::new(pools, [service, crate::fixtures::service("other", 1)]);
        world.snapshot.nodes.insert("n1".into(), node("n1", "192.0.2.11"));
        world.snapshot.records = [record("192.0.2.20", "full", &["other"])].into();
        world.snapshot.unreadable.records.insert(ip("192.0.2.12"));
        world.settle();
        let expected = ServiceView { condition: Some(format!("False {reason}: {message}")), ..ServiceView::nothing() };
        assert_eq!(world.view("web"), expected);
        let web = service_reference(&Key::new("default", "web"), "web");
        let events: Vec<_> = world.events.iter().filter(|event| event.regarding == web).cloned().collect();
        let event = Event { regarding: web, is_warning: true, reason: "AllocationFailed", message: message.into() };
        assert_eq!(events, [event]);
    }
}

#[test]
fn preferred_second_family_may_be_missing_with_a_reason() {
    let mut web = service("web", 5);
    (web.families, web.family_policy) = ([Family::V4, Family::V6].into(), FamilyPolicy::PreferDualStack);
    let mut world = World::new([lan()], [web]);
    world.settle();
    let message = "True Allocated: 192.0.2.10 from pool lan; without an IPv6 address: no IPAddressPool has IPv6 \
                   addresses for this Service: create a pool with such addresses";
    assert_eq!(
        world.view("web"),
        ServiceView { condition: Some(message.into()), ..ServiceView::has("192.0.2.10", "lan") }
    );
}

#[test]
fn deleted_service_loses_the_record_before_the_finalizer() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    world.delete("web");
    let record = world.snapshot.records[&ip("192.0.2.10")].clone();
    let patch = ServicePatch {
        key: Key::new("default", "web"),
        resource_version: world.service("web").resource_version,
        finalizers: Some(vec![]),
        ingress: Some(vec![]),
        conditions: Some(vec![]),
    };
    assert_eq!(
        plan(&world.snapshot).series,
        [Series {
            subject: Subject::Service(Key::new("default", "web")),
            effects: vec![
                Effect::Delete {
                    lb_ip: record.address,
                    uid: record.uid.clone(),
                    resource_version: record.resource_version
                },
                Effect::PatchService(patch)
            ],
        }]
    );
    world.settle();
    assert_eq!((world.snapshot.services.len(), world.snapshot.records.len()), (0, 0));
}

#[test]
fn late_deletion_spares_a_record_that_changed_since() {
    let lb_ip = ip("192.0.2.10");
    let release: fn(&mut World) = |world| world.delete("web");
    let disappear: fn(&mut World) = |world| world.snapshot.services.clear();
    let adopt: fn(&mut crds::Record) = |record| record.holders[0].uid = "web-again".into();
    let join: fn(&mut crds::Record) = |record| record.holders.push(holder("other"));
    for (end, change) in [(release, adopt), (release, join), (disappear, adopt), (disappear, join)] {
        let mut world = World::new([lan()], [service("web", 5)]);
        world.settle();
        end(&mut world);
        let late = plan(&world.snapshot).series.remove(0).effects.remove(0);
        assert_eq!(effect_name(&late), "delete 192.0.2.10");
        // A later plan changes the record while the request is held up.
        world.edit_record(lb_ip, change);
        assert!(!world.apply(&late), "the API server refuses the request");
        assert!(world.snapshot.records.contains_key(&lb_ip));
    }
}

#[test]
fn record_in_deletion_delays_status_and_finalizer() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    Arc::make_mut(world.snapshot.records.get_mut(&ip("192.0.2.10")).expect("a record")).deleting = true;
    world.delete("web");
    assert_eq!(plan(&world.snapshot), Plan::default());
}

#[test]
fn former_load_balancer_is_released_and_foreign_fields_stay() {
    let mut web = service("web", 5);
    web.finalizers = vec!["example.com/theirs".into()];
    web.conditions = vec![condition("example.com/Theirs", "True", "Theirs", "", 1)];
    let before = web.clone();
    let mut world = World::new([lan()], [web]);
    world.settle();
    assert!(world.view("web").has_finalizer);
    world.edit("web", |service| service.is_load_balancer = false);
    assert_eq!(effects(&plan(&world.snapshot)), ["delete 192.0.2.10", "patch default/web"]);
    world.settle();
    let after = world.service("web");
    assert_eq!(world.view("web"), ServiceView::nothing());
    assert_eq!((&after.finalizers, &after.conditions), (&before.finalizers, &before.conditions));
}

#[test]
fn services_of_other_classes_are_never_touched() {
    let mut theirs = service("theirs", 1);
    theirs.class = Some("example.com/other".into());
    theirs.finalizers = vec![FINALIZER.into()];
    theirs.ingress = shows("192.0.2.10");
    theirs.conditions = vec![condition("example.com/Theirs", "True", "Theirs", "", 1)];
    let mut deleted = Service { key: Key::new("default", "deleted"), deleting: true, ..theirs.clone() };
    deleted.request = request_for("192.0.2.11");
    let mut other = service("cluster-ip", 1);
    (other.is_load_balancer, other.finalizers) = (false, vec![FINALIZER.into()]);
    let mut world = World::new([lan()], [theirs, deleted, other]);
    let before = world.snapshot.services.clone();
    world.settle();
    assert_eq!(world.snapshot.services, before);
}

#[test]
fn classless_service_belongs_to_the_default_provider() {
    let mut classless = service("classless", 1);
    classless.finalizers = vec![FINALIZER.into()];
    let mut ours = service("ours", 2);
    ours.class = Some("landfall.dev/landfall".into());
    let mut world = World::new([lan()], [classless.clone(), ours]);
    world.snapshot.default_class = false;
    world.settle();
    assert_eq!((world.service("classless"), world.view("ours")), (&classless, ServiceView::has("192.0.2.10", "lan")));
}

#[test]
fn service_with_a_new_class_keeps_its_new_address() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    // Kubernetes admits a change of the class only with a change of the type (KEP-1959). The controller did not observe
    // the other type in between.
    world.edit("web", |service| {
        service.class = Some("example.com/other".into());
        service.ingress.extend(shows("198.51.100.1"));
    });
    world.settle();
    assert_eq!(world.view("web"), ServiceView { ingress: vec!["198.51.100.1".into()], ..ServiceView::nothing() });
}

#[test]
fn forged_status_gives_no_address_and_is_repaired() {
    let mut world = World::new([lan()], [service("web", 5), service("thief", 6)]);
    world.settle();
    world.edit("thief", |service| {
        service.ingress = shows("192.0.2.10");
        service.ingress.extend(shows("198.51.100.1"));
    });
    world.edit("web", |service| (service.ingress, service.finalizers) = (vec![], vec![]));
    let repairs = ["patch default/thief", "event StatusRepaired", "patch default/web", "event StatusRepaired"];
    assert_eq!(effects(&plan(&world.snapshot)), repairs);
    world.settle();
    let seen = ["web", "thief"].map(|name| world.view(name));
    assert_eq!(seen, [ServiceView::has("192.0.2.10", "lan"), ServiceView::has("192.0.2.11", "lan")]);
}

#[test]
fn forged_status_of_a_refused_service_is_cleared() {
    let mut world = World::new([pool("lan", 1, &["192.0.2.10/32"])], [service("web", 5), service("late", 6)]);
    world.settle();
    world.edit("late", |service| service.ingress = shows("192.0.2.10"));
    let made = plan(&world.snapshot);
    assert_eq!(effects(&made), ["patch default/late", "event StatusRepaired"]);
    let Some(Effect::Event(event)) = made.series[0].effects.last() else { panic!("{made:?}") };
    assert_eq!(
        event.message,
        "another client wrote status.loadBalancer; Landfall restored it, so that it shows no address of a pool"
    );
    world.settle();
    assert!(world.snapshot.services[&Key::new("default", "late")].ingress.is_empty());
}

#[test]
fn recreated_service_takes_its_record_over() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    let mut again = service("web", 7);
    again.uid = "web-again".into();
    world.snapshot.services.insert(again.key.clone(), Arc::new(again));
    for (subject, expected) in [
        ("LoadBalancerIP 192.0.2.10", &["patch 192.0.2.10"][..]),
        ("Service default/web", &["patch default/web", "event IPAllocated"]),
    ] {
        let plan = plan(&world.snapshot);
        assert_eq!(
            (subjects(&plan), effects(&plan)),
            (vec![subject.to_owned()], expected.iter().map(ToString::to_string).collect::<Vec<_>>())
        );
        plan.series.iter().flat_map(|series| &series.effects).for_each(|effect| assert!(world.apply(effect)));
    }
    assert_eq!(plan(&world.snapshot), Plan::default());
}

#[test]
fn new_address_is_shown_before_withdrawal_of_the_old() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    world.edit("web", |service| service.request = request_for("192.0.2.12"));
    let plan = plan(&world.snapshot);
    assert_eq!(
        effects(&plan),
        ["create 192.0.2.12", "patch default/web", "event IPAllocated", "delete 192.0.2.10", "patch lan"]
    );
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.12", "lan"));
}

#[test]
fn refused_change_keeps_the_old_address() {
    let mut world = World::new([lan()], [service("web", 5), service("other", 6)]);
    world.settle();
    world.edit("web", |service| service.request = request_for("192.0.2.11"));
    world.settle();
    let message = "False AddressInUse: 192.0.2.11 is held by Service default/other; request another \
                   address, or remove the request; until then, the Service keeps 192.0.2.10";
    assert_eq!(
        world.view("web"),
        ServiceView { condition: Some(message.into()), ..ServiceView::has("192.0.2.10", "lan") }
    );
    world.delete("other");
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.11", "lan"));
}

#[test]
fn edited_pools_take_no_address_away() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    world.snapshot.pools.clear();
    world.settle();
    let message = "True PoolGone: 192.0.2.10 is no longer in any IPAddressPool, and the Service keeps it: to get \
                   another one, request it in landfall.dev/load-balancer-ips or landfall.dev/address-pool";
    assert_eq!(
        world.view("web"),
        ServiceView { condition: Some(message.into()), ..ServiceView::has("192.0.2.10", "lan") }
    );
    world.snapshot.pools.insert("renamed".into(), pool("renamed", 9, &["192.0.2.0/24"]));
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "renamed"));
}

#[test]
fn service_gets_another_address_when_its_record_is_lost() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    world.snapshot.records.clear();
    world.snapshot.records.extend([record("192.0.2.10", "lan", &[])]);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.11", "lan"), "a record without holders is a reservation");
}

#[test]
fn next_plan_finishes_an_interrupted_allocation() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let first = plan(&world.snapshot);
    world.apply(&first.series[0].effects[0]);
    assert_eq!(effects(&plan(&world.snapshot)), ["patch default/web", "event IPAllocated", "patch lan"]);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
    // After a crash in the middle of a change, both addresses are held, and the one in the status stays.
    world.snapshot.records.extend([record("192.0.2.12", "lan", &["web"])]);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
}

#[test]
fn next_plan_finishes_an_interrupted_release() {
    for edit in
        [|service: &mut Service| service.deleting = true, |service: &mut Service| service.is_load_balancer = false]
    {
        let mut world = World::new([lan()], [service("web", 5)]);
        world.settle();
        world.edit("web", edit);
        world.snapshot.records.clear();
        assert_eq!(effects(&plan(&world.snapshot))[0], "patch default/web");
        world.settle();
        if world.snapshot.services.contains_key(&World::key("web")) {
            assert_eq!(world.view("web"), ServiceView::nothing());
        }
    }
}

#[test]
fn unreadable_objects_keep_their_addresses() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    // The Service exists, but it is unreadable. A record is unreadable too.
    world.snapshot.services.clear();
    world.snapshot.unreadable.services.insert(World::key("web"));
    world.snapshot.unreadable.records.insert(ip("192.0.2.11"));
    let other = service("other", 6);
    world.snapshot.services.insert(other.key.clone(), Arc::new(other));
    world.settle();
    assert_eq!(world.view("other"), ServiceView::has("192.0.2.12", "lan"));
    assert!(world.snapshot.records.contains_key(&ip("192.0.2.10")));
}

#[test]
fn each_change_is_one_event() {
    let mut world = World::new([], [service("web", 5)]);
    world.settle();
    world.snapshot.now = at_second(50);
    world.settle();
    world.snapshot.pools.insert("lan".into(), lan());
    world.settle();
    world.edit("web", |service| service.traffic_policy = crds::TrafficPolicy::Local);
    world.settle();
    assert_eq!(world.events.iter().map(|event| event.reason).collect::<Vec<_>>(), ["AllocationFailed", "IPAllocated"]);
}

#[test]
fn problems_of_a_pool_are_events_of_the_pool() {
    let bad = pool("bad", 2, &["nonsense", "192.0.2.12-192.0.2.13"]);
    let mut world = World::new([lan(), bad], []);
    world.settle();
    let events: Vec<_> = world.events.iter().map(|e| (e.regarding.name.as_deref(), e.reason, e.is_warning)).collect();
    assert_eq!(events, [(Some("bad"), "NotReady", true), (Some("bad"), "Overlap", true)]);
}

#[test]
fn record_with_contradicting_name_and_uid_is_deleted() {
    let mut world = World::new([lan()], [service("web", 5), service("other", 6)]);
    let (address, mut record) = record("192.0.2.11", "lan", &["web"]);
    Arc::make_mut(&mut record).holders[0].uid = "other".into();
    world.snapshot.records.insert(address, record);
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
    assert!(!world.snapshot.records.contains_key(&address));
}

#[test]
fn older_of_two_requests_for_one_address_wins() {
    let requesting = |name, created| Service { request: request_for("192.0.2.10"), ..service(name, created) };
    let mut world = World::new([lan()], [requesting("a", 9), requesting("b", 5)]);
    world.settle();
    assert_eq!(world.view("b"), ServiceView::has("192.0.2.10", "lan"));
    let message = "False AddressInUse: 192.0.2.10 is held by Service default/b; request another address, \
                   or remove the request";
    assert_eq!(world.view("a"), ServiceView { condition: Some(message.into()), ..ServiceView::nothing() });
}

#[test]
fn service_with_two_addresses_keeps_the_shown_one() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.snapshot.records = [record("192.0.2.11", "lan", &["web"]), record("192.0.2.12", "lan", &["web"])].into();
    world.edit("web", |service| service.ingress = shows("192.0.2.12"));
    world.settle();
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.12", "lan"));
}

#[test]
fn address_in_deletion_is_replaced_and_not_assigned() {
    let mut world = World::new([lan()], [service("web", 5)]);
    world.settle();
    Arc::make_mut(world.snapshot.records.get_mut(&ip("192.0.2.10")).expect("a record")).deleting = true;
    let requesting = Service { request: request_for("192.0.2.10"), ..service("requesting", 9) };
    world.snapshot.services.insert(requesting.key.clone(), Arc::new(requesting));
    world.settle();
    assert_eq!(world.view("web").ingress, ["192.0.2.11"]);
    let message = "False AddressInUse: 192.0.2.10 is being withdrawn: it will be assigned as soon as it is \
                   free";
    assert_eq!(world.view("requesting"), ServiceView { condition: Some(message.into()), ..ServiceView::nothing() });
}
