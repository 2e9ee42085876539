//! The next write to the Secret: its state, the time and a random key → [`Step`]. Pure.
//!
//! ```text
//!   no usable key       ->  {new}                                  at once: nothing is announced without a key
//!   rotation requested  ->  {old, new}   retire old after OVERLAP  meanwhile all nodes receive the new key
//!   OVERLAP is over     ->  {new}
//! ```
//!
//! Each version of the Secret shares an entry with every version of the last [`OVERLAP`]. So two nodes have a key in
//! common if the versions that they know are less than [`OVERLAP`] apart. Speakers also accept a removed key for
//! [`speaker::wire::seal::GRACE`]. A user may delete the Secret, or replace all its keys in one step. Then a node loses
//! contact with the others only if it receives the change later than they do by more than this grace.
//!
//! Several controllers may run this at once. The API server creates a Secret only once, and every other write names the
//! version that it changes. A request stays in the Secret until it is fulfilled, so a crash between two steps loses
//! nothing. Entries with other names, added by hand, are keys like any other.

use jiff::{Timestamp, ToSpan};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use speaker::wire::seal::MAX_KEYS;

use super::secret::{RETIRE, RETIRE_AFTER, ROTATE, SecretView};

/// How long old keys stay beside a new one, in seconds. A node that loses the API server for less than this keeps a
/// valid key; a leaked key stays usable for this time. To revoke a key sooner, delete the Secret.
pub(crate) const OVERLAP: i64 = 3600;

/// The length of a key in bytes. It is the length of the hash, because a longer key would not be stronger (RFC 2104
/// §3).
pub(crate) const LENGTH: usize = 32;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Do nothing before this time; `None`: do nothing before the Secret changes.
    Wait(Option<Timestamp>),
    /// Create the Secret with these fields.
    Create(Value),
    /// Change the Secret with this JSON merge patch (RFC 7396). `what` describes the change for the log.
    Patch { what: &'static str, body: Value },
}

/// Returns the next step. `random` is the new key, if the step adds one. `secret` is `None` if the Secret is missing.
pub(crate) fn next_step(secret: Option<&SecretView>, now: Timestamp, random: &[u8; LENGTH]) -> Step {
    let name = now.strftime("key-%Y%m%dT%H%M%SZ").to_string();
    let entry = json!({&name: ByteString(random.to_vec())});
    let Some(secret) = secret else { return Step::Create(json!({"data": entry})) };
    let names = secret.usable_keys().names;
    // Two keys of the same second would have the same name, and an existing entry is never overwritten.
    let add = |what, annotations| match secret.entries.contains_key(&name) {
        true => Step::Wait(Some(now + 1.second())),
        false => patch(secret, what, annotations, entry),
    };
    if names.is_empty() {
        return add("added a key: there was none", json!({ROTATE: null}));
    }
    if let Some(retirement) = &secret.retirement {
        let no_retirement = json!({RETIRE: null, RETIRE_AFTER: null});
        return match retirement.after {
            // The last usable key is never removed.
            _ if names.is_subset(&retirement.names) => patch(secret, "kept the only keys", no_retirement, json!({})),
            Some(after) if now < after => Step::Wait(Some(after)),
            Some(_) => {
                let old = retirement.names.iter().filter(|name| secret.entries.contains_key(*name));
                patch(secret, "removed old keys", no_retirement, old.map(|name| (name.clone(), Value::Null)).collect())
            }
            None => {
                let annotations = json!({RETIRE_AFTER: end_of_overlap(now)});
                patch(secret, "replaced an invalid retirement time", annotations, json!({}))
            }
        };
    }
    if !secret.rotate || names.len() >= MAX_KEYS {
        return Step::Wait(None);
    }
    let retire: Vec<&str> = names.iter().map(String::as_str).collect();
    add("added a new key", json!({ROTATE: null, RETIRE: retire.join(" "), RETIRE_AFTER: end_of_overlap(now)}))
}

fn patch(secret: &SecretView, what: &'static str, annotations: Value, data: Value) -> Step {
    let metadata = json!({"resourceVersion": secret.version, "annotations": annotations});
    Step::Patch { what, body: json!({"metadata": metadata, "data": data}) }
}

fn end_of_overlap(now: Timestamp) -> String {
    (now + OVERLAP.seconds()).round(jiff::Unit::Second).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::{merge, secret};
    use super::*;
    use k8s_openapi::api::core::v1::Secret;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const OLD: &[u8] = &[1; LENGTH];
    const NEW: [u8; LENGTH] = [9; LENGTH];

    fn noon() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().expect("a time")
    }

    fn new_entry() -> Value {
        json!({"key-20260101T120000Z": ByteString(NEW.to_vec())})
    }

    /// The step at noon for a Secret with these entries and annotations.
    fn step_at_noon(entries: &[(&str, &[u8])], annotations: &[(&str, &str)]) -> Step {
        next_step(Some(&SecretView::from(&secret(entries, annotations))), noon(), &NEW)
    }

    fn expected_patch(what: &'static str, annotations: Value, data: Value) -> Step {
        let metadata = json!({"resourceVersion": "7", "annotations": annotations});
        Step::Patch { what, body: json!({"metadata": metadata, "data": data}) }
    }

    #[test]
    fn a_missing_key_is_made_at_once() {
        assert_eq!(next_step(None, noon(), &NEW), Step::Create(json!({"data": new_entry()})));
        for entries in [&[][..], &[("a", &b"short"[..])]] {
            let expected = expected_patch("added a key: there was none", json!({ROTATE: null}), new_entry());
            assert_eq!(step_at_noon(entries, &[]), expected);
        }
        assert_eq!(step_at_noon(&[("a", OLD)], &[]), Step::Wait(None));
    }

    #[test]
    fn a_rotation_removes_the_old_key_after_an_hour() {
        let (future, past) = ("2026-01-01T13:00:00Z", "2026-01-01T11:59:59Z");
        let annotations = json!({ROTATE: null, RETIRE: "a", RETIRE_AFTER: future});
        assert_eq!(
            step_at_noon(&[("a", OLD)], &[(ROTATE, "now")]),
            expected_patch("added a new key", annotations, new_entry())
        );
        let both: &[(&str, &[u8])] = &[("a", OLD), ("b", &NEW)];
        let under_way = |after| [(RETIRE, "a"), (RETIRE_AFTER, after)];
        assert_eq!(step_at_noon(both, &under_way(future)), Step::Wait(Some(future.parse().expect("a time"))));
        let no_retirement = json!({RETIRE: null, RETIRE_AFTER: null});
        assert_eq!(
            step_at_noon(both, &under_way(past)),
            expected_patch("removed old keys", no_retirement, json!({"a": null}))
        );
    }

    #[test]
    fn a_second_rotation_waits_for_the_first() {
        let after = "2026-01-01T12:30:00Z";
        let both: &[(&str, &[u8])] = &[("a", OLD), ("b", &NEW)];
        let step = step_at_noon(both, &[(ROTATE, ""), (RETIRE, "a"), (RETIRE_AFTER, after)]);
        assert_eq!(step, Step::Wait(Some(after.parse().expect("a time"))));
        let full: &[(&str, &[u8])] = &[("a", OLD), ("b", &NEW), ("c", &[3; LENGTH])];
        assert_eq!(step_at_noon(full, &[(ROTATE, "")]), Step::Wait(None), "no room for another key");
    }

    #[test]
    fn the_last_key_and_existing_names_stay() {
        let no_retirement = json!({RETIRE: null, RETIRE_AFTER: null});
        let past = [(RETIRE, "a b"), (RETIRE_AFTER, "2026-01-01T11:00:00Z")];
        let both: &[(&str, &[u8])] = &[("a", OLD), ("b", &NEW)];
        assert_eq!(step_at_noon(both, &past), expected_patch("kept the only keys", no_retirement, json!({})));
        let taken: &[(&str, &[u8])] = &[("key-20260101T120000Z", OLD)];
        assert_eq!(step_at_noon(taken, &[(ROTATE, "")]), Step::Wait(Some(noon() + 1.second())));
        let later = json!({RETIRE_AFTER: "2026-01-01T13:00:00Z"});
        let unclear = step_at_noon(both, &[(RETIRE, "a"), (RETIRE_AFTER, "soon")]);
        assert_eq!(unclear, expected_patch("replaced an invalid retirement time", later, json!({})));
    }

    /// The Secret after the API server has handled a step.
    fn apply(before: Option<Secret>, step: &Step) -> Option<Secret> {
        let mut object = match (&before, step) {
            (_, Step::Wait(_)) => return before,
            (_, Step::Create(fields)) => json!({"metadata": {"resourceVersion": "1"}, "data": fields["data"]}),
            (Some(before), Step::Patch { .. }) => serde_json::to_value(before).expect("JSON"),
            (None, Step::Patch { .. }) => panic!("no Secret to patch"),
        };
        if let Step::Patch { body, .. } = step {
            let version = object["metadata"]["resourceVersion"].clone();
            assert_eq!(body["metadata"]["resourceVersion"], version);
            merge(&mut object, body);
            let version: u64 = version.as_str().expect("text").parse().expect("a number");
            object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        }
        Some(serde_json::from_value(object).expect("a Secret"))
    }

    proptest! {
        /// For any times of requests, also during a rotation.
        #[test]
        fn versions_within_the_overlap_share_a_key(
            requests in proptest::collection::vec(0..4 * OVERLAP, 0..12),
            pace in 1..OVERLAP / 4,
        ) {
            let requests: BTreeSet<i64> = requests.into_iter().map(|at| at / pace).collect();
            let mut secret: Option<Secret> = None;
            let mut history: Vec<(i64, BTreeSet<Vec<u8>>)> = Vec::new();
            let mut counter = 0u64;
            // The loop ends: at most twelve rotations follow each other. Each takes less than `OVERLAP` and one tick.
            for tick in 0.. {
                let now = noon() + (tick * pace).seconds();
                if let Some(secret) = secret.as_mut().filter(|_| requests.contains(&tick)) {
                    let annotations = secret.metadata.annotations.get_or_insert_default();
                    annotations.insert(ROTATE.into(), "please".into());
                }
                // All steps that are due now.
                let is_over = loop {
                    counter += 1;
                    let mut random = [0; LENGTH];
                    random[..8].copy_from_slice(&counter.to_be_bytes());
                    let step = next_step(secret.as_ref().map(SecretView::from).as_ref(), now, &random);
                    if let Step::Wait(until) = step {
                        break until.is_none() && tick * pace > 4 * OVERLAP;
                    }
                    secret = apply(secret, &step);
                    let view = SecretView::from(secret.as_ref().expect("a Secret"));
                    let usable = view.usable_keys();
                    prop_assert_eq!(usable.problems, vec![]);
                    let keys: BTreeSet<Vec<u8>> = view.entries.values().cloned().collect();
                    prop_assert!((1..=2).contains(&keys.len()), "{:?}", view);
                    history.push((tick * pace, keys));
                };
                prop_assert!(tick * pace < 30 * OVERLAP, "the rotations do not end");
                if is_over {
                    break;
                }
            }
            for (index, (since, keys)) in history.iter().enumerate() {
                // The earlier versions, each with the next one, which replaced it.
                for (earlier, next) in history[..index].iter().zip(&history[1..=index]) {
                    let gap = since - next.0;
                    prop_assert!(gap >= OVERLAP || !keys.is_disjoint(&earlier.1), "no common key after {} s", gap);
                }
            }
        }
    }
}
