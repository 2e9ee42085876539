//! How conditions are kept in a status.
//!
//! A condition is looked up by its type, changes its time only when its status changes, and keeps its place: so that
//! writing what is already there changes nothing, and nobody's watch is woken for it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self, Time};
use serde::{Deserialize, Serialize};

use crate::InternedStr;

/// A condition, with the fields that Kubernetes gives it (`meta/v1`), in no more memory than it needs: each of tens of
/// thousands of Services has some, and they say the same words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// When `status` changed last.
    pub last_transition_time: Time,
    /// A sentence for people.
    #[serde(default)]
    pub message: InternedStr,
    /// The generation of the object that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One CamelCase word for machines.
    #[serde(default)]
    pub reason: InternedStr,
    /// `True`, `False` or `Unknown`.
    pub status: InternedStr,
    /// What it is about: `landfall.dev/Allocated`.
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

/// `status` of a [`Condition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl ConditionStatus {
    /// All values.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition should say. The time of its last transition is not here: it follows from what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredCondition {
    /// The type: `landfall.dev/Allocated`.
    pub type_: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One CamelCase word for machines.
    pub reason: &'static str,
    /// A sentence for people, with the fix where there is one.
    pub message: String,
    /// The generation of the object that was looked at, where the kind has generations.
    pub observed_generation: Option<i64>,
}

impl DesiredCondition {
    /// Whether `conditions` say this already.
    pub fn is_in(&self, conditions: &[Condition]) -> bool {
        conditions.iter().any(|c| {
            c.type_ == self.type_
                && c.status == self.status.as_str()
                && c.reason == self.reason
                && c.message == self.message
                && c.observed_generation == self.observed_generation
        })
    }

    /// `conditions` with this one set, `now` being the time of a change of status. The others stay as they are.
    pub fn set_in(&self, conditions: &[Condition], now: Timestamp) -> Vec<Condition> {
        let mut conditions = conditions.to_vec();
        let place = conditions.iter().position(|c| c.type_ == self.type_);
        let since = place
            .map(|place| &conditions[place])
            .filter(|before| before.status == self.status.as_str())
            .map_or(Time(now), |before| before.last_transition_time.clone());
        let condition = Condition {
            last_transition_time: since,
            message: self.message.as_str().into(),
            observed_generation: self.observed_generation,
            reason: self.reason.into(),
            status: self.status.as_str().into(),
            type_: self.type_.into(),
        };
        match place {
            Some(place) => conditions[place] = condition,
            None => conditions.push(condition),
        }
        conditions
    }
}

/// `conditions` without those of our group.
pub fn without_ours(conditions: &[Condition]) -> Vec<Condition> {
    let ours = |c: &Condition| c.type_.split_once('/').is_some_and(|(group, _)| group == crate::GROUP);
    conditions.iter().filter(|c| !ours(c)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(status: ConditionStatus, reason: &'static str) -> DesiredCondition {
        DesiredCondition {
            type_: "landfall.dev/Allocated",
            status,
            reason,
            message: "because".into(),
            observed_generation: None,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_time_changes_with_the_status_and_not_with_the_reason() {
        let first = desired(ConditionStatus::False, "NoPool").set_in(&[], at(1));
        let second = desired(ConditionStatus::False, "PoolsExhausted").set_in(&first, at(2));
        let third = desired(ConditionStatus::True, "Allocated").set_in(&second, at(3));
        let times = [&first, &second, &third].map(|c| c[0].last_transition_time.0.as_second());
        assert_eq!(times, [1, 1, 3]);
        assert_eq!(third.len(), 1);
    }

    #[test]
    fn what_was_set_is_found_and_others_are_left_in_place() {
        let other = desired(ConditionStatus::True, "Else").set_in(&[], at(1)).remove(0);
        let other = Condition { type_: "example.com/Other".into(), ..other };
        let wanted = desired(ConditionStatus::True, "Allocated");
        let conditions = wanted.set_in(std::slice::from_ref(&other), at(2));
        assert!(wanted.is_in(&conditions));
        assert!(!desired(ConditionStatus::True, "Else").is_in(&conditions));
        assert_eq!(conditions[0], other);
        assert_eq!(without_ours(&conditions), vec![other]);
    }
}
