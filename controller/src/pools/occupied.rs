//! Addresses of nodes and of their gateways. They are never assigned to a Service.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::NodeAddresses;
use crds::{Node, Range};

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

/// Addresses of nodes and gateways. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupied(Arc<BTreeMap<IpAddr, Occupant>>);

impl Occupied {
    /// Collects the addresses in the objects of nodes, and the addresses that agents found on the networks, by node
    /// name. If several nodes report one address, a node comes before a gateway, and then the first node by name
    /// counts.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        networks: impl IntoIterator<Item = (&'a str, &'a NodeAddresses)>,
    ) -> Self {
        let mut occupied = Self::default();
        for node in nodes {
            node.addresses.iter().for_each(|address| occupied.add(*address, Occupant::Node(node.name.clone())));
        }
        for (node, network) in networks {
            network.addresses.iter().for_each(|address| occupied.add(*address, Occupant::Node(node.to_owned())));
            network.gateways.iter().for_each(|address| occupied.add(*address, Occupant::Gateway(node.to_owned())));
        }
        occupied
    }

    fn add(&mut self, address: IpAddr, occupant: Occupant) {
        let known = Arc::make_mut(&mut self.0).entry(address).or_insert_with(|| occupant.clone());
        if occupant < *known {
            *known = occupant;
        }
    }

    pub fn get(&self, address: IpAddr) -> Option<&Occupant> {
        self.0.get(&address)
    }

    /// The occupied addresses in `range`, in order.
    pub fn in_range(&self, range: Range) -> impl Iterator<Item = (IpAddr, &Occupant)> {
        self.0.range(range.first()..=range.last()).map(|(address, occupant)| (*address, occupant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, node};

    #[test]
    fn node_comes_before_gateway_then_first_name_counts() {
        let nodes = [node("n2", "192.0.2.12"), node("n1", "192.0.2.11")];
        let network =
            |own: &str, gateway: &str| NodeAddresses { addresses: vec![ip(own)], gateways: vec![ip(gateway)] };
        let networks = [("n2", network("192.0.2.12", "192.0.2.1")), ("n1", network("2001:db8::11", "192.0.2.1"))];
        let third = network("2001:db8::13", "192.0.2.11");
        let networks = networks.iter().map(|(name, network)| (*name, network)).chain([("n0", &third)]);
        let occupied = Occupied::new(nodes.iter().map(|node| &**node), networks);
        let named = |name: &str| Occupant::Node(name.into());
        assert_eq!(
            occupied.0.iter().map(|(address, occupant)| (*address, occupant.clone())).collect::<Vec<_>>(),
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
