//! Who is called dead, by whom and when.

use std::collections::BTreeSet;
use std::time::Duration;

use speaker::metrics::events::Event;

use crate::world::{INTERVAL, Network, WINDOW, World, intrusion, lb_ip, name};
use crate::{SETTLED, ms, seeds, settled};

/// Those who are dead in the eyes of a node; `None` if no speaker runs there.
pub fn dead(world: &World, node: usize) -> Option<BTreeSet<String>> {
    Some(world.machine(node)?.dead())
}

/// What all speakers that run say of who is dead.
fn all(world: &World) -> Vec<BTreeSet<String>> {
    (0..world.nodes()).filter_map(|node| dead(world, node)).collect()
}

fn nobody(nodes: usize) -> Vec<BTreeSet<String>> {
    vec![BTreeSet::new(); nodes]
}

/// Who was ever called dead.
fn ever(world: &World) -> BTreeSet<&str> {
    let called = world.told.iter().filter_map(|(_, _, event)| match event {
        Event::Node { node, dead: true } => Some(node.as_str()),
        _ => None,
    });
    called.collect()
}

#[test]
fn a_node_that_crashes_is_dead_to_all_others_within_four_intervals_until_it_is_heard_again() {
    seeds(40, |seed| {
        let nodes = 3 + seed as usize % 4;
        let mut world = settled(seed, nodes, 5);
        let victim = world.random.below(nodes);
        let pause = world.random.time(Duration::ZERO, INTERVAL);
        world.pass(pause);
        world.crash(victim);
        let gone = vec![BTreeSet::from([name(victim)]); nodes - 1];
        let took = world.pass_until(ms(1000), |world| all(world) == gone).expect("it is dead to all");
        assert!(took <= WINDOW + INTERVAL, "{took:?}");
        world.pass(Duration::from_secs(20));
        assert_eq!(all(&world), gone);
        world.start(victim);
        let took = world.pass_until(ms(1000), |world| all(world) == nobody(nodes)).expect("it is back");
        assert!(took <= INTERVAL, "{took:?}");
        assert_eq!(ever(&world), BTreeSet::from([name(victim).as_str()]));
    });
}

#[test]
fn a_node_whose_speaker_stops_in_order_is_not_dead() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled(seed, nodes, 5);
        for node in (1..nodes).rev() {
            world.stop(node);
            world.pass(SETTLED);
        }
        world.inject(intrusion(lb_ip(30)).0, &intrusion(lb_ip(30)).1);
        world.pass(Duration::from_secs(20));
        assert_eq!(ever(&world), BTreeSet::new());
    });
}

#[test]
fn who_is_cut_off_or_slept_calls_nobody_dead_and_is_dead_to_the_others_for_as_long() {
    seeds(40, |seed| {
        let nodes = 3 + seed as usize % 4;
        let mut world = settled(seed, nodes, 5);
        let lost = world.random.below(nodes);
        let time = world.random.time(ms(400), ms(3000));
        if seed % 2 == 0 {
            world.isolate(lost, true);
            world.pass(time);
        } else {
            world.freeze(lost, time);
            world.pass(time - ms(1));
        }
        for node in 0..nodes {
            let expected = if node == lost { BTreeSet::new() } else { BTreeSet::from([name(lost)]) };
            assert_eq!(dead(&world, node), Some(expected), "n{node} of n{lost}");
        }
        world.heal();
        world.pass(SETTLED);
        assert_eq!(all(&world), nobody(nodes));
        assert_eq!(ever(&world), BTreeSet::from([name(lost).as_str()]));
    });
}

#[test]
fn a_node_that_one_cannot_hear_and_others_can_is_not_dead() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 4;
        let mut world = settled(seed, nodes, 5);
        let (from, to) = (world.random.below(nodes), world.random.below(nodes));
        world.cut(from, to, from != to);
        world.pass(Duration::from_secs(10));
        assert_eq!(ever(&world), BTreeSet::new());
    });
}

#[test]
fn of_two_nodes_one_is_dead_when_it_is_silent_and_somebody_else_on_the_lan_is_not() {
    seeds(20, |seed| {
        let mut world = settled(seed, 2, 5);
        let (channel, client) = intrusion(lb_ip(30 + seed as usize % 3));
        // A client that was heard before means nothing.
        world.inject(channel, &client);
        world.crash(0);
        world.pass(Duration::from_secs(5));
        assert_eq!(dead(&world, 1), Some(BTreeSet::new()));
        world.inject(channel, &client);
        world.pass(WINDOW + INTERVAL * 2);
        assert_eq!(dead(&world, 1), Some(BTreeSet::from([name(0)])));
        world.start(0);
        world.pass(SETTLED);
        assert_eq!(all(&world), nobody(2));
    });
}

#[test]
fn nobody_is_ever_dead_while_one_hello_in_fifty_is_lost() {
    seeds(6, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled(seed, nodes, 1);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        let (channel, client) = intrusion(lb_ip(30));
        for _ in 0..120 {
            world.inject(channel, &client);
            world.pass(Duration::from_secs(1));
        }
        assert_eq!(ever(&world), BTreeSet::new());
    });
}

#[test]
fn the_last_one_that_is_left_goes_on_calling_those_dead_who_died_before() {
    let mut world = settled(1, 3, 5);
    world.crash(0);
    world.pass(SETTLED);
    world.crash(1);
    world.pass(SETTLED);
    assert_eq!(dead(&world, 2), Some(BTreeSet::from([name(0)])), "of the second it can't be sure");
}
