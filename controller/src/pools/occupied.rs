//! Addresses that are never assigned to a Service: those of nodes and of their gateways, and the ends of the networks
//! of nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::NodeAddresses;
use crds::service::Family;
use crds::{Node, Range};
use ipnet::IpNet;

use crate::pools::intervals::{ByFamily, Intervals, number};

/// How many addresses of pools one agent can withhold by its reports. A node that is under foreign control can report
/// any address as its own.
pub(crate) const MAX_WITHHELD: usize = 16;

/// Why no Service can have an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occupant {
    Node(String),
    /// A gateway of this node.
    Gateway(String),
    /// The address is an end of this network of nodes: in IPv4, its network or broadcast address; in IPv6, its
    /// subnet-router anycast address.
    Network(IpNet),
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Gateway(node) => write!(f, "the gateway of node {node}"),
            Self::Network(network) => write!(f, "network {network}"),
        }
    }
}

/// The reports of nodes and agents about their addresses, gateways and networks. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupied(Arc<Reports>);

/// The contents of [`Occupied`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reports {
    /// Addresses in the objects of nodes.
    nodes: BTreeMap<IpAddr, Occupant>,
    /// By node, the reports of its agent: ends of networks, then gateways, then its own addresses. Reports that are
    /// less likely to be a mistake come first.
    agents: BTreeMap<String, Vec<(IpAddr, Occupant)>>,
    /// Networks of links of nodes. Empty if no agent has reported its links.
    networks: BTreeSet<IpNet>,
}

impl Occupied {
    /// Collects the addresses in the objects of nodes, and the reports of agents by the name of their node.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        networks: impl IntoIterator<Item = (&'a str, &'a NodeAddresses)>,
    ) -> Self {
        let mut reports = Reports::default();
        for node in nodes {
            let addresses = node.addresses.iter().chain(&node.external_addresses);
            addresses.for_each(|address| add(&mut reports.nodes, *address, Occupant::Node(node.name.clone())));
        }
        for (node, network) in networks {
            let ends = network.networks.iter().flat_map(|net| ends(*net).map(|end| (end, Occupant::Network(*net))));
            let gateways = network.gateways.iter().map(|address| (*address, Occupant::Gateway(node.to_owned())));
            let own = network.addresses.iter().map(|address| (*address, Occupant::Node(node.to_owned())));
            reports.agents.insert(node.to_owned(), ends.chain(gateways).chain(own).collect());
            reports.networks.extend(&network.networks);
        }
        Self(Arc::new(reports))
    }

    /// The occupants of all addresses. Of the addresses in `pooled`, at most [`MAX_WITHHELD`] count for each agent, in
    /// addition to those in the objects of nodes. If an address has several occupants, a node comes before a gateway,
    /// and a gateway before the end of a network. Then the first node by name counts.
    pub(super) fn occupants(&self, pooled: impl FnOnce() -> ByFamily<Intervals>) -> Occupants {
        let Reports { nodes, agents, .. } = &*self.0;
        let mut occupants = Occupants { addresses: nodes.clone(), excess: BTreeMap::new() };
        let pooled =
            if agents.values().any(|reported| reported.len() > MAX_WITHHELD) { pooled() } else { <_>::default() };
        for reported in agents.values() {
            let mut withheld = BTreeSet::new();
            for (address, occupant) in reported {
                let is_pooled = pooled[Family::from(*address)].contains(number(*address));
                if is_pooled && !nodes.contains_key(address) && !withheld.contains(address) {
                    if withheld.len() == MAX_WITHHELD {
                        add(&mut occupants.excess, *address, occupant.clone());
                        continue;
                    }
                    withheld.insert(*address);
                }
                add(&mut occupants.addresses, *address, occupant.clone());
            }
        }
        let addresses = &occupants.addresses;
        occupants.excess.retain(|address, _| !addresses.contains_key(address));
        occupants
    }

    /// The networks of the nodes, IPv4 first. Empty if no agent has reported its links.
    pub(crate) fn networks(&self) -> &BTreeSet<IpNet> {
        &self.0.networks
    }
}

/// The occupant of each address that is never assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Occupants {
    addresses: BTreeMap<IpAddr, Occupant>,
    /// Addresses of pools that agents report beyond their limit. They are assigned.
    excess: BTreeMap<IpAddr, Occupant>,
}

impl Occupants {
    pub(super) fn get(&self, address: IpAddr) -> Option<&Occupant> {
        self.addresses.get(&address)
    }

    /// The occupied addresses in `range`, in order.
    pub(super) fn in_range(&self, range: Range) -> impl Iterator<Item = (IpAddr, &Occupant)> {
        self.addresses.range(range.first()..=range.last()).map(|(address, occupant)| (*address, occupant))
    }

    /// The addresses in `range` that agents report beyond their limit, in order.
    pub(super) fn excess_in(&self, range: Range) -> impl Iterator<Item = (IpAddr, &Occupant)> {
        self.excess.range(range.first()..=range.last()).map(|(address, occupant)| (*address, occupant))
    }
}

fn add(occupants: &mut BTreeMap<IpAddr, Occupant>, address: IpAddr, occupant: Occupant) {
    let known = occupants.entry(address).or_insert_with(|| occupant.clone());
    if occupant < *known {
        *known = occupant;
    }
}

/// The addresses of a network that no host can have: in IPv4, the network and the broadcast address; in IPv6, the
/// subnet-router anycast address (RFC 4291 §2.6.1). A network of two addresses has none (RFC 3021, RFC 6164).
fn ends(network: IpNet) -> impl Iterator<Item = IpAddr> {
    let has_ends = network.max_prefix_len() - network.prefix_len() > 1;
    let broadcast = matches!(network, IpNet::V4(_)).then(|| network.broadcast());
    std::iter::once(network.network()).chain(broadcast).filter(move |_| has_ends)
}

/// An end of a network of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkEnd {
    pub(crate) address: IpAddr,
    pub(crate) network: IpNet,
}

impl fmt::Display for NetworkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.network {
            IpNet::V6(_) => "subnet-router anycast address",
            IpNet::V4(_) if self.address == self.network.network() => "network address",
            IpNet::V4(_) => "broadcast address",
        };
        write!(f, "the {name} of {}", self.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, node};
    use proptest::prelude::*;

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
        let occupied = Occupied::new(nodes.iter().map(|node| &**node), networks).occupants(ByFamily::default);
        let named = |name: &str| Occupant::Node(name.into());
        assert_eq!(
            occupied.addresses.iter().map(|(address, occupant)| (*address, occupant.clone())).collect::<Vec<_>>(),
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

    #[test]
    fn ends_of_networks_are_occupied() {
        for (network, expected) in [
            ("192.0.2.0/24", &["192.0.2.0", "192.0.2.255"][..]),
            ("192.0.2.128/30", &["192.0.2.128", "192.0.2.131"]),
            ("192.0.2.0/31", &[]),
            ("192.0.2.0/32", &[]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"]),
            ("2001:db8::/64", &["2001:db8::"]),
            ("2001:db8::/126", &["2001:db8::"]),
            ("2001:db8::/127", &[]),
        ] {
            let network: IpNet = network.parse().expect("a network");
            let reported = NodeAddresses { networks: vec![network], ..NodeAddresses::default() };
            let occupants = Occupied::new([], [("n1", &reported)]).occupants(ByFamily::default);
            let expected: Vec<_> = expected.iter().map(|text| (ip(text), Occupant::Network(network))).collect();
            assert_eq!(occupants.addresses.into_iter().collect::<Vec<_>>(), expected, "{network}");
        }
        let end = |address: &str, network: &str| {
            NetworkEnd { address: ip(address), network: network.parse().expect("a network") }.to_string()
        };
        assert_eq!(end("192.0.2.0", "192.0.2.0/24"), "the network address of 192.0.2.0/24");
        assert_eq!(end("192.0.2.255", "192.0.2.0/24"), "the broadcast address of 192.0.2.0/24");
        assert_eq!(end("2001:db8::", "2001:db8::/64"), "the subnet-router anycast address of 2001:db8::/64");
    }

    proptest! {
        /// Node `n1` has an address of its own object, too. All numbers are the last octet of an address.
        #[test]
        fn each_agent_withholds_at_most_its_limit_of_a_pool(
            reported in proptest::collection::vec(proptest::collection::vec(0..60u8, 0..40), 1..4),
            own in 0..60u8,
            pooled in (0..40u8, 0..40u8),
        ) {
            let address = |last: u8| IpAddr::from([192, 0, 2, last]);
            let pooled = pooled.0..=pooled.0 + pooled.1;
            let networks: Vec<_> = reported
                .iter()
                .map(|own| NodeAddresses {
                    addresses: own.iter().map(|last| address(*last)).collect(),
                    ..NodeAddresses::default()
                })
                .collect();
            let names: Vec<_> = (0..reported.len()).map(|number| format!("n{number}")).collect();
            let n1 = node("n1", &address(own).to_string());
            let occupied = Occupied::new([&*n1], names.iter().map(String::as_str).zip(&networks));
            let range = Range::new(address(*pooled.start()), address(*pooled.end()));
            let occupants = occupied.occupants(|| crate::pools::intervals::union(range));
            let mut expected = BTreeSet::from([own]);
            let mut beyond = BTreeSet::new();
            for reported in &reported {
                let mut first = Vec::new();
                for last in reported {
                    if !pooled.contains(last) {
                        expected.insert(*last);
                    } else if *last != own && !first.contains(last) {
                        first.push(*last);
                    }
                }
                let limit = first.len().min(MAX_WITHHELD);
                expected.extend(&first[..limit]);
                beyond.extend(&first[limit..]);
            }
            let addresses = |set: BTreeSet<u8>| set.into_iter().map(address).collect::<Vec<_>>();
            let excess: BTreeSet<_> = beyond.difference(&expected).copied().collect();
            prop_assert_eq!(occupants.addresses.keys().copied().collect::<Vec<_>>(), addresses(expected));
            prop_assert_eq!(occupants.excess.keys().copied().collect::<Vec<_>>(), addresses(excess));
        }
    }
}
