//! What an agent does and knows, in numbers for Prometheus.
//!
//! The latest values of the agent's channels → the text of the OpenMetrics format. Nothing is kept here: what there is, is
//! read when it is asked for, and costs nothing in between. Labels have values from enums only, so that there are as many
//! series on a large cluster as on a small one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::metrics::traffic::{Numbers, Traffic, of_services};
use dataplane::rules::ruleset::Problem;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use speaker::metrics::takeovers::{Cause, Silences};
use tokio::sync::watch;

use crate::keys::supply::Supply;

/// The channels of an agent that numbers are read from.
#[derive(Clone, Debug)]
pub(super) struct Channels {
    /// What is announced.
    pub(super) announcements: watch::Receiver<speaker::Announcements>,
    /// Who else uses addresses.
    pub(super) conflicts: watch::Receiver<speaker::Conflicts>,
    /// The nodes that are dead.
    pub(super) dead: watch::Receiver<BTreeSet<String>>,
    /// What the speaker has counted.
    pub(super) wire: watch::Receiver<speaker::Counters>,
    /// What the kernel does.
    pub(super) forwarding: watch::Receiver<dataplane::Forwarding>,
    /// What the dataplane has counted; `None` if it is not ours.
    pub(super) kernel: Option<watch::Receiver<dataplane::Counters>>,
    /// The keys.
    pub(super) keys: watch::Receiver<Supply>,
    /// What the speaker knows of the cluster.
    pub(super) known: watch::Receiver<Option<Arc<speaker::Snapshot>>>,
    /// What the dataplane knows of it.
    pub(super) cluster: watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    /// How many Services have numbers of their own.
    pub(super) most_services: usize,
}

/// The numbers of one agent. Clones are handles on the same ones.
#[derive(Clone)]
pub struct Metrics {
    channels: Channels,
    registry: Arc<Registry>,
}

impl Metrics {
    pub(crate) fn new(channels: Channels) -> Self {
        let mut registry = Registry::with_prefix("landfall");
        registry.register("build", "The version of Landfall", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(channels.clone()));
        Self { channels, registry: Arc::new(registry) }
    }

    /// All numbers, in the text format of OpenMetrics 1.0.
    ///
    /// # Errors
    /// When they can't be written as text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Why this agent is not ready, if it isn't.
    pub fn unready(&self) -> Option<&'static str> {
        let Channels { known, keys, kernel, .. } = &self.channels;
        if known.borrow().is_none() {
            return Some("the API server has not told yet what there is");
        }
        if keys.borrow().keys.is_empty() {
            return Some("there is no key yet to seal Hellos with: Secret landfall-hello-keys");
        }
        let is_waiting = kernel.as_ref().is_some_and(|kernel| kernel.borrow().settled == 0);
        is_waiting.then_some("the kernel has not been programmed yet")
    }
}

/// A label and its value.
type Label = [(&'static str, &'static str); 1];

/// Writes numbers into an exposition.
struct Exposition<'a>(DescriptorEncoder<'a>);

impl Exposition<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn gauges<const N: usize>(&mut self, name: &str, help: &str, values: [(Label, usize); N]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.iter().try_for_each(|(label, value)| {
            let gauge = ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(label)?)
        })
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn counters<const N: usize>(&mut self, name: &str, help: &str, values: [(Label, u64); N]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.iter().try_for_each(|(label, value)| ConstCounter::new(*value).encode(family.encode_family(label)?))
    }
}

impl Collector for Channels {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Exposition(encoder);
        self.of_addresses(&mut to)?;
        let wire = *self.wire.borrow();
        of_the_lan(&wire, &mut to)?;
        of_hellos(&wire, &mut to)?;
        of_takeovers(&wire, &mut to)?;
        self.of_keys(&mut to)?;
        match &self.kernel {
            Some(kernel) => {
                of_the_kernel(&kernel.borrow(), &mut to)?;
                self.of_services(&mut to)
            }
            None => Ok(()),
        }
    }
}

impl Channels {
    fn of_addresses(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let announced = by_family(self.announcements.borrow().keys());
        to.gauges("announced_addresses", "Addresses that this node announces now", announced)?;
        let forwarding = self.forwarding.borrow();
        let help = "Addresses that the kernel of this node forwards now";
        to.gauges("forwarded_addresses", help, by_family(&forwarding.addresses))?;
        let help = "Those of them for which it has an endpoint that packets from outside may use";
        to.gauges("serving_addresses", help, by_family(&forwarding.serving))?;
        let help = "Those of them that are not forwarded as a Service is written";
        to.gauge("forwarding_problem_addresses", help, mistaken(&forwarding.problems))?;
        let conflicts = self.conflicts.borrow();
        let held_back = conflicts.values().filter(|conflict| conflict.held_back).count();
        let values = [([("announced", "false")], held_back), ([("announced", "true")], conflicts.len() - held_back)];
        to.gauges("conflicting_addresses", "Addresses that somebody on the LAN uses who is no node of ours", values)?;
        to.gauge("dead_nodes", "Nodes that get no new connections, because they are dead", self.dead.borrow().len())
    }

    /// Asks the kernel what it has counted. What it does not tell is left out this time.
    fn of_services(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let Some(cluster) = self.cluster.borrow().clone() else { return Ok(()) };
        match dataplane::count() {
            Ok(counted) => traffic(&of_services(&cluster, &counted, self.most_services), to),
            Err(error) => {
                tracing::warn!(%error, "no numbers about Services");
                Ok(())
            }
        }
    }

    fn of_keys(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let keys = self.keys.borrow();
        to.gauge("hello_keys", "Keys that Hellos are sealed with", keys.names.len())?;
        let help = "Entries of the Secret landfall-hello-keys that are no keys";
        to.gauge("hello_key_problems", help, keys.problems.len())?;
        let help = "Whether the Secret has no key now (1), so that the last ones are used, if there were any";
        to.gauge("hello_keys_missing", help, usize::from(keys.is_bereft))
    }
}

/// How many of these addresses are of each family.
fn by_family<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> [(Label, usize); 2] {
    let (mut v4, mut v6) = (0, 0);
    addresses.into_iter().for_each(|address| *if address.is_ipv4() { &mut v4 } else { &mut v6 } += 1);
    [([("family", "ipv4")], v4), ([("family", "ipv6")], v6)]
}

fn of_the_lan(wire: &speaker::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    let both = |read: fn(&speaker::metrics::events::Neighbours) -> u64| {
        [([("protocol", "arp")], read(&wire.arp)), ([("protocol", "ndp")], read(&wire.ndp))]
    };
    let help = "Requests for announced addresses that were answered";
    to.counters("neighbour_answers", help, both(|counted| counted.answered))?;
    let help = "Frames that announced addresses unasked: gratuitous ARP, unsolicited advertisements";
    to.counters("unasked_frames", help, both(|counted| counted.unasked))?;
    let help = "Frames that asked whether somebody has an address, before it was announced for the first time";
    to.counters("probe_frames", help, both(|counted| counted.probes))?;
    let help = "Frames in which somebody who is no node of ours uses an address of ours";
    to.counters("conflict_frames", help, both(|counted| counted.conflicts))?;
    let help = "Frames of ARP and neighbour discovery that make no sense";
    to.counters("malformed_neighbour_frames", help, both(|counted| counted.malformed))?;
    to.counter("send_failures", "Frames that the kernel refused to send", wire.send_failed)
}

fn of_hellos(wire: &speaker::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    to.counter("hello_packets_sent", "Packets that were sent to other nodes", wire.packets_sent)?;
    let help = "Packets of other nodes that were believed";
    to.counter("hello_packets_received", help, wire.packets_received)?;
    let speaker::metrics::events::Dropped {
        malformed,
        version,
        cluster,
        unsealed,
        forged,
        replayed,
        unproven,
        twin,
        crowded,
        backlog,
    } = wire.dropped;
    let values = [
        ("backlog", backlog),
        ("cluster", cluster),
        ("crowded", crowded),
        ("forged", forged),
        ("malformed", malformed),
        ("replayed", replayed),
        ("twin", twin),
        ("unproven", unproven),
        ("unsealed", unsealed),
        ("version", version),
    ];
    let values = values.map(|(reason, value)| ([("reason", reason)], value));
    to.counters("hello_packets_dropped", "Packets of other nodes that were dropped, by reason", values)?;
    to.counter("peers_lost", "How often another node was not heard any more on a link", wire.peers_lost)?;
    let help = "How often the agent did not run for longer than an interval";
    to.counter("hello_sleeps", help, wire.slept)?;
    let late = ConstGauge::new(wire.late_max.as_secs_f64());
    let help = "By how much the agent was late at most since it started";
    let unit = Some(&Unit::Seconds);
    late.encode(to.0.encode_descriptor("hello_late_max", help, unit, MetricType::Gauge)?)
}

fn of_takeovers(wire: &speaker::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    to.counter("announcements_begun", "Addresses that this node began to announce", wire.announced)?;
    to.counter("announcements_ended", "Addresses that this node ceased to announce", wire.withdrawn)?;
    let help = "How long the node had not been heard from which an address was taken over, by why it lost it";
    let unit = Some(&Unit::Seconds);
    let mut family = to.0.encode_descriptor("takeover_silence", help, unit, MetricType::Histogram)?;
    Cause::ALL.into_iter().try_for_each(|cause| {
        let Silences { counts, sum } = wire.takeovers.by(cause);
        let bounds = Silences::BOUNDS.iter().map(|bound| *bound as f64 / 1e3).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let labels = [("cause", cause.as_str())];
        let mut one = family.encode_family(&labels)?;
        one.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), counts.iter().sum(), &buckets, None)
    })
}

/// How many addresses have a problem that is somebody's mistake.
fn mistaken(problems: &BTreeMap<IpAddr, BTreeSet<Problem>>) -> usize {
    problems.values().filter(|problems| problems.iter().any(Problem::is_mistake)).count()
}

/// What came for Services. Those that have no numbers of their own are told of without any name.
fn traffic(traffic: &Traffic, to: &mut Exposition<'_>) -> fmt::Result {
    type Read = fn(&Numbers) -> u64;
    let mut all = |name: &str, help: &str, reads: &[(Option<&'static str>, Read)]| -> fmt::Result {
        let mut family = to.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, read) in reads {
            let reason = reason.map(|reason| ("reason", reason.to_owned()));
            for ((service, address), numbers) in &traffic.busiest {
                let mut labels = vec![
                    ("namespace", service.namespace.to_string()),
                    ("service", service.name.to_string()),
                    ("address", address.to_string()),
                ];
                labels.extend(reason.clone());
                ConstCounter::new(read(numbers)).encode(family.encode_family(&labels)?)?;
            }
            if let Some((others, reason)) = traffic.others.as_ref().zip(reason) {
                ConstCounter::new(read(others)).encode(family.encode_family(&[reason])?)?;
            }
        }
        // Without any label it is the family itself, and the last of it.
        match (&traffic.others, reads) {
            (Some(others), [(None, read)]) => ConstCounter::new(read(others)).encode(family),
            _ => Ok(()),
        }
    };
    if traffic.packets_counted {
        all("service_packets", "Packets that came for a Service", &[(None, |numbers| numbers.packets)])?;
        all("service_bytes", "Their bytes, with the IP header", &[(None, |numbers| numbers.bytes)])?;
    }
    let help = "New connections that were given to an endpoint of a Service";
    all("service_connections", help, &[(None, |numbers| numbers.connections)])?;
    let reasons: [(_, Read); 2] =
        [(Some("no_endpoint"), |numbers| numbers.refused), (Some("source_range"), |numbers| numbers.denied)];
    all("service_dropped_packets", "Packets that no endpoint of a Service was given, by reason", &reasons)?;
    to.counter("unserved_packets", "Packets to addresses that nobody serves on this node", traffic.strays)
}

fn of_the_kernel(kernel: &dataplane::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    to.counter("program_changes", "Elements of Landfall's tables that came, went or changed", kernel.changes)?;
    to.counter("program_failures", "How often the kernel could not be programmed", kernel.failures)?;
    let help = "How often somebody else had changed a table of Landfall's, which was repaired";
    to.counter("program_repairs", help, kernel.repairs)?;
    let help = "How long it took to change Landfall's tables in the kernel";
    let unit = Some(&Unit::Seconds);
    let mut all = to.0.encode_descriptor("program_duration", help, unit, MetricType::Histogram)?;
    let bounds = dataplane::metrics::counters::Durations::BOUNDS.iter().map(|bound| *bound as f64 / 1e6);
    let counts = &kernel.programs.counts;
    let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts.iter().copied()).collect();
    let sum = kernel.programs.sum.as_secs_f64();
    all.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Key;
    use std::time::Duration;

    /// Traffic as a registry is asked for it.
    #[derive(Debug)]
    struct Told(Traffic);

    impl Collector for Told {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            traffic(&self.0, &mut Exposition(encoder))
        }
    }

    fn exposition(traffic: Traffic) -> String {
        let mut registry = Registry::with_prefix("landfall");
        registry.register_collector(Box::new(Told(traffic)));
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        text
    }

    #[test]
    fn the_busiest_services_have_numbers_of_their_own_and_the_others_have_no_name() {
        let numbers = Numbers { packets: 5, bytes: 500, connections: 2, denied: 3, refused: 1 };
        let lb_ip = "192.0.2.1".parse().expect("an address");
        let busiest = [((Key::new("default", "web"), lb_ip), numbers)].into();
        let text = exposition(Traffic { busiest, others: Some(numbers), strays: 9, packets_counted: true });
        let told: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let web = "namespace=\"default\",service=\"web\",address=\"192.0.2.1\"";
        let expected = [
            format!("landfall_service_packets_total{{{web}}} 5"),
            "landfall_service_packets_total 5".to_owned(),
            format!("landfall_service_bytes_total{{{web}}} 500"),
            "landfall_service_bytes_total 500".to_owned(),
            format!("landfall_service_connections_total{{{web}}} 2"),
            "landfall_service_connections_total 2".to_owned(),
            format!("landfall_service_dropped_packets_total{{{web},reason=\"no_endpoint\"}} 1"),
            "landfall_service_dropped_packets_total{reason=\"no_endpoint\"} 1".to_owned(),
            format!("landfall_service_dropped_packets_total{{{web},reason=\"source_range\"}} 3"),
            "landfall_service_dropped_packets_total{reason=\"source_range\"} 3".to_owned(),
            "landfall_unserved_packets_total 9".to_owned(),
        ];
        assert_eq!(told, expected);
        let text = exposition(Traffic { others: Some(numbers), strays: 9, ..Traffic::default() });
        let told: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(told, [&expected[5], &expected[7], &expected[9], &expected[10]], "packets that are not counted");
    }

    /// The senders of an agent's channels.
    struct Senders {
        announcements: watch::Sender<speaker::Announcements>,
        wire: watch::Sender<speaker::Counters>,
        forwarding: watch::Sender<dataplane::Forwarding>,
        kernel: watch::Sender<dataplane::Counters>,
        keys: watch::Sender<Supply>,
        known: watch::Sender<Option<Arc<speaker::Snapshot>>>,
    }

    fn agent() -> (Senders, Metrics) {
        let senders = Senders {
            announcements: watch::Sender::default(),
            wire: watch::Sender::default(),
            forwarding: watch::Sender::default(),
            kernel: watch::Sender::default(),
            keys: watch::Sender::default(),
            known: watch::Sender::default(),
        };
        let (_, conflicts) = watch::channel(speaker::Conflicts::default());
        let (_, dead) = watch::channel(BTreeSet::from(["n2".to_owned()]));
        let channels = Channels {
            announcements: senders.announcements.subscribe(),
            conflicts,
            dead,
            wire: senders.wire.subscribe(),
            forwarding: senders.forwarding.subscribe(),
            kernel: Some(senders.kernel.subscribe()),
            keys: senders.keys.subscribe(),
            known: senders.known.subscribe(),
            // Nothing is known of the cluster, so the kernel is not asked.
            cluster: watch::Sender::default().subscribe(),
            most_services: 0,
        };
        (senders, Metrics::new(channels))
    }

    fn keys() -> Supply {
        let keys = speaker::Keys::new([&[1u8; 32][..]]).expect("keys");
        Supply { keys: Arc::new(keys), names: BTreeSet::from(["a".to_owned()]), ..Supply::default() }
    }

    #[test]
    fn numbers_are_those_that_were_last_told() {
        let (senders, metrics) = agent();
        let has = |line: &str| {
            let text = metrics.text().expect("text");
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        };
        has("landfall_announced_addresses{family=\"ipv4\"} 0");
        has("landfall_dead_nodes 1");
        let since = jiff::Timestamp::UNIX_EPOCH;
        let announcement = speaker::Announcement { link: "eth0".into(), epoch: 1, since, moved: None };
        let six = "2001:db8::1".parse().expect("an address");
        senders.announcements.send_replace([(six, vec![announcement])].into());
        senders.forwarding.send_replace(dataplane::Forwarding { addresses: [six].into(), ..Default::default() });
        let mut wire = speaker::Counters { late_max: Duration::from_millis(30), ..Default::default() };
        wire.arp.answered = 7;
        wire.dropped.forged = 3;
        wire.takeovers.observe(Cause::Died, Duration::from_millis(140));
        senders.wire.send_replace(wire);
        let mut kernel = dataplane::Counters { repairs: 2, ..Default::default() };
        kernel.programs.observe(Duration::from_micros(700));
        senders.kernel.send_replace(kernel);
        senders.keys.send_replace(keys());
        for line in [
            "landfall_announced_addresses{family=\"ipv6\"} 1",
            "landfall_forwarded_addresses{family=\"ipv6\"} 1",
            "landfall_serving_addresses{family=\"ipv6\"} 0",
            "landfall_neighbour_answers_total{protocol=\"arp\"} 7",
            "landfall_hello_packets_dropped_total{reason=\"forged\"} 3",
            "landfall_hello_late_max_seconds 0.03",
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
    fn it_is_ready_when_it_knows_the_cluster_has_a_key_and_has_programmed_the_kernel() {
        let (senders, metrics) = agent();
        let says = |part: &str| assert!(metrics.unready().is_some_and(|why| why.contains(part)), "{part}");
        says("API server");
        senders.known.send_replace(Some(Arc::default()));
        says("Secret landfall-hello-keys");
        senders.keys.send_replace(keys());
        says("kernel");
        senders.kernel.send_replace(dataplane::Counters { settled: 1, ..Default::default() });
        assert_eq!(metrics.unready(), None);
    }

    #[test]
    fn the_guide_lists_every_number_and_no_other() {
        let (_senders, metrics) = agent();
        let all = Traffic { packets_counted: true, ..Traffic::default() };
        let text = metrics.text().expect("text") + &exposition(all);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let named = types.map(|line| match line.split_once(' ') {
            Some((name, "counter")) => format!("{name}_total"),
            Some((name, "info")) => format!("{name}_info"),
            Some((name, _)) => name.to_owned(),
            None => panic!("{line}"),
        });
        let named: BTreeSet<String> = named.collect();
        let guide = include_str!("../../docs/guide/metrics.md");
        let section = guide.split("\n## Node agents").nth(1).expect("a section on node agents");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `landfall_"));
        let listed: BTreeSet<String> =
            rows.filter_map(|row| Some(format!("landfall_{}", row.split('`').next()?))).collect();
        assert_eq!(named, listed, "told, and in docs/guide/metrics.md");
    }
}
