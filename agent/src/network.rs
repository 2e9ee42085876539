//! Says in this node's NodeNetwork what is on its network, so that the controller gives none of that to a Service.
//!
//! ```text
//! kernel --changes--> observe --dump--> found::spec (pure) --Option<spec>--> tell --writes--> API server
//! ```
//!
//! Two futures joined by a watch channel: [`observe`] reads the kernel anew after each burst of changes; [`tell`] writes
//! what is different from what is there. Nothing is written while nothing changes. The object belongs to the Node, and
//! goes with it.
//!
//! Cancel safe: what was left undone is found out by the next start.

mod found;

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crds::NodeNetwork;
use crds::node_network::NodeNetworkSpec;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use observe::error_chain;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Who we are in `metadata.managedFields`.
const FIELD_MANAGER: &str = "landfall-node";

/// How long to wait for the end of a burst of changes: a link that comes up brings an address and routes.
const SETTLE: Duration = Duration::from_millis(500);

/// A pause is this many times as long as the dump took, so that a router with a million routes, which change all the time,
/// spends a hundredth of a core on this.
const PAUSE_PER_DUMP: u32 = 100;

/// For how long the API server is to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How often to look whether the object is still as it was written: somebody may have deleted it. Looking is no write.
const CHECK: Duration = Duration::from_secs(10 * 60);

/// Keeps the NodeNetwork of `node` as the kernel has it, for as long as it is polled, and `found` as well. Its MAC addresses
/// are told only if other nodes may hand it frames.
///
/// # Errors
/// When the kernel can't be asked any more.
pub(super) async fn report(
    client: Client,
    node: String,
    takes_frames: bool,
    found: watch::Sender<Option<NodeNetworkSpec>>,
) -> Result<Infallible> {
    let to_tell = found.subscribe();
    tokio::select! {
        end = observe(found, takes_frames) => end.context("observe the node's network"),
        never = tell(client, node, to_tell) => match never {},
    }
}

/// What it means that the socket is closed.
const CLOSED: &str = "netlink tells no more of changes";

/// Keeps `found` up to date.
async fn observe(found: watch::Sender<Option<NodeNetworkSpec>>, takes_frames: bool) -> Result<Infallible> {
    use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv6Ifaddr, Ipv6Route, Link};
    // Joined before anything is read, so that no change is missed.
    let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route];
    let (connection, handle, mut changes) = new_multicast_connection(&groups).context("open a netlink socket")?;
    let follow = async {
        loop {
            let began = Instant::now();
            match dump(&handle).await {
                Ok(messages) => {
                    let mut spec = found::spec(&messages);
                    if !takes_frames {
                        spec.links.iter_mut().for_each(|link| link.mac = None);
                    }
                    let spec = Some(spec);
                    found.send_if_modified(|known| {
                        let is_new = *known != spec;
                        *known = spec;
                        is_new
                    });
                }
                Err(error) => {
                    tracing::warn!(error = error_chain(&error), "can't list links, addresses and routes; trying again");
                    sleep(RETRY).await;
                    continue;
                }
            }
            let pause = SETTLE.max(began.elapsed() * PAUSE_PER_DUMP);
            // What is told is not looked at, only taken away: all is read anew.
            changes.next().await.context(CLOSED)?;
            let until = Instant::now() + pause;
            while let Ok(change) = timeout_at(until, changes.next()).await {
                change.context(CLOSED)?;
            }
        }
    };
    tokio::select! {
        () = connection => bail!(CLOSED),
        end = follow => end,
    }
}

/// All links, addresses and routes, one after the other: the kernel dumps one thing at a time for a socket.
async fn dump(handle: &Handle) -> Result<Vec<RouteNetlinkMessage>, rtnetlink::Error> {
    let links = handle.link().get().execute().map_ok(RouteNetlinkMessage::NewLink);
    let mut all: Vec<_> = links.try_collect().await?;
    let addresses = handle.address().get().execute().map_ok(RouteNetlinkMessage::NewAddress);
    all.append(&mut addresses.try_collect().await?);
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let routes = handle.route().get(family).execute().map_ok(RouteNetlinkMessage::NewRoute);
        all.append(&mut routes.try_collect().await?);
    }
    Ok(all)
}

/// Writes what is found, whenever that is not what is there.
async fn tell(client: Client, node: String, mut found: watch::Receiver<Option<NodeNetworkSpec>>) -> Infallible {
    let mut failed = false;
    loop {
        let spec = found.borrow_and_update().clone();
        let pause = match spec {
            None => CHECK,
            Some(spec) => match timeout(ANSWER, write(&client, &node, &spec)).await {
                Ok(Ok(())) => {
                    if std::mem::take(&mut failed) {
                        tracing::info!("what is on this node's network is told again");
                    }
                    CHECK
                }
                problem => {
                    if !std::mem::replace(&mut failed, true) {
                        let error = match problem {
                            Ok(Err(error)) => error_chain(&error),
                            _ => "the API server does not answer".to_owned(),
                        };
                        tracing::warn!(error, "can't write this node's NodeNetwork; trying again");
                    }
                    RETRY
                }
            },
        };
        // If the other half ends, so does the process.
        let changed = async {
            if found.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = timeout(pause, changed).await;
    }
}

/// Makes the NodeNetwork of `node` say this, if it doesn't.
async fn write(client: &Client, node: &str, spec: &NodeNetworkSpec) -> kube::Result<()> {
    let networks = Api::<NodeNetwork>::all(client.clone());
    let there = networks.get_opt(node).await?;
    if there.as_ref().is_some_and(|there| there.spec == *spec) {
        return Ok(());
    }
    let manager = Some(FIELD_MANAGER.to_owned());
    let owner = owner(client, node).await?;
    if there.is_some() {
        let params = PatchParams { field_manager: manager, ..PatchParams::default() };
        let patch = json!({"metadata": {"ownerReferences": owner}, "spec": spec});
        networks.patch(node, &params, &Patch::Merge(patch)).await?;
    } else {
        let mut object = NodeNetwork::new(node, spec.clone());
        object.metadata.owner_references = Some(owner.into_iter().collect());
        networks.create(&PostParams { field_manager: manager, ..PostParams::default() }, &object).await?;
    }
    tracing::info!(links = ?spec.links, gateways = ?spec.gateways, "told what is on this node's network");
    Ok(())
}

/// The Node, as the owner of the object.
async fn owner(client: &Client, node: &str) -> kube::Result<Vec<OwnerReference>> {
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

    /// How long the kernel may take to tell of a change, and the API server to be told.
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
    fn what_the_kernel_has_is_found_and_each_change_of_it() {
        let (node, other) = (Namespace::new().expect("a namespace"), Namespace::new().expect("a namespace"));
        // Addresses count at once, without a look whether somebody else has them.
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
                let (found, mut told) = watch::channel(None);
                let expect = async |told: &mut watch::Receiver<Option<NodeNetworkSpec>>, expected: NodeNetworkSpec| {
                    let there = timeout(SOON, told.wait_for(|spec| spec.as_ref() == Some(&expected))).await.is_ok();
                    assert!(there, "{:?} instead of {expected:?}", *told.borrow());
                };
                let follow = async {
                    let eth0: (&str, &[&str]) = ("eth0", &["192.0.2.11/24", "2001:db8::11/64"]);
                    let gateways = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "fe80::1"];
                    expect(&mut told, spec(&[eth0], &gateways)).await;
                    node.ip(["addr add 198.51.100.7/24 dev eth1", "link set eth1 up"]).expect("another link");
                    let eth1: (&str, &[&str]) = ("eth1", &["198.51.100.7/24"]);
                    expect(&mut told, spec(&[eth0, eth1], &gateways)).await;
                    node.ip(["route del default", "route flush table 7"]).expect("no routes");
                    expect(&mut told, spec(&[eth0, eth1], &["fe80::1"])).await;
                    other.ip(["link set eth0 down"]).expect("the cable is pulled");
                    // Its routes go, or are of no use: the link is not one to announce on.
                    let without = timeout(
                        SOON,
                        told.wait_for(|spec| {
                            spec.as_ref().is_some_and(|spec| spec.links.iter().all(|link| link.name == "eth1"))
                        }),
                    );
                    assert!(without.await.is_ok(), "the link without a carrier stays");
                };
                tokio::select! {
                    end = observe(found, false) => panic!("{end:?}"),
                    () = follow => {}
                }
            });
        });
    }

    /// An API server that has one NodeNetwork at most; and what was written there.
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
    async fn what_is_found_is_written_once_and_what_is_lost_again() {
        let server = Server::default();
        let (found, to_tell) = watch::channel(None);
        let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-n1"}]);
        let written = |gateways: &[&str]| json!({"owners": owners, "gateways": gateways});
        let script = async {
            let writes = async |expected: &[Value]| {
                // Time goes by itself when all wait: long enough for all that is to come.
                tokio::time::sleep(3 * CHECK).await;
                assert_eq!(server.0.lock().expect("no panic").1, expected);
            };
            writes(&[]).await;
            found.send_replace(Some(spec(&[], &["192.0.2.1"])));
            writes(&[written(&["192.0.2.1"])]).await;
            found.send_replace(Some(spec(&[], &["192.0.2.1"])));
            writes(&[written(&["192.0.2.1"])]).await;
            found.send_replace(Some(spec(&[], &["192.0.2.2"])));
            writes(&[written(&["192.0.2.1"]), written(&["192.0.2.2"])]).await;
            server.0.lock().expect("no panic").0 = None;
            writes(&[written(&["192.0.2.1"]), written(&["192.0.2.2"]), written(&["192.0.2.2"])]).await;
        };
        tokio::select! {
            never = tell(server.client(), "n1".into(), to_tell) => match never {},
            () = script => {}
        }
    }
}
