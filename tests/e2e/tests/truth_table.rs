//! Who gets where, by the truth table that every dataplane of LoadBalancer addresses has to follow: on real clusters, beside
//! each kind of Service proxy and without one, over both families and both protocols.
//!
//! Which endpoints there are, and in what state, is written into slices by hand; behind them are pods that run all the time. So
//! that a packet from outside enters at a node of the test's choice, the client has a route to the address by that node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::world::ingress;
use e2e::{Connect, World};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use lab::{Answer, KubeProxy, Topology, wait_until};
use netns::Namespace;
use serde_json::{Value, json};
use tokio::runtime::Handle;

/// The pods: `l` on n1, `r` on n2, `x` on n3. Number 5 is the one that asks.
const PODS: [(&str, &str); 6] = [("l5", "n1"), ("l6", "n1"), ("l7", "n1"), ("r6", "n2"), ("r7", "n2"), ("x5", "n3")];

/// Nobody answers if there was no answer for so long.
const SILENCE: Duration = Duration::from_millis(400);

/// How long an answer may take where there should be one.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many ask, one after the other, so that of two endpoints none is missed but with a chance of one in 2^15.
const TIMES: usize = 16;

/// How soon everybody gets where the table says.
const SETTLED: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Outside,
    Pod,
    Node,
}

const EVERYBODY: [Who; 3] = [Who::Outside, Who::Pod, Who::Node];

/// What becomes of who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// A pod answers, which saw who asked, or some address of a node in place of it.
    Answer { pod: String, kept: bool },
    /// Nothing comes back.
    Drop,
    /// A refusal comes back at once.
    Refuse,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer { pod, kept: true } => pod,
            Self::Answer { pod, kept: false } => return write!(f, "{pod} that sees somebody else"),
            Self::Drop => "drop",
            Self::Refuse => "refuse",
        })
    }
}

/// Endpoints in short, `t` for one that terminates but serves, `x` for one that terminates and does not, `u` for one that is not
/// ready, `p` for one that neither serves nor stays and is published nevertheless, `z` for one that is meant for clients of some
/// other zone; then who gets where under the policy Cluster and under Local, if they enter at n1 (where `l` is), or at n3, where no
/// endpoint is.
struct Row {
    endpoints: &'static str,
    /// Under Cluster; the same for everybody, wherever they enter.
    cluster: &'static str,
    /// Under Local, from outside, at n1: also to endpoints on other nodes, for the spread hands packets to these as if they had
    /// reached them; and to those that are ready before any that terminate.
    local: &'static str,
    /// The same, at n3.
    elsewhere: &'static str,
}

/// Under Local, who is inside gets where anybody gets under Cluster.
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

/// Fates in short. Who asks is seen as who it is, but by the pod that it is itself (`own`): an answer would not pass the node.
fn fates(short: &str, own: Option<&str>) -> BTreeSet<Fate> {
    let fate = |word: &str| match word {
        "drop" => Fate::Drop,
        "refuse" => Fate::Refuse,
        pod => Fate::Answer { pod: pod.to_owned(), kept: own != Some(pod) },
    };
    short.split_whitespace().map(fate).collect()
}

/// A cluster with a Service whose endpoints are written by hand.
struct Stage {
    world: World,
    /// The lb_ips, IPv4 first.
    both: [IpAddr; 2],
    /// The addresses of each pod, IPv4 first.
    pods: BTreeMap<String, [IpAddr; 2]>,
    /// The full names of pods.
    names: BTreeMap<String, String>,
}

/// Where somebody asks from.
struct Place {
    namespace: Namespace,
    /// The addresses that are its own.
    own: BTreeSet<IpAddr>,
    /// The pod that it is, if it is one.
    pod: Option<String>,
}

impl Stage {
    async fn set(name: &str, kube_proxy: KubeProxy) -> Result<Self> {
        let world = World::with_landfall(name, Topology { kube_proxy, ..Topology::default() }).await?;
        world.pool("lan", &["192.0.2.200/32", "2001:db8::200/128"]).await?;
        for (pod, node) in PODS {
            world.whoami_on(pod, 1, json!({"nodeName": node})).await?;
        }
        world.service("web", json!({"selector": null, "ipFamilyPolicy": "RequireDualStack"})).await?;
        world.address("web").await?;
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
        // A node that sends a packet back out by the link it came in on says so to who sent it: this test's routes must stay.
        let client = world.cluster.client_host("c1");
        for family in ["ipv4", "ipv6"] {
            client.netns()?.sysctl(&format!("{family}/conf/all/accept_redirects"), "0")?;
            client.netns()?.sysctl(&format!("{family}/conf/eth0/accept_redirects"), "0")?;
        }
        Ok(Self { world, both, pods, names })
    }

    /// Writes these endpoints into the Service's slices.
    async fn endpoints(&self, short: &str) -> Result<()> {
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
                "endpoints": short.split_whitespace().map(endpoint).collect::<Vec<Value>>(),
            });
            let params = PatchParams::apply("truth-table").force();
            slices.patch(&name, &params, &Patch::Apply(slice)).await.context("write a slice")?;
        }
        Ok(())
    }

    /// Lets packets from outside enter at this node.
    fn enter_at(&self, node: &str) -> Result<()> {
        let host = self.world.cluster.node(node);
        self.world.cluster.client_host("c1").netns()?.ip([
            format!("route replace {}/32 via {}", self.both[0], host.ipv4()),
            format!("route replace {}/128 via {}", self.both[1], host.ipv6()),
        ])?;
        Ok(())
    }

    /// Where they ask from.
    fn place(&self, who: Who, entry: &str) -> Result<Place> {
        let node = self.world.cluster.node(entry);
        match who {
            Who::Outside => {
                let client = self.world.cluster.client_host("c1");
                let own = BTreeSet::from([client.ipv4().into(), client.ipv6().into()]);
                Ok(Place { namespace: client.netns()?, own, pod: None })
            }
            Who::Node => {
                // Which of its addresses it takes is its own choice.
                let listed = node.output(["ip", "-oneline", "address"])?;
                let own = listed.split_whitespace().filter_map(|word| word.split('/').next()?.parse().ok()).collect();
                Ok(Place { namespace: node.netns()?, own, pod: None })
            }
            Who::Pod => {
                let asks = PODS.iter().find(|(pod, on)| pod.ends_with('5') && *on == entry);
                let (short, _) = asks.with_context(|| format!("no pod on {entry} asks"))?;
                let name = self.names.iter().find(|(_, pod)| *pod == short).map(|(name, _)| name);
                let namespace = node.netns_of_pod(name.context("invariant: it has a name")?)?;
                Ok(Place { namespace, own: self.pods[*short].into(), pod: Some((*short).to_owned()) })
            }
        }
    }

    /// Waits until everybody who asks gets there, and no one anywhere else.
    async fn gets(&self, who: Who, entry: &str, expected: &str) -> Result<()> {
        let place = self.place(who, entry)?;
        let expected = fates(expected, place.pod.as_deref());
        let runtime = Handle::current();
        let settled = |address: IpAddr, over_tcp: bool| {
            let to = SocketAddr::new(address, 80);
            let protocol = if over_tcp { "TCP" } else { "UDP" };
            let what = format!("{who:?} at {entry} over {protocol} to {address} to get to {}", list(&expected));
            runtime.block_on(wait_until(SETTLED, &what, async || {
                let seen = self.seen(&place, to, over_tcp, &expected)?;
                ensure!(seen == expected, "{}", list(&seen));
                Ok(())
            }))
        };
        // All at the same time, for silence takes its time.
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let ask = |(address, over_tcp)| {
                    scope.spawn({
                        let settled = &settled;
                        move || settled(address, over_tcp)
                    })
                };
                let each = self.both.into_iter().flat_map(|address| [(address, true), (address, false)]);
                let asking: Vec<_> = each.map(ask).collect();
                asking.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
            })
        })
    }

    fn seen(&self, place: &Place, to: SocketAddr, over_tcp: bool, expected: &BTreeSet<Fate>) -> Result<BTreeSet<Fate>> {
        // Silence takes its time, kernels say but once a second that they refuse a datagram (icmp_ratelimit), and neither is one
        // fate of several.
        let (times, patience) = match expected.first() {
            Some(Fate::Drop) => (1, SILENCE),
            Some(Fate::Refuse) => (1, PATIENCE),
            _ => (TIMES, PATIENCE),
        };
        let ask = if over_tcp { Answer::over_tcp } else { Answer::over_udp };
        let mut seen = BTreeSet::new();
        for answer in place.namespace.run(|| (0..times).map(|_| ask(to, patience)).collect::<Vec<_>>()) {
            seen.insert(match answer {
                Ok(answer) => {
                    let pod = self.names.get(&answer.pod).context("a strange pod")?.clone();
                    Fate::Answer { pod, kept: place.own.contains(&answer.client.ip()) }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Fate::Refuse,
                // In these words a kernel tells of both to who is on the node itself.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    if expected.contains(&Fate::Drop) {
                        Fate::Drop
                    } else {
                        Fate::Refuse
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Fate::Drop,
                Err(error) => return Err(error).with_context(|| format!("ask {to}")),
            });
        }
        Ok(seen)
    }
}

fn list(fates: &BTreeSet<Fate>) -> String {
    fates.iter().map(Fate::to_string).collect::<Vec<_>>().join(" or ")
}

async fn everybody_gets_where_the_table_says(name: &str, kube_proxy: KubeProxy) -> Result<()> {
    let stage = Stage::set(name, kube_proxy).await?;
    for policy in ["Cluster", "Local"] {
        for entry in ["n1", "n3"] {
            // Which endpoints clients inside the cluster get at a ClusterIP bears on nobody who asks for an lb_ip.
            let internal = if entry == "n1" { "Local" } else { "Cluster" };
            let policies = json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": internal});
            stage.world.patch_service("web", json!({"spec": policies})).await?;
            stage.enter_at(entry)?;
            for row in &TABLE {
                stage.endpoints(row.endpoints).await?;
                for who in EVERYBODY {
                    let expected = match (policy, who, entry) {
                        ("Local", Who::Outside, "n1") => row.local,
                        ("Local", Who::Outside, _) => row.elsewhere,
                        _ => row.cluster,
                    };
                    let case = || format!("endpoints {:?}, policy {policy}", row.endpoints);
                    stage.gets(who, entry, expected).await.with_context(case)?;
                }
                if (policy, entry) == ("Local", "n1") {
                    nodes_are_well_that_have_ready_endpoints(&stage, row.endpoints).await?;
                }
            }
        }
    }
    only_who_may_gets_in(&stage, kube_proxy).await?;
    stage.world.end()
}

/// What a load balancer in front is told: not to send anything to nodes whose endpoints all terminate, though they serve.
async fn nodes_are_well_that_have_ready_endpoints(stage: &Stage, endpoints: &str) -> Result<()> {
    let port = stage.world.get_service("web").await?.spec.unwrap_or_default().health_check_node_port;
    let port = port.context("the API server gives it a port")?.try_into()?;
    let ready: BTreeSet<&str> = endpoints.split_whitespace().filter(|word| !word.ends_with(['t', 'x', 'u'])).collect();
    for (pods, node) in [("l", "n1"), ("r", "n2"), ("x", "n3")] {
        let expected = if ready.iter().any(|endpoint| endpoint.starts_with(pods)) { 200 } else { 503 };
        let address = IpAddr::from(stage.world.cluster.node(node).ipv4());
        wait_until(SETTLED, &format!("{node} to say {expected} with endpoints {endpoints:?}"), async || {
            let (status, _) = stage.world.lan.http(address, port)?;
            ensure!(status == expected, "{status}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Ranges bind everybody: from outside, in pods and on the nodes. They do not bind who asks a node port.
async fn only_who_may_gets_in(stage: &Stage, kube_proxy: KubeProxy) -> Result<()> {
    stage.endpoints("l6 r6").await?;
    let ranges = json!({"spec": {"loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:1::/48"]}});
    stage.world.patch_service("web", ranges).await?;
    for policy in ["Cluster", "Local"] {
        stage.world.patch_service("web", json!({"spec": {"externalTrafficPolicy": policy}})).await?;
        for entry in ["n1", "n3"] {
            stage.enter_at(entry)?;
            for who in EVERYBODY {
                let case = || format!("not in the source ranges, policy {policy}");
                stage.gets(who, entry, "drop").await.with_context(case)?;
            }
        }
    }
    if kube_proxy != KubeProxy::None {
        let ports = stage.world.get_service("web").await?.spec.unwrap_or_default().ports.unwrap_or_default();
        let port = ports.first().and_then(|port| port.node_port).context("it has node ports")?.try_into()?;
        let node = IpAddr::from(stage.world.cluster.node("n1").ipv4());
        wait_until(SETTLED, "the node port to answer", async || {
            let seen = stage.world.lan.connect(node, port)?;
            ensure!(seen == Connect::Accepted, "{seen:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_kube_proxy_nftables_everybody_gets_where_the_truth_table_says() -> Result<()> {
    everybody_gets_where_the_table_says("e2e-truth-nft", KubeProxy::Nftables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_kube_proxy_iptables_everybody_gets_where_the_truth_table_says() -> Result<()> {
    everybody_gets_where_the_table_says("e2e-truth-ipt", KubeProxy::Iptables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kube_proxy_everybody_gets_where_the_truth_table_says() -> Result<()> {
    everybody_gets_where_the_table_says("e2e-truth-none", KubeProxy::None).await
}
