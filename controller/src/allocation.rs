//! Who gets which address.
//!
//! Snapshot and pools → for each Service what it keeps, gets and gives up, or why it doesn't get what it asks for; and
//! which addresses nobody holds any more. Nothing about how that is written down: that is [`crate::plan`]'s.
//!
//! What a Service holds it keeps, for as long as it is the same Service (by UID), ours, and doesn't ask for another
//! address: also when the pool is gone. Then come those that ask for an address by name, then those that take any; of
//! each the oldest first (by creation, then namespace and name). So who asks for a name is not beaten to it by who would
//! have taken any.
//!
//! Only LoadBalancerIPs say who holds what. A Service's own status is believed in nothing: the API server empties it
//! when the type changes, and whoever may write it may forge it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crds::service::Family;
use crds::{FamilyPolicy, Holder, Key, Record, Service};
use jiff::Timestamp;

use crate::free::Free;
use crate::pools::{Pool, Pools, Withheld};
use crate::refusal::{InUse, Refusal};
use crate::snapshot::Snapshot;

/// Who gets which address.
#[derive(Debug, Default)]
pub(crate) struct Allocations<'a> {
    /// Services that are ours: first those for which nothing new is to be found, then the others in the order in which
    /// they are served.
    pub(crate) served: Vec<Allocation<'a>>,
    /// All other Services, each with the addresses it still has from when it was ours, by key.
    pub(crate) others: Vec<(&'a Service, Vec<&'a Record>)>,
    /// Addresses whose Service does not exist, in order.
    pub(crate) orphans: Vec<&'a Record>,
}

/// What comes of one Service.
#[derive(Debug)]
pub(crate) struct Allocation<'a> {
    pub(crate) service: &'a Service,
    pub(crate) outcome: Outcome<'a>,
    /// What it has and loses.
    pub(crate) gives_up: Vec<&'a Record>,
}

#[derive(Debug)]
pub(crate) enum Outcome<'a> {
    /// It has what it asks for.
    Keeps(&'a Record),
    /// It is given this.
    Gets(IpAddr, &'a Pool),
    /// It doesn't get what it asks for, and has this meanwhile.
    Refused(Refusal, Option<&'a Record>),
}

impl Allocation<'_> {
    /// The address that it has when all is done.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self.outcome {
            Outcome::Keeps(record) => Some(record.address),
            Outcome::Gets(address, _) => Some(address),
            Outcome::Refused(_, record) => record.map(|record| record.address),
        }
    }
}

/// What a Service asks for.
enum Wish {
    Any,
    Address(IpAddr),
    Nothing(Refusal),
}

/// Who gets which address, of these pools.
pub(crate) fn allocations<'a>(snapshot: &'a Snapshot, pools: &'a Pools) -> Allocations<'a> {
    let mut held = held(snapshot);
    let mut result = Allocations::default();
    let (mut by_name, mut any) = (Vec::new(), Vec::new());
    for (key, service) in &snapshot.services {
        let records = held.remove(&(&service.uid, &key.namespace, &key.name)).unwrap_or_default();
        if service.deleting || !service.is_ours(snapshot.default_class) {
            result.others.push((service, records.iter().collect()));
            continue;
        }
        let outcome = match wish(service) {
            Wish::Any => kept(service, &records, |_| true).map(Outcome::Keeps),
            Wish::Address(address) => {
                let has = kept(service, &records, |record| record.address == address).map(Outcome::Keeps);
                if has.is_none() {
                    by_name.push((&**service, records, address));
                    continue;
                }
                has
            }
            Wish::Nothing(refusal) => {
                let wants_ipv4 = !matches!(refusal, Refusal::IPv6NotSupported(None));
                let keeps = kept(service, &records, |_| wants_ipv4);
                Some(Outcome::Refused(refusal, keeps))
            }
        };
        match outcome {
            Some(outcome) => result.served.push(allocation(service, records, outcome)),
            None => any.push((&**service, records)),
        }
    }
    result.orphans = orphans(snapshot, held);

    let used = snapshot.addresses.keys().chain(&snapshot.unreadable.addresses);
    let mut free = Free::new(pools, used.copied());
    let mut taken = BTreeMap::new();
    by_name.sort_by_key(|(service, ..)| age(service));
    for (service, records, address) in by_name {
        let outcome = match obtainable(address, snapshot, pools, &taken) {
            Ok(pool) => {
                free.take(address);
                taken.insert(address, &service.key);
                Outcome::Gets(address, pool)
            }
            Err(refusal) => Outcome::Refused(refusal, kept(service, &records, |_| true)),
        };
        result.served.push(allocation(service, records, outcome));
    }
    any.sort_by_key(|(service, _)| age(service));
    for (service, records) in any {
        let mut tried = pools.tried_for(&service.key.namespace, None, &service.labels);
        let next = |pool| Some((free.next(pool, Family::V4, &service.key, snapshot.now)?, pool));
        let outcome = match tried.find_map(next) {
            Some((address, pool)) => {
                free.take(address);
                Outcome::Gets(address, pool)
            }
            None => Outcome::Refused(nothing_free(pools), None),
        };
        result.served.push(allocation(service, records, outcome));
    }
    result
}

fn age(service: &Service) -> (Timestamp, &Key) {
    (service.created, &service.key)
}

/// What a Service has besides what comes of it, it gives up.
fn allocation<'a>(service: &'a Service, records: Records<'a>, outcome: Outcome<'a>) -> Allocation<'a> {
    let kept = match outcome {
        Outcome::Keeps(record) | Outcome::Refused(_, Some(record)) => Some(record.address),
        Outcome::Gets(..) | Outcome::Refused(_, None) => None,
    };
    let gives_up = records.iter().filter(|record| Some(record.address) != kept).collect();
    Allocation { service, outcome, gives_up }
}

/// The Service that a record is of. TODO(sharing): for now an address has one holder; others that somebody wrote there
/// hold nothing.
fn holder(record: &Record) -> Option<&Holder> {
    record.holders.first()
}

/// The records of one Service, in order of their addresses. One, as a rule: that takes no memory of its own.
#[derive(Default)]
struct Records<'a> {
    first: Option<&'a Record>,
    more: Vec<&'a Record>,
}

impl<'a> Records<'a> {
    fn iter(&self) -> impl Iterator<Item = &'a Record> {
        self.first.into_iter().chain(self.more.iter().copied())
    }
}

/// A Service as records name it: UID, namespace and name.
type Named<'a> = (&'a str, &'a str, &'a str);

fn named(holder: &Holder) -> Named<'_> {
    (&holder.uid, &holder.namespace, &holder.name)
}

/// The records of each Service.
fn held(snapshot: &Snapshot) -> HashMap<Named<'_>, Records<'_>> {
    let mut held = HashMap::<_, Records<'_>>::with_capacity(snapshot.addresses.len());
    for record in snapshot.addresses.values() {
        if let Some(holder) = holder(record) {
            let records = held.entry(named(holder)).or_default();
            match records.first {
                None => records.first = Some(record),
                Some(_) => records.more.push(record),
            }
        }
    }
    held
}

/// Of the records that no Service has claimed, those whose Service is gone for sure.
fn orphans<'a>(snapshot: &'a Snapshot, unclaimed: HashMap<Named<'a>, Records<'a>>) -> Vec<&'a Record> {
    let gone = |record: &&Record| {
        holder(record).is_some_and(|holder| {
            let key = Key::new(holder.namespace.clone(), holder.name.clone());
            !snapshot.unreadable.services.contains(&key)
        })
    };
    let mut orphans: Vec<_> = unclaimed.values().flat_map(Records::iter).filter(gone).collect();
    orphans.sort_by_key(|record| record.address);
    orphans
}

fn wish(service: &Service) -> Wish {
    if !service.families.is_empty() && !service.families.contains(&Family::V4) {
        return Wish::Nothing(Refusal::IPv6NotSupported(None));
    }
    if service.family_policy == FamilyPolicy::RequireDualStack {
        return Wish::Nothing(Refusal::DualStackNotSupported);
    }
    match &service.request {
        Err(invalid) => Wish::Nothing(Refusal::InvalidRequest(invalid.to_string())),
        Ok(request) => match request.addresses.first() {
            None => Wish::Any,
            Some(address) if address.is_ipv4() => Wish::Address(*address),
            Some(address) => Wish::Nothing(Refusal::IPv6NotSupported(Some(*address))),
        },
    }
}

/// Which of its records a Service keeps, of those that `suit`. It has several only after a crash in the middle of a
/// change: then the one that its status shows, so that users see no change; else the first.
fn kept<'a>(service: &Service, records: &Records<'a>, suit: impl Fn(&Record) -> bool) -> Option<&'a Record> {
    let suiting = || records.iter().filter(|record| !record.deleting && suit(record));
    let shown = |record: &&Record| {
        let text = record.address.to_string();
        service.ingress.iter().any(|ingress| ingress.ip.as_ref() == Some(&text))
    };
    match suiting().count() {
        0 | 1 => suiting().next(),
        _ => suiting().find(shown).or_else(|| suiting().next()),
    }
}

/// The pool of an address that somebody asks for by name, if it can be had.
fn obtainable<'a>(
    address: IpAddr,
    snapshot: &Snapshot,
    pools: &'a Pools,
    taken: &BTreeMap<IpAddr, &Key>,
) -> Result<&'a Pool, Refusal> {
    if pools.is_empty() {
        return Err(Refusal::NoPool);
    }
    let pool = pools.pool_of(address).ok_or(Refusal::AddressNotInPool(address))?;
    let in_use = if let Some(key) = taken.get(&address) {
        Some(InUse::Service((*key).clone()))
    } else if let Some(record) = snapshot.addresses.get(&address) {
        Some(user(record, snapshot))
    } else if snapshot.unreadable.addresses.contains(&address) {
        Some(InUse::Unknown)
    } else {
        match pools.withheld(address) {
            Some(Withheld::Node(node) | Withheld::Gateway(node)) => Some(InUse::Node(node.to_owned())),
            _ => None,
        }
    };
    in_use.map_or(Ok(pool), |by| Err(Refusal::AddressInUse(address, by)))
}

fn user(record: &Record, snapshot: &Snapshot) -> InUse {
    let Some(holder) = holder(record) else { return InUse::Unknown };
    let key = Key::new(holder.namespace.clone(), holder.name.clone());
    let holds =
        |service: &Service| service.uid == holder.uid && !service.deleting && service.is_ours(snapshot.default_class);
    let is_held = snapshot.unreadable.services.contains(&key) || snapshot.services.get(&key).is_some_and(|s| holds(s));
    if is_held && !record.deleting { InUse::Service(key) } else { InUse::Withdrawn }
}

/// Why there is no address for who takes any.
fn nothing_free(pools: &Pools) -> Refusal {
    let names = |pools: Vec<&Pool>| pools.into_iter().map(|pool| pool.name().to_owned()).collect::<Vec<_>>();
    let automatic = |pool: &&Pool| pool.object.spec.auto_assign && pool.has(Family::V4);
    let exhausted: Vec<_> = pools.iter().filter(automatic).collect();
    if pools.is_empty() {
        Refusal::NoPool
    } else if exhausted.is_empty() {
        Refusal::NoAutomaticPool(names(pools.iter().collect()))
    } else {
        Refusal::PoolsExhausted(names(exhausted))
    }
}
