//! The kernel's packet counters → the traffic of each Service at each of its lb_ips: [`report_traffic`]. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Sum;
use std::net::IpAddr;

use crds::Key;

use crate::rules::{Frontend, holding_services};
use crate::snapshot::Snapshot;

/// The value of one packet counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    pub packets: u64,
    /// Including the IP header.
    pub bytes: u64,
}

/// The kernel's packet counters since its tables were created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// All packets from clients. Empty if traffic is not counted.
    pub traffic: BTreeMap<Frontend, PacketCount>,
    /// First packets of connections sent to endpoints, or to the Service proxy.
    pub connections: BTreeMap<Frontend, PacketCount>,
    /// Packets dropped because of their source.
    pub denied: BTreeMap<Frontend, PacketCount>,
    /// Packets refused because there is no endpoint.
    pub refused: BTreeMap<Frontend, PacketCount>,
    /// Packets dropped because no Service has their port, or no endpoint on this node may serve them.
    pub strays: BTreeMap<IpAddr, PacketCount>,
}

/// The traffic of a Service at one of its lb_ips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// All packets from clients.
    pub packets: u64,
    /// Including the IP header.
    pub bytes: u64,
    /// New connections to endpoints, or to the Service proxy.
    pub connections: u64,
    /// Packets dropped because of their source.
    pub denied: u64,
    /// Packets refused because there is no endpoint.
    pub refused: u64,
}

impl Sum for ServiceTraffic {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
            connections: sum.connections + one.connections,
            denied: sum.denied + one.denied,
            refused: sum.refused + one.refused,
        })
    }
}

/// The traffic of all Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficReport {
    /// The busiest Services, at each of their lb_ips.
    pub busiest: BTreeMap<(Key, IpAddr), ServiceTraffic>,
    /// The sum of all others, if there are any.
    pub others: Option<ServiceTraffic>,
    /// Packets to lb_ips that were dropped because no Service has their port, or no endpoint on this node may serve
    /// them.
    pub strays: u64,
    /// Whether packets and bytes are counted. Otherwise they are 0 and mean nothing.
    pub packets_counted: bool,
}

/// The traffic of each Service in the snapshot at each of its lb_ips: at most `limit` entries. If there are more, the
/// entries with the most packets are listed; of equal ones, the first by name.
pub fn report_traffic(snapshot: &Snapshot, counters: &KernelCounters, limit: usize) -> TrafficReport {
    let mut all: Vec<((Key, IpAddr), ServiceTraffic)> = Vec::new();
    for &address in snapshot.addresses.keys() {
        let mut claimed = BTreeSet::new();
        for service in holding_services(snapshot, address) {
            let ports = service.object.ports.iter().map(|port| Frontend {
                address,
                protocol: port.protocol,
                port: port.number,
            });
            // A port of two Services belongs to the first Service by name.
            let own = ports.filter(|frontend| claimed.insert(*frontend));
            let traffic = own.map(|frontend| port_traffic(counters, &frontend)).sum();
            all.push(((service.object.key.clone(), address), traffic));
        }
    }
    all.sort_by(|(a, left), (b, right)| (busyness(left), a).cmp(&(busyness(right), b)));
    let rest = all.split_off(limit.min(all.len()));
    TrafficReport {
        busiest: all.into_iter().collect(),
        others: (!rest.is_empty()).then(|| rest.into_iter().map(|(_, traffic)| traffic).sum()),
        strays: counters.strays.values().map(|count| count.packets).sum(),
        packets_counted: snapshot.count_traffic,
    }
}

/// The sort key of a Service: more packets first, then a greater sum of connections, denied and refused packets.
fn busyness(traffic: &ServiceTraffic) -> Reverse<(u64, u64)> {
    Reverse((traffic.packets, traffic.connections + traffic.denied + traffic.refused))
}

fn port_traffic(counters: &KernelCounters, frontend: &Frontend) -> ServiceTraffic {
    let count = |counts: &BTreeMap<Frontend, PacketCount>| counts.get(frontend).copied().unwrap_or_default();
    let traffic = count(&counters.traffic);
    ServiceTraffic {
        packets: traffic.packets,
        bytes: traffic.bytes,
        connections: count(&counters.connections).packets,
        denied: count(&counters.denied).packets,
        refused: count(&counters.refused).packets,
    }
}
