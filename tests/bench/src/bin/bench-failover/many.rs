//! The owner of thousands of addresses is cut off: the time from the first takeover to the last.
//!
//! The addresses belong to Services of the cluster, and are allocated and programmed as usual. An advertisement prefers
//! one node until that node owns all addresses. Then the advertisement is deleted, which moves no address. The takeover
//! of an address is complete when the client receives a gratuitous ARP from the next owner: from then on, the client
//! sends packets to that node. Afterwards a sample of the addresses is tested. Their Services have no pods, so each
//! address must refuse a connection.
//!
//! The result is compared with a floor: the time in which the same LAN carries as many frames from the same nodes,
//! without any other work ([`floor`]).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::percentile;
use bench::report::{FigureSpec, Report};
use bench::sniffer::{MacAddr, Sniffer, first_by_others};
use crds::{L2Advertisement, LoadBalancerIP};
use e2e::ConnectOutcome;
use e2e::world::SOON;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use lab::{Direction, wait_until};
use serde_json::json;
use tokio::time::sleep;

use crate::testbed::{FailoverTestbed, NODES, mac, without_pods};
use crate::{Bench, floor};

/// The pool: the lower half of the range of RFC 2544 for benchmarks.
const POOL: &str = "198.18.0.0/16";

/// The node that owns all of the addresses.
const OWNER: &str = "n1";

/// Concurrent creates.
const CREATORS: usize = 8;

/// The longest time for an address to be allocated and announced.
const TIME_PER_ADDRESS: Duration = Duration::from_millis(40);

/// The time between two counts of announced addresses.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &FailoverTestbed) -> Result<()> {
    let count = if bench.quick { 1000 } else { 5000 };
    let (client, cluster) = (&testbed.world.client, &testbed.world.cluster);
    let since = Instant::now();
    let pool = testbed.world.create_pool("many", &[POOL]).await?;
    let advertisements: Api<L2Advertisement> = Api::all(client.clone());
    let prefer = json!([{"weight": 100, "preference": {"matchLabels": {"kubernetes.io/hostname": OWNER}}}]);
    let advertisement = json!({
        "metadata": {"name": "many"},
        "spec": {"ipAddressPools": [pool.metadata.name], "preferredNodeSelectors": prefer},
    });
    advertisements.create(&PostParams::default(), &serde_json::from_value(advertisement)?).await?;
    create_services(testbed, count).await?;
    wait_until_announced(testbed, count).await?;
    advertisements.delete("many", &DeleteParams::default()).await?;
    testbed.client.output(["ip", "route", "replace", "198.18.0.0/15", "dev", "eth0"])?;
    // By then the last bursts are over, and all nodes have observed that no node is preferred.
    sleep(Duration::from_secs(6)).await;
    bench.progress(&format!("{count} addresses on {OWNER} after {} s", since.elapsed().as_secs()))?;

    let others: Vec<_> = NODES.iter().filter(|node| **node != OWNER).map(|node| cluster.node(node)).collect();
    let others: Vec<_> = others.into_iter().map(|host| mac(&host).map(|mac| (host, mac))).collect::<Result<_>>()?;
    let floor = floor::time_to_announce(&others, count, &testbed.client)?.as_secs_f64() * 1e3;

    let before = mac(&cluster.node(OWNER))?;
    let sniffer = Sniffer::begin(&testbed.client)?;
    let cut = sniffer.elapsed_time();
    cluster.cut(OWNER, Direction::Both)?;
    // The sniffer records all repetitions, too: a host that misses a frame receives the next one.
    sleep(Duration::from_secs(5)).await;
    let announcements = sniffer.end()?;
    let mut first = first_by_others(&announcements, before);
    first.retain(|address, (at, _)| address.octets()[..2] == [198, 18] && *at > cut);
    let sample: Vec<_> = first.keys().step_by((first.len() / 20).max(1)).copied().collect();
    wait_until_refused(testbed, &sample).await?;
    cluster.heal(OWNER)?;
    ensure!(first.len() == count as usize, "{} of {count} addresses were announced by others", first.len());
    let after = |owner: Option<MacAddr>| -> Vec<f64> {
        let first = first.values().filter(|(_, mac)| owner.is_none_or(|owner| owner == *mac));
        first.map(|(at, _)| (*at - cut).as_secs_f64() * 1e3).collect()
    };
    let all = after(None);
    let at = |share| percentile(&all, share).unwrap_or_default();
    let spread = at(1.0) - at(0.0);
    bench.progress(&format!("{count} addresses announced by others within {spread:.1} ms"))?;
    report.part(&format!("{count} addresses on the node that is cut off"));
    let of_count = |key: &str| format!("many_{count}_{key}");
    let first_to_last = of_count("first_to_last_ms");
    let spec = FigureSpec::lower(&first_to_last, "from the first takeover to the last", "ms").goal("100 or less");
    report.measure(spec, &[spread]);
    report.row("threads that only announce as many addresses", &format!("{floor:8.1} ms"));
    let ratio = of_count("vs_bare_senders");
    report.measure(
        FigureSpec::lower(&ratio, "Landfall to these threads", "ratio").goal("1.1 or less"),
        &[spread / floor],
    );
    let last = of_count("last_after_cut_ms");
    report.measure(FigureSpec::lower(&last, "from the cut to the last takeover", "ms"), &[at(1.0)]);
    report.row("after the cut", &format!("first {:.1}  p50 {:.1}  last {:.1} ms", at(0.0), at(0.5), at(1.0)));
    for node in NODES.iter().filter(|node| **node != OWNER) {
        let own = after(Some(mac(&cluster.node(node))?));
        let at = |share| percentile(&own, share).unwrap_or_default();
        let what = format!("  now announced by {node}: {}", own.len());
        report.row(&what, &format!("first {:.1}  p50 {:.1}  last {:.1} ms", at(0.0), at(0.5), at(1.0)));
    }
    Ok(())
}

/// Creates Services without pods in the pool.
async fn create_services(testbed: &FailoverTestbed, count: u32) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(testbed.world.client.clone());
    let creates = stream::iter(0..count).map(|n| {
        let services = &services;
        async move {
            let mut spec = without_pods();
            spec["type"] = json!("LoadBalancer");
            spec["ports"] = json!([{"port": 80}]);
            let annotations = json!({"landfall.dev/address-pool": "many"});
            let name = format!("many-{n:04}");
            let service = json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec});
            services.create(&PostParams::default(), &serde_json::from_value(service)?).await.context("create a Service")
        }
    });
    creates.buffer_unordered(CREATORS).try_for_each(async |_| anyhow::Ok(())).await
}

/// Waits until [`OWNER`] announces all addresses of the pool.
async fn wait_until_announced(testbed: &FailoverTestbed, count: u32) -> Result<()> {
    let records: Api<LoadBalancerIP> = Api::all(testbed.world.client.clone());
    wait_until(SOON + TIME_PER_ADDRESS * count, &format!("{OWNER} to announce {count} addresses"), async || {
        // Each list has several megabytes, and the API server serves the agents more slowly meanwhile.
        sleep(COUNT_INTERVAL).await;
        let records = records.list(&ListParams::default()).await?.items;
        let announced = records.iter().filter(|record| record.spec.pool == "many" && is_at_owner(record)).count();
        ensure!(announced == count as usize, "it announces {announced} of them");
        Ok(())
    })
    .await
}

fn is_at_owner(record: &LoadBalancerIP) -> bool {
    let announcers = record.status.as_ref().map(|status| status.announcers.as_slice()).unwrap_or_default();
    announcers.len() == 1 && announcers[0].node == OWNER
}

/// Waits until each of these addresses refuses a connection.
async fn wait_until_refused(testbed: &FailoverTestbed, sample: &[Ipv4Addr]) -> Result<()> {
    for address in sample {
        wait_until(SOON, &format!("{address} to refuse a connect"), async || {
            let outcome = testbed.world.lan.connect((*address).into(), 80)?;
            ensure!(outcome == ConnectOutcome::Refused, "{outcome:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
