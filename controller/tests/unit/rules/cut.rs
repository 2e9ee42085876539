//! Cut plans: each decides about a limited number of Services, and leaves the others in the backlog.

use super::*;
use crate::plan::Plan;
use jiff::SignedDuration;

/// The subjects of a plan that are Services, by name.
fn planned_services(plan: &Plan) -> Vec<String> {
    let names = plan.series.iter().filter_map(|series| match &series.subject {
        Subject::Service(key) => Some(key.name.to_string()),
        _ => None,
    });
    names.collect()
}

/// A cluster with agents and `count` Services. No node announces their addresses, and the conditions report that.
fn silent_cluster(count: i64) -> (ClusterIndex, World) {
    let lan = pool("lan", 1, &["192.0.2.0-192.0.2.255"]);
    let mut world = World::new([lan], (0..count).map(|n| service(&format!("silent-{n}"), n)));
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    cluster.set_node("n1", Some(node("n1", "198.51.100.1")));
    cluster.set_network("n1", Some(Arc::new(NodeAddresses::default())));
    super::changes::follow(&mut cluster, &mut world);
    world.snapshot.now = world.snapshot.now.saturating_add(SignedDuration::from_secs(6)).expect("in range");
    super::changes::follow(&mut cluster, &mut world);
    assert!(cluster.unannounced.len() == usize::try_from(count).expect("in range") && !cluster.has_backlog());
    (cluster, world)
}

/// The label of a node changes, and with it the reason why addresses may be unannounced.
fn relabel(cluster: &mut ClusterIndex, value: &str) {
    let mut labelled = node("n1", "198.51.100.1");
    Arc::make_mut(&mut labelled).labels = Labels::from([("rack", value)]);
    cluster.set_node("n1", Some(labelled));
}

#[test]
fn new_service_is_planned_before_rechecked_ones() {
    let (mut cluster, world) = silent_cluster(50);
    relabel(&mut cluster, "a");
    // A Service that holds an address has changed, and another one is new. Both are younger than all others.
    let mut edited = world.service("silent-49").clone();
    edited.ingress.clear();
    cluster.set_service(&edited.key.clone(), Some(Arc::new(edited)), false);
    let new = service("zz", 1_000);
    cluster.set_service(&new.key.clone(), Some(Arc::new(new)), false);
    let plans: Vec<_> = (0..3).map(|_| planned_services(&cluster.plan_some(world.snapshot.now, 1))).collect();
    assert_eq!(plans, [vec!["zz"], vec!["silent-49"], vec![]]);
    assert_eq!(cluster.dirty.backlog.len(), 49, "the third plan checked one of 50");
}

#[test]
fn change_during_a_backlog_is_planned_first() {
    let (mut cluster, world) = silent_cluster(20);
    relabel(&mut cluster, "a");
    cluster.plan_some(world.snapshot.now, 5);
    assert!(cluster.has_backlog());
    let new = service("zz", 1_000);
    cluster.set_service(&new.key.clone(), Some(Arc::new(new)), false);
    assert_eq!(planned_services(&cluster.plan_some(world.snapshot.now, 5)), ["zz"]);
    let mut plans = 2;
    while cluster.has_backlog() {
        cluster.plan_some(world.snapshot.now, 5);
        plans += 1;
    }
    assert_eq!(plans, 5, "20 Services and the new one, five at a time");
}

#[test]
fn cut_plans_assign_addresses_in_the_order_of_one_plan() {
    // The oldest Service has the last name.
    let mut services: Vec<_> = (0..9).map(|n| service(&format!("s{n}"), 100 - n)).collect();
    *request_of(&mut services[0]) =
        RequestedAddresses { addresses: vec![ip("192.0.2.11")], ..RequestedAddresses::default() };
    let world = World::new([lan()], services);
    for limit in [1, 2, 4, usize::MAX] {
        let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
        let mut created = Vec::new();
        loop {
            let plan = cluster.plan_some(world.snapshot.now, limit);
            for series in &plan.series {
                let lb_ip = series.effects.iter().find_map(Effect::lb_ip);
                created.extend(lb_ip.map(|lb_ip| format!("{} {lb_ip}", series.subject)));
            }
            if !cluster.has_backlog() {
                break;
            }
        }
        created.sort();
        let expected = ["s0 192.0.2.11", "s7 192.0.2.12", "s8 192.0.2.10"];
        assert_eq!(created, expected.map(|text| format!("Service default/{text}")), "limit {limit}");
    }
}

#[test]
fn service_in_the_backlog_keeps_its_promise_and_its_series() {
    let services = ["a", "b"].map(|name| service(name, 1));
    let world = World::new([pool("lan", 1, &["192.0.2.10-192.0.2.11"])], services);
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    let first = cluster.plan(world.snapshot.now);
    assert_eq!(planned_services(&first), ["a", "b"]);
    // Both change before their series start, and only one is planned again.
    for name in ["a", "b"] {
        let mut edited = world.service(name).clone();
        (edited.resource_version, edited.labels) = (2, Labels::from([("edited", "true")]));
        cluster.set_service(&edited.key.clone(), Some(Arc::new(edited)), false);
    }
    let second = cluster.plan_some(world.snapshot.now, 1);
    assert_eq!((planned_services(&second), second.revoked), (vec!["a".to_owned()], vec![]));
    let promised: Vec<_> = cluster.promised.get(&World::key("b")).collect();
    let created = first.series[1].effects.iter().find_map(Effect::lb_ip).expect("a creation");
    assert_eq!(promised, [&created]);
}
