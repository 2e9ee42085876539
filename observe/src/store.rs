//! A table that several tasks share, and the wake-up that signals its changes.
//!
//! A store runs no task: the caller that changes the table also wakes the listeners. A wake-up carries no details; the
//! listener reads the current state. So a burst of changes is one wake-up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Resource;
use tokio::sync::watch;

use crate::source::Source;
use crate::table::{Change, Observation, ResourceVersion, Table};

/// Signals changes to listeners. Several stores can share one `Wake`.
#[derive(Clone, Debug, Default)]
pub struct Wake(watch::Sender<()>);

impl Wake {
    /// Wakes all listeners.
    pub fn wake(&self) {
        self.0.send_replace(());
    }

    /// Returns a listener for changes from now on.
    pub fn listener(&self) -> Listener {
        Listener { receiver: self.0.subscribe(), _wake: self.clone() }
    }
}

/// Waits for a [`Wake`].
#[derive(Debug)]
pub struct Listener {
    receiver: watch::Receiver<()>,
    /// Keeps the sender alive: without it, [`Listener::wait`] would fail.
    _wake: Wake,
}

impl Listener {
    /// Waits until there has been a change since the last return of this function. Cancel safe.
    pub async fn wait(&mut self) {
        self.receiver.changed().await.expect("invariant: a listener holds its wake");
    }
}

/// The objects of one kind, shared by several tasks.
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
    /// Creates an empty store that wakes the listeners of `wake` on changes.
    pub fn new(wake: &Wake) -> Self {
        Self { table: Arc::default(), wake: wake.clone() }
    }

    /// Returns the changes since the last call: see [`Table::take_changes`]. `None` before the first complete list.
    /// Each change is returned once, so there must be only one caller.
    pub fn take_changes(&self) -> Option<Vec<Change<K, V>>> {
        let mut table = self.lock();
        table.is_synced().then(|| table.take_changes())
    }

    /// Creates a store after one list of these objects at `version`, for use without an API server.
    pub fn from_list(
        wake: &Wake,
        version: ResourceVersion,
        observations: impl IntoIterator<Item = Observation<K, V>>,
    ) -> Self {
        let store = Self::new(wake);
        store.update(|table| {
            table.begin_list();
            observations.into_iter().for_each(|observation| table.add_listed(observation));
            table.finish_list(version)
        });
        store
    }

    /// Whether a complete list was received.
    pub fn is_listed(&self) -> bool {
        self.read(|_| ()).is_some()
    }

    /// Copies the current state; `None` before the first complete list.
    pub fn snapshot(&self) -> Option<BTreeMap<K, Arc<V>>> {
        self.read(|table| table.objects().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// The current state of one object; `None` before the first complete list.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.read(|table| table.get(key).cloned())?
    }

    /// Calls `read` with the table, without a copy; `None` before the first complete list. `read` must be short,
    /// because it blocks the watch.
    pub fn read<T>(&self, read: impl FnOnce(&Table<K, V>) -> T) -> Option<T> {
        let table = self.lock();
        table.is_synced().then(|| read(&table))
    }

    /// Applies the response to one of our writes, or to a read of one object: see [`Table::apply_response`]. If the
    /// object cannot be parsed, the watch logs it.
    pub fn apply_response<R: Resource<DynamicType = ()>>(&self, source: Source<R, K, V>, object: &R) {
        if let Some((observation, _)) = source.observe(object) {
            self.update(|table| table.apply_response(observation));
        }
    }

    /// Removes an object after the response to one of our deletions: see [`Table::forget`].
    pub fn forget(&self, key: &K, uid: &str) {
        self.update(|table| table.forget(key, uid));
    }

    /// Updates the table, and wakes the listeners if `update` returns true.
    pub(crate) fn update(&self, update: impl FnOnce(&mut Table<K, V>) -> bool) {
        // The lock is released before listeners wake up.
        let changed = update(&mut self.lock());
        if changed {
            self.wake.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table<K, V>> {
        // A panic in another task ends the process. Until then the table is usable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Content;

    fn observation(key: &'static str, version: u64) -> Observation<&'static str, u64> {
        Observation { key, uid: key.into(), version, content: Content::Known(version) }
    }

    #[tokio::test(start_paused = true)]
    async fn burst_of_changes_in_several_stores_wakes_once() {
        let wake = Wake::default();
        let mut listener = wake.listener();
        let (one, other) = (Store::from_list(&wake, 1, []), Store::from_list(&wake, 1, []));
        for store in [&one, &other] {
            store.update(|table| table.apply_response(observation("web", 2)));
        }
        listener.wait().await;
        let idle = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(idle, listener.wait()).await.is_err(), "no change since");
        one.update(|table| table.apply_response(observation("web", 2)));
        assert!(tokio::time::timeout(idle, listener.wait()).await.is_err(), "a known state is not a change");
        one.update(|table| table.apply_response(observation("web", 3)));
        listener.wait().await;
        assert_eq!(one.snapshot(), Some(BTreeMap::from([("web", Arc::new(3))])));
    }

    #[test]
    fn store_returns_nothing_before_the_first_list() {
        let store = Store::new(&Wake::default());
        store.update(|table| table.apply_response(observation("web", 2)));
        assert_eq!((store.snapshot(), store.get(&"web")), (None, None));
        assert_eq!(store.take_changes(), None);
        store.update(|table| {
            table.begin_list();
            table.finish_list(1)
        });
        let keys = store.take_changes().map(|changes| changes.into_iter().map(|change| change.key).collect::<Vec<_>>());
        assert_eq!(keys, Some(vec!["web"]));
    }
}
