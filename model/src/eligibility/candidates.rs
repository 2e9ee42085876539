//! The nodes that may announce an address, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The nodes that may announce an address, and the greatest epoch that was reported for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncementPolicy {
    /// Most addresses have the same candidates, so they share one set.
    pub candidates: Arc<Candidates>,
    /// The greatest epoch in the status of the LoadBalancerIP: future owners claim a greater one.
    pub epoch: u64,
}

/// The nodes that may announce an address, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidates {
    nodes: BTreeMap<String, Candidate>,
    greatest_preference: u32,
}

/// How a node may announce an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub links: Links,
    /// The sum of the weights that users give this node. Of the live candidates, one with the greatest sum is the
    /// owner.
    pub preference: u32,
}

/// The links of a node on which an address may be announced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Links {
    /// Whether the node may announce on its home link: the link that the address belongs to by its network. Only the
    /// node itself knows which link that is.
    pub home: bool,
    /// The links with these names, whatever their networks.
    pub named: BTreeSet<String>,
}

impl Default for Links {
    /// Only the home link.
    fn default() -> Self {
        Self { home: true, named: BTreeSet::new() }
    }
}

impl Candidates {
    pub fn get(&self, node: &str) -> Option<&Candidate> {
        self.nodes.get(node)
    }

    /// Whether `node` may announce the address on some link.
    pub fn contains(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The preference of `node` on its link `link`; `None` if the node may not announce the address there.
    ///
    /// If the candidate may use its home link, the result is the same for every link, because only the node itself
    /// knows which of its links is the home link.
    pub fn preference(&self, node: &str, link: &str) -> Option<u32> {
        let candidate = self.get(node)?;
        (candidate.links.home || candidate.links.named.contains(link)).then_some(candidate.preference)
    }

    /// The greatest preference of any candidate, alive or not.
    pub fn greatest_preference(&self) -> u32 {
        self.greatest_preference
    }

    /// All candidates with their nodes, in order of the names of the nodes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Candidate)> {
        self.nodes.iter().map(|(node, candidate)| (node.as_str(), candidate))
    }
}

impl FromIterator<(String, Candidate)> for Candidates {
    fn from_iter<T: IntoIterator<Item = (String, Candidate)>>(candidates: T) -> Self {
        let nodes: BTreeMap<String, Candidate> = candidates.into_iter().collect();
        let greatest_preference = nodes.values().map(|candidate| candidate.preference).max().unwrap_or(0);
        Self { nodes, greatest_preference }
    }
}

impl FromIterator<String> for Candidates {
    /// Nodes that may announce the address on their home links, none of them preferred.
    fn from_iter<T: IntoIterator<Item = String>>(nodes: T) -> Self {
        nodes.into_iter().map(|node| (node, Candidate::default())).collect()
    }
}
