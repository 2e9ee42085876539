//! Hands an agent's speaker the keys of the Secret, and says on the log why there are none.
//!
//! What there was last is kept: a Secret that is gone, or has no key in it, must not part the speakers, and an agent that
//! can't ask the API server goes on. [`Supply::take`] decides, [`supply`] waits, logs and hands on.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context, Result};
use speaker::Keys;
use tokio::sync::watch;

use super::content::Problem;
use super::{Place, Seen};

/// The keys that are in use, and what is wrong with those that aren't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Supply {
    /// Those that seal and open. Empty: there has been none yet.
    pub(crate) keys: Arc<Keys>,
    /// The names of their entries.
    pub(crate) names: BTreeSet<String>,
    /// Entries that are no keys.
    pub(crate) problems: Vec<Problem>,
    /// Whether the Secret has none now, so that those in use are of an earlier one.
    pub(crate) is_bereft: bool,
}

impl Supply {
    /// What is in use when this has been seen.
    fn take(&self, seen: &Seen) -> Self {
        let bereft = |problems| Self { problems, is_bereft: true, ..self.clone() };
        match seen {
            Seen::Unknown => self.clone(),
            Seen::Missing => bereft(Vec::new()),
            Seen::There(content) => {
                let usable = content.usable();
                match usable.names.is_empty() {
                    true => bereft(usable.problems),
                    false => Self {
                        keys: Arc::new(usable.keys),
                        names: usable.names,
                        problems: usable.problems,
                        is_bereft: false,
                    },
                }
            }
        }
    }
}

/// Hands on what is seen, for as long as it is polled, and keeps `known` what is in use.
pub(crate) async fn supply(
    place: Place,
    mut seen: watch::Receiver<Seen>,
    keys: watch::Sender<Arc<Keys>>,
    known: watch::Sender<Supply>,
) -> Result<Infallible> {
    loop {
        let before = known.borrow().clone();
        let after = before.take(&seen.borrow_and_update());
        if before != after {
            log(&place, &before, &after);
            if before.keys != after.keys {
                keys.send_replace(Arc::clone(&after.keys));
            }
            known.send_replace(after);
        }
        seen.changed().await.context("nobody watches the keys")?;
    }
}

fn log(place: &Place, before: &Supply, after: &Supply) {
    for problem in after.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        tracing::warn!(secret = %place, %problem, "not every entry is a key");
    }
    let names = &after.names;
    if before.names != *names || before.keys != after.keys {
        tracing::info!(secret = %place, ?names, "sealing what is said to other nodes with these keys");
    }
    if after.is_bereft && !before.is_bereft {
        if after.keys.is_empty() {
            tracing::warn!(secret = %place, "no key yet, and without one nothing is announced: the controller makes it");
        } else {
            tracing::warn!(secret = %place, ?names, "the keys are gone; using the last ones until there are others");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Content;
    use super::super::content::tests::secret;
    use super::*;

    const A: &[u8] = &[1; 32];
    const B: &[u8] = &[2; 32];

    fn there(entries: &[(&str, &[u8])]) -> Seen {
        Seen::There(Arc::new(Content::from(&secret(entries, &[]))))
    }

    /// The names in use after these have been seen, one after the other, and whether the last one had none.
    fn after(all: &[Seen]) -> (Vec<String>, bool, usize) {
        let supply = all.iter().fold(Supply::default(), |supply, seen| supply.take(seen));
        assert_eq!(supply.names.is_empty(), supply.keys.is_empty());
        (supply.names.into_iter().collect(), supply.is_bereft, supply.problems.len())
    }

    #[test]
    fn the_keys_of_the_secret_are_used_and_the_last_ones_stay_when_it_has_none() {
        let (a, b) = (there(&[("a", A)]), there(&[("b", B)]));
        let (empty, bad) = (there(&[]), there(&[("c", b"short")]));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (seen, expected) in [
            (vec![Seen::Unknown], (names(&[]), false, 0)),
            (vec![Seen::Missing], (names(&[]), true, 0)),
            (vec![bad.clone()], (names(&[]), true, 1)),
            (vec![Seen::Missing, a.clone()], (names(&["a"]), false, 0)),
            (vec![a.clone(), Seen::Missing], (names(&["a"]), true, 0)),
            (vec![a.clone(), empty], (names(&["a"]), true, 0)),
            (vec![a.clone(), bad], (names(&["a"]), true, 1)),
            (vec![a.clone(), Seen::Missing, b], (names(&["b"]), false, 0)),
            (vec![a, there(&[("a", A), ("b", B)])], (names(&["a", "b"]), false, 0)),
        ] {
            assert_eq!(after(&seen), expected, "{seen:?}");
        }
    }

    #[tokio::test]
    async fn keys_that_change_are_handed_on_and_what_says_the_same_is_not() {
        let service = tower::service_fn(async |_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>().await
        });
        let place = Place { client: kube::Client::new(service, "default"), namespace: "landfall-system".into() };
        let (see, seen) = watch::channel(Seen::Unknown);
        let (keys, mut handed) = watch::channel(Arc::default());
        let (known, _) = watch::channel(Supply::default());
        let story = async {
            see.send_replace(there(&[("a", A)]));
            handed.changed().await.expect("keys");
            assert_eq!(**handed.borrow_and_update(), Keys::new([A]).expect("keys"));
            see.send_replace(Seen::Missing);
            see.send_replace(there(&[("a", A), ("nothing", b"")]));
            see.send_replace(there(&[("a", A), ("b", B)]));
            handed.changed().await.expect("keys");
            assert_eq!(**handed.borrow_and_update(), Keys::new([A, B]).expect("keys"));
        };
        tokio::select! {
            ended = supply(place, seen, keys, known) => panic!("{ended:?}"),
            () = story => {}
        }
    }
}
