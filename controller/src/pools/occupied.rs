//! Addresses of nodes and of their gateways, which are never assigned to a Service, and the networks of the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::NodeAddresses;
use crds::{Node, Range};
use ipnet::IpNet;

/// Which node or gateway has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occupant {
    Node(String),
    /// A gateway of this node.
    Gateway(String),
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Gateway(node) => write!(f, "the gateway of node {node}"),
        }
    }
}

/// Addresses of nodes and gateways, and the networks of the nodes. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupied(Arc<Reports>);

/// The contents of [`Occupied`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reports {
    addresses: BTreeMap<IpAddr, Occupant>,
    /// Networks of links of nodes. Empty if no agent has reported its links.
    networks: BTreeSet<IpNet>,
}

impl Occupied {
    /// Collects the addresses in the objects of nodes, and the addresses that agents found on the networks, by node
    /// name. If several nodes report one address, a node comes before a gateway, and then the first node by name
    /// counts.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        networks: impl IntoIterator<Item = (&'a str, &'a NodeAddresses)>,
    ) -> Self {
        let mut reports = Reports::default();
        for node in nodes {
            let addresses = node.addresses.iter().chain(&node.external_addresses);
            addresses.for_each(|address| reports.add(*address, Occupant::Node(node.name.clone())));
        }
        for (node, network) in networks {
            network.addresses.iter().for_each(|address| reports.add(*address, Occupant::Node(node.to_owned())));
            network.gateways.iter().for_each(|address| reports.add(*address, Occupant::Gateway(node.to_owned())));
            reports.networks.extend(&network.networks);
        }
        Self(Arc::new(reports))
    }

    pub fn get(&self, address: IpAddr) -> Option<&Occupant> {
        self.0.addresses.get(&address)
    }

    /// The occupied addresses in `range`, in order.
    pub fn in_range(&self, range: Range) -> impl Iterator<Item = (IpAddr, &Occupant)> {
        self.0.addresses.range(range.first()..=range.last()).map(|(address, occupant)| (*address, occupant))
    }

    /// The networks of the nodes, IPv4 first. Empty if no agent has reported its links.
    pub(crate) fn networks(&self) -> &BTreeSet<IpNet> {
        &self.0.networks
    }
}

impl Reports {
    fn add(&mut self, address: IpAddr, occupant: Occupant) {
        let known = self.addresses.entry(address).or_insert_with(|| occupant.clone());
        if occupant < *known {
            *known = occupant;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, node};

    #[test]
    fn node_comes_before_gateway_then_first_name_counts() {
        let nodes = [node("n2", "192.0.2.12"), node("n1", "192.0.2.11")];
        let network = |own: &str, gateway: &str| NodeAddresses {
            addresses: vec![ip(own)],
            gateways: vec![ip(gateway)],
            ..NodeAddresses::default()
        };
        let networks = [("n2", network("192.0.2.12", "192.0.2.1")), ("n1", network("2001:db8::11", "192.0.2.1"))];
        let third = network("2001:db8::13", "192.0.2.11");
        let networks = networks.iter().map(|(name, network)| (*name, network)).chain([("n0", &third)]);
        let occupied = Occupied::new(nodes.iter().map(|node| &**node), networks);
        let named = |name: &str| Occupant::Node(name.into());
        assert_eq!(
            occupied.0.addresses.iter().map(|(address, occupant)| (*address, occupant.clone())).collect::<Vec<_>>(),
            [
                (ip("192.0.2.1"), Occupant::Gateway("n1".into())),
                (ip("192.0.2.11"), named("n1")),
                (ip("192.0.2.12"), named("n2")),
                (ip("2001:db8::11"), named("n1")),
                (ip("2001:db8::13"), named("n0")),
            ]
        );
        assert_eq!(occupied.get(ip("192.0.2.1")).map(ToString::to_string), Some("the gateway of node n1".into()));
        let range = "192.0.2.12-192.0.2.20".parse().expect("a range");
        assert_eq!(occupied.in_range(range).map(|(address, _)| address).collect::<Vec<_>>(), [ip("192.0.2.12")]);
    }
}
