//! When there is time to tell how things are.
//!
//! When something else began, and the time → whether one more may begin that can wait. An owner that dies takes thousands
//! of addresses along, and each that moved is a write for the sake of who looks: these must stand in nobody's way. They
//! come one after the other, slowly while addresses are given or taken, and faster when nothing else is going on.

use std::time::{Duration, Instant};

/// So many may begin at once, if none did for a while: one Service more is told of at once.
const AT_ONCE: u32 = 32;

/// So long after anything else has begun, nothing else is going on.
const CALM: Duration = Duration::from_millis(250);

/// Between two while nothing else is going on: 200 in a second, so 5,000 addresses that moved take 25 s.
const CALM_GAP: Duration = Duration::from_millis(5);

/// Between two while something else is: 20 in a second, where an API server takes some hundred writes.
const BUSY_GAP: Duration = Duration::from_millis(50);

/// How many may begin.
#[derive(Debug)]
pub(crate) struct Leisure {
    may_begin: u32,
    /// Up to when those are counted in that may begin.
    counted: Instant,
    /// When something else began last.
    busy: Option<Instant>,
}

impl Leisure {
    pub(crate) fn new(now: Instant) -> Self {
        Self { may_begin: AT_ONCE, counted: now, busy: None }
    }

    /// Something begins that doesn't wait.
    pub(crate) fn interrupt(&mut self, now: Instant) {
        self.count(now);
        self.busy = Some(now);
    }

    /// Whether one may begin now that can wait.
    pub(crate) fn is_there(&mut self, now: Instant) -> bool {
        self.count(now);
        self.may_begin > 0
    }

    /// One begins that can wait.
    pub(crate) fn spend(&mut self) {
        self.may_begin = self.may_begin.saturating_sub(1);
    }

    /// When the next one may begin, if none may now.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        self.counted + self.gap(now)
    }

    fn gap(&self, now: Instant) -> Duration {
        let is_busy = self.busy.is_some_and(|busy| now < busy + CALM);
        if is_busy { BUSY_GAP } else { CALM_GAP }
    }

    fn count(&mut self, now: Instant) {
        let gap = self.gap(now);
        let more = now.saturating_duration_since(self.counted).as_nanos() / gap.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX).min(AT_ONCE);
        self.may_begin = self.may_begin.saturating_add(more);
        if self.may_begin >= AT_ONCE {
            (self.may_begin, self.counted) = (AT_ONCE, now);
        } else {
            self.counted += gap * more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many begin within a second in which something else begins at these intervals.
    fn in_a_second(leisure: &mut Leisure, from: Instant, others: Option<Duration>) -> u32 {
        let mut begun = 0;
        let mut other = from;
        for ms in 0..1000 {
            let now = from + Duration::from_millis(ms);
            if let Some(interval) = others.filter(|_| other <= now) {
                leisure.interrupt(now);
                other += interval;
            }
            while leisure.is_there(now) {
                leisure.spend();
                begun += 1;
            }
        }
        begun
    }

    #[test]
    fn some_begin_at_once_and_then_so_many_in_a_second_as_others_leave_room_for() {
        let from = Instant::now();
        for (others, expected) in
            [(None, 231), (Some(Duration::from_millis(1)), 51), (Some(Duration::from_millis(200)), 51)]
        {
            let mut leisure = Leisure::new(from);
            assert_eq!(in_a_second(&mut leisure, from, others), expected, "{others:?}");
        }
    }

    #[test]
    fn what_is_saved_up_is_no_more_than_may_begin_at_once() {
        let from = Instant::now();
        let mut leisure = Leisure::new(from);
        in_a_second(&mut leisure, from, None);
        let late = from + Duration::from_secs(60);
        assert!(leisure.is_there(late));
        let saved = std::iter::from_fn(|| leisure.is_there(late).then(|| leisure.spend())).count();
        assert_eq!((saved, leisure.next(late)), (AT_ONCE as usize, late + CALM_GAP));
    }
}
