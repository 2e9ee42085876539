//! Authentication: replayed packets move no address, and a rotation of keys has no effect.

use std::time::Duration;

use speaker::metrics::Event;
use speaker::wire::frame::Channel;

use crate::world::{World, key};
use crate::{SETTLING_TIME, check, ms, seeds, settled_world, sole_owners};

#[test]
fn replayed_packets_move_nothing_and_revive_no_node() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = World::new(seed, nodes, 10);
        world.recorded = Some(Vec::new());
        world.start_all();
        world.advance(SETTLING_TIME);
        // Each node restarts once, so that packets of former incarnations are recorded as well.
        for node in 0..nodes {
            world.start(node);
            world.advance(SETTLING_TIME);
        }
        check(&world);
        let before = sole_owners(&world);
        let recorded = world.recorded.take().expect("packets were recorded");
        let replay = |world: &mut World, time: Duration| {
            let end = world.now + time;
            while world.now < end {
                for _ in 0..4 {
                    let packet = &recorded[world.random.next_below(recorded.len())];
                    world.inject(Channel::Hello, packet);
                }
                let pause = world.random.time(Duration::ZERO, ms(8));
                world.advance(pause);
            }
        };
        let first = world.events.len();
        replay(&mut world, ms(3000));
        assert_eq!(sole_owners(&world), before, "{:?}", &world.events[first..]);
        assert!(world.events[first..].iter().all(|(_, _, event)| matches!(event, Event::DuplicateNode { .. })));
        let dropped =
            |world: &World| (0..nodes).filter_map(|n| Some(world.machine(n)?.counters().dropped)).collect::<Vec<_>>();
        assert!(dropped(&world).iter().all(|dropped| dropped.replayed > 0 && dropped.unproven > 0));

        // A dead node stays dead although its last packets are replayed.
        let victim = world.random.next_below(nodes);
        world.crash(victim);
        replay(&mut world, SETTLING_TIME);
        check(&world);
        // The restarted node is believed, although its old packets are replayed meanwhile.
        world.start(victim);
        replay(&mut world, SETTLING_TIME);
        check(&world);
        assert!(world.all_owners().values().all(|owners| owners.len() == 1));
    });
}

#[test]
fn packets_under_an_unknown_key_are_dropped_and_counted() {
    let mut world = settled_world(1, 3, 10);
    world.set_keys(0, key(7));
    let at = world.now;
    // The replaced key still seals and opens packets for GRACE.
    world.advance(speaker::wire::seal::GRACE - ms(1000));
    assert!(world.events.iter().all(|(when, _, _)| *when <= at), "{:?}", world.events.last());
    check(&world);
    world.advance(ms(1000) + SETTLING_TIME);
    let alone = world.machine(0).expect("it runs").counters().dropped;
    let other = world.machine(1).expect("it runs").counters().dropped;
    assert!(alone.unsealed > 10 && other.unsealed > 10, "{alone:?} {other:?}");
    world.set_keys(0, key(0));
    world.advance(SETTLING_TIME);
    check(&world);
}

#[test]
fn key_rotation_has_no_effect() {
    seeds(2, |seed| {
        let mut world = settled_world(seed, 3, 10);
        let (before, events) = (sole_owners(&world), world.events.len());
        for generation in 1..4 {
            for node in 0..3 {
                let pause = world.random.time(Duration::ZERO, Duration::from_secs(60));
                world.advance(pause);
                world.set_keys(node, key(generation));
            }
        }
        world.advance(speaker::wire::seal::GRACE + SETTLING_TIME);
        assert_eq!(sole_owners(&world), before);
        assert_eq!(world.events.len(), events, "{:?}", &world.events[events..]);
        // A starting node has the new key only.
        world.start(1);
        world.advance(SETTLING_TIME);
        check(&world);
    });
}
