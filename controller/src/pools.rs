//! What the pools come to: which pool an address belongs to, and which addresses are not to be given out.
//!
//! Pools and nodes → [`Pools`]. Where pools share addresses, those belong to the older one (by creation, then name);
//! the other serves what is left of it. A range that can't be read is reported, and the pool's others serve. Nothing
//! here grows with the number of addresses: a range is two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::address::{self, InvalidRange};
use crds::{IPAddressPool, Node, Range};
use jiff::Timestamp;

/// All pools, without overlap.
#[derive(Debug)]
pub struct Pools {
    /// Oldest first.
    pools: Vec<Pool>,
    /// By its first address, each range that belongs to a pool. No two have an address in common.
    ranges: BTreeMap<IpAddr, Owned>,
    /// The nodes' own addresses, and whose they are.
    nodes: BTreeMap<IpAddr, String>,
}

#[derive(Clone, Copy, Debug)]
struct Owned {
    last: IpAddr,
    pool: usize,
}

/// One pool: what belongs to it, and what is wrong with it.
#[derive(Debug)]
pub struct Pool {
    /// The object.
    pub object: Arc<IPAddressPool>,
    /// The addresses that belong to it, in order.
    pub ranges: Vec<Range>,
    /// Addresses of it that are given out only to who asks for them by name: those that all its ranges have only as the
    /// first or last of a CIDR. On a network of that size they are the network's and the broadcast address.
    pub withheld: BTreeSet<IpAddr>,
    /// Its ranges that can't be read.
    pub invalid: Vec<InvalidRange>,
    /// Addresses that it names and that belong to an older pool.
    pub overlaps: Vec<Overlap>,
}

/// Addresses that belong to another pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The pool that they belong to.
    pub pool: String,
    /// The addresses.
    pub range: Range,
}

impl Pools {
    /// What these pools come to, on these nodes.
    pub fn new<'a>(
        pools: impl IntoIterator<Item = &'a Arc<IPAddressPool>>,
        nodes: impl IntoIterator<Item = &'a Arc<Node>>,
    ) -> Self {
        let mut oldest_first: Vec<_> = pools.into_iter().collect();
        oldest_first.sort_by_key(|pool| (created(pool), name(pool).to_owned()));
        let mut all = Self { pools: Vec::new(), ranges: BTreeMap::new(), nodes: BTreeMap::new() };
        for object in oldest_first {
            all.add(object.clone());
        }
        // Two nodes with one address is a fault of the cluster; the first by name is named.
        for node in nodes {
            for address in &node.addresses {
                all.nodes.entry(*address).or_insert_with(|| node.name.clone());
            }
        }
        all
    }

    fn add(&mut self, object: Arc<IPAddressPool>) {
        let index = self.pools.len();
        let mut pool = Pool {
            object: object.clone(),
            ranges: Vec::new(),
            withheld: BTreeSet::new(),
            invalid: Vec::new(),
            overlaps: Vec::new(),
        };
        let mut written = Vec::new();
        for text in &object.spec.addresses {
            match text.parse() {
                Ok(range) => written.push(Written { range, is_network: text.0.contains('/') && range.size() > 2 }),
                Err(error) => pool.invalid.push(error),
            }
        }
        for Written { range, .. } in &written {
            let mut next = Some(range.first());
            for (taken, owner) in self.overlapping(*range) {
                if let Some(gap) = next.and_then(|next| Range::new(next, address::previous(taken.first())?)) {
                    self.claim(&mut pool, index, gap);
                }
                if owner != index {
                    pool.overlaps.push(Overlap { pool: self.pools[owner].name().to_owned(), range: taken });
                }
                next = address::next(taken.last());
            }
            if let Some(rest) = next.and_then(|next| Range::new(next, range.last())) {
                self.claim(&mut pool, index, rest);
            }
        }
        let ends = written.iter().filter(|w| w.is_network).flat_map(|w| [w.range.first(), w.range.last()]);
        let offered = |address| written.iter().any(|w| w.offers(address));
        let owned = |address| self.owner(address) == Some(index);
        pool.withheld = ends.filter(|address| !offered(*address) && owned(*address)).collect();
        pool.ranges.sort();
        pool.overlaps.sort();
        pool.overlaps.dedup();
        self.pools.push(pool);
    }

    fn claim(&mut self, pool: &mut Pool, index: usize, range: Range) {
        self.ranges.insert(range.first(), Owned { last: range.last(), pool: index });
        pool.ranges.push(range);
    }

    /// What of `range` belongs to pools already, in order, and to which.
    fn overlapping(&self, range: Range) -> Vec<(Range, usize)> {
        let before = self.ranges.range(..range.first()).next_back();
        before
            .into_iter()
            .chain(self.ranges.range(range.first()..=range.last()))
            .filter_map(|(first, owned)| Some((Range::new(*first, owned.last)?.intersection(&range)?, owned.pool)))
            .collect()
    }

    fn owner(&self, address: IpAddr) -> Option<usize> {
        let (first, owned) = self.ranges.range(..=address).next_back()?;
        Range::new(*first, owned.last)?.contains(address).then_some(owned.pool)
    }

    /// The pool that `address` belongs to.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.owner(address).map(|index| &self.pools[index])
    }

    /// The node whose own address this is.
    pub fn node_at(&self, address: IpAddr) -> Option<&str> {
        self.nodes.get(&address).map(String::as_str)
    }

    /// The nodes' own addresses in `range`, and whose they are.
    pub fn nodes_in(&self, range: Range) -> impl Iterator<Item = (IpAddr, &str)> {
        self.nodes.range(range.first()..=range.last()).map(|(address, node)| (*address, node.as_str()))
    }

    /// All pools, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }
}

impl Pool {
    /// Its name.
    pub fn name(&self) -> &str {
        name(&self.object)
    }

    /// Its ranges of addresses of the one family that is given out for now, IPv4.
    pub fn usable(&self) -> impl Iterator<Item = Range> {
        self.ranges.iter().copied().filter(Range::is_ipv4)
    }

    /// Whether it has addresses of a family that is not given out yet.
    pub fn has_ipv6(&self) -> bool {
        self.ranges.iter().any(|range| !range.is_ipv4())
    }
}

/// A range as the pool has it.
struct Written {
    range: Range,
    /// Whether it is a CIDR of a network that has a network and a broadcast address: not of a host (/32), nor of a
    /// point-to-point link (/31, RFC 3021).
    is_network: bool,
}

impl Written {
    /// Whether it has `address`, and not as a network's or broadcast address.
    fn offers(&self, address: IpAddr) -> bool {
        let is_end = address == self.range.first() || address == self.range.last();
        self.range.contains(address) && !(self.is_network && is_end)
    }
}

fn name(pool: &IPAddressPool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}

fn created(pool: &IPAddressPool) -> Timestamp {
    pool.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, node, pool};
    use proptest::prelude::*;

    fn texts(pool: &Pool) -> Vec<String> {
        pool.ranges.iter().map(ToString::to_string).collect()
    }

    fn overlap(pool: &str, range: &str) -> Overlap {
        Overlap { pool: pool.into(), range: range.parse().expect("a range") }
    }

    #[test]
    fn shared_addresses_belong_to_the_older_pool_and_the_other_serves_the_rest() {
        let pools = [
            pool("a-younger", 2, &["192.0.2.0-192.0.2.30", "192.0.2.100-192.0.2.101"]),
            pool("b-older", 1, &["192.0.2.5-192.0.2.9", "192.0.2.15-192.0.2.15", "192.0.2.30-192.0.2.40"]),
        ];
        let pools = Pools::new(&pools, []);
        let [older, younger] = &pools.pools[..] else { panic!("two pools") };
        assert_eq!(older.name(), "b-older");
        assert_eq!((texts(older).len(), &older.overlaps), (3, &vec![]));
        assert_eq!(
            texts(younger),
            ["192.0.2.0-192.0.2.4", "192.0.2.10-192.0.2.14", "192.0.2.16-192.0.2.29", "192.0.2.100-192.0.2.101"]
        );
        assert_eq!(
            younger.overlaps,
            [
                overlap("b-older", "192.0.2.5-192.0.2.9"),
                overlap("b-older", "192.0.2.15-192.0.2.15"),
                overlap("b-older", "192.0.2.30-192.0.2.30"),
            ]
        );
    }

    #[test]
    fn of_two_pools_of_one_age_the_first_by_name_is_the_older() {
        let pools = [pool("b", 1, &["192.0.2.1-192.0.2.2"]), pool("a", 1, &["192.0.2.1-192.0.2.1"])];
        let pools = Pools::new(&pools, []);
        assert_eq!(pools.pool_of(ip("192.0.2.1")).map(Pool::name), Some("a"));
        assert_eq!(pools.pool_of(ip("192.0.2.2")).map(Pool::name), Some("b"));
        assert_eq!(pools.pool_of(ip("192.0.2.3")).map(Pool::name), None);
    }

    #[test]
    fn a_range_twice_in_one_pool_is_there_once_and_no_overlap() {
        let pools = [pool("lan", 1, &["192.0.2.1-192.0.2.9", "192.0.2.5-192.0.2.12", "192.0.2.1-192.0.2.9"])];
        let pools = Pools::new(&pools, []);
        let lan = pools.iter().next().expect("a pool");
        assert_eq!(
            (texts(lan), &lan.overlaps),
            (vec!["192.0.2.1-192.0.2.9".into(), "192.0.2.10-192.0.2.12".into()], &vec![])
        );
    }

    #[test]
    fn a_range_that_cannot_be_read_is_reported_and_the_others_serve() {
        let pools = [pool("lan", 1, &["192.0.2.9-192.0.2.1", "192.0.2.0/33", "192.0.2.20-192.0.2.21"])];
        let pools = Pools::new(&pools, []);
        let lan = pools.iter().next().expect("a pool");
        assert_eq!(texts(lan), ["192.0.2.20-192.0.2.21"]);
        assert_eq!(
            lan.invalid,
            [InvalidRange::Order("192.0.2.9-192.0.2.1".into()), InvalidRange::Syntax("192.0.2.0/33".into())]
        );
    }

    #[test]
    fn the_ends_of_a_network_are_withheld_unless_another_range_of_the_pool_has_them_inside() {
        for (ranges, withheld) in [
            (&["192.0.2.0/24"][..], &["192.0.2.0", "192.0.2.255"][..]),
            (&["192.0.2.0/30"], &["192.0.2.0", "192.0.2.3"]),
            (&["192.0.2.0/31"], &[]),
            (&["192.0.2.7/32"], &[]),
            (&["192.0.2.0-192.0.2.255"], &[]),
            (&["192.0.2.0/25", "192.0.2.128/25"], &["192.0.2.0", "192.0.2.127", "192.0.2.128", "192.0.2.255"]),
            (&["192.0.2.0/24", "192.0.2.128/25"], &["192.0.2.0", "192.0.2.255"]),
            (&["192.0.2.0/24", "192.0.2.255-192.0.2.255"], &["192.0.2.0"]),
            (&["0.0.0.0/0"], &["0.0.0.0", "255.255.255.255"]),
        ] {
            let pools = [pool("lan", 1, ranges)];
            let pools = Pools::new(&pools, []);
            let expected: BTreeSet<_> = withheld.iter().map(|text| ip(text)).collect();
            assert_eq!(pools.pools[0].withheld, expected, "{ranges:?}");
        }
    }

    #[test]
    fn nodes_addresses_are_known_by_node() {
        let pools = [pool("lan", 1, &["192.0.2.0/24"])];
        let nodes = [node("n1", "192.0.2.11"), node("n2", "192.0.2.12")];
        let pools = Pools::new(&pools, &nodes);
        assert_eq!((pools.node_at(ip("192.0.2.12")), pools.node_at(ip("192.0.2.13"))), (Some("n2"), None));
        let range = "192.0.2.12-192.0.2.20".parse().expect("a range");
        assert_eq!(pools.nodes_in(range).collect::<Vec<_>>(), [(ip("192.0.2.12"), "n2")]);
    }

    #[test]
    fn all_addresses_of_both_families_are_a_pool_as_any_other() {
        let pools = [pool("all", 2, &["0.0.0.0/0", "::/0"]), pool("lan", 1, &["192.0.2.1-192.0.2.1"])];
        let pools = Pools::new(&pools, []);
        let all = &pools.pools[1];
        assert_eq!(texts(all)[..2], ["0.0.0.0-192.0.2.0", "192.0.2.2-255.255.255.255"]);
        assert!(all.has_ipv6());
        assert_eq!(pools.pool_of(ip("2001:db8::1")).map(Pool::name), Some("all"));
    }

    proptest! {
        #[test]
        fn an_address_belongs_to_the_oldest_pool_that_names_it(
            written in proptest::collection::vec(proptest::collection::vec((0..40u8, 0..8u8), 1..4), 0..5),
        ) {
            let objects: Vec<_> = written
                .iter()
                .enumerate()
                .map(|(age, ranges)| {
                    let texts: Vec<_> = ranges.iter().map(|(a, n)| format!("192.0.2.{a}-192.0.2.{}", a + n)).collect();
                    pool(&format!("p{age}"), age as i64, &texts.iter().map(String::as_str).collect::<Vec<_>>())
                })
                .collect();
            let pools = Pools::new(objects.iter().rev(), []);
            let mut sizes = vec![0; written.len()];
            for last in 0..60u8 {
                let has = |ranges: &Vec<(u8, u8)>| ranges.iter().any(|(a, n)| (*a..=a + n).contains(&last));
                let owner = written.iter().position(has);
                let found = pools.pool_of(IpAddr::from([192, 0, 2, last])).map(|pool| pool.name().to_owned());
                prop_assert_eq!(found, owner.map(|index| format!("p{index}")));
                owner.into_iter().for_each(|index| sizes[index] += 1);
            }
            for (pool, size) in pools.iter().zip(sizes) {
                prop_assert_eq!(pool.ranges.iter().map(Range::size).sum::<u128>(), size);
            }
        }
    }
}
