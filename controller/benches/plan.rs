//! The cost of plans: for one more Service among many, and for all Services.
//!
//! `cargo bench -p controller --bench plan` prints times in microseconds for several numbers of Services with
//! addresses. Each line has the median, the minimum and the maximum of all rounds:
//!
//! - all plans for one new Service: after its first observation, after each answer to its writes, and after the end of
//!   its series
//! - the first of these plans
//! - a plan that covers all Services, as after a change of a pool (processor time)
//!
//! Two more cases cause much work at once. As in the main loop, each of their plans decides about a limited number of
//! Services. The longest plan is printed too:
//!
//! - Services that no node may announce, when the label of a Node changes
//! - Services that wait, when a pool among many full ones changes
//!
//! With numbers as arguments, only these numbers of Services are measured. Counts of instructions are more precise than
//! times: `valgrind --tool=callgrind --toggle-collect='*measured_*'` counts each kind of plan in a function of its own.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use controller::{ClusterIndex, Effect, Series, Subject};
use crds::ip_address_pool::AddressRange;
use crds::{
    Advertisement, IPAddressPool, IPAddressPoolSpec, L2Advertisement, Labels, Node, NodeAddresses, Record, Service,
};
use jiff::{SignedDuration, Timestamp};

/// Rounds of each case.
const ROUNDS: usize = 200;

/// Rounds of plans that cover all Services.
const FULL_ROUNDS: usize = 20;

/// Maximum number of Services in one plan, as in the main loop.
const SERVICES_PER_PLAN: usize = 64;

/// Nodes of the case with Services that no node may announce.
const NODES: u32 = 200;

/// Full pools of the case with Services that wait.
const FULL_POOLS: u32 = 500;

fn main() {
    let chosen: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let or_default = |default: &[u32]| if chosen.is_empty() { default.to_vec() } else { chosen.clone() };
    for count in or_default(&[0, 1_000, 10_000, 30_000]) {
        let (mut cluster, _) = settled_cluster(count);
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
            let series = measured_full(&mut cluster, edited);
            full.push(processor_time() - started);
            assert!(series.iter().all(|s| matches!(s.subject, Subject::Pool(_))), "all Services are settled");
        }
        print_times("plan of all Services", count, full);
    }
    for count in or_default(&[5_000]) {
        measure_silent(count);
    }
    for count in or_default(&[500]) {
        measure_waiting(count);
    }
}

/// Plans after the label of a Node has changed, with this many Services that no node may announce.
fn measure_silent(count: u32) {
    let (mut cluster, mut services) = settled_cluster(count);
    (0..NODES).for_each(|number| cluster.set_node(&format!("n{number}"), Some(node(number, 0))));
    cluster.set_network("n0", Some(Arc::new(NodeAddresses::default())));
    // A typo: the selector matches no node.
    let spec = serde_json::from_value(serde_json::json!({"nodeSelectors": [{"matchLabels": {"rol": "edge"}}]}));
    let advertisement = L2Advertisement::new("ad", spec.expect("a spec"));
    cluster.set_advertisement("ad", Some(Arc::new(Advertisement::from(&advertisement))));
    cluster.plan(now());
    let later = now().saturating_add(SignedDuration::from_secs(6)).expect("in range");
    let plan = cluster.plan(later);
    let reported = plan.series.iter().filter(|series| matches!(series.effects[0], Effect::PatchConditions(_)));
    assert_eq!(reported.count(), services.len(), "each Service reports that no node may announce its address");
    for series in &plan.series {
        answer(&mut cluster, series, &mut services);
        cluster.end_series(&series.subject);
    }
    cluster.plan(later);
    measure_cut("recheck of silent Services", count, |version| {
        cluster.set_node("n0", Some(node(0, version)));
        measured_silent(&mut cluster, later)
    });
}

/// Plans after a change of one of many full pools, with this many Services that wait for an address.
fn measure_waiting(count: u32) {
    let mut cluster = ClusterIndex::new(true);
    let pool = |number: u32, version: u32| {
        let range = format!("10.{}.{}.1/32", number / 250, number % 250);
        // Nothing can be assigned: a limit of 0 would be invalid, so the only address is excluded.
        named_pool(&format!("full-{number:03}"), &range, &range, version)
    };
    (0..FULL_POOLS).for_each(|number| cluster.set_pool(&format!("full-{number:03}"), Some(pool(number, 1))));
    let mut services: Vec<_> = (0..count).map(service).collect();
    services.sort_by(|one, other| one.key.cmp(&other.key));
    for service in &services {
        cluster.set_service(&service.key, Some(Arc::new(service.clone())), false);
    }
    let plan = cluster.plan(now());
    plan.series.iter().for_each(|series| answer(&mut cluster, series, &mut services));
    cluster.plan(now());
    measure_cut("recheck of waiting Services", count, |version| {
        cluster.set_pool("full-000", Some(pool(0, version + 1)));
        measured_waiting(&mut cluster, now())
    });
}

/// Prints the sum and the longest time of the plans of a round. `round` returns the times in microseconds.
fn measure_cut(name: &str, count: u32, round: impl FnMut(u32) -> Vec<f64>) {
    let rounds: Vec<_> = (1..=FULL_ROUNDS as u32).map(round).collect();
    print_times(name, count, rounds.iter().map(|times| times.iter().sum()).collect());
    print_times(
        "  its longest plan",
        count,
        rounds.iter().map(|times| times.iter().copied().fold(0., f64::max)).collect(),
    );
}

#[inline(never)]
fn measured_silent(cluster: &mut ClusterIndex, now: Timestamp) -> Vec<f64> {
    plan_in_parts(cluster, now)
}

#[inline(never)]
fn measured_waiting(cluster: &mut ClusterIndex, now: Timestamp) -> Vec<f64> {
    plan_in_parts(cluster, now)
}

/// Plans like the main loop. Returns the times of the plans in microseconds.
fn plan_in_parts(cluster: &mut ClusterIndex, now: Timestamp) -> Vec<f64> {
    let mut times = Vec::new();
    loop {
        let started = Instant::now();
        black_box(cluster.plan_some(now, SERVICES_PER_PLAN));
        times.push(started.elapsed().as_secs_f64() * 1e6);
        if !cluster.has_backlog() {
            return times;
        }
    }
}

#[inline(never)]
fn measured_full(cluster: &mut ClusterIndex, pool: Arc<IPAddressPool>) -> Vec<Series> {
    cluster.set_pool("lan", Some(pool));
    cluster.plan(now()).series
}

#[inline(never)]
fn measured_first(cluster: &mut ClusterIndex, service: &Service) -> Vec<Series> {
    cluster.set_service(&service.key, Some(Arc::new(service.clone())), false);
    cluster.plan(now()).series
}

#[inline(never)]
fn measured_answer(cluster: &mut ClusterIndex, series: &Series, one: &Series, services: &mut [Service]) {
    cluster.start_series(series);
    answer(cluster, one, services);
    black_box(cluster.plan(now()));
}

#[inline(never)]
fn measured_end(cluster: &mut ClusterIndex, subject: &Subject) -> Vec<Series> {
    cluster.end_series(subject);
    cluster.plan(now()).series
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
    named_pool("lan", "10.0.0.0-10.255.255.255", "", version)
}

/// `exclude`: a range, or empty.
fn named_pool(name: &str, addresses: &str, exclude: &str, version: u32) -> Arc<IPAddressPool> {
    let range = |text: &str| AddressRange(text.into());
    let exclude = (!exclude.is_empty()).then(|| range(exclude)).into_iter().collect();
    let (addresses, reuse_after) = (vec![range(addresses)], Some(format!("{version}s")));
    let spec = IPAddressPoolSpec { addresses, exclude, reuse_after, ..IPAddressPoolSpec::default() };
    let mut pool = IPAddressPool::new(name, spec);
    pool.metadata.resource_version = Some(version.to_string());
    Arc::new(pool)
}

/// A Node with twenty labels. Each version has another label.
fn node(number: u32, version: u32) -> Arc<Node> {
    let labels = (0..20).map(|label| (format!("example.com/label-{label:02}"), format!("value-{number}-{version}")));
    let labels = Labels::from(Some(&labels.collect()));
    let addresses = vec![format!("192.168.{}.{}", number / 250, number % 250 + 1).parse().expect("an address")];
    Arc::new(Node { name: format!("n{number}"), labels, addresses, ..Node::default() })
}

/// An index with this many Services, all settled.
fn settled_cluster(count: u32) -> (ClusterIndex, Vec<Service>) {
    let mut cluster = ClusterIndex::new(true);
    cluster.set_pool("lan", Some(lan(1)));
    let mut services: Vec<_> = (0..count).map(service).collect();
    services.sort_by(|one, other| one.key.cmp(&other.key));
    for service in &services {
        cluster.set_service(&service.key, Some(Arc::new(service.clone())), false);
    }
    answer_all(&mut cluster, &mut services);
    (cluster, services)
}

/// Plans and answers like an API server, until only writes of pools are left.
fn answer_all(cluster: &mut ClusterIndex, services: &mut [Service]) {
    let plan = cluster.plan(now());
    assert_eq!(plan.series.iter().filter(|s| matches!(s.subject, Subject::Service(_))).count(), services.len());
    for series in &plan.series {
        answer(cluster, series, services);
    }
    cluster.plan(now());
}

fn answer(cluster: &mut ClusterIndex, series: &Series, services: &mut [Service]) {
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
            Effect::PatchService(patch) | Effect::PatchConditions(patch) | Effect::ReportRefusal(patch) => {
                let index = services.binary_search_by(|service| service.key.cmp(&patch.key)).expect("a Service");
                let service = &mut services[index];
                service.resource_version += 1;
                service.finalizers = patch.finalizers.clone().unwrap_or_else(|| service.finalizers.clone());
                service.ingress = patch.ingress.clone().unwrap_or_else(|| service.ingress.clone());
                service.conditions = patch.conditions.clone().unwrap_or_else(|| service.conditions.clone());
                cluster.set_service(&patch.key, Some(Arc::new(service.clone())), false);
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
    let series = measured_first(cluster, &service);
    let first = started.elapsed().as_secs_f64() * 1e6;
    let mut spent = first;
    let subject = Subject::Service(service.key.clone());
    let series = series.into_iter().find(|series| series.subject == subject).expect("a series");
    let mut services = [service];
    for effect in &series.effects {
        let one = Series { subject: series.subject.clone(), effects: vec![effect.clone()] };
        let started = Instant::now();
        measured_answer(cluster, &series, &one, &mut services);
        spent += started.elapsed().as_secs_f64() * 1e6;
    }
    let started = Instant::now();
    let rest = measured_end(cluster, &subject);
    spent += started.elapsed().as_secs_f64() * 1e6;
    assert!(rest.iter().all(|series| series.subject != subject), "the Service is settled");
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
