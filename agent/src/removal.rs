//! Detects that Landfall is being removed from the cluster. Then an agent that stops leaves nothing in the kernel.
//!
//! `kubectl delete -f`, `helm uninstall` and `kubectl delete namespace` delete everything at once. So the rights of the
//! agent may end before its pod does, and the API server then refuses its requests. An open watch outlives these
//! rights, and reports the deletion of the DaemonSet before the kubelet stops the pod.

use std::convert::Infallible;
use std::time::Duration;

use crds::LoadBalancerIP;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use observe::{OneObject, ReadBy, Seen, watch_one};
use tokio::sync::watch;

/// The name of the DaemonSet of the agents. A Role in deploy/landfall.yaml contains it, too.
const DAEMON_SET: &str = "landfall-node";

/// Timeout for the response to one request of the watch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest delay between two attempts to watch.
const LONGEST_DELAY: Duration = Duration::from_secs(20);

/// The DaemonSet of the agents, as last observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DaemonSetState {
    /// Never observed: the API server has not answered, or other means start the agents.
    #[default]
    Unknown,
    Present,
    /// It existed, and it is being deleted or no longer exists.
    Removed,
}

/// Watches the DaemonSet of the agents, and sends each new state to `state_tx`. While the API server does not answer,
/// the last state stays.
pub(crate) async fn watch_daemon_set(
    client: Client,
    namespace: String,
    state_tx: watch::Sender<DaemonSetState>,
) -> Infallible {
    let object = OneObject {
        api: Api::<DaemonSet>::namespaced(client, &namespace),
        name: DAEMON_SET,
        read_by: ReadBy::List,
        response_timeout: RESPONSE_TIMEOUT,
        longest_delay: LONGEST_DELAY,
    };
    watch_one(&object, |seen| {
        if let Seen::Failing(error) = &seen {
            let advice = "check that the Role landfall-node of deploy/landfall.yaml exists";
            tracing::warn!(namespace, error, advice, "cannot watch the DaemonSet {DAEMON_SET}");
        }
        state_tx.send_if_modified(|known| {
            let next = known.apply_report(&seen);
            std::mem::replace(known, next) != next
        });
    })
    .await
}

impl DaemonSetState {
    /// The state after a report of the watch.
    fn apply_report(self, seen: &Seen<DaemonSet>) -> Self {
        match (seen, self) {
            (Seen::Present(object), _) if object.metadata.deletion_timestamp.is_none() => Self::Present,
            (Seen::Present(_) | Seen::Deleted, _) | (Seen::Missing, Self::Present) => Self::Removed,
            (Seen::Missing | Seen::Failing(_), known) => known,
        }
    }
}

/// Whether Landfall is being removed from the cluster: its DaemonSet or namespace is being deleted, its definitions are
/// gone, or no LoadBalancerIP is left. A request that the API server refuses proves nothing.
pub(crate) async fn is_removed(client: &Client, namespace: &str, daemon_set: DaemonSetState) -> bool {
    if daemon_set == DaemonSetState::Removed {
        return true;
    }
    let addresses = Api::<LoadBalancerIP>::all(client.clone()).list(&ListParams::default().limit(1)).await;
    if addresses.map_or_else(|error| is_missing(&error), |list| list.items.is_empty()) {
        return true;
    }
    // Kubernetes deletes the pods of a namespace before its other objects.
    let namespace = Api::<Namespace>::all(client.clone()).get_opt(namespace).await;
    namespace.is_ok_and(|found| found.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}

/// Whether the API server does not know the kind.
fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::DaemonSetState::{Present, Removed, Unknown};
    use super::*;

    fn daemon_set(is_deleting: bool) -> Seen<DaemonSet> {
        let mut object = DaemonSet::default();
        object.metadata.deletion_timestamp = is_deleting.then_some(Time(Timestamp::UNIX_EPOCH));
        Seen::Present(object)
    }

    #[test]
    fn only_a_daemon_set_that_existed_is_removed() {
        for (reports, expected) in [
            (vec![], Unknown),
            (vec![Seen::Failing("no route".into())], Unknown),
            (vec![Seen::Missing], Unknown),
            (vec![daemon_set(false)], Present),
            (vec![daemon_set(false), Seen::Failing("401".into())], Present),
            (vec![daemon_set(false), Seen::Deleted], Removed),
            (vec![daemon_set(false), Seen::Missing], Removed),
            (vec![daemon_set(true)], Removed),
            (vec![daemon_set(false), Seen::Deleted, Seen::Failing("403".into()), Seen::Missing], Removed),
            (vec![daemon_set(false), Seen::Deleted, daemon_set(false)], Present),
        ] {
            let state = reports.iter().fold(Unknown, |known, seen| known.apply_report(seen));
            assert_eq!(state, expected, "{reports:?}");
        }
    }
}
