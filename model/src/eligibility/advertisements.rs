//! What L2Advertisements allow: which nodes announce the addresses of a pool for a Service, on which links, and how much
//! each node is preferred.
//!
//! The rules are MetalLB's with one exception, which makes a pool enough to begin with:
//!
//! - An advertisement selects pools by name or by label; without either it selects all pools. Every node may announce a
//!   pool that no advertisement selects, on the link that the address belongs to. For any other pool, only the
//!   advertisements that select it apply.
//! - Of these, the ones that select the Service apply to it. A node may announce if one of them selects the node.
//! - On a node, only those that select the node apply. It announces on every link that they name and, if one of them names
//!   none, on the link that the address belongs to. The weights that they give the node are added up.

use std::collections::{BTreeMap, BTreeSet};

use crds::{Advertisement, Labels, Node, PoolSettings};

use super::candidates::{Candidate, Links};
use crate::cluster::Named;

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
    /// The weight of each node that it selects.
    nodes: BTreeMap<&'a str, u32>,
}

/// The advertisements that apply to a pool or a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Applicable {
    /// No advertisement selects the pool: every node may announce.
    Default,
    /// The indexes of these advertisements, ascending. Without any, no node may announce.
    Only(Vec<usize>),
}

impl<'a> Advertisements<'a> {
    pub(super) fn new(
        advertisements: &'a Named<Advertisement>,
        nodes: &'a Named<Node>,
        pools: &'a Named<PoolSettings>,
    ) -> Self {
        let all = advertisements.values().map(|advertisement| {
            let selected = nodes.values().filter(|node| advertisement.nodes.admit(&node.labels));
            let nodes = selected.map(|node| (node.name.as_str(), advertisement.preference(&node.labels)));
            Resolved { advertisement, nodes: nodes.collect() }
        });
        Self { all: all.collect(), pools }
    }

    /// Those that select this pool. A pool that was deleted while Services hold its addresses has no labels.
    pub(super) fn select_by_pool(&self, pool: &str) -> Applicable {
        let none = Labels::default();
        let labels = self.pools.get(pool).map_or(&none, |terms| &terms.labels);
        let selecting = self.all.iter().enumerate().filter(|(_, ad)| ad.advertisement.selects_pool(pool, labels));
        let selecting: Vec<usize> = selecting.map(|(index, _)| index).collect();
        if selecting.is_empty() { Applicable::Default } else { Applicable::Only(selecting) }
    }

    /// Those of `of_pool` that select a Service with these labels.
    pub(super) fn select_by_service(&self, of_pool: &Applicable, service: &Labels) -> Applicable {
        match of_pool {
            Applicable::Default => Applicable::Default,
            Applicable::Only(indexes) => {
                let selecting = indexes.iter().filter(|index| self.all[**index].advertisement.services.admit(service));
                Applicable::Only(selecting.copied().collect())
            }
        }
    }

    /// Whether a node may announce under these.
    pub(super) fn admit(&self, applicable: &Applicable, node: &str) -> bool {
        match applicable {
            Applicable::Default => true,
            Applicable::Only(indexes) => indexes.iter().any(|index| self.all[*index].nodes.contains_key(node)),
        }
    }

    /// How a node announces under all of these. Each advertisement counts once.
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
