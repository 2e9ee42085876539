//! Plans after changes, and series in flight.

use super::*;

#[test]
fn new_generation_updates_the_condition_without_an_event() {
    let mut world = World::new([lan()], [Service { generation: Some(3), ..service("web", 1) }]);
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

/// Copies all changes into the index, then plans and applies effects until a plan is empty. Returns the subjects of
/// each plan.
pub(super) fn follow(cluster: &mut ClusterIndex, world: &mut World) -> Vec<Vec<String>> {
    let mut plans = Vec::new();
    loop {
        let snapshot = world.snapshot.clone();
        snapshot.pools.iter().for_each(|(name, pool)| {
            if cluster.pools.get(name).is_none_or(|known| known.object != *pool) {
                cluster.set_pool(name, Some(pool.clone()));
            }
        });
        let keys: Vec<_> = cluster.objects.services().keys().chain(snapshot.services.keys()).cloned().collect();
        for key in keys {
            let service = snapshot.services.get(&key);
            if cluster.objects.services().get(&key) != service {
                cluster.set_service(&key, service.cloned(), false);
            }
        }
        let lb_ips: Vec<IpAddr> = cluster.objects.records().keys().chain(snapshot.records.keys()).copied().collect();
        for lb_ip in lb_ips {
            let record = snapshot.records.get(&lb_ip);
            if cluster.objects.records().get(&lb_ip) != record {
                cluster.set_record(lb_ip, record.cloned(), false, snapshot.now);
            }
        }
        let plan = cluster.plan(snapshot.now);
        if plan.series.is_empty() {
            return plans;
        }
        plans.push(plan.series.iter().map(|series| series.subject.to_string()).collect());
        for series in plan.series {
            cluster.start_series(&series);
            for effect in &series.effects {
                world.apply(effect);
            }
            cluster.end_series(&series.subject);
        }
    }
}

#[test]
fn released_address_cools_down_except_for_its_service() {
    let mut world = World::new([lan()], [service("web", 1)]);
    world.snapshot.now = at_second(100);
    let mut cluster = ClusterIndex::new(true);
    follow(&mut cluster, &mut world);
    world.delete("web");
    follow(&mut cluster, &mut world);
    for (second, name, expected) in [(110, "other", "192.0.2.11"), (120, "web", "192.0.2.10")] {
        world.snapshot.now = at_second(second);
        let mut new = service(name, second);
        new.uid = format!("{name}-again").into();
        world.snapshot.services.insert(new.key.clone(), Arc::new(new));
        follow(&mut cluster, &mut world);
        assert_eq!(ingress(&world, name), [expected]);
    }
    world.delete("web");
    follow(&mut cluster, &mut world);
    world.snapshot.now = at_second(181);
    let late = service("late", 181);
    world.snapshot.services.insert(late.key.clone(), Arc::new(late));
    follow(&mut cluster, &mut world);
    assert_eq!(ingress(&world, "late"), ["192.0.2.10"], "the cool-down is over");
    // A Service gets its former address rather than one of an older pool.
    world.delete("late");
    follow(&mut cluster, &mut world);
    set_pool(&mut world, pool("older", 0, &["192.0.2.200-192.0.2.201"]));
    let again = Service { uid: "late-again".into(), ..service("late", 182) };
    world.snapshot.services.insert(again.key.clone(), Arc::new(again));
    follow(&mut cluster, &mut world);
    assert_eq!(ingress(&world, "late"), ["192.0.2.10"]);
}

#[test]
fn plan_contains_only_changed_subjects() {
    let wide = pool("wide", 1, &["10.0.0.0/16"]);
    let mut world = World::new([wide], (0..200).map(|n| service(&format!("s{n:03}"), n)));
    let mut cluster = ClusterIndex::new(true);
    let plans = follow(&mut cluster, &mut world);
    assert_eq!((plans.len(), plans[0].len()), (1, 201));
    world.edit("s007", |service| service.ingress = shows("198.51.100.1"));
    assert_eq!(follow(&mut cluster, &mut world), [["Service default/s007"]]);
    let new = service("new", 500);
    world.snapshot.services.insert(new.key.clone(), Arc::new(new));
    assert_eq!(follow(&mut cluster, &mut world), [["Service default/new", "IPAddressPool wide"]]);
    assert_eq!(follow(&mut cluster, &mut world), Vec::<Vec<String>>::new());
}

#[test]
fn service_does_not_join_when_the_holder_changes_first() {
    let mut world = World::new([lan()], [sharing("a", 1, 80)]);
    world.settle();
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    cluster.plan(at_second(1));
    let b = Arc::new(sharing("b", 2, 443));
    cluster.set_service(&b.key, Some(b.clone()), false);
    let record = Subject::Record(ip("192.0.2.10"));
    let planned = cluster.plan(at_second(1));
    assert_eq!(planned.series.iter().map(|series| &series.subject).collect::<Vec<_>>(), [&record]);
    world.edit("a", |service| service.ports[0].number = 443);
    cluster.set_service(&World::key("a"), Some(Arc::new(world.service("a").clone())), false);
    // The record does not name `b`, even before the next decision about `b`.
    let Some(Effect::PatchRecord(patch)) = cluster.reconcile_holders(ip("192.0.2.10"), at_second(9)) else {
        panic!("new terms")
    };
    assert_eq!(patch.holders.iter().map(|holder| holder.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let again = cluster.plan(at_second(2));
    let of_b = again.series.iter().find(|series| series.subject == Subject::Service(b.key.clone())).expect("a series");
    assert_eq!(of_b.effects[0].lb_ip(), Some(ip("192.0.2.11")));
}

#[test]
fn no_service_joins_while_the_deletion_is_in_flight() {
    let mut world = World::new([lan()], [service("a", 1)]);
    world.settle();
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    cluster.plan(at_second(1));
    let observe = |cluster: &mut ClusterIndex, world: &World, name: &str| {
        cluster.set_service(&World::key(name), Some(Arc::new(world.service(name).clone())), false);
    };
    world.edit("a", |service| service.is_load_balancer = false);
    observe(&mut cluster, &world, "a");
    let release = cluster.plan(at_second(1)).series.remove(0);
    assert_eq!(release.effects[0].lb_ip(), Some(ip("192.0.2.10")));
    cluster.start_series(&release);
    // `a` becomes a LoadBalancer again, and `b` could share the address with it now.
    world.edit("a", |service| *service = Service { uid: "a".into(), ..sharing("a", 1, 80) });
    let mut b = sharing("b", 2, 443);
    request_of(&mut b).addresses = vec![ip("192.0.2.10")];
    world.snapshot.services.insert(b.key.clone(), Arc::new(b));
    observe(&mut cluster, &world, "a");
    observe(&mut cluster, &world, "b");
    let touched: Vec<_> =
        cluster.plan(at_second(2)).series.iter().flat_map(|s| &s.effects).filter_map(Effect::lb_ip).collect();
    assert_eq!(touched, Vec::<IpAddr>::new());
}

#[test]
fn refusal_in_flight_keeps_the_turn_of_a_request() {
    let mut world = World::new([], [requesting("web", 1, |request| request.addresses = vec![ip("192.0.2.10")])]);
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    let refusal = cluster.plan(at_second(1)).series.remove(0);
    assert_eq!(refusal.effects[0].lb_ip(), None);
    cluster.start_series(&refusal);
    // A pool appears, and a Service that takes any address.
    let other = Arc::new(service("other", 2));
    world.snapshot.services.insert(other.key.clone(), other.clone());
    cluster.set_service(&other.key, Some(other.clone()), false);
    cluster.set_pool("lan", Some(lan()));
    let creates = |plan: Plan| -> Vec<(String, IpAddr)> {
        let firsts = plan.series.iter().map(|series| (series.subject.to_string(), series.effects[0].lb_ip()));
        firsts.filter_map(|(subject, lb_ip)| Some((subject, lb_ip?))).collect()
    };
    assert_eq!(creates(cluster.plan(at_second(2))), [("Service default/other".to_owned(), ip("192.0.2.11"))]);
    cluster.end_series(&refusal.subject);
    assert_eq!(creates(cluster.plan(at_second(3))), [("Service default/web".to_owned(), ip("192.0.2.10"))]);
}

#[test]
fn promised_address_is_not_assigned_again() {
    let mut world = World::new([lan()], [service("one", 1)]);
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    let first = cluster.plan(at_second(1));
    assert_eq!(first.series[0].effects[0].lb_ip(), Some(ip("192.0.2.10")));
    let two = Arc::new(service("two", 2));
    world.snapshot.services.insert(two.key.clone(), two.clone());
    cluster.set_service(&two.key, Some(two.clone()), false);
    let second = cluster.plan(at_second(2));
    assert_eq!(second.series[0].effects[0].lb_ip(), Some(ip("192.0.2.11")));
    // The series of a Service that is deleted before the series starts is revoked.
    cluster.set_service(&World::key("one"), None, false);
    let third = cluster.plan(at_second(3));
    assert_eq!(third.revoked, [Subject::Service(World::key("one"))]);
    let three = Arc::new(service("three", 3));
    cluster.set_service(&three.key, Some(three.clone()), false);
    assert_eq!(cluster.plan(at_second(4)).series[0].effects[0].lb_ip(), Some(ip("192.0.2.10")));
}
