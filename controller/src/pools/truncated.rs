//! The first few of what may be many, for a sentence that people can still read.

use std::fmt;

/// How many are listed before the others are only counted.
const LISTED: usize = 5;

/// The first few of some things, and how many more there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T> {
    first: Vec<T>,
    more: usize,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { first: Vec::new(), more: 0 }
    }
}

impl<T> Few<T> {
    /// Adds one.
    pub fn push(&mut self, one: T) {
        self.push_with(|| one);
    }

    /// Adds one, which is made only if it is to be listed.
    pub fn push_with(&mut self, one: impl FnOnce() -> T) {
        if self.first.len() < LISTED { self.first.push(one()) } else { self.more += 1 }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.first.len() + self.more
    }

    /// Those that are listed.
    pub fn listed(&self) -> &[T] {
        &self.first
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut few = Self::default();
        all.into_iter().for_each(|one| few.push(one));
        few
    }
}

/// As a sentence has them.
impl<T: fmt::Display> fmt::Display for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, one) in self.first.iter().enumerate() {
            write!(f, "{}{one}", if place > 0 { ", " } else { "" })?;
        }
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_listed_and_the_others_counted() {
        let few = |names: &[&'static str]| names.iter().copied().collect::<Few<_>>();
        assert_eq!(few(&["a", "b", "c", "d", "e"]).to_string(), "a, b, c, d, e");
        let many = few(&["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!((many.to_string().as_str(), many.len(), many.listed().len()), ("a, b, c, d, e and 2 more", 7, 5));
    }
}
