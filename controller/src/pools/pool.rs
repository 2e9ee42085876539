//! The pools: which pool an address belongs to, which addresses are withheld, and the mistakes in the spec of a pool.
//!
//! IPAddressPools and [`Occupied`] → [`Pools`], which contains a [`Pool`] for each of them. If pools share addresses,
//! these belong to the older pool (by creation time, then name), and the other pool serves the rest. An unreadable
//! range is reported, and the other ranges serve. The cost does not depend on the number of addresses: a range is
//! stored as its first and its last address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::address::InvalidRange;
use crds::ip_address_pool::AddressRange;
use crds::service::Family;
use crds::{IPAddressPool, Labels, Range};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::pools::address_map::{AddressMap, PoolSpace};
use crate::pools::cluster_range::ClusterRange;
use crate::pools::intervals::{ByFamily, Intervals, family_of, number, ranges, union};
use crate::pools::numbering::Numbering;
use crate::pools::occupied::{Occupant, Occupied};
use crate::pools::selector::PoolSelector;
use crate::pools::truncated::Truncated;

mod cluster_use;

/// All pools. No two have an address in common.
#[derive(Debug, Default)]
pub struct Pools {
    /// Oldest first.
    pools: Vec<Pool>,
    by_name: BTreeMap<String, usize>,
    /// The pools that assign addresses automatically, in the order in which they are tried.
    search_order: Vec<usize>,
    map: Arc<AddressMap>,
}

/// Why an address is not assigned automatically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld<'a> {
    /// Its pool excludes it. It is never assigned.
    Excluded,
    /// Its pool avoids addresses that end in .0 or .255. It is never assigned.
    Buggy,
    /// A node or a gateway has it. It is never assigned.
    Occupied(&'a Occupant),
    /// It is the network or broadcast address, or the subnet-router anycast address, of this network of nodes. It is
    /// never assigned.
    Unusable(IpNet),
    /// It is an end of a CIDR. In IPv4, a network of this size has its network address or broadcast address there; in
    /// IPv6, its subnet-router anycast address (RFC 4291 §2.6.1). It is assigned only on request.
    NetworkEnd,
}

impl Pools {
    pub fn new<'a>(pools: impl IntoIterator<Item = &'a Arc<IPAddressPool>>, occupied: &Occupied) -> Self {
        let mut oldest_first: Vec<_> = pools.into_iter().collect();
        oldest_first.sort_by_cached_key(|pool| (creation_time(pool), name(pool).to_owned()));
        let parsed = || oldest_first.iter().flat_map(|pool| parse_ranges(&pool.spec.addresses).0);
        let occupants = occupied.occupants(|| union(parsed().map(|parsed| parsed.range)));
        let mut map = AddressMap::new(occupants);
        let mut pools = Vec::<Pool>::with_capacity(oldest_first.len());
        for object in oldest_first {
            let pool = Pool::new(object.clone(), &mut map, &pools, occupied.networks());
            pools.push(pool);
        }
        let by_name = pools.iter().map(|pool| (pool.name().to_owned(), pool.index)).collect();
        let is_automatic = |pool: &&Pool| pool.object.spec.auto_assign && !pool.object.spec.drain;
        let mut search_order: Vec<_> = pools.iter().filter(is_automatic).map(|pool| pool.index).collect();
        // Stable: with equal keys the older pool stays first.
        search_order.sort_by_key(|index| {
            let selector = pools[*index].selector.as_ref();
            (selector.is_none(), selector.map(|selector| selector.priority))
        });
        Self { pools, by_name, search_order, map: Arc::new(map) }
    }

    /// Replaces the object of a pool if only its status differs. Otherwise returns `false`, and the pools must be built
    /// again.
    pub fn replace_object(&mut self, object: &Arc<IPAddressPool>) -> bool {
        let Some(pool) = self.by_name.get(name(object)).map(|index| &mut self.pools[*index]) else { return false };
        let is_same = pool.object.spec == object.spec
            && creation_time(&pool.object) == creation_time(object)
            && pool.object.metadata.uid == object.metadata.uid;
        if is_same {
            pool.object = object.clone();
        }
        is_same
    }

    /// The pool that `address` belongs to.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.map.pool_of(address).map(|index| &self.pools[index])
    }

    pub fn get(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name).map(|index| &self.pools[*index])
    }

    /// Why `address` is not assigned automatically. If a node or gateway has the address, or if it is an end of a
    /// network of nodes, this reason comes before all others.
    pub fn withheld(&self, address: IpAddr) -> Option<Withheld<'_>> {
        if let Some(occupant) = self.map.occupied.get(address) {
            return Some(match occupant {
                Occupant::Network(network) => Withheld::Unusable(*network),
                occupant => Withheld::Occupied(occupant),
            });
        }
        let pool = self.pool_of(address)?;
        if pool.is_excluded(address) {
            return Some(Withheld::Excluded);
        }
        if self.map.spaces[pool.index].numbering.number(address).is_none() {
            return Some(Withheld::Buggy);
        }
        pool.network_ends.contains(&address).then_some(Withheld::NetworkEnd)
    }

    /// The pool of an address that a Service can get without requesting it by name.
    pub(crate) fn pool_of_open(&self, address: IpAddr) -> Option<usize> {
        let (pool, number) = self.map.locate(address)?;
        number.map(|_| pool)
    }

    /// The pools that assign addresses automatically, in the order in which they are tried.
    pub fn automatic(&self) -> impl Iterator<Item = &Pool> {
        self.search_order.iter().map(|index| &self.pools[*index])
    }

    /// All pools, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    pub(crate) fn map(&self) -> &Arc<AddressMap> {
        &self.map
    }
}

/// One pool: the addresses that belong to it, and the mistakes in its spec.
#[derive(Debug)]
pub struct Pool {
    pub object: Arc<IPAddressPool>,
    /// The ranges of addresses that belong to the pool, in order, including excluded addresses.
    pub ranges: Vec<Range>,
    /// Ends of a CIDR, unless they are inner addresses of another range. They are assigned only on request: see
    /// [`Withheld::NetworkEnd`].
    pub network_ends: BTreeSet<IpAddr>,
    pub invalid: Truncated<InvalidRange>,
    /// Unreadable entries of `exclude`. If there are any, the pool assigns only addresses that are requested by name.
    pub invalid_exclude: Truncated<InvalidRange>,
    /// A sentence for each unreadable selector.
    pub invalid_selectors: Truncated<String>,
    /// Addresses in its spec that belong to an older pool.
    pub overlaps: Truncated<Overlap>,
    /// Addresses that it cannot assign because nodes or gateways have them.
    pub occupied: Truncated<OccupiedAddress>,
    /// Addresses that it cannot assign because they are ends of networks of nodes.
    pub unusable: Truncated<OccupiedAddress>,
    /// Addresses that agents report as occupied beyond their limit. The pool assigns them.
    pub excess: Truncated<OccupiedAddress>,
    /// Its addresses that no network of a node contains. `None` if there are none, or if no network is known.
    pub off_subnet: Option<OffSubnet>,
    /// Its addresses that the cluster uses for nodes, pods or ClusterIPs: see [`Pools::set_cluster_use`].
    pub cluster_use: Truncated<ClusterRange>,
    /// Its position among the pools, oldest first.
    pub(crate) index: usize,
    selector: Option<PoolSelector>,
    excluded: ByFamily<Intervals>,
    /// Its addresses that it does not exclude.
    assignable: ByFamily<Intervals>,
}

/// Addresses that belong to another pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The pool that the addresses belong to.
    pub pool: String,
    pub range: Range,
}

/// Addresses of a pool that no network of a node contains, and the networks of the same families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffSubnet {
    pub ranges: Truncated<Range>,
    pub networks: Truncated<IpNet>,
}

/// An address that a node or a gateway has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OccupiedAddress {
    pub address: IpAddr,
    pub occupant: Occupant,
}

impl Pool {
    /// Builds a pool from the addresses of its spec that do not belong to `older` pools, and adds it to `map`.
    fn new(object: Arc<IPAddressPool>, map: &mut AddressMap, older: &[Pool], networks: &BTreeSet<IpNet>) -> Self {
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
        let assignable = subtract(&all, self::ranges(&excluded));
        let is_assignable =
            |(address, _): &(IpAddr, &Occupant)| assignable[Family::from(*address)].contains(number(*address));
        let occupied_address =
            |(address, occupant): (_, &Occupant)| OccupiedAddress { address, occupant: occupant.clone() };
        let is_end = |(_, occupant): &(IpAddr, &Occupant)| matches!(occupant, Occupant::Network(_));
        let (unusable, occupied): (Vec<_>, Vec<_>) = occupied.into_iter().filter(is_assignable).partition(is_end);
        let unusable = unusable.into_iter().map(occupied_address).collect();
        let occupied = occupied.into_iter().map(occupied_address).collect();
        let excess = ranges.iter().flat_map(|range| map.occupied.excess_in(*range));
        let excess = excess.filter(is_assignable).map(occupied_address).collect();
        let off_subnet = off_subnet(&assignable, networks);
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
            unusable,
            excess,
            off_subnet,
            cluster_use: Truncated::default(),
            index,
            selector,
            excluded,
            assignable,
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

    /// Whether the labels of this namespace decide if the pool admits a Service with these labels.
    pub(crate) fn needs_namespace_labels(&self, namespace: &str, service_labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.needs_namespace_labels(namespace, service_labels))
    }

    /// Whether the pool excludes this address.
    fn is_excluded(&self, address: IpAddr) -> bool {
        self.excluded[Family::from(address)].contains(number(address))
    }

    /// Whether it has addresses of that family, free or not.
    pub fn has_family(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| family_of(*range) == family)
    }
}

fn name(pool: &IPAddressPool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}

fn creation_time(pool: &IPAddressPool) -> Timestamp {
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
    /// The ends that are assigned on request only: first and last address in IPv4, and the first address in IPv6. (IPv6
    /// has no broadcast address.)
    fn ends(&self) -> impl Iterator<Item = IpAddr> {
        let ends = [Some(self.range.first()), self.range.is_ipv4().then_some(self.range.last())];
        ends.into_iter().flatten().filter(|_| self.is_network)
    }

    /// The inner addresses: the range without the ends that are assigned on request only.
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

/// The part of `named` that belongs to no older pool, and the parts that belong to older pools.
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

/// The addresses of `all` that are in none of these ranges.
fn subtract(all: &ByFamily<Intervals>, removed: impl Iterator<Item = Range>) -> ByFamily<Intervals> {
    let mut rest = all.clone();
    for range in removed {
        rest[family_of(range)].remove(number(range.first()), number(range.last()));
    }
    rest
}

/// The addresses in `assignable` that no network of a node contains. Without any known network, nothing is known about
/// the addresses.
fn off_subnet(assignable: &ByFamily<Intervals>, networks: &BTreeSet<IpNet>) -> Option<OffSubnet> {
    let off = subtract(assignable, networks.iter().filter_map(|net| Range::new(net.network(), net.broadcast())));
    let ranges: Truncated<_> = self::ranges(&off).collect();
    let is_off = |net: &&IpNet| !off[Family::from(net.addr())].is_empty();
    let networks_of_families = networks.iter().filter(is_off).copied().collect();
    (!networks.is_empty() && !ranges.is_empty()).then_some(OffSubnet { ranges, networks: networks_of_families })
}

/// The addresses of a pool that are an end of a CIDR, unless they are inner addresses of another range.
fn network_ends(parsed: &[ParsedRange], all: &ByFamily<Intervals>) -> BTreeSet<IpAddr> {
    let inner = union(parsed.iter().filter_map(ParsedRange::without_ends));
    let contains = |set: &ByFamily<Intervals>, end: IpAddr| set[Family::from(end)].contains(number(end));
    parsed.iter().flat_map(ParsedRange::ends).filter(|end| contains(all, *end) && !contains(&inner, *end)).collect()
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

#[cfg(test)]
mod tests;
