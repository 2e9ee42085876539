//! Services in namespaces that are not observed yet.
//!
//! Services and Namespaces come from two watches, so a Service can be observed before its Namespace. If a pool selects
//! namespaces by their labels, the Service waits: an address of another pool would be wrong, and would stay. Usually
//! the wait takes milliseconds. A longer one is reported as a refusal, which ends when the Namespace is observed.

use crds::{Key, Service};
use jiff::{SignedDuration, Timestamp};

use super::{ClusterIndex, NamespaceWait};
use crate::pools::Pool;

/// How long Services wait for their namespace before they are refused.
const PATIENCE: SignedDuration = SignedDuration::from_secs(5);

impl ClusterIndex {
    /// Whether this pool admits a Service depends on labels of its namespace, which are unknown.
    pub(crate) fn lacks_namespace_for(&self, pool: &Pool, service: &Service) -> bool {
        let namespace = &*service.key.namespace;
        pool.needs_namespace_labels(namespace, &service.labels) && !self.namespaces.contains_key(namespace)
    }

    /// Whether a Service that [lacks its namespace](Self::lacks_namespace_for) waits. Otherwise it is refused.
    pub(crate) fn awaits_namespace(&mut self, service: &Service, now: Timestamp) -> bool {
        let until = now.saturating_add(PATIENCE).unwrap_or(Timestamp::MAX);
        let start = NamespaceWait { until, is_over: false };
        let wait = self.awaited_namespaces.entry(service.key.namespace.to_string()).or_insert(start);
        wait.until > now
    }

    /// When the next wait for a namespace ends.
    pub(super) fn next_namespace_deadline(&self) -> Option<Timestamp> {
        let waits = self.awaited_namespaces.values().filter(|wait| !wait.is_over);
        waits.map(|wait| wait.until).min()
    }

    /// Marks the Services whose wait for their namespace has ended, and forgets waits without Services.
    pub(super) fn end_namespace_waits(&mut self, now: Timestamp) {
        let Self { awaited_namespaces, objects, dirty, .. } = self;
        awaited_namespaces.retain(|namespace, wait| {
            let following = objects.services().iter_from(&Key::new(namespace, "")).map(|(key, _)| key);
            let mut keys = following.take_while(|key| key.namespace == *namespace).peekable();
            let has_services = keys.peek().is_some();
            if wait.until <= now && !wait.is_over {
                wait.is_over = true;
                dirty.services.extend(keys.cloned());
            }
            has_services
        });
    }
}
