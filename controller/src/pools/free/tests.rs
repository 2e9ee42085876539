//! Free addresses, compared with a model that knows every single address.

use std::collections::{BTreeMap, BTreeSet};

use crds::IPAddressPool;
use crds::ip_address_pool::AddressRange;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{at_second, ip, pool};
use crate::pools::Withheld;
use crate::pools::occupied::{Occupant, Occupied};

fn key(name: &str) -> Key {
    Key::new("default", name)
}

/// A pool, and its free addresses.
fn lan(ranges: &[&str], edit: impl FnOnce(&mut IPAddressPool)) -> (Pools, Free) {
    let mut object = pool("lan", 1, ranges);
    edit(Arc::make_mut(&mut object));
    let pools = Pools::new([&object], &Occupied::default());
    let free = Free::new(&pools, []);
    (pools, free)
}

/// Takes one address after the other, for a Service that held none of them before.
fn all(pools: &Pools, free: &mut Free, family: Family, second: i64) -> Vec<String> {
    let lan = pools.get("lan").expect("a pool");
    let next = || {
        let address = free.next_address(lan, family, &key("other"), at_second(second))?;
        free.take(address);
        Some(address.to_string())
    };
    std::iter::from_fn(next).take(20).collect()
}

#[test]
fn free_addresses_are_assigned_in_order_without_withheld_ones() {
    let (pools, mut free) = lan(&["192.0.2.252/30", "192.0.2.254-192.0.3.2", "2001:db8::/126"], |pool| {
        pool.spec.avoid_buggy_ips = true;
        pool.spec.exclude = vec![AddressRange("192.0.3.2".into())];
    });
    free.take(ip("2001:db8::2"));
    assert_eq!(all(&pools, &mut free, Family::V4, 0), ["192.0.2.253", "192.0.2.254", "192.0.3.1"]);
    assert_eq!(all(&pools, &mut free, Family::V6, 0), ["2001:db8::1", "2001:db8::3"]);
}

#[test]
fn huge_pools_are_cheap_up_to_the_last_address() {
    let (pools, mut free) = lan(&["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], |_| {});
    assert_eq!(all(&pools, &mut free, Family::V4, 0), ["255.255.255.255"]);
    assert_eq!(all(&pools, &mut free, Family::V6, 0), ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    let (pools, mut free) = lan(&["0.0.0.0/0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], |_| {});
    let lan = pools.get("lan").expect("a pool");
    assert_eq!((free.counts(lan).v6.size, free.counts(lan).v6.free), (u128::MAX, u128::MAX));
    assert_eq!(all(&pools, &mut free, Family::V4, 0)[..2], ["0.0.0.1", "0.0.0.2"]);
    assert_eq!(all(&pools, &mut free, Family::V6, 0)[..2], ["::", "::1"]);
    let AddressCounts { size, used, cooling, free, withheld, .. } = free.counts(lan).v6;
    assert_eq!((size, used, cooling, free, withheld), (u128::MAX, 20, 0, u128::MAX - 19, 0));
}

#[test]
fn cooling_address_goes_to_its_service_or_comes_last() {
    let (pools, mut free) = lan(&["192.0.2.1-192.0.2.4"], |pool| pool.spec.reuse_after = Some("30s".into()));
    let lan = pools.get("lan").expect("a pool");
    let next = |free: &mut Free, name: &str, second| {
        free.next_address(lan, Family::V4, &key(name), at_second(second)).map(|address| address.to_string())
    };
    for text in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        free.take(ip(text));
    }
    free.release(ip("192.0.2.2"), Some(key("a")), at_second(100));
    free.release(ip("192.0.2.1"), Some(key("a")), at_second(101));
    free.release(ip("192.0.2.3"), None, at_second(102));
    // An address that no Service had does not cool down.
    assert_eq!(next(&mut free, "b", 102).as_deref(), Some("192.0.2.3"));
    assert_eq!(next(&mut free, "a", 102).as_deref(), Some("192.0.2.1"), "the address that it released last");
    assert_eq!(free.last_held_by(&key("a")).collect::<Vec<_>>(), [ip("192.0.2.1"), ip("192.0.2.2")]);
    free.take(ip("192.0.2.1"));
    assert_eq!(next(&mut free, "a", 102).as_deref(), Some("192.0.2.2"));
    free.release(ip("192.0.2.1"), Some(key("b")), at_second(103));
    free.take(ip("192.0.2.3"));
    free.take(ip("192.0.2.4"));
    assert_eq!(next(&mut free, "c", 104).as_deref(), Some("192.0.2.2"), "the oldest cool-down");
    assert_eq!(free.counts(lan).v4.available(), 2);
    assert!(free.is_cooling(ip("192.0.2.1")) && free.is_free(ip("192.0.2.1")));
    // One cool-down is over.
    assert_eq!(next(&mut free, "b", 130).as_deref(), Some("192.0.2.1"));
    free.release(ip("192.0.2.4"), None, at_second(130));
    assert_eq!(next(&mut free, "c", 130).as_deref(), Some("192.0.2.2"), "the first free address");
    assert_eq!(next(&mut free, "c", 133).as_deref(), Some("192.0.2.1"), "all cool-downs are over");
    assert_eq!(free.last_held_by(&key("b")).count(), 0, "expired cool-downs are forgotten");
}

#[test]
fn cooldowns_continue_when_pools_change() {
    let (pools, mut free) = lan(&["192.0.2.1-192.0.2.2"], |_| {});
    free.take(ip("192.0.2.1"));
    free.release(ip("192.0.2.1"), Some(key("a")), at_second(100));
    // The cool-down continues without the pool.
    free.rebuild(&Pools::new([], &Occupied::default()), [], at_second(101));
    assert!(free.is_cooling(ip("192.0.2.1")) && !free.is_free(ip("192.0.2.1")));
    free.rebuild(&pools, [], at_second(102));
    assert_eq!(all(&pools, &mut free, Family::V4, 103), ["192.0.2.2", "192.0.2.1"]);
    let (shorter, _) = lan(&["192.0.2.1-192.0.2.2"], |pool| pool.spec.reuse_after = Some("5s".into()));
    free.release(ip("192.0.2.1"), Some(key("a")), at_second(110));
    free.release(ip("192.0.2.2"), Some(key("a")), at_second(112));
    free.rebuild(&shorter, [], at_second(116));
    let counts = free.counts(shorter.get("lan").expect("a pool")).v4;
    assert_eq!((counts.free, counts.cooling), (1, 1));
    // An expired cool-down does not start again, and a used address has none.
    free.rebuild(&pools, [], at_second(117));
    assert!(!free.is_cooling(ip("192.0.2.2")));
    free.release(ip("192.0.2.2"), Some(key("a")), at_second(118));
    free.take(ip("192.0.2.2"));
    free.release(ip("192.0.2.2"), Some(key("a")), at_second(119));
    free.rebuild(&pools, [ip("192.0.2.2")], at_second(120));
    assert!(!free.is_cooling(ip("192.0.2.2")) && !free.is_free(ip("192.0.2.2")));
}

/// The first addresses of the places that a history uses: both ends of each family, and a change of the third octet.
const PLACES: [&str; 5] = ["0.0.0.0", "0.0.0.224", "255.255.255.192", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0"];

/// The number of addresses in each place.
const WIDTH: u8 = 64;

fn address_at(place: usize, number: u8) -> IpAddr {
    let first = ip(PLACES[place]);
    crate::pools::intervals::address(Family::from(first), crate::pools::intervals::number(first) + u128::from(number))
}

/// A range in one of the places: from one number to another, or a CIDR around a number.
#[derive(Clone, Debug)]
enum Shape {
    Range(usize, u8, u8),
    Network(usize, u8, u8),
}

impl Shape {
    fn text(&self) -> String {
        match *self {
            Self::Range(place, from, to) => {
                format!("{}-{}", address_at(place, from.min(to)), address_at(place, from.max(to)))
            }
            Self::Network(place, number, host_bits) => {
                let address = address_at(place, number);
                format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 } - host_bits)
            }
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let (place, number) = (0..PLACES.len(), 0..WIDTH);
    prop_oneof![
        (place.clone(), number.clone(), number.clone()).prop_map(|(place, from, to)| Shape::Range(place, from, to)),
        (place, number, 0..6u8).prop_map(|(place, number, bits)| Shape::Network(place, number, bits)),
    ]
}

#[derive(Clone, Debug)]
struct Spec {
    addresses: Vec<Shape>,
    exclude: Vec<Shape>,
    avoid_buggy_ips: bool,
    reuse_after: u8,
}

fn spec() -> impl Strategy<Value = Spec> {
    let shapes = |most| proptest::collection::vec(shape(), 0..most);
    (shapes(5), shapes(3), any::<bool>(), prop_oneof![Just(0), 1..60u8]).prop_map(
        |(addresses, exclude, avoid_buggy_ips, reuse_after)| Spec { addresses, exclude, avoid_buggy_ips, reuse_after },
    )
}

fn object(index: usize, spec: &Spec) -> Arc<IPAddressPool> {
    let texts = |shapes: &[Shape]| shapes.iter().map(|shape| AddressRange(shape.text())).collect::<Vec<_>>();
    let mut object = pool(&format!("p{index}"), index as i64, &[]);
    let written = &mut Arc::make_mut(&mut object).spec;
    (written.addresses, written.exclude) = (texts(&spec.addresses), texts(&spec.exclude));
    written.avoid_buggy_ips = spec.avoid_buggy_ips;
    written.reuse_after = Some(format!("{}s", spec.reuse_after));
    object
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize, u8),
    Release(usize, u8, Option<u8>),
    /// A Service takes any address of a pool and family.
    Next(usize, bool, u8),
    /// This number of seconds passes.
    Pass(u8),
    /// The other pools replace the current ones.
    Rebuild,
}

fn step() -> impl Strategy<Value = Step> {
    let address = || (0..PLACES.len(), 0..WIDTH);
    prop_oneof![
        3 => address().prop_map(|(place, number)| Step::Take(place, number)),
        6 => (address(), proptest::option::weighted(0.8, 0..3u8))
            .prop_map(|((place, number), last)| Step::Release(place, number, last)),
        8 => (0..3usize, any::<bool>(), 0..3u8).prop_map(|(pool, is_v6, name)| Step::Next(pool, is_v6, name)),
        2 => (0..40u8).prop_map(Step::Pass),
        1 => Just(Step::Rebuild),
    ]
}

/// The state of each single address.
#[derive(Default)]
struct Model {
    /// The pool of an address, its cool-down there in seconds, and whether it is withheld.
    known: BTreeMap<IpAddr, (usize, u8, bool)>,
    used: BTreeSet<IpAddr>,
    /// Address, former Service and time, in the order of the releases.
    cooling: Vec<(IpAddr, u8, i64)>,
}

impl Model {
    /// Computes the state of each address without any index.
    fn read(&mut self, specs: &[Spec], occupied: &BTreeSet<IpAddr>) {
        self.known.clear();
        let addresses = || (0..PLACES.len()).flat_map(|place| (0..WIDTH).map(move |number| address_at(place, number)));
        for address in addresses() {
            let within = |shapes: &[Shape]| {
                let ranges = shapes.iter().map(|shape| shape.text().parse::<crds::Range>().expect("a range"));
                ranges.filter(|range| range.contains(address)).collect::<Vec<_>>()
            };
            let Some((index, spec)) = specs.iter().enumerate().find(|(_, spec)| !within(&spec.addresses).is_empty())
            else {
                continue;
            };
            let is_end = |shape: &Shape| {
                let range: crds::Range = shape.text().parse().expect("a range");
                let ends = if address.is_ipv4() { vec![range.first(), range.last()] } else { vec![range.first()] };
                matches!(shape, Shape::Network(..)) && range.size() > 2 && ends.contains(&address)
            };
            let named = spec.addresses.iter().filter(|shape| !within(std::slice::from_ref(*shape)).is_empty());
            let is_buggy = match address {
                IpAddr::V4(v4) => spec.avoid_buggy_ips && [0, 255].contains(&v4.octets()[3]),
                IpAddr::V6(_) => false,
            };
            let is_withheld = named.clone().all(is_end)
                || is_buggy
                || !within(&spec.exclude).is_empty()
                || occupied.contains(&address);
            self.known.insert(address, (index, spec.reuse_after, is_withheld));
        }
    }

    fn prune(&mut self, now: i64) {
        let known = &self.known;
        self.cooling.retain(|(address, _, since)| {
            now < since + known.get(address).map_or(60, |(_, reuse_after, _)| i64::from(*reuse_after))
        });
    }

    fn next(&self, pool: usize, family: Family, name: u8) -> Option<IpAddr> {
        let of_pool = |address: &IpAddr| {
            Family::from(*address) == family
                && self.known.get(address).is_some_and(|(owner, _, is_withheld)| *owner == pool && !is_withheld)
        };
        let is_cooling = |address: &IpAddr| self.cooling.iter().any(|(other, ..)| other == address);
        let cooling = || self.cooling.iter().filter(|(address, ..)| of_pool(address));
        let had = cooling().rfind(|(_, last, _)| *last == name).map(|(address, ..)| *address);
        let free = || self.known.keys().find(|a| of_pool(a) && !self.used.contains(a) && !is_cooling(a)).copied();
        let oldest = || cooling().map(|(address, _, since)| (*since, *address)).min().map(|(_, address)| address);
        had.or_else(free).or_else(oldest)
    }

    fn counts(&self, pool: usize, family: Family) -> AddressCounts {
        let mut counts = AddressCounts::default();
        let of_pool = self.known.iter().filter(|(a, (owner, ..))| *owner == pool && Family::from(**a) == family);
        for (address, (_, _, is_withheld)) in of_pool {
            counts.size += 1;
            counts.automatic += u128::from(!is_withheld);
            if self.used.contains(address) {
                counts.used += 1;
            } else if *is_withheld {
                counts.withheld += 1;
            } else if self.cooling.iter().any(|(other, ..)| other == address) {
                counts.cooling += 1;
            } else {
                counts.free += 1;
            }
        }
        counts
    }
}

proptest! {
    #[test]
    fn free_addresses_match_the_model_after_any_history(
        both in proptest::collection::vec(proptest::collection::vec(spec(), 1..4), 2..3),
        occupied in proptest::collection::btree_set((0..PLACES.len(), 0..WIDTH), 0..6),
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let occupied: BTreeSet<_> = occupied.into_iter().map(|(place, number)| address_at(place, number)).collect();
        let nodes: Vec<_> = occupied.iter().map(|address| crate::fixtures::node("n1", &address.to_string())).collect();
        let occupied_by = Occupied::new(nodes.iter().map(|node| &**node), []);
        let pools = both.iter().map(|specs| {
            let objects: Vec<_> = specs.iter().enumerate().map(|(index, spec)| object(index, spec)).collect();
            Pools::new(&objects, &occupied_by)
        });
        let pools: Vec<_> = pools.collect();
        let (mut current, mut now) = (0, 0);
        let mut model = Model::default();
        model.read(&both[0], &occupied);
        let mut free = Free::new(&pools[0], []);
        for step in steps {
            let name = |last: u8| key(&format!("s{last}"));
            match step {
                Step::Take(place, number) => {
                    let address = address_at(place, number);
                    free.take(address);
                    model.used.insert(address);
                    model.cooling.retain(|(other, ..)| *other != address);
                }
                Step::Release(place, number, last) => {
                    let address = address_at(place, number);
                    free.release(address, last.map(name), at_second(now));
                    if model.used.remove(&address) && let Some(last) = last {
                        model.cooling.push((address, last, now));
                    }
                    model.prune(now);
                }
                Step::Next(pool, is_v6, last) => {
                    let pool = pool % both[current].len();
                    let family = if is_v6 { Family::V6 } else { Family::V4 };
                    model.prune(now);
                    let own = pools[current].get(&format!("p{pool}")).expect("a pool");
                    let next = free.next_address(own, family, &name(last), at_second(now));
                    prop_assert_eq!(next, model.next(pool, family, last));
                    if let Some(address) = next {
                        free.take(address);
                        model.used.insert(address);
                        model.cooling.retain(|(other, ..)| *other != address);
                    }
                }
                Step::Pass(seconds) => now += i64::from(seconds),
                Step::Rebuild => {
                    model.prune(now);
                    current = 1 - current;
                    model.read(&both[current], &occupied);
                    model.cooling.sort_by_key(|(address, _, since)| (*since, *address));
                    model.prune(now);
                    free.rebuild(&pools[current], model.used.iter().copied(), at_second(now));
                }
            }
            for pool in pools[current].iter() {
                let counts = free.counts(pool);
                for family in FAMILIES {
                    let AddressCounts { size, used, cooling, free, withheld, .. } = counts[family];
                    prop_assert_eq!(free + used + withheld + cooling, size);
                    prop_assert_eq!(counts[family], model.counts(pool.index, family), "{} {}", pool.name(), family);
                }
            }
        }
        for (place, number) in (0..PLACES.len()).flat_map(|place| (0..WIDTH).map(move |number| (place, number))) {
            let address = address_at(place, number);
            let known = model.known.get(&address);
            prop_assert_eq!(free.is_free(address), known.is_some() && !model.used.contains(&address), "{}", address);
            let index = pools[current].pool_of(address).map(|pool| pool.index);
            prop_assert_eq!(index, known.map(|(owner, ..)| *owner), "{}", address);
            let withheld = pools[current].withheld(address);
            let is_withheld = known.map_or(occupied.contains(&address), |(.., is_withheld)| *is_withheld);
            prop_assert_eq!(withheld.is_some(), is_withheld, "{}: {:?}", address, withheld);
            if occupied.contains(&address) {
                prop_assert_eq!(withheld, Some(Withheld::Occupied(&Occupant::Node("n1".into()))));
            }
        }
    }
}
