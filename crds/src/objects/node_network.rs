//! `NodeNetwork`: what Landfall's agent found on a node's network.
//!
//! A Node says which address it has inside the cluster, and nothing of its other links or its gateways. The agent on the
//! node sees them, and says so here, so that the controller never gives one of those addresses to a Service.

#![allow(clippy::duplicated_attributes, reason = "the columns of `kubectl get` may share a type")]

use std::net::IpAddr;

use ipnet::IpNet;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Landfall's agent found on a node's network.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "lbnode",
    category = "landfall",
    derive = "PartialEq",
    doc = "What Landfall's agent found on a node's network: links, addresses and gateways. Named like the node, and written \
           by the agent alone. None of these addresses is given to a Service.",
    printcolumn(name = "Links", type_ = "string", json_path = ".spec.links[*].name"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.links[*].addresses[*]"),
    printcolumn(name = "Gateways", type_ = "string", json_path = ".spec.gateways[*]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// The links on which addresses can be announced, by name.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub links: Vec<NodeLink>,

    /// The routers through which the node reaches what is beyond its links, in canonical form.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub gateways: Vec<String>,
}

/// A link of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeLink {
    /// The name of the network interface.
    pub name: String,
    /// The node's own addresses on it, with the length of the prefix they share with their neighbours: `192.0.2.11/24`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The node's MAC address on it, to which other nodes hand frames for addresses of Services: `02:00:5e:10:00:01`.
    /// Without one, they translate those and send them to this node's pods as packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// What Landfall reads of a [`NodeNetwork`]. What is no address is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its gateways.
    pub gateways: Vec<IpAddr>,
}

impl From<&NodeNetwork> for Network {
    fn from(object: &NodeNetwork) -> Self {
        let written = object.spec.links.iter().flat_map(|link| &link.addresses);
        Self {
            addresses: written.filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.addr()).collect(),
            gateways: object.spec.gateways.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }
}

/// What other nodes read of a [`NodeNetwork`] to hand frames to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerLinks {
    /// Its links that have a MAC address.
    pub links: Vec<PeerLink>,
}

/// A link of a node, as other nodes see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// The name of the network interface.
    pub name: String,
    /// The node's MAC address on it, as written.
    pub mac: String,
    /// The networks that its addresses are of. Two links with one network in common may be the same.
    pub networks: Vec<IpNet>,
}

impl From<&NodeNetwork> for PeerLinks {
    fn from(object: &NodeNetwork) -> Self {
        let link = |link: &NodeLink| {
            let networks = link.addresses.iter().filter_map(|text| text.parse::<IpNet>().ok());
            // An address by itself is no network.
            let networks = networks.filter(|net| net.prefix_len() < net.max_prefix_len()).map(|net| net.trunc());
            Some(PeerLink { name: link.name.clone(), mac: link.mac.clone()?, networks: networks.collect() })
        };
        Self { links: object.spec.links.iter().filter_map(link).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_all_links_and_the_gateways_are_read() {
        let link = |name: &str, addresses: &[&str]| NodeLink {
            name: name.into(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            mac: Some("02:00:00:00:00:01".to_owned()).filter(|_| name == "eth0"),
        };
        let spec = NodeNetworkSpec {
            links: vec![link("eth0", &["192.0.2.11/24", "2001:db8::11/64"]), link("eth1", &["nonsense"])],
            gateways: vec!["192.0.2.1".into(), "fe80::1".into(), "none".into()],
        };
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let network = |text: &str| text.parse::<IpNet>().expect("a network");
        let eth0 = PeerLink {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            networks: vec![network("192.0.2.0/24"), network("2001:db8::/64")],
        };
        assert_eq!(PeerLinks::from(&NodeNetwork::new("n1", spec.clone())), PeerLinks { links: vec![eth0] });
        assert_eq!(
            Network::from(&NodeNetwork::new("n1", spec)),
            Network {
                addresses: vec![ip("192.0.2.11"), ip("2001:db8::11")],
                gateways: vec![ip("192.0.2.1"), ip("fe80::1")],
            }
        );
    }
}
