//! The nodes that may announce an address, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An address that is to be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncementPolicy {
    /// The nodes that may announce it. Most addresses have the same, so they share one set.
    pub candidates: Arc<Candidates>,
    /// The greatest epoch in the status of its LoadBalancerIP: owners to come claim a greater one.
    pub epoch: u64,
}

/// The nodes that may announce an address, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidates {
    nodes: BTreeMap<String, Candidate>,
    /// How much those are preferred that are the most.
    most_preferred: u32,
}

/// How a node may announce an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// On which of its links.
    pub links: Links,
    /// How much users want it to be this node: of those that are alive, one with the greatest number.
    pub preference: u32,
}

/// On which of a node's links an address may be announced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Links {
    /// On the one that the address belongs to (by its networks).
    pub home: bool,
    /// On those with these names, wherever it belongs.
    pub named: BTreeSet<String>,
}

impl Default for Links {
    /// Where the address belongs.
    fn default() -> Self {
        Self { home: true, named: BTreeSet::new() }
    }
}

impl Candidates {
    /// How `node` may announce the address, if it may.
    pub fn get(&self, node: &str) -> Option<&Candidate> {
        self.nodes.get(node)
    }

    /// Whether `node` may announce the address, on some link.
    pub fn contains(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// How much `node` is preferred on a link that it calls `link`; `None` if it may not announce the address there.
    ///
    /// Of a link that is not named this tells nothing but that the node is a candidate: where an address belongs on
    /// another node only that node knows.
    pub fn preference(&self, node: &str, link: &str) -> Option<u32> {
        let candidate = self.get(node)?;
        (candidate.links.home || candidate.links.named.contains(link)).then_some(candidate.preference)
    }

    /// How much those are preferred that are the most, alive or not.
    pub fn most_preferred(&self) -> u32 {
        self.most_preferred
    }

    /// The nodes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Candidate)> {
        self.nodes.iter().map(|(node, candidate)| (node.as_str(), candidate))
    }
}

impl FromIterator<(String, Candidate)> for Candidates {
    fn from_iter<T: IntoIterator<Item = (String, Candidate)>>(candidates: T) -> Self {
        let nodes: BTreeMap<String, Candidate> = candidates.into_iter().collect();
        let most_preferred = nodes.values().map(|candidate| candidate.preference).max().unwrap_or(0);
        Self { nodes, most_preferred }
    }
}

impl FromIterator<String> for Candidates {
    /// Nodes that may announce the address where it belongs, none of them preferred.
    fn from_iter<T: IntoIterator<Item = String>>(nodes: T) -> Self {
        nodes.into_iter().map(|node| (node, Candidate::default())).collect()
    }
}
