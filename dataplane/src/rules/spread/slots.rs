//! Assigns the slots of a table to nodes by their weights. Nodes are indexes here. Pure.

use std::collections::{BTreeMap, BTreeSet};

use model::stable_hash::splitmix64;

/// The number of slots of a table.
pub const SLOTS: u32 = 64;
/// The number of pieces that a slot shared by several nodes is cut into.
pub const PIECES: u32 = 16;
/// The number of the first piece of the first slot. Lesser numbers are those of whole slots.
pub const FIRST_PIECE: u32 = SLOTS;

/// The first and the second node of each slot or piece.
pub(super) fn assign(weights: &[u64], seeds: &[u64]) -> Vec<(u32, usize, Option<usize>)> {
    let firsts = assign_firsts(weights, seeds);
    let mut all = Vec::with_capacity(firsts.len());
    for node in 0..weights.len() {
        let own: Vec<u32> = firsts.iter().filter(|(_, first)| **first == node).map(|(slot, _)| *slot).collect();
        let successors = Successors::new(node, weights, seeds, &firsts);
        let seconds = successors.map(|successors| successors.inherit(&own)).unwrap_or_default();
        all.extend(own.into_iter().map(|slot| (slot, node, seconds.get(&slot).copied())));
    }
    all
}

/// The size of a slot or piece, in pieces.
fn size(slot: u32) -> u64 {
    if slot < FIRST_PIECE { u64::from(PIECES) } else { 1 }
}

/// Assigns all slots to nodes of these weights: whole slots first, then the pieces of the slots that are left.
fn assign_firsts(weights: &[u64], seeds: &[u64]) -> BTreeMap<u32, usize> {
    let all: u64 = weights.iter().sum();
    if all == 0 {
        return BTreeMap::new();
    }
    let whole: Vec<u64> = weights.iter().map(|weight| u64::from(SLOTS) * weight / all).collect();
    let mut firsts = assign_by_rank((0..SLOTS).collect(), &whole, seeds);
    let left: Vec<u32> = (0..SLOTS).filter(|slot| !firsts.contains_key(slot)).collect();
    let pieces = u64::from(SLOTS * PIECES);
    let owed: Vec<Owed> = weights
        .iter()
        .zip(&whole)
        .map(|(weight, whole)| Owed::divide(pieces * weight - whole * u64::from(PIECES) * all, all))
        .collect();
    let cut: Vec<u32> =
        left.iter().flat_map(|slot| (0..PIECES).map(move |n| FIRST_PIECE + slot * PIECES + n)).collect();
    let quotas = round_quotas(&owed, cut.len(), seeds);
    firsts.extend(assign_by_rank(cut, &quotas, seeds));
    firsts
}

/// The nodes that inherit the slots of a dead node.
struct Successors {
    nodes: Vec<usize>,
    weights: Vec<u64>,
    seeds: Vec<u64>,
    /// The size of the slots that each node holds, in pieces.
    held: Vec<u64>,
}

impl Successors {
    /// All nodes but `dead`; `None` if they have no weight.
    fn new(dead: usize, weights: &[u64], seeds: &[u64], firsts: &BTreeMap<u32, usize>) -> Option<Self> {
        let nodes: Vec<usize> = (0..weights.len()).filter(|node| *node != dead).collect();
        let mut held = vec![0; weights.len()];
        firsts.iter().for_each(|(slot, node)| held[*node] += size(*slot));
        let pick = |values: &[u64]| nodes.iter().map(|node| values[*node]).collect::<Vec<u64>>();
        let (weights, seeds, held) = (pick(weights), pick(seeds), pick(&held));
        (weights.iter().sum::<u64>() > 0).then_some(Self { nodes, weights, seeds, held })
    }

    /// Assigns `slots` so that each successor holds its share of all slots. Whole slots come first, since pieces can
    /// then even out the difference.
    fn inherit(mut self, slots: &[u32]) -> BTreeMap<u32, usize> {
        let all: u64 = self.weights.iter().sum();
        let mut inherited = BTreeMap::new();
        for is_piece in [false, true] {
            let slots: Vec<u32> = slots.iter().copied().filter(|slot| (*slot >= FIRST_PIECE) == is_piece).collect();
            let unit = if is_piece { 1 } else { u64::from(PIECES) };
            let owed: Vec<Owed> = self
                .weights
                .iter()
                .zip(&self.held)
                .map(|(weight, held)| {
                    let target = u64::from(SLOTS * PIECES) * weight;
                    Owed::divide(target.saturating_sub(held * all), all * unit)
                })
                .collect();
            let quotas = round_quotas(&owed, slots.len(), &self.seeds);
            for (slot, successor) in assign_by_rank(slots, &quotas, &self.seeds) {
                self.held[successor] += size(slot);
                inherited.insert(slot, self.nodes[successor]);
            }
        }
        inherited
    }
}

/// The exact number of slots that a node is owed: a whole part, and the rest of the division.
struct Owed {
    whole: u64,
    rest: u64,
}

impl Owed {
    fn divide(exact: u64, divisor: u64) -> Self {
        Self { whole: exact / divisor, rest: exact % divisor }
    }
}

/// Rounds to whole quotas with the sum `sum`. Each node gets its whole part. Then the nodes with the largest rests get
/// one more each.
fn round_quotas(owed: &[Owed], sum: usize, seeds: &[u64]) -> Vec<u64> {
    let mut open = u64::try_from(sum).unwrap_or(u64::MAX);
    let mut by_rest: Vec<usize> = (0..owed.len()).collect();
    by_rest.sort_by_key(|node| (std::cmp::Reverse(owed[*node].rest), seeds[*node]));
    let mut quotas = vec![0; owed.len()];
    for node in &by_rest {
        quotas[*node] = owed[*node].whole.min(open);
        open -= quotas[*node];
    }
    for node in by_rest.iter().cycle().take(if owed.is_empty() { 0 } else { usize::try_from(open).unwrap_or(0) }) {
        quotas[*node] += 1;
    }
    quotas
}

/// Assigns slots to nodes by rank, best first, up to the quota of each node.
fn assign_by_rank(slots: Vec<u32>, quotas: &[u64], seeds: &[u64]) -> BTreeMap<u32, usize> {
    let mut ranks: Vec<(u64, usize, u32)> = Vec::with_capacity(slots.len() * quotas.len());
    for (node, seed) in seeds.iter().enumerate().filter(|(node, _)| quotas[*node] > 0) {
        ranks.extend(slots.iter().map(|slot| (splitmix64(seed ^ splitmix64(u64::from(*slot))), node, *slot)));
    }
    ranks.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = quotas.to_vec();
    let mut free: BTreeSet<u32> = slots.into_iter().collect();
    let mut assigned = BTreeMap::new();
    for (_, node, slot) in ranks {
        if left[node] > 0 && free.remove(&slot) {
            left[node] -= 1;
            assigned.insert(slot, node);
        }
    }
    assigned
}
