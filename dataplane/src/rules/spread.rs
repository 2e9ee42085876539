//! Which node gets which part of the packets to a port: [`Share`] → [`Table`], by [`Share::table`].
//!
//! The node that announces an lb_ip hands most of what it gets on to others, frame by frame and without remembering
//! anything. So that a connection goes on after another node has taken the address over, every node must come to the
//! same table by itself: it follows from the names of the nodes and how many endpoints each has, and from nothing else.
//!
//! A table has 64 *slots*, and a flow falls into one of them by its hash. Which node has which slot is decided by rank:
//! a hash of node and slot, best first, for as long as a node has not as many slots as it should (its *quota*). That
//! keeps most slots where they are when a node comes, goes or gets another endpoint. 64 slots are too few to give each
//! of three nodes a third; slots that are left when every node has the whole ones it should have are cut into 16 pieces,
//! which are given out in the same way. So shares are right to a thousandth, and most tables have fewer than 100 entries.
//!
//! Each slot has two nodes: when the first is dead, the second gets it. Of the slots of one node the others are the
//! seconds as their own shares are. So when a node dies, nothing moves that was not its own, and all tables change at
//! once by changing what a pair of nodes means ([`Ranked`]), whatever the number of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use model::stable_hash::{fnv1a, splitmix64};

/// How many slots a table has.
pub const SLOTS: u32 = 64;
/// How many pieces a slot is cut into that several nodes share.
pub const PIECES: u32 = 16;
/// The number of the first piece of the first slot, behind the whole slots.
pub const FIRST_PIECE: u32 = SLOTS;
/// The number of the first slot of a table for clients, behind all that a table for flows can have: so one map holds
/// both kinds.
pub const FIRST_OF_CLIENTS: u32 = 2048;

/// What of a packet decides which slot it falls into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// The client's address and both ports: each connection by itself.
    Flow,
    /// The client's address: all that comes from one client goes to one node.
    Client,
}

/// How packets are shared among nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// What of a packet decides.
    by: By,
    /// The part of each node; without a divisor that all have in common, so that Services whose endpoints are spread in
    /// the same way have the same table.
    weights: BTreeMap<Arc<str>, u32>,
}

/// A name for something that stands where a MAC address does while a frame is looked at. As a group address, which it
/// is by its form, it can't be taken for one of a host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub [u8; 6]);

impl Token {
    /// The token of what has this hash. That two things have the same is as unlikely as 1 in 10^7 among five thousand; a
    /// frame would then go to a node that other frames should go to, and be served from there.
    fn new(hash: u64) -> Self {
        let [mut first, b, c, d, e, f, ..] = hash.to_be_bytes();
        first |= 1;
        Self([first, b, c, d, e, f])
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crds::MacAddr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The two nodes that a slot is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranked {
    /// Who gets it.
    pub first: Arc<str>,
    /// Who gets it while the first does not live, if there is another.
    pub second: Option<Arc<str>>,
}

impl Ranked {
    /// What stands for these two.
    pub fn token(&self) -> Token {
        let second = self.second.as_deref().unwrap_or_default();
        Token::new(splitmix64(fnv1a(self.first.as_bytes()).rotate_left(1) ^ splitmix64(fnv1a(second.as_bytes()))))
    }
}

/// The table of a [`Share`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What each slot or piece has, by its number.
    pub slots: BTreeMap<u32, Token>,
    /// What the tokens stand for.
    pub nodes: BTreeMap<Token, Ranked>,
}

impl Share {
    /// A share of so many parts for each node; those with none are left out.
    pub fn new<'a>(by: By, parts: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let weights: BTreeMap<Arc<str>, u32> =
            parts.into_iter().filter(|(_, part)| *part > 0).map(|(node, part)| (Arc::from(node), part)).collect();
        let divisor = weights.values().copied().fold(0, common_divisor).max(1);
        Self { by, weights: weights.into_iter().map(|(node, part)| (node, part / divisor)).collect() }
    }

    /// The same, decided by that.
    pub fn decided(&self, by: By) -> Self {
        Self { by, weights: self.weights.clone() }
    }

    /// What of a packet decides.
    pub fn by(&self) -> By {
        self.by
    }

    /// The nodes that have a part.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(|node| &**node)
    }

    /// What stands for it.
    pub fn token(&self) -> Token {
        self.token_by(self.by)
    }

    /// What stands for the same, decided by that.
    pub fn token_by(&self, by: By) -> Token {
        let start = splitmix64(match by {
            By::Flow => 1,
            By::Client => 2,
        });
        let all = self.weights.iter();
        Token::new(all.fold(start, |hash, (node, weight)| {
            splitmix64(splitmix64(hash ^ fnv1a(node.as_bytes())) ^ u64::from(*weight))
        }))
    }

    /// Who gets which slot.
    pub fn table(&self) -> Table {
        let nodes: Vec<(&Arc<str>, u64)> = self.weights.iter().map(|(node, w)| (node, u64::from(*w))).collect();
        let weights: Vec<u64> = nodes.iter().map(|(_, weight)| *weight).collect();
        let seeds: Vec<u64> = nodes.iter().map(|(node, _)| fnv1a(node.as_bytes())).collect();
        let firsts = given(&weights, &seeds);
        let mut table = Table::default();
        let start = match self.by {
            By::Flow => 0,
            By::Client => FIRST_OF_CLIENTS,
        };
        let mut add = |slot: u32, first: usize, second: Option<usize>| {
            let name = |node: usize| Arc::clone(nodes[node].0);
            let ranked = Ranked { first: name(first), second: second.map(name) };
            let token = ranked.token();
            table.slots.insert(start + slot, token);
            table.nodes.entry(token).or_insert(ranked);
        };
        for dying in 0..nodes.len() {
            let own: Vec<u32> = firsts.iter().filter(|(_, node)| **node == dying).map(|(slot, _)| *slot).collect();
            let seconds = inherited(dying, &own, &firsts, (&weights, &seeds));
            own.into_iter().for_each(|slot| add(slot, dying, seconds.get(&slot).copied()));
        }
        table
    }
}

/// How many pieces a slot, or a piece, is.
fn size(slot: u32) -> u64 {
    if slot < FIRST_PIECE { u64::from(PIECES) } else { 1 }
}

/// Gives all slots to nodes of these weights: whole ones first, then the pieces of those that are left.
fn given(weights: &[u64], seeds: &[u64]) -> BTreeMap<u32, usize> {
    let all: u64 = weights.iter().sum();
    if all == 0 {
        return BTreeMap::new();
    }
    let whole: Vec<u64> = weights.iter().map(|weight| u64::from(SLOTS) * weight / all).collect();
    let mut given = matched((0..SLOTS).collect(), &whole, seeds);
    let left: Vec<u32> = (0..SLOTS).filter(|slot| !given.contains_key(slot)).collect();
    let pieces = u64::from(SLOTS * PIECES);
    let owed: Vec<(u64, u64)> = weights
        .iter()
        .zip(&whole)
        .map(|(weight, whole)| {
            let exact = pieces * weight - whole * u64::from(PIECES) * all;
            (exact / all, exact % all)
        })
        .collect();
    let cut: Vec<u32> =
        left.iter().flat_map(|slot| (0..PIECES).map(move |n| FIRST_PIECE + slot * PIECES + n)).collect();
    let quotas = rounded(&owed, cut.len(), seeds);
    given.extend(matched(cut, &quotas, seeds));
    given
}

/// Who gets the slots of a node that is gone, `own`: the others, so that each has what its weight says.
fn inherited(
    dying: usize,
    own: &[u32],
    firsts: &BTreeMap<u32, usize>,
    (weights, seeds): (&[u64], &[u64]),
) -> BTreeMap<u32, usize> {
    let others: Vec<usize> = (0..weights.len()).filter(|node| *node != dying).collect();
    let all: u64 = others.iter().map(|node| weights[*node]).sum();
    if all == 0 {
        return BTreeMap::new();
    }
    let mut has = vec![0u64; weights.len()];
    firsts.iter().for_each(|(slot, node)| has[*node] += size(*slot));
    let seeds: Vec<u64> = others.iter().map(|node| seeds[*node]).collect();
    let mut inherited = BTreeMap::new();
    // Whole slots first, since pieces can make up for what they leave uneven.
    for piece in [false, true] {
        let slots: Vec<u32> = own.iter().copied().filter(|slot| (*slot >= FIRST_PIECE) == piece).collect();
        let unit = if piece { 1 } else { u64::from(PIECES) };
        let owed: Vec<(u64, u64)> = others
            .iter()
            .map(|node| {
                let should = u64::from(SLOTS * PIECES) * weights[*node];
                let exact = should.saturating_sub(has[*node] * all);
                (exact / (all * unit), exact % (all * unit))
            })
            .collect();
        let quotas = rounded(&owed, slots.len(), &seeds);
        for (slot, at) in matched(slots, &quotas, &seeds) {
            has[others[at]] += size(slot);
            inherited.insert(slot, others[at]);
        }
    }
    inherited
}

/// Whole numbers that make up `sum`, of numbers with a rest: first what is whole, then one more for the largest rests.
fn rounded(owed: &[(u64, u64)], sum: usize, seeds: &[u64]) -> Vec<u64> {
    let mut open = u64::try_from(sum).unwrap_or(u64::MAX);
    let mut by_rest: Vec<usize> = (0..owed.len()).collect();
    by_rest.sort_by_key(|at| (std::cmp::Reverse(owed[*at].1), seeds[*at]));
    let mut quotas = vec![0; owed.len()];
    for at in &by_rest {
        quotas[*at] = owed[*at].0.min(open);
        open -= quotas[*at];
    }
    for at in by_rest.iter().cycle().take(if owed.is_empty() { 0 } else { usize::try_from(open).unwrap_or(0) }) {
        quotas[*at] += 1;
    }
    quotas
}

/// Gives slots to nodes by rank, best first, to each as many as its quota says.
fn matched(slots: Vec<u32>, quotas: &[u64], seeds: &[u64]) -> BTreeMap<u32, usize> {
    let mut ranks: Vec<(u64, usize, u32)> = Vec::with_capacity(slots.len() * quotas.len());
    for (node, seed) in seeds.iter().enumerate().filter(|(node, _)| quotas[*node] > 0) {
        ranks.extend(slots.iter().map(|slot| (splitmix64(seed ^ splitmix64(u64::from(*slot))), node, *slot)));
    }
    ranks.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = quotas.to_vec();
    let mut free: BTreeSet<u32> = slots.into_iter().collect();
    let mut given = BTreeMap::new();
    for (_, node, slot) in ranks {
        if left[node] > 0 && free.remove(&slot) {
            left[node] -= 1;
            given.insert(slot, node);
        }
    }
    given
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// How good a node is for something: the best of all is the highest, on every node the same one.
pub fn rank(node: &str, what: &str) -> u64 {
    splitmix64(fnv1a(node.as_bytes()) ^ splitmix64(fnv1a(what.as_bytes())))
}

#[cfg(test)]
mod tests;
