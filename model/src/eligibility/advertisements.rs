//! The rules of L2Advertisements: which nodes may announce the addresses of a pool for a Service, on which links, and
//! with which preferences.
//!
//! The rules are those of MetalLB with one exception: the addresses of a pool are announced even without an
//! advertisement.
//!
//! - An advertisement selects pools by name or by label; without either it selects all pools. If no advertisement
//!   selects a pool, every node may announce its addresses, on the link that the address belongs to. Otherwise, only
//!   the advertisements that select the pool apply.
//! - Of these, the advertisements that select a Service apply to the Service. A node may announce for the Service if
//!   one of them selects the node.
//! - Of these, the advertisements that select a node apply to the node. The node announces on every link that they name
//!   and, if one of them names no link, on the link that the address belongs to. The weights that they give the node
//!   are added up.

use std::collections::{BTreeMap, BTreeSet};

use crds::{Advertisement, Labels, PoolSettings};

use crate::cluster::{Cluster, Named};

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
    /// Whether the node may announce on its home link: the link whose subnet contains the address. If there is none,
    /// the home link is the one with the InternalIP of the node. Only the node itself knows which link that is.
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

/// All advertisements, with the nodes that each of them selects.
#[derive(Debug)]
pub(super) struct Advertisements<'a> {
    /// In order of their names.
    all: Vec<Resolved<'a>>,
    pools: &'a Named<PoolSettings>,
}

#[derive(Debug)]
struct Resolved<'a> {
    advertisement: &'a Advertisement,
    /// The weight of each node that the advertisement selects.
    nodes: BTreeMap<&'a str, u32>,
}

/// The advertisements that apply to a pool or a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Applicable {
    /// No advertisement selects the pool: every node may announce.
    Default,
    /// The indexes of the advertisements that apply, ascending. If the list is empty, no node may announce.
    Only(Vec<usize>),
}

impl<'a> Advertisements<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let all = cluster.advertisements.values().map(|advertisement| {
            let selected = cluster.nodes.values().filter(|node| advertisement.nodes.admit(&node.labels));
            let nodes = selected.map(|node| (node.name.as_str(), advertisement.preference(&node.labels)));
            Resolved { advertisement, nodes: nodes.collect() }
        });
        Self { all: all.collect(), pools: &cluster.pools }
    }

    /// The advertisements that select this pool. A pool that was deleted while Services hold its addresses has no
    /// labels.
    pub(super) fn select_by_pool(&self, pool: &str) -> Applicable {
        let no_labels = Labels::default();
        let labels = self.pools.get(pool).map_or(&no_labels, |settings| &settings.labels);
        let selecting = self.all.iter().enumerate().filter(|(_, ad)| ad.advertisement.selects_pool(pool, labels));
        let selecting: Vec<usize> = selecting.map(|(index, _)| index).collect();
        if selecting.is_empty() { Applicable::Default } else { Applicable::Only(selecting) }
    }

    /// The advertisements of `of_pool` that select a Service with these labels.
    pub(super) fn select_by_service(&self, of_pool: &Applicable, service: &Labels) -> Applicable {
        match of_pool {
            Applicable::Default => Applicable::Default,
            Applicable::Only(indexes) => {
                let selecting = indexes.iter().filter(|index| self.all[**index].advertisement.services.admit(service));
                Applicable::Only(selecting.copied().collect())
            }
        }
    }

    /// Whether one of these advertisements allows the node to announce.
    pub(super) fn admit(&self, applicable: &Applicable, node: &str) -> bool {
        match applicable {
            Applicable::Default => true,
            Applicable::Only(indexes) => indexes.iter().any(|index| self.all[*index].nodes.contains_key(node)),
        }
    }

    /// How a node announces if all of these advertisements apply. An advertisement that occurs more than once counts
    /// once.
    pub(super) fn candidate<'b>(&self, applicable: impl Iterator<Item = &'b Applicable>, node: &str) -> Candidate {
        let mut links = Links { home: false, named: BTreeSet::new() };
        let mut indexes: BTreeSet<usize> = BTreeSet::new();
        for applicable in applicable {
            match applicable {
                Applicable::Default => links.home = true,
                Applicable::Only(some) => indexes.extend(some),
            }
        }
        let mut preference = 0u32;
        for Resolved { advertisement, nodes } in indexes.into_iter().map(|index| &self.all[index]) {
            let Some(weight) = nodes.get(node) else { continue };
            preference = preference.saturating_add(*weight);
            links.home |= advertisement.interfaces.is_empty();
            links.named.extend(advertisement.interfaces.iter().cloned());
        }
        Candidate { links, preference }
    }
}
