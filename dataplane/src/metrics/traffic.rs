//! How much came for each Service: what the kernel has counted → numbers of Services at their addresses. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::iter::Sum;
use std::net::IpAddr;
use std::ops::Add;

use crds::Key;

use crate::nft::elements::Frontend;
use crate::rules::plan::holders;
use crate::snapshot::Snapshot;

/// What a counter of the kernel has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes, with the IP header.
    pub bytes: u64,
}

/// What the kernel has counted since its tables were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets that came, for whatever became of them; nothing if they are not to be counted.
    pub traffic: BTreeMap<Frontend, Count>,
    /// Connections to endpoints, by their first packets.
    pub begun: BTreeMap<Frontend, Count>,
    /// Packets that were dropped because of where they came from.
    pub denied: BTreeMap<Frontend, Count>,
    /// Packets that were refused because there is no endpoint.
    pub refusals: BTreeMap<Frontend, Count>,
    /// Packets that were dropped because no Service has their port, or none of its endpoints is for them on this node.
    pub strays: BTreeMap<IpAddr, Count>,
}

/// How much came for a Service at one of its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Packets that came from clients, for whatever became of them.
    pub packets: u64,
    /// Their bytes, with the IP header.
    pub bytes: u64,
    /// New connections to endpoints, or to what the Service proxy serves.
    pub connections: u64,
    /// Packets that were dropped because of where they came from.
    pub denied: u64,
    /// Packets that were refused because there is no endpoint.
    pub refused: u64,
}

impl Add for Numbers {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            connections: self.connections + other.connections,
            denied: self.denied + other.denied,
            refused: self.refused + other.refused,
        }
    }
}

impl Sum for Numbers {
    fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
        numbers.fold(Self::default(), Add::add)
    }
}

/// How much came for all Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// For the busiest of them, at each of their addresses.
    pub busiest: BTreeMap<(Key, IpAddr), Numbers>,
    /// For all others together, if there are others.
    pub others: Option<Numbers>,
    /// Packets to lb_ips that nobody serves on this node, which were dropped.
    pub strays: u64,
    /// Whether packets and bytes are counted; otherwise those numbers are 0 and say nothing.
    pub packets_counted: bool,
}

/// How much came for each Service that there is now, or for `most` of them (counted once for each address) if there are more:
/// those that most packets came for, the first ones by name where that is the same.
pub fn of_services(snapshot: &Snapshot, counted: &Counted, most: usize) -> Traffic {
    let mut all: Vec<((Key, IpAddr), Numbers)> = Vec::new();
    for &address in snapshot.addresses.keys() {
        let mut claimed = std::collections::BTreeSet::new();
        for service in holders(snapshot, address) {
            let ports = service.object.ports.iter().map(|port| Frontend {
                address,
                protocol: port.protocol,
                port: port.number,
            });
            // A port that two claim is the first one's.
            let numbers = ports.filter(|front| claimed.insert(*front)).map(|front| of_port(counted, &front)).sum();
            all.push(((service.object.key.clone(), address), numbers));
        }
    }
    all.sort_by(|(a, left), (b, right)| {
        let came =
            |numbers: &Numbers| Reverse((numbers.packets, numbers.connections + numbers.denied + numbers.refused));
        (came(left), a).cmp(&(came(right), b))
    });
    let rest = all.split_off(most.min(all.len()));
    Traffic {
        busiest: all.into_iter().collect(),
        others: (!rest.is_empty()).then(|| rest.into_iter().map(|(_, numbers)| numbers).sum()),
        strays: counted.strays.values().map(|count| count.packets).sum(),
        packets_counted: snapshot.counts,
    }
}

fn of_port(counted: &Counted, front: &Frontend) -> Numbers {
    let of = |counts: &BTreeMap<Frontend, Count>| counts.get(front).copied().unwrap_or_default();
    let traffic = of(&counted.traffic);
    Numbers {
        packets: traffic.packets,
        bytes: traffic.bytes,
        connections: of(&counted.begun).packets,
        denied: of(&counted.denied).packets,
        refused: of(&counted.refusals).packets,
    }
}
