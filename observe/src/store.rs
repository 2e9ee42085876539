//! A table that several tasks share, and the wake that tells them of changes.
//!
//! No task of its own: whoever changes the table wakes the listeners. A wake says that something changed, and not what:
//! whoever wakes looks at everything anew, so that a burst of changes is one wake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::table::{Change, Observation, ResourceVersion, Table};

/// Tells listeners that something changed. Several stores can share one.
#[derive(Clone, Debug, Default)]
pub struct Wake(watch::Sender<()>);

impl Wake {
    /// Wakes all listeners.
    pub fn wake(&self) {
        self.0.send_replace(());
    }

    /// A listener for what changes from now on.
    pub fn listener(&self) -> Listener {
        Listener { receiver: self.0.subscribe(), _wake: self.clone() }
    }
}

/// Waits for a [`Wake`].
#[derive(Debug)]
pub struct Listener {
    receiver: watch::Receiver<()>,
    /// As long as there is a listener, somebody may wake it.
    _wake: Wake,
}

impl Listener {
    /// Returns when something changed since this returned last; at once if that was in the meantime. Cancel safe.
    pub async fn wait(&mut self) {
        self.receiver.changed().await.expect("invariant: a listener holds its wake");
    }
}

/// What is known of the objects of one kind, for several tasks.
#[derive(Debug)]
pub struct Store<K, V> {
    table: Arc<Mutex<Table<K, V>>>,
    wake: Wake,
}

impl<K, V> Clone for Store<K, V> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), wake: self.wake.clone() }
    }
}

impl<K: Ord + Clone, V: PartialEq> Store<K, V> {
    /// An empty store, which wakes `wake` when what is known changes.
    pub fn new(wake: &Wake) -> Self {
        Self { table: Arc::default(), wake: wake.clone() }
    }

    /// An empty store that notes what changes, for [`Store::take_changes`]. Somebody has to take it.
    pub fn with_changes(wake: &Wake) -> Self {
        let store = Self::new(wake);
        store.lock().note_changes();
        store
    }

    /// What has changed since this was asked last (of a store that notes it): see [`Table::take_changes`]. `None` before
    /// the first whole list. There is one who asks: what one has taken, no other is told.
    pub fn take_changes(&self) -> Option<Vec<Change<K, V>>> {
        let mut table = self.lock();
        table.synced().then(|| table.take_changes())
    }

    /// A store that notes what changes and has received one list already, of these objects, taken at `version`: where no API
    /// server is.
    pub fn from_list(
        wake: &Wake,
        version: ResourceVersion,
        observations: impl IntoIterator<Item = Observation<K, V>>,
    ) -> Self {
        let store = Self::with_changes(wake);
        store.change(|table| {
            table.list_begins();
            observations.into_iter().for_each(|observation| table.listed(observation));
            table.list_ends(version)
        });
        store
    }

    /// Whether a whole list was received.
    pub fn is_listed(&self) -> bool {
        self.read(|_| ()).is_some()
    }

    /// What is known now; `None` before the first whole list.
    pub fn snapshot(&self) -> Option<BTreeMap<K, Arc<V>>> {
        self.read(|table| table.known().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// The objects that exist and cannot be read; `None` before the first whole list.
    pub fn unreadable(&self) -> Option<BTreeSet<K>> {
        self.read(|table| table.unreadable().clone())
    }

    /// One object as it is known now: `None` before the first whole list.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.read(|table| table.get(key).cloned())?
    }

    /// What `look` finds in the table, without a copy of it; `None` before the first whole list. Not for long: the watch
    /// waits meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&Table<K, V>) -> T) -> Option<T> {
        let table = self.lock();
        table.synced().then(|| look(&table))
    }

    /// Stores the answer to an own write, or to a question for one object: see [`Table::put`].
    pub fn put(&self, observation: Observation<K, V>) {
        self.change(|table| table.put(observation));
    }

    /// Stores that an own deletion was answered: see [`Table::forget`].
    pub fn forget(&self, key: &K, uid: &str) {
        self.change(|table| table.forget(key, uid));
    }

    /// Changes the table, and wakes if `change` says that what is known changed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Table<K, V>) -> bool) {
        // The lock is released before anybody is woken.
        let changed = change(&mut self.lock());
        if changed {
            self.wake.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table<K, V>> {
        // A panic elsewhere ends the process; until then, what is known is as good as before.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Content;

    fn seen(key: &'static str, version: u64) -> Observation<&'static str, u64> {
        Observation { key, uid: key.into(), version, content: Content::Known(version) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_in_several_stores_is_one_wake() {
        let wake = Wake::default();
        let mut listener = wake.listener();
        let (one, other) = (Store::from_list(&wake, 1, []), Store::from_list(&wake, 1, []));
        for store in [&one, &other] {
            store.put(seen("web", 2));
        }
        listener.wait().await;
        let idle = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(idle, listener.wait()).await.is_err(), "nothing changed since");
        one.put(seen("web", 2));
        assert!(tokio::time::timeout(idle, listener.wait()).await.is_err(), "what is known already is no change");
        one.put(seen("web", 3));
        listener.wait().await;
        assert_eq!(one.snapshot(), Some(BTreeMap::from([("web", Arc::new(3))])));
    }

    #[test]
    fn nothing_is_told_before_the_first_list() {
        let store = Store::with_changes(&Wake::default());
        store.put(seen("web", 2));
        assert_eq!((store.snapshot(), store.get(&"web"), store.unreadable()), (None, None, None));
        assert_eq!(store.take_changes(), None);
        store.change(|table| {
            table.list_begins();
            table.list_ends(1)
        });
        let keys = store.take_changes().map(|changes| changes.into_iter().map(|change| change.key).collect::<Vec<_>>());
        assert_eq!(keys, Some(vec!["web"]));
    }
}
