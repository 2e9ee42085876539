//! The observed objects → the snapshots of the dataplane and the speaker.
//!
//! | file | content |
//! |---|---|
//! | [`stores`] | the watches and their tables |
//! | [`composition`] | both snapshots, kept up to date with each change (pure) |
//! | [`composer`] | the task that sends new snapshots |

mod composer;
mod composition;
mod stores;

use crds::Backend;
use kube::Client;
use observe::Wake;
use tokio::task::JoinSet;

pub(crate) use composer::Composer;
pub(crate) use composition::Composition;
pub(crate) use stores::Stores;

/// The input of a node's dataplane.
#[derive(Clone, Debug)]
pub struct DataplaneInput {
    /// The snapshot. Its set of dead nodes is empty, because only speakers detect dead nodes.
    pub snapshot: dataplane::Snapshot,
    /// Whether the cluster has a node of this name.
    pub is_known: bool,
}

/// Composes the dataplane's snapshot of `node` once, from the current objects. Waits until the API server has answered.
pub async fn compose_once(client: &Client, node: &str, backend: Backend, count_traffic: bool) -> DataplaneInput {
    let wake = Wake::default();
    let mut listener = wake.listener();
    let stores = Stores::new(&wake);
    let mut watches = JoinSet::new();
    stores.watch(client, &mut watches);
    let changes = loop {
        if let Some(changes) = stores.take_changes() {
            break changes;
        }
        listener.wait().await;
    };
    let mut composition = Composition::new(node, backend, count_traffic);
    composition.apply(changes);
    DataplaneInput { snapshot: composition.dataplane.clone(), is_known: composition.has_own_node() }
}
