//! Whether a condition of a Service is up to date.

use std::fmt;

use crds::Service;
use crds::condition::{Condition, ConditionStatus, DesiredCondition};

/// Whether a Service has this condition, written for its current generation.
pub(crate) fn is_current(
    service: &Service,
    type_: &str,
    status: ConditionStatus,
    reason: &str,
    message: &impl fmt::Display,
) -> bool {
    service.conditions.iter().any(|condition| {
        condition.type_ == type_
            && condition.status == status.as_str()
            && condition.reason == reason
            && condition.observed_generation == service.generation
            && displays_as(message, &condition.message)
    })
}

/// Whether a Service has this condition, for any generation. Then no event about it is needed.
pub(crate) fn is_reported(service: &Service, desired: &DesiredCondition) -> bool {
    let desired = [desired.type_, desired.status.as_str(), desired.reason, &desired.message];
    service.conditions.iter().any(|condition| content(condition) == desired)
}

/// Type, status, reason and message of a condition.
pub(crate) fn content(condition: &Condition) -> [&str; 4] {
    [&condition.type_, &condition.status, &condition.reason, &condition.message]
}

/// Whether a value is displayed as this text. It allocates nothing.
pub(crate) fn displays_as(value: &impl fmt::Display, text: &str) -> bool {
    /// The text that is still expected.
    struct Expected<'a>(&'a str);
    impl fmt::Write for Expected<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut expected = Expected(text);
    fmt::write(&mut expected, format_args!("{value}")).is_ok() && expected.0.is_empty()
}
