//! A small model of a settled cluster, for tests: slow and simple. It implements the rules independently of the code,
//! except those of sharing, and checks each address of these tests one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::service::{FINALIZER, Family};
use crds::{FamilyPolicy, IPAddressPool, Key, Record, Service};
use proptest::prelude::*;

use crate::allocate::sharing::clash;
use crate::snapshot::Snapshot;
use crate::world::World;

/// All addresses of these tests.
pub(crate) fn universe() -> impl Iterator<Item = IpAddr> {
    (0..16).map(four).chain((0..8).map(six))
}

pub(crate) fn four(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

pub(crate) fn six(last: u8) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)])
}

/// Whether Landfall may assign addresses to a Service.
pub(crate) fn is_ours(service: &Service) -> bool {
    !service.deleting && service.is_load_balancer && service.class.is_none()
}

/// Whether an address was never announced, so that it has no clients.
pub(crate) fn is_unused(record: &Record) -> bool {
    record.first_announced.is_none() && record.announcers.is_empty()
}

/// Whether another host uses an address that was never announced.
pub(crate) fn has_blocking_conflict(record: &Record) -> bool {
    is_unused(record) && record.conflicts.iter().any(|conflict| conflict.held_back)
}

/// The rules, applied to one cluster.
pub(crate) struct Model<'a> {
    snapshot: &'a Snapshot,
    /// The pool of each address, and whether the address is an inner address of one of its ranges (no network end).
    owners: BTreeMap<IpAddr, (&'a IPAddressPool, bool)>,
    occupied: BTreeSet<IpAddr>,
}

fn name(pool: &IPAddressPool) -> &str {
    pool.metadata.name.as_deref().expect("a name")
}

/// The families of a Service, and how many of them are required.
fn families(service: &Service) -> (&[Family], usize) {
    let all = &service.families[..];
    match service.family_policy {
        FamilyPolicy::SingleStack => (&all[..1], 1),
        FamilyPolicy::PreferDualStack => (all, 1),
        FamilyPolicy::RequireDualStack => (all, all.len()),
    }
}

fn requested_addresses(service: &Service, family: Family) -> Vec<IpAddr> {
    let request = service.request.as_ref().expect("a request");
    request.addresses.iter().copied().filter(|address| Family::from(*address) == family).collect()
}

fn contains(ranges: &[crds::ip_address_pool::AddressRange], address: IpAddr) -> bool {
    ranges.iter().filter_map(|range| range.parse().ok()).any(|range| range.contains(address))
}

impl<'a> Model<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        let mut pools: Vec<_> = snapshot.pools.values().collect();
        pools.sort_by_key(|pool| (pool.metadata.creation_timestamp.clone().map(|time| time.0), name(pool).to_owned()));
        let mut owners = BTreeMap::new();
        for pool in pools {
            for address in universe() {
                let mut is_named = false;
                let mut is_inner = false;
                for text in &pool.spec.addresses {
                    let Ok(range) = text.parse() else { continue };
                    let ends = if address.is_ipv4() { vec![range.first(), range.last()] } else { vec![range.first()] };
                    let is_end = text.0.contains('/') && range.size() > 2 && ends.contains(&address);
                    is_named |= range.contains(address);
                    is_inner |= range.contains(address) && !is_end;
                }
                if is_named {
                    owners.entry(address).or_insert((&**pool, is_inner));
                }
            }
        }
        let own = snapshot.nodes.values().flat_map(|node| node.addresses.clone());
        let found = snapshot.networks.values().flat_map(|network| network.gateways.clone());
        let networks = || snapshot.networks.values().flat_map(|network| &network.networks);
        let is_end = |address: &IpAddr| {
            networks().any(|net| match address {
                IpAddr::V4(_) if net.prefix_len() < 31 => [net.network(), net.broadcast()].contains(address),
                IpAddr::V6(_) if net.prefix_len() < 127 => net.network() == *address,
                _ => false,
            })
        };
        let ends = universe().filter(is_end).collect::<Vec<_>>();
        Self { snapshot, owners, occupied: own.chain(found).chain(ends).collect() }
    }

    fn admits(&self, pool: &IPAddressPool, service: &Service) -> bool {
        let Some(allocation) = &pool.spec.service_allocation else { return true };
        let has = |labels: &crds::Labels, label: (&str, &str)| labels.iter().any(|own| own == label);
        let namespace = &service.key.namespace;
        // The only selectors of these tests: team=a of namespaces, app=web of Services.
        let is_team = || self.snapshot.namespaces.get(&**namespace).is_some_and(|ns| has(&ns.labels, ("team", "a")));
        let of_namespace = match (allocation.namespaces.is_empty(), allocation.namespace_selectors.is_empty()) {
            (true, true) => true,
            (_, true) => allocation.namespaces.iter().any(|own| namespace == own),
            _ => allocation.namespaces.iter().any(|own| namespace == own) || is_team(),
        };
        of_namespace && (allocation.service_selectors.is_empty() || has(&service.labels, ("app", "web")))
    }

    /// Whether a pool never assigns this address.
    fn is_excluded(&self, address: IpAddr) -> bool {
        let (pool, _) = self.owners[&address];
        let is_buggy = pool.spec.avoid_buggy_ips
            && matches!(address, IpAddr::V4(v4) if v4.octets()[3] == 0 || v4.octets()[3] == 255);
        is_buggy || contains(&pool.spec.exclude, address) || self.occupied.contains(&address)
    }

    fn is_used(&self, address: IpAddr) -> bool {
        self.snapshot.records.contains_key(&address) || self.snapshot.unreadable.records.contains(&address)
    }

    fn service(&self, key: &Key, uid: &str) -> Option<&Arc<Service>> {
        self.snapshot.services.get(key).filter(|service| service.uid == uid)
    }

    /// Whether this Service could get this address now: by a request by name, or automatically.
    fn could_have(&self, service: &Service, address: IpAddr, by_name: bool) -> bool {
        let Some((pool, is_inner)) = self.owners.get(&address) else { return false };
        let request = service.request.as_ref().expect("a request");
        let record = self.snapshot.records.get(&address);
        let is_for_it = record.and_then(|record| record.reservation.as_ref()).is_some_and(|reservation| {
            reservation.namespace.as_ref() == Some(&service.key.namespace)
                && reservation.service.as_ref() == Some(&service.key.name)
        });
        let is_of_pool = match &request.pool {
            Some(requested) => requested == name(pool),
            None => by_name || is_for_it || pool.spec.auto_assign,
        };
        let may = is_of_pool && self.admits(pool, service) && !pool.spec.drain && !self.is_excluded(address);
        if !may || self.snapshot.unreadable.records.contains(&address) || self.is_quota_full(pool, service, address) {
            return false;
        }
        let Some(record) = record else { return by_name || *is_inner };
        let is_reserved_for_others = record.reservation.as_ref().is_some_and(|reservation| {
            reservation.namespace.as_ref().is_some_and(|namespace| *namespace != service.key.namespace)
                || reservation.service.as_ref().is_some_and(|name| *name != service.key.name)
        });
        if record.deleting || is_reserved_for_others || record.quarantine.is_some() {
            return false;
        }
        if record.holders.is_empty() {
            return by_name || is_for_it;
        }
        let holders: Option<Vec<_>> = record
            .holders
            .iter()
            .map(|holder| Key::new(&holder.namespace, &holder.name))
            .zip(&record.holders)
            .map(|(key, holder)| {
                let is_readable = !self.snapshot.unreadable.services.contains(&key);
                self.service(&key, &holder.uid).filter(|_| is_readable)
            })
            .collect();
        holders.is_some_and(|holders| holders.iter().all(|holder| is_ours(holder) && clash(service, holder).is_none()))
    }

    /// Whether a Service whose status shows this address would get it. `false` for a pool with a quota, which older
    /// Services may use up.
    pub(crate) fn would_get(&self, service: &Service, address: IpAddr) -> bool {
        let Some((pool, _)) = self.owners.get(&address) else { return false };
        let is_requested = service.request.as_ref().is_ok_and(|request| request.addresses.contains(&address));
        pool.spec.max_per_namespace.is_none() && self.could_have(service, address, is_requested)
    }

    /// Whether the quota has no room for this address and another one. (This is cautious: the namespace may release
    /// addresses, or need a second one.)
    fn is_quota_full(&self, pool: &IPAddressPool, service: &Service, address: IpAddr) -> bool {
        let Some(limit) = pool.spec.max_per_namespace else { return false };
        let has = |record: &Record| record.holders.iter().any(|holder| holder.namespace == service.key.namespace);
        let of_pool = |address: &IpAddr| self.owners.get(address).is_some_and(|(own, _)| name(own) == name(pool));
        let held = self.snapshot.records.iter().filter(|(address, record)| of_pool(address) && has(record));
        let held: BTreeSet<_> = held.map(|(address, _)| *address).collect();
        !held.contains(&address) && held.len() + 2 > limit as usize
    }

    /// Whether a Service that takes any address should leave this one.
    fn should_leave(&self, service: &Service, record: &Record) -> bool {
        let is_exclusive = record.holders.len() == 1 && record.sharing_key.is_none() && record.reservation.is_none();
        let quarantined = || self.snapshot.records.values().filter_map(|record| record.quarantine.as_ref());
        let moves = quarantined().filter(|quarantine| quarantine.service.uid == service.uid).count();
        is_exclusive && has_blocking_conflict(record) && moves < 3 && quarantined().count() < 16
    }

    /// The rules for every record.
    fn check_records(&self) -> Result<(), TestCaseError> {
        for (address, record) in &self.snapshot.records {
            if record.deleting || self.snapshot.unreadable.records.contains(address) {
                continue;
            }
            let is_own = record.uid.starts_with("record") && record.quarantine.is_none();
            prop_assert!(!record.holders.is_empty() || !is_own, "{address} has no holder");
            let may_request_pool = record.holders.iter().any(|holder| {
                let key = Key::new(&holder.namespace, &holder.name);
                let requests = |service: &Arc<Service>| {
                    service.request.as_ref().map_or(true, |request| request.pool.as_deref() == Some(&*record.pool))
                };
                self.snapshot.unreadable.services.contains(&key)
                    || self.service(&key, &holder.uid).is_some_and(requests)
            });
            let names_pool = !record.holders.is_empty() && !may_request_pool;
            if let Some((pool, _)) = self.owners.get(address).filter(|_| names_pool) {
                prop_assert_eq!(&*record.pool, name(pool), "{} names another pool", address);
            }
            let mut sharing = Vec::new();
            for holder in &record.holders {
                let key = Key::new(&holder.namespace, &holder.name);
                if self.snapshot.unreadable.services.contains(&key) {
                    continue;
                }
                let service = self.service(&key, &holder.uid).filter(|service| is_ours(service));
                let Some(service) = service else {
                    return Err(TestCaseError::fail(format!("{address} is held by {holder:?}, which does not exist")));
                };
                prop_assert_eq!(&holder.terms, &crate::allocate::sharing::terms(service), "{} of {}", address, key);
                sharing.push(service);
            }
            for (index, one) in sharing.iter().enumerate() {
                for other in &sharing[index + 1..] {
                    let clash = clash(one, other);
                    prop_assert_eq!(clash, None, "{} has both {} and {}", address, &one.key, &other.key);
                }
            }
        }
        Ok(())
    }

    fn check_service(&self, world: &World, service: &Service) -> Result<(), TestCaseError> {
        let (snapshot, key) = (self.snapshot, &service.key);
        let seen = world.view_key(key);
        let of_service =
            |record: &&Arc<Record>| record.holders.iter().any(|h| h.uid == service.uid && h.name == key.name);
        let records: Vec<_> = snapshot.records.values().filter(of_service).collect();
        let is_waiting = |record: &Record| {
            let is_readable = !snapshot.unreadable.records.contains(&record.address);
            (record.deleting || !is_readable) && record.holders.iter().any(|holder| holder.service() == *key)
        };
        // While a record is being deleted or is unreadable, its holder may wait, so nothing is checked.
        if snapshot.records.values().any(|record| is_waiting(record)) {
            return Ok(());
        }
        let held: BTreeSet<_> = records.iter().map(|record| record.address).collect();
        if !is_ours(service) {
            prop_assert_eq!((&seen.condition, &held), (&None, &BTreeSet::new()), "{} is not ours", key);
            prop_assert!(!seen.has_finalizer || service.class.is_some() || !service.deleting, "{key} is stuck");
            return Ok(());
        }
        let shown: Vec<IpAddr> = seen.ingress.iter().map(|text| text.parse().expect("an address")).collect();
        if held.is_empty() {
            // An address outside all pools may belong to another provider, and stays.
            prop_assert!(shown.iter().all(|shown| !self.owners.contains_key(shown)), "{key} shows {shown:?}");
        } else {
            prop_assert_eq!(shown.iter().copied().collect::<BTreeSet<_>>(), held.clone(), "{}", key);
        }
        // While no pool exists, a Service without addresses keeps its status.
        if !held.is_empty() || !snapshot.pools.is_empty() {
            prop_assert_eq!(service.finalizers.iter().any(|f| f == FINALIZER), !held.is_empty(), "{}", key);
        }
        self.check_outcome(service, &shown, &held, &seen.condition.unwrap_or_default())
    }

    /// The rules for the condition of a Service of ours, which shows and holds these addresses.
    fn check_outcome(
        &self,
        service: &Service,
        shown: &[IpAddr],
        held: &BTreeSet<IpAddr>,
        condition: &str,
    ) -> Result<(), TestCaseError> {
        let key = &service.key;
        let is_true = condition.starts_with("True ");
        let (wanted, required) = families(service);
        if service.family_policy == FamilyPolicy::RequireDualStack {
            let has = |family: &Family| held.iter().any(|address| Family::from(*address) == *family);
            let half = !held.is_empty() && !wanted.iter().all(has);
            prop_assert!(!half, "{key} has one of two required families: {held:?}, {condition}");
        }
        let Ok(request) = &service.request else {
            prop_assert!(!is_true, "{key} has an invalid request: {condition}");
            return Ok(());
        };
        if request.addresses.iter().any(|address| !wanted.contains(&Family::from(*address))) {
            prop_assert!(condition.starts_with("False FamilyMismatch"), "{key}: {condition}");
            return Ok(());
        }
        // For each family and each requested address: the address that the Service has, or whether it could have one.
        let is_of_pool = |address: &IpAddr| {
            request.pool.as_ref().is_none_or(|pool| {
                self.snapshot.records[address].pool == *pool
                    || self.owners.get(address).is_some_and(|(own, _)| pool == name(own))
            })
        };
        let (mut has_all, mut could_have_all, mut expected) = (true, true, Vec::new());
        for (index, family) in wanted.iter().enumerate() {
            let by_name = requested_addresses(service, *family);
            if by_name.is_empty() {
                let has =
                    shown.iter().copied().find(|a| Family::from(*a) == *family && held.contains(a) && is_of_pool(a));
                let of_family = || universe().filter(|address| Family::from(*address) == *family);
                let could = of_family().find(|address| self.could_have(service, *address, false));
                let leaves = has.filter(|address| self.should_leave(service, &self.snapshot.records[address]));
                if let (Some(address), Some(other)) = (leaves, could) {
                    prop_assert!(!is_true, "{key} could have {other} instead of {address}, which another host uses");
                }
                match has {
                    Some(address) => expected.push(address),
                    None if index < required => {
                        (has_all, could_have_all) = (false, could_have_all && could.is_some());
                    }
                    None if is_true => prop_assert_eq!(could, None, "{} could have it too: {}", key, condition),
                    None => {}
                }
            }
            for address in by_name {
                if held.contains(&address) && is_of_pool(&address) {
                    expected.push(address);
                } else {
                    has_all = false;
                    could_have_all &= self.could_have(service, address, true);
                }
            }
        }
        prop_assert_eq!(is_true, has_all, "{}: {}", key, condition);
        if is_true {
            prop_assert_eq!(shown, &expected, "{}: {}", key, condition);
            let needs_attention = held.iter().any(|address| match self.owners.get(address) {
                None => true,
                Some((pool, _)) => pool.spec.drain || self.is_excluded(*address) || !self.admits(pool, service),
            });
            prop_assert_eq!(condition.starts_with("True Allocated"), !needs_attention, "{}: {}", key, condition);
        } else {
            prop_assert!(condition.starts_with("False "), "{key}: {condition}");
            prop_assert!(!could_have_all, "{key} could have the addresses it requests: {condition}");
        }
        Ok(())
    }

    /// The rules for a settled cluster.
    pub(crate) fn check(world: &World) -> Result<(), TestCaseError> {
        let model = Model::new(&world.snapshot);
        model.check_records()?;
        for (key, service) in &world.snapshot.services {
            if !world.snapshot.unreadable.services.contains(key) {
                model.check_service(world, service)?;
            }
        }
        for pool in world.snapshot.pools.values() {
            let of_pool = |address: &IpAddr| model.owners.get(address).is_some_and(|(own, _)| name(own) == name(pool));
            let status = pool.status.clone().expect("a status");
            for (family, counts) in [
                (Family::V4, (status.assigned_ipv4, status.available_ipv4)),
                (Family::V6, (status.assigned_ipv6, status.available_ipv6)),
            ] {
                let all: Vec<_> = universe().filter(|a| Family::from(*a) == family && of_pool(a)).collect();
                let assigned = all.iter().filter(|address| model.is_used(**address)).count();
                let is_available = |a: &&IpAddr| model.owners[*a].1 && !model.is_excluded(**a) && !model.is_used(**a);
                let expected = (assigned as i64, all.iter().filter(is_available).count() as i64);
                prop_assert_eq!(counts, expected, "{} of pool {}", family, name(pool));
            }
        }
        Ok(())
    }
}
