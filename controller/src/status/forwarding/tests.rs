//! The condition `Forwarding`: its contents, and the writes it needs.

use std::collections::BTreeSet;

use crds::service::Family;
use crds::{FamilyPolicy, NodeAddresses};
use std::sync::Arc;

use super::*;
use crate::fixtures::{at_second, ip, pool, service};
use crate::plan::Plan;
use crate::plan::effect::Effect;
use crate::state::index::ClusterIndex;
use crate::world::World;

/// A cluster with an agent, in which `web` has 192.0.2.10.
fn world() -> World {
    let lan = pool("lan", 1, &["192.0.2.10-192.0.2.12", "2001:db8::10-2001:db8::12"]);
    let mut world = World::new([lan], [service("web", 5)]);
    world.snapshot.networks.insert("n1".into(), Arc::new(NodeAddresses::default()));
    world.snapshot.now = at_second(100);
    world.settle();
    world
}

/// The announcer of 192.0.2.10 reports how it forwards the address.
fn report(world: &mut World, reach: Option<Reach>, unforwarded: &[(&str, ProblemReason, &str)]) {
    world.announce(ip("192.0.2.10"));
    let unforwarded = unforwarded.iter().map(|(name, reason, what)| ForwardingProblem {
        namespace: "default".into(),
        name: (*name).into(),
        reason: *reason,
        what: (*what).into(),
    });
    let unforwarded: Vec<_> = unforwarded.collect();
    world.edit_record(ip("192.0.2.10"), |record| {
        (record.announcers[0].reach, record.announcers[0].unforwarded) = (reach, unforwarded);
    });
    world.settle();
}

/// Status and reason, and the message, of the condition.
fn condition(world: &World) -> (String, String) {
    let conditions = &world.service("web").conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == FORWARDING).expect("a condition");
    assert_eq!(condition.observed_generation, world.service("web").generation);
    (format!("{} {}", condition.status, condition.reason), condition.message.to_string())
}

#[test]
fn condition_reports_reach_and_problems() {
    use ProblemReason::{
        AddressOfNode, AnswersElsewhere, BackendUnavailable, EndpointsRefused, InvalidSourceRange, NoEndpoints,
        NoLocalEndpoints, RequestsFiltered, UnknownBackend,
    };
    use Reach::{Mixed, Proxied, Spread, Translated};
    type Case<'a> = (Option<Reach>, &'a [(&'a str, ProblemReason, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 17] = [
        (Some(Spread), &[], "True Spread", "192.0.2.10 is spread over nodes, and endpoints see the client"),
        (Some(Mixed), &[], "True Mixed", "endpoints elsewhere see a node, not the client"),
        (Some(Translated), &[], "True Translated", "is forwarded by the node that announces it"),
        (None, &[], "Unknown Unreported", "--dataplane=off"),
        (Some(Spread), &[("web", NoEndpoints, "80/TCP")], "False NoEndpoints", "192.0.2.10 refuses 80/TCP"),
        (Some(Spread), &[("other", NoEndpoints, "80/TCP")], "True Spread", "is spread over nodes"),
        (Some(Spread), &[("web", NoLocalEndpoints, "80/TCP")], "False NoLocalEndpoints", "192.0.2.10 drops 80/TCP"),
        (
            Some(Spread),
            &[("web", EndpointsRefused, "127.0.0.1")],
            "True EndpointsRefused",
            "EndpointSlice has 127.0.0.1",
        ),
        (
            Some(Translated),
            &[("web", NoEndpoints, "80/TCP"), ("web", EndpointsRefused, "127.0.0.1")],
            "False EndpointsRefused",
            "EndpointSlice has 127.0.0.1",
        ),
        (Some(Spread), &[("web", InvalidSourceRange, "x")], "True InvalidSourceRange", "has \"x\", which is no CIDR"),
        (Some(Proxied), &[], "True Proxied", "by the Service proxy of the node"),
        (
            Some(Spread),
            &[("web", BackendUnavailable, "nodeport: port 81/TCP has no node port")],
            "True BackendUnavailable",
            "is forwarded to endpoints, and not by the backend nodeport: port 81/TCP has no node port",
        ),
        (
            Some(Spread),
            &[("web", UnknownBackend, "pods")],
            "True UnknownBackend",
            "has \"pods\", which is not endpoints, nodeport or clusterip",
        ),
        (
            Some(Spread),
            &[("web", AnswersElsewhere, "no router is known on link eth1")],
            "True AnswersElsewhere",
            "than the requests arrive on: no router is known on link eth1",
        ),
        (Some(Spread), &[("web", RequestsFiltered, "link eth1")], "True RequestsFiltered", "rp_filter to 2"),
        (
            Some(Translated),
            &[("web", AddressOfNode, "192.0.2.10")],
            "False AddressOfNode",
            "is also an address of the node that announces it",
        ),
        (Some(Reach::Other), &[("web", ProblemReason::Other, "y")], "True Other", "this version does not know"),
    ];
    let mut world = world();
    let mut seen = BTreeSet::new();
    for (reach, unforwarded, expected, words) in cases {
        report(&mut world, reach, unforwarded);
        let (found, message) = condition(&world);
        assert_eq!(found, expected, "{message}");
        assert!(message.contains(words), "{message}");
        seen.insert(found);
        // A new controller finds nothing to write either.
        assert_eq!(ClusterIndex::from_snapshot(&world.snapshot).plan(at_second(200)), Plan::default(), "{expected}");
    }
    assert_eq!(seen.len(), 16);
}

#[test]
fn both_conditions_are_one_write_and_survive_a_move() {
    let mut world = world();
    world.announce(ip("192.0.2.10"));
    let plan = ClusterIndex::from_snapshot(&world.snapshot).plan(at_second(101));
    let effects: Vec<_> = plan.series.iter().flat_map(|series| &series.effects).collect();
    assert!(matches!(effects[..], [Effect::PatchConditions(_)]), "{effects:?}");
    world.settle();
    let before = condition(&world);
    world.snapshot.nodes.insert("n2".into(), crate::fixtures::node("n2", "198.51.100.2"));
    world.edit_record(ip("192.0.2.10"), |record| record.announcers[0].node = "n2".into());
    world.settle();
    assert_eq!(condition(&world), before);
}

#[test]
fn missing_announcer_is_reported_after_the_grace_period() {
    let mut world = world();
    let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
    assert_eq!(cluster.plan(at_second(100)), Plan::default(), "the grace period is not over");
    for series in cluster.plan(at_second(105)).series {
        series.effects.iter().for_each(|effect| assert!(world.apply(effect)));
    }
    let (found, message) = condition(&world);
    assert_eq!(found, "Unknown NotAnnounced");
    assert_eq!(message, "192.0.2.10 is not announced, so no packet reaches it");
}

#[test]
fn only_mistakes_of_users_are_events() {
    let events = |problem| {
        let mut world = world();
        world.announce(ip("192.0.2.10"));
        world.edit_record(ip("192.0.2.10"), |record| {
            let (namespace, name, what) = ("default".into(), "web".into(), "80/TCP".into());
            record.announcers[0].unforwarded = vec![ForwardingProblem { namespace, name, reason: problem, what }];
        });
        let plan = ClusterIndex::from_snapshot(&world.snapshot).plan(at_second(101));
        let effects = plan.series.into_iter().flat_map(|series| series.effects);
        let events = effects.filter_map(|effect| match effect {
            Effect::Event(event) => Some((event.reason, event.is_warning)),
            _ => None,
        });
        events.collect::<Vec<_>>()
    };
    assert_eq!(events(ProblemReason::NoEndpoints), []);
    assert_eq!(events(ProblemReason::EndpointsRefused), [("NotForwarded", true)]);
    assert_eq!(events(ProblemReason::InvalidSourceRange), [("NotForwarded", true)]);
    assert_eq!(events(ProblemReason::AnswersElsewhere), []);
    assert_eq!(events(ProblemReason::RequestsFiltered), [("NotForwarded", true)]);
}

#[test]
fn worse_address_decides_and_both_are_reported() {
    let mut world = world();
    world.edit("web", |web| {
        (web.families, web.family_policy) = ([Family::V4, Family::V6].into(), FamilyPolicy::RequireDualStack);
    });
    world.settle();
    world.announce(ip("2001:db8::10"));
    report(&mut world, Some(Reach::Translated), &[]);
    let (found, message) = condition(&world);
    assert_eq!(found, "True Translated");
    assert!(message.contains("; 2001:db8::10 is spread over nodes"), "{message}");
}
