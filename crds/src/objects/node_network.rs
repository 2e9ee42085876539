//! `NodeNetwork`: links, addresses and gateways of a node.
//!
//! A Node object lists only few addresses of the node, and no gateways. So the agent on the node publishes here the
//! addresses of all links and gateways. The controller never assigns one of them to a Service.

#![allow(clippy::duplicated_attributes, reason = "printer columns may share a type")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of addresses of a link. Bounds the size of the object.
pub const MAX_ADDRESSES: usize = 64;

/// Links, addresses and gateways of a node, as found by the agent on the node.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "lbnode",
    category = "landfall",
    derive = "PartialEq",
    doc = "Links, addresses and gateways of a node, as found by the agent on the node. The name is that of the node. \
           Written only by the agent. Landfall never assigns one of these addresses to a Service.",
    printcolumn(name = "Links", type_ = "string", json_path = ".spec.links[*].name"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.links[*].addresses[*]"),
    printcolumn(name = "Gateways", type_ = "string", json_path = ".spec.gateways[*]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// Links on which the node can announce addresses, sorted by name. At most 256.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub links: Vec<NodeLink>,

    /// Addresses of the routers that the node uses, in canonical form. At most 256. Example: `192.0.2.1`.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub gateways: Vec<String>,
}

/// A link of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeLink {
    /// Name of the network interface. Example: `eth0`.
    pub name: String,
    /// Addresses of the node on this link, with prefix length. At most 64; if the link has more, one of each network
    /// comes first, and the others are omitted. Example: `192.0.2.11/24`.
    #[serde(default)]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub addresses: Vec<String>,
    /// MAC address of the node on this link. Other nodes re-send frames for load-balancer addresses to this MAC
    /// address. If it is absent, other nodes translate these packets and route them to the pods of this node. Example:
    /// `02:00:5e:10:00:01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// The fields of a [`NodeNetwork`] that the controller uses. Invalid entries are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Addresses of the node. They are never assigned.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its gateways. They are never assigned.
    pub gateways: Vec<IpAddr>,
    /// Networks of its links, without duplicates. Clients reach an address of these networks without a route.
    pub networks: Vec<IpNet>,
}

impl From<&NodeNetwork> for NodeAddresses {
    fn from(object: &NodeNetwork) -> Self {
        let texts = object.spec.links.iter().flat_map(|link| &link.addresses);
        let nets: Vec<IpNet> = texts.filter_map(|text| text.parse().ok()).collect();
        let networks: BTreeSet<_> = nets.iter().filter_map(|net| network_of(*net)).collect();
        Self {
            addresses: nets.iter().map(IpNet::addr).collect(),
            gateways: object.spec.gateways.iter().filter_map(|text| text.parse().ok()).collect(),
            networks: networks.into_iter().collect(),
        }
    }
}

/// The network of an address of a link. `None` if the network has a single address, or if it is link-local.
fn network_of(net: IpNet) -> Option<IpNet> {
    let is_link_local = match net {
        IpNet::V4(v4) => v4.addr().is_link_local(),
        IpNet::V6(v6) => v6.addr().is_unicast_link_local(),
    };
    (net.prefix_len() < net.max_prefix_len() && !is_link_local).then(|| net.trunc())
}

/// The links in the [`NodeNetwork`] of a peer to which this node can re-send frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerLinks {
    /// The links that have a MAC address.
    pub links: Vec<PeerLink>,
}

/// A link of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// Name of the network interface.
    pub name: String,
    /// MAC address of the peer on the link, not parsed.
    pub mac: String,
    /// Networks of its addresses. Two nodes with a common network can be neighbours on it.
    pub networks: Vec<IpNet>,
    /// The addresses in these networks, with prefix length, in the same order.
    pub addresses: Vec<IpNet>,
}

impl From<&NodeNetwork> for PeerLinks {
    fn from(object: &NodeNetwork) -> Self {
        let link = |link: &NodeLink| {
            let networks = link.addresses.iter().filter_map(|text| text.parse::<IpNet>().ok());
            // A network of one address has no neighbours.
            let addresses: Vec<IpNet> = networks.filter(|net| net.prefix_len() < net.max_prefix_len()).collect();
            let networks = addresses.iter().map(IpNet::trunc).collect();
            Some(PeerLink { name: link.name.clone(), mac: link.mac.clone()?, networks, addresses })
        };
        Self { links: object.spec.links.iter().filter_map(link).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_links_and_gateways_are_read() {
        let link = |name: &str, addresses: &[&str]| NodeLink {
            name: name.into(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            mac: Some("02:00:00:00:00:01".to_owned()).filter(|_| name == "eth0"),
        };
        let spec = NodeNetworkSpec {
            links: vec![
                link("eth0", &["192.0.2.11/24", "2001:db8::11/64"]),
                link("eth1", &["nonsense", "198.51.100.9/32", "fe80::9/64", "192.0.2.12/24", "169.254.0.9/16"]),
            ],
            gateways: vec!["192.0.2.1".into(), "fe80::1".into(), "none".into()],
        };
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let network = |text: &str| text.parse::<IpNet>().expect("a network");
        let eth0 = PeerLink {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            networks: vec![network("192.0.2.0/24"), network("2001:db8::/64")],
            addresses: vec![network("192.0.2.11/24"), network("2001:db8::11/64")],
        };
        assert_eq!(PeerLinks::from(&NodeNetwork::new("n1", spec.clone())), PeerLinks { links: vec![eth0] });
        assert_eq!(
            NodeAddresses::from(&NodeNetwork::new("n1", spec)),
            NodeAddresses {
                addresses: ["192.0.2.11", "2001:db8::11", "198.51.100.9", "fe80::9", "192.0.2.12", "169.254.0.9"]
                    .map(ip)
                    .to_vec(),
                gateways: vec![ip("192.0.2.1"), ip("fe80::1")],
                networks: vec![network("192.0.2.0/24"), network("2001:db8::/64")],
            }
        );
    }
}
