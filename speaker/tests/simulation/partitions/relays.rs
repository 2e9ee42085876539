//! Pairs of nodes that do not hear each other, while other nodes hear both and forward their Hellos.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use speaker::metrics::Event;

use crate::exploration::{TWO_ANNOUNCERS, observed_world};
use crate::world::{WINDOW, World, lb_ip, name};
use crate::{SETTLING_TIME, check, ms, seeds, sole_owners};

/// Cuts both directions between two nodes.
fn cut_pair(world: &mut World, a: usize, b: usize) {
    world.cut(a, b, true);
    world.cut(b, a, true);
}

#[test]
fn pair_that_a_third_node_hears_keeps_its_addresses() {
    seeds(20, |seed| {
        let mut world = observed_world(seed, 3 + seed as usize % 3);
        let before = sole_owners(&world);
        cut_pair(&mut world, 0, 1);
        world.advance(Duration::from_secs(60));
        check(&world);
        assert_eq!(sole_owners(&world), before, "the cut moves nothing");
        world.heal();
        world.advance(SETTLING_TIME);
        check(&world);
        assert_eq!(sole_owners(&world), before, "the end of the cut moves nothing");
    });
}

#[test]
fn node_that_only_its_peer_cannot_hear_keeps_its_addresses() {
    seeds(20, |seed| {
        let mut world = observed_world(seed, 3 + seed as usize % 3);
        let before = sole_owners(&world);
        world.cut(0, 1, true);
        world.advance(Duration::from_secs(60));
        check(&world);
        assert_eq!(sole_owners(&world), before, "the cut moves nothing");
    });
}

#[test]
fn relayed_node_is_reported_once_until_it_is_heard() {
    let mut world = observed_world(1, 3);
    let first = world.events.len();
    cut_pair(&mut world, 0, 1);
    world.advance(Duration::from_secs(10));
    let paths = |world: &World| -> Vec<(usize, String, bool)> {
        let path = |(_, node, event): &(Duration, usize, Event)| match event {
            Event::Path { node: peer, relayed, .. } => Some((*node, peer.clone(), *relayed)),
            _ => None,
        };
        let mut paths: Vec<_> = world.events[first..].iter().filter_map(path).collect();
        paths.sort();
        paths
    };
    assert_eq!(paths(&world), [(0, name(1), true), (1, name(0), true)]);
    world.heal();
    world.advance(SETTLING_TIME);
    assert_eq!(paths(&world), [(0, name(1), false), (0, name(1), true), (1, name(0), false), (1, name(0), true)]);
}

#[test]
fn dead_node_of_a_cut_pair_is_replaced_within_a_window() {
    seeds(20, |seed| {
        let mut world = observed_world(seed, 3 + seed as usize % 2);
        cut_pair(&mut world, 0, 1);
        world.advance(Duration::from_secs(5));
        let orphans: Vec<IpAddr> =
            sole_owners(&world).into_iter().filter(|(_, owner)| *owner == 0).map(|(lb_ip, _)| lb_ip).collect();
        world.crash(0);
        let crash = world.now;
        let took = world.advance_until(ms(1000), |world| {
            let mut seen = orphans.iter().filter_map(|lb_ip| world.last_announcements.get(lb_ip));
            seen.all(|seen| seen.at >= crash && seen.node != 0)
        });
        assert!(took.is_some_and(|took| took <= WINDOW + ms(5)), "{took:?}");
        world.advance(SETTLING_TIME);
        check(&world);
    });
}

#[test]
fn second_relay_replaces_a_dead_one() {
    seeds(20, |seed| {
        let mut world = observed_world(seed, 4);
        cut_pair(&mut world, 0, 1);
        world.advance(Duration::from_secs(5));
        let before = sole_owners(&world);
        for dead in [2, 3] {
            world.crash(dead);
            world.advance(Duration::from_secs(5));
            let after = sole_owners(&world);
            let moved = before.iter().find(|(lb_ip, owner)| **owner < 2 && after[*lb_ip] != **owner);
            assert_eq!(moved, None, "after the death of n{dead}");
            check(&world);
            world.start(dead);
            world.advance(Duration::from_secs(10));
        }
    });
}

/// Addresses come and go, and nodes restart, while two nodes do not hear each other.
#[test]
fn cut_pair_leaves_one_announcer_during_changes() {
    seeds(60, |seed| {
        let mut world = observed_world(seed, 3 + seed as usize % 3);
        cut_pair(&mut world, 0, 1);
        world.advance(ms(seed % 3000));
        for _ in 0..12 {
            let nodes = world.nodes();
            let address = lb_ip(world.random.next_below(20));
            match world.random.next_below(5) {
                0 => {
                    let candidates: BTreeSet<usize> = (0..nodes).filter(|_| world.random.happens(0.6)).collect();
                    world.set_candidates(address, Some(&candidates));
                }
                1 => world.set_candidates(address, None),
                2 => world.set_candidates(address, Some(&(0..nodes).collect())),
                // The speaker of a node of the pair restarts: it has never heard the other one.
                3 => {
                    let node = world.random.next_below(2);
                    world.kill(node);
                    let pause = world.random.time(ms(10), ms(2000));
                    world.advance(pause);
                    world.start(node);
                }
                _ => world.advance(Duration::from_secs(1)),
            }
            world.record_fault();
            let pause = world.random.time(Duration::ZERO, ms(3000));
            world.advance(pause);
        }
        world.advance(Duration::from_secs(10));
        check(&world);
        assert_eq!(world.observer.limit, Some(TWO_ANNOUNCERS));
    });
}
