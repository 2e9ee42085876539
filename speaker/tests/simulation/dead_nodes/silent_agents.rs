//! Tests of agents that fall silent on nodes whose kernels go on.

use std::collections::BTreeSet;
use std::time::Duration;

use speaker::metrics::Event;

use super::{crash_until_dead, dead_by_node, ever_dead, none_dead, world_before_fault};
use crate::exploration::TWO_ANNOUNCERS;
use crate::world::{INTERVAL, Network, WINDOW, World, frame_of_other_host, lb_ip, name};
use crate::{SETTLING_TIME, check, ms, seeds, settled_world};

/// The nodes whose silent agents were reported, each with the reporting node.
fn reported_agents(world: &World) -> Vec<(usize, &str)> {
    let reports = world.events.iter().filter_map(|(_, reporter, event)| match event {
        Event::SilentAgent { node } => Some((*reporter, node.as_str())),
        _ => None,
    });
    reports.collect()
}

/// Waits until the victim owns no address, and all others are owned once.
fn wait_until_taken_over(world: &mut World, victim: usize) -> Duration {
    let is_taken =
        |world: &World| world.all_owners().values().all(|owners| owners.len() == 1 && !owners.contains(&victim));
    world.advance_until(ms(1000), is_taken).expect("all addresses are taken over")
}

#[test]
fn node_with_a_silent_agent_is_not_dead_until_it_loses_power() {
    seeds(40, |seed| {
        let (mut world, victim) = world_before_fault(seed);
        let nodes = world.nodes();
        let frozen = seed % 2 == 0;
        if frozen {
            world.suspend(victim, Duration::from_secs(3600));
        } else {
            world.kill(victim);
        }
        let took = wait_until_taken_over(&mut world, victim);
        assert!(took <= TWO_ANNOUNCERS, "{took:?}");
        world.advance(Duration::from_secs(60));
        assert_eq!(ever_dead(&world), BTreeSet::new());
        let reporters: Vec<_> = (0..nodes).filter(|node| *node != victim).collect();
        let mut reported = reported_agents(&world);
        reported.sort_unstable();
        let silent = name(victim);
        assert_eq!(reported, reporters.iter().map(|node| (*node, silent.as_str())).collect::<Vec<_>>());
        for node in reporters {
            assert_eq!(world.machine(node).expect("it runs").counters().silent_agents, 1);
        }
        // Each of the others sends as many solicitations as the agent would have sent Hellos.
        let limit = (nodes as u64 - 1) * (60_000 / INTERVAL.as_millis() as u64 + 20);
        assert!(world.solicitation_count <= limit, "{} solicitations", world.solicitation_count);
        let gone = crash_until_dead(&mut world, victim);
        let sent = world.solicitation_count;
        world.advance(Duration::from_secs(60));
        assert!(world.solicitation_count <= sent + 30 * (nodes as u64 - 1), "solicitations of a dead node end");
        assert_eq!(dead_by_node(&world), gone);
        world.start(victim);
        world.advance(SETTLING_TIME);
        assert_eq!(dead_by_node(&world), none_dead(nodes));
        check(&world);
    });
}

#[test]
fn silent_agent_of_the_only_peer_leaves_its_node_alive() {
    seeds(20, |seed| {
        let mut world = settled_world(seed, 2, 5);
        let (channel, client) = frame_of_other_host(lb_ip(30 + seed as usize % 3));
        world.kill(0);
        let took = wait_until_taken_over(&mut world, 0);
        assert!(took <= TWO_ANNOUNCERS, "{took:?}");
        for _ in 0..60 {
            world.inject(channel, &client);
            world.advance(Duration::from_secs(1));
        }
        assert_eq!(ever_dead(&world), BTreeSet::new());
        let backed = world.events.iter().rfind(|(_, _, event)| matches!(event, Event::Quorum { .. }));
        assert!(matches!(backed, Some((_, 1, Event::Quorum { backed: true, .. }))), "the node knows that it can hear");
        world.crash(0);
        world.advance(WINDOW);
        assert_eq!(world.dead(1).cloned(), Some(BTreeSet::new()), "this node may be cut off");
        world.inject(channel, &client);
        world.advance(WINDOW + INTERVAL);
        assert_eq!(world.dead(1).cloned(), Some(BTreeSet::from([name(0)])));
    });
}

#[test]
fn packet_loss_kills_no_node_with_a_silent_agent() {
    seeds(6, |seed| {
        let nodes = 3 + seed as usize % 2;
        let mut world = settled_world(seed, nodes, 1);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        world.kill(0);
        world.advance(Duration::from_secs(60));
        assert_eq!(dead_by_node(&world), none_dead(nodes - 1));
        assert!(world.events.iter().filter(|(_, _, event)| matches!(event, Event::Node { .. })).count() <= 2);
    });
}

#[test]
fn late_observer_declares_no_node_with_a_silent_agent_dead() {
    seeds(20, |seed| {
        let nodes = 3 + seed as usize % 2;
        let mut world = settled_world(seed, nodes, 5);
        world.kill(0);
        world.advance(ms(500));
        for _ in 0..20 {
            let late = world.random.time(ms(20), ms(1000));
            world.suspend(1, late);
            world.advance(late + ms(300));
        }
        assert_eq!(ever_dead(&world), BTreeSet::new());
    });
}

#[test]
fn restarting_node_stays_dead_until_its_agent_runs() {
    let mut world = settled_world(1, 3, 5);
    world.crash(0);
    world.advance(ms(3000));
    // Its kernel answers long before its pods run.
    world.restore_power(0);
    world.advance(Duration::from_secs(20));
    let gone = vec![BTreeSet::from([name(0)]); 2];
    assert_eq!(dead_by_node(&world), gone);
    world.start(0);
    world.advance(SETTLING_TIME);
    assert_eq!(dead_by_node(&world), none_dead(3));
}
