//! `L2Advertisement`: which nodes announce the addresses of a pool, and on which of their links.

#![allow(clippy::duplicated_attributes, reason = "the columns of `kubectl get` may share a type")]

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::labels::{self, Labels};

/// The most entries of each list: enough for any cluster, and a bound on what matching costs.
const MAX_ENTRIES: usize = 256;

/// The longest name of a network interface that Linux knows (`IFNAMSIZ`, with the zero that ends it).
const MAX_NAME: usize = 15;

/// Which nodes announce addresses by ARP and NDP, on which of their network interfaces, and which nodes are preferred.
///
/// None is needed: the addresses of a pool that no L2Advertisement selects are announced by any node. As soon as one
/// selects the pool, its addresses are announced only as the L2Advertisements that select it say, taken together.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "L2Advertisement",
    plural = "l2advertisements",
    shortname = "lbl2",
    category = "landfall",
    derive = "PartialEq",
    doc = "Which nodes announce addresses by ARP and NDP, on which of their network interfaces, and which nodes are \
           preferred. None is needed: the addresses of a pool that no L2Advertisement selects are announced by any node. As \
           soon as one selects the pool (by name, by label, or by selecting no pool, which is all of them), its addresses \
           are announced only as the L2Advertisements that select it say: a node may announce an address if one of them \
           selects the node, the pool, and a Service that holds the address. However many do, one node announces it on a \
           link.",
    printcolumn(name = "Pools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".spec.interfaces"),
    printcolumn(
        name = "Weights",
        type_ = "string",
        json_path = ".spec.preferredNodeSelectors[*].weight",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
    /// The pools whose addresses this is about, by name. Default: none by name. With neither `ipAddressPools` nor
    /// `ipAddressPoolSelectors` it is about all pools. A pool that doesn't exist (yet) does no harm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "pool_names")]
    pub ip_address_pools: Vec<String>,

    /// The pools whose addresses this is about, by their labels: those that match one of these selectors, and those in
    /// `ipAddressPools`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,

    /// Which nodes may announce these addresses: those that match one of these selectors. Default: all. Where no node
    /// matches, no node announces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub node_selectors: Vec<LabelSelector>,

    /// The network interfaces to announce on, by name. A node announces on each of them that it has, if it is up and has an
    /// address of the same family (IPv4 or IPv6); one that has none of them announces nothing, and another one does that
    /// has. Default: on one interface, the one whose subnet contains the address, or else the one with the node's own
    /// address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "interfaces")]
    pub interfaces: Vec<String>,

    /// Which Services this is about: those that match one of these selectors. Default: all. An address that several
    /// Services share is announced by a node that may announce it for all of them or, if there is none, for as many of
    /// them as possible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub service_selectors: Vec<LabelSelector>,

    /// Which of these nodes are preferred, each entry with a weight. A node's weights are added up, over all
    /// L2Advertisements that let it announce the address, and the node with the greatest sum announces. Default: none is
    /// preferred; addresses are spread over the nodes.
    ///
    /// When a node comes back whose sum is greater than that of the one that announces, it gets the address back, after
    /// some seconds and without a gap. Nodes with equal sums never take an address from each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub preferred_node_selectors: Vec<PreferredNodes>,
}

/// Nodes that are preferred, and how much.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNodes {
    /// How much these nodes are preferred, from 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,

    /// The labels of these nodes. An empty selector matches all.
    #[schemars(schema_with = "label_selector")]
    pub preference: LabelSelector,
}

/// A label selector whose operators exist. For selectors of its own objects Kubernetes checks that, for ours it doesn't.
fn label_selector(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<LabelSelector>().to_value();
    let operator = schema.pointer_mut("/properties/matchExpressions/items/properties/operator");
    *operator.expect("invariant: a selector has expressions") = json!({
        "type": "string",
        "description": "In, NotIn, Exists or DoesNotExist.",
        "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
    });
    Schema::try_from(schema).expect("invariant: it was one")
}

fn selectors(generator: &mut SchemaGenerator) -> Schema {
    let item = label_selector(generator);
    json_schema!({"type": "array", "maxItems": MAX_ENTRIES, "items": item})
}

/// A list of names, each of them once.
fn names(item: Value) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_ENTRIES,
        "items": item,
        "x-kubernetes-list-type": "set",
    })
}

fn pool_names(_: &mut SchemaGenerator) -> Schema {
    names(json!({"type": "string", "minLength": 1, "maxLength": 253}))
}

fn interfaces(_: &mut SchemaGenerator) -> Schema {
    names(json!({
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_NAME,
        "x-kubernetes-validations": [{
            "rule": "!self.matches('[/\\\\s]')",
            "messageExpression": "\"'\" + self + \"' is no name of a network interface\"",
        }],
    }))
}

/// What Landfall reads of an [`L2Advertisement`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// The names of the pools that it selects.
    pub pools: BTreeSet<String>,
    /// The labels of pools that it selects besides.
    pub pool_selectors: Selectors,
    /// The labels of nodes that may announce.
    pub nodes: Selectors,
    /// The interfaces to announce on. Empty: wherever the address belongs.
    pub interfaces: BTreeSet<String>,
    /// The labels of the Services that it is about.
    pub services: Selectors,
    /// Weights, and the nodes that have them.
    pub preferences: Vec<(u32, Selector)>,
}

/// A list of selectors, if anything is written in it. What a selector with an operator that doesn't exist would mean nobody
/// knows, so it matches nothing. (The API server refuses it, unless it was stored before the rule was.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors(Option<Vec<Selector>>);

impl Selectors {
    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether one of them matches these labels, or nothing is written.
    pub fn admit(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_none_or(|selectors| labels.match_any(selectors))
    }
}

impl From<&Vec<LabelSelector>> for Selectors {
    fn from(written: &Vec<LabelSelector>) -> Self {
        let readable = || written.iter().filter_map(|selector| labels::parse_selector(selector).ok()).collect();
        Self((!written.is_empty()).then(readable))
    }
}

impl Advertisement {
    /// Whether it is about the addresses of the pool with this name and these labels.
    pub fn selects_pool(&self, name: &str, labels: &Labels) -> bool {
        let by_label = || !self.pool_selectors.is_empty() && self.pool_selectors.admit(labels);
        let by_nothing = self.pools.is_empty() && self.pool_selectors.is_empty();
        by_nothing || self.pools.contains(name) || by_label()
    }

    /// The weights of a node with these labels, added up. It has to be one that may announce.
    pub fn preference(&self, node: &Labels) -> u32 {
        let weights = self.preferences.iter().filter(|(_, selector)| node.match_any(std::slice::from_ref(selector)));
        weights.map(|(weight, _)| weight).fold(0, |sum, weight| sum.saturating_add(*weight))
    }
}

impl From<&L2Advertisement> for Advertisement {
    fn from(object: &L2Advertisement) -> Self {
        let spec = &object.spec;
        let preferences = spec.preferred_node_selectors.iter().filter_map(|preferred| {
            Some((u32::try_from(preferred.weight).ok()?, labels::parse_selector(&preferred.preference).ok()?))
        });
        Self {
            pools: spec.ip_address_pools.iter().cloned().collect(),
            pool_selectors: Selectors::from(&spec.ip_address_pool_selectors),
            nodes: Selectors::from(&spec.node_selectors),
            interfaces: spec.interfaces.iter().cloned().collect(),
            services: Selectors::from(&spec.service_selectors),
            preferences: preferences.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: Value) -> Advertisement {
        let spec: L2AdvertisementSpec = serde_json::from_value(spec).expect("a spec");
        Advertisement::from(&L2Advertisement::new("ad", spec))
    }

    #[test]
    fn a_pool_is_selected_by_name_or_by_label_or_where_nothing_is_selected() {
        let gold = json!([{"matchLabels": {"tier": "gold"}}, {"matchLabels": {"tier": "platinum"}}]);
        for (spec, lan, gold_pool) in [
            (json!({}), true, true),
            (json!({"ipAddressPools": ["lan", "gone"]}), true, false),
            (json!({"ipAddressPools": ["gone"]}), false, false),
            (json!({"ipAddressPoolSelectors": gold}), false, true),
            (json!({"ipAddressPools": ["lan"], "ipAddressPoolSelectors": gold}), true, true),
            (json!({"ipAddressPoolSelectors": [{}]}), true, true),
        ] {
            let advertisement = read(spec.clone());
            let tier = Labels::from([("tier", "gold")]);
            let selected =
                (advertisement.selects_pool("lan", &Labels::default()), advertisement.selects_pool("g", &tier));
            assert_eq!(selected, (lan, gold_pool), "{spec}");
        }
    }

    #[test]
    fn no_selector_admits_all_and_one_that_nobody_can_read_admits_nothing() {
        let labels = Labels::from([("role", "edge")]);
        let unknown = json!({"matchExpressions": [{"key": "role", "operator": "Like", "values": ["e"]}]});
        for (selectors, admitted) in [
            (json!([]), true),
            (json!([{}]), true),
            (json!([{"matchLabels": {"role": "edge"}}]), true),
            (json!([{"matchLabels": {"role": "core"}}]), false),
            (json!([{"matchLabels": {"role": "core"}}, {"matchLabels": {"role": "edge"}}]), true),
            (json!([unknown]), false),
            (json!([unknown, {"matchLabels": {"role": "edge"}}]), true),
        ] {
            let advertisement = read(json!({"nodeSelectors": selectors, "serviceSelectors": selectors}));
            assert_eq!(advertisement.nodes.admit(&labels), admitted, "{selectors}");
            assert_eq!(advertisement.services, advertisement.nodes);
        }
    }

    #[test]
    fn the_weights_of_a_node_are_added_up() {
        let advertisement = read(json!({"preferredNodeSelectors": [
            {"weight": 60, "preference": {"matchLabels": {"zone": "a"}}},
            {"weight": 50, "preference": {"matchLabels": {"gpu": "true"}}},
            {"weight": 9, "preference": {"matchExpressions": [{"key": "zone", "operator": "Like"}]}},
        ]}));
        for (labels, expected) in [
            (Labels::default(), 0),
            (Labels::from([("zone", "a")]), 60),
            (Labels::from([("zone", "a"), ("gpu", "true")]), 110),
        ] {
            assert_eq!(advertisement.preference(&labels), expected, "{labels:?}");
        }
    }
}
