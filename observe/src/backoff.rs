//! Delays between attempts to reach an API server that fails, or that ends a watch right after its start.
//!
//! The first delays are short. An API server ends all watches of a kind once when its CustomResourceDefinition is
//! created or changed, and a user who has just installed Landfall waits for the first pool to take effect.

use std::time::Duration;

use model::pacing::Backoff;

/// The first delay.
const FIRST: Duration = Duration::from_millis(100);

/// The longest delay of a watch. Every node of a cluster retries, and the API server may be down because of its load.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// Delays of at most `longest`.
pub(crate) fn backoff_up_to(longest: Duration) -> Backoff {
    Backoff::new(FIRST, longest)
}
