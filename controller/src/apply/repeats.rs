//! Suppression of repeated events.
//!
//! An event and the local monotonic time → whether the event is new. The same event about the same object is written
//! again only after a while: a Service that two controllers contest would otherwise flood the API server. The condition
//! always has the current state, so nothing is lost.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::plan::effect::Event;

/// Time during which the same event is not written again. Users look at the newest events, and the API server keeps
/// them for an hour.
const QUIET: Duration = Duration::from_secs(5 * 60);

/// Maximum number of remembered events: as many as a burst of 10k Services causes, and as many as fit into a table of
/// 2¹⁴ slots. About 40 bytes each.
const CAPACITY: usize = 14_336;

/// Events that were written recently.
#[derive(Debug, Default)]
pub(crate) struct RecentEvents {
    hasher: RandomState,
    /// The hashes of the events.
    hashes: HashSet<u64>,
    /// The same hashes with the time of the write, in the order of the writes.
    order: VecDeque<(Instant, u64)>,
}

impl RecentEvents {
    /// Whether this event should be written now. If so, it is remembered.
    pub(crate) fn is_new(&mut self, event: &Event, now: Instant) -> bool {
        while let Some((written, _)) = self.order.front()
            && now.duration_since(*written) >= QUIET
        {
            self.forget_oldest();
        }
        let object = &event.regarding;
        let hash = self
            .hasher
            .hash_one(((&object.kind, &object.namespace, &object.name, &object.uid), (event.reason, &event.message)));
        if self.hashes.contains(&hash) {
            return false;
        }
        if self.order.len() >= CAPACITY {
            self.forget_oldest();
        }
        self.hashes.insert(hash);
        self.order.push_back((now, hash));
        true
    }

    fn forget_oldest(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            self.hashes.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::effect::service_reference;
    use crds::Key;

    fn event(name: &str, uid: &str, reason: &'static str, message: &str) -> Event {
        let regarding = service_reference(&Key::new("default", name), uid);
        Event { regarding, is_warning: true, reason, message: message.into() }
    }

    #[test]
    fn same_event_is_new_again_after_a_while() {
        let (mut recent, now) = (RecentEvents::default(), Instant::now());
        let first = event("web", "u1", "NoPool", "none");
        assert!(recent.is_new(&first, now));
        assert!(!recent.is_new(&first, now));
        for other in [
            event("api", "u1", "NoPool", "none"),
            event("web", "u2", "NoPool", "none"),
            event("web", "u1", "PoolExhausted", "none"),
            event("web", "u1", "NoPool", "still none"),
        ] {
            assert!(recent.is_new(&other, now), "{other:?}");
        }
        assert!(!recent.is_new(&first, now + QUIET - Duration::from_millis(1)));
        assert!(recent.is_new(&first, now + QUIET));
    }

    #[test]
    fn oldest_events_are_forgotten_at_capacity() {
        let (mut recent, now) = (RecentEvents::default(), Instant::now());
        let events: Vec<_> = (0..=CAPACITY).map(|n| event(&format!("s{n}"), "u", "NoPool", "none")).collect();
        assert!(events.iter().all(|event| recent.is_new(event, now)));
        assert_eq!((recent.hashes.len(), recent.order.len()), (CAPACITY, CAPACITY));
        assert!(!recent.is_new(&events[CAPACITY], now));
        assert!(!recent.is_new(&events[1], now), "a repeated event displaces no other");
        assert!(recent.is_new(&events[0], now));
    }
}
