//! What the maps of the table hold: [`Ruleset`] → [`Elements`], by [`elements`].
//!
//! Chains that pick one of N endpoints count as elements here: they come and go with the numbers of endpoints there
//! are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use crds::Protocol;

use crate::ruleset::{LbIp, Pick, Ruleset};

/// Everything the table holds besides its skeleton.
pub type Elements = BTreeMap<Key, Value>;

/// An lb_ip, a protocol and a port: where a client's packet is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The lb_ip.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.address, self.port, self.protocol)
    }
}

/// Which element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// All of the set `pods`.
    Pods,
    /// A chain `pick-…`.
    Pick(Pick),
    /// In `addresses`: an lb_ip.
    Address(Ipv4Addr),
    /// In `services`.
    Service(Frontend),
    /// In `inside`.
    Inside(Frontend),
    /// In `refused`.
    Refused(Frontend),
    /// In `endpoints`: the endpoint with this index.
    Endpoint(Frontend, u32),
    /// In `local`: an lb_ip and the address of an endpoint of it on this node.
    Local(Ipv4Addr, Ipv4Addr),
    /// In `hairpin`: the same, as source and destination at once.
    Hairpin(Ipv4Addr, Ipv4Addr),
}

/// What an element holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing: it is there.
    Present,
    /// A verdict: to the chain that picks one of these.
    Pick(Pick),
    /// Where to send the packet.
    Endpoint(SocketAddrV4),
    /// Ranges, first and last address of each.
    Ranges(Vec<(Ipv4Addr, Ipv4Addr)>),
}

impl fmt::Display for Key {
    /// As a person would look it up in the output of `nft list table ip landfall`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods => f.write_str("set pods"),
            Self::Pick(pick) => write!(f, "chain {}", chain(*pick)),
            Self::Address(address) => write!(f, "{address} in addresses"),
            Self::Service(frontend) => write!(f, "{frontend} in services"),
            Self::Inside(frontend) => write!(f, "{frontend} in inside"),
            Self::Refused(frontend) => write!(f, "{frontend} in refused"),
            Self::Endpoint(frontend, index) => write!(f, "{frontend} number {index} in endpoints"),
            Self::Local(address, endpoint) => write!(f, "{address} . {endpoint} in local"),
            Self::Hairpin(address, endpoint) => write!(f, "{address} . {endpoint} in hairpin"),
        }
    }
}

/// The name of the chain that picks one of these.
pub fn chain(pick: Pick) -> String {
    match pick.from {
        0 => format!("pick-{}", pick.count),
        from => format!("pick-{}-from-{from}", pick.count),
    }
}

/// The elements of a whole ruleset. IPv6 is not in this table.
pub fn elements(ruleset: &Ruleset) -> Elements {
    let mut elements: Elements = shared(ruleset).into_iter().collect();
    for (address, lb_ip) in &ruleset.addresses {
        if let IpAddr::V4(v4) = address {
            elements.extend(of_address(*v4, lb_ip));
        }
    }
    elements
}

/// The elements that don't belong to a single lb_ip.
pub fn shared(ruleset: &Ruleset) -> Vec<(Key, Value)> {
    let ranges: Vec<_> = ruleset
        .pod_ranges
        .iter()
        .filter_map(|range| match (range.first(), range.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some((first, last)),
            _ => None,
        })
        .collect();
    // A table without any lb_ip is not needed, so it holds nothing either.
    let pods = (!ranges.is_empty() && is_needed(ruleset)).then_some((Key::Pods, Value::Ranges(ranges)));
    pods.into_iter().chain(ruleset.picks().map(|pick| (Key::Pick(pick), Value::Present))).collect()
}

/// Whether there is anything to forward in the table, which is of IPv4.
pub fn is_needed(ruleset: &Ruleset) -> bool {
    // Addresses are in order, IPv4 before IPv6.
    ruleset.addresses.first_key_value().is_some_and(|(address, _)| address.is_ipv4())
}

/// The elements of one lb_ip.
pub fn of_address(address: Ipv4Addr, lb_ip: &LbIp) -> Vec<(Key, Value)> {
    let mut elements = vec![(Key::Address(address), Value::Present)];
    let mut local = BTreeSet::new();
    for (&(protocol, port), target) in &lb_ip.ports {
        let frontend = Frontend { address, protocol, port };
        if target.endpoints.is_empty() {
            elements.push((Key::Refused(frontend), Value::Present));
        }
        if target.outside.count > 0 {
            elements.push((Key::Service(frontend), Value::Pick(target.outside)));
        }
        if target.inside.count > 0 && target.inside != target.outside {
            elements.push((Key::Inside(frontend), Value::Pick(target.inside)));
        }
        for (index, endpoint) in (0..).zip(&target.endpoints) {
            // An lb_ip has endpoints of its own family only.
            let SocketAddr::V4(v4) = endpoint.address else { continue };
            elements.push((Key::Endpoint(frontend, index), Value::Endpoint(v4)));
            if !endpoint.remote {
                local.insert(*v4.ip());
            }
        }
    }
    for endpoint in local {
        elements.push((Key::Local(address, endpoint), Value::Present));
        elements.push((Key::Hairpin(address, endpoint), Value::Present));
    }
    elements
}
