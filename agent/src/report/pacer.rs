//! Limits how often the volatile parts of a status are written for one address. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::difference::Difference;

/// The minimum time between two writes of conflicts for one address. If two hosts use the address, the observed host
/// may change with each frame.
const CONFLICT_PAUSE: Duration = Duration::from_secs(10);

/// The minimum time between two writes for one address that change only its reach. Endpoints, on which the reach
/// depends, may change continuously.
const REACH_PAUSE: Duration = Duration::from_secs(10);

/// The pacers of a report.
#[derive(Debug)]
pub(super) struct Pacers {
    conflicts: Pacer,
    reach: Pacer,
}

impl Default for Pacers {
    fn default() -> Self {
        Self { conflicts: Pacer::new(CONFLICT_PAUSE), reach: Pacer::new(REACH_PAUSE) }
    }
}

impl Pacers {
    /// Removes the parts that have to wait, and returns when the first of them may be written. The rest counts as
    /// written.
    pub(super) fn postpone(&mut self, differences: &mut Vec<(IpAddr, Difference)>, now: Instant) -> Option<Instant> {
        for (lb_ip, difference) in differences.iter_mut() {
            if difference.conflicts.is_some() && !self.conflicts.may_write(*lb_ip, now) {
                difference.conflicts = None;
            }
            if difference.is_reach_only && !self.reach.may_write(*lb_ip, now) {
                difference.announcers = None;
            }
        }
        differences.retain(|(_, difference)| !difference.is_empty());
        let postponed = [self.conflicts.postponed_until.take(), self.reach.postponed_until.take()];
        postponed.into_iter().flatten().min()
    }

    /// Forgets the writes for these addresses, because they have failed.
    pub(super) fn forget(&mut self, failed: &[IpAddr]) {
        for lb_ip in failed {
            self.conflicts.written.remove(lb_ip);
            self.reach.written.remove(lb_ip);
        }
    }
}

/// Admits at most one write for each address in each pause.
#[derive(Debug)]
struct Pacer {
    pause: Duration,
    written: BTreeMap<IpAddr, Instant>,
    /// When the first of the refused writes is admitted.
    postponed_until: Option<Instant>,
}

impl Pacer {
    fn new(pause: Duration) -> Self {
        Self { pause, written: BTreeMap::new(), postponed_until: None }
    }

    /// Whether a write is admitted now. If so, it counts as done.
    fn may_write(&mut self, lb_ip: IpAddr, now: Instant) -> bool {
        match self.written.get(&lb_ip).map(|written| *written + self.pause).filter(|next| *next > now) {
            Some(next) => {
                self.postponed_until = Some(self.postponed_until.map_or(next, |first| first.min(next)));
                false
            }
            None => {
                self.written.retain(|_, written| *written + self.pause > now);
                self.written.insert(lb_ip, now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_admitted_once_in_each_pause() {
        let mut pacer = Pacer::new(Duration::from_secs(10));
        let now = Instant::now();
        let [one, other] = [200, 201].map(|last| IpAddr::from([192, 0, 2, last]));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(pacer.may_write(one, now));
        assert!(pacer.may_write(other, later(3)));
        assert!(!pacer.may_write(other, later(4)) && !pacer.may_write(one, later(4)));
        assert_eq!(pacer.postponed_until.take(), Some(later(10)));
        assert!(pacer.may_write(one, later(10)));
        assert_eq!((pacer.postponed_until, pacer.written.len()), (None, 2));
    }
}
