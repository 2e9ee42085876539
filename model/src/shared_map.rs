//! A map whose copies share what they have in common.
//!
//! Who observes a cluster makes one state of it after the other, each almost like the one before, and others go on using the
//! older ones. A [`SharedMap`] is sorted pieces of some dozen entries: a copy shares all of them, a change makes one anew, and
//! what two states have in common is passed over a piece at a time ([`SharedMap::differing`]). So a change of one entry
//! among 30,000 costs microseconds, to make and to find, and not milliseconds.

use std::cmp::Ordering;
use std::fmt;
use std::iter::from_fn;
use std::ops::Index;
use std::sync::Arc;

/// So many entries a piece has at most. With fewer there are more pieces to copy pointers to; with more, one piece takes longer
/// to make anew.
const MOST: usize = 64;

/// A piece with fewer becomes part of its neighbour, where there is room.
const FEW: usize = MOST / 4;

/// By how many entries a piece grows: there are many pieces, so none should have much room left over.
const ROOM: usize = 8;

/// A sorted map. Cloning it copies a pointer.
pub struct SharedMap<K, V> {
    /// None is empty, and the keys ascend through all of them.
    pieces: Arc<Vec<Piece<K, V>>>,
    len: usize,
}

type Piece<K, V> = Arc<Vec<(K, V)>>;

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// What is there under this key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let piece = self.pieces.get(self.piece_of(key))?;
        let place = piece.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        Some(&piece[place].1)
    }

    /// Whether there is something under this key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The piece that has this key if any has.
    fn piece_of(&self, key: &K) -> usize {
        self.pieces.partition_point(|piece| piece[0].0 <= *key).saturating_sub(1)
    }

    /// Every key that only one of the two maps has, and every other one but for most of those under which both have the very
    /// same: in order, with what is there in this map, and in the other one. (Whether those are equal is not looked at.)
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
        let is_same = Arc::ptr_eq(&self.pieces, &other.pieces);
        let (mut left, mut right) = (Cursor::new(&self.pieces), Cursor::new(&other.pieces));
        from_fn(move || {
            if is_same {
                return None;
            }
            while let (Some(a), Some(b)) = (left.whole_piece(), right.whole_piece())
                && Arc::ptr_eq(a, b)
            {
                left.pass_piece();
                right.pass_piece();
            }
            let order = match (left.entry(), right.entry()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let from_left = if order.is_le() { left.next() } else { None };
            let from_right = if order.is_ge() { right.next() } else { None };
            let (key, _) = from_left.or(from_right)?;
            Some((key, from_left.map(|(_, value)| value), from_right.map(|(_, value)| value)))
        })
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Puts `value` under this key, and returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.piece_of(&key);
        let pieces = Arc::make_mut(&mut self.pieces);
        let Some(piece) = pieces.get_mut(at) else {
            pieces.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        match piece.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(place) => Some(std::mem::replace(&mut Arc::make_mut(piece)[place].1, value)),
            Err(place) => {
                self.len += 1;
                if piece.len() < MOST {
                    add(Arc::make_mut(piece), place, (key, value));
                } else if place == MOST {
                    // Where keys come in order, pieces are left full.
                    pieces.insert(at + 1, Arc::new(vec![(key, value)]));
                } else {
                    let (before, after) = piece.split_at(MOST / 2);
                    let (mut before, mut after) = (before.to_vec(), after.to_vec());
                    match place.checked_sub(MOST / 2) {
                        Some(place) => add(&mut after, place, (key, value)),
                        None => add(&mut before, place, (key, value)),
                    }
                    *piece = Arc::new(before);
                    pieces.insert(at + 1, Arc::new(after));
                }
                None
            }
        }
    }

    /// Takes away what is under this key, and returns it.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.piece_of(key);
        let place = self.pieces.get(at)?.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        let pieces = Arc::make_mut(&mut self.pieces);
        let (_, value) = Arc::make_mut(&mut pieces[at]).remove(place);
        self.len -= 1;
        let left = pieces[at].len();
        let fits = |other: &Piece<K, V>| left + other.len() <= MOST;
        if left == 0 {
            pieces.remove(at);
        } else if left < FEW && pieces.get(at + 1).is_some_and(fits) {
            let next = pieces.remove(at + 1);
            Arc::make_mut(&mut pieces[at]).extend(next.iter().cloned());
        } else if left < FEW && at > 0 && fits(&pieces[at - 1]) {
            let this = pieces.remove(at);
            Arc::make_mut(&mut pieces[at - 1]).extend(this.iter().cloned());
        }
        Some(value)
    }

    /// What is there under this key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.piece_of(key);
        let place = self.pieces.get(at)?.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        let piece = Arc::make_mut(&mut Arc::make_mut(&mut self.pieces)[at]);
        Some(&mut piece[place].1)
    }

    /// All values, to be changed, in order of their keys. Nothing is shared any more then.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let pieces = Arc::make_mut(&mut self.pieces).iter_mut();
        pieces.flat_map(|piece| Arc::make_mut(piece).iter_mut()).map(|(_, value)| value)
    }
}

/// Puts an entry into a piece.
fn add<T>(piece: &mut Vec<T>, place: usize, entry: T) {
    if piece.len() == piece.capacity() {
        piece.reserve_exact(ROOM);
    }
    piece.insert(place, entry);
}

/// A place in the pieces of a map.
struct Cursor<'a, K, V> {
    pieces: &'a [Piece<K, V>],
    /// How many entries of the first of them lie behind.
    passed: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(pieces: &'a [Piece<K, V>]) -> Self {
        Self { pieces, passed: 0 }
    }

    /// The piece that begins here, if one does.
    fn whole_piece(&self) -> Option<&'a Piece<K, V>> {
        self.pieces.first().filter(|_| self.passed == 0)
    }

    fn pass_piece(&mut self) {
        (self.pieces, self.passed) = (&self.pieces[1..], 0);
    }

    fn entry(&self) -> Option<&'a (K, V)> {
        self.pieces.first().map(|piece| &piece[self.passed])
    }

    fn next(&mut self) -> Option<&'a (K, V)> {
        let entry = self.entry()?;
        self.passed += 1;
        if self.passed == self.pieces[0].len() {
            self.pass_piece();
        }
        Some(entry)
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { pieces: Arc::clone(&self.pieces), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { pieces: Arc::default(), len: 0 }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differing(other).all(|(_, one, another)| one == another)
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord, V> Index<&K> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("no entry under this key")
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, V)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    type Map = SharedMap<u16, u8>;

    fn is_whole(map: &Map) -> bool {
        let pieces = &map.pieces;
        let keys: Vec<u16> = map.keys().copied().collect();
        pieces.iter().all(|piece| (1..=MOST).contains(&piece.len()))
            && keys.is_sorted_by(|a, b| a < b)
            && keys.len() == map.len()
    }

    /// What comes (`Some`) or goes under which key.
    fn steps() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        let step = (0..600u16, proptest::option::weighted(0.6, any::<u8>()));
        // Some at random, and some in a row.
        (vec(step.clone(), 0..300), vec(step, 0..10)).prop_map(|(mut all, row)| {
            all.extend(row.into_iter().flat_map(|(first, value)| (first..first + 40).map(move |key| (key, value))));
            all
        })
    }

    fn takes(map: &mut Map, (key, value): (u16, Option<u8>)) -> Option<u8> {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        }
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(steps in steps()) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            for (key, value) in steps {
                let expected = match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
                prop_assert_eq!(takes(&mut map, (key, value)), expected);
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            prop_assert!(is_whole(&map));
            prop_assert!(map.iter().eq(&model) && map.iter().rev().eq(model.iter().rev()));
            prop_assert_eq!(map.is_empty(), model.is_empty());
            map.values_mut().for_each(|value| *value /= 2);
            prop_assert!(map.values().copied().eq(model.values().map(|value| *value / 2)));
            let made: Map = model.into_iter().map(|(key, value)| (key, value / 2)).collect();
            prop_assert_eq!(made, map);
        }

        #[test]
        fn all_that_differs_is_found_and_older_states_stay(first in steps(), then in steps()) {
            let mut map = Map::default();
            for step in first {
                takes(&mut map, step);
            }
            let before = map.clone();
            let was: BTreeMap<u16, u8> = before.iter().map(|(key, value)| (*key, *value)).collect();
            for step in then {
                takes(&mut map, step);
            }
            prop_assert!(before.iter().eq(&was));
            let is: BTreeMap<u16, u8> = map.iter().map(|(key, value)| (*key, *value)).collect();
            let all: BTreeSet<u16> = was.keys().chain(is.keys()).copied().collect();
            let expected: Vec<_> = all.into_iter().filter(|key| was.get(key) != is.get(key)).collect();
            let told: Vec<_> = before.differing(&map).collect();
            prop_assert!(told.iter().all(|(key, a, b)| (*a, *b) == (was.get(key), is.get(key))));
            let differing: Vec<u16> = told.iter().filter(|(_, a, b)| a != b).map(|(key, ..)| **key).collect();
            prop_assert_eq!(&differing, &expected);
            prop_assert_eq!(before == map, expected.is_empty());
        }
    }

    #[test]
    fn one_change_among_many_is_found_by_looking_at_a_piece_of_them() {
        let map: Map = (0..30_000).map(|key| (key, 0)).collect();
        for change in [(15_000, Some(1)), (15_000, None), (30_001, Some(1))] {
            let mut after = map.clone();
            takes(&mut after, change);
            let told: Vec<u16> = map.differing(&after).map(|(key, ..)| *key).collect();
            assert!(told.len() <= MOST + 1 && told.contains(&change.0), "{} for {change:?}", told.len());
        }
        assert_eq!(map.differing(&map.clone()).count(), 0);
    }

    #[test]
    fn a_value_can_be_changed_in_place() {
        let before = Map::from([(1, 1), (2, 2)]);
        let mut after = before.clone();
        *after.get_mut(&2).expect("there") = 3;
        assert_eq!(after.get_mut(&3), None);
        assert_eq!((before[&2], after[&2]), (2, 3));
    }
}
