//! Keeps this node's NodeNetwork up to date with its links and gateways. The controller then assigns none of these
//! addresses to a Service, and other nodes know where to re-send frames.
//!
//! ```text
//! links, routes of the kernel --> watch_kernel --> spec (pure) --Option<spec>--> write_changes --> API server
//! ```
//!
//! Two futures joined by a watch channel: [`watch_kernel`] lists the routes again after each burst of changes, and
//! [`write_changes`] writes the object if it differs. Nothing is written while nothing changes. The Node owns the
//! NodeNetwork, so Kubernetes deletes both together.
//!
//! Cancel safe: the next start reads the state again.

mod spec;

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, Result};
use crds::NodeNetwork;
use crds::node_network::NodeNetworkSpec;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use netlink::links::Links;
use netlink::notifications::{Notifications, ROUTES};
use netlink::watch::list_gateways;
use observe::error_chain;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use crate::channels::send_if_new;
use crate::config::API_TIMEOUT;

/// Our name in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-node";

/// The time to wait for the end of a burst of changes: a link that comes up gets addresses and routes, too.
const SETTLE: Duration = Duration::from_millis(500);

/// The pause after a list of the routes, as a multiple of the time that the list took. So lists take at most 1 % of a
/// core, even on a router with a million routes that change all the time.
const PAUSE_PER_LIST: u32 = 100;

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(10);

const CLOSED: &str = "the links are no longer observed";

/// The time between reads of the object while the kernel reports no change: another client may have changed or deleted
/// the object.
const CHECK: Duration = Duration::from_secs(10 * 60);

/// Keeps `network_tx` and the NodeNetwork of `node` up to date with the kernel, for as long as this future is polled.
/// MAC addresses are included only if other nodes may re-send frames to this node (`accepts_frames`).
///
/// # Errors
/// When the kernel's changes can no longer be read.
pub(crate) async fn run(
    client: Client,
    node: String,
    accepts_frames: bool,
    links_rx: watch::Receiver<Option<Links>>,
    network_tx: watch::Sender<Option<NodeNetworkSpec>>,
) -> Result<Infallible> {
    let network_rx = network_tx.subscribe();
    tokio::select! {
        end = watch_kernel(links_rx, network_tx, accepts_frames) => end.context("watch the node's network"),
        never = write_changes(client, node, network_rx) => match never {},
    }
}

async fn watch_kernel(
    mut links_rx: watch::Receiver<Option<Links>>,
    network_tx: watch::Sender<Option<NodeNetworkSpec>>,
    accepts_frames: bool,
) -> Result<Infallible> {
    let notifications = Notifications::open(ROUTES)?.into_async()?;
    links_rx.wait_for(Option::is_some).await.context(CLOSED)?;
    loop {
        let began = Instant::now();
        // The content of the messages is ignored: the next list contains the result.
        notifications.get_ref().read(|_| ());
        match spawn_blocking(list_gateways).await.context("list gateways")? {
            Ok(gateways) => {
                let links = links_rx.borrow_and_update().clone();
                let network = links.map(|links| spec::for_network(&links, &gateways, accepts_frames));
                send_if_new(&network_tx, network);
            }
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "cannot list routes; trying again");
                sleep(RETRY).await;
                continue;
            }
        }
        let pause = SETTLE.max(began.elapsed() * PAUSE_PER_LIST);
        tokio::select! {
            changed = links_rx.changed() => changed.context(CLOSED)?,
            ready = notifications.readable() => ready?.clear_ready(),
        }
        sleep(pause).await;
    }
}

/// Writes the NodeNetwork after each change, and again if another client has changed or deleted it.
async fn write_changes(
    client: Client,
    node: String,
    mut network_rx: watch::Receiver<Option<NodeNetworkSpec>>,
) -> Infallible {
    let mut failing = false;
    loop {
        let network = network_rx.borrow_and_update().clone();
        let mut pause = CHECK;
        if let Some(network) = network {
            let error = match timeout(API_TIMEOUT, write(&client, &node, &network)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error_chain(&error)),
                Err(_) => Some("the API server does not answer".to_owned()),
            };
            let was_failing = std::mem::replace(&mut failing, error.is_some());
            match error {
                None if was_failing => tracing::info!("wrote this node's NodeNetwork after a failure"),
                Some(error) if !was_failing => {
                    tracing::warn!(error, "cannot write this node's NodeNetwork; trying again");
                }
                None | Some(_) => {}
            }
            if failing {
                pause = RETRY;
            }
        }
        // Without a sender, `watch_kernel` has ended. Then `run` returns its error and drops this future.
        let changed = async {
            if network_rx.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = timeout(pause, changed).await;
    }
}

/// Creates the NodeNetwork of `node` if it is missing, and patches it if it differs from `spec`.
async fn write(client: &Client, node: &str, spec: &NodeNetworkSpec) -> kube::Result<()> {
    let networks = Api::<NodeNetwork>::all(client.clone());
    let existing = networks.get_opt(node).await?;
    if existing.as_ref().is_some_and(|existing| existing.spec == *spec) {
        return Ok(());
    }
    let field_manager = Some(FIELD_MANAGER.to_owned());
    let owners = owner_references(client, node).await?;
    if existing.is_some() {
        let params = PatchParams { field_manager, ..PatchParams::default() };
        let patch = json!({"metadata": {"ownerReferences": owners}, "spec": spec});
        networks.patch(node, &params, &Patch::Merge(patch)).await?;
    } else {
        let mut object = NodeNetwork::new(node, spec.clone());
        object.metadata.owner_references = Some(owners);
        networks.create(&PostParams { field_manager, ..PostParams::default() }, &object).await?;
    }
    tracing::info!(links = ?spec.links, gateways = ?spec.gateways, "wrote this node's NodeNetwork");
    Ok(())
}

/// A reference to the Node, if the Node exists.
async fn owner_references(client: &Client, node: &str) -> kube::Result<Vec<OwnerReference>> {
    let nodes = Api::<Node>::all(client.clone());
    let list = nodes.list_metadata(&ListParams::default().fields(&format!("metadata.name={node}"))).await?;
    let uid = list.items.into_iter().find_map(|object| object.metadata.uid);
    let reference = |uid| OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: node.to_owned(),
        uid,
        ..OwnerReference::default()
    };
    Ok(uid.map(reference).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::node_network::NodeLink;
    use http::{Method, Request, Response};
    use kube::client::Body;
    use netns::Namespace;
    use serde_json::Value;
    use std::sync::{Arc, Mutex};

    /// The longest time that a change may take from the kernel to the channel.
    const SOON: Duration = Duration::from_secs(20);

    fn spec(links: &[(&str, &[&str])], gateways: &[&str]) -> NodeNetworkSpec {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let link = |(name, addresses): &(&str, &[&str])| NodeLink {
            name: (*name).to_owned(),
            addresses: strings(addresses),
            mac: None,
        };
        NodeNetworkSpec { links: links.iter().map(link).collect(), gateways: strings(gateways) }
    }

    #[test]
    fn changes_of_links_addresses_and_routes_are_followed() {
        let (node, other) = (Namespace::new().expect("a namespace"), Namespace::new().expect("a namespace"));
        // Addresses are valid at once, without duplicate address detection.
        node.sysctl("ipv6.conf.default.accept_dad", "0").expect("sysctl");
        for link in ["eth0", "eth1", "port", "pod"] {
            netns::veth((&node, link), (&other, link)).expect("a cable");
            other.ip([format!("link set {link} up")]).expect("its other end");
        }
        node.ip([
            "link set eth0 up",
            "addr add 192.0.2.11/24 dev eth0",
            "addr add 2001:db8::11/64 dev eth0",
            "link add br0 type bridge",
            "link set port master br0",
            "link set port up",
            "addr add 203.0.113.1/24 dev port",
            "link set pod up",
            "addr add 192.0.2.200/32 dev pod",
            "route add default via 192.0.2.1",
            "route add 10.0.0.0/8 table 7 nexthop via 192.0.2.2 nexthop via 192.0.2.3",
            "route add ::/0 via fe80::1 dev eth0",
            "route add blackhole 172.16.0.0/12",
        ])
        .expect("addresses and routes");
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        node.run(|| {
            runtime().block_on(async {
                let (network_tx, mut network_rx) = watch::channel(None);
                let expect = async |network_rx: &mut watch::Receiver<Option<NodeNetworkSpec>>,
                                    expected: NodeNetworkSpec| {
                    let arrived =
                        timeout(SOON, network_rx.wait_for(|spec| spec.as_ref() == Some(&expected))).await.is_ok();
                    assert!(arrived, "{:?} instead of {expected:?}", *network_rx.borrow());
                };
                let follow = async {
                    let eth0: (&str, &[&str]) = ("eth0", &["192.0.2.11/24", "2001:db8::11/64"]);
                    let gateways = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "fe80::1"];
                    expect(&mut network_rx, spec(&[eth0], &gateways)).await;
                    node.ip(["addr add 198.51.100.7/24 dev eth1", "link set eth1 up"]).expect("another link");
                    let eth1: (&str, &[&str]) = ("eth1", &["198.51.100.7/24"]);
                    expect(&mut network_rx, spec(&[eth0, eth1], &gateways)).await;
                    node.ip(["route del default", "route flush table 7"]).expect("no routes");
                    expect(&mut network_rx, spec(&[eth0, eth1], &["fe80::1"])).await;
                    other.ip(["link set eth0 down"]).expect("the cable is pulled");
                    // Addresses can't be announced on a link without a carrier.
                    let without = timeout(
                        SOON,
                        network_rx.wait_for(|spec| {
                            spec.as_ref().is_some_and(|spec| spec.links.iter().all(|link| link.name == "eth1"))
                        }),
                    );
                    assert!(without.await.is_ok(), "the link without a carrier stays");
                };
                let (links_tx, links_rx) = watch::channel(None);
                tokio::select! {
                    end = netlink::watch::watch_links(links_tx) => panic!("{end:?}"),
                    end = watch_kernel(links_rx, network_tx, false) => panic!("{end:?}"),
                    () = follow => {}
                }
            });
        });
    }

    /// An API server with at most one NodeNetwork, and the writes to it.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<(Option<Value>, Vec<Value>)>>);

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect_bytes().await.expect("a body");
                    let (code, answer) = server.answer(&head.method, head.uri.path(), &body);
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()))
                }
            });
            Client::new(service, "default")
        }

        fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
            const NODES: &str = "/api/v1/nodes";
            const NETWORKS: &str = "/apis/landfall.dev/v1alpha1/nodenetworks";
            let state = &mut *self.0.lock().expect("no panic");
            let missing = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
            if path == NODES {
                let metadata = json!({"name": "n1", "uid": "u-n1"});
                let item =
                    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
                let kind = "PartialObjectMetadataList";
                return (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": kind, "metadata": {}, "items": [item]}));
            }
            match (method, path.strip_prefix(NETWORKS)) {
                (&Method::GET, Some("/n1")) => {}
                (&Method::POST, Some("")) | (&Method::PATCH, Some("/n1")) => {
                    let written: Value = serde_json::from_slice(body).expect("JSON");
                    state.1.push(json!({
                        "owners": written["metadata"]["ownerReferences"], "gateways": written["spec"]["gateways"],
                    }));
                    let mut object = json!({"apiVersion": "landfall.dev/v1alpha1", "kind": "NodeNetwork"});
                    object["metadata"] = json!({"name": "n1"});
                    object["spec"] = written["spec"].clone();
                    state.0 = Some(object);
                }
                _ => panic!("{method} {path}"),
            }
            state.0.clone().map_or((404, missing), |object| (200, object))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_changed_or_deleted_network_is_written_again() {
        let server = Server::default();
        let (network_tx, network_rx) = watch::channel(None);
        let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-n1"}]);
        let written = |gateways: &[&str]| json!({"owners": owners, "gateways": gateways});
        let script = async {
            let writes = async |expected: &[Value]| {
                // The paused clock advances while all tasks wait.
                tokio::time::sleep(3 * CHECK).await;
                assert_eq!(server.0.lock().expect("no panic").1, expected);
            };
            writes(&[]).await;
            network_tx.send_replace(Some(spec(&[], &["192.0.2.1"])));
            writes(&[written(&["192.0.2.1"])]).await;
            network_tx.send_replace(Some(spec(&[], &["192.0.2.1"])));
            writes(&[written(&["192.0.2.1"])]).await;
            network_tx.send_replace(Some(spec(&[], &["192.0.2.2"])));
            writes(&[written(&["192.0.2.1"]), written(&["192.0.2.2"])]).await;
            server.0.lock().expect("no panic").0 = None;
            writes(&[written(&["192.0.2.1"]), written(&["192.0.2.2"]), written(&["192.0.2.2"])]).await;
        };
        tokio::select! {
            never = write_changes(server.client(), "n1".into(), network_rx) => match never {},
            () = script => {}
        }
    }
}
