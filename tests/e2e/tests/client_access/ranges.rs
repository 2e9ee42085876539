//! `loadBalancerSourceRanges`: clients in the ranges are served, and no other client is ever answered, not even while
//! rules change.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::traffic::{KnownLoss, NOTHING_LOST, RUNS};
use e2e::world::SOON;
use e2e::{Target, TrafficPlan, World};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use lab::{Answer, Host, wait_until};
use load::{Bounds, Clock, Outcome, Prober, Record, Try, TryPlan, repeat_while_late};
use netns::Namespace;
use serde_json::{Value, json};

/// Ranges without a client.
const EMPTY_RANGES: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/48"];

/// Without an answer for this long, no answer follows.
const SILENCE: Duration = Duration::from_millis(400);

/// Limit of waiting for an expected answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A client of the Service, inside or outside of the cluster.
struct RangeClient {
    name: String,
    namespace: Namespace,
    /// The ranges of its addresses only.
    own_ranges: [String; 2],
}

impl RangeClient {
    fn on_lan(host: &Host) -> Result<Self> {
        let own_ranges = [format!("{}/32", host.ipv4()), format!("{}/128", host.ipv6())];
        Ok(Self { name: host.name().to_owned(), namespace: host.netns()?, own_ranges })
    }

    /// The pod on this node.
    async fn in_pod(world: &World, node: &str) -> Result<Self> {
        let pods = world.pod_nodes("web").await?;
        let (name, _) = pods.into_iter().find(|(_, host)| host == node).with_context(|| format!("no pod on {node}"))?;
        let pod = Api::<Pod>::default_namespaced(world.client.clone()).get(&name).await?;
        let ips = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
        let [v4, v6] = &ips[..] else { bail!("{name} has {ips:?}") };
        let own_ranges = [format!("{}/32", v4.ip), format!("{}/128", v6.ip)];
        Ok(Self { namespace: world.cluster.node(node).netns_of_pod(&name)?, name, own_ranges })
    }

    /// Checks whether it is served, at each address over TCP and over UDP.
    fn check(&self, is_served: bool, both: [IpAddr; 2]) -> Result<()> {
        let timeout = if is_served { TIMEOUT } else { SILENCE };
        for address in both {
            let target = SocketAddr::new(address, 80);
            let answers = self.namespace.run(|| [Answer::over_tcp(target, timeout), Answer::over_udp(target, timeout)]);
            for (answer, protocol) in answers.iter().zip(["TCP", "UDP"]) {
                ensure!(answer.is_ok() == is_served, "{} over {protocol} at {address}: {answer:?}", self.name);
            }
        }
        Ok(())
    }
}

/// The patch that sets source ranges.
fn source_ranges(ranges: &[impl AsRef<str>]) -> Value {
    let ranges: Vec<_> = ranges.iter().map(AsRef::as_ref).collect();
    json!({"spec": {"loadBalancerSourceRanges": ranges}})
}

/// Waits until exactly the clients with `true` are served.
async fn expect_served(clients: &[RangeClient], served: &[bool], both: [IpAddr; 2], case: &str) -> Result<()> {
    wait_until(SOON, &format!("the right clients to be served: {case}"), async || {
        std::thread::scope(|scope| {
            let checks = clients.iter().zip(served);
            let threads: Vec<_> =
                checks.map(|(client, is_served)| scope.spawn(|| client.check(*is_served, both))).collect();
            threads.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
    })
    .await
}

pub async fn only_clients_in_source_ranges_are_served(world: &World, both: [IpAddr; 2]) -> Result<()> {
    let client = world.cluster.client_host("c1");
    let clients = [
        RangeClient::on_lan(&client)?,
        RangeClient::in_pod(world, "n1").await?,
        RangeClient::in_pod(world, "n2").await?,
    ];
    let by_annotation = |value: Value| {
        let annotations = json!({"service.beta.kubernetes.io/load-balancer-source-ranges": value});
        json!({"metadata": {"annotations": annotations}, "spec": {"loadBalancerSourceRanges": null}})
    };
    let first_two = [&clients[0].own_ranges[..], &clients[1].own_ranges[..]].concat().join(",");
    for (case, patch, served) in [
        ("no ranges", source_ranges(&[""; 0]), [true; 3]),
        ("one pod", source_ranges(&clients[1].own_ranges), [false, true, false]),
        ("all addresses", source_ranges(&["0.0.0.0/0", "::/0"]), [true; 3]),
        ("no client", source_ranges(&EMPTY_RANGES), [false; 3]),
        ("the client", source_ranges(&["192.0.2.0/24", "2001:db8::/64"]), [true, false, false]),
        ("by annotation, the client and a pod", by_annotation(first_two.into()), [true, true, false]),
        ("no ranges again", by_annotation(Value::Null), [true; 3]),
    ] {
        world.patch_service("web", patch).await?;
        expect_served(&clients, &served, both, case).await?;
    }
    Ok(())
}

/// Time between two attempts of an excluded client at an address over one protocol.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);

/// An excluded client waits for an answer for this long.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(100);

/// Attempts at each address over each protocol after a change.
const ATTEMPTS: usize = 4;

/// The greatest number of lost first tries to a target, over all changes of traffic policy and ports. The bar is 0, and
/// changes of ranges meet it.
const LOST_IN_POLICY_CHANGES: usize = 4;

/// Why [`LOST_IN_POLICY_CHANGES`] is not 0.
const POLICY_DEFECT: &str = "while the traffic policy changes, tries are refused for up to 60 ms, and a connection is \
                             lost if its SYN goes to one node and its first ACK to another";

/// A client outside of the ranges that tries all the time, each time over a new flow, at each address over TCP and over
/// UDP.
struct ExcludedClient {
    clock: Clock,
    probers: Vec<(Target, Prober)>,
    /// The tries of each prober that have ended.
    ended: Vec<Vec<Try>>,
}

impl ExcludedClient {
    fn start(host: &Host, both: [IpAddr; 2]) -> Result<Self> {
        let (namespace, clock) = (host.netns()?, Clock::start());
        let start = |target: Target| {
            let plan = TryPlan { interval: ATTEMPT_INTERVAL, timeout: ATTEMPT_TIMEOUT, ..target.plan };
            (target, Prober::start(plan, Some(&namespace), clock))
        };
        let probers: Vec<_> = targets(both).map(start).collect();
        let ended = vec![Vec::new(); probers.len()];
        Ok(Self { clock, probers, ended })
    }

    /// Waits for some more attempts.
    async fn wait_for_attempts(&mut self) -> Result<()> {
        let since = self.clock.now();
        wait_until(SOON, "attempts of the excluded client", async || {
            for ((target, prober), ended) in self.probers.iter().zip(&mut self.ended) {
                ended.extend(prober.take_record().tries);
                let attempts = ended.iter().filter(|one| one.started >= since).count();
                ensure!(attempts >= ATTEMPTS, "{}: {attempts} attempts", target.label());
            }
            Ok(())
        })
        .await
    }

    /// Stops the client. Fails if it has had an answer. A refusal is an answer as well.
    fn stop(self) -> Result<()> {
        for ((target, prober), mut tries) in self.probers.into_iter().zip(self.ended) {
            tries.extend(prober.stop()?.tries);
            let heard = tries.iter().find(|one| one.outcome != Outcome::TimedOut);
            ensure!(heard.is_none(), "the excluded client has an answer: {}, {heard:?}", target.label());
        }
        Ok(())
    }
}

/// Both addresses over both protocols.
fn targets(both: [IpAddr; 2]) -> impl Iterator<Item = Target> {
    both.into_iter().flat_map(|address| Target::over_both(&address.to_string(), address))
}

pub async fn excluded_clients_get_no_answer_during_changes(world: &World, both: [IpAddr; 2]) -> Result<()> {
    let hosts = ["c1", "c2"].map(|name| world.cluster.client_host(name));
    let clients = [RangeClient::on_lan(&hosts[0])?, RangeClient::on_lan(&hosts[1])?];
    expect_served(&clients, &[true, true], both, "no ranges").await?;
    let narrow = source_ranges(&clients[0].own_ranges);
    world.patch_service("web", narrow.clone()).await?;
    expect_served(&clients, &[true, false], both, "one of two clients").await?;

    let mut excluded = ExcludedClient::start(&hosts[1], both)?;
    let port = |number: u16, protocol: &str| {
        let name = format!("{}-{number}", protocol.to_lowercase());
        json!({"name": name, "port": number, "targetPort": 8080, "protocol": protocol})
    };
    let ports = [port(80, "TCP"), port(80, "UDP"), port(81, "TCP")];
    let spec_patch = |spec: Value| json!({"spec": spec});
    // Wider, for the client's neighbour address and for other ranges; then as narrow as before.
    let wider = ["192.0.2.100/31", "2001:db8::100/127", "10.244.0.0/16", "fd00:10:244::/48"];
    let ranges =
        vec![source_ranges(&wider[..2]), source_ranges(&[&wider[..], &EMPTY_RANGES[..]].concat()), narrow.clone()];
    // Other changes.
    let others = vec![
        spec_patch(json!({"externalTrafficPolicy": "Local"})),
        source_ranges(&["10.244.0.0/16", "192.0.2.101/32", "2001:db8::101/128"]),
        spec_patch(json!({"ports": ports})),
        spec_patch(json!({"externalTrafficPolicy": "Cluster"})),
        narrow,
    ];
    for (phases, most_lost) in [(ranges, 0), (others, LOST_IN_POLICY_CHANGES)] {
        let verdict = repeat_while_late(RUNS, async || {
            let traffic = TrafficPlan::new(targets(both)).start(world).await?;
            for rules in &phases {
                world.patch_service("web", rules.clone()).await?;
                excluded.wait_for_attempts().await?;
            }
            let run = traffic.stop()?;
            run.print("changes of source ranges, ports and traffic policy");
            let reasons = |(target, record): &(Target, Record)| {
                let at_most = most_lost as f64 / record.tries.len().max(1) as f64;
                KnownLoss { at_most, reason: POLICY_DEFECT }.reasons(&target.label(), record)
            };
            let reasons = run.records.iter().flat_map(reasons).collect();
            let bounds = Bounds { loss: 1.0, slow: most_lost, ..NOTHING_LOST };
            Ok(run.excuse_late_machine(run.verdict(&bounds, reasons)))
        });
        verdict.await?.into_result().context("the client in the ranges was not always served")?;
    }
    excluded.stop()?;

    world.patch_service("web", source_ranges(&["192.0.2.101/32", "2001:db8::/64", "192.0.2.102/32"])).await?;
    expect_served(&clients, &[true, true], both, "both clients").await?;
    world.patch_service("web", source_ranges(&EMPTY_RANGES)).await?;
    expect_served(&clients, &[false, false], both, "neither client").await?;
    world.patch_service("web", spec_patch(json!({"loadBalancerSourceRanges": null}))).await?;
    expect_served(&clients, &[true, true], both, "no ranges again").await
}
