//! Which events are told again and again.
//!
//! An event, the local monotonic time → whether it is news. The same words about the same object are told once in a while:
//! a Service that two fight over would otherwise fill the API server with them. What is the case stands on the condition,
//! so nothing is lost.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::plan::effect::Event;

/// For how long the same event is not told again. People look at the newest ones, and the API server keeps them an hour.
const QUIET: Duration = Duration::from_secs(5 * 60);

/// How many events are remembered: as many as a burst of 10k Services brings, and as many as fit into a table of 2¹⁴
/// places. About 40 bytes each.
const MOST: usize = 14_336;

/// What was told lately.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    hasher: RandomState,
    /// By their hashes.
    told: HashSet<u64>,
    /// The same in the order in which it was told, and when.
    order: VecDeque<(Instant, u64)>,
}

impl Repeats {
    /// Whether this is to be told now. Then it is remembered.
    pub(crate) fn is_news(&mut self, event: &Event, now: Instant) -> bool {
        while let Some((told, hash)) = self.order.front().copied()
            && (now.duration_since(told) >= QUIET || self.order.len() >= MOST)
        {
            self.order.pop_front();
            self.told.remove(&hash);
        }
        let about = &event.regarding;
        let hash = self
            .hasher
            .hash_one(((&about.kind, &about.namespace, &about.name, &about.uid), (event.reason, &event.message)));
        if !self.told.insert(hash) {
            return false;
        }
        self.order.push_back((now, hash));
        true
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
    fn the_same_words_about_the_same_object_are_news_again_after_some_time() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let first = event("web", "u1", "NoPool", "none");
        assert!(repeats.is_news(&first, now));
        assert!(!repeats.is_news(&first, now));
        for other in [
            event("api", "u1", "NoPool", "none"),
            event("web", "u2", "NoPool", "none"),
            event("web", "u1", "PoolExhausted", "none"),
            event("web", "u1", "NoPool", "still none"),
        ] {
            assert!(repeats.is_news(&other, now), "{other:?}");
        }
        assert!(!repeats.is_news(&first, now + QUIET - Duration::from_millis(1)));
        assert!(repeats.is_news(&first, now + QUIET));
    }

    #[test]
    fn only_so_many_are_remembered_and_the_oldest_are_forgotten_first() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let events: Vec<_> = (0..=MOST).map(|n| event(&format!("s{n}"), "u", "NoPool", "none")).collect();
        assert!(events.iter().all(|event| repeats.is_news(event, now)));
        assert_eq!((repeats.told.len(), repeats.order.len()), (MOST, MOST));
        assert!(!repeats.is_news(&events[MOST], now));
        assert!(repeats.is_news(&events[0], now));
    }
}
