//! What advertisements say: which nodes may announce the addresses of a pool for a Service, on which links, and how much
//! each of them is preferred.
//!
//! The rules are MetalLB's, but for one, which makes a pool enough to begin with:
//!
//! - An advertisement selects pools by name, by label or, where it names none, all of them. A pool that none selects is
//!   announced by every node, where its addresses belong. For one that some select, nothing but these counts.
//! - For a Service those count that select it. A node may announce if one of them selects the node.
//! - On a node only those count that select it: on all the links that they name, each of them, and where the address
//!   belongs if one of them names none. The weights that they give the node are added up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::{Advertisement, Labels, Node};

use super::candidates::{Candidate, Links};

/// All advertisements, with the nodes that each of them selects.
#[derive(Debug)]
pub struct Advertisements<'a> {
    /// In the order of their names.
    all: Vec<Resolved<'a>>,
    pools: &'a BTreeMap<String, Arc<Labels>>,
}

#[derive(Debug)]
struct Resolved<'a> {
    advertisement: &'a Advertisement,
    /// The nodes that it selects, and how much it prefers each.
    nodes: BTreeMap<&'a str, u32>,
}

/// The advertisements that count for a pool or a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Applicable {
    /// No advertisement selects the pool: every node may announce.
    Default,
    /// These do, by their place among all, in order. If there are none of them, no node may announce.
    Only(Vec<usize>),
}

impl<'a> Advertisements<'a> {
    /// These advertisements, on these nodes, for pools with these labels.
    pub fn new(
        advertisements: &'a BTreeMap<String, Arc<Advertisement>>,
        nodes: &'a BTreeMap<String, Arc<Node>>,
        pools: &'a BTreeMap<String, Arc<Labels>>,
    ) -> Self {
        let resolved = |advertisement: &'a Arc<Advertisement>| {
            let selected = nodes.values().filter(|node| advertisement.nodes.admit(&node.labels));
            let nodes = selected.map(|node| (node.name.as_str(), advertisement.preference(&node.labels)));
            Resolved { advertisement, nodes: nodes.collect() }
        };
        Self { all: advertisements.values().map(resolved).collect(), pools }
    }

    /// Those that select this pool. One that is gone, though Services hold addresses of it, has no labels.
    pub fn of_pool(&self, pool: &str) -> Applicable {
        let none = Labels::default();
        let labels = self.pools.get(pool).map_or(&none, |labels| labels);
        let selecting = self.all.iter().enumerate().filter(|(_, ad)| ad.advertisement.selects_pool(pool, labels));
        let selecting: Vec<usize> = selecting.map(|(place, _)| place).collect();
        if selecting.is_empty() { Applicable::Default } else { Applicable::Only(selecting) }
    }

    /// Those of a pool that select a Service with these labels.
    pub fn of_service(&self, of_pool: &Applicable, service: &Labels) -> Applicable {
        match of_pool {
            Applicable::Default => Applicable::Default,
            Applicable::Only(places) => {
                let selecting = places.iter().filter(|place| self.all[**place].advertisement.services.admit(service));
                Applicable::Only(selecting.copied().collect())
            }
        }
    }

    /// Whether a node may announce what these apply to.
    pub fn admit(&self, applicable: &Applicable, node: &str) -> bool {
        match applicable {
            Applicable::Default => true,
            Applicable::Only(places) => places.iter().any(|place| self.all[*place].nodes.contains_key(node)),
        }
    }

    /// How a node may announce what all of `applicable` apply to. Each advertisement counts once, whatever it applies to.
    pub fn candidate<'b>(&self, applicable: impl Iterator<Item = &'b Applicable>, node: &str) -> Candidate {
        let mut links = Links { home: false, named: BTreeSet::new() };
        let mut places = BTreeSet::new();
        for applicable in applicable {
            match applicable {
                Applicable::Default => links.home = true,
                Applicable::Only(all) => places.extend(all),
            }
        }
        let mut preference = 0u32;
        for Resolved { advertisement, nodes } in places.into_iter().map(|place: usize| &self.all[place]) {
            let Some(weight) = nodes.get(node) else { continue };
            preference = preference.saturating_add(*weight);
            links.home |= advertisement.interfaces.is_empty();
            links.named.extend(advertisement.interfaces.iter().cloned());
        }
        Candidate { links, preference }
    }
}
