//! Whether packets to a port go to endpoints, or to what the node's Service proxy serves: [`proxied`].
//!
//! Where a Service wants that, its packets are given to the proxy (kube-proxy) as if they had been addressed to its node
//! port on this node, or to its ClusterIP. Where it can't be done they go to endpoints, and the Service says why.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crds::service::Family;
use crds::{Backend, Forwarder, Port, Protocol, TrafficPolicy};

use crate::snapshot::Snapshot;

/// What a packet is addressed to, so that the Service proxy sends it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// A port of this node.
    NodePort(SocketAddr),
    /// This address, at the port that it was for.
    ClusterIp(IpAddr),
}

impl Proxied {
    /// Which kind of backend it is.
    pub fn backend(self) -> Backend {
        match self {
            Self::NodePort(_) => Backend::NodePort,
            Self::ClusterIp(_) => Backend::ClusterIp,
        }
    }
}

/// Why packets go to endpoints that should go to something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fallback {
    /// What they should go to.
    pub wanted: Backend,
    /// What is in the way.
    pub because: Hindrance,
}

/// What keeps packets from going through the Service proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hindrance {
    /// This port has no node port.
    NoNodePort(Protocol, u16),
    /// The node has no InternalIP of this family.
    NoNodeAddress(Family),
    /// The Service has no ClusterIP of this family.
    NoClusterIp(Family),
    /// Its traffic policy is Local, and behind a ClusterIP nobody keeps to that.
    LocalPolicy,
    /// The Service proxy leaves the Service alone, because of a label.
    Labelled,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, because } = self;
        write!(f, "{wanted}: ")?;
        match because {
            Hindrance::NoNodePort(protocol, port) => {
                write!(f, "port {port}/{protocol} has no node port; set spec.allocateLoadBalancerNodePorts to true")
            }
            Hindrance::NoNodeAddress(family) => write!(f, "this node has no InternalIP of {family}"),
            Hindrance::NoClusterIp(family) => write!(f, "it has no ClusterIP of {family}; set spec.ipFamilyPolicy"),
            Hindrance::LocalPolicy => write!(
                f,
                "a ClusterIP does not keep to externalTrafficPolicy Local; set Cluster, or the backend nodeport"
            ),
            Hindrance::Labelled => {
                write!(f, "by its label service.kubernetes.io/service-proxy-name no other proxy serves it")
            }
        }
    }
}

/// What packets to this port of a Service are to be addressed to, so that the Service proxy sends them on; `None` if they go
/// to endpoints as they should.
///
/// # Errors
/// Why they can't be given to the proxy, though they should.
pub fn proxied(
    service: &crds::Service,
    port: &Port,
    family: Family,
    snapshot: &Snapshot,
) -> Result<Option<Proxied>, Fallback> {
    let wanted = match service.backend {
        Some(Ok(wanted)) => wanted,
        Some(Err(_)) | None => snapshot.backend,
    };
    let found = match wanted {
        Backend::Endpoints => return Ok(None),
        Backend::NodePort | Backend::ClusterIp if service.forwarder() == Forwarder::Landfall => {
            Err(Hindrance::Labelled)
        }
        Backend::NodePort => port
            .node_port
            .ok_or(Hindrance::NoNodePort(port.protocol, port.number))
            .and_then(|number| {
                let mut own = snapshot.own.iter().copied().filter(|address| Family::from(*address) == family);
                own.next().map(|address| SocketAddr::new(address, number)).ok_or(Hindrance::NoNodeAddress(family))
            })
            .map(Proxied::NodePort),
        Backend::ClusterIp if service.traffic_policy == TrafficPolicy::Local => Err(Hindrance::LocalPolicy),
        Backend::ClusterIp => service.cluster_ip(family).map(Proxied::ClusterIp).ok_or(Hindrance::NoClusterIp(family)),
    };
    found.map(Some).map_err(|because| Fallback { wanted, because })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    fn service(wants: Option<&str>) -> crds::Service {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.7"],
                "ports": [{"port": 80, "nodePort": 30080}, {"port": 81}],
            },
        }))
        .expect("a Service");
        let service = crds::Service::try_from(&object).expect("a view");
        crds::Service { backend: wants.map(|text| text.parse().map_err(crds::InternedStr::from)), ..service }
    }

    /// What becomes of one of its ports of IPv4, on a node that has an address of that alone.
    fn decided(
        service: &crds::Service,
        port: usize,
        family: Family,
        default: Backend,
    ) -> Result<Option<Proxied>, Hindrance> {
        let own = vec!["192.0.2.1".parse().expect("an address")];
        let snapshot = Snapshot { backend: default, own, ..Snapshot::default() };
        proxied(service, &service.ports[port], family, &snapshot).map_err(|fallback| fallback.because)
    }

    #[test]
    fn a_service_says_what_its_packets_go_to_and_else_the_cluster_does() {
        use Backend::{ClusterIp, Endpoints, NodePort};
        let node_port = Proxied::NodePort("192.0.2.1:30080".parse().expect("an address and a port"));
        let cluster_ip = Proxied::ClusterIp("10.96.0.7".parse().expect("an address"));
        for (wants, default, expected) in [
            (None, Endpoints, None),
            (None, NodePort, Some(node_port)),
            (None, ClusterIp, Some(cluster_ip)),
            (Some("endpoints"), ClusterIp, None),
            (Some("nodeport"), ClusterIp, Some(node_port)),
            (Some("clusterip"), Endpoints, Some(cluster_ip)),
            (Some("pods"), NodePort, Some(node_port)),
        ] {
            assert_eq!(decided(&service(wants), 0, Family::V4, default), Ok(expected), "{wants:?} of {default}");
        }
    }

    #[test]
    fn what_can_not_be_given_to_the_proxy_says_why() {
        let (node_port, cluster_ip) = (service(Some("nodeport")), service(Some("clusterip")));
        let local = |service: &crds::Service| crds::Service { traffic_policy: TrafficPolicy::Local, ..service.clone() };
        let labels = [("service.kubernetes.io/service-proxy-name", "landfall")].into();
        let ours = crds::Service { labels, ..cluster_ip.clone() };
        let decided = |service, port, family| decided(service, port, family, Backend::Endpoints);
        assert_eq!(decided(&node_port, 1, Family::V4), Err(Hindrance::NoNodePort(Protocol::Tcp, 81)));
        assert_eq!(decided(&node_port, 0, Family::V6), Err(Hindrance::NoNodeAddress(Family::V6)));
        assert_eq!(decided(&cluster_ip, 0, Family::V6), Err(Hindrance::NoClusterIp(Family::V6)));
        let (local_port, local_ip) = (local(&node_port), local(&cluster_ip));
        assert_eq!(decided(&local_ip, 0, Family::V4), Err(Hindrance::LocalPolicy));
        assert!(decided(&local_port, 0, Family::V4).is_ok());
        assert_eq!(decided(&ours, 0, Family::V4), Err(Hindrance::Labelled));
        let fallback = Fallback { wanted: Backend::NodePort, because: Hindrance::NoNodePort(Protocol::Tcp, 81) };
        assert_eq!(
            fallback.to_string(),
            "nodeport: port 81/TCP has no node port; set spec.allocateLoadBalancerNodePorts to true"
        );
    }
}
