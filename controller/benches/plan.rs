//! The cost of plans: for one more Service among many, and for all Services.
//!
//! `cargo bench -p controller --bench plan` prints times in microseconds for several numbers of Services with
//! addresses. Each line has the median, the minimum and the maximum of all rounds:
//!
//! - all plans for one new Service: from its first observation, over the answers to its two writes, to the end of its
//!   series
//! - the first of these plans
//! - a plan that covers all Services, as after a change of a pool (processor time)

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use controller::{ClusterIndex, Effect, Subject};
use crds::ip_address_pool::AddressRange;
use crds::{IPAddressPool, IPAddressPoolSpec, Record, Service};
use jiff::Timestamp;

/// Rounds of each case.
const ROUNDS: usize = 200;

/// Rounds of plans that cover all Services.
const FULL_ROUNDS: usize = 20;

fn main() {
    for count in [0, 1_000, 10_000, 30_000] {
        let mut cluster = settled_cluster(count);
        let (mut first, mut all) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let cost = plan_one_more(&mut cluster, count + round as u32);
            first.push(cost.first);
            all.push(cost.all);
        }
        print_times("first plan of one more", count, first);
        print_times("all plans of one more", count, all);
        let mut full = Vec::new();
        for _ in 0..FULL_ROUNDS {
            // An administrator edits the pool.
            let edited = lan(u32::try_from(full.len()).unwrap_or_default() + 2);
            let started = processor_time();
            cluster.set_pool("lan", Some(edited));
            let plan = black_box(cluster.plan(now()));
            full.push(processor_time() - started);
            assert!(
                plan.series.iter().all(|series| matches!(series.subject, Subject::Pool(_))),
                "all Services are settled"
            );
        }
        print_times("plan of all Services", count, full);
    }
}

/// The processor time of this thread, in microseconds. The kernel counts it at each tick, some milliseconds apart. For
/// longer work on a busy machine it is more precise than a clock.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e3
}

fn print_times(name: &str, count: u32, mut micros: Vec<f64>) {
    micros.sort_by(f64::total_cmp);
    let (min, max) = (micros[0], micros[micros.len() - 1]);
    println!("{name:24} at {count:6}: {:9.1} µs ({min:.1} to {max:.1})", micros[micros.len() / 2]);
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

/// A pool with space for all Services. Each version has another `reuseAfter`.
fn lan(version: u32) -> Arc<IPAddressPool> {
    let addresses = vec![AddressRange("10.0.0.0-10.255.255.255".into())];
    let reuse_after = Some(format!("{version}s"));
    let mut pool =
        IPAddressPool::new("lan", IPAddressPoolSpec { addresses, reuse_after, ..IPAddressPoolSpec::default() });
    pool.metadata.resource_version = Some(version.to_string());
    Arc::new(pool)
}

/// An index with this many Services, all settled.
fn settled_cluster(count: u32) -> ClusterIndex {
    let mut cluster = ClusterIndex::new(true);
    cluster.set_pool("lan", Some(lan(1)));
    let mut services: Vec<_> = (0..count).map(service).collect();
    services.sort_by(|one, other| one.key.cmp(&other.key));
    for service in &services {
        cluster.set_service(&service.key, Some(Arc::new(service.clone())), false);
    }
    answer_all(&mut cluster, services);
    cluster
}

/// Plans and answers like an API server, until only writes of pools are left.
fn answer_all(cluster: &mut ClusterIndex, services: Vec<Service>) {
    let plan = cluster.plan(now());
    assert_eq!(plan.series.iter().filter(|s| matches!(s.subject, Subject::Service(_))).count(), services.len());
    for series in &plan.series {
        answer(cluster, series, &services);
    }
    cluster.plan(now());
}

fn answer(cluster: &mut ClusterIndex, series: &controller::Series, services: &[Service]) {
    for effect in &series.effects {
        match effect {
            Effect::Create { lb_ip, pool, holder, .. } => {
                let record = Record {
                    address: *lb_ip,
                    uid: lb_ip.to_string().into(),
                    resource_version: 1,
                    deleting: false,
                    pool: pool.clone(),
                    holders: vec![holder.clone()],
                    sharing_key: None,
                    reservation: None,
                    quarantine: None,
                    announcers: vec![],
                    first_announced: None,
                    conflicts: vec![],
                };
                cluster.set_record(*lb_ip, Some(Arc::new(record)), false, now());
            }
            Effect::PatchService(patch) => {
                let index = services.binary_search_by(|service| service.key.cmp(&patch.key)).expect("a Service");
                let patched = Service {
                    resource_version: 2,
                    finalizers: patch.finalizers.clone().unwrap_or_default(),
                    ingress: patch.ingress.clone().unwrap_or_default(),
                    conditions: patch.conditions.clone().unwrap_or_default(),
                    ..services[index].clone()
                };
                cluster.set_service(&patch.key, Some(Arc::new(patched)), false);
            }
            _ => {}
        }
    }
}

/// The cost of plans for one more Service, in microseconds.
struct PlanCost {
    /// Of the first plan.
    first: f64,
    /// Of all plans until the Service is settled.
    all: f64,
}

/// Adds a Service, and plans until it is settled.
fn plan_one_more(cluster: &mut ClusterIndex, number: u32) -> PlanCost {
    let service = service(number);
    let started = Instant::now();
    cluster.set_service(&service.key, Some(Arc::new(service.clone())), false);
    let plan = cluster.plan(now());
    let first = started.elapsed().as_secs_f64() * 1e6;
    let mut spent = first;
    let subject = Subject::Service(service.key.clone());
    let series = plan.series.into_iter().find(|series| series.subject == subject).expect("a series");
    let services = [service];
    for effect in &series.effects {
        let one = controller::Series { subject: series.subject.clone(), effects: vec![effect.clone()] };
        let started = Instant::now();
        cluster.start_series(&series);
        answer(cluster, &one, &services);
        black_box(cluster.plan(now()));
        spent += started.elapsed().as_secs_f64() * 1e6;
    }
    let started = Instant::now();
    cluster.end_series(&subject);
    let rest = cluster.plan(now());
    spent += started.elapsed().as_secs_f64() * 1e6;
    assert!(rest.series.iter().all(|series| series.subject != subject), "the Service is settled");
    PlanCost { first, all: spent }
}

fn service(number: u32) -> Service {
    let object: k8s_openapi::api::core::v1::Service = serde_json::from_value(serde_json::json!({
        "metadata": {
            "namespace": format!("team-{}", number % 50),
            "name": format!("web-{number:06}"),
            "uid": format!("0f4e1f0e-0000-4000-8000-{number:012}"),
            "resourceVersion": "1",
            "labels": {"app": "web"},
        },
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": "web"},
            "ipFamilies": ["IPv4"],
            "ports": [{"port": 80}],
        },
    }))
    .expect("a Service");
    Service::try_from(&object).expect("a Service")
}
