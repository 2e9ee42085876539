//! Metrics of the dataplane: traffic of Services, and programming of the kernel.

use std::fmt;

use dataplane::metrics::{Durations, ServiceTraffic, TrafficReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

use super::exposition::{Exposition, buckets};

/// Reads one counter from the traffic of a Service at an address.
type Read = fn(&ServiceTraffic) -> u64;

/// The name and the help text of a counter.
struct Counter<'a> {
    name: &'a str,
    help: &'a str,
}

/// Encodes the traffic of Services. All Services without series of their own share one series, which has no labels of a
/// Service.
pub(super) fn encode_services(traffic: &TrafficReport, to: &mut Exposition<'_>) -> fmt::Result {
    if traffic.packets_counted {
        let packets = Counter { name: "service_packets", help: "Packets from clients to a Service" };
        encode_family(traffic, to, &packets, &[(None, |numbers| numbers.packets)])?;
        let bytes =
            Counter { name: "service_bytes", help: "Bytes of packets from clients to a Service, with IP headers" };
        encode_family(traffic, to, &bytes, &[(None, |numbers| numbers.bytes)])?;
    }
    let help = "New connections sent to an endpoint or to the Service proxy";
    let connections = Counter { name: "service_connections", help };
    encode_family(traffic, to, &connections, &[(None, |numbers| numbers.connections)])?;
    let dropped = Counter { name: "service_dropped_packets", help: "Packets sent to no endpoint, by reason" };
    let reads: [(_, Read); 2] =
        [(Some("no_endpoint"), |numbers| numbers.refused), (Some("source_range"), |numbers| numbers.denied)];
    encode_family(traffic, to, &dropped, &reads)?;
    let help = "Packets to load-balancer addresses that no Service on this node serves";
    to.counter("unserved_packets", help, traffic.strays)
}

/// Encodes one counter of all Services. Each element of `reads` has the value of the label `reason` (`None`: no such
/// label) and the function that reads the counter. The element becomes one series per Service and address, and one for
/// all other Services.
fn encode_family(
    traffic: &TrafficReport,
    to: &mut Exposition<'_>,
    counter: &Counter<'_>,
    reads: &[(Option<&'static str>, Read)],
) -> fmt::Result {
    let mut family = to.0.encode_descriptor(counter.name, counter.help, None, MetricType::Counter)?;
    for (reason, read) in reads {
        let reason = reason.map(|reason| ("reason", reason.to_owned()));
        for ((service, lb_ip), numbers) in &traffic.busiest {
            let mut labels = vec![
                ("namespace", service.namespace.to_string()),
                ("service", service.name.to_string()),
                ("address", lb_ip.to_string()),
            ];
            labels.extend(reason.clone());
            ConstCounter::new(read(numbers)).encode(family.encode_family(&labels)?)?;
        }
        if let Some((others, reason)) = traffic.others.as_ref().zip(reason) {
            ConstCounter::new(read(others)).encode(family.encode_family(&[reason])?)?;
        }
    }
    // A series without any label is the family itself. Encoding it consumes the family, so it is the last one.
    match (&traffic.others, reads) {
        (Some(others), [(None, read)]) => ConstCounter::new(read(others)).encode(family),
        _ => Ok(()),
    }
}

pub(super) fn encode_programming(counters: &dataplane::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    let help = "Elements of Landfall's tables that were added, removed or changed";
    to.counter("program_changes", help, counters.changed_elements)?;
    to.counter("program_failures", "Failed attempts to program the kernel", counters.failed_steps)?;
    let help = "Repairs of Landfall's tables after another program had changed them";
    to.counter("program_repairs", help, counters.repairs)?;
    let help = "Duration of a change of Landfall's tables in the kernel";
    let unit = Some(&Unit::Seconds);
    let mut metric = to.0.encode_descriptor("program_duration", help, unit, MetricType::Histogram)?;
    let counts = &counters.durations.counts;
    let buckets = buckets(Durations::BOUNDS.iter().map(|bound| *bound as f64 / 1e6), counts);
    let sum = counters.durations.sum.as_secs_f64();
    metric.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
}

/// The metrics of Services without any traffic.
#[derive(Debug)]
pub(super) struct NoTraffic;

impl Collector for NoTraffic {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let traffic = TrafficReport { packets_counted: true, ..TrafficReport::default() };
        encode_services(&traffic, &mut Exposition(encoder))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crds::Key;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    /// Traffic as a collector.
    #[derive(Debug)]
    struct Collected(TrafficReport);

    impl Collector for Collected {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode_services(&self.0, &mut Exposition(encoder))
        }
    }

    pub(crate) fn exposition(traffic: TrafficReport) -> String {
        let mut registry = Registry::with_prefix("landfall");
        registry.register_collector(Box::new(Collected(traffic)));
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        text
    }

    #[test]
    fn the_busiest_services_have_their_own_series() {
        let numbers = ServiceTraffic { packets: 5, bytes: 500, connections: 2, denied: 3, refused: 1 };
        let lb_ip = "192.0.2.1".parse().expect("an address");
        let busiest = [((Key::new("default", "web"), lb_ip), numbers)].into();
        let text = exposition(TrafficReport { busiest, others: Some(numbers), strays: 9, packets_counted: true });
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
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
        assert_eq!(series, expected);
        let text = exposition(TrafficReport { others: Some(numbers), strays: 9, ..TrafficReport::default() });
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series, [&expected[5], &expected[7], &expected[9], &expected[10]], "without packets");
    }
}
