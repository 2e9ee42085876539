//! When this node sends gratuitous ARP or unsolicited NAs for each address.
//!
//! An address is announced in a burst when it is claimed, and then in a slow refresh for hosts that missed the burst.
//! This file computes times only: [`Schedule::take_due`] returns the addresses that are due.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::announce::pacer::Pacer;
use model::stable_hash;

/// The times of a burst, counted from the claim. The first two are the two forms of one announcement. The next two
/// follow soon, because frames may be lost. Kernels as old as RHEL 7 ignore an announcement within a second of their
/// last update (`locktime`). So at least one announcement must come more than a second after the one before it.
const BURST: [Duration; 7] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1100),
    Duration::from_millis(2300),
    Duration::from_secs(4),
];

/// The maximum number of addresses whose announcements are repeated at once. When thousands of addresses move, all
/// their repetitions are due while this node and others send first frames. The capacity of switches and clients is
/// limited.
const REPEATED_AT_ONCE: u32 = 256;

/// After [`REPEATED_AT_ONCE`] addresses, one more is repeated per this interval: 10,000 addresses per second. Without
/// this limit, ten times as many would be due.
const REPEAT_INTERVAL: Duration = Duration::from_micros(100);

/// Repetitions are rounded up to multiples of this time, so that the loop does not wake for each.
const REPEAT_ROUNDING: Duration = Duration::from_millis(5);

/// The interval between announcements after the burst, for hosts that missed the burst and for restarted switches.
const REFRESH: Duration = Duration::from_secs(60);

/// Each refresh comes early by a pseudo-random time of at most this length, so that thousands are not sent at once.
const SPREAD: Duration = Duration::from_secs(15);

/// The delay of an announcement that this node must not make now.
const DEFER: Duration = Duration::from_secs(1);

/// The forms of gratuitous ARP to send. IPv6 has a single form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The request form, which every host understands. Thousands of addresses are first announced in this form only, so
    /// that the last one does not wait for the second frame of all others.
    Request,
    Reply,
    /// The request form, then the reply form.
    Both,
}

/// The times of the next announcements.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Each address with the time of its next announcement. The flag marks the second frame of a burst, which comes
    /// after all first frames of the same time.
    due: BTreeSet<(Duration, bool, IpAddr)>,
    entries: BTreeMap<IpAddr, Entry>,
    repetitions: Pacer,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When the burst began.
    begun: Duration,
    /// The number of announcements of the burst that were made or skipped.
    step: usize,
    /// When the next announcement is due.
    due: Duration,
    /// Whether `due` was assigned by the pacer of repetitions.
    is_paced: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        let repetitions = Pacer::new(REPEAT_INTERVAL, REPEATED_AT_ONCE);
        Self { due: BTreeSet::new(), entries: BTreeMap::new(), repetitions }
    }
}

impl Schedule {
    /// Starts the burst for `lb_ip`, from the beginning if there was one already.
    pub fn start(&mut self, lb_ip: IpAddr, now: Duration) {
        self.stop(lb_ip);
        self.entries.insert(lb_ip, Entry { begun: now, step: 0, due: now, is_paced: false });
        self.due.insert((now, false, lb_ip));
    }

    /// Stops announcing `lb_ip`.
    pub fn stop(&mut self, lb_ip: IpAddr) {
        if let Some(entry) = self.entries.remove(&lb_ip) {
            self.due.remove(&(entry.due, entry.is_second(), lb_ip));
        }
    }

    /// When the next announcement is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(due, _, _)| *due)
    }

    /// Whether the first announcement of `lb_ip` is due but not made yet.
    pub fn is_waiting(&self, lb_ip: IpAddr, now: Duration) -> bool {
        self.entries.get(&lb_ip).is_some_and(|entry| entry.step == 0 && entry.due <= now)
    }

    /// Takes at most `limit` addresses to announce now, with their forms, the longest overdue first. An address that is
    /// not allowed now is deferred. If this call is late, missed repetitions are skipped, so that each address is
    /// announced once in each form. Repetitions are paced.
    pub fn take_due(
        &mut self,
        now: Duration,
        limit: usize,
        is_allowed: impl Fn(IpAddr) -> bool,
    ) -> Vec<(IpAddr, Form)> {
        let mut announcements = Vec::new();
        while announcements.len() < limit {
            let Some(first) = self.due.first().copied().filter(|(due, _, _)| *due <= now) else { break };
            self.due.remove(&first);
            let (_, _, lb_ip) = first;
            let entry = self.entries.get_mut(&lb_ip).expect("invariant: each due address has an entry");
            if !is_allowed(lb_ip) {
                entry.due = now + DEFER;
            } else if let Some(time) =
                entry.needs_pacing().then(|| repetition_time(&mut self.repetitions, now)).filter(|time| now < *time)
            {
                (entry.due, entry.is_paced) = (time, true);
            } else if entry.step == 0 {
                announcements.push((lb_ip, Form::Request));
                // The reply form comes after the addresses that wait for their first frame.
                (entry.step, entry.due) = (1, now);
            } else {
                announcements.push((lb_ip, if entry.step == 1 { Form::Reply } else { Form::Both }));
                entry.is_paced = false;
                while BURST.get(entry.step).is_some_and(|after| entry.begun + *after <= now) {
                    entry.step += 1;
                }
                entry.due = match BURST.get(entry.step) {
                    Some(after) => entry.begun + *after,
                    None => now + time_to_refresh(lb_ip, now),
                };
            }
            self.due.insert((entry.due, entry.is_second(), lb_ip));
        }
        announcements
    }
}

impl Entry {
    /// Whether the second frame of the burst is due next.
    fn is_second(&self) -> bool {
        self.step == 1
    }

    /// Whether the next announcement is a repetition to which the pacer has not assigned a time yet. Refreshes need no
    /// pacer: their times vary.
    fn needs_pacing(&self) -> bool {
        (2..BURST.len()).contains(&self.step) && !self.is_paced
    }
}

/// Assigns the time of the next repetition.
fn repetition_time(pacer: &mut Pacer, now: Duration) -> Duration {
    let time = pacer.take(now);
    if time == now {
        return now;
    }
    let steps = time.as_nanos().div_ceil(REPEAT_ROUNDING.as_nanos());
    Duration::from_nanos(u64::try_from(steps * REPEAT_ROUNDING.as_nanos()).unwrap_or(u64::MAX))
}

/// The time until the next refresh. It varies by address and time, without a source of randomness.
fn time_to_refresh(lb_ip: IpAddr, now: Duration) -> Duration {
    let random = stable_hash::mix64(stable_hash::hash_ip(lb_ip) ^ now.as_nanos() as u64);
    REFRESH - SPREAD.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// The announcements of `schedule` until `end`, with their times in milliseconds.
    fn run(schedule: &mut Schedule, end: Duration, is_allowed: impl Fn(IpAddr) -> bool) -> Vec<(u128, IpAddr)> {
        let mut announcements = Vec::new();
        while let Some(due) = schedule.next_deadline().filter(|due| *due <= end) {
            let taken = schedule.take_due(due, 10, &is_allowed).into_iter();
            let first_frames = taken.filter(|(_, form)| *form != Form::Reply);
            announcements.extend(first_frames.map(|(lb_ip, _)| (due.as_millis(), lb_ip)));
        }
        announcements
    }

    #[test]
    fn claimed_address_gets_a_burst_then_refreshes() {
        let mut schedule = Schedule::default();
        schedule.start(ip(1), Duration::from_secs(10));
        let announcements: Vec<u128> =
            run(&mut schedule, Duration::from_secs(200), |_| true).into_iter().map(|(at, _)| at).collect();
        assert_eq!(announcements[..6], [10_000, 10_050, 10_200, 11_100, 12_300, 14_000]);
        let gaps: Vec<u128> = announcements[5..].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() >= 3 && gaps.iter().all(|gap| (45_000..=60_000).contains(gap)), "{gaps:?}");
        schedule.stop(ip(1));
        assert_eq!(schedule.next_deadline(), None);
    }

    #[test]
    fn late_loop_announces_once_and_skips_missed_repetitions() {
        let mut schedule = Schedule::default();
        schedule.start(ip(1), Duration::ZERO);
        let forms = [Form::Request, Form::Reply].map(|form| (ip(1), form));
        assert_eq!(schedule.take_due(Duration::from_secs(2), 10, |_| true), forms);
        assert_eq!(schedule.next_deadline(), Some(Duration::from_millis(2300)));
    }

    #[test]
    fn forbidden_announcement_is_deferred_not_forgotten() {
        let mut schedule = Schedule::default();
        schedule.start(ip(1), Duration::ZERO);
        schedule.start(ip(2), Duration::ZERO);
        let forms = [Form::Request, Form::Reply].map(|form| (ip(2), form));
        assert_eq!(schedule.take_due(Duration::ZERO, 10, |lb_ip| lb_ip == ip(2)), forms);
        let announcements = run(&mut schedule, Duration::from_secs(1), |_| true);
        assert_eq!(announcements, [(50, ip(2)), (200, ip(2)), (1000, ip(1))]);
    }

    #[test]
    fn paced_repetitions_do_not_delay_first_announcements() {
        let mut schedule = Schedule::default();
        for n in 0..5000u32 {
            schedule.start(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        let (mut repeated, mut wakes, mut last) = (BTreeMap::<IpAddr, u32>::new(), 0, Duration::ZERO);
        let mut in_100ms = 0;
        while let Some(due) = schedule.next_deadline().filter(|due| *due <= Duration::from_secs(1)) {
            wakes += u32::from(due > last);
            last = due;
            for (lb_ip, form) in schedule.take_due(due, 256, |_| true) {
                if form == Form::Both {
                    in_100ms += u32::from(due <= Duration::from_millis(100));
                    *repeated.entry(lb_ip).or_default() += 1;
                }
            }
            if due >= Duration::from_millis(100) && schedule.entries.len() == 5000 {
                schedule.start([198, 51, 100, 1].into(), due);
                let late = schedule.take_due(due, 256, |_| true);
                assert!(late.contains(&([198, 51, 100, 1].into(), Form::Request)));
            }
        }
        // 256 at once, and then ten per millisecond.
        assert!((500..=256 + 500 + 50).contains(&in_100ms), "{in_100ms}");
        assert_eq!(repeated.len(), 5001, "some are not repeated within a second");
        assert!(wakes < 250, "it wakes {wakes} times in a second");
    }

    #[test]
    fn limit_holds_and_refreshes_of_thousands_are_spread() {
        let mut schedule = Schedule::default();
        for n in 0..5000u32 {
            schedule.start(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        let mut forms = Vec::new();
        for round in 0..40 {
            let announcements = schedule.take_due(Duration::from_millis(round), 256, |_| true);
            assert_eq!(announcements.len(), if round < 39 { 256 } else { 16 });
            forms.extend(announcements.iter().map(|(_, form)| *form));
        }
        // All addresses are announced in the request form before the first one in the reply form.
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
