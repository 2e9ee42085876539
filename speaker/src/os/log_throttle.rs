//! When the log waits: right after much has happened, there is more urgent work.
//!
//! How many transitions wait to be logged in; until when they do out. To write a line costs as much as to announce an address, and
//! when thousands of addresses change hands both would be done at the same time.

use std::time::Duration;

/// If more than this wait at once, addresses have changed hands by the hundred.
const MANY: usize = 100;

/// For so long the log waits then: until the first frames of thousands of addresses are out.
const BREATH: Duration = Duration::from_secs(1);

/// Whether the log waits. Times are durations since any fixed moment.
#[derive(Debug, Default)]
pub struct Patience {
    /// Until when it waits. Whoever waits takes it away when that is over.
    pub until: Option<Duration>,
    /// It has waited, and what had come by then is still being written.
    has_waited: bool,
}

impl Patience {
    /// So many transitions wait to be logged.
    pub fn waiting(&mut self, count: usize, now: Duration) {
        if count > MANY && !std::mem::replace(&mut self.has_waited, true) {
            self.until = Some(now + BREATH);
        }
        self.has_waited &= count > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_waits_once_for_each_time_that_much_happens_at_once() {
        let now = Duration::from_secs(7);
        let mut patience = Patience::default();
        for (what, count, waits) in [
            ("one", 0, false),
            ("some", MANY, false),
            ("many", MANY + 1, true),
            ("many, and it has waited", 5000, false),
            ("as many still", MANY + 1, false),
            ("all is written", 0, false),
            ("many again", 5000, true),
        ] {
            patience.waiting(count, now);
            assert_eq!(patience.until.take(), waits.then_some(now + BREATH), "{what}");
        }
    }
}
