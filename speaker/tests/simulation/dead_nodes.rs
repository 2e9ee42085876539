//! Tests of which nodes are declared dead, and when.

mod silent_agents;

use std::collections::BTreeSet;
use std::time::Duration;

use speaker::metrics::Event;

use crate::world::{INTERVAL, Network, WINDOW, World, frame_of_other_host, lb_ip, name};
use crate::{SETTLING_TIME, ms, seeds, settled_world};

/// The dead nodes as seen by each running speaker.
fn dead_by_node(world: &World) -> Vec<BTreeSet<String>> {
    (0..world.nodes()).filter_map(|node| world.dead(node).cloned()).collect()
}

fn none_dead(nodes: usize) -> Vec<BTreeSet<String>> {
    vec![BTreeSet::new(); nodes]
}

/// The nodes that any node ever declared dead.
fn ever_dead(world: &World) -> BTreeSet<&str> {
    let dead = world.events.iter().filter_map(|(_, _, event)| match event {
        Event::Node { node, dead: true } => Some(node.as_str()),
        _ => None,
    });
    dead.collect()
}

/// A settled world at any time between two Hellos, and the node that a fault hits.
fn world_before_fault(seed: u64) -> (World, usize) {
    let nodes = 3 + seed as usize % 4;
    let mut world = settled_world(seed, nodes, 5);
    let victim = world.random.next_below(nodes);
    let pause = world.random.time(Duration::ZERO, INTERVAL);
    world.advance(pause);
    (world, victim)
}

/// Cuts the power of a node. It must be dead to all others in time. Returns the dead nodes as seen by each other node.
fn crash_until_dead(world: &mut World, victim: usize) -> Vec<BTreeSet<String>> {
    world.crash(victim);
    let gone = vec![BTreeSet::from([name(victim)]); world.nodes() - 1];
    let took = world.advance_until(ms(1000), |world| dead_by_node(world) == gone).expect("it is dead to all");
    assert!(took <= WINDOW + INTERVAL, "{took:?}");
    gone
}

#[test]
fn crashed_node_is_dead_to_all_until_heard_again() {
    seeds(40, |seed| {
        let (mut world, victim) = world_before_fault(seed);
        let nodes = world.nodes();
        let gone = crash_until_dead(&mut world, victim);
        world.advance(Duration::from_secs(20));
        assert_eq!(dead_by_node(&world), gone);
        world.start(victim);
        let is_back = |world: &World| dead_by_node(world) == none_dead(nodes);
        let took = world.advance_until(ms(1000), is_back).expect("it is back");
        assert!(took <= INTERVAL, "{took:?}");
        assert_eq!(ever_dead(&world), BTreeSet::from([name(victim).as_str()]));
    });
}

#[test]
fn node_that_sent_a_goodbye_is_not_dead() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled_world(seed, nodes, 5);
        for node in (1..nodes).rev() {
            world.stop(node);
            world.advance(SETTLING_TIME);
        }
        world.inject(frame_of_other_host(lb_ip(30)).0, &frame_of_other_host(lb_ip(30)).1);
        world.advance(Duration::from_secs(20));
        assert_eq!(ever_dead(&world), BTreeSet::new());
    });
}

#[test]
fn isolated_or_suspended_node_declares_no_node_dead() {
    seeds(40, |seed| {
        let nodes = 3 + seed as usize % 4;
        let mut world = settled_world(seed, nodes, 5);
        let lost = world.random.next_below(nodes);
        let time = world.random.time(ms(400), ms(3000));
        match seed % 3 {
            0 => world.isolate(lost, true),
            1 => world.pause(lost, time),
            _ => world.suspend(lost, time),
        }
        world.advance(time - ms(1));
        // The kernel of a node whose speaker is suspended answers.
        let dead = if seed % 3 == 2 { BTreeSet::new() } else { BTreeSet::from([name(lost)]) };
        for node in 0..nodes {
            let expected = if node == lost { BTreeSet::new() } else { dead.clone() };
            assert_eq!(world.dead(node).cloned(), Some(expected), "n{node} of n{lost}");
        }
        world.heal();
        world.advance(SETTLING_TIME);
        assert_eq!(dead_by_node(&world), none_dead(nodes));
        assert_eq!(ever_dead(&world), dead.iter().map(String::as_str).collect());
    });
}

#[test]
fn node_heard_by_any_peer_is_not_dead() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 4;
        let mut world = settled_world(seed, nodes, 5);
        let (from, to) = (world.random.next_below(nodes), world.random.next_below(nodes));
        world.cut(from, to, from != to);
        world.advance(Duration::from_secs(10));
        assert_eq!(ever_dead(&world), BTreeSet::new());
    });
}

#[test]
fn silent_lone_peer_is_dead_if_hosts_are_heard() {
    seeds(20, |seed| {
        let mut world = settled_world(seed, 2, 5);
        let (channel, client) = frame_of_other_host(lb_ip(30 + seed as usize % 3));
        // A client heard before the crash does not count.
        world.inject(channel, &client);
        world.crash(0);
        world.advance(Duration::from_secs(5));
        assert_eq!(world.dead(1).cloned(), Some(BTreeSet::new()));
        world.inject(channel, &client);
        world.advance(WINDOW + INTERVAL * 2);
        assert_eq!(world.dead(1).cloned(), Some(BTreeSet::from([name(0)])));
        world.start(0);
        world.advance(SETTLING_TIME);
        assert_eq!(dead_by_node(&world), none_dead(2));
    });
}

#[test]
fn two_percent_hello_loss_kills_no_node() {
    seeds(6, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled_world(seed, nodes, 1);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        let (channel, client) = frame_of_other_host(lb_ip(30));
        for _ in 0..120 {
            world.inject(channel, &client);
            world.advance(Duration::from_secs(1));
        }
        assert_eq!(ever_dead(&world), BTreeSet::new());
    });
}

#[test]
fn last_node_remembers_earlier_deaths() {
    let mut world = settled_world(1, 3, 5);
    world.crash(0);
    world.advance(SETTLING_TIME);
    world.crash(1);
    world.advance(SETTLING_TIME);
    assert_eq!(world.dead(2).cloned(), Some(BTreeSet::from([name(0)])), "no peer confirms the second death");
}
