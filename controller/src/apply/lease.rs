//! Leader election: the decisions of one candidate about a Lease (coordination.k8s.io/v1).
//!
//! Observations of the Lease, answers to own requests, the local monotonic time → the next request and its time, and
//! until when this candidate may write. The rules and their reasons:
//!
//! - The Lease of another holder has expired when it has not changed for its duration. Only the local monotonic clock
//!   counts, so other clocks do not matter; `renewTime` is only a text that differs from the one before.
//! - Each write names the version that it replaces, or creates the Lease. So if several candidates take a free Lease,
//!   one succeeds.
//! - The time of leadership counts from the moment before the request was sent. Other candidates observe the change
//!   later, and count their wait from then on. So the leadership ends before they take the Lease.
//! - A Lease without a holder is free at once. A clean stop leaves such a Lease behind.
//!
//! A candidate that has just started cannot know a Lease that was deleted by hand before. So two candidates may lead
//! until the former lease holder observes the new Lease. All their writes are conditional, so they may undo each
//! other's decisions, but neither overwrites a change that it has not observed.

use std::time::{Duration, Instant};

/// How long a Lease is valid after a renewal. Whole seconds, like the field of the Lease. A crash is noticed after this
/// time.
pub(crate) const DURATION: Duration = Duration::from_secs(6);

/// The interval between renewals. It leaves 3 s to retry a failed one.
pub(super) const RENEWAL: Duration = Duration::from_secs(2);

/// The interval after a failed request.
const RETRY: Duration = Duration::from_millis(500);

/// The right to write ends this long before the Lease does. The margin is for writes in flight, and for clocks that run
/// at different speeds.
const MARGIN: Duration = Duration::from_secs(1);

/// An observed version of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) version: u64,
    pub(crate) holder: Option<String>,
    pub(crate) duration: Duration,
    /// How often the holder has changed.
    pub(crate) transitions: i32,
}

/// The new content of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `None` releases the Lease.
    pub(crate) holder: Option<String>,
    pub(crate) transitions: i32,
    /// Whether the holder changes.
    pub(crate) is_new: bool,
}

/// A request to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read,
    Create(Entry),
    /// Fails if the Lease has another version.
    Replace(u64, Entry),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The current Lease.
    Lease(Lease),
    /// The Lease does not exist.
    Absent,
    /// The Lease has another version, or exists already. Nothing changed.
    Conflict,
    /// It is unknown whether anything changed.
    Failed,
}

/// The next step of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send this now, and pass the answer to [`Candidate::handle_answer`].
    Send(Request),
    /// Wait until this time or the next observation.
    Wait(Option<Instant>),
    /// Stop: the Lease is released, or was not held.
    Done,
}

/// A process that takes part in the election.
#[derive(Debug, Default)]
pub(crate) struct Candidate {
    identity: String,
    /// The last observation of the Lease. `None`: no observation yet.
    view: Option<View>,
    /// Whether the view may be the current Lease. If not, the next request reads the Lease.
    is_current: bool,
    /// The request in flight, and when it was sent.
    in_flight: Option<(Request, Instant)>,
    /// When the right to write ends.
    writable_until: Option<Instant>,
    /// When the last successful renewal was sent.
    renewed: Option<Instant>,
    /// After a failure: the time before which no request is sent.
    not_before: Option<Instant>,
    is_resigning: bool,
}

#[derive(Debug)]
struct View {
    /// `None`: the Lease does not exist.
    lease: Option<Lease>,
    /// When the Lease may be taken.
    free_at: Instant,
}

impl Candidate {
    /// `identity` must differ from those of all other candidates, former ones included.
    pub(crate) fn new(identity: String) -> Self {
        Self { identity, ..Self::default() }
    }

    /// The holder of the last observed Lease.
    pub(crate) fn leader(&self) -> Option<&str> {
        self.view.as_ref()?.lease.as_ref()?.holder.as_deref()
    }

    /// When the right to write ends; `None` without that right. The right ends at the returned time, unless a later
    /// call returns another time.
    pub(crate) fn writable_until(&self, now: Instant) -> Option<Instant> {
        self.writable_until.filter(|until| now < *until)
    }

    /// Handles an event of the watch. `None`: the Lease was deleted.
    pub(crate) fn handle_event(&mut self, lease: Option<Lease>, now: Instant) {
        // Events may arrive after the answer to a later write of our own.
        let known = self.view.as_ref().and_then(|view| view.lease.as_ref()).map_or(0, |lease| lease.version);
        if lease.as_ref().is_none_or(|lease| lease.version >= known) {
            self.update_view(lease, now);
        }
    }

    /// The next step. A returned request counts as sent at `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        self.writable_until = self.writable_until(now);
        let writable_until = self.writable_until;
        let no_later_than_right = |time: Instant| writable_until.map_or(time, |until| until.min(time));
        if self.in_flight.is_some() {
            return Next::Wait(self.writable_until);
        }
        if let Some(not_before) = self.not_before.filter(|not_before| now < *not_before) {
            return Next::Wait(Some(no_later_than_right(not_before)));
        }
        let view = self.view.as_ref().filter(|_| self.is_current);
        let Some(view) = view else { return self.send(Request::Read, now) };
        let is_ours = view.lease.as_ref().is_some_and(|lease| lease.holder.as_ref() == Some(&self.identity));
        if self.is_resigning {
            return if is_ours { self.send(self.write_request(None), now) } else { Next::Done };
        }
        let due = match (self.writable_until, self.renewed) {
            (Some(_), Some(renewed)) if is_ours => renewed + RENEWAL,
            _ => view.free_at,
        };
        if now < due {
            return Next::Wait(Some(no_later_than_right(due)));
        }
        self.send(self.write_request(Some(self.identity.clone())), now)
    }

    /// Handles the answer to the request in flight.
    pub(crate) fn handle_answer(&mut self, answer: Answer, now: Instant) {
        let Some((request, sent)) = self.in_flight.take() else { return };
        self.not_before = None;
        match answer {
            Answer::Lease(lease) => {
                let is_renewed = request != Request::Read && lease.holder.as_ref() == Some(&self.identity);
                self.update_view(Some(lease), now);
                if is_renewed && !self.is_resigning {
                    self.renewed = Some(sent);
                    self.writable_until = Some(sent + DURATION - MARGIN);
                }
                self.is_current = true;
            }
            Answer::Absent if request == Request::Read => {
                self.update_view(None, now);
                self.is_current = true;
            }
            Answer::Absent | Answer::Conflict => self.is_current = false,
            // If the write has happened after all, the next attempt gets a conflict.
            Answer::Failed => self.not_before = Some(now + RETRY),
        }
    }

    /// Gives up the Lease. The right to write ends at once.
    pub(crate) fn resign(&mut self) {
        self.is_resigning = true;
        self.writable_until = None;
    }

    fn send(&mut self, request: Request, now: Instant) -> Next {
        self.in_flight = Some((request.clone(), now));
        Next::Send(request)
    }

    /// The request that sets this holder.
    fn write_request(&self, holder: Option<String>) -> Request {
        let lease = self.view.as_ref().and_then(|view| view.lease.as_ref());
        let before = lease.map_or(0, |lease| lease.transitions);
        let is_new = holder.is_some() && lease.is_none_or(|lease| lease.holder != holder);
        let transitions = if is_new && lease.is_some() { before.saturating_add(1) } else { before };
        let entry = Entry { holder, transitions, is_new };
        match lease {
            Some(lease) => Request::Replace(lease.version, entry),
            None => Request::Create(entry),
        }
    }

    fn update_view(&mut self, lease: Option<Lease>, now: Instant) {
        let before = self.view.take();
        if let Some(before) = before.as_ref()
            && before.lease == lease
        {
            self.view = Some(View { lease, free_at: before.free_at });
            return;
        }
        let is_held_by_another = |lease: &Lease| lease.holder.as_ref().is_some_and(|holder| *holder != self.identity);
        // A deleted Lease was held until now.
        let former = before.as_ref().and_then(|before| before.lease.as_ref());
        let free_at = match lease.as_ref().or(former).filter(|lease| is_held_by_another(lease)) {
            Some(lease) => now + lease.duration,
            None => now,
        };
        // If the Lease was ours, it was changed by hand.
        if lease.as_ref().is_some_and(|lease| lease.holder.as_ref() != Some(&self.identity)) {
            self.writable_until = None;
        }
        self.view = Some(View { lease, free_at });
    }
}

#[cfg(test)]
mod tests;
