//! Many speakers on a simulated LAN, in simulated time, from seeds. [`seeds`] explains the seeds.

mod address_conflicts;
mod dead_nodes;
mod exploration;
mod open_defects;
mod partitions;
mod planned_moves;
mod replay_and_keys;
#[path = "../seed/mod.rs"]
mod seed;
mod seeds;
mod suspended_nodes;
mod takeovers;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use speaker::metrics::Event;
use speaker::ownership::rules::INELIGIBLE_GRACE;

use seeds::{is_replay, seeds};
use world::{INTERVAL, Network, Random, World, lb_ip, name};

/// The LAN settles within this time after the last disturbance. A silent node is declared dead after a window, and a
/// deaf one is detected after two. A returning node claims nothing for four intervals. Then the candidates take their
/// turns.
const SETTLING_TIME: Duration = Duration::from_millis(1500);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Checks a settled LAN: each address with an eligible node has one owner, and this owner was the last to announce it.
/// Without a quorum, the last announcer is not checked, because a node then announces none of its former addresses
/// unasked.
fn check(world: &World) {
    check_owners(world);
    check_last_announcers(world);
}

/// Checks that no node declares a live one dead. Checks that each address with an eligible node has one owner, and that
/// this owner is eligible.
fn check_owners(world: &World) {
    for node in 0..world.nodes() {
        let dead = world.dead(node).cloned().unwrap_or_default();
        let wrong = (0..world.nodes()).find(|other| world.machine(*other).is_some() && dead.contains(&name(*other)));
        assert_eq!(
            wrong,
            None,
            "n{node} declares a live node dead, at {:?}\n{}",
            world.now,
            event_log(world, lb_ip(999))
        );
    }
    for (lb_ip, owners) in world.all_owners() {
        let is_possible = (0..world.nodes()).any(|node| world.is_eligible(node, lb_ip));
        assert_eq!(
            owners.len(),
            usize::from(is_possible),
            "{lb_ip} is owned by {owners:?} at {:?}\n{}",
            world.now,
            event_log(world, lb_ip)
        );
        for owner in owners {
            let log = || event_log(world, lb_ip);
            assert!(world.is_eligible(owner, lb_ip), "{lb_ip} is owned by {owner} at {:?}\n{}", world.now, log());
        }
    }
}

/// Checks that the owner of each address was the last to announce it, if most nodes run.
fn check_last_announcers(world: &World) {
    let running = (0..world.nodes()).filter(|node| world.machine(*node).is_some()).count();
    let has_quorum = world.nodes() == 1 || 2 * running > world.nodes();
    for (lb_ip, owners) in world.all_owners() {
        for owner in owners {
            let log = || event_log(world, lb_ip);
            // A node may announce an address while it is cut off, and then die: the other nodes never hear its claim.
            // Then there is no last announcer to check, and the next refresh of the owner corrects the clients.
            let Some(last) = world.last_announcer(lb_ip).filter(|_| has_quorum) else { continue };
            assert_eq!(last, owner, "the last to announce {lb_ip}, at {:?}\n{}", world.now, log());
        }
    }
}

/// The events about one address, and all events about nodes.
fn event_log(world: &World, about: IpAddr) -> String {
    let events = world.events.iter().filter(|(_, _, event)| match event {
        Event::Announced { lb_ip, .. } | Event::Withdrawn { lb_ip, .. } | Event::Renewed { lb_ip, .. } => {
            *lb_ip == about
        }
        _ => true,
    });
    events.map(|(at, node, event)| format!("{at:?} n{node} {event:?}\n")).collect()
}

/// The owner of each address. Each address must have one.
fn sole_owners(world: &World) -> BTreeMap<IpAddr, usize> {
    world.all_owners().into_iter().map(|(lb_ip, owners)| (lb_ip, owners[0])).collect()
}

/// [`SETTLING_TIME`] for this number of nodes. With many nodes, the interval of Hellos is longer.
fn settling_time(nodes: usize) -> Duration {
    SETTLING_TIME * u32::try_from(nodes.div_ceil(25)).expect("few nodes")
}

/// A settled LAN.
fn settled_world(seed: u64, nodes: usize, lb_ips: usize) -> World {
    let mut world = World::new(seed, nodes, lb_ips);
    world.start_all();
    world.advance(SETTLING_TIME);
    // After a burst, each node begins to probe one new address per millisecond.
    world.advance(ms(lb_ips.saturating_sub(100) as u64));
    check(&world);
    world
}

#[test]
fn owner_is_unique_and_announced_last_after_any_disturbance() {
    seeds(500, |seed| {
        let mut choice = Random::new(seed);
        // Large networks take long, so they are rare: one in a hundred has up to 20 nodes, one in five hundred up to
        // 100.
        let (max_nodes, rounds) = match seed % 500 {
            17 => (100, 1),
            n if n % 100 == 42 => (20, 2),
            n if n % 10 == 3 => (8, 3),
            _ => (5, 4),
        };
        let nodes = 1 + choice.next_below(max_nodes);
        let mut world = World::new(seed, nodes, 1 + choice.next_below(12));
        let settled = settling_time(nodes);
        world.network =
            Network { loss: [0.0, 0.02][choice.next_below(2)], straggle: [0.0, 0.01][choice.next_below(2)] };
        world.acknowledgement = [ms(1), ms(400)][choice.next_below(2)];
        world.start_all();
        for _ in 0..rounds {
            for _ in 0..=choice.next_below(4) {
                disturb(&mut world, &mut choice);
                world.advance(choice.time(Duration::ZERO, ms(700)));
            }
            // Suspended nodes resume by themselves. Crashed nodes stay down if another node runs.
            world.heal();
            if (0..nodes).all(|node| world.machine(node).is_none()) {
                world.start(choice.next_below(nodes));
            }
            world.network.straggle = 0.0;
            // An ineligible owner waits for this time for an isolated successor.
            world.advance(INELIGIBLE_GRACE + settled);
            let before = world.all_owners();
            check(&world);
            world.advance(ms(2000));
            check(&world);
            // Packet loss alone can move an address, but rarely: if several packets in a row are lost, and also all
            // vouchers for their sender.
            if world.network.loss == 0.0 {
                for (lb_ip, owners) in world.all_owners() {
                    let log = event_log(&world, lb_ip);
                    assert_eq!(owners, before[&lb_ip], "{lb_ip} moved without a cause\n{log}");
                }
            }
        }
    });
}

/// Disturbs the LAN in one random way.
fn disturb(world: &mut World, choice: &mut Random) {
    let (node, other) = (choice.next_below(world.nodes()), choice.next_below(world.nodes()));
    let lb_ips = world.lb_ips();
    let kind = choice.next_below(13);
    if is_replay() {
        eprintln!("{:?}: disturbance {kind}, n{node}, n{other}", world.now);
    }
    match kind {
        0 | 1 => world.crash(node),
        2 | 3 => world.start(node),
        4 => world.stop(node),
        5 => world.suspend(node, choice.time(ms(10), ms(1500))),
        6 => world.isolate(node, true),
        7 => world.cut(node, other, true),
        8 => world.partition(&(0..world.nodes()).filter(|_| choice.happens(0.5)).collect()),
        9 => world.heal(),
        12 => world.step_clock(node, choice.time(ms(10), Duration::from_secs(3600))),
        10 if !lb_ips.is_empty() => {
            let candidates: BTreeSet<usize> = (0..world.nodes()).filter(|_| choice.happens(0.6)).collect();
            world.set_candidates(lb_ips[choice.next_below(lb_ips.len())], Some(&candidates));
        }
        11 if choice.happens(0.5) && !lb_ips.is_empty() => {
            world.set_candidates(lb_ips[choice.next_below(lb_ips.len())], None)
        }
        _ => world.set_candidates(lb_ip(choice.next_below(20)), Some(&(0..world.nodes()).collect())),
    }
}

#[test]
fn two_percent_hello_loss_moves_no_address() {
    seeds(2, |seed| {
        let mut world = settled_world(seed, 3, 10);
        let before = sole_owners(&world);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        let first = world.events.len();
        for _ in 0..120 {
            world.advance(Duration::from_secs(1));
            let owners: BTreeMap<IpAddr, Vec<usize>> = before.iter().map(|(l, owner)| (*l, vec![*owner])).collect();
            assert_eq!(world.all_owners(), owners, "{:?}", &world.events[first..]);
        }
    });
}

#[test]
fn stopping_node_is_replaced_without_a_gap() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = settled_world(seed, nodes, 10);
        let stopped = world.random.next_below(nodes);
        world.stop(stopped);
        let took = world.advance_until(ms(400), |world| {
            assert!(world.all_owners().values().all(|owners| !owners.is_empty()), "an address without an owner");
            world.machine(stopped).is_none()
        });
        assert!(took.expect("it stops") <= INTERVAL, "{took:?}");
        world.advance(SETTLING_TIME);
        check(&world);
    });
}

#[test]
fn blind_speaker_claims_nothing_but_keeps_its_addresses() {
    let mut world = settled_world(1, 3, 20);
    let before = sole_owners(&world);
    for node in 0..3 {
        world.set_blind(node, true);
    }
    world.advance(SETTLING_TIME);
    assert_eq!(sole_owners(&world), before, "losing the API server alone changes nothing");
    world.start(0);
    world.advance(SETTLING_TIME);
    let owned = world.all_owners();
    assert!(owned.values().all(|owners| owners.len() == 1 && owners[0] != 0), "a restarted blind speaker owns nothing");
    world.set_blind(0, false);
    world.advance(SETTLING_TIME);
    check(&world);
}
