//! What is planned again when something changes, and when.

use super::*;

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
fn who_asks_by_name_gets_what_comes_while_it_is_being_told_that_there_is_nothing() {
    let mut world = World::with([], [wanting("web", 1, |request| request.addresses = vec![ip("192.0.2.10")])]);
    let mut ledger = Ledger::of(&world.snapshot);
    let told = ledger.plan(at(1)).series.remove(0);
    assert_eq!(told.effects[0].address(), None);
    ledger.begins(&told);
    // A pool comes, and somebody who would take any.
    let other = Arc::new(service("other", 2));
    world.snapshot.services.insert(other.key.clone(), other.clone());
    ledger.set_service(&other.key, Some(other.clone()), false);
    ledger.set_pool("lan", Some(lan()));
    let creates = |plan: Plan| -> Vec<(String, IpAddr)> {
        let firsts = plan.series.iter().map(|series| (series.subject.to_string(), series.effects[0].address()));
        firsts.filter_map(|(subject, address)| Some((subject, address?))).collect()
    };
    assert_eq!(creates(ledger.plan(at(2))), [("Service default/other".to_owned(), ip("192.0.2.11"))]);
    ledger.ended(&told.subject);
    assert_eq!(creates(ledger.plan(at(3))), [("Service default/web".to_owned(), ip("192.0.2.10"))]);
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
