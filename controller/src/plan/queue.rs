//! What was planned and has not begun, in the order in which it is to begin.
//!
//! Series, and when each subject may be tried → the next one to begin. There is one series about a subject at most: a
//! newer plan's takes the place of the older one's. What has to wait for its time holds up nothing behind it, and what
//! only tells how things are ([`Series::can_wait`]) comes behind all others.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::plan::effect::{Series, Subject};

/// What has not begun.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Counts those that ever came.
    count: u64,
    ready: BTreeMap<Place, Series>,
    /// Those whose time has not come, by that time.
    held: BTreeMap<(Instant, Place), Series>,
    places: HashMap<Subject, (Option<Instant>, Place)>,
}

/// Whether it can wait, and when it came.
type Place = (bool, u64);

impl Queue {
    /// Adds a series behind all others; or, if there is one about its subject, in its place.
    pub(crate) fn put(&mut self, series: Series) {
        let came = self.take(&series.subject).map_or(self.count, |((_, came), _)| came);
        let place = (series.can_wait(), came);
        self.count += 1;
        self.places.insert(series.subject.clone(), (None, place));
        self.ready.insert(place, series);
    }

    /// The series about this subject is not to begin any more.
    pub(crate) fn revoke(&mut self, subject: &Subject) {
        self.take(subject);
    }

    fn take(&mut self, subject: &Subject) -> Option<(Place, Series)> {
        let (until, place) = self.places.remove(subject)?;
        let series = match until {
            Some(until) => self.held.remove(&(until, place)),
            None => self.ready.remove(&place),
        };
        Some((place, series?))
    }

    /// The next series whose time has come. `held_until` says of a subject when that is, if it is not yet. Without `leisure`
    /// none that can wait.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        leisure: bool,
        held_until: impl Fn(&Subject) -> Option<Instant>,
    ) -> Option<Series> {
        while let Some(entry) = self.held.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, place), series) = entry.remove_entry();
            self.places.insert(series.subject.clone(), (None, place));
            self.ready.insert(place, series);
        }
        while let Some(entry) = self.ready.first_entry().filter(|entry| leisure || !entry.key().0) {
            let (place, series) = entry.remove_entry();
            let Some(until) = held_until(&series.subject) else {
                self.places.remove(&series.subject);
                return Some(series);
            };
            self.places.insert(series.subject.clone(), (Some(until), place));
            self.held.insert((until, place), series);
        }
        None
    }

    /// When the time of the next one comes that waits for it.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.held.first_key_value().map(|((until, _), _)| *until)
    }

    /// Whether one could begin if there were leisure.
    pub(crate) fn waits_for_leisure(&self) -> bool {
        self.ready.last_key_value().is_some_and(|((can_wait, _), _)| *can_wait)
    }

    /// Whether there is a series about this subject.
    pub(crate) fn contains(&self, subject: &Subject) -> bool {
        self.places.contains_key(subject)
    }

    /// Nothing is to begin any more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ip;
    use crate::plan::effect::{Effect, ServicePatch};
    use crds::Key;
    use std::time::Duration;

    fn subject(name: &str) -> Subject {
        Subject::Pool(name.into())
    }

    /// A series about that, told from others by an address.
    fn series(name: &str, mark: &str) -> Series {
        let effect = Effect::Delete { address: ip(mark), uid: "".into(), resource_version: None };
        Series { subject: subject(name), effects: vec![effect] }
    }

    fn queue(all: &[(&str, &str)]) -> Queue {
        let mut queue = Queue::default();
        all.iter().for_each(|(name, mark)| queue.put(series(name, mark)));
        queue
    }

    #[test]
    fn a_newer_series_takes_the_place_of_the_older_one() {
        let mut queue = queue(&[("a", "192.0.2.1"), ("b", "192.0.2.2"), ("a", "192.0.2.3"), ("c", "192.0.2.4")]);
        queue.revoke(&subject("b"));
        queue.revoke(&subject("never there"));
        let now = Instant::now();
        let begun: Vec<_> = std::iter::from_fn(|| queue.next(now, true, |_| None)).collect();
        assert_eq!(begun, [series("a", "192.0.2.3"), series("c", "192.0.2.4")]);
        assert!(queue.places.is_empty());
    }

    #[test]
    fn what_waits_for_its_time_holds_up_nothing_and_keeps_its_place() {
        let mut queue = queue(&[("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")]);
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_millis(10), now + Duration::from_millis(20));
        let held = |at: Instant| {
            move |of: &Subject| match of {
                Subject::Pool(name) if name == "a" => Some(late).filter(|until| *until > at),
                Subject::Pool(name) if name == "b" => Some(soon).filter(|until| *until > at),
                _ => None,
            }
        };
        assert_eq!(queue.next(now, true, held(now)), Some(series("c", "192.0.2.3")));
        assert_eq!((queue.next(now, true, held(now)), queue.alarm()), (None, Some(soon)));
        // The newer one waits as well, and is forgotten as well.
        queue.put(series("b", "192.0.2.9"));
        assert_eq!((queue.next(now, true, held(now)), queue.alarm()), (None, Some(soon)));
        queue.put(series("d", "192.0.2.4"));
        assert_eq!(queue.next(late, true, held(late)), Some(series("a", "192.0.2.1")));
        assert_eq!(queue.next(late, true, held(late)), Some(series("b", "192.0.2.9")));
        assert!(queue.contains(&subject("d")) && !queue.contains(&subject("b")));
        assert_eq!((queue.next(late, true, held(late)), queue.alarm()), (Some(series("d", "192.0.2.4")), None));
    }

    #[test]
    fn what_only_tells_waits_for_leisure_and_for_all_that_does_not() {
        let telling = |name: &str| {
            let patch = ServicePatch {
                key: Key::new("default", name),
                resource_version: 7,
                finalizers: None,
                ingress: None,
                conditions: None,
            };
            Series { subject: Subject::Service(patch.key.clone()), effects: vec![Effect::TellService(patch)] }
        };
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.put(telling("web"));
        queue.put(telling("db"));
        queue.put(series("a", "192.0.2.1"));
        assert_eq!(queue.next(now, false, |_| None), Some(series("a", "192.0.2.1")));
        assert!(queue.next(now, false, |_| None).is_none() && queue.waits_for_leisure());
        // There is more to do about it by now than to tell: it doesn't wait any more.
        let urgent = Series { subject: telling("db").subject, ..series("b", "192.0.2.2") };
        queue.put(urgent.clone());
        assert_eq!(queue.next(now, false, |_| None), Some(urgent));
        assert_eq!(queue.next(now, true, |_| None), Some(telling("web")));
        assert!(queue.next(now, true, |_| None).is_none() && !queue.waits_for_leisure());
    }
}
