//! What is to be written to the Secret: what stands there, the time and a random key → [`Step`]. Pure.
//!
//! ```text
//!   no key at all       ->  {new}                                  made at once: nothing is announced without
//!   rotate is asked for ->  {old, new}   retire old after OVERLAP  all nodes hear of the new one meanwhile
//!   OVERLAP is over     ->  {new}
//! ```
//!
//! At every instant any two nodes have a key in common, if what they know of the Secret is not further apart than
//! [`OVERLAP`]: each content shares an entry with all those that there were within that time before. (Besides, speakers go
//! on believing a key that is taken away for [`speaker::wire::seal::GRACE`], so that a Secret that is deleted, or rewritten by
//! hand in one go, parts nobody who hears of it within that time.)
//!
//! Whoever does this need not be alone: a Secret is created once whoever tries, and every other write names the version of
//! what it changes. What was asked for by hand stays in the Secret until it is done, so a crash between any two steps
//! loses nothing. Entries that somebody put there under other names are keys like any other.

use jiff::{Timestamp, ToSpan};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use speaker::wire::seal::MAX_KEYS;

use super::content::{Content, RETIRE, RETIRE_AFTER, ROTATE};

/// For how many seconds the old keys stay beside a new one: a node that has lost the API server for less than that is
/// still understood by all others. As long as that, somebody who has learnt an old key can use it; who wants it to end
/// sooner deletes the Secret.
pub(crate) const OVERLAP: i64 = 3600;

/// How many bytes a key has: as many as the hash (RFC 2104 §3: more would not add to its strength).
pub(crate) const LENGTH: usize = 32;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing before then; `None`: before the Secret changes.
    Wait(Option<Timestamp>),
    /// Create the Secret, with these fields besides its name.
    Create(Value),
    /// Merge this into it.
    Patch(Patch),
}

/// A change of the Secret.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Patch {
    /// What it does, for the log.
    pub(crate) what: &'static str,
    /// JSON merge patch (RFC 7386).
    pub(crate) body: Value,
}

/// What is to be done about the Secret, where `fresh` is a key that nobody knows. `None`: there is no Secret.
pub(crate) fn step(content: Option<&Content>, now: Timestamp, fresh: &[u8; LENGTH]) -> Step {
    let name = now.strftime("key-%Y%m%dT%H%M%SZ").to_string();
    let entry = json!({&name: ByteString(fresh.to_vec())});
    let Some(content) = content else { return Step::Create(json!({"data": entry})) };
    let patch = |what, annotations: Value, data: Value| {
        let metadata = json!({"resourceVersion": content.version, "annotations": annotations});
        Step::Patch(Patch { what, body: json!({"metadata": metadata, "data": data}) })
    };
    let names = content.usable().names;
    // Two keys in one second would have one name, and a name that is taken is never written over.
    let add = |what, annotations| match content.entries.contains_key(&name) {
        true => Step::Wait(Some(now + 1.second())),
        false => patch(what, annotations, entry),
    };
    if names.is_empty() {
        return add("a key is made: there was none", json!({ROTATE: null}));
    }
    let end = |now: Timestamp| (now + OVERLAP.seconds()).round(jiff::Unit::Second).unwrap_or(now).to_string();
    if let Some(retiring) = &content.retiring {
        let over = json!({RETIRE: null, RETIRE_AFTER: null});
        return match retiring.after {
            // Whatever else is there by now: the last key doesn't go.
            _ if names.is_subset(&retiring.names) => patch("the only keys there are stay", over, json!({})),
            Some(after) if now < after => Step::Wait(Some(after)),
            Some(_) => {
                let gone = retiring.names.iter().filter(|name| content.entries.contains_key(*name));
                patch("old keys go", over, gone.map(|name| (name.clone(), Value::Null)).collect())
            }
            None => patch("when old keys go is set anew: it was no time", json!({RETIRE_AFTER: end(now)}), json!({})),
        };
    }
    if !content.rotate || names.len() >= MAX_KEYS {
        return Step::Wait(None);
    }
    let retire: Vec<&str> = names.iter().map(String::as_str).collect();
    add("a new key is made", json!({ROTATE: null, RETIRE: retire.join(" "), RETIRE_AFTER: end(now)}))
}

#[cfg(test)]
mod tests {
    use super::super::content::tests::{merge, secret};
    use super::*;
    use k8s_openapi::api::core::v1::Secret;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const OLD: &[u8] = &[1; LENGTH];
    const FRESH: [u8; LENGTH] = [9; LENGTH];

    fn noon() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().expect("a time")
    }

    fn fresh() -> Value {
        json!({"key-20260101T120000Z": ByteString(FRESH.to_vec())})
    }

    /// What is to be done at noon about a Secret with these entries and annotations.
    fn at_noon(entries: &[(&str, &[u8])], annotations: &[(&str, &str)]) -> Step {
        step(Some(&Content::from(&secret(entries, annotations))), noon(), &FRESH)
    }

    fn patched(what: &'static str, annotations: Value, data: Value) -> Step {
        let metadata = json!({"resourceVersion": "7", "annotations": annotations});
        Step::Patch(Patch { what, body: json!({"metadata": metadata, "data": data}) })
    }

    #[test]
    fn a_key_is_made_where_there_is_none() {
        assert_eq!(step(None, noon(), &FRESH), Step::Create(json!({"data": fresh()})));
        for entries in [&[][..], &[("a", &b"short"[..])]] {
            let expected = patched("a key is made: there was none", json!({ROTATE: null}), fresh());
            assert_eq!(at_noon(entries, &[]), expected);
        }
        assert_eq!(at_noon(&[("a", OLD)], &[]), Step::Wait(None));
    }

    #[test]
    fn a_new_key_comes_beside_the_old_one_which_goes_an_hour_later() {
        let (one, two) = ("2026-01-01T13:00:00Z", "2026-01-01T11:59:59Z");
        let annotations = json!({ROTATE: null, RETIRE: "a", RETIRE_AFTER: one});
        assert_eq!(at_noon(&[("a", OLD)], &[(ROTATE, "now")]), patched("a new key is made", annotations, fresh()));
        let both: &[(&str, &[u8])] = &[("a", OLD), ("b", &FRESH)];
        let under_way = |after| [(RETIRE, "a"), (RETIRE_AFTER, after)];
        assert_eq!(at_noon(both, &under_way(one)), Step::Wait(Some(one.parse().expect("a time"))));
        let over = json!({RETIRE: null, RETIRE_AFTER: null});
        assert_eq!(at_noon(both, &under_way(two)), patched("old keys go", over, json!({"a": null})));
    }

    #[test]
    fn what_is_asked_for_meanwhile_waits_for_its_turn() {
        let after = "2026-01-01T12:30:00Z";
        let both: &[(&str, &[u8])] = &[("a", OLD), ("b", &FRESH)];
        let asked = at_noon(both, &[(ROTATE, ""), (RETIRE, "a"), (RETIRE_AFTER, after)]);
        assert_eq!(asked, Step::Wait(Some(after.parse().expect("a time"))));
        let full: &[(&str, &[u8])] = &[("a", OLD), ("b", &FRESH), ("c", &[3; LENGTH])];
        assert_eq!(at_noon(full, &[(ROTATE, "")]), Step::Wait(None), "there is no room for another one");
    }

    #[test]
    fn the_last_key_never_goes_and_a_name_is_never_written_over() {
        let over = json!({RETIRE: null, RETIRE_AFTER: null});
        let past = [(RETIRE, "a b"), (RETIRE_AFTER, "2026-01-01T11:00:00Z")];
        let both: &[(&str, &[u8])] = &[("a", OLD), ("b", &FRESH)];
        assert_eq!(at_noon(both, &past), patched("the only keys there are stay", over, json!({})));
        let taken: &[(&str, &[u8])] = &[("key-20260101T120000Z", OLD)];
        assert_eq!(at_noon(taken, &[(ROTATE, "")]), Step::Wait(Some(noon() + 1.second())));
        let later = json!({RETIRE_AFTER: "2026-01-01T13:00:00Z"});
        let unclear = at_noon(both, &[(RETIRE, "a"), (RETIRE_AFTER, "soon")]);
        assert_eq!(unclear, patched("when old keys go is set anew: it was no time", later, json!({})));
    }

    /// What the API server makes of a step: nothing, a new Secret, or a merged one.
    fn done(before: Option<Secret>, step: &Step) -> Option<Secret> {
        let mut object = match (&before, step) {
            (_, Step::Wait(_)) => return before,
            (_, Step::Create(fields)) => json!({"metadata": {"resourceVersion": "1"}, "data": fields["data"]}),
            (Some(before), Step::Patch(_)) => serde_json::to_value(before).expect("JSON"),
            (None, Step::Patch(_)) => panic!("there is nothing to patch"),
        };
        if let Step::Patch(Patch { body, .. }) = step {
            let version = object["metadata"]["resourceVersion"].clone();
            assert_eq!(body["metadata"]["resourceVersion"], version);
            merge(&mut object, body);
            let version: u64 = version.as_str().expect("text").parse().expect("a number");
            object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        }
        Some(serde_json::from_value(object).expect("a Secret"))
    }

    proptest! {
        /// However often rotations are asked for, and whatever is asked for meanwhile.
        #[test]
        fn contents_less_than_an_overlap_apart_have_a_key_in_common_and_rotations_end(
            requests in proptest::collection::vec(0..4 * OVERLAP, 0..12),
            pace in 1..OVERLAP / 4,
        ) {
            let requests: BTreeSet<i64> = requests.into_iter().map(|at| at / pace).collect();
            let mut secret: Option<Secret> = None;
            let mut history: Vec<(i64, BTreeSet<Vec<u8>>)> = Vec::new();
            let mut counter = 0u64;
            // Each request takes an overlap at most, and twelve follow each other.
            for tick in 0.. {
                let now = noon() + (tick * pace).seconds();
                if let Some(secret) = secret.as_mut().filter(|_| requests.contains(&tick)) {
                    let annotations = secret.metadata.annotations.get_or_insert_default();
                    annotations.insert(ROTATE.into(), "please".into());
                }
                // Whatever can be done now is done now.
                let is_over = loop {
                    counter += 1;
                    let mut fresh = [0; LENGTH];
                    fresh[..8].copy_from_slice(&counter.to_be_bytes());
                    let step = step(secret.as_ref().map(Content::from).as_ref(), now, &fresh);
                    if let Step::Wait(until) = step {
                        break until.is_none() && tick * pace > 4 * OVERLAP;
                    }
                    secret = done(secret, &step);
                    let content = Content::from(secret.as_ref().expect("one is there"));
                    let usable = content.usable();
                    prop_assert_eq!(usable.problems, vec![]);
                    let keys: BTreeSet<Vec<u8>> = content.entries.values().cloned().collect();
                    prop_assert!((1..=2).contains(&keys.len()), "{:?}", content);
                    history.push((tick * pace, keys));
                };
                prop_assert!(tick * pace < 30 * OVERLAP, "it does not come to rest");
                if is_over {
                    break;
                }
            }
            for (index, (since, keys)) in history.iter().enumerate() {
                // Each earlier one that was still there less than an overlap ago.
                for (earlier, next) in history[..index].iter().zip(&history[1..=index]) {
                    let gap = since - next.0;
                    prop_assert!(gap >= OVERLAP || !keys.is_disjoint(&earlier.1), "parted after {} s", gap);
                }
            }
        }
    }
}
