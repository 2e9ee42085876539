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

use crds::Text;
pub use crds::Version;

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
    pub uid: Text,
    /// The write that made this state.
    pub version: Version,
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
    seen: Version,
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
    uid: Text,
    version: Version,
    content: Content<Arc<V>>,
}

#[derive(Debug)]
struct Dead {
    uid: Text,
    /// The last version that was known.
    version: Version,
    /// Whether a list was asked for since: then that list knows of it.
    asked_since: bool,
}

#[derive(Debug)]
struct Entry<V> {
    uid: Text,
    version: Version,
    /// `None` for an own write that made the object not matter, until the watch has caught up with it.
    value: Option<Arc<V>>,
    /// Whether it came as the answer to an own write, with no list asked for since.
    own: bool,
}

impl Dead {
    /// Whether the object died after this state: it is a state of the same object, or of an older one of that name.
    fn is_after(&self, uid: &str, version: Version) -> bool {
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
    pub fn list_ends(&mut self, version: Version) -> bool {
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
    pub fn deleted(&mut self, key: &K, uid: &str, version: Version) -> bool {
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
    pub fn reached(&mut self, version: Version) {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Texts = Table<&'static str, &'static str>;

    fn seen(
        key: &'static str,
        uid: &str,
        version: Version,
        value: &'static str,
    ) -> Observation<&'static str, &'static str> {
        Observation { key, uid: uid.into(), version, content: Content::Known(value) }
    }

    fn known(table: &Texts) -> Vec<(&'static str, &'static str)> {
        table.known().map(|(key, value)| (*key, **value)).collect()
    }

    /// A table after a list of `web` (uid u1) at version 5, taken at version 6.
    fn listed() -> Texts {
        let mut table = Table::default();
        table.list_begins();
        table.listed(seen("web", "u1", 5, "listed"));
        assert!(table.list_ends(6));
        table
    }

    #[test]
    fn a_table_is_synced_after_the_first_whole_list() {
        let mut table = Texts::default();
        table.list_begins();
        table.listed(seen("web", "u1", 5, "listed"));
        table.list_begins();
        assert!(!table.synced());
        assert!(table.list_ends(6), "an empty list is news when it is the first");
        assert_eq!((table.synced(), known(&table)), (true, vec![]));
    }

    #[test]
    fn a_stale_event_does_not_undo_an_own_write() {
        let mut table = listed();
        assert!(table.put(seen("web", "u1", 9, "ours")));
        assert!(!table.applied(seen("web", "u1", 8, "theirs, before")));
        assert_eq!(known(&table), [("web", "ours")]);
        assert!(!table.applied(seen("web", "u1", 9, "ours")), "the echo of an own write is no news");
        assert!(table.applied(seen("web", "u1", 10, "theirs, after")));
        assert_eq!(known(&table), [("web", "theirs, after")]);
    }

    #[test]
    fn a_late_answer_does_not_undo_what_the_watch_told() {
        let mut table = listed();
        assert!(table.applied(seen("web", "u1", 9, "theirs")));
        assert!(!table.put(seen("web", "u1", 8, "ours")));
        assert!(table.deleted(&"web", "u1", 12));
        assert!(!table.put(seen("web", "u1", 11, "ours")), "the watch knows that it is gone again");
        assert_eq!(known(&table), []);
    }

    #[test]
    fn what_we_deleted_is_not_raised_by_older_events_and_its_name_can_be_taken_again() {
        let mut table = listed();
        assert!(table.put(seen("new", "u2", 8, "ours")));
        assert!(table.forget(&"new", "u2"));
        assert!(!table.applied(seen("new", "u2", 8, "ours")));
        assert!(!table.deleted(&"new", "u2", 9));
        assert!(table.applied(seen("new", "u3", 10, "theirs")));
        assert!(!table.forget(&"new", "u2"), "the answer to the deletion came twice, or late");
        assert_eq!(known(&table), [("new", "theirs"), ("web", "listed")]);
        assert!(table.dead.is_empty());
    }

    #[test]
    fn a_list_replaces_all_but_own_writes_that_are_newer_than_it() {
        let mut table = listed();
        table.put(seen("before", "u2", 7, "answered before the list was asked for, gone by now"));
        table.list_begins();
        table.put(seen("during", "u3", 30, "newer than the list"));
        table.put(seen("during, older", "u4", 8, "older than the list, gone by now"));
        table.listed(seen("other", "u5", 9, "listed"));
        assert!(table.list_ends(20));
        assert_eq!(known(&table), [("during", "newer than the list"), ("other", "listed")]);
        table.list_begins();
        table.listed(seen("other", "u5", 9, "listed"));
        assert!(table.list_ends(3), "the storage was restored from a copy");
        assert_eq!(known(&table), [("other", "listed")]);
        assert!(table.put(seen("other", "u5", 10, "ours")), "versions count from there again");
    }

    #[test]
    fn what_we_delete_while_a_list_is_under_way_stays_deleted() {
        let mut table = listed();
        table.list_begins();
        table.listed(seen("web", "u1", 5, "listed"));
        assert!(table.forget(&"web", "u1"));
        table.list_ends(7);
        assert_eq!(known(&table), []);
        table.deleted(&"web", "u1", 8);
        assert!(table.dead.is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_any_more_is_known_as_it_was() {
        let unreadable =
            |key, uid: &str, version| Observation { content: Content::Unreadable, ..seen(key, uid, version, "") };
        let mut table = listed();
        assert!(table.applied(unreadable("web", "u1", 7)));
        assert!(table.applied(unreadable("bad", "u2", 8)));
        assert_eq!((known(&table), table.unreadable()), (vec![("web", "listed")], &BTreeSet::from(["bad", "web"])));
        table.list_begins();
        table.listed(unreadable("web", "u1", 7));
        table.listed(unreadable("bad", "u2", 8));
        assert!(!table.list_ends(9));
        assert_eq!((known(&table), table.unreadable()), (vec![("web", "listed")], &BTreeSet::from(["bad", "web"])));
        assert!(table.applied(seen("web", "u1", 10, "listed")));
        assert!(table.deleted(&"bad", "u2", 11));
        assert_eq!((known(&table), table.unreadable()), (vec![("web", "listed")], &BTreeSet::new()));
    }

    #[test]
    fn changes_are_told_once_each_with_the_newest_state() {
        let mut table = listed();
        table.put(seen("unnoted", "u9", 7, "before anybody asked"));
        assert_eq!(table.take_changes(), vec![], "nobody has asked");
        table.note_changes();
        type Value = Option<&'static str>;
        let change = |key, before: Value, value: Value, is_unreadable| {
            let [before, value] = [before, value].map(|value| value.map(Arc::new));
            Change { key, before, value, is_unreadable }
        };
        let unnoted = "before anybody asked";
        assert_eq!(
            table.take_changes(),
            [change("unnoted", None, Some(unnoted), false), change("web", None, Some("listed"), false)]
        );
        assert_eq!(table.take_changes(), vec![]);
        table.applied(seen("web", "u1", 8, "once"));
        table.applied(seen("web", "u1", 9, "twice"));
        table.put(seen("web", "u1", 9, "twice"));
        table.applied(Observation { content: Content::Unreadable, ..seen("bad", "u2", 10, "") });
        table.deleted(&"unnoted", "u9", 11);
        assert_eq!(
            table.take_changes(),
            [
                change("bad", None, None, true),
                change("unnoted", Some(unnoted), None, false),
                change("web", Some("listed"), Some("twice"), false)
            ]
        );
        table.list_begins();
        table.listed(seen("new", "u3", 12, "listed"));
        table.listed(seen("web", "u1", 9, "twice"));
        table.list_ends(13);
        assert_eq!(
            table.take_changes(),
            [change("bad", None, None, false), change("new", None, Some("listed"), false)]
        );
    }

    #[test]
    fn an_object_that_ceases_to_matter_is_not_known() {
        let mut table = listed();
        assert!(table.applied(Observation { content: Content::Ignored, ..seen("web", "u1", 7, "") }));
        assert_eq!(known(&table), []);
    }

    /// One thing that happens between an API server and a table.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// We create or change the object of this name, and the answer arrives some time.
        Write(u8),
        /// We delete it.
        Delete(u8),
        /// Somebody else creates or changes it, or deletes it.
        Foreign(u8, bool),
        /// The next answer of those on their way arrives: the n-th of them.
        Answer(u8),
        /// The watch tells the next event.
        Event,
        /// A list is asked for, or if one was, its answer (as of when it was asked for, or of now) arrives.
        List(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = 0..3u8;
        prop_oneof![
            3 => name.clone().prop_map(Step::Write),
            2 => name.clone().prop_map(Step::Delete),
            2 => (name, any::<bool>()).prop_map(|(name, delete)| Step::Foreign(name, delete)),
            4 => any::<u8>().prop_map(Step::Answer),
            4 => Just(Step::Event),
            1 => any::<bool>().prop_map(Step::List),
        ]
    }

    type State = Observation<u8, Version>;

    /// The API server, and what is on its way from there.
    #[derive(Default)]
    struct Server {
        version: Version,
        objects: BTreeMap<u8, State>,
        /// All events, of which the watch has told the first `told`.
        events: Vec<(bool, State)>,
        told: usize,
        /// Answers: to a write the state it made, to a deletion the last one before.
        answers: Vec<(bool, State)>,
        /// A list that was asked for, as the objects were then.
        list: Option<(Version, usize, BTreeMap<u8, State>)>,
    }

    impl Server {
        fn write(&mut self, name: u8) -> State {
            self.version += 1;
            let uid =
                self.objects.get(&name).map_or_else(|| format!("u{}", self.version).into(), |state| state.uid.clone());
            let state = Observation { key: name, uid, version: self.version, content: Content::Known(self.version) };
            self.objects.insert(name, state.clone());
            self.events.push((false, state.clone()));
            state
        }

        fn delete(&mut self, name: u8) -> Option<State> {
            let state = self.objects.remove(&name)?;
            self.version += 1;
            self.events.push((true, Observation { version: self.version, ..state.clone() }));
            Some(state)
        }

        fn take(&mut self, step: Step, table: &mut Table<u8, Version>) {
            match step {
                Step::Write(name) => {
                    let state = self.write(name);
                    self.answers.push((false, state));
                }
                Step::Delete(name) => {
                    let state = self.delete(name);
                    self.answers.extend(state.map(|state| (true, state)));
                }
                Step::Foreign(name, false) => drop(self.write(name)),
                Step::Foreign(name, true) => drop(self.delete(name)),
                Step::Answer(_) if self.answers.is_empty() => {}
                Step::Answer(which) => match self.answers.remove(usize::from(which) % self.answers.len()) {
                    (false, state) => drop(table.put(state)),
                    (true, state) => drop(table.forget(&state.key, &state.uid)),
                },
                // While a list is asked for, there is no watch.
                Step::Event if self.list.is_some() => {}
                Step::Event => {
                    let Some((deleted, state)) = self.events.get(self.told).cloned() else { return };
                    self.told += 1;
                    if deleted {
                        table.deleted(&state.key, &state.uid, state.version);
                    } else {
                        table.applied(state);
                    }
                }
                Step::List(again) => match self.list.take() {
                    Some((version, told, objects)) if !again => {
                        objects.into_values().for_each(|state| table.listed(state));
                        table.list_ends(version);
                        self.told = told;
                    }
                    _ => {
                        table.list_begins();
                        self.list = Some((self.version, self.events.len(), self.objects.clone()));
                    }
                },
            }
        }
    }

    proptest! {
        #[test]
        fn any_order_of_events_and_answers_ends_in_the_newest_state_and_never_goes_back(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let (mut server, mut table) = (Server::default(), Table::default());
            table.note_changes();
            let mut followed = BTreeMap::new();
            server.take(Step::List(false), &mut table);
            let mut newest = BTreeMap::<u8, Version>::new();
            let rest = std::iter::repeat_n([Step::Answer(0), Step::Event], 200).flatten();
            for step in steps.into_iter().chain([Step::List(false)]).chain(rest) {
                // A list that is on its way when the steps are over arrives.
                let step = if matches!(step, Step::Event) && server.answers.is_empty() && server.list.is_some() {
                    Step::List(false)
                } else {
                    step
                };
                server.take(step, &mut table);
                for Change { key, before, value, .. } in table.take_changes() {
                    let was = match value {
                        Some(value) => followed.insert(key, value),
                        None => followed.remove(&key),
                    };
                    prop_assert_eq!(before, was, "and has known it before");
                }
                let known: BTreeMap<_, _> = table.known().map(|(name, value)| (*name, value.clone())).collect();
                prop_assert_eq!(&followed, &known, "who follows the changes knows the same");
                for (name, value) in table.known() {
                    let before = newest.insert(*name, **value).unwrap_or_default();
                    prop_assert!(before <= **value, "{name} went from {before} back to {value}");
                }
            }
            let truth: Vec<_> = server.objects.iter().map(|(name, state)| (*name, state.content.clone())).collect();
            let known: Vec<_> = table.known().map(|(name, value)| (*name, Content::Known(**value))).collect();
            prop_assert_eq!(known, truth);
            prop_assert!(table.dead.is_empty());
        }
    }
}
