//! Metrics for Prometheus.
//!
//! Observations of the main loop, and the contents of the stores at each scrape → the text format of OpenMetrics.
//! Gauges of objects are computed from the stores at each scrape. So they do not depend on earlier changes, and cost
//! nothing between scrapes. Only the lease holder reports objects, so sums over all controllers are correct.
//!
//! Label values come from enums and names of pools, never from the text of a status.

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
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::state::stores::Stores;
use crate::status::reason::RefusalReason;

pub(crate) mod latency;

/// The label of Services without the condition `Allocated`, and of those whose condition has an unknown reason.
const OTHER: &str = "Other";

fn refusal_reasons() -> impl Iterator<Item = &'static str> {
    RefusalReason::ALL.iter().map(|reason| reason.as_str())
}

/// The kinds of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    CreateRecord,
    DeleteRecord,
    PatchRecord,
    PatchService,
    PatchPool,
    CreateEvent,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// Another client wrote first (409).
    Conflict,
    /// The object does not exist (404).
    Gone,
    /// Any other refusal of the API server.
    Refused,
    /// The result is unknown.
    Unanswered,
    /// The write was not sent, because another controller may hold the Lease.
    Deposed,
}

impl Write {
    fn label(self) -> &'static str {
        match self {
            Self::CreateRecord => "address_create",
            Self::DeleteRecord => "address_delete",
            Self::PatchRecord => "address_patch",
            Self::PatchService => "service_patch",
            Self::PatchPool => "pool_patch",
            Self::CreateEvent => "event_create",
        }
    }
}

impl From<&kube::Error> for Outcome {
    fn from(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict,
                404 => Self::Gone,
                _ => Self::Refused,
            },
            _ => Self::Unanswered,
        }
    }
}

impl Outcome {
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

/// The metrics of one controller. Clones share the same values.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Collectors>);

struct Collectors {
    registry: Registry,
    writes: Family<WriteLabels, Counter>,
    plans: Histogram,
    allocations: Histogram,
    leads: Gauge,
    elected: Counter,
    capacity: Family<PoolLabels, Gauge>,
    used: Family<PoolLabels, Gauge>,
    free: Family<PoolLabels, Gauge>,
    allocated: Gauge,
    pending: Family<ReasonLabels, Gauge>,
    /// The stores that are read at a scrape, and whether Services without a class are ours.
    sources: Mutex<Option<(Stores, bool)>>,
}

impl Default for Collectors {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("landfall");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of Landfall", version);
        let (seconds, addresses) = (Some(Unit::Seconds), || Some(Unit::Other("addresses".into())));
        // Plans: from 10 µs, the duration of a plan for one Service, to 2.6 s. Allocations: from 1 ms to 33 s.
        let (plan_buckets, allocation_buckets) =
            (exponential_buckets(10e-6, 4.0, 10), exponential_buckets(1e-3, 2.0, 16));
        let mut new = Registration(&mut registry);
        Self {
            writes: new.metric("writes", None, "Writes to the API server, by kind and result"),
            plans: new.add(
                "plan_duration",
                seconds.clone(),
                "Duration of planning without a break",
                Histogram::new(plan_buckets),
            ),
            allocations: new.add(
                "allocation_duration",
                seconds,
                "Time from the first observation of a LoadBalancer Service until its status shows its addresses; \
                 refused Services are not counted",
                Histogram::new(allocation_buckets),
            ),
            leads: new.metric("leader", None, "Whether this controller leads (1) or stands by (0)"),
            elected: new.metric("elections_won", None, "How often this controller has become the leader"),
            capacity: new.metric(
                "pool_capacity",
                addresses(),
                "Addresses of a pool that are assigned, reserved, or free: the sum of pool_used and pool_free",
            ),
            used: new.metric("pool_used", addresses(), "Addresses of a pool that are assigned or reserved"),
            free: new.metric(
                "pool_free",
                addresses(),
                "Addresses of a pool that Services can get without requesting one by name",
            ),
            allocated: new.metric("services_allocated", None, "Services that have the addresses they request"),
            pending: new.metric(
                "services_pending",
                None,
                "Services that do not have the addresses they request, by the reason of their condition",
            ),
            sources: Mutex::default(),
            registry,
        }
    }
}

/// Registers metrics.
struct Registration<'a>(&'a mut Registry);

impl Registration<'_> {
    /// Registers a metric with its default value.
    fn metric<M: Metric + Clone + Default>(&mut self, name: &str, unit: Option<Unit>, help: &str) -> M {
        self.add(name, unit, help, M::default())
    }

    fn add<M: Metric + Clone>(&mut self, name: &str, unit: Option<Unit>, help: &str, metric: M) -> M {
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, metric.clone()),
            None => self.0.register(name, help, metric.clone()),
        }
        metric
    }
}

impl Metrics {
    /// All metrics in the text format of OpenMetrics 1.0 ([`Metrics::CONTENT_TYPE`]).
    ///
    /// # Errors
    /// If formatting fails, which does not happen.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.refresh_gauges();
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// The metrics of a controller that has observed nothing, each with a series: for the reference.
    ///
    /// # Errors
    /// If formatting fails, which does not happen.
    pub fn empty_exposition() -> Result<String, fmt::Error> {
        let Collectors { registry, writes, capacity, used, free, .. } = &Collectors::default();
        drop(writes.get_or_create(&WriteLabels { kind: Write::PatchPool.label(), result: Outcome::Ok.label() }));
        for pools in [capacity, used, free] {
            drop(pools.get_or_create(&PoolLabels { pool: String::new(), family: "ipv4" }));
        }
        let mut text = String::new();
        encode(&mut text, registry)?;
        Ok(text)
    }

    /// The HTTP content type of [`Metrics::text`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Whether every kind that allocation depends on has been listed, so that the controller can lead without delay.
    pub fn is_ready(&self) -> bool {
        self.sources().as_ref().is_some_and(|(stores, _)| stores.is_synced())
    }

    /// Sets the stores that are read at a scrape.
    pub(crate) fn attach(&self, stores: Stores, default_class: bool) {
        *self.sources() = Some((stores, default_class));
    }

    pub(crate) fn set_leader(&self, is_leader: bool) {
        if self.0.leads.set(is_leader.into()) == 0 && is_leader {
            self.0.elected.inc();
        }
    }

    pub(crate) fn observe_plan(&self, duration: Duration) {
        self.0.plans.observe(duration.as_secs_f64());
    }

    /// Records how long a Service waited for its addresses.
    pub(crate) fn observe_allocation(&self, waited: Duration) {
        self.0.allocations.observe(waited.as_secs_f64());
    }

    pub(crate) fn count_write(&self, kind: Write, outcome: Outcome) {
        let labels = WriteLabels { kind: kind.label(), result: outcome.label() };
        self.0.writes.get_or_create(&labels).inc();
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Option<(Stores, bool)>> {
        // A panic of another scrape leaves the stores valid.
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes the gauges of objects. The lock on the sources lets only one scrape at a time do so.
    fn refresh_gauges(&self) {
        let sources = self.sources();
        let collectors = &self.0;
        for family in [&collectors.capacity, &collectors.used, &collectors.free] {
            family.clear();
        }
        collectors.pending.clear();
        let mut counts = ServiceCounts::default();
        if let Some((stores, default_class)) = sources.as_ref()
            && collectors.leads.get() > 0
        {
            stores.services.read(|table| {
                table.objects().for_each(|(_, service)| counts.add(service, *default_class));
            });
            for (name, pool) in stores.pools.snapshot().unwrap_or_default() {
                for (family, used, free) in address_counts(&pool) {
                    let labels = PoolLabels { pool: name.clone(), family };
                    collectors.capacity.get_or_create(&labels).set(used.saturating_add(free));
                    collectors.used.get_or_create(&labels).set(used);
                    collectors.free.get_or_create(&labels).set(free);
                }
            }
        }
        collectors.allocated.set(counts.allocated);
        for (reason, count) in counts.pending {
            collectors.pending.get_or_create(&ReasonLabels { reason }).set(count);
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Services by state.
#[derive(Debug, PartialEq, Eq)]
struct ServiceCounts {
    allocated: i64,
    pending: BTreeMap<&'static str, i64>,
}

impl Default for ServiceCounts {
    /// No Services. Each reason is reported from the start, with 0: a time series that begins with 1 shows no increase.
    fn default() -> Self {
        Self { allocated: 0, pending: refusal_reasons().chain([OTHER]).map(|reason| (reason, 0)).collect() }
    }
}

impl ServiceCounts {
    fn add(&mut self, service: &Service, default_class: bool) {
        if !service.is_ours(default_class) || service.deleting {
            return;
        }
        if service.is_allocated() {
            self.allocated += 1;
            return;
        }
        let condition = service.conditions.iter().find(|condition| condition.type_ == ALLOCATED);
        let written = condition.map_or(OTHER, |condition| &condition.reason);
        let reason = refusal_reasons().find(|reason| *reason == written).unwrap_or(OTHER);
        *self.pending.entry(reason).or_default() += 1;
    }
}

/// Family, used and free addresses, for each family of a pool.
fn address_counts(pool: &IPAddressPool) -> impl Iterator<Item = (&'static str, i64, i64)> {
    let status = pool.status.clone().unwrap_or_default();
    let ranges: Vec<_> = pool.spec.addresses.iter().filter_map(|range| range.parse().ok()).collect();
    let [has_ipv4, has_ipv6] = [true, false].map(|is_ipv4| ranges.iter().any(|range| range.is_ipv4() == is_ipv4));
    let families = [
        (has_ipv4, ("ipv4", status.assigned_ipv4, status.available_ipv4)),
        (has_ipv6, ("ipv6", status.assigned_ipv6, status.available_ipv6)),
    ];
    families.into_iter().filter(|(has, (_, used, free))| *has || *used > 0 || *free > 0).map(|(_, counts)| counts)
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
            service("e", "False", "WrittenByAnotherClient"),
            service("f", "", ""),
        ] {
            stores.put_service(&service);
        }
        // A Service that is not ours.
        let mut other = service("g", "False", "NoPool");
        other.spec.as_mut().expect("a spec").type_ = Some("ClusterIP".into());
        stores.services.apply_response(source::services(), &other);
        stores
    }

    /// The sorted lines of the text with this prefix.
    fn lines(metrics: &Metrics, prefix: &str) -> Vec<String> {
        let text = metrics.text().expect("text");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn only_the_lease_holder_reports_pools_and_services() {
        let metrics = Metrics::default();
        assert!(!metrics.is_ready());
        metrics.attach(stores(), true);
        assert!(metrics.is_ready());
        let pools = || lines(&metrics, "landfall_pool_");
        let services = || {
            let mut lines = lines(&metrics, "landfall_services_");
            lines.retain(|line| !line.ends_with(" 0"));
            lines
        };
        assert_eq!((pools(), services()), (vec![], vec![]));
        metrics.set_leader(true);
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
        assert_eq!(lines(&metrics, "landfall_services_pending").len(), RefusalReason::ALL.len() + 1, "zeros included");
        metrics.set_leader(false);
        assert_eq!((pools(), services()), (vec![], vec![]));
    }

    #[test]
    fn observations_and_writes_are_counted() {
        let metrics = Metrics::default();
        metrics.set_leader(true);
        metrics.set_leader(true);
        metrics.set_leader(false);
        metrics.set_leader(true);
        metrics.observe_plan(Duration::from_micros(30));
        metrics.observe_allocation(Duration::from_millis(3));
        metrics.count_write(Write::CreateRecord, Outcome::Ok);
        metrics.count_write(Write::CreateRecord, Outcome::Ok);
        metrics.count_write(Write::PatchService, Outcome::Conflict);
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
