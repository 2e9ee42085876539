//! Takeovers after the death of a node: the new owners, the time they take, and the addresses that do not move.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use speaker::metrics::Cause;

use crate::world::{INTERVAL, Network, WINDOW, World};
use crate::{SETTLING_TIME, check, ms, seeds, settled_world, sole_owners};

#[test]
fn crashed_nodes_addresses_are_announced_within_a_window() {
    seeds(30, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled_world(seed, nodes, 30);
        let before = sole_owners(&world);
        let victim = world.random.next_below(nodes);
        let orphans: BTreeSet<IpAddr> =
            before.iter().filter(|(_, owner)| **owner == victim).map(|(lb_ip, _)| *lb_ip).collect();
        let pause = world.random.time(Duration::ZERO, INTERVAL);
        world.advance(pause);
        // The number of takeovers from dead nodes, and the number of those after a silence of more than 200 ms.
        let counted = |world: &World| {
            let machines = (0..nodes).filter(|n| *n != victim).filter_map(|n| world.machine(n));
            let died = machines.map(|machine| machine.counters().takeovers.silences(Cause::Died).counts);
            let sums = died.map(|counts| (counts.iter().sum::<u64>(), counts[4..].iter().sum::<u64>()));
            sums.fold((0, 0), |(all, late), (more, later)| (all + more, late + later))
        };
        let (earlier, _) = counted(&world);
        world.crash(victim);
        let crash = world.now;
        let took = world.advance_until(ms(1000), |world| {
            let mut seen = orphans.iter().filter_map(|lb_ip| world.last_announcements.get(lb_ip));
            seen.all(|seen| seen.at >= crash && seen.node != victim)
        });
        let took = took.expect("a takeover");
        assert!(took <= WINDOW + ms(5), "it took {took:?}");
        let (all, late) = counted(&world);
        assert_eq!((all - earlier, late), (orphans.len() as u64, 0), "the counters");
        let after = sole_owners(&world);
        for (lb_ip, owner) in &before {
            assert!(orphans.contains(lb_ip) || after[lb_ip] == *owner, "{lb_ip} moved");
        }
        world.advance(SETTLING_TIME);
        check(&world);
        assert_eq!(sole_owners(&world), after, "a node stepped in without need");
        // No failback.
        world.start(victim);
        world.advance(SETTLING_TIME);
        assert_eq!(sole_owners(&world), after);
    });
}

#[test]
fn five_thousand_addresses_move_at_once() {
    let mut world = settled_world(3, 3, 5000);
    let before = sole_owners(&world);
    let victim = 0;
    let orphans: Vec<IpAddr> = before.iter().filter(|(_, o)| **o == victim).map(|(lb_ip, _)| *lb_ip).collect();
    assert!(orphans.len() > 1500, "{}", orphans.len());
    world.crash(victim);
    let crash = world.now;
    let took = world.advance_until(ms(2000), |world| {
        orphans.iter().all(|lb_ip| {
            world.last_announcements.get(lb_ip).is_some_and(|seen| seen.at >= crash && seen.node != victim)
        })
    });
    let took = took.expect("a takeover");
    assert!(took <= WINDOW + ms(20), "it took {took:?}");
    let packets = world.hello_count;
    world.advance(Duration::from_secs(1));
    // Forty packets are Hellos, and changed claims may be sent twice.
    let packets = world.hello_count - packets;
    assert!(packets < 200, "claims are sent repeatedly: {packets} packets");
    check(&world);
}

#[test]
fn large_cluster_bounds_packet_rate_and_replaces_dead_nodes() {
    // With few nodes, probes of late peers add some packets.
    for (nodes, interval, packets) in [(3, 50, 46.0), (50, 98, 520.0), (100, 198, 520.0)] {
        let interval = ms(interval);
        let mut world = World::new(nodes as u64, nodes, 200);
        for node in 0..nodes {
            world.start(node);
            let pause = world.random.time(Duration::ZERO, ms(10));
            world.advance(pause);
        }
        world.advance(interval * 20);
        check(&world);

        // Two percent of the Hellos are lost for a while.
        let (before, first) = (sole_owners(&world), world.events.len());
        world.network.loss = 0.02;
        let received = |world: &World| world.machine(1).expect("it runs").counters().packets_received;
        let count = received(&world);
        world.advance(Duration::from_secs(2));
        let rate = (received(&world) - count) as f64 / 2.0;
        eprintln!("{nodes} nodes: each receives {rate} packets per second");
        assert!(rate <= packets, "{nodes} nodes: {rate} packets per second");
        assert_eq!(sole_owners(&world), before, "{:?}", &world.events[first..]);

        world.network.loss = 0.0;
        let victim = *before.values().next().expect("an owner");
        let orphans: Vec<IpAddr> = before.iter().filter(|(_, o)| **o == victim).map(|(lb_ip, _)| *lb_ip).collect();
        let pause = world.random.time(Duration::ZERO, interval);
        world.advance(pause);
        world.crash(victim);
        let crash = world.now;
        let replaced = |world: &World| {
            orphans.iter().all(|lb_ip| {
                world.last_announcements[lb_ip].at >= crash && world.last_announcements[lb_ip].node != victim
            })
        };
        let took = world.advance_until(interval * 10, replaced).expect("a takeover");
        eprintln!("{nodes} nodes: takeover after {took:?}");
        assert!(took <= interval * 3 + ms(5), "{nodes} nodes: it took {took:?}");
        world.advance(interval * 15);
        check(&world);
    }
}

#[test]
fn hello_loss_between_two_nodes_moves_no_address() {
    seeds(4, |seed| {
        let mut world = settled_world(seed, 2, 10);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        let (before, events) = (sole_owners(&world), world.events.len());
        world.advance(Duration::from_secs(1800));
        assert_eq!(world.events.len(), events, "{:?}", &world.events[events..]);
        assert_eq!(sole_owners(&world), before);

        let victim = world.random.next_below(2);
        let pause = world.random.time(Duration::ZERO, INTERVAL);
        world.advance(pause);
        world.crash(victim);
        let took =
            world.advance_until(ms(1000), |world| before.keys().all(|lb_ip| world.owners(*lb_ip) == [1 - victim]));
        assert!(took.expect("a takeover") <= WINDOW + ms(5), "it took {took:?}");
    });
}
