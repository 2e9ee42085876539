//! Which address is given to who asks for any: the first that is free, of the oldest pool that has one.
//!
//! [`Pools`] and the addresses in use → one address after the other. All addresses of a plan are taken in one pass over
//! those in use, however large the pools are.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::iter::Peekable;
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Range, Record, address};

use crate::pools::{Pool, Pools};
use crate::snapshot::Snapshot;

/// The free addresses, from the first on.
pub(crate) struct Free<'a> {
    addresses: &'a BTreeMap<IpAddr, Arc<Record>>,
    unreadable: &'a BTreeSet<IpAddr>,
    pools: &'a Pools,
    /// Those that this plan gives to who asks for them by name.
    taken: BTreeSet<IpAddr>,
    /// The ranges that are not used up yet, the next one last.
    ranges: Vec<(&'a Pool, Range)>,
    current: Option<Current<'a>>,
}

/// Where the search is.
struct Current<'a> {
    pool: &'a Pool,
    last: IpAddr,
    next: Option<IpAddr>,
    /// Addresses in use, from `next` on.
    used: Peekable<btree_map::Range<'a, IpAddr, Arc<Record>>>,
}

impl<'a> Free<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, pools: &'a Pools) -> Self {
        let automatic = pools.iter().filter(|pool| pool.object.spec.auto_assign);
        let mut ranges: Vec<_> = automatic.flat_map(|pool| pool.usable().map(move |range| (pool, range))).collect();
        ranges.reverse();
        Self {
            addresses: &snapshot.addresses,
            unreadable: &snapshot.unreadable.addresses,
            pools,
            taken: BTreeSet::new(),
            ranges,
            current: None,
        }
    }

    /// Takes this very address. Nobody gets it any more.
    pub(crate) fn take(&mut self, address: IpAddr) {
        self.taken.insert(address);
    }

    /// Takes the next free address, and names its pool; `None` if there is none.
    pub(crate) fn take_next(&mut self) -> Option<(IpAddr, &'a Pool)> {
        loop {
            if self.current.is_none() {
                let (pool, range) = self.ranges.pop()?;
                let used = self.addresses.range(range.first()..=range.last()).peekable();
                self.current = Some(Current { pool, last: range.last(), next: Some(range.first()), used });
            }
            let Some(current) = &mut self.current else { continue };
            let Some(address) = current.next.filter(|address| *address <= current.last) else {
                self.current = None;
                continue;
            };
            current.next = address::next(address);
            if current.used.next_if(|(used, _)| **used == address).is_some() {
                continue;
            }
            let pool = current.pool;
            let withheld = pool.withheld.contains(&address)
                || self.unreadable.contains(&address)
                || self.taken.contains(&address)
                || self.pools.node_at(address).is_some();
            if !withheld {
                return Some((address, pool));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{by_name, ip, node, pool, record};

    #[test]
    fn free_addresses_come_in_order_without_those_that_are_not_to_be_given() {
        let mut by_hand = pool("hand", 1, &["192.0.2.200-192.0.2.201"]);
        Arc::make_mut(&mut by_hand).spec.auto_assign = false;
        let mut snapshot = Snapshot {
            pools: by_name([
                pool("b", 2, &["192.0.2.0/29", "192.0.2.20-192.0.2.20"]),
                pool("a", 3, &["192.0.2.9-192.0.2.9"]),
                by_hand,
            ]),
            addresses: [record("192.0.2.2", "b", &[]), record("192.0.2.3", "b", &[])].into(),
            ..Snapshot::default()
        };
        snapshot.unreadable.addresses.insert(ip("192.0.2.5"));
        let nodes = [node("n1", "192.0.2.6")];
        let pools = Pools::new(snapshot.pools.values(), &nodes);
        let mut free = Free::new(&snapshot, &pools);
        free.take(ip("192.0.2.4"));
        let given: Vec<_> = std::iter::from_fn(|| free.take_next()).map(|(a, p)| (a, p.name())).collect();
        assert_eq!(given, [(ip("192.0.2.1"), "b"), (ip("192.0.2.20"), "b"), (ip("192.0.2.9"), "a")]);
    }

    #[test]
    fn the_last_address_of_all_can_be_given_and_a_huge_pool_costs_nothing() {
        let snapshot = Snapshot {
            pools: by_name([
                pool("all", 1, &["0.0.0.0/0", "::/0"]),
                pool("end", 0, &["255.255.255.255-255.255.255.255"]),
            ]),
            ..Snapshot::default()
        };
        let pools = Pools::new(snapshot.pools.values(), []);
        let mut free = Free::new(&snapshot, &pools);
        let given: Vec<_> = std::iter::from_fn(|| free.take_next()).take(2).map(|(a, p)| (a, p.name())).collect();
        assert_eq!(given, [(ip("255.255.255.255"), "end"), (ip("0.0.0.1"), "all")]);
    }
}
