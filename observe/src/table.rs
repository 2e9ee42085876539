//! What is known of the objects of one kind, by key.
//!
//! Two tell: the watch (a list, then its events in order), and the answers to our own writes. They arrive in any
//! order, and a table never goes back to something older:
//!
//! - Versions can be compared (KEP-5504), across all objects of a kind. The watch tells them in order, so it has told
//!   of everything up to the last one. An answer up to there says nothing new: the watch has already told what became
//!   of that write, and be it that the object is gone again.
//! - An answer beyond is ahead of the watch. It stays until the watch has caught up with it, whatever older events come
//!   in between.
//! - A UID that we deleted is dead for good, whatever older events still speak of it.
//! - A list replaces everything but what we wrote after it was taken.
//!
//! Events and answers → what is known, and whether that changed. No order of arrival ends in anything but the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::InternedStr;
pub use crds::ResourceVersion;

/// What was read of one state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<V> {
    /// This.
    Known(V),
    /// Nothing that matters: as if the object did not exist.
    Ignored,
    /// Nothing that makes sense. What was known of the object before, if anything was, stays.
    Unreadable,
}

/// One state of one object, as somebody told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation<K, V> {
    /// The object's key.
    pub key: K,
    /// Its UID: an object that is made again under an old name is another one.
    pub uid: InternedStr,
    /// The write that made this state.
    pub version: ResourceVersion,
    /// What was read of it.
    pub content: Content<V>,
}

/// What is known of an object that was another one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, V> {
    /// The object's key.
    pub key: K,
    /// What was known of it when somebody asked last.
    pub before: Option<Arc<V>>,
    /// Its newest known state; `None` if it is not there, or nothing is known of it.
    pub value: Option<Arc<V>>,
    /// Whether its present state cannot be read.
    pub is_unreadable: bool,
}

/// What is known of the objects of one kind.
#[derive(Debug)]
pub struct Table<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Objects whose present state cannot be read. An older one may be in `entries`.
    unreadable: BTreeSet<K>,
    /// The watch has told of everything up to here.
    seen: ResourceVersion,
    /// Objects that we deleted, until the watch tells so: few, and not for long.
    dead: BTreeMap<K, Dead>,
    /// A list that is being received.
    listing: Option<BTreeMap<K, Listed<V>>>,
    synced: bool,
    /// The objects of which something else is known than when somebody asked last, with what it was then; if anybody asks.
    changed: Option<BTreeMap<K, Option<Arc<V>>>>,
}

/// An object as a list has it. A list of tens of thousands stands beside what was known before: so each takes little room.
#[derive(Debug)]
struct Listed<V> {
    uid: InternedStr,
    version: ResourceVersion,
    content: Content<Arc<V>>,
}

#[derive(Debug)]
struct Dead {
    uid: InternedStr,
    /// The last version that was known.
    version: ResourceVersion,
    /// Whether a list was asked for since: then that list knows of it.
    asked_since: bool,
}

#[derive(Debug)]
struct Entry<V> {
    uid: InternedStr,
    version: ResourceVersion,
    /// `None` for an own write that made the object not matter, until the watch has caught up with it.
    value: Option<Arc<V>>,
    /// Whether it came as the answer to an own write, with no list asked for since.
    own: bool,
}

impl Dead {
    /// Whether the object died after this state: it is a state of the same object, or of an older one of that name.
    fn is_after(&self, uid: &str, version: ResourceVersion) -> bool {
        self.uid == uid || version <= self.version
    }
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self { uid: self.uid.clone(), version: self.version, value: self.value.clone(), own: self.own }
    }
}

fn values<K, V>(entries: &BTreeMap<K, Entry<V>>) -> impl Iterator<Item = (&K, &Arc<V>)> {
    entries.iter().filter_map(|(key, entry)| Some((key, entry.value.as_ref()?)))
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            seen: 0,
            dead: BTreeMap::new(),
            listing: None,
            synced: false,
            changed: None,
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> Table<K, V> {
    /// Whether a whole list was received. Before that, what is missing may still exist.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The newest known state of each object.
    pub fn known(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        values(&self.entries)
    }

    /// The newest known state of one object.
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.entries.get(key)?.value.as_ref()
    }

    /// The objects whose present state cannot be read; the last state that could, if any, is among the known.
    pub fn unreadable(&self) -> &BTreeSet<K> {
        &self.unreadable
    }

    /// From here on it is noted what changes, for [`Table::take_changes`].
    pub fn note_changes(&mut self) {
        self.changed = Some(self.entries.keys().chain(&self.unreadable).map(|key| (key.clone(), None)).collect());
    }

    /// What has changed since this was asked last, in order of the keys. Each object is there once, as it is known now.
    /// Nothing if changes are not noted.
    pub fn take_changes(&mut self) -> Vec<Change<K, V>> {
        let changed = self.changed.as_mut().map(std::mem::take).unwrap_or_default();
        let change = |(key, before): (K, Option<Arc<V>>)| Change {
            before,
            value: self.get(&key).cloned(),
            is_unreadable: self.unreadable.contains(&key),
            key,
        };
        changed.into_iter().map(change).collect()
    }

    /// Notes that this object was something else `before`, if it is `news` what it is now.
    fn noted(&mut self, key: &K, before: Option<Arc<V>>, news: bool) -> bool {
        if let Some(changed) = self.changed.as_mut().filter(|_| news) {
            changed.entry(key.clone()).or_insert(before);
        }
        news
    }

    /// A list is about to be asked for; one that was being received is given up.
    pub fn list_begins(&mut self) {
        self.listing = Some(BTreeMap::new());
        // It will show every write that was answered before, or what became of it: even with a lower version, when
        // somebody has restored the API server's storage from a copy.
        for entry in self.entries.values_mut() {
            entry.own = false;
        }
        for dead in self.dead.values_mut() {
            dead.asked_since = true;
        }
    }

    /// The list has this object.
    pub fn listed(&mut self, observation: Observation<K, V>) {
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

    /// The list is complete, and shows all objects as they were at `version`.
    pub fn list_ends(&mut self, version: ResourceVersion) -> bool {
        let Some(listing) = self.listing.take() else { return false };
        let before = std::mem::take(&mut self.entries);
        let unreadable_before = std::mem::take(&mut self.unreadable);
        // Of what was gone when the list was taken, no event will speak any more.
        self.dead.retain(|key, dead| {
            let listed = listing.get(key).is_some_and(|observation| observation.uid == dead.uid);
            !dead.asked_since && (listed || dead.version > version)
        });
        let (dead, unreadable) = (&self.dead, &mut self.unreadable);
        let entry = |(key, Listed { uid, version, content }): (K, Listed<V>)| {
            if dead.get(&key).is_some_and(|dead| dead.is_after(&uid, version)) {
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
            Some((key, Entry { uid, version, value: Some(value), own: false }))
        };
        // Made at once, a map has no room left over.
        self.entries = listing.into_iter().filter_map(entry).collect();
        for (key, entry) in before.iter().filter(|(_, entry)| entry.own && entry.version > version) {
            self.unreadable.remove(key);
            self.entries.insert(key.clone(), entry.clone());
        }
        let changed =
            !self.synced || unreadable_before != self.unreadable || !values(&before).eq(values(&self.entries));
        if changed && let Some(noted) = &mut self.changed {
            let entries = &self.entries;
            let of = |entries: &BTreeMap<K, Entry<V>>, key: &K| entries.get(key).and_then(|entry| entry.value.clone());
            let pointer = |value: Option<Arc<V>>| value.as_ref().map(Arc::as_ptr);
            let differs = |key: &&K| pointer(of(&before, key)) != pointer(of(entries, key));
            let differing = before.keys().chain(entries.keys()).filter(differs);
            for key in differing.chain(unreadable_before.symmetric_difference(&self.unreadable)) {
                noted.entry(key.clone()).or_insert_with(|| of(&before, key));
            }
        }
        (self.seen, self.synced) = (version, true);
        changed
    }

    /// The watch tells that an object was made or changed.
    pub fn applied(&mut self, observation: Observation<K, V>) -> bool {
        let version = observation.version;
        self.seen = self.seen.max(version);
        if self.is_gone(&observation) || self.entries.get(&observation.key).is_some_and(|e| version < e.version) {
            return false;
        }
        self.set(observation, false)
    }

    /// The watch tells that an object was deleted, which made `version`.
    pub fn deleted(&mut self, key: &K, uid: &str, version: ResourceVersion) -> bool {
        self.seen = self.seen.max(version);
        if self.dead.get(key).is_some_and(|dead| dead.uid == uid) {
            self.dead.remove(key);
        }
        if self.entries.get(key).is_some_and(|entry| version < entry.version) {
            return false;
        }
        self.unset(key)
    }

    /// The watch tells that it has told everything up to `version` (a bookmark).
    pub fn reached(&mut self, version: ResourceVersion) {
        self.seen = self.seen.max(version);
    }

    /// The answer to an own write, or to a question for one object: it is like this.
    pub fn put(&mut self, observation: Observation<K, V>) -> bool {
        let version = observation.version;
        let old = |entry: &Entry<V>| version <= entry.version;
        if version <= self.seen || self.is_gone(&observation) || self.entries.get(&observation.key).is_some_and(old) {
            return false;
        }
        self.set(observation, true)
    }

    /// The answer to an own deletion: the object of this UID is gone, for good.
    pub fn forget(&mut self, key: &K, uid: &str) -> bool {
        // If it is not there any more, the watch has told already, and will not speak of it again.
        let Some(entry) = self.entries.get(key).filter(|entry| entry.uid == uid) else { return false };
        let dead = Dead { uid: uid.into(), version: entry.version, asked_since: false };
        self.dead.insert(key.clone(), dead);
        self.unset(key)
    }

    /// Whether this speaks of an object that we have deleted since.
    fn is_gone(&self, observation: &Observation<K, V>) -> bool {
        self.dead.get(&observation.key).is_some_and(|dead| dead.is_after(&observation.uid, observation.version))
    }

    fn set(&mut self, observation: Observation<K, V>, own: bool) -> bool {
        let Observation { key, uid, version, content } = observation;
        self.dead.remove(&key);
        let old = self.get(&key).cloned();
        let value = match content {
            Content::Known(value) => Some(match &old {
                Some(old) if **old == value => old.clone(),
                _ => Arc::new(value),
            }),
            Content::Ignored => None,
            Content::Unreadable => {
                let news = self.unreadable.insert(key.clone());
                if let Some(entry) = self.entries.get_mut(&key) {
                    (entry.version, entry.own) = (version, own);
                }
                return self.noted(&key, old, news);
            }
        };
        let was_unreadable = self.unreadable.remove(&key);
        let news = was_unreadable || old.as_ref().map(Arc::as_ptr) != value.as_ref().map(Arc::as_ptr);
        let changed = self.noted(&key, old, news);
        if value.is_some() || own {
            self.entries.insert(key, Entry { uid, version, value, own });
        } else {
            self.entries.remove(&key);
        }
        changed
    }

    fn unset(&mut self, key: &K) -> bool {
        let before = self.entries.remove(key).and_then(|entry| entry.value);
        let news = self.unreadable.remove(key) || before.is_some();
        self.noted(key, before, news)
    }
}

#[cfg(test)]
mod tests;
