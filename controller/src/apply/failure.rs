//! Why a series of writes failed.

use std::net::IpAddr;
use std::time::Duration;

use crds::condition::MAX_MESSAGE;

use crate::apply::election::Deposed;
use crate::metrics::Outcome;

/// How long a request waits for its answer. (By default, the limit of the API server is 60 s, and the limit of each of
/// its admission webhooks is 10 s.)
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a series failed. The effects before the failed one have happened; the others are planned again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Another Service has the address. Nothing changed.
    #[error("{0} is taken")]
    Taken(IpAddr),
    /// The object has another version than the one that was read. Nothing changed.
    #[error("another writer changed the object")]
    Changed,
    /// This controller no longer leads. Nothing changed.
    #[error(transparent)]
    Deposed(#[from] Deposed),
    /// The API server did not answer. It is unknown whether anything changed.
    #[error("the API server did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Unanswered,
    /// The API server refused the request, or is unreachable.
    #[error("{action} failed")]
    Refused {
        action: &'static str,
        #[source]
        source: kube::Error,
    },
}

impl Failure {
    /// Whether it is an expected result of concurrent writers, and no fault.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Taken(_) | Self::Changed | Self::Deposed(_))
    }

    /// The message of the API server, if it refuses the request for a reason that lasts: validation, a policy, a
    /// webhook, a quota or missing permissions. Others are transient, or concern all requests.
    pub(crate) fn lasting_refusal(&self) -> Option<String> {
        let Self::Refused { source: kube::Error::Api(status), .. } = self else { return None };
        let is_transient = matches!(status.code, 401 | 404 | 408 | 409 | 410 | 429);
        if !(400..500).contains(&status.code) || is_transient {
            return None;
        }
        let text = if status.message.is_empty() { &status.reason } else { &status.message };
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(line.chars().take(MAX_MESSAGE).collect())
    }

    /// The outcome in the metrics.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { source, .. } => Outcome::from(source),
            Self::Deposed(_) => Outcome::Deposed,
            Self::Taken(_) | Self::Changed => Outcome::Conflict,
            Self::Unanswered => Outcome::Unanswered,
        }
    }

    /// The HTTP status of a refusal.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }
}
