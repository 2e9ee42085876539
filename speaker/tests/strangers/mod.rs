//! Hosts that are no nodes and have an address, and how it is found out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use speaker::metrics::events::Event;

use crate::world::{WINDOW, World, intrusion, lb_ip};
use crate::{SETTLED, check, ms, seeds, settled, sole_owners};

#[test]
fn an_address_that_a_stranger_has_is_not_announced_before_it_is_free_and_no_other_waits_for_it() {
    seeds(10, |seed| {
        let nodes = 1 + seed as usize % 3;
        let mut world = settled(seed, nodes, 6);
        let (taken, free) = (lb_ip(7 + seed as usize % 3), lb_ip(16));
        world.strangers = vec![(taken, intrusion(taken).1)];
        let all: BTreeSet<usize> = (0..nodes).collect();
        world.want(taken, Some(&all));
        world.pass(ms(5));
        let begin = world.now;
        world.want(free, Some(&all));
        let took = world.pass_until(ms(1000), |world| world.announced.get(&free).is_some_and(|seen| seen.at >= begin));
        assert!(took.expect("it is announced") <= ms(150), "{took:?}");
        world.pass(Duration::from_secs(30));
        assert_eq!((world.owners(taken), world.announced.get(&taken)), (vec![], None));
        let held: usize = (0..nodes).filter_map(|node| Some(world.machine(node)?.strangers().count())).sum();
        assert!(held > 0, "it is told");

        // The stranger is gone.
        world.strangers.clear();
        world.pass(Duration::from_secs(12));
        assert_eq!((world.owners(taken).len(), world.owners(free).len()), (1, 1));
        assert_eq!((0..nodes).filter_map(|n| Some(world.machine(n)?.strangers().count())).sum::<usize>(), 0);

        // What had an owner is not asked for again when another one takes over.
        let probes = world.probes;
        let owner = world.owners(taken)[0];
        world.crash(owner);
        world.pass(SETTLED);
        assert_eq!((world.probes, world.owners(taken).len()), (probes, usize::from(nodes > 1)));
    });
}

#[test]
fn a_stranger_that_takes_an_address_is_told_once_and_answered_at_a_bounded_rate() {
    seeds(6, |seed| {
        let mut world = settled(seed, 3, 6);
        world.pass(ms(5000));
        let lb_ip = lb_ip(seed as usize % 6);
        let owner = world.owners(lb_ip);
        let (channel, frame) = intrusion(lb_ip);
        let (frames, told) = (world.gratuitous, world.told.len());
        for _ in 0..1000 {
            world.inject(channel, &frame);
            world.pass(ms(20));
        }
        let news: Vec<&Event> = world.told[told..].iter().map(|(_, _, event)| event).collect();
        assert!(matches!(news[..], [Event::Conflict { held_back: false, .. }]), "{news:?}");
        assert_eq!(world.owners(lb_ip), owner);
        assert_eq!(world.announced[&lb_ip].node, owner[0]);
        // Two or three times in 20 s, in one or two forms.
        let answers = world.gratuitous - frames;
        assert!((2..=6).contains(&answers), "{answers}");
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
            assert!(took <= WINDOW + ms(5), "{took:?}");
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
