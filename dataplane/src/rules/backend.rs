//! Whether packets to a port go to endpoints or to the node's Service proxy: [`choose_backend`]. Pure.
//!
//! A Service can select the Service proxy (kube-proxy). Then its packets are readdressed to its node port on this node,
//! or to its ClusterIP, and the proxy forwards them. If that is impossible, packets go to endpoints, and the Service
//! reports the reason.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crds::service::Family;
use crds::{Backend, Forwarder, Port, Protocol, TrafficPolicy};

use crate::snapshot::Snapshot;

/// The destination that a packet is readdressed to for the Service proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyTarget {
    /// A node port of this node.
    NodePort(SocketAddr),
    /// A ClusterIP; the port stays.
    ClusterIp(IpAddr),
}

impl ProxyTarget {
    pub fn backend(self) -> Backend {
        match self {
            Self::NodePort(_) => Backend::NodePort,
            Self::ClusterIp(_) => Backend::ClusterIp,
        }
    }
}

/// Why packets go to endpoints instead of the backend that the Service selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fallback {
    pub selected: Backend,
    pub reason: FallbackReason,
}

/// Why packets cannot go through the Service proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FallbackReason {
    /// This port has no node port.
    NoNodePort(Protocol, u16),
    /// The node has no InternalIP of this family.
    NoNodeAddress(Family),
    /// The Service has no ClusterIP of this family.
    NoClusterIp(Family),
    /// The traffic policy is Local, which does not apply to packets to a ClusterIP.
    LocalPolicy,
    /// The Service proxy ignores the Service because of its label `service.kubernetes.io/service-proxy-name`.
    ProxyNameLabel,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { selected, reason } = self;
        write!(f, "{selected}: ")?;
        match reason {
            FallbackReason::NoNodePort(protocol, port) => {
                write!(f, "port {port}/{protocol} has no node port; set spec.allocateLoadBalancerNodePorts to true")
            }
            FallbackReason::NoNodeAddress(family) => write!(f, "this node has no {family} InternalIP"),
            FallbackReason::NoClusterIp(family) => write!(f, "it has no {family} ClusterIP; set spec.ipFamilyPolicy"),
            FallbackReason::LocalPolicy => write!(
                f,
                "externalTrafficPolicy Local does not apply to a ClusterIP; set Cluster, or the backend nodeport"
            ),
            FallbackReason::ProxyNameLabel => {
                write!(f, "no Service proxy serves it, because of its label service.kubernetes.io/service-proxy-name")
            }
        }
    }
}

/// The destination that packets to this port are readdressed to for the Service proxy; `None` if the selected backend
/// is the endpoints.
///
/// # Errors
/// If the Service proxy is selected but cannot forward this port.
pub fn choose_backend(
    service: &crds::Service,
    port: &Port,
    family: Family,
    snapshot: &Snapshot,
) -> Result<Option<ProxyTarget>, Fallback> {
    let selected = match service.backend {
        Some(Ok(selected)) => selected,
        Some(Err(_)) | None => snapshot.backend,
    };
    let target = match selected {
        Backend::Endpoints => return Ok(None),
        Backend::NodePort | Backend::ClusterIp if service.forwarder() == Forwarder::Landfall => {
            Err(FallbackReason::ProxyNameLabel)
        }
        Backend::NodePort => port
            .node_port
            .ok_or(FallbackReason::NoNodePort(port.protocol, port.number))
            .and_then(|number| {
                let mut own = snapshot.node_ips.iter().copied().filter(|address| Family::from(*address) == family);
                own.next().map(|address| SocketAddr::new(address, number)).ok_or(FallbackReason::NoNodeAddress(family))
            })
            .map(ProxyTarget::NodePort),
        Backend::ClusterIp if service.traffic_policy == TrafficPolicy::Local => Err(FallbackReason::LocalPolicy),
        Backend::ClusterIp => {
            service.cluster_ip(family).map(ProxyTarget::ClusterIp).ok_or(FallbackReason::NoClusterIp(family))
        }
    };
    target.map(Some).map_err(|reason| Fallback { selected, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    fn service(backend: Option<&str>) -> crds::Service {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.7"],
                "ports": [{"port": 80, "nodePort": 30080}, {"port": 81}],
            },
        }))
        .expect("a Service");
        let service = crds::Service::try_from(&object).expect("a view");
        crds::Service { backend: backend.map(|text| text.parse().map_err(crds::InternedStr::from)), ..service }
    }

    /// The backend of one of its ports, on a node that has an IPv4 address only.
    fn choose(
        service: &crds::Service,
        port: usize,
        family: Family,
        default: Backend,
    ) -> Result<Option<ProxyTarget>, FallbackReason> {
        let node_ips = vec!["192.0.2.1".parse().expect("an address")];
        let snapshot = Snapshot { backend: default, node_ips, ..Snapshot::default() };
        choose_backend(service, &service.ports[port], family, &snapshot).map_err(|fallback| fallback.reason)
    }

    #[test]
    fn the_annotation_overrides_the_backend_of_the_cluster() {
        use Backend::{ClusterIp, Endpoints, NodePort};
        let node_port = ProxyTarget::NodePort("192.0.2.1:30080".parse().expect("an address and a port"));
        let cluster_ip = ProxyTarget::ClusterIp("10.96.0.7".parse().expect("an address"));
        for (annotation, default, expected) in [
            (None, Endpoints, None),
            (None, NodePort, Some(node_port)),
            (None, ClusterIp, Some(cluster_ip)),
            (Some("endpoints"), ClusterIp, None),
            (Some("nodeport"), ClusterIp, Some(node_port)),
            (Some("clusterip"), Endpoints, Some(cluster_ip)),
            (Some("pods"), NodePort, Some(node_port)),
        ] {
            assert_eq!(
                choose(&service(annotation), 0, Family::V4, default),
                Ok(expected),
                "{annotation:?} of {default}"
            );
        }
    }

    #[test]
    fn a_port_the_proxy_cannot_serve_falls_back() {
        let (node_port, cluster_ip) = (service(Some("nodeport")), service(Some("clusterip")));
        let local = |service: &crds::Service| crds::Service { traffic_policy: TrafficPolicy::Local, ..service.clone() };
        let labels = [("service.kubernetes.io/service-proxy-name", "landfall")].into();
        let ours = crds::Service { labels, ..cluster_ip.clone() };
        let choose = |service, port, family| choose(service, port, family, Backend::Endpoints);
        assert_eq!(choose(&node_port, 1, Family::V4), Err(FallbackReason::NoNodePort(Protocol::Tcp, 81)));
        assert_eq!(choose(&node_port, 0, Family::V6), Err(FallbackReason::NoNodeAddress(Family::V6)));
        assert_eq!(choose(&cluster_ip, 0, Family::V6), Err(FallbackReason::NoClusterIp(Family::V6)));
        let (local_port, local_ip) = (local(&node_port), local(&cluster_ip));
        assert_eq!(choose(&local_ip, 0, Family::V4), Err(FallbackReason::LocalPolicy));
        assert!(choose(&local_port, 0, Family::V4).is_ok());
        assert_eq!(choose(&ours, 0, Family::V4), Err(FallbackReason::ProxyNameLabel));
        let fallback = Fallback { selected: Backend::NodePort, reason: FallbackReason::NoNodePort(Protocol::Tcp, 81) };
        assert_eq!(
            fallback.to_string(),
            "nodeport: port 81/TCP has no node port; set spec.allocateLoadBalancerNodePorts to true"
        );
    }
}
