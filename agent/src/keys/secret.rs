//! The entries and annotations of the Secret: Secret → [`SecretView`] → [`UsableKeys`]. Pure.
//!
//! Every entry of `data` that is long enough is a key, whatever its name. A packet carries one seal for each key. A
//! receiver accepts the packet if the receiver has the key of at least one seal ([`speaker::wire::seal`]). So the order
//! of the entries has no meaning to speakers. Two nodes with different versions of the Secret accept each other's
//! packets if both versions have a key in common.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use speaker::Keys;
use speaker::wire::seal::{MAX_KEYS, MIN_KEY};

/// Annotation that requests a new key, whatever its value. Landfall removes the annotation when it adds the key.
pub(crate) const ROTATE: &str = "landfall.dev/rotate";

/// Annotation with the names of the entries that a rotation removes at its end, separated by spaces.
pub(crate) const RETIRE: &str = "landfall.dev/retire";

/// Annotation with the time at which the entries in `landfall.dev/retire` are removed (RFC 3339).
pub(crate) const RETIRE_AFTER: &str = "landfall.dev/retire-after";

/// The fields of the Secret that Landfall uses.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretView {
    /// The resource version, which a write must contain.
    pub(crate) version: String,
    /// The entries by name. Their values are never printed.
    pub(crate) entries: BTreeMap<String, Vec<u8>>,
    /// Whether a new key is requested.
    pub(crate) rotate: bool,
    /// The removal at the end of the rotation in progress.
    pub(crate) retirement: Option<Retirement>,
}

/// The removal of old keys at the end of a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retirement {
    /// The names of the entries to remove.
    pub(crate) names: BTreeSet<String>,
    /// `None` if the annotation is missing or contains no time.
    pub(crate) after: Option<Timestamp>,
}

impl From<&Secret> for SecretView {
    fn from(object: &Secret) -> Self {
        let annotations = object.metadata.annotations.iter().flatten();
        let annotations: BTreeMap<&str, &str> = annotations.map(|(name, value)| (&**name, &**value)).collect();
        let data = object.data.iter().flatten();
        Self {
            version: object.metadata.resource_version.clone().unwrap_or_default(),
            entries: data.map(|(name, value)| (name.clone(), value.0.clone())).collect(),
            rotate: annotations.contains_key(ROTATE),
            retirement: annotations.get(RETIRE).map(|names| Retirement {
                names: names.split_whitespace().map(str::to_owned).collect(),
                after: annotations.get(RETIRE_AFTER).and_then(|after| after.parse().ok()),
            }),
        }
    }
}

impl fmt::Debug for SecretView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.entries.keys().collect();
        write!(f, "SecretView({} {names:?} rotate={} {:?})", self.version, self.rotate, self.retirement)
    }
}

/// The keys in the usable entries, and why the other entries are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UsableKeys {
    pub(crate) keys: Keys,
    /// The names of the entries that contain these keys.
    pub(crate) names: BTreeSet<String>,
    /// Why the other entries are ignored.
    pub(crate) problems: Vec<EntryProblem>,
}

/// Why an entry is ignored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryProblem {
    /// The key is so short that it could be guessed.
    #[error("entry {name} has {bytes} bytes; a key needs at least {MIN_KEY}")]
    TooShort { name: String, bytes: usize },
    /// A packet has no room for a seal with this key, because there are more than [`MAX_KEYS`] keys.
    #[error("entry {name} exceeds the limit; only the last {MAX_KEYS} keys by name are used")]
    Surplus { name: String },
}

impl SecretView {
    /// The entries that are long enough. If there are more than [`MAX_KEYS`], the last ones by name are used. Of the
    /// keys that Landfall made, these are the newest, because Landfall names a key after its time of creation. All
    /// nodes with the same Secret use the same keys.
    pub(crate) fn usable_keys(&self) -> UsableKeys {
        let mut problems = Vec::new();
        let mut good: Vec<(&String, &[u8])> = Vec::new();
        for (name, secret) in &self.entries {
            match secret.len() {
                bytes if bytes < MIN_KEY => problems.push(EntryProblem::TooShort { name: name.clone(), bytes }),
                _ => good.push((name, secret)),
            }
        }
        let surplus = good.len().saturating_sub(MAX_KEYS);
        problems.extend(good.drain(..surplus).map(|(name, _)| EntryProblem::Surplus { name: name.clone() }));
        let keys = Keys::new(good.iter().map(|(_, secret)| *secret))
            .expect("invariant: at most MAX_KEYS, each of at least MIN_KEY bytes");
        UsableKeys { keys, names: good.into_iter().map(|(name, _)| name.clone()).collect(), problems }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    /// JSON merge patch (RFC 7396), as an API server applies it.
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

    fn assert_usable(entries: &[(&str, &[u8])], expected: &[&[u8]], problems: &[EntryProblem]) {
        let usable = SecretView::from(&secret(entries, &[])).usable_keys();
        assert_eq!((usable.keys, usable.problems), (keys(expected), problems.to_vec()), "{entries:?}");
    }

    #[test]
    fn the_last_long_enough_entries_by_name_are_keys() {
        let short = |name: &str, bytes| EntryProblem::TooShort { name: name.into(), bytes };
        assert_usable(&[], &[], &[]);
        assert_usable(&[("a", A)], &[A], &[]);
        assert_usable(&[("a", A), ("b", B), ("c", C)], &[A, B, C], &[]);
        assert_usable(&[("a", A), ("b", b"hunter2"), ("c", b"")], &[A], &[short("b", 7), short("c", 0)]);
        let all: &[(&str, &[u8])] = &[("a", A), ("b", B), ("c", C), ("d", D)];
        assert_usable(all, &[B, C, D], &[EntryProblem::Surplus { name: "a".into() }]);
    }

    #[test]
    fn annotations_request_and_schedule_a_rotation() {
        let read = |annotations: &[(&str, &str)]| {
            let view = SecretView::from(&secret(&[("a", A)], annotations));
            (view.rotate, view.retirement)
        };
        let retirement = |names: &[&str], after: Option<&str>| Retirement {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            after: after.map(|after| after.parse().expect("a time")),
        };
        let noon = "2026-01-01T12:00:00Z";
        assert_eq!(read(&[]), (false, None));
        assert_eq!(read(&[(ROTATE, "")]), (true, None));
        assert_eq!(read(&[(RETIRE, "a b"), (RETIRE_AFTER, noon)]), (false, Some(retirement(&["a", "b"], Some(noon)))));
        assert_eq!(read(&[(RETIRE, "a"), (RETIRE_AFTER, "soon")]), (false, Some(retirement(&["a"], None))));
        assert_eq!(read(&[(RETIRE_AFTER, noon)]), (false, None));
    }

    #[test]
    fn key_material_is_never_printed() {
        let view = SecretView::from(&secret(&[("a", b"open sesame, open sesame")], &[]));
        let printed = format!("{view:?} {:?}", view.usable_keys());
        assert!(printed.contains("\"a\"") && !printed.contains("sesame") && !printed.contains("111"), "{printed}");
    }
}
