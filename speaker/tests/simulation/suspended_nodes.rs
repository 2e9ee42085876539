//! Suspended nodes, and their state when they resume.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use speaker::metrics::Event;

use crate::world::World;
use crate::{SETTLING_TIME, check, ms, seeds, settled_world, sole_owners};

#[test]
fn resumed_node_takes_nothing_back() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 20);
        world.advance(ms(5000)); // until the last burst is over
        let suspended = world.random.next_below(nodes);
        let owned = sole_owners(&world).values().any(|owner| *owner == suspended);
        let time = world.random.time(ms(5000), ms(9000));
        world.suspend(suspended, time);
        world.advance(time - ms(1));
        let others = world.all_owners();
        assert!(others.values().all(|owners| owners.len() == 1), "the other nodes own all: {others:?}");
        let frames = world.announcement_count;
        world.advance(SETTLING_TIME);
        assert_eq!(world.all_owners(), others);
        assert_eq!(world.announcement_count > frames, owned, "the new owners announce again");
        check(&world);
    });
}

#[test]
fn short_suspension_moves_no_address() {
    seeds(20, |seed| {
        let mut world = settled_world(seed, 3, 10);
        let before = world.all_owners();
        for _ in 0..20 {
            let (node, time) = (world.random.next_below(3), world.random.time(ms(1), ms(95)));
            world.suspend(node, time);
            world.advance(ms(300));
            assert_eq!(world.all_owners(), before);
        }
    });
}

/// How often each address was newly announced, in the events from index `first` on.
fn new_announcements(world: &World, first: usize) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for (_, _, event) in &world.events[first..] {
        if let Event::Announced { lb_ip, .. } = event {
            *counts.entry(*lb_ip).or_default() += 1;
        }
    }
    counts
}

#[test]
fn starving_owner_loses_each_address_only_once() {
    let mut world = settled_world(3, 3, 5000);
    world.advance(ms(5000));
    let before = sole_owners(&world);
    let (first, frames) = (world.events.len(), world.announcement_count);
    for _ in 0..10 {
        world.suspend(0, ms(400));
        let pause = world.random.time(ms(500), ms(2500));
        world.advance(ms(400) + pause);
    }
    world.advance(ms(5000));
    check(&world);
    let moved = new_announcements(&world, first);
    let lost: BTreeSet<IpAddr> = before.iter().filter(|(_, owner)| **owner == 0).map(|(lb_ip, _)| *lb_ip).collect();
    assert!(lost.len() > 1500, "{}", lost.len());
    assert_eq!(moved.keys().copied().collect::<BTreeSet<_>>(), lost);
    assert!(moved.values().all(|count| *count == 1), "they move to and fro");
    // The new owner announces each address six times in two forms. The former owner may announce it once more.
    let frames = world.announcement_count - frames;
    assert!(frames < 5000 * 16, "{frames} frames: a storm");
}

#[test]
fn late_owner_that_is_not_missed_stays_quiet() {
    let mut world = settled_world(4, 3, 1000);
    world.advance(ms(5000));
    let (before, frames) = (sole_owners(&world), world.announcement_count);
    for _ in 0..20 {
        // Peers declare the owner dead after a silence of 150 ms, and its last Hello is up to 50 ms old.
        let late = world.random.time(ms(60), ms(95));
        world.suspend(0, late);
        world.advance(ms(300));
    }
    check(&world);
    assert_eq!(sole_owners(&world), before);
    let machine = world.machine(0).expect("it runs").counters();
    assert!(machine.stalls > 0 && machine.dropped.backlog == 0, "{machine:?}");
    assert_eq!(world.announcement_count, frames, "there was no change to announce");
}
