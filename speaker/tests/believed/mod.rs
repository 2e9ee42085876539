//! Who is believed: what was recorded moves nothing, and keys are replaced without anybody noticing.

use std::time::Duration;

use speaker::metrics::events::Event;
use speaker::wire::frame::Channel;

use crate::world::{World, key};
use crate::{SETTLED, check, ms, seeds, settled, sole_owners};

#[test]
fn what_was_recorded_moves_nothing_and_makes_nobody_look_alive() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = World::new(seed, nodes, 10);
        world.recorded = Some(Vec::new());
        world.start_all();
        world.pass(SETTLED);
        // Everybody restarts once: what was recorded is of former speakers too.
        for node in 0..nodes {
            world.start(node);
            world.pass(SETTLED);
        }
        check(&world);
        let before = sole_owners(&world);
        let recorded = world.recorded.take().expect("it was recorded");
        let replay = |world: &mut World, time: Duration| {
            let end = world.now + time;
            while world.now < end {
                for _ in 0..4 {
                    let packet = &recorded[world.random.below(recorded.len())];
                    world.inject(Channel::Hello, packet);
                }
                let pause = world.random.time(Duration::ZERO, ms(8));
                world.pass(pause);
            }
        };
        let told = world.told.len();
        replay(&mut world, ms(3000));
        assert_eq!(sole_owners(&world), before, "{:?}", &world.told[told..]);
        assert!(world.told[told..].iter().all(|(_, _, event)| matches!(event, Event::Twin { .. })));
        let dropped =
            |world: &World| (0..nodes).filter_map(|n| Some(world.machine(n)?.counters().dropped)).collect::<Vec<_>>();
        assert!(dropped(&world).iter().all(|dropped| dropped.replayed > 0 && dropped.unproven > 0));

        // The dead stay dead, though what they said last comes again and again.
        let victim = world.random.below(nodes);
        world.crash(victim);
        replay(&mut world, SETTLED);
        check(&world);
        // And who comes back is believed.
        world.start(victim);
        replay(&mut world, SETTLED);
        check(&world);
        assert!(world.all_owners().values().all(|owners| owners.len() == 1));
    });
}

#[test]
fn who_has_no_key_or_another_one_is_not_heard_and_counted() {
    let mut world = settled(1, 3, 10);
    world.lock(0, key(7));
    let at = world.now;
    // What was the key is good for a while after it was replaced.
    world.pass(speaker::wire::seal::GRACE - ms(1000));
    assert!(world.told.iter().all(|(when, _, _)| *when <= at), "{:?}", world.told.last());
    check(&world);
    world.pass(ms(1000) + SETTLED);
    let alone = world.machine(0).expect("it runs").counters().dropped;
    let other = world.machine(1).expect("it runs").counters().dropped;
    assert!(alone.unsealed > 10 && other.unsealed > 10, "{alone:?} {other:?}");
    world.lock(0, key(0));
    world.pass(SETTLED);
    check(&world);
}

#[test]
fn keys_are_replaced_under_way_without_anybody_noticing() {
    seeds(2, |seed| {
        let mut world = settled(seed, 3, 10);
        let (before, told) = (sole_owners(&world), world.told.len());
        for generation in 1..4 {
            for node in 0..3 {
                let pause = world.random.time(Duration::ZERO, Duration::from_secs(60));
                world.pass(pause);
                world.lock(node, key(generation));
            }
        }
        world.pass(speaker::wire::seal::GRACE + SETTLED);
        assert_eq!(sole_owners(&world), before);
        assert_eq!(world.told.len(), told, "{:?}", &world.told[told..]);
        // One that starts has the new key alone.
        world.start(1);
        world.pass(SETTLED);
        check(&world);
    });
}
