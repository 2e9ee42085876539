//! The loop: wake → read → plan → diff → apply → publish.
//!
//! One task owns a [`Routing`] and moves it to a blocking thread for each step. It wakes when the input changes, when
//! routes, rules or links change, and periodically. With a single link, it wakes only for the next input, or to retry a
//! failed step.
//!
//! Cancel safe: if the future is dropped within a step, that step still finishes, and the next start reads the kernel's
//! state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::routing::{ReplyPathError, ReplyPathState, Routing};
use super::{Gap, Mask, ReplyPath, ReplyPathInput};
use crate::error_chain::error_chain;
use crate::run::run_blocking;
use netlink::notifications::{Notifications, ROUTING};

/// The wait for the end of a burst of changes: a link that comes up brings several routes.
const BURST: Duration = Duration::from_millis(100);
/// A pause after changes, as a multiple of the duration of a step. So on a router with constant changes, the loop uses
/// at most a fiftieth of a core.
const PAUSE_PER_STEP: u32 = 50;
/// The interval of checks without a notification, since notifications can be lost.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The delay after a failed step.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Keeps rules and routes as the latest input needs them, until all senders of `input` are dropped. `reply_paths`
/// receives the links whose connections may be marked, and `gaps` the known gaps. The kernel's state does not change
/// before the first input that is not `None`. Without a mask, all our rules and routes are deleted.
///
/// # Errors
/// If there is no socket to the kernel. Later errors are logged, and the step is retried.
pub async fn run(
    mut input: watch::Receiver<Option<ReplyPathInput>>,
    reply_paths: watch::Sender<Arc<BTreeSet<ReplyPath>>>,
    gaps: watch::Sender<BTreeSet<Gap>>,
    mask: Option<Mask>,
) -> Result<(), ReplyPathError> {
    let mut routing = run_blocking(Routing::open).await?;
    let notifications = run_blocking(|| Notifications::open(ROUTING)).await?.into_async()?;
    loop {
        let now = input.borrow_and_update().clone();
        let Some(now) = now else {
            if input.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        let now = if mask.is_some() { now } else { ReplyPathInput::default() };
        let is_multi_link = now.links.len() > 1 && !now.families.is_empty();
        let start = Instant::now();
        // Discards the notifications so far: the step reads the state that they report.
        notifications.get_ref().read(|_| ());
        let result;
        (routing, result) = run_blocking(move || {
            let result = routing.apply(&now, mask.unwrap_or_default());
            (routing, result)
        })
        .await;
        let wake = match result {
            Ok(state) => {
                publish(state, &reply_paths, &gaps);
                is_multi_link.then(|| Instant::now() + CHECK_INTERVAL)
            }
            Err(error) => {
                let cause = error_chain(&error);
                let retry_in = RETRY_DELAY;
                tracing::warn!(%error, cause, ?retry_in, "replies may leave by another link than the requests");
                Some(Instant::now() + RETRY_DELAY)
            }
        };
        let pause = BURST.max(start.elapsed() * PAUSE_PER_STEP);
        tokio::select! {
            changed = input.changed() => if changed.is_err() { return Ok(()) },
            Ok(mut ready) = notifications.readable(), if is_multi_link => {
                ready.clear_ready();
                sleep(pause).await;
            }
            () = sleep_until(wake.unwrap_or(start)), if wake.is_some() => {}
        }
    }
}

/// Publishes the state, and logs new gaps.
fn publish(
    state: ReplyPathState,
    reply_paths_tx: &watch::Sender<Arc<BTreeSet<ReplyPath>>>,
    gaps_tx: &watch::Sender<BTreeSet<Gap>>,
) {
    let ReplyPathState { reply_paths, gaps, changes } = state;
    if changes > 0 {
        tracing::info!(changes, links = ?reply_paths, "changed the routes of replies");
    }
    gaps_tx.send_if_modified(|known| {
        for gap in gaps.difference(known) {
            match gap {
                Gap::NoRouter(..) => tracing::info!("{gap}"),
                _ => tracing::warn!("{gap}"),
            }
        }
        let is_changed = *known != gaps;
        *known = gaps;
        is_changed
    });
    reply_paths_tx.send_if_modified(|known| {
        let is_changed = **known != reply_paths;
        if is_changed {
            *known = Arc::new(reply_paths);
        }
        is_changed
    });
}
