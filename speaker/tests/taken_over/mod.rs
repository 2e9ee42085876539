//! A node dies: who takes over what it had, how fast, and what doesn't move.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use speaker::metrics::takeovers::Cause;

use crate::world::{INTERVAL, Network, WINDOW, World};
use crate::{SETTLED, check, ms, seeds, settled, sole_owners};

#[test]
fn the_addresses_of_a_crashed_node_are_announced_by_others_within_three_intervals_and_no_other_moves() {
    seeds(30, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled(seed, nodes, 30);
        let before = sole_owners(&world);
        let victim = world.random.below(nodes);
        let orphans: BTreeSet<IpAddr> =
            before.iter().filter(|(_, owner)| **owner == victim).map(|(lb_ip, _)| *lb_ip).collect();
        let pause = world.random.time(Duration::ZERO, INTERVAL);
        world.pass(pause);
        // How many were taken over from the dead, and how many of those after a silence of more than 200 ms.
        let counted = |world: &World| {
            let machines = (0..nodes).filter(|n| *n != victim).filter_map(|n| world.machine(n));
            let died = machines.map(|machine| machine.counters().takeovers.by(Cause::Died).counts);
            let sums = died.map(|counts| (counts.iter().sum::<u64>(), counts[4..].iter().sum::<u64>()));
            sums.fold((0, 0), |(all, late), (more, later)| (all + more, late + later))
        };
        let (earlier, _) = counted(&world);
        world.crash(victim);
        let crash = world.now;
        let took = world.pass_until(ms(1000), |world| {
            let mut seen = orphans.iter().filter_map(|lb_ip| world.announced.get(lb_ip));
            seen.all(|seen| seen.at >= crash && seen.node != victim)
        });
        let took = took.expect("a takeover");
        assert!(took <= WINDOW + ms(5), "it took {took:?}");
        let (all, late) = counted(&world);
        assert_eq!((all - earlier, late), (orphans.len() as u64, 0), "as counted");
        let after = sole_owners(&world);
        for (lb_ip, owner) in &before {
            assert!(orphans.contains(lb_ip) || after[lb_ip] == *owner, "{lb_ip} moved");
        }
        world.pass(SETTLED);
        check(&world);
        assert_eq!(sole_owners(&world), after, "somebody stepped in needlessly");
        // No failback.
        world.start(victim);
        world.pass(SETTLED);
        assert_eq!(sole_owners(&world), after);
    });
}

#[test]
fn five_thousand_addresses_change_hands_at_once() {
    let mut world = settled(3, 3, 5000);
    let before = sole_owners(&world);
    let victim = 0;
    let orphans: Vec<IpAddr> = before.iter().filter(|(_, o)| **o == victim).map(|(lb_ip, _)| *lb_ip).collect();
    assert!(orphans.len() > 1500, "{}", orphans.len());
    world.crash(victim);
    let crash = world.now;
    let took = world.pass_until(ms(2000), |world| {
        orphans
            .iter()
            .all(|lb_ip| world.announced.get(lb_ip).is_some_and(|seen| seen.at >= crash && seen.node != victim))
    });
    let took = took.expect("a takeover");
    assert!(took <= WINDOW + ms(20), "it took {took:?}");
    let packets = world.packets;
    world.pass(Duration::from_secs(1));
    // Forty are Hellos; what is new may be told twice.
    assert!(world.packets - packets < 200, "claims are told over and over: {} packets", world.packets - packets);
    check(&world);
}

#[test]
fn with_many_nodes_each_reads_only_so_many_packets_and_the_dead_are_still_replaced_in_time() {
    // Where there are few, those who are late are asked to answer, which adds some.
    for (nodes, interval, packets) in [(3, 50, 46.0), (50, 98, 520.0), (100, 198, 520.0)] {
        let interval = ms(interval);
        let mut world = World::new(nodes as u64, nodes, 200);
        for node in 0..nodes {
            world.start(node);
            let pause = world.random.time(Duration::ZERO, ms(10));
            world.pass(pause);
        }
        world.pass(interval * 20);
        check(&world);

        // One Hello in fifty is lost for a while.
        let (before, told) = (sole_owners(&world), world.told.len());
        world.network.loss = 0.02;
        let read = |world: &World| world.machine(1).expect("it runs").counters().packets_received;
        let count = read(&world);
        world.pass(Duration::from_secs(2));
        let rate = (read(&world) - count) as f64 / 2.0;
        eprintln!("{nodes} nodes: each reads {rate} packets a second");
        assert!(rate <= packets, "{nodes} nodes: {rate} packets a second");
        assert_eq!(sole_owners(&world), before, "{:?}", &world.told[told..]);

        world.network.loss = 0.0;
        let victim = *before.values().next().expect("an owner");
        let orphans: Vec<IpAddr> = before.iter().filter(|(_, o)| **o == victim).map(|(lb_ip, _)| *lb_ip).collect();
        let pause = world.random.time(Duration::ZERO, interval);
        world.pass(pause);
        world.crash(victim);
        let crash = world.now;
        let replaced = |world: &World| {
            orphans.iter().all(|lb_ip| world.announced[lb_ip].at >= crash && world.announced[lb_ip].node != victim)
        };
        let took = world.pass_until(interval * 10, replaced).expect("a takeover");
        eprintln!("{nodes} nodes: takeover after {took:?}");
        assert!(took <= interval * 3 + ms(5), "{nodes} nodes: it took {took:?}");
        world.pass(interval * 15);
        check(&world);
    }
}

#[test]
fn two_nodes_that_lose_one_hello_in_fifty_for_half_an_hour_lose_nothing_else_and_notice_a_death_in_time() {
    seeds(4, |seed| {
        let mut world = settled(seed, 2, 10);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        let (before, told) = (sole_owners(&world), world.told.len());
        world.pass(Duration::from_secs(1800));
        assert_eq!(world.told.len(), told, "{:?}", &world.told[told..]);
        assert_eq!(sole_owners(&world), before);

        let victim = world.random.below(2);
        let pause = world.random.time(Duration::ZERO, INTERVAL);
        world.pass(pause);
        world.crash(victim);
        let took = world.pass_until(ms(1000), |world| before.keys().all(|lb_ip| world.owners(*lb_ip) == [1 - victim]));
        assert!(took.expect("a takeover") <= WINDOW + ms(5), "it took {took:?}");
    });
}
