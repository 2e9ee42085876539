//! The identifiers of this cluster and of this start of the agent: other clusters and earlier starts have others.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use model::pacing::Backoff;
use observe::{await_response, error_chain};
use tokio::time::sleep;

use crate::config::API_TIMEOUT;

/// The first and the longest pause between two requests. The agent can do nothing before the API server answers.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The UID of the namespace `kube-system`, which every cluster has and keeps. Retries until the API server answers.
pub(crate) async fn cluster_uid(client: &Client) -> String {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match await_response(API_TIMEOUT, namespaces.get("kube-system")).await {
            Ok(namespace) => return namespace.metadata.uid.unwrap_or_default(),
            Err(error) => {
                let (error, pause) = (error_chain(&error), backoff.fail());
                tracing::warn!(
                    error,
                    retry_in = ?pause,
                    "cannot read the namespace kube-system, which identifies the cluster"
                );
                sleep(pause).await;
            }
        }
    }
}

/// A random number for this start of the agent. Peers forget the claims of an earlier incarnation.
pub(crate) fn incarnation() -> u64 {
    // The standard library seeds its hash maps at random, which saves a dependency.
    RandomState::new().build_hasher().finish()
}
