//! Nodes that hear few of the others, or none, because paths are cut or links are down.

mod relays;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::exploration::observed_world;
use crate::world::{INTERVAL, WINDOW, World, frame_of_other_host, lb_ip, lb_ip_on_second, mac};
use crate::{SETTLING_TIME, check, event_log, ms, seeds, settled_world, sole_owners};

/// Advances while clients send frames on the LAN.
fn advance_with_clients(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        let (channel, frame) = frame_of_other_host(lb_ip(90 + world.random.next_below(3)));
        world.inject(channel, &frame);
        let pause = world.random.time(ms(5), ms(60));
        world.advance(pause.min(end - world.now));
    }
}

/// The owners if one node owns all addresses.
fn all_owned_by(world: &World, node: usize) -> BTreeMap<IpAddr, Vec<usize>> {
    world.lb_ips().into_iter().map(|lb_ip| (lb_ip, vec![node])).collect()
}

#[test]
fn cut_leaves_all_addresses_with_the_reachable_node() {
    seeds(100, |seed| {
        let mut world = settled_world(seed, 2, 10);
        let (lost, other) = (seed as usize % 2, 1 - seed as usize % 2);
        world.isolate(lost, true);
        let time = world.random.time(ms(600), ms(5000));
        advance_with_clients(&mut world, time);
        let served = world.lb_ips().into_iter().all(|lb_ip| {
            world.owners(lb_ip).contains(&other)
                && world.last_announcements.get(&lb_ip).is_some_and(|seen| seen.node == other)
        });
        assert!(served, "{:?}", world.all_owners());
        world.heal();
        let heal = world.now;
        let again = |world: &World| world.last_announcements.values().all(|seen| seen.at >= heal && seen.node == other);
        let took = world.advance_until(ms(1000), again).expect("the owner announces again");
        assert!(took <= INTERVAL * 2, "{took:?}");
        advance_with_clients(&mut world, SETTLING_TIME);
        check(&world);
        assert_eq!(world.all_owners(), all_owned_by(&world, other), "{:?}", world.events);
    });
}

#[test]
fn node_that_knows_of_two_owners_yields() {
    seeds(40, |seed| {
        let mut world = settled_world(seed, 2, 10);
        let taker = seed as usize % 2;
        world.cut(1 - taker, taker, true);
        advance_with_clients(&mut world, ms(2000));
        // The taker does not hear its peer, but it hears clients, so it is not deaf. The peer hears the claims of the
        // taker, and yields.
        assert_eq!(world.all_owners(), all_owned_by(&world, taker));
        world.heal();
        advance_with_clients(&mut world, SETTLING_TIME);
        check(&world);
        assert_eq!(world.all_owners(), all_owned_by(&world, taker), "healing moves nothing");
    });
}

#[test]
fn isolated_node_keeps_its_addresses_but_announces_none_unasked() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = settled_world(seed, nodes, 10);
        world.advance(ms(5000)); // until no address is contested any longer
        let lost = world.random.next_below(nodes);
        let before = sole_owners(&world);
        let had: Vec<IpAddr> = before.iter().filter(|(_, owner)| **owner == lost).map(|(lb_ip, _)| *lb_ip).collect();
        world.isolate(lost, true);
        // Until the node detects its isolation, it makes the announcements that are due.
        world.advance(WINDOW * 2);
        let isolated_at = world.now;
        advance_with_clients(&mut world, Duration::from_secs(70));
        for lb_ip in &had {
            assert!(world.owners(*lb_ip).contains(&lost), "requests are answered");
            assert!(world.last_announced_by(lost, *lb_ip).is_none_or(|at| at < isolated_at), "{lb_ip}");
        }
        world.heal();
        advance_with_clients(&mut world, SETTLING_TIME);
        check(&world);
    });
}

#[test]
fn nodes_once_heard_stay_neighbours_while_silent() {
    seeds(20, |seed| {
        let racks = [BTreeSet::from([0, 1]), BTreeSet::from([2, 3])];
        let mut world = World::new(seed, 4, 5);
        world.partition(&racks[0]);
        world.start_all();
        world.advance(SETTLING_TIME);
        let pairs = || (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).filter(|(a, b)| a != b);
        for (a, b) in pairs() {
            let together = racks.iter().any(|rack| rack.contains(&a) && rack.contains(&b));
            assert_eq!(world.neighbour(a, b), together.then_some(mac(b)), "{a} of {b}");
        }
        world.heal();
        world.advance(SETTLING_TIME);
        world.crash(3);
        world.advance(Duration::from_secs(20));
        for (a, b) in pairs().filter(|(a, _)| *a != 3) {
            assert_eq!(world.neighbour(a, b), Some(mac(b)), "{a} of {b}");
        }
    });
}

#[test]
fn returning_isolated_node_takes_no_address() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 20);
        let lost = world.random.next_below(nodes);
        world.isolate(lost, true);
        world.advance(ms(400) + SETTLING_TIME);
        // Clients use the other nodes.
        let others: BTreeMap<IpAddr, Vec<usize>> = world
            .all_owners()
            .into_iter()
            .map(|(lb_ip, owners)| (lb_ip, owners.into_iter().filter(|owner| *owner != lost).collect()))
            .collect();
        assert!(others.values().all(|owners| owners.len() == 1), "the other nodes own all: {others:?}");
        let before = world.last_announcements.clone();
        world.isolate(lost, false);
        let pause = world.random.time(Duration::ZERO, SETTLING_TIME);
        world.advance(pause);
        world.advance(SETTLING_TIME);
        assert_eq!(world.all_owners(), others);
        check(&world);
        for (lb_ip, seen) in before {
            assert_eq!(world.last_announcements[&lb_ip].node, seen.node);
        }
    });
}

#[test]
fn one_way_cut_leaves_one_owner() {
    seeds(30, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 10);
        let (a, b) = (world.random.next_below(nodes), world.random.next_below(nodes));
        world.cut(a, b, a != b);
        // Other nodes vouch for the node that is not heard, but only for about a second.
        world.advance(ms(1500) + SETTLING_TIME);
        check(&world);
        let before = world.all_owners();
        world.advance(ms(3000));
        assert_eq!(world.all_owners(), before);
        world.heal();
        world.advance(SETTLING_TIME);
        check(&world);
        assert_eq!(world.all_owners(), before, "healing moves nothing");
    });
}

#[test]
fn deaf_node_loses_its_addresses() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 10);
        for other in 1..nodes {
            world.cut(other, 0, true);
        }
        world.cut(nodes, 0, true);
        let before: BTreeSet<IpAddr> =
            sole_owners(&world).into_iter().filter(|(_, owner)| *owner == 0).map(|(lb_ip, _)| lb_ip).collect();
        let took =
            world.advance_until(SETTLING_TIME, |world| before.iter().all(|lb_ip| world.owners(*lb_ip).len() == 2));
        assert!(took.expect("another node takes them") <= WINDOW * 2 + INTERVAL * 2, "{took:?}");
        // The deaf node cannot know of the takeover. But it announces nothing unasked, so clients stay with the new
        // owners.
        world.advance(Duration::from_secs(70));
        for lb_ip in before {
            assert_ne!(world.last_announcements[&lb_ip].node, 0, "{}", event_log(&world, lb_ip));
        }
        world.heal();
        world.advance(SETTLING_TIME);
        check(&world);
    });
}

#[test]
fn node_that_was_deaf_takes_no_address_back() {
    seeds(40, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 10);
        for other in 1..=nodes {
            world.cut(other, 0, true);
        }
        world.advance(SETTLING_TIME);
        let successors = |world: &World| -> BTreeMap<IpAddr, Vec<usize>> {
            let all = world.all_owners().into_iter();
            all.map(|(lb_ip, owners)| (lb_ip, owners.into_iter().filter(|owner| *owner != 0).collect())).collect()
        };
        let before = successors(&world);
        assert!(before.values().all(|owners| owners.len() == 1), "{before:?}");
        world.heal();
        world.advance(SETTLING_TIME);
        check(&world);
        assert_eq!(successors(&world), before);
    });
}

#[test]
fn two_nodes_converge_after_any_separation() {
    seeds(20, |seed| {
        let mut world = settled_world(seed, 2, 10);
        let cut = world.random.time(ms(100), ms(3000));
        world.isolate(0, true);
        world.advance(cut);
        world.heal();
        world.advance(SETTLING_TIME);
        check(&world);
    });
}

#[test]
fn returned_links_are_heard_again() {
    seeds(60, |seed| {
        let nodes = 2 + seed as usize % 4;
        let mut world = observed_world(seed, nodes);
        // Several links that are down stand for a failed switch.
        let down = 1 + world.random.next_below(nodes);
        for node in 0..down {
            world.set_carrier(node, 0, false);
        }
        let time = world.random.time(ms(1), ms(3000));
        world.advance(time);
        for node in 0..down {
            world.set_carrier(node, 0, true);
        }
        world.record_fault();
        world.advance(SETTLING_TIME);
        check(&world);
        let before = world.all_owners();
        world.advance(ms(5000));
        check(&world);
        assert_eq!(world.all_owners(), before, "an address moved without a cause");
    });
}

#[test]
fn flapping_link_leaves_one_announcer() {
    seeds(20, |seed| {
        let mut world = observed_world(seed, 3);
        for _ in 0..20 {
            let carrier = world.links_down().contains(&(0, 0));
            world.set_carrier(0, 0, carrier);
            world.record_fault();
            let time = world.random.time(ms(1), ms(600));
            world.advance(time);
        }
        world.set_carrier(0, 0, true);
        world.advance(SETTLING_TIME);
        check(&world);
    });
}

#[test]
fn nodes_of_a_failed_switch_take_no_address_of_the_majority() {
    let mut world = observed_world(1, 5);
    for node in 0..2 {
        world.set_carrier(node, 0, false);
    }
    world.advance(ms(2000));
    let before = world.all_owners();
    // The switch is back without its uplink: its two nodes hear each other alone.
    world.partition(&BTreeSet::from([2, 3, 4]));
    for node in 0..2 {
        world.set_carrier(node, 0, true);
    }
    world.advance(ms(2000));
    world.heal();
    world.record_fault();
    world.advance(SETTLING_TIME);
    check(&world);
    assert_eq!(world.all_owners(), before, "two of five nodes are no quorum");
}

#[test]
fn link_that_is_used_again_is_heard_although_its_goodbye_was_lost() {
    let mut world = World::with_lans(1, 3, 2, 2);
    world.add_api(ms(50), 0.0);
    let on_second = lb_ip_on_second(0);
    world.add_addresses([on_second].into_iter());
    world.start_all();
    world.advance(ms(5000));
    check(&world);
    world.network.loss = 1.0;
    world.permit_home_link(on_second, 0, false);
    world.advance(ms(5));
    world.network.loss = 0.0;
    world.advance(SETTLING_TIME);
    world.permit_home_link(on_second, 0, true);
    world.advance(SETTLING_TIME);
    check(&world);
}
