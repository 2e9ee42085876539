//! Nodes that don't hear each other, and what becomes of that: few of them, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::world::{INTERVAL, World, intrusion, lb_ip, mac, name};
use crate::{SETTLED, WINDOW, check, ms, seeds, settled, sole_owners};

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
fn thousands_of_new_addresses_are_asked_for_at_a_bounded_rate_and_no_takeover_waits_for_them() {
    const NEW: usize = 3000;
    let mut world = settled(1, 3, 30);
    world.pass(ms(5000));
    let before = sole_owners(&world);
    world.want_many((100..100 + NEW).map(lb_ip));
    let begin = world.now;
    let mut asked = vec![world.probes];
    for round in 0..40 {
        if round == 5 {
            world.crash(0);
            let orphans: BTreeSet<IpAddr> =
                before.iter().filter(|(_, owner)| **owner == 0).map(|(lb_ip, _)| *lb_ip).collect();
            let crash = world.now;
            let replaced = |world: &World| {
                let mut seen = orphans.iter().map(|lb_ip| world.announced[lb_ip]);
                seen.all(|seen| seen.at >= crash && seen.node != 0)
            };
            let took = world.pass_until(ms(1000), replaced).expect("a takeover");
            // One that takes new addresses may have taken this one: it is waited for until its next Hello says that it hasn't.
            assert!(took <= WINDOW + ms(30), "{took:?}");
        } else {
            world.pass(ms(100));
        }
        asked.push(world.probes);
    }
    // In a tenth of a second each node begins with a burst, and later with one address a millisecond, and asks three times.
    let most = asked.windows(2).map(|pair| pair[1] - pair[0]).max().expect("some");
    let total = asked[asked.len() - 1] - asked[0];
    eprintln!("{NEW} addresses: {total} probes, {most} in 100 ms at most, until {:?}", world.now - begin);
    assert!(most <= 3 * 3 * (128 + 100), "{most}");
    assert!(total <= 3 * NEW as u64 * 3 / 2, "{total}");
    assert!(world.all_owners().values().all(|owners| owners.len() == 1));
    check(&world);
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
