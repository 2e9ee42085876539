//! Random histories of a cluster, held against what must be true after each.
//!
//! Users create, change and delete; somebody forges a status, deletes a record, edits pools; the controller crashes in
//! the middle of its writes. Once it comes to rest, a small model says what must be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::service::FINALIZER;
use crds::{IPAddressPool, Request, Service};
use proptest::prelude::*;

use crate::fixtures::{asking, at, ip, node, pool, service};
use crate::plan::plan;
use crate::world::{World, shows};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Delete(u8),
    /// Between LoadBalancer and ClusterIP; when it becomes a LoadBalancer, of another's class or ours.
    Retype(u8, bool),
    Ask(u8, Option<u8>),
    Forge(u8, u8),
    /// The finalizer and the conditions vanish from the Service, as after a restore from a copy.
    Strip(u8),
    /// A user deletes a record; which then may wait for a finalizer.
    Unrecord(u8, bool),
    /// Records that wait are gone.
    Collect,
    /// A pool appears, changes or vanishes.
    Pool(u8, Option<usize>),
    Node(u8),
    /// The next plan, of which only so many effects happen before the controller crashes.
    Crash(usize),
    Settle,
}

const POOLS: [&[&str]; 5] = [
    &["192.0.2.0/30"],
    &["192.0.2.2-192.0.2.5"],
    &["192.0.2.6-192.0.2.6", "nonsense"],
    &["192.0.2.0-192.0.2.9"],
    &["2001:db8::/64", "192.0.2.4/31"],
];

fn step() -> impl Strategy<Value = Step> {
    let (name, address) = (0..6u8, 0..12u8);
    prop_oneof![
        6 => name.clone().prop_map(Step::Create),
        3 => name.clone().prop_map(Step::Delete),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, foreign)| Step::Retype(name, foreign)),
        3 => (name.clone(), proptest::option::of(address.clone())).prop_map(|(name, ask)| Step::Ask(name, ask)),
        2 => (name.clone(), address.clone()).prop_map(|(name, address)| Step::Forge(name, address)),
        1 => name.prop_map(Step::Strip),
        1 => (address.clone(), any::<bool>()).prop_map(|(address, waits)| Step::Unrecord(address, waits)),
        1 => Just(Step::Collect),
        4 => (0..3u8, proptest::option::weighted(0.8, 0..POOLS.len())).prop_map(|(name, to)| Step::Pool(name, to)),
        1 => address.prop_map(Step::Node),
        4 => (0..8usize).prop_map(Step::Crash),
        6 => Just(Step::Settle),
    ]
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

/// The address that a Service asks for.
fn asked(service: &Service) -> Option<IpAddr> {
    service.request.as_ref().ok()?.addresses.first().copied()
}

fn take(world: &mut World, step: &Step, time: i64) {
    world.snapshot.now = at(time);
    let name = |name: &u8| format!("s{name}");
    let exists = |world: &World, name: &u8| world.snapshot.services.contains_key(&World::key(&format!("s{name}")));
    match step {
        Step::Create(n) if !exists(world, n) => {
            let mut new = service(&name(n), time);
            new.uid = format!("{}-{time}", name(n));
            new.resource_version = format!("new-{time}");
            world.snapshot.services.insert(new.key.clone(), Arc::new(new));
        }
        Step::Delete(n) if exists(world, n) => world.delete(&name(n)),
        Step::Retype(n, foreign) if exists(world, n) => world.edit(&name(n), |service| {
            service.is_load_balancer = !service.is_load_balancer;
            service.class = foreign.then(|| "example.com/other".to_owned());
        }),
        Step::Ask(n, ask) if exists(world, n) => {
            world.edit(&name(n), |service| {
                service.request = ask.map_or(Ok(Request::default()), |last| asking(&address(last).to_string()))
            });
        }
        Step::Forge(n, last) if exists(world, n) && world.service(&name(n)).is_load_balancer => {
            world.edit(&name(n), |service| service.ingress = shows(&address(*last).to_string()));
        }
        Step::Strip(n) if exists(world, n) && !world.service(&name(n)).deleting => {
            world.edit(&name(n), |service| (service.finalizers, service.conditions) = (vec![], vec![]));
        }
        Step::Unrecord(last, true) => {
            if let Some(record) = world.snapshot.addresses.get_mut(&address(*last)) {
                Arc::make_mut(record).deleting = true;
            }
        }
        Step::Unrecord(last, false) => drop(world.snapshot.addresses.remove(&address(*last))),
        Step::Collect => world.snapshot.addresses.retain(|_, record| !record.deleting),
        Step::Pool(n, None) => drop(world.snapshot.pools.remove(&format!("p{n}"))),
        Step::Pool(n, Some(to)) => {
            let name = format!("p{n}");
            let created = world.snapshot.pools.get(&name).and_then(|p| p.metadata.creation_timestamp.clone());
            let mut new = pool(&name, created.map_or(time, |created| created.0.as_second()), POOLS[*to]);
            Arc::make_mut(&mut new).status = world.snapshot.pools.get(&name).and_then(|pool| pool.status.clone());
            world.snapshot.pools.insert(name, new);
        }
        Step::Node(last) => drop(world.snapshot.nodes.insert("n1".into(), node("n1", &address(*last).to_string()))),
        Step::Crash(effects) => {
            let all: Vec<_> = plan(&world.snapshot).series.into_iter().flat_map(|series| series.effects).collect();
            for effect in all.iter().take(*effects) {
                if !world.apply(effect) {
                    break;
                }
            }
        }
        Step::Settle => drop(world.settle()),
        _ => {}
    }
}

/// The addresses that a pool names, one by one: slow and plain.
fn named(pool: &IPAddressPool) -> BTreeMap<IpAddr, bool> {
    let mut named = BTreeMap::new();
    for text in &pool.spec.addresses {
        let Ok(range) = text.parse() else { continue };
        for address in (0..20).map(address).filter(|address| range.contains(*address)) {
            let is_end = text.0.contains('/') && range.size() > 2 && [range.first(), range.last()].contains(&address);
            *named.entry(address).or_insert(false) |= !is_end;
        }
    }
    named
}

/// Whether a Service may have any address at all.
fn is_ours(service: &Service) -> bool {
    !service.deleting && service.is_load_balancer && service.class.is_none()
}

/// What must be true of a cluster at rest.
fn check(world: &World) -> Result<(), TestCaseError> {
    let snapshot = &world.snapshot;
    let nodes: BTreeSet<_> = snapshot.nodes.values().flat_map(|node| node.addresses.clone()).collect();
    let mut pools: Vec<_> = snapshot.pools.values().collect();
    pools.sort_by_key(|p| (p.metadata.creation_timestamp.clone().map(|time| time.0), p.metadata.name.clone()));
    // Each address's pool, and whether it is given to who takes any.
    let mut owners = BTreeMap::new();
    for pool in &pools {
        for (address, automatic) in named(pool) {
            owners.entry(address).or_insert((pool.metadata.name.clone().expect("a name"), automatic));
        }
    }

    let mut holders = BTreeSet::new();
    for (address, record) in &snapshot.addresses {
        let [holder] = record.holders.as_slice() else { panic!("one holder") };
        if record.deleting {
            continue;
        }
        let holds = snapshot.services.values().find(|service| service.uid == holder.uid);
        prop_assert!(holds.is_some_and(|service| is_ours(service)), "{address} is held by {holder:?}");
        prop_assert!(holders.insert(holder.uid.clone()), "{holder:?} holds two addresses");
    }
    for service in snapshot.services.values() {
        let name = &service.key.name;
        let seen = world.seen(name);
        if !is_ours(service) {
            let of_record = |record: &&Arc<crds::Record>| record.holders[0].uid == service.uid;
            // One that waits for a record to be gone waits with all that it has.
            if snapshot.addresses.values().find(of_record).is_none() {
                prop_assert_eq!((&seen.condition, &seen.held), (&None, &vec![]), "{} is not ours", name);
                prop_assert!(!seen.has_finalizer || service.class.is_some() || !service.deleting, "{} is stuck", name);
            }
            continue;
        }
        let held: Vec<_> =
            snapshot.addresses.values().filter(|r| r.holders[0].uid == service.uid && !r.deleting).collect();
        let address = held.first().map(|record| record.address);
        let shown: Vec<_> = seen.ingress.iter().map(|text| ip(text)).collect();
        // Where an address of it still waits to be gone, its status may wait as well.
        let waits = snapshot.addresses.values().any(|r| r.holders[0].uid == service.uid && r.deleting);
        if address.is_none() && waits {
            continue;
        }
        match address {
            Some(address) => prop_assert_eq!(&shown, &vec![address], "{}", name),
            // What is in no pool may be another provider's, and stays.
            None => prop_assert!(shown.iter().all(|shown| !owners.contains_key(shown)), "{name} shows {shown:?}"),
        }
        prop_assert_eq!(seen.has_finalizer, address.is_some(), "{}", name);
        let condition = seen.condition.unwrap_or_default();
        match (asked(service), address) {
            (None, Some(_)) => prop_assert!(condition.starts_with("True "), "{name}: {condition}"),
            (None, None) => {
                prop_assert!(condition.starts_with("False "), "{name}: {condition}");
                let free = owners.iter().find(|(address, (_, automatic))| {
                    *automatic && !nodes.contains(address) && !snapshot.addresses.contains_key(address)
                });
                prop_assert_eq!(free, None, "{} has no address", name);
            }
            (Some(asked), has) if has == Some(asked) => {
                prop_assert!(condition.starts_with("True "), "{name}: {condition}");
            }
            (Some(asked), _) => {
                prop_assert!(condition.starts_with("False "), "{name}: {condition}");
                let can_be_had =
                    owners.contains_key(&asked) && !nodes.contains(&asked) && !snapshot.addresses.contains_key(&asked);
                prop_assert!(!can_be_had, "{name} could have {asked}: {condition}");
            }
        }
    }

    for pool in pools {
        let name = pool.metadata.name.as_deref().expect("a name");
        let of_pool = || owners.iter().filter(|(_, (owner, _))| owner == name);
        let assigned = of_pool().filter(|(address, _)| snapshot.addresses.contains_key(address)).count();
        let available = of_pool().filter(|(address, (_, automatic))| {
            *automatic && !nodes.contains(address) && !snapshot.addresses.contains_key(address)
        });
        let status = pool.status.clone().expect("a status");
        let expected = (assigned as i64, available.count() as i64);
        prop_assert_eq!((status.assigned_ipv4, status.available_ipv4), expected, "pool {}", name);
    }
    Ok(())
}

/// What must not have changed since the cluster was at rest last, with this step and nothing else in between.
fn check_kept(before: &World, step: &Step, after: &World) -> Result<(), TestCaseError> {
    for old in before.snapshot.services.values().filter(|service| is_ours(service)) {
        let Some(new) = after.snapshot.services.get(&old.key).filter(|new| new.uid == old.uid && is_ours(new)) else {
            continue;
        };
        let (was, is) = (before.seen(&old.key.name), after.seen(&old.key.name));
        let changed = new.request != old.request || matches!(step, Step::Unrecord(..));
        // It may have got at last what it had asked for all along.
        let got = asked(new).is_some_and(|asked| is.ingress.first() == Some(&asked.to_string()));
        let held = was.held.iter().filter(|held| !before.snapshot.addresses[&ip(held)].deleting).count();
        if !was.ingress.is_empty() && !changed && !got && held == 1 {
            prop_assert_eq!(was.ingress, is.ingress, "{} lost its address by {:?}", old.key, step);
        }
    }
    // Another provider's Service is as it was, unless it was ours before.
    for old in before.snapshot.services.values().filter(|service| service.class.is_some()) {
        let is_touched = |name: &u8| old.key.name == format!("s{name}");
        let by_user = match step {
            Step::Delete(n) | Step::Retype(n, _) | Step::Ask(n, _) | Step::Forge(n, _) | Step::Strip(n) => {
                is_touched(n)
            }
            _ => false,
        };
        if !by_user && before.seen(&old.key.name).held.is_empty() {
            prop_assert_eq!(after.snapshot.services.get(&old.key), Some(old), "{} was touched by {:?}", old.key, step);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_history_ends_as_the_model_has_it_and_takes_no_address_from_who_has_one(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut world = World::default();
        for (time, step) in (1..).zip(&steps) {
            take(&mut world, step, time);
            // From here on a copy of the world is at rest, while the history goes on in the middle of everything.
            let mut rest = world.clone();
            rest.settle();
            check(&rest)?;
            let mut next = rest.clone();
            let then = steps.get(usize::try_from(time).unwrap_or_default()).unwrap_or(&Step::Settle);
            take(&mut next, then, time + 1);
            next.settle();
            check_kept(&rest, then, &next)?;
        }
    }

    #[test]
    fn nobody_has_an_address_twice_at_any_moment(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::default();
        for (time, step) in (1..).zip(&steps) {
            // The world itself refuses to show what is not held.
            take(&mut world, step, time);
        }
        world.settle();
        let finalizers = world.snapshot.services.values().filter(|s| s.finalizers.iter().any(|f| f == FINALIZER)).count();
        prop_assert!(finalizers >= world.snapshot.addresses.values().filter(|record| !record.deleting).count());
    }
}
