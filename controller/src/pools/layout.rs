//! What the pools come to: which pool an address belongs to, and which addresses are not to be given out.
//!
//! Pools and [`Occupied`] → [`Pools`]. Where pools share addresses, those belong to the older one (by creation, then
//! name); the other serves what is left of it. A range that can't be read is reported, and the pool's others serve.
//! Nothing here grows with the number of addresses: a range is two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crds::address::InvalidRange;
use crds::ip_address_pool::AddressRange;
use crds::service::Family;
use crds::{IPAddressPool, Labels, Range};
use jiff::Timestamp;

use crate::pools::intervals::{ByFamily, FAMILIES, Intervals, address, number};
use crate::pools::numbering::Numbering;
use crate::pools::occupied::{Occupant, Occupied};
use crate::pools::selector::Fence;
use crate::pools::truncated::Few;

/// All pools, without overlap.
#[derive(Debug)]
pub struct Pools {
    /// Oldest first.
    pools: Vec<Pool>,
    by_name: BTreeMap<String, usize>,
    /// Those that give addresses to who asks for none by name, in the order in which they are tried.
    tried: Vec<usize>,
    land: Arc<Land>,
}

/// Whose which address is. It is shared with [`crate::pools::free::Free`], and never changes.
#[derive(Debug, Default)]
pub(crate) struct Land {
    /// By its first address, each range that belongs to a pool. No two have an address in common.
    ranges: BTreeMap<IpAddr, Owned>,
    /// By pool, in their order.
    pub(crate) lots: Vec<Lot>,
    occupied: Occupied,
}

#[derive(Clone, Copy, Debug)]
struct Owned {
    last: IpAddr,
    pool: usize,
}

/// What belongs to one pool, as numbers.
#[derive(Debug)]
pub(crate) struct Lot {
    /// How the addresses of `open` are numbered.
    pub(crate) numbering: Numbering,
    /// All its addresses.
    size: ByFamily<Intervals>,
    /// Those that are given, in some order, to who takes any.
    pub(crate) open: ByFamily<Intervals>,
    /// How long an address of it rests.
    pub(crate) reuse_after: Duration,
}

/// One pool: what belongs to it, and what is wrong with it.
#[derive(Debug)]
pub struct Pool {
    /// The object.
    pub object: Arc<IPAddressPool>,
    /// The addresses that belong to it, in order. Those that it excludes are among them.
    pub ranges: Vec<Range>,
    /// Addresses of it that are given out only to who asks for them by name: those that all its ranges have only as an
    /// end of a CIDR. See [`Withheld::NetworkEnd`].
    pub withheld: BTreeSet<IpAddr>,
    /// Its ranges that can't be read.
    pub invalid: Few<InvalidRange>,
    /// What it excludes and can't be read. For as long as there is such a thing, nobody knows what it is not to give,
    /// and it gives nothing but what is asked for by name.
    pub invalid_exclude: Few<InvalidRange>,
    /// Its selectors that can't be read, each with what is wrong.
    pub invalid_selectors: Few<String>,
    /// Addresses that it names and that belong to an older pool.
    pub overlaps: Few<Overlap>,
    /// Addresses that it would give if nodes or gateways didn't have them.
    pub left_out: Few<LeftOut>,
    /// Its place among the pools, oldest first.
    pub(crate) index: usize,
    fence: Option<Fence>,
    excluded: ByFamily<Intervals>,
}

/// Addresses that belong to another pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The pool that they belong to.
    pub pool: String,
    /// The addresses.
    pub range: Range,
}

/// An address that somebody has who is no Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub occupant: Occupant,
}

/// Why an address is not given out as others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld<'a> {
    /// Its pool excludes it. It is never given.
    Excluded,
    /// Its pool avoids addresses that end in .0 or .255. It is never given.
    Buggy,
    /// It is this node's own. It is never given.
    Node(&'a str),
    /// It is a gateway of this node. It is never given.
    Gateway(&'a str),
    /// It is an end of a CIDR: of IPv4 the network's own address or the broadcast address on a network of that size, of
    /// IPv6 the subnet-router anycast address (RFC 4291 §2.6.1). It is given to who asks for it by name.
    NetworkEnd,
}

impl Withheld<'_> {
    /// Whether it is given to nobody, not even on request.
    pub fn is_from_everybody(&self) -> bool {
        *self != Self::NetworkEnd
    }
}

impl Pools {
    /// What these pools come to, where this is occupied.
    pub fn new<'a>(pools: impl IntoIterator<Item = &'a Arc<IPAddressPool>>, occupied: &Occupied) -> Self {
        let mut oldest_first: Vec<_> = pools.into_iter().collect();
        oldest_first.sort_by_cached_key(|pool| (created(pool), name(pool).to_owned()));
        let mut land = Land { occupied: occupied.clone(), ..Land::default() };
        let mut pools = Vec::<Pool>::with_capacity(oldest_first.len());
        for object in oldest_first {
            let pool = Pool::new(object.clone(), &mut land, &pools);
            pools.push(pool);
        }
        let by_name = pools.iter().map(|pool| (pool.name().to_owned(), pool.index)).collect();
        let gives = |pool: &&Pool| pool.object.spec.auto_assign && !pool.object.spec.drain;
        let mut tried: Vec<_> = pools.iter().filter(gives).map(|pool| pool.index).collect();
        // Stable, so that the older one of two stays the first.
        tried.sort_by_key(|index| {
            let fence = pools[*index].fence.as_ref();
            (fence.is_none(), fence.map(|fence| fence.priority))
        });
        Self { pools, by_name, tried, land: Arc::new(land) }
    }

    /// Takes a newer version of a pool in which nothing has changed but what is said of it. If anything else has, or it
    /// is another pool, this says `false`, and the pools must be read anew.
    pub fn renew(&mut self, object: &Arc<IPAddressPool>) -> bool {
        let Some(pool) = self.by_name.get(name(object)).map(|index| &mut self.pools[*index]) else { return false };
        let is_same = pool.object.spec == object.spec
            && created(&pool.object) == created(object)
            && pool.object.metadata.uid == object.metadata.uid;
        if is_same {
            pool.object = object.clone();
        }
        is_same
    }

    /// The pool that `address` belongs to.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.land.owner(address).map(|index| &self.pools[index])
    }

    /// The pool of that name.
    pub fn get(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name).map(|index| &self.pools[*index])
    }

    /// Why `address` is not given out as others are. Of several reasons this is the one that matters most: that another
    /// machine has it.
    pub fn withheld(&self, address: IpAddr) -> Option<Withheld<'_>> {
        match self.land.occupied.get(address) {
            Some(Occupant::Node(node)) => return Some(Withheld::Node(node)),
            Some(Occupant::Gateway(node)) => return Some(Withheld::Gateway(node)),
            None => {}
        }
        let pool = self.pool_of(address)?;
        if pool.excluded[Family::from(address)].contains(number(address)) {
            return Some(Withheld::Excluded);
        }
        if self.land.lots[pool.index].numbering.place(address).is_none() {
            return Some(Withheld::Buggy);
        }
        pool.withheld.contains(&address).then_some(Withheld::NetworkEnd)
    }

    /// The pools that a Service may have addresses of that asks for none by name, in the order in which they are tried.
    pub fn tried_for(
        &self,
        namespace: &str,
        namespace_labels: Option<&Labels>,
        service_labels: &Labels,
    ) -> impl Iterator<Item = &Pool> {
        let tried = self.tried.iter().map(|index| &self.pools[*index]);
        tried.filter(move |pool| pool.admits(namespace, namespace_labels, service_labels))
    }

    /// All pools, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    pub(crate) fn land(&self) -> &Arc<Land> {
        &self.land
    }
}

impl Land {
    /// The pool that `address` belongs to.
    fn owner(&self, address: IpAddr) -> Option<usize> {
        let (first, owned) = self.ranges.range(..=address).next_back()?;
        Range::new(*first, owned.last)?.contains(address).then_some(owned.pool)
    }

    /// The pool that `address` belongs to, and its number there if it is one of those that are given to who takes any.
    pub(crate) fn find(&self, address: IpAddr) -> Option<(usize, Option<u128>)> {
        let owner = self.owner(address)?;
        let lot = &self.lots[owner];
        let place = lot.numbering.place(address);
        Some((owner, place.filter(|place| lot.open[Family::from(address)].contains(*place))))
    }

    /// What of `range` belongs to pools already, in order, and to which.
    fn overlapping(&self, range: Range) -> impl Iterator<Item = (Range, usize)> {
        let before = self.ranges.range(..range.first()).next_back();
        before
            .into_iter()
            .chain(self.ranges.range(range.first()..=range.last()))
            .filter_map(move |(first, owned)| Some((Range::new(*first, owned.last)?.intersection(&range)?, owned.pool)))
    }
}

impl Lot {
    /// How many addresses it has.
    pub(crate) fn size(&self, family: Family) -> u128 {
        self.size[family].len()
    }

    /// How many of those are not given to who takes any.
    pub(crate) fn closed(&self, family: Family) -> u128 {
        let open = &self.open[family];
        if open.is_empty() { self.size(family) } else { self.size[family].len_without(open) }
    }
}

impl Pool {
    /// What `object` gets of the land that older pools have left.
    fn new(object: Arc<IPAddressPool>, land: &mut Land, older: &[Pool]) -> Self {
        let index = older.len();
        let spec = &object.spec;
        let (written, invalid) = read(&spec.addresses);
        let (excluded, invalid_exclude) = read(&spec.exclude);
        let named = union(written.iter().map(|written| written.range));
        let excluded = union(excluded.iter().map(|written| written.range));
        let mut size = named.clone();
        let mut overlaps = Few::default();
        for range in ranges(&named) {
            for (taken, owner) in land.overlapping(range) {
                size[family(taken)].remove(number(taken.first()), number(taken.last()));
                overlaps.push_with(|| Overlap { pool: older[owner].name().to_owned(), range: taken });
            }
        }
        let ranges: Vec<_> = ranges(&size).collect();
        land.ranges.extend(ranges.iter().map(|range| (range.first(), Owned { last: range.last(), pool: index })));

        let offered = union(written.iter().filter_map(Written::inner));
        let is_withheld = |end: &IpAddr| {
            let has = |set: &ByFamily<Intervals>| set[Family::from(*end)].contains(number(*end));
            has(&size) && !has(&offered)
        };
        let withheld: BTreeSet<_> = written.iter().flat_map(Written::ends).filter(is_withheld).collect();

        let numbering = if spec.avoid_buggy_ips { Numbering::WithoutBuggy } else { Numbering::All };
        let mut open = ByFamily::default();
        let places = |range: Range| Some((family(range), numbering.places(range)?));
        for (family, (first, last)) in ranges.iter().filter_map(|range| places(*range)) {
            let open: &mut Intervals = &mut open[family];
            open.insert(first, last);
        }
        let mut close = |range: Range| {
            if let Some((family, (first, last))) = places(range) {
                open[family].remove(first, last);
            }
        };
        self::ranges(&excluded).for_each(&mut close);
        withheld.iter().filter_map(|end| Range::new(*end, *end)).for_each(&mut close);
        let occupied: Vec<_> = ranges.iter().flat_map(|range| land.occupied.within(*range)).collect();
        occupied.iter().filter_map(|(address, _)| Range::new(*address, *address)).for_each(&mut close);
        let is_excluded = |address: IpAddr| excluded[Family::from(address)].contains(number(address));
        let left_out = occupied
            .into_iter()
            .filter(|(address, _)| !is_excluded(*address))
            .map(|(address, occupant)| LeftOut { address, occupant: occupant.clone() })
            .collect();
        if !invalid_exclude.is_empty() {
            open = ByFamily::default();
        }

        land.lots.push(Lot { numbering, size, open, reuse_after: spec.reuse_after() });
        let (fence, invalid_selectors) = spec.service_allocation.as_ref().map(Fence::new).unzip();
        Self {
            ranges,
            withheld,
            invalid,
            invalid_exclude,
            invalid_selectors: invalid_selectors.into_iter().flatten().collect(),
            overlaps,
            left_out,
            index,
            fence,
            excluded,
            object,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        name(&self.object)
    }

    /// Whether a Service of that namespace and with these labels may have addresses of it.
    pub fn admits(&self, namespace: &str, namespace_labels: Option<&Labels>, service_labels: &Labels) -> bool {
        self.fence.as_ref().is_none_or(|fence| fence.admits(namespace, namespace_labels, service_labels))
    }

    /// Whether it has addresses of that family, free or not.
    pub fn has(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| self::family(*range) == family)
    }
}

/// A range as the pool has it.
struct Written {
    range: Range,
    /// Whether it is a CIDR of a network whose ends are special: not of a host (/32, /128), nor of a point-to-point
    /// link (/31, RFC 3021; /127, RFC 6164).
    is_network: bool,
}

impl Written {
    /// The ends that are given only on request. IPv6 has no broadcast address, so there it is the first alone.
    fn ends(&self) -> impl Iterator<Item = IpAddr> {
        let ends = [Some(self.range.first()), self.range.is_ipv4().then_some(self.range.last())];
        ends.into_iter().flatten().filter(|_| self.is_network)
    }

    /// What it has besides its ends.
    fn inner(&self) -> Option<Range> {
        if !self.is_network {
            return Some(self.range);
        }
        let first = crds::address::next(self.range.first())?;
        let last = if self.range.is_ipv4() { crds::address::previous(self.range.last())? } else { self.range.last() };
        Range::new(first, last)
    }
}

/// The ranges that are written here, and what can't be read.
fn read(texts: &[AddressRange]) -> (Vec<Written>, Few<InvalidRange>) {
    let (mut written, mut invalid) = (Vec::new(), Few::default());
    for text in texts {
        match text.parse() {
            Ok(range) => written.push(Written { range, is_network: text.0.contains('/') && range.size() > 2 }),
            Err(error) => invalid.push(error),
        }
    }
    (written, invalid)
}

fn family(range: Range) -> Family {
    Family::from(range.first())
}

fn union(ranges: impl IntoIterator<Item = Range>) -> ByFamily<Intervals> {
    let mut union = ByFamily::<Intervals>::default();
    for range in ranges {
        union[family(range)].insert(number(range.first()), number(range.last()));
    }
    union
}

/// The ranges that a set consists of, in order.
fn ranges(set: &ByFamily<Intervals>) -> impl Iterator<Item = Range> {
    FAMILIES.into_iter().flat_map(|family| {
        set[family].iter().filter_map(move |(first, last)| Range::new(address(family, first), address(family, last)))
    })
}

fn name(pool: &IPAddressPool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}

fn created(pool: &IPAddressPool) -> Timestamp {
    pool.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

#[cfg(test)]
mod tests;
