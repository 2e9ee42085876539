//! The task that sends the dataplane and the speaker their snapshots.
//!
//! ```text
//! stores --changes--> Composition --snapshots--> dataplane, speaker
//!                       ^ dead nodes, heard nodes, reply paths
//! ```
//!
//! From this node's links, the task also derives the links that need a reply path. It sends them to the task that makes
//! the reply paths.
//! All this is one task. It waits only for these inputs, and its future can be dropped at any time.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crds::node_network::NodeNetworkSpec;
use dataplane::reply_path::{ReplyPath, ReplyPathInput};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::composition::Composition;
use super::stores::Stores;
use crate::channels::{Channels, send_if_new};

/// The longest wait for Hellos before the first snapshot of the dataplane. The composer waits until all nodes that may
/// be on this node's links have been heard. This time suffices to receive the key, and some Hellos of each node.
/// Meanwhile the kernel keeps spreading frames as before the start.
const FIRST_HELLOS_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends each new snapshot to its receiver.
pub(crate) struct Composer {
    stores: Stores,
    composition: Composition,
    dead_rx: watch::Receiver<BTreeSet<String>>,
    neighbours_rx: watch::Receiver<speaker::Neighbours>,
    network_rx: watch::Receiver<Option<NodeNetworkSpec>>,
    reply_paths_rx: watch::Receiver<Arc<BTreeSet<ReplyPath>>>,
    dataplane_tx: watch::Sender<Option<Arc<dataplane::Snapshot>>>,
    speaker_tx: watch::Sender<Option<Arc<speaker::Snapshot>>>,
    reply_links_tx: watch::Sender<Option<ReplyPathInput>>,
}

impl Composer {
    /// Creates the composer. `composition` must be empty.
    pub(crate) fn new(stores: Stores, composition: Composition, channels: &Channels) -> Self {
        Self {
            stores,
            composition,
            dead_rx: channels.dead.subscribe(),
            neighbours_rx: channels.neighbours.subscribe(),
            network_rx: channels.network.subscribe(),
            reply_paths_rx: channels.reply_paths.subscribe(),
            dataplane_tx: channels.dataplane_snapshot.clone(),
            speaker_tx: channels.speaker_snapshot.clone(),
            reply_links_tx: channels.reply_links.clone(),
        }
    }

    /// Composes the snapshots after each change of an input, and sends them. Never ends by itself.
    pub(crate) async fn run(mut self, mut listener: observe::Listener) -> Result<Infallible> {
        // The end of the wait for Hellos. The wait begins when all kinds of objects have been listed.
        let mut hellos_until = None;
        loop {
            let mut waits_until = None;
            if let Some(changes) = self.stores.take_changes() {
                self.composition.dataplane.dead = self.dead_rx.borrow_and_update().clone();
                self.composition.dataplane.reply_paths = self.reply_paths_rx.borrow_and_update().clone();
                self.composition.set_neighbours(&self.neighbours_rx.borrow_and_update());
                self.composition.set_network(self.network_rx.borrow_and_update().as_ref());
                self.composition.apply(changes);
                // A node that is missing in the first snapshot would lose connections that the kernel spreads to it. A
                // missing link would be forgotten: its packets would not count as from outside.
                let hellos_until = *hellos_until.get_or_insert_with(|| Instant::now() + FIRST_HELLOS_TIMEOUT);
                let is_waiting = Instant::now() < hellos_until
                    && !(self.composition.has_heard_all() && self.composition.knows_network());
                waits_until = is_waiting.then_some(hellos_until);
                self.send(is_waiting);
            }
            // A death is sent to the dataplane at once, without a wait for the API server or for a composition.
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = self.dead_rx.changed() => {
                        let dead = self.dead_rx.borrow_and_update().clone();
                        self.dataplane_tx.send_if_modified(|snapshot| set_dead(snapshot, dead));
                    }
                    Ok(()) = self.neighbours_rx.changed() => break,
                    () = sleep_until(waits_until.unwrap_or_else(Instant::now)), if waits_until.is_some() => break,
                    Ok(()) = self.network_rx.changed() => break,
                    Ok(()) = self.reply_paths_rx.changed() => break,
                    () = listener.wait() => break,
                }
            }
        }
    }

    /// Sends each snapshot that has changed. The dataplane gets none while its first snapshot waits for Hellos.
    fn send(&mut self, is_waiting: bool) {
        let Composition { dataplane, speaker, .. } = &self.composition;
        send_if_new(&self.reply_links_tx, self.composition.reply_links());
        if !is_waiting {
            send_if_new(&self.dataplane_tx, Some(Arc::new(dataplane.clone())));
        }
        send_if_new(&self.speaker_tx, Some(Arc::new(speaker.clone())));
    }
}

/// Sets the dead nodes of a snapshot. Returns whether they have changed.
fn set_dead(snapshot: &mut Option<Arc<dataplane::Snapshot>>, dead: BTreeSet<String>) -> bool {
    let Some(before) = snapshot.as_ref().filter(|before| before.dead != dead) else { return false };
    *snapshot = Some(Arc::new(dataplane::Snapshot { dead, ..dataplane::Snapshot::clone(before) }));
    true
}

#[cfg(test)]
mod tests {
    use super::super::stores::PeerLinkStore;
    use super::*;
    use crds::Backend;
    use dataplane::reply_path::Mask;
    use observe::{Store, Wake, source};
    use serde_json::json;
    use tokio::time::timeout;

    /// The maximum duration of an operation that takes microseconds on an idle machine.
    const SOON: Duration = Duration::from_secs(30);

    /// Stores after their first list, with one Service.
    fn stores(wake: &Wake) -> Stores {
        let service = serde_json::json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u-web", "resourceVersion": "2"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        });
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(service).expect("a Service");
        let (service, _) = source::services().observe(&service).expect("a Service");
        Stores {
            services: Store::from_list(wake, 2, [service]),
            slices: Store::from_list(wake, 1, []),
            nodes: Store::from_list(wake, 1, []),
            pools: Store::from_list(wake, 1, []),
            advertisements: Store::from_list(wake, 1, []),
            records: Store::from_list(wake, 1, []),
            peer_links: None,
        }
    }

    /// A running composer of the node n1, and its channels.
    fn composer(stores: Stores, wake: &Wake) -> (impl Future<Output = Result<Infallible>>, Channels) {
        let channels = Channels::default();
        let composition = Composition::new("n1", Backend::Endpoints, true);
        (Composer::new(stores, composition, &channels).run(wake.listener()), channels)
    }

    #[tokio::test]
    async fn a_death_reaches_the_dataplane_without_the_api_server() {
        let wake = Wake::default();
        let (running, channels) = composer(stores(&wake), &wake);
        let mut dataplane_rx = channels.dataplane_snapshot.subscribe();
        let story = async {
            let mut wait_for_dead = async |expected: &[&str]| {
                let expected: BTreeSet<String> = expected.iter().map(|node| (*node).to_owned()).collect();
                let matches = |known: &Option<Arc<dataplane::Snapshot>>| {
                    known.as_ref().is_some_and(|known| known.dead == expected && known.services.len() == 1)
                };
                timeout(SOON, dataplane_rx.wait_for(matches)).await.expect("in time").expect("a snapshot");
            };
            wait_for_dead(&[]).await;
            channels.dead.send_replace(BTreeSet::from(["n2".to_owned()]));
            wait_for_dead(&["n2"]).await;
            // A change from the API server keeps the dead nodes.
            wake.wake();
            channels.dead.send_replace(BTreeSet::from(["n2".to_owned(), "n3".to_owned()]));
            wait_for_dead(&["n2", "n3"]).await;
            channels.dead.send_replace(BTreeSet::new());
            wait_for_dead(&[]).await;
        };
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[tokio::test]
    async fn links_get_reply_paths_that_reach_the_dataplane() {
        let wake = Wake::default();
        let (running, channels) = composer(stores(&wake), &wake);
        let mut dataplane_rx = channels.dataplane_snapshot.subscribe();
        let mut reply_links_rx = channels.reply_links.subscribe();
        let link = dataplane::snapshot::LinkName::new("eth0").expect("a name");
        let story = async {
            timeout(SOON, dataplane_rx.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot");
            assert_eq!(*reply_links_rx.borrow(), None, "the network is unknown");
            let eth0 = json!({"links": [{"name": "eth0", "addresses": ["192.0.2.11/24"]}], "gateways": []});
            channels.network.send_replace(Some(serde_json::from_value(eth0).expect("a network")));
            let expected = ReplyPathInput { links: [link].into(), families: BTreeSet::new() };
            let links = timeout(SOON, reply_links_rx.wait_for(|links| links.as_ref() == Some(&expected))).await;
            links.expect("in time").expect("links");
            let family = crds::service::Family::V4;
            let all = Arc::new(BTreeSet::from([ReplyPath { family, link, mark: Mask::default().mark(1) }]));
            channels.reply_paths.send_replace(Arc::clone(&all));
            let knows = |known: &Option<Arc<dataplane::Snapshot>>| known.as_ref().is_some_and(|k| k.reply_paths == all);
            timeout(SOON, dataplane_rx.wait_for(knows)).await.expect("in time").expect("a snapshot");
        };
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_snapshot_waits_for_hellos() {
        let wake = Wake::default();
        let meta = |name: &str| json!({"name": name, "uid": format!("u-{name}"), "resourceVersion": "1"});
        let network = |last: u8| {
            let eth0 = json!({
                "name": "eth0",
                "addresses": [format!("192.0.2.{last}/24")],
                "mac": format!("02:00:00:00:00:{last:02x}"),
            });
            let (kind, name) = ("NodeNetwork", format!("n{last}"));
            let object = json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": kind, "metadata": meta(&name), "spec": {"links": [eth0]},
            });
            let object = serde_json::from_value(object).expect("a NodeNetwork");
            source::peer_links().observe(&object).expect("a NodeNetwork").0
        };
        let node = |last: u8| {
            let object = json!({"metadata": meta(&format!("n{last}"))});
            source::nodes().observe(&serde_json::from_value(object).expect("a Node")).expect("a Node").0
        };
        let mut peer_links = PeerLinkStore::new(&wake);
        peer_links.store = Store::from_list(&wake, 1, [1, 2, 3].map(network));
        let nodes = Store::from_list(&wake, 1, [1, 2, 3].map(node));
        let stores = Stores { peer_links: Some(peer_links), nodes, ..stores(&wake) };
        let (running, channels) = composer(stores, &wake);
        let mut dataplane_rx = channels.dataplane_snapshot.subscribe();
        let mut speaker_rx = channels.speaker_snapshot.subscribe();
        let mac = |last: u8| crds::MacAddr(2, 0, 0, 0, 0, last);
        let hear = |last: u8| {
            channels.neighbours.send_modify(|neighbours| {
                neighbours.record("eth0", &format!("n{last}"), mac(last));
            });
        };
        let began = Instant::now();
        let story = async {
            timeout(SOON, speaker_rx.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot");
            hear(2);
            let first = timeout(SOON, dataplane_rx.wait_for(Option::is_some))
                .await
                .expect("in time")
                .expect("a snapshot")
                .clone();
            assert!(began.elapsed() >= FIRST_HELLOS_TIMEOUT, "n3 is missing");
            let peers = |known: &dataplane::Snapshot| {
                known.links.values().flat_map(|link| link.peers.keys().cloned()).collect::<Vec<_>>()
            };
            assert_eq!(first.as_deref().map(peers), Some(vec!["n2".to_owned()]));
            hear(3);
            let knows =
                |known: &Option<Arc<dataplane::Snapshot>>| known.as_deref().is_some_and(|k| peers(k).len() == 2);
            timeout(SOON, dataplane_rx.wait_for(knows)).await.expect("in time").expect("a snapshot");
            assert!(began.elapsed() < 2 * FIRST_HELLOS_TIMEOUT, "the second snapshot does not wait");
        };
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[test]
    fn a_death_changes_nothing_else_in_the_snapshot() {
        let dead = BTreeSet::from(["n2".to_owned()]);
        let mut known = None;
        assert!(!set_dead(&mut known, dead.clone()) && known.is_none(), "no snapshot yet");
        let before = dataplane::Snapshot { node: "n1".into(), ..dataplane::Snapshot::default() };
        known = Some(Arc::new(before.clone()));
        assert!(set_dead(&mut known, dead.clone()));
        assert_eq!(known.as_deref(), Some(&dataplane::Snapshot { dead: dead.clone(), ..before }));
        assert!(!set_dead(&mut known, dead), "no change");
    }
}
