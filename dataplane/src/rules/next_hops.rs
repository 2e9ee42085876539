//! The next hops of spread frames: pairs of nodes → MAC addresses, on each link. Also the successors of this node in
//! rings. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crds::MacAddr;
use crds::service::Family;

use super::ring::{Ring, RingId, Successor};
use super::spread::{NodePair, PairId, SlotTable};
use crate::snapshot::{Link, LinkName, Snapshot};

/// The links on which frames are spread, and the next hop of each pair of nodes there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    /// Empty if no share table is in use.
    pub links: BTreeMap<LinkName, Link>,
    /// The names of the dead nodes.
    pub dead: BTreeSet<String>,
    /// The MAC address to re-send a frame to, for each link and pair. If it is this node's own, the frame stays here.
    pub hops: BTreeMap<(LinkName, PairId), MacAddr>,
    /// The successor of this node in each ring in use.
    pub successors: BTreeMap<(Family, RingId), Successor>,
}

impl NextHops {
    /// Resolves `rings` and the pairs of all `tables` with the links and dead nodes of `snapshot`.
    pub(super) fn resolve<'a>(
        snapshot: &Snapshot,
        tables: impl Iterator<Item = &'a SlotTable>,
        rings: impl Iterator<Item = (Family, RingId, &'a Ring)>,
    ) -> Self {
        let successors = rings.map(|(family, id, ring)| ((family, id), ring.successor(snapshot, family))).collect();
        let mut tables = tables.peekable();
        if tables.peek().is_none() {
            return Self { successors, ..Self::default() };
        }
        let pairs: BTreeMap<&PairId, &NodePair> = tables.flat_map(|table| &table.pairs).collect();
        let mut hops = BTreeMap::new();
        for (name, link) in &snapshot.links {
            for (id, pair) in &pairs {
                hops.insert((*name, **id), next_hop(snapshot, link, pair));
            }
        }
        Self { links: snapshot.links.clone(), dead: snapshot.dead.clone(), hops, successors }
    }
}

/// The MAC address of the first node of the pair that is alive on the link. If neither node is alive there, the frame
/// stays here: this node can still forward it.
fn next_hop(snapshot: &Snapshot, link: &Link, pair: &NodePair) -> MacAddr {
    let first = mac_of(snapshot, link, &pair.first);
    first.or_else(|| mac_of(snapshot, link, pair.second.as_deref()?)).unwrap_or(link.mac)
}

/// The MAC address of a node on a link; `None` if it is dead or not on the link.
fn mac_of(snapshot: &Snapshot, link: &Link, node: &str) -> Option<MacAddr> {
    if node == snapshot.node {
        return Some(link.mac);
    }
    link.peers.get(node).filter(|_| !snapshot.dead.contains(node)).copied()
}
