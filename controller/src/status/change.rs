//! How a condition of a Service should change.

use crds::condition::DesiredCondition;

/// How a condition of a Service should change.
pub(crate) enum ConditionChange {
    /// It stays as it is: not enough is known yet.
    Keep,
    /// It goes: the Service has no address.
    Remove,
    /// It becomes this.
    Set(DesiredCondition),
}
