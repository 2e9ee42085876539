//! The control of a run: how late the machine itself was.
//!
//! Two measurements run beside the load. A thread sleeps for a millisecond again and again, and records its late
//! wake-ups. The same tries are also sent to a target that bypasses the system under test, such as a [`crate::Server`]
//! on a node's own address.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::record::{Gap, Record};
use crate::worker::Clock;

/// Planned length of a sleep.
const SLEEP: Duration = Duration::from_millis(1);

/// A wake-up that is at most this late is not recorded, because the timers of the kernel are not more precise.
const PRECISION: Duration = Duration::from_millis(1);

/// A late wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wakeup {
    /// When the thread woke up.
    pub at: Duration,
    /// How late the thread woke up.
    pub late: Duration,
}

/// The control of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Late wake-ups, in order.
    pub wakeups: Vec<Wakeup>,
    /// The tries that bypass the system under test, if there were any.
    pub tries: Option<Record>,
}

impl Control {
    /// How late the machine was in this span of time: the greatest delay of a wake-up, or the slowest answer to a try
    /// of the control.
    pub fn lateness(&self, span: Gap) -> Duration {
        let touches = |from: Duration, to: Duration| from <= span.to && to >= span.from;
        let wakeups = self.wakeups.iter().filter(|one| touches(one.at.saturating_sub(one.late), one.at));
        let tries = self.tries.iter().flat_map(|record| &record.tries);
        let answers = tries.filter(|one| one.outcome.is_answered() && touches(one.started, one.end()));
        wakeups.map(|one| one.late).chain(answers.map(|one| one.latency)).max().unwrap_or_default()
    }

    /// How late the machine was at any time.
    pub fn greatest_lateness(&self) -> Duration {
        self.lateness(Gap { from: Duration::ZERO, to: Duration::MAX })
    }
}

/// The thread that sleeps and records how late it woke up.
pub struct WakeupThread {
    stop: Arc<AtomicBool>,
    wakeups: Arc<Mutex<Vec<Wakeup>>>,
    thread: Option<JoinHandle<()>>,
}

impl WakeupThread {
    /// Starts the thread. It ends when this value is stopped or dropped.
    pub fn start(clock: Clock) -> Self {
        let (stop, wakeups) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = {
            let (stop, wakeups) = (Arc::clone(&stop), Arc::clone(&wakeups));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let due = clock.now() + SLEEP;
                    thread::sleep(SLEEP);
                    let at = clock.now();
                    let late = at.saturating_sub(due);
                    if late > PRECISION {
                        wakeups.lock().unwrap_or_else(PoisonError::into_inner).push(Wakeup { at, late });
                    }
                }
            })
        };
        Self { stop, wakeups, thread: Some(thread) }
    }

    /// Returns the late wake-ups since the last call.
    pub fn take_wakeups(&self) -> Vec<Wakeup> {
        std::mem::take(&mut self.wakeups.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops the thread, and returns the late wake-ups since the last call of [`WakeupThread::take_wakeups`].
    ///
    /// # Errors
    /// If the thread panicked.
    pub fn stop(mut self) -> Result<Vec<Wakeup>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("invariant: it is stopped once");
        thread.join().map_err(|_| anyhow!("the thread of wake-ups panicked"))?;
        Ok(self.take_wakeups())
    }
}

impl Drop for WakeupThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Outcome, Try};

    #[test]
    fn lateness_counts_where_it_overlaps_a_span() {
        let ms = Duration::from_millis;
        let answer = Try { started: ms(200), latency: ms(30), outcome: Outcome::Ok, server: None };
        let lost = Try { started: ms(300), latency: ms(90), outcome: Outcome::TimedOut, server: None };
        let control = Control {
            wakeups: vec![Wakeup { at: ms(50), late: ms(20) }, Wakeup { at: ms(120), late: ms(5) }],
            tries: Some(Record { tries: vec![answer, lost], ..Record::default() }),
        };
        for (from, to, expected) in
            [(0, 29, 0), (0, 30, 20), (40, 45, 20), (51, 114, 0), (50, 120, 20), (100, 130, 5), (210, 400, 30)]
        {
            let span = Gap { from: ms(from), to: ms(to) };
            assert_eq!(control.lateness(span), ms(expected), "{from} to {to}");
        }
        assert_eq!(control.greatest_lateness(), ms(30));
        assert_eq!(Control::default().greatest_lateness(), Duration::ZERO);
    }
}
