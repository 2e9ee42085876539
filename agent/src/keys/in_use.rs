//! Sends the keys of the Secret to an agent's speaker, and logs why keys are missing.
//!
//! The last keys stay in use when the Secret is deleted or has no usable key, and when the API server is unreachable.
//! Otherwise the speakers would no longer accept each other's Hellos. [`KeysInUse::update`] decides, [`publish_keys`]
//! waits, logs and sends.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context, Result};
use speaker::Keys;
use tokio::sync::watch;

use super::secret::{EntryProblem, UsableKeys};
use super::{KeySecret, SecretState};

/// The keys in use, and the problems of the entries that are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeysInUse {
    /// Empty until the first key is observed.
    pub(crate) keys: Arc<Keys>,
    /// The names of the entries that contain these keys.
    pub(crate) names: BTreeSet<String>,
    pub(crate) problems: Vec<EntryProblem>,
    /// Whether the Secret has no usable key now. If keys are in use, they are from an earlier version of the Secret.
    pub(crate) are_missing: bool,
}

impl KeysInUse {
    /// The keys in use after the Secret has changed to this state.
    fn update(&self, state: &SecretState) -> Self {
        let UsableKeys { keys, names, problems } = match state {
            SecretState::Unknown => return self.clone(),
            SecretState::Missing => UsableKeys::default(),
            SecretState::Present(view) => view.usable_keys(),
        };
        if names.is_empty() {
            Self { problems, are_missing: true, ..self.clone() }
        } else {
            Self { keys: Arc::new(keys), names, problems, are_missing: false }
        }
    }
}

/// Sends the keys when they change, and logs each change of the keys and of the problems.
pub(crate) async fn publish_keys(
    secret: KeySecret,
    mut state_rx: watch::Receiver<SecretState>,
    keys_tx: watch::Sender<Arc<Keys>>,
    in_use_tx: watch::Sender<KeysInUse>,
) -> Result<Infallible> {
    loop {
        let before = in_use_tx.borrow().clone();
        let after = before.update(&state_rx.borrow_and_update());
        if before != after {
            log_changes(&secret, &before, &after);
            if before.keys != after.keys {
                keys_tx.send_replace(Arc::clone(&after.keys));
            }
            in_use_tx.send_replace(after);
        }
        state_rx.changed().await.context("the watch of the Hello keys has ended")?;
    }
}

fn log_changes(secret: &KeySecret, before: &KeysInUse, after: &KeysInUse) {
    for problem in after.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        tracing::warn!(%secret, %problem, "ignoring an entry of the Secret");
    }
    let names = &after.names;
    if before.names != *names || before.keys != after.keys {
        tracing::info!(%secret, ?names, "sealing Hellos with these keys");
    }
    if after.are_missing && !before.are_missing {
        if after.keys.is_empty() {
            tracing::warn!(%secret, "no Hello key yet, so nothing is announced; a controller creates the Secret");
        } else {
            tracing::warn!(%secret, ?names, "the Secret has no Hello key; keeping the last ones");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SecretView;
    use super::super::secret::tests::secret;
    use super::*;

    const A: &[u8] = &[1; 32];
    const B: &[u8] = &[2; 32];

    fn present(entries: &[(&str, &[u8])]) -> SecretState {
        SecretState::Present(Arc::new(SecretView::from(&secret(entries, &[]))))
    }

    /// The names in use after these states, whether the last state had no key, and the number of problems.
    fn in_use_after(states: &[SecretState]) -> (Vec<String>, bool, usize) {
        let in_use = states.iter().fold(KeysInUse::default(), |in_use, state| in_use.update(state));
        assert_eq!(in_use.names.is_empty(), in_use.keys.is_empty());
        (in_use.names.into_iter().collect(), in_use.are_missing, in_use.problems.len())
    }

    #[test]
    fn the_last_keys_stay_when_the_secret_has_none() {
        let (a, b) = (present(&[("a", A)]), present(&[("b", B)]));
        let (empty, bad) = (present(&[]), present(&[("c", b"short")]));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (states, expected) in [
            (vec![SecretState::Unknown], (names(&[]), false, 0)),
            (vec![SecretState::Missing], (names(&[]), true, 0)),
            (vec![bad.clone()], (names(&[]), true, 1)),
            (vec![SecretState::Missing, a.clone()], (names(&["a"]), false, 0)),
            (vec![a.clone(), SecretState::Missing], (names(&["a"]), true, 0)),
            (vec![a.clone(), empty], (names(&["a"]), true, 0)),
            (vec![a.clone(), bad], (names(&["a"]), true, 1)),
            (vec![a.clone(), SecretState::Missing, b], (names(&["b"]), false, 0)),
            (vec![a, present(&[("a", A), ("b", B)])], (names(&["a", "b"]), false, 0)),
        ] {
            assert_eq!(in_use_after(&states), expected, "{states:?}");
        }
    }

    #[tokio::test]
    async fn only_changed_keys_are_sent_to_the_speaker() {
        let service = tower::service_fn(async |_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>().await
        });
        let secret_ref =
            KeySecret { client: kube::Client::new(service, "default"), namespace: "landfall-system".into() };
        let (state_tx, state_rx) = watch::channel(SecretState::Unknown);
        let (keys_tx, mut keys_rx) = watch::channel(Arc::default());
        let story = async {
            state_tx.send_replace(present(&[("a", A)]));
            keys_rx.changed().await.expect("keys");
            assert_eq!(**keys_rx.borrow_and_update(), Keys::new([A]).expect("keys"));
            state_tx.send_replace(SecretState::Missing);
            state_tx.send_replace(present(&[("a", A), ("nothing", b"")]));
            state_tx.send_replace(present(&[("a", A), ("b", B)]));
            keys_rx.changed().await.expect("keys");
            assert_eq!(**keys_rx.borrow_and_update(), Keys::new([A, B]).expect("keys"));
        };
        tokio::select! {
            ended = publish_keys(secret_ref, state_rx, keys_tx, watch::Sender::default()) => panic!("{ended:?}"),
            () = story => {}
        }
    }
}
