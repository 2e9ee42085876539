//! When each planned series starts: the queue, and the budget for deferrable series.
//!
//! [`Queue`]: series, and the time before which a subject must not be tried → the next series to start. Each subject
//! has at most one series: a newer one replaces it. A series that waits for its time delays no other one, and
//! deferrable series ([`Series::is_deferrable`]) start after all others.
//!
//! [`DeferredBudget`]: the starts of urgent series, and the current time → whether a deferrable series may start now.
//! When a node dies, thousands of addresses may move, and each move is a status-only write. These writes must never
//! delay an allocation, so only a few of them start per second while urgent series start, and more otherwise.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use model::pacing::TokenBucket;

use crate::plan::effect::{Series, Subject};

/// How many deferrable series may start at once after an idle time, so that a single write starts immediately.
const BURST: u32 = 32;

/// The queue counts as idle once no urgent series has started for this long.
const IDLE_AFTER: Duration = Duration::from_millis(250);

/// The interval between deferrable series while idle: 200 per second, so 5,000 moved addresses take 25 s.
const IDLE_INTERVAL: Duration = Duration::from_millis(5);

/// The interval while busy: 20 per second. An API server takes some hundreds of writes per second.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum number of deferrable series among them.
pub(crate) const DEFERRABLE_CONCURRENCY: usize = 8;

/// Planned series that have not started.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// The number of series ever added.
    count: u64,
    ready: BTreeMap<Position, Series>,
    /// Series that must wait, each with the time until which it waits.
    delayed: BTreeMap<(Instant, Position), Series>,
    /// The key of each series: in `delayed` if it has a time, otherwise in `ready`.
    positions: HashMap<Subject, (Option<Instant>, Position)>,
}

/// The order in which series start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    is_deferrable: bool,
    number: u64,
}

impl Queue {
    /// Adds a series at the end, or at the position of the earlier series of its subject.
    pub(crate) fn push(&mut self, series: Series) {
        let number = self.remove(&series.subject).map_or(self.count, |(position, _)| position.number);
        let position = Position { is_deferrable: series.is_deferrable(), number };
        self.count += 1;
        self.positions.insert(series.subject.clone(), (None, position));
        self.ready.insert(position, series);
    }

    /// Removes the series of this subject, and returns it with its position.
    pub(crate) fn remove(&mut self, subject: &Subject) -> Option<(Position, Series)> {
        let (until, position) = self.positions.remove(subject)?;
        let series = match until {
            Some(until) => self.delayed.remove(&(until, position)),
            None => self.ready.remove(&position),
        };
        Some((position, series?))
    }

    /// Removes and returns the next series whose time has come. `not_before` returns the time before which a subject
    /// must not be tried, if that is in the future. Without `allow_deferrable`, deferrable series stay.
    pub(crate) fn pop(
        &mut self,
        now: Instant,
        allow_deferrable: bool,
        not_before: impl Fn(&Subject) -> Option<Instant>,
    ) -> Option<Series> {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, position), series) = entry.remove_entry();
            self.positions.insert(series.subject.clone(), (None, position));
            self.ready.insert(position, series);
        }
        while let Some(entry) = self.ready.first_entry().filter(|entry| allow_deferrable || !entry.key().is_deferrable)
        {
            let (position, series) = entry.remove_entry();
            let Some(until) = not_before(&series.subject) else {
                self.positions.remove(&series.subject);
                return Some(series);
            };
            self.positions.insert(series.subject.clone(), (Some(until), position));
            self.delayed.insert((until, position), series);
        }
        None
    }

    /// When the time of the first delayed series comes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((until, _), _)| *until)
    }

    /// Whether a deferrable series is ready.
    pub(crate) fn has_deferrable(&self) -> bool {
        self.ready.last_key_value().is_some_and(|(position, _)| position.is_deferrable)
    }

    pub(crate) fn contains(&self, subject: &Subject) -> bool {
        self.positions.contains_key(subject)
    }
}

/// A token for each deferrable series that may start.
#[derive(Debug)]
pub(crate) struct DeferredBudget {
    bucket: TokenBucket,
    /// When the last urgent series started.
    last_urgent: Option<Instant>,
}

impl DeferredBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { bucket: TokenBucket::full(BURST, now), last_urgent: None }
    }

    /// Records the start of an urgent series.
    fn record_urgent(&mut self, now: Instant) {
        self.credit(now);
        self.last_urgent = Some(now);
    }

    /// Removes the next series that may start from the queue, and counts its start. A deferrable series needs a token,
    /// and fewer than [`DEFERRABLE_CONCURRENCY`] such series in flight. An urgent series needs neither.
    pub(crate) fn pop(
        &mut self,
        queue: &mut Queue,
        now: Instant,
        deferrable_in_flight: usize,
        not_before: impl Fn(&Subject) -> Option<Instant>,
    ) -> Option<Series> {
        let allow_deferrable = deferrable_in_flight < DEFERRABLE_CONCURRENCY && self.is_available(now);
        let series = queue.pop(now, allow_deferrable, not_before)?;
        if series.is_deferrable() {
            self.spend();
        } else {
            self.record_urgent(now);
        }
        Some(series)
    }

    /// Whether a deferrable series may start now.
    fn is_available(&mut self, now: Instant) -> bool {
        self.credit(now);
        self.bucket.has_token()
    }

    /// Records the start of a deferrable series.
    fn spend(&mut self) {
        self.bucket.take();
    }

    /// When the next token is credited.
    pub(crate) fn next_token(&self, now: Instant) -> Instant {
        self.bucket.next_credit(self.interval(now))
    }

    fn interval(&self, now: Instant) -> Duration {
        let is_busy = self.last_urgent.is_some_and(|last| now < last + IDLE_AFTER);
        if is_busy { BUSY_INTERVAL } else { IDLE_INTERVAL }
    }

    fn credit(&mut self, now: Instant) {
        self.bucket.refill(now, self.interval(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ip;
    use crate::plan::effect::{Effect, ServicePatch};
    use crds::Key;

    fn subject(name: &str) -> Subject {
        Subject::Pool(name.into())
    }

    /// A series of this subject, which differs from others by an address.
    fn series(name: &str, mark: &str) -> Series {
        let effect = Effect::Delete { lb_ip: ip(mark), uid: "".into(), resource_version: 1 };
        Series { subject: subject(name), effects: vec![effect] }
    }

    fn queue(all: &[(&str, &str)]) -> Queue {
        let mut queue = Queue::default();
        all.iter().for_each(|(name, mark)| queue.push(series(name, mark)));
        queue
    }

    #[test]
    fn newer_series_replaces_the_older_one() {
        let mut queue = queue(&[("a", "192.0.2.1"), ("b", "192.0.2.2"), ("a", "192.0.2.3"), ("c", "192.0.2.4")]);
        queue.remove(&subject("b"));
        queue.remove(&subject("never there"));
        let now = Instant::now();
        let started: Vec<_> = std::iter::from_fn(|| queue.pop(now, true, |_| None)).collect();
        assert_eq!(started, [series("a", "192.0.2.3"), series("c", "192.0.2.4")]);
        assert!(queue.positions.is_empty());
    }

    #[test]
    fn delayed_series_delays_no_other_and_keeps_its_position() {
        let mut queue = queue(&[("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")]);
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_millis(10), now + Duration::from_millis(20));
        let not_before = |at: Instant| {
            move |of: &Subject| match of {
                Subject::Pool(name) if name == "a" => Some(late).filter(|until| *until > at),
                Subject::Pool(name) if name == "b" => Some(soon).filter(|until| *until > at),
                _ => None,
            }
        };
        assert_eq!(queue.pop(now, true, not_before(now)), Some(series("c", "192.0.2.3")));
        assert_eq!((queue.pop(now, true, not_before(now)), queue.next_deadline()), (None, Some(soon)));
        // The newer series is delayed too, and can be replaced too.
        queue.push(series("b", "192.0.2.9"));
        assert_eq!((queue.pop(now, true, not_before(now)), queue.next_deadline()), (None, Some(soon)));
        queue.push(series("d", "192.0.2.4"));
        assert_eq!(queue.pop(late, true, not_before(late)), Some(series("a", "192.0.2.1")));
        assert_eq!(queue.pop(late, true, not_before(late)), Some(series("b", "192.0.2.9")));
        assert!(queue.contains(&subject("d")) && !queue.contains(&subject("b")));
        assert_eq!(
            (queue.pop(late, true, not_before(late)), queue.next_deadline()),
            (Some(series("d", "192.0.2.4")), None)
        );
    }

    fn deferrable(name: &str) -> Series {
        let patch = ServicePatch {
            key: Key::new("default", name),
            resource_version: 7,
            finalizers: None,
            ingress: None,
            conditions: None,
        };
        Series { subject: Subject::Service(patch.key.clone()), effects: vec![Effect::PatchConditions(patch)] }
    }

    #[test]
    fn urgent_series_start_without_a_token() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let mut budget = DeferredBudget::new(now);
        (0..40).for_each(|n| queue.push(deferrable(&format!("web-{n}"))));
        let started = std::iter::from_fn(|| budget.pop(&mut queue, now, 0, |_| None)).count();
        assert_eq!(started, BURST as usize, "all tokens are spent");
        for n in 0..100 {
            let urgent = series(&format!("pool-{n}"), "192.0.2.1");
            queue.push(urgent.clone());
            let started = budget.pop(&mut queue, now, DEFERRABLE_CONCURRENCY, |_| None);
            assert_eq!(started, Some(urgent), "{n}");
        }
        assert_eq!(budget.pop(&mut queue, now, 0, |_| None), None);
    }

    #[test]
    fn deferrable_series_start_after_all_others() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(deferrable("web"));
        queue.push(deferrable("db"));
        queue.push(series("a", "192.0.2.1"));
        assert_eq!(queue.pop(now, false, |_| None), Some(series("a", "192.0.2.1")));
        assert!(queue.pop(now, false, |_| None).is_none() && queue.has_deferrable());
        // The newer series is not deferrable.
        let urgent = Series { subject: deferrable("db").subject, ..series("b", "192.0.2.2") };
        queue.push(urgent.clone());
        assert_eq!(queue.pop(now, false, |_| None), Some(urgent));
        assert_eq!(queue.pop(now, true, |_| None), Some(deferrable("web")));
        assert!(queue.pop(now, true, |_| None).is_none() && !queue.has_deferrable());
    }

    /// How many deferrable series start within a second, while urgent series start at these intervals.
    fn count_in_a_second(budget: &mut DeferredBudget, from: Instant, urgent: Option<Duration>) -> u32 {
        let mut started = 0;
        let mut next_urgent = from;
        for ms in 0..1000 {
            let now = from + Duration::from_millis(ms);
            if let Some(interval) = urgent.filter(|_| next_urgent <= now) {
                budget.record_urgent(now);
                next_urgent += interval;
            }
            while budget.is_available(now) {
                budget.spend();
                started += 1;
            }
        }
        started
    }

    #[test]
    fn burst_is_followed_by_the_idle_or_busy_rate() {
        let from = Instant::now();
        for (urgent, expected) in
            [(None, 231), (Some(Duration::from_millis(1)), 51), (Some(Duration::from_millis(200)), 51)]
        {
            let mut budget = DeferredBudget::new(from);
            assert_eq!(count_in_a_second(&mut budget, from, urgent), expected, "{urgent:?}");
        }
    }

    #[test]
    fn saved_tokens_are_at_most_one_burst() {
        let from = Instant::now();
        let mut budget = DeferredBudget::new(from);
        count_in_a_second(&mut budget, from, None);
        let late = from + Duration::from_secs(60);
        assert!(budget.is_available(late));
        let saved = std::iter::from_fn(|| budget.is_available(late).then(|| budget.spend())).count();
        assert_eq!((saved, budget.next_token(late)), (BURST as usize, late + IDLE_INTERVAL));
    }
}
