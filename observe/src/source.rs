//! How objects become entries of a table: for each kind that Landfall watches, what its key is and what is read of it.
//!
//! Object → [`Observation`]. What cannot be read is reported with the reason, and still has a key, so that whoever
//! plans can leave it alone.

use std::net::IpAddr;

use crds::{
    Advertisement, EndpointSlice, IPAddressPool, Key, L2Advertisement, LoadBalancerIP, Malformed, Namespace, Network,
    Node, NodeNetwork, PeerLinks, PoolSettings, Record, Service, address,
};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::table::{Content, Observation, ResourceVersion};

/// How objects of kind `R` become entries of a table.
#[derive(Debug)]
pub struct Source<R, K, V> {
    /// The key of the object with this name; `None` if no object that matters can have such a name.
    pub key: fn(&ObjectMeta) -> Option<K>,
    /// What is read of an object; `None` if it does not matter, which is as if it did not exist.
    pub read: fn(&R) -> Result<Option<V>, Malformed>,
    /// Which objects are asked for at all, as a label selector. Empty: all.
    pub labels: &'static str,
}

impl<R, K, V> Clone for Source<R, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, K, V> Copy for Source<R, K, V> {}

impl<R: Resource<DynamicType = ()>, K, V> Source<R, K, V> {
    /// What this object says, and what is wrong with it if it can't be read. `None` for an object without a key or a
    /// version, which no API server sends.
    pub fn observe(&self, object: &R) -> Option<(Observation<K, V>, Option<Malformed>)> {
        let (content, malformed) = match (self.read)(object) {
            Ok(Some(value)) => (Content::Known(value), None),
            Ok(None) => (Content::Ignored, None),
            Err(malformed) => (Content::Unreadable, Some(malformed)),
        };
        Some((self.observation(object.meta(), content)?, malformed))
    }

    /// What is known of an object by its metadata alone, and the rest of it as `content`.
    pub fn observation(&self, meta: &ObjectMeta, content: Content<V>) -> Option<Observation<K, V>> {
        Some(Observation {
            key: (self.key)(meta)?,
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            version: version(meta)?,
            content,
        })
    }
}

/// The version of an object.
pub fn version(meta: &ObjectMeta) -> Option<ResourceVersion> {
    meta.resource_version.as_deref()?.parse().ok()
}

/// Services of all namespaces and types.
pub fn services() -> Source<core::Service, Key, Service> {
    Source { key: namespaced, read: |object| Service::try_from(object).map(Some), labels: "" }
}

/// Load balancers among them, for node agents: of each what decides where packets go.
pub fn load_balancers() -> Source<core::Service, Key, Service> {
    let read = |object: &core::Service| {
        let service = Service::try_from(object)?;
        Ok(service.is_load_balancer.then(|| service.into_forwarding_view()))
    };
    Source { key: namespaced, read, labels: "" }
}

/// EndpointSlices of all namespaces that belong to a Service. Those of headless Services are not asked for: no address
/// leads there.
pub fn endpoint_slices() -> Source<discovery::EndpointSlice, Key, EndpointSlice> {
    Source {
        key: namespaced,
        read: EndpointSlice::read,
        labels: "kubernetes.io/service-name,!service.kubernetes.io/headless",
    }
}

/// Nodes.
pub fn nodes() -> Source<core::Node, String, Node> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(Node::from(object))), labels: "" }
}

/// Namespaces.
pub fn namespaces() -> Source<core::Namespace, String, Namespace> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(Namespace::from(object))), labels: "" }
}

/// NodeNetworks, by the name of the node.
pub fn node_networks() -> Source<NodeNetwork, String, Network> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(Network::from(object))), labels: "" }
}

/// The same, for who hands frames to those nodes.
pub fn peer_links() -> Source<NodeNetwork, String, PeerLinks> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(PeerLinks::from(object))), labels: "" }
}

/// IPAddressPools.
pub fn pools() -> Source<IPAddressPool, String, IPAddressPool> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(object.clone())), labels: "" }
}

/// The same, for node agents.
pub fn pool_settings() -> Source<IPAddressPool, String, PoolSettings> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(PoolSettings::from(object))), labels: "" }
}

/// L2Advertisements.
pub fn l2_advertisements() -> Source<L2Advertisement, String, Advertisement> {
    Source { key: |meta| meta.name.clone(), read: |object| Ok(Some(Advertisement::from(object))), labels: "" }
}

/// LoadBalancerIPs, by their address.
pub fn records() -> Source<LoadBalancerIP, IpAddr, Record> {
    Source {
        key: |meta| address::parse_object_name(meta.name.as_deref()?),
        read: |object| Record::try_from(object).map(Some),
        labels: "",
    }
}

fn namespaced(meta: &ObjectMeta) -> Option<Key> {
    Some(Key::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}
