//! Watches the one Secret, and nothing else: that is all that its reader may do.
//!
//! One future, which ends only when it is dropped: list (of the one name), watch for a while, list again. What is known
//! stays known while the API server is away. Cancel safe.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use observe::{error_chain, jitter};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Content, NAME, Place, Seen};

/// For how long the API server is to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// For how long one watch is asked for, in seconds. A connection that died in silence is noticed when it is over; a key
/// that changes meanwhile is good for much longer.
const WATCH: u32 = 60;

/// How much longer than [`WATCH`] to wait for the end of a watch.
const GRACE: Duration = Duration::from_secs(5);

/// A watch that ends sooner than this did not work, even if it ended without an error.
const BRIEF: Duration = Duration::from_secs(1);

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Why it begins anew.
enum Trouble {
    Failed(kube::Error),
    Silent,
    /// The API server ended the watch: as a rule because the version is too old. A list helps.
    Ended,
}

/// Keeps `seen` what the Secret says, for as long as it is polled. Logs when that stops working, and when it works again.
pub(crate) async fn follow(place: Place, seen: watch::Sender<Seen>) -> Infallible {
    let secrets = place.secrets();
    let mut failing = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let ended = match list(&secrets, &seen).await {
            Ok(version) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(secret = %place, "watching the keys again");
                }
                watch_from(&secrets, version, &seen).await
            }
            Err(trouble) => Err(trouble),
        };
        if began.elapsed() > BRIEF {
            pause = FIRST_PAUSE;
        }
        let error = match ended {
            // It ran its time: the next one follows at once.
            Ok(()) if began.elapsed() > BRIEF => continue,
            Ok(()) | Err(Trouble::Ended) => None,
            Err(Trouble::Silent) => Some("the API server does not answer".to_owned()),
            Err(Trouble::Failed(error)) => Some(error_chain(&error)),
        };
        if let Some(error) = error
            && !std::mem::replace(&mut failing, true)
        {
            let advice = "check that the API server can be reached, and that the Role of deploy/landfall.yaml is there";
            tracing::warn!(secret = %place, error, advice, "can't watch the keys, and keeping those that are known");
        }
        sleep(pause.mul_f64(0.5 + jitter())).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks for it, and returns the version to go on from.
async fn list(secrets: &Api<Secret>, seen: &watch::Sender<Seen>) -> Result<String, Trouble> {
    let params = ListParams::default().fields(&format!("metadata.name={NAME}"));
    let list = timeout(ANSWER, secrets.list(&params)).await.map_err(|_| Trouble::Silent)?.map_err(Trouble::Failed)?;
    tell(seen, list.items.first().map_or(Seen::Missing, there));
    Ok(list.metadata.resource_version.unwrap_or_default())
}

/// Tells of each change until the watch is over.
async fn watch_from(secrets: &Api<Secret>, version: String, seen: &watch::Sender<Seen>) -> Result<(), Trouble> {
    let params = WatchParams::default().fields(&format!("metadata.name={NAME}")).timeout(WATCH);
    let events = timeout(ANSWER, secrets.watch(&params, &version)).await.map_err(|_| Trouble::Silent)?;
    let mut events = pin!(events.map_err(Trouble::Failed)?);
    let silence = Duration::from_secs(WATCH.into()) + GRACE;
    loop {
        let event = timeout(silence, events.try_next()).await.map_err(|_| Trouble::Silent)?;
        match event.map_err(Trouble::Failed)? {
            None => return Ok(()),
            Some(WatchEvent::Added(secret) | WatchEvent::Modified(secret)) => tell(seen, there(&secret)),
            Some(WatchEvent::Deleted(_)) => tell(seen, Seen::Missing),
            Some(WatchEvent::Bookmark(_)) => {}
            Some(WatchEvent::Error(_)) => return Err(Trouble::Ended),
        }
    }
}

fn there(secret: &Secret) -> Seen {
    Seen::There(Arc::new(Content::from(secret)))
}

fn tell(seen: &watch::Sender<Seen>, new: Seen) {
    seen.send_if_modified(|known| {
        let changed = *known != new;
        *known = new;
        changed
    });
}
