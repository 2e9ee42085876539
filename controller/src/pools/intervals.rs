//! Sets of addresses as intervals of numbers, so that what a set costs depends on how often it is interrupted and never
//! on how many addresses are in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Index, IndexMut};

use crds::service::Family;

/// One of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByFamily<T> {
    /// That of IPv4.
    pub v4: T,
    /// That of IPv6.
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

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The number of an address among those of its family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of that number, which is one of that family.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

/// A set of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intervals {
    /// By its first number, the last of each interval. Between two of them at least one number is missing.
    lasts: BTreeMap<u128, u128>,
    /// How many numbers there are, modulo 2^128: see [`Intervals::len`].
    len: u128,
}

impl Intervals {
    /// The interval that has `number`, as first and last.
    fn around(&self, number: u128) -> Option<(u128, u128)> {
        let (first, last) = self.lasts.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }

    fn put(&mut self, first: u128, last: u128) {
        self.lasts.insert(first, last);
        self.len = self.len.wrapping_add(last - first).wrapping_add(1);
    }

    fn pull(&mut self, first: u128, last: u128) {
        self.lasts.remove(&first);
        self.len = self.len.wrapping_sub(last - first).wrapping_sub(1);
    }

    /// Adds all numbers from `first` to `last`.
    pub(crate) fn insert(&mut self, mut first: u128, mut last: u128) {
        let before = |set: &Self, first: u128, last: u128| {
            let (start, end) = set.lasts.range(..=last.saturating_add(1)).next_back()?;
            (end.saturating_add(1) >= first).then_some((*start, *end))
        };
        while let Some((start, end)) = before(self, first, last) {
            self.pull(start, end);
            (first, last) = (first.min(start), last.max(end));
        }
        self.put(first, last);
    }

    /// Takes all numbers from `first` to `last` away, and says whether one of them was there.
    pub(crate) fn remove(&mut self, first: u128, last: u128) -> bool {
        let mut was_there = false;
        let overlapping = |set: &Self| {
            let (start, end) = set.lasts.range(..=last).next_back()?;
            (*end >= first).then_some((*start, *end))
        };
        while let Some((start, end)) = overlapping(self) {
            was_there = true;
            self.pull(start, end);
            if start < first {
                self.put(start, first - 1);
            }
            if last < end {
                self.put(last + 1, end);
            }
        }
        was_there
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        self.around(number).is_some()
    }

    /// The smallest number.
    pub(crate) fn first(&self) -> Option<u128> {
        self.lasts.first_key_value().map(|(first, _)| *first)
    }

    /// First and last of each interval, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, u128)> {
        self.lasts.iter().map(|(first, last)| (*first, *last))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lasts.is_empty()
    }

    /// How many numbers there are; `u128::MAX` also for all of them, whose number does not fit.
    pub(crate) fn len(&self) -> u128 {
        if self.len == 0 && !self.is_empty() { u128::MAX } else { self.len }
    }

    /// How many numbers of this set are not in `part`, all of whose numbers are in this one. Exact, unless all numbers
    /// that there are remain.
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
    fn all_numbers_are_a_set_as_any_other() {
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
        /// Near both ends of what there is, where arithmetic may fail.
        #[test]
        fn it_has_what_was_put_in_and_not_taken_out(
            steps in proptest::collection::vec((any::<bool>(), 0..24u8, 0..12u8), 0..40),
            from_the_end: bool,
        ) {
            let at = |small: u8| if from_the_end { u128::MAX - u128::from(small) } else { u128::from(small) };
            let (mut set, mut model) = (Intervals::default(), BTreeSet::new());
            for (insert, from, size) in steps {
                let (a, b) = (at(from), at(from + size));
                let numbers = a.min(b)..=a.max(b);
                if insert {
                    set.insert(a.min(b), a.max(b));
                    model.extend(numbers);
                } else {
                    let was_there = numbers.clone().any(|number| model.contains(&number));
                    prop_assert_eq!(set.remove(a.min(b), a.max(b)), was_there);
                    model.retain(|number| !numbers.contains(number));
                }
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
