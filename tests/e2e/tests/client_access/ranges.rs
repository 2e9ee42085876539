//! Who may come by `loadBalancerSourceRanges`, and that nobody else gets in, not for an instant, while rules change.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::world::SOON;
use e2e::{Asking, Over, World};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use lab::{Answer, Host, wait_until};
use netns::Namespace;
use serde_json::{Value, json};

/// Ranges that nobody here is in.
const NOBODY: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/48"];

/// Nobody answers if there was no answer for so long.
const SILENCE: Duration = Duration::from_millis(400);

/// How long an answer may take where there should be one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Somebody who asks for the Service.
struct Asker {
    name: String,
    namespace: Namespace,
    /// The ranges that it alone is in.
    alone: [String; 2],
}

impl Asker {
    fn outside(host: &Host) -> Result<Self> {
        let alone = [format!("{}/32", host.ipv4()), format!("{}/128", host.ipv6())];
        Ok(Self { name: host.name().to_owned(), namespace: host.netns()?, alone })
    }

    /// The pod on this node.
    async fn inside(world: &World, node: &str) -> Result<Self> {
        let pods = world.pods("web").await?;
        let (name, _) = pods.into_iter().find(|(_, on)| on == node).with_context(|| format!("no pod on {node}"))?;
        let pod = Api::<Pod>::default_namespaced(world.client.clone()).get(&name).await?;
        let ips = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
        let [v4, v6] = &ips[..] else { bail!("{name} has {ips:?}") };
        let alone = [format!("{}/32", v4.ip), format!("{}/128", v6.ip)];
        Ok(Self { namespace: world.cluster.node(node).netns_of_pod(&name)?, name, alone })
    }

    /// Whether it is served, at each address over TCP and over UDP; an error if it is not the same everywhere.
    fn is(&self, served: bool, both: [IpAddr; 2]) -> Result<()> {
        let patience = if served { PATIENCE } else { SILENCE };
        for address in both {
            let target = SocketAddr::new(address, 80);
            let answers =
                self.namespace.run(|| [Answer::over_tcp(target, patience), Answer::over_udp(target, patience)]);
            for (answer, over) in answers.iter().zip(["TCP", "UDP"]) {
                ensure!(answer.is_ok() == served, "{} over {over} at {address}: {answer:?}", self.name);
            }
        }
        Ok(())
    }
}

fn only(ranges: &[impl AsRef<str>]) -> Value {
    let ranges: Vec<_> = ranges.iter().map(AsRef::as_ref).collect();
    json!({"spec": {"loadBalancerSourceRanges": ranges}})
}

/// Waits until these are served, and the others of them are not.
async fn served(askers: &[Asker], who: &[bool], both: [IpAddr; 2], case: &str) -> Result<()> {
    wait_until(SOON, &format!("those to be served who may: {case}"), async || {
        std::thread::scope(|scope| {
            let each: Vec<_> = askers.iter().zip(who).map(|(one, who)| scope.spawn(|| one.is(*who, both))).collect();
            each.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
    })
    .await
}

pub async fn who_may_is_served_and_nobody_else(world: &World, both: [IpAddr; 2]) -> Result<()> {
    let client = world.cluster.client_host("c1");
    let askers = [Asker::outside(&client)?, Asker::inside(world, "n1").await?, Asker::inside(world, "n2").await?];
    let by_annotation = |value: Value| {
        let annotations = json!({"service.beta.kubernetes.io/load-balancer-source-ranges": value});
        json!({"metadata": {"annotations": annotations}, "spec": {"loadBalancerSourceRanges": null}})
    };
    let first_two = [&askers[0].alone[..], &askers[1].alone[..]].concat().join(",");
    for (case, patch, who) in [
        ("no ranges", only(&[""; 0]), [true; 3]),
        ("one pod", only(&askers[1].alone), [false, true, false]),
        ("everybody", only(&["0.0.0.0/0", "::/0"]), [true; 3]),
        ("nobody", only(&NOBODY), [false; 3]),
        ("the client", only(&["192.0.2.0/24", "2001:db8::/64"]), [true, false, false]),
        ("by annotation, the client and a pod", by_annotation(first_two.into()), [true, true, false]),
        ("no ranges again", by_annotation(Value::Null), [true; 3]),
    ] {
        world.patch_service("web", patch).await?;
        served(&askers, &who, both, case).await?;
    }
    Ok(())
}

/// How long somebody who should get no answer waits for one. It decides how often there is somebody new.
const BRIEF: Duration = Duration::from_millis(50);

/// Somebody who may not come and tries all the time, each time over a new flow, at each address over TCP and over UDP.
struct Intruder {
    over: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
    at: Vec<JoinHandle<Result<()>>>,
}

impl Intruder {
    fn begin(host: &Host, both: [IpAddr; 2]) -> Self {
        let (over, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let at = |(address, over_tcp)| {
            let (host, over, tries) = (host.clone(), Arc::clone(&over), Arc::clone(&tries));
            std::thread::spawn(move || {
                let target = SocketAddr::new(address, 80);
                host.run(|| {
                    while !over.load(Ordering::Relaxed) {
                        let heard = if over_tcp {
                            TcpStream::connect_timeout(&target, BRIEF).map(drop)
                        } else {
                            Answer::over_udp(target, BRIEF).map(drop)
                        };
                        // Nor is it told that there is nobody: that would be an answer too.
                        let is_silence =
                            |kind| matches!(kind, std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock);
                        let silence = heard.as_ref().is_err_and(|error| is_silence(error.kind()));
                        let count = tries.fetch_add(1, Ordering::Relaxed);
                        ensure!(silence, "at {target}, TCP {over_tcp}, in try {count}: {heard:?}");
                    }
                    Ok(())
                })?
            })
        };
        let each = both.into_iter().flat_map(|address| [(address, true), (address, false)]);
        let at = each.map(at).collect();
        Self { over, tries, at }
    }

    /// Waits until it has tried some more.
    async fn goes_on(&self) -> Result<()> {
        let since = self.tries.load(Ordering::Relaxed);
        wait_until(SOON, "somebody to try to get in", async || {
            ensure!(!self.at.iter().any(JoinHandle::is_finished), "somebody has got in");
            let tries = self.tries.load(Ordering::Relaxed) - since;
            ensure!(tries >= 4 * self.at.len(), "{tries} tries");
            Ok(())
        })
        .await
    }

    /// Ends it; an error if it has ever been answered.
    fn end(&mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let mut ends = self.at.drain(..).map(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?);
        ends.try_for_each(|end| end.context("who may not come was answered"))
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

pub async fn who_may_not_is_never_answered_while_rules_change(world: &World, both: [IpAddr; 2]) -> Result<()> {
    let hosts = ["c1", "c2"].map(|name| world.cluster.client_host(name));
    let clients = [Asker::outside(&hosts[0])?, Asker::outside(&hosts[1])?];
    served(&clients, &[true, true], both, "no ranges").await?;
    let narrow = only(&clients[0].alone);
    world.patch_service("web", narrow.clone()).await?;
    served(&clients, &[true, false], both, "one of two clients").await?;

    let mut intruder = Intruder::begin(&hosts[1], both);
    let port = |number: u16, protocol: &str| {
        let name = format!("{}-{number}", protocol.to_lowercase());
        json!({"name": name, "port": number, "targetPort": 8080, "protocol": protocol})
    };
    let ports = [port(80, "TCP"), port(80, "UDP"), port(81, "TCP")];
    let with = |spec: Value| json!({"spec": spec});
    // Wider, for the client's neighbour and for others; and as narrow as before.
    let ranges = vec![
        only(&["192.0.2.100/31", "2001:db8::100/127"]),
        only(&["192.0.2.100/31", "2001:db8::100/127", "10.244.0.0/16", "fd00:10:244::/48", NOBODY[0], NOBODY[1]]),
        narrow.clone(),
    ];
    // What else there is to change.
    let others = vec![
        with(json!({"externalTrafficPolicy": "Local"})),
        only(&["10.244.0.0/16", "192.0.2.101/32", "2001:db8::101/128"]),
        with(json!({"ports": ports})),
        with(json!({"externalTrafficPolicy": "Cluster"})),
        narrow,
    ];
    // TODO: a connection that is begun while the traffic policy changes may be lost: its SYN went to one node, its first ACK goes
    // to another. None may be when only ranges change.
    for (phases, most_lost) in [(ranges, 0), (others, 1)] {
        let targets = both.into_iter().flat_map(|address| [(address, Over::Tcp), (address, Over::Udp)]);
        let welcome: Vec<_> =
            targets.map(|(address, over)| Asking::begin(&hosts[0], SocketAddr::new(address, 80), over)).collect();
        for rules in phases {
            world.patch_service("web", rules).await?;
            intruder.goes_on().await?;
        }
        for asking in welcome {
            let tally = asking.end()?;
            let served = tally.lost <= most_lost && tally.asked > 0;
            ensure!(served, "who may come was not always served: {tally:?}");
        }
    }
    intruder.end()?;

    world.patch_service("web", only(&["192.0.2.101/32", "2001:db8::/64", "192.0.2.102/32"])).await?;
    served(&clients, &[true, true], both, "both clients").await?;
    world.patch_service("web", only(&NOBODY)).await?;
    served(&clients, &[false, false], both, "neither client").await?;
    world.patch_service("web", with(json!({"loadBalancerSourceRanges": null}))).await?;
    served(&clients, &[true, true], both, "no ranges any more").await
}
