//! The cost of finding and taking the next address of a pool.
//!
//! `cargo bench -p controller --bench allocate` prints the nanoseconds of one `next_address` and `take` for each kind
//! of pool. Each line has the median, the minimum and the maximum of all rounds. With `-- --json` it prints one line of
//! JSON with all rounds instead.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use controller::{Free, Occupied, Pools};
use crds::ip_address_pool::AddressRange;
use crds::service::Family;
use crds::{IPAddressPool, IPAddressPoolSpec, Key};
use jiff::{SignedDuration, Timestamp};

/// Rounds of each case: enough for a stable median on a busy machine.
const ROUNDS: usize = 200;

/// Addresses taken in a round: enough to make the clock negligible, and few enough to keep the pool about as full as
/// before.
const TAKES: u32 = 500;

/// A pool in some state.
struct Case {
    /// The name in the JSON.
    name: &'static str,
    range: &'static str,
    family: Family,
    /// Of its first `span` addresses, every `step`-th is in use.
    span: u32,
    step: u32,
    /// Whether each step takes a second and releases the address of the step before, which then cools down for a
    /// minute.
    churn: bool,
}

const IPV4: &str = "10.0.0.0-10.0.255.255";
const IPV6: &str = "2001:db8::/32";

const CASES: [Case; 8] = [
    Case { name: "alloc_ns_at_0", range: IPV4, family: Family::V4, span: 0, step: 1, churn: false },
    Case { name: "alloc_ns_at_1k", range: IPV4, family: Family::V4, span: 1_000, step: 1, churn: false },
    Case { name: "alloc_ns_at_10k", range: IPV4, family: Family::V4, span: 10_000, step: 1, churn: false },
    Case { name: "alloc_ns_at_65k", range: IPV4, family: Family::V4, span: 65_000, step: 1, churn: false },
    Case { name: "alloc_ns_fragmented", range: IPV4, family: Family::V4, span: 65_536, step: 2, churn: false },
    Case { name: "alloc_ns_churn_at_65k", range: IPV4, family: Family::V4, span: 65_000, step: 1, churn: true },
    Case { name: "alloc_ns_ipv6_at_0", range: IPV6, family: Family::V6, span: 0, step: 1, churn: false },
    Case { name: "alloc_ns_ipv6_at_65k", range: IPV6, family: Family::V6, span: 65_000, step: 1, churn: false },
];

fn main() {
    let results = CASES.map(|case| (case.name, measure(&case)));
    if std::env::args().any(|argument| argument == "--json") {
        let fields = results.map(|(name, rounds)| {
            let rounds: Vec<String> = rounds.iter().map(|nanoseconds| format!("{nanoseconds:.1}")).collect();
            format!("\"{name}\":[{}]", rounds.join(","))
        });
        println!("{{{}}}", fields.join(","));
    } else {
        println!("{:<24}{:>10}{:>10}{:>10}", "nanoseconds", "median", "min", "max");
        for (name, rounds) in results {
            let [min, median, max] = [rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]];
            println!("{name:<24}{median:>10.0}{min:>10.0}{max:>10.0}");
        }
    }
}

/// The nanoseconds of one step in each round, in ascending order.
fn measure(case: &Case) -> Vec<f64> {
    let addresses = vec![AddressRange(case.range.to_owned())];
    let object = IPAddressPool::new("lan", IPAddressPoolSpec { addresses, ..IPAddressPoolSpec::default() });
    let pools = Pools::new([&Arc::new(object)], &Occupied::default());
    let lan = pools.get("lan").expect("the pool");
    let first = lan.ranges[0].first();
    let full =
        Free::new(&pools, (0..case.span).filter(|index| index % case.step == 0).map(|index| nth_after(first, index)));
    // Each Service has its own name. A known name would get its former address again.
    let services: Vec<_> = (0..TAKES).map(|index| Key::new("default", format!("service-{index}"))).collect();
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| time_round(case, &pools, full.clone(), &services)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds
}

/// The nanoseconds of one step: the mean of a round.
fn time_round(case: &Case, pools: &Pools, mut free: Free, services: &[Key]) -> f64 {
    let lan = pools.get("lan").expect("the pool");
    let mut now = Timestamp::UNIX_EPOCH;
    let started = Instant::now();
    let mut before = None;
    for service in services {
        let Some(lb_ip) = black_box(free.next_address(lan, case.family, service, now)) else { break };
        free.take(lb_ip);
        if let Some((lb_ip, service)) = before.replace((lb_ip, service)).filter(|_| case.churn) {
            free.release(lb_ip, Some(Key::clone(service)), now);
            now += SignedDuration::from_secs(1);
        }
    }
    started.elapsed().as_nanos() as f64 / f64::from(TAKES)
}

fn nth_after(first: IpAddr, index: u32) -> IpAddr {
    match first {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + index).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(index)).into()),
    }
}
