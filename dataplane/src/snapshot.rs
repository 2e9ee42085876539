//! What was observed: everything that decides what happens to a packet on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{EndpointSlice, Holder, Key};
use ipnet::IpNet;

use crate::sources::Sources;

/// The observed world, as far as forwarding depends on it.
///
/// Made of shared parts. Who makes one after the other should put the same `Arc` wherever nothing has changed: what is
/// the same is not looked at again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The name of this node: endpoints on it are local.
    pub node: String,
    /// The ranges that the pods of this node have their addresses from (`Node.spec.podCIDRs`). A packet from there is
    /// not from outside, so the traffic policy Local does not bind it. Where none is known, pods count as outside.
    pub pod_ranges: Vec<IpNet>,
    /// The nodes that the speaker says are dead, by name. Their endpoints get no new connection, unless no others are
    /// left: then the speaker may be the one who is wrong, and trying costs nothing.
    pub dead: BTreeSet<String>,
    /// Which Services hold which lb_ip, from the LoadBalancerIP objects, which are the only truth about that.
    pub addresses: BTreeMap<IpAddr, Arc<[Holder]>>,
    /// All Services that a holder may name, by their own keys. More do no harm.
    pub services: BTreeMap<Key, Service>,
    /// The slices of each Service, by the key of the Service they belong to, in any order.
    pub slices: BTreeMap<Key, Vec<Arc<EndpointSlice>>>,
}

/// A Service that a holder may name.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// What Landfall reads of it.
    pub object: Arc<crds::Service>,
    /// What else decides about packets to it.
    pub terms: Arc<Terms>,
}

/// On which terms packets to a Service are forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Who may use it.
    pub sources: Sources,
    /// For how many seconds after its last new connection a client stays with its endpoint (sessionAffinity ClientIP);
    /// `None`: each connection goes anywhere.
    pub affinity: Option<u32>,
}

impl Service {
    /// Whether nothing that matters can differ, at the price of two comparisons.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.object, &other.object)
            && (Arc::ptr_eq(&self.terms, &other.terms) || self.terms == other.terms)
    }
}
