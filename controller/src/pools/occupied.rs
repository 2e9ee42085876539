//! Addresses that the network has for itself: those of nodes, and of the routers they reach the world through.
//!
//! Nodes, and what their agents found on their links → [`Occupied`]. No such address is ever given to a Service.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::Network;
use crds::{Node, Range};

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occupant {
    /// It is this node's own.
    Node(String),
    /// It is a gateway of this node.
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

/// Addresses that are not to be given, and whose they are. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupied(Arc<BTreeMap<IpAddr, Occupant>>);

impl Occupied {
    /// What these nodes occupy, and what was found on their networks, each by the name of its node. Where several have
    /// one address (as a rule a gateway), a node's own comes first, then the first by name.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        networks: impl IntoIterator<Item = (&'a str, &'a Network)>,
    ) -> Self {
        let mut occupied = BTreeMap::<IpAddr, Occupant>::new();
        let mut add = |address: IpAddr, occupant: Occupant| {
            let known = occupied.entry(address).or_insert_with(|| occupant.clone());
            if occupant < *known {
                *known = occupant;
            }
        };
        for node in nodes {
            node.addresses.iter().for_each(|address| add(*address, Occupant::Node(node.name.clone())));
        }
        for (node, network) in networks {
            network.addresses.iter().for_each(|address| add(*address, Occupant::Node(node.to_owned())));
            network.gateways.iter().for_each(|address| add(*address, Occupant::Gateway(node.to_owned())));
        }
        Self(Arc::new(occupied))
    }

    /// Whose `address` is.
    pub fn get(&self, address: IpAddr) -> Option<&Occupant> {
        self.0.get(&address)
    }

    /// Those in `range`, in order.
    pub fn within(&self, range: Range) -> impl Iterator<Item = (IpAddr, &Occupant)> {
        self.0.range(range.first()..=range.last()).map(|(address, occupant)| (*address, occupant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, node};

    #[test]
    fn an_address_is_a_nodes_before_it_is_a_gateway_and_the_first_nodes_by_name() {
        let nodes = [node("n2", "192.0.2.12"), node("n1", "192.0.2.11")];
        let network = |own: &str, gateway: &str| Network { addresses: vec![ip(own)], gateways: vec![ip(gateway)] };
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
        assert_eq!(occupied.within(range).map(|(address, _)| address).collect::<Vec<_>>(), [ip("192.0.2.12")]);
    }
}
