//! Nodes that don't run for a while, and what they find when they wake.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use speaker::metrics::events::Event;

use crate::world::World;
use crate::{SETTLED, check, ms, seeds, settled, sole_owners};

#[test]
fn a_node_that_slept_steals_nothing_back_when_it_wakes() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 3;
        let mut world = settled(seed, nodes, 20);
        world.pass(ms(5000)); // until the last burst is over
        let asleep = world.random.below(nodes);
        let owned = sole_owners(&world).values().any(|owner| *owner == asleep);
        let time = world.random.time(ms(5000), ms(9000));
        world.freeze(asleep, time);
        world.pass(time - ms(1));
        let others = world.all_owners();
        assert!(others.values().all(|owners| owners.len() == 1), "the others serve everything: {others:?}");
        let frames = world.gratuitous;
        world.pass(SETTLED);
        assert_eq!(world.all_owners(), others);
        assert_eq!(world.gratuitous > frames, owned, "the winners say so again");
        check(&world);
    });
}

#[test]
fn a_short_sleep_of_anybody_moves_nothing() {
    seeds(20, |seed| {
        let mut world = settled(seed, 3, 10);
        let before = world.all_owners();
        for _ in 0..20 {
            let (node, time) = (world.random.below(3), world.random.time(ms(1), ms(95)));
            world.freeze(node, time);
            world.pass(ms(300));
            assert_eq!(world.all_owners(), before);
        }
    });
}

/// How often each address began to be announced, of those of which that was told since then.
fn begun(world: &World, since: usize) -> BTreeMap<IpAddr, usize> {
    let mut begun = BTreeMap::new();
    for (_, _, event) in &world.told[since..] {
        if let Event::Announced { lb_ip, .. } = event {
            *begun.entry(*lb_ip).or_default() += 1;
        }
    }
    begun
}

#[test]
fn of_thousands_of_addresses_a_node_that_starves_now_and_then_loses_its_own_once_and_nothing_else_moves() {
    let mut world = settled(3, 3, 5000);
    world.pass(ms(5000));
    let before = sole_owners(&world);
    let (told, frames) = (world.told.len(), world.gratuitous);
    for _ in 0..10 {
        world.freeze(0, ms(400));
        let pause = world.random.time(ms(500), ms(2500));
        world.pass(ms(400) + pause);
    }
    world.pass(ms(5000));
    check(&world);
    let begun = begun(&world, told);
    let lost: BTreeSet<IpAddr> = before.iter().filter(|(_, owner)| **owner == 0).map(|(lb_ip, _)| *lb_ip).collect();
    assert!(lost.len() > 1500, "{}", lost.len());
    assert_eq!(begun.keys().copied().collect::<BTreeSet<_>>(), lost);
    assert!(begun.values().all(|count| *count == 1), "they move to and fro");
    // Each is announced six times in two forms by its new owner; and the old one may insist once more on what it had.
    let frames = world.gratuitous - frames;
    assert!(frames < 5000 * 16, "{frames} frames: a storm");
}

#[test]
fn a_node_that_is_late_but_not_missed_announces_nothing_anew_and_answers_what_was_asked_meanwhile() {
    let mut world = settled(4, 3, 1000);
    world.pass(ms(5000));
    let (before, frames) = (sole_owners(&world), world.gratuitous);
    for _ in 0..20 {
        // Others miss it after 150 ms, and its last Hello is up to 50 ms old.
        let late = world.random.time(ms(60), ms(95));
        world.freeze(0, late);
        world.pass(ms(300));
    }
    check(&world);
    assert_eq!(sole_owners(&world), before);
    let machine = world.machine(0).expect("it runs").counters();
    assert!(machine.slept > 0 && machine.dropped.backlog == 0, "{machine:?}");
    assert_eq!(world.gratuitous, frames, "nothing has happened that others had to be told of");
}
