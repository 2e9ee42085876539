//! Facts that follow from one record alone.

use crds::{Holder, Key, Quarantine, Record, Service};
use jiff::{SignedDuration, Timestamp};

/// The duration of a quarantine. An administrator needs about this time to move the other host to another address. If
/// the host still uses the address afterwards, probes detect that, and the next Service gets another address after a
/// fraction of a second.
pub(crate) const QUARANTINE: SignedDuration = SignedDuration::from_mins(10);

/// When a quarantine is over.
pub(crate) fn quarantine_end(quarantine: &Quarantine) -> Timestamp {
    quarantine.since.0.saturating_add(QUARANTINE).unwrap_or(Timestamp::MAX)
}

/// The Services that a record names.
pub(crate) fn holder_keys(record: &Record) -> impl Iterator<Item = Key> {
    record.holders.iter().map(Holder::service)
}

/// Whether a record names this Service, with the same key and UID.
pub(crate) fn holds(record: &Record, service: &Service) -> bool {
    record.holders.iter().any(|holder| holder.uid == service.uid && holder.service() == service.key)
}

/// Whether a record names a Service with this key, whatever its UID.
pub(crate) fn names(record: &Record, key: &Key) -> bool {
    record.holders.iter().any(|holder| holder.service() == *key)
}

/// Whether one Service holds this record, and no other Service can join it.
pub(crate) fn is_exclusive(record: &Record) -> bool {
    record.holders.len() == 1 && record.sharing_key.is_none() && record.reservation.is_none()
}

/// The Service that a reservation names.
pub(crate) fn reserved_service(record: &Record) -> Option<Key> {
    let reservation = record.reservation.as_ref()?;
    Some(Key::new(reservation.namespace.as_ref()?, reservation.service.as_ref()?))
}
