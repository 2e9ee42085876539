//! What was planned and has not begun, in the order in which it is to begin.
//!
//! Series, and when each subject may be tried → the next one to begin. There is one series about a subject at most: a
//! newer plan's takes the place of the older one's. What has to wait for its time holds up nothing behind it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::effect::{Series, Subject};

/// What has not begun.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Counts those that ever came.
    count: u64,
    ready: BTreeMap<u64, Series>,
    /// Those whose time has not come, by that time.
    held: BTreeMap<(Instant, u64), Series>,
    places: HashMap<Subject, (Option<Instant>, u64)>,
}

impl Queue {
    /// Adds a series behind all others; or, if there is one about its subject, in its place.
    pub(crate) fn put(&mut self, series: Series) {
        let place = self.take(&series.subject).map_or(self.count, |(place, _)| place);
        self.count += 1;
        self.places.insert(series.subject.clone(), (None, place));
        self.ready.insert(place, series);
    }

    /// The series about this subject is not to begin any more.
    pub(crate) fn revoke(&mut self, subject: &Subject) {
        self.take(subject);
    }

    fn take(&mut self, subject: &Subject) -> Option<(u64, Series)> {
        let (until, place) = self.places.remove(subject)?;
        let series = match until {
            Some(until) => self.held.remove(&(until, place)),
            None => self.ready.remove(&place),
        };
        Some((place, series?))
    }

    /// The next series whose time has come. `held_until` says of a subject when that is, if it is not yet.
    pub(crate) fn next(&mut self, now: Instant, held_until: impl Fn(&Subject) -> Option<Instant>) -> Option<Series> {
        while let Some(entry) = self.held.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, place), series) = entry.remove_entry();
            self.places.insert(series.subject.clone(), (None, place));
            self.ready.insert(place, series);
        }
        while let Some((place, series)) = self.ready.pop_first() {
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
    use crate::effect::Effect;
    use crate::fixtures::ip;
    use std::time::Duration;

    fn subject(name: &str) -> Subject {
        Subject::Pool(name.into())
    }

    /// A series about that, told from others by an address.
    fn series(name: &str, mark: &str) -> Series {
        let effect = Effect::Delete { address: ip(mark), uid: String::new(), resource_version: None };
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
        let begun: Vec<_> = std::iter::from_fn(|| queue.next(now, |_| None)).collect();
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
        assert_eq!(queue.next(now, held(now)), Some(series("c", "192.0.2.3")));
        assert_eq!((queue.next(now, held(now)), queue.alarm()), (None, Some(soon)));
        // The newer one waits as well, and is forgotten as well.
        queue.put(series("b", "192.0.2.9"));
        assert_eq!((queue.next(now, held(now)), queue.alarm()), (None, Some(soon)));
        queue.put(series("d", "192.0.2.4"));
        assert_eq!(queue.next(late, held(late)), Some(series("a", "192.0.2.1")));
        assert_eq!(queue.next(late, held(late)), Some(series("b", "192.0.2.9")));
        assert!(queue.contains(&subject("d")) && !queue.contains(&subject("b")));
        assert_eq!((queue.next(late, held(late)), queue.alarm()), (Some(series("d", "192.0.2.4")), None));
    }
}
