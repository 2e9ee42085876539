//! Tells the dataplane and the speaker what concerns them, whenever that changes.
//!
//! ```text
//! stores --changes--> Composition --snapshots--> dataplane, speaker
//!                       ^ who is dead, who was met, which links answers are led back by
//! ```
//!
//! One task, which waits for nothing else. Cancel safe.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crds::Backend;
use crds::node_network::NodeNetworkSpec;
use dataplane::reply_path::{ReplyPath, ReplyPathInput};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::composition::Composition;
use super::snapshots::wanted;
use super::stores::Stores;

/// How long an agent that starts waits for Hellos of those who may be on its links, before it hands frames to the others
/// alone: some intervals of Hellos, and the time that it takes to get the key. The kernel goes on as it was until then.
const ACQUAINTANCE: Duration = Duration::from_secs(1);

/// Sends new snapshots whenever something changed that matters to those who get them.
pub(crate) struct Composer {
    pub(crate) stores: Stores,
    pub(crate) inputs: Inputs,
    pub(crate) outputs: Outputs,
}

/// What is known beside what the API server says.
pub(crate) struct Inputs {
    /// The nodes that the speaker says are dead.
    pub(crate) dead: watch::Receiver<BTreeSet<String>>,
    /// Which nodes it has met on which link.
    pub(crate) neighbours: watch::Receiver<speaker::Neighbours>,
    /// What is on this node's network.
    pub(crate) network: watch::Receiver<Option<NodeNetworkSpec>>,
    /// The links by which answers are led back.
    pub(crate) returned: watch::Receiver<Arc<BTreeSet<ReplyPath>>>,
}

/// Who is told.
pub(crate) struct Outputs {
    pub(crate) dataplane: watch::Sender<Option<Arc<dataplane::Snapshot>>>,
    pub(crate) speaker: watch::Sender<Option<Arc<speaker::Snapshot>>>,
    /// The links by which answers should be led back.
    pub(crate) wanted: watch::Sender<Option<ReplyPathInput>>,
}

impl Composer {
    /// Composes for `node`, as its options say: what packets to Services that don't say so are sent to, and whether they are
    /// counted.
    pub(crate) async fn run(
        self,
        (node, backend, counts): (String, Backend, bool),
        mut listener: observe::Listener,
    ) -> Result<Infallible> {
        let Self { stores, mut inputs, outputs } = self;
        let mut composition = Composition::new(&node, backend, counts);
        // Until when the dataplane waits for those who may be on the links, once all else is known.
        let mut patience = None;
        loop {
            let mut waits = None;
            if let Some(changes) = stores.take_changes() {
                composition.set_dead(inputs.dead.borrow_and_update().clone());
                composition.set_returns(inputs.returned.borrow_and_update().clone());
                composition.set_neighbours(&inputs.neighbours.borrow_and_update());
                composition.apply(changes);
                // The kernel spreads frames since before: who will be met in a moment must not be missing meanwhile.
                let patience = *patience.get_or_insert_with(|| Instant::now() + ACQUAINTANCE);
                let waiting = Instant::now() < patience && !composition.has_met_all();
                waits = waiting.then_some(patience);
                let known = composition.dataplane();
                let wanted = inputs.network.borrow_and_update().as_ref().map(|network| wanted(network, known));
                outputs.wanted.send_if_modified(|known| std::mem::replace(known, wanted.clone()) != wanted);
                if waits.is_none() {
                    send_if_new(&outputs.dataplane, known);
                }
                send_if_new(&outputs.speaker, composition.speaker());
            }
            // A death waits for nothing else: neither for the API server, nor for all that is known to be looked at.
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = inputs.dead.changed() => {
                        let dead = inputs.dead.borrow_and_update().clone();
                        outputs.dataplane.send_if_modified(|known| bury(known, dead));
                    }
                    Ok(()) = inputs.neighbours.changed() => break,
                    () = sleep_until(waits.unwrap_or_else(Instant::now)), if waits.is_some() => break,
                    Ok(()) = inputs.network.changed() => break,
                    Ok(()) = inputs.returned.changed() => break,
                    () = listener.wait() => break,
                }
            }
        }
    }
}

/// Says in what the dataplane knows who is dead. Returns whether that is news.
fn bury(known: &mut Option<Arc<dataplane::Snapshot>>, dead: BTreeSet<String>) -> bool {
    let Some(before) = known.as_ref().filter(|known| known.dead != dead) else { return false };
    *known = Some(Arc::new(dataplane::Snapshot { dead, ..dataplane::Snapshot::clone(before) }));
    true
}

fn send_if_new<T: PartialEq + Clone>(to: &watch::Sender<Option<Arc<T>>>, new: &T) {
    to.send_if_modified(|current| {
        let changed = current.as_deref() != Some(new);
        if changed {
            *current = Some(Arc::new(new.clone()));
        }
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::super::stores::Wirings;
    use super::*;
    use dataplane::reply_path::Mask;
    use observe::{Store, Wake, source};
    use serde_json::json;
    use tokio::time::timeout;

    /// How long anything may take that takes microseconds, on a machine that does something else.
    const SOON: Duration = Duration::from_secs(30);

    /// Stores that have been listed once, and have one Service without anything.
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
            addresses: Store::from_list(wake, 1, []),
            wirings: None,
        }
    }

    /// What a composer is told beside what is in its stores, and what it tells.
    struct Around {
        dead: watch::Sender<BTreeSet<String>>,
        neighbours: watch::Sender<speaker::Neighbours>,
        network: watch::Sender<Option<NodeNetworkSpec>>,
        returned: watch::Sender<Arc<BTreeSet<ReplyPath>>>,
        dataplane: watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
        speaker: watch::Receiver<Option<Arc<speaker::Snapshot>>>,
        wanted: watch::Receiver<Option<ReplyPathInput>>,
    }

    /// One for the node n1.
    fn composer(stores: Stores, wake: &Wake) -> (impl Future<Output = Result<Infallible>>, Around) {
        let (dead, buried) = watch::channel(BTreeSet::new());
        let (neighbours, met) = watch::channel(speaker::Neighbours::default());
        let (network, found) = watch::channel(None);
        let (returned, returns) = watch::channel(Arc::default());
        let (to_dataplane, dataplane) = watch::channel(None);
        let (to_speaker, speaker) = watch::channel(None);
        let (wish, wanted) = watch::channel(None);
        let inputs = Inputs { dead: buried, neighbours: met, network: found, returned: returns };
        let outputs = Outputs { dataplane: to_dataplane, speaker: to_speaker, wanted: wish };
        let composer = Composer { stores, inputs, outputs };
        let composes = composer.run(("n1".into(), Backend::Endpoints, true), wake.listener());
        (composes, Around { dead, neighbours, network, returned, dataplane, speaker, wanted })
    }

    #[tokio::test]
    async fn a_death_reaches_the_dataplane_without_a_word_from_the_api_server() {
        let wake = Wake::default();
        let (composes, mut around) = composer(stores(&wake), &wake);
        let (dead, told) = (around.dead, &mut around.dataplane);
        let story = async {
            let mut is_told = async |expected: &[&str]| {
                let expected: BTreeSet<String> = expected.iter().map(|node| (*node).to_owned()).collect();
                let said = |known: &Option<Arc<dataplane::Snapshot>>| {
                    known.as_ref().is_some_and(|known| known.dead == expected && known.services.len() == 1)
                };
                timeout(SOON, told.wait_for(said)).await.expect("in time").expect("a snapshot");
            };
            is_told(&[]).await;
            dead.send_replace(BTreeSet::from(["n2".to_owned()]));
            is_told(&["n2"]).await;
            // Who is dead stays so when the API server tells of something else.
            wake.wake();
            dead.send_replace(BTreeSet::from(["n2".to_owned(), "n3".to_owned()]));
            is_told(&["n2", "n3"]).await;
            dead.send_replace(BTreeSet::new());
            is_told(&[]).await;
        };
        tokio::select! {
            ended = composes => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[tokio::test]
    async fn what_is_on_the_network_is_wished_for_and_what_is_led_back_reaches_the_dataplane() {
        let wake = Wake::default();
        let (composes, around) = composer(stores(&wake), &wake);
        let Around { network: found, returned: returns, dataplane: mut told, mut wanted, .. } = around;
        let link = dataplane::snapshot::LinkName::new("eth0").expect("a name");
        let story = async {
            timeout(SOON, told.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot");
            assert_eq!(*wanted.borrow(), None, "nothing is known of the network");
            let eth0 = json!({"links": [{"name": "eth0", "addresses": ["192.0.2.11/24"]}], "gateways": []});
            found.send_replace(Some(serde_json::from_value(eth0).expect("a network")));
            let expected = ReplyPathInput { links: [link].into(), families: BTreeSet::new() };
            let is_wished = timeout(SOON, wanted.wait_for(|wanted| wanted.as_ref() == Some(&expected))).await;
            is_wished.expect("in time").expect("a wish");
            let family = crds::service::Family::V4;
            let all = Arc::new(BTreeSet::from([ReplyPath { family, link, mark: Mask::default().mark(1) }]));
            returns.send_replace(Arc::clone(&all));
            let knows = |known: &Option<Arc<dataplane::Snapshot>>| known.as_ref().is_some_and(|k| k.reply_paths == all);
            timeout(SOON, told.wait_for(knows)).await.expect("in time").expect("a snapshot");
        };
        tokio::select! {
            ended = composes => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_dataplane_waits_a_moment_for_those_who_may_be_on_the_link_and_gets_who_was_met() {
        let wake = Wake::default();
        let meta = |name: &str| json!({"name": name, "uid": format!("u-{name}"), "resourceVersion": "1"});
        let wiring = |last: u8| {
            let eth0 = json!({
                "name": "eth0", "addresses": [format!("192.0.2.{last}/24")], "mac": format!("02:00:00:00:00:{last:02x}"),
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
        let mut wirings = Wirings::new(&wake);
        wirings.store = Store::from_list(&wake, 1, [1, 2, 3].map(wiring));
        let nodes = Store::from_list(&wake, 1, [1, 2, 3].map(node));
        let stores = Stores { wirings: Some(wirings), nodes, ..stores(&wake) };
        let (composes, around) = composer(stores, &wake);
        let Around { neighbours: meet, dataplane: mut told, speaker: mut speaks, .. } = around;
        let mac = |last: u8| crds::MacAddr(2, 0, 0, 0, 0, last);
        let met = |last: u8| {
            meet.send_modify(|met| {
                met.record("eth0", &format!("n{last}"), mac(last));
            });
        };
        let began = Instant::now();
        let story = async {
            timeout(SOON, speaks.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot");
            met(2);
            let first =
                timeout(SOON, told.wait_for(Option::is_some)).await.expect("in time").expect("a snapshot").clone();
            assert!(began.elapsed() >= ACQUAINTANCE, "one is still missing");
            let peers = |known: &dataplane::Snapshot| {
                known.links.values().flat_map(|link| link.peers.keys().cloned()).collect::<Vec<_>>()
            };
            assert_eq!(first.as_deref().map(peers), Some(vec!["n2".to_owned()]));
            met(3);
            let knows =
                |known: &Option<Arc<dataplane::Snapshot>>| known.as_deref().is_some_and(|k| peers(k).len() == 2);
            timeout(SOON, told.wait_for(knows)).await.expect("in time").expect("a snapshot");
            assert!(began.elapsed() < 2 * ACQUAINTANCE, "it does not wait again");
        };
        tokio::select! {
            ended = composes => panic!("{ended:?}"),
            () = story => {}
        }
    }

    #[test]
    fn a_death_leaves_all_else_that_the_dataplane_knows_as_it_is() {
        let dead = BTreeSet::from(["n2".to_owned()]);
        let mut known = None;
        assert!(!bury(&mut known, dead.clone()) && known.is_none(), "nothing is known yet");
        let before = dataplane::Snapshot { node: "n1".into(), ..dataplane::Snapshot::default() };
        known = Some(Arc::new(before.clone()));
        assert!(bury(&mut known, dead.clone()));
        assert_eq!(known.as_deref(), Some(&dataplane::Snapshot { dead: dead.clone(), ..before }));
        assert!(!bury(&mut known, dead), "that is no news");
    }
}
