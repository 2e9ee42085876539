//! What is said of a pool: how many addresses it has left, and what is wrong with it.
//!
//! A pool and all pools with the addresses in use → the status that the pool should have.

use std::net::IpAddr;

use crds::condition::{Desired, Status};
use crds::{IPAddressPoolStatus, Range};

use crate::pools::{Pool, Pools};
use crate::refusal::listed;
use crate::snapshot::Snapshot;

/// The status that `pool` should have. Conditions of others in it stay.
pub(crate) fn status(pool: &Pool, pools: &Pools, snapshot: &Snapshot) -> IPAddressPoolStatus {
    let old = pool.object.status.clone().unwrap_or_default();
    let Counts { assigned, available } = counts(pool, pools, snapshot);
    let mut conditions = old.conditions;
    for desired in conditions_of(pool, pools) {
        if !desired.is_in(&conditions) {
            conditions = desired.set_in(&conditions, snapshot.now);
        }
    }
    let written = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    IPAddressPoolStatus {
        assigned_ipv4: written(assigned),
        available_ipv4: written(available),
        conditions,
        ..IPAddressPoolStatus::default()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Counts {
    /// Addresses that somebody has.
    assigned: u128,
    /// Addresses that whoever takes any can still get, were the pool an automatic one.
    available: u128,
}

fn counts(pool: &Pool, pools: &Pools, snapshot: &Snapshot) -> Counts {
    let is_used =
        |address: &IpAddr| snapshot.addresses.contains_key(address) || snapshot.unreadable.addresses.contains(address);
    let used = |range: Range| {
        let (all, unreadable) = (&snapshot.addresses, &snapshot.unreadable.addresses);
        let ends = range.first()..=range.last();
        let only_unreadable = unreadable.range(ends.clone()).filter(|address| !all.contains_key(address));
        (all.range(ends).count() + only_unreadable.count()) as u128
    };
    let assigned = pool.ranges.iter().map(|range| used(*range)).sum();
    let usable: u128 = pool.usable().map(|range| range.size() - used(range)).sum();
    let withheld = pool.withheld.iter().filter(|address| address.is_ipv4() && !is_used(address)).count();
    let nodes = pool.usable().flat_map(|range| pools.nodes_in(range));
    let nodes = nodes.filter(|(address, _)| !is_used(address) && !pool.withheld.contains(address)).count();
    Counts { assigned, available: usable - (withheld + nodes) as u128 }
}

/// `Ready` and `Overlap`.
pub(crate) fn conditions_of(pool: &Pool, pools: &Pools) -> [Desired; 2] {
    let observed_generation = pool.object.metadata.generation;
    let desired = |type_, status, reason, message| Desired { type_, status, reason, message, observed_generation };
    let overlaps: Vec<_> = pool.overlaps.iter().map(|o| format!("{} of pool {}", o.range, o.pool)).collect();
    let left_out: Vec<_> = pool
        .usable()
        .flat_map(|range| pools.nodes_in(range))
        .map(|(address, node)| format!("{address} of node {node}"))
        .collect();
    let ready = if !pool.invalid.is_empty() {
        let message = format!("{}; its other addresses are given out", listed(&pool.invalid));
        desired("Ready", Status::False, "InvalidRange", message)
    } else if pool.ranges.is_empty() {
        let message = format!("all its addresses belong to older pools: {}", listed(&overlaps));
        desired("Ready", Status::False, "Overlap", message)
    } else if pool.usable().next().is_none() {
        let message = "it has only IPv6 addresses, which are not given out yet: add IPv4 addresses".to_owned();
        desired("Ready", Status::False, "IPv6NotSupported", message)
    } else {
        let mut message = "its addresses are given out".to_owned();
        if pool.has_ipv6() {
            message += "; those of IPv6 are not yet";
        }
        if !left_out.is_empty() {
            message += &format!("; left out, because nodes have them: {}", listed(&left_out));
        }
        desired("Ready", Status::True, "Ready", message)
    };
    let overlap = if overlaps.is_empty() {
        desired("Overlap", Status::False, "NoOverlap", "no older pool has any of its addresses".to_owned())
    } else {
        let message =
            format!("these addresses belong to an older pool, and this one serves the others: {}", listed(&overlaps));
        desired("Overlap", Status::True, "Overlap", message)
    };
    [ready, overlap]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{by_name, ip, node, pool, record};
    use crds::IPAddressPool;
    use std::sync::Arc;

    fn statuses(snapshot: &Snapshot) -> Vec<(String, i64, i64, Vec<String>)> {
        let pools = Pools::new(snapshot.pools.values(), snapshot.nodes.values());
        let line = |pool: &Pool| {
            let status = status(pool, &pools, snapshot);
            let conditions =
                status.conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message));
            (pool.name().to_owned(), status.assigned_ipv4, status.available_ipv4, conditions.collect())
        };
        pools.iter().map(line).collect()
    }

    fn snapshot<const N: usize>(pools: [Arc<IPAddressPool>; N]) -> Snapshot {
        Snapshot { pools: by_name(pools), ..Snapshot::default() }
    }

    const NO_OVERLAP: &str = "Overlap=False NoOverlap: no older pool has any of its addresses";

    #[test]
    fn a_pool_counts_what_somebody_has_and_what_can_still_be_had() {
        let mut all = snapshot([pool("lan", 1, &["192.0.2.0/28"])]);
        all.addresses = [record("192.0.2.0", "lan", &[]), record("192.0.2.3", "gone", &[])].into();
        all.unreadable.addresses.insert(ip("192.0.2.4"));
        all.nodes = [("n1".into(), node("n1", "192.0.2.5")), ("n2".into(), node("n2", "192.0.2.15"))].into();
        // 16, of which three are somebody's, one is the broadcast address and a node's at once, and one a node's.
        let ready = "Ready=True Ready: its addresses are given out; left out, because nodes have them: \
                     192.0.2.5 of node n1, 192.0.2.15 of node n2";
        assert_eq!(statuses(&all), [("lan".into(), 3, 11, vec![ready.to_owned(), NO_OVERLAP.to_owned()])]);
    }

    #[test]
    fn what_is_wrong_with_a_pool_is_said_with_the_addresses() {
        let all = snapshot([
            pool("lan", 1, &["192.0.2.0-192.0.2.9"]),
            pool("part", 2, &["192.0.2.9-192.0.2.10", "::1-::2"]),
            pool("none", 3, &["192.0.2.1-192.0.2.2"]),
            pool("bad", 4, &["nonsense", "198.51.100.0/31"]),
            pool("six", 5, &["2001:db8::/64"]),
        ]);
        let overlap = |text: &str| {
            format!(
                "Overlap=True Overlap: these addresses belong to an older pool, and this one serves the others: {text}"
            )
        };
        let expected = [
            ("lan", 0, 10, "Ready=True Ready: its addresses are given out".into(), NO_OVERLAP.into()),
            (
                "part",
                0,
                1,
                "Ready=True Ready: its addresses are given out; those of IPv6 are not yet".into(),
                overlap("192.0.2.9-192.0.2.9 of pool lan"),
            ),
            (
                "none",
                0,
                0,
                "Ready=False Overlap: all its addresses belong to older pools: 192.0.2.1-192.0.2.2 of pool lan".to_owned(),
                overlap("192.0.2.1-192.0.2.2 of pool lan"),
            ),
            (
                "bad",
                0,
                2,
                "Ready=False InvalidRange: \"nonsense\" is neither a CIDR such as 192.0.2.0/28 nor a range such as \
                 192.0.2.10-192.0.2.20 nor an address; its other addresses are given out"
                    .into(),
                NO_OVERLAP.into(),
            ),
            (
                "six",
                0,
                0,
                "Ready=False IPv6NotSupported: it has only IPv6 addresses, which are not given out yet: add IPv4 addresses"
                    .into(),
                NO_OVERLAP.into(),
            ),
        ];
        assert_eq!(
            statuses(&all),
            expected.map(|(name, a, b, ready, over)| (name.to_owned(), a, b, vec![ready, over]))
        );
    }
}
