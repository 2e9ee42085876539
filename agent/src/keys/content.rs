//! What stands in the Secret: Secret → [`Content`] → [`Usable`]. Pure.
//!
//! Every entry of `data` is a key, whatever its name. Packets are sealed with all of them, and believed if one of the seals
//! is by one of them ([`speaker::wire::seal`]): so which entry is the newest means nothing to speakers, and two nodes that have
//! read different versions of the Secret understand each other as long as one entry is in both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use speaker::Keys;
use speaker::wire::seal::{MAX_KEYS, MIN_KEY};

/// Asks for a new key: the annotation is there, with any value. It goes when the key comes.
pub(crate) const ROTATE: &str = "landfall.dev/rotate";

/// Which entries a rotation takes away in the end: their names, with spaces between.
pub(crate) const RETIRE: &str = "landfall.dev/retire";

/// When it does (RFC 3339).
pub(crate) const RETIRE_AFTER: &str = "landfall.dev/retire-after";

/// What stands in the Secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// The version of the object, which a write must name.
    pub(crate) version: String,
    /// The entries, by name. What they are is never printed.
    pub(crate) entries: BTreeMap<String, Vec<u8>>,
    /// Whether a new key is asked for.
    pub(crate) rotate: bool,
    /// Which entries are to go, if a rotation is under way.
    pub(crate) retiring: Option<Retiring>,
}

/// A rotation that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retiring {
    /// The names of the entries that go.
    pub(crate) names: BTreeSet<String>,
    /// When; `None` if what stands there is no time.
    pub(crate) after: Option<Timestamp>,
}

impl From<&Secret> for Content {
    fn from(object: &Secret) -> Self {
        let annotations = object.metadata.annotations.iter().flatten();
        let annotations: BTreeMap<&str, &str> = annotations.map(|(name, value)| (&**name, &**value)).collect();
        let data = object.data.iter().flatten();
        Self {
            version: object.metadata.resource_version.clone().unwrap_or_default(),
            entries: data.map(|(name, value)| (name.clone(), value.0.clone())).collect(),
            rotate: annotations.contains_key(ROTATE),
            retiring: annotations.get(RETIRE).map(|names| Retiring {
                names: names.split_whitespace().map(str::to_owned).collect(),
                after: annotations.get(RETIRE_AFTER).and_then(|after| after.parse().ok()),
            }),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.entries.keys().collect();
        write!(f, "Content({} {names:?} rotate={} {:?})", self.version, self.rotate, self.retiring)
    }
}

/// The keys among the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usable {
    /// The keys.
    pub(crate) keys: Keys,
    /// The names of their entries.
    pub(crate) names: BTreeSet<String>,
    /// Why other entries are none.
    pub(crate) problems: Vec<Problem>,
}

/// Why an entry is no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It could be guessed.
    Short {
        /// Its name.
        name: String,
        /// How many bytes it has.
        bytes: usize,
    },
    /// There are too many.
    Surplus {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { name, bytes } => {
                write!(f, "entry {name} has {bytes} bytes, and a key has at least {MIN_KEY}: it is left out")
            }
            Self::Surplus { name } => {
                write!(f, "entry {name} is one too many: the last {MAX_KEYS} by name are used")
            }
        }
    }
}

impl Content {
    /// The keys among the entries: those that are long enough, and of too many the last by name (those that Landfall makes
    /// are named after the time). All nodes leave out the same ones.
    pub(crate) fn usable(&self) -> Usable {
        let mut problems = Vec::new();
        let mut good: Vec<(&String, &[u8])> = Vec::new();
        for (name, secret) in &self.entries {
            match secret.len() {
                bytes if bytes < MIN_KEY => problems.push(Problem::Short { name: name.clone(), bytes }),
                _ => good.push((name, secret)),
            }
        }
        let surplus = good.len().saturating_sub(MAX_KEYS);
        problems.extend(good.drain(..surplus).map(|(name, _)| Problem::Surplus { name: name.clone() }));
        let keys = Keys::new(good.iter().map(|(_, secret)| *secret))
            .expect("invariant: they are long enough, and not too many");
        Usable { keys, names: good.into_iter().map(|(name, _)| name.clone()).collect(), problems }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    /// JSON merge patch (RFC 7386), as an API server does it.
    pub(crate) fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(fields) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (name, value) in fields {
            match value {
                Value::Null => drop(target.as_object_mut().and_then(|object| object.remove(name))),
                value => merge(&mut target[name], value),
            }
        }
    }

    /// A Secret with these entries and annotations.
    pub(crate) fn secret(entries: &[(&str, &[u8])], annotations: &[(&str, &str)]) -> Secret {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let data: BTreeMap<_, _> = entries.iter().map(|(name, value)| (*name, ByteString(value.to_vec()))).collect();
        let metadata = json!({"name": super::super::NAME, "resourceVersion": "7", "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata, "data": data})).expect("a Secret")
    }

    const A: &[u8] = &[1; 32];
    const B: &[u8] = &[2; 32];
    const C: &[u8] = &[3; 32];
    const D: &[u8] = &[4; 32];

    fn keys(secrets: &[&[u8]]) -> Keys {
        Keys::new(secrets.iter().copied()).expect("keys")
    }

    #[test]
    fn every_entry_that_is_long_enough_is_a_key_and_of_too_many_the_last_by_name_are() {
        let check = |entries: &[(&str, &[u8])], expected: &[&[u8]], problems: &[Problem]| {
            let usable = Content::from(&secret(entries, &[])).usable();
            assert_eq!((usable.keys, usable.problems), (keys(expected), problems.to_vec()), "{entries:?}");
        };
        let short = |name: &str, bytes| Problem::Short { name: name.into(), bytes };
        check(&[], &[], &[]);
        check(&[("a", A)], &[A], &[]);
        check(&[("a", A), ("b", B), ("c", C)], &[A, B, C], &[]);
        check(&[("a", A), ("b", b"hunter2"), ("c", b"")], &[A], &[short("b", 7), short("c", 0)]);
        let all: &[(&str, &[u8])] = &[("a", A), ("b", B), ("c", C), ("d", D)];
        check(all, &[B, C, D], &[Problem::Surplus { name: "a".into() }]);
    }

    #[test]
    fn annotations_say_that_a_new_key_is_wanted_and_which_ones_go_when() {
        let read = |annotations: &[(&str, &str)]| {
            let content = Content::from(&secret(&[("a", A)], annotations));
            (content.rotate, content.retiring)
        };
        let retiring = |names: &[&str], after: Option<&str>| Retiring {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            after: after.map(|after| after.parse().expect("a time")),
        };
        let noon = "2026-01-01T12:00:00Z";
        assert_eq!(read(&[]), (false, None));
        assert_eq!(read(&[(ROTATE, "")]), (true, None));
        assert_eq!(read(&[(RETIRE, "a b"), (RETIRE_AFTER, noon)]), (false, Some(retiring(&["a", "b"], Some(noon)))));
        assert_eq!(read(&[(RETIRE, "a"), (RETIRE_AFTER, "soon")]), (false, Some(retiring(&["a"], None))));
        assert_eq!(read(&[(RETIRE_AFTER, noon)]), (false, None));
    }

    #[test]
    fn what_a_key_is_is_never_printed() {
        let content = Content::from(&secret(&[("a", b"open sesame, open sesame")], &[]));
        let printed = format!("{content:?} {:?}", content.usable());
        assert!(printed.contains("\"a\"") && !printed.contains("sesame") && !printed.contains("111"), "{printed}");
    }
}
