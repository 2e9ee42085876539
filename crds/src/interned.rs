//! Texts that are kept once, however many places hold them.
//!
//! Tens of thousands of objects are kept, each under its key in several tables, and named by others: the same names, UIDs,
//! pools and reasons again and again. A [`InternedStr`] is a pointer to what all who hold the same text share.

use std::borrow::{Borrow, Cow};
use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::sync::{LazyLock, Mutex, PoisonError};

use arcstr::ArcStr;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that never changes. Cloning it copies a pointer; making it from a text that somebody holds already takes no
/// memory.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InternedStr(ArcStr);

/// All texts that somebody holds, and some that nobody does any more.
#[derive(Default)]
struct Shared {
    texts: HashSet<ArcStr>,
    /// With so many texts it is time to look which of them nobody holds.
    full: usize,
}

/// Below this many texts it is not worth to look which of them nobody holds.
const FEW: usize = 1024;

impl Shared {
    fn share(&mut self, text: &str) -> ArcStr {
        if let Some(shared) = self.texts.get(text) {
            return shared.clone();
        }
        if self.texts.len() >= self.full.max(FEW) {
            self.texts.retain(|text| ArcStr::strong_count(text) != Some(1));
            self.texts.shrink_to(self.texts.len() + FEW);
            // At least as many again come before the next look: so it costs each of them no more than one.
            self.full = self.texts.len() * 2;
        }
        let new = ArcStr::from(text);
        self.texts.insert(new.clone());
        new
    }
}

static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

impl InternedStr {
    /// As a `str`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for InternedStr {
    fn from(text: &str) -> Self {
        if text.is_empty() {
            return Self::default();
        }
        // Nothing between lock and release panics.
        Self(SHARED.lock().unwrap_or_else(PoisonError::into_inner).share(text))
    }
}

impl From<String> for InternedStr {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&String> for InternedStr {
    fn from(text: &String) -> Self {
        text.as_str().into()
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

impl AsRef<str> for InternedStr {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for InternedStr {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for InternedStr {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for InternedStr {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for InternedStr {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<InternedStr> for String {
    fn eq(&self, other: &InternedStr) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<InternedStr> for str {
    fn eq(&self, other: &InternedStr) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<InternedStr> for &str {
    fn eq(&self, other: &InternedStr) -> bool {
        *self == other.as_str()
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

impl<'de> Deserialize<'de> for InternedStr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(deserializer).map(|text| (&*text).into())
    }
}

impl JsonSchema for InternedStr {
    fn inline_schema() -> bool {
        String::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        String::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one() {
        let (one, other) = (InternedStr::from("lan"), InternedStr::from("lan".to_owned()));
        assert_eq!(one, other);
        assert_eq!(one.as_ptr(), other.as_ptr());
        let read: InternedStr = serde_json::from_str(r#""la\u006e""#).expect("a text");
        assert_eq!(read.as_ptr(), one.as_ptr());
    }

    #[test]
    fn what_nobody_holds_is_forgotten_and_what_somebody_holds_is_not() {
        let mut shared = Shared::default();
        let held: Vec<_> = (0..100).map(|n| shared.share(&format!("held-{n}"))).collect();
        for n in 0..100 * FEW {
            shared.share(&format!("dropped-{n}"));
        }
        assert!(shared.texts.len() <= 2 * FEW, "{}", shared.texts.len());
        for text in &held {
            assert_eq!(shared.share(text).as_ptr(), text.as_ptr());
        }
    }
}
