//! Limits how often the volatile parts of a status are written for one address. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::difference::Difference;

/// The minimum time between two writes of one part for one address. If two hosts use the address, the observed host may
/// change with each frame; and the reach changes with the endpoints, which may change continuously.
const PAUSE: Duration = Duration::from_secs(10);

/// A volatile part of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Conflicts,
    /// The announcers, if they differ only in how they forward.
    Reach,
}

/// Admits at most one write for each part of an address in each pause.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    written: BTreeMap<(IpAddr, Part), Instant>,
    /// When the first of the refused writes is admitted.
    postponed_until: Option<Instant>,
}

impl Pacer {
    /// Removes the parts that have to wait, and returns when the first of them may be written. The rest counts as
    /// written.
    pub(super) fn postpone(&mut self, differences: &mut Vec<(IpAddr, Difference)>, now: Instant) -> Option<Instant> {
        for (lb_ip, difference) in differences.iter_mut() {
            if difference.conflicts.is_some() && !self.may_write(*lb_ip, Part::Conflicts, now) {
                difference.conflicts = None;
            }
            if difference.is_reach_only && !self.may_write(*lb_ip, Part::Reach, now) {
                difference.announcers = None;
            }
        }
        differences.retain(|(_, difference)| !difference.is_empty());
        self.postponed_until.take()
    }

    /// Forgets the writes for these addresses, because they have failed.
    pub(super) fn forget(&mut self, failed: &[IpAddr]) {
        for lb_ip in failed {
            self.written.remove(&(*lb_ip, Part::Conflicts));
            self.written.remove(&(*lb_ip, Part::Reach));
        }
    }

    /// Whether a write is admitted now. If so, it counts as done.
    fn may_write(&mut self, lb_ip: IpAddr, part: Part, now: Instant) -> bool {
        match self.written.get(&(lb_ip, part)).map(|written| *written + PAUSE).filter(|next| *next > now) {
            Some(next) => {
                self.postponed_until = Some(self.postponed_until.map_or(next, |first| first.min(next)));
                false
            }
            None => {
                self.written.retain(|_, written| *written + PAUSE > now);
                self.written.insert((lb_ip, part), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_address_is_admitted_once_in_each_pause() {
        let mut pacer = Pacer::default();
        let now = Instant::now();
        let [one, other] = [200, 201].map(|last| IpAddr::from([192, 0, 2, last]));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(pacer.may_write(one, Part::Reach, now));
        assert!(pacer.may_write(other, Part::Reach, later(3)));
        assert!(pacer.may_write(one, Part::Conflicts, later(1)), "another part");
        assert!(!pacer.may_write(other, Part::Reach, later(4)) && !pacer.may_write(one, Part::Reach, later(4)));
        assert_eq!(pacer.postponed_until.take(), Some(later(10)));
        assert!(pacer.may_write(one, Part::Reach, later(10)));
        assert_eq!((pacer.postponed_until, pacer.written.len()), (None, 3));
    }
}
