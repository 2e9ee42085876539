//! The identifiers of this cluster and of this start of the agent. They distinguish the cluster from other clusters,
//! and the start from earlier ones.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use model::pacing::Backoff;
use observe::{await_response, error_chain};
use tokio::time::sleep;

use crate::config::API_TIMEOUT;

/// The delay after the first failed request. It is short, because the agent can do nothing before the API server
/// answers.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay between two requests.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Returns the UID of the namespace `kube-system`. Every cluster has this namespace, and never replaces it. Repeats the
/// request until it succeeds.
pub(crate) async fn cluster_uid(client: &Client) -> String {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    loop {
        match await_response(API_TIMEOUT, namespaces.get("kube-system")).await {
            Ok(namespace) => return namespace.metadata.uid.unwrap_or_default(),
            Err(error) => {
                let (error, delay) = (error_chain(&error), backoff.fail());
                tracing::warn!(
                    error,
                    retry_in = ?delay,
                    "cannot read the namespace kube-system, which identifies the cluster"
                );
                sleep(delay).await;
            }
        }
    }
}

/// Returns a random number for this start of the agent. Peers forget the claims of an earlier incarnation.
pub(crate) fn incarnation() -> u64 {
    // The number is the random seed of hash maps in the standard library, so no further dependency is needed.
    RandomState::new().build_hasher().finish()
}
