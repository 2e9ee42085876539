//! The condition `Announced`: its contents and its timing.

use std::sync::Arc;

use crds::service::{ALLOCATED, ANNOUNCED, Family};
use crds::{
    Advertisement, Announcer, Endpoint, EndpointSlice, FamilyPolicy, Key, L2Advertisement, NodeAddresses, TrafficPolicy,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::fixtures::{at_second, ip, node, pool, service};
use crate::plan::Plan;
use crate::plan::effect::Effect;
use crate::world::World;

/// A cluster with an agent, in which `web` has 192.0.2.10.
fn world() -> World {
    let lan = pool("lan", 1, &["192.0.2.10-192.0.2.12", "2001:db8::10-2001:db8::12"]);
    let mut world = World::new([lan], [service("web", 5)]);
    world.snapshot.networks.insert("n1".into(), Arc::new(NodeAddresses::default()));
    world.snapshot.nodes.insert("n2".into(), node("n2", "198.51.100.2"));
    world.snapshot.now = at_second(100);
    world.settle();
    world
}

fn condition(world: &World) -> Option<String> {
    let condition = world.service("web").conditions.iter().find(|condition| condition.type_ == ANNOUNCED)?;
    let Condition { status, reason, message, last_transition_time, .. } = condition;
    Some(format!("{status} {reason} since {}: {message}", last_transition_time.0.as_second()))
}

/// An index that has observed the cluster since it was settled.
struct Follower {
    cluster: ClusterIndex,
}

impl Follower {
    fn new(world: &World) -> Self {
        Self::with_advertisement(world, None)
    }

    /// Same, with an advertisement.
    fn with_advertisement(world: &World, advertisement: Option<Arc<Advertisement>>) -> Self {
        let mut cluster = ClusterIndex::from_snapshot(&world.snapshot);
        if advertisement.is_some() {
            cluster.set_advertisement("ad", advertisement);
        }
        let plan = cluster.plan(world.snapshot.now);
        assert_eq!(plan, Plan::default(), "the cluster is settled");
        Self { cluster }
    }

    /// Observes all changes, then plans and applies at this second. Returns the names of the effects.
    fn follow(&mut self, world: &mut World, second: i64) -> Vec<&'static str> {
        let now = at_second(second);
        world.snapshot.now = now;
        let mut done = Vec::new();
        for _ in 0..3 {
            for (key, service) in &world.snapshot.services {
                self.cluster.set_service(key, Some(service.clone()), false);
            }
            for (name, node) in &world.snapshot.nodes {
                self.cluster.set_node(name, Some(node.clone()));
            }
            for (lb_ip, record) in &world.snapshot.records {
                self.cluster.set_record(*lb_ip, Some(record.clone()), false, now);
            }
            for series in self.cluster.plan(now).series {
                self.cluster.start_series(&series);
                for effect in &series.effects {
                    assert!(world.apply(effect));
                    done.push(match effect {
                        Effect::PatchConditions(_) => "conditions",
                        Effect::PatchService(_) => "patch",
                        Effect::Event(event) => event.reason,
                        _ => "other",
                    });
                }
                self.cluster.end_series(&series.subject);
            }
        }
        done
    }
}

/// An advertisement that selects no node.
fn without_nodes() -> Option<Arc<Advertisement>> {
    let spec = json!({"nodeSelectors": [{"matchLabels": {"rack": "none"}}]});
    let object = L2Advertisement::new("ad", serde_json::from_value(spec).expect("a spec"));
    Some(Arc::new(Advertisement::from(&object)))
}

/// A slice of `web` with an endpoint that is ready on `node`, or without an endpoint.
fn slice(node: Option<&str>) -> Arc<EndpointSlice> {
    let endpoint = |node: &str| Endpoint {
        address: [10, 0, 0, 1].into(),
        node: Some(node.into()),
        ready: true,
        serving: true,
        terminating: false,
    };
    Arc::new(EndpointSlice {
        key: Key::new("default", "web-1"),
        service: Key::new("default", "web"),
        ports: Box::default(),
        endpoints: node.map(endpoint).into_iter().collect(),
        refused: None,
    })
}

#[test]
fn first_announcement_is_a_second_write() {
    let mut world = world();
    assert_eq!(condition(&world), None);
    let mut follower = Follower::new(&world);
    world.announce(ip("192.0.2.10"));
    assert_eq!(follower.follow(&mut world, 101), ["conditions"]);
    assert_eq!(condition(&world).as_deref(), Some("True Announced since 101: 192.0.2.10 by n1 (eth0)"));
    assert_eq!(follower.follow(&mut world, 102), [""; 0], "nothing has changed");
    // A new controller finds nothing to write either.
    assert_eq!(ClusterIndex::from_snapshot(&world.snapshot).plan(at_second(103)), Plan::default());
}

#[test]
fn move_is_one_write_without_event_and_transition() {
    let mut world = world();
    world.announce(ip("192.0.2.10"));
    world.settle();
    let mut follower = Follower::new(&world);
    world.edit_record(ip("192.0.2.10"), |record| record.announcers[0].node = "n2".into());
    assert_eq!(follower.follow(&mut world, 200), ["conditions"]);
    assert_eq!(condition(&world).as_deref(), Some("True Announced since 100: 192.0.2.10 by n2 (eth0)"));
    // A new epoch of the same owner changes nothing.
    world.edit_record(ip("192.0.2.10"), |record| record.announcers[0].epoch = 7);
    assert_eq!(follower.follow(&mut world, 201), [""; 0]);
}

#[test]
fn obstacle_is_reported_only_for_unannounced_addresses() {
    let mut world = world();
    let mut follower = Follower::new(&world);
    follower.cluster.set_obstacle(Some("the key is missing: make one".into()));
    assert_eq!(follower.follow(&mut world, 105), ["conditions", "NotAnnounced"]);
    let expected = "False NoHelloKey since 105: no node announces 192.0.2.10: the key is missing: make one";
    assert_eq!(condition(&world).as_deref(), Some(expected));
    // The key exists, and the nodes do not have it yet.
    follower.cluster.set_obstacle(None);
    assert_eq!(follower.follow(&mut world, 110), ["conditions", "NotAnnounced"]);
    assert!(condition(&world).expect("a condition").starts_with("False Pending since 105: "));
    world.announce(ip("192.0.2.10"));
    assert_eq!(follower.follow(&mut world, 111), ["conditions", "Announced"]);
    // Nodes with a key continue to announce.
    follower.cluster.set_obstacle(Some("the key is missing: make one".into()));
    assert_eq!(follower.follow(&mut world, 200), [""; 0]);
}

#[test]
fn unannounced_address_is_reported_after_the_grace_period() {
    for (advertisement, reason, words) in [
        (without_nodes(), "NoEligibleNode", "no node may announce 192.0.2.10: L2Advertisements select its pool"),
        (None, "Pending", "no node has reported yet that it announces 192.0.2.10: "),
    ] {
        let mut world = world();
        let mut follower = Follower::with_advertisement(&world, advertisement);
        assert_eq!(follower.cluster.next_deadline(), Some(at_second(105)));
        assert_eq!(follower.follow(&mut world, 104), [""; 0]);
        assert_eq!(follower.follow(&mut world, 105), ["conditions", "NotAnnounced"]);
        let found = condition(&world).expect("a condition");
        assert!(found.starts_with(&format!("False {reason} since 105: {words}")), "{found}");
        assert_eq!((follower.cluster.next_deadline(), follower.follow(&mut world, 300)), (None, vec![]));
        // A new controller writes nothing else.
        assert_eq!(ClusterIndex::from_snapshot(&world.snapshot).plan(at_second(301)), Plan::default());
        world.announce(ip("192.0.2.10"));
        assert_eq!(follower.follow(&mut world, 302), ["conditions", "Announced"]);
        assert_eq!(condition(&world).as_deref(), Some("True Announced since 302: 192.0.2.10 by n1 (eth0)"));
        // The node dies and is deleted, and no node takes over.
        follower.cluster.set_node("n1", None);
        world.snapshot.nodes.remove("n1");
        assert_eq!(follower.follow(&mut world, 400), [""; 0]);
        assert_eq!(follower.follow(&mut world, 405), ["conditions", "NotAnnounced"]);
    }
}

#[test]
fn reason_follows_changed_objects_at_once() {
    let mut world = world();
    let mut follower = Follower::new(&world);
    follower.follow(&mut world, 105);
    assert!(condition(&world).expect("a condition").starts_with("False Pending"));
    follower.cluster.set_advertisement("ad", without_nodes());
    assert_eq!(follower.cluster.plan(at_second(106)).series.len(), 1);
    follower.cluster.set_advertisement("ad", None);
    assert_eq!(follower.cluster.plan(at_second(107)).series.len(), 0);
}

#[test]
fn slices_are_watched_only_for_policy_local() {
    let mut world = world();
    let mut follower = Follower::with_advertisement(&world, without_nodes());
    follower.follow(&mut world, 105);
    assert!(!follower.cluster.wants_slices, "endpoints have no effect under Cluster");
    world.edit("web", |web| web.traffic_policy = TrafficPolicy::Local);
    world.snapshot.now = at_second(106);
    let mut follower = Follower::new(&world);
    world.edit("web", |web| web.conditions.retain(|condition| condition.type_ == ALLOCATED));
    assert_eq!(follower.follow(&mut world, 111), [""; 0]);
    assert!(follower.cluster.wants_slices);
    follower.cluster.mark_slices_known();
    let elsewhere = slice(Some("gone"));
    follower.cluster.set_slice(None, Some(elsewhere.clone()));
    assert_eq!(follower.follow(&mut world, 112), ["conditions", "NotAnnounced"]);
    assert!(
        condition(&world)
            .expect("a condition")
            .contains("none of the nodes that the other rules allow has a ready endpoint")
    );
    let empty = slice(None);
    follower.cluster.set_slice(Some(elsewhere), Some(empty));
    follower.follow(&mut world, 113);
    assert!(condition(&world).expect("a condition").starts_with("False Pending"));
}

#[test]
fn both_addresses_must_be_announced() {
    let mut world = world();
    world.edit("web", |web| {
        (web.families, web.family_policy) = ([Family::V4, Family::V6].into(), FamilyPolicy::RequireDualStack);
    });
    world.settle();
    world.announce(ip("192.0.2.10"));
    let mut follower = Follower::new(&world);
    follower.follow(&mut world, 105);
    let found = condition(&world).expect("a condition");
    let words =
        "False Pending since 105: 192.0.2.10 by n1 (eth0); no node has reported yet that it announces 2001:db8::10: ";
    assert!(found.starts_with(words), "{found}");
    world.announce(ip("2001:db8::10"));
    world.edit_record(ip("192.0.2.10"), |record| {
        let since = Time(Timestamp::UNIX_EPOCH);
        let (node, link) = ("n2".into(), "eth1".into());
        let second = Announcer { node, link, epoch: 1, since, moved: None, reach: None, unforwarded: vec![] };
        record.announcers.insert(0, second);
    });
    follower.follow(&mut world, 106);
    let both = "True Announced since 106: 192.0.2.10 by n1 (eth0), n2 (eth1); 2001:db8::10 by n1 (eth0)";
    assert_eq!(condition(&world).as_deref(), Some(both));
}

#[test]
fn no_condition_without_agents_or_without_addresses() {
    let mut world = world();
    world.snapshot.networks.clear();
    let mut follower = Follower::with_advertisement(&world, without_nodes());
    assert_eq!((follower.follow(&mut world, 200), follower.cluster.next_deadline()), (vec![], None));
    world.announce(ip("192.0.2.10"));
    world.settle();
    assert!(condition(&world).is_some());
    world.edit("web", |web| web.request = crate::fixtures::request_for("192.0.2.99"));
    world.snapshot.records.remove(&ip("192.0.2.10"));
    world.settle();
    assert_eq!(condition(&world), None);
}
