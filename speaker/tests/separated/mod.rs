//! Nodes that don't hear each other, and what becomes of that: few of them, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::world::{INTERVAL, WINDOW, World, intrusion, lb_ip, mac, name};
use crate::{SETTLED, check, ms, seeds, settled, sole_owners, told};

/// Lets time pass in which clients speak on the LAN, as they do.
fn talk(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        let (channel, frame) = intrusion(lb_ip(90 + world.random.below(3)));
        world.inject(channel, &frame);
        let pause = world.random.time(ms(5), ms(60));
        world.pass(pause.min(end - world.now));
    }
}

/// Everything belongs to one node.
fn all_of(world: &World, node: usize) -> BTreeMap<IpAddr, Vec<usize>> {
    world.lb_ips().into_iter().map(|lb_ip| (lb_ip, vec![node])).collect()
}

#[test]
fn of_two_nodes_the_one_that_clients_reach_has_everything_during_a_cut_and_keeps_it() {
    seeds(100, |seed| {
        let mut world = settled(seed, 2, 10);
        let (lost, other) = (seed as usize % 2, 1 - seed as usize % 2);
        world.isolate(lost, true);
        let time = world.random.time(ms(600), ms(5000));
        talk(&mut world, time);
        let served = world.lb_ips().into_iter().all(|lb_ip| {
            world.owners(lb_ip).contains(&other) && world.announced.get(&lb_ip).is_some_and(|seen| seen.node == other)
        });
        assert!(served, "{:?}", world.all_owners());
        world.heal();
        let heal = world.now;
        let again = |world: &World| world.announced.values().all(|seen| seen.at >= heal && seen.node == other);
        let took = world.pass_until(ms(1000), again).expect("the winner says so again");
        assert!(took <= INTERVAL * 2, "{took:?}");
        talk(&mut world, SETTLED);
        check(&world);
        assert_eq!(world.all_owners(), all_of(&world, other), "{:?}", world.told);
    });
}

#[test]
fn of_two_nodes_one_that_clients_reach_and_the_other_does_not_hear_of_it_gives_way() {
    seeds(40, |seed| {
        let mut world = settled(seed, 2, 10);
        let deaf = seed as usize % 2;
        world.cut(1 - deaf, deaf, true);
        talk(&mut world, ms(2000));
        // It hears clients, so it isn't deaf; and the other one knows that there would be two.
        assert_eq!(world.all_owners(), all_of(&world, deaf));
        world.heal();
        talk(&mut world, SETTLED);
        check(&world);
        assert_eq!(world.all_owners(), all_of(&world, deaf), "healing moves nothing");
    });
}

#[test]
fn who_hears_nobody_keeps_what_it_had_and_announces_none_of_it_unasked() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled(seed, nodes, 10);
        world.pass(ms(5000)); // until nothing of the beginning is contested any more
        let lost = world.random.below(nodes);
        let before = sole_owners(&world);
        let had: Vec<IpAddr> = before.iter().filter(|(_, owner)| **owner == lost).map(|(lb_ip, _)| *lb_ip).collect();
        world.isolate(lost, true);
        // What is due while it can't know yet is announced.
        world.pass(WINDOW * 2);
        let lonely = world.now;
        talk(&mut world, Duration::from_secs(70));
        for lb_ip in &had {
            assert!(world.owners(*lb_ip).contains(&lost), "whoever asks gets an answer");
            assert!(world.last_announced_by(lost, *lb_ip).is_none_or(|at| at < lonely), "{lb_ip}");
        }
        world.heal();
        talk(&mut world, SETTLED);
        check(&world);
    });
}

#[test]
fn who_is_heard_on_a_link_and_hears_us_is_a_neighbour_there_and_stays_one_in_silence() {
    seeds(20, |seed| {
        let racks = [BTreeSet::from([0, 1]), BTreeSet::from([2, 3])];
        let mut world = World::new(seed, 4, 5);
        world.part(&racks[0]);
        world.start_all();
        world.pass(SETTLED);
        let met = |world: &World, a: usize, b: usize| world.machine(a)?.neighbours().mac("eth0", &name(b));
        let pairs = || (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).filter(|(a, b)| a != b);
        for (a, b) in pairs() {
            let together = racks.iter().any(|rack| rack.contains(&a) && rack.contains(&b));
            assert_eq!(met(&world, a, b), together.then_some(mac(b)), "{a} of {b}");
        }
        world.heal();
        world.pass(SETTLED);
        world.crash(3);
        world.pass(Duration::from_secs(20));
        for (a, b) in pairs().filter(|(a, _)| *a != 3) {
            assert_eq!(met(&world, a, b), Some(mac(b)), "{a} of {b}");
        }
    });
}

#[test]
fn a_node_that_was_cut_off_takes_nothing_with_it_when_it_returns() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled(seed, nodes, 20);
        let lost = world.random.below(nodes);
        world.isolate(lost, true);
        world.pass(ms(400) + SETTLED);
        // Clients are with the others.
        let others: BTreeMap<IpAddr, Vec<usize>> = world
            .all_owners()
            .into_iter()
            .map(|(lb_ip, owners)| (lb_ip, owners.into_iter().filter(|owner| *owner != lost).collect()))
            .collect();
        assert!(others.values().all(|owners| owners.len() == 1), "the others serve everything: {others:?}");
        let gratuitous = world.announced.clone();
        world.isolate(lost, false);
        let pause = world.random.time(Duration::ZERO, SETTLED);
        world.pass(pause);
        world.pass(SETTLED);
        assert_eq!(world.all_owners(), others);
        check(&world);
        for (lb_ip, seen) in gratuitous {
            assert_eq!(world.announced[&lb_ip].node, seen.node);
        }
    });
}

#[test]
fn a_cut_in_one_direction_leaves_one_owner() {
    seeds(30, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled(seed, nodes, 10);
        let (a, b) = (world.random.below(nodes), world.random.below(nodes));
        world.cut(a, b, a != b);
        // Others vouch for the one that isn't heard, but not forever.
        world.pass(ms(1500) + SETTLED);
        check(&world);
        let before = world.all_owners();
        world.pass(ms(3000));
        assert_eq!(world.all_owners(), before);
        world.heal();
        world.pass(SETTLED);
        check(&world);
        assert_eq!(world.all_owners(), before, "healing moves nothing");
    });
}

#[test]
fn a_deaf_node_loses_its_addresses() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = settled(seed, nodes, 10);
        for other in 1..nodes {
            world.cut(other, 0, true);
        }
        world.cut(nodes, 0, true);
        let before: BTreeSet<IpAddr> =
            sole_owners(&world).into_iter().filter(|(_, owner)| *owner == 0).map(|(lb_ip, _)| lb_ip).collect();
        let took = world.pass_until(SETTLED, |world| before.iter().all(|lb_ip| world.owners(*lb_ip).len() == 2));
        assert!(took.expect("somebody else takes them") <= WINDOW * 2 + INTERVAL * 2, "{took:?}");
        // It can't know. But it doesn't announce what it owned, so clients stay with the others.
        world.pass(Duration::from_secs(70));
        for lb_ip in before {
            assert_ne!(world.announced[&lb_ip].node, 0, "{}", told(&world, lb_ip));
        }
        world.heal();
        world.pass(SETTLED);
        check(&world);
    });
}

#[test]
fn two_nodes_get_on_with_each_other_after_any_separation() {
    seeds(20, |seed| {
        let mut world = settled(seed, 2, 10);
        let cut = world.random.time(ms(100), ms(3000));
        world.isolate(0, true);
        world.pass(cut);
        world.heal();
        world.pass(SETTLED);
        check(&world);
    });
}
