//! What is said of who announces an address, in which case, and when.

use std::sync::Arc;

use crds::service::{ALLOCATED, ANNOUNCED, Family};
use crds::{Announcer, FamilyPolicy, Key, Network, TrafficPolicy};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixtures::{at, ip, node, pool, service};
use crate::plan::Plan;
use crate::state::index::Ledger;
use crate::world::World;

/// A cluster with an agent, in which `web` has 192.0.2.10.
fn world() -> World {
    let lan = pool("lan", 1, &["192.0.2.10-192.0.2.12", "2001:db8::10-2001:db8::12"]);
    let mut world = World::with([lan], [service("web", 5)]);
    world.snapshot.networks.insert("n1".into(), Arc::new(Network { addresses: vec![], gateways: vec![] }));
    world.snapshot.nodes.insert("n2".into(), node("n2", "198.51.100.2"));
    world.snapshot.now = at(100);
    world.settle();
    world
}

fn announced(world: &World) -> Option<String> {
    let condition = world.service("web").conditions.iter().find(|condition| condition.type_ == ANNOUNCED)?;
    let Condition { status, reason, message, last_transition_time, .. } = condition;
    Some(format!("{status} {reason} since {}: {message}", last_transition_time.0.as_second()))
}

/// A ledger that has known the cluster since it was at rest, and has been told what has become of it.
struct Follower {
    ledger: Ledger,
}

impl Follower {
    fn of(world: &World, judge: Option<Judge>) -> Self {
        let mut ledger = Ledger::of(&world.snapshot);
        ledger.judge = judge;
        let plan = ledger.plan(world.snapshot.now);
        assert_eq!(plan, Plan::default(), "the cluster is at rest");
        Self { ledger }
    }

    /// Hears of that address, and what the Service is now, plans at that second, and does what was planned. Returns the names
    /// of the effects.
    fn follow(&mut self, world: &mut World, second: i64) -> Vec<&'static str> {
        let now = at(second);
        world.snapshot.now = now;
        let mut done = Vec::new();
        for _ in 0..3 {
            for (key, service) in &world.snapshot.services {
                self.ledger.set_service(key, Some(service.clone()), false);
            }
            for (name, node) in &world.snapshot.nodes {
                self.ledger.set_node(name, Some(node.clone()));
            }
            for (address, record) in &world.snapshot.addresses {
                self.ledger.set_address(*address, Some(record.clone()), false, now);
            }
            for series in self.ledger.plan(now).series {
                self.ledger.begins(&series);
                for effect in &series.effects {
                    assert!(world.apply(effect));
                    done.push(match effect {
                        Effect::TellService(_) => "tell",
                        Effect::PatchService(_) => "patch",
                        Effect::Event(event) => event.reason,
                        _ => "other",
                    });
                }
                self.ledger.ended(&series.subject);
            }
        }
        done
    }
}

fn nowhere(_: &Circumstances<'_>) -> Option<Nowhere> {
    Some(Nowhere::NodesNotSelected)
}

fn somewhere(_: &Circumstances<'_>) -> Option<Nowhere> {
    None
}

#[test]
fn the_first_write_about_a_service_says_nothing_of_who_announces_it_and_the_second_one_does() {
    let mut world = world();
    assert_eq!(announced(&world), None);
    let mut follower = Follower::of(&world, None);
    world.announce(ip("192.0.2.10"));
    assert_eq!(follower.follow(&mut world, 101), ["tell"]);
    assert_eq!(announced(&world).as_deref(), Some("True Announced since 101: 192.0.2.10 by n1 (eth0)"));
    assert_eq!(follower.follow(&mut world, 102), [""; 0], "nothing has changed");
    // Neither has it for one that has just been started.
    assert_eq!(Ledger::of(&world.snapshot).plan(at(103)), Plan::default());
}

#[test]
fn an_address_that_moves_is_one_write_and_no_event_and_no_transition() {
    let mut world = world();
    world.announce(ip("192.0.2.10"));
    world.settle();
    let mut follower = Follower::of(&world, None);
    world.edit_record(ip("192.0.2.10"), |record| record.announcers[0].node = "n2".into());
    assert_eq!(follower.follow(&mut world, 200), ["tell"]);
    assert_eq!(announced(&world).as_deref(), Some("True Announced since 100: 192.0.2.10 by n2 (eth0)"));
    // A new epoch of the same owner is no news.
    world.edit_record(ip("192.0.2.10"), |record| record.announcers[0].epoch = 7);
    assert_eq!(follower.follow(&mut world, 201), [""; 0]);
}

#[test]
fn what_keeps_all_nodes_from_announcing_is_said_where_nobody_announces_and_nowhere_else() {
    let mut world = world();
    let mut follower = Follower::of(&world, Some(somewhere));
    follower.ledger.set_obstacle(Some("the key is missing: make one".into()));
    assert_eq!(follower.follow(&mut world, 105), ["tell", "NotAnnounced"]);
    let said = "False NoHelloKey since 105: no node announces 192.0.2.10: the key is missing: make one";
    assert_eq!(announced(&world).as_deref(), Some(said));
    // The key is there, and the nodes have yet to hear of it.
    follower.ledger.set_obstacle(None);
    assert_eq!(follower.follow(&mut world, 110), ["tell", "NotAnnounced"]);
    assert!(announced(&world).expect("a condition").starts_with("False Pending since 105: "));
    world.announce(ip("192.0.2.10"));
    assert_eq!(follower.follow(&mut world, 111), ["tell", "Announced"]);
    // Those who have had one go on with it.
    follower.ledger.set_obstacle(Some("the key is missing: make one".into()));
    assert_eq!(follower.follow(&mut world, 200), [""; 0]);
}

#[test]
fn that_nobody_announces_an_address_is_said_after_some_seconds_with_the_reason() {
    for (judge, reason, words) in [
        (nowhere as Judge, "NoEligibleNode", "no node may announce 192.0.2.10: the L2Advertisements that select it"),
        (somewhere, "Pending", "no node has said yet that it announces 192.0.2.10: "),
    ] {
        let mut world = world();
        let mut follower = Follower::of(&world, Some(judge));
        assert_eq!(follower.ledger.alarm(), Some(at(105)));
        assert_eq!(follower.follow(&mut world, 104), [""; 0]);
        assert_eq!(follower.follow(&mut world, 105), ["tell", "NotAnnounced"]);
        let said = announced(&world).expect("a condition");
        assert!(said.starts_with(&format!("False {reason} since 105: {words}")), "{said}");
        assert_eq!((follower.ledger.alarm(), follower.follow(&mut world, 300)), (None, vec![]));
        // One that has just been started doesn't know better, and says nothing else.
        assert_eq!(Ledger::of(&world.snapshot).plan(at(301)), Plan::default());
        world.announce(ip("192.0.2.10"));
        assert_eq!(follower.follow(&mut world, 302), ["tell", "Announced"]);
        assert_eq!(announced(&world).as_deref(), Some("True Announced since 302: 192.0.2.10 by n1 (eth0)"));
        // The node dies, is deleted, and nobody takes over.
        follower.ledger.set_node("n1", None);
        world.snapshot.nodes.remove("n1");
        assert_eq!(follower.follow(&mut world, 400), [""; 0]);
        assert_eq!(follower.follow(&mut world, 405), ["tell", "NotAnnounced"]);
    }
}

#[test]
fn the_reason_is_another_one_as_soon_as_objects_say_so() {
    fn by_advertisements(circumstances: &Circumstances<'_>) -> Option<Nowhere> {
        (!circumstances.advertisements.is_empty()).then_some(Nowhere::ServiceNotSelected)
    }
    let mut world = world();
    let mut follower = Follower::of(&world, Some(by_advertisements));
    follower.follow(&mut world, 105);
    assert!(announced(&world).expect("a condition").starts_with("False Pending"));
    follower.ledger.set_advertisement("ad", Some(Arc::default()));
    assert_eq!(follower.ledger.plan(at(106)).series.len(), 1);
    follower.ledger.set_advertisement("ad", None);
    assert_eq!(follower.ledger.plan(at(107)).series.len(), 0);
}

#[test]
fn endpoints_are_asked_for_only_where_they_decide() {
    let mut world = world();
    let mut follower = Follower::of(&world, Some(nowhere));
    follower.follow(&mut world, 105);
    assert!(!follower.ledger.wants_slices(), "for Cluster they don't matter");
    world.edit("web", |web| web.traffic_policy = TrafficPolicy::Local);
    world.snapshot.now = at(106);
    let mut follower = Follower::of(
        &world,
        Some(|circumstances| {
            let ready = circumstances.slices[&Key::new("default", "web")].len();
            (ready == 0).then_some(Nowhere::NoEndpoint)
        }),
    );
    world.edit("web", |web| web.conditions.retain(|condition| condition.type_ == ALLOCATED));
    assert_eq!(follower.follow(&mut world, 111), [""; 0]);
    assert!(follower.ledger.wants_slices());
    follower.ledger.knows_slices();
    assert_eq!(follower.follow(&mut world, 112), ["tell", "NotAnnounced"]);
    assert!(announced(&world).expect("a condition").contains("no endpoint is ready on a node that may announce it"));
    let slice = EndpointSlice {
        key: Key::new("default", "web-1"),
        service: Key::new("default", "web"),
        ports: Box::default(),
        endpoints: vec![],
        refused: None,
    };
    follower.ledger.set_slice(&slice.key.clone(), Some(Arc::new(slice)));
    follower.follow(&mut world, 113);
    assert!(announced(&world).expect("a condition").starts_with("False Pending"));
}

#[test]
fn of_two_addresses_each_is_told_and_it_takes_both_to_be_announced() {
    let mut world = world();
    world.edit("web", |web| {
        (web.families, web.family_policy) = ([Family::V4, Family::V6].into(), FamilyPolicy::RequireDualStack);
    });
    world.settle();
    world.announce(ip("192.0.2.10"));
    let mut follower = Follower::of(&world, None);
    follower.follow(&mut world, 105);
    let said = announced(&world).expect("a condition");
    let words =
        "False Pending since 105: 192.0.2.10 by n1 (eth0); no node has said yet that it announces 2001:db8::10: ";
    assert!(said.starts_with(words), "{said}");
    world.announce(ip("2001:db8::10"));
    world.edit_record(ip("192.0.2.10"), |record| {
        let since = Time(Timestamp::UNIX_EPOCH);
        let (node, link) = ("n2".into(), "eth1".into());
        let second = Announcer { node, link, epoch: 1, since, moved: None, reach: None, unforwarded: vec![] };
        record.announcers.insert(0, second);
    });
    follower.follow(&mut world, 106);
    let both = "True Announced since 106: 192.0.2.10 by n1 (eth0), n2 (eth1); 2001:db8::10 by n1 (eth0)";
    assert_eq!(announced(&world).as_deref(), Some(both));
}

#[test]
fn where_no_agent_has_been_nothing_is_said_and_without_an_address_nothing_either() {
    let mut world = world();
    world.snapshot.networks.clear();
    let mut follower = Follower::of(&world, Some(nowhere));
    assert_eq!((follower.follow(&mut world, 200), follower.ledger.alarm()), (vec![], None));
    world.announce(ip("192.0.2.10"));
    world.settle();
    assert!(announced(&world).is_some());
    world.edit("web", |web| web.request = crate::fixtures::asking("192.0.2.99"));
    world.snapshot.addresses.remove(&ip("192.0.2.10"));
    world.settle();
    assert_eq!(announced(&world), None);
}
