//! Sources: key and view of an object, for each kind that Landfall watches.
//!
//! Object → [`Observation`]. For an object that cannot be parsed, the error is returned too. Even then the observation
//! has the key of the object, so that the planner can leave the object alone.

use std::net::IpAddr;

use crds::{
    Advertisement, EndpointSlice, IPAddressPool, Key, L2Advertisement, LoadBalancerIP, Malformed, Namespace, Node,
    NodeAddresses, NodeNetwork, PeerLinks, PoolSettings, Record, Service, ServiceRange, address,
};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::table::{Content, Observation, ResourceVersion};

/// Turns objects of kind `R` into entries of a table.
#[derive(Debug)]
pub struct Source<R, K, V> {
    /// Key of an object with this metadata; `None` if Landfall does not use objects of this name.
    pub key: fn(&ObjectMeta) -> Option<K>,
    /// View of an object; `None` if Landfall ignores the object, as if it did not exist.
    pub read: fn(&R) -> Result<Option<V>, Malformed>,
    /// Label selector of the list and watch requests. Empty: all objects.
    pub labels: &'static str,
    /// Whether an object whose status cannot be decoded is read as if its status were empty. Otherwise the whole object
    /// is unreadable.
    pub is_status_optional: bool,
}

impl<R, K, V> Clone for Source<R, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, K, V> Copy for Source<R, K, V> {}

impl<R: Resource<DynamicType = ()>, K, V> Source<R, K, V> {
    /// Returns the observation of an object, and the error if the object cannot be parsed. `None` for an object without
    /// a key or version; an API server sends no such object.
    pub fn observe(&self, object: &R) -> Option<(Observation<K, V>, Option<Malformed>)> {
        let (content, malformed) = match (self.read)(object) {
            Ok(Some(value)) => (Content::Known(value), None),
            Ok(None) => (Content::Ignored, None),
            Err(malformed) => (Content::Unreadable, Some(malformed)),
        };
        Some((self.observation(object.meta(), content)?, malformed))
    }

    /// Returns the observation with this metadata and `content`; `None` without a key or version.
    pub fn observation(&self, meta: &ObjectMeta, content: Content<V>) -> Option<Observation<K, V>> {
        Some(Observation {
            key: (self.key)(meta)?,
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            version: version(meta)?,
            content,
        })
    }
}

/// `metadata.resourceVersion` as a number.
pub fn version(meta: &ObjectMeta) -> Option<ResourceVersion> {
    meta.resource_version.as_deref()?.parse().ok()
}

/// Services of all namespaces and types.
pub fn services() -> Source<core::Service, Key, Service> {
    Source {
        key: namespaced_key,
        read: |object| Service::try_from(object).map(Some),
        labels: "",
        is_status_optional: false,
    }
}

/// Services of type LoadBalancer, for node agents: only the fields that affect forwarding.
pub fn load_balancers() -> Source<core::Service, Key, Service> {
    let read = |object: &core::Service| {
        let service = Service::try_from(object)?;
        Ok(service.is_load_balancer.then(|| service.into_forwarding_view()))
    };
    Source { key: namespaced_key, read, labels: "", is_status_optional: false }
}

/// EndpointSlices of Services. The request excludes those of headless Services, because a headless Service has no
/// load-balancer address.
pub fn endpoint_slices() -> Source<discovery::EndpointSlice, Key, EndpointSlice> {
    Source {
        key: namespaced_key,
        read: EndpointSlice::read,
        labels: "kubernetes.io/service-name,!service.kubernetes.io/headless",
        is_status_optional: false,
    }
}

/// Nodes, by name.
pub fn nodes() -> Source<core::Node, String, Node> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(Node::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// ServiceCIDRs, by name. API servers before Kubernetes 1.33 do not know this kind.
pub fn service_ranges() -> Source<networking::ServiceCIDR, String, ServiceRange> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(ServiceRange::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// Namespaces, by name.
pub fn namespaces() -> Source<core::Namespace, String, Namespace> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(Namespace::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// NodeNetworks, by the name of the node.
pub fn node_networks() -> Source<NodeNetwork, String, NodeAddresses> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(NodeAddresses::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// NodeNetworks, by the name of the node: the view of agents, which re-send frames to these nodes.
pub fn peer_links() -> Source<NodeNetwork, String, PeerLinks> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(PeerLinks::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// IPAddressPools, by name: whole objects, without the managed fields, which are half of their bytes.
pub fn pools() -> Source<IPAddressPool, String, IPAddressPool> {
    let read = |object: &IPAddressPool| {
        let mut pool = object.clone();
        pool.metadata.managed_fields = None;
        Ok(Some(pool))
    };
    Source { key: |meta| meta.name.clone(), read, labels: "", is_status_optional: false }
}

/// IPAddressPools, by name: the view of agents.
pub fn pool_settings() -> Source<IPAddressPool, String, PoolSettings> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(PoolSettings::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// L2Advertisements, by name.
pub fn l2_advertisements() -> Source<L2Advertisement, String, Advertisement> {
    Source {
        key: |meta| meta.name.clone(),
        read: |object| Ok(Some(Advertisement::from(object))),
        labels: "",
        is_status_optional: false,
    }
}

/// LoadBalancerIPs, by load-balancer address. Agents write the status, and the controller writes the holders. So a status
/// that an agent of another version wrote leaves the holders known.
pub fn records() -> Source<LoadBalancerIP, IpAddr, Record> {
    Source {
        key: |meta| address::parse_object_name(meta.name.as_deref()?),
        read: |object| Record::try_from(object).map(Some),
        labels: "",
        is_status_optional: true,
    }
}

fn namespaced_key(meta: &ObjectMeta) -> Option<Key> {
    Some(Key::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}
