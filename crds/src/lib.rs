//! Landfall's API as plain data: the objects that Landfall adds to Kubernetes, and typed views of the Kubernetes
//! objects that it reads.
//!
//! | module | contents |
//! |---|---|
//! | [`address`] | address ranges, and the object name of an address |
//! | [`ip_address_pool`] | `IPAddressPool`: addresses that Landfall may assign |
//! | [`load_balancer_ip`] | `LoadBalancerIP`: one load-balancer address, its holders and its announcers |
//! | [`l2_advertisement`] | `L2Advertisement`: which nodes announce the addresses of a pool, and on which links |
//! | [`node_network`] | `NodeNetwork`: links, addresses and gateways that the agent found on its node |
//! | [`service`], [`request`] | the fields of a Service that Landfall uses, and the addresses that it requests |
//! | [`forwarding`] | how packets to a Service are forwarded: its settings, and the reports of nodes |
//! | [`endpoints`], [`node`], [`namespace`] | the fields of EndpointSlices, Nodes and Namespaces that Landfall uses |
//! | [`service_range`] | networks of ClusterIPs |
//! | `station` | MAC addresses of single network interfaces |
//! | [`labels`] | labels and label selectors |
//! | [`condition`] | reading and writing the conditions of a status |
//! | `interned` | strings that are stored once and shared |
//! | [`words!`] | defines enums whose values the API writes as words |
//! | [`manifest`] | the CustomResourceDefinitions as YAML for `kubectl apply` |
//!
//! Objects are parsed here, at the edge, into types that can hold only valid values. Decisions work on these types.
//! This crate has no client, no clock and no socket.

#![warn(missing_docs)]

pub mod address;
pub mod condition;
mod interned;
pub mod labels;
mod objects;
mod station;
mod views;
mod words;

pub use objects::{ip_address_pool, l2_advertisement, load_balancer_ip, manifest, node_network};
pub use views::{endpoints, forwarding, namespace, node, request, service, service_range};

pub use address::Range;
pub use condition::Condition;
pub use endpoints::{Endpoint, EndpointSlice};
pub use forwarding::{Backend, Forwarder, ForwardingProblem, ProblemReason, Reach};
pub use interned::InternedStr;
pub use ip_address_pool::{IPAddressPool, IPAddressPoolSpec, IPAddressPoolStatus, PoolSettings, ServiceAllocation};
pub use l2_advertisement::{Advertisement, L2Advertisement, L2AdvertisementSpec, PreferredNodes};
pub use labels::Labels;
pub use load_balancer_ip::{
    AddressConflict, Announcer, Holder, LoadBalancerIP, LoadBalancerIPSpec, LoadBalancerIPStatus, Quarantine, Record,
    Reservation, Takeover,
};
pub use namespace::Namespace;
pub use node::{DrainReason, Node};
pub use node_network::{NodeAddresses, NodeNetwork, PeerLinks};
pub use pnet_base::MacAddr;
pub use request::{InvalidRequest, RequestedAddresses};
pub use service::{FamilyPolicy, Key, Port, Protocol, Service, TrafficPolicy};
pub use service_range::ServiceRange;
pub use station::{is_station, parse_station};

/// The API group of all our objects, and the prefix of our conditions, annotations and labels. Our finalizer has the
/// name that Kubernetes defines: [`service::FINALIZER`].
pub const GROUP: &str = "landfall.dev";

/// `metadata.resourceVersion` as a number. Versions of all objects of one kind can be compared (KEP-5504).
pub type ResourceVersion = u64;

/// An object with contents that Landfall cannot use. It is skipped and logged; other objects are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {problem}")]
pub struct Malformed {
    /// Kind of the object, for example `Service`.
    pub kind: &'static str,
    /// `namespace/name`, or the name alone for a cluster-wide kind.
    pub name: String,
    /// Description of the error.
    pub problem: String,
}
