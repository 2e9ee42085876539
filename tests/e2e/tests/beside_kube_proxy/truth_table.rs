//! The outcome of requests to a load-balancer address, by source, traffic policy and endpoints: a truth table for every
//! dataplane. Checked on real clusters, beside each kind of Service proxy and without one, over both families and both
//! protocols.
//!
//! The test writes endpoints and their states into slices itself; their pods run all the time. It selects the node at
//! which the client's packets enter by a route of the client.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::world::ingress;
use e2e::{ConnectOutcome, Scene, World};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use lab::{Answer, KubeProxy, wait_until};
use netns::Namespace;
use serde_json::{Value, json};
use tokio::runtime::Handle;

/// (pod, node): `l` on n1, `r` on n2, `x` on n3. Number 5 is the pod that sends requests.
const PODS: [(&str, &str); 6] = [("l5", "n1"), ("l6", "n1"), ("l7", "n1"), ("r6", "n2"), ("r7", "n2"), ("x5", "n3")];

/// Without an answer for this long, no answer follows.
const SILENCE: Duration = Duration::from_millis(400);

/// Limit of waiting for an expected answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Requests of one check: of two endpoints, one is missed with a chance of one in 2^15.
const REQUESTS: usize = 16;

/// Limit of waiting until all requests have the outcome of the table.
const SETTLED: Duration = Duration::from_secs(30);

/// The source of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Outside,
    Pod,
    Node,
}

const ALL_SOURCES: [Source; 3] = [Source::Outside, Source::Pod, Source::Node];

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RequestOutcome {
    /// A pod answers, which sees the address of the source, or an address of a node instead.
    Answer { pod: String, sees_source: bool },
    /// No packet comes back.
    Drop,
    /// A refusal comes back at once.
    Refuse,
}

impl fmt::Display for RequestOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer { pod, sees_source: true } => pod,
            Self::Answer { pod, sees_source: false } => return write!(f, "{pod} that sees another address"),
            Self::Drop => "drop",
            Self::Refuse => "refuse",
        })
    }
}

/// Endpoints, and the outcomes of requests. Abbreviations:
///
/// | suffix | endpoint |
/// |---|---|
/// | none | ready |
/// | `t` | terminating, serving |
/// | `x` | terminating, not serving |
/// | `u` | not ready |
/// | `p` | terminating, not serving, but published as ready |
/// | `z` | with a hint for another zone |
struct Row {
    endpoints: &'static str,
    /// Under Cluster, for every source and entry node.
    cluster: &'static str,
    /// Under Local, from outside, at n1 (the node of `l`). Includes endpoints on other nodes, because spreading hands
    /// packets to their nodes. Ready endpoints come before terminating ones.
    local: &'static str,
    /// Under Local, from outside, at n3, which has no endpoint.
    elsewhere: &'static str,
}

/// The truth table. Under Local, sources inside the cluster have the outcomes of Cluster.
const TABLE: [Row; 14] = [
    Row { endpoints: "l6", cluster: "l6", local: "l6", elsewhere: "drop" },
    Row { endpoints: "r6", cluster: "r6", local: "drop", elsewhere: "drop" },
    Row { endpoints: "l6 r6", cluster: "l6 r6", local: "l6 r6", elsewhere: "drop" },
    Row { endpoints: "l5", cluster: "l5", local: "l5", elsewhere: "drop" },
    Row { endpoints: "l5 l6", cluster: "l5 l6", local: "l5 l6", elsewhere: "drop" },
    Row { endpoints: "", cluster: "refuse", local: "refuse", elsewhere: "refuse" },
    Row { endpoints: "l6u r6x", cluster: "refuse", local: "refuse", elsewhere: "refuse" },
    Row { endpoints: "l6t r6x", cluster: "l6", local: "l6", elsewhere: "drop" },
    Row { endpoints: "l6t r6", cluster: "r6", local: "r6", elsewhere: "drop" },
    Row { endpoints: "r6t r7x", cluster: "r6", local: "drop", elsewhere: "drop" },
    Row { endpoints: "l6t r6t", cluster: "l6 r6", local: "l6 r6", elsewhere: "drop" },
    Row { endpoints: "l6 l7u", cluster: "l6", local: "l6", elsewhere: "drop" },
    Row { endpoints: "l6p r6t", cluster: "l6", local: "l6", elsewhere: "drop" },
    Row { endpoints: "l6z r6z", cluster: "l6 r6", local: "l6 r6", elsewhere: "drop" },
];

/// Parses outcomes. A pod that reaches itself (`own`) does not see its own address, because the answer has to pass the
/// node.
fn parse_outcomes(text: &str, own: Option<&str>) -> BTreeSet<RequestOutcome> {
    let outcome = |word: &str| match word {
        "drop" => RequestOutcome::Drop,
        "refuse" => RequestOutcome::Refuse,
        pod => RequestOutcome::Answer { pod: pod.to_owned(), sees_source: own != Some(pod) },
    };
    text.split_whitespace().map(outcome).collect()
}

/// A cluster with a Service whose endpoints the test writes.
struct TruthTableFixture<'a> {
    world: &'a World,
    /// The load-balancer addresses, IPv4 first.
    both: [IpAddr; 2],
    /// The addresses of each pod, IPv4 first.
    pods: BTreeMap<String, [IpAddr; 2]>,
    /// The full names of pods.
    names: BTreeMap<String, String>,
}

/// A sender of requests.
struct Sender {
    namespace: Namespace,
    /// Its own addresses.
    own: BTreeSet<IpAddr>,
    /// Its abbreviated name, if it is a pod.
    pod: Option<String>,
}

impl<'a> TruthTableFixture<'a> {
    async fn start(world: &'a World) -> Result<Self> {
        world.create_pool("lan", &["192.0.2.200/32", "2001:db8::200/128"]).await?;
        for (pod, node) in PODS {
            world.create_whoami_with(pod, 1, json!({"nodeName": node})).await?;
        }
        world.create_service("web", json!({"selector": null, "ipFamilyPolicy": "RequireDualStack"})).await?;
        world.wait_for_address("web").await?;
        let both = ingress(&world.get_service("web").await?).try_into();
        let both = both.map_err(|other| anyhow::anyhow!("two addresses were expected: {other:?}"))?;
        let all: Api<Pod> = Api::default_namespaced(world.client.clone());
        let (mut pods, mut names) = (BTreeMap::new(), BTreeMap::new());
        for (pod, _) in PODS {
            let found = all.list(&ListParams::default().labels(&format!("app={pod}"))).await?.items;
            let found = found.first().with_context(|| format!("no pod {pod}"))?;
            let ips = found.status.clone().unwrap_or_default().pod_ips.unwrap_or_default();
            let ips: Vec<IpAddr> = ips.iter().map(|ip| Ok(ip.ip.parse()?)).collect::<Result<_>>()?;
            pods.insert(pod.to_owned(), ips.try_into().map_err(|ips| anyhow::anyhow!("{pod} has {ips:?}"))?);
            names.insert(found.name_any(), pod.to_owned());
        }
        // A node that sends a packet out by its incoming link also sends an ICMP redirect, which would replace this
        // test's routes.
        let client = world.cluster.client_host("c1");
        for family in ["ipv4", "ipv6"] {
            client.netns()?.sysctl(&format!("{family}/conf/all/accept_redirects"), "0")?;
            client.netns()?.sysctl(&format!("{family}/conf/eth0/accept_redirects"), "0")?;
        }
        Ok(Self { world, both, pods, names })
    }

    /// Writes these endpoints into the Service's slices.
    async fn write_endpoints(&self, abbreviated: &str) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.world.client.clone());
        for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let endpoint = |word: &str| {
                let (pod, state) = word.split_at(2);
                let node = PODS.iter().find(|(name, _)| *name == pod).map(|(_, node)| node);
                let (ready, serving, terminating) = match state {
                    "t" => (false, true, true),
                    "x" => (false, false, true),
                    "u" => (false, false, false),
                    "p" => (true, false, true),
                    _ => (true, true, false),
                };
                let zones = if state == "z" { json!({"forZones": [{"name": "elsewhere"}]}) } else { Value::Null };
                json!({
                    "addresses": [self.pods[pod][index]], "nodeName": node,
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                    "hints": zones,
                })
            };
            let name = format!("web-{}", family.to_lowercase());
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {
                    "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "truth-table",
                }},
                "addressType": family,
                "ports": [
                    {"name": "tcp", "port": 8080, "protocol": "TCP"}, {"name": "udp", "port": 8080, "protocol": "UDP"},
                ],
                "endpoints": abbreviated.split_whitespace().map(endpoint).collect::<Vec<Value>>(),
            });
            let params = PatchParams::apply("truth-table").force();
            slices.patch(&name, &params, &Patch::Apply(slice)).await.context("write a slice")?;
        }
        Ok(())
    }

    /// Lets the client's packets enter at this node.
    fn set_entry_node(&self, node: &str) -> Result<()> {
        let host = self.world.cluster.node(node);
        self.world.cluster.client_host("c1").netns()?.ip([
            format!("route replace {}/32 via {}", self.both[0], host.ipv4()),
            format!("route replace {}/128 via {}", self.both[1], host.ipv6()),
        ])?;
        Ok(())
    }

    /// Removes the slices and the client's routes.
    async fn remove(&self) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.world.client.clone());
        let own = ListParams::default().labels("endpointslice.kubernetes.io/managed-by=truth-table");
        slices.delete_collection(&DeleteParams::default(), &own).await.context("delete the slices")?;
        let client = self.world.cluster.client_host("c1").netns()?;
        client.ip([format!("route del {}/32", self.both[0]), format!("route del {}/128", self.both[1])])?;
        Ok(())
    }

    /// The sender for a source at this entry node.
    fn sender(&self, source: Source, entry: &str) -> Result<Sender> {
        let node = self.world.cluster.node(entry);
        match source {
            Source::Outside => {
                let client = self.world.cluster.client_host("c1");
                let own = BTreeSet::from([client.ipv4().into(), client.ipv6().into()]);
                Ok(Sender { namespace: client.netns()?, own, pod: None })
            }
            Source::Node => {
                // A node may use any of its addresses as the source.
                let listed = node.output(["ip", "-oneline", "address"])?;
                let own = listed.split_whitespace().filter_map(|word| word.split('/').next()?.parse().ok()).collect();
                Ok(Sender { namespace: node.netns()?, own, pod: None })
            }
            Source::Pod => {
                let sender = PODS.iter().find(|(pod, host)| pod.ends_with('5') && *host == entry);
                let (pod, _) = sender.with_context(|| format!("no sending pod on {entry}"))?;
                let name = self.names.iter().find(|(_, short)| short == pod).map(|(name, _)| name);
                let namespace = node.netns_of_pod(name.context("invariant: the pod has a name")?)?;
                Ok(Sender { namespace, own: self.pods[*pod].into(), pod: Some((*pod).to_owned()) })
            }
        }
    }

    /// Waits until requests of a source have exactly these outcomes, at each address over each protocol.
    async fn expect_outcomes(&self, source: Source, entry: &str, expected: &str) -> Result<()> {
        let sender = self.sender(source, entry)?;
        let expected = parse_outcomes(expected, sender.pod.as_deref());
        let runtime = Handle::current();
        let wait_for_outcomes = |address: IpAddr, over_tcp: bool| {
            let target = SocketAddr::new(address, 80);
            let protocol = if over_tcp { "TCP" } else { "UDP" };
            let what = format!(
                "requests from {source:?} at {entry} over {protocol} to {address} to reach {}",
                list(&expected)
            );
            runtime.block_on(wait_until(SETTLED, &what, async || {
                let seen = self.send_requests(&sender, target, over_tcp, &expected)?;
                ensure!(seen == expected, "{}", list(&seen));
                Ok(())
            }))
        };
        // In parallel, because waiting for silence takes time.
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let spawn = |(address, over_tcp)| {
                    scope.spawn({
                        let wait_for_outcomes = &wait_for_outcomes;
                        move || wait_for_outcomes(address, over_tcp)
                    })
                };
                let targets = self.both.into_iter().flat_map(|address| [(address, true), (address, false)]);
                let threads: Vec<_> = targets.map(spawn).collect();
                threads.into_iter().try_for_each(|thread| thread.join().expect("the thread does not panic"))
            })
        })
    }

    fn send_requests(
        &self,
        sender: &Sender,
        target: SocketAddr,
        over_tcp: bool,
        expected: &BTreeSet<RequestOutcome>,
    ) -> Result<BTreeSet<RequestOutcome>> {
        // One request is enough for a drop or a refusal, which are never one of several outcomes. A drop takes the
        // whole time limit, and kernels refuse at most one datagram per second (icmp_ratelimit).
        let (count, timeout) = match expected.first() {
            Some(RequestOutcome::Drop) => (1, SILENCE),
            Some(RequestOutcome::Refuse) => (1, TIMEOUT),
            _ => (REQUESTS, TIMEOUT),
        };
        let query = if over_tcp { Answer::over_tcp } else { Answer::over_udp };
        let mut seen = BTreeSet::new();
        for answer in sender.namespace.run(|| (0..count).map(|_| query(target, timeout)).collect::<Vec<_>>()) {
            seen.insert(match answer {
                Ok(answer) => {
                    let pod = self.names.get(&answer.pod).context("an unknown pod")?.clone();
                    RequestOutcome::Answer { pod, sees_source: sender.own.contains(&answer.client.ip()) }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => RequestOutcome::Refuse,
                // On the node itself, the kernel returns this error for a drop and for a refusal.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    if expected.contains(&RequestOutcome::Drop) { RequestOutcome::Drop } else { RequestOutcome::Refuse }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    RequestOutcome::Drop
                }
                Err(error) => return Err(error).with_context(|| format!("query {target}")),
            });
        }
        Ok(seen)
    }
}

fn list(outcomes: &BTreeSet<RequestOutcome>) -> String {
    outcomes.iter().map(RequestOutcome::to_string).collect::<Vec<_>>().join(" or ")
}

pub async fn the_truth_table_holds(scene: &Scene<'_>) -> Result<()> {
    let fixture = TruthTableFixture::start(scene.world).await?;
    let result = check_truth_table(&fixture).await;
    result.and(fixture.remove().await)
}

async fn check_truth_table(fixture: &TruthTableFixture<'_>) -> Result<()> {
    for policy in ["Cluster", "Local"] {
        for entry in ["n1", "n3"] {
            // The internal traffic policy has no effect on load-balancer addresses.
            let internal = if entry == "n1" { "Local" } else { "Cluster" };
            let policies = json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": internal});
            fixture.world.patch_service("web", json!({"spec": policies})).await?;
            fixture.set_entry_node(entry)?;
            for row in &TABLE {
                fixture.write_endpoints(row.endpoints).await?;
                for source in ALL_SOURCES {
                    let expected = match (policy, source, entry) {
                        ("Local", Source::Outside, "n1") => row.local,
                        ("Local", Source::Outside, _) => row.elsewhere,
                        _ => row.cluster,
                    };
                    let case = || format!("endpoints {:?}, policy {policy}", row.endpoints);
                    fixture.expect_outcomes(source, entry, expected).await.with_context(case)?;
                }
                if (policy, entry) == ("Local", "n1") {
                    expect_health_checks(fixture, row.endpoints).await?;
                }
            }
        }
    }
    check_source_ranges(fixture).await
}

/// Waits until the health checks for an external load balancer are right: a node with only terminating endpoints fails,
/// although these still serve.
async fn expect_health_checks(fixture: &TruthTableFixture<'_>, endpoints: &str) -> Result<()> {
    let port = fixture.world.get_service("web").await?.spec.unwrap_or_default().health_check_node_port;
    let port = port.context("the API server gives it a port")?.try_into()?;
    let ready: BTreeSet<&str> = endpoints.split_whitespace().filter(|word| !word.ends_with(['t', 'x', 'u'])).collect();
    for (pods, node) in [("l", "n1"), ("r", "n2"), ("x", "n3")] {
        let expected = if ready.iter().any(|endpoint| endpoint.starts_with(pods)) { 200 } else { 503 };
        let address = IpAddr::from(fixture.world.cluster.node(node).ipv4());
        wait_until(SETTLED, &format!("health check {expected} of {node} with endpoints {endpoints:?}"), async || {
            let (status, _) = fixture.world.lan.get_health(address, port)?;
            ensure!(status == expected, "{status}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Source ranges apply to all sources: outside, in pods and on nodes. They do not apply to node ports.
async fn check_source_ranges(fixture: &TruthTableFixture<'_>) -> Result<()> {
    fixture.write_endpoints("l6 r6").await?;
    let ranges = json!({"spec": {"loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:1::/48"]}});
    fixture.world.patch_service("web", ranges).await?;
    for policy in ["Cluster", "Local"] {
        fixture.world.patch_service("web", json!({"spec": {"externalTrafficPolicy": policy}})).await?;
        for entry in ["n1", "n3"] {
            fixture.set_entry_node(entry)?;
            for source in ALL_SOURCES {
                let case = || format!("not in the source ranges, policy {policy}");
                fixture.expect_outcomes(source, entry, "drop").await.with_context(case)?;
            }
        }
    }
    if fixture.world.cluster.topology().kube_proxy != KubeProxy::None {
        let ports = fixture.world.get_service("web").await?.spec.unwrap_or_default().ports.unwrap_or_default();
        let port = ports.first().and_then(|port| port.node_port).context("it has node ports")?.try_into()?;
        let node = IpAddr::from(fixture.world.cluster.node("n1").ipv4());
        wait_until(SETTLED, "the node port to answer", async || {
            let seen = fixture.world.lan.connect(node, port)?;
            ensure!(seen == ConnectOutcome::Accepted, "{seen:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
