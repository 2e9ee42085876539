//! Whether the kernel of a silent peer's node answers ARP or NDP for the node's own address.
//!
//! An agent can be killed, be frozen or run out of memory while the kernel of its node still forwards packets. So the
//! silence of a peer proves the death of its agent, not of its node. When a Hello is overdue, this node solicits the
//! other node by unicast ([`Reachability::due`]). An answer to such a solicitation proves that its kernel works.
//!
//! The input is times; the output is the time of the next solicitation, and whether the kernel answers:
//!
//! | situation | next solicitation |
//! |---|---|
//! | the node has not been solicited yet | 1.5 intervals after the last Hello |
//! | the last solicitation is unanswered | after half an interval, or a fifth of the silence if that is longer |
//! | the last solicitation was answered | after an interval |
//! | neither a Hello nor an answer for ten windows | none: only a Hello ends this silence |
//!
//! The limit of ten windows (1.5 s) also covers a node that restarts: its kernel answers long before its pods run. The
//! firmware of a machine alone needs more time than that, so such a node stays dead until its agent runs.

use std::time::Duration;

use crate::peers::liveness::Liveness;

/// A kernel that was silent for this number of windows is no longer solicited.
const SOLICITED_WINDOWS: u32 = 10;

/// The solicitations of a silent peer's node, since the last Hello of the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// When the last solicitation was sent.
    solicited_at: Option<Duration>,
    /// When the first of the unanswered solicitations was sent; `None` if the last one was answered.
    unanswered_since: Option<Duration>,
    /// When the kernel last answered.
    answered_at: Option<Duration>,
}

impl Reachability {
    /// When to send the next solicitation. `None` if the node has been silent for too long.
    pub fn due(&self, now: Duration, liveness: &Liveness) -> Option<Duration> {
        let last_sign = self.answered_at.unwrap_or(liveness.silent_since());
        if now >= last_sign + liveness.window() * SOLICITED_WINDOWS {
            return None;
        }
        let Some(last) = self.solicited_at else { return Some(liveness.overdue_since()) };
        let gap = match self.unanswered_since {
            None => liveness.interval,
            Some(_) => (last.saturating_sub(last_sign) / 5).max(liveness.interval / 2),
        };
        Some(last + gap)
    }

    pub fn record_solicitation(&mut self, now: Duration) {
        self.solicited_at = Some(now);
        self.unanswered_since.get_or_insert(now);
    }

    /// Records an answer, if it can be one to a recent solicitation. Returns whether it can.
    pub fn record_answer(&mut self, now: Duration, liveness: &Liveness) -> bool {
        let is_answer = self.solicited_at.is_some_and(|at| now < at + liveness.window());
        if is_answer {
            (self.unanswered_since, self.answered_at) = (None, Some(now));
        }
        is_answer
    }

    /// Starts a new window for a kernel that answered the last solicitations, because this node was suspended until
    /// now.
    pub fn excuse(&mut self, now: Duration, liveness: &Liveness) {
        self.unanswered_since = None;
        let was_answering = |at: &Duration| self.solicited_at.is_some_and(|last| last < *at + liveness.window());
        if self.answered_at.as_ref().is_some_and(was_answering) {
            self.answered_at = Some(now);
        }
    }

    /// Whether an answer may arrive.
    pub fn is_solicited(&self) -> bool {
        self.solicited_at.is_some()
    }

    /// Whether the kernel answered within a window.
    pub fn is_answering(&self, now: Duration, liveness: &Liveness) -> bool {
        self.answering_until(liveness).is_some_and(|until| now < until)
    }

    /// Whether it is too early to conclude from the silence of the kernel that it is dead: the first answer is due half
    /// an interval after the first solicitation.
    pub fn is_undecided(&self, now: Duration, liveness: &Liveness) -> bool {
        self.due(now, liveness).is_some() && self.decided_from(liveness).is_none_or(|from| now < from)
    }

    /// When the kernel fell silent, or will if it does not answer again: 1.5 intervals after its last answer.
    pub fn overdue_since(&self, liveness: &Liveness) -> Option<Duration> {
        Some(self.answered_at? + liveness.interval * 3 / 2)
    }

    /// When the result changes next if the kernel stays silent, or when the next solicitation is due.
    pub fn next_deadline(&self, now: Duration, liveness: &Liveness) -> Option<Duration> {
        let changes = [self.answering_until(liveness), self.decided_from(liveness)].into_iter().flatten();
        self.due(now, liveness).into_iter().chain(changes.filter(|at| *at > now)).min()
    }

    fn answering_until(&self, liveness: &Liveness) -> Option<Duration> {
        Some(self.answered_at? + liveness.window())
    }

    fn decided_from(&self, liveness: &Liveness) -> Option<Duration> {
        Some(self.unanswered_since? + liveness.interval / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A peer last heard at 1000 ms, with an interval of 50 ms.
    fn peer() -> Liveness {
        Liveness::new(ms(1000), ms(50), 3)
    }

    /// The times of all solicitations, if the kernel answers each one until `last_answer` after 1 ms.
    fn solicitations(reachability: &mut Reachability, last_answer: u64) -> Vec<u128> {
        let (peer, mut now, mut times) = (peer(), ms(1000), Vec::new());
        while let Some(due) = reachability.due(now, &peer) {
            now = due;
            if reachability.due(now, &peer).is_none() {
                break;
            }
            times.push(due.as_millis());
            reachability.record_solicitation(now);
            if now <= ms(last_answer) {
                assert!(reachability.record_answer(now + ms(1), &peer));
            }
        }
        times
    }

    #[test]
    fn silent_kernel_is_solicited_three_times_in_its_window_and_then_rarely() {
        let times = solicitations(&mut Reachability::default(), 0);
        assert_eq!(times[..6], [1075, 1100, 1125, 1150, 1180, 1216]);
        assert!(times.len() < 20 && *times.last().expect("a time") < 2500, "{times:?}");
    }

    #[test]
    fn answering_kernel_is_solicited_once_per_interval_until_silent() {
        let mut reachability = Reachability::default();
        let times = solicitations(&mut reachability, 1275);
        assert_eq!(times[..9], [1075, 1125, 1175, 1225, 1275, 1325, 1350, 1375, 1400]);
        assert!(*times.last().expect("a time") < 2776, "{times:?}");
    }

    #[test]
    fn kernel_is_decided_by_its_answers_of_the_last_window() {
        let peer = peer();
        let mut reachability = Reachability::default();
        assert!(!reachability.record_answer(ms(1001), &peer), "not solicited");
        let states = |reachability: &Reachability, at| {
            (reachability.is_answering(ms(at), &peer), reachability.is_undecided(ms(at), &peer))
        };
        assert_eq!(states(&reachability, 1150), (false, true), "not solicited yet");
        reachability.record_solicitation(ms(1140));
        assert_eq!(states(&reachability, 1164), (false, true));
        assert_eq!(states(&reachability, 1165), (false, false));
        assert_eq!(reachability.next_deadline(ms(1140), &peer), Some(ms(1165)));
        assert!(reachability.record_answer(ms(1166), &peer));
        assert_eq!((states(&reachability, 1166).0, states(&reachability, 1315).0), (true, true));
        reachability.record_solicitation(ms(1190));
        assert_eq!(states(&reachability, 1316), (false, false));
        assert!(!reachability.record_answer(ms(1340), &peer), "too late for an answer");
        assert_eq!(states(&Reachability::default(), 2500), (false, false), "no longer solicited");
    }

    #[test]
    fn suspended_node_gives_an_answering_kernel_a_new_window() {
        let peer = peer();
        let mut answering = Reachability::default();
        answering.record_solicitation(ms(1075));
        answering.record_answer(ms(1076), &peer);
        answering.record_solicitation(ms(1125));
        answering.excuse(ms(3000), &peer);
        assert_eq!((answering.is_answering(ms(3149), &peer), answering.is_answering(ms(3150), &peer)), (true, false));
        answering.record_solicitation(ms(3000));
        for at in [3030, 3060, 3100, 3160] {
            answering.record_solicitation(ms(at));
        }
        answering.excuse(ms(5000), &peer);
        assert!(!answering.is_answering(ms(5000), &peer), "it was silent for a window before");
    }
}
