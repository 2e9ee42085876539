//! Pairs of keys, found by the first key of a pair.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

/// By first key, the second keys of its pairs. No set is empty.
#[derive(Debug)]
pub(crate) struct Relation<A, B>(BTreeMap<A, BTreeSet<B>>);

impl<A, B> Default for Relation<A, B> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A: Ord, B: Ord> Relation<A, B> {
    pub(super) fn insert(&mut self, first: A, second: B) {
        self.0.entry(first).or_default().insert(second);
    }

    pub(super) fn remove(&mut self, first: &A, second: &B) {
        if let Some(seconds) = self.0.get_mut(first) {
            seconds.remove(second);
            if seconds.is_empty() {
                self.0.remove(first);
            }
        }
    }

    /// The second keys of all pairs with this first key, in order.
    pub(crate) fn get<'a, Q: Ord + ?Sized>(&'a self, first: &Q) -> impl Iterator<Item = &'a B> + use<'a, A, B, Q>
    where
        A: Borrow<Q>,
    {
        self.0.get(first).into_iter().flatten()
    }

    pub(crate) fn contains(&self, first: &A) -> bool {
        self.0.contains_key(first)
    }

    /// All first keys, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &A> {
        self.0.keys()
    }
}
