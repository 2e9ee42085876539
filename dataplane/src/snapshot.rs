//! The observed input of the dataplane: [`Snapshot`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Backend, EndpointSlice, Holder, Key, MacAddr};
use model::SharedMap;

pub use crate::link_name::LinkName;
use crate::reply_path::ReplyPath;
use crate::rules::Sources;

/// The observed state of the cluster and this node, as far as forwarding depends on it.
///
/// It consists of shared parts. To make the next snapshot, change a copy of the last one, and keep the same `Arc`
/// wherever nothing changed: the planner skips identical `Arc`s.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The name of this node. Endpoints on it are local.
    pub node: String,
    /// The links by which packets of clients may arrive: those of the LANs of this node, but not those of its pods. A
    /// packet that comes in by another link comes from a pod of this node, so the traffic policy Local does not apply to
    /// it. If no such link is known, every packet that comes in by a link counts as from outside.
    pub lan_links: Arc<BTreeSet<LinkName>>,
    /// The addresses at which this node's Service proxy serves node ports (InternalIP), the preferred one first.
    pub node_ips: Vec<IpAddr>,
    /// All known addresses of this node, on all of its links. An lb_ip among them is left out: the rules would drop
    /// packets to all other ports of the node, such as those of ssh.
    pub own_addresses: BTreeSet<IpAddr>,
    /// The backend of Services without the annotation `landfall.dev/backend`.
    pub backend: Backend,
    /// The names of the nodes that the speaker reports dead. Their endpoints get new connections only if there are no
    /// other endpoints: the speaker may be wrong, and an attempt costs nothing.
    pub dead: BTreeSet<String>,
    /// The links on which frames to an lb_ip are spread over nodes. Empty: frames are not spread. All nodes must agree
    /// on the peers of a link.
    pub links: BTreeMap<LinkName, Link>,
    /// On a node with several links: the links whose connections are marked, so that replies leave by the link of the
    /// request.
    pub reply_paths: Arc<BTreeSet<ReplyPath>>,
    /// Whether packets and bytes are counted for each Service, at some cost for each packet. Drops and new connections
    /// are always counted.
    pub count_traffic: bool,
    /// The holders of each lb_ip, from the LoadBalancerIP objects. Only these objects decide which Services hold an
    /// lb_ip.
    pub addresses: SharedMap<IpAddr, Arc<[Holder]>>,
    /// All Services that holders name, and possibly others.
    pub services: SharedMap<Key, Service>,
    /// The slices of each Service, by the key of the Service, in any order.
    pub slices: SharedMap<Key, Slices>,
}

/// The slices of a Service.
pub type Slices = Arc<[Arc<EndpointSlice>]>;

/// A link of this node on which lb_ips are announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// This node's MAC address on it.
    pub mac: MacAddr,
    /// The other nodes on it, by name, dead ones included. Frames are re-sent to peers; a frame from a peer is never
    /// re-sent.
    pub peers: BTreeMap<String, MacAddr>,
    /// The addresses of each peer in the networks of this link. Segments of connections that this node does not track
    /// are handed on to them. Without an address of its family, a segment is not handed on to that peer.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
}

/// A Service that a holder may name.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub object: Arc<crds::Service>,
    pub options: Arc<ServiceOptions>,
}

/// The settings that apply to all packets of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    /// The allowed clients.
    pub sources: Sources,
    /// A client keeps its endpoint for this many seconds after its last new connection (sessionAffinity ClientIP).
    /// `None`: each connection goes to any endpoint.
    pub affinity: Option<u32>,
    /// Whether the announcer itself forwards all packets, even if those of other Services are spread.
    pub no_spreading: bool,
}

impl Service {
    /// Whether both are known to be equal. Objects are compared by pointer only; options are also compared by value.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.object, &other.object)
            && (Arc::ptr_eq(&self.options, &other.options) || self.options == other.options)
    }
}
