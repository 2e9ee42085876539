//! The observed objects → the snapshots of the dataplane and the speaker.
//!
//! | room | contents |
//! |---|---|
//! | [`stores`] | the watches and their tables |
//! | [`snapshots`] | both snapshots of everything at once (pure) |
//! | [`composition`] | the same, kept up to date with each change (pure) |
//! | [`composer`] | the task that sends new snapshots |

pub(crate) mod composer;
mod composition;
mod snapshots;
pub(crate) mod stores;

use std::collections::BTreeSet;

use crds::Backend;
use kube::Client;
use observe::Wake;
use tokio::task::JoinSet;

pub(crate) use composer::Composer;
pub(crate) use stores::Stores;

/// What the agent of a node would program.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its snapshot, in which no node is dead: only speakers know of deaths.
    pub snapshot: dataplane::Snapshot,
    /// Whether the cluster has a node of this name.
    pub is_known: bool,
}

/// Composes the dataplane's snapshot of `node` once, from the objects as they are now. Waits for the API server for as long
/// as it takes.
pub async fn plan_once(client: &Client, node: &str, backend: Backend, counts: bool) -> Planned {
    let wake = Wake::default();
    let mut listener = wake.listener();
    let stores = Stores::new(&wake);
    let mut watches = JoinSet::new();
    stores.watch(client, &mut watches);
    let observed = loop {
        if let Some(observed) = stores.observed() {
            break observed;
        }
        listener.wait().await;
    };
    let is_known = observed.nodes.contains_key(node);
    let (mut snapshot, _) = snapshots::snapshots(node, backend, observed, BTreeSet::new());
    snapshot.counts = counts;
    Planned { snapshot, is_known }
}
