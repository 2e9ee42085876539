//! The loop: wake → read → plan → diff → apply → publish.
//!
//! One task, which owns a [`Kernel`] and lends it to a blocking thread for each step. It wakes when something else is
//! wanted, when routes, rules or links change, and from time to time. Where there is only one way back, it does nothing
//! but to wait for other wishes.
//!
//! Cancel safe: dropped in the middle of a step, the step still finishes; the next start reads what is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::kernel::{Error, Kernel, Settled};
use super::{Gap, Mask, Return, Wanted};
use crate::netlink::notices::Notices;
use crate::run::{blocking, cause};

/// How long to wait for the end of a burst of changes: a link that comes up brings several routes.
const SETTLE: Duration = Duration::from_millis(100);
/// A pause is this many times as long as reading took, so that a router whose routes change all the time spends a
/// fiftieth of a core on this.
const PAUSE_PER_READ: u32 = 50;
/// How often to look although nothing is told: what is told may be lost.
const CHECK: Duration = Duration::from_secs(30);
/// After how long to try again what failed.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps rules and routes as the latest wish needs them, until nobody can wish any more; `returns` are the links whose
/// connections may be marked, `gaps` where that is not enough. Nothing is done before the first wish that is not `None`: what the kernel has from before
/// stays. Without a mask nothing is wanted.
///
/// # Errors
/// If there is no way to talk to the kernel at all. What fails later is logged and tried again.
pub async fn run(
    mut wanted: watch::Receiver<Option<Wanted>>,
    returns: watch::Sender<Arc<BTreeSet<Return>>>,
    gaps: watch::Sender<BTreeSet<Gap>>,
    mask: Option<Mask>,
) -> Result<(), Error> {
    let mut kernel = blocking(Kernel::open).await?;
    let notices = blocking(Notices::open).await?;
    let notices = notices.watched()?;
    loop {
        let now = wanted.borrow_and_update().clone();
        let Some(now) = now else {
            if wanted.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        let now = if mask.is_some() { now } else { Wanted::default() };
        let follows = now.links.len() > 1 && !now.families.is_empty();
        let began = Instant::now();
        // What has been told so far is about to be read.
        notices.get_ref().drain();
        let done;
        (kernel, done) = blocking(move || {
            let done = kernel.settle(&now, mask.unwrap_or_default());
            (kernel, done)
        })
        .await;
        let wake = match done {
            Ok(settled) => {
                publish(settled, &returns, &gaps);
                follows.then(|| Instant::now() + CHECK)
            }
            Err(error) => {
                let cause = cause(&error);
                tracing::warn!(%error, cause, retry_in = ?RETRY, "answers may leave by another link than requests came in by");
                Some(Instant::now() + RETRY)
            }
        };
        let pause = SETTLE.max(began.elapsed() * PAUSE_PER_READ);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            Ok(mut ready) = notices.readable(), if follows => {
                ready.clear_ready();
                sleep(pause).await;
            }
            () = sleep_until(wake.unwrap_or(began)), if wake.is_some() => {}
        }
    }
}

/// Says what there is now, and what is new of it.
fn publish(settled: Settled, to: &watch::Sender<Arc<BTreeSet<Return>>>, told: &watch::Sender<BTreeSet<Gap>>) {
    let Settled { returns, gaps, changes } = settled;
    if changes > 0 {
        tracing::info!(changes, links = ?returns, "changed the routes of answers");
    }
    told.send_if_modified(|known| {
        for gap in gaps.difference(known) {
            match gap {
                Gap::NoRouter(..) => tracing::info!("{gap}"),
                _ => tracing::warn!("{gap}"),
            }
        }
        let news = *known != gaps;
        *known = gaps;
        news
    });
    to.send_if_modified(|known| {
        let news = **known != returns;
        if news {
            *known = Arc::new(returns);
        }
        news
    });
}
