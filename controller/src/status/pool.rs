//! The status of a pool: how many addresses it has, and its conditions.
//!
//! A pool, its [`AddressCounts`] and (while it drains) its [`PoolHolders`] → the status that the pool should have. The
//! cost does not depend on the number of addresses, used or not.

use std::collections::BTreeSet;
use std::fmt;

use crds::condition::{Condition, ConditionStatus, DesiredCondition};
use crds::service::Family;
use crds::{Holder, IPAddressPoolStatus, Key, Record};
use jiff::Timestamp;

use crate::pools::free::AddressCounts;
use crate::pools::intervals::{ByFamily, FAMILIES};
use crate::pools::occupied::MAX_WITHHELD;
use crate::pools::truncated::Truncated;
use crate::pools::{OccupiedAddress, Overlap, Pool};
use crate::status::change::content;
use crate::status::reason::{EventReason, PoolCondition, PoolReason};

/// Maximum number of Services in `status.heldBy`: enough to go through by hand, and a bound on the size of the object.
const MAX_HELD_BY: usize = 100;

/// The Services that have addresses of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolHolders {
    services: BTreeSet<Key>,
    /// The number of records that cannot be read. Their holders are unknown.
    unreadable: usize,
}

impl PoolHolders {
    /// The holders that these records name. `unreadable`: how many records of the pool are unreadable.
    pub(crate) fn new<'a>(records: impl IntoIterator<Item = &'a Record>, unreadable: usize) -> Self {
        let holders = records.into_iter().flat_map(|record| &record.holders);
        let services = holders.map(Holder::service).collect();
        Self { services, unreadable }
    }
}

/// The status that a pool should have. Conditions of other writers stay. `holders` is evaluated only while the pool
/// drains. `conflicts`: the addresses that other hosts on the LAN use, with the MAC addresses of these hosts.
pub(crate) fn pool_status(
    pool: &Pool,
    counts: &ByFamily<AddressCounts>,
    holders: impl FnOnce() -> PoolHolders,
    conflicts: &Truncated<String>,
    now: Timestamp,
) -> IPAddressPoolStatus {
    let old = pool.object.status.as_ref();
    let holders = pool.object.spec.drain.then(holders);
    let mut conditions = old.map(|status| status.conditions.clone()).unwrap_or_default();
    let desired = desired_conditions(pool, counts, holders.as_ref(), conflicts);
    for desired in &desired {
        if !desired.is_in(&conditions) {
            conditions = desired.set_in(&conditions, now);
        }
    }
    conditions.retain(|condition| {
        let of_pool = PoolCondition::ALL.iter().find(|type_| condition.type_ == type_.as_str());
        let is_desired = || desired.iter().any(|desired| desired.type_ == condition.type_.as_str());
        !of_pool.is_some_and(|type_| type_.is_temporary()) || is_desired()
    });
    let clamp = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    let held_by = holders.iter().flat_map(|holders| &holders.services).take(MAX_HELD_BY);
    IPAddressPoolStatus {
        assigned_ipv4: clamp(counts.v4.used),
        assigned_ipv6: clamp(counts.v6.used),
        available_ipv4: clamp(counts.v4.available()),
        available_ipv6: clamp(counts.v6.available()),
        held_by: held_by.map(ToString::to_string).collect(),
        conditions,
    }
}

/// The conditions in `now` that report a new problem, each with the reason of its event.
pub(crate) fn warnings<'a>(
    before: &'a [Condition],
    now: &'a [Condition],
) -> impl Iterator<Item = (&'static str, &'a Condition)> {
    let is_new = move |condition: &&Condition| before.iter().all(|old| content(old) != content(condition));
    now.iter().filter(is_new).filter_map(|condition| {
        let type_ = PoolCondition::ALL.iter().find(|type_| condition.type_ == type_.as_str())?;
        let is_true = condition.status == ConditionStatus::True.as_str();
        let reason = match type_ {
            // The administrator requested the drain, so it is no problem.
            PoolCondition::Ready if condition.reason == PoolReason::Draining.as_str() => return None,
            PoolCondition::Ready if condition.status == ConditionStatus::False.as_str() => EventReason::NotReady,
            PoolCondition::Overlap if is_true => EventReason::Overlap,
            PoolCondition::Exhausted if is_true => EventReason::Exhausted,
            PoolCondition::ExcessNodeAddresses if is_true => EventReason::ExcessNodeAddresses,
            PoolCondition::OverlapsCluster if is_true => EventReason::OverlapsCluster,
            PoolCondition::Conflict if is_true => EventReason::AddressConflict,
            _ => return None,
        };
        Some((reason.as_str(), condition))
    })
}

/// The conditions of a pool: always `Ready`, `Overlap` and `Exhausted`; `Drained` while it drains; the other temporary
/// ones while they are true.
fn desired_conditions(
    pool: &Pool,
    counts: &ByFamily<AddressCounts>,
    holders: Option<&PoolHolders>,
    conflicts: &Truncated<String>,
) -> Vec<DesiredCondition> {
    let mut findings = vec![
        (PoolCondition::Ready, check_ready(pool, counts)),
        (PoolCondition::Overlap, check_overlap(pool)),
        (PoolCondition::Exhausted, check_exhausted(counts)),
    ];
    findings.extend(holders.map(|holders| (PoolCondition::Drained, check_drained(holders))));
    if !conflicts.is_empty() {
        let message = format!(
            "these addresses are not assigned for some minutes, because other hosts on the LAN use them: {conflicts}; \
             find these hosts, or exclude the addresses (spec.exclude)"
        );
        findings.push((PoolCondition::Conflict, (ConditionStatus::True, PoolReason::AddressConflict, message)));
    }
    findings.extend(network_findings(pool));
    let observed_generation = pool.object.metadata.generation;
    let desired = |(type_, (status, reason, message)): (PoolCondition, Finding)| {
        DesiredCondition::new(type_.as_str(), status, reason.as_str(), message, observed_generation)
    };
    findings.into_iter().map(desired).collect()
}

/// The conditions that compare a pool with the addresses and networks of the cluster. Each exists only while it is
/// true.
fn network_findings(pool: &Pool) -> impl Iterator<Item = (PoolCondition, Finding)> {
    let off_subnet = pool.off_subnet.as_ref().map(|off| {
        let networks = if off.networks.is_empty() {
            "the nodes have no network of this family".to_owned()
        } else {
            format!("the nodes have {}", off.networks)
        };
        let message = format!(
            "no node has a network that contains {}: clients need a route to these addresses; {networks}",
            off.ranges
        );
        // Not an error: with a route, clients reach these addresses.
        (PoolCondition::OffSubnet, (ConditionStatus::True, PoolReason::OffSubnet, message))
    });
    let overlap = (!pool.cluster_use.is_empty()).then(|| {
        let message = format!(
            "the cluster itself uses these addresses: {}; remove them from spec.addresses, or exclude them \
             (spec.exclude)",
            pool.cluster_use
        );
        (PoolCondition::OverlapsCluster, (ConditionStatus::True, PoolReason::OverlapsCluster, message))
    });
    let excess = (!pool.excess.is_empty()).then(|| {
        let message = format!(
            "a node can withhold at most {MAX_WITHHELD} addresses from pools, so these addresses are assigned although \
             agents report them: {}; check the links of these nodes, or exclude the addresses (spec.exclude)",
            pool.excess
        );
        (PoolCondition::ExcessNodeAddresses, (ConditionStatus::True, PoolReason::ExcessNodeAddresses, message))
    });
    [off_subnet, overlap, excess].into_iter().flatten()
}

/// Status, reason and message of a condition.
type Finding = (ConditionStatus, PoolReason, String);

/// The message lists all problems. The reason belongs to the first problem.
fn check_ready(pool: &Pool, counts: &ByFamily<AddressCounts>) -> Finding {
    let problems = problems(pool, counts);
    let Some((reason, _)) = problems.first() else {
        let mut message = "Services can get addresses of this pool".to_owned();
        if !pool.occupied.is_empty() {
            message += &format!(", except those of nodes or gateways: {}", pool.occupied);
        }
        if !pool.unusable.is_empty() {
            message += &format!(", except the ends of the nodes' networks: {}", pool.unusable);
        }
        return (ConditionStatus::True, PoolReason::Ready, message);
    };
    let assigns_some = !pool.object.spec.drain && has_automatic(counts);
    let mut message = problems.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ");
    match reason {
        PoolReason::InvalidRange if assigns_some => message += "; Services can get its other addresses",
        PoolReason::InvalidSelector if assigns_some => {
            message += "; Services that match the other selectors can get addresses"
        }
        _ => {}
    }
    (ConditionStatus::False, *reason, message)
}

/// The problems that keep a pool from being ready, each with a reason and a sentence.
fn problems(pool: &Pool, counts: &ByFamily<AddressCounts>) -> Vec<(PoolReason, String)> {
    let mut problems: Vec<(PoolReason, String)> = Vec::new();
    if !pool.invalid.is_empty() {
        problems.push((PoolReason::InvalidRange, pool.invalid.to_string()));
    }
    if !pool.invalid_exclude.is_empty() {
        let text = format!(
            "spec.exclude: {}; until this is corrected, the pool assigns only addresses that are requested by name",
            pool.invalid_exclude
        );
        problems.push((PoolReason::InvalidRange, text));
    }
    if !pool.invalid_selectors.is_empty() {
        problems.push((PoolReason::InvalidSelector, pool.invalid_selectors.to_string()));
    }
    if pool.ranges.is_empty() && !pool.overlaps.is_empty() {
        problems.push((PoolReason::Overlap, format!("all its addresses belong to older pools: {}", pool.overlaps)));
    } else if FAMILIES.iter().all(|family| counts[*family].size == 0) {
        problems.push((PoolReason::NoAddresses, "it has no addresses: add some to spec.addresses".to_owned()));
    } else if pool.invalid_exclude.is_empty() && !has_automatic(counts) {
        let mut text = "none of its addresses can be assigned without a request by name".to_owned();
        if !pool.occupied.is_empty() {
            text += &format!("; nodes or gateways have these: {}", pool.occupied);
        }
        if !pool.unusable.is_empty() {
            text += &format!("; these are ends of the nodes' networks: {}", pool.unusable);
        }
        problems.push((PoolReason::NoAddresses, text));
    }
    if pool.object.spec.drain {
        problems.push((PoolReason::Draining, "spec.drain is set, so its addresses are no longer assigned".to_owned()));
    }
    problems
}

/// Whether the pool has addresses that it assigns automatically, used or not.
fn has_automatic(counts: &ByFamily<AddressCounts>) -> bool {
    counts.v4.automatic > 0 || counts.v6.automatic > 0
}

fn check_overlap(pool: &Pool) -> Finding {
    if pool.overlaps.is_empty() {
        return (ConditionStatus::False, PoolReason::NoOverlap, "no older pool has any of its addresses".to_owned());
    }
    let message =
        format!("these addresses belong to an older pool: {}; this pool assigns only its others", pool.overlaps);
    (ConditionStatus::True, PoolReason::Overlap, message)
}

/// A pool is exhausted only in families that it assigns automatically.
fn check_exhausted(counts: &ByFamily<AddressCounts>) -> Finding {
    let served: Vec<Family> = FAMILIES.into_iter().filter(|family| counts[*family].automatic > 0).collect();
    let exhausted: Vec<_> = served.iter().filter(|family| counts[**family].available() == 0).collect();
    match (served.as_slice(), exhausted.as_slice()) {
        ([], _) => (ConditionStatus::False, PoolReason::NoAddresses, "it has no addresses to assign".to_owned()),
        (_, []) => (ConditionStatus::False, PoolReason::NotExhausted, "it has free addresses".to_owned()),
        (served, exhausted) => {
            let families = exhausted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and no ");
            let rest = if exhausted.len() < served.len() { "; the other family has free addresses" } else { "" };
            let message =
                format!("no {families} address is free{rest}: add addresses, or create another IPAddressPool");
            (ConditionStatus::True, PoolReason::Exhausted, message)
        }
    }
}

fn check_drained(holders: &PoolHolders) -> Finding {
    let (services, unreadable) = (holders.services.len(), holders.unreadable);
    if services + unreadable == 0 {
        return (
            ConditionStatus::True,
            PoolReason::Drained,
            "no Service has an address of this pool: the pool can be deleted".to_owned(),
        );
    }
    let mut held = Vec::new();
    if services > 0 {
        let named: Truncated<_> = holders.services.iter().collect();
        let have = if services == 1 { "has" } else { "have" };
        held.push(format!("{} still {have} addresses of this pool: {named}", plural(services, "Service")));
    }
    if unreadable > 0 {
        held.push(format!("{} of this pool can't be read", plural(unreadable, "LoadBalancerIP")));
    }
    let message = format!("{}; move the Services: request another pool in landfall.dev/address-pool", held.join("; "));
    (ConditionStatus::False, PoolReason::Held, message)
}

/// `1 Service`, `2 Services`.
fn plural(number: usize, thing: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{number} {thing}{}", if number == 1 { "" } else { "s" }))
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of pool {}", self.range, self.pool)
    }
}

impl fmt::Display for OccupiedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.address, self.occupant)
    }
}

#[cfg(test)]
mod tests;
