//! What the controller does and knows, in numbers for Prometheus.
//!
//! What shells and the loop tell, and what the stores know when it is asked for → the text of the OpenMetrics format. What
//! counts objects is read from the stores each time: so it is right after any history, and costs nothing in between. Of
//! several controllers only the one that leads tells of objects, so that sums over all of them are right.
//!
//! Labels have values from enums and names of pools, never what somebody wrote into a status.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crds::service::ALLOCATED;
use crds::{IPAddressPool, Service};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::state::stores::Stores;
use crate::status::reason::RefusalReason;

pub(crate) mod latency;

/// The reason of those that have no answer yet, or one that is none of ours.
const OTHER: &str = "Other";

/// The reasons of refusals, as conditions have them.
fn refusal_reasons() -> impl Iterator<Item = &'static str> {
    RefusalReason::ALL.iter().map(|reason| reason.as_str())
}

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// A LoadBalancerIP is created.
    CreateAddress,
    /// A LoadBalancerIP is deleted.
    DeleteAddress,
    /// The holders of a LoadBalancerIP are changed.
    PatchAddress,
    /// A Service's status is written.
    PatchService,
    /// A pool's status is written.
    PatchPool,
    /// An event is created.
    CreateEvent,
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is done.
    Ok,
    /// Somebody else wrote first (409).
    Conflict,
    /// The object is gone (404).
    Gone,
    /// The API server refused otherwise.
    Refused,
    /// Nobody knows: there was no answer.
    Unanswered,
    /// It was not sent: another may lead.
    Deposed,
}

impl Write {
    fn label(self) -> &'static str {
        match self {
            Self::CreateAddress => "address_create",
            Self::DeleteAddress => "address_delete",
            Self::PatchAddress => "address_patch",
            Self::PatchService => "service_patch",
            Self::PatchPool => "pool_patch",
            Self::CreateEvent => "event_create",
        }
    }
}

impl Outcome {
    /// That of a request that failed.
    pub(crate) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict,
                404 => Self::Gone,
                _ => Self::Refused,
            },
            _ => Self::Unanswered,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Deposed => "deposed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The numbers of one controller. Clones are handles on the same ones.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Numbers>);

struct Numbers {
    registry: Registry,
    writes: Family<WriteLabels, Counter>,
    plans: Histogram,
    allocations: Histogram,
    leads: Gauge,
    elected: Counter,
    capacity: Family<PoolLabels, Gauge>,
    used: Family<PoolLabels, Gauge>,
    free: Family<PoolLabels, Gauge>,
    served: Gauge,
    pending: Family<ReasonLabels, Gauge>,
    /// What is read when numbers are asked for, and whether Services without a class are ours.
    known: Mutex<Option<(Stores, bool)>>,
}

impl Default for Numbers {
    fn default() -> Self {
        let mut numbers = Self {
            registry: Registry::with_prefix("landfall"),
            writes: Family::default(),
            // From 10 µs, which is what a plan about one Service takes, to 2.6 s.
            plans: Histogram::new(exponential_buckets(10e-6, 4.0, 10)),
            // From 1 ms to 33 s.
            allocations: Histogram::new(exponential_buckets(1e-3, 2.0, 16)),
            leads: Gauge::default(),
            elected: Counter::default(),
            capacity: Family::default(),
            used: Family::default(),
            free: Family::default(),
            served: Gauge::default(),
            pending: Family::default(),
            known: Mutex::default(),
        };
        numbers.register();
        numbers
    }
}

impl Numbers {
    fn register(&mut self) {
        let to = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.register("build", "The version of Landfall", version);
        to.register("writes", "Writes to the API server, by kind and result", self.writes.clone());
        to.register_with_unit("plan_duration", "How long planning took", Unit::Seconds, self.plans.clone());
        to.register_with_unit(
            "allocation_duration",
            "From when a Service was seen to want addresses until its status had them, where it was not refused",
            Unit::Seconds,
            self.allocations.clone(),
        );
        to.register("leader", "Whether this controller leads (1) or stands by (0)", self.leads.clone());
        to.register("elections_won", "How often this controller came to lead", self.elected.clone());
        let addresses = || Unit::Other("addresses".into());
        to.register_with_unit(
            "pool_capacity",
            "Addresses of a pool that Services have or can get without asking for one by name",
            addresses(),
            self.capacity.clone(),
        );
        to.register_with_unit("pool_used", "Addresses that are given or reserved", addresses(), self.used.clone());
        to.register_with_unit(
            "pool_free",
            "Addresses that a Service can get without asking for one by name",
            addresses(),
            self.free.clone(),
        );
        to.register("services_allocated", "Services that have their addresses", self.served.clone());
        to.register(
            "services_pending",
            "Services that don't have the addresses that they ask for, by the reason on their condition",
            self.pending.clone(),
        );
    }
}

impl Metrics {
    /// All of them, in the text format of OpenMetrics 1.0 ([`Metrics::CONTENT_TYPE`]).
    ///
    /// # Errors
    /// If they can't be written as text, which does not happen.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.count();
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// The type of [`Metrics::text`], for HTTP.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Whether the controller knows the whole cluster: from then on it can lead without delay.
    pub fn is_ready(&self) -> bool {
        self.known().as_ref().is_some_and(|(stores, _)| stores.is_synced())
    }

    /// What is read when numbers are asked for.
    pub(crate) fn know(&self, stores: Stores, default_class: bool) {
        *self.known() = Some((stores, default_class));
    }

    /// It leads from now on, or does not.
    pub(crate) fn leads(&self, leads: bool) {
        if self.0.leads.set(leads.into()) == 0 && leads {
            self.0.elected.inc();
        }
    }

    /// A plan took that long.
    pub(crate) fn planned(&self, took: Duration) {
        self.0.plans.observe(took.as_secs_f64());
    }

    /// A Service waited that long for its addresses.
    pub(crate) fn allocated(&self, waited: Duration) {
        self.0.allocations.observe(waited.as_secs_f64());
    }

    /// A write went that way.
    pub(crate) fn wrote(&self, kind: Write, outcome: Outcome) {
        let labels = WriteLabels { kind: kind.label(), result: outcome.label() };
        self.0.writes.get_or_create(&labels).inc();
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<(Stores, bool)>> {
        // Another one that asked has panicked: what is known is as good as before.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads anew what counts objects. One at a time.
    fn count(&self) {
        let known = self.known();
        let numbers = &self.0;
        for family in [&numbers.capacity, &numbers.used, &numbers.free] {
            family.clear();
        }
        numbers.pending.clear();
        let mut counts = Counts::default();
        if let Some((stores, default_class)) = known.as_ref()
            && numbers.leads.get() > 0
        {
            stores.services.read(|table| {
                table.objects().for_each(|(_, service)| counts.add(service, *default_class));
            });
            for (name, pool) in stores.pools.snapshot().unwrap_or_default() {
                for (family, used, free) in by_family(&pool) {
                    let labels = PoolLabels { pool: name.clone(), family };
                    numbers.capacity.get_or_create(&labels).set(used.saturating_add(free));
                    numbers.used.get_or_create(&labels).set(used);
                    numbers.free.get_or_create(&labels).set(free);
                }
            }
        }
        numbers.served.set(counts.served);
        for (reason, count) in counts.pending {
            numbers.pending.get_or_create(&ReasonLabels { reason }).set(count);
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// What Services come to.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    served: i64,
    pending: BTreeMap<&'static str, i64>,
}

impl Default for Counts {
    /// None. Each reason is there from the start, or a rate of its change misses the first one.
    fn default() -> Self {
        Self { served: 0, pending: refusal_reasons().chain([OTHER]).map(|reason| (reason, 0)).collect() }
    }
}

impl Counts {
    fn add(&mut self, service: &Service, default_class: bool) {
        if !service.is_ours(default_class) || service.deleting {
            return;
        }
        if service.is_allocated() {
            self.served += 1;
            return;
        }
        let condition = service.conditions.iter().find(|condition| condition.type_ == ALLOCATED);
        let written = condition.map_or(OTHER, |condition| &condition.reason);
        let reason = refusal_reasons().find(|reason| *reason == written).unwrap_or(OTHER);
        *self.pending.entry(reason).or_default() += 1;
    }
}

/// How many addresses of a pool are used and free, of each family of which it has any.
fn by_family(pool: &IPAddressPool) -> impl Iterator<Item = (&'static str, i64, i64)> {
    let status = pool.status.clone().unwrap_or_default();
    let families =
        [("ipv4", status.assigned_ipv4, status.available_ipv4), ("ipv6", status.assigned_ipv6, status.available_ipv6)];
    let has = |family: &str| {
        let mut ranges = pool.spec.addresses.iter().filter_map(|range| range.parse().ok());
        ranges.any(|range| range.is_ipv4() == (family == "ipv4"))
    };
    let has = families.map(|(family, used, free)| has(family) || used > 0 || free > 0);
    families.into_iter().zip(has).filter(|(_, has)| *has).map(|(family, _)| family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{IPAddressPoolSpec, IPAddressPoolStatus};
    use observe::source;
    use serde_json::{Value, json};

    fn service(name: &str, status: &str, reason: &str) -> k8s_openapi::api::core::v1::Service {
        let condition = json!({
            "type": ALLOCATED, "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let conditions = if status.is_empty() { json!([]) } else { json!([condition]) };
        object(json!({
            "metadata": {"namespace": "default", "name": name, "resourceVersion": "2"},
            "spec": {"type": "LoadBalancer"},
            "status": {"conditions": conditions},
        }))
    }

    fn object<T: serde::de::DeserializeOwned>(object: Value) -> T {
        serde_json::from_value(object).expect("an object")
    }

    fn stores() -> Stores {
        let stores = Stores::empty();
        let mut pool = IPAddressPool::new(
            "lan",
            IPAddressPoolSpec {
                addresses: vec![crds::ip_address_pool::AddressRange("192.0.2.0/24".into())],
                ..object(json!({"addresses": []}))
            },
        );
        pool.metadata.resource_version = Some("2".into());
        pool.status =
            Some(IPAddressPoolStatus { assigned_ipv4: 3, available_ipv4: 251, ..IPAddressPoolStatus::default() });
        stores.put_pool(&pool);
        for service in [
            service("a", "True", "Allocated"),
            service("b", "True", "PoolDraining"),
            service("c", "False", "PoolsExhausted"),
            service("d", "False", "PoolsExhausted"),
            service("e", "False", "Written by somebody else"),
            service("f", "", ""),
        ] {
            stores.put_service(&service);
        }
        // Not one of ours.
        let mut other = service("g", "False", "NoPool");
        other.spec.as_mut().expect("a spec").type_ = Some("ClusterIP".into());
        stores.services.put(source::services().observe(&other).expect("a name").0);
        stores
    }

    /// The lines of the text that are no comments and begin so.
    fn lines(metrics: &Metrics, beginning: &str) -> Vec<String> {
        let text = metrics.text().expect("text");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn the_one_that_leads_tells_of_pools_and_services_and_the_others_of_none() {
        let metrics = Metrics::default();
        assert!(!metrics.is_ready());
        metrics.know(stores(), true);
        assert!(metrics.is_ready());
        let pools = || lines(&metrics, "landfall_pool_");
        let services = || {
            let mut lines = lines(&metrics, "landfall_services_");
            lines.retain(|line| !line.ends_with(" 0"));
            lines
        };
        assert_eq!((pools(), services()), (vec![], vec![]));
        metrics.leads(true);
        let of_pools = [
            "landfall_pool_capacity_addresses{pool=\"lan\",family=\"ipv4\"} 254",
            "landfall_pool_free_addresses{pool=\"lan\",family=\"ipv4\"} 251",
            "landfall_pool_used_addresses{pool=\"lan\",family=\"ipv4\"} 3",
        ];
        let of_services = [
            "landfall_services_allocated 2",
            "landfall_services_pending{reason=\"Other\"} 2",
            "landfall_services_pending{reason=\"PoolsExhausted\"} 2",
        ];
        assert_eq!((pools(), services()), (of_pools.map(Into::into).into(), of_services.map(Into::into).into()));
        assert_eq!(
            lines(&metrics, "landfall_services_pending").len(),
            RefusalReason::ALL.len() + 1,
            "also those that are 0"
        );
        metrics.leads(false);
        assert_eq!((pools(), services()), (vec![], vec![]));
    }

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::default();
        metrics.leads(true);
        metrics.leads(true);
        metrics.leads(false);
        metrics.leads(true);
        metrics.planned(Duration::from_micros(30));
        metrics.allocated(Duration::from_millis(3));
        metrics.wrote(Write::CreateAddress, Outcome::Ok);
        metrics.wrote(Write::CreateAddress, Outcome::Ok);
        metrics.wrote(Write::PatchService, Outcome::Conflict);
        assert_eq!(lines(&metrics, "landfall_leader"), ["landfall_leader 1"]);
        assert_eq!(lines(&metrics, "landfall_elections"), ["landfall_elections_won_total 2"]);
        assert_eq!(
            lines(&metrics, "landfall_writes"),
            [
                "landfall_writes_total{kind=\"address_create\",result=\"ok\"} 2",
                "landfall_writes_total{kind=\"service_patch\",result=\"conflict\"} 1",
            ]
        );
        assert_eq!(
            lines(&metrics, "landfall_plan_duration_seconds_sum"),
            ["landfall_plan_duration_seconds_sum 0.00003"]
        );
        assert_eq!(
            lines(&metrics, "landfall_allocation_duration_seconds_bucket")[..3],
            [
                "landfall_allocation_duration_seconds_bucket{le=\"+Inf\"} 1",
                "landfall_allocation_duration_seconds_bucket{le=\"0.001\"} 0",
                "landfall_allocation_duration_seconds_bucket{le=\"0.002\"} 0",
            ]
        );
        let version = format!("landfall_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        assert_eq!(lines(&metrics, "landfall_build_info"), [version]);
    }
}
