//! Sets of addresses as intervals of numbers. The cost of a set depends on its number of gaps, not on its size.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Index, IndexMut};

use crds::Range;
use crds::service::Family;

/// One value for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByFamily<T> {
    pub v4: T,
    pub v6: T,
}

impl<T> Index<Family> for ByFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for ByFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The number of an address in its family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with this number. The number must be in the range of the family.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

pub(crate) fn family_of(range: Range) -> Family {
    Family::from(range.first())
}

/// The addresses of all these ranges.
pub(crate) fn union(ranges: impl IntoIterator<Item = Range>) -> ByFamily<Intervals> {
    let mut union = ByFamily::<Intervals>::default();
    for range in ranges {
        union[family_of(range)].insert(number(range.first()), number(range.last()));
    }
    union
}

/// The ranges of a set, in order.
pub(crate) fn ranges(set: &ByFamily<Intervals>) -> impl Iterator<Item = Range> {
    FAMILIES.into_iter().flat_map(|family| {
        set[family].iter().filter_map(move |(first, last)| Range::new(address(family, first), address(family, last)))
    })
}

/// A set of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intervals {
    /// The first number of each interval → its last number. Between two intervals, at least one number is missing.
    lasts: BTreeMap<u128, u128>,
    /// The number of elements modulo 2^128: see [`Intervals::len`].
    len: u128,
}

impl Intervals {
    fn add_interval(&mut self, first: u128, last: u128) {
        self.lasts.insert(first, last);
        self.len = self.len.wrapping_add(last - first).wrapping_add(1);
    }

    fn remove_interval(&mut self, first: u128, last: u128) {
        self.lasts.remove(&first);
        self.len = self.len.wrapping_sub(last - first).wrapping_sub(1);
    }

    /// The last interval that overlaps with `first..=last`.
    fn overlapping(&self, first: u128, last: u128) -> Option<(u128, u128)> {
        let (start, end) = self.lasts.range(..=last).next_back()?;
        (*end >= first).then_some((*start, *end))
    }

    /// The parts of the intervals from `first` to `last`, in order.
    pub(crate) fn intersections(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
        let before = self.lasts.range(..first).next_back().filter(|(_, end)| **end >= first);
        let all = before.into_iter().chain(self.lasts.range(first..=last));
        all.map(move |(start, end)| (first.max(*start), last.min(*end)))
    }

    /// Adds all numbers from `first` to `last`.
    pub(crate) fn insert(&mut self, mut first: u128, mut last: u128) {
        // An interval that ends just before these numbers, or begins just after them, is joined with them too.
        while let Some((start, end)) = self.overlapping(first.saturating_sub(1), last.saturating_add(1)) {
            self.remove_interval(start, end);
            (first, last) = (first.min(start), last.max(end));
        }
        self.add_interval(first, last);
    }

    /// Removes all numbers from `first` to `last`. Returns whether the set contained one of them.
    pub(crate) fn remove(&mut self, first: u128, last: u128) -> bool {
        let mut is_changed = false;
        while let Some((start, end)) = self.overlapping(first, last) {
            is_changed = true;
            self.remove_interval(start, end);
            if start < first {
                self.add_interval(start, first - 1);
            }
            if last < end {
                self.add_interval(last + 1, end);
            }
        }
        is_changed
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        self.overlapping(number, number).is_some()
    }

    /// The smallest number.
    pub(crate) fn first(&self) -> Option<u128> {
        self.lasts.first_key_value().map(|(first, _)| *first)
    }

    /// The first and the last number of each interval, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, u128)> {
        self.lasts.iter().map(|(first, last)| (*first, *last))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lasts.is_empty()
    }

    /// The number of elements. The size of the set of all numbers does not fit, so it is returned as `u128::MAX`.
    pub(crate) fn len(&self) -> u128 {
        if self.len == 0 && !self.is_empty() { u128::MAX } else { self.len }
    }

    /// The number of elements that are not in `part`, which must be a subset. If all 2^128 numbers remain, the result
    /// is 0.
    pub(crate) fn len_without(&self, part: &Self) -> u128 {
        self.len.wrapping_sub(part.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn set_of_all_numbers_works_like_any_other() {
        let mut set = Intervals::default();
        set.insert(0, u128::MAX);
        assert_eq!((set.len(), set.iter().count()), (u128::MAX, 1));
        assert!(set.remove(u128::MAX, u128::MAX) && set.remove(0, 0) && !set.remove(0, 0));
        assert_eq!((set.len(), set.first()), (u128::MAX - 1, Some(1)));
        set.insert(0, 0);
        set.insert(u128::MAX, u128::MAX);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, u128::MAX)]);
        set.remove(0, u128::MAX);
        assert_eq!(set, Intervals::default());
    }

    proptest! {
        /// Near both ends of the number range, where arithmetic may fail.
        #[test]
        fn set_contains_inserted_numbers_that_were_not_removed(
            steps in proptest::collection::vec((any::<bool>(), 0..24u8, 0..12u8), 0..40),
            is_from_end: bool,
        ) {
            let at = |small: u8| if is_from_end { u128::MAX - u128::from(small) } else { u128::from(small) };
            let (mut set, mut model) = (Intervals::default(), BTreeSet::new());
            for (insert, from, size) in steps {
                let (a, b) = (at(from), at(from + size));
                let numbers = a.min(b)..=a.max(b);
                if insert {
                    set.insert(a.min(b), a.max(b));
                    model.extend(numbers);
                } else {
                    let is_changed = numbers.clone().any(|number| model.contains(&number));
                    prop_assert_eq!(set.remove(a.min(b), a.max(b)), is_changed);
                    model.retain(|number| !numbers.contains(number));
                }
                let parts = set.intersections(a.min(b), a.max(b));
                let parts: BTreeSet<_> = parts.flat_map(|(first, last)| first..=last).collect();
                let within = model.iter().filter(|number| (a.min(b)..=a.max(b)).contains(number));
                prop_assert_eq!(parts, within.copied().collect::<BTreeSet<_>>());
                prop_assert_eq!(set.len(), model.len() as u128);
                prop_assert_eq!(set.first(), model.first().copied());
                for number in (0..40).map(at) {
                    prop_assert_eq!(set.contains(number), model.contains(&number));
                }
                let ends: Vec<_> = set.iter().collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "touching: {:?}", ends);
            }
        }
    }
}
