//! What is said of how the addresses of a Service are forwarded, and what that costs.

use std::collections::BTreeSet;

use crds::service::Family;
use crds::{FamilyPolicy, Network};
use std::sync::Arc;

use super::*;
use crate::fixtures::{at, ip, pool, service};
use crate::plan::Plan;
use crate::plan::effect::Effect;
use crate::state::index::Ledger;
use crate::world::World;

/// A cluster with an agent, in which `web` has 192.0.2.10.
fn world() -> World {
    let lan = pool("lan", 1, &["192.0.2.10-192.0.2.12", "2001:db8::10-2001:db8::12"]);
    let mut world = World::with([lan], [service("web", 5)]);
    world.snapshot.networks.insert("n1".into(), Arc::new(Network { addresses: vec![], gateways: vec![] }));
    world.snapshot.now = at(100);
    world.settle();
    world
}

/// The node that announces 192.0.2.10 says this of how it forwards it.
fn says(world: &mut World, reach: Option<Reach>, unforwarded: &[(&str, ProblemReason, &str)]) {
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

/// Status and reason, and the message.
fn said(world: &World) -> (String, String) {
    let conditions = &world.service("web").conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == FORWARDING).expect("a condition");
    assert_eq!(condition.observed_generation, world.service("web").generation);
    (format!("{} {}", condition.status, condition.reason), condition.message.to_string())
}

#[test]
fn a_service_says_how_it_is_forwarded_and_what_of_it_is_not() {
    use ProblemReason::{
        AnswersElsewhere, BackendUnavailable, EndpointsRefused, InvalidSourceRange, NoEndpoints, NoLocalEndpoints,
        RequestsFiltered, UnknownBackend,
    };
    use Reach::{Mixed, Proxied, Spread, Translated};
    type Case<'a> = (Option<Reach>, &'a [(&'a str, ProblemReason, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 16] = [
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
        (Some(Proxied), &[], "True Proxied", "as the Service proxy of the node"),
        (
            Some(Spread),
            &[("web", BackendUnavailable, "nodeport: port 81/TCP has no node port")],
            "True BackendUnavailable",
            "is forwarded to endpoints, and not by the backend nodeport: port 81/TCP has no node port",
        ),
        (Some(Spread), &[("web", UnknownBackend, "pods")], "True UnknownBackend", "has \"pods\", which is none of"),
        (
            Some(Spread),
            &[("web", AnswersElsewhere, "no router is known on link eth1")],
            "True AnswersElsewhere",
            "than the requests came in by: no router is known on link eth1",
        ),
        (Some(Spread), &[("web", RequestsFiltered, "link eth1")], "True RequestsFiltered", "rp_filter to 2"),
        (Some(Reach::Other), &[("web", ProblemReason::Other, "y")], "True Other", "this version does not know"),
    ];
    let mut world = world();
    let mut seen = BTreeSet::new();
    for (reach, unforwarded, expected, words) in cases {
        says(&mut world, reach, unforwarded);
        let (found, message) = said(&world);
        assert_eq!(found, expected, "{message}");
        assert!(message.contains(words), "{message}");
        seen.insert(found);
        // Neither has anything to write, who has known it all along or has just been started.
        assert_eq!(Ledger::of(&world.snapshot).plan(at(200)), Plan::default(), "{expected}");
    }
    assert_eq!(seen.len(), 15);
}

#[test]
fn who_announces_and_how_it_is_forwarded_are_one_write_and_a_move_changes_nothing() {
    let mut world = world();
    world.announce(ip("192.0.2.10"));
    let plan = Ledger::of(&world.snapshot).plan(at(101));
    let effects: Vec<_> = plan.series.iter().flat_map(|series| &series.effects).collect();
    assert!(matches!(effects[..], [Effect::TellService(_)]), "{effects:?}");
    world.settle();
    let before = said(&world);
    world.snapshot.nodes.insert("n2".into(), crate::fixtures::node("n2", "198.51.100.2"));
    world.edit_record(ip("192.0.2.10"), |record| record.announcers[0].node = "n2".into());
    world.settle();
    assert_eq!(said(&world), before);
}

#[test]
fn without_an_announcer_nobody_can_tell_and_that_is_said_when_it_lasts() {
    let mut world = world();
    let mut ledger = Ledger::of(&world.snapshot);
    assert_eq!(ledger.plan(at(100)), Plan::default(), "it is too early to tell");
    for series in ledger.plan(at(105)).series {
        series.effects.iter().for_each(|effect| assert!(world.apply(effect)));
    }
    let (found, message) = said(&world);
    assert_eq!(found, "Unknown NotAnnounced");
    assert_eq!(message, "192.0.2.10 is not announced, so nothing comes to it");
}

#[test]
fn only_mistakes_are_events() {
    let told = |shortcoming| {
        let mut world = world();
        world.announce(ip("192.0.2.10"));
        world.edit_record(ip("192.0.2.10"), |record| {
            let (namespace, name, what) = ("default".into(), "web".into(), "80/TCP".into());
            record.announcers[0].unforwarded = vec![ForwardingProblem { namespace, name, reason: shortcoming, what }];
        });
        let plan = Ledger::of(&world.snapshot).plan(at(101));
        let effects = plan.series.into_iter().flat_map(|series| series.effects);
        let events = effects.filter_map(|effect| match effect {
            Effect::Event(event) => Some((event.reason, event.is_warning)),
            _ => None,
        });
        events.collect::<Vec<_>>()
    };
    assert_eq!(told(ProblemReason::NoEndpoints), []);
    assert_eq!(told(ProblemReason::EndpointsRefused), [("NotForwarded", true)]);
    assert_eq!(told(ProblemReason::InvalidSourceRange), [("NotForwarded", true)]);
    assert_eq!(told(ProblemReason::AnswersElsewhere), []);
    assert_eq!(told(ProblemReason::RequestsFiltered), [("NotForwarded", true)]);
}

#[test]
fn of_two_addresses_the_worse_one_counts_and_both_are_told_of() {
    let mut world = world();
    world.edit("web", |web| {
        (web.families, web.family_policy) = ([Family::V4, Family::V6].into(), FamilyPolicy::RequireDualStack);
    });
    world.settle();
    world.announce(ip("2001:db8::10"));
    says(&mut world, Some(Reach::Translated), &[]);
    let (found, message) = said(&world);
    assert_eq!(found, "True Translated");
    assert!(message.contains("; 2001:db8::10 is spread over nodes"), "{message}");
}
