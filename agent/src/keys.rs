//! The keys that seal Hellos: one Secret, which controllers create and rotate, and agents read.
//!
//! ```text
//!  controller: keeper --creates, rotates--> Secret landfall-hello-keys --watch--> agent: in_use --Keys--> speaker
//! ```
//!
//! | file | content |
//! |---|---|
//! | [`secret`] | the entries and annotations of the Secret, and which entries are keys (pure) |
//! | [`rotation`] | the next write to the Secret, and its time (pure) |
//! | [`keeper`] | performs these writes, in a controller |
//! | [`in_use`] | sends the keys to an agent's speaker, and logs why keys are missing |

mod in_use;
pub mod keeper;
mod rotation;
mod secret;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use observe::{OneObject, ReadBy, Seen, watch_one};
use tokio::sync::watch;

pub(crate) use in_use::{KeysInUse, publish_keys};
pub(crate) use secret::SecretView;

/// The name of the Secret. The roles in deploy/landfall.yaml contain it, too.
pub const NAME: &str = "landfall-hello-keys";

/// Timeout for the response to one request of the watch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest delay between two attempts to watch.
const LONGEST_DELAY: Duration = Duration::from_secs(20);

/// Access to the Secret.
#[derive(Clone)]
pub struct KeySecret {
    /// The client that reads and writes the Secret.
    pub client: Client,
    /// The namespace of the Secret.
    pub namespace: String,
}

impl KeySecret {
    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl fmt::Display for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{NAME}", self.namespace)
    }
}

/// The Secret as last observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SecretState {
    /// The API server has not answered yet.
    #[default]
    Unknown,
    Missing,
    Present(Arc<SecretView>),
}

/// Watches the Secret, and sends each new state to `state_tx`. While the API server does not answer, the last state
/// stays. Logs when the watch stops working, and when it works again.
pub(crate) async fn watch_secret(secret: KeySecret, state_tx: watch::Sender<SecretState>) -> Infallible {
    let object = OneObject {
        api: secret.api(),
        name: NAME,
        read_by: ReadBy::List,
        response_timeout: RESPONSE_TIMEOUT,
        longest_delay: LONGEST_DELAY,
    };
    let mut failing = false;
    watch_one(&object, |seen| {
        let state = match seen {
            Seen::Present(object) => SecretState::Present(Arc::new(SecretView::from(&object))),
            Seen::Missing | Seen::Deleted => SecretState::Missing,
            Seen::Failing(error) => {
                failing = true;
                let advice = "check that the API server is reachable, and that the Role of deploy/landfall.yaml exists";
                tracing::warn!(%secret, error, advice, "cannot watch the Hello keys; keeping the known ones");
                return;
            }
        };
        if std::mem::take(&mut failing) {
            tracing::info!(%secret, "watching the Hello keys again");
        }
        state_tx.send_if_modified(|known| std::mem::replace(known, state.clone()) != state);
    })
    .await
}
