//! The part of the packets to a port that each node gets: [`Share`] → [`SlotTable`], by [`Share::table`].
//!
//! The announcer re-sends most frames to other nodes. A hash of each frame selects the node; only the nodes of open TCP
//! connections are remembered. Another node that takes the address over remembers nothing, and connections must survive
//! the takeover. So every node must compute the same table. The table depends only on the names of the nodes and the
//! number of endpoints on each.
//!
//! A table has 64 *slots*, and the hash of a flow selects one. Each node has a rank for each slot: a hash of both.
//! Slots are assigned by rank, best rank first, until each node has its *quota* of slots. So most slots keep their node
//! when a node joins, leaves or gets another endpoint. 64 slots cannot be divided evenly among, for example, three
//! nodes. So each node first gets a whole number of slots. Each remaining slot is cut into 16 pieces, which are
//! assigned in the same way. Then shares are exact to a thousandth, and most tables have fewer than 100 entries.
//!
//! Each slot has two nodes: while the first is dead, the second gets the slot. The second nodes of a node's slots are
//! the other nodes, in proportion to their weights. So the death of a node moves only its own slots. Tables name pairs
//! of nodes ([`NodePair`]), and a death changes only the next hops of pairs. So one small change moves the slots of all
//! tables, whatever the number of Services.

mod slots;

use std::collections::BTreeMap;
use std::sync::Arc;

use model::stable_hash::{fnv1a, splitmix64};

pub use slots::{FIRST_PIECE, PIECES, SLOTS};

/// The part of a packet that selects its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashBy {
    /// The client's address and both ports: each connection by itself.
    Flow,
    /// The client's address: all packets of a client go to one node.
    Client,
}

/// The weights by which packets are shared among nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    hash_by: HashBy,
    /// By node, divided by their greatest common divisor, so that Services with the same proportions share one table.
    weights: BTreeMap<Arc<str>, u32>,
}

/// Identifies the table of a [`Share`] in the kernel. A hash of 47 bits.
///
/// Among five thousand tables the chance that two have the same id is about 1 in 10^7. Then a frame can be re-sent by
/// the wrong table, to a node that can forward it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u64);

/// Identifies a [`NodePair`] in the kernel. A hash of 47 bits, like [`TableId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairId(pub u64);

/// The upper 48 bits of a hash, with the bit of group addresses cleared. An engine stores an id in place of a MAC
/// address, and sets that bit.
fn id(hash: u64) -> u64 {
    (hash >> 16) & !(1 << 40)
}

/// The two nodes of a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePair {
    pub first: Arc<str>,
    /// Gets the slot while the first is dead. `None`: there is no other node.
    pub second: Option<Arc<str>>,
}

impl NodePair {
    pub fn id(&self) -> PairId {
        let second = self.second.as_deref().unwrap_or_default();
        PairId(id(splitmix64(fnv1a(self.first.as_bytes()).rotate_left(1) ^ splitmix64(fnv1a(second.as_bytes())))))
    }
}

/// The table of a [`Share`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    pub hash_by: HashBy,
    /// The pair of each slot, by its number; pieces are numbered from [`FIRST_PIECE`].
    pub slots: BTreeMap<u32, PairId>,
    pub pairs: BTreeMap<PairId, NodePair>,
}

impl Share {
    /// A share with these parts by node. Nodes with 0 parts are left out.
    pub fn new<'a>(hash_by: HashBy, parts: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let weights: BTreeMap<Arc<str>, u32> =
            parts.into_iter().filter(|(_, part)| *part > 0).map(|(node, part)| (Arc::from(node), part)).collect();
        let divisor = weights.values().copied().fold(0, common_divisor).max(1);
        Self { hash_by, weights: weights.into_iter().map(|(node, part)| (node, part / divisor)).collect() }
    }

    /// The same weights, hashed by `hash_by`.
    pub fn hashed_by(&self, hash_by: HashBy) -> Self {
        Self { hash_by, weights: self.weights.clone() }
    }

    pub fn hash_by(&self) -> HashBy {
        self.hash_by
    }

    /// The nodes with a part.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(|node| &**node)
    }

    /// The id of the table of this share.
    pub fn table_id(&self) -> TableId {
        self.table_id_by(self.hash_by)
    }

    /// The id of the table of these weights, hashed by `hash_by`.
    pub fn table_id_by(&self, hash_by: HashBy) -> TableId {
        let start = splitmix64(match hash_by {
            HashBy::Flow => 1,
            HashBy::Client => 2,
        });
        let all = self.weights.iter();
        TableId(id(all.fold(start, |hash, (node, weight)| {
            splitmix64(splitmix64(hash ^ fnv1a(node.as_bytes())) ^ u64::from(*weight))
        })))
    }

    /// Assigns all slots.
    pub fn table(&self) -> SlotTable {
        let nodes: Vec<&Arc<str>> = self.weights.keys().collect();
        let weights: Vec<u64> = self.weights.values().map(|weight| u64::from(*weight)).collect();
        let seeds: Vec<u64> = nodes.iter().map(|node| fnv1a(node.as_bytes())).collect();
        let mut table = SlotTable { hash_by: self.hash_by, slots: BTreeMap::new(), pairs: BTreeMap::new() };
        let name = |node: usize| Arc::clone(nodes[node]);
        for (slot, first, second) in slots::assign(&weights, &seeds) {
            let pair = NodePair { first: name(first), second: second.map(name) };
            let id = pair.id();
            table.slots.insert(slot, id);
            table.pairs.entry(id).or_insert(pair);
        }
        table
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The rank of a node for an object: the node with the highest rank gets the object. Every node computes the same rank.
pub fn rank(node: &str, object: &str) -> u64 {
    splitmix64(fnv1a(node.as_bytes()) ^ splitmix64(fnv1a(object.as_bytes())))
}

#[cfg(test)]
mod tests;
