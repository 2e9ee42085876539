//! Services that are observed before their namespace.

use super::*;

/// A pool with this address for namespaces with the label `team=a`, which is tried first.
fn team(namespaces: &[&str]) -> Arc<IPAddressPool> {
    edit_pool(pool("team", 1, &["192.0.2.1"]), |spec| {
        spec.service_allocation = Some(ServiceAllocation {
            priority: 1,
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            namespace_selectors: vec![
                serde_json::from_value(serde_json::json!({"matchLabels": {"team": "a"}})).expect("a selector"),
            ],
            ..ServiceAllocation::default()
        });
    })
}

fn general() -> Arc<IPAddressPool> {
    pool("general", 2, &["192.0.2.10"])
}

/// The addresses that a plan assigns.
fn created_addresses(plan: &Plan) -> Vec<String> {
    let effects = plan.series.iter().flat_map(|series| &series.effects);
    let created = effects.filter(|effect| matches!(effect, Effect::Create { .. }));
    created.filter_map(|effect| Some(effect.lb_ip()?.to_string())).collect()
}

/// The message of the condition in a plan for `default/web`.
fn message(plan: &Plan) -> Option<String> {
    let effects = plan.series.iter().flat_map(|series| &series.effects);
    effects.into_iter().find_map(|effect| match effect {
        Effect::PatchService(patch) => Some(patch.conditions.as_ref()?.first()?.message.to_string()),
        _ => None,
    })
}

/// A cluster with these pools and this Service, whose namespace is unknown.
fn without_namespace(pools: &[Arc<IPAddressPool>], service: Service) -> ClusterIndex {
    let mut cluster = ClusterIndex::new(true);
    for pool in pools {
        cluster.set_pool(pool.metadata.name.as_deref().expect("a name"), Some(pool.clone()));
    }
    cluster.set_service(&service.key.clone(), Some(Arc::new(service)), false);
    cluster
}

fn namespace(team: &str) -> Arc<Namespace> {
    Arc::new(Namespace { name: "default".into(), labels: Labels::from([("team", team)]) })
}

#[test]
fn service_waits_while_labels_of_its_namespace_decide() {
    let any = || service("web", 1);
    let address = |text: &str| Service { request: request_for(text), ..any() };
    let of_pool = |name: &str| requesting("web", 1, |request| request.pool = Some(name.into()));
    for (name, pools, web, at_once, of_team_a, of_team_b) in [
        ("any", vec![team(&[]), general()], any(), None, Some("192.0.2.1"), Some("192.0.2.10")),
        ("no general pool", vec![team(&[])], any(), None, Some("192.0.2.1"), None),
        ("address of the team", vec![team(&[]), general()], address("192.0.2.1"), None, Some("192.0.2.1"), None),
        ("pool of the team", vec![team(&[]), general()], of_pool("team"), None, Some("192.0.2.1"), None),
        ("other address", vec![team(&[]), general()], address("192.0.2.10"), Some("192.0.2.10"), None, None),
        ("other pool", vec![team(&[]), general()], of_pool("general"), Some("192.0.2.10"), None, None),
        ("named by the pool", vec![team(&["default"]), general()], any(), Some("192.0.2.1"), None, None),
        ("no selector", vec![general()], any(), Some("192.0.2.10"), None, None),
    ] {
        for (label, later) in [("a", of_team_a), ("b", of_team_b)] {
            let mut cluster = without_namespace(&pools, web.clone());
            let first = cluster.plan(at_second(100));
            assert_eq!(created_addresses(&first), at_once.into_iter().collect::<Vec<_>>(), "{name}: at once");
            if at_once.is_some() {
                continue;
            }
            let subjects: Vec<_> = first.series.iter().map(|series| &series.subject).collect();
            assert!(!subjects.contains(&&Subject::Service(web.key.clone())), "{name}: nothing is written");
            cluster.set_namespace("default", Some(namespace(label)));
            let then = created_addresses(&cluster.plan(at_second(103)));
            assert_eq!(then, later.into_iter().collect::<Vec<_>>(), "{name}: team {label}");
        }
    }
}

#[test]
fn missing_namespace_is_reported_after_five_seconds() {
    let pools = [team(&[]), general()];
    let mut cluster = without_namespace(&pools, service("web", 1));
    assert_eq!((message(&cluster.plan(at_second(100))), cluster.next_deadline()), (None, Some(at_second(105))));
    assert_eq!(message(&cluster.plan(at_second(104))), None);
    let reported = message(&cluster.plan(at_second(105))).expect("a condition");
    assert!(reported.contains("has not received Namespace default"), "{reported}");
    assert_eq!(cluster.next_deadline(), None);
    cluster.set_namespace("default", Some(namespace("a")));
    assert_eq!(created_addresses(&cluster.plan(at_second(200))), ["192.0.2.1"]);
    // Nothing is remembered of a namespace without Services.
    let mut cluster = without_namespace(&pools, service("web", 1));
    cluster.plan(at_second(100));
    cluster.set_service(&World::key("web"), None, false);
    cluster.plan(at_second(101));
    assert_eq!(cluster.next_deadline(), None);
}
