//! A write that the API server refuses.

use jiff::Timestamp;

use crate::plan::effect::WriteKind;

/// A write that the API server refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedWrite {
    pub(crate) kind: WriteKind,
    /// The message of the API server.
    pub(crate) answer: String,
    /// Whether a write of the Service follows in the series: its status is out of date until this write succeeds.
    pub(crate) delays_status: bool,
    /// The time of the answer.
    pub(crate) since: Timestamp,
}
