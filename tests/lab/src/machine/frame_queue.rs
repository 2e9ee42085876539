//! The frames on their way through a cable with delay, duplication and reordering. Times, frames and a seed → the
//! frames that are due. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use model::stable_hash::splitmix64;

/// The most frames on their way. Further ones are lost, as in a switch without free buffers.
const MAX_FRAMES: usize = 1024;

/// The faults of a cable, the same in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CablePlan {
    /// Delay of each frame.
    pub delay: Duration,
    /// Percentage of frames that arrive twice.
    pub duplicated: u8,
    /// Percentage of frames that arrive later by `reorder_delay`, so that others overtake them.
    pub reordered: u8,
    pub reorder_delay: Duration,
    /// Selects the duplicated and reordered frames.
    pub seed: u64,
}

/// One direction of a cable.
#[derive(Clone, Debug, Default)]
pub struct FrameQueue {
    plan: CablePlan,
    random: u64,
    /// Frames by time of arrival and number.
    frames: BTreeMap<(Duration, u64), Vec<u8>>,
    next_number: u64,
}

impl FrameQueue {
    pub fn new(plan: CablePlan) -> Self {
        Self { plan, random: plan.seed, ..Self::default() }
    }

    /// Adds a frame that is sent now, once or twice, or loses it if the queue is full.
    pub fn push(&mut self, now: Duration, frame: &[u8]) {
        let CablePlan { delay, duplicated, reordered, reorder_delay, .. } = self.plan;
        let (is_duplicated, is_reordered) = (self.choose(duplicated), self.choose(reordered));
        let due = now + delay + if is_reordered { reorder_delay } else { Duration::ZERO };
        for _ in 0..=u8::from(is_duplicated) {
            if self.frames.len() < MAX_FRAMES {
                self.frames.insert((due, self.next_number), frame.to_vec());
                self.next_number += 1;
            }
        }
    }

    /// Removes and returns the next frame that is due.
    pub fn pop_due(&mut self, now: Duration) -> Option<Vec<u8>> {
        let entry = self.frames.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// When the next frame is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.frames.keys().next().map(|(due, _)| *due)
    }

    /// Is true with this probability, in percent.
    fn choose(&mut self, percent: u8) -> bool {
        self.random = splitmix64(self.random);
        self.random % 100 < u64::from(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sends frames 0, 1, 2, … one per millisecond, and returns when each arrives.
    fn arrivals(plan: CablePlan, count: u8) -> Vec<(u64, u8)> {
        let (mut queue, mut arrivals) = (FrameQueue::new(plan), Vec::new());
        for now in 0..200 {
            if now < u64::from(count) {
                queue.push(ms(now), &[now as u8]);
            }
            while let Some(frame) = queue.pop_due(ms(now)) {
                arrivals.push((now, frame[0]));
            }
        }
        assert_eq!(queue.next_due(), None);
        arrivals
    }

    #[test]
    fn a_plan_delays_duplicates_and_reorders_frames() {
        let plan = CablePlan { delay: ms(10), seed: 7, ..CablePlan::default() };
        let twice = CablePlan { duplicated: 100, ..plan };
        let late = CablePlan { reordered: 100, reorder_delay: ms(5), ..plan };
        for (case, plan, expected) in [
            ("no fault", CablePlan::default(), vec![(0, 0), (1, 1)]),
            ("delay", plan, vec![(10, 0), (11, 1)]),
            ("duplication", twice, vec![(10, 0), (10, 0), (11, 1), (11, 1)]),
            ("all frames are late", late, vec![(15, 0), (16, 1)]),
        ] {
            assert_eq!(arrivals(plan, 2), expected, "{case}");
        }
    }

    #[test]
    fn a_seed_selects_the_frames() {
        let plan =
            |seed| CablePlan { duplicated: 20, reordered: 20, reorder_delay: ms(10), seed, ..CablePlan::default() };
        let first = arrivals(plan(1), 100);
        assert_eq!(first, arrivals(plan(1), 100));
        assert_ne!(first, arrivals(plan(2), 100));
        let copies = first.len() - 100;
        let overtaken = first.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
        assert!((10..=30).contains(&copies) && (5..=30).contains(&overtaken), "{copies} copies, {overtaken} overtaken");
        let numbers: std::collections::BTreeSet<u8> = first.iter().map(|(_, frame)| *frame).collect();
        assert_eq!(numbers.len(), 100, "no frame is lost");
    }

    #[test]
    fn a_full_queue_loses_frames() {
        let mut queue = FrameQueue::new(CablePlan { duplicated: 100, ..CablePlan::default() });
        (0..MAX_FRAMES).for_each(|_| queue.push(ms(0), &[0]));
        assert_eq!(std::iter::from_fn(|| queue.pop_due(ms(0))).count(), MAX_FRAMES);
    }
}
