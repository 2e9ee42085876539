//! The state and the counters of an agent as metrics for Prometheus.
//!
//! The latest values of the agent's channels → text in the OpenMetrics format. This module stores no values. It reads
//! the channels when `/metrics` is requested, and costs nothing in between. The values of labels are those of enums,
//! except in the series of the busiest Services. So the number of series does not grow with the cluster.

mod exposition;
mod traffic;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::metrics::report_traffic;
use dataplane::rules::Problem;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::channels::Channels;
use crate::config::Config;
use crate::keys::KeysInUse;
use exposition::{Exposition, Label};

/// The channels that metrics are read from.
#[derive(Clone, Debug)]
struct Sources {
    announcements_rx: watch::Receiver<speaker::Announcements>,
    conflicts_rx: watch::Receiver<speaker::Conflicts>,
    dead_rx: watch::Receiver<BTreeSet<String>>,
    wire_counters_rx: watch::Receiver<speaker::Counters>,
    forwarding_rx: watch::Receiver<dataplane::Forwarding>,
    /// `None` where another proxy forwards.
    kernel_counters_rx: Option<watch::Receiver<dataplane::Counters>>,
    keys_in_use_rx: watch::Receiver<KeysInUse>,
    speaker_snapshot_rx: watch::Receiver<Option<Arc<speaker::Snapshot>>>,
    dataplane_snapshot_rx: watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    /// The maximal number of Services with series of their own.
    service_metrics: usize,
}

/// The metrics of one agent. All clones read the same channels.
#[derive(Clone)]
pub struct Metrics {
    sources: Sources,
    registry: Arc<Registry>,
}

impl Metrics {
    pub(crate) fn new(channels: &Channels, config: &Config) -> Self {
        let sources = Sources {
            announcements_rx: channels.announcements.subscribe(),
            conflicts_rx: channels.conflicts.subscribe(),
            dead_rx: channels.dead.subscribe(),
            wire_counters_rx: channels.wire_counters.subscribe(),
            forwarding_rx: channels.forwarding.subscribe(),
            kernel_counters_rx: config.forwards.then(|| channels.kernel_counters.subscribe()),
            keys_in_use_rx: channels.keys_in_use.subscribe(),
            speaker_snapshot_rx: channels.speaker_snapshot.subscribe(),
            dataplane_snapshot_rx: channels.dataplane_snapshot.subscribe(),
            service_metrics: config.service_metrics,
        };
        let mut registry = Registry::with_prefix("landfall");
        registry.register("build", "The version of Landfall", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(sources.clone()));
        Self { sources, registry: Arc::new(registry) }
    }

    /// All metrics, in the text format of OpenMetrics 1.0.
    ///
    /// # Errors
    /// When a value cannot be encoded.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// All metrics of an agent that has observed nothing, each with its help: for the reference.
    ///
    /// # Errors
    /// When a value cannot be encoded.
    pub fn empty_exposition() -> Result<String, fmt::Error> {
        let config = Config {
            node: String::new(),
            forwards: true,
            spread: true,
            backend: crds::Backend::Endpoints,
            return_mark: None,
            count_traffic: true,
            service_metrics: 0,
            keys_namespace: String::new(),
        };
        let mut metrics = Self::new(&Channels::default(), &config);
        let mut registry = Registry::with_prefix("landfall");
        registry.register_collector(Box::new(traffic::NoTraffic));
        let own = metrics.text()?;
        metrics.registry = Arc::new(registry);
        Ok(own + &metrics.text()?)
    }

    /// Why this agent is not ready; `None` if it is.
    pub fn unready(&self) -> Option<&'static str> {
        let Sources { speaker_snapshot_rx, keys_in_use_rx, kernel_counters_rx, .. } = &self.sources;
        if speaker_snapshot_rx.borrow().is_none() {
            return Some("waiting for the initial lists from the API server");
        }
        if keys_in_use_rx.borrow().keys.is_empty() {
            return Some("waiting for a key of the Secret landfall-hello-keys, which seals Hellos");
        }
        let is_programmed =
            kernel_counters_rx.as_ref().is_none_or(|counters_rx| counters_rx.borrow().successful_steps > 0);
        (!is_programmed).then_some("waiting for the first acknowledgement of the kernel")
    }
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Exposition(encoder);
        self.encode_addresses(&mut to)?;
        let counters = *self.wire_counters_rx.borrow();
        wire::encode_neighbour_frames(&counters, &mut to)?;
        wire::encode_hellos(&counters, &mut to)?;
        wire::encode_takeovers(&counters, &mut to)?;
        self.encode_keys(&mut to)?;
        match &self.kernel_counters_rx {
            Some(counters_rx) => {
                traffic::encode_programming(&counters_rx.borrow(), &mut to)?;
                self.encode_services(&mut to)
            }
            None => Ok(()),
        }
    }
}

impl Sources {
    fn encode_addresses(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let announced = by_family(self.announcements_rx.borrow().keys());
        to.gauges("announced_addresses", "Addresses that this node announces now", announced)?;
        let forwarding = self.forwarding_rx.borrow();
        let help = "Addresses that the kernel of this node forwards now";
        to.gauges("forwarded_addresses", help, by_family(&forwarding.addresses))?;
        let help = "Forwarded addresses with an endpoint that packets from outside may use";
        to.gauges("serving_addresses", help, by_family(&forwarding.serving))?;
        let help = "Addresses that are not forwarded as specified because of a mistake in a Service or EndpointSlice";
        to.gauge("forwarding_problem_addresses", help, count_mistakes(&forwarding.problems))?;
        let conflicts = self.conflicts_rx.borrow();
        let held_back = conflicts.values().filter(|conflict| conflict.held_back).count();
        let values = [([("announced", "false")], held_back), ([("announced", "true")], conflicts.len() - held_back)];
        to.gauges("conflicting_addresses", "Addresses also used by a host outside the cluster", values)?;
        to.gauge("dead_nodes", "Dead nodes, which get no new connections", self.dead_rx.borrow().len())
    }

    /// Encodes the kernel's counters of Services. If they cannot be read, the response lacks these series.
    fn encode_services(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let Some(snapshot) = self.dataplane_snapshot_rx.borrow().clone() else { return Ok(()) };
        match dataplane::read_kernel_counters() {
            Ok(counts) => traffic::encode_services(&report_traffic(&snapshot, &counts, self.service_metrics), to),
            Err(error) => {
                tracing::warn!(%error, "cannot read the counters of Services from the kernel");
                Ok(())
            }
        }
    }

    fn encode_keys(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let in_use = self.keys_in_use_rx.borrow();
        to.gauge("hello_keys", "Keys that seal Hellos", in_use.names.len())?;
        let help = "Invalid entries of the Secret landfall-hello-keys";
        to.gauge("hello_key_problems", help, in_use.problems.len())?;
        let help = "1 while the Secret is missing or has no key, so that the last keys are used";
        to.gauge("hello_keys_missing", help, usize::from(in_use.are_missing))
    }
}

/// The number of addresses of each family.
fn by_family<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> [(Label, usize); 2] {
    let (mut v4, mut v6) = (0, 0);
    addresses.into_iter().for_each(|address| *if address.is_ipv4() { &mut v4 } else { &mut v6 } += 1);
    [([("family", "ipv4")], v4), ([("family", "ipv6")], v6)]
}

/// The number of addresses with a problem that is a mistake in an object.
fn count_mistakes(problems: &BTreeMap<IpAddr, BTreeSet<Problem>>) -> usize {
    problems.values().filter(|problems| problems.iter().any(Problem::is_mistake)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::metrics::TrafficReport;
    use speaker::metrics::Cause;
    use std::time::Duration;

    /// The channels of an agent that forwards with its own dataplane, and its metrics.
    fn agent() -> (Channels, Metrics) {
        let channels = Channels::default();
        channels.dead.send_replace(BTreeSet::from(["n2".to_owned()]));
        let config = Config {
            node: "n1".into(),
            forwards: true,
            spread: true,
            backend: crds::Backend::Endpoints,
            return_mark: None,
            count_traffic: false,
            service_metrics: 0,
            keys_namespace: "landfall-system".into(),
        };
        let metrics = Metrics::new(&channels, &config);
        (channels, metrics)
    }

    fn keys_in_use() -> KeysInUse {
        let keys = speaker::Keys::new([&[1u8; 32][..]]).expect("keys");
        KeysInUse { keys: Arc::new(keys), names: BTreeSet::from(["a".to_owned()]), ..KeysInUse::default() }
    }

    #[test]
    fn metrics_show_the_latest_values() {
        let (channels, metrics) = agent();
        let has = |line: &str| {
            let text = metrics.text().expect("text");
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        };
        has("landfall_announced_addresses{family=\"ipv4\"} 0");
        has("landfall_dead_nodes 1");
        let since = jiff::Timestamp::UNIX_EPOCH;
        let announcement = speaker::Announcement { link: "eth0".into(), epoch: 1, since, moved: None };
        let six = "2001:db8::1".parse().expect("an address");
        channels.announcements.send_replace([(six, vec![announcement])].into());
        channels.forwarding.send_replace(dataplane::Forwarding { addresses: [six].into(), ..Default::default() });
        let mut wire = speaker::Counters { late_max: Duration::from_millis(30), ..Default::default() };
        wire.arp.answered = 7;
        wire.dropped.forged = 3;
        wire.silent_agents = 1;
        wire.takeovers.observe(Cause::Died, Duration::from_millis(140));
        channels.wire_counters.send_replace(wire);
        let mut kernel = dataplane::Counters { repairs: 2, ..Default::default() };
        kernel.durations.observe(Duration::from_micros(700));
        channels.kernel_counters.send_replace(kernel);
        channels.keys_in_use.send_replace(keys_in_use());
        for line in [
            "landfall_announced_addresses{family=\"ipv6\"} 1",
            "landfall_forwarded_addresses{family=\"ipv6\"} 1",
            "landfall_serving_addresses{family=\"ipv6\"} 0",
            "landfall_neighbour_answers_total{protocol=\"arp\"} 7",
            "landfall_hello_packets_dropped_total{reason=\"forged\"} 3",
            "landfall_hello_late_max_seconds 0.03",
            "landfall_silent_agents 1",
            "landfall_hello_keys 1",
            "landfall_takeover_silence_seconds_bucket{le=\"0.1\",cause=\"died\"} 0",
            "landfall_takeover_silence_seconds_bucket{le=\"0.15\",cause=\"died\"} 1",
            "landfall_takeover_silence_seconds_bucket{le=\"+Inf\",cause=\"died\"} 1",
            "landfall_takeover_silence_seconds_count{cause=\"ceded\"} 0",
            "landfall_program_duration_seconds_bucket{le=\"0.001\"} 1",
            "landfall_program_repairs_total 2",
        ] {
            has(line);
        }
    }

    #[test]
    fn readiness_needs_the_cluster_a_key_and_the_kernel() {
        let (channels, metrics) = agent();
        let waits_for = |part: &str| assert!(metrics.unready().is_some_and(|why| why.contains(part)), "{part}");
        waits_for("API server");
        channels.speaker_snapshot.send_replace(Some(Arc::default()));
        waits_for("Secret landfall-hello-keys");
        channels.keys_in_use.send_replace(keys_in_use());
        waits_for("kernel");
        channels.kernel_counters.send_replace(dataplane::Counters { successful_steps: 1, ..Default::default() });
        assert_eq!(metrics.unready(), None);
    }

    #[test]
    fn the_guide_lists_exactly_the_metrics() {
        let (_channels, metrics) = agent();
        let all = TrafficReport { packets_counted: true, ..TrafficReport::default() };
        let text = metrics.text().expect("text") + &traffic::tests::exposition(all);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.map(|line| match line.split_once(' ') {
            Some((name, "counter")) => format!("{name}_total"),
            Some((name, "info")) => format!("{name}_info"),
            Some((name, _)) => name.to_owned(),
            None => panic!("{line}"),
        });
        let names: BTreeSet<String> = names.collect();
        let guide = include_str!("../../docs/guide/metrics.md");
        let section = guide.split("\n## Node agents").nth(1).expect("a section on node agents");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `landfall_"));
        let listed: BTreeSet<String> =
            rows.filter_map(|row| Some(format!("landfall_{}", row.split('`').next()?))).collect();
        assert_eq!(names, listed, "exported, and in docs/guide/metrics.md");
    }
}
