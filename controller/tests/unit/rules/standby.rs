//! A controller that does not lead.

use super::*;
use jiff::SignedDuration;

/// Observes all objects, as a controller that does not lead.
fn observe(cluster: &mut ClusterIndex, world: &World) {
    let snapshot = &world.snapshot;
    snapshot.pools.iter().for_each(|(name, pool)| cluster.set_pool(name, Some(pool.clone())));
    for key in cluster.objects.services().keys().chain(snapshot.services.keys()).cloned().collect::<Vec<_>>() {
        cluster.set_service(&key, snapshot.services.get(&key).cloned(), false);
    }
    for lb_ip in cluster.objects.records().keys().chain(snapshot.records.keys()).copied().collect::<Vec<_>>() {
        cluster.set_record(lb_ip, snapshot.records.get(&lb_ip).cloned(), false, snapshot.now);
    }
    cluster.stand_by(snapshot.now);
}

/// The number of keys that an index keeps for its next plan.
fn kept_keys(cluster: &ClusterIndex) -> usize {
    let dirty = &cluster.dirty;
    dirty.services.len() + dirty.rechecks.len() + dirty.backlog.len() + dirty.records.len() + dirty.pools.len()
}

#[test]
fn standby_knows_cool_downs_of_an_hour() {
    let lan = edit_pool(lan(), |spec| spec.reuse_after = Some("1h".into()));
    let mut world = World::new([lan], [service("web", 1)]);
    world.snapshot.now = at_second(100);
    world.settle();
    let mut standby = ClusterIndex::new(true);
    observe(&mut standby, &world);
    world.delete("web");
    world.settle();
    observe(&mut standby, &world);
    for (after, expected) in [(70, "192.0.2.11"), (3_500, "192.0.2.11"), (3_601, "192.0.2.10")] {
        let mut world = world.clone();
        let mut leader = ClusterIndex::new(true);
        std::mem::swap(&mut leader, &mut standby);
        world.snapshot.now = at_second(100).saturating_add(SignedDuration::from_secs(after)).expect("in range");
        let other = service("other", 200);
        leader.set_service(&other.key.clone(), Some(Arc::new(other)), false);
        leader.start_over(world.snapshot.now);
        let plan = leader.plan(world.snapshot.now);
        let created = plan.series.iter().flat_map(|series| &series.effects).find_map(Effect::lb_ip);
        assert_eq!(created, Some(ip(expected)), "after {after} s");
        // The next row starts with the same standby.
        leader.set_service(&World::key("other"), None, false);
        leader.start_over(world.snapshot.now);
        standby = leader;
    }
}

#[test]
fn standby_keeps_nothing_of_services_that_are_gone() {
    let mut cluster = ClusterIndex::new(true);
    observe(&mut cluster, &World::new([lan()], []));
    for n in 0..1_000 {
        let name = format!("s{n}");
        let mut world = World::new([lan()], [service(&name, n)]);
        world.settle();
        observe(&mut cluster, &world);
        observe(&mut cluster, &World::new([lan()], []));
    }
    assert_eq!(kept_keys(&cluster), 0);
}

#[test]
fn former_leader_keeps_no_decisions_about_services_that_are_gone() {
    let scarce = pool("lan", 1, &["192.0.2.10"]);
    let mut world = World::new([scarce], [service("web", 1), service("refused", 2)]);
    let mut cluster = ClusterIndex::new(true);
    super::changes::follow(&mut cluster, &mut world);
    cluster.start_over(at_second(2));
    world.delete("refused");
    world.settle();
    observe(&mut cluster, &world);
    assert_eq!((kept_keys(&cluster), cluster.is_idle(&World::key("refused"))), (0, true));
    // When it leads again, it finds everything that is to do.
    world.edit("web", |service| service.is_load_balancer = false);
    observe(&mut cluster, &world);
    cluster.start_over(at_second(3));
    let subjects: Vec<_> = cluster.plan(at_second(3)).series.into_iter().map(|series| series.subject).collect();
    assert!(subjects.contains(&Subject::Service(World::key("web"))), "{subjects:?}");
}

#[test]
fn new_leader_updates_records_that_changed_while_it_stood_by() {
    let mut world = World::new([lan()], [sharing("a", 1, 80), sharing("b", 2, 443)]);
    world.settle();
    let mut cluster = ClusterIndex::new(true);
    observe(&mut cluster, &world);
    world.delete("b");
    observe(&mut cluster, &world);
    cluster.start_over(at_second(3));
    super::changes::follow(&mut cluster, &mut world);
    assert_eq!(holders(&world, "192.0.2.10").0, ["a"]);
}
