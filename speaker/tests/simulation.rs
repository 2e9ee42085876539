//! Many speakers on a simulated LAN, in simulated time, from seeds.
//!
//! A failure names its seed; `LANDFALL_SEED=7 cargo test -p speaker --test simulation` replays that one alone, and
//! `LANDFALL_SEEDS=10000` tries so many. Seeds run on all processors at once.

mod asleep;
mod believed;
mod dead;
mod planned;
mod separated;
mod strangers;
mod taken_over;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use speaker::metrics::events::Event;
use speaker::ownership::rules::PATIENCE;
use world::{INTERVAL, Network, Random, World, lb_ip, name};

/// After the last disturbance everything is settled within this time: what is silent is dead after a window, one that
/// comes back listens for four intervals, candidates step in one after the other, and deafness takes two windows.
const SETTLED: Duration = Duration::from_millis(1500);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Runs a test with many seeds.
fn seeds(count: u64, test: impl Fn(u64) + Sync) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match number("LANDFALL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LANDFALL_SEEDS").unwrap_or(count),
    };
    let next = AtomicU64::new(seeds.start);
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
                eprintln!("failed with LANDFALL_SEED={seed}");
                next.store(seeds.end, Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..available_parallelism().map_or(1, usize::from) {
            scope.spawn(run);
        }
        run();
    });
}

/// Nobody disturbs the LAN: each address that may be announced has one owner, and was last announced by it. (Whoever hears
/// few of the others doesn't announce unasked what it had before.)
fn check(world: &World) {
    let running = (0..world.nodes()).filter(|node| world.machine(*node).is_some()).count();
    for node in 0..world.nodes() {
        let dead = dead::dead(world, node).unwrap_or_default();
        let wrong = (0..world.nodes()).find(|other| world.machine(*other).is_some() && dead.contains(&name(*other)));
        assert_eq!(
            wrong,
            None,
            "n{node} says that one is dead who is not, at {:?}\n{}",
            world.now,
            told(world, lb_ip(999))
        );
    }
    let company = world.nodes() == 1 || 2 * running > world.nodes();
    for (lb_ip, owners) in world.all_owners() {
        let possible = (0..world.nodes()).any(|node| world.may(node, lb_ip));
        assert_eq!(
            owners.len(),
            usize::from(possible),
            "{lb_ip} is owned by {owners:?} at {:?}\n{}",
            world.now,
            told(world, lb_ip)
        );
        for owner in owners {
            assert!(world.may(owner, lb_ip), "{lb_ip} is owned by {owner} at {:?}\n{}", world.now, told(world, lb_ip));
            // One that announced while it was cut off and then died told nobody. The refresh heals that.
            let Some(last) = world.last_to_announce(lb_ip).filter(|_| company) else { continue };
            assert_eq!(last, owner, "who announced {lb_ip} last, at {:?}\n{}", world.now, told(world, lb_ip));
        }
    }
}

/// What was told about an address, and about peers.
fn told(world: &World, about: IpAddr) -> String {
    let told = world.told.iter().filter(|(_, _, event)| match event {
        Event::Announced { lb_ip, .. } | Event::Withdrawn { lb_ip, .. } | Event::Renewed { lb_ip, .. } => {
            *lb_ip == about
        }
        _ => true,
    });
    told.map(|(at, node, event)| format!("{at:?} n{node} {event:?}\n")).collect()
}

fn sole_owners(world: &World) -> BTreeMap<IpAddr, usize> {
    world.all_owners().into_iter().map(|(lb_ip, owners)| (lb_ip, owners[0])).collect()
}

/// [`SETTLED`], where there are so many nodes that they say Hello less often.
fn settles(nodes: usize) -> Duration {
    SETTLED * u32::try_from(nodes.div_ceil(25)).expect("few nodes")
}

/// A LAN on which everything is settled.
fn settled(seed: u64, nodes: usize, lb_ips: usize) -> World {
    let mut world = World::new(seed, nodes, lb_ips);
    world.start_all();
    world.pass(SETTLED);
    // Of many that nobody ever had, one is asked for each millisecond.
    world.pass(ms(lb_ips.saturating_sub(100) as u64));
    check(&world);
    world
}

#[test]
fn whatever_happens_there_is_one_owner_afterwards_and_it_was_the_last_to_announce() {
    seeds(2000, |seed| {
        let mut choice = Random::new(seed);
        // Large networks seldom, for they take long: one in a hundred has up to 20 nodes, one in five hundred up to 100.
        let (most, rounds) = match seed % 500 {
            17 => (100, 1),
            n if n % 100 == 42 => (20, 2),
            n if n % 10 == 3 => (8, 3),
            _ => (5, 4),
        };
        let nodes = 1 + choice.below(most);
        let mut world = World::new(seed, nodes, 1 + choice.below(12));
        let settled = settles(nodes);
        world.network = Network { loss: [0.0, 0.02][choice.below(2)], straggle: [0.0, 0.01][choice.below(2)] };
        world.acknowledgement = [ms(1), ms(400)][choice.below(2)];
        world.start_all();
        for _ in 0..rounds {
            for _ in 0..=choice.below(4) {
                disturb(&mut world, &mut choice);
                world.pass(choice.time(Duration::ZERO, ms(700)));
            }
            // Peace: cuts are healed and whoever was frozen is awake. Who crashed stays so, if others are left.
            world.heal();
            if (0..nodes).all(|node| world.machine(node).is_none()) {
                world.start(choice.below(nodes));
            }
            world.network.straggle = 0.0;
            // One that may not announce any more waits so long for somebody who is lonely.
            world.pass(PATIENCE + settled);
            let before = world.all_owners();
            check(&world);
            world.pass(ms(2000));
            check(&world);
            // With losses several packets in a row, and the others' word for their sender, are lost once in a long while.
            if world.network.loss == 0.0 {
                for (lb_ip, owners) in world.all_owners() {
                    let told = told(&world, lb_ip);
                    assert_eq!(owners, before[&lb_ip], "{lb_ip} moved without a cause\n{told}");
                }
            }
        }
    });
}

fn disturb(world: &mut World, choice: &mut Random) {
    let (node, other) = (choice.below(world.nodes()), choice.below(world.nodes()));
    let lb_ips = world.lb_ips();
    let what = choice.below(13);
    if std::env::var_os("LANDFALL_SEED").is_some() {
        eprintln!("{:?}: disturbance {what}, n{node}, n{other}", world.now);
    }
    match what {
        0 | 1 => world.crash(node),
        2 | 3 => world.start(node),
        4 => world.stop(node),
        5 => world.freeze(node, choice.time(ms(10), ms(1500))),
        6 => world.isolate(node, true),
        7 => world.cut(node, other, true),
        8 => world.part(&(0..world.nodes()).filter(|_| choice.happens(0.5)).collect()),
        9 => world.heal(),
        12 => world.step_clock(node, choice.time(ms(10), Duration::from_secs(3600))),
        10 if !lb_ips.is_empty() => {
            let candidates: BTreeSet<usize> = (0..world.nodes()).filter(|_| choice.happens(0.6)).collect();
            world.want(lb_ips[choice.below(lb_ips.len())], Some(&candidates));
        }
        11 if choice.happens(0.5) && !lb_ips.is_empty() => world.want(lb_ips[choice.below(lb_ips.len())], None),
        _ => world.want(lb_ip(choice.below(20)), Some(&(0..world.nodes()).collect())),
    }
}

#[test]
fn nothing_moves_for_minutes_while_one_hello_in_fifty_is_lost() {
    seeds(2, |seed| {
        let mut world = settled(seed, 3, 10);
        let before = sole_owners(&world);
        world.network = Network { loss: 0.02, straggle: 0.005 };
        let told = world.told.len();
        for _ in 0..120 {
            world.pass(Duration::from_secs(1));
            let owners: BTreeMap<IpAddr, Vec<usize>> = before.iter().map(|(l, owner)| (*l, vec![*owner])).collect();
            assert_eq!(world.all_owners(), owners, "{:?}", &world.told[told..]);
        }
    });
}

#[test]
fn a_node_that_stops_hands_over_without_a_gap() {
    seeds(20, |seed| {
        let nodes = 2 + seed as usize % 3;
        let mut world = settled(seed, nodes, 10);
        let leaver = world.random.below(nodes);
        world.stop(leaver);
        let gone = world.pass_until(ms(400), |world| {
            assert!(world.all_owners().values().all(|owners| !owners.is_empty()), "nobody owns an address");
            world.machine(leaver).is_none()
        });
        assert!(gone.expect("it leaves") <= INTERVAL, "{gone:?}");
        world.pass(SETTLED);
        check(&world);
    });
}

#[test]
fn a_blind_speaker_owns_nothing_and_one_that_becomes_blind_goes_on() {
    let mut world = settled(1, 3, 20);
    let before = sole_owners(&world);
    for node in 0..3 {
        world.blind(node, true);
    }
    world.pass(SETTLED);
    assert_eq!(sole_owners(&world), before, "losing the API server alone changes nothing");
    world.start(0);
    world.pass(SETTLED);
    assert!(world.all_owners().values().all(|owners| owners.len() == 1 && owners[0] != 0), "a blind one owns nothing");
    world.blind(0, false);
    world.pass(SETTLED);
    check(&world);
}
