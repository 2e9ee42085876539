//! The gate for failover: the outage of new connections when the announcing node is cut off, again and again.
//!
//! The switch drops all frames from and to the node. On the LAN this looks like a death: no frame comes from the node,
//! and no host notices. A power-off takes seconds longer, for the start of the node. The carrier of the node must stay
//! up: a link that returns after a loss of carrier keeps its incarnation and begins its sequence at 0, so peers ignore
//! its Hellos for minutes. That defect is known (`returned_link_is_heard_again` in `speaker/tests/simulation/`).
//!
//! Everything else is the default of a cluster: kube-proxy, traffic policy Cluster, spreading, both families. So an
//! outage also includes connections that a living node sends to the pod of the node that is cut off.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::LoadBalancerIP;
use e2e::world::{SOON, ingress};
use e2e::{Target, Traffic, TrafficPlan, World};
use kube::Api;
use lab::{Direction, Topology, evidence_folder, wait_until};
use load::{FaultResult, Gap, Outage, OutageBounds, Outages, Outcome, Transport, Try, TryPlan, fault_result};
use model::stable_hash::splitmix64;
use serde_json::json;

/// Number of cuts of which the outage is measured.
const CUTS: usize = 20;

/// The promise to users of Landfall, on a machine that also runs another cluster.
const BOUNDS: OutageBounds = OutageBounds {
    p50: Duration::from_millis(200),
    max: Duration::from_millis(400),
    lateness: Duration::from_millis(50),
    repeats: 10,
};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A try without an answer for this long is lost. The kernel would send a lost SYN again only after a second.
const TRY_TIMEOUT: Duration = Duration::from_millis(500);

/// All tries before a cut are answered for at least this long.
const LEAD_TIME: Duration = Duration::from_millis(150);

/// Cuts come at different phases of this time: twice the interval between Hellos.
const PHASES_MS: u64 = 100;

/// Limit until another node answers. A longer outage has no length.
const TAKEOVER: Duration = Duration::from_secs(10);

/// The cut lasts for this long after another node has answered. Further losses in this time belong to the outage.
const FOLLOW_UP: Duration = Duration::from_millis(300);

/// Limit until the cluster agrees again after a cut.
const AGREEMENT: Duration = Duration::from_secs(20);

/// The cluster, and the tries from a client to its addresses.
struct FailoverGate {
    world: World,
    /// One address of each family.
    addresses: Vec<IpAddr>,
    traffic: Traffic,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_announcer_costs_a_fraction_of_a_second() -> Result<()> {
    let gate = FailoverGate::start().await?;
    let (start, mut found) = (Instant::now(), Outages::default());
    // For people and programs: the node, family and outage of each cut.
    let mut cuts = Vec::new();
    while found.outages.len() < CUTS && found.repeated.len() <= BOUNDS.repeats {
        let number = found.outages.len() + found.repeated.len();
        let (node, address, result) = gate.cut_announcer(number).await.with_context(|| format!("cut {number}"))?;
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        match result {
            FaultResult::Recovered(outage) => {
                let Outage { length, lateness } = outage;
                cuts.push(json!({"node": node, "family": family, "outage_ms": ms(length), "late_ms": ms(lateness)}));
                found.outages.push(outage);
            }
            FaultResult::MachineLate(why) => {
                eprintln!("  {node} was cut off while the machine was late: {why}");
                cuts.push(json!({"node": node, "family": family, "repeated": why}));
                found.repeated.push(why);
            }
            FaultResult::StillLost => anyhow::bail!("cut {number}, of {node}: tries to {address} are still lost"),
        }
    }
    eprintln!("failover: {found}; {:.0?}", start.elapsed());
    let [p50, p95, max] = [0.5, 0.95, 1.0].map(|share| ms(found.percentile(share)));
    let evidence = json!({
        "p50_ms": p50, "p95_ms": p95, "max_ms": max, "late_ms": ms(found.lateness()),
        "repeated": found.repeated.len(), "cuts": cuts,
    });
    std::fs::write(evidence_folder()?.join("failover.json"), format!("{evidence:#}\n"))?;
    let reasons = found.reasons(&BOUNDS);
    ensure!(reasons.is_empty(), "{found}: {}", reasons.join("; "));
    gate.world.end()
}

impl FailoverGate {
    async fn start() -> Result<Self> {
        let world = World::with_landfall("e2e-failover", Topology::default()).await?;
        world.create_pool("lan", &["192.0.2.200/32", "2001:db8::200/128"]).await?;
        // A pod on each node: every node can serve, and every cut takes a pod out of the rotation.
        let one_per_node = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
        world.create_whoami_with("web", NODES.len() as i32, json!({"topologySpreadConstraints": one_per_node})).await?;
        world.create_service("web", json!({"ipFamilyPolicy": "RequireDualStack"})).await?;
        let addresses = wait_until(SOON, "both addresses", async || {
            let addresses = ingress(&world.get_service("web").await?);
            ensure!(addresses.len() == 2, "{addresses:?}");
            Ok(addresses)
        })
        .await?;
        for address in &addresses {
            wait_until(SOON, &format!("all pods to answer at {address}"), async || {
                let pods = world.lan.answering_pods(10 * NODES.len(), *address)?;
                ensure!(pods.len() == NODES.len(), "{pods:?}");
                Ok(())
            })
            .await?;
        }
        let targets = addresses.iter().map(|address| target(*address));
        let traffic = TrafficPlan::new(targets).past_nodes().start(&world).await?;
        let gate = Self { world, addresses, traffic };
        gate.wait_for_agreement().await?;
        Ok(gate)
    }

    /// Cuts off the announcer of one address, and heals the cut. Returns the node, the address and the result.
    async fn cut_announcer(&self, number: usize) -> Result<(&'static str, IpAddr, FaultResult)> {
        let index = number % self.addresses.len();
        let address = &self.addresses[index];
        let (world, clock) = (&self.world, self.traffic.clock);
        let announcers = self.announcers(*address).await?;
        let node = NODES.into_iter().find(|node| announcers == [*node]);
        let node = node.with_context(|| format!("{announcers:?} announce {address}"))?;
        self.traffic.take_run();
        let begin = clock.now();
        tokio::time::sleep(LEAD_TIME + Duration::from_millis(splitmix64(number as u64) % PHASES_MS)).await;

        // The instant before the command. On a busy machine it takes effect much later.
        let from = clock.now();
        let cut = world.cut(node, Direction::Both)?;
        wait_until(TAKEOVER, &format!("another node than {node} to answer at {address}"), async || {
            world.lan.query_tcp_within(*address, Duration::from_millis(100))
        })
        .await?;
        tokio::time::sleep(FOLLOW_UP).await;
        let observed = Gap { from, to: clock.now() };
        cut.heal()?;
        self.wait_for_agreement().await?;
        let announcers = self.announcers(*address).await?;

        // By then all tries of the observation have ended.
        let all_ended = observed.to + TRY_TIMEOUT + Duration::from_millis(50);
        tokio::time::sleep(all_ended.saturating_sub(clock.now())).await;
        let run = self.traffic.take_run();
        let (_, record) = &run.records[index];
        let result = fault_result(record, &run.control, observed, &BOUNDS);
        // On a late machine the nodes lose each other without a cut. So these checks apply only to other results.
        if let FaultResult::Recovered(outage) = &result {
            let before = |one: &&Try| one.started >= begin && one.started + record.interval < from;
            let lost: Vec<_> = record.tries.iter().filter(before).filter(|one| one.outcome != Outcome::Ok).collect();
            if !lost.is_empty() {
                // A late agent considered a node dead. The control was in time, because it runs in another group of
                // processes.
                return Ok((node, *address, FaultResult::MachineLate(format!("lost before the cut: {lost:?}"))));
            }
            ensure!(announcers != [node], "{address} has moved back to {node}");
            ensure!(outage.length > Duration::ZERO, "the cut of {node} had no effect on {address}: {record}");
        }
        Ok((node, *address, result))
    }

    /// Waits until no agent considers a node dead, and each address has one announcer, which its status names.
    async fn wait_for_agreement(&self) -> Result<()> {
        wait_until(AGREEMENT, "the cluster to agree", async || {
            let metric = |node, name: &str| self.world.agent_metric(&self.world.cluster.node(node), name);
            for node in NODES {
                let dead = metric(node, "landfall_dead_nodes")?;
                ensure!(dead == 0.0, "{node} considers {dead} nodes dead");
            }
            for address in &self.addresses {
                // There is one address of each family.
                let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
                let name = format!("landfall_announced_addresses{{family=\"{family}\"}}");
                let counts = NODES.map(|node| metric(node, &name).map(|count| (node, count)));
                let counts = counts.into_iter().collect::<Result<Vec<_>>>()?;
                let announcing: Vec<_> =
                    counts.iter().filter(|(_, count)| *count > 0.0).map(|(node, _)| *node).collect();
                let announcers = self.announcers(*address).await?;
                let agrees = announcing.len() == 1 && announcers == announcing;
                ensure!(agrees, "{announcing:?} announce {address}, and its status names {announcers:?}");
            }
            Ok(())
        })
        .await
    }

    /// The nodes that the status of an address names.
    async fn announcers(&self, address: IpAddr) -> Result<Vec<String>> {
        let records: Api<LoadBalancerIP> = Api::all(self.world.client.clone());
        let record = records.get(&crds::address::object_name(address)).await?;
        let announcers = record.status.unwrap_or_default().announcers;
        Ok(announcers.iter().map(|announcer| announcer.node.to_string()).collect())
    }
}

/// A try every 10 ms.
fn target(address: IpAddr) -> Target {
    let plan = TryPlan { timeout: TRY_TIMEOUT, ..TryPlan::new(SocketAddr::new(address, 80), Transport::Tcp) };
    Target { name: "web".to_owned(), plan }
}

/// A time in milliseconds, with one decimal place.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}
