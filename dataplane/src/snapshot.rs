//! What was observed: everything that decides what happens to a packet on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Backend, EndpointSlice, Holder, Key, MacAddr};
use ipnet::IpNet;
use model::SharedMap;

use crate::reply_path::Return;
use crate::rules::sources::Sources;

/// The observed world, as far as forwarding depends on it.
///
/// Made of shared parts. Who makes one after the other should change a copy of the one before, and put the same `Arc`
/// wherever nothing has changed: what is the same is not looked at again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The name of this node: endpoints on it are local.
    pub node: String,
    /// The ranges that the pods of this node have their addresses from (`Node.spec.podCIDRs`). A packet from there is
    /// not from outside, so the traffic policy Local does not bind it. Where none is known, pods count as outside.
    pub pod_ranges: Vec<IpNet>,
    /// The addresses of this node at which its Service proxy answers node ports (InternalIP), the best first.
    pub own: Vec<IpAddr>,
    /// What packets to a Service go to that does not say so itself.
    pub backend: Backend,
    /// The nodes that the speaker says are dead, by name. Their endpoints get no new connection, unless no others are
    /// left: then the speaker may be the one who is wrong, and trying costs nothing.
    pub dead: BTreeSet<String>,
    /// The links on which frames to an lb_ip are spread over nodes, and the other nodes on each. None: nothing is
    /// spread. On every node this must say the same of who is where.
    pub links: BTreeMap<LinkName, Link>,
    /// The links whose connections are answered by them, where a node has several.
    pub returns: Arc<BTreeSet<Return>>,
    /// Whether packets and bytes are counted for each Service, at some price for each packet. What is dropped, and new
    /// connections, are counted in any case.
    pub counts: bool,
    /// Which Services hold which lb_ip, from the LoadBalancerIP objects, which are the only truth about that.
    pub addresses: SharedMap<IpAddr, Arc<[Holder]>>,
    /// All Services that a holder may name, by their own keys. More do no harm.
    pub services: SharedMap<Key, Service>,
    /// The slices of each Service, by the key of the Service they belong to, in any order.
    pub slices: SharedMap<Key, Slices>,
}

/// The slices of a Service.
pub type Slices = Arc<[Arc<EndpointSlice>]>;

/// A link of this node on which lb_ips are announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// This node's own MAC address there.
    pub mac: MacAddr,
    /// The nodes that frames can be handed to there, by name. A frame from one of them is never handed on. This node
    /// itself is none of them; one that is dead stays.
    pub peers: BTreeMap<String, MacAddr>,
}

/// The name of a network interface: up to 15 bytes (IFNAMSIZ), the rest zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName([u8; 16]);

impl LinkName {
    /// The link of this name; `None` if no link can have it.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let fits = !name.is_empty() && name.len() < bytes.len() && !name.bytes().any(|byte| byte == 0 || byte == b'/');
        fits.then(|| bytes[..name.len()].copy_from_slice(name.as_bytes()))?;
        Some(Self(bytes))
    }

    /// All 16 bytes, as the kernel has them in registers.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
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
    /// Whether its packets all stay on the node that announces it, whatever other Services do.
    pub unspread: bool,
}

impl Service {
    /// Whether nothing that matters can differ, at the price of two comparisons.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.object, &other.object)
            && (Arc::ptr_eq(&self.terms, &other.terms) || self.terms == other.terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_link_has_up_to_fifteen_bytes() {
        assert_eq!(LinkName::new("eth0").map(|link| link.to_string()).as_deref(), Some("eth0"));
        assert!(LinkName::new("abcdefghijklmno").is_some());
        assert!(["", "abcdefghijklmnop", "a/b", "a\0b"].into_iter().all(|name| LinkName::new(name).is_none()));
    }
}
