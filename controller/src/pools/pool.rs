//! One pool: the addresses that belong to it, and the mistakes in its spec.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::address::InvalidRange;
use crds::ip_address_pool::AddressRange;
use crds::service::Family;
use crds::{IPAddressPool, Labels, Range};
use jiff::Timestamp;

use crate::pools::address_map::{AddressMap, PoolSpace};
use crate::pools::intervals::{ByFamily, Intervals, family_of, number, ranges, union};
use crate::pools::numbering::Numbering;
use crate::pools::occupied::Occupant;
use crate::pools::selector::PoolSelector;
use crate::pools::truncated::Truncated;

/// One pool: the addresses that belong to it, and the mistakes in its spec.
#[derive(Debug)]
pub struct Pool {
    pub object: Arc<IPAddressPool>,
    /// The ranges of addresses that belong to the pool, in order, including excluded addresses.
    pub ranges: Vec<Range>,
    /// Addresses that are assigned on request only: ends of a CIDR that no range of the pool contains inside. See
    /// [`crate::pools::Withheld::NetworkEnd`].
    pub network_ends: BTreeSet<IpAddr>,
    pub invalid: Truncated<InvalidRange>,
    /// Unreadable entries of `exclude`. While there is one, the pool assigns only addresses that are requested by name.
    pub invalid_exclude: Truncated<InvalidRange>,
    /// A sentence for each unreadable selector.
    pub invalid_selectors: Truncated<String>,
    /// Addresses in its spec that belong to an older pool.
    pub overlaps: Truncated<Overlap>,
    /// Addresses that it cannot assign because nodes or gateways have them.
    pub occupied: Truncated<OccupiedAddress>,
    /// Its position among the pools, oldest first.
    pub(crate) index: usize,
    pub(super) selector: Option<PoolSelector>,
    pub(super) excluded: ByFamily<Intervals>,
}

/// Addresses that belong to another pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The pool that the addresses belong to.
    pub pool: String,
    pub range: Range,
}

/// An address that a node or a gateway has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OccupiedAddress {
    pub address: IpAddr,
    pub occupant: Occupant,
}

impl Pool {
    /// Builds a pool from the addresses of its spec that do not belong to `older` pools, and adds it to `map`.
    pub(super) fn new(object: Arc<IPAddressPool>, map: &mut AddressMap, older: &[Pool]) -> Self {
        let index = older.len();
        let spec = &object.spec;
        let (parsed, invalid) = parse_ranges(&spec.addresses);
        let (excluded, invalid_exclude) = parse_ranges(&spec.exclude);
        let excluded = union(excluded.iter().map(|parsed| parsed.range));
        let (all, overlaps) = without_older(union(parsed.iter().map(|parsed| parsed.range)), map, older);
        let ranges: Vec<_> = ranges(&all).collect();
        map.insert(index, &ranges);
        let network_ends = network_ends(&parsed, &all);
        let occupied: Vec<_> = ranges.iter().flat_map(|range| map.occupied.in_range(*range)).collect();

        let numbering = if spec.avoid_buggy_ips { Numbering::WithoutBuggy } else { Numbering::All };
        let automatic = if invalid_exclude.is_empty() {
            let single = |address: IpAddr| Range::new(address, address);
            let withheld = self::ranges(&excluded)
                .chain(network_ends.iter().filter_map(|end| single(*end)))
                .chain(occupied.iter().filter_map(|(address, _)| single(*address)));
            automatic_numbers(numbering, &ranges, withheld)
        } else {
            ByFamily::default()
        };
        let occupied = occupied
            .into_iter()
            .filter(|(address, _)| !excluded[Family::from(*address)].contains(number(*address)))
            .map(|(address, occupant)| OccupiedAddress { address, occupant: occupant.clone() })
            .collect();
        map.spaces.push(PoolSpace { numbering, all, automatic, reuse_after: spec.reuse_after() });
        let (selector, invalid_selectors) = spec.service_allocation.as_ref().map(PoolSelector::new).unzip();
        Self {
            ranges,
            network_ends,
            invalid,
            invalid_exclude,
            invalid_selectors: invalid_selectors.into_iter().flatten().collect(),
            overlaps,
            occupied,
            index,
            selector,
            excluded,
            object,
        }
    }

    pub fn name(&self) -> &str {
        name(&self.object)
    }

    /// Whether a Service with these labels, in this namespace, may have addresses of the pool.
    pub fn admits(&self, namespace: &str, namespace_labels: Option<&Labels>, service_labels: &Labels) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.admits(namespace, namespace_labels, service_labels))
    }

    /// Whether it has addresses of that family, free or not.
    pub fn has_family(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| family_of(*range) == family)
    }
}

pub(super) fn name(pool: &IPAddressPool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn creation_time(pool: &IPAddressPool) -> Timestamp {
    pool.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// One entry of `addresses` or `exclude`.
struct ParsedRange {
    range: Range,
    /// Whether this is a CIDR of a network with special ends. The CIDR of a host (/32, /128) or of a point-to-point
    /// link (/31, RFC 3021; /127, RFC 6164) has none.
    is_network: bool,
}

impl ParsedRange {
    /// The ends that are assigned on request only: first and last address in IPv4, and only the first one in IPv6,
    /// which has no broadcast address.
    fn ends(&self) -> impl Iterator<Item = IpAddr> {
        let ends = [Some(self.range.first()), self.range.is_ipv4().then_some(self.range.last())];
        ends.into_iter().flatten().filter(|_| self.is_network)
    }

    /// The range without those ends.
    fn without_ends(&self) -> Option<Range> {
        if !self.is_network {
            return Some(self.range);
        }
        let first = crds::address::next(self.range.first())?;
        let last = if self.range.is_ipv4() { crds::address::previous(self.range.last())? } else { self.range.last() };
        Range::new(first, last)
    }
}

/// The readable ranges, and the errors of the others.
fn parse_ranges(texts: &[AddressRange]) -> (Vec<ParsedRange>, Truncated<InvalidRange>) {
    let (mut parsed, mut invalid) = (Vec::new(), Truncated::default());
    for text in texts {
        match text.parse() {
            Ok(range) => parsed.push(ParsedRange { range, is_network: text.0.contains('/') && range.size() > 2 }),
            Err(error) => invalid.push(error),
        }
    }
    (parsed, invalid)
}

/// The part of `named` that belongs to no older pool, and the parts that do.
fn without_older(
    named: ByFamily<Intervals>,
    map: &AddressMap,
    older: &[Pool],
) -> (ByFamily<Intervals>, Truncated<Overlap>) {
    let mut all = named.clone();
    let mut overlaps = Truncated::default();
    for range in ranges(&named) {
        for (taken, owner) in map.overlaps(range) {
            all[family_of(taken)].remove(number(taken.first()), number(taken.last()));
            overlaps.push(Overlap { pool: older[owner].name().to_owned(), range: taken });
        }
    }
    (all, overlaps)
}

/// The addresses of a pool that are an end of a CIDR, and that no range of the pool contains inside.
fn network_ends(parsed: &[ParsedRange], all: &ByFamily<Intervals>) -> BTreeSet<IpAddr> {
    let inside = union(parsed.iter().filter_map(ParsedRange::without_ends));
    let contains = |set: &ByFamily<Intervals>, end: IpAddr| set[Family::from(end)].contains(number(end));
    parsed.iter().flat_map(ParsedRange::ends).filter(|end| contains(all, *end) && !contains(&inside, *end)).collect()
}

/// The numbers of the addresses in `ranges` that are not withheld.
fn automatic_numbers(
    numbering: Numbering,
    ranges: &[Range],
    withheld: impl Iterator<Item = Range>,
) -> ByFamily<Intervals> {
    let mut automatic = ByFamily::<Intervals>::default();
    for range in ranges {
        if let Some((first, last)) = numbering.numbers(*range) {
            automatic[family_of(*range)].insert(first, last);
        }
    }
    for range in withheld {
        if let Some((first, last)) = numbering.numbers(range) {
            automatic[family_of(range)].remove(first, last);
        }
    }
    automatic
}
