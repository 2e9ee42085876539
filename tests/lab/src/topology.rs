//! The shape of a cluster: numbers of hosts by kind → names and addresses of all hosts. Pure.
//!
//! Every cluster uses the same addresses, because each has a switch of its own.
//!
//! ```text
//!   LAN 192.0.2.0/24, 2001:db8::/64                          pods of the node
//!   cp   .1      control plane, and the router of all nodes
//!   n1.. .11..   nodes with containerd and kubelet           10.244.1.0/24    fd00:10:244:1::/64 ..
//!   l1.. .41..   light nodes: a Node object and a namespace  10.244.101.0/24  fd00:10:244:101::/64 ..
//!   c1.. .101..  clients, without routes beyond the LAN
//!        .200-.250 unused, for load-balancer addresses
//! ```
//! An IPv6 address shows the same digits as the IPv4 one: n1 is 192.0.2.11 and 2001:db8::11.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Addresses of Services.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Addresses of all pods. Each node has a part of them.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The first Service address, which pods use for the API server.
pub const API_SERVICE: &str = "10.96.0.1";
/// The port of the API server, on the control plane's LAN addresses.
pub const API_PORT: u16 = 6443;

/// Limits of the address plan.
const MOST_NODES: u8 = 30;
const MOST_LIGHT_NODES: u8 = 60;
const MOST_CLIENTS: u8 = 90;

/// The service proxy on the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KubeProxy {
    /// kube-proxy in nftables mode.
    #[default]
    Nftables,
    /// kube-proxy in iptables mode.
    Iptables,
    /// No proxy: in-cluster clients must use <https://192.0.2.1:6443>.
    None,
}

impl fmt::Display for KubeProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::None => "none",
        })
    }
}

/// The shape of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Nodes with containerd, kubelet and, depending on `kube_proxy`, kube-proxy: `n1`, `n2`, ..
    pub nodes: u8,
    /// Nodes with only a Node object and a network namespace: `l1`, `l2`, ..
    pub light_nodes: u8,
    /// Hosts on the LAN outside of the cluster: `c1`, `c2`, ..
    pub clients: u8,
    pub kube_proxy: KubeProxy,
    /// A node without heartbeats stays Ready for this long. Kubernetes' default is 50 s. With a shorter time, the
    /// kubelets renew their leases more often.
    pub node_monitor_grace: Duration,
    /// Images (docker-archive tars) on every node from the start, in addition to `pause:dev` and `whoami:dev`.
    pub images: Vec<PathBuf>,
    /// Whether to capture the last frames on the switch (without the API server's), for
    /// [`Cluster::collect`](crate::Cluster::collect).
    pub capture: bool,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            nodes: 3,
            light_nodes: 0,
            clients: 1,
            kube_proxy: KubeProxy::default(),
            node_monitor_grace: Duration::from_secs(50),
            images: Vec::new(),
            capture: true,
        }
    }
}

/// The kind of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// etcd, API server, controller manager, scheduler; the nodes' default route.
    ControlPlane,
    /// A node with a kubelet.
    Node,
    /// A node without a kubelet.
    LightNode,
    /// A host on the LAN outside of the cluster.
    Client,
}

/// The pod CIDRs of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCidrs {
    number: u8,
}

impl PodCidrs {
    /// `10.244.N.0/24`.
    pub fn v4(self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// `fd00:10:244:N::/64`.
    pub fn v6(self) -> String {
        format!("fd00:10:244:{}::/64", self.number)
    }
}

/// A host's name, kind and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// `cp`, `n1`, `l1`, `c1`; also the name of its port on the switch.
    pub name: String,
    pub kind: HostKind,
    /// The last number of its addresses on the LAN.
    number: u8,
    /// The MAC address of the network card that replaced the first one.
    replaced_mac: Option<String>,
}

impl HostSpec {
    fn new(name: String, kind: HostKind, number: u8) -> Self {
        Self { name, kind, number, replaced_mac: None }
    }

    /// Its IPv4 address on the LAN (a /24).
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.number)
    }

    /// Its IPv6 address on the LAN (a /64), with the digits of the IPv4 address.
    pub fn v6(&self) -> Ipv6Addr {
        let digits =
            u16::from_str_radix(&self.number.to_string(), 16).expect("invariant: decimal digits are hex digits");
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits)
    }

    /// Its MAC address, the same after each boot. It ends with the digits of the IPv4 address.
    pub fn mac(&self) -> String {
        let first = || format!("02:00:00:00:{:02}:{:02}", self.number / 100, self.number % 100);
        self.replaced_mac.clone().unwrap_or_else(first)
    }

    /// The same host with another network card.
    pub fn with_mac(self, mac: &str) -> Self {
        Self { replaced_mac: Some(mac.to_owned()), ..self }
    }

    /// Its pod CIDRs, if it is a node of either kind.
    pub fn pods(&self) -> Option<PodCidrs> {
        let number = match self.kind {
            HostKind::Node => self.number - 10,
            HostKind::LightNode => self.number - 40 + 100,
            HostKind::ControlPlane | HostKind::Client => return None,
        };
        Some(PodCidrs { number })
    }
}

impl Topology {
    /// Checks the limits of the address plan and of the node grace.
    pub fn check(&self) -> Result<()> {
        for (what, number, most) in [
            ("nodes", self.nodes, MOST_NODES),
            ("light nodes", self.light_nodes, MOST_LIGHT_NODES),
            ("clients", self.clients, MOST_CLIENTS),
        ] {
            ensure!(number <= most, "{number} {what}: the address plan has room for {most}");
        }
        ensure!(
            self.node_monitor_grace >= Duration::from_secs(2),
            "node_monitor_grace is {:?}: leases have a resolution of a second, so use 2 s or more",
            self.node_monitor_grace
        );
        Ok(())
    }

    /// All hosts on the LAN: the control plane, nodes, light nodes, clients.
    pub fn hosts(&self) -> Vec<HostSpec> {
        let rows = |kind, letter: char, base: u8, count: u8| {
            (1..=count).map(move |n| HostSpec::new(format!("{letter}{n}"), kind, base + n))
        };
        std::iter::once(HostSpec::new("cp".to_owned(), HostKind::ControlPlane, 1))
            .chain(rows(HostKind::Node, 'n', 10, self.nodes))
            .chain(rows(HostKind::LightNode, 'l', 40, self.light_nodes))
            .chain(rows(HostKind::Client, 'c', 100, self.clients))
            .collect()
    }

    /// The host of this name. The error lists the existing names.
    pub fn host(&self, name: &str) -> Result<HostSpec> {
        let specs = self.hosts();
        match specs.iter().find(|spec| spec.name == name) {
            Some(spec) => Ok(spec.clone()),
            None => {
                let names: Vec<_> = specs.into_iter().map(|spec| spec.name).collect();
                bail!("there is no host {name:?} in this cluster; there are {} and switch", names.join(", "))
            }
        }
    }

    /// The control plane's host.
    pub fn control_plane(&self) -> HostSpec {
        self.hosts().swap_remove(0)
    }
}

/// Checks the name of a cluster, which becomes part of file names, interface listings and labels.
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !name.is_empty() && name.len() <= 32 && name.chars().all(allowed) && !name.starts_with('-'),
        "{name:?} is no valid cluster name: use up to 32 of a-z, 0-9 and -, not starting with -"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_show_the_same_digits_in_both_families() {
        let topology = Topology { nodes: 2, light_nodes: 1, clients: 1, ..Topology::default() };
        let shown: Vec<_> = topology
            .hosts()
            .iter()
            .map(|s| {
                format!(
                    "{} {} {} {} {}",
                    s.name,
                    s.v4(),
                    s.v6(),
                    s.mac(),
                    s.pods().map_or_else(String::new, |p| p.v6())
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "cp 192.0.2.1 2001:db8::1 02:00:00:00:00:01 ",
                "n1 192.0.2.11 2001:db8::11 02:00:00:00:00:11 fd00:10:244:1::/64",
                "n2 192.0.2.12 2001:db8::12 02:00:00:00:00:12 fd00:10:244:2::/64",
                "l1 192.0.2.41 2001:db8::41 02:00:00:00:00:41 fd00:10:244:101::/64",
                "c1 192.0.2.101 2001:db8::101 02:00:00:00:01:01 ",
            ]
        );
    }

    #[test]
    fn the_largest_topology_has_unique_addresses_outside_the_pool() {
        let topology =
            Topology { nodes: MOST_NODES, light_nodes: MOST_LIGHT_NODES, clients: MOST_CLIENTS, ..Topology::default() };
        topology.check().expect("within the limits");
        let mut numbers: Vec<_> = topology.hosts().iter().map(|s| s.number).collect();
        assert!(numbers.iter().all(|n| !(200..=250).contains(n)));
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }

    #[test]
    fn an_unknown_host_is_answered_with_a_list() {
        let error = Topology::default().host("n4").expect_err("three nodes");
        assert_eq!(
            error.to_string(),
            r#"there is no host "n4" in this cluster; there are cp, n1, n2, n3, c1 and switch"#
        );
    }

    #[test]
    fn names_that_would_break_paths_are_refused() {
        for name in ["", "-a", "a/b", "A", "a b", "a_b", "012345678901234567890123456789012"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("e2e-1").expect("a good name");
    }
}
