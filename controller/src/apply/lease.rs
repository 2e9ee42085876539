//! Who of several controllers leads: the decisions of one candidate about a Lease (coordination.k8s.io/v1).
//!
//! What was seen of the Lease, answers to own requests, the local monotonic time → the next request and when, and until
//! when this candidate may write. The rules, and what each is good for:
//!
//! - Another's Lease is over when it was seen not to change for its duration. Only the own monotonic clock counts, so it
//!   does not matter what anybody's clock shows; a `renewTime` is only a text that differs from the one before.
//! - Each write names the version that it replaces, or creates. So of several that take a free Lease one succeeds.
//! - The own time counts from before the request was sent. Others can't have seen it change earlier, so they wait for
//!   longer than that.
//! - A Lease with no holder is free at once. A clean stop leaves that behind.
//!
//! Deleting the Lease by hand may leave two that lead, until the former leader sees it: a candidate that has just started
//! can't know that there was one. What a leader writes is conditional by itself, so that costs nothing but arguing.

use std::time::{Duration, Instant};

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// For how long a Lease holds that nobody renews. Whole seconds: the Lease has it as such.
    pub(crate) duration: Duration,
    /// From one renewal to the next.
    pub(crate) renewal: Duration,
    /// From a request that failed to the next.
    pub(crate) retry: Duration,
    /// How much sooner than the Lease the own right to write is over: for writes that are on their way by then, and for
    /// clocks of which one is slower than the other.
    pub(crate) margin: Duration,
}

impl Timing {
    /// A crash is noticed after 6 s. Of these, 3 s are left for a renewal that fails to be tried again.
    pub(crate) const USUAL: Self = Self {
        duration: Duration::from_secs(6),
        renewal: Duration::from_secs(2),
        retry: Duration::from_millis(500),
        margin: Duration::from_secs(1),
    };
}

/// What a Lease said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Which version of the object.
    pub(crate) version: u64,
    /// Who holds it, if anybody does.
    pub(crate) holder: Option<String>,
    /// For how long, if it is not renewed.
    pub(crate) duration: Duration,
    /// How often it went from one holder to another.
    pub(crate) transitions: i32,
}

/// What to write into the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Who holds it; `None` releases it.
    pub(crate) holder: Option<String>,
    /// For how long.
    pub(crate) duration: Duration,
    /// How often it went from one holder to another.
    pub(crate) transitions: i32,
    /// Whether the holder is another one than before.
    pub(crate) is_new: bool,
}

/// A request for the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Read the Lease.
    Read,
    /// Create it, if there is none.
    Create(Entry),
    /// Change it, if it has this version.
    Replace(u64, Entry),
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The Lease is this, or is this now.
    Lease(Lease),
    /// There is none.
    Absent,
    /// It has another version. Nothing changed.
    Conflict,
    /// Nobody knows.
    Failed,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send this now, and tell the answer.
    Send(Request),
    /// Nothing until then, or until something is seen.
    Wait(Option<Instant>),
    /// Nothing any more: the Lease is released, or was not held.
    Done,
}

/// One that wants to lead.
#[derive(Debug)]
pub(crate) struct Candidate {
    identity: String,
    timing: Timing,
    /// What is known of the Lease, and since when it may be taken. `None`: nothing.
    view: Option<View>,
    /// Whether what is known is known to be out of date.
    is_stale: bool,
    /// The request under way, and when it was sent.
    under_way: Option<(Request, Instant)>,
    /// Until when it may write.
    until: Option<Instant>,
    /// When the last renewal was sent that succeeded.
    renewed: Option<Instant>,
    /// After a failure: not before this.
    not_before: Option<Instant>,
    is_resigning: bool,
}

#[derive(Debug)]
struct View {
    /// `None`: there is none.
    lease: Option<Lease>,
    free_at: Instant,
}

impl Candidate {
    /// One that knows nothing yet. No other may have the same `identity`, and none that was there before.
    pub(crate) fn new(identity: String, timing: Timing) -> Self {
        Self {
            identity,
            timing,
            view: None,
            is_stale: true,
            under_way: None,
            until: None,
            renewed: None,
            not_before: None,
            is_resigning: false,
        }
    }

    /// Who leads as far as is known.
    pub(crate) fn leader(&self) -> Option<&str> {
        self.view.as_ref()?.lease.as_ref()?.holder.as_deref()
    }

    /// Until when it may write: never after what this returned last, if not asked again. `None`: it may not.
    pub(crate) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    /// The watch told this; `None`: that the Lease was deleted.
    pub(crate) fn watched(&mut self, lease: Option<Lease>, now: Instant) {
        // Events may come later than the answer to an own write that came after them.
        let known = self.view.as_ref().and_then(|view| view.lease.as_ref()).map_or(0, |lease| lease.version);
        if lease.as_ref().is_none_or(|lease| lease.version >= known) {
            self.see(lease, now);
        }
    }

    /// What to do now. A request counts as sent now.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        self.until = self.until(now);
        if self.under_way.is_some() {
            return Next::Wait(self.until);
        }
        if let Some(not_before) = self.not_before.filter(|not_before| now < *not_before) {
            return Next::Wait(Some(self.until.map_or(not_before, |until| until.min(not_before))));
        }
        let view = if self.is_stale { None } else { self.view.as_ref() };
        let Some(view) = view else { return self.send(Request::Read, now) };
        let is_ours = view.lease.as_ref().is_some_and(|lease| lease.holder.as_ref() == Some(&self.identity));
        if self.is_resigning {
            return if is_ours { self.send(self.write(None), now) } else { Next::Done };
        }
        let due = match (self.until, self.renewed) {
            (Some(_), Some(renewed)) if is_ours => renewed + self.timing.renewal,
            _ => view.free_at,
        };
        if now < due {
            return Next::Wait(Some(self.until.map_or(due, |until| until.min(due))));
        }
        self.send(self.write(Some(self.identity.clone())), now)
    }

    /// The answer to the request under way.
    pub(crate) fn answered(&mut self, answer: Answer, now: Instant) {
        let Some((request, sent)) = self.under_way.take() else { return };
        self.not_before = None;
        match answer {
            Answer::Lease(lease) => {
                let is_renewed = request != Request::Read && lease.holder.as_ref() == Some(&self.identity);
                self.see(Some(lease), now);
                if is_renewed && !self.is_resigning {
                    self.renewed = Some(sent);
                    self.until = Some(sent + (self.timing.duration - self.timing.margin));
                }
                self.is_stale = false;
            }
            Answer::Absent if request == Request::Read => {
                self.see(None, now);
                self.is_stale = false;
            }
            Answer::Absent | Answer::Conflict => self.is_stale = true,
            // If it was done all the same, the next try is told so.
            Answer::Failed => self.not_before = Some(now + self.timing.retry),
        }
    }

    /// Give up the Lease. It may not write from now on.
    pub(crate) fn resign(&mut self) {
        self.is_resigning = true;
        self.until = None;
    }

    fn send(&mut self, request: Request, now: Instant) -> Next {
        self.under_way = Some((request.clone(), now));
        Next::Send(request)
    }

    /// The request that makes this the holder.
    fn write(&self, holder: Option<String>) -> Request {
        let lease = self.view.as_ref().and_then(|view| view.lease.as_ref());
        let before = lease.map_or(0, |lease| lease.transitions);
        let is_new = holder.is_some() && lease.is_none_or(|lease| lease.holder != holder);
        let transitions = if is_new && lease.is_some() { before.saturating_add(1) } else { before };
        let entry = Entry { holder, duration: self.timing.duration, transitions, is_new };
        match lease {
            Some(lease) => Request::Replace(lease.version, entry),
            None => Request::Create(entry),
        }
    }

    fn see(&mut self, lease: Option<Lease>, now: Instant) {
        let before = self.view.take();
        if let Some(before) = before.as_ref()
            && before.lease == lease
        {
            self.view = Some(View { lease, free_at: before.free_at });
            return;
        }
        let others = |lease: &Lease| lease.holder.as_ref().is_some_and(|holder| *holder != self.identity);
        // One that is deleted was held until then.
        let was = before.as_ref().and_then(|before| before.lease.as_ref());
        let free_at = match lease.as_ref().or(was).filter(|lease| others(lease)) {
            Some(lease) => now + lease.duration,
            None => now,
        };
        // Somebody changed it by hand, for it was ours.
        if lease.as_ref().is_some_and(|lease| lease.holder.as_ref() != Some(&self.identity)) {
            self.until = None;
        }
        self.view = Some(View { lease, free_at });
    }
}

#[cfg(test)]
mod tests;
