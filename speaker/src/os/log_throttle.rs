//! Pauses the log after many transitions.
//!
//! The input is the number of queued events; the output is the end of the pause. A log line takes as much time as the
//! announcement of an address, so the log waits while thousands of addresses are announced.

use std::time::Duration;

/// More queued events than this start a pause. Each address that moves queues one event.
const MANY_QUEUED: usize = 100;

/// The length of a pause. In this time the speaker sends the first frames of thousands of addresses.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether the log pauses. All times are counted from one fixed moment of the caller's choice.
#[derive(Debug, Default)]
pub struct LogThrottle {
    /// The end of the pause. The caller clears it when the pause is over.
    pub paused_until: Option<Duration>,
    /// Whether the log has already paused for the backlog that it is still writing.
    has_paused: bool,
}

impl LogThrottle {
    /// Updates the state with the number of queued events.
    pub fn update(&mut self, queued: usize, now: Duration) {
        if queued > MANY_QUEUED && !std::mem::replace(&mut self.has_paused, true) {
            self.paused_until = Some(now + PAUSE);
        }
        self.has_paused &= queued > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_pauses_once_per_backlog() {
        let now = Duration::from_secs(7);
        let mut throttle = LogThrottle::default();
        for (case, queued, pauses) in [
            ("one", 0, false),
            ("some", MANY_QUEUED, false),
            ("many", MANY_QUEUED + 1, true),
            ("many, after the pause", 5000, false),
            ("still many", MANY_QUEUED + 1, false),
            ("all is written", 0, false),
            ("many again", 5000, true),
        ] {
            throttle.update(queued, now);
            assert_eq!(throttle.paused_until.take(), pauses.then_some(now + PAUSE), "{case}");
        }
    }
}
