//! Landfall's contract, in pure data: the objects it adds to Kubernetes, the addresses they speak of, and typed views
//! of the Kubernetes objects it reads.
//!
//! | room | what is in it |
//! |---|---|
//! | [`address`] | ranges of addresses, and the name that an address has as an object |
//! | [`ip_address_pool`] | `IPAddressPool`: addresses an administrator lends to Landfall |
//! | [`load_balancer_ip`] | `LoadBalancerIP`: one address in use; the truth about who holds it |
//! | [`l2_advertisement`] | `L2Advertisement`: which nodes announce the addresses of a pool, and on which links |
//! | [`node_network`] | `NodeNetwork`: what an agent found on its node's network |
//! | [`service`], [`request`] | what Landfall reads of Services, and what they ask for |
//! | [`backend`] | what packets to a Service are sent to, and by whom |
//! | [`endpoints`], [`node`], [`namespace`] | what it reads of EndpointSlices, Nodes and Namespaces |
//! | [`mac`] | addresses of network interfaces |
//! | [`labels`] | labels, and selectors of them |
//! | [`condition`] | how conditions are kept in a status |
//! | [`holdings`] | which addresses each Service holds |
//! | `interned` | texts that are kept once, however many places hold them |
//! | [`shared_map`] | maps whose copies share what they have in common |
//! | [`manifest`] | the definitions of our objects, as `kubectl apply` takes them |
//!
//! Objects are parsed here, at the edge, into types that cannot be wrong; whoever decides something works on the views.
//! Nothing here talks to anybody: no client, no clock, no socket.

pub mod address;
pub mod condition;
pub mod holdings;
mod interned;
pub mod labels;
pub mod mac;
mod objects;
pub mod shared_map;
mod views;

pub use objects::{ip_address_pool, l2_advertisement, load_balancer_ip, manifest, node_network};
pub use views::{backend, endpoints, forwarding, namespace, node, request, service};

pub use address::Range;
pub use backend::{Backend, Forwarder};
pub use condition::Condition;
pub use endpoints::{Endpoint, EndpointSlice};
pub use forwarding::{ForwardingProblem, ProblemReason, Reach};
pub use holdings::Holdings;
pub use interned::InternedStr;
pub use ip_address_pool::{IPAddressPool, IPAddressPoolSpec, IPAddressPoolStatus, PoolSettings, ServiceAllocation};
pub use l2_advertisement::{Advertisement, L2Advertisement, L2AdvertisementSpec, PreferredNodes};
pub use labels::Labels;
pub use load_balancer_ip::{
    AddressConflict, Announcer, Holder, LoadBalancerIP, LoadBalancerIPSpec, LoadBalancerIPStatus, Quarantine, Record,
    Reservation, Takeover,
};
pub use mac::Mac;
pub use namespace::Namespace;
pub use node::{DrainReason, Node};
pub use node_network::{Network, NodeNetwork, PeerLinks};
pub use request::{InvalidRequest, RequestedAddresses};
pub use service::{FamilyPolicy, Key, Port, Protocol, Service, TrafficPolicy};
pub use shared_map::SharedMap;

/// The API group of all our objects, and the prefix of our conditions, annotations and finalizers.
pub const GROUP: &str = "landfall.dev";

/// The place of a write in the history of all objects of a kind: `metadata.resourceVersion` as a number (KEP-5504).
pub type ResourceVersion = u64;

/// An object that Landfall reads but cannot make sense of. It is skipped and reported; others are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {problem}")]
pub struct Malformed {
    /// The kind of the object: `Service`.
    pub kind: &'static str,
    /// Its name, with the namespace in front where it has one: `default/web`.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}
