//! The newest known state of the objects of one kind, by key.
//!
//! A table has two inputs: the watch (a list, then events in order), and the responses to our writes. "Our writes" are
//! those of this process. The two inputs arrive in any relative order, and the table never goes back to an older state:
//!
//! - Versions of all objects of a kind can be compared (KEP-5504). The watch sends events in the order of versions. A
//!   response is ignored if the last event has the same or a newer version. Then the watch has already sent the result
//!   of the write, even if the object has been deleted since.
//! - A response with a newer version is ahead of the watch. Its state stays in the table until the watch catches up.
//!   Older events in between are ignored.
//! - An object that one of our writes deleted stays deleted. The table remembers the UID of the deleted object, so that
//!   older events do not restore it.
//! - A list replaces everything except the responses that arrived since the request for the list and have a newer
//!   version than the list.
//!
//! Events and responses → the newest state of each object, and whether it changed. The result does not depend on the
//! order of arrival.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::InternedStr;
pub use crds::ResourceVersion;

/// The content of one state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<V> {
    /// The parsed view.
    Known(V),
    /// Landfall does not use the object in this state. The table treats the object as if it did not exist.
    Ignored,
    /// The state cannot be parsed. The last known state of the object stays in the table.
    Unreadable,
}

/// One observed state of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation<K, V> {
    pub key: K,
    /// Distinguishes objects that were created under the same name one after the other.
    pub uid: InternedStr,
    pub version: ResourceVersion,
    pub content: Content<V>,
}

/// A change of the known state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, V> {
    pub key: K,
    /// Known state at the previous call of [`Table::take_changes`]; `None` if none was known.
    pub before: Option<Arc<V>>,
    /// Newest known state; `None` if the object does not exist or no state is known.
    pub value: Option<Arc<V>>,
    /// Whether the current state cannot be parsed.
    pub is_unreadable: bool,
}

/// The newest known state of the objects of one kind.
#[derive(Debug)]
pub struct Table<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Objects whose current state cannot be parsed. `entries` may have an older state.
    unreadable: BTreeSet<K>,
    /// The watch has sent all events up to this version.
    watch_version: ResourceVersion,
    /// Objects that our writes deleted. An entry stays for a short time, until the watch reports the deletion.
    deleted: BTreeMap<K, Deleted>,
    /// A list that is being received.
    listing: Option<BTreeMap<K, Listed<V>>>,
    synced: bool,
    /// Objects that changed since the last call of [`Table::take_changes`], with their state at that call.
    changed: BTreeMap<K, Option<Arc<V>>>,
}

/// An object of a list that is being received. This struct is small, because tens of thousands of them exist at the
/// same time as the old state.
#[derive(Debug)]
struct Listed<V> {
    uid: InternedStr,
    version: ResourceVersion,
    content: Content<Arc<V>>,
}

/// An object that one of our writes deleted.
#[derive(Debug)]
struct Deleted {
    uid: InternedStr,
    /// The last known version.
    version: ResourceVersion,
    /// Whether a list was requested after the deletion. Such a list includes the deletion.
    listed_since: bool,
}

#[derive(Debug)]
struct Entry<V> {
    uid: InternedStr,
    version: ResourceVersion,
    /// `None` if a response reported a state in which Landfall does not use the object. Such an entry stays until the
    /// watch catches up.
    value: Option<Arc<V>>,
    /// Whether this state is a response that arrived since the last request for a list.
    is_response: bool,
}

impl Deleted {
    /// Whether the deletion is later than the state with this UID and version. Such a state belongs to the deleted
    /// object, or to an older object with the same name.
    fn is_after(&self, uid: &str, version: ResourceVersion) -> bool {
        self.uid == uid || version <= self.version
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            watch_version: 0,
            deleted: BTreeMap::new(),
            listing: None,
            synced: false,
            changed: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> Table<K, V> {
    /// Whether a complete list was received. Before that, objects may be missing.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The newest known state of each object, sorted by key.
    pub fn objects(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.entries.iter().filter_map(|(key, entry)| Some((key, entry.value.as_ref()?)))
    }

    /// The newest known state of one object.
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.entries.get(key)?.value.as_ref()
    }

    /// Returns the changes since the last call, sorted by key: one per object, with its newest state.
    pub fn take_changes(&mut self) -> Vec<Change<K, V>> {
        let changed = std::mem::take(&mut self.changed);
        let change = |(key, before): (K, Option<Arc<V>>)| Change {
            before,
            value: self.get(&key).cloned(),
            is_unreadable: self.unreadable.contains(&key),
            key,
        };
        changed.into_iter().map(change).collect()
    }

    /// If the state of an object `differs`, records the state before the change. Returns `differs`.
    fn record_change(&mut self, key: &K, before: Option<Arc<V>>, differs: bool) -> bool {
        if differs {
            self.changed.entry(key.clone()).or_insert(before);
        }
        differs
    }

    /// Starts to receive a list. Must be called before the request is sent. A list that is still being received is
    /// discarded.
    pub fn begin_list(&mut self) {
        self.listing = Some(BTreeMap::new());
        // The list includes every write that was answered before the list was requested. So the list replaces the
        // results of these writes even if the version of the list is lower. The version is lower if the storage of the
        // API server was restored from a backup.
        for entry in self.entries.values_mut() {
            entry.is_response = false;
        }
        for deleted in self.deleted.values_mut() {
            deleted.listed_since = true;
        }
    }

    /// Adds an object of the list.
    pub fn add_listed(&mut self, observation: Observation<K, V>) {
        let Some(listing) = &mut self.listing else { return };
        let Observation { key, uid, version, content } = observation;
        let content = match content {
            Content::Known(value) => {
                let old = self.entries.get(&key).filter(|old| old.uid == uid).and_then(|old| old.value.as_ref());
                Content::Known(old.filter(|old| ***old == value).cloned().unwrap_or_else(|| Arc::new(value)))
            }
            Content::Ignored => Content::Ignored,
            Content::Unreadable => Content::Unreadable,
        };
        listing.insert(key, Listed { uid, version, content });
    }

    /// Replaces the state by the complete list, which has this `version`. Returns whether the known state changed.
    pub fn finish_list(&mut self, version: ResourceVersion) -> bool {
        let Some(listing) = self.listing.take() else { return false };
        let before = std::mem::take(&mut self.entries);
        let unreadable_before = std::mem::take(&mut self.unreadable);
        // An entry of `deleted` stays only if the watch can still report the deletion. That needs a list that was
        // requested before the deletion, and that contains the object or is older than the last version of the object.
        self.deleted.retain(|key, deleted| {
            let listed = listing.get(key).is_some_and(|observation| observation.uid == deleted.uid);
            !deleted.listed_since && (listed || deleted.version > version)
        });
        let (deleted, unreadable) = (&self.deleted, &mut self.unreadable);
        let entry = |(key, Listed { uid, version, content }): (K, Listed<V>)| {
            if deleted.get(&key).is_some_and(|deleted| deleted.is_after(&uid, version)) {
                return None;
            }
            let old = before.get(&key).filter(|old| old.uid == uid).and_then(|old| old.value.clone());
            let value = match content {
                Content::Known(value) => old.filter(|old| **old == *value).unwrap_or(value),
                Content::Ignored => return None,
                Content::Unreadable => {
                    unreadable.insert(key.clone());
                    old?
                }
            };
            Some((key, Entry { uid, version, value: Some(value), is_response: false }))
        };
        // A map that is collected at once has no spare capacity.
        self.entries = listing.into_iter().filter_map(entry).collect();
        for (key, entry) in before.iter().filter(|(_, entry)| entry.is_response && entry.version > version) {
            self.unreadable.remove(key);
            let (uid, value) = (entry.uid.clone(), entry.value.clone());
            self.entries.insert(key.clone(), Entry { uid, value, ..*entry });
        }
        // An equal value of the same object is the same pointer.
        let pointer = |entries: &BTreeMap<K, Entry<V>>, key: &K| entries.get(key)?.value.as_ref().map(Arc::as_ptr);
        let keys = before.keys().chain(self.entries.keys());
        let differing = keys.filter(|key| pointer(&before, key) != pointer(&self.entries, key));
        let mut changed = !self.synced;
        for key in differing.chain(unreadable_before.symmetric_difference(&self.unreadable)) {
            changed = true;
            self.changed.entry(key.clone()).or_insert_with(|| before.get(key)?.value.clone());
        }
        (self.watch_version, self.synced) = (version, true);
        changed
    }

    /// Applies a watch event: the object was created or changed. Returns whether the known state changed.
    pub fn apply(&mut self, observation: Observation<K, V>) -> bool {
        let version = observation.version;
        self.watch_version = self.watch_version.max(version);
        if self.is_deleted(&observation) || self.entries.get(&observation.key).is_some_and(|e| version < e.version) {
            return false;
        }
        self.insert(observation, false)
    }

    /// Applies a watch event: the deletion of the object, at `version`. Returns whether the known state changed.
    pub fn apply_deletion(&mut self, key: &K, uid: &str, version: ResourceVersion) -> bool {
        self.watch_version = self.watch_version.max(version);
        if self.deleted.get(key).is_some_and(|deleted| deleted.uid == uid) {
            self.deleted.remove(key);
        }
        if self.entries.get(key).is_some_and(|entry| version < entry.version) {
            return false;
        }
        self.remove(key)
    }

    /// Applies a bookmark: the watch has sent all events up to `version`.
    pub fn apply_bookmark(&mut self, version: ResourceVersion) {
        self.watch_version = self.watch_version.max(version);
    }

    /// Applies the response to one of our writes, or to a read of one object. Returns whether the known state changed.
    pub fn apply_response(&mut self, observation: Observation<K, V>) -> bool {
        let version = observation.version;
        let is_older = |entry: &Entry<V>| version <= entry.version;
        if version <= self.watch_version
            || self.is_deleted(&observation)
            || self.entries.get(&observation.key).is_some_and(is_older)
        {
            return false;
        }
        self.insert(observation, true)
    }

    /// Removes the object with this UID after the response to one of our deletions. Returns whether the known state
    /// changed.
    pub fn forget(&mut self, key: &K, uid: &str) -> bool {
        // If the object is missing, the watch has already reported the deletion.
        let Some(entry) = self.entries.get(key).filter(|entry| entry.uid == uid) else { return false };
        let deleted = Deleted { uid: uid.into(), version: entry.version, listed_since: false };
        self.deleted.insert(key.clone(), deleted);
        self.remove(key)
    }

    /// Whether one of our writes has deleted the observed object since.
    fn is_deleted(&self, observation: &Observation<K, V>) -> bool {
        let deleted = self.deleted.get(&observation.key);
        deleted.is_some_and(|deleted| deleted.is_after(&observation.uid, observation.version))
    }

    fn insert(&mut self, observation: Observation<K, V>, is_response: bool) -> bool {
        let Observation { key, uid, version, content } = observation;
        self.deleted.remove(&key);
        let old = self.get(&key).cloned();
        let value = match content {
            Content::Known(value) => Some(match &old {
                Some(old) if **old == value => old.clone(),
                _ => Arc::new(value),
            }),
            Content::Ignored => None,
            Content::Unreadable => {
                let differs = self.unreadable.insert(key.clone());
                if let Some(entry) = self.entries.get_mut(&key) {
                    (entry.version, entry.is_response) = (version, is_response);
                }
                return self.record_change(&key, old, differs);
            }
        };
        let was_unreadable = self.unreadable.remove(&key);
        let differs = was_unreadable || old.as_ref().map(Arc::as_ptr) != value.as_ref().map(Arc::as_ptr);
        let changed = self.record_change(&key, old, differs);
        if value.is_some() || is_response {
            self.entries.insert(key, Entry { uid, version, value, is_response });
        } else {
            self.entries.remove(&key);
        }
        changed
    }

    fn remove(&mut self, key: &K) -> bool {
        let before = self.entries.remove(key).and_then(|entry| entry.value);
        let differs = self.unreadable.remove(key) || before.is_some();
        self.record_change(key, before, differs)
    }
}

#[cfg(test)]
mod tests;
