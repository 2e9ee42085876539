//! Who was heard and isn't believed yet: a seal says that somebody of the cluster sent a packet once, not that it is alive.
//!
//! Packets can be recorded and sent again, by anybody on the LAN. Within the life of a speaker its sequence tells old from
//! new; across restarts, of it or of us, or after a silence, it doesn't. So who was not heard of late has to prove that it
//! speaks now, in one of two ways:
//!
//! - it repeats what only we can have said just now: the sequence of one of our last [`RECENT`] packets, under the id that
//!   we have on this link since we started. Nobody can have recorded that before;
//! - somebody else who is believed says that it hears it: that one had its proof.
//!
//! ```text
//!   new -> all      Hello 1                     unknown: old says in its next Hello, at once, what it has heard
//!   old -> all      Hello 70, met: new 1        new believes old, and says at once what it has heard
//!   new -> all      Hello 2, met: old 70        old believes new
//! ```
//!
//! Here are those met: their packets do nothing but get the answer with which they can prove that they are there. Who is
//! recorded gets it too, and can do nothing with it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::wire::hello;

/// A proof repeats one of so many Hellos that we sent last: in 1.6 s, at 20 a second. The answer to the first one is under
/// way for some milliseconds, and may be lost a few times.
pub const RECENT: u32 = 32;

/// For so long somebody is told that it was met: whoever is there speaks several times in it.
const MEMORY: Duration = Duration::from_secs(1);

/// No more are met at a time. Without a key nobody can make up more of them than have ever been.
const MAX_MET: usize = 1024;

/// Somebody who isn't believed yet.
#[derive(Clone, Copy, Debug)]
struct Meeting {
    sequence: u64,
    at: Duration,
    /// When somebody who is believed heard it last.
    vouched: Option<Duration>,
}

/// Who was met, by incarnation.
#[derive(Clone, Debug, Default)]
pub struct Meetings(BTreeMap<u64, Meeting>);

impl Meetings {
    /// A packet of somebody who isn't believed came in. Returns whether it is the first one.
    pub fn meet(&mut self, now: Duration, incarnation: u64, sequence: u64) -> bool {
        self.0.retain(|_, meeting| now < meeting.at + MEMORY);
        if let Some(meeting) = self.0.get_mut(&incarnation) {
            (meeting.sequence, meeting.at) = (sequence, now);
            return false;
        }
        let room = self.0.len() < MAX_MET;
        if room {
            self.0.insert(incarnation, Meeting { sequence, at: now, vouched: None });
        }
        room
    }

    /// It is believed now.
    pub fn forget(&mut self, incarnation: u64) {
        self.0.remove(&incarnation);
    }

    /// Somebody who is believed heard one with this id at `at`.
    pub fn vouched(&mut self, id: u32, at: Duration) {
        for (_, meeting) in self.0.iter_mut().filter(|(incarnation, _)| hello::id(**incarnation) == id) {
            meeting.vouched = meeting.vouched.max(Some(at));
        }
    }

    /// Whether somebody who is believed heard it after `since`, not long ago.
    pub fn is_vouched(&self, now: Duration, incarnation: u64, since: Option<Duration>) -> bool {
        let vouched = self.0.get(&incarnation).and_then(|meeting| meeting.vouched);
        vouched.is_some_and(|at| now < at + MEMORY && since.is_none_or(|since| at > since))
    }

    /// Those who are to be told that they were met: their ids, and the last bits of the sequence.
    pub fn told(&self, now: Duration) -> impl Iterator<Item = hello::Met> {
        let live = self.0.iter().filter(move |(_, meeting)| now < meeting.at + MEMORY);
        live.map(|(incarnation, meeting)| hello::Met { id: hello::id(*incarnation), sequence: meeting.sequence as u32 })
    }
}

/// Whether `met` repeats something that the speaker with this incarnation said just now, when its sequence is this.
pub fn proves(met: &[hello::Met], incarnation: u64, sequence: u64) -> bool {
    let me = hello::id(incarnation);
    met.iter().any(|met| met.id == me && (sequence as u32).wrapping_sub(met.sequence) < RECENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_what_was_said_just_now_under_this_name_is_a_proof() {
        let met = |incarnation, sequence| vec![hello::Met { id: hello::id(incarnation), sequence }];
        for (what, met, sequence, expected) in [
            ("the last one", met(7, 100), 100, true),
            ("one of the last", met(7, 69), 100, true),
            ("an old one", met(7, 68), 100, false),
            ("one to come", met(7, 101), 100, false),
            ("somebody else's", met(8, 100), 100, false),
            ("the counter is longer than what is repeated", met(7, u32::MAX), 0x1_0000_0001, true),
            ("nothing", vec![], 100, false),
        ] {
            assert_eq!(proves(&met, 7, sequence), expected, "{what}");
        }
    }

    #[test]
    fn who_is_met_is_told_so_for_a_while_and_may_be_vouched_for() {
        let mut meetings = Meetings::default();
        assert!(meetings.meet(ms(1000), 7, 1));
        assert!(!meetings.meet(ms(1050), 7, 2));
        assert!(!meetings.is_vouched(ms(1050), 7, None));
        meetings.vouched(hello::id(7), ms(1040));
        meetings.vouched(hello::id(7), ms(1030));
        for (at, since, expected) in [
            (1060, None, true),
            (1060, Some(1039), true),
            (1060, Some(1040), false), // the one there was before it was heard later than that
            (2039, None, true),
            (2040, None, false),
        ] {
            assert_eq!(meetings.is_vouched(ms(at), 7, since.map(ms)), expected, "{at} {since:?}");
        }
        let told = hello::Met { id: hello::id(7), sequence: 2 };
        assert_eq!(meetings.told(ms(2049)).collect::<Vec<_>>(), [told]);
        assert_eq!(meetings.told(ms(2050)).count(), 0);
        meetings.forget(7);
        assert_eq!(meetings.told(ms(1060)).count(), 0);
    }

    #[test]
    fn no_more_are_met_than_can_be_remembered() {
        let mut meetings = Meetings::default();
        let new = (0..2000).filter(|incarnation| meetings.meet(ms(0), *incarnation, 1)).count();
        assert_eq!(new, MAX_MET);
        assert!(meetings.meet(MEMORY, 5000, 1), "they are forgotten");
    }
}
