//! Metrics of the speaker: ARP and neighbour discovery, Hellos, takeovers.

use std::fmt;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use speaker::metrics::{Cause, SilenceHistogram};

use super::exposition::{Exposition, buckets};

pub(super) fn encode_neighbour_frames(counters: &speaker::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    let both = |read: fn(&speaker::metrics::FrameCounters) -> u64| {
        [([("protocol", "arp")], read(&counters.arp)), ([("protocol", "ndp")], read(&counters.ndp))]
    };
    let help = "Requests for announced addresses that were answered";
    to.counters("neighbour_answers", help, both(|frames| frames.answered))?;
    let help = "Unasked announcements: gratuitous ARP, unsolicited neighbour advertisements";
    to.counters("unasked_frames", help, both(|frames| frames.gratuitous))?;
    let help = "Probes for other hosts with an address, before its first announcement";
    to.counters("probe_frames", help, both(|frames| frames.probes))?;
    let help = "Frames in which a host outside the cluster uses one of our addresses";
    to.counters("conflict_frames", help, both(|frames| frames.conflicts))?;
    let help = "Invalid ARP and neighbour discovery frames";
    to.counters("malformed_neighbour_frames", help, both(|frames| frames.malformed))?;
    to.counter("send_failures", "Frames that the kernel refused to send", counters.send_failed)
}

pub(super) fn encode_hellos(counters: &speaker::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    to.counter("hello_packets_sent", "Packets sent to other nodes", counters.packets_sent)?;
    to.counter("hello_packets_received", "Accepted packets of other nodes", counters.packets_received)?;
    let speaker::metrics::Dropped {
        malformed,
        version,
        cluster,
        unsealed,
        forged,
        replayed,
        unproven,
        duplicate_node,
        too_many_peers,
        backlog,
    } = counters.dropped;
    let values = [
        ("backlog", backlog),
        ("cluster", cluster),
        ("crowded", too_many_peers),
        ("forged", forged),
        ("malformed", malformed),
        ("replayed", replayed),
        ("twin", duplicate_node),
        ("unproven", unproven),
        ("unsealed", unsealed),
        ("version", version),
    ];
    let values = values.map(|(reason, value)| ([("reason", reason)], value));
    to.counters("hello_packets_dropped", "Rejected packets of other nodes, by reason", values)?;
    to.counter("peers_lost", "How often a node became silent on a link", counters.peers_lost)?;
    let help = "Nodes whose agent is silent while their kernel answers: they get new connections";
    to.gauge("silent_agents", help, usize::try_from(counters.silent_agents).unwrap_or(usize::MAX))?;
    let help = "Pauses of the agent that were longer than an interval between Hellos";
    to.counter("hello_sleeps", help, counters.stalls)?;
    to.seconds_gauge("hello_late_max", "Greatest delay of the agent since it started", counters.late_max)
}

pub(super) fn encode_takeovers(counters: &speaker::Counters, to: &mut Exposition<'_>) -> fmt::Result {
    to.counter("announcements_begun", "Addresses that this node started to announce", counters.announced)?;
    to.counter("announcements_ended", "Addresses that this node stopped announcing", counters.withdrawn)?;
    let help = "Takeovers of addresses from another node, by the time since the last Hello of that node, and by cause";
    let unit = Some(&Unit::Seconds);
    let mut family = to.0.encode_descriptor("takeover_silence", help, unit, MetricType::Histogram)?;
    Cause::ALL.into_iter().try_for_each(|cause| {
        let SilenceHistogram { counts, sum } = counters.takeovers.silences(cause);
        let buckets = buckets(SilenceHistogram::BOUNDS.iter().map(|bound| *bound as f64 / 1e3), counts);
        let labels = [("cause", cause.as_str())];
        let mut one = family.encode_family(&labels)?;
        one.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), counts.iter().sum(), &buckets, None)
    })
}
