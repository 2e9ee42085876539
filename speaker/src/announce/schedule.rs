//! When which lb_ip is announced unasked: the schedule of gratuitous ARP.
//!
//! A burst when an address is taken, then a slow refresh for those who missed all of it. Frames are not made here, only
//! times: [`Schedule::take_due`] says whose turn it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use model::stable_hash;

/// When a burst announces, after the address was taken. At once in one form and then in the other, and twice more soon
/// against loss. Kernels of the age of
/// RHEL 7 ignore whatever comes within a second of their last update (`locktime`), so at least one must come more than a
/// second after any earlier one.
const BURST: [Duration; 7] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1100),
    Duration::from_millis(2300),
    Duration::from_secs(4),
];

/// So many addresses are repeated at once. More of them wait: when thousands change hands, all their repetitions would be due
/// in the same moment as first frames, of this node and of others, and switches and clients have only so much time.
const REPEATED: u32 = 256;

/// Of those that wait, one has its turn each time: 10,000 addresses a second. Ten times as many would be due.
const EACH: Duration = Duration::from_micros(100);

/// Turns come together in moments that are so far apart: nobody should wake for each.
const MOMENT: Duration = Duration::from_millis(5);

/// How often an address is announced after its burst. For those who missed all of it, such as a switch that restarted.
const REFRESH: Duration = Duration::from_secs(60);

/// By so much, at random for each address, a refresh comes early: thousands must not come in one moment.
const SPREAD: Duration = Duration::from_secs(15);

/// How long an announcement is put off that must not be made now.
const PUT_OFF: Duration = Duration::from_secs(1);

/// In which form of gratuitous ARP an address is announced. Over IPv6 there is only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The request form, which everybody understands: thousands of addresses are announced in this one first, so that the
    /// last of them doesn't wait for the second frame of all others.
    Request,
    /// The reply form.
    Reply,
    /// One after the other.
    Both,
}

/// An address has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The address.
    pub lb_ip: IpAddr,
    /// How to announce it.
    pub form: Form,
}

/// Whose turn it is when.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// When; whether it is the second frame of a burst, which comes after all first ones of the same time; which address.
    due: BTreeSet<(Duration, bool, IpAddr)>,
    entries: BTreeMap<IpAddr, Entry>,
    /// When the next repetition would have its turn, if none were let through at once.
    turn: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When the burst began.
    begun: Duration,
    /// How many announcements of the burst were made or left out.
    step: usize,
    /// When it is due next.
    due: Duration,
    /// Whether that is its turn to be repeated.
    has_turn: bool,
}

impl Schedule {
    /// Begins the burst for `lb_ip`, anew if there was one already.
    pub fn start(&mut self, lb_ip: IpAddr, now: Duration) {
        self.stop(lb_ip);
        self.entries.insert(lb_ip, Entry { begun: now, step: 0, due: now, has_turn: false });
        self.due.insert((now, false, lb_ip));
    }

    /// Announces `lb_ip` no more.
    pub fn stop(&mut self, lb_ip: IpAddr) {
        if let Some(entry) = self.entries.remove(&lb_ip) {
            self.due.remove(&(entry.due, entry.is_second(), lb_ip));
        }
    }

    /// When the next one is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(due, _, _)| *due)
    }

    /// Whether the burst for `lb_ip` should have begun, and hasn't yet.
    pub fn is_waiting(&self, lb_ip: IpAddr, now: Duration) -> bool {
        self.entries.get(&lb_ip).is_some_and(|entry| entry.step == 0 && entry.due <= now)
    }

    /// The turns that have come, at most `limit`, the longest overdue first. Those that `may` forbids are put off. However
    /// late this is called, an address is announced once in each form and then goes on with what lies ahead. Repetitions wait
    /// for their turn if there are many.
    pub fn take_due(&mut self, now: Duration, limit: usize, may: impl Fn(IpAddr) -> bool) -> Vec<Turn> {
        let mut turns = Vec::new();
        while turns.len() < limit {
            let Some(first) = self.due.first().copied().filter(|(due, _, _)| *due <= now) else { break };
            self.due.remove(&first);
            let (_, _, lb_ip) = first;
            let entry = self.entries.get_mut(&lb_ip).expect("invariant: what is due has an entry");
            if !may(lb_ip) {
                entry.due = now + PUT_OFF;
            } else if let Some(turn) =
                entry.wants_turn().then(|| take_turn(&mut self.turn, now)).filter(|turn| now < *turn)
            {
                (entry.due, entry.has_turn) = (turn, true);
            } else if entry.step == 0 {
                turns.push(Turn { lb_ip, form: Form::Request });
                // After those that wait for their first.
                (entry.step, entry.due) = (1, now);
            } else {
                turns.push(Turn { lb_ip, form: if entry.step == 1 { Form::Reply } else { Form::Both } });
                entry.has_turn = false;
                while BURST.get(entry.step).is_some_and(|after| entry.begun + *after <= now) {
                    entry.step += 1;
                }
                entry.due = match BURST.get(entry.step) {
                    Some(after) => entry.begun + *after,
                    None => now + refresh(lb_ip, now),
                };
            }
            self.due.insert((entry.due, entry.is_second(), lb_ip));
        }
        turns
    }
}

impl Entry {
    /// Whether the second frame of its burst is due next.
    fn is_second(&self) -> bool {
        self.step == 1
    }

    /// Whether what is due is a repetition that has no turn yet. Refreshes are spread in any case.
    fn wants_turn(&self) -> bool {
        (2..BURST.len()).contains(&self.step) && !self.has_turn
    }
}

/// When the next repetition has its turn, which is taken.
fn take_turn(next: &mut Duration, now: Duration) -> Duration {
    let turn = (*next).max(now);
    *next = turn + EACH;
    let turn = turn.saturating_sub(EACH * (REPEATED - 1));
    if turn <= now {
        return now;
    }
    let moments = turn.as_nanos().div_ceil(MOMENT.as_nanos());
    Duration::from_nanos(u64::try_from(moments * MOMENT.as_nanos()).unwrap_or(u64::MAX))
}

/// How long until the next refresh. Another time for each address and each round, without a source of randomness.
fn refresh(lb_ip: IpAddr, now: Duration) -> Duration {
    let random = stable_hash::mix64(stable_hash::hash_ip(lb_ip) ^ now.as_nanos() as u64);
    REFRESH - SPREAD.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// When `schedule` has somebody announced until `end`, in milliseconds.
    fn run(schedule: &mut Schedule, end: Duration, may: impl Fn(IpAddr) -> bool) -> Vec<(u128, IpAddr)> {
        let mut turns = Vec::new();
        while let Some(due) = schedule.next_deadline().filter(|due| *due <= end) {
            let taken = schedule.take_due(due, 10, &may).into_iter();
            turns.extend(taken.filter(|turn| turn.form != Form::Reply).map(|turn| (due.as_millis(), turn.lb_ip)));
        }
        turns
    }

    #[test]
    fn an_address_is_announced_in_a_burst_and_then_refreshed_for_as_long_as_it_is_owned() {
        let mut schedule = Schedule::default();
        schedule.start(ip(1), Duration::from_secs(10));
        let turns: Vec<u128> =
            run(&mut schedule, Duration::from_secs(200), |_| true).into_iter().map(|(at, _)| at).collect();
        assert_eq!(turns[..6], [10_000, 10_050, 10_200, 11_100, 12_300, 14_000]);
        let gaps: Vec<u128> = turns[5..].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() >= 3 && gaps.iter().all(|gap| (45_000..=60_000).contains(gap)), "{gaps:?}");
        schedule.stop(ip(1));
        assert_eq!(schedule.next_deadline(), None);
    }

    #[test]
    fn a_late_loop_announces_once_and_not_all_that_it_missed() {
        let mut schedule = Schedule::default();
        schedule.start(ip(1), Duration::ZERO);
        let forms = [Form::Request, Form::Reply].map(|form| Turn { lb_ip: ip(1), form });
        assert_eq!(schedule.take_due(Duration::from_secs(2), 10, |_| true), forms);
        assert_eq!(schedule.next_deadline(), Some(Duration::from_millis(2300)));
    }

    #[test]
    fn what_must_not_be_announced_now_is_put_off_and_not_forgotten() {
        let mut schedule = Schedule::default();
        schedule.start(ip(1), Duration::ZERO);
        schedule.start(ip(2), Duration::ZERO);
        let forms = [Form::Request, Form::Reply].map(|form| Turn { lb_ip: ip(2), form });
        assert_eq!(schedule.take_due(Duration::ZERO, 10, |lb_ip| lb_ip == ip(2)), forms);
        let turns = run(&mut schedule, Duration::from_secs(1), |_| true);
        assert_eq!(turns, [(50, ip(2)), (200, ip(2)), (1000, ip(1))]);
    }

    #[test]
    fn repetitions_of_thousands_take_turns_and_hold_up_nobody_who_is_announced_for_the_first_time() {
        let mut schedule = Schedule::default();
        for n in 0..5000u32 {
            schedule.start(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        let (mut repeated, mut wakes, mut last) = (BTreeMap::<IpAddr, u32>::new(), 0, Duration::ZERO);
        let mut in_100ms = 0;
        while let Some(due) = schedule.next_deadline().filter(|due| *due <= Duration::from_secs(1)) {
            wakes += u32::from(due > last);
            last = due;
            for turn in schedule.take_due(due, 256, |_| true) {
                if turn.form == Form::Both {
                    in_100ms += u32::from(due <= Duration::from_millis(100));
                    *repeated.entry(turn.lb_ip).or_default() += 1;
                }
            }
            if due >= Duration::from_millis(100) && schedule.entries.len() == 5000 {
                schedule.start([198, 51, 100, 1].into(), due);
                let late = schedule.take_due(due, 256, |_| true);
                assert!(late.contains(&Turn { lb_ip: [198, 51, 100, 1].into(), form: Form::Request }));
            }
        }
        // What may go at once, and then ten in a millisecond.
        assert!((500..=256 + 500 + 50).contains(&in_100ms), "{in_100ms}");
        assert_eq!(repeated.len(), 5001, "some are not repeated within a second");
        assert!(wakes < 250, "it wakes {wakes} times in a second");
    }

    #[test]
    fn no_more_than_the_limit_goes_at_once_and_refreshes_of_thousands_are_spread() {
        let mut schedule = Schedule::default();
        for n in 0..5000u32 {
            schedule.start(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        let mut forms = Vec::new();
        for round in 0..40 {
            let turns = schedule.take_due(Duration::from_millis(round), 256, |_| true);
            assert_eq!(turns.len(), if round < 39 { 256 } else { 16 });
            forms.extend(turns.iter().map(|turn| turn.form));
        }
        // All of them in one form, before the first is announced in the other.
        assert_eq!(forms.iter().position(|form| *form == Form::Reply), Some(5000));
        assert!(forms[5000..].iter().all(|form| *form == Form::Reply));
        run(&mut schedule, Duration::from_secs(5), |_| true);
        let refreshes = run(&mut schedule, Duration::from_secs(60), |_| true);
        let mut busiest = BTreeMap::<u128, usize>::new();
        for (at, _) in refreshes {
            *busiest.entry(at / 100).or_default() += 1;
        }
        assert!(busiest.values().all(|count| *count < 100), "{busiest:?}");
    }
}
