//! What it costs to plan: for one Service more where there are many, and for all of them.
//!
//! `cargo bench -p controller --bench plan` prints, for each number of Services that have their addresses already, the
//! microseconds of all planning between one new Service and its rest (it appears, its LoadBalancerIP is answered, its
//! patch is answered, its series ends), of the first plan among these, and of a plan about everything, as after a change
//! of pools (processor time): the median of all rounds, the least and the most.

#![allow(clippy::print_stdout, reason = "it is what a benchmark is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use controller::{Effect, Ledger, Subject};
use crds::ip_address_pool::AddressRange;
use crds::{IPAddressPool, IPAddressPoolSpec, Record, Service};
use jiff::Timestamp;

/// How often each case is measured.
const ROUNDS: usize = 200;

/// The same for plans about everything.
const FULL_ROUNDS: usize = 20;

fn main() {
    for count in [0, 1_000, 10_000, 30_000] {
        let mut ledger = settled(count);
        let mut paths = Vec::new();
        let mut firsts = Vec::new();
        for round in 0..ROUNDS {
            let (first, path) = one_more(&mut ledger, count + round as u32);
            firsts.push(first);
            paths.push(path);
        }
        print("first plan of one more", count, firsts);
        print("all plans of one more", count, paths);
        let mut full = Vec::new();
        for _ in 0..FULL_ROUNDS {
            // As when an administrator edits it.
            let edited = lan(u32::try_from(full.len()).unwrap_or_default() + 2);
            let began = processor_time();
            ledger.set_pool("lan", Some(edited));
            let plan = black_box(ledger.plan(now()));
            full.push(processor_time() - began);
            assert!(plan.series.iter().all(|series| matches!(series.subject, Subject::Pool(_))), "all have all");
        }
        print("plan about everything", count, full);
    }
}

/// For how long this thread had a processor, in microseconds. The kernel counts that at each tick, some milliseconds
/// apart; of what takes longer it tells more on a busy machine than a clock does.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e3
}

fn print(what: &str, count: u32, mut micros: Vec<f64>) {
    micros.sort_by(f64::total_cmp);
    let (least, most) = (micros[0], micros[micros.len() - 1]);
    println!("{what:24} at {count:6}: {:9.1} µs ({least:.1} to {most:.1})", micros[micros.len() / 2]);
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

/// A pool with room for all, of which each version has another limit.
fn lan(version: u32) -> Arc<IPAddressPool> {
    let addresses = vec![AddressRange("10.0.0.0-10.255.255.255".into())];
    let reuse_after = Some(format!("{version}s"));
    let mut pool =
        IPAddressPool::new("lan", IPAddressPoolSpec { addresses, reuse_after, ..IPAddressPoolSpec::default() });
    pool.metadata.resource_version = Some(version.to_string());
    Arc::new(pool)
}

/// A ledger that knows so many Services, of which each has its address.
fn settled(count: u32) -> Ledger {
    let mut ledger = Ledger::new(true);
    ledger.set_pool("lan", Some(lan(1)));
    let mut services: Vec<_> = (0..count).map(service).collect();
    services.sort_by(|one, other| one.key.cmp(&other.key));
    for service in &services {
        ledger.set_service(&service.key, Some(Arc::new(service.clone())), false);
    }
    answer_all(&mut ledger, services);
    ledger
}

/// Plans, and answers as an API server does, until nothing is left to do but to write pools.
fn answer_all(ledger: &mut Ledger, services: Vec<Service>) {
    let plan = ledger.plan(now());
    assert_eq!(plan.series.iter().filter(|s| matches!(s.subject, Subject::Service(_))).count(), services.len());
    for series in &plan.series {
        answer(ledger, series, &services);
    }
    ledger.plan(now());
}

fn answer(ledger: &mut Ledger, series: &controller::Series, services: &[Service]) {
    for effect in &series.effects {
        match effect {
            Effect::Create { address, pool, holder, .. } => {
                let record = Record {
                    address: *address,
                    uid: address.to_string().into(),
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
                ledger.set_address(*address, Some(Arc::new(record)), false, now());
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
                ledger.set_service(&patch.key, Some(Arc::new(patched)), false);
            }
            _ => {}
        }
    }
}

/// What planning one Service more costs, in microseconds: the plan that gives it its address; and all plans until it
/// rests.
fn one_more(ledger: &mut Ledger, number: u32) -> (f64, f64) {
    let service = service(number);
    let began = Instant::now();
    ledger.set_service(&service.key, Some(Arc::new(service.clone())), false);
    let plan = ledger.plan(now());
    let first = began.elapsed().as_secs_f64() * 1e6;
    let mut spent = first;
    let subject = Subject::Service(service.key.clone());
    let series = plan.series.into_iter().find(|series| series.subject == subject).expect("a series");
    let services = [service];
    for effect in &series.effects {
        let one = controller::Series { subject: series.subject.clone(), effects: vec![effect.clone()] };
        let began = Instant::now();
        ledger.begins(&series);
        answer(ledger, &one, &services);
        black_box(ledger.plan(now()));
        spent += began.elapsed().as_secs_f64() * 1e6;
    }
    let began = Instant::now();
    ledger.ended(&subject);
    let rest = ledger.plan(now());
    spent += began.elapsed().as_secs_f64() * 1e6;
    assert!(rest.series.iter().all(|series| series.subject != subject), "it has all it wants");
    (first, spent)
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
