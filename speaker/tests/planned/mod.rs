//! Moves that somebody wants: to preferred nodes, and away from nodes that are drained.

use std::collections::BTreeSet;
use std::time::Duration;

use speaker::ownership::rules::{PATIENCE, SETTLED};

use crate::world::{INTERVAL, Network, Random, WINDOW, World, lb_ip};
use crate::{check, disturb, ms, seeds, settled, sole_owners, told};

/// After this even a preferred node that came back last has what it should have.
const DONE: Duration = SETTLED.saturating_add(Duration::from_millis(1500));

/// Lets time pass, in which each address has an owner at every moment, and two at most.
fn without_a_gap(world: &mut World, time: Duration, done: impl Fn(&World) -> bool) -> Option<Duration> {
    world.pass_until(time, |world| {
        for (lb_ip, owners) in world.all_owners() {
            assert!((1..=2).contains(&owners.len()), "{lb_ip} is owned by {owners:?}\n{}", told(world, lb_ip));
        }
        done(world)
    })
}

fn others(world: &World, node: usize) -> BTreeSet<usize> {
    (0..world.nodes()).filter(|other| *other != node).collect()
}

/// A cluster with one address, which a node other than the one that has it is preferred for. Returns that node too.
fn preferring(seed: u64) -> (World, usize) {
    let mut world = settled(seed, 3, 1);
    world.pass(SETTLED);
    let owner = sole_owners(&world)[&lb_ip(0)];
    let preferred = (owner + 1 + world.random.below(2)) % 3;
    let preferences: Vec<u32> = (0..3).map(|node| if node == preferred { 50 } else { 0 }).collect();
    world.prefer(lb_ip(0), &preferences);
    (world, preferred)
}

#[test]
fn an_address_moves_to_the_preferred_node_without_a_gap_and_stays_when_nobody_is_preferred_any_more() {
    seeds(20, |seed| {
        let (mut world, preferred) = preferring(seed);
        let took = without_a_gap(&mut world, ms(1000), |world| world.owners(lb_ip(0)) == [preferred]);
        assert!(took.expect("it moves") <= INTERVAL, "{took:?}\n{}", told(&world, lb_ip(0)));
        world.pass(DONE);
        check(&world);
        // Equal preferences never move anything.
        for preference in [0, 7] {
            world.prefer(lb_ip(0), &[preference; 3]);
            without_a_gap(&mut world, DONE, |_| false);
            assert_eq!(world.owners(lb_ip(0)), [preferred], "{}", told(&world, lb_ip(0)));
        }
    });
}

#[test]
fn a_preferred_node_that_dies_is_replaced_as_fast_as_any_and_gets_its_address_back_when_it_has_been_back_for_a_while() {
    seeds(20, |seed| {
        let (mut world, preferred) = preferring(seed);
        world.pass(DONE);
        assert_eq!(world.owners(lb_ip(0)), [preferred]);
        world.crash(preferred);
        let crash = world.now;
        let replaced = |world: &World| world.announced[&lb_ip(0)].at >= crash && world.owners(lb_ip(0)).len() == 1;
        let took = world.pass_until(ms(1000), replaced).expect("a takeover");
        assert!(took <= WINDOW + ms(5), "it took {took:?}");
        world.pass(ms(1500));
        world.start(preferred);
        let back = world.now;
        without_a_gap(&mut world, SETTLED - ms(1), |world| {
            assert_ne!(world.owners(lb_ip(0)), [preferred], "it may go again");
            false
        });
        let took = without_a_gap(&mut world, DONE, |world| world.owners(lb_ip(0)) == [preferred]);
        let took = took.map(|_| world.now - back).expect("it gets it back");
        assert!(took <= SETTLED + ms(500), "{took:?}\n{}", told(&world, lb_ip(0)));
        world.pass(ms(1500));
        check(&world);
    });
}

#[test]
fn the_most_preferred_of_those_that_are_there_has_the_address_whatever_happened() {
    seeds(40, |seed| {
        let mut choice = Random::new(seed);
        let nodes = 2 + choice.below(4);
        let mut world = World::new(seed, nodes, 1 + choice.below(6));
        world.network = Network { loss: [0.0, 0.02][choice.below(2)], straggle: 0.0 };
        world.start_all();
        for _ in 0..3 {
            for _ in 0..=choice.below(4) {
                if choice.happens(0.5) {
                    let preferences: Vec<u32> = (0..nodes).map(|_| [0, 0, 10, 60][choice.below(4)]).collect();
                    world.prefer(lb_ip(choice.below(6)), &preferences);
                } else {
                    disturb(&mut world, &mut choice);
                }
                world.pass(choice.time(Duration::ZERO, ms(700)));
            }
            world.heal();
            (0..nodes)
                .filter(|node| world.machine(*node).is_none())
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|n| world.start(n));
            world.network = Network { loss: 0.0, straggle: 0.0 };
            world.pass(ms(2000) + DONE);
            check(&world);
            let before = world.all_owners();
            for (lb_ip, owners) in &before {
                let preference = |node: usize| world.preference(node, *lb_ip);
                let best = (0..nodes).filter(|node| world.may(*node, *lb_ip)).map(preference).max();
                assert_eq!(owners.first().map(|owner| preference(*owner)), best, "{lb_ip}\n{}", told(&world, *lb_ip));
            }
            world.pass(DONE);
            assert_eq!(world.all_owners(), before, "something moved without a cause");
        }
    });
}

#[test]
fn nodes_that_have_seen_different_things_do_not_take_an_address_from_each_other() {
    seeds(20, |seed| {
        let mut world = settled(seed, 3, 1);
        world.pass(SETTLED);
        let owner = sole_owners(&world)[&lb_ip(0)];
        let (other, third) = ((owner + 1) % 3, (owner + 2) % 3);
        let preferring = |node: usize| (0..3).map(|n| if n == node { 50 } else { 0 }).collect::<Vec<u32>>();
        // The owner doesn't know that another one is preferred.
        world.blind(owner, true);
        world.prefer(lb_ip(0), &preferring(other));
        world.pass(DONE);
        assert_eq!(world.owners(lb_ip(0)), [owner], "only the owner can give it away");
        // Now each of them thinks of somebody else.
        world.blind(other, true);
        world.prefer(lb_ip(0), &preferring(third));
        world.blind(third, true);
        world.blind(owner, false);
        world.blind(owner, true);
        // It moves once. Of two that both think it is theirs then, one gives way.
        world.pass(INTERVAL);
        let (after, count) = (world.all_owners(), world.told.len());
        assert_eq!(after[&lb_ip(0)].len(), 1);
        world.pass(DONE * 3);
        assert_eq!((world.all_owners(), &world.told[count..]), (after, [].as_slice()));
    });
}

#[test]
fn a_drained_node_hands_over_without_a_gap_whoever_hears_of_it_first() {
    seeds(30, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = settled(seed, nodes, 10);
        let drained = world.random.below(nodes);
        // Each node hears of it at another time.
        (0..nodes).for_each(|node| world.blind(node, true));
        let left = others(&world, drained);
        for lb_ip in world.lb_ips() {
            world.want(lb_ip, Some(&left));
        }
        let mut order: Vec<usize> = (0..nodes).collect();
        order.sort_by_key(|_| world.random.next());
        for node in order {
            world.blind(node, false);
            let pause = world.random.time(Duration::ZERO, ms(1000));
            without_a_gap(&mut world, pause, |_| false);
        }
        let gone = |world: &World| world.all_owners().values().all(|owners| owners.len() == 1 && owners[0] != drained);
        without_a_gap(&mut world, ms(500), gone).expect("others take over");
        let after = world.all_owners();
        world.pass(DONE);
        check(&world);
        assert_eq!(world.all_owners(), after);
        // And when it is a candidate again, nothing moves.
        let all: BTreeSet<usize> = (0..nodes).collect();
        for lb_ip in world.lb_ips() {
            world.want(lb_ip, Some(&all));
        }
        world.pass(DONE);
        assert_eq!(world.all_owners(), after);
    });
}

#[test]
fn a_drained_node_waits_for_the_kernel_of_the_next_one_but_not_forever() {
    seeds(10, |seed| {
        for waits in [true, false] {
            let mut world = settled(seed, 2, 4);
            let drained = world.random.below(2);
            let other = 1 - drained;
            world.stick(other, true);
            world.pass(ms(1500));
            let (begin, left) = (world.now, others(&world, drained));
            for lb_ip in world.lb_ips() {
                world.want(lb_ip, Some(&left));
            }
            if waits {
                without_a_gap(&mut world, PATIENCE - ms(100), |_| false);
                world.stick(other, false);
                let taken = |world: &World| world.all_owners().values().all(|owners| *owners == [other]);
                without_a_gap(&mut world, ms(50), taken).expect("it is handed over");
            } else {
                let gone = |world: &World| world.all_owners().values().all(Vec::is_empty);
                world.pass_until(PATIENCE + ms(500), gone).expect("what is forbidden ends");
                assert!(world.now - begin >= PATIENCE, "it ends too soon");
            }
        }
    });
}

#[test]
fn where_no_node_may_announce_an_address_it_is_withdrawn_at_once() {
    let mut world = settled(1, 3, 5);
    for lb_ip in world.lb_ips() {
        world.want(lb_ip, Some(&BTreeSet::new()));
    }
    let gone = |world: &World| world.all_owners().values().all(Vec::is_empty);
    assert_eq!(world.pass_until(ms(100), gone), Some(Duration::ZERO));
}

#[test]
fn a_node_without_the_link_that_is_asked_for_is_no_candidate_and_nobody_waits_for_it() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled(seed, nodes, 10);
        let only = world.random.below(nodes);
        world.call(only, "eth1");
        world.pass(ms(200));
        // The others hear on their eth0 a node that calls the same LAN eth1. New addresses are only for that.
        let new: Vec<_> = (20..30).map(lb_ip).collect();
        world.confine(&new, "eth1");
        let begun = world.now;
        let taken = |world: &World| new.iter().all(|lb_ip| world.owners(*lb_ip) == [only]);
        let took = world.pass_until(ms(1000), taken).expect("it announces them");
        // The LAN is asked first whether somebody has them, which takes 120 ms. Another candidate is waited for 100 ms.
        assert!(took <= ms(130), "somebody else was waited for: {took:?} after {begun:?}");
        world.pass(ms(1500));
        check(&world);
        // Where nobody has the link, nobody announces; and when somebody has it, that one does.
        world.call(only, "eth2");
        world.pass(ms(100));
        assert!(new.iter().all(|lb_ip| world.owners(*lb_ip).is_empty()));
        let other = (only + 1) % nodes;
        world.call(other, "eth1");
        let taken = |world: &World| new.iter().all(|lb_ip| world.owners(*lb_ip) == [other]);
        world.pass_until(ms(300), taken).expect("another one announces them");
        world.pass(ms(1500));
        check(&world);
    });
}

#[test]
fn an_address_that_is_confined_to_another_link_leaves_the_nodes_that_lack_it() {
    let mut world = settled(1, 3, 6);
    world.call(2, "eth1");
    world.pass(ms(200));
    let all = world.lb_ips();
    world.confine(&all, "eth1");
    let taken = |world: &World| world.all_owners().values().all(|owners| *owners == [2]);
    world.pass_until(ms(100), taken).expect("the one that has it takes over");
    world.pass(ms(1500));
    check(&world);
}
