//! The nodes that may track an open connection: [`Ring`]. Pure.
//!
//! A share table changes with the endpoints, so a segment of an open connection can arrive at a node that does not
//! track the connection. That node hands the segment on to the next node of the ring, and so on, until a node tracks
//! the connection or all nodes of the ring had the segment. So a connection stays with its node without any memory at
//! the announcer.
//!
//! The nodes of a ring have an endpoint of the port in any condition. Their order is that of their names, so all nodes
//! use the same order. Dead nodes stay in the ring but are left out when it is resolved.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::service::Family;
use model::stable_hash::fnv1a_32;

use crate::snapshot::Snapshot;

/// The greatest number of other nodes that get a segment. Bounds the cost of a forged segment.
const MAX_OTHERS: usize = 14;

/// The nodes with endpoints of a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ring {
    nodes: BTreeSet<Arc<str>>,
    /// Follows from the names.
    id: RingId,
}

/// Identifies a [`Ring`] in the kernel of one node: a hash of the names. Nodes never exchange it.
///
/// If two rings had the same id, segments would go to the wrong nodes, and their connections would be reset. Among a
/// thousand rings, the chance is about 1 in 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId(pub u32);

/// The successor of this node in a ring, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Its address; `None`: there is no other living node.
    pub address: Option<IpAddr>,
    /// The number of other living nodes that get a segment.
    pub others: u8,
}

impl Ring {
    /// A ring of these nodes.
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let names: BTreeSet<&str> = nodes.into_iter().collect();
        let nodes = names.iter().copied().map(Arc::from).collect();
        // No name of a node contains a slash.
        let joined = names.into_iter().collect::<Vec<_>>().join("/");
        Self { nodes, id: RingId(fnv1a_32(joined.as_bytes())) }
    }

    /// The id of the ring.
    pub fn id(&self) -> RingId {
        self.id
    }

    /// The living node after this one. A node without an address of the family is left out, on every node.
    pub(super) fn successor(&self, snapshot: &Snapshot, family: Family) -> Successor {
        let own = &*snapshot.node;
        let address = |node: &Arc<str>| {
            let is_alive = &**node != own && !snapshot.dead.contains(&**node);
            let mut addresses = snapshot.links.values().filter_map(|link| link.addresses.get(&**node)).flatten();
            addresses.find(|address| is_alive && Family::from(**address) == family).copied()
        };
        let (before, after): (Vec<_>, Vec<_>) = self.nodes.iter().partition(|node| &***node < own);
        let mut others = after.into_iter().chain(before).filter_map(address);
        let first = others.next();
        let count = first.iter().count() + others.count();
        Successor { address: first, others: u8::try_from(count.min(MAX_OTHERS)).unwrap_or(u8::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crds::MacAddr;

    use super::*;
    use crate::snapshot::{Link, LinkName};

    /// The view of this node of a link with nodes `n1` to `n9`. `n4` has no IPv6 address.
    fn view(node: &str, dead: &[&str]) -> Snapshot {
        let address = |n: u8, text: String| (n != 4 || !text.contains(':')).then(|| text.parse().expect("an address"));
        let addresses = (1..=9u8).map(|n| {
            let both = [format!("2001:db8::{n}"), format!("192.0.2.{n}")];
            (format!("n{n}"), both.into_iter().filter_map(|text| address(n, text)).collect())
        });
        let link = Link { mac: MacAddr::default(), peers: BTreeMap::new(), addresses: addresses.collect() };
        Snapshot {
            node: node.to_owned(),
            dead: dead.iter().map(|node| (*node).to_owned()).collect(),
            links: [(LinkName::new("eth0").expect("a name"), link)].into(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_successor_is_the_next_living_node_by_name() {
        let ring = Ring::new(["n2", "n4", "n7"]);
        for (node, dead, family, address, others) in [
            ("n2", &[][..], Family::V4, Some("192.0.2.4"), 2),
            ("n4", &[], Family::V4, Some("192.0.2.7"), 2),
            ("n7", &[], Family::V4, Some("192.0.2.2"), 2),
            ("n5", &[], Family::V4, Some("192.0.2.7"), 3),
            ("n9", &[], Family::V4, Some("192.0.2.2"), 3),
            ("n2", &["n4"], Family::V4, Some("192.0.2.7"), 1),
            ("n2", &[], Family::V6, Some("2001:db8::7"), 1),
            ("n2", &["n4", "n7"], Family::V4, None, 0),
        ] {
            let expected = Successor { address: address.map(|text| text.parse().expect("an address")), others };
            assert_eq!(ring.successor(&view(node, dead), family), expected, "{node}, {dead:?}, {family:?}");
        }
    }

    #[test]
    fn rings_of_different_nodes_have_different_ids() {
        let rings = [vec!["n1", "n2"], vec!["n1", "n3"], vec!["n1", "n2", "n3"], vec!["n1n2"], vec!["n2"]];
        let ids: BTreeSet<RingId> = rings.iter().map(|nodes| Ring::new(nodes.iter().copied()).id()).collect();
        assert_eq!(ids.len(), rings.len());
    }
}
