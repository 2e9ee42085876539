//! Which pool each address belongs to, and which addresses a pool assigns automatically.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crds::Range;
use crds::service::Family;

use crate::pools::intervals::{ByFamily, Intervals};
use crate::pools::numbering::Numbering;
use crate::pools::occupied::Occupants;

/// Which pool each address belongs to. [`crate::pools::Pools`] and [`crate::pools::free::Free`] share one map, which
/// never changes.
#[derive(Debug, Default)]
pub(crate) struct AddressMap {
    /// Disjoint ranges by their first address.
    ranges: BTreeMap<IpAddr, OwnedRange>,
    /// By pool, oldest first.
    pub(crate) spaces: Vec<PoolSpace>,
    pub(super) occupied: Occupants,
}

#[derive(Clone, Copy, Debug)]
struct OwnedRange {
    last: IpAddr,
    pool: usize,
}

/// The addresses of one pool, as numbers.
#[derive(Debug)]
pub(crate) struct PoolSpace {
    /// How the addresses of `automatic` are numbered.
    pub(crate) numbering: Numbering,
    pub(super) all: ByFamily<Intervals>,
    /// The addresses that a Service can get without requesting one by name.
    pub(crate) automatic: ByFamily<Intervals>,
    /// Duration of the cool-down of the addresses.
    pub(crate) reuse_after: Duration,
}

impl AddressMap {
    pub(super) fn new(occupied: Occupants) -> Self {
        Self { occupied, ..Self::default() }
    }

    /// Adds the ranges of the next pool. They must not overlap with those of other pools.
    pub(super) fn insert(&mut self, pool: usize, ranges: &[Range]) {
        self.ranges.extend(ranges.iter().map(|range| (range.first(), OwnedRange { last: range.last(), pool })));
    }

    /// The pool that `address` belongs to.
    pub(super) fn pool_of(&self, address: IpAddr) -> Option<usize> {
        let (first, owned) = self.ranges.range(..=address).next_back()?;
        Range::new(*first, owned.last)?.contains(address).then_some(owned.pool)
    }

    /// The pool that `address` belongs to, and the number of the address there if the pool assigns it automatically.
    pub(crate) fn locate(&self, address: IpAddr) -> Option<(usize, Option<u128>)> {
        let pool = self.pool_of(address)?;
        let space = &self.spaces[pool];
        let number = space.numbering.number(address);
        Some((pool, number.filter(|number| space.automatic[Family::from(address)].contains(*number))))
    }

    /// The parts of `range` that belong to pools already, in order, each with its pool.
    pub(super) fn overlaps(&self, range: Range) -> impl Iterator<Item = (Range, usize)> {
        let before = self.ranges.range(..range.first()).next_back();
        before
            .into_iter()
            .chain(self.ranges.range(range.first()..=range.last()))
            .filter_map(move |(first, owned)| Some((Range::new(*first, owned.last)?.intersection(&range)?, owned.pool)))
    }
}

impl PoolSpace {
    /// The number of addresses.
    pub(crate) fn size(&self, family: Family) -> u128 {
        self.all[family].len()
    }

    /// The number of addresses that are not assigned automatically.
    pub(crate) fn not_automatic(&self, family: Family) -> u128 {
        let automatic = &self.automatic[family];
        if automatic.is_empty() { self.size(family) } else { self.all[family].len_without(automatic) }
    }
}
