//! A list that is part of a message: its first entries, and the number of the others.

use std::fmt;

/// The maximum number of entries that the message names.
const SHOWN: usize = 5;

/// The first entries of a list, and the number of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated<T> {
    pub(crate) first: Vec<T>,
    more: usize,
}

impl<T> Default for Truncated<T> {
    fn default() -> Self {
        Self { first: Vec::new(), more: 0 }
    }
}

impl<T> Truncated<T> {
    pub fn push(&mut self, entry: T) {
        self.push_with(|| entry);
    }

    /// Adds an entry that is made only if the message names it.
    pub fn push_with(&mut self, entry: impl FnOnce() -> T) {
        if self.first.len() < SHOWN { self.first.push(entry()) } else { self.more += 1 }
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The number of all entries.
    pub fn len(&self) -> usize {
        self.first.len() + self.more
    }
}

impl<T> FromIterator<T> for Truncated<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut truncated = Self::default();
        entries.into_iter().for_each(|entry| truncated.push(entry));
        truncated
    }
}

impl<T: fmt::Display> fmt::Display for Truncated<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, entry) in self.first.iter().enumerate() {
            write!(f, "{}{entry}", if position > 0 { ", " } else { "" })?;
        }
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_five_entries_are_shown_and_the_others_counted() {
        let truncated = |names: &[&'static str]| names.iter().copied().collect::<Truncated<_>>();
        assert_eq!(truncated(&["a", "b"]).to_string(), "a, b");
        assert_eq!(truncated(&["a", "b", "c", "d", "e"]).to_string(), "a, b, c, d, e");
        let many = truncated(&["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!((many.to_string().as_str(), many.len(), many.first.len()), ("a, b, c, d, e and 2 more", 7, 5));
    }
}
