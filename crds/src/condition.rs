//! Conditions of a status.
//!
//! The type identifies a condition. A new status changes the transition time; a new reason or message does not. The
//! position in the list never changes. So writing an equal condition changes nothing, and no watch gets an event.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self, Time};
use serde::{Deserialize, Serialize};

use crate::{InternedStr, words};

/// A condition with the fields of `meta/v1`. Its strings are interned: tens of thousands of Services have conditions
/// with the same few reasons and messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Time of the last change of `status`.
    pub last_transition_time: Time,
    /// Human-readable description.
    #[serde(default)]
    pub message: InternedStr,
    /// Generation of the object that this condition describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Machine-readable cause: one CamelCase word.
    #[serde(default)]
    pub reason: InternedStr,
    /// `True`, `False` or `Unknown`.
    pub status: InternedStr,
    /// Type of the condition, for example `landfall.dev/Allocated`.
    #[serde(rename = "type")]
    pub type_: InternedStr,
}

impl From<v1::Condition> for Condition {
    fn from(condition: v1::Condition) -> Self {
        Self {
            last_transition_time: condition.last_transition_time,
            message: condition.message.into(),
            observed_generation: condition.observed_generation,
            reason: condition.reason.into(),
            status: condition.status.into(),
            type_: condition.type_.into(),
        }
    }
}

words! {
    /// `status` of a [`Condition`].
    ConditionStatus {
        /// The condition holds.
        True,
        /// The condition does not hold.
        False,
        /// The controller cannot determine whether it holds.
        Unknown,
    }
}

/// A condition to write. Its transition time is not included: it follows from the condition that it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DesiredCondition {
    /// Type of the condition, for example `landfall.dev/Allocated`.
    pub type_: &'static str,
    /// Whether the condition holds.
    pub status: ConditionStatus,
    /// Machine-readable cause: one CamelCase word.
    pub reason: &'static str,
    /// Human-readable description, with the fix if a user can fix it. At most [`MAX_MESSAGE`] characters.
    pub message: String,
    /// Generation of the described object; `None` for kinds without generations.
    pub observed_generation: Option<i64>,
}

impl DesiredCondition {
    /// A condition with this message, or with its start if it is longer than [`MAX_MESSAGE`].
    pub fn new(
        type_: &'static str,
        status: ConditionStatus,
        reason: &'static str,
        message: String,
        observed_generation: Option<i64>,
    ) -> Self {
        Self { type_, status, reason, message: clamp_message(message), observed_generation }
    }

    /// Whether `conditions` already contain this condition.
    pub fn is_in(&self, conditions: &[Condition]) -> bool {
        conditions.iter().any(|c| {
            c.type_ == self.type_
                && c.status == self.status.as_str()
                && c.reason == self.reason
                && c.message == self.message
                && c.observed_generation == self.observed_generation
        })
    }

    /// Returns `conditions` with this condition set. If its status changes, `now` becomes its transition time. Other
    /// conditions stay unchanged.
    pub fn set_in(&self, conditions: &[Condition], now: Timestamp) -> Vec<Condition> {
        let mut conditions = conditions.to_vec();
        let position = conditions.iter().position(|c| c.type_ == self.type_);
        let last_transition_time = position
            .map(|position| &conditions[position])
            .filter(|old| old.status == self.status.as_str())
            .map_or(Time(now), |old| old.last_transition_time.clone());
        let condition = Condition {
            last_transition_time,
            message: self.message.as_str().into(),
            observed_generation: self.observed_generation,
            reason: self.reason.into(),
            status: self.status.as_str().into(),
            type_: self.type_.into(),
        };
        match position {
            Some(position) => conditions[position] = condition,
            None => conditions.push(condition),
        }
        conditions
    }
}

/// Maximum number of characters of a message in a condition.
pub const MAX_MESSAGE: usize = 1024;

/// Maximum number of characters that a message quotes of a text that a user wrote.
pub const MAX_QUOTED: usize = 100;

fn clamp_message(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
        let (last, _) = message[..end].char_indices().next_back().unwrap_or_default();
        message.truncate(last);
        message.push('…');
    }
    message
}

/// Displays a text that a user wrote, in quotation marks, on one line, and at most [`MAX_QUOTED`] characters of it.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = self.0.chars().take(MAX_QUOTED).collect();
        let quoted = format!("{start:?}");
        // An escape such as `\n` has more than one character.
        let shown: String = quoted.chars().take(MAX_QUOTED + 1).collect();
        if start.len() == self.0.len() && shown.len() + 1 >= quoted.len() {
            return f.write_str(&quoted);
        }
        write!(f, "{shown}…\"")
    }
}

/// Returns `conditions` without those of Landfall, whose types have the prefix [`crate::GROUP`].
pub fn without_ours(conditions: &[Condition]) -> Vec<Condition> {
    let ours = |c: &Condition| c.type_.split_once('/').is_some_and(|(group, _)| group == crate::GROUP);
    conditions.iter().filter(|c| !ours(c)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_quotations_are_cut_with_a_mark() {
        let cut = |length: usize| clamp_message("ü".repeat(length));
        assert_eq!([0, 1023, 1024, 1025, 300_000].map(|n| cut(n).chars().count()), [0, 1023, 1024, 1024, 1024]);
        assert!(cut(1024).ends_with('ü') && cut(1025).ends_with("ü…"));
        let quoted = |text: &str| Quoted(text).to_string();
        assert_eq!([quoted("a\"b\n"), quoted("")], [r#""a\"b\n""#, r#""""#]);
        assert_eq!(quoted(&"ü".repeat(100)), format!("\"{}\"", "ü".repeat(100)));
        assert_eq!(quoted(&"ü".repeat(101)), format!("\"{}…\"", "ü".repeat(100)));
        assert_eq!(quoted(&"\n".repeat(60)), format!("\"{}…\"", "\\n".repeat(50)));
    }

    fn desired_condition(status: ConditionStatus, reason: &'static str) -> DesiredCondition {
        DesiredCondition::new("landfall.dev/Allocated", status, reason, "because".into(), None)
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let first = desired_condition(ConditionStatus::False, "NoPool").set_in(&[], time(1));
        let second = desired_condition(ConditionStatus::False, "PoolsExhausted").set_in(&first, time(2));
        let third = desired_condition(ConditionStatus::True, "Allocated").set_in(&second, time(3));
        let times = [&first, &second, &third].map(|c| c[0].last_transition_time.0.as_second());
        assert_eq!(times, [1, 1, 3]);
        assert_eq!(third.len(), 1);
    }

    #[test]
    fn setting_a_condition_keeps_other_conditions_in_place() {
        let other = desired_condition(ConditionStatus::True, "OtherReason").set_in(&[], time(1)).remove(0);
        let other = Condition { type_: "example.com/Other".into(), ..other };
        let desired = desired_condition(ConditionStatus::True, "Allocated");
        let conditions = desired.set_in(std::slice::from_ref(&other), time(2));
        assert!(desired.is_in(&conditions));
        assert!(!desired_condition(ConditionStatus::True, "OtherReason").is_in(&conditions));
        assert_eq!(conditions[0], other);
        assert_eq!(without_ours(&conditions), vec![other]);
    }
}
