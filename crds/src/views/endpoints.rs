//! What Landfall reads of an EndpointSlice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;

use crate::service::{Key, Protocol, key};
use crate::{InternedStr, Malformed};

/// The label by which a slice belongs to a Service of its namespace.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What Landfall reads of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: Key,
    /// The Service it belongs to.
    pub service: Key,
    /// Its ports by name and protocol: see [`EndpointSlice::port`].
    pub ports: Box<[((InternedStr, Protocol), u16)]>,
    /// Its endpoints, in its own order.
    pub endpoints: Vec<Endpoint>,
    /// The first address in it that no endpoint can have, if there is one.
    pub refused: Option<Box<str>>,
}

/// One endpoint: a pod, as a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// The node it runs on, where that is known.
    pub node: Option<InternedStr>,
    /// Whether new connections may go to it. Unknown counts as ready (EndpointConditions).
    pub ready: bool,
    /// Whether it would answer, terminating or not. Unknown counts as what `ready` is.
    pub serving: bool,
    /// Whether it is being stopped.
    pub terminating: bool,
}

impl EndpointSlice {
    /// Reads a slice; `None` if it belongs to no Service, or speaks of host names, not addresses.
    ///
    /// An endpoint that can't be one (no address, or one in loopback, link-local or multicast space, which would turn
    /// the load balancer against the node itself: CVE-2021-25737) is left out, the others stay.
    ///
    /// # Errors
    /// If a port can't be one.
    pub fn read(object: &discovery::EndpointSlice) -> Result<Option<Self>, Malformed> {
        let key = key(&object.metadata);
        let Some(service) = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else {
            return Ok(None);
        };
        if !["IPv4", "IPv6"].contains(&object.address_type.as_str()) {
            return Ok(None);
        }
        let mut ports = BTreeMap::new();
        for port in object.ports.iter().flatten() {
            // A port without a number means all ports, which no Service asks for.
            let Some(number) = port.port else { continue };
            let malformed = |problem: String| Malformed { kind: "EndpointSlice", name: key.to_string(), problem };
            let protocol = Protocol::parse(port.protocol.as_deref())
                .ok_or_else(|| malformed(format!("unknown protocol {:?}", port.protocol)))?;
            let number = u16::try_from(number).map_err(|_| malformed(format!("port {number} is none")))?;
            ports.insert((port.name.as_deref().unwrap_or_default().into(), protocol), number);
        }
        let mut refused = None;
        let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
            // Only the first address counts; consumers are told so by the API's own documentation.
            let text = endpoint.addresses.first()?;
            let Some(address) = text.parse().ok().filter(|address| is_reachable(*address)) else {
                refused.get_or_insert_with(|| Box::from(text.as_str()));
                return None;
            };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            Some(Endpoint {
                address,
                node: endpoint.node_name.as_deref().map(InternedStr::from),
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
            })
        });
        let endpoints = endpoints.collect();
        let service = Key::new(&key.namespace, service);
        Ok(Some(Self { service, ports: ports.into_iter().collect(), endpoints, key, refused }))
    }

    /// The number of a port: a Service's port finds it here by its own name and protocol.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|(port, _)| port.0 == name && port.1 == protocol).map(|(_, number)| *number)
    }
}

/// Whether an endpoint may have this address: a unicast address of another host.
fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(mut object: serde_json::Value) -> Result<Option<EndpointSlice>, Malformed> {
        object["metadata"]["namespace"] = json!("default");
        object["metadata"]["name"] = json!("web-1");
        EndpointSlice::read(&serde_json::from_value(object).expect("an EndpointSlice"))
    }

    #[test]
    fn a_slice_is_read_with_what_unknown_conditions_mean() {
        let slice = read(json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "n1"},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.1.1"]}, {"addresses": ["nonsense"]},
            ],
        }));
        let endpoint = |address: &str, node: Option<&str>, ready, terminating| Endpoint {
            address: address.parse().expect("address"),
            node: node.map(InternedStr::from),
            ready,
            serving: true,
            terminating,
        };
        let expected = EndpointSlice {
            key: Key::new("default", "web-1"),
            service: Key::new("default", "web"),
            ports: [(("http".into(), Protocol::Tcp), 8080)].into(),
            endpoints: vec![endpoint("10.0.0.1", Some("n1"), true, false), endpoint("10.0.0.2", None, false, true)],
            refused: Some("127.0.0.1".into()),
        };
        assert_eq!(slice, Ok(Some(expected)));
    }

    #[test]
    fn slices_of_no_service_or_of_host_names_are_not_for_us() {
        let labels = json!({"labels": {"kubernetes.io/service-name": "web"}});
        assert_eq!(read(json!({"metadata": {}, "addressType": "IPv4", "endpoints": []})), Ok(None));
        assert_eq!(read(json!({"metadata": labels, "addressType": "FQDN", "endpoints": []})), Ok(None));
    }
}
