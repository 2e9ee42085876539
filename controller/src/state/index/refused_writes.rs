//! Writes that the API server refuses for a reason that lasts: validation, a policy, a webhook, a quota or missing
//! permissions.
//!
//! Answers of the API server → the refused writes of each subject. [`crate::status::refused_write`] reports them. The
//! controller repeats a refused write with growing delays, and the repetitions change nothing here. An entry ends when
//! the write succeeds, or when no plan contains it any longer.

use jiff::{SignedDuration, Timestamp};

use super::ClusterIndex;
use crate::plan::effect::{Effect, Event, Series, Subject, WriteKind};
use crate::state::record::holder_keys;
use crate::state::refused_write::RefusedWrite;

/// The shortest time between two texts about the same write. A webhook may answer each attempt with another text, and
/// each text is a write of the condition and an event.
const TEXT_INTERVAL: SignedDuration = SignedDuration::from_mins(5);

impl ClusterIndex {
    /// Records the answers to the writes of a series. The first `done` effects have happened. `refusal`: the message of
    /// the API server, if it refuses the next one for a reason that lasts. Returns the event about this, if it is news
    /// that no condition reports.
    pub(crate) fn record_answers(
        &mut self,
        series: &Series,
        done: usize,
        refusal: Option<String>,
        now: Timestamp,
    ) -> Option<Event> {
        let (happened, rest) = series.effects.split_at(done.min(series.effects.len()));
        self.retain_refused(&series.subject, |kind| !contains(happened, kind));
        let (answer, (refused, later)) = (refusal?, rest.split_first()?);
        let kind = refused.write_kind()?;
        let delays_status = contains(later, WriteKind::PatchService);
        let new = RefusedWrite { kind, answer, delays_status, since: now };
        let all = self.refused_writes.entry(series.subject.clone()).or_default();
        match all.iter_mut().find(|old| old.kind == kind) {
            Some(old) if old.answer == new.answer || now.duration_since(old.since) < TEXT_INTERVAL => return None,
            Some(old) => *old = new.clone(),
            None => all.push(new.clone()),
        }
        self.mark_waiting_for(&series.subject);
        self.refusal_event(&series.subject, &new)
    }

    /// Marks the Services that join this record, or take the place of a holder: their conditions report the refusal.
    fn mark_waiting_for(&mut self, subject: &Subject) {
        let Subject::Record(lb_ip) = subject else { return };
        let holders = self.objects.records().get(lb_ip).map(|record| holder_keys(record).collect::<Vec<_>>());
        self.dirty.services.extend(holders.into_iter().flatten());
        self.dirty.services.extend(self.promises.get(lb_ip).cloned());
    }

    /// Forgets the refused writes that the newest series of this subject does not repeat.
    pub(crate) fn forget_unplanned(&mut self, series: &Series) {
        if !series.is_report() {
            self.retain_refused(&series.subject, |kind| contains(&series.effects, kind));
        }
    }

    fn retain_refused(&mut self, subject: &Subject, keep: impl Fn(WriteKind) -> bool) {
        let Some(all) = self.refused_writes.get_mut(subject) else { return };
        all.retain(|refused| keep(refused.kind));
        if all.is_empty() {
            self.refused_writes.remove(subject);
        }
    }

    /// The write of this kind that the API server refuses.
    pub(crate) fn refused_write(&self, subject: &Subject, kind: WriteKind) -> Option<&RefusedWrite> {
        self.refused_writes.get(subject)?.iter().find(|refused| refused.kind == kind)
    }
}

fn contains(effects: &[Effect], kind: WriteKind) -> bool {
    effects.iter().any(|effect| effect.write_kind() == Some(kind))
}
