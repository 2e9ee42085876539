//! The fields of an EndpointSlice that Landfall uses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;

use crate::service::{Key, Protocol, key};
use crate::{InternedStr, Malformed};

/// The label that names the Service of a slice, in the same namespace.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The fields of an EndpointSlice that Landfall uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: Key,
    /// The Service of the slice.
    pub service: Key,
    /// Port numbers by port name and protocol: see [`EndpointSlice::port`].
    pub ports: Box<[((InternedStr, Protocol), u16)]>,
    /// Endpoints with a valid address, in the order of the object.
    pub endpoints: Vec<Endpoint>,
    /// The first invalid address, as written in the object. Endpoints with an invalid address are skipped.
    pub refused: Option<Box<str>>,
}

/// One endpoint, usually a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// IP address of the endpoint.
    pub address: IpAddr,
    /// Node that runs the endpoint, if known.
    pub node: Option<InternedStr>,
    /// Whether the endpoint accepts new connections. Unknown counts as true (EndpointConditions).
    pub ready: bool,
    /// Whether the endpoint answers, even while it terminates. Unknown counts as `ready`.
    pub serving: bool,
    /// Whether the endpoint terminates.
    pub terminating: bool,
}

impl EndpointSlice {
    /// Reads a slice; `None` if it belongs to no Service or lists host names.
    ///
    /// An endpoint without an address, or with an address that no endpoint can have, is skipped. A loopback or
    /// link-local address would direct traffic at the node itself, or at its link (CVE-2021-25737).
    ///
    /// # Errors
    /// If a port or protocol is invalid.
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
            // A port without a number stands for all ports of the endpoint. No Service port refers to such a port.
            let Some(number) = port.port else { continue };
            let malformed = |problem: String| Malformed { kind: "EndpointSlice", name: key.to_string(), problem };
            let protocol = Protocol::parse(port.protocol.as_deref())
                .ok_or_else(|| malformed(format!("unknown protocol {:?}", port.protocol)))?;
            let number =
                u16::try_from(number).map_err(|_| malformed(format!("port {number} is out of range (1-65535)")))?;
            ports.insert((port.name.as_deref().unwrap_or_default().into(), protocol), number);
        }
        let mut refused = None;
        let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
            // Only the first address counts, as documented in the API.
            let text = endpoint.addresses.first()?;
            let Some(address) = text.parse().ok().filter(|address| can_be_endpoint(*address)) else {
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

    /// Port number of the endpoints for the Service port with this name and protocol.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|(port, _)| port.0 == name && port.1 == protocol).map(|(_, number)| *number)
    }
}

/// Whether an endpoint can have this address: a unicast address that is neither loopback, link-local nor IPv4-mapped.
fn can_be_endpoint(address: IpAddr) -> bool {
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
    fn unknown_endpoint_conditions_have_their_documented_default() {
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
    fn slice_without_service_or_with_host_names_is_ignored() {
        let labels = json!({"labels": {"kubernetes.io/service-name": "web"}});
        assert_eq!(read(json!({"metadata": {}, "addressType": "IPv4", "endpoints": []})), Ok(None));
        assert_eq!(read(json!({"metadata": labels, "addressType": "FQDN", "endpoints": []})), Ok(None));
    }
}
