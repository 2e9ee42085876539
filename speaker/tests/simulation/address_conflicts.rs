//! Hosts outside the cluster that use an address, and how the speakers detect them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use speaker::metrics::Event;

use crate::world::{WINDOW, World, frame_of_other_host, lb_ip};
use crate::{SETTLING_TIME, check, ms, seeds, settled_world, sole_owners};

#[test]
fn used_address_is_announced_after_its_host_has_left() {
    seeds(10, |seed| {
        let nodes = 1 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 6);
        let (taken, free) = (lb_ip(7 + seed as usize % 3), lb_ip(16));
        world.other_hosts = vec![(taken, frame_of_other_host(taken).1)];
        let all: BTreeSet<usize> = (0..nodes).collect();
        world.set_candidates(taken, Some(&all));
        world.advance(ms(5));
        let begin = world.now;
        world.set_candidates(free, Some(&all));
        let took = world
            .advance_until(ms(1000), |world| world.last_announcements.get(&free).is_some_and(|seen| seen.at >= begin));
        assert!(took.expect("it is announced") <= ms(150), "{took:?}");
        world.advance(Duration::from_secs(30));
        assert_eq!((world.owners(taken), world.last_announcements.get(&taken)), (vec![], None));
        let conflicts: usize = (0..nodes).filter_map(|node| Some(world.machine(node)?.conflicts().count())).sum();
        assert!(conflicts > 0, "the conflict is reported");

        // The host is gone.
        world.other_hosts.clear();
        world.advance(Duration::from_secs(12));
        assert_eq!((world.owners(taken).len(), world.owners(free).len()), (1, 1));
        assert_eq!((0..nodes).filter_map(|n| Some(world.machine(n)?.conflicts().count())).sum::<usize>(), 0);

        // A node that takes over an address sends no probes.
        let probes = world.probe_count;
        let owner = world.owners(taken)[0];
        world.crash(owner);
        world.advance(SETTLING_TIME);
        assert_eq!((world.probe_count, world.owners(taken).len()), (probes, usize::from(nodes > 1)));
    });
}

#[test]
fn conflicting_host_is_reported_once_and_answered_slowly() {
    seeds(6, |seed| {
        let mut world = settled_world(seed, 3, 6);
        world.advance(ms(5000));
        let lb_ip = lb_ip(seed as usize % 6);
        let owner = world.owners(lb_ip);
        let (channel, frame) = frame_of_other_host(lb_ip);
        let (frames, first) = (world.announcement_count, world.events.len());
        for _ in 0..1000 {
            world.inject(channel, &frame);
            world.advance(ms(20));
        }
        let events: Vec<&Event> = world.events[first..].iter().map(|(_, _, event)| event).collect();
        assert!(matches!(events[..], [Event::Conflict { held_back: false, .. }]), "{events:?}");
        assert_eq!(world.owners(lb_ip), owner);
        assert_eq!(world.last_announcements[&lb_ip].node, owner[0]);
        // Two or three answers in 20 s, in one or two forms.
        let answers = world.announcement_count - frames;
        assert!((2..=6).contains(&answers), "{answers}");
    });
}

#[test]
fn probes_of_thousands_are_paced_and_delay_no_takeover() {
    const NEW: usize = 3000;
    let mut world = settled_world(1, 3, 30);
    world.advance(ms(5000));
    let before = sole_owners(&world);
    world.add_addresses((100..100 + NEW).map(lb_ip));
    let begin = world.now;
    let mut probes = vec![world.probe_count];
    for round in 0..40 {
        if round == 5 {
            world.crash(0);
            let orphans: BTreeSet<IpAddr> =
                before.iter().filter(|(_, owner)| **owner == 0).map(|(lb_ip, _)| *lb_ip).collect();
            let crash = world.now;
            let replaced = |world: &World| {
                let mut seen = orphans.iter().map(|lb_ip| world.last_announcements[lb_ip]);
                seen.all(|seen| seen.at >= crash && seen.node != 0)
            };
            let took = world.advance_until(ms(1000), replaced).expect("a takeover");
            assert!(took <= WINDOW + ms(5), "{took:?}");
        } else {
            world.advance(ms(100));
        }
        probes.push(world.probe_count);
    }
    // In 100 ms each of three nodes begins to probe at most a burst of 128 addresses, and one more per millisecond. An
    // address takes three probes.
    let peak = probes.windows(2).map(|pair| pair[1] - pair[0]).max().expect("rounds");
    let total = probes[probes.len() - 1] - probes[0];
    eprintln!("{NEW} addresses: {total} probes, at most {peak} in 100 ms, until {:?}", world.now - begin);
    assert!(peak <= 3 * 3 * (128 + 100), "{peak}");
    assert!(total <= 3 * NEW as u64 * 3 / 2, "{total}");
    assert!(world.all_owners().values().all(|owners| owners.len() == 1));
    check(&world);
}
