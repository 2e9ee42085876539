//! Random histories of a cluster, each checked against a small model once the cluster has settled.
//!
//! Users create, change and delete objects, forge a status, delete a record or edit pools. They restore all Services
//! from a backup, with or without the records. Objects become unreadable. The controller crashes between its writes,
//! loses answers, and observes changes late and in any order.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::request::Consent;
use crds::service::Family;
use crds::{
    FamilyPolicy, IPAddressPool, Key, Labels, Namespace, NodeAddresses, Port, Protocol, RequestedAddresses,
    Reservation, Service, ServiceAllocation, TrafficPolicy,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::fixtures::{at_second, node, pool, request_of, service};
use crate::live::Live;
use crate::reference_model::{Model, four, has_blocking_conflict, is_ours, is_unused, six, universe};
use crate::snapshot::plan;
use crate::world::{World, shows};

/// The file with seeds of former failures. The default path of proptest works only for a test inside `src`.
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unit/history.regressions.txt");

#[derive(Clone, Debug)]
enum Step {
    Create(u8, Aspect),
    Delete(u8),
    Set(u8, Aspect),
    Forge(u8, IpAddr),
    /// The Service loses its finalizer and conditions, as after a restore from a backup.
    Strip(u8),
    /// All Services are created again and get their former status. The flag: whether the records are restored too.
    Restore(bool),
    /// The Service becomes unreadable, or readable again.
    Unreadable(u8),
    UnreadableRecord(IpAddr),
    /// A user deletes a record. If the flag is set, the record waits for a finalizer.
    DeleteRecord(IpAddr, bool),
    /// Records that wait for a finalizer disappear.
    Collect,
    /// Another host on the LAN uses an address.
    Conflict(IpAddr),
    /// A node announces an address, or no node does.
    Announce(IpAddr, bool),
    /// A user reserves an address: without a target, for a namespace, or for a Service.
    Reserve(IpAddr, Option<(u8, bool)>),
    /// A pool is created, changed or deleted.
    Pool(u8, Option<Edit>),
    Node(IpAddr),
    Gateway(IpAddr),
    /// The networks of a node, by their position in [`NETWORKS`].
    Networks(usize),
    Label(bool),
    /// The controller plans, and crashes after this number of effects.
    Crash(usize),
    Settle,
}

/// A change of a Service by a user.
#[derive(Clone, Debug)]
enum Aspect {
    Nothing,
    Families(usize),
    Key(Option<u8>),
    Ports(u16),
    Local(bool),
    Selector(bool),
    Consent(bool),
    Addresses(Vec<IpAddr>),
    Pool(Option<u8>),
    App(bool),
    /// Toggles between LoadBalancer and ClusterIP. The Service gets the class of another provider if the flag is set,
    /// otherwise none.
    Retype(bool),
}

/// The new spec of a pool.
#[derive(Clone, Debug)]
struct Edit {
    ranges: usize,
    auto_assign: bool,
    drain: bool,
    avoid_buggy: bool,
    exclude: Option<IpAddr>,
    selector: usize,
    quota: Option<u32>,
}

const RANGES: [&[&str]; 6] = [
    &["192.0.2.0/30"],
    &["192.0.2.2-192.0.2.5"],
    &["192.0.2.6-192.0.2.6", "nonsense"],
    &["192.0.2.0-192.0.2.9", "2001:db8::/126"],
    &["2001:db8::2-2001:db8::5", "192.0.2.4/31"],
    &["2001:db8::1-2001:db8::1", "192.0.2.8-192.0.2.12"],
];

const NETWORKS: [&[&str]; 5] = [
    &[],
    &["192.0.2.0/29"],
    &["192.0.2.4/30", "2001:db8::/125"],
    &["192.0.2.8/31", "2001:db8::2/127"],
    &["192.0.2.0/24", "192.0.2.4/30", "2001:db8::4/126"],
];

const FAMILIES: [(&[Family], FamilyPolicy); 6] = [
    (&[Family::V4], FamilyPolicy::SingleStack),
    (&[Family::V6], FamilyPolicy::SingleStack),
    (&[Family::V4, Family::V6], FamilyPolicy::PreferDualStack),
    (&[Family::V6, Family::V4], FamilyPolicy::PreferDualStack),
    (&[Family::V4, Family::V6], FamilyPolicy::RequireDualStack),
    (&[Family::V4], FamilyPolicy::PreferDualStack),
];

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![3 => (0..13u8).prop_map(four), 1 => (0..7u8).prop_map(six)]
}

fn aspect() -> impl Strategy<Value = Aspect> {
    prop_oneof![
        3 => Just(Aspect::Nothing),
        3 => (0..FAMILIES.len()).prop_map(Aspect::Families),
        4 => proptest::option::weighted(0.8, 0..2u8).prop_map(Aspect::Key),
        2 => (80..83u16).prop_map(Aspect::Ports),
        1 => any::<bool>().prop_map(Aspect::Local),
        1 => any::<bool>().prop_map(Aspect::Selector),
        1 => any::<bool>().prop_map(Aspect::Consent),
        4 => proptest::collection::vec(address(), 0..3).prop_map(Aspect::Addresses),
        2 => proptest::option::of(0..4u8).prop_map(Aspect::Pool),
        1 => any::<bool>().prop_map(Aspect::App),
        2 => any::<bool>().prop_map(Aspect::Retype),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let flags = (proptest::bool::weighted(0.8), proptest::bool::weighted(0.15), proptest::bool::weighted(0.15));
    let exclude = proptest::option::weighted(0.2, address());
    (0..RANGES.len(), flags, exclude, 0..10usize, proptest::option::weighted(0.2, 1..4u32)).prop_map(
        |(ranges, (auto_assign, drain, avoid_buggy), exclude, selector, quota)| Edit {
            ranges,
            auto_assign,
            drain,
            avoid_buggy,
            exclude,
            selector,
            quota,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..6u8;
    prop_oneof![
        8 => (name(), aspect()).prop_map(|(name, aspect)| Step::Create(name, aspect)),
        3 => name().prop_map(Step::Delete),
        12 => (name(), aspect()).prop_map(|(name, aspect)| Step::Set(name, aspect)),
        2 => (name(), address()).prop_map(|(name, address)| Step::Forge(name, address)),
        1 => name().prop_map(Step::Strip),
        2 => any::<bool>().prop_map(Step::Restore),
        1 => name().prop_map(Step::Unreadable),
        1 => address().prop_map(Step::UnreadableRecord),
        1 => (address(), any::<bool>()).prop_map(|(address, waits)| Step::DeleteRecord(address, waits)),
        1 => Just(Step::Collect),
        4 => address().prop_map(Step::Conflict),
        3 => (address(), proptest::bool::weighted(0.7)).prop_map(|(address, now)| Step::Announce(address, now)),
        2 => (address(), proptest::option::of((name(), any::<bool>()))).prop_map(|(a, to)| Step::Reserve(a, to)),
        6 => (0..4u8, proptest::option::weighted(0.85, edit())).prop_map(|(name, to)| Step::Pool(name, to)),
        1 => address().prop_map(Step::Node),
        1 => address().prop_map(Step::Gateway),
        2 => (0..NETWORKS.len()).prop_map(Step::Networks),
        1 => any::<bool>().prop_map(Step::Label),
        4 => (0..8usize).prop_map(Step::Crash),
        6 => Just(Step::Settle),
    ]
}

/// The key of the Service with this number. Four Services are in one namespace, the others in another.
fn key(n: u8) -> Key {
    Key::new(if n < 4 { "default" } else { "other" }, format!("s{n}"))
}

fn set(service: &mut Service, aspect: &Aspect) {
    let request = |edit: &dyn Fn(&mut RequestedAddresses), service: &mut Service| {
        edit(request_of(service));
    };
    match aspect {
        Aspect::Nothing => {}
        Aspect::Families(index) => {
            let (families, policy) = FAMILIES[*index];
            (service.families, service.family_policy) = (families.iter().copied().collect(), policy);
        }
        Aspect::Key(key) => request(&|r| r.sharing_key = key.map(|key| format!("k{key}").into()), service),
        Aspect::Ports(number) => {
            service.ports = vec![Port { name: "".into(), protocol: Protocol::Tcp, number: *number, node_port: None }];
        }
        Aspect::Local(local) => {
            service.traffic_policy = if *local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        }
        Aspect::Selector(web) => service.selector = [("app", if *web { "web" } else { "db" })].into(),
        Aspect::Consent(all) => {
            let consent = if *all { Consent::All } else { Consent::None };
            request(&|r| r.consent = consent.clone(), service);
        }
        Aspect::Addresses(addresses) => {
            let once: BTreeSet<_> = addresses.iter().copied().collect();
            request(&|r| r.addresses = once.iter().rev().copied().collect(), service);
        }
        Aspect::Pool(n) => request(&|r| r.pool = n.map(|n| format!("p{n}").into()), service),
        Aspect::App(web) => service.labels = [("app", if *web { "web" } else { "db" })].into(),
        Aspect::Retype(foreign) => {
            service.is_load_balancer = !service.is_load_balancer;
            service.class = foreign.then(|| "example.com/other".into());
        }
    }
}

fn edited_pool(name: &str, created: i64, edit: &Edit) -> Arc<IPAddressPool> {
    let mut new = pool(name, created, RANGES[edit.ranges]);
    let selector = |label: &str, value: &str| {
        vec![serde_json::from_value(serde_json::json!({"matchLabels": {label: value}})).expect("a selector")]
    };
    let allocation = |namespaces: &[&str], of_namespace: bool, of_service: bool| ServiceAllocation {
        priority: edit.selector as i32 % 3,
        namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        namespace_selectors: if of_namespace { selector("team", "a") } else { vec![] },
        service_selectors: if of_service { selector("app", "web") } else { vec![] },
    };
    let spec = &mut Arc::make_mut(&mut new).spec;
    (spec.auto_assign, spec.drain, spec.avoid_buggy_ips) = (edit.auto_assign, edit.drain, edit.avoid_buggy);
    spec.max_per_namespace = edit.quota;
    spec.exclude = edit.exclude.iter().map(|a| crds::ip_address_pool::AddressRange(a.to_string())).collect();
    spec.service_allocation = match edit.selector {
        0 => Some(allocation(&["other"], false, false)),
        1 => Some(allocation(&["default"], true, false)),
        2 => Some(allocation(&[], true, false)),
        3 => Some(allocation(&[], false, true)),
        4 => Some(allocation(&[], false, false)),
        _ => None,
    };
    new
}

fn toggle<T: Ord>(set: &mut BTreeSet<T>, element: T) {
    if !set.remove(&element) {
        set.insert(element);
    }
}

/// Changes the report of the agent on `n1`.
fn set_network(world: &mut World, edit: impl FnOnce(&mut NodeAddresses)) {
    edit(Arc::make_mut(world.snapshot.networks.entry("n1".into()).or_default()));
}

/// Applies a step to the cluster. The controller does not act.
fn happen(world: &mut World, step: &Step, time: i64) {
    world.snapshot.now = at_second(time);
    let exists = |world: &World, n: &u8| world.snapshot.services.contains_key(&key(*n));
    match step {
        Step::Create(n, aspect) if !exists(world, n) => {
            let mut new = service(&key(*n).name, time);
            new.key = key(*n);
            new.uid = format!("{}-{time}", new.key.name).into();
            new.resource_version = u64::MAX - time.unsigned_abs();
            set(&mut new, &Aspect::Ports(u16::from(80 + n % 3)));
            set(&mut new, aspect);
            world.snapshot.unreadable.services.remove(&new.key);
            if new.is_load_balancer {
                world.snapshot.services.insert(new.key.clone(), Arc::new(new));
            }
        }
        Step::Delete(n) if exists(world, n) => {
            world.delete_key(&key(*n));
            if !exists(world, n) {
                world.snapshot.unreadable.services.remove(&key(*n));
            }
        }
        Step::Set(n, aspect) if exists(world, n) => world.edit_key(&key(*n), |service| set(service, aspect)),
        Step::Forge(n, address) if exists(world, n) && world.snapshot.services[&key(*n)].is_load_balancer => {
            world.edit_key(&key(*n), |service| service.ingress = shows(&address.to_string()));
        }
        Step::Strip(n) if exists(world, n) && !world.snapshot.services[&key(*n)].deleting => {
            world.edit_key(&key(*n), |service| (service.finalizers, service.conditions) = (vec![], vec![]));
        }
        Step::Restore(keeps_records) => world.restore(*keeps_records),
        Step::Unreadable(n) if exists(world, n) => toggle(&mut world.snapshot.unreadable.services, key(*n)),
        Step::UnreadableRecord(address) => toggle(&mut world.snapshot.unreadable.records, *address),
        Step::Conflict(address) => world.report_conflict(*address),
        Step::Announce(address, true) => world.announce(*address),
        Step::Announce(address, false) => world.stop_announcing(*address),
        Step::DeleteRecord(address, true) => world.edit_record(*address, |record| record.deleting = true),
        Step::DeleteRecord(address, false) => {
            world.deleted_records.insert(*address);
            world.snapshot.records.remove(address);
            world.snapshot.unreadable.records.remove(address);
        }
        Step::Collect => {
            let gone: Vec<_> =
                world.snapshot.records.values().filter(|record| record.deleting).map(|record| record.address).collect();
            gone.iter().for_each(|address| drop(world.snapshot.records.remove(address)));
            world.deleted_records.extend(gone);
        }
        Step::Reserve(address, to) => {
            let reservation = |(n, names_service): (u8, bool)| Reservation {
                namespace: Some(key(n).namespace),
                service: names_service.then(|| key(n).name),
            };
            world.reserve(*address, to.map(reservation));
        }
        Step::Pool(n, None) => drop(world.snapshot.pools.remove(&format!("p{n}"))),
        Step::Pool(n, Some(edit)) => {
            let name = format!("p{n}");
            let old = world.snapshot.pools.get(&name);
            let created = old.and_then(|pool| pool.metadata.creation_timestamp.clone());
            let mut new = edited_pool(&name, created.map_or(time, |created| created.0.as_second()), edit);
            let object = Arc::make_mut(&mut new);
            object.status = old.and_then(|pool| pool.status.clone());
            object.metadata.resource_version = Some(format!("edit-{time}"));
            world.snapshot.pools.insert(name, new);
        }
        Step::Node(address) => drop(world.snapshot.nodes.insert("n1".into(), node("n1", &address.to_string()))),
        Step::Gateway(address) => set_network(world, |network| network.gateways = vec![*address]),
        Step::Networks(index) => {
            let networks = NETWORKS[*index].iter().map(|text| text.parse().expect("a network")).collect();
            set_network(world, |network| network.networks = networks);
        }
        Step::Label(team) => {
            let labels = if *team { Labels::from([("team", "a")]) } else { Labels::default() };
            let namespace = Namespace { name: "other".into(), labels };
            world.snapshot.namespaces.insert("other".into(), Arc::new(namespace));
        }
        _ => {}
    }
}

/// Applies a step to the cluster, and lets the controller act if the step includes that.
fn take_step(world: &mut World, step: &Step, time: i64) {
    happen(world, step, time);
    match step {
        Step::Crash(effects) => {
            let mut left = *effects;
            for series in plan(&world.snapshot).series {
                for effect in &series.effects {
                    if left == 0 || !world.apply(effect) {
                        break;
                    }
                    left -= 1;
                }
            }
        }
        Step::Settle => drop(world.settle()),
        _ => {}
    }
}

/// Checks that no Service loses an address by a single step that does not concern it.
fn check_kept(before: &World, step: &Step, after: &World) -> Result<(), TestCaseError> {
    // A record that a user deletes, or that becomes unreadable, may be lost.
    let is_of_record = matches!(step, Step::DeleteRecord(..) | Step::Collect | Step::UnreadableRecord(_));
    for old in before.snapshot.services.values().filter(|service| is_ours(service)) {
        let Some(new) = after.snapshot.services.get(&old.key).filter(|new| new.uid == old.uid && is_ours(new)) else {
            continue;
        };
        let is_same = |old: &Service, new: &Service| {
            (&old.request, &old.families, old.family_policy) == (&new.request, &new.families, new.family_policy)
                && crate::allocate::sharing::terms(old) == crate::allocate::sharing::terms(new)
        };
        let (was, is) = (before.view_key(&old.key), after.view_key(&old.key));
        let is_unsettled = |world: &World| {
            world.snapshot.unreadable.services.contains(&old.key)
                || world.snapshot.records.values().any(|record| {
                    (record.deleting || world.snapshot.unreadable.records.contains(&record.address))
                        && record.holders.iter().any(|holder| holder.uid == old.uid)
                })
        };
        if is_of_record || !is_same(old, new) || is_unsettled(before) || is_unsettled(after) {
            continue;
        }
        // A Service that was refused before and now has all addresses may have left old ones. It may have got the
        // addresses that it requested, or a second family.
        let was_true = was.condition.as_ref().is_some_and(|condition| condition.starts_with("True"));
        let is_true = is.condition.as_ref().is_some_and(|condition| condition.starts_with("True"));
        if was_true || !is_true {
            // A Service may leave an address that has a conflict and was never announced.
            let may_leave = |address: &&String| {
                let address: IpAddr = address.parse().expect("an address");
                let record = &before.snapshot.records[&address];
                has_blocking_conflict(record)
                    || (matches!(step, Step::Conflict(a) if *a == address) && is_unused(record))
            };
            let lost = was.held.iter().filter(|address| !is.held.contains(address));
            let lost: Vec<_> = lost.filter(|address| !may_leave(address)).collect();
            prop_assert!(lost.is_empty(), "{} lost {:?} by {:?}", old.key, lost, step);
            prop_assert!(is_true || !was_true, "{} was refused by {:?}: {:?}", old.key, step, is.condition);
        }
    }
    // A Service of another provider is untouched, unless it was ours before.
    for old in before.snapshot.services.values().filter(|service| service.class.is_some()) {
        let is_subject = |n: &u8| old.key == key(*n);
        let by_user = match step {
            Step::Delete(n) | Step::Set(n, _) | Step::Forge(n, _) | Step::Strip(n) | Step::Unreadable(n) => {
                is_subject(n)
            }
            Step::Restore(_) => true,
            _ => false,
        };
        if !by_user && before.view_key(&old.key).held.is_empty() && !is_unreadable(before, &old.key) {
            prop_assert_eq!(after.snapshot.services.get(&old.key), Some(old), "{} was touched by {:?}", old.key, step);
        }
    }
    Ok(())
}

/// Checks that Services restored from a backup have their former addresses. Without records, only some Services are
/// checked: those that could still get each of their addresses ([`Model::would_get`]).
fn check_restored(before: &World, keeps_records: bool, after: &World) -> Result<(), TestCaseError> {
    let mut lost = before.clone();
    lost.restore(keeps_records);
    let model = Model::new(&lost.snapshot);
    for old in before.snapshot.services.values().filter(|service| is_ours(service)) {
        let (was, is) = (before.view_key(&old.key), after.view_key(&old.key));
        let held = || was.held.iter().map(|lb_ip| lb_ip.parse::<IpAddr>().expect("an address"));
        let is_certain = |lb_ip: &IpAddr| {
            let record = &before.snapshot.records[lb_ip];
            !record.deleting && !before.snapshot.unreadable.records.contains(lb_ip) && !has_blocking_conflict(record)
        };
        if is_unreadable(before, &old.key) || !held().all(|lb_ip| is_certain(&lb_ip)) {
            continue;
        }
        if !keeps_records {
            let is_true = was.condition.as_ref().is_some_and(|condition| condition.starts_with("True"));
            if !is_true || !held().all(|lb_ip| model.would_get(old, lb_ip)) {
                continue;
            }
        }
        let missing: Vec<_> = was.held.iter().filter(|lb_ip| !is.held.contains(lb_ip)).collect();
        prop_assert!(missing.is_empty(), "{} lacks {:?}, records restored: {}", old.key, missing, keeps_records);
    }
    Ok(())
}

fn is_unreadable(world: &World, key: &Key) -> bool {
    world.snapshot.unreadable.services.contains(key)
}

proptest! {
    #![proptest_config(ProptestConfig {
        max_shrink_iters: 4000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_settles_by_the_rules_and_keeps_addresses(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut world = World::default();
        for (time, step) in (1..).zip(&steps) {
            take_step(&mut world, step, time);
            // A copy settles here, while the history itself goes on unsettled.
            let mut settled = world.clone();
            settled.settle();
            Model::check(&settled)?;
            let mut next = settled.clone();
            let then = steps.get(usize::try_from(time).unwrap_or_default()).unwrap_or(&Step::Settle);
            take_step(&mut next, then, time + 1);
            next.settle();
            check_kept(&settled, then, &next)?;
            for keeps_records in [true, false] {
                let mut restored = settled.clone();
                restored.restore(keeps_records);
                restored.settle();
                Model::check(&restored)?;
                check_restored(&settled, keeps_records, &restored)?;
            }
        }
    }

    #[test]
    fn late_and_reordered_observations_lead_to_the_same_result(
        steps in proptest::collection::vec((step(), any::<u64>()), 1..40),
    ) {
        let mut world = World::default();
        let mut live = Live::new(7);
        for (time, (step, seed)) in (1..).zip(&steps) {
            happen(&mut world, step, time);
            live.seed = *seed;
            if let Step::Crash(_) = step {
                live = Live::new(*seed);
                live.observe(&world, true);
            }
            for _ in 0..live.roll(12) {
                live.observe(&world, false);
                live.plan(&world);
                live.act(&mut world, true);
            }
            if matches!(step, Step::Settle) || usize::try_from(time) == Ok(steps.len()) {
                live.settle(&mut world);
                Model::check(&world)?;
                let fresh = plan(&world.snapshot);
                prop_assert_eq!(fresh.series, vec![], "a plan from the complete state has effects");
            }
        }
    }
}

#[test]
fn universe_of_the_model_contains_all_ranges() {
    let all: BTreeSet<_> = universe().collect();
    for text in RANGES.into_iter().flatten() {
        let Ok(range) = text.parse::<crds::Range>() else { continue };
        assert!(all.contains(&range.first()) && all.contains(&range.last()), "{text}");
    }
}
