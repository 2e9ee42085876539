//! Interned strings: equal strings share one allocation.
//!
//! The controller keeps tens of thousands of objects. Several tables store the key of each object, and objects refer to
//! others by name. So the same names, UIDs, pools and reasons occur many times. An [`InternedStr`] is a pointer to the
//! shared string.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::sync::{LazyLock, Mutex, PoisonError};

use arcstr::ArcStr;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// An immutable shared string. Cloning copies a pointer. Creating one from a string that is already interned allocates
/// nothing.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(from = "String")]
#[schemars(with = "String")]
pub struct InternedStr(ArcStr);

/// All strings in use, and unused ones that are not removed yet.
#[derive(Default)]
struct Interner {
    texts: HashSet<ArcStr>,
    /// When the number of strings reaches the greater of this limit and [`MIN_LIMIT`], unused strings are removed.
    limit: usize,
}

/// Below this number of strings, unused strings are not removed.
const MIN_LIMIT: usize = 1024;

impl Interner {
    fn intern(&mut self, text: &str) -> ArcStr {
        if let Some(shared) = self.texts.get(text) {
            return shared.clone();
        }
        if self.texts.len() >= self.limit.max(MIN_LIMIT) {
            self.texts.retain(|text| ArcStr::strong_count(text) != Some(1));
            self.texts.shrink_to(self.texts.len() + MIN_LIMIT);
            // A removal visits all strings. If n strings remain, the next removal follows after at least n insertions:
            // amortized O(1) per insertion.
            self.limit = self.texts.len() * 2;
        }
        let new = ArcStr::from(text);
        self.texts.insert(new.clone());
        new
    }
}

static INTERNER: LazyLock<Mutex<Interner>> = LazyLock::new(Mutex::default);

impl InternedStr {
    /// Returns the string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: AsRef<str>> From<T> for InternedStr {
    fn from(text: T) -> Self {
        let text = text.as_ref();
        if text.is_empty() {
            return Self::default();
        }
        // No code panics while it holds this lock, so the lock is never poisoned.
        Self(INTERNER.lock().unwrap_or_else(PoisonError::into_inner).intern(text))
    }
}

impl From<&InternedStr> for InternedStr {
    fn from(text: &InternedStr) -> Self {
        text.clone()
    }
}

impl From<InternedStr> for String {
    fn from(text: InternedStr) -> Self {
        text.as_str().into()
    }
}

impl Deref for InternedStr {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for InternedStr {
    fn borrow(&self) -> &str {
        &self.0
    }
}

// `InternedStr` does not implement `AsRef<str>`. Otherwise this impl would conflict with the derived `PartialEq`.
impl<T: AsRef<str> + ?Sized> PartialEq<T> for InternedStr {
    fn eq(&self, other: &T) -> bool {
        self.as_str() == other.as_ref()
    }
}

impl fmt::Display for InternedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for InternedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for InternedStr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_one_allocation() {
        let (one, other) = (InternedStr::from("lan"), InternedStr::from("lan".to_owned()));
        assert_eq!(one, other);
        assert_eq!(one.as_ptr(), other.as_ptr());
        let read: InternedStr = serde_json::from_str(r#""la\u006e""#).expect("a text");
        assert_eq!(read.as_ptr(), one.as_ptr());
    }

    #[test]
    fn unused_strings_are_removed_and_used_ones_kept() {
        let mut interner = Interner::default();
        let held: Vec<_> = (0..100).map(|n| interner.intern(&format!("held-{n}"))).collect();
        for n in 0..100 * MIN_LIMIT {
            interner.intern(&format!("dropped-{n}"));
        }
        assert!(interner.texts.len() <= 2 * MIN_LIMIT, "{}", interner.texts.len());
        for text in &held {
            assert_eq!(interner.intern(text).as_ptr(), text.as_ptr());
        }
    }
}
