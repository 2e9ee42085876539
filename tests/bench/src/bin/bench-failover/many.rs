//! The owner of thousands of addresses is cut off: how long it takes from the first to the last of them.
//!
//! They are Services on the cluster, allocated and programmed as any: an advertisement prefers one node until it has all of
//! them, and then goes, which moves nothing. An address counts from when the client hears that it is somebody else's now, by
//! gratuitous ARP, which is when it sends there. That it is answered there is tried with a sample afterwards: nobody serves
//! these Services, so each has to refuse a connect.
//!
//! Beside it stands how long the same LAN takes to carry as many frames from the same nodes, with nothing else to do ([`floor`]).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::distribution::percentile;
use bench::report::Report;
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

use crate::testbed::{NODES, Stand, mac, without_pods};
use crate::{Bench, floor};

/// The pool that they are from: of what RFC 2544 sets aside for benchmarks.
const POOL: &str = "198.18.0.0/16";

/// Who has all of them.
const OWNER: &str = "n1";

/// Creates under way at a time.
const CREATORS: usize = 8;

/// How long it may take until they are allocated and announced, for each of them.
const EACH: Duration = Duration::from_millis(40);

/// The pause between two looks at how many are announced.
const LOOK: Duration = Duration::from_secs(5);

/// Measures.
pub async fn measure(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let count = if bench.quick { 1000 } else { 5000 };
    let (client, cluster) = (&stand.world.client, &stand.world.cluster);
    let since = Instant::now();
    let pool = stand.world.create_pool("many", &[POOL]).await?;
    let advertisements: Api<L2Advertisement> = Api::all(client.clone());
    let prefer = json!([{"weight": 100, "preference": {"matchLabels": {"kubernetes.io/hostname": OWNER}}}]);
    let advertisement = json!({
        "metadata": {"name": "many"},
        "spec": {"ipAddressPools": [pool.metadata.name], "preferredNodeSelectors": prefer},
    });
    advertisements.create(&PostParams::default(), &serde_json::from_value(advertisement)?).await?;
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let made = stream::iter(0..count).map(|n| {
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
    made.buffer_unordered(CREATORS).try_for_each(async |_| anyhow::Ok(())).await?;
    let addresses: Api<LoadBalancerIP> = Api::all(client.clone());
    wait_until(SOON + EACH * count, &format!("{OWNER} to announce {count} addresses"), async || {
        // Not looked at more often than needed: each look is megabytes, and takes from the API server what the others need.
        sleep(LOOK).await;
        let all = addresses.list(&ListParams::default()).await?.items;
        let ours = all.iter().filter(|object| object.spec.pool == "many");
        let there = ours.filter(|object| {
            let announcers = object.status.as_ref().map(|status| status.announcers.as_slice()).unwrap_or_default();
            announcers.len() == 1 && announcers[0].node == OWNER
        });
        let there = there.count();
        ensure!(there == count as usize, "{there} of them");
        Ok(())
    })
    .await?;
    advertisements.delete("many", &DeleteParams::default()).await?;
    stand.client.output(["ip", "route", "replace", "198.18.0.0/15", "dev", "eth0"])?;
    // Until the last bursts are over, and everybody knows that nobody is preferred.
    sleep(Duration::from_secs(6)).await;
    bench.progress(&format!("{count} addresses on {OWNER} after {} s", since.elapsed().as_secs()))?;

    let others: Vec<_> = NODES.iter().filter(|node| **node != OWNER).map(|node| cluster.node(node)).collect();
    let others: Vec<_> = others.into_iter().map(|host| mac(&host).map(|mac| (host, mac))).collect::<Result<_>>()?;
    let floor = floor::announcements(&others, count, &stand.client)?.as_secs_f64() * 1e3;

    let before = mac(&cluster.node(OWNER))?;
    let sniffer = Sniffer::begin(&stand.client)?;
    let cut = sniffer.elapsed_time();
    cluster.cut(OWNER, Direction::Both)?;
    // All repetitions too: who misses one frame hears the next.
    sleep(Duration::from_secs(5)).await;
    let heard = sniffer.end()?;
    let mut first = first_by_others(&heard, before);
    first.retain(|address, (at, _)| address.octets()[..2] == [198, 18] && *at > cut);
    let sample: Vec<_> = first.keys().step_by((first.len() / 20).max(1)).copied().collect();
    let lan = &stand.world.lan;
    for address in &sample {
        wait_until(SOON, &format!("{address} to refuse a connect"), async || {
            let end = lan.connect((*address).into(), 80)?;
            ensure!(end == ConnectOutcome::Refused, "{end:?}");
            Ok(())
        })
        .await?;
    }
    cluster.heal(OWNER)?;
    ensure!(first.len() == count as usize, "{} of {count} addresses were announced by others", first.len());
    let after = |owner: Option<MacAddr>| -> Vec<f64> {
        let of = first.values().filter(|(_, mac)| owner.is_none_or(|owner| owner == *mac));
        of.map(|(at, _)| (*at - cut).as_secs_f64() * 1e3).collect()
    };
    let all = after(None);
    let at = |share| percentile(&all, share).unwrap_or_default();
    let spread = at(1.0) - at(0.0);
    bench.progress(&format!("{count} addresses announced by others within {spread:.1} ms"))?;
    report.part(&format!("{count} addresses on the node that is cut off"));
    report.row("from the first that others announce to the last", &format!("{spread:8.1} ms  goal 100 or less"));
    report.row("threads that announce as many, and do nothing else", &format!("{floor:8.1} ms"));
    report.row("Landfall", &format!("{:8.2}  times that", spread / floor));
    report.row("after the cut", &format!("first {:.1}  p50 {:.1}  last {:.1} ms", at(0.0), at(0.5), at(1.0)));
    for node in NODES.iter().filter(|node| **node != OWNER) {
        let own = after(Some(mac(&cluster.node(node))?));
        let at = |share| percentile(&own, share).unwrap_or_default();
        let what = format!("  announced by {node} then: {}", own.len());
        report.row(&what, &format!("first {:.1}  p50 {:.1}  last {:.1} ms", at(0.0), at(0.5), at(1.0)));
    }
    report.figure("many_addresses", f64::from(count));
    report.figure("many_spread_ms", spread);
    report.figure("many_floor_ms", floor);
    report.figure("many_last_ms", at(1.0));
    Ok(())
}
